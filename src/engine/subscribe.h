/** subscribe: the followed services: their newest lists, and when to ask for the next.
 *
 *  Every subscription asks for its list at its interval; that is the safety net, and it keeps the server's mind about pushes. A
 * push between two answers is taken if it is newer (lastRefTime). Lists that lack too much are held, see nacos_follow. */
#ifndef LUNACOS_SUBSCRIBE_H
#define LUNACOS_SUBSCRIBE_H

#include "engine/engine.h"
#include "engine/protocol.h"

struct nacos_client;

struct nacos_subscription {
    struct nacos_client *client;
    struct nacos_subscription *prev, *next;
    struct key key; /* its strings are the subscription's */
    char *clusters;
    struct event event; /* the slot. Guarded by engine->lock; only the loop changes its lists and counts */
    bool gone;          /* unfollowed: nothing is delivered any more. Guarded likewise */

    /* the loop's */
    int64_t interval, hold_ms;
    double max_drop;
    struct timer timer; /* the next question */
    struct request *request;
    int64_t asked;            /* when the last question was put */
    int64_t cache_ms;         /* as the server said; 0: not yet */
    int64_t ref_time;         /* of the list taken last; 0: none */
    bool again;               /* once more when the question under way is answered */
    bool older;               /* the last answer was older than that, and was not taken */
    struct push_address push; /* that the last question named */
    bool pushable;            /* there was one */
    int failures;             /* questions in a row without an answer */
    int64_t hold_until;       /* 0: nothing is held */
    nacos_code trouble;       /* the last one told */
    bool told;                /* a TROUBLE event was ever sent */
};

/** A server pushed this list. `trusted`: the sender may be believed. False: it is of no use, `why` says so. */
bool subscribe_pushed(struct nacos_client *c, struct hosts *h, bool trusted, nacos_via via, const char **why);
/** Another dialect is in use, or another connection: all ask anew. */
void subscribe_renew(struct nacos_client *c);
/** On the loop: frees all subscriptions of the client. */
void subscribe_shut(struct nacos_client *c);

#endif
