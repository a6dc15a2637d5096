/** process: child processes, on the loop. They get what the host gave as standard input in a file without a name rather than a
 *  pipe: nothing has to be written while they run, so one that reads late, little or nothing needs no care, and one that outlives
 *  the engine still finds all of it. */
#ifndef LUNACOS_PROCESS_H
#define LUNACOS_PROCESS_H

struct nacos_engine;

/** At the end of the loop: the children go on, nobody waits for them any more. */
void processes_forget(struct nacos_engine *e);

#endif
