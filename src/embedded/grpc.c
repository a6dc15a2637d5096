/** grpc: see grpc.h. */
#include "embedded/grpc.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "embedded/listen.h"
#include "engine/envelope.h"

enum {
    PREFIX = 5,                     /* bytes before each message: compressed? length */
    CHUNK = 65536,                  /* bytes of one write */
    PILE = 2 * ENVELOPE_MAX + 4096, /* bytes that may wait on a call */
    WINDOW = 1 << 20,               /* of a stream, and of the connection */
    HEADER_LIST = 8192,
    PINGS = 3,     /* in a row are too many */
    CALLS = 10000, /* of one connection at a time; real servers name no limit */
    VANISHED = 60  /* seconds of silence after which TCP asks whether the peer is still there */
};

/** Bytes that the messages of one connection may take: of all calls, in and out. Clients ask for many large things at a time. */
#define HELD ((size_t)1 << 30)

/* ---- calls ---- */

static struct grpc_call *call_new(struct grpc_conn *c, int32_t id)
{
    struct grpc_call *call = calloc(1, sizeof *call);
    if (!call)
        return NULL;
    call->conn = c;
    call->id = id;
    call->kind = GRPC_UNKNOWN;
    buf_init(&call->in, ENVELOPE_MAX + PREFIX + WINDOW);
    buf_init(&call->out, PILE);
    call->after = c->calls;
    if (c->calls)
        c->calls->before = call;
    c->calls = call;
    c->call_count++;
    return call;
}

/** Counts the memory of the call anew. */
static void weigh(struct grpc_call *call)
{
    size_t held = call->in.cap + call->out.cap;
    call->conn->held += held - call->held;
    call->held = held;
}

/** Tells whoever answers that the client does not listen any more. */
static void call_gone(struct grpc_call *call)
{
    if (call->arg)
        call->conn->server->gone(call->conn->server->arg, call);
    call->arg = NULL;
}

static void call_free(struct grpc_call *call)
{
    call_gone(call);
    if (call->before)
        call->before->after = call->after;
    else
        call->conn->calls = call->after;
    if (call->after)
        call->after->before = call->before;
    buf_free(&call->in);
    buf_free(&call->out);
    weigh(call);
    call->conn->call_count--;
    free(call);
}

