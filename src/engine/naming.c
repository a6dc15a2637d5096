#include "engine/naming.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "engine/ask.h"
#include "engine/client.h"

#define INTERVAL_MS 5000         /* of beats, as every server assumes without a word */
#define INTERVAL_MAX_MS 86400000 /* a day */

struct key naming_key(const struct nacos_client *c, const nacos_service *s)
{
    const char *ns = s->ns ? s->ns : c->ns;
    return (struct key){s->name ? s->name : "", s->group && *s->group ? s->group : "DEFAULT_GROUP",
                        strcmp(ns, "public") == 0 ? "" : ns};
}

/* ---- lists on disk ------------------------------------------------------------------------------------------------------- */

/** The part of the file's name that is not group and namespace; buf_free(). */
static struct key file_key(const struct key *k, const char *clusters, struct buf *name)
{
    buf_init(name, 8192);
    buf_append_encoded(name, k->data_id, strlen(k->data_id));
    if (clusters && *clusters) {
        buf_puts(name, "@@");
        buf_append_encoded(name, clusters, strlen(clusters));
    }
    return (struct key){name->data ? name->data : "", k->group, k->ns};
}

static struct hosts *take(struct nacos_client *c, struct value *v, const struct key *file)
{
    struct hosts *h = v ? hosts_parse(v->data, v->len) : NULL;
    if (v && !h)
        log_write(c->log, LOG_WARN, "file ignored: naming/%s+%s+%s is no list of instances", file->data_id, file->group, file->ns);
    value_unref(v);
    return h;
}

struct hosts *naming_failover(struct nacos_client *c, const struct key *k, const char *clusters)
{
    char base[PATH_MAX];
    struct buf name;
    struct key file = file_key(k, clusters, &name);
    snprintf(base, sizeof base, "%s/naming", c->failover_base);
    struct hosts *h = take(c, config_file(c, base, &file), &file);
    buf_free(&name);
    return h;
}

struct hosts *naming_snapshot(struct nacos_client *c, const struct key *k, const char *clusters)
{
    struct buf name;
    struct key file = file_key(k, clusters, &name);
    struct hosts *h = take(c, saver_read(&c->naming_saver, &file), &file);
    buf_free(&name);
    return h;
}

void naming_save(struct nacos_client *c, const struct key *k, const char *clusters, const struct hosts *h)
{
    struct buf name;
    struct key file = file_key(k, clusters, &name);
    size_t len;
    char *json = hosts_json(h, k->data_id, &len);
    struct value *v = json ? value_new(json, len, "json", NULL) : NULL;
    if (v)
        saver_note(&c->naming_saver, &file, v);
    value_unref(v);
    free(json);
    buf_free(&name);
}

/* ---- what the host asks -------------------------------------------------------------------------------------------------- */

struct naming_ask {
    struct ask ask;
    struct hosts *instance; /* a list of one */
    int64_t beat_ms;
    char *clusters;
    bool healthy_only;
    int flags;
    struct naming_ask *next;    /* in client->registering, or in `waiting` */
    struct naming_ask *waiting; /* deregistrations of the same place: they come after this registration */
};

static void forget(struct ask *a)
{
    struct naming_ask *n = (struct naming_ask *)a;
    hosts_unref(n->instance);
    free(n->clusters);
}

static const nacos_instance *instance_of(const struct naming_ask *n)
{
    return &n->instance->view.list[0];
}

static struct naming_ask *new_ask(nacos_client *c, void (*run)(struct job *), const nacos_service *s, const nacos_instance *i,
                                  int timeout_ms)
{
    struct key k = naming_key(c, s);
    struct naming_ask *n = ask_new(c, sizeof *n, run, &k, timeout_ms);
    if (!n)
        return NULL;
    n->ask.forget = forget;
    if (i && !(n->instance = hosts_of(i))) {
        ask_drop(&n->ask);
        return NULL;
    }
    return n;
}

static void reply_hosts(struct naming_ask *n, struct hosts *h, nacos_source source)
{
    n->ask.event->hosts = h;
    ask_reply(&n->ask, NULL, source, NULL);
}

static void run_raw(struct job *job)
{
    ask_put((struct ask *)job, ask_answered);
}

/* ---- register, deregister ------------------------------------------------------------------------------------------------ */

static const char *metadata(const nacos_instance *i, const char *name)
{
    for (size_t k = 0; k < i->metadata_count; k++)
        if (strcmp(i->metadata[k].name, name) == 0)
            return i->metadata[k].value;
    return NULL;
}

