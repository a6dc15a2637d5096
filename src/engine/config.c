#include "engine/config.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "engine/ask.h"
#include "engine/client.h"
#include "engine/snapshot.h"

#define WATCH_READ_MS 5000 /* a read for a watch */

struct value *config_file(struct nacos_client *c, const char *base, const struct key *k)
{
    size_t len = 0;
    char *data = snapshot_read(base, k->data_id, k->group, k->ns, c->max_response, &len, c->log);
    struct value *v = data ? value_new(data, len, NULL, NULL) : NULL;
    free(data);
    return v;
}

bool config_unknown(const nacos_error *err)
{
    return err->code == NACOS_UNAVAILABLE || err->code == NACOS_PROTOCOL;
}

/* ---- reads --------------------------------------------------------------------------------------------------------------- */

/** A read that the host asked for. */
struct get {
    struct ask ask;
    int flags;
    struct get *next; /* in the read */
    struct read *read;
    struct timer timer;
};

/** One read under way, for all who want it: requests of the host and the watch of that item. */
struct read {
    UT_hash_handle hh;
    struct nacos_client *client;
    int64_t deadline;
    struct get *gets;
    struct nacos_watch *watch;
    bool shared; /* others may join it */
    const char *group;
    char name[]; /* key_name() */
};

/** May this request fall back to the snapshot, and renew it? */
static bool with_snapshot(const struct get *g)
{
    return saver_wanted(g->ask.client, g->flags);
}

static void answer(struct get *g, struct value *v, const nacos_error *err)
{
    struct nacos_client *c = g->ask.client;
    struct value *old = !v && with_snapshot(g) && config_unknown(err) ? saver_read(&c->saver, &g->ask.key) : NULL;
    timer_clear(&c->engine->timers, &g->timer);
    if (old) {
        log_write(c->log, LOG_WARN, "%s; its snapshot is used instead", err->message);
        ask_reply(&g->ask, old, NACOS_FROM_SNAPSHOT, NULL);
    } else {
        ask_reply(&g->ask, v, NACOS_FROM_SERVER, err);
    }
    value_unref(old);
}

static void too_late(void *arg)
{
    struct get *g = arg;
    struct get **p = &g->read->gets;
    while (*p != g)
        p = &(*p)->next;
    *p = g->next;
    nacos_error err = {.code = NACOS_UNAVAILABLE};
    snprintf(err.message, sizeof err.message, "cannot read %s (group %s): no answer in %.3g s", g->ask.key.data_id,
             g->ask.key.group, (double)g->ask.timeout_ms / 1000);
    answer(g, NULL, &err);
}