static nghttp2_nv header(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

/** The headers that end a call; at most two. */
static size_t trailers(struct grpc_call *call, char number[16], nghttp2_nv *out)
{
    snprintf(number, 16, "%d", call->status);
    out[0] = header("grpc-status", number);
    out[1] = header("grpc-message", call->why);
    return *call->why ? 2 : 1;
}

static ssize_t on_read_out(nghttp2_session *h2, int32_t id, uint8_t *to, size_t room, uint32_t *flags, nghttp2_data_source *source,
                           void *arg)
{
    struct grpc_call *call = source->ptr;
    (void)arg;
    size_t n = call->out.len - call->sent;
    if (n > room)
        n = room;
    if (n == 0 && !call->finished)
        return NGHTTP2_ERR_DEFERRED;
    if (n > 0)
        memcpy(to, call->out.data + call->sent, n);
    call->sent += n;
    if (call->sent == call->out.len) { /* idle streams keep no memory */
        buf_free(&call->out);
        weigh(call);
        call->sent = 0;
        if (call->finished) {
            char number[16];
            nghttp2_nv nv[2];
            *flags |= NGHTTP2_DATA_FLAG_EOF;
            if (call->status >= 0) {
                *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
                nghttp2_submit_trailer(h2, id, nv, trailers(call, number, nv));
            }
        }
    }
    return (ssize_t)n;
}

static void submit(struct grpc_call *call, const nghttp2_nv *nv, size_t count, bool body)
{
    nghttp2_data_provider out = {.source.ptr = call, .read_callback = on_read_out};
    call->begun = true;
    nghttp2_submit_response(call->conn->h2, call->id, nv, count, body ? &out : NULL);
}

void grpc_send(struct grpc_call *call, const void *data, size_t len)
{
    grpc_send_as(call, data, len, len);
}

void grpc_send_as(struct grpc_call *call, const void *data, size_t len, size_t claimed)
{
    unsigned char prefix[PREFIX] = {0, (unsigned char)(claimed >> 24), (unsigned char)(claimed >> 16),
                                    (unsigned char)(claimed >> 8), (unsigned char)claimed};
    if (call->finished || call->conn->closing)
        return;
    buf_append(&call->out, prefix, sizeof prefix);
    buf_append(&call->out, data, len);
    weigh(call);
    if (call->out.failed || call->conn->held > call->conn->server->most) {
        grpc_close(call->conn);
        return;
    }
    if (call->begun) {
        nghttp2_session_resume_data(call->conn->h2, call->id);
        return;
    }
    nghttp2_nv nv[] = {header(":status", "200"), header("content-type", "application/grpc"), header("grpc-encoding", "identity"),
                       header("grpc-accept-encoding", "gzip")};
    submit(call, nv, sizeof nv / sizeof *nv, true);
}

void grpc_finish(struct grpc_call *call, int status, const char *why)
{
    if (call->finished || call->conn->closing)
        return;
    call->finished = true;
    call->status = status;
    snprintf(call->why, sizeof call->why, "%s", why);
    if (call->begun) {
        nghttp2_session_resume_data(call->conn->h2, call->id);
        return;
    }
    char number[16];
    nghttp2_nv nv[4] = {header(":status", "200"), header("content-type", "application/grpc")};
    submit(call, nv, 2 + trailers(call, number, nv + 2), false);
}

void grpc_refuse(struct grpc_call *call, int http_status, int status, const char *text)
{
    if (call->begun || call->finished || call->conn->closing)
        return;
    char http[16], number[16];
    snprintf(http, sizeof http, "%d", http_status);
    snprintf(number, sizeof number, "%d", status);
    nghttp2_nv nv[] = {header(":status", http), header("content-type", "text/plain; charset=utf-8"), header("grpc-status", number)};
    call->finished = true;
    call->status = -1; /* no trailers */
    buf_puts(&call->out, text);
    submit(call, nv, status < 0 ? 2 : 3, true);
}

void grpc_reset(struct grpc_call *call, uint32_t error)
{
    if (!call->conn->closing)
        nghttp2_submit_rst_stream(call->conn->h2, NGHTTP2_FLAG_NONE, call->id, error);
}

/* ---- messages ---- */

static size_t message_length(const char *p)
{
    const unsigned char *b = (const unsigned char *)p;
    return (size_t)b[1] << 24 | (size_t)b[2] << 16 | (size_t)b[3] << 8 | b[4];
}

/** Looks at what has come of the call so far. */
static void take_messages(struct grpc_call *call)
{
    struct grpc *g = call->conn->server;
    size_t at = 0;
    while (!call->finished && !call->has_message && !call->conn->closing && call->in.len - at >= PREFIX) {
        const char *p = call->in.data + at;
        size_t len = message_length(p);
        if (*p) {
            grpc_finish(call, GRPC_INTERNAL, "Can't decode compressed gRPC message as compression not configured");
        } else if (len > ENVELOPE_MAX) {
            char why[96];
            snprintf(why, sizeof why, "gRPC message exceeds maximum size %d: %zu", ENVELOPE_MAX, len);
            grpc_finish(call, GRPC_EXHAUSTED, why);
        } else if (call->in.len - at - PREFIX < len) {
            break;
        } else if (call->kind == GRPC_UNARY) {
            call->has_message = true;
        } else {
            g->message(g->arg, call, p + PREFIX, len);
            at += PREFIX + len;
        }
    }
    if (call->finished || at == call->in.len) {
        buf_free(&call->in);
    } else if (at > 0) {
        memmove(call->in.data, call->in.data + at, call->in.len - at);
        call->in.len -= at;
    }
}

/** The client has said all it wants to say. */
static void take_end(struct grpc_call *call)
{
    struct grpc *g = call->conn->server;
    call->over = true;
    if (call->finished)
        return;
    if (call->kind == GRPC_STREAM) {
        call_gone(call);
        grpc_finish(call, GRPC_OK, "");
    } else if (!call->has_message) {
        grpc_finish(call, GRPC_INTERNAL, "Half-closed without a request");
    } else if (call->in.len > PREFIX + message_length(call->in.data)) {
        grpc_finish(call, GRPC_INTERNAL, "Too many requests");
    } else {
        g->message(g->arg, call, call->in.data + PREFIX, call->in.len - PREFIX);
        buf_free(&call->in);
        weigh(call);
    }
}

/** The headers are complete. */
static void take_head(struct grpc_call *call)
{
    char why[96];
    if (!call->post) {
        grpc_refuse(call, 405, GRPC_INTERNAL, "Method not supported");
    } else if (!call->proper) {
        grpc_refuse(call, 415, GRPC_INTERNAL, "Content-Type is missing from the request or is not supported");
    } else if (call->kind == GRPC_UNKNOWN) {
        snprintf(why, sizeof why, "Method not found: %s", call->path + (*call->path == '/'));
        grpc_finish(call, GRPC_UNIMPLEMENTED, why);
    }
}

/* ---- nghttp2's callbacks ---- */

/** For them: goes on, or makes nghttp2 stop because the connection is closed. */
static int go_on(struct grpc_conn *c)
{
    return c->closing ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_begin(nghttp2_session *h2, const nghttp2_frame *frame, void *arg)
{
    struct grpc_conn *c = arg;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return go_on(c);
    if (c->call_count >= CALLS) {
        nghttp2_submit_rst_stream(h2, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_REFUSED_STREAM);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    struct grpc_call *call = call_new(c, frame->hd.stream_id);
    if (!call)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    nghttp2_session_set_stream_user_data(h2, call->id, call);
    return go_on(c);
}

static bool is_text(const uint8_t *p, size_t len, const char *text)
{
    return strlen(text) == len && memcmp(p, text, len) == 0;
}

static int on_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name, size_t name_len, const uint8_t *value,
                     size_t len, uint8_t flags, void *arg)
{
    static const char type[] = "application/grpc";
    struct grpc_call *call = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id);
    (void)flags;
    if (call && is_text(name, name_len, ":method")) {
        call->post = is_text(value, len, "POST");
    } else if (call && is_text(name, name_len, ":path")) {
        snprintf(call->path, sizeof call->path, "%.*s", (int)len, (const char *)value);
        call->kind = strcmp(call->path, "/Request/request") == 0                   ? GRPC_UNARY
                     : strcmp(call->path, "/BiRequestStream/requestBiStream") == 0 ? GRPC_STREAM
                                                                                   : GRPC_UNKNOWN;
    } else if (call && is_text(name, name_len, "content-type")) {
        call->proper = len >= sizeof type - 1 && memcmp(value, type, sizeof type - 1) == 0;
    }
    return go_on(arg);
}

static int on_data(nghttp2_session *h2, uint8_t flags, int32_t id, const uint8_t *data, size_t len, void *arg)
{
    struct grpc_conn *c = arg;
    struct grpc_call *call = nghttp2_session_get_stream_user_data(h2, id);
    (void)flags;
    if (!c->pinged) { /* as the real server measures the line */
        c->pinged = true;
        nghttp2_submit_ping(h2, NGHTTP2_FLAG_NONE, NULL);
    }
    if (!call || call->finished)
        return go_on(c);
    if (buf_append(&call->in, data, len))
        take_messages(call);
    else
        grpc_finish(call, GRPC_INTERNAL, "Too many requests");
    weigh(call);
    if (c->held > c->server->most)
        grpc_close(c);
    return go_on(c);
}

static int on_frame(nghttp2_session *h2, const nghttp2_frame *frame, void *arg)
{
    struct grpc_conn *c = arg;
    if (frame->hd.type == NGHTTP2_PING && !(frame->hd.flags & NGHTTP2_FLAG_ACK) && ++c->pings == PINGS) {
        nghttp2_submit_goaway(h2, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(h2), NGHTTP2_ENHANCE_YOUR_CALM,
                              (const uint8_t *)"too_many_pings", 14);
        for (struct grpc_call *call = c->calls; call; call = call->after) /* without them the connection ends */
            grpc_reset(call, NGHTTP2_CANCEL);
    }
    struct grpc_call *call = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id);
    if (!call || c->closing)
        return go_on(c);
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
        take_head(call);
    if ((frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        take_end(call);
    return go_on(c);
}

static int on_sent(nghttp2_session *h2, const nghttp2_frame *frame, void *arg)
{
    struct grpc_conn *c = arg;
    struct grpc_call *call = nghttp2_session_get_stream_user_data(h2, frame->hd.stream_id);
    if (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) {
        c->pings = 0;
        if (call && !call->over && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) /* the client need not go on */
            nghttp2_submit_rst_stream(h2, NGHTTP2_FLAG_NONE, call->id, NGHTTP2_NO_ERROR);
    }
    return 0;
}

static int on_stream_closed(nghttp2_session *h2, int32_t id, uint32_t error, void *arg)
{
    struct grpc_call *call = nghttp2_session_get_stream_user_data(h2, id);
    (void)error;
    (void)arg;
    if (call)
        call_free(call);
    return 0;
}

static nghttp2_session *session_new(struct grpc_conn *c)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    nghttp2_session *h2 = NULL;
    if (nghttp2_session_callbacks_new(&callbacks) == 0 && nghttp2_option_new(&option) == 0) {
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin);
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_sent);
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_closed);
        nghttp2_option_set_no_closed_streams(option, 1); /* thousands of idle connections should cost little */
        if (nghttp2_session_server_new2(&h2, callbacks, c, option) != 0)
            h2 = NULL;
    }
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    uint32_t window = c->server->window ? c->server->window : WINDOW;
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, INT32_MAX},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window},
                                         {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HEADER_LIST}};
    if (h2) {
        nghttp2_submit_settings(h2, NGHTTP2_FLAG_NONE, settings, sizeof settings / sizeof *settings);
        if (window == WINDOW)
            nghttp2_session_set_local_window_size(h2, NGHTTP2_FLAG_NONE, 0, WINDOW);
    }
    return h2;
}

