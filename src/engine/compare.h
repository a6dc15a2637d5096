/** compare: the change detector where servers tell nobody (v3 over HTTP): it reads each watched item in turn and compares md5s.
 *
 *  Every item is asked for once in an interval, with pauses between, at most 100 a second and four at a time. When no server
 * answers, one request at a time asks on, with jittered back-off.
 *
 *  A watch stays WATCH_WAITING here: no server knows of it. */
#ifndef LUNACOS_COMPARE_H
#define LUNACOS_COMPARE_H

#include "engine/watch.h"

#define COMPARES_MAX 4

struct compare {
    struct watch_list list; /* in order of their turn */
    struct timer timer;     /* the next turn, at `turn` */
    int64_t turn;
    int failures; /* in a row, of all */
    int in_flight;
    struct comparison {
        struct nacos_client *client; /* NULL: nothing is asked */
        struct nacos_watch *watch;
        struct request *request;
    } flights[COMPARES_MAX];
};

#endif
