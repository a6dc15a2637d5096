/** registry: see registry.h. */
#include "embedded/registry.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

enum {
    KEY = 640,      /* bytes of an ip:port */
    NAME = 4608,    /* bytes of a namespace and a grouped name */
    CHECK = 5000,   /* ms between looks at one instance's beats */
    SWEEP = 5000,   /* ms between looks for what nobody needs any more */
    ORPHAN = 60000, /* ms that a patch survives its instance */
    EMPTY = 60000   /* ms that an empty service lasts */
};

static int64_t wall_ms(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000;
}

/* ---- patches ---- */

static void patch_free(struct roster *o, struct patch *p)
{
    HASH_DEL(o->patches, p);
    json_decref(p->metadata);
    free(p);
}

struct patch *roster_patch(struct roster *o, const char *ip, int port, const char *cluster, bool make)
{
    size_t size = strlen(ip) + strlen(cluster) + 16;
    struct patch *p = calloc(1, sizeof *p + size), *found = NULL;
    if (!p)
        return NULL;
    snprintf(p->key, size, "%s:%d:%s", ip, port, cluster);
    HASH_FIND_STR(o->patches, p->key, found);
    if (!found && make && (p->metadata = json_object())) {
        HASH_ADD_STR(o->patches, key, p);
        return p;
    }
    free(p);
    return found;
}

static struct patch *patch_of(const struct instance *i)
{
    return i->roster->patches ? roster_patch(i->roster, i->ip, i->port, i->cluster, false) : NULL;
}

/* ---- views ---- */

static void view_clear(struct view *v)
{
    free(v->cluster);
    free(v->rest);
    json_decref(v->metadata);
    *v = (struct view){0};
}

static json_t *weight_json(double weight)
{
    return isfinite(weight) ? json_real(weight) : json_string(isnan(weight) ? "NaN" : "Infinity"); /* as Jackson writes them */
}

/** What a list says of the instance, but for `healthy`. */
static char *view_text(const struct instance *i, const struct view *v, bool patched)
{
    const char *name = i->roster->name;
    size_t size = strlen(i->ip) + strlen(v->cluster) + strlen(name) + 24;
    char *id = malloc(size);
    if (!id)
        return NULL;
    snprintf(id, size, "%s#%d#%s#%s", i->ip, i->port, v->cluster, name);
    json_t *o = json_pack("{s:s, s:s, s:i, s:o, s:b, s:b, s:s, s:s, s:O, s:I, s:I, s:I}", "instanceId", id, "ip", i->ip, "port",
                          i->port, "weight", weight_json(v->weight), "enabled", v->enabled, "ephemeral", i->roster->ephemeral,
                          "clusterName", v->cluster, "serviceName", name, "metadata", v->metadata, "instanceHeartBeatInterval",
                          (json_int_t)preserved_ms(v->metadata, BEAT_INTERVAL, 5000), "instanceHeartBeatTimeOut",
                          (json_int_t)preserved_ms(v->metadata, BEAT_TIMEOUT, 15000), "ipDeleteTimeout",
                          (json_int_t)preserved_ms(v->metadata, DELETE_TIMEOUT, 30000));
    if (o && !patched)
        json_object_set_new(o, "instanceIdGenerator", json_string("simple"));
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    json_decref(o);
    free(id);
    return text;
}

/** Makes the view anew. Where memory runs out, the instance is not seen. */
static void view_renew(struct instance *i)
{
    struct view *v = &i->view;
    const struct patch *p = patch_of(i);
    view_clear(v);
    *v = (struct view){.weight = p ? p->weight : i->weight,
                       .healthy = i->healthy,
                       .enabled = p ? p->enabled : i->enabled,
                       .cluster = strdup(i->cluster),
                       .metadata = p ? json_copy(i->metadata) : json_incref(i->metadata)};
    if (p && v->metadata)
        json_object_update(v->metadata, p->metadata);
    v->rest = v->cluster && v->metadata ? view_text(i, v, p != NULL) : NULL;
    if (!v->rest)
        view_clear(v);
}

static void instance_free(struct instance *i)
{
    struct roster *o = i->roster;
    HASH_DEL(o->instances, i);
    timer_clear(o->registry->timers, &i->check);
    view_clear(&i->view);
    free(i->cluster);
    free(i->ip);
    json_decref(i->metadata);
    free(i);
}

static void roster_renew(struct roster *o)
{
    for (struct instance *i; (i = o->dirty);) {
        o->dirty = i->next_dirty;
        i->dirty = false;
        if (i->registered)
            view_renew(i);
        else
            instance_free(i);
    }
    o->viewed = true;
}

