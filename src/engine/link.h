/** link: the gRPC connection of a client to one server: set-up, health, pushes, calls.
 *
 *  OFF -> CONNECTING -> SETTING_UP -> READY -> OFF. It is READY when the server has answered a health check: a port where a stream
 * stands, but no call gets an answer of Nacos, is not one of Nacos. A connection is the identity of a client at the server: its
 * instances and subscriptions live as long as it. So every end of it (the bi-stream's, too) is told to `dialect`, which opens the
 * next one, to the same or another server, and has the other rooms ask and register anew what they want.
 *
 *  While it is READY a HealthCheckRequest goes out whenever nothing was answered for 5 s (servers drop who is silent for 20 s); one
 * without an answer in 3 s, or an answer other than 200, ends the connection. Every push is acknowledged.
 *
 *  At most LINK_CALLS are at the server at a time; later ones wait in order, within their time. When the server says that it goes
 * away they wait for the end of the connection, which is near, and end as never sent. */
#ifndef LUNACOS_LINK_H
#define LUNACOS_LINK_H

#include "engine/envelope.h"
#include "engine/h2.h"
#include "engine/http.h"
#include "engine/timer.h"

#define LINK_CALLS 64

struct nacos_client;
struct link_call;

enum link_state { LINK_OFF, LINK_CONNECTING, LINK_SETTING_UP, LINK_READY };

struct link_calls {
    struct link_call *first, *last;
};

struct link {
    struct nacos_client *client;
    enum link_state state;
    char origin[128];   /* the server it is for: that of the HTTP API; the port is that plus the option's offset */
    char redirect[128]; /* connect here instead, once: the server said so and it is not one of the list; empty: no */
    struct h2_tls *tls; /* NULL: its files are read with the next connection */
    int64_t tls_read_at;
    struct h2 *h2;
    struct h2_call *stream;
    struct timer timer;
    int64_t began, answered; /* monotonic: the set-up, or being READY; the last answer */
    double alive;            /* unix time of the last answer */
    struct link_call *health;
    bool refused;                     /* the last one could not be made, as nothing listened */
    struct link_calls waiting, calls; /* for their turn; at the server, or about to end */
    int running;                      /* of them, at the server */
    int disowned;                     /* answers that know no such connection, of one that health checks call good */
};

void link_init(struct link *l, struct nacos_client *c);
/** Connects to this server, whatever it was doing before. dialect_link_up() or dialect_link_down() follows, never from inside. */
void link_open(struct link *l, const char *origin);
/** Ends the connection, and stays OFF. */
void link_close(struct link *l);
/** The server has said something on this connection. */
bool link_answered(const struct link *l);
/** Asks whether it lives, now: something was not answered. */
void link_check(struct link *l);

/** A message of this type there and its answer back, as http_start() does it: `r->outcome` says whether one came, `r->body` is its
 * JSON, `r->status` 200, `r->rpc_type` its type. Without the connection (any more): HTTP_NO_CONNECT. NULL: out of memory. */
struct link_call *link_call(struct link *l, const char *type, const char *json, size_t len, const struct envelope_header *headers,
                            int header_count, int64_t timeout_ms, http_done done, void *arg);
void link_cancel(struct link_call *call); /* NULL is fine */

#endif
