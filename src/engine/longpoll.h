/** longpoll: the change detector of v1. Watches are spread over a few held polls ("batches"), so that
 *
 *  - a new watch is armed at once, in a batch of its own, never after the 30 s that another poll may hang;
 *  - a change makes only its batch travel again, and a key that changed lately sits in a small batch ("hot");
 *  - batches stay few: quiet small ones are merged into others, and there are never more than POLLS_MAX (but for a small
 * pulling_config_size).
 *
 *  When a poll fails, all but one batch wait while that one asks with jittered back-off; its first answer sets the others going. */
#ifndef LUNACOS_LONGPOLL_H
#define LUNACOS_LONGPOLL_H

#include "engine/watch.h"

#define POLLS_MAX 24

struct batch;

struct longpoll {
    struct nacos_client *client;
    struct watch_list waiting; /* to be armed */
    struct batch *batches;
    int batch_count;
    struct timer flush_timer;
    int failures; /* polls in a row that no server answered */
    int streak;   /* held polls in a row that ended badly and at once, whatever probes said meanwhile */
};

void longpoll_init(struct longpoll *l, struct nacos_client *c);

#endif