void roster_look(struct roster *o)
{
    if (!o->viewed || o->registry->push_delay == 0)
        roster_renew(o);
}

/* ---- lists ---- */

/** Is the cluster one of those in the list? */
static bool in_clusters(const char *cluster, const char *clusters)
{
    bool any = false;
    for (const char *at = clusters; *at;) {
        size_t n = strcspn(at, ",");
        if (n == strlen(cluster) && strncmp(at, cluster, n) == 0)
            return true;
        any |= n > 0;
        at += n + (at[n] == ',');
    }
    return !any;
}

static bool selected(const struct instance *i, const char *clusters)
{
    return i->view.rest && i->view.enabled && in_clusters(i->view.cluster, clusters);
}

/** So few are healthy that all are given out as healthy, lest the last ones drown. */
static bool protecting(const struct roster *o, const char *clusters)
{
    size_t all = 0, healthy = 0;
    if (!(o->threshold > 0))
        return false;
    for (const struct instance *i = o->instances; i; i = i->hh.next)
        if (selected(i, clusters)) {
            all++;
            healthy += i->view.healthy;
        }
    return all > 0 && (double)healthy / (double)all <= o->threshold;
}

/** A list with its head, a JSON object (whose reference it takes). */
static void append_list(struct roster *o, json_t *head, const char *clusters, bool healthy_only, bool protect, struct buf *out)
{
    char *text = head ? json_dumps(head, JSON_COMPACT) : NULL;
    json_decref(head);
    if (!text) {
        out->failed = true;
        return;
    }
    buf_append(out, text, strlen(text) - 1); /* the hosts go before its last brace */
    free(text);
    buf_puts(out, ",\"hosts\":[");
    bool first = true;
    for (const struct instance *i = o ? o->instances : NULL; i; i = i->hh.next) {
        if (!selected(i, clusters) || (healthy_only && !i->view.healthy))
            continue;
        if (!first)
            buf_puts(out, ",");
        first = false;
        buf_puts(out, i->view.healthy || protect ? "{\"healthy\":true," : "{\"healthy\":false,");
        buf_puts(out, i->view.rest + 1);
    }
    buf_puts(out, "]}");
}

/** Of two lists one is newer. */
static json_int_t next_ref(struct registry *g)
{
    int64_t now = wall_ms();
    return g->last_ref = now > g->last_ref ? now : g->last_ref + 1;
}

void registry_list(struct registry *g, struct roster *o, const char *name, const char *clusters, bool healthy_only, struct buf *out)
{
    bool protect = o && !healthy_only && protecting(o, clusters);
    const char *at = strstr(name, "@@");
    json_t *head = json_pack("{s:s, s:s%, s:s, s:i, s:I, s:s, s:b, s:b, s:b}", "name", name, "groupName", name,
                             at ? (int)(at - name) : 0, "clusters", clusters, "cacheMillis", 10000, "lastRefTime", next_ref(g),
                             "checksum", "", "allIPs", 0, "reachProtectionThreshold", protect, "valid", 1);
    append_list(o, head, clusters, healthy_only, protect, out);
}

void registry_info(struct registry *g, struct roster *o, const char *name, const char *clusters, bool healthy_only, struct buf *out)
{
    bool protect = o && !healthy_only && protecting(o, clusters);
    const char *at = strstr(name, "@@");
    json_t *head = json_pack("{s:s, s:s%, s:s, s:i, s:I, s:s, s:b, s:b, s:b}", "name", at ? at + 2 : name, "groupName", name,
                             at ? (int)(at - name) : 0, "clusters", clusters, "cacheMillis", 10000, "lastRefTime", next_ref(g),
                             "checksum", "", "allIps", 0, "reachProtectionThreshold", protect, "valid", 1);
    append_list(o, head, clusters, healthy_only, protect, out);
}

/* ---- subscribers and pushes ---- */

bool subscriber_alive(const struct registry *g, const struct subscriber *s)
{
    return now_ms() - s->asked_at <= g->lease;
}

size_t registry_subscribers(const struct registry *g)
{
    size_t count = 0;
    for (const struct roster *o = g->rosters; o; o = o->hh.next)
        for (const struct subscriber *s = o->subscribers; s; s = s->hh.next)
            count += subscriber_alive(g, s);
    return count;
}

