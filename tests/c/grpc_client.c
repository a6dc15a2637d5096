/** grpc_client: for specs, an HTTP/2 connection that can be told to do right and wrong. Lua module "grpc_client"; tests/grpc.lua
 * makes gRPC and Nacos of it. */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/buf.h"

#define CONN "grpc_client.conn"

struct stream {
    struct stream *next;
    int32_t id;
    struct buf in, out;
    size_t sent;
    bool last; /* nothing follows `out` */
    bool closed;
    int http, status; /* -1: none */
    uint32_t error;
    char message[256], type[64];
};

struct conn {
    int fd;
    SSL_CTX *ctx;
    SSL *ssl;
    nghttp2_session *h2;
    struct stream *streams;
    bool closed;
    int goaway, pings; /* -1: none; those of the server */
    uint32_t settings[8];
};

static struct conn *check(lua_State *L)
{
    struct conn *c = luaL_checkudata(L, 1, CONN);
    luaL_argcheck(L, c->h2, 1, "closed");
    return c;
}

static struct stream *find(struct conn *c, int32_t id)
{
    for (struct stream *s = c->streams; s; s = s->next)
        if (s->id == id)
            return s;
    return NULL;
}

static struct stream *check_stream(lua_State *L, struct conn *c)
{
    struct stream *s = find(c, (int32_t)luaL_checkinteger(L, 2));
    luaL_argcheck(L, s, 2, "no such stream");
    return s;
}

/* ---- nghttp2 ---- */

static ssize_t on_send(nghttp2_session *h2, const uint8_t *data, size_t len, int flags, void *arg)
{
    struct conn *c = arg;
    (void)h2;
    (void)flags;
    if (c->ssl) {
        ERR_clear_error();
        int n = SSL_write(c->ssl, data, (int)len);
        if (n > 0)
            return n;
        return SSL_get_error(c->ssl, n) == SSL_ERROR_WANT_WRITE ? NGHTTP2_ERR_WOULDBLOCK : NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n >= 0 ? n : errno == EAGAIN ? NGHTTP2_ERR_WOULDBLOCK : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static ssize_t on_recv(nghttp2_session *h2, uint8_t *to, size_t len, int flags, void *arg)
{
    struct conn *c = arg;
    (void)h2;
    (void)flags;
    if (c->ssl) {
        ERR_clear_error();
        int n = SSL_read(c->ssl, to, (int)len);
        if (n > 0)
            return n;
        return SSL_get_error(c->ssl, n) == SSL_ERROR_WANT_READ ? NGHTTP2_ERR_WOULDBLOCK : NGHTTP2_ERR_EOF;
    }
    ssize_t n = recv(c->fd, to, len, MSG_DONTWAIT);
    return n > 0 ? n : n < 0 && errno == EAGAIN ? NGHTTP2_ERR_WOULDBLOCK : NGHTTP2_ERR_EOF;
}

static int on_header(nghttp2_session *h2, const nghttp2_frame *frame, const uint8_t *name, size_t name_len, const uint8_t *value,
                     size_t len, uint8_t flags, void *arg)
{
    struct stream *s = find(arg, frame->hd.stream_id);
    char n[32], v[256];
    (void)h2;
    (void)flags;
    snprintf(n, sizeof n, "%.*s", (int)name_len, (const char *)name);
    snprintf(v, sizeof v, "%.*s", (int)len, (const char *)value);
    if (!s)
        return 0;
    if (strcmp(n, ":status") == 0)
        s->http = atoi(v);
    else if (strcmp(n, "grpc-status") == 0)
        s->status = atoi(v);
    else if (strcmp(n, "grpc-message") == 0)
        snprintf(s->message, sizeof s->message, "%s", v);
    else if (strcmp(n, "content-type") == 0)
        snprintf(s->type, sizeof s->type, "%.60s", v);
    return 0;
}

static int on_data(nghttp2_session *h2, uint8_t flags, int32_t id, const uint8_t *data, size_t len, void *arg)
{
    struct stream *s = find(arg, id);
    (void)h2;
    (void)flags;
    if (s)
        buf_append(&s->in, data, len);
    return 0;
}

static int on_frame(nghttp2_session *h2, const nghttp2_frame *frame, void *arg)
{
    struct conn *c = arg;
    (void)h2;
    if (frame->hd.type == NGHTTP2_GOAWAY)
        c->goaway = (int)frame->goaway.error_code;
    if (frame->hd.type == NGHTTP2_PING && !(frame->hd.flags & NGHTTP2_FLAG_ACK))
        c->pings++;
    for (size_t i = 0; frame->hd.type == NGHTTP2_SETTINGS && i < frame->settings.niv; i++)
        if (frame->settings.iv[i].settings_id < 8)
            c->settings[frame->settings.iv[i].settings_id] = frame->settings.iv[i].value;
    return 0;
}

static int on_stream_closed(nghttp2_session *h2, int32_t id, uint32_t error, void *arg)
{
    struct stream *s = find(arg, id);
    (void)h2;
    if (s) {
        s->closed = true;
        s->error = error;
    }
    return 0;
}

static ssize_t on_read_out(nghttp2_session *h2, int32_t id, uint8_t *to, size_t room, uint32_t *flags, nghttp2_data_source *source,
                           void *arg)
{
    struct stream *s = source->ptr;
    (void)h2;
    (void)id;
    (void)arg;
    size_t n = s->out.len - s->sent;
    n = n < room ? n : room;
    if (n == 0 && !s->last)
        return NGHTTP2_ERR_DEFERRED;
    if (n)
        memcpy(to, s->out.data + s->sent, n);
    s->sent += n;
    if (s->last && s->sent == s->out.len)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

/* ---- Lua ---- */

static int open_socket(const char *host, const char *port)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    if (getaddrinfo(host, port, &hints, &list) != 0)
        return -1;
    int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, list->ai_addr, list->ai_addrlen) != 0) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    return fd;
}

