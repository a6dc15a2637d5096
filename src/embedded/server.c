/** server: see server.h. The only file that knows libmicrohttpd.
 *
 *  The daemon runs in external-epoll mode: its epoll descriptor is one uv_poll of our loop, its idle timeouts one uv_timer. A
 * request that waits (long poll, delay, raw bytes) is suspended: libmicrohttpd then forgets its socket, so, as in the real server,
 * a client that hangs up is noticed only when it is answered. Resuming makes the daemon call on_request() again for it, which looks
 * at the phase. */
#include "embedded/server.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <microhttpd.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "embedded/listen.h"
#include "embedded/request.h"
#include "engine/file.h"

enum {
    FORM_LIMIT = 2097152,    /* bytes of body; a larger one has no parameters */
    LAST_RESPONSE = 100,     /* of a connection */
    IDLE_SECONDS = 60,       /* then a connection is closed */
    CONNECTION_POOL = 16384, /* bytes per connection: 8 KiB of request headers, their index, and those of the answer */
    SPARE_FILES = 64,        /* descriptors that are not connections */
    HTTP_SHARE = 256,        /* those that gRPC leaves to HTTP, or a quarter of few */
    LEASE_SECONDS = 30,      /* of a subscription to a service, after the last list */
    LEASE_SECONDS_1X = 10,
    PEM_MAX = 1 << 20,
    GRPC_OFFSET = 1000, /* from the port of HTTP to that of gRPC */
    TRIES = 100         /* for two free ports so far apart */
};

struct server {
    struct service service;
    struct embedded_options options;
    uv_loop_t loop;
    uv_poll_t epoll;
    uv_timer_t idle;
    uv_signal_t term, interrupt;
    struct MHD_Daemon *daemon;
    struct request *suspended; /* libmicrohttpd wants each of them resumed before it stops */
    bool woken;                /* one was resumed: the daemon must run, nothing else makes it look */
};

/** One connection, over all its requests. */
struct conn {
    unsigned long id;
    unsigned answered;
    char *uri; /* of the request being read, as it came */
};

static struct server *server_of(struct request *r)
{
    return (struct server *)r->service; /* its first member */
}

static void on_idle(uv_timer_t *timer);

/* ---- suspending and resuming ---- */

static void suspend(struct request *r)
{
    struct server *s = server_of(r);
    r->suspended = true;
    r->before = NULL;
    r->after = s->suspended;
    if (r->after)
        r->after->before = r;
    s->suspended = r;
    MHD_suspend_connection(r->mhd);
}

/** The request has something to do at the next turn. */
static void wake(struct request *r, enum phase phase)
{
    r->phase = phase;
    if (!r->suspended)
        return;
    r->suspended = false;
    if (r->before)
        r->before->after = r->after;
    else
        server_of(r)->suspended = r->after;
    if (r->after)
        r->after->before = r->before;
    MHD_resume_connection(r->mhd);
    server_of(r)->woken = true;
    uv_timer_start(&server_of(r)->idle, on_idle, 0, 0);
}

/* ---- answering ---- */

static void on_raw_over(void *arg)
{
    struct request *r = arg;
    r->raw = NULL;
    wake(r, PHASE_CLOSE);
}

static void deliver(void *arg)
{
    struct request *r = arg;
    struct buf bytes;
    bool hang = r->fault && r->fault->kind == FAULT_HANG;
    if (r->logged && r->reply.status)
        reqlog_status(&r->service->log, r->logged, r->reply.status);
    buf_init(&bytes, SIZE_MAX / 2);
    if (!r->fault || !fault_bytes(r->fault, &r->reply, &bytes)) {
        wake(r, PHASE_READY);
        return;
    }
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    r->raw = info ? raw_start(&server_of(r)->loop, info->connect_fd, &bytes, hang, on_raw_over, r) : NULL;
    buf_free(&bytes);
    if (!r->raw)
        wake(r, PHASE_CLOSE);
}

