#include "engine/config.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "engine/client.h"
#include "engine/snapshot.h"

#define WATCH_READ_MS 5000 /* a read for a watch */

static const nacos_error no_memory = {.code = NACOS_NOMEM, .message = "out of memory"};

struct value *config_file(struct nacos_client *c, const char *base, const struct key *k)
{
    size_t len = 0;
    char *data = snapshot_read(base, k->data_id, k->group, c->ns, c->max_response, &len, c->log);
    struct value *v = data ? value_new(data, len, NULL, NULL) : NULL;
    free(data);
    return v;
}

bool config_unknown(const nacos_error *err)
{
    return err->code == NACOS_UNAVAILABLE || err->code == NACOS_PROTOCOL;
}

/* ---- what the host asked ------------------------------------------------------------------------------------------------- */

/** A request of the host on its way: the event that will answer it, and what it is about. */
struct ask {
    struct job job;
    struct nacos_client *client;
    struct event *event;
    int64_t timeout_ms, deadline; /* the deadline counts from its arrival on the loop */
    int flags, page, page_size;
    bool second; /* the other dialect is asked */
    struct question question;
    char *data_id, *group;

    /* in a read */
    struct ask *next;
    struct read *read;
    struct timer timer;
};

static void ask_free(struct ask *a)
{
    timer_clear(&a->client->engine->timers, &a->timer);
    question_free(&a->question);
    free(a->data_id);
    free(a->group);
    free(a);
}

static void reply(struct ask *a, struct value *v, nacos_source source, const nacos_error *err)
{
    struct event *ev = a->event;
    ev->value = value_ref(v);
    ev->source = v ? source : NACOS_FROM_NONE;
    ev->confirmed = v && source == NACOS_FROM_SERVER ? unix_now() : 0;
    if (err && err->code != NACOS_OK)
        event_set_error(ev, err);
    engine_ready(a->client->engine, ev);
    ask_free(a);
}

static struct ask *ask_new(struct nacos_client *c, void (*run)(struct job *), const char *data_id, const char *group,
                           int timeout_ms)
{
    struct ask *a = calloc(1, sizeof *a);
    if (!a)
        return NULL;
    a->job.run = run;
    a->client = c;
    a->timeout_ms = timeout_ms;
    a->data_id = strdup(data_id ? data_id : "");
    a->group = strdup(group ? group : "");
    a->event = event_new(engine_next_id(c->engine), NACOS_EVENT_REPLY);
    if (a->data_id && a->group && a->event)
        return a;
    event_free(a->event);
    free(a->data_id);
    free(a->group);
    free(a);
    return NULL;
}

static uint64_t ask_post(struct ask *a)
{
    uint64_t id = a->event->id;
    engine_post(a->client->engine, &a->job);
    return id;
}

static struct key ask_key(const struct ask *a)
{
    return (struct key){a->data_id, a->group, a->client->ns};
}

/* ---- reads --------------------------------------------------------------------------------------------------------------- */

/** One read under way, for all who want it: requests of the host and the watch of that item. */
struct read {
    UT_hash_handle hh;
    struct nacos_client *client;
    int64_t deadline;
    struct ask *asks;
    struct nacos_watch *watch;
    bool shared; /* others may join it */
    const char *group;
    char name[]; /* key_name() */
};

/** May this request fall back to the snapshot, and renew it? */
static bool with_snapshot(const struct ask *a)
{
    return a->flags & NACOS_USE_SNAPSHOT || (a->flags == 0 && !a->client->no_snapshot);
}

static void answer_ask(struct ask *a, struct value *v, const nacos_error *err)
{
    struct nacos_client *c = a->client;
    struct key k = ask_key(a);
    struct value *old = !v && with_snapshot(a) && config_unknown(err) ? saver_read(&c->saver, &k) : NULL;
    if (old) {
        log_write(c->log, LOG_WARN, "%s; its snapshot is used instead", err->message);
        reply(a, old, NACOS_FROM_SNAPSHOT, NULL);
    } else {
        reply(a, v, NACOS_FROM_SERVER, err);
    }
    value_unref(old);
}

