/** Tests of h2 against a server in a thread of its own, whose behaviour the path of each call chooses. */
#include "leaf.h"

#include <dlfcn.h>
#include <netdb.h>
#include <nghttp2/nghttp2.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/h2.h"

/* ---- the server ---------------------------------------------------------------------------------------------------------- */

struct stream {
    int32_t id;
    char path[24];
    struct buf in, out;
    size_t sent;
    bool two_way, last; /* last: nothing follows `out` … */
    const char *status; /* … but trailers with this; NULL: without */
};

struct server {
    pthread_t thread;
    int listener, fd, port;
    SSL_CTX *ctx;
    SSL *ssl;
    nghttp2_session *session;
    bool close;        /* after what is to be sent */
    const char *hello; /* sent instead of HTTP/2 */
};

#define NV(n, v)                                                                                                                   \
    {                                                                                                                              \
        (uint8_t *)(n), (uint8_t *)(v), strlen(n), strlen(v), 0                                                                    \
    }

static ssize_t give(nghttp2_session *session, int32_t id, uint8_t *out, size_t size, uint32_t *flags, nghttp2_data_source *source,
                    void *arg)
{
    struct stream *s = source->ptr;
    (void)arg;
    size_t n = s->out.len - s->sent;
    if (strcmp(s->path, "/split") == 0 && n > 1)
        n = 1;
    if (n == 0 && !s->last)
        return NGHTTP2_ERR_DEFERRED;
    if (n > size)
        n = size;
    if (n)
        memcpy(out, s->out.data + s->sent, n);
    s->sent += n;
    if (s->last && s->sent == s->out.len) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (s->status) {
            const nghttp2_nv nv[] = {NV("grpc-status", s->status), NV("grpc-message", "so%20it%0ais")};
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            nghttp2_submit_trailer(session, id, nv, 2);
        }
    }
    return (ssize_t)n;
}

static void message(struct stream *s, int flag, size_t claimed, const char *data, size_t len)
{
    const char head[5] = {(char)flag, (char)(claimed >> 24), (char)(claimed >> 16), (char)(claimed >> 8), (char)claimed};
    buf_append(&s->out, head, 5);
    buf_append(&s->out, data, len);
}

static void respond(struct server *v, struct stream *s, const char *status)
{
    const nghttp2_nv nv[] = {NV(":status", status), NV("content-type", "application/grpc")};
    nghttp2_data_provider p = {.source.ptr = s, .read_callback = give};
    nghttp2_submit_response(v->session, s->id, nv, 2, &p);
}

static bool asked(const struct stream *s, const char *path)
{
    return strcmp(s->path, path) == 0;
}

/** The request is whole. */
static void answer(struct server *v, struct stream *s)
{
    s->last = true;
    s->status = "0";
    if (asked(s, "/hang"))
        return;
    if (asked(s, "/reset") || asked(s, "/refused")) {
        nghttp2_submit_rst_stream(v->session, 0, s->id, asked(s, "/reset") ? NGHTTP2_INTERNAL_ERROR : NGHTTP2_REFUSED_STREAM);
        return;
    }
    if (asked(s, "/goaway") || asked(s, "/calm")) {
        nghttp2_submit_goaway(v->session, 0, s->id - (asked(s, "/goaway") ? 2 : 0),
                              asked(s, "/calm") ? NGHTTP2_ENHANCE_YOUR_CALM : 0, (const uint8_t *)"bye\n", 4);
        return;
    }
    if (asked(s, "/leave")) /* and answers what is under way */
        nghttp2_submit_goaway(v->session, 0, s->id, 0, (const uint8_t *)"bye\n", 4);
    if (asked(s, "/close")) {
        v->close = true;
        return;
    }
    if (asked(s, "/status")) {
        const nghttp2_nv nv[] = {NV(":status", "200"), NV("grpc-status", "13"), NV("grpc-message", "so%20it%0ais")};
        nghttp2_submit_response(v->session, s->id, nv, 3, NULL);
        return;
    }
    if (asked(s, "/echo") || asked(s, "/split") || asked(s, "/leave"))
        buf_append(&s->out, s->in.data, s->in.len);
    else if (asked(s, "/late"))
        s->status = "7", message(s, 0, 1, "x", 1);
    else if (asked(s, "/none"))
        s->status = NULL, message(s, 0, 1, "x", 1);
    else if (asked(s, "/compressed"))
        message(s, 1, 1, "x", 1);
    else if (asked(s, "/html"))
        buf_puts(&s->out, "<html>");
    else if (asked(s, "/big"))
        message(s, 0, 100001, "x", 1);
    else if (asked(s, "/huge"))
        message(s, 0, UINT32_MAX, "x", 1);
    else if (asked(s, "/lying"))
        message(s, 0, 100, "x", 1);
    else if (asked(s, "/two"))
        message(s, 0, 1, "x", 1), message(s, 0, 1, "y", 1);
    respond(v, s, asked(s, "/http") ? "503" : "200");
}