void request_answer(struct request *r)
{
    /* never at once: raw bytes may only be sent while libmicrohttpd keeps off the connection */
    if (r->fault)
        timer_set(&r->service->timers, &r->delay, (int64_t)(r->fault->delay * 1000), deliver, r);
    else
        deliver(r);
}

static ssize_t endless(void *cls, uint64_t pos, char *buf, size_t max)
{
    (void)cls;
    (void)pos;
    memset(buf, 'x', max);
    return (ssize_t)max;
}

static enum MHD_Result send_reply(struct request *r)
{
    struct reply *reply = &r->reply;
    if (reply->head.failed || reply->body.failed)
        return MHD_NO;
    size_t len = reply->body.len;
    char *body = buf_take(&reply->body, NULL);
    struct MHD_Response *out;
    if (r->fault && r->fault->kind == FAULT_ENDLESS)
        out = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, CONNECTION_POOL / 2, endless, NULL, NULL);
    else
        out = MHD_create_response_from_buffer(len, body ? body : (char *)"", body ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
    if (!out) {
        free(body);
        return MHD_NO;
    }
    const char *name, *value;
    bool ok = true;
    /* Connection comes first: adding it makes libmicrohttpd 0.9.75 forget that the answer is chunked */
    if (++r->conn->answered >= LAST_RESPONSE || reply->status == 400 || reply->status == 500 || reply->status == 501)
        ok &= MHD_add_response_header(out, MHD_HTTP_HEADER_CONNECTION, "close") == MHD_YES;
    for (size_t at = 0; reply_next_header(reply, &at, &name, &value);)
        ok &= MHD_add_response_header(out, name, *value ? value : " ") ==
              MHD_YES; /* it refuses an empty value; nobody sees the space */
    if (reply->chunked && strcmp(r->method, "HEAD") != 0)
        ok &= MHD_add_response_header(out, MHD_HTTP_HEADER_TRANSFER_ENCODING, "chunked") == MHD_YES;
    enum MHD_Result result = ok ? MHD_queue_response(r->mhd, (unsigned)reply->status, out) : MHD_NO;
    MHD_destroy_response(out);
    return result;
}

/* ---- a request's life ---- */

const char *request_header(struct request *r, const char *name)
{
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

unsigned request_connections(struct request *r)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(server_of(r)->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);
    return info ? info->num_connections : 0;
}

static void request_free(struct request *r)
{
    if (!r)
        return;
    raw_stop(r->raw);
    timer_clear(&r->service->timers, &r->delay);
    poll_clear(&r->service->polls, &r->poll);
    fault_release(r->fault);
    reply_free(&r->reply);
    form_free(&r->form);
    buf_free(&r->body);
    free(r->method);
    free(r->path);
    free(r->query);
    free(r);
}

static struct request *request_new(struct server *s, struct MHD_Connection *mhd, struct conn *conn, const char *method)
{
    struct request *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->service = &s->service;
    r->mhd = mhd;
    r->conn = conn;
    r->connection = conn->id;
    buf_init(&r->body, FORM_LIMIT);
    reply_init(&r->reply);
    const char *uri = conn->uri ? conn->uri : "", *question = strchr(uri, '?');
    r->method = strdup(method);
    r->path = question ? strndup(uri, (size_t)(question - uri)) : strdup(uri);
    r->query = strdup(question ? question + 1 : "");
    if (!r->method || !r->path || !r->query) {
        request_free(r);
        return NULL;
    }
    for (char *c = r->path; *c; c++) /* it may become part of a JSON text */
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    s->service.bytes_in += info ? info->header_size : 0;
    return r;
}

static void take_body(struct request *r, const char *data, size_t len)
{
    r->service->bytes_in += len;
    if (r->too_long || buf_append(&r->body, data, len))
        return;
    r->too_long = true; /* the rest is read and forgotten */
    buf_free(&r->body);
}

static enum MHD_Result collect_header(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct buf *headers = cls;
    (void)kind;
    buf_append(headers, name, strlen(name) + 1);
    buf_append(headers, value ? value : "", value ? strlen(value) + 1 : 1);
    return MHD_YES;
}

