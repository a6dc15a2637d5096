/** watch: one watched configuration each: its newest value, and where it is on its way.
 *
 *  - READING: it is new, was told to have changed, or a rest ended. watch_read(), the answer, ends it.
 *  - WAITING: its value is known, or no server answered; the detector shall arm it.
 *  - ARMED: a server is going to tell the detector when it changes.
 *  - RESTING: it failed, was told to have changed without a change, or changed too often; the timer is set, and then it reads or
 * waits.
 *
 *  Every watch that is not freed is in one of them, and only watch_go() changes the state. */
#ifndef LUNACOS_WATCH_H
#define LUNACOS_WATCH_H

#include <time.h>
#include <uthash.h>

#include "engine/engine.h"
#include "engine/protocol.h"

struct nacos_client;
struct read;

enum watch_state { WATCH_RESTING, WATCH_READING, WATCH_WAITING, WATCH_ARMED };

struct nacos_watch {
    struct nacos_client *client;
    struct event event; /* the slot. It, `refs`, `known` and `hh`: guarded by engine->lock */
    int refs;
    bool known; /* event holds the newest value (NULL: absent) */
    UT_hash_handle hh;

    /* the loop's */
    enum watch_state state;
    struct timer timer;
    struct read *read;               /* READING */
    const struct detector *detector; /* that has it: WAITING, ARMED; NULL while it is not known which to use */
    void *batch;                     /* the detector's: its request that names this one; as are: */
    struct nacos_watch *prev, *next;
    char poll_md5[33];  /* what we tell the server that we hold; "" nothing */
    bool listed;        /* the read under way is because a detector told of a change */
    nacos_via via;      /* how that was */
    bool told;          /* a TROUBLE event was ever sent */
    nacos_code trouble; /* the last one told */
    int failures;       /* reads in a row without an answer: whether the value still holds is open */
    int spurious;       /* times in a row it was listed without a change */
    int64_t window;     /* start of the second in which `changes` are counted */
    int changes;

    struct key key;
    char name[]; /* key_name() */
};

/** Of a detector. */
struct watch_list {
    struct nacos_watch *first, *last;
    int count;
};

struct watches {
    struct nacos_watch *table; /* guarded by engine->lock; changed by the host */
    struct timer failover_timer;
    struct timespec failover_mtime; /* of the folder, when last looked at */
    int failovers;                  /* watches whose value is that of a failover file */
    int64_t useless;                /* the turns for reads after one that showed nothing new are given away up to here */
    int64_t hopeless;               /* the same, for reads after one that failed */
    int failed;                     /* reads in a row, of whichever watches, that failed */
    int64_t tell_at;                /* in the log: the end of the present count of lines about watches in trouble */
    int told, untold;               /* such lines, and those left out */
};

/** The only writer of the state. RESTING takes `ms` and then READING or WAITING. */
void watch_go(struct nacos_watch *w, enum watch_state state);
void watch_rest(struct nacos_watch *w, int64_t ms, enum watch_state then);
struct nacos_watch *watch_find(struct nacos_client *c, const struct key *k);
/** The answer to its read. */
void watch_read(struct nacos_watch *w, struct value *v, const nacos_error *err);
/** A detector learned, in this way, that it has changed; it leaves the detector. */
void watch_changed(struct nacos_watch *w, nacos_via via);
/** A server has just said that the value it holds is still the newest. */
void watch_confirmed(struct nacos_watch *w, double unix_time, const char *server);
/** It cannot be served: told to the host once per reason. */
void watch_trouble(struct nacos_watch *w, const nacos_error *err);
/** It, and no other, is what a server refuses to tell about: it leaves the detector, rests and comes back. */
void watch_refused(struct nacos_watch *w, const nacos_error *err);
/** Fewer reads are under way. */
void watch_nudge(struct nacos_client *c);
/** Another detector than `before` (NULL: none) is in use: all go to it. */
void watch_detector_changed(struct nacos_client *c, const struct detector *before);
/** A poll has ended: a good moment to look, a little later, for failover files that came, changed or went. */
void watch_look_for_failover(struct nacos_client *c);
/** On the loop: frees all watches of the client. */
void watch_shut(struct nacos_client *c);
void watch_put(struct watch_list *l, struct nacos_watch *w);
void watch_put_first(struct watch_list *l, struct nacos_watch *w);
void watch_cut(struct watch_list *l, struct nacos_watch *w);

#endif
