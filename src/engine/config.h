/** config: values, md5s and watches; reads, publishes, removals; when a snapshot is written.
 *
 *  A watch is in one of four states, all of them the loop's business: its value is being *fetched*; it *waits* to be part of a long
 * poll; it is *armed* in one; or it *rests*, because it failed or changed too often. longpoll moves it from waiting to armed and
 * back here when it changed. */
#ifndef LUNACOS_CONFIG_H
#define LUNACOS_CONFIG_H

#include <time.h>
#include <uthash.h>

#include "engine/engine.h"
#include "engine/protocol.h"

struct nacos_client;
struct batch;
struct fetch;

enum watch_state { WATCH_FETCHING, WATCH_WAITING, WATCH_ARMED, WATCH_RESTING };

struct nacos_watch {
    struct nacos_client *client;
    struct event event; /* the slot. It, `refs`, `known` and `hh`: guarded by engine->lock */
    int refs;
    bool known; /* event holds the newest value (NULL: absent) */
    UT_hash_handle hh;

    /* the loop's */
    enum watch_state state;
    struct nacos_watch *prev, *next; /* in its batch or in the waiting list */
    struct batch *batch;
    struct fetch *fetch; /* while WATCH_FETCHING */
    struct timer timer;
    char server_md5[33]; /* what the server held when last asked; "" absent or unknown */
    bool listed;         /* the fetch under way is because of a poll's answer */
    nacos_code trouble;  /* the last one told to the host */
    int failures, spurious;
    int64_t window; /* start of the second in which `changes` are counted */
    int changes;

    struct key key;
    char name[]; /* data_id NUL group NUL; the hash key is both */
};

struct snap;

struct config {
    struct nacos_watch *watches; /* guarded by engine->lock; changed by the host */
    struct fetch *fetches;       /* reads under way, by name */
    int fetching;
    struct snap *snaps; /* what the snapshot files hold, by name */
    struct snap *dirty; /* those to be written, oldest first */
    struct snap **dirty_end;
    int64_t dirty_since;
    struct timer snap_timer;
    struct timer failover_timer;
    struct timespec failover_mtime; /* of the folder, when last looked at */
    int failovers;                  /* watches whose value is that of a failover file */
};

struct nacos_watch *config_find(struct nacos_client *c, const struct key *k);
/** The value of a watch has been listed as changed (longpoll took it out of its batch). */
void config_changed(struct nacos_watch *w);
/** The server said that the value it holds is still the newest. */
void config_confirmed(struct nacos_watch *w, double unix_time);
/** A poll has ended: a good moment to look, a little later, for failover files that came, changed or went. */
void config_look_for_failover(struct nacos_client *c);
/** The folder of snapshots is another one: nothing is known of its files. */
void config_forget_snapshots(struct nacos_client *c);
/** On the loop. */
void config_shut(struct nacos_client *c);

#endif
