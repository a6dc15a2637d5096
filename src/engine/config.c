#include "engine/config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/client.h"
#include "engine/snapshot.h"

#define FETCH_MS 5000         /* a read for a watch */
#define CHANGES_PER_SECOND 20 /* of one item, before it has to rest */
#define REST_MAX_MS 30000
#define LEARN_MS 3000         /* how often an unknown item looks whether a server is back */
#define SNAP_DELAY_MS 50      /* so that callbacks come first */
#define SNAP_PATIENCE_MS 1000 /* most that reads under way may put them off */
#define SNAP_SLICE_MS 4       /* of the loop's time in one turn */
#define SNAPS_MAX 20000
#define NAME_MAX_BYTES 520 /* dataId and group of 256 bytes each */

static int64_t back_off(int64_t first, int n)
{
    int64_t ms = first << (n < 12 ? n : 12);
    return ms < REST_MAX_MS ? ms : REST_MAX_MS;
}

/** The hash key of an item: both names with their NULs. 0: too long. */
static size_t item_name(char *out, size_t size, const struct key *k)
{
    size_t d = strlen(k->data_id) + 1, g = strlen(k->group) + 1;
    if (d + g > size)
        return 0;
    memcpy(out, k->data_id, d);
    memcpy(out + d, k->group, g);
    return d + g;
}

/* ---- snapshots ----------------------------------------------------------------------------------------------------------- */

struct snap {
    UT_hash_handle hh;
    struct snap *dirty_next;
    struct value *pending; /* to be written; NULL: clean */
    char md5[33];          /* of the file, as far as we wrote it */
    const char *group;
    char name[]; /* data_id NUL group NUL */
};

static void forget_clean_snaps(struct config *f)
{
    struct snap *s, *tmp;
    HASH_ITER(hh, f->snaps, s, tmp)
    {
        if (!s->pending) {
            HASH_DEL(f->snaps, s);
            free(s);
        }
    }
}

static struct snap *find_snap(struct config *f, const struct key *k, bool make)
{
    char name[NAME_MAX_BYTES];
    size_t n = item_name(name, sizeof name, k);
    struct snap *s = NULL;
    if (n)
        HASH_FIND(hh, f->snaps, name, n, s);
    if (s || !make || !n)
        return s;
    if (HASH_COUNT(f->snaps) >= SNAPS_MAX)
        forget_clean_snaps(f);
    s = calloc(1, sizeof *s + n);
    if (s) {
        memcpy(s->name, name, n);
        s->group = s->name + strlen(s->name) + 1;
        HASH_ADD_KEYPTR(hh, f->snaps, s->name, n, s);
    }
    return s;
}

static void write_snaps(struct nacos_client *c, int64_t budget_ms)
{
    struct config *f = &c->config;
    int64_t end = now_ms() + budget_ms;
    while (f->dirty && now_ms() <= end) {
        struct snap *s = f->dirty;
        f->dirty = s->dirty_next;
        if (!f->dirty)
            f->dirty_end = &f->dirty;
        struct value *v = s->pending;
        s->pending = NULL;
        bool ok = snapshot_write(c->snapshot_base, s->name, s->group, c->ns, v->data, v->len, c->log);
        memcpy(s->md5, ok ? v->md5 : "", ok ? sizeof s->md5 : 1);
        value_unref(v);
    }
}

static void snap_slice(void *arg)
{
    struct nacos_client *c = arg;
    struct config *f = &c->config;
    bool busy = f->fetching > 0 && now_ms() - f->dirty_since < SNAP_PATIENCE_MS;
    if (!busy)
        write_snaps(c, SNAP_SLICE_MS);
    if (f->dirty)
        timer_set(&c->engine->timers, &f->snap_timer, busy ? SNAP_DELAY_MS : 1, snap_slice, c);
}

