#include "engine/h2.h"

#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <netdb.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW (16 << 20)     /* of each stream and of the connection: no message waits for an update */
#define WAITING_MAX (1 << 20) /* bytes of a stream that wait to be sent */
#define WRITE_AT_ONCE (64 << 10)
#define WRITE_MAX (1 << 20)  /* with one more piece of nghttp2 and what TLS adds */
#define GOAWAY_GRACE_MS 1000 /* for calls under way, when the server goes away */

/** The socket outlives its connection, which may be freed at any moment, until the loop has let go of it. */
struct sock {
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_write_t write;
    struct h2 *h2;  /* NULL: it is being closed */
    struct buf out; /* what is being written */
    char in[64 << 10];
};

/** The addresses of a name. In a thread of its own, because nobody shall wait for a name server that hangs, not even the end of the
 * loop. Who wants the same while it is under way shares it: connections are tried again and again. */
struct lookup {
    struct lookup *next; /* in `lookups`, while it is under way. It, `refs` and `done`: guarded by lookups_lock */
    int refs;            /* of the thread and the connections */
    bool done;
    struct addrinfo *addresses;
    int rc; /* of getaddrinfo() */
    char service[16], host[];
};
static pthread_mutex_t lookups_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lookup *lookups;
#define LOOKUP_MS 5 /* between two looks at it */

struct h2_call {
    struct h2 *h2;
    struct h2_call *prev, *next; /* in h2->calls */
    int32_t id;
    bool stream;
    bool seen;      /* a part of its message may have reached the server */
    bool whole;     /* unary: the message is here */
    bool ended;     /* its callback runs */
    int http;       /* status, 0: none */
    int grpc;       /* status, -1: none */
    char text[120]; /* grpc-message */
    struct buf out, in;
    size_t sent; /* of out */
    unsigned char head[5];
    int head_len; /* of the message that is coming in */
    size_t want;
    void (*done)(void *arg, const struct h2_result *r);
    void (*message)(void *arg, const char *data, size_t len);
    void *arg;
};

struct h2 {
    uv_loop_t *loop;
    struct timers *timers;
    struct h2_spec spec; /* without host and tls */
    char *host, *authority;
    SSL *ssl;               /* NULL: plain text */
    BIO *from_net, *to_net; /* ssl's */
    struct lookup *lookup;
    const struct addrinfo *next_address; /* in the lookup */
    struct sock *sock;
    nghttp2_session *session;
    struct h2_call *calls;
    struct h2_call *current; /* its `message` runs; NULL: the call is gone */
    int unaries;             /* of the calls */
    int64_t deadline;        /* until it is up */
    struct timer look;       /* at the lookup */
    struct timer limit;      /* the deadline of what it is doing */
    struct timer tick;       /* soon: send, or say that it is over */
    char ip[46], local_ip[46];
    bool writing;
    bool up;
    bool open;    /* nghttp2 may send */
    bool leaving; /* GOAWAY came; why: */
    uint32_t goaway_code;
    int error; /* of libuv, of the last address */
    bool busy; /* inside nghttp2, or a callback: must not be freed, nor send */
    bool over; /* it ended; why: */
    bool freed;
    char why[192];
};

static void on_tick(void *arg);
static void on_limit(void *arg);
static void try_next(struct h2 *h);

/* ---- the end ----------------------------------------------------------------------------------------------------------------- */

static void free_sock(uv_handle_t *handle)
{
    struct sock *s = handle->data;
    buf_free(&s->out);
    free(s);
}

static void close_sock(struct h2 *h)
{
    if (h->sock) {
        h->sock->h2 = NULL;
        if (!uv_is_closing((uv_handle_t *)&h->sock->tcp))
            uv_close((uv_handle_t *)&h->sock->tcp, free_sock);
    }
    h->sock = NULL;
    h->writing = false;
}

static void unref_lookup(struct lookup *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&lookups_lock);
    bool last = --l->refs == 0;
    pthread_mutex_unlock(&lookups_lock);
    if (last && l->addresses)
        freeaddrinfo(l->addresses);
    if (last)
        free(l);
}

static void soon(struct h2 *h)
{
    if (!h->busy && !h->over && !h->freed)
        timer_set(h->timers, &h->tick, 0, on_tick, h);
}