/* ---- connections ---- */

static void on_conn_closed(uv_handle_t *h)
{
    struct grpc_conn *c = h->data;
    while (c->calls) /* not before: we may have been closed from inside one */
        call_free(c->calls);
    nghttp2_session_del(c->h2);
    SSL_free(c->ssl);
    buf_free(&c->raw);
    free(c);
}

/** The connection is over for everybody but libuv. */
static void forget(struct grpc_conn *c)
{
    struct grpc *g = c->server;
    c->closing = true;
    for (struct grpc_call *call = c->calls; call; call = call->after)
        call_gone(call);
    g->closed(g->arg, c);
    if (c->before)
        c->before->after = c->after;
    else
        g->conns = c->after;
    if (c->after)
        c->after->before = c->before;
    g->count--;
}

void grpc_close(struct grpc_conn *c)
{
    if (c->closing)
        return;
    forget(c);
    uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
}

/** With an RST, and without what is still on its way. */
static void break_off(struct grpc_conn *c)
{
    if (c->closing)
        return;
    forget(c);
    if (uv_tcp_close_reset(&c->tcp, on_conn_closed) != 0)
        uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
}

struct write {
    uv_write_t uv;
    bool last;
    char bytes[];
};

static void on_written(uv_write_t *uv, int status)
{
    struct grpc_conn *c = uv->handle->data;
    struct write *w = uv->data;
    bool last = w->last;
    free(w);
    c->writing = false;
    if (c->closing)
        return;
    if (last)
        break_off(c);
    else if (status < 0)
        grpc_close(c);
    else
        grpc_flush(c);
}