static void snap_note(struct nacos_client *c, const struct key *k, struct value *v)
{
    struct config *f = &c->config;
    struct snap *s = c->no_snapshot ? NULL : find_snap(f, k, true);
    if (!s || strcmp(s->pending ? s->pending->md5 : s->md5, v->md5) == 0)
        return;
    if (s->pending) {
        value_unref(s->pending);
    } else {
        if (!f->dirty) {
            f->dirty_end = &f->dirty;
            f->dirty_since = now_ms();
        }
        s->dirty_next = NULL;
        *f->dirty_end = s;
        f->dirty_end = &s->dirty_next;
        if (!f->snap_timer.slot)
            timer_set(&c->engine->timers, &f->snap_timer, SNAP_DELAY_MS, snap_slice, c);
    }
    s->pending = value_ref(v);
}

void config_forget_snapshots(struct nacos_client *c)
{
    struct snap *s, *tmp;
    HASH_ITER(hh, c->config.snaps, s, tmp)
    {
        s->md5[0] = 0;
    }
}

static void snap_remove(struct nacos_client *c, const struct key *k)
{
    if (c->no_snapshot)
        return;
    struct config *f = &c->config;
    struct snap *s = find_snap(f, k, false);
    if (s && s->pending) {
        struct snap **p = &f->dirty;
        while (*p != s)
            p = &(*p)->dirty_next;
        *p = s->dirty_next;
        if (f->dirty_end == &s->dirty_next)
            f->dirty_end = p;
        value_unref(s->pending);
        s->pending = NULL;
    }
    if (s)
        s->md5[0] = 0;
    snapshot_remove(c->snapshot_base, k->data_id, k->group, c->ns, c->log);
}

static struct value *read_file(struct nacos_client *c, const char *base, const struct key *k)
{
    size_t len = 0;
    char *data = snapshot_read(base, k->data_id, k->group, c->ns, c->max_response, &len, c->log);
    struct value *v = data ? value_new(data, len, NULL, NULL) : NULL;
    free(data);
    return v;
}

/** The last value known from a server: of the file, or on its way there. */
static struct value *read_snapshot(struct nacos_client *c, const struct key *k)
{
    struct snap *s = find_snap(&c->config, k, false);
    return s && s->pending ? value_ref(s->pending) : read_file(c, c->snapshot_base, k);
}

/* ---- answers to the host ------------------------------------------------------------------------------------------------- */