static const char *field(lua_State *L, const char *name)
{
    lua_getfield(L, 3, name); /* value */
    const char *text = lua_tostring(L, -1);
    lua_pop(L, 1); /* the table keeps it */
    return text;
}

static bool start_tls(lua_State *L, struct conn *c)
{
    const char *cert = field(L, "cert");
    c->ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_alpn_protos(c->ctx, (const unsigned char *)"\2h2", 3);
    SSL_CTX_set_verify(c->ctx, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_load_verify_locations(c->ctx, field(L, "ca"), NULL) != 1 ||
        (cert && (SSL_CTX_use_certificate_file(c->ctx, cert, SSL_FILETYPE_PEM) != 1 ||
                  SSL_CTX_use_PrivateKey_file(c->ctx, field(L, "key"), SSL_FILETYPE_PEM) != 1)))
        return false;
    c->ssl = SSL_new(c->ctx);
    const unsigned char *alpn;
    unsigned len;
    if (SSL_set_fd(c->ssl, c->fd) != 1 || SSL_connect(c->ssl) != 1)
        return false;
    SSL_get0_alpn_selected(c->ssl, &alpn, &len);
    return len == 2 && memcmp(alpn, "h2", 2) == 0;
}

static int conn_close(lua_State *L)
{
    struct conn *c = luaL_checkudata(L, 1, CONN);
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    nghttp2_session_del(c->h2);
    c->h2 = NULL;
    SSL_free(c->ssl);
    SSL_CTX_free(c->ctx);
    c->ssl = NULL;
    c->ctx = NULL;
    c->closed = true;
    for (struct stream *s; (s = c->streams);) {
        c->streams = s->next;
        buf_free(&s->in);
        buf_free(&s->out);
        free(s);
    }
    return 0;
}

/** connect(host, port, { ca=, cert=, key=, window= }) -> connection | nil */
static int conn_connect(lua_State *L)
{
    const char *host = luaL_checkstring(L, 1), *port = luaL_checkstring(L, 2);
    luaL_checktype(L, 3, LUA_TTABLE);
    struct conn *c = lua_newuserdatauv(L, sizeof *c, 0); /* connection */
    *c = (struct conn){.fd = open_socket(host, port), .goaway = -1};
    luaL_setmetatable(L, CONN);
    if (c->fd < 0 || (field(L, "ca") && !start_tls(L, c)))
        return 0;
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (c->ssl) {
        BIO *bio = SSL_get_rbio(c->ssl);
        BIO_set_nbio(bio, 1);
        BIO_socket_nbio(c->fd, 1);
    }
    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_send_callback(callbacks, on_send);
    nghttp2_session_callbacks_set_recv_callback(callbacks, on_recv);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_closed);
    nghttp2_session_client_new(&c->h2, callbacks, c);
    nghttp2_session_callbacks_del(callbacks);
    const char *window = field(L, "window");
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window ? (uint32_t)atol(window) : 1 << 20}};
    nghttp2_submit_settings(c->h2, NGHTTP2_FLAG_NONE, settings, 1);
    return 1;
}

