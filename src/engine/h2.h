/** h2: one HTTP/2 connection with gRPC calls on it: nghttp2 on the engine's loop, TLS by OpenSSL.
 *
 *  It knows gRPC's framing (five bytes before each message, the status in the trailers) and nothing of Nacos. All calls of one
 * connection travel on it, which libcurl could not promise. Windows are opened for messages of ENVELOPE_MAX; PINGs are answered,
 * none are sent. A connection ends once: with `closed`, or silently by h2_free(). Every call ends once: with its callback, or
 * silently by h2_cancel(). Nothing is called from inside a function of this room. */
#ifndef LUNACOS_H2_H
#define LUNACOS_H2_H

#include "engine/buf.h"
#include "engine/http.h"
#include "engine/timer.h"

struct h2;
struct h2_call;

enum h2_end {
    H2_OK,        /* grpc-status 0, and the one message of a unary call */
    H2_STATUS,    /* another grpc-status, or an HTTP status other than 200 */
    H2_BROKEN,    /* the connection or the stream ended before: RST, GOAWAY, closed, no trailers, no message, a compressed one */
    H2_TOO_LARGE, /* a message passed max_message: nothing of it was kept */
    H2_UNSENT     /* as BROKEN, and the server cannot have seen it */
};

struct h2_result {
    enum h2_end end;
    int status;       /* grpc-status, -1: none */
    char why[192];    /* unless H2_OK: what happened, with the grpc-message; without the server's name */
    const char *data; /* H2_OK of a unary call: its message; valid until the callback returns */
    size_t len;
};

/** The certificates, as read from their files: for many connections. */
struct h2_tls;
/** The texts of `t` must outlive it. NULL: out of memory. */
struct h2_tls *h2_tls_new(const struct http_tls *t);
/** NULL, or what is wrong with the files; connections made with it say that and end. */
const char *h2_tls_wrong(const struct h2_tls *t);
/** Connections made with it go on. NULL is fine. */
void h2_tls_free(struct h2_tls *t);

struct h2_spec {
    const char *host; /* name or address, as in an origin but without brackets. NULL: there is no network, see h2_feed() */
    int port;
    const struct h2_tls *tls; /* NULL: plain text with prior knowledge. Else with ALPN "h2"; a peer without it is closed */
    int64_t connect_ms;       /* for address, TCP, TLS and the peer's SETTINGS together */
    size_t max_message;
    void (*up)(void *arg);                      /* SETTINGS of the peer are here: it speaks HTTP/2 */
    void (*closed)(void *arg, const char *why); /* h2_free() is still to be called, also from inside */
    void *arg;
};

/** NULL: out of memory. */
struct h2 *h2_new(uv_loop_t *loop, struct timers *timers, const struct h2_spec *spec);
/** Ends all at once, without a callback; from inside any callback, too. NULL is fine. */
void h2_free(struct h2 *h);
/** The addresses of both ends; empty: not connected yet. */
void h2_addresses(const struct h2 *h, char ip[46], char local_ip[46]);
/** Nothing listens there: what took no time, and may soon be tried again. */
bool h2_refused(const struct h2 *h);
/** False: it is over, or the peer has said that it goes away; what is under way may still be answered. */
bool h2_takes_calls(const struct h2 *h);

/** One message there, one back. `data` is copied. The caller keeps the time: h2_cancel(). NULL: out of memory, or it takes
 * no calls any more. A call may be made at once, before it is up. */
struct h2_call *h2_unary(struct h2 *h, const char *path, const void *data, size_t len,
                         void (*done)(void *arg, const struct h2_result *r), void *arg);
/** A stream of messages both ways; `message` for each that comes, `ended` when the peer ends it or it breaks. */
struct h2_call *h2_stream(struct h2 *h, const char *path, void (*message)(void *arg, const char *data, size_t len),
                          void (*ended)(void *arg, const struct h2_result *r), void *arg);
/** False: too much is waiting to be sent (1 MiB beyond one message), out of memory, or the connection has ended. */
bool h2_send(struct h2_call *c, const void *data, size_t len);
/** A part of it may have reached the server. */
bool h2_seen(const struct h2_call *c);
/** Resets the call; no callback any more. NULL is fine. */
void h2_cancel(struct h2_call *c);

/** For tests: what a server sends. The callbacks come from inside this one. */
void h2_feed(struct h2 *h, const void *data, size_t len);

#endif