/** The connection is over; the callbacks follow when nothing runs any more. */
__attribute__((format(printf, 2, 3))) static void lose(struct h2 *h, const char *fmt, ...)
{
    va_list args;
    if (h->over || h->freed)
        return;
    soon(h);
    h->over = true;
    va_start(args, fmt);
    if (!h->leaving) /* then it is known why */
        vsnprintf(h->why, sizeof h->why, fmt, args);
    va_end(args);
    timer_clear(h->timers, &h->limit);
    timer_clear(h->timers, &h->look);
    close_sock(h);
}

static void free_call(struct h2_call *c)
{
    buf_free(&c->out);
    buf_free(&c->in);
    free(c);
}

/** nghttp2 forgets it as well, but for the number of its stream. */
static void unlink_call(struct h2_call *c)
{
    struct h2 *h = c->h2;
    *(c->prev ? &c->prev->next : &h->calls) = c->next;
    if (c->next)
        c->next->prev = c->prev;
    h->unaries -= !c->stream;
    nghttp2_session_set_stream_user_data(h->session, c->id, NULL);
    if (h->current == c)
        h->current = NULL;
}

/** The stream need not be closed on either side. */
static void reset_stream(struct h2 *h, int32_t id)
{
    nghttp2_submit_rst_stream(h->session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
    soon(h);
}

__attribute__((format(printf, 3, 4))) static void end_call(struct h2_call *c, enum h2_end end, const char *fmt, ...)
{
    struct h2_result r = {.end = end, .status = c->grpc};
    va_list args;
    va_start(args, fmt);
    vsnprintf(r.why, sizeof r.why, fmt, args);
    va_end(args);
    if (end == H2_BROKEN && !c->seen)
        r.end = H2_UNSENT;
    if (end == H2_OK && !c->stream) {
        r.data = c->in.data ? c->in.data : "";
        r.len = c->in.len;
    }
    unlink_call(c);
    c->ended = true;
    c->done(c->arg, &r);
    free_call(c);
}

static void destroy(struct h2 *h)
{
    timer_clear(h->timers, &h->limit);
    timer_clear(h->timers, &h->tick);
    timer_clear(h->timers, &h->look);
    close_sock(h);
    unref_lookup(h->lookup);
    nghttp2_session_del(h->session);
    SSL_free(h->ssl); /* and both BIOs */
    free(h->host);
    free(h->authority);
    free(h);
}

void h2_free(struct h2 *h)
{
    if (!h || h->freed)
        return;
    while (h->calls) {
        struct h2_call *c = h->calls;
        unlink_call(c);
        free_call(c);
    }
    h->freed = true;
    if (!h->busy)
        destroy(h);
}

/* ---- gRPC: messages and status ------------------------------------------------------------------------------------------ */

/** Text of a server for people: printable ASCII, %XX decoded; the rest become question marks. */
static void copy_text(char *out, size_t size, const uint8_t *p, size_t n)
{
    size_t len = 0;
    for (size_t i = 0; i < n && len + 1 < size; i++) {
        unsigned int ch = p[i];
        char hex[3] = {0};
        if (ch == '%' && i + 2 < n) {
            memcpy(hex, p + i + 1, 2);
            char *end;
            unsigned long x = strtoul(hex, &end, 16);
            if (end == hex + 2) {
                ch = (unsigned int)x;
                i += 2;
            }
        }
        out[len++] = (char)(ch >= ' ' && ch < 127 ? ch : '?');
    }
    out[len] = 0;
}

static int number(const uint8_t *p, size_t n)
{
    int x = n && n < 4 ? 0 : -1;
    for (size_t i = 0; i < n && x >= 0; i++)
        x = p[i] >= '0' && p[i] <= '9' ? x * 10 + p[i] - '0' : -1;
    return x;
}

static bool is(const uint8_t *p, size_t n, const char *text)
{
    return n == strlen(text) && memcmp(p, text, n) == 0;
}

/** What nghttp2 calls stops at this when the connection was freed meanwhile. */
static int go_on(const struct h2 *h)
{
    return h->freed ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *f, const uint8_t *name, size_t name_len, const uint8_t *value,
                     size_t len, uint8_t flags, void *arg)
{
    struct h2_call *c = nghttp2_session_get_stream_user_data(session, f->hd.stream_id);
    (void)flags;
    (void)arg;
    if (!c)
        return 0;
    c->seen = true;
    if (is(name, name_len, ":status"))
        c->http = number(value, len);
    else if (!(f->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0; /* the rest counts in trailers only */
    else if (is(name, name_len, "grpc-status"))
        c->grpc = number(value, len);
    else if (is(name, name_len, "grpc-message"))
        copy_text(c->text, sizeof c->text, value, len);
    return 0;
}

/** The five bytes before a message are whole. False: the call has ended. */
static bool head_read(struct h2_call *c)
{
    struct h2 *h = c->h2;
    int32_t id = c->id;
    c->want = (size_t)c->head[1] << 24 | (size_t)c->head[2] << 16 | (size_t)c->head[3] << 8 | c->head[4];
    buf_clear(&c->in);
    if (c->head[0] == 0 && !c->whole && c->want <= h->spec.max_message)
        return true;
    if (c->head[0] > 1)
        end_call(c, H2_BROKEN, "the answer is not gRPC");
    else if (c->head[0])
        end_call(c, H2_BROKEN, "the answer is compressed, which was not asked for");
    else if (c->whole)
        end_call(c, H2_BROKEN, "two answers to one call");
    else
        end_call(c, H2_TOO_LARGE, "a message of %zu bytes is larger than %zu", c->want, h->spec.max_message);
    if (!h->freed)
        reset_stream(h, id);
    return false;
}

/** False: the call has ended. */
static bool message_read(struct h2_call *c)
{
    struct h2 *h = c->h2;
    c->head_len = 0;
    if (!c->stream) {
        c->whole = true;
        return true;
    }
    struct buf in = c->in; /* the callback may end the call */
    buf_init(&c->in, in.max);
    h->current = c;
    c->message(c->arg, in.data ? in.data : "", in.len);
    bool lives = h->current == c;
    h->current = NULL;
    buf_free(&in);
    return lives;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *p, size_t n, void *arg)
{
    struct h2 *h = arg;
    struct h2_call *c = nghttp2_session_get_stream_user_data(session, id);
    (void)flags;
    if (!c || c->http != 200) /* the text of an error page */
        return 0;
    while (n) {
        if (c->head_len < 5) {
            c->head[c->head_len++] = *p++;
            n--;
            if (c->head_len < 5)
                continue;
            if (!head_read(c))
                break;
        }
        size_t part = c->want - c->in.len;
        if (part > n)
            part = n;
        if (!buf_append(&c->in, p, part)) {
            end_call(c, H2_BROKEN, "out of memory");
            if (!h->freed)
                reset_stream(h, id);
            break;
        }
        p += part;
        n -= part;
        if (c->in.len == c->want && !message_read(c))
            break;
    }
    return go_on(h);
}

static void conclude(struct h2_call *c)
{
    if (c->http != 200)
        end_call(c, H2_STATUS, "HTTP status %d%s%s", c->http, c->text[0] ? ": " : "", c->text);
    else if (c->grpc > 0)
        end_call(c, H2_STATUS, "gRPC status %d%s%s", c->grpc, c->text[0] ? ": " : "", c->text);
    else if (c->grpc < 0)
        end_call(c, H2_BROKEN, "the answer ended without a status");
    else if (c->head_len)
        end_call(c, H2_BROKEN, "the answer ended in the middle of a message");
    else if (!c->stream && !c->whole)
        end_call(c, H2_BROKEN, "the answer has no message");
    else
        end_call(c, H2_OK, "%s", "");
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *f, void *arg)
{
    struct h2 *h = arg;
    if (f->hd.type == NGHTTP2_SETTINGS && !(f->hd.flags & NGHTTP2_FLAG_ACK) && !h->up) {
        h->up = true;
        timer_clear(h->timers, &h->limit);
        h->spec.up(h->spec.arg);
    } else if (f->hd.type == NGHTTP2_GOAWAY && !h->over) {
        char text[100];
        copy_text(text, sizeof text, f->goaway.opaque_data, f->goaway.opaque_data_len);
        snprintf(h->why, sizeof h->why, "the server goes away (%s%s%s)", nghttp2_http2_strerror(f->goaway.error_code),
                 text[0] ? ": " : "", text);
        h->leaving = true; /* settle() sees to it, when nghttp2 has ended what the server will not answer */
        h->goaway_code = f->goaway.error_code;
    } else if ((f->hd.type == NGHTTP2_HEADERS || f->hd.type == NGHTTP2_DATA) && f->hd.flags & NGHTTP2_FLAG_END_STREAM) {
        struct h2_call *c = nghttp2_session_get_stream_user_data(session, f->hd.stream_id);
        if (c) {
            conclude(c);
            if (!h->freed && nghttp2_session_get_stream_local_close(session, f->hd.stream_id) == 0)
                reset_stream(h, f->hd.stream_id);
        }
    }
    return go_on(h);
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *arg)
{
    struct h2 *h = arg;
    struct h2_call *c = nghttp2_session_get_stream_user_data(session, id);
    if (c && h->leaving)
        end_call(c, code == NGHTTP2_REFUSED_STREAM ? H2_UNSENT : H2_BROKEN, "%s", h->why);
    else if (c)
        end_call(c, code == NGHTTP2_REFUSED_STREAM ? H2_UNSENT : H2_BROKEN, "the server broke it off (%s)",
                 nghttp2_http2_strerror(code));
    return go_on(h);
}

static ssize_t give_data(nghttp2_session *session, int32_t id, uint8_t *out, size_t size, uint32_t *flags,
                         nghttp2_data_source *source, void *arg)
{
    struct h2_call *c = nghttp2_session_get_stream_user_data(session, id);
    (void)source;
    (void)arg;
    if (!c)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* cancelled: its reset is on its way */
    size_t n = c->out.len - c->sent;
    if (n == 0 && c->stream)
        return NGHTTP2_ERR_DEFERRED;
    if (n > size)
        n = size;
    memcpy(out, c->out.data + c->sent, n);
    c->sent += n;
    c->seen = true;
    if (c->sent == c->out.len) {
        if (!c->stream)
            *flags |= NGHTTP2_DATA_FLAG_EOF;
        buf_free(&c->out);
        c->sent = 0;
    }
    return (ssize_t)n;
}

/* ---- the way out --------------------------------------------------------------------------------------------------------- */

static const char *tls_error(const struct h2 *h)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());
    if (h->ssl && SSL_get_verify_result(h->ssl) != X509_V_OK && SSL_get_verify_mode(h->ssl) != SSL_VERIFY_NONE)
        text = X509_verify_cert_error_string(SSL_get_verify_result(h->ssl));
    return text ? text : "not TLS";
}

static void on_written(uv_write_t *req, int status)
{
    struct sock *s = req->data;
    struct h2 *h = s->h2;
    if (!h)
        return;
    h->writing = false;
    buf_clear(&s->out);
    if (status < 0)
        lose(h, "the connection broke: %s", uv_strerror(status));
    else
        on_tick(h);
}

static void write_out(struct h2 *h)
{
    struct sock *s = h->sock;
    if (s->out.failed) {
        lose(h, "out of memory");
        return;
    }
    if (!s->out.len)
        return;
    uv_buf_t b = uv_buf_init(s->out.data, (unsigned)s->out.len);
    s->write.data = s;
    int rc = uv_write(&s->write, (uv_stream_t *)&s->tcp, &b, 1, on_written);
    if (rc)
        lose(h, "the connection broke: %s", uv_strerror(rc));
    else
        h->writing = true;
}

/** Sends what nghttp2 and TLS want to send, one piece after the other: what the peer does not read stays with them, within their
 * bounds. */
static void flush(struct h2 *h)
{
    struct buf nowhere = {0}, *out = h->sock ? &h->sock->out : &nowhere;
    if (h->writing || h->over || h->freed)
        return;
    buf_init(&nowhere, out == &nowhere ? WRITE_MAX : 0);
    while (h->open && !h->over && !h->freed && out->len + (h->ssl ? BIO_pending(h->to_net) : 0) < WRITE_AT_ONCE) {
        const uint8_t *p;
        ssize_t n = nghttp2_session_mem_send(h->session, &p);
        if (n == 0)
            break;
        if (n < 0)
            lose(h, "%s", nghttp2_strerror((int)n));
        else if (!h->ssl)
            buf_append(out, p, (size_t)n);
        else if (ERR_clear_error(), SSL_write(h->ssl, p, (int)n) != n)
            lose(h, "TLS: %s", tls_error(h));
    }
    char *p;
    long n = h->ssl && !h->over ? BIO_get_mem_data(h->to_net, &p) : 0;
    if (n > 0) {
        buf_append(out, p, (size_t)n);
        BIO_reset(h->to_net);
    }
    if (h->sock && !h->freed)
        write_out(h);
    buf_free(&nowhere);
}

static const char *rules(const struct h2 *h)
{
    return h->up ? "the server breaks the rules of HTTP/2" : "the server does not speak HTTP/2";
}

/** The last thing on every way in from the loop: sends, tells that it is over, frees. */
static void settle(struct h2 *h)
{
    flush(h);
    if (h->open && !h->leaving && !h->freed && !nghttp2_session_want_read(h->session)) /* it said GOAWAY to a wrong frame */
        lose(h, "%s", rules(h));
    if (h->leaving && (h->unaries == 0 || h->goaway_code))
        lose(h, "%s", "");
    else if (h->leaving && !h->over && !h->limit.slot)
        timer_set(h->timers, &h->limit, GOAWAY_GRACE_MS, on_limit, h);
    while (h->over && h->calls && !h->freed)
        end_call(h->calls, H2_BROKEN, "%s", h->why);
    h->busy = false;
    if (h->freed) {
        destroy(h);
    } else if (h->over) {
        timer_clear(h->timers, &h->tick);
        h->spec.closed(h->spec.arg, h->why); /* may free it */
    }
}

static void on_tick(void *arg)
{
    struct h2 *h = arg;
    h->busy = true;
    settle(h);
}

/* ---- the way in ---------------------------------------------------------------------------------------------------------- */

static void take(struct h2 *h, const void *data, size_t len)
{
    ssize_t n = nghttp2_session_mem_recv(h->session, data, len);
    if (h->freed || h->over)
        return;
    if (n < 0)
        lose(h, "%s", rules(h));
}

/** False: it needs more, or is over. */
static bool shake_hands(struct h2 *h)
{
    const unsigned char *protocol;
    unsigned int len;
    int rc = SSL_do_handshake(h->ssl);
    if (rc != 1) {
        if (SSL_get_error(h->ssl, rc) != SSL_ERROR_WANT_READ) {
            flush(h); /* the alert */
            lose(h, "TLS: %s", tls_error(h));
        }
        return false;
    }
    SSL_get0_alpn_selected(h->ssl, &protocol, &len);
    if (len != 2 || memcmp(protocol, "h2", 2) != 0) {
        lose(h, "the server does not speak HTTP/2 over TLS (no ALPN)");
        return false;
    }
    h->open = true;
    return true;
}

static void take_tls(struct h2 *h, const void *data, size_t len)
{
    char plain[16 << 10];
    int n = 0;
    ERR_clear_error();
    if (len && BIO_write(h->from_net, data, (int)len) != (int)len) {
        lose(h, "out of memory");
        return;
    }
    if (!h->open && !shake_hands(h))
        return;
    while (!h->over && !h->freed && (ERR_clear_error(), n = SSL_read(h->ssl, plain, sizeof plain)) > 0)
        take(h, plain, (size_t)n);
    if (h->over || h->freed)
        return;
    int e = SSL_get_error(h->ssl, n);
    if (e == SSL_ERROR_ZERO_RETURN)
        lose(h, "the server closed the connection");
    else if (e != SSL_ERROR_WANT_READ)
        lose(h, "TLS: %s", tls_error(h));
}

void h2_feed(struct h2 *h, const void *data, size_t len)
{
    if (h->over || h->freed)
        return;
    h->busy = true;
    if (h->ssl)
        take_tls(h, data, len);
    else
        take(h, data, len);
    settle(h);
}

static void give_buffer(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
    struct sock *s = handle->data;
    (void)size;
    *buf = uv_buf_init(s->in, sizeof s->in);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct sock *s = stream->data;
    if (s->h2 && n > 0)
        h2_feed(s->h2, buf->base, (size_t)n);
    else if (s->h2 && n == UV_EOF)
        lose(s->h2, "the server closed the connection");
    else if (s->h2 && n < 0)
        lose(s->h2, "the connection broke: %s", uv_strerror((int)n));
}

/* ---- TLS ------------------------------------------------------------------------------------------------------------------- */

static int no_password(char *buf, int size, int writing, void *arg)
{
    (void)buf, (void)size, (void)writing, (void)arg;
    return 0; /* or OpenSSL would ask at the terminal */
}

/** NULL, or what is wrong. */
static const char *set_files(SSL_CTX *ctx, const struct http_tls *t)
{
    if (t->ca_file ? !SSL_CTX_load_verify_locations(ctx, t->ca_file, NULL) : !SSL_CTX_set_default_verify_paths(ctx))
        return "cannot read the CA file";
    if (t->cert_file && SSL_CTX_use_certificate_chain_file(ctx, t->cert_file) != 1)
        return "cannot read the client certificate";
    const char *key = t->key_file ? t->key_file : t->cert_file;
    if (key && (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1 || !SSL_CTX_check_private_key(ctx)))
        return "cannot read the client certificate's key, or it is another's";
    return NULL;
}

static bool is_address(const char *host)
{
    unsigned char any[16];
    return uv_inet_pton(AF_INET, host, any) == 0 || uv_inet_pton(AF_INET6, host, any) == 0;
}

struct h2_tls {
    SSL_CTX *ctx;
    const char *wrong; /* with the files; NULL: nothing */
    const char *server_name;
};

struct h2_tls *h2_tls_new(const struct http_tls *t)
{
    struct h2_tls *new = calloc(1, sizeof *new);
    SSL_CTX *ctx = new ? SSL_CTX_new(TLS_client_method()) : NULL;
    if (!ctx) {
        free(new);
        return NULL;
    }
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION);
    SSL_CTX_set_default_passwd_cb(ctx, no_password);
    SSL_CTX_set_verify(ctx, t->verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
    *new = (struct h2_tls){.ctx = ctx, .wrong = set_files(ctx, t), .server_name = t->server_name};
    return new;
}

const char *h2_tls_wrong(const struct h2_tls *t)
{
    return t->wrong;
}

void h2_tls_free(struct h2_tls *t)
{
    if (!t)
        return;
    SSL_CTX_free(t->ctx);
    free(t);
}

/** NULL, or what is wrong. */
static const char *set_tls(struct h2 *h, const struct h2_tls *t)
{
    const char *name = t->server_name ? t->server_name : h->host;
    if (t->wrong)
        return t->wrong;
    h->ssl = SSL_new(t->ctx);
    h->from_net = h->ssl ? BIO_new(BIO_s_mem()) : NULL;
    h->to_net = h->from_net ? BIO_new(BIO_s_mem()) : NULL;
    if (!h->to_net) {
        BIO_free(h->from_net);
        return "out of memory";
    }
    SSL_set_bio(h->ssl, h->from_net, h->to_net);
    SSL_set_connect_state(h->ssl);
    bool ok = SSL_set_alpn_protos(h->ssl, (const unsigned char *)"\2h2", 3) == 0;
    if (is_address(name))
        ok = ok && X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(h->ssl), name);
    else
        ok = ok && SSL_set_tlsext_host_name(h->ssl, name) && SSL_set1_host(h->ssl, name);
    return ok ? NULL : "cannot set up TLS";
}