static int began(nghttp2_session *session, const nghttp2_frame *f, void *arg)
{
    (void)arg;
    struct stream *s = calloc(1, sizeof *s);
    s->id = f->hd.stream_id;
    buf_init(&s->in, 64 << 20);
    buf_init(&s->out, 64 << 20);
    return nghttp2_session_set_stream_user_data(session, f->hd.stream_id, s);
}

static int header(nghttp2_session *session, const nghttp2_frame *f, const uint8_t *n, size_t nl, const uint8_t *v, size_t vl,
                  uint8_t flags, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, f->hd.stream_id);
    (void)nl, (void)flags, (void)arg;
    if (strcmp((const char *)n, ":path") == 0)
        snprintf(s->path, sizeof s->path, "%.*s", (int)vl, (const char *)v);
    return 0;
}

static int data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *p, size_t n, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    (void)flags, (void)arg;
    buf_append(&s->in, p, n);
    if (s->two_way) { /* an echo, until somebody says "end" */
        buf_append(&s->out, p, n);
        s->last = s->in.len >= 3 && memcmp(s->in.data + s->in.len - 3, "end", 3) == 0;
        s->status = "0";
        nghttp2_session_resume_data(session, id);
    }
    return 0;
}

static int frame(nghttp2_session *session, const nghttp2_frame *f, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, f->hd.stream_id);
    if (s && f->hd.type == NGHTTP2_HEADERS && asked(s, "/stream")) {
        s->two_way = true;
        message(s, 0, 5, "hello", 5);
        respond(arg, s, "200");
    } else if (s && f->hd.type == NGHTTP2_HEADERS && asked(s, "/early")) {
        answer(arg, s); /* before the request is whole */
    } else if (s && f->hd.flags & NGHTTP2_FLAG_END_STREAM && !s->two_way && !asked(s, "/early")) {
        answer(arg, s);
    }
    return 0;
}

static int closed_stream(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    (void)code, (void)arg;
    buf_free(&s->in);
    buf_free(&s->out);
    free(s);
    return 0;
}

static ssize_t server_read(struct server *v, void *p, size_t n)
{
    return v->ssl ? SSL_read(v->ssl, p, (int)n) : read(v->fd, p, n);
}

static ssize_t server_write(nghttp2_session *session, const uint8_t *p, size_t n, int flags, void *arg)
{
    struct server *v = arg;
    (void)session, (void)flags;
    ssize_t rc = v->ssl ? SSL_write(v->ssl, p, (int)n) : send(v->fd, p, n, MSG_NOSIGNAL);
    return rc < 0 ? NGHTTP2_ERR_CALLBACK_FAILURE : rc;
}

static int choose_h2(SSL *ssl, const unsigned char **out, unsigned char *len, const unsigned char *in, unsigned int n, void *arg)
{
    (void)ssl, (void)arg;
    return SSL_select_next_proto((unsigned char **)out, len, (const unsigned char *)"\2h2", 3, in, n) == OPENSSL_NPN_NEGOTIATED
               ? SSL_TLSEXT_ERR_OK
               : SSL_TLSEXT_ERR_NOACK;
}