/** Moves what TLS has made of it. */
static void take_tls(SSL *ssl, struct buf *out)
{
    char *data;
    BIO *bio = SSL_get_wbio(ssl);
    long n = BIO_get_mem_data(bio, &data);
    if (n > 0)
        buf_append(out, data, (size_t)n);
    BIO_reset(bio);
}

/** Appends to what goes over the wire. */
static bool emit(struct grpc_conn *c, struct buf *out, const void *data, size_t len)
{
    if (!c->ssl)
        return buf_append(out, data, len);
    ERR_clear_error();
    bool ok = SSL_write(c->ssl, data, (int)len) == (int)len; /* into memory: whole or not at all */
    take_tls(c->ssl, out);
    return ok && !out->failed;
}

/** Gathers one write's worth. False: the connection is broken. */
static bool gather(struct grpc_conn *c, struct buf *out)
{
    if (c->ssl) {
        take_tls(c->ssl, out);
        if (!SSL_is_init_finished(c->ssl))
            return true;
    }
    while (out->len < CHUNK) {
        const uint8_t *data;
        ssize_t n = nghttp2_session_mem_send(c->h2, &data);
        if (n < 0)
            return false;
        if (n == 0)
            break;
        if (!emit(c, out, data, (size_t)n))
            return false;
    }
    bool ok = c->raw.len == 0 || emit(c, out, c->raw.data, c->raw.len);
    buf_free(&c->raw);
    return ok;
}