/** A request of the host on its way: the event that will answer it, and what it is about. */
struct ask {
    struct job job;
    struct nacos_client *client;
    struct event *event;
    struct ask *next; /* in its fetch */
    struct fetch *fetch;
    struct timer timer;
    int64_t timeout_ms;
    int flags, page, page_size;
    struct question question;
    char *data_id, *group;
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

static uint64_t post(struct ask *a)
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

/** One read under way, for all who want it: host requests and the watch of that item. */
struct fetch {
    UT_hash_handle hh;
    struct nacos_client *client;
    int64_t deadline;
    struct ask *asks;
    struct nacos_watch *watch;
    bool shared; /* others may join it */
    const char *group;
    char name[];
};

static void watch_fetched(struct nacos_watch *w, struct value *v, const nacos_error *err);

static bool no_answer(const nacos_error *err)
{
    return err->code == NACOS_UNAVAILABLE || err->code == NACOS_PROTOCOL;
}

static void answer_ask(struct ask *a, struct value *v, const nacos_error *err)
{
    struct nacos_client *c = a->client;
    struct key k = ask_key(a);
    bool use = a->flags & NACOS_USE_SNAPSHOT || (a->flags == 0 && !c->no_snapshot);
    if (v || !no_answer(err) || !use) {
        reply(a, v, NACOS_FROM_SERVER, err);
        return;
    }
    struct value *old = read_snapshot(c, &k);
    if (old)
        log_write(c->log, LOG_WARN, "%s; its snapshot is used instead", err->message);
    reply(a, old, NACOS_FROM_SNAPSHOT, old ? NULL : err);
    value_unref(old);
}

static void ask_too_late(void *arg)
{
    struct ask *a = arg;
    struct ask **p = &a->fetch->asks;
    while (*p != a)
        p = &(*p)->next;
    *p = a->next;
    nacos_error err = {.code = NACOS_UNAVAILABLE};
    snprintf(err.message, sizeof err.message, "cannot read %.256s (group %.128s): no answer in %.3g s", a->data_id, a->group,
             (double)a->timeout_ms / 1000);
    answer_ask(a, NULL, &err);
}

static void on_fetched(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct fetch *f = arg;
    struct nacos_client *c = f->client;
    struct key k = {f->name, f->group, c->ns};
    if (f->shared)
        HASH_DEL(c->config.fetches, f);
    c->config.fetching--;
    struct value *v = err->code == NACOS_OK ? value_new(r->body.data, r->body.len, r->config_type, r->content_md5) : NULL;
    bool save = f->watch != NULL;
    for (struct ask *a = f->asks; a && !save; a = a->next)
        save = a->flags == 0;
    if (v && save)
        snap_note(c, &k, v);
    else if (err->code == NACOS_NOT_FOUND)
        snap_remove(c, &k);
    for (struct ask *a = f->asks, *next; a; a = next) {
        next = a->next;
        answer_ask(a, v, err);
    }
    if (f->watch)
        watch_fetched(f->watch, v, err);
    value_unref(v);
    free(f);
    longpoll_nudge(&c->longpoll);
}

/** The read of this item that others may join, or NULL. */
static struct fetch *find_fetch(struct nacos_client *c, const struct key *k)
{
    char name[NAME_MAX_BYTES];
    size_t n = item_name(name, sizeof name, k);
    struct fetch *f = NULL;
    if (n)
        HASH_FIND(hh, c->config.fetches, name, n, f);
    return f;
}

static struct fetch *fetch(struct nacos_client *c, const struct key *k, int64_t timeout_ms)
{
    struct fetch *same = find_fetch(c, k);
    if (same && same->deadline - now_ms() >= timeout_ms * 4 / 5)
        return same;
    size_t n = strlen(k->data_id) + strlen(k->group) + 2;
    struct fetch *f = calloc(1, sizeof *f + n);
    if (!f)
        return NULL;
    item_name(f->name, n, k);
    f->group = f->name + strlen(k->data_id) + 1;
    f->client = c;
    f->deadline = now_ms() + timeout_ms;
    f->shared = !same;
    struct question q;
    c->protocol->read(&q, &(struct key){f->name, f->group, c->ns});
    if (!request_start(c, &q, timeout_ms, on_fetched, f)) {
        free(f);
        return NULL;
    }
    if (f->shared)
        HASH_ADD_KEYPTR(hh, c->config.fetches, f->name, n, f);
    c->config.fetching++;
    return f;
}

static const nacos_error no_memory = {.code = NACOS_NOMEM, .message = "out of memory"};

static void get_run(struct job *job)
{
    struct ask *a = (struct ask *)job;
    struct nacos_client *c = a->client;
    struct key k = ask_key(a);
    struct value *v = a->flags & NACOS_SERVER_ONLY ? NULL : read_file(c, c->failover_base, &k);
    if (v) {
        reply(a, v, NACOS_FROM_FAILOVER, NULL);
        value_unref(v);
        return;
    }
    a->fetch = fetch(c, &k, a->timeout_ms);
    if (!a->fetch) {
        reply(a, NULL, NACOS_FROM_NONE, &no_memory);
        return;
    }
    a->next = a->fetch->asks;
    a->fetch->asks = a;
    if (a->fetch->deadline > now_ms() + a->timeout_ms)
        timer_set(&c->engine->timers, &a->timer, a->timeout_ms, ask_too_late, a);
}

uint64_t nacos_get_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms, int flags)
{
    struct ask *a = ask_new(c, get_run, data_id, group, timeout_ms);
    if (!a)
        return 0;
    a->flags = flags;
    return post(a);
}