void request_headers(struct request *r, struct buf *out)
{
    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, collect_header, out);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version,
                                  const char *upload, size_t *upload_size, void **context)
{
    struct server *s = cls;
    struct request *r = *context;
    (void)url; /* decoded; ours is the raw one */
    (void)version;
    if (!r) { /* the headers are here */
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        struct conn *conn = info ? info->socket_context : NULL;
        *context = r = conn ? request_new(s, mhd, conn, method) : NULL;
        return r ? MHD_YES : MHD_NO;
    }
    if (*upload_size > 0) {
        take_body(r, upload, *upload_size);
        *upload_size = 0;
        return MHD_YES;
    }
    if (!r->begun) {
        r->begun = true;
        api_begin(r);
    }
    switch (r->phase) {
    case PHASE_BUSY:
        suspend(r);
        return MHD_YES;
    case PHASE_READY:
        return send_reply(r);
    case PHASE_CLOSE:
        break;
    }
    return MHD_NO;
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_RequestTerminationCode how)
{
    (void)cls;
    (void)mhd;
    (void)how;
    request_free(*context);
    *context = NULL;
}

static void *on_uri(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    (void)cls;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct conn *conn = info ? info->socket_context : NULL;
    if (conn) {
        free(conn->uri);
        conn->uri = strdup(uri);
    }
    return NULL; /* the request is made when its headers are here: one that never gets so far leaves nothing behind */
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **context, enum MHD_ConnectionNotificationCode what)
{
    struct server *s = cls;
    struct conn *conn = *context;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        s->woken = true; /* after a shortage of descriptors the daemon listens again only at its next turn */
        if (conn)
            free(conn->uri);
        free(conn);
        *context = NULL;
        return;
    }
    *context = conn = calloc(1, sizeof *conn);
    if (conn)
        conn->id = ++s->service.connections;
    if (s->options.tls_ca) { /* libmicrohttpd only asks for a certificate; we insist, and on a good one */
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION);
        if (info && info->tls_session) {
            gnutls_certificate_server_set_request(info->tls_session, GNUTLS_CERT_REQUIRE);
            gnutls_session_set_verify_cert(info->tls_session, NULL, 0);
        }
    }
}

/* ---- the loop ---- */

static void turn(struct server *s);

static void on_epoll(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    turn(poll->data);
}

static void on_idle(uv_timer_t *timer)
{
    turn(timer->data);
}

static void turn(struct server *s)
{
    MHD_UNSIGNED_LONG_LONG ms = 0;
    s->woken = false;
    MHD_run(s->daemon);
    if (s->woken || MHD_get_timeout(s->daemon, &ms) == MHD_YES) {
        uv_update_time(&s->loop);
        uv_timer_start(&s->idle, on_idle, ms, 0);
    } else {
        uv_timer_stop(&s->idle);
    }
}

static void on_signal(uv_signal_t *signal, int number)
{
    (void)number;
    uv_stop(signal->loop);
}

static void on_changed(void *arg, struct item *item)
{
    struct server *s = arg;
    polls_changed(&s->service.polls, item);
    rpc_config_changed(item);
}

/* ---- starting and stopping ---- */

/** Lets the process open what the system permits it, and says how many connections that makes. */
static unsigned connection_limit(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0)
        return 1024 - SPARE_FILES;
    if (files.rlim_cur < files.rlim_max) {
        rlim_t soft = files.rlim_cur;
        files.rlim_cur = files.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &files) != 0)
            files.rlim_cur = soft;
    }
    return files.rlim_cur > 1 << 20           ? 1 << 20
           : files.rlim_cur > 2 * SPARE_FILES ? (unsigned)files.rlim_cur - SPARE_FILES
                                              : SPARE_FILES;
}

static bool read_pem(const char *path, char **text, char *why, size_t why_size)
{
    size_t len;
    if (!path)
        return true;
    enum file_status status = file_read(path, PEM_MAX, text, &len, why, why_size);
    if (status == FILE_ABSENT)
        snprintf(why, why_size, "there is no file %s", path);
    return status == FILE_OK;
}