static void write_out(struct grpc_conn *c, const struct buf *out, bool last)
{
    struct write *w = out->len ? malloc(sizeof *w + out->len) : NULL;
    if (!w) { /* nothing is left before the break, or memory */
        break_off(c);
        return;
    }
    w->last = last;
    w->uv.data = w;
    memcpy(w->bytes, out->data, out->len);
    uv_buf_t buf = uv_buf_init(w->bytes, (unsigned)out->len);
    c->writing = true;
    if (uv_write(&w->uv, (uv_stream_t *)&c->tcp, &buf, 1, on_written) != 0) {
        free(w);
        c->writing = false;
        grpc_close(c);
    }
}

void grpc_flush(struct grpc_conn *c)
{
    if (c->writing || c->receiving || c->frozen || c->closing)
        return;
    struct buf out;
    buf_init(&out, 4 * CHUNK);
    if (!gather(c, &out)) {
        grpc_close(c);
    } else if (out.len > 0 || c->breaks_after == 0) {
        bool last = c->breaks_after >= 0 && (int64_t)out.len >= c->breaks_after;
        if (last)
            out.len = (size_t)c->breaks_after;
        else if (c->breaks_after >= 0)
            c->breaks_after -= (int64_t)out.len;
        write_out(c, &out, last);
    } else if (!nghttp2_session_want_read(c->h2) && !nghttp2_session_want_write(c->h2)) {
        grpc_close(c);
    }
    buf_free(&out);
}

/** Bytes of HTTP/2 have come. */
static bool feed(struct grpc_conn *c, const void *data, size_t len)
{
    return nghttp2_session_mem_recv(c->h2, data, len) >= 0 && !c->closing;
}

static bool feed_tls(struct grpc_conn *c, const void *data, size_t len)
{
    char plain[16384];
    int n;
    if (BIO_write(SSL_get_rbio(c->ssl), data, (int)len) != (int)len)
        return false;
    ERR_clear_error();
    while ((n = SSL_read(c->ssl, plain, sizeof plain)) > 0)
        if (!feed(c, plain, (size_t)n))
            return false;
    return SSL_get_error(c->ssl, n) == SSL_ERROR_WANT_READ;
}

static void give_inbox(uv_handle_t *h, size_t wanted, uv_buf_t *buf)
{
    struct grpc_conn *c = h->data;
    (void)wanted;
    *buf = uv_buf_init(c->server->inbox, sizeof c->server->inbox);
}

static void on_bytes(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct grpc_conn *c = stream->data;
    if (n == 0)
        return;
    bool ok = false;
    if (n > 0) {
        c->receiving = true;
        ok = c->ssl ? feed_tls(c, buf->base, (size_t)n) : feed(c, buf->base, (size_t)n);
        c->receiving = false;
    }
    grpc_flush(c); /* also the last words to somebody who does not speak HTTP/2 */
    if (!ok)
        grpc_close(c);
}