static void ask_too_late(void *arg)
{
    struct ask *a = arg;
    struct ask **p = &a->read->asks;
    while (*p != a)
        p = &(*p)->next;
    *p = a->next;
    nacos_error err = {.code = NACOS_UNAVAILABLE};
    snprintf(err.message, sizeof err.message, "cannot read %s (group %s): no answer in %.3g s", a->data_id, a->group,
             (double)a->timeout_ms / 1000);
    answer_ask(a, NULL, &err);
}

static bool wants_snapshot(const struct read *r)
{
    bool wants = r->watch && !r->client->no_snapshot;
    for (const struct ask *a = r->asks; a && !wants; a = a->next)
        wants = with_snapshot(a);
    return wants;
}

/** Nobody joins it any more. */
static void stop_sharing(struct read *r)
{
    if (r && r->shared) {
        HASH_DEL(r->client->config.reads, r);
        r->shared = false;
    }
}

static void on_read(void *arg, const struct http_response *resp, const nacos_error *err)
{
    struct read *r = arg;
    struct nacos_client *c = r->client;
    struct key k = {r->name, r->group, c->ns};
    stop_sharing(r);
    c->config.reading--;
    struct value *v =
        err->code == NACOS_OK ? value_new(resp->body.data, resp->body.len, resp->config_type, resp->content_md5) : NULL;
    if (v && wants_snapshot(r))
        saver_note(&c->saver, &k, v);
    else if (err->code == NACOS_NOT_FOUND && !c->no_snapshot)
        saver_remove(&c->saver, &k);
    for (struct ask *a = r->asks, *next; a; a = next) {
        next = a->next;
        answer_ask(a, v, err);
    }
    if (r->watch)
        watch_read(r->watch, v, err);
    value_unref(v);
    free(r);
    longpoll_nudge(&c->longpoll);
}

static struct read *find_read(struct nacos_client *c, const struct key *k)
{
    char name[KEY_NAME_MAX];
    size_t n = key_name(name, sizeof name, k);
    struct read *r = NULL;
    if (n)
        HASH_FIND(hh, c->config.reads, name, n, r);
    return r;
}

/** Joins the read of this item that is under way, if its time is about as long, or starts one. */
static struct read *read_item(struct nacos_client *c, const struct key *k, int64_t timeout_ms)
{
    struct read *same = find_read(c, k);
    if (same && same->deadline - now_ms() >= timeout_ms * 4 / 5)
        return same;
    size_t n = strlen(k->data_id) + strlen(k->group) + 2;
    struct read *r = calloc(1, sizeof *r + n);
    if (!r)
        return NULL;
    key_name(r->name, n, k);
    r->group = r->name + strlen(k->data_id) + 1;
    r->client = c;
    r->deadline = now_ms() + timeout_ms;
    r->shared = !same;
    struct question q;
    c->protocol->read(&q, &(struct key){r->name, r->group, c->ns});
    if (!request_start(c, &q, timeout_ms, on_read, r)) {
        free(r);
        return NULL;
    }
    if (r->shared)
        HASH_ADD_KEYPTR(hh, c->config.reads, r->name, n, r);
    c->config.reading++;
    return r;
}

struct read *config_read_for(struct nacos_watch *w, bool anew)
{
    if (anew)
        stop_sharing(find_read(w->client, &w->key));
    struct read *r = read_item(w->client, &w->key, WATCH_READ_MS);
    if (r)
        r->watch = w;
    return r;
}

void config_read_leave(struct read *r)
{
    r->watch = NULL;
}

static void get_run(struct job *job)
{
    struct ask *a = (struct ask *)job;
    struct nacos_client *c = a->client;
    struct key k = ask_key(a);
    struct value *v = a->flags & NACOS_SERVER_ONLY ? NULL : config_file(c, c->failover_base, &k);
    if (v) {
        reply(a, v, NACOS_FROM_FAILOVER, NULL);
        value_unref(v);
        return;
    }
    a->read = read_item(c, &k, a->timeout_ms);
    if (!a->read) {
        reply(a, NULL, NACOS_FROM_NONE, &no_memory);
        return;
    }
    a->next = a->read->asks;
    a->read->asks = a;
    if (a->read->deadline > now_ms() + a->timeout_ms)
        timer_set(&c->engine->timers, &a->timer, a->timeout_ms, ask_too_late, a);
}

uint64_t nacos_get_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms, int flags)
{
    struct ask *a = ask_new(c, get_run, data_id, group, timeout_ms);
    if (!a)
        return 0;
    a->flags = flags;
    return ask_post(a);
}