/** The sockets for HTTP and gRPC; `grpc` is -1 when that is not served. False: none is open. */
static bool open_sockets(struct server *s, int *http, int *grpc, char *why, size_t why_size)
{
    const struct embedded_options *o = &s->options;
    int tries = o->port == 0 && !o->grpc_port ? TRIES : 1;
    *grpc = -1;
    do {
        if ((*http = listen_on(o->host, o->port, &s->service.port, why, why_size)) < 0)
            return false;
        if (!embedded_serves(o, "grpc"))
            return true;
        int port = o->grpc_port ? o->grpc_port : s->service.port + GRPC_OFFSET, ignored;
        if (port > 65535)
            snprintf(why, why_size, "there is no port %d", port);
        else if ((*grpc = listen_on(o->host, port, &ignored, why, why_size)) >= 0)
            return true;
        close(*http);
        size_t used = strlen(why);
        snprintf(why + used, why_size - used, " (for gRPC: --grpc-port names another port, --api v1,v3 does without)");
    } while (--tries > 0);
    return false;
}

static bool start_daemon(struct server *s, int fd, const struct pem *pem, char *why, size_t why_size)
{
    struct MHD_OptionItem tls[4] = {{MHD_OPTION_END, 0, NULL}};
    int n = 0;
    if (pem->cert) {
        tls[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, pem->cert};
        tls[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, pem->key};
    }
    if (pem->ca)
        tls[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_TRUST, 0, pem->ca};
    tls[n] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | (pem->cert ? MHD_USE_TLS : 0);
    s->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, s, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
                                 connection_limit(), MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_POOL,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_SECONDS, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
                                 s, MHD_OPTION_NOTIFY_CONNECTION, on_connection, s, MHD_OPTION_URI_LOG_CALLBACK, on_uri, s,
                                 MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
    if (!s->daemon) {
        close(fd);
        snprintf(why, why_size, "cannot start the HTTP server%s",
                 pem->cert ? ": are certificate, key and CA readable PEM files that belong together?" : "");
    }
    return s->daemon != NULL;
}

/** Pushes leave from the address where the server listens. Without a port for them it serves all the same, as with UDP blocked. */
static void open_pusher(struct server *s)
{
    struct service *v = &s->service;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_LISTEN_FD);
    struct sockaddr_storage address = {0};
    socklen_t len = sizeof address;
    if (info && getsockname(info->listen_fd, (struct sockaddr *)&address, &len) == 0)
        pusher_init(&v->pusher, &s->loop, &v->timers, (struct sockaddr *)&address);
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h))
        uv_close(h, NULL);
}

/** Listens, and starts what serves there. */
static bool start_servers(struct server *s, const struct pem *pem, char *why, size_t why_size)
{
    const struct embedded_options *o = &s->options;
    int http, grpc;
    if (!open_sockets(s, &http, &grpc, why, why_size))
        return false;
    int port = o->grpc_port ? o->grpc_port : s->service.port + GRPC_OFFSET;
    if (!start_daemon(s, http, pem, why, why_size)) {
        if (grpc >= 0)
            close(grpc);
        return false;
    }
    /* the two share the descriptors; the daemon would stand still without any */
    unsigned limit = connection_limit();
    s->service.rpc.grpc.limit = limit - (limit / 4 < HTTP_SHARE ? limit / 4 : HTTP_SHARE);
    return grpc < 0 || rpc_start(&s->service, grpc, port, pem, why, why_size);
}

static bool start_loop(struct server *s, char *why, size_t why_size)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    snprintf(why, why_size, "cannot start the event loop");
    if (!info || uv_poll_init(&s->loop, &s->epoll, info->epoll_fd) != 0)
        return false;
    uv_timer_init(&s->loop, &s->idle);
    uv_signal_init(&s->loop, &s->term);
    uv_signal_init(&s->loop, &s->interrupt);
    s->epoll.data = s->idle.data = s;
    return uv_poll_start(&s->epoll, UV_READABLE, on_epoll) == 0 && uv_signal_start(&s->term, on_signal, SIGTERM) == 0 &&
           uv_signal_start(&s->interrupt, on_signal, SIGINT) == 0;
}

