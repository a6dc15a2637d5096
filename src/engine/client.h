/** client: one namespace on one list of servers, with its options; the composition of the rooms below it.
 *
 *  Born on the host thread, then the loop's alone: the host reaches it by jobs. What the host may read at once (the status, the
 * watch table, a watch's newest value) is guarded by the engine's lock and marked so. */
#ifndef LUNACOS_CLIENT_H
#define LUNACOS_CLIENT_H

#include "engine/auth.h"
#include "engine/beat.h"
#include "engine/compare.h"
#include "engine/config.h"
#include "engine/detector.h"
#include "engine/dialect.h"
#include "engine/engine.h"
#include "engine/link.h"
#include "engine/log.h"
#include "engine/longpoll.h"
#include "engine/protocol.h"
#include "engine/push.h"
#include "engine/request.h"
#include "engine/saver.h"
#include "engine/server.h"
#include "engine/stream.h"
#include "engine/subscribe.h"
#include "engine/watch.h"

#define VERSION_HEADER "User-Agent: Nacos-C-Client:v1.1.0 lunacos/" LUNACOS_VERSION

struct nacos_client {
    nacos_engine *engine;
    struct nacos_client *prev, *next;
    struct log *log;

    char *ns, *context_path, *ak, *sk;
    char *endpoint, *endpoint_path; /* address server: origin and path; NULL: none */
    char *ca_file, *cert_file, *key_file, *server_name;
    struct http_tls tls;

    /* nacos_client_configure() replaces these on the loop */
    char *proxy_http, *proxy_https, *failover_base, *snapshot_base;
    bool no_snapshot;
    int64_t poll_timeout_ms, poll_interval_ms;
    int poll_batch;
    size_t max_response;

    struct servers servers;
    struct timer endpoint_timer;
    struct request *endpoint_request;
    char endpoint_trouble[300]; /* why it gave no list; empty: it did, or was not asked yet */
    struct dialect dialect;
    struct link link;
    struct auth auth;
    struct request *requests; /* all that run */
    struct config config;
    struct saver saver;
    struct watches watches;
    struct longpoll longpoll;
    struct stream stream;
    struct compare compare;
    struct beats beats;
    struct nacos_subscription *subscriptions;
    struct push push;
    struct saver naming_saver; /* lists of instances */
    bool closing;              /* no request may start */
    bool leaving;              /* closed: goes on only until its instances are deregistered */
    struct event *left;        /* ready when that is done; NULL: nobody waits */
    struct timer leave_timer;
    bool told_down;       /* the log's last word on the servers is that one fails */
    int64_t tell_down_at; /* it does not say so again before */

    nacos_status status; /* guarded by engine->lock */
};

/** On the loop: ends everything of the client and frees it, at once. */
void client_shut(struct nacos_client *c);
/** On the loop: the same, but its instances are deregistered first. `left` may be NULL. */
void client_leave(struct nacos_client *c, struct event *left);
/** On the loop: notes the end of an exchange for nacos_client_status() and logs when servers are lost or found again. */
void client_note(struct nacos_client *c, const char *origin, const nacos_error *err);

/** On the loop: `dialect.now` is another one than `before` (NULL: none was known). Watches, registrations and subscriptions go over
 * to it. */
void client_dialect_changed(struct nacos_client *c, const struct protocol *before);
/** On the loop: the same dialect on another connection: everything that lives by it is told anew. */
void client_link_up(struct nacos_client *c);
/** On the loop: what nacos_client_status() says of dialect and link is another. */
void client_note_dialect(struct nacos_client *c);

#endif