static int lost_stream(int32_t id, nghttp2_session *session)
{
    return nghttp2_session_get_stream_user_data(session, id) ? closed_stream(session, id, 0, NULL) : 0;
}

static void *serve(void *arg)
{
    struct server *v = arg;
    char bytes[16384];
    nghttp2_session_callbacks *cb;
    v->fd = accept(v->listener, NULL, NULL);
    if (v->fd < 0)
        return NULL;
    if (v->ctx) {
        v->ssl = SSL_new(v->ctx);
        SSL_set_fd(v->ssl, v->fd);
    }
    nghttp2_session_callbacks_new(&cb);
    nghttp2_session_callbacks_set_on_begin_headers_callback(cb, began);
    nghttp2_session_callbacks_set_on_header_callback(cb, header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, closed_stream);
    nghttp2_session_callbacks_set_send_callback(cb, server_write);
    nghttp2_session_server_new(&v->session, cb, v);
    nghttp2_session_callbacks_del(cb);
    if (!v->ssl || SSL_accept(v->ssl) == 1) {
        ssize_t n = 1;
        if (v->hello)
            server_write(NULL, (const uint8_t *)v->hello, strlen(v->hello), 0, v);
        else
            nghttp2_submit_settings(v->session, 0, NULL, 0);
        while (n > 0 && !v->close && (v->hello || nghttp2_session_send(v->session) == 0) && !v->close &&
               (n = server_read(v, bytes, sizeof bytes)) > 0 &&
               (v->hello || nghttp2_session_mem_recv(v->session, (uint8_t *)bytes, (size_t)n) >= 0))
            ;
        if (v->close) { /* without a reset: all is read that comes */
            shutdown(v->fd, SHUT_WR);
            while (server_read(v, bytes, sizeof bytes) > 0)
                ;
        }
    }
    for (int32_t id = 1; id < 200; id += 2)
        lost_stream(id, v->session);
    nghttp2_session_del(v->session);
    SSL_free(v->ssl);
    close(v->fd);
    return NULL;
}

static void start_server(struct server *v)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    v->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(bind(v->listener, (struct sockaddr *)&a, n) == 0 && listen(v->listener, 1) == 0);
    getsockname(v->listener, (struct sockaddr *)&a, &n);
    v->port = ntohs(a.sin_port);
    CHECK(pthread_create(&v->thread, NULL, serve, v) == 0);
}

static void stop_server(struct server *v)
{
    shutdown(v->listener, SHUT_RDWR); /* ends accept() */
    pthread_join(v->thread, NULL);
    close(v->listener);
    SSL_CTX_free(v->ctx);
}

/* ---- the client ------------------------------------------------------------------------------------------------------------ */

struct client {
    uv_loop_t loop;
    struct timers timers;
    struct timer patience;
    struct h2 *h2;
    int ticks;
    bool up, closed, late;
    char why[192];
};

struct outcome {
    bool came;
    struct h2_result r;
    struct buf body;
    int messages;
    struct h2 **free_in_message;
};

static void on_up(void *arg)
{
    ((struct client *)arg)->up = true;
}

static void on_closed(void *arg, const char *why)
{
    struct client *c = arg;
    CHECK(!c->closed);
    c->closed = true;
    snprintf(c->why, sizeof c->why, "%s", why);
}

/** Also wakes uv_run(): after a timer of this turn it would sleep until the next one. */
static void tick(void *arg)
{
    struct client *c = arg;
    c->late = ++c->ticks > 1000;
    timer_set(&c->timers, &c->patience, 20, tick, c);
}