static const char *const preserved[] = {"preserved.heart.beat.interval", "preserved.heart.beat.timeout",
                                        "preserved.ip.delete.timeout"};
#define PRESERVED ((int)(sizeof preserved / sizeof *preserved))

/** The instance, with those of the `preserved` that have a value and are not in it. NULL: out of memory. */
static struct hosts *with_preserved(const nacos_instance *i, const char *const values[PRESERVED])
{
    nacos_pair *pairs = calloc(i->metadata_count + PRESERVED, sizeof *pairs);
    nacos_instance more = *i;
    if (!pairs)
        return NULL;
    if (i->metadata_count)
        memcpy(pairs, i->metadata, i->metadata_count * sizeof *pairs);
    for (int k = 0; k < PRESERVED; k++)
        if (values[k] && !metadata(i, preserved[k]))
            pairs[more.metadata_count++] = (nacos_pair){preserved[k], values[k]};
    more.metadata = pairs;
    struct hosts *h = hosts_of(&more);
    free(pairs);
    return h;
}

/** A server learns of another interval than its own by metadata only, and would otherwise ask for beats every 5 s. */
static struct hosts *with_interval(const nacos_instance *i, int64_t ms)
{
    char interval[24], timeout[24], removal[24];
    const char *const values[PRESERVED] = {interval, ms > INTERVAL_MS ? timeout : NULL, ms > INTERVAL_MS ? removal : NULL};
    snprintf(interval, sizeof interval, "%lld", (long long)ms);
    snprintf(timeout, sizeof timeout, "%lld", (long long)ms * 3);
    snprintf(removal, sizeof removal, "%lld", (long long)ms * 6);
    return with_preserved(i, values);
}

static void nothing(void *arg)
{
    (void)arg;
}

static void run_deregister(struct job *job);

static void on_registered(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg, **p = &n->ask.client->registering, *waiting = n->waiting, *next;
    const nacos_instance *i = instance_of(n);
    struct beats *b = &n->ask.client->beats;
    nacos_error none = *err;
    if (err->code == NACOS_OK && !i->ephemeral)
        beat_stop(b, &n->ask.key, i->ip, i->port, nothing, NULL);
    else if (err->code == NACOS_OK && !beat_start(b, &n->ask.key, n->instance, n->beat_ms))
        none = no_memory;
    while (*p != n)
        p = &(*p)->next;
    *p = n->next;
    ask_answered(n, r, &none);
    for (; waiting; waiting = next) {
        next = waiting->next;
        run_deregister(&waiting->ask.job);
    }
    beats_other(b, -1);
}

static void run_register(struct job *job)
{
    struct naming_ask *n = (struct naming_ask *)job;
    n->next = n->ask.client->registering;
    n->ask.client->registering = n;
    beats_other(&n->ask.client->beats, 1);
    n->ask.question.lasting = true;
    ask_put(&n->ask, on_registered);
}

/** A registration of the same place under way. */
static struct naming_ask *registering(const struct naming_ask *n)
{
    const nacos_instance *i = instance_of(n);
    for (struct naming_ask *r = n->ask.client->registering; r; r = r->next) {
        const nacos_instance *other = instance_of(r);
        if (other->port == i->port && strcmp(other->ip, i->ip) == 0 && strcmp(r->ask.key.data_id, n->ask.key.data_id) == 0 &&
            strcmp(r->ask.key.group, n->ask.key.group) == 0 && strcmp(r->ask.key.ns, n->ask.key.ns) == 0)
            return r;
    }
    return NULL;
}

uint64_t nacos_register_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int beat_ms, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_register, s, i, timeout_ms);
    if (!n)
        return 0;
    const char *told = metadata(i, preserved[0]);
    char *end = NULL;
    n->beat_ms = told ? strtoll(told, &end, 10) : beat_ms;
    if (n->beat_ms <= 0 || n->beat_ms > INTERVAL_MAX_MS || (end && *end))
        n->beat_ms = INTERVAL_MS;
    if (i->ephemeral && n->beat_ms != INTERVAL_MS) {
        struct hosts *h = with_interval(i, n->beat_ms);
        hosts_unref(n->instance);
        n->instance = h;
        if (!h) {
            ask_drop(&n->ask);
            return 0;
        }
    }
    c->protocol->register_instance(&n->ask.question, &n->ask.key, instance_of(n));
    return ask_post(&n->ask);
}

static void on_deregistered(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct beats *b = &((struct ask *)arg)->client->beats;
    ask_answered(arg, r, err);
    beats_other(b, -1);
}