/* ---- writes, lists, version ---------------------------------------------------------------------------------------------- */

static void on_done(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    struct value *v = err->code == NACOS_OK ? value_new(r->body.data, r->body.len, NULL, "") : NULL;
    reply(a, v, NACOS_FROM_SERVER, err);
    value_unref(v);
}

static void ask_server(struct ask *a, request_done done)
{
    struct question q = a->question;
    a->question = (struct question){0};
    if (!request_start(a->client, &q, a->timeout_ms, done, a))
        reply(a, NULL, NACOS_FROM_NONE, &no_memory);
}

/** Reads that began before this may show the old value: nobody joins them any more. */
static void on_written(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    struct key k = ask_key(a);
    struct fetch *f = find_fetch(a->client, &k);
    if (f) {
        HASH_DEL(a->client->config.fetches, f);
        f->shared = false;
    }
    on_done(a, r, err);
}

static void write_run(struct job *job)
{
    ask_server((struct ask *)job, on_written);
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
    return post(a);
}

uint64_t nacos_remove_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms)
{
    struct ask *a = ask_new(c, write_run, data_id, group, timeout_ms);
    if (!a)
        return 0;
    struct key k = ask_key(a);
    c->protocol->remove(&a->question, &k);
    return post(a);
}

static void on_list(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct ask *a = arg;
    if (err->code != NACOS_UNSUPPORTED) {
        on_done(a, r, err);
        return;
    }
    struct key pattern = ask_key(a);
    protocol_v3_admin.list(&a->question, &pattern, a->page, a->page_size);
    ask_server(a, on_done);
}

static void list_run(struct job *job)
{
    struct ask *a = (struct ask *)job;
    struct key pattern = ask_key(a);
    a->client->protocol->list(&a->question, &pattern, a->page, a->page_size);
    ask_server(a, on_list);
}