static void open_client(struct client *c, const char *host, int port, const struct http_tls *tls, int64_t connect_ms)
{
    memset(c, 0, sizeof *c);
    uv_loop_init(&c->loop);
    timers_init(&c->timers, &c->loop);
    tick(c);
    struct h2_tls *files = tls ? h2_tls_new(tls) : NULL;
    struct h2_spec spec = {.host = host,
                           .port = port,
                           .tls = files,
                           .connect_ms = connect_ms,
                           .max_message = 100000,
                           .up = on_up,
                           .closed = on_closed,
                           .arg = c};
    c->h2 = h2_new(&c->loop, &c->timers, &spec);
    h2_tls_free(files);
    CHECK(c->h2 && !c->up && !c->closed);
}

static void wait_for(struct client *c, const bool *what)
{
    while (!*what && !c->late)
        uv_run(&c->loop, UV_RUN_ONCE);
    CHECK(*what);
}

static void close_client(struct client *c)
{
    h2_free(c->h2);
    timer_clear(&c->timers, &c->patience);
    uv_close((uv_handle_t *)&c->timers.uv, NULL);
    uv_run(&c->loop, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&c->loop) == 0);
    timers_free(&c->timers);
}

static void on_done(void *arg, const struct h2_result *r)
{
    struct outcome *o = arg;
    CHECK(!o->came);
    o->came = true;
    o->r = *r;
    if (r->len)
        buf_append(&o->body, r->data, r->len);
}

static void on_message(void *arg, const char *p, size_t n)
{
    struct outcome *o = arg;
    o->messages++;
    if (o->free_in_message) {
        h2_free(*o->free_in_message);
        *o->free_in_message = NULL;
        o->came = true;
    }
    buf_append(&o->body, p, n);
    buf_puts(&o->body, "|");
}

static void init(struct outcome *o)
{
    memset(o, 0, sizeof *o);
    buf_init(&o->body, 64 << 20);
}

/** One call and its outcome, on a connection that stays. */
static void call(struct client *c, const char *path, enum h2_end end, const char *why)
{
    struct outcome o;
    init(&o);
    CHECK(h2_unary(c->h2, path, "abc", 3, on_done, &o));
    wait_for(c, &o.came);
    if (o.r.end != end || strcmp(o.r.why, why) != 0)
        printf("# %s: %d '%s'\n", path, o.r.end, o.r.why);
    CHECK(o.r.end == end && strcmp(o.r.why, why) == 0);
    CHECK(end != H2_OK || (o.body.len == 3 && memcmp(o.body.data, "abc", 3) == 0));
    CHECK(end == H2_OK || !o.body.len);
    buf_free(&o.body);
}

static void h2_answers_of_every_kind(void)
{
    struct server v = {0};
    struct client c;
    char ip[46], local_ip[46];
    start_server(&v);
    open_client(&c, "localhost", v.port, NULL, 10000);
    call(&c, "/echo", H2_OK, "");
    CHECK(c.up && h2_takes_calls(c.h2));
    h2_addresses(c.h2, ip, local_ip);
    CHECK(strcmp(ip, "127.0.0.1") == 0 && strcmp(local_ip, "127.0.0.1") == 0);
    call(&c, "/split", H2_OK, "");
    call(&c, "/status", H2_STATUS, "gRPC status 13: so it?is");
    call(&c, "/late", H2_STATUS, "gRPC status 7: so it?is");
    call(&c, "/http", H2_STATUS, "HTTP status 503: so it?is");
    call(&c, "/none", H2_BROKEN, "the answer ended without a status");
    call(&c, "/nothing", H2_BROKEN, "the answer has no message");
    call(&c, "/early", H2_BROKEN, "the answer has no message");
    call(&c, "/compressed", H2_BROKEN, "the answer is compressed, which was not asked for");
    call(&c, "/html", H2_BROKEN, "the answer is not gRPC");
    call(&c, "/big", H2_TOO_LARGE, "a message of 100001 bytes is larger than 100000");
    call(&c, "/huge", H2_TOO_LARGE, "a message of 4294967295 bytes is larger than 100000");
    call(&c, "/lying", H2_BROKEN, "the answer ended in the middle of a message");
    call(&c, "/two", H2_BROKEN, "two answers to one call");
    call(&c, "/reset", H2_BROKEN, "the server broke it off (INTERNAL_ERROR)");
    call(&c, "/refused", H2_UNSENT, "the server broke it off (REFUSED_STREAM)");
    struct outcome o;
    init(&o);
    struct h2_call *hangs = h2_unary(c.h2, "/hang", "", 0, on_done, &o), *never = h2_unary(c.h2, "/echo", "", 0, on_done, &o);
    h2_cancel(never); /* before it was sent */
    call(&c, "/echo", H2_OK, "");
    h2_cancel(hangs);
    call(&c, "/echo", H2_OK, "");
    CHECK(!o.came && !c.closed);
    close_client(&c);
    stop_server(&v);
}

