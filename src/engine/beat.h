/** beat: the instances registered here, and their heartbeats.
 *
 *  Each instance has a *registration* with a due time. Due ones stand in one queue per client, of which a few are sent at a time;
 * so all share a few connections. Due times lie on a grid of a tenth of a second (few wake-ups), and those of one client are spread
 * over the interval. When no server answers, the queue stops but for one probe at a time; its success lets the others go.
 *
 *  A beat ends in one of: known (the next is due an interval later), unknown (the instance is registered again, then beats go on),
 * failed (again soon). Nothing but beat_stop(), beats_leave() and beats_shut() ends a registration.
 *
 *  Where instances live by the connection there are no beats: a registration rests until beats_renew() makes it *stale*, which is
 * the word for "a server has to be told of it, as if for the first time".
 *
 *  Two more things may be left to do for one. *retire*: it is registered over a stream now, but also still over HTTP; set when
 * beats end for it, cleared by the deregistration that on_registered() lets follow (or when beats come back). *ending*: the host
 * has taken it away where it lives by the connection, and that did not reach a server: it is tried again, until a server is told,
 * the connection ends, or the host registers it again.
 *
 *  Where a connection publishes all instances of a service at once, whoever words that publication holds the *turn* of the service.
 * A registration that waits for the turn counts as in flight. */
#ifndef LUNACOS_BEAT_H
#define LUNACOS_BEAT_H

#include "engine/hosts.h"
#include "engine/protocol.h"
#include "engine/request.h"
#include "engine/timer.h"
#include "engine/turn.h"

#define PLACE_BYTES 1200

struct nacos_client;
struct registration;

struct beats {
    struct nacos_client *client;
    struct registration *table;              /* by service, group, namespace, ip and port */
    struct registration *services;           /* the first one of each service */
    struct turn *turns;                      /* of this room and of naming */
    struct registration *queue, **queue_end; /* due, oldest first */
    int in_flight;
    unsigned born; /* counts registrations, to spread them */
    int failures;  /* in a row, of all */
    bool stopped;  /* no server answered: one probe at a time */
    int others;    /* registrations and deregistrations of the host under way */
    struct timer probe;
    void (*left)(struct nacos_client *c); /* leaving: when nothing is left */
};

void beats_init(struct beats *b, struct nacos_client *c);
/** A server took this ephemeral instance: keep it alive. Takes a reference of the list of one. Replaces one with the same place.
 * `by`: the dialect in which it was told. False: out of memory. */
bool beat_start(struct beats *b, const struct key *service, struct hosts *instance, int64_t interval_ms, const struct protocol *by);
/** The instance as it is registered here (a list of one, not owned), or NULL. */
const struct hosts *beat_instance(struct beats *b, const struct key *service, const char *ip, int port);
/** A server took a modification: later beats say it. Nothing happens when it is not registered here. */
void beat_change(struct beats *b, const struct key *service, struct hosts *instance);
/** Ends the beats of this place. `idle` is called once none is on its way any more, perhaps at once: what is sent then comes last.
 */
void beat_stop(struct beats *b, const struct key *service, const char *ip, int port, void (*idle)(void *arg), void *arg);
/** Words a registration or deregistration of these `count` instances; where a connection publishes all instances of a service at
 * once, with the others that are kept here: then the turn of the service has to be held. Elsewhere there can be but one.
 * q->left_out is of those registered; the first of them is never left out. */
bool beat_word(struct beats *b, const struct protocol *p, struct question *q, bool deregister, const struct key *service,
               const nacos_instance *const *list, size_t count, nacos_error *err);
/** Why an instance cannot be registered (`i` NULL: or anything about the service said). */
void beat_too_large(const struct key *service, const nacos_instance *i, const char *verb, nacos_error *err);
/** What a server was told of this place may be wrong: it is registered anew, if it is registered here. */
void beat_again(struct beats *b, const struct key *service, const nacos_instance *i);
/** The deregistration of this one (a list of one) failed. Where it does not expire by itself that is tried again. */
void beat_end_later(struct beats *b, const struct key *service, struct hosts *instance);
/** Takes the turn of this place, or (`i` NULL) of the service. `name`: the memory that turns need. */
void beat_turn(struct beats *b, struct turn *t, char name[PLACE_BYTES], const struct key *service, const nacos_instance *i,
               void (*go)(void *arg), void *arg);
/** Who has the turn of this service, see turn_holder(). */
struct turn *beat_turn_holder(struct beats *b, const struct key *service);
/** Another dialect is in use than `before`, or (NULL) another connection: all are registered anew. */
void beats_renew(struct beats *b, const struct protocol *before);
/** A registration or deregistration of the host has begun (1), or ended (-1): leaving waits for it. */
void beats_other(struct beats *b, int change);
/** Is there anything to deregister, or a beat on its way? */
bool beats_any(const struct beats *b);
/** Deregisters all and calls `left`, perhaps at once. */
void beats_leave(struct beats *b, void (*left)(struct nacos_client *c));
/** Ends all without a word to the servers. */
void beats_shut(struct beats *b);

#endif