/* ---- writes, lists, version ---------------------------------------------------------------------------------------------- */

static void on_done(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    struct value *v = err->code == NACOS_OK ? value_new(r->body.data, r->body.len, NULL, "") : NULL;
    reply(a, v, NACOS_FROM_SERVER, err);
    value_unref(v);
}

/** Puts a->question; all questions of one ask share its time. */
static void put(struct ask *a, request_done done)
{
    struct question q = a->question;
    a->question = (struct question){0};
    if (!a->deadline)
        a->deadline = now_ms() + a->timeout_ms;
    if (!request_start(a->client, &q, a->deadline - now_ms(), done, a))
        reply(a, NULL, NACOS_FROM_NONE, &no_memory);
}

/** Reads that began before this may show the old value. */
static void on_written(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    struct key k = ask_key(a);
    stop_sharing(find_read(a->client, &k));
    on_done(a, r, err);
}

static void write_run(struct job *job)
{
    put((struct ask *)job, on_written);
}

uint64_t nacos_publish_config(nacos_client *c, const nacos_publish *p, int timeout_ms)
{
    struct ask *a = ask_new(c, write_run, p->data_id, p->group, timeout_ms);
    if (!a)
        return 0;
    struct key k = ask_key(a);
    nacos_error err;
    uint64_t id = a->event->id;
    if (!c->protocol->publish(&a->question, &k, p, &err)) {
        reply(a, NULL, NACOS_FROM_NONE, &err);
        return id;
    }
    return ask_post(a);
}

uint64_t nacos_remove_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms)
{
    struct ask *a = ask_new(c, write_run, data_id, group, timeout_ms);
    if (!a)
        return 0;
    struct key k = ask_key(a);
    c->protocol->remove(&a->question, &k);
    return ask_post(a);
}

static void on_list(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    if (err->code != NACOS_UNSUPPORTED || a->second) {
        on_done(a, r, err);
        return;
    }
    struct key pattern = ask_key(a);
    a->second = true;
    protocol_v3_admin.list(&a->question, &pattern, a->page, a->page_size);
    put(a, on_list);
}

static void list_run(struct job *job)
{
    struct ask *a = (struct ask *)job;
    struct key pattern = ask_key(a);
    a->client->protocol->list(&a->question, &pattern, a->page, a->page_size);
    put(a, on_list);
}

uint64_t nacos_list_configs(nacos_client *c, const char *pattern, const char *group, int page, int page_size, int timeout_ms)
{
    struct ask *a = ask_new(c, list_run, pattern, group, timeout_ms);
    if (!a)
        return 0;
    a->page = page;
    a->page_size = page_size;
    return ask_post(a);
}

static void reply_version(struct ask *a, const char *version)
{
    struct value *v = value_new(version, strlen(version), NULL, "");
    reply(a, v, NACOS_FROM_SERVER, v ? NULL : &no_memory);
    value_unref(v);
}

static void on_version(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    char version[32];
    if (err->code == NACOS_OK && parse_version(r, version, sizeof version)) {
        struct server *s = servers_find(&a->client->servers, err->server);
        if (s)
            memcpy(s->version, version, sizeof version);
        reply_version(a, version);
    } else if (err->code == NACOS_UNSUPPORTED && !a->second) {
        a->second = true;
        protocol_v3_admin.version(&a->question);
        put(a, on_version);
    } else {
        nacos_error unknown = {.code = NACOS_UNSUPPORTED, .message = "the server does not tell its version"};
        reply(a, NULL, NACOS_FROM_NONE, err->code == NACOS_OK ? &unknown : err);
    }
}

static void version_run(struct job *job)
{
    struct ask *a = (struct ask *)job;
    struct servers *s = &a->client->servers;
    int k = servers_pick(s, 0, now_ms());
    if (k >= 0 && s->list[k].version[0]) {
        reply_version(a, s->list[k].version);
        return;
    }
    a->client->protocol->version(&a->question);
    put(a, on_version);
}

uint64_t nacos_server_version(nacos_client *c, int timeout_ms)
{
    struct ask *a = ask_new(c, version_run, NULL, NULL, timeout_ms);
    return a ? ask_post(a) : 0;
}
