/** dialect: which protocol a client speaks with which server, why, and when that changes.
 *
 *  With the option "auto" a client tries the gRPC port of its servers first; where that does not answer, the server's version (or
 * the lack of an answer to that question) tells whether v1 or v3 is spoken over HTTP. While HTTP is spoken, gRPC is tried again now
 * and then. A server that answers a call which all of its dialect have with "gone" is asked in the other words. "grpc" asks for no
 * version before the connection is there and never goes over to HTTP; "v1" and "v3" find nothing out.
 *
 *  A change of the way is a change of *mechanisms*: watches go to another detector, instances are registered anew, services are
 * asked for anew. dialect tells those rooms; they do the rest.
 *
 *  What is found out is found out by *tries*, one at a time: after a pause, a connection to the gRPC port of one server (unless a
 * proxy stands before it) and, at the same time, the question for its version over HTTP. A try is in vain when both have ended
 * without a connection. A round is a try of every server. Anything that the option "auto" does is in one line of this table:
 *
 *     phase     under way     requests         connection up   a try is in vain, and HTTP answered     a round is in vain
 *     FIXED     nothing       HTTP             -               -                                       -
 *     STARTING  a try         wait             LINKED          HTTP                                    HTTP, in the words of v1
 *     LINKED    connection    gRPC             -               -                                       -
 *     LOST      a try         wait             LINKED          HTTP, when it has answered for 3 s      those that wait fail
 *     HTTP      timer         HTTP             -               -                                       -
 *     LOOKING   a try         HTTP             LINKED          next server                             HTTP
 *
 *     STARTING, HTTP has answered and the gRPC port accepts, but says nothing for a second -> the connection could not be made
 *     LINKED and the connection ends, or is wanted elsewhere -> LOST, with another server of the list first
 *     LINKED and the server lacks a message that all should have -> STARTING, where it is not tried by gRPC any more
 *     HTTP and the timer fires -> LOOKING
 *
 *  In each phase but FIXED something is under way that ends by itself (a connection, a question, a timer): every entry point
 * asserts it as it leaves. */
#ifndef LUNACOS_DIALECT_H
#define LUNACOS_DIALECT_H

#include "engine/protocol.h"
#include "engine/server.h"
#include "engine/timer.h"

struct nacos_client;
struct request;

enum dialect_option { DIALECT_AUTO, DIALECT_GRPC, DIALECT_V3, DIALECT_V1 };

enum dialect_phase { DIALECT_FIXED, DIALECT_STARTING, DIALECT_LINKED, DIALECT_LOST, DIALECT_HTTP, DIALECT_LOOKING };

struct dialect {
    struct nacos_client *client;
    enum dialect_option option;
    int port_offset;
    const struct protocol *now; /* what the mechanisms (detector, beats, follow) use; NULL: not known yet */
    char why[300];              /* a sentence for people */

    /* the rest is the room's own business */
    enum dialect_phase phase;
    struct timer timer; /* LINKED: the next question for an unknown version; HTTP: the next look; else: the pause before a try, or,
                           STARTING, the time that calls wait for the connection */
    struct timer follow_timer; /* the mechanisms follow what is spoken over HTTP */
    int64_t follow_due;        /* not earlier */
    int looks;                 /* for gRPC, in vain; or questions for the version */
    bool outage;               /* over HTTP: servers fail */
    int64_t up_at;             /* the connection was last made; 0: never */

    /* the try, or the connection that came of it */
    char origin[128];      /* the server */
    char redirect[128];    /* the connection is to be made to this one instead; empty: no */
    bool linking;          /* the connection is being made */
    char link_why[300];    /* how the last one ended, or why there is none */
    struct request *probe; /* the question for the version */
    bool old;              /* asked in the words of v1 */
    bool answered;         /* over HTTP */
    int64_t failed_at;     /* the last try was in vain */
    int64_t phase_at;      /* this phase began */
    int failures;          /* of them or of short-lived connections, in a row; they make the pause */

    /* the round */
    uint32_t tried; /* in the list of `generation` */
    unsigned generation;
    bool heard;        /* a server answered over HTTP */
    bool round_failed; /* LOST: one was in vain */
    int64_t http_at;   /* LOST: HTTP has been answering since; 0: it does not */

    int waiter_count, waiter_cap;
    struct request **waiters;
};

enum dialect_state { DIALECT_READY, DIALECT_WAIT, DIALECT_FAILED };

void dialect_init(struct dialect *d, struct nacos_client *c, enum dialect_option option, int port_offset);
/** On the loop: there are servers, or others than before. */
void dialect_start(struct dialect *d);
/** For a request that has not asked the servers in `tried`: which one next (an index into client->servers; FAILED: none is left)
 * and in which words. WAIT: dialect_join(), request_dialect_known() follows. err->code OK: there is nothing to say, else its
 * message is the reason. `by_http`: its words were for HTTP, whatever the dialect: any server will do. */
enum dialect_state dialect_pick(struct dialect *d, uint32_t tried, bool by_http, int *server, const struct protocol **p,
                                nacos_error *err);
/** Where this server's gRPC is: "10.0.0.1:9848". */
void dialect_address(const struct dialect *d, const char *origin, char out[140]);
void dialect_join(struct dialect *d, struct request *r);
void dialect_leave(struct dialect *d, struct request *r);
/** A server says that it does not offer `p` at all. True: the request may ask the same server again, in other words. */
bool dialect_gone(struct dialect *d, const char *origin, const struct protocol *p);

/* For link. */
void dialect_link_up(struct dialect *d);
/** `was`: it had been up. `why`: a sentence. */
void dialect_link_down(struct dialect *d, bool was, const char *why);
/** The server asked for a connection to this one; empty: to any other. */
void dialect_link_reset(struct dialect *d, const char *origin);

void dialect_shut(struct dialect *d);

#endif
