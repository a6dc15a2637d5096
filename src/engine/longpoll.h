/** longpoll: the change detector. Watches are spread over a few held polls ("batches"), so that
 *
 *  - a new watch is armed at once, in a batch of its own, never after the 30 s that another poll may hang;
 *  - a change makes only its batch travel again, and a key that changed lately sits in a small batch ("hot");
 *  - batches stay few: quiet small ones are merged into others, and there are never more than POLLS_MAX (but for a small
 * pulling_config_size).
 *
 *  When a poll fails, all but one batch wait while that one asks with jittered back-off; its first answer sets the others going. */
#ifndef LUNACOS_LONGPOLL_H
#define LUNACOS_LONGPOLL_H

#include "engine/timer.h"

#define POLLS_MAX 24

struct nacos_client;
struct nacos_watch;
struct batch;

struct longpoll {
    struct nacos_client *client;
    struct nacos_watch *waiting; /* to be armed */
    int waiting_count;
    struct batch *batches;
    int batch_count;
    struct timer flush_timer;
    int failures; /* polls in a row that no server answered */
    int streak;   /* held polls in a row that ended badly and at once, whatever probes said meanwhile */
};

void longpoll_init(struct longpoll *l, struct nacos_client *c);
/** The watch wants to be armed with its server_md5. */
void longpoll_add(struct nacos_watch *w);
/** It leaves its batch or the waiting list. */
void longpoll_remove(struct nacos_watch *w);
/** Fewer reads are under way: perhaps the waiting ones can go. */
void longpoll_nudge(struct longpoll *l);
void longpoll_shut(struct longpoll *l);

#endif