static void name_of(const struct sockaddr_storage *a, char ip[46], int *port)
{
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)a;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;
    if (a->ss_family == AF_INET6)
        uv_ip6_name(v6, ip, 46);
    else
        uv_ip4_name(v4, ip, 46);
    *port = ntohs(a->ss_family == AF_INET6 ? v6->sin6_port : v4->sin_port);
}

static bool conn_init(struct grpc_conn *c)
{
    struct grpc *g = c->server;
    struct sockaddr_storage peer = {0}, local = {0};
    int len = sizeof peer, ignored;
    if (uv_tcp_getpeername(&c->tcp, (struct sockaddr *)&peer, &len) != 0)
        return false;
    len = sizeof local;
    uv_tcp_getsockname(&c->tcp, (struct sockaddr *)&local, &len);
    name_of(&peer, c->ip, &c->port);
    name_of(&local, c->local_ip, &ignored);
    uv_tcp_nodelay(&c->tcp, 1);
    uv_tcp_keepalive(&c->tcp, 1, VANISHED);
    if (g->tls) {
        BIO *in = BIO_new(BIO_s_mem()), *out = BIO_new(BIO_s_mem());
        c->ssl = SSL_new(g->tls);
        if (!in || !out || !c->ssl) {
            BIO_free(in);
            BIO_free(out);
            return false;
        }
        SSL_set_bio(c->ssl, in, out);
        SSL_set_accept_state(c->ssl);
    }
    return (c->h2 = session_new(c)) && uv_read_start((uv_stream_t *)&c->tcp, give_inbox, on_bytes) == 0;
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct grpc *g = listener->data;
    struct grpc_conn *c = status == 0 ? calloc(1, sizeof *c) : NULL;
    if (!c)
        return;
    c->server = g;
    c->number = ++*g->numbers;
    c->breaks_after = -1;
    buf_init(&c->raw, CHUNK);
    if (uv_tcp_init(g->loop, &c->tcp) != 0) {
        free(c);
        return;
    }
    c->tcp.data = c;
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) != 0 || g->count >= g->limit || !conn_init(c)) {
        uv_close((uv_handle_t *)&c->tcp, on_conn_closed);
        return;
    }
    c->after = g->conns;
    if (g->conns)
        g->conns->before = c;
    g->conns = c;
    g->count++;
    g->opened(g->arg, c);
    grpc_freeze(c, g->freeze_new);
    grpc_flush(c);
}

/* ---- what tests want ---- */

void grpc_goaway(struct grpc_conn *c)
{
    nghttp2_submit_goaway(c->h2, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(c->h2), NGHTTP2_NO_ERROR, NULL, 0);
    grpc_flush(c);
}

void grpc_leave(struct grpc_conn *c)
{
    for (struct grpc_call *call = c->calls; call; call = call->after)
        grpc_reset(call, NGHTTP2_CANCEL);
    grpc_goaway(c);
    grpc_close(c);
}

void grpc_freeze(struct grpc_conn *c, bool on)
{
    if (c->closing || c->frozen == on)
        return;
    c->frozen = on;
    if (on)
        uv_read_stop((uv_stream_t *)&c->tcp);
    else
        uv_read_start((uv_stream_t *)&c->tcp, give_inbox, on_bytes);
    grpc_flush(c);
}

/* ---- starting and stopping ---- */

static int select_h2(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in, unsigned in_len,
                     void *arg)
{
    (void)ssl;
    (void)arg;
    static const unsigned char h2[] = "\2h2";
    return SSL_select_next_proto((unsigned char **)out, out_len, h2, 3, in, in_len) == OPENSSL_NPN_NEGOTIATED
               ? SSL_TLSEXT_ERR_OK
               : SSL_TLSEXT_ERR_ALERT_FATAL;
}