/* ---- connecting ------------------------------------------------------------------------------------------------------------ */

static void set_address(int rc, const struct sockaddr_storage *a, char out[46])
{
    if (rc || uv_ip_name((const struct sockaddr *)a, out, 46) != 0)
        out[0] = 0;
}

static void on_connect(uv_connect_t *req, int status)
{
    struct sock *s = req->data;
    struct h2 *h = s->h2;
    if (!h)
        return;
    if (status < 0) {
        h->error = status;
        close_sock(h);
        try_next(h);
        return;
    }
    struct sockaddr_storage a;
    int n = sizeof a;
    set_address(uv_tcp_getpeername(&s->tcp, (struct sockaddr *)&a, &n), &a, h->ip);
    n = sizeof a;
    set_address(uv_tcp_getsockname(&s->tcp, (struct sockaddr *)&a, &n), &a, h->local_ip);
    uv_tcp_nodelay(&s->tcp, 1);
    uv_tcp_keepalive(&s->tcp, 1, 60);
    timer_set(h->timers, &h->limit, h->deadline - now_ms(), on_limit, h);
    int rc = uv_read_start((uv_stream_t *)&s->tcp, give_buffer, on_read);
    h->busy = true;
    if (rc)
        lose(h, "cannot connect: %s", uv_strerror(rc));
    else if (h->ssl)
        shake_hands(h);
    else
        h->open = true;
    settle(h);
}