static void deregister_now(void *arg)
{
    struct ask *a = arg;
    a->question.lasting = true;
    ask_put(a, on_deregistered);
}

static void run_deregister(struct job *job)
{
    struct naming_ask *n = (struct naming_ask *)job;
    const nacos_instance *i = instance_of(n);
    struct naming_ask *first = registering(n);
    if (first) {
        n->next = first->waiting;
        first->waiting = n;
        return;
    }
    beats_other(&n->ask.client->beats, 1);
    beat_stop(&n->ask.client->beats, &n->ask.key, i->ip, i->port, deregister_now, n);
}

uint64_t nacos_deregister_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_deregister, s, i, timeout_ms);
    if (!n)
        return 0;
    c->protocol->deregister_instance(&n->ask.question, &n->ask.key, i);
    return ask_post(&n->ask);
}

/* ---- modify, read, beat -------------------------------------------------------------------------------------------------- */

static void on_modified(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    if (err->code == NACOS_UNSUPPORTED && !n->ask.second) {
        n->ask.second = true;
        n->ask.client->protocol->register_instance(&n->ask.question, &n->ask.key, instance_of(n));
        ask_put(&n->ask, on_modified);
        return;
    }
    if (err->code == NACOS_OK)
        beat_change(&n->ask.client->beats, &n->ask.key, n->instance);
    ask_answered(n, r, err);
}

static void run_modify(struct job *job)
{
    struct naming_ask *n = (struct naming_ask *)job;
    struct nacos_client *c = n->ask.client;
    const nacos_instance *i = instance_of(n);
    const struct hosts *mine = beat_instance(&c->beats, &n->ask.key, i->ip, i->port);
    if (mine) { /* what the registration said about beats must not get lost */
        const char *values[PRESERVED];
        for (int k = 0; k < PRESERVED; k++)
            values[k] = metadata(&mine->view.list[0], preserved[k]);
        struct hosts *h = with_preserved(i, values);
        if (!h) {
            ask_reply(&n->ask, NULL, NACOS_FROM_NONE, &no_memory);
            return;
        }
        hosts_unref(n->instance);
        n->instance = h;
    }
    c->protocol->modify_instance(&n->ask.question, &n->ask.key, instance_of(n));
    ask_put(&n->ask, on_modified);
}

uint64_t nacos_modify_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_modify, s, i, timeout_ms);
    return n ? ask_post(&n->ask) : 0;
}

static void not_such_an_answer(struct naming_ask *n, const nacos_error *err)
{
    nacos_error odd = {.code = NACOS_PROTOCOL};
    snprintf(odd.server, sizeof odd.server, "%s", err->server);
    snprintf(odd.message, sizeof odd.message,
             "cannot read the answer about %.500s (group %.256s) of %s: it is no list of instances", n->ask.key.data_id,
             n->ask.key.group, err->server);
    ask_reply(&n->ask, NULL, NACOS_FROM_NONE, &odd);
}

/** The answer of a server without the call for one instance: its list. */
static void on_list_for_one(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    struct hosts *h = err->code == NACOS_OK ? hosts_parse(r->body.data, r->body.len) : NULL;
    const nacos_instance *wanted = instance_of(n), *found = h ? hosts_find(h, wanted->ip, wanted->port, wanted->cluster) : NULL;
    if (found) {
        reply_hosts(n, hosts_of(found), NACOS_FROM_SERVER);
    } else if (h) {
        nacos_error none = {.code = NACOS_NOT_FOUND};
        snprintf(none.server, sizeof none.server, "%s", err->server);
        snprintf(none.message, sizeof none.message,
                 "cannot read %s:%d of %.500s (group %.256s) at %s: it is not in the list (where disabled instances never are)",
                 wanted->ip, wanted->port, n->ask.key.data_id, n->ask.key.group, err->server);
        ask_reply(&n->ask, NULL, NACOS_FROM_NONE, &none);
    } else if (err->code == NACOS_OK) {
        not_such_an_answer(n, err);
    } else {
        ask_reply(&n->ask, NULL, NACOS_FROM_NONE, err);
    }
    hosts_unref(h);
}

