/** engine: the runtime thread, its mailbox and the events it hands out.
 *
 *  Two queues join the threads, both under one lock that is held for a few instructions only. The *mailbox* carries jobs from
 *  the host to the loop. The *ready list* carries events back: one per request, and for a watch a slot that holds its newest
 *  value, so neither grows with time: a slow host finds the newest value, not a backlog.
 *
 *  How the host is woken: it sets `waiting` (and the id it wants) under the lock and sleeps on `wake_fd`. The loop puts events
 *  into the list and looks once per turn, before it sleeps itself, whether what the host waits for is there: then it clears
 *  `waiting` and raises `wake_fd`. While nobody waits, the public `fd` is readable exactly while the list is not empty, after
 *  each turn of the loop and each engine_take().
 *
 *  The life of a read: nacos_get_config() makes an *ask* (config.c) with its event and posts it; on the loop it joins, or
 *  starts, a *read* of that item; the read puts a *question* (protocol) in a *request* (login, servers in turn), each attempt
 *  of which is an *http_call*. Each owns the next and ends it by cancelling; answers travel back by one callback each.
 *
 *  The life of a change: a *batch* (longpoll.c) is a request, too. Its answer names keys; each key's *watch* leaves the batch,
 *  joins or starts a read, puts the new value in its event slot and goes back to longpoll. */
#ifndef LUNACOS_ENGINE_H
#define LUNACOS_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>

#include "engine/hosts.h"
#include "engine/http.h"
#include "engine/timer.h"
#include "nacos.h"

/** Immutable bytes, shared by reference between threads. */
struct value {
    atomic_int refs;
    size_t len;
    char md5[33];
    char type[24];
    char data[]; /* NUL-terminated beyond len */
};

/** NULL: out of memory. One reference is the caller's. `type` may be NULL, `md5` too: then it is computed. */
struct value *value_new(const void *data, size_t len, const char *type, const char *md5);
struct value *value_ref(struct value *v); /* NULL is fine */
void value_unref(struct value *v);        /* likewise */

struct event {
    struct event *prev, *next;
    bool queued;
    bool slot; /* part of a watch: not freed when delivered */
    nacos_event_kind kind;
    nacos_source source;
    nacos_via via; /* of watches and subscriptions */
    uint64_t id, version;
    double confirmed;
    char server[128]; /* of a watch: that told the value */
    nacos_error *error;
    struct value *value;
    struct hosts *hosts;
    struct hosts *seen; /* what the host knew before this: a slot's last delivered list */
    size_t held;
    int exit_code, exit_signal, exit_pid;
};

/** A job for the loop; run() owns it. */
struct job {
    struct job *next;
    void (*run)(struct job *);
};

struct nacos_engine {
    uv_loop_t loop;
    uv_async_t wake_loop;
    uv_prepare_t before_sleep;
    uv_check_t after_io; /* before the timers that are due then */
    atomic_bool came;    /* events, since the host was last told */
    pthread_t thread;
    struct timers timers;
    struct http *http;
    struct nacos_client *clients; /* the loop's */
    struct sigwatch *signals;     /* the loop's */
    struct poll *polls;           /* the loop's */
    struct process *processes;    /* the loop's; the lock guards changes, so that the host may look */
    struct orphans *orphans;      /* the loop's */
    bool stopping;                /* the loop's */
    int forks;                    /* fork generation at birth */

    pthread_mutex_t lock; /* guards all below, and what its users say it guards */
    struct job *mail_head, *mail_tail;
    struct event *ready_head, *ready_tail;
    uint64_t last_id;
    bool waiting; /* the host waits in engine_take(), for this id or any (0) */
    uint64_t waiting_for;
    bool fd_raised; /* the public descriptor is readable */

    atomic_bool pending; /* the ready list is not empty: looked at without the lock */
    int fd;              /* public: readable while events wait */
    int wake_fd;         /* wakes nacos_wait() */

    /* the host's */
    nacos_event current;
    struct event *current_event; /* what `current` points into */
    nacos_change *current_changes;
    struct value *peeked;
};

uint64_t engine_next_id(nacos_engine *e);
void engine_post(nacos_engine *e, struct job *job);
/** A one-shot event, made by the host with the request so that answering cannot fail. */
struct event *event_new(uint64_t id, nacos_event_kind kind);
void event_set_error(struct event *ev, const nacos_error *err);
void event_free(struct event *ev);
/** Hands an event to the host (from the loop). A slot that waits already stays where it is. */
void engine_ready(nacos_engine *e, struct event *ev);
/** With the lock held: as engine_ready() for callers that just changed what the lock guards. */
void engine_ready_locked(nacos_engine *e, struct event *ev);
/** With the lock held: takes every waiting event of `id` back. */
void engine_withdraw_locked(nacos_engine *e, uint64_t id);

/** For the host: takes the next event, or that of `id`, out of the ready list; the caller frees it. As nacos_wait(), which keeps it
 * for its caller: a binding's garbage collector may close a client while the host still reads the event of its last nacos_wait().
 */
struct event *engine_take(nacos_engine *e, uint64_t id, int timeout_ms);

/** A client has ended: a stopping engine waits for the last. */
void engine_client_gone(nacos_engine *e);

double unix_now(void);

#endif