static X509 *next_certificate(BIO *bio)
{
    return bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
}

/** The first certificate of the text is ours, the others lead to its CA. */
static bool use_certificates(SSL_CTX *ctx, const char *text)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    X509 *cert = next_certificate(bio);
    bool ok = cert && SSL_CTX_use_certificate(ctx, cert) == 1;
    X509_free(cert);
    while (ok && (cert = next_certificate(bio)))
        if (SSL_CTX_add0_chain_cert(ctx, cert) != 1) {
            X509_free(cert);
            ok = false;
        }
    BIO_free(bio);
    return ok;
}

static bool use_key(SSL_CTX *ctx, const char *text)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
    bool ok = key && SSL_CTX_use_PrivateKey(ctx, key) == 1;
    EVP_PKEY_free(key);
    BIO_free(bio);
    return ok;
}

/** Clients must show a certificate of this CA. */
static bool ask_certificates(SSL_CTX *ctx, const char *text)
{
    BIO *bio = BIO_new_mem_buf(text, -1);
    X509 *cert;
    bool any = false, ok = true;
    for (; (cert = next_certificate(bio)); any = true) {
        ok &= X509_STORE_add_cert(SSL_CTX_get_cert_store(ctx), cert) == 1;
        X509_free(cert);
    }
    BIO_free(bio);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return any && ok;
}

static bool make_tls(struct grpc *g, const struct pem *pem)
{
    g->tls = SSL_CTX_new(TLS_server_method());
    if (!g->tls)
        return false;
    SSL_CTX_set_min_proto_version(g->tls, TLS1_2_VERSION);
    SSL_CTX_set_session_cache_mode(g->tls, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(g->tls, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_alpn_select_cb(g->tls, select_h2, NULL);
    return use_certificates(g->tls, pem->cert) && use_key(g->tls, pem->key) && (!pem->ca || ask_certificates(g->tls, pem->ca));
}

static void on_listener_closed(uv_handle_t *h)
{
    free(h);
}

static void close_listener(struct grpc *g)
{
    if (g->listener)
        uv_close((uv_handle_t *)g->listener, on_listener_closed);
    g->listener = NULL;
}

static bool attach(struct grpc *g, int fd)
{
    g->listener = calloc(1, sizeof *g->listener);
    if (!g->listener || uv_tcp_init(g->loop, g->listener) != 0) {
        free(g->listener);
        g->listener = NULL;
        close(fd);
        return false;
    }
    g->listener->data = g;
    if (uv_tcp_open(g->listener, fd) != 0) {
        close(fd);
        close_listener(g);
    } else if (uv_listen((uv_stream_t *)g->listener, LISTEN_BACKLOG, on_connection) != 0) {
        close_listener(g);
    }
    return g->listener != NULL;
}

bool grpc_start(struct grpc *g, int fd, int port, const struct pem *pem, char *why, size_t why_size)
{
    g->port = port;
    g->shut = -1;
    g->most = HELD;
    if (pem->cert && !make_tls(g, pem)) {
        snprintf(why, why_size, "cannot use certificate, key and CA for gRPC: are they readable PEM files that belong together?");
        close(fd);
        return false;
    }
    snprintf(why, why_size, "cannot listen for gRPC");
    return attach(g, fd);
}

void grpc_close_port(struct grpc *g)
{
    uv_os_fd_t fd;
    if (!g->listener || uv_fileno((uv_handle_t *)g->listener, &fd) != 0 || (g->shut = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0)
        return;
    close_listener(g);
    shutdown(g->shut, SHUT_RD); /* refuses connections, but nobody else gets the port */
}

bool grpc_open_port(struct grpc *g)
{
    int fd = g->shut;
    g->shut = -1;
    return g->listener || (fd >= 0 && attach(g, fd));
}

void grpc_stop(struct grpc *g)
{
    close_listener(g);
    if (g->shut >= 0)
        close(g->shut);
    while (g->conns)
        grpc_leave(g->conns);
}

void grpc_free(struct grpc *g)
{
    SSL_CTX_free(g->tls);
}