static void subscriber_free(struct roster *o, struct subscriber *s)
{
    HASH_DEL(o->subscribers, s);
    free(s->ip);
    free(s->agent);
    free(s->app);
    free(s->clusters);
    free(s);
}

static void push_to(struct roster *o, struct subscriber *s)
{
    struct buf list;
    buf_init(&list, 64 << 20);
    registry_list(o->registry, o, o->name, s->clusters, false, &list);
    if (!list.failed)
        pusher_send(o->registry->pusher, (struct sockaddr *)&s->address, list.data, list.len);
    buf_free(&list);
    s->fresh = false;
}

/** The push delay is over: the view follows, and subscribers hear of it; new ones also without a change. */
static void on_push(void *arg)
{
    struct roster *o = arg;
    struct subscriber *s, *next;
    bool changed = o->changed;
    o->changed = false;
    roster_renew(o);
    HASH_ITER (hh, o->subscribers, s, next) {
        if (!subscriber_alive(o->registry, s))
            subscriber_free(o, s);
        else if (changed || s->fresh)
            push_to(o, s);
    }
    for (struct follower *f = o->followers, *after; f; f = after) {
        after = f->after;
        if (changed || f->fresh) {
            f->fresh = false;
            o->registry->push(f);
        }
    }
}

static void push_soon(struct roster *o)
{
    if (!o->push.slot)
        timer_set(o->registry->timers, &o->push, o->registry->push_delay, on_push, o);
}

void instance_changed(struct instance *i)
{
    struct roster *o = i->roster;
    if (!i->dirty) {
        i->dirty = true;
        i->next_dirty = o->dirty;
        o->dirty = i;
    }
    o->changed = true;
    push_soon(o);
}

void follower_link(struct follower *f)
{
    struct roster *o = f->roster;
    f->fresh = true;
    f->after = o->followers;
    if (o->followers)
        o->followers->before = f;
    o->followers = f;
    push_soon(o);
}

void follower_unlink(struct follower *f)
{
    if (f->before)
        f->before->after = f->after;
    else
        f->roster->followers = f->after;
    if (f->after)
        f->after->before = f->before;
    f->before = f->after = NULL;
}

static bool parse_address(const char *ip, int port, struct sockaddr_storage *out)
{
    return uv_ip4_addr(ip, port, (struct sockaddr_in *)out) == 0 || uv_ip6_addr(ip, port, (struct sockaddr_in6 *)out) == 0;
}

static bool replace(char **text, const char *with)
{
    char *copy = strdup(with);
    if (copy) {
        free(*text);
        *text = copy;
    }
    return copy != NULL;
}

void roster_subscribe(struct roster *o, const char *ip, int port, const char *agent, const char *app, const char *clusters)
{
    struct sockaddr_storage address = {0};
    if (!parse_address(ip, port, &address))
        return;
    size_t size = strlen(ip) + 16;
    struct subscriber *s = calloc(1, sizeof *s + size), *found;
    if (!s)
        return;
    snprintf(s->key, size, "%s:%d", ip, port);
    HASH_FIND_STR(o->subscribers, s->key, found);
    if (found && subscriber_alive(o->registry, found)) {
        free(s);
        s = found;
    } else {
        if (found)
            subscriber_free(o, found);
        s->fresh = true;
        s->port = port;
        s->address = address;
        HASH_ADD_STR(o->subscribers, key, s);
        push_soon(o);
    }
    s->asked_at = now_ms();
    if (!replace(&s->ip, ip) || !replace(&s->agent, agent) || !replace(&s->app, app) || !replace(&s->clusters, clusters))
        subscriber_free(o, s);
}

/* ---- instances ---- */

/** Registered or just seen. */
static struct instance *find_any(struct roster *o, const char *ip, int port)
{
    char key[KEY];
    struct instance *i = NULL;
    if (snprintf(key, sizeof key, "%s:%d", ip, port) < (int)sizeof key)
        HASH_FIND_STR(o->instances, key, i);
    return i;
}

struct instance *roster_find(struct roster *o, const char *ip, int port)
{
    struct instance *i = find_any(o, ip, port);
    return i && i->registered ? i : NULL;
}

struct instance *roster_seen(struct roster *o, const char *ip, int port)
{
    struct instance *i = find_any(o, ip, port);
    return i && i->view.rest ? i : NULL;
}

bool roster_any_seen(const struct roster *o)
{
    for (const struct instance *i = o->instances; i; i = i->hh.next)
        if (i->view.rest)
            return true;
    return false;
}