static int connect_to(struct h2 *h, const struct sockaddr *a)
{
    struct sock *s = calloc(1, sizeof *s);
    if (!s)
        return UV_ENOMEM;
    int rc = uv_tcp_init(h->loop, &s->tcp);
    if (rc) {
        free(s);
        return rc;
    }
    s->h2 = h;
    s->tcp.data = s->connect.data = s;
    buf_init(&s->out, WRITE_MAX);
    h->sock = s;
    rc = uv_tcp_connect(&s->connect, &s->tcp, a, on_connect);
    if (rc)
        close_sock(h);
    return rc;
}

/** The next address, in its share of the time; after the last it is over. */
static void try_next(struct h2 *h)
{
    while (h->next_address) {
        const struct addrinfo *a = h->next_address;
        int left = 0;
        for (const struct addrinfo *p = a; p; p = p->ai_next)
            left++;
        h->next_address = a->ai_next;
        timer_set(h->timers, &h->limit, (h->deadline - now_ms()) / left, on_limit, h);
        int rc = connect_to(h, a->ai_addr);
        if (rc == 0)
            return;
        h->error = rc;
    }
    if (h->error)
        lose(h, "cannot connect: %s", uv_strerror(h->error));
    else
        lose(h, "could not connect in time");
}

static void on_limit(void *arg)
{
    struct h2 *h = arg;
    h->error = 0;
    if (!h->sock || h->ip[0]) {
        lose(h, "could not connect in time"); /* or GOAWAY's time is up */
    } else {
        close_sock(h);
        try_next(h);
    }
}