static void h2_many_and_large(void)
{
    enum { CALLS = 40 };
    static char large[100000];
    struct server v = {0};
    struct client c;
    struct outcome o[CALLS];
    memset(large, 'x', sizeof large);
    start_server(&v);
    open_client(&c, "127.0.0.1", v.port, NULL, 10000);
    for (int i = 0; i < CALLS; i++) { /* before it is up */
        init(&o[i]);
        CHECK(h2_unary(c.h2, "/echo", large, sizeof large - (size_t)i, on_done, &o[i]));
    }
    for (int i = 0; i < CALLS; i++) {
        wait_for(&c, &o[i].came);
        CHECK(o[i].r.end == H2_OK && o[i].body.len == sizeof large - (size_t)i &&
              memcmp(o[i].body.data, large, o[i].body.len) == 0);
        buf_free(&o[i].body);
    }
    close_client(&c);
    stop_server(&v);
}

static void h2_stream_both_ways(void)
{
    struct server v = {0};
    struct client c;
    struct outcome o;
    init(&o);
    start_server(&v);
    open_client(&c, "127.0.0.1", v.port, NULL, 10000);
    struct h2_call *s = h2_stream(c.h2, "/stream", on_message, on_done, &o);
    CHECK(h2_send(s, "one", 3) && h2_send(s, "", 0));
    while (o.messages < 3 && !c.late)
        uv_run(&c.loop, UV_RUN_ONCE);
    CHECK(h2_send(s, "end", 3));
    wait_for(&c, &o.came);
    CHECK(o.r.end == H2_OK && o.r.status == 0 && strcmp(o.body.data, "hello|one||end|") == 0);
    buf_free(&o.body);
    init(&o); /* freed from inside a message */
    o.free_in_message = &c.h2;
    CHECK(h2_stream(c.h2, "/stream", on_message, on_done, &o));
    wait_for(&c, &o.came);
    CHECK(o.messages == 1 && !c.closed && strcmp(o.body.data, "hello|") == 0);
    buf_free(&o.body);
    close_client(&c);
    stop_server(&v);
}

/** The peer does not read: what waits is bounded. */
static void h2_send_has_a_bound(void)
{
    static char part[100000];
    struct client c;
    struct outcome o;
    init(&o);
    open_client(&c, "127.0.0.1", 1, NULL, 10000);
    struct h2_call *s = h2_stream(c.h2, "/stream", on_message, on_done, &o);
    int n = 0;
    while (n < 100 && h2_send(s, part, sizeof part))
        n++;
    CHECK(n == 11);
    wait_for(&c, &c.closed); /* nobody is there */
    CHECK(o.came && o.r.end == H2_UNSENT && strcmp(c.why, "cannot connect: connection refused") == 0 &&
          strcmp(o.r.why, c.why) == 0);
    CHECK(!h2_unary(c.h2, "/echo", "", 0, on_done, &o));
    close_client(&c);
}

