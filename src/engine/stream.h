/** stream: the change detector of gRPC. Each key is named to the server once per connection, with its md5, in requests of bounded
 * size; from then on the server pushes its changes. A push is not a value: the watch reads.
 *
 *  What a push could have missed is found by naming all keys again every few minutes, and on each new connection. While requests
 * fail one at a time goes out, with pauses, always with those keys that waited longest; and each has half as many as the
 * one before, so that a key that is to blame is alone in the end and the others are not. */
#ifndef LUNACOS_STREAM_H
#define LUNACOS_STREAM_H

#include "engine/watch.h"

struct listen;
struct gone;

struct stream {
    struct watch_list waiting, armed; /* those in between are in a request */
    struct listen *requests;          /* under way */
    int request_count;
    struct gone *gone; /* keys that the server knows and nobody watches any more */
    struct timer flush_timer, tick_timer;
    int64_t resync_at;
    int failures; /* requests in a row */
    int most;     /* keys of the next one; 0: as many as there may be */
};

#endif