static int get_addresses(struct lookup *l, int flags)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = flags | AI_NUMERICSERV};
    l->rc = getaddrinfo(l->host, l->service, &hints, &l->addresses);
    if (l->rc)
        l->addresses = NULL;
    return l->rc;
}

static void *look_up(void *arg)
{
    struct lookup *l = arg, **p = &lookups;
    get_addresses(l, 0);
    pthread_mutex_lock(&lookups_lock);
    while (*p != l)
        p = &(*p)->next;
    *p = l->next;
    l->done = true;
    pthread_mutex_unlock(&lookups_lock);
    unref_lookup(l);
    return NULL;
}

/** Starts it, or joins one that is under way. False: out of memory. */
static bool share_lookup(struct h2 *h, struct lookup *mine)
{
    pthread_t thread;
    pthread_mutex_lock(&lookups_lock);
    struct lookup *l = lookups;
    while (l && (strcmp(l->host, mine->host) != 0 || strcmp(l->service, mine->service) != 0))
        l = l->next;
    if (l) {
        l->refs++;
        h->lookup = l;
    } else if (pthread_create(&thread, NULL, look_up, mine) == 0) {
        pthread_detach(thread);
        mine->refs++;
        mine->next = lookups;
        h->lookup = lookups = mine;
    }
    pthread_mutex_unlock(&lookups_lock);
    if (h->lookup != mine)
        unref_lookup(mine);
    return h->lookup;
}