static void ends(const char *path, enum h2_end end, const char *why)
{
    struct server v = {0};
    struct client c;
    struct outcome o, other;
    init(&o);
    init(&other);
    start_server(&v);
    open_client(&c, "127.0.0.1", v.port, NULL, 10000);
    CHECK(h2_stream(c.h2, "/stream", on_message, on_done, &other) && h2_unary(c.h2, path, "abc", 3, on_done, &o));
    wait_for(&c, &c.closed);
    CHECK(o.came && o.r.end == end && strcmp(o.r.why, why) == 0 && strcmp(c.why, why) == 0);
    CHECK(other.came && other.r.end == (other.messages ? H2_BROKEN : H2_UNSENT));
    buf_free(&other.body);
    close_client(&c);
    stop_server(&v);
}

/** What is under way goes on, but nothing new. */
static void h2_goes_away_in_peace(void)
{
    struct server v = {0};
    struct client c;
    struct outcome o;
    init(&o);
    start_server(&v);
    open_client(&c, "127.0.0.1", v.port, NULL, 10000);
    struct h2_call *hangs = h2_unary(c.h2, "/hang", "", 0, on_done, &o);
    CHECK(!h2_seen(hangs));
    call(&c, "/leave", H2_OK, "");
    CHECK(!c.closed && !o.came && h2_seen(hangs) && !h2_takes_calls(c.h2));
    CHECK(!h2_unary(c.h2, "/echo", "", 0, on_done, &o));
    h2_cancel(hangs);
    wait_for(&c, &c.closed);
    CHECK(strcmp(c.why, "the server goes away (NO_ERROR: bye?)") == 0 && !o.came);
    close_client(&c);
    stop_server(&v);
}

static void h2_connections_end(void)
{
    ends("/goaway", H2_UNSENT, "the server goes away (NO_ERROR: bye?)");
    ends("/calm", H2_BROKEN, "the server goes away (ENHANCE_YOUR_CALM: bye?)");
    ends("/close", H2_BROKEN, "the server closed the connection");
}

static void fails(struct server *v, const char *host, int port, const struct http_tls *tls, int64_t connect_ms, const char *why)
{
    struct client c;
    if (v)
        start_server(v);
    open_client(&c, host, v ? v->port : port, tls, connect_ms);
    wait_for(&c, &c.closed);
    if (!strstr(c.why, why))
        printf("# '%s', not '%s'\n", c.why, why);
    CHECK(!c.up && strstr(c.why, why));
    close_client(&c);
    if (v)
        stop_server(v);
}

static void h2_does_not_connect(void)
{
    fails(NULL, "::1", 1, NULL, 10000, "cannot connect: ");
    fails(NULL, "a-label-of-more-than-63-bytes-is-an-error-that-no-name-server-is-asked-about", 1, NULL, 10000,
          "cannot find the address: ");
    fails(&(struct server){.hello = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"}, "127.0.0.1", 0, NULL, 10000,
          "the server does not speak HTTP/2");
    fails(&(struct server){.hello = ""}, "127.0.0.1", 0, NULL, 100, "could not connect in time");
}

/* ---- names --------------------------------------------------------------------------------------------------------------- */

static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t names_answer = PTHREAD_COND_INITIALIZER;
static int names_asked;
static bool names_hang = true;

/** Of the C library, but for one name: its server is silent for a while. */
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **out)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (host && strcmp(host, "hangs.test") == 0 && !(hints->ai_flags & AI_NUMERICHOST)) {
        pthread_mutex_lock(&names_lock);
        names_asked++;
        while (names_hang)
            pthread_cond_wait(&names_answer, &names_lock);
        pthread_mutex_unlock(&names_lock);
        host = "127.0.0.1";
    }
    *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(host, service, hints, out);
}

