/** rpc: Nacos over gRPC: connections that have set themselves up, what they ask, and what is pushed to them.
 *
 *  grpc.c carries the messages, rpc_config.c and rpc_naming.c answer those of the two halves. A connection is the identity of a
 * client: what it listens to, follows and publishes ends with it. Every push waits for its acknowledgement and is repeated without
 * one. */
#ifndef LUNACOS_EMBEDDED_RPC_H
#define LUNACOS_EMBEDDED_RPC_H

#include <jansson.h>
#include <uthash.h>

#include "embedded/grpc.h"
#include "engine/envelope.h"
#include "engine/timer.h"

struct service;
struct session;
struct follower;
struct publication;
struct item;

/** A push that waits for its acknowledgement. */
struct notice {
    UT_hash_handle hh; /* in rpc.notices, while id is not 0 */
    uint64_t id;
    struct session *session;
    int tries;
    struct timer again;
    void (*repeat)(struct notice *n); /* makes the message anew and sends it */
};

/** One configuration that a connection listens to. */
struct listener {
    struct notice notice; /* first member */
    UT_hash_handle hh;    /* in session.listeners, by item */
    struct item *item;
    struct listener *before, *after; /* the others of the item */
    char tenant[68];                 /* as the client has written it */
};

/** One connection. */
struct session {
    struct rpc *rpc;
    struct grpc_conn *conn;
    struct grpc_call *stream; /* NULL: none yet, or it has ended: pushes are lost then */
    bool registered;          /* it has set itself up */
    bool naming;              /* labels.module: others may not publish or follow */
    char id[96];
    char version[64];  /* of the client */
    int64_t active_at; /* the last message */
    int64_t asked_at;  /* whether it is still there; 0: not asked */
    struct listener *listeners;
    struct follower *followers;
    struct publication *publications;
};

struct rpc {
    struct service *service;
    struct grpc grpc;
    struct notice *notices;
    uint64_t last_id;
    struct timer tick;
    int64_t idle_ms, patience_ms; /* a connection silent for so long is asked, and thrown out without an answer in so long */
    int64_t again_ms;             /* fault: pushes are repeated after so long; 0: as real servers do it */
    bool ignore_acks, duplicate;  /* faults: repeats what was acknowledged; sends all pushes twice */
    uint64_t pushes, acked, repeated, detections;
    size_t listened, followed;
};

/** A message to be answered. */
struct question {
    struct service *service;
    struct session *session;
    const char *type; /* of the message */
    const struct envelope *envelope;
    json_t *json;       /* an object */
    const char *answer; /* type of the answer */
    struct buf out;     /* its JSON */
};

bool rpc_start(struct service *s, int fd, int port, const struct pem *pem, char *why, size_t why_size);
void rpc_stop(struct service *s);
void rpc_free(struct service *s);
/** Closes all connections, as a restart would. */
void rpc_drop_all(struct rpc *r);
/** POST /__lunacos/grpc: does what `spec` says. False: `why` says what is wrong with it. */
bool rpc_control(struct rpc *r, json_t *spec, char *why, size_t why_size);
/** The connections and some numbers. */
json_t *rpc_json(const struct rpc *r);

/** Appends the value as text; takes the reference. */
void append_value(struct buf *out, json_t *value);
/** A member of the message: a text that is not empty, or `otherwise`. */
const char *question_text(const struct question *q, const char *name, const char *otherwise);
/** The answer; takes the reference. */
void question_answer(struct question *q, json_t *body);
/** The answer without more than that it worked. */
void question_done(struct question *q);
void question_fail(struct question *q, int result, int error, const char *why);
/** The same with the type ErrorResponse. */
void question_error(struct question *q, int result, int error, const char *why);

/** Sends a push with this body (the text of a JSON object with members, to which `headers` and `requestId` are added), in place of
 * the one that `n` is still waiting for, and repeats it after `again_ms` unless it is acknowledged. A body that cannot be sent is
 * not repeated either. */
void notice_send(struct notice *n, const char *type, const struct buf *body, int64_t again_ms);
/** Waits no more. */
void notice_clear(struct notice *n);

/* What the halves answer. */
void rpc_config_query(struct question *q);
void rpc_config_publish(struct question *q);
void rpc_config_remove(struct question *q);
void rpc_config_listen(struct question *q);
void rpc_instance(struct question *q);
void rpc_persistent(struct question *q);
void rpc_batch(struct question *q);
void rpc_subscribe(struct question *q);
void rpc_service_query(struct question *q);
void rpc_service_list(struct question *q);

/** For the store: the visible md5 of the item is another one now. */
void rpc_config_changed(struct item *item);
/** For the registry. */
void rpc_naming_push(struct follower *f);
/** The connection is over: nothing is left of it. */
void rpc_config_forget(struct session *s);
void rpc_naming_forget(struct session *s);

#endif