static nghttp2_nv nv(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

/** c:start(method, path, content_type) -> stream. An empty content type is left out. */
static int conn_start(lua_State *L)
{
    struct conn *c = check(L);
    const char *method = luaL_checkstring(L, 2), *path = luaL_checkstring(L, 3), *type = luaL_checkstring(L, 4);
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return luaL_error(L, "memory");
    buf_init(&s->in, 64 << 20);
    buf_init(&s->out, 64 << 20);
    s->http = s->status = -1;
    s->next = c->streams;
    c->streams = s;
    nghttp2_nv list[] = {nv(":method", method),    nv(":scheme", "http"), nv(":path", path),
                         nv(":authority", "test"), nv("te", "trailers"),  nv("content-type", type)};
    nghttp2_data_provider out = {.source.ptr = s, .read_callback = on_read_out};
    s->id = nghttp2_submit_request(c->h2, NULL, list, *type ? 6 : 5, &out, s);
    lua_pushinteger(L, s->id);
    return 1;
}

/** c:write(stream, bytes, last) */
static int conn_write(lua_State *L)
{
    struct conn *c = check(L);
    struct stream *s = check_stream(L, c);
    size_t len;
    const char *bytes = luaL_checklstring(L, 3, &len);
    buf_append(&s->out, bytes, len);
    s->last = lua_toboolean(L, 4);
    nghttp2_session_resume_data(c->h2, s->id);
    return 0;
}

/** c:pump(ms): sends and receives, once, waiting at most so long for something to come. */
static int conn_pump(lua_State *L)
{
    struct conn *c = check(L);
    if (c->closed)
        return 0;
    if (nghttp2_session_send(c->h2) != 0)
        c->closed = true;
    struct pollfd p = {.fd = c->fd, .events = (short)(POLLIN | (nghttp2_session_want_write(c->h2) ? POLLOUT : 0))};
    bool ready = c->ssl && SSL_pending(c->ssl) > 0;
    if (!ready)
        poll(&p, 1, (int)luaL_checkinteger(L, 2));
    if ((ready || (p.revents & (POLLIN | POLLERR | POLLHUP))) && nghttp2_session_recv(c->h2) != 0)
        c->closed = true;
    if (!c->closed && nghttp2_session_send(c->h2) != 0)
        c->closed = true;
    if (!nghttp2_session_want_read(c->h2) && !nghttp2_session_want_write(c->h2))
        c->closed = true;
    return 0;
}

static void set(lua_State *L, const char *name, lua_Integer n)
{
    lua_pushinteger(L, n);
    lua_setfield(L, -2, name);
}

/** c:look(stream) -> { http=, status=, message=, content_type=, closed=, error=, data= what has come since the last look } */
static int conn_look(lua_State *L)
{
    struct conn *c = check(L);
    struct stream *s = check_stream(L, c);
    lua_newtable(L);
    set(L, "http", s->http);
    set(L, "status", s->status);
    set(L, "error", (lua_Integer)s->error);
    lua_pushstring(L, s->message);
    lua_setfield(L, -2, "message");
    lua_pushstring(L, s->type);
    lua_setfield(L, -2, "content_type");
    lua_pushboolean(L, s->closed || c->closed);
    lua_setfield(L, -2, "closed");
    lua_pushlstring(L, s->in.data ? s->in.data : "", s->in.len);
    lua_setfield(L, -2, "data");
    buf_clear(&s->in);
    return 1;
}

/** c:state() -> { closed=, goaway= code or -1, pings= of the server, settings= by number } */
static int conn_state(lua_State *L)
{
    struct conn *c = check(L);
    lua_newtable(L);
    lua_pushboolean(L, c->closed);
    lua_setfield(L, -2, "closed");
    set(L, "goaway", c->goaway);
    set(L, "pings", c->pings);
    lua_newtable(L);
    for (int i = 0; i < 8; i++) {
        lua_pushinteger(L, c->settings[i]);
        lua_seti(L, -2, i);
    }
    lua_setfield(L, -2, "settings");
    return 1;
}

static int conn_ping(lua_State *L)
{
    struct conn *c = check(L);
    nghttp2_submit_ping(c->h2, NGHTTP2_FLAG_NONE, NULL);
    return 0;
}

static int conn_reset(lua_State *L)
{
    struct conn *c = check(L);
    nghttp2_submit_rst_stream(c->h2, NGHTTP2_FLAG_NONE, (int32_t)luaL_checkinteger(L, 2), NGHTTP2_CANCEL);
    return 0;
}

/** c:raw(bytes): past HTTP/2. */
static int conn_raw(lua_State *L)
{
    struct conn *c = check(L);
    size_t len;
    const char *bytes = luaL_checklstring(L, 2, &len);
    if (send(c->fd, bytes, len, MSG_NOSIGNAL) < 0)
        c->closed = true;
    return 0;
}

static void ignore_signal(int number)
{
    (void)number;
}

/* exported although the build hides symbols */
__attribute__((visibility("default"))) int luaopen_grpc_client(lua_State *L);

int luaopen_grpc_client(lua_State *L)
{
    static const luaL_Reg methods[] = {{"start", conn_start}, {"write", conn_write}, {"pump", conn_pump},   {"look", conn_look},
                                       {"state", conn_state}, {"ping", conn_ping},   {"reset", conn_reset}, {"raw", conn_raw},
                                       {"close", conn_close}, {"__gc", conn_close},  {NULL, NULL}};
    static const luaL_Reg functions[] = {{"connect", conn_connect}, {NULL, NULL}};
    /* OpenSSL writes to a server that has gone. A handler rather than SIG_IGN, which child processes would inherit. */
    struct sigaction action = {.sa_handler = ignore_signal, .sa_flags = SA_RESTART};
    sigaction(SIGPIPE, &action, NULL);
    luaL_newmetatable(L, CONN);
    luaL_setfuncs(L, methods, 0);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
    luaL_newlib(L, functions);
    return 1;
}