static void h2_asks_once_for_a_name(void)
{
    struct server v = {0};
    struct client c;
    start_server(&v);
    for (int i = 0; i < 5; i++)
        fails(NULL, "hangs.test", v.port, NULL, 30, "could not connect in time");
    open_client(&c, "hangs.test", v.port, NULL, 10000);
    pthread_mutex_lock(&names_lock);
    while (!names_asked && !c.late) { /* a thread takes its time to start */
        pthread_mutex_unlock(&names_lock);
        uv_run(&c.loop, UV_RUN_ONCE);
        pthread_mutex_lock(&names_lock);
    }
    CHECK(names_asked == 1);
    names_hang = false;
    pthread_cond_broadcast(&names_answer);
    pthread_mutex_unlock(&names_lock);
    call(&c, "/echo", H2_OK, "");
    close_client(&c);
    open_client(&c, "hangs.test", v.port, NULL, 10000);
    h2_free(c.h2); /* the thread goes on */
    c.h2 = NULL;
    close_client(&c);
    stop_server(&v);
}

/* ---- TLS ----------------------------------------------------------------------------------------------------------------- */

static SSL_CTX *server_ctx(const char *cert, const char *key)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL_CTX_use_certificate_file(ctx, cert, SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM);
    SSL_CTX_set_alpn_select_cb(ctx, choose_h2, NULL);
    return ctx;
}

static void h2_over_tls(void)
{
    char command[PATH_MAX + 300];
    snprintf(
        command, sizeof command,
        "cd %s && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out cert -subj /CN=nacos.test "
        "-addext subjectAltName=DNS:nacos.test,IP:127.0.0.1 2>/dev/null",
        dir);
    CHECK(system(command) == 0);
    const char *cert = in_dir("cert"), *key = in_dir("key");
    const struct http_tls good = {.verify = true, .ca_file = cert},
                          named = {.verify = true, .ca_file = cert, .server_name = "nacos.test"},
                          other = {.verify = true, .ca_file = cert, .server_name = "other.test"}, strange = {.verify = true},
                          any = {.verify = false}, mutual = {.verify = true, .ca_file = cert, .cert_file = cert, .key_file = key},
                          no_file = {.verify = true, .ca_file = "none"}, no_key = {.cert_file = cert};
    const struct http_tls *const right[] = {&good, &named, &any, &mutual};
    for (size_t i = 0; i < sizeof right / sizeof right[0]; i++) {
        struct server v = {.ctx = server_ctx(cert, key)};
        struct client c;
        if (right[i] == &mutual) {
            SSL_CTX_load_verify_locations(v.ctx, cert, NULL);
            SSL_CTX_set_verify(v.ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
        }
        start_server(&v);
        open_client(&c, "127.0.0.1", v.port, right[i], 10000);
        call(&c, "/echo", H2_OK, "");
        call(&c, "/split", H2_OK, "");
        close_client(&c);
        stop_server(&v);
    }
    fails(&(struct server){.ctx = server_ctx(cert, key)}, "127.0.0.1", 0, &other, 10000, "TLS: hostname mismatch");
    fails(&(struct server){.ctx = server_ctx(cert, key)}, "127.0.0.1", 0, &strange, 10000, "TLS: self-signed certificate");
    struct server v = {.ctx = server_ctx(cert, key)};
    SSL_CTX_set_alpn_select_cb(v.ctx, NULL, NULL);
    fails(&v, "127.0.0.1", 0, &good, 10000, "no ALPN");
    fails(&(struct server){.hello = "HTTP/1.1 400 Bad Request\r\n\r\n"}, "127.0.0.1", 0, &good, 10000, "TLS: wrong version number");
    fails(NULL, "127.0.0.1", 1, &no_file, 10000, "TLS: cannot read the CA file");
    fails(NULL, "127.0.0.1", 1, &no_key, 10000, "TLS: cannot read the client certificate's key");
}

const struct leaf_test h2_tests[] = {TEST(h2_answers_of_every_kind),
                                     TEST(h2_many_and_large),
                                     TEST(h2_stream_both_ways),
                                     TEST(h2_send_has_a_bound),
                                     TEST(h2_connections_end),
                                     TEST(h2_goes_away_in_peace),
                                     TEST(h2_does_not_connect),
                                     TEST(h2_asks_once_for_a_name),
                                     TEST(h2_over_tls),
                                     {NULL, NULL}};