static bool wants_snapshot(const struct read *r)
{
    bool wants = r->watch && !r->client->no_snapshot;
    for (const struct get *g = r->gets; g && !wants; g = g->next)
        wants = with_snapshot(g);
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

static bool word_read(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct read *r = arg;
    (void)err;
    p->read(q, &(struct key){r->name, r->group, r->client->ns});
    return true;
}

static void on_read(void *arg, const struct question *q, const struct http_response *resp, const nacos_error *err)
{
    struct read *r = arg;
    nacos_error odd = *err;
    struct nacos_client *c = r->client;
    struct key k = {r->name, r->group, c->ns};
    stop_sharing(r);
    c->config.reading--;
    struct value *v = err->code == NACOS_OK ? question_value(q, resp) : NULL;
    if (err->code == NACOS_OK && !v) {
        judged(q, resp, &odd, NACOS_PROTOCOL, VERDICT_ANSWER, "the answer holds no content");
        err = &odd;
    }
    if (v && wants_snapshot(r))
        saver_note(&c->saver, &k, v);
    else if (err->code == NACOS_NOT_FOUND && !c->no_snapshot)
        saver_remove(&c->saver, &k);
    for (struct get *g = r->gets, *next; g; g = next) {
        next = g->next;
        answer(g, v, err);
    }
    if (r->watch)
        watch_read(r->watch, v, err);
    value_unref(v);
    free(r);
    watch_nudge(c);
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
    if (!request_start(c, word_read, timeout_ms, on_read, r)) {
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
    struct get *g = (struct get *)job;
    struct nacos_client *c = g->ask.client;
    struct value *v = g->flags & NACOS_SERVER_ONLY ? NULL : config_file(c, c->failover_base, &g->ask.key);
    if (v) {
        ask_reply(&g->ask, v, NACOS_FROM_FAILOVER, NULL);
        value_unref(v);
        return;
    }
    g->read = read_item(c, &g->ask.key, g->ask.timeout_ms);
    if (!g->read) {
        ask_reply(&g->ask, NULL, NACOS_FROM_NONE, &no_memory);
        return;
    }
    g->next = g->read->gets;
    g->read->gets = g;
    if (g->read->deadline > now_ms() + g->ask.timeout_ms)
        timer_set(&c->engine->timers, &g->timer, g->ask.timeout_ms, too_late, g);
}

uint64_t nacos_get_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms, int flags)
{
    struct get *g = ask_new(c, sizeof *g, get_run, &(struct key){data_id, group, c->ns}, timeout_ms);
    if (!g)
        return 0;
    g->flags = flags;
    return ask_post(&g->ask);
}

/* ---- writes, lists, version ---------------------------------------------------------------------------------------------- */

/** Reads that began before this may show the old value. */
static void on_written(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    stop_sharing(find_read(a->client, &a->key));
    ask_answered(a, q, r, err);
}

static void write_run(struct job *job)
{
    ask_put((struct ask *)job, on_written);
}

struct publication {
    struct ask ask;
    nacos_publish what; /* but for the key; its strings are the publication's */
};

static bool word_publish(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct publication *n = arg;
    return p->publish && p->publish(q, &n->ask.key, &n->what, err);
}

static void forget_publication(struct ask *a)
{
    nacos_publish *p = &((struct publication *)a)->what;
    free((char *)p->content);
    free((char *)p->type);
    free((char *)p->app_name);
    free((char *)p->tags);
    free((char *)p->desc);
    free((char *)p->cas_md5);
}

static bool copy(const char **out, const char *s)
{
    *out = s ? strdup(s) : NULL;
    return !s || *out;
}

static const char *not_utf8(const nacos_publish *p)
{
    const char *const names[] = {"content", "type", "application name", "tags", "description"};
    const char *const values[] = {p->content, p->type, p->app_name, p->tags, p->desc};
    for (int i = 0; i < 5; i++) {
        json_t *text = values[i] ? json_stringn(values[i], i ? strlen(values[i]) : p->len) : json_null(); /* it knows */
        json_decref(text);
        if (!text)
            return names[i];
    }
    return NULL;
}

uint64_t nacos_publish_config(nacos_client *c, const nacos_publish *p, int timeout_ms)
{
    struct publication *n = ask_new(c, sizeof *n, write_run, &(struct key){p->data_id, p->group, c->ns}, timeout_ms);
    if (!n)
        return 0;
    n->ask.word = word_publish;
    n->ask.forget = forget_publication;
    char *content = malloc(p->len + 1);
    n->what = (nacos_publish){.content = content, .len = p->len};
    if (!content || !(copy(&n->what.type, p->type) & copy(&n->what.app_name, p->app_name) & copy(&n->what.tags, p->tags) &
                      copy(&n->what.desc, p->desc) & copy(&n->what.cas_md5, p->cas_md5))) {
        ask_drop(&n->ask);
        return 0;
    }
    memcpy(content, p->content, p->len);
    content[p->len] = 0;
    const char *wrong = not_utf8(&n->what);
    if (!wrong)
        return ask_post(&n->ask);
    nacos_error err = {.code = NACOS_INVALID};
    uint64_t id = n->ask.event->id;
    snprintf(err.message, sizeof err.message, "cannot publish %s (group %s): the %s is not valid UTF-8; a server would change it",
             p->data_id, p->group, wrong);
    ask_reply(&n->ask, NULL, NACOS_FROM_NONE, &err);
    return id;
}

static bool word_remove(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    (void)err;
    if (p->remove)
        p->remove(q, &((struct ask *)arg)->key);
    return p->remove;
}

uint64_t nacos_remove_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms)
{
    struct ask *a = ask_new(c, sizeof *a, write_run, &(struct key){data_id, group, c->ns}, timeout_ms);
    if (!a)
        return 0;
    a->word = word_remove;
    return ask_post(a);
}

struct listing {
    struct ask ask;
    int page, page_size;
};

static bool word_list(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct listing *l = arg;
    (void)err;
    p = ask_words(&l->ask, p);
    if (p->list)
        p->list(q, &l->ask.key, l->page, l->page_size);
    return p->list;
}

static void on_list(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    if (!ask_second(arg, err, on_list))
        ask_answered(arg, q, r, err);
}

static void list_run(struct job *job)
{
    ask_put((struct ask *)job, on_list);
}

uint64_t nacos_list_configs(nacos_client *c, const char *pattern, const char *group, int page, int page_size, int timeout_ms)
{
    struct listing *l = ask_new(c, sizeof *l, list_run, &(struct key){pattern, group, c->ns}, timeout_ms);
    if (!l)
        return 0;
    l->ask.word = word_list;
    l->page = page;
    l->page_size = page_size;
    return ask_post(&l->ask);
}

static void reply_version(struct ask *a, const char *version)
{
    struct value *v = value_new(version, strlen(version), NULL, "");
    ask_reply(a, v, NACOS_FROM_SERVER, v ? NULL : &no_memory);
    value_unref(v);
}

static bool word_version(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    (void)err;
    p = ask_words(arg, p);
    if (p->version)
        p->version(q);
    return p->version;
}

static void on_version(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    (void)q;
    char version[32];
    if (err->code == NACOS_OK && parse_version(r, version, sizeof version)) {
        struct server *s = servers_find(&a->client->servers, err->server);
        if (s)
            memcpy(s->version, version, sizeof version);
        reply_version(a, version);
    } else if (!ask_second(a, err, on_version)) {
        nacos_error unknown = {.code = NACOS_UNSUPPORTED, .message = "the server does not tell its version"};
        ask_reply(a, NULL, NACOS_FROM_NONE, err->code == NACOS_OK ? &unknown : err);
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
    ask_put(a, on_version);
}

uint64_t nacos_server_version(nacos_client *c, int timeout_ms)
{
    struct ask *a = ask_new(c, sizeof *a, version_run, &(struct key){0}, timeout_ms);
    if (!a)
        return 0;
    a->word = word_version;
    return ask_post(a);
}
