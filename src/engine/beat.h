/** beat: the instances registered here, and their heartbeats.
 *
 *  Each instance has a *registration* with a due time. Due ones stand in one queue per client, of which a few are sent at a time;
 * so all share a few connections. Due times lie on a grid of a tenth of a second (few wake-ups), and those of one client are spread
 * over the interval. When no server answers, the queue stops but for one probe at a time; its success lets the others go.
 *
 *  A beat ends in one of: known (the next is due an interval later), unknown (the instance is registered again, then beats go on),
 * failed (again soon). Nothing but beat_stop(), beats_leave() and beats_shut() ends a registration. */
#ifndef LUNACOS_BEAT_H
#define LUNACOS_BEAT_H

#include "engine/hosts.h"
#include "engine/protocol.h"
#include "engine/timer.h"

struct nacos_client;
struct registration;

struct beats {
    struct nacos_client *client;
    struct registration *table;              /* by service, group, namespace, ip and port */
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
 * False: out of memory. */
bool beat_start(struct beats *b, const struct key *service, struct hosts *instance, int64_t interval_ms);
/** The instance as it is registered here (a list of one, not owned), or NULL. */
const struct hosts *beat_instance(struct beats *b, const struct key *service, const char *ip, int port);
/** A server took a modification: later beats say it. Nothing happens when it is not registered here. */
void beat_change(struct beats *b, const struct key *service, struct hosts *instance);
/** Ends the beats of this place. `idle` is called once none is on its way any more, perhaps at once: what is sent then comes last.
 */
void beat_stop(struct beats *b, const struct key *service, const char *ip, int port, void (*idle)(void *arg), void *arg);
/** A registration or deregistration of the host has begun (1), or ended (-1): leaving waits for it. */
void beats_other(struct beats *b, int change);
/** Is there anything to deregister, or a beat on its way? */
bool beats_any(const struct beats *b);
/** Deregisters all and calls `left`, perhaps at once. */
void beats_leave(struct beats *b, void (*left)(struct nacos_client *c));
/** Ends all without a word to the servers. */
void beats_shut(struct beats *b);

#endif
