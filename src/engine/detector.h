/** detector: how a client learns that a watched configuration has changed. The seam between watch (which knows values and what to
 * do when one differs) and the mechanisms: long polls (v1), comparing md5s (v3 over HTTP), pushes on the stream (gRPC).
 *
 *  A watch that waits to be told is added with its poll_md5; from then on it is the detector's (WATCH_WAITING until the server
 * knows of it, then WATCH_ARMED), which reports
 *
 *  - watch_changed(w, how): the server has something else than poll_md5, or may have; the watch leaves the detector, reads and
 * comes back;
 *  - watch_confirmed(w): the server has just said that it has nothing else;
 *  - watch_trouble(w): it cannot be watched now, and why.
 *
 *  A change between the moment the watch read its value and the moment it is armed must not be lost: arming compares md5s. */
#ifndef LUNACOS_DETECTOR_H
#define LUNACOS_DETECTOR_H

#include "nacos.h"

struct detector {
    const char *name;
    void (*add)(struct nacos_client *c, struct nacos_watch *w);
    void (*remove)(struct nacos_client *c, struct nacos_watch *w); /* it may be unknown here */
    void (*nudge)(struct nacos_client *c);                         /* fewer reads are under way */
    void (*shut)(struct nacos_client *c);
    /* the connection is another one now: everything has to be armed anew. NULL: means nothing here */
    void (*renew)(struct nacos_client *c);
};

extern const struct detector detector_longpoll, detector_compare, detector_stream;

/** The key that a push of the stream names. */
struct key;
bool stream_pushed(struct nacos_client *c, const struct key *k);

#endif
