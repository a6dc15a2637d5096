/** grpc: HTTP/2 connections with gRPC calls on them, seen from the server's side: nghttp2 on the server's loop, TLS by OpenSSL.
 *
 *  Two paths are served, the unary one and the bi-stream of Nacos; what a message means is rpc.c's business. Replies, settings and
 * refusals are those of a real server. Then there is what a test wants of a connection: to freeze, to break off, to talk nonsense.
 */
#ifndef LUNACOS_EMBEDDED_GRPC_H
#define LUNACOS_EMBEDDED_GRPC_H

#include <nghttp2/nghttp2.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "engine/buf.h"

enum grpc_kind { GRPC_UNARY, GRPC_STREAM, GRPC_UNKNOWN };

/** Status codes of gRPC. */
enum { GRPC_OK = 0, GRPC_BROKEN = 2, GRPC_EXHAUSTED = 8, GRPC_UNIMPLEMENTED = 12, GRPC_INTERNAL = 13 };

struct grpc_conn;

/** One call: a stream of HTTP/2. */
struct grpc_call {
    struct grpc_conn *conn;
    struct grpc_call *before, *after; /* the others of the connection */
    int32_t id;
    enum grpc_kind kind;
    bool post, proper;    /* :method and content-type are right */
    bool has_message;     /* unary: `in` begins with a whole one */
    bool over;            /* the client has ended its side */
    bool begun, finished; /* our headers went out; nothing follows but trailers */
    int status;
    char why[160];
    char path[64];
    struct buf in, out;
    size_t sent; /* of out */
    size_t held; /* bytes of memory of both, as the connection counts them */
    void *arg;   /* of whoever answers; not NULL: `gone` is called at the end */
};

struct grpc_conn {
    struct grpc *server;
    struct grpc_conn *before, *after;
    unsigned long number;
    char ip[46], local_ip[46];
    int port;
    uv_tcp_t tcp;
    nghttp2_session *h2;
    SSL *ssl;
    struct grpc_call *calls;
    unsigned call_count;
    size_t held;    /* bytes of memory of all calls' messages */
    struct buf raw; /* to go out past HTTP/2 */
    bool receiving, writing, pinged, frozen, closing;
    int pings;            /* of the client, since we last sent something */
    int64_t breaks_after; /* bytes still to be sent before the connection is reset; -1: it is not */
    void *arg;            /* of whoever answers */
};

struct grpc {
    uv_loop_t *loop;
    uv_tcp_t *listener; /* NULL: the port is closed */
    int shut;           /* then: its socket, which keeps the port for us; or -1 */
    int port;
    SSL_CTX *tls;
    struct grpc_conn *conns;
    unsigned count, limit;  /* further ones are closed at once */
    unsigned long *numbers; /* counts all connections of the server */
    bool freeze_new;        /* new connections are accepted and hear nothing */
    uint32_t window;        /* of new connections; 0: as real servers have it */
    size_t most;            /* bytes that one connection may make us hold */
    char inbox[65536];
    void (*opened)(void *arg, struct grpc_conn *c);
    void (*message)(void *arg, struct grpc_call *call, const char *data, size_t len); /* a unary call's one, or one of a stream */
    void (*gone)(void *arg, struct grpc_call *call); /* the client has ended or reset it, or left */
    void (*closed)(void *arg, struct grpc_conn *c);
    void *arg;
};

struct pem {
    char *cert, *key, *ca; /* texts; cert NULL: no TLS */
};

/** `g` has loop, limit, numbers and the callbacks set. Takes the listening socket. */
bool grpc_start(struct grpc *g, int fd, int port, const struct pem *pem, char *why, size_t why_size);
/** Says goodbye to everybody, as far as that can be said at once; the loop must run once more. */
void grpc_stop(struct grpc *g);
/** After that. */
void grpc_free(struct grpc *g);

/** Sends a message. A client that lets too much pile up is dropped. */
void grpc_send(struct grpc_call *call, const void *data, size_t len);
/** The same with a length that may be a lie. */
void grpc_send_as(struct grpc_call *call, const void *data, size_t len, size_t claimed);
/** Ends the call after what was sent. */
void grpc_finish(struct grpc_call *call, int status, const char *why);
/** Answers with another HTTP status and a text. */
void grpc_refuse(struct grpc_call *call, int http_status, int status, const char *text);
void grpc_reset(struct grpc_call *call, uint32_t error);

/** Sends what waits to be sent; after any of the above that was not called from inside `message`. */
void grpc_flush(struct grpc_conn *c);
void grpc_close(struct grpc_conn *c);
/** Goodbye as a server says it that shuts down: GOAWAY, RST of the streams, close. */
void grpc_leave(struct grpc_conn *c);
void grpc_goaway(struct grpc_conn *c);
/** Neither reads nor writes any more, or does again. */
void grpc_freeze(struct grpc_conn *c, bool on);

/** Closes the port for new connections, or opens it again. */
void grpc_close_port(struct grpc *g);
bool grpc_open_port(struct grpc *g);

#endif