static void on_instance(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    struct nacos_client *c = n->ask.client;
    if (err->code == NACOS_UNSUPPORTED) {
        c->protocol->list_instances(&n->ask.question, &n->ask.key, instance_of(n)->cluster, false, NULL);
        ask_put(&n->ask, on_list_for_one);
        return;
    }
    struct hosts *h = err->code == NACOS_OK ? c->protocol->instance_answer(r) : NULL;
    if (h && h->view.count == 1) {
        reply_hosts(n, h, NACOS_FROM_SERVER);
        return;
    }
    hosts_unref(h);
    if (err->code == NACOS_OK)
        not_such_an_answer(n, err);
    else
        ask_reply(&n->ask, NULL, NACOS_FROM_NONE, err);
}

static void run_instance(struct job *job)
{
    ask_put((struct ask *)job, on_instance);
}

uint64_t nacos_get_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_instance, s, i, timeout_ms);
    if (!n)
        return 0;
    c->protocol->get_instance(&n->ask.question, &n->ask.key, i);
    return ask_post(&n->ask);
}

uint64_t nacos_send_beat(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, s, NULL, timeout_ms);
    if (!n)
        return 0;
    c->protocol->beat(&n->ask.question, &n->ask.key, i, INTERVAL_MS, false);
    return ask_post(&n->ask);
}

/* ---- lists --------------------------------------------------------------------------------------------------------------- */

static struct hosts *filtered(const struct naming_ask *n, struct hosts *h)
{
    struct hosts *healthy = h && n->healthy_only ? hosts_healthy(h) : NULL;
    if (!h || !n->healthy_only)
        return h;
    hosts_unref(h);
    return healthy;
}

static void on_list(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    struct nacos_client *c = n->ask.client;
    struct hosts *h = err->code == NACOS_OK ? hosts_parse(r->body.data, r->body.len) : NULL;
    if (h) {
        if (!n->healthy_only && saver_wanted(c, n->flags))
            naming_save(c, &n->ask.key, n->clusters, h);
        reply_hosts(n, h, NACOS_FROM_SERVER);
        return;
    }
    if (config_unknown(err) && saver_wanted(c, n->flags))
        h = filtered(n, naming_snapshot(c, &n->ask.key, n->clusters));
    if (h) {
        log_write(c->log, LOG_WARN, "%s; the last list on disk is used instead", err->message);
        reply_hosts(n, h, NACOS_FROM_SNAPSHOT);
    } else if (err->code == NACOS_OK) {
        not_such_an_answer(n, err);
    } else {
        ask_reply(&n->ask, NULL, NACOS_FROM_NONE, err);
    }
}

static void run_list(struct job *job)
{
    struct naming_ask *n = (struct naming_ask *)job;
    struct nacos_client *c = n->ask.client;
    struct hosts *over = n->flags & NACOS_SERVER_ONLY ? NULL : filtered(n, naming_failover(c, &n->ask.key, n->clusters));
    if (over) {
        reply_hosts(n, over, NACOS_FROM_FAILOVER);
        return;
    }
    c->protocol->list_instances(&n->ask.question, &n->ask.key, n->clusters, n->healthy_only, NULL);
    ask_put(&n->ask, on_list);
}

uint64_t nacos_list_instances(nacos_client *c, const nacos_service *s, const char *clusters, bool healthy_only, int flags,
                              int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_list, s, NULL, timeout_ms);
    if (!n)
        return 0;
    n->healthy_only = healthy_only;
    n->flags = flags;
    n->clusters = strdup(clusters ? clusters : "");
    if (n->clusters)
        return ask_post(&n->ask);
    ask_drop(&n->ask);
    return 0;
}

/* ---- services ------------------------------------------------------------------------------------------------------------ */

uint64_t nacos_put_service(nacos_client *c, const nacos_service *s, const nacos_service_settings *o, bool update, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, s, NULL, timeout_ms);
    if (!n)
        return 0;
    c->protocol->put_service(&n->ask.question, &n->ask.key, o, update);
    return ask_post(&n->ask);
}

uint64_t nacos_get_service(nacos_client *c, const nacos_service *s, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, s, NULL, timeout_ms);
    if (!n)
        return 0;
    c->protocol->get_service(&n->ask.question, &n->ask.key);
    return ask_post(&n->ask);
}

uint64_t nacos_remove_service(nacos_client *c, const nacos_service *s, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, s, NULL, timeout_ms);
    if (!n)
        return 0;
    c->protocol->remove_service(&n->ask.question, &n->ask.key);
    return ask_post(&n->ask);
}

uint64_t nacos_list_services(nacos_client *c, const nacos_service *s, int page, int page_size, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, s, NULL, timeout_ms);
    if (!n)
        return 0;
    c->protocol->list_services(&n->ask.question, &n->ask.key, page, page_size);
    return ask_post(&n->ask);
}