int64_t preserved_ms(const json_t *metadata, const char *name, int64_t otherwise)
{
    const char *text = json_string_value(json_object_get(metadata, name));
    size_t len = text ? strspn(text, "0123456789") : 0;
    return len > 0 && len < 15 && !text[len] ? strtoll(text, NULL, 10) : otherwise;
}

static void on_check(void *arg)
{
    struct instance *i = arg;
    int64_t silence = now_ms() - i->beat_at;
    if (silence >= i->expiry) {
        instance_remove(i);
        return;
    }
    if (i->healthy && silence >= i->limit && !i->holders) {
        i->healthy = false;
        instance_changed(i);
    }
    timer_set(i->roster->registry->timers, &i->check, CHECK, on_check, i);
}

static struct instance *instance_new(struct roster *o, const char *ip, int port)
{
    size_t size = strlen(ip) + 16;
    struct instance *i = calloc(1, sizeof *i + size);
    if (!i)
        return NULL;
    i->roster = o;
    i->port = port;
    i->ip = strdup(ip);
    if (!i->ip) {
        free(i);
        return NULL;
    }
    snprintf(i->key, size, "%s:%d", ip, port);
    HASH_ADD_STR(o->instances, key, i);
    return i;
}

/** The instance is as `r` says from now on. NULL: out of memory. */
static struct instance *put(struct roster *o, const struct registration *r)
{
    struct registry *g = o->registry;
    struct instance *i = find_any(o, r->ip, r->port);
    char *cluster = strdup(r->cluster);
    if (!cluster || (!i && !(i = instance_new(o, r->ip, r->port)))) {
        free(cluster);
        return NULL;
    }
    json_incref(r->metadata); /* which may be the old one */
    json_decref(i->metadata);
    free(i->cluster);
    i->metadata = r->metadata;
    i->cluster = cluster;
    i->weight = r->weight;
    i->healthy = r->healthy;
    i->enabled = r->enabled;
    i->interval = preserved_ms(i->metadata, BEAT_INTERVAL, 5000);
    i->limit = preserved_ms(i->metadata, BEAT_TIMEOUT, 15000);
    i->expiry = preserved_ms(i->metadata, DELETE_TIMEOUT, 30000);
    if (!i->registered) {
        i->registered = true;
        o->registered++;
        g->registered++;
        g->persistent += !o->ephemeral;
    }
    o->empty_since = 0;
    instance_changed(i);
    return i;
}

bool roster_register(struct roster *o, const struct registration *r)
{
    struct instance *i = put(o, r);
    if (!i)
        return false;
    i->beat_at = now_ms();
    if (!i->beats && o->ephemeral)
        timer_set(o->registry->timers, &i->check, CHECK, on_check, i);
    i->beats = true;
    return true;
}

static void unregister(struct instance *i)
{
    struct registry *g = i->roster->registry;
    i->registered = false;
    i->roster->registered--;
    g->registered--;
    g->persistent -= !i->roster->ephemeral;
}

/** It is gone if nobody speaks for it any more. */
static void let_go(struct instance *i)
{
    if (i->beats || i->holders)
        return;
    unregister(i);
    instance_changed(i);
}

void instance_remove(struct instance *i)
{
    i->beats = false;
    timer_clear(i->roster->registry->timers, &i->check);
    let_go(i);
}

bool publication_set(struct publication *p, const struct registration *r, size_t count)
{
    struct instance **old = p->instances, **fresh = count ? calloc(count, sizeof *fresh) : NULL;
    size_t old_count = p->count, n = 0;
    bool ok = fresh || !count;
    for (size_t at = 0; fresh && at < count; at++) {
        struct instance *i = put(p->roster, &r[at]);
        if (i) {
            i->holders++;
            fresh[n++] = i;
        }
        ok &= i != NULL;
    }
    p->instances = fresh;
    p->count = n;
    for (size_t at = 0; at < old_count; at++) { /* after the new ones are held: what is in both lists stays */
        old[at]->holders--;
        let_go(old[at]);
    }
    free(old);
    return ok;
}

void instance_beat(struct instance *i)
{
    i->beat_at = now_ms();
    if (i->healthy)
        return;
    i->healthy = true;
    instance_changed(i);
}

/* ---- rosters ---- */

struct roster *registry_find(struct registry *g, const char *namespace, const char *name)
{
    char key[NAME];
    size_t n = strlen(namespace) + 1, m = strlen(name) + 1;
    struct roster *o = NULL;
    if (n + m > sizeof key)
        return NULL;
    memcpy(key, namespace, n);
    memcpy(key + n, name, m);
    HASH_FIND(hh, g->rosters, key, n + m, o);
    return o;
}