static void on_look(void *arg)
{
    struct h2 *h = arg;
    struct lookup *l = h->lookup;
    pthread_mutex_lock(&lookups_lock);
    bool done = l->done;
    pthread_mutex_unlock(&lookups_lock);
    h->next_address = done ? l->addresses : NULL;
    if (!done)
        timer_set(h->timers, &h->look, LOOKUP_MS, on_look, h);
    else if (l->rc)
        lose(h, "cannot find the address: %s", gai_strerror(l->rc));
    else
        try_next(h);
}

static void find_address(struct h2 *h, int port)
{
    struct lookup *l = calloc(1, sizeof *l + strlen(h->host) + 1);
    bool ok = l;
    if (ok) {
        l->refs = 1;
        strcpy(l->host, h->host);
        snprintf(l->service, sizeof l->service, "%d", port);
    }
    if (ok && get_addresses(l, AI_NUMERICHOST) == 0) { /* an address asks nobody */
        h->lookup = l;
        h->next_address = l->addresses;
        try_next(h);
    } else if (ok && share_lookup(h, l)) {
        timer_set(h->timers, &h->look, LOOKUP_MS, on_look, h);
    } else {
        lose(h, "cannot find the address: out of memory");
    }
}

static bool new_session(struct h2 *h)
{
    nghttp2_session_callbacks *cb;
    if (nghttp2_session_callbacks_new(&cb))
        return false;
    nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
    int rc = nghttp2_session_client_new(&h->session, cb, h);
    nghttp2_session_callbacks_del(cb);
    const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0}, {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW}};
    return rc == 0 && nghttp2_submit_settings(h->session, NGHTTP2_FLAG_NONE, settings, 2) == 0 &&
           nghttp2_session_set_local_window_size(h->session, NGHTTP2_FLAG_NONE, 0, WINDOW) == 0;
}

