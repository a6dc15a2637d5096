/** poll: descriptors of the host, watched for it. Each is copied: the host may close its own at any time. */
#ifndef LUNACOS_POLL_H
#define LUNACOS_POLL_H

#include <stdint.h>

struct nacos_engine;

/** Ends the watch with this id, 0: all of them. */
void polls_forget(struct nacos_engine *e, uint64_t id);

#endif
