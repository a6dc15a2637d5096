/** watch: one watched configuration each: its newest value, and where it is on its way.
 *
 *  | state    | how it got there                                  | the timer      | what ends it | | READING  | new; listed as
 * changed; a rest ended              | not set        | watch_read(): the answer                            | | WAITING  | its
 * value is known, or no server answered         | not set        | longpoll puts it into a batch                       | | ARMED |
 * in a batch of longpoll                            | not set        | listed as changed; the batch is dissolved (WAITING) | |
 * RESTING  | it failed, was listed without a change, or        | set: then it   | the timer | |          | changed too often |
 * reads or waits |                                                     |
 *
 *  Every watch that is not freed is in one of them, and only watch_go() changes the state. */
#ifndef LUNACOS_WATCH_H
#define LUNACOS_WATCH_H

#include <time.h>
#include <uthash.h>

#include "engine/engine.h"
#include "engine/protocol.h"

struct nacos_client;
struct batch;
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
    struct batch *batch;             /* ARMED */
    struct nacos_watch *prev, *next; /* in longpoll's waiting list or the batch */
    char poll_md5[33];               /* what we tell the server that we hold; "" nothing */
    bool listed;                     /* the read under way is because of a poll's answer */
    bool told;                       /* a TROUBLE event was ever sent */
    nacos_code trouble;              /* the last one told */
    int failures;                    /* reads in a row without an answer: whether the value still holds is open */
    int spurious;                    /* times in a row it was listed without a change */
    int64_t window;                  /* start of the second in which `changes` are counted */
    int changes;

    struct key key;
    char name[]; /* key_name() */
};

struct watches {
    struct nacos_watch *table; /* guarded by engine->lock; changed by the host */
    struct timer failover_timer;
    struct timespec failover_mtime; /* of the folder, when last looked at */
    int failovers;                  /* watches whose value is that of a failover file */
};

/** The only writer of the state. RESTING takes `ms` and then READING or WAITING. */
void watch_go(struct nacos_watch *w, enum watch_state state);
void watch_rest(struct nacos_watch *w, int64_t ms, enum watch_state then);
struct nacos_watch *watch_find(struct nacos_client *c, const struct key *k);
/** The answer to its read. */
void watch_read(struct nacos_watch *w, struct value *v, const nacos_error *err);
/** A poll's answer listed it (it is in no batch any more). */
void watch_changed(struct nacos_watch *w);
/** A poll's answer did not list it: the value it holds is still the newest. */
void watch_confirmed(struct nacos_watch *w, double unix_time, const char *server);
/** It cannot be served: told to the host once per reason. */
void watch_trouble(struct nacos_watch *w, const nacos_error *err);
/** A poll has ended: a good moment to look, a little later, for failover files that came, changed or went. */
void watch_look_for_failover(struct nacos_client *c);
/** On the loop: frees all watches of the client. */
void watch_shut(struct nacos_client *c);

#endif