static void on_sweep(void *arg);

struct roster *registry_roster(struct registry *g, const char *namespace, const char *name, bool ephemeral)
{
    struct roster *o = registry_find(g, namespace, name);
    if (o && o->open) {
        o->open = false;
        o->ephemeral = ephemeral;
    }
    if (o)
        return o;
    size_t n = strlen(namespace) + 1, m = strlen(name) + 1;
    const char *at = strstr(name, "@@");
    if (!at || !(o = calloc(1, sizeof *o + n + m)))
        return NULL;
    o->metadata = json_object();
    if (!o->metadata) {
        free(o);
        return NULL;
    }
    o->registry = g;
    o->ephemeral = ephemeral;
    memcpy(o->namespace, namespace, n);
    o->name = memcpy(o->namespace + n, name, m);
    o->group_len = (size_t)(at - name);
    o->plain = o->name + o->group_len + 2;
    o->key_len = n + m;
    o->empty_since = now_ms();
    HASH_ADD(hh, g->rosters, namespace, o->key_len, o);
    if (!g->sweep.slot)
        timer_set(g->timers, &g->sweep, SWEEP, on_sweep, g);
    return o;
}

struct roster *registry_followed(struct registry *g, const char *namespace, const char *name)
{
    struct roster *o = registry_find(g, namespace, name);
    if (!o && (o = registry_roster(g, namespace, name, true)))
        o->open = true;
    return o;
}

void roster_remove(struct roster *o)
{
    struct registry *g = o->registry;
    struct instance *i, *next;
    HASH_ITER (hh, o->instances, i, next) {
        if (i->registered)
            instance_remove(i);
    }
    roster_renew(o); /* frees all that nobody holds */
    while (o->patches)
        patch_free(o, o->patches);
    while (o->subscribers)
        subscriber_free(o, o->subscribers);
    if (o->followers || o->publications) {
        json_object_clear(o->metadata);
        o->threshold = 0;
        o->open = !o->publications;
        return;
    }
    timer_clear(g->timers, &o->push);
    HASH_DEL(g->rosters, o);
    json_decref(o->metadata);
    free(o);
}

static void sweep_patches(struct roster *o, int64_t now)
{
    struct patch *p, *next;
    for (struct instance *i = o->patches ? o->instances : NULL; i; i = i->hh.next)
        if (i->registered && (p = patch_of(i)))
            p->orphaned = -1; /* it has an instance */
    HASH_ITER (hh, o->patches, p, next) {
        if (p->orphaned == -1)
            p->orphaned = 0;
        else if (!p->orphaned)
            p->orphaned = now;
        else if (now - p->orphaned >= ORPHAN)
            patch_free(o, p);
    }
}

static void sweep_roster(struct roster *o, int64_t now)
{
    struct subscriber *s, *next;
    HASH_ITER (hh, o->subscribers, s, next) {
        if (!subscriber_alive(o->registry, s))
            subscriber_free(o, s);
    }
    if (o->patches)
        sweep_patches(o, now);
    if (o->registered || o->subscribers || o->followers || o->publications)
        o->empty_since = 0;
    else if (!o->empty_since)
        o->empty_since = now;
    else if (now - o->empty_since >= EMPTY)
        roster_remove(o);
}

static void on_sweep(void *arg)
{
    struct registry *g = arg;
    struct roster *o, *next;
    int64_t now = now_ms();
    HASH_ITER (hh, g->rosters, o, next) {
        sweep_roster(o, now);
    }
    if (g->rosters)
        timer_set(g->timers, &g->sweep, SWEEP, on_sweep, g);
}

void registry_init(struct registry *g, struct timers *timers, struct pusher *pusher, double push_delay, double lease)
{
    *g = (struct registry){
        .timers = timers, .pusher = pusher, .push_delay = (int64_t)(push_delay * 1000), .lease = (int64_t)(lease * 1000)};
}

void registry_forget(struct registry *g)
{
    struct roster *o, *next;
    HASH_ITER (hh, g->rosters, o, next) {
        while (o->subscribers)
            subscriber_free(o, o->subscribers);
        if (o->ephemeral)
            roster_remove(o);
    }
    pusher_forget(g->pusher);
}

void registry_free(struct registry *g)
{
    while (g->rosters)
        roster_remove(g->rosters);
    if (g->timers)
        timer_clear(g->timers, &g->sweep);
}