struct h2 *h2_new(uv_loop_t *loop, struct timers *timers, const struct h2_spec *spec)
{
    const char *host = spec->host ? spec->host : "nowhere";
    bool v6 = strchr(host, ':') != NULL;
    struct buf authority;
    struct h2 *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->loop = loop;
    h->timers = timers;
    h->spec = *spec;
    h->spec.host = NULL;
    h->spec.tls = NULL;
    h->host = strdup(host);
    buf_init(&authority, 1024);
    buf_printf(&authority, "%s%s%s:%d", v6 ? "[" : "", host, v6 ? "]" : "", spec->port);
    h->authority = buf_take(&authority, NULL);
    if (!h->host || !h->authority || !new_session(h)) {
        destroy(h);
        return NULL;
    }
    h->deadline = now_ms() + spec->connect_ms;
    timer_set(timers, &h->limit, spec->connect_ms, on_limit, h);
    const char *wrong = spec->tls ? set_tls(h, spec->tls) : NULL;
    if (wrong)
        lose(h, "TLS: %s", wrong);
    else if (spec->host)
        find_address(h, spec->port);
    else
        h->open = true;
    return h;
}

void h2_addresses(const struct h2 *h, char ip[46], char local_ip[46])
{
    memcpy(ip, h->ip, sizeof h->ip);
    memcpy(local_ip, h->local_ip, sizeof h->local_ip);
}

