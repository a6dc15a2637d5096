/** registry: services and their instances, in memory: who is registered, who is healthy, who wants to hear of changes.
 *
 *  A roster is one service (`struct service` is the server itself). As in a real 2.x server it has two sides: what was registered,
 * and the view that lists, pushes and reads of one instance are made of. The view follows `push delay` after a change; it is made
 * at once only for the first look at a roster.
 *
 *  An instance is registered by beats, by connections, or both; it is gone when it has neither.
 *
 *  Nothing here costs in proportion to the number of instances, but for making a list. */
#ifndef LUNACOS_EMBEDDED_REGISTRY_H
#define LUNACOS_EMBEDDED_REGISTRY_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uthash.h>

#include "embedded/pusher.h"
#include "engine/buf.h"
#include "engine/timer.h"

struct roster;

/** What readers see of an instance. */
struct view {
    double weight;
    bool healthy, enabled;
    char *cluster;
    json_t *metadata;
    char *rest; /* the JSON object without its `healthy` member, which depends on who asks */
};

struct instance {
    UT_hash_handle hh;
    struct roster *roster;
    struct instance *next_dirty;
    bool registered;  /* false: only the view is left, until it is renewed */
    bool beats;       /* it was registered without a connection: it lives by its beats, or for ever if the roster is persistent */
    unsigned holders; /* connections that it lives by */
    bool dirty;       /* the view is old */
    double weight;
    bool healthy, enabled;
    char *cluster;
    json_t *metadata;                /* object of strings */
    int64_t interval, limit, expiry; /* ms: between beats, until it is unhealthy, until it is removed */
    int64_t beat_at;
    struct timer check;
    struct view view; /* cluster NULL: none yet */
    int port;
    char *ip;
    char key[]; /* ip:port */
};

/** What a modification said of an instance: it covers what registrations say, for a minute also after the instance is gone. */
struct patch {
    UT_hash_handle hh;
    double weight;
    bool enabled;
    json_t *metadata; /* laid over the instance's own */
    int64_t orphaned; /* when it was first seen to have no instance; 0: it has one */
    char key[];       /* ip:port:cluster */
};

struct subscriber {
    UT_hash_handle hh;
    struct sockaddr_storage address;
    bool fresh; /* has had no push yet */
    int port;
    int64_t asked_at;
    char *ip, *agent, *app, *clusters;
    char key[]; /* ip:port */
};

struct session;

/** A wish for pushes over a connection, as long as that lasts. One per connection and roster. */
struct follower {
    UT_hash_handle hh; /* among those of its session */
    struct session *session;
    struct roster *roster;
    struct follower *before, *after; /* the others of the roster */
    bool fresh;                      /* has had no push yet */
    char *clusters;
};

/** What one connection has registered in one service. One per connection and roster. */
struct publication {
    UT_hash_handle hh; /* among those of its session */
    struct roster *roster;
    size_t count;
    struct instance **instances;
};

struct roster {
    UT_hash_handle hh;
    struct registry *registry;
    bool ephemeral; /* its instances live by their beats; a roster holds one kind only */
    bool open;      /* somebody follows it, but it is no service yet and may become one of either kind */
    bool viewed;    /* there is a view */
    bool changed;   /* since the last push */
    double threshold;
    json_t *metadata; /* object of strings */
    struct instance *instances, *dirty;
    size_t registered;
    struct patch *patches;
    struct subscriber *subscribers;
    struct follower *followers;
    size_t publications;
    struct timer push;
    int64_t empty_since; /* 0: it is not empty */
    size_t key_len;
    const char *name;  /* group@@service */
    const char *plain; /* service */
    size_t group_len;
    char namespace[]; /* key: namespace NUL name */
};

struct registry {
    struct roster *rosters;
    struct timers *timers;
    struct timer sweep;
    struct pusher *pusher;
    int64_t push_delay, lease; /* ms; a lease is how long a subscription lasts */
    int64_t last_ref;
    size_t registered, persistent; /* instances of all rosters, and those of them that are persistent */
    uint64_t beats;
    void (*push)(struct follower *f); /* over its connection */
};

void registry_init(struct registry *g, struct timers *timers, struct pusher *pusher, double push_delay, double lease);
void registry_free(struct registry *g);
/** Ephemeral services and all subscribers are gone, without a word to anybody: a 2.x server after its restart. */
void registry_forget(struct registry *g);

/** The service or NULL. `name` is grouped. */
struct roster *registry_find(struct registry *g, const char *namespace, const char *name);
/** The same for somebody who wants to follow it, also when it is no service yet; NULL: out of memory. */
struct roster *registry_followed(struct registry *g, const char *namespace, const char *name);
/** Finds or makes it; NULL: out of memory. */
struct roster *registry_roster(struct registry *g, const char *namespace, const char *name, bool ephemeral);
/** Where somebody follows or publishes over a connection an empty one is left. */
void roster_remove(struct roster *o);

/** What is registered at this address, or NULL. */
struct instance *roster_find(struct roster *o, const char *ip, int port);
/** What readers see at this address, or NULL. */
struct instance *roster_seen(struct roster *o, const char *ip, int port);
/** Do readers see any instance? */
bool roster_any_seen(const struct roster *o);

struct registration {
    const char *ip, *cluster;
    int port;
    double weight;
    bool healthy, enabled;
    json_t *metadata; /* borrowed */
};

/** Registers, in place of what was registered at this address. False: out of memory. */
bool roster_register(struct roster *o, const struct registration *r);
/** The opposite of roster_register(); connections may still hold it. */
void instance_remove(struct instance *i);
/** Registers all these in place of what `p` held. False: out of memory, some may be missing. */
bool publication_set(struct publication *p, const struct registration *r, size_t count);
void instance_beat(struct instance *i);
/** The patch at this address; NULL when there is none and `make` is false, or memory ran out. */
struct patch *roster_patch(struct roster *o, const char *ip, int port, const char *cluster, bool make);
/** After a patch has changed. */
void instance_changed(struct instance *i);

/** Times of the metadata, in ms: a preserved value if it is a number. */
int64_t preserved_ms(const json_t *metadata, const char *name, int64_t otherwise);
#define BEAT_INTERVAL "preserved.heart.beat.interval"
#define BEAT_TIMEOUT "preserved.heart.beat.timeout"
#define DELETE_TIMEOUT "preserved.ip.delete.timeout"

/** Brings the view up to date if there is none yet. */
void roster_look(struct roster *o);
/** Appends the list as JSON. `clusters`: comma between, "" for all. `o` NULL: the service is unknown. */
void registry_list(struct registry *g, struct roster *o, const char *name, const char *clusters, bool healthy_only,
                   struct buf *out);

/** The same as gRPC has it. */
void registry_info(struct registry *g, struct roster *o, const char *name, const char *clusters, bool healthy_only,
                   struct buf *out);

/** Starts or ends pushes to `f`, whose roster is set; the first comes soon. */
void follower_link(struct follower *f);
void follower_unlink(struct follower *f);

/** Notes the wish for pushes, or renews it. */
void roster_subscribe(struct roster *o, const char *ip, int port, const char *agent, const char *app, const char *clusters);
/** Living ones of all services. */
size_t registry_subscribers(const struct registry *g);
bool subscriber_alive(const struct registry *g, const struct subscriber *s);

#endif