/** Waiting requests get no answer: their connections just close. */
static void stop_daemon(struct server *s)
{
    if (s->epoll.data) /* before its descriptor goes */
        uv_close((uv_handle_t *)&s->epoll, NULL);
    while (s->suspended)
        wake(s->suspended, PHASE_CLOSE);
    MHD_stop_daemon(s->daemon);
}

static void announce(const struct server *s)
{
    const struct embedded_options *o = &s->options;
    printf(strchr(o->host, ':') ? "lunacos server listening on %s://[%s]:%d%s" : "lunacos server listening on %s://%s:%d%s",
           o->tls_cert ? "https" : "http", o->host, s->service.port, o->context_path);
    if (embedded_serves(o, "grpc"))
        printf(" and, for gRPC, port %d", s->service.rpc.grpc.port);
    printf(" (in memory, for development and tests)\n");
    fflush(stdout);
}

bool embedded_serves(const struct embedded_options *o, const char *api)
{
    for (const char *at = o->api; at && *at;) {
        size_t n = strcspn(at, ",");
        if (n == strlen(api) && strncmp(at, api, n) == 0)
            return true;
        at += n + (at[n] == ',');
    }
    return !o->api;
}

bool embedded_claims(const struct embedded_options *o, int major)
{
    return atoi(o->version) == major;
}

static void set_options(struct server *s, const struct embedded_options *o)
{
    s->options = *o;
    if (!o->host || !*o->host)
        s->options.host = "127.0.0.1";
    if (!o->context_path)
        s->options.context_path = "/nacos";
    else if (strcmp(o->context_path, "/") == 0)
        s->options.context_path = "";
    if (!o->version || !*o->version)
        s->options.version = embedded_serves(o, "v3") ? "3.1.0" : "2.5.1";
    if (o->token_ttl <= 0)
        s->options.token_ttl = 18000;
}

bool embedded_serve(const struct embedded_options *options, char *why, size_t why_size)
{
    struct server *s = calloc(1, sizeof *s);
    struct pem pem = {0};
    bool ok = false;
    snprintf(why, why_size, "out of memory");
    if (!s || uv_loop_init(&s->loop) != 0) {
        free(s);
        return false;
    }
    set_options(s, options);
    struct service *v = &s->service;
    v->options = &s->options;
    timers_init(&v->timers, &s->loop);
    registry_init(&v->registry, &v->timers, &v->pusher, options->push_delay,
                  embedded_claims(&s->options, 1) ? LEASE_SECONDS_1X : LEASE_SECONDS);
    v->registry.push = rpc_naming_push;
    v->polls = (struct polls){.store = &v->store, .timers = &v->timers, .ended = config_poll_ended};
    if (store_init(&v->store, &v->timers, options->lag, on_changed, s) &&
        access_init(&v->auth, options->username, options->password, s->options.token_ttl) &&
        read_pem(options->tls_cert, &pem.cert, why, why_size) && read_pem(options->tls_key, &pem.key, why, why_size) &&
        read_pem(options->tls_ca, &pem.ca, why, why_size) && start_servers(s, &pem, why, why_size) &&
        (ok = start_loop(s, why, why_size))) {
        open_pusher(s);
        announce(s);
        turn(s);
        uv_run(&s->loop, UV_RUN_DEFAULT);
    }
    rpc_stop(v);
    if (s->daemon)
        stop_daemon(s);
    uv_walk(&s->loop, close_handle, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    rpc_free(v);
    registry_free(&v->registry);
    pusher_free(&v->pusher);
    store_free(&v->store);
    timers_free(&v->timers);
    faults_clear(&v->faults);
    reqlog_free(&v->log);
    uv_loop_close(&s->loop);
    free(pem.cert);
    free(pem.key);
    free(pem.ca);
    free(s);
    return ok;
}
