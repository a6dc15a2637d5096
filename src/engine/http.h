/** http: libcurl's multi interface on the engine's loop. One request in, one response out. The only room that knows curl.
 *
 *  It knows nothing of Nacos. Connections are shared by everything on one engine and kept alive; a kept connection that the server
 * closed meanwhile is replaced by libcurl without a word. At most HTTP_PER_SERVER requests run against one server at a time, later
 * ones wait in order; held long polls do not count. Every request has a deadline, waiting included. */
#ifndef LUNACOS_HTTP_H
#define LUNACOS_HTTP_H

#include "engine/buf.h"
#include "engine/timer.h"

#define HTTP_PER_SERVER 16

enum http_outcome {
    HTTP_ANSWERED,   /* a whole response came, whatever its status */
    HTTP_NO_CONNECT, /* nothing of the request reached a server */
    HTTP_TIMEOUT,
    HTTP_BUSY,     /* never sent: every connection to this server was busy until the deadline */
    HTTP_BROKEN,   /* closed early, half a body, not HTTP */
    HTTP_TOO_LARGE /* the body passed max_response */
};

struct http_response {
    enum http_outcome outcome;
    int status;
    struct buf body;
    char content_md5[40];      /* the header Content-MD5 */
    char config_type[24];      /* the header Config-Type */
    char rpc_type[64];         /* of an answer over gRPC: its message type; else empty */
    char ip[46], local_ip[46]; /* of the two ends of the connection, as far as there was one */
    char why[192];             /* unless HTTP_ANSWERED: what went wrong, without the server's name */
};

struct http_tls {
    bool verify;
    const char *ca_file, *cert_file, *key_file, *server_name;
};

struct http_spec {
    const char *method;
    const char *origin;         /* "http://host:port" */
    const char *target;         /* path and query */
    const char *const *headers; /* "Name: value" lines, NULL-terminated; may be NULL */
    const char *body;           /* not copied: must live until done or cancel */
    size_t body_len;
    int64_t timeout_ms; /* from its start, when it is its turn */
    int64_t wait_ms;    /* from now on, waiting for its turn included */
    int64_t connect_timeout_ms;
    bool held;  /* a long poll */
    bool fresh; /* on a new connection: on a kept one that ends without an answer libcurl would send it again */
    const struct http_tls *tls;
    const char *proxy; /* NULL: none; the environment is never asked */
    size_t max_response;
};

struct http;
struct http_call;
typedef void (*http_done)(void *arg, struct http_response *r);

/** Once per process, before any other call. */
void http_init_process(void);
struct http *http_new(uv_loop_t *loop, struct timers *timers);
void http_free(struct http *h);
/** `done` is called exactly once, never from inside this call, unless http_cancel() comes first. The response is the callee's until
 * it returns. */
struct http_call *http_start(struct http *h, const struct http_spec *spec, http_done done, void *arg);
/** Ends the request at once; `done` will not be called. Not from inside its own `done`. */
void http_cancel(struct http_call *c);

#endif