uint64_t nacos_list_configs(nacos_client *c, const char *pattern, const char *group, int page, int page_size, int timeout_ms)
{
    struct ask *a = ask_new(c, list_run, pattern, group, timeout_ms);
    if (!a)
        return 0;
    a->page = page;
    a->page_size = page_size;
    return post(a);
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
    if (err->code == NACOS_OK && a->client->protocol->parse_version(r, version, sizeof version)) {
        struct server *s = servers_find(&a->client->servers, err->server);
        if (s)
            memcpy(s->version, version, sizeof version);
        reply_version(a, version);
    } else if (err->code == NACOS_UNSUPPORTED && a->page++ == 0) {
        protocol_v3_admin.version(&a->question);
        ask_server(a, on_version);
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
    ask_server(a, on_version);
}

uint64_t nacos_server_version(nacos_client *c, int timeout_ms)
{
    struct ask *a = ask_new(c, version_run, NULL, NULL, timeout_ms);
    return a ? post(a) : 0;
}

/* ---- watches ------------------------------------------------------------------------------------------------------------- */

static void watch_fetch(void *arg)
{
    struct nacos_watch *w = arg;
    timer_clear(&w->client->engine->timers, &w->timer);
    struct fetch *f = w->fetch = fetch(w->client, &w->key, FETCH_MS);
    w->state = WATCH_FETCHING;
    if (f)
        f->watch = w;
    else
        timer_set(&w->client->engine->timers, &w->timer, 1000, watch_fetch, w);
}

/** A read failed, so whether the item exists is unknown, and a held poll would not tell that it does not. */
static void watch_learn(void *arg)
{
    struct nacos_watch *w = arg;
    if (w->client->longpoll.failures > 0) { /* no server: one poll asks for all */
        timer_set(&w->client->engine->timers, &w->timer, LEARN_MS, watch_learn, w);
        return;
    }
    longpoll_remove(w);
    watch_fetch(w);
}

static void watch_arm(void *arg)
{
    struct nacos_watch *w = arg;
    longpoll_add(w);
    if (!w->known)
        timer_set(&w->client->engine->timers, &w->timer, back_off(200, w->failures), watch_learn, w);
}

static void watch_rest(struct nacos_watch *w, int64_t ms, void (*then)(void *))
{
    w->state = WATCH_RESTING;
    timer_set(&w->client->engine->timers, &w->timer, ms, then, w);
}

/** Makes `v` (NULL: absent) the newest value; an event only if that is news. */
static void deliver(struct nacos_watch *w, struct value *v, nacos_source source)
{
    nacos_engine *e = w->client->engine;
    struct event *ev = &w->event;
    double confirmed = source == NACOS_FROM_SERVER ? unix_now() : 0;
    pthread_mutex_lock(&e->lock);
    bool same = w->known && (v ? ev->value && strcmp(v->md5, ev->value->md5) == 0 : !ev->value);
    bool news = !same && (w->known || v);
    w->client->config.failovers += (source == NACOS_FROM_FAILOVER) - (ev->source == NACOS_FROM_FAILOVER);
    struct value *old = NULL;
    if (!same) {
        old = ev->value;
        ev->value = value_ref(v);
        ev->version++;
        w->known = true;
    }
    ev->source = v ? source : NACOS_FROM_NONE;
    ev->confirmed = confirmed;
    if (news)
        engine_ready_locked(e, ev);
    pthread_mutex_unlock(&e->lock);
    value_unref(old);
}

static void report_trouble(struct nacos_watch *w, const nacos_error *err)
{
    if (w->trouble == err->code)
        return;
    w->trouble = err->code;
    log_write(w->client->log, LOG_WARN, "%s; the watch goes on trying", err->message);
    struct event *ev = event_new(w->event.id, NACOS_EVENT_TROUBLE);
    if (!ev)
        return;
    event_set_error(ev, err);
    engine_ready(w->client->engine, ev);
}

static void watch_fetched(struct nacos_watch *w, struct value *v, const nacos_error *err)
{
    struct nacos_client *c = w->client;
    bool listed = w->listed;
    w->listed = false;
    w->fetch = NULL;
    if (err->code == NACOS_CLOSED) {
        w->state = WATCH_RESTING;
        return;
    }
    if (v || err->code == NACOS_NOT_FOUND) {
        const char *md5 = v ? v->md5 : "";
        bool spurious = listed && strcmp(md5, w->server_md5) == 0;
        snprintf(w->server_md5, sizeof w->server_md5, "%s", md5);
        struct value *over = read_file(c, c->failover_base, &w->key);
        deliver(w, over ? over : v, over ? NACOS_FROM_FAILOVER : NACOS_FROM_SERVER);
        value_unref(over);
        w->failures = 0;
        w->trouble = NACOS_OK;
        int64_t now = now_ms();
        if (now - w->window > 1000) {
            w->window = now;
            w->changes = 0;
        }
        if (spurious) {
            watch_rest(w, back_off(200, w->spurious++), watch_arm);
            return;
        }
        w->spurious = 0;
        if (++w->changes > CHANGES_PER_SECOND)
            watch_rest(w, 1000, watch_arm);
        else
            longpoll_add(w);
        return;
    }
    if (no_answer(err)) {
        if (!w->known) {
            struct value *over = read_file(c, c->failover_base, &w->key);
            struct value *old = over || c->no_snapshot ? NULL : read_snapshot(c, &w->key);
            if (over || old) {
                deliver(w, over ? over : old, over ? NACOS_FROM_FAILOVER : NACOS_FROM_SNAPSHOT);
                if (old) /* so that the first answer of a server tells whether it still is so */
                    memcpy(w->server_md5, old->md5, sizeof w->server_md5);
            }
            value_unref(over);
            value_unref(old);
        }
        if (err->code == NACOS_PROTOCOL)
            report_trouble(w, err);
        watch_rest(w, back_off(100, w->failures++), watch_arm);
        return;
    }
    report_trouble(w, err);
    watch_rest(w, back_off(1000, w->failures++), watch_fetch);
}

/** The failover file of a watch may have come, changed or gone. */
static void recheck(struct nacos_watch *w)
{
    bool was = w->event.source == NACOS_FROM_FAILOVER; /* only the loop writes it */
    struct value *over = read_file(w->client, w->client->failover_base, &w->key);
    if (over) {
        deliver(w, over, NACOS_FROM_FAILOVER);
    } else if (was && w->state != WATCH_FETCHING) {
        longpoll_remove(w);
        watch_fetch(w);
    }
    value_unref(over);
}

static void look_for_failover(void *arg)
{
    struct nacos_client *c = arg;
    struct config *f = &c->config;
    struct stat st = {0};
    if (stat(c->failover_base, &st) != 0)
        memset(&st, 0, sizeof st);
    bool same = st.st_mtim.tv_sec == f->failover_mtime.tv_sec && st.st_mtim.tv_nsec == f->failover_mtime.tv_nsec;
    if (same && f->failovers == 0)
        return;
    f->failover_mtime = st.st_mtim;
    /* a copy of the table: the host may add to it meanwhile; only this thread frees watches */
    pthread_mutex_lock(&c->engine->lock);
    size_t n = 0;
    struct nacos_watch **all = malloc(sizeof *all * (HASH_COUNT(f->watches) + 1)), *w, *tmp;
    HASH_ITER(hh, f->watches, w, tmp)
    {
        if (all && (!same || w->event.source == NACOS_FROM_FAILOVER))
            all[n++] = w;
    }
    pthread_mutex_unlock(&c->engine->lock);
    for (size_t i = 0; i < n; i++)
        recheck(all[i]);
    free(all);
}

void config_look_for_failover(struct nacos_client *c)
{
    if (!c->closing && !c->config.failover_timer.slot)
        timer_set(&c->engine->timers, &c->config.failover_timer, 0, look_for_failover, c);
}

struct nacos_watch *config_find(struct nacos_client *c, const struct key *k)
{
    char name[NAME_MAX_BYTES];
    size_t n = item_name(name, sizeof name, k);
    struct nacos_watch *w = NULL;
    if (!n)
        return NULL;
    pthread_mutex_lock(&c->engine->lock);
    HASH_FIND(hh, c->config.watches, name, n, w);
    pthread_mutex_unlock(&c->engine->lock);
    return w;
}

void config_changed(struct nacos_watch *w)
{
    w->listed = true;
    watch_fetch(w);
}

void config_confirmed(struct nacos_watch *w, double unix_time)
{
    nacos_engine *e = w->client->engine;
    pthread_mutex_lock(&e->lock);
    /* a value of a failover file is not the server's; a snapshot that the server confirms is */
    if (w->event.source == NACOS_FROM_SNAPSHOT)
        w->event.source = NACOS_FROM_SERVER;
    if (w->event.source != NACOS_FROM_FAILOVER)
        w->event.confirmed = unix_time;
    pthread_mutex_unlock(&e->lock);
}

struct watch_job {
    struct job job;
    struct nacos_watch *watch;
};

static void watch_run(struct job *job)
{
    watch_fetch(((struct watch_job *)job)->watch);
    free(job);
}

static bool post_watch(struct nacos_watch *w, void (*run)(struct job *))
{
    struct watch_job *j = calloc(1, sizeof *j);
    if (!j)
        return false;
    j->job.run = run;
    j->watch = w;
    engine_post(w->client->engine, &j->job);
    return true;
}

nacos_watch *nacos_watch_config(nacos_client *c, const char *data_id, const char *group)
{
    nacos_engine *e = c->engine;
    size_t n = strlen(data_id) + strlen(group) + 2;
    struct nacos_watch *w = calloc(1, sizeof *w + n), *same = NULL;
    if (!w)
        return NULL;
    item_name(w->name, n, &(struct key){data_id, group, c->ns});
    w->key = (struct key){w->name, w->name + strlen(data_id) + 1, c->ns};
    w->client = c;
    w->refs = 1;
    w->state = WATCH_RESTING;
    w->event.slot = true;
    w->event.kind = NACOS_EVENT_CONFIG;
    w->event.id = engine_next_id(e);
    pthread_mutex_lock(&e->lock);
    HASH_FIND(hh, c->config.watches, w->name, n, same);
    if (same) {
        same->refs++;
    } else {
        HASH_ADD_KEYPTR(hh, c->config.watches, w->name, n, w);
        c->status.watches++;
    }
    pthread_mutex_unlock(&e->lock);
    if (same) {
        free(w);
        return same;
    }
    if (!post_watch(w, watch_run)) {
        pthread_mutex_lock(&e->lock);
        HASH_DEL(c->config.watches, w);
        c->status.watches--;
        pthread_mutex_unlock(&e->lock);
        free(w);
        return NULL;
    }
    return w;
}

uint64_t nacos_watch_id(const nacos_watch *w)
{
    return w->event.id;
}

/** On the loop, when it is in no table any more. */
static void watch_free(struct nacos_watch *w)
{
    struct nacos_client *c = w->client;
    timer_clear(&c->engine->timers, &w->timer);
    longpoll_remove(w);
    c->config.failovers -= w->event.source == NACOS_FROM_FAILOVER;
    if (w->fetch)
        w->fetch->watch = NULL;
    pthread_mutex_lock(&c->engine->lock);
    engine_withdraw_locked(c->engine, w->event.id);
    pthread_mutex_unlock(&c->engine->lock);
    value_unref(w->event.value);
    free(w);
}

static void unwatch_run(struct job *job)
{
    watch_free(((struct watch_job *)job)->watch);
    free(job);
}

void nacos_unwatch(nacos_watch *w)
{
    struct nacos_client *c = w->client;
    nacos_engine *e = c->engine;
    pthread_mutex_lock(&e->lock);
    bool last = --w->refs == 0;
    if (last) {
        HASH_DEL(c->config.watches, w);
        c->status.watches--;
        engine_withdraw_locked(e, w->event.id);
    }
    pthread_mutex_unlock(&e->lock);
    if (last)
        post_watch(w, unwatch_run);
}

bool nacos_peek(nacos_watch *w, uint64_t known, nacos_value *out)
{
    nacos_engine *e = w->client->engine;
    *out = (nacos_value){0};
    pthread_mutex_lock(&e->lock);
    const struct event *ev = &w->event;
    bool any = w->known;
    if (any) {
        out->source = ev->source;
        out->version = ev->version;
        out->confirmed = ev->confirmed;
        if (ev->value) {
            memcpy(out->md5, ev->value->md5, sizeof out->md5);
            memcpy(out->type, ev->value->type, sizeof out->type);
            if (ev->version != known) {
                value_unref(e->peeked);
                e->peeked = value_ref(ev->value);
                out->data = e->peeked->data;
                out->len = e->peeked->len;
            }
        }
    }
    pthread_mutex_unlock(&e->lock);
    return any;
}

void config_shut(struct nacos_client *c)
{
    struct nacos_watch *w, *wtmp;
    pthread_mutex_lock(&c->engine->lock);
    struct nacos_watch *all = c->config.watches;
    c->config.watches = NULL;
    pthread_mutex_unlock(&c->engine->lock);
    HASH_ITER(hh, all, w, wtmp)
    {
        HASH_DELETE(hh, all, w);
        watch_free(w);
    }
    timer_clear(&c->engine->timers, &c->config.snap_timer);
    timer_clear(&c->engine->timers, &c->config.failover_timer);
    write_snaps(c, 60);
    struct snap *s, *stmp;
    HASH_ITER(hh, c->config.snaps, s, stmp)
    {
        HASH_DEL(c->config.snaps, s);
        value_unref(s->pending);
        free(s);
    }
}
