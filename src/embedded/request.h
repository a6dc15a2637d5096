/** request: one request on its way through the server, between server.c (which owns it) and the files that answer it. */
#ifndef LUNACOS_EMBEDDED_REQUEST_H
#define LUNACOS_EMBEDDED_REQUEST_H

#include "embedded/auth.h"
#include "embedded/faults.h"
#include "embedded/form.h"
#include "embedded/poll.h"
#include "embedded/pusher.h"
#include "embedded/registry.h"
#include "embedded/reply.h"
#include "embedded/reqlog.h"
#include "embedded/rpc.h"
#include "embedded/server.h"
#include "embedded/store.h"

struct MHD_Connection;
struct conn;

enum phase {
    PHASE_BUSY,  /* no answer yet: it is read, or waits */
    PHASE_READY, /* `reply` goes out at the next turn */
    PHASE_CLOSE  /* the connection is closed at the next turn */
};

struct service;

struct request {
    struct service *service;
    struct conn *conn;
    unsigned long connection; /* its number */
    struct MHD_Connection *mhd;
    char *method, *path, *query;
    struct buf body;
    bool too_long; /* the body passed the limit and was thrown away */
    struct form form;
    enum phase phase;
    bool begun, suspended;
    struct request *before, *after; /* the other suspended ones */
    struct reply reply;
    struct poll poll;
    struct timer delay;
    struct fault *fault;
    struct raw *raw;
    unsigned long logged;
};

/** What the answering files share. One per server; they change only what is theirs. */
struct service {
    const struct embedded_options *options;
    int port;
    struct timers timers;
    struct store store;
    struct polls polls;
    struct access auth;
    struct faults faults;
    struct reqlog log;
    struct registry registry;
    struct pusher pusher;
    struct rpc rpc;
    unsigned long connections; /* ever */
    uint64_t bytes_in;
};

const char *request_header(struct request *r, const char *name);
/** Appends all headers, as name NUL value NUL … */
void request_headers(struct request *r, struct buf *out);
/** Number of open connections. */
unsigned request_connections(struct request *r);
/** `r->reply` is complete (or, under a fault that needs none, empty). Called once for each request, from inside api_begin() or
 * later. */
void request_answer(struct request *r);

/** api: the request is here in full: notes it, and answers it now or later. */
void api_begin(struct request *r);
/** The requests under /__lunacos/. */
void control_handle(struct request *r);
/** config: /v1/cs/configs and below. `path` is what follows that, "" or "/listener"; the method is GET, HEAD, POST, or DELETE of
 * "". True: `r->reply` is complete. False: a poll is parked, config_poll_ended() answers. */
bool config_handle(struct request *r, const char *path);
/** For polls.ended: the answer to a poll that was parked. */
void config_poll_ended(void *arg, struct poll *p, const struct item *item);

/** naming: everything below /v1/ns/, which `path` follows. `r->reply` is complete then. */
void naming_handle(struct request *r, const char *path);
/** v3: everything below /v3/, which `path` follows. `r->reply` is complete then. */
void v3_handle(struct request *r, const char *path);
/** Why the request may not pass, in the words of v1; NULL: it may. */
const char *request_refusal(struct request *r);
/** True: the request may pass, by its token or because nobody needs one. Otherwise it is answered. */
bool request_allowed(struct request *r);

/** A parameter from query or body, NULL if absent. */
const char *request_param(const struct request *r, const char *name);
/** True if it is there, once or (then it is joined now, see form_join()) often; otherwise the answer says that it is missing and
 * `type` is what it should have been. */
bool request_need_param(struct request *r, const char *name, const char *type);
void request_wrong_method(struct request *r);
/** An error page; its JSON type is that of the real server on this path. */
void request_error_page(struct request *r, int status, const char *message);

#endif