bool h2_refused(const struct h2 *h)
{
    return h->error == UV_ECONNREFUSED && !h->ip[0];
}

bool h2_takes_calls(const struct h2 *h)
{
    return !h->over && !h->freed && !h->leaving;
}

/* ---- calls --------------------------------------------------------------------------------------------------------------- */

static bool put_message(struct h2_call *c, const void *data, size_t len)
{
    const char head[5] = {0, (char)(len >> 24), (char)(len >> 16), (char)(len >> 8), (char)len};
    size_t before = c->out.len;
    if (len > UINT32_MAX || !buf_append(&c->out, head, sizeof head))
        return false;
    if (!buf_append(&c->out, data, len)) {
        c->out.len = before;
        c->out.failed = false;
        return false;
    }
    return true;
}

#define HEADER(name, value)                                                                                                        \
    {                                                                                                                              \
        (uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, strlen(value), NGHTTP2_NV_FLAG_NONE                               \
    }

static bool submit(struct h2_call *c, const char *path)
{
    struct h2 *h = c->h2;
    const nghttp2_nv headers[] = {HEADER(":method", "POST"),
                                  HEADER(":scheme", h->ssl ? "https" : "http"),
                                  HEADER(":path", path),
                                  HEADER(":authority", h->authority),
                                  HEADER("content-type", "application/grpc"),
                                  HEADER("te", "trailers"),
                                  HEADER("user-agent", "lunacos/" LUNACOS_VERSION)};
    nghttp2_data_provider data = {.read_callback = give_data};
    c->id = nghttp2_submit_request(h->session, NULL, headers, sizeof headers / sizeof headers[0], &data, c);
    return c->id > 0;
}

static struct h2_call *new_call(struct h2 *h, const char *path, const void *data, size_t len, const struct h2_call *like)
{
    struct h2_call *c = h2_takes_calls(h) ? malloc(sizeof *c) : NULL;
    if (!c)
        return NULL;
    *c = *like;
    c->h2 = h;
    c->grpc = -1;
    buf_init(&c->out, SIZE_MAX);
    buf_init(&c->in, h->spec.max_message);
    if ((!c->stream && !put_message(c, data, len)) || !submit(c, path)) {
        free_call(c);
        return NULL;
    }
    c->next = h->calls;
    if (c->next)
        c->next->prev = c;
    h->calls = c;
    h->unaries += !c->stream;
    soon(h);
    return c;
}

struct h2_call *h2_unary(struct h2 *h, const char *path, const void *data, size_t len,
                         void (*done)(void *arg, const struct h2_result *r), void *arg)
{
    return new_call(h, path, data, len, &(struct h2_call){.done = done, .arg = arg});
}

struct h2_call *h2_stream(struct h2 *h, const char *path, void (*message)(void *arg, const char *data, size_t len),
                          void (*ended)(void *arg, const struct h2_result *r), void *arg)
{
    return new_call(h, path, NULL, 0, &(struct h2_call){.stream = true, .message = message, .done = ended, .arg = arg});
}

bool h2_send(struct h2_call *c, const void *data, size_t len)
{
    if (c->ended || c->h2->over || c->out.len - c->sent > WAITING_MAX)
        return false;
    if (c->sent > c->out.len / 2) { /* what was sent leaves its front */
        c->out.len -= c->sent;
        memmove(c->out.data, c->out.data + c->sent, c->out.len);
        c->sent = 0;
    }
    if (!put_message(c, data, len))
        return false;
    nghttp2_session_resume_data(c->h2->session, c->id);
    soon(c->h2);
    return true;
}

bool h2_seen(const struct h2_call *c)
{
    return c->seen;
}

void h2_cancel(struct h2_call *c)
{
    if (!c || c->ended)
        return;
    struct h2 *h = c->h2;
    unlink_call(c);
    if (!h->over)
        reset_stream(h, c->id);
    free_call(c);
}
