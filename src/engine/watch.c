#include "engine/watch.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/client.h"

#define CHANGES_PER_SECOND 20 /* of one item, before it has to rest */
#define REST_MAX_MS 30000
#define REST_PUSHED_MS 1000 /* a push that says nothing is soon over; a poll that does comes again and again */
#define USELESS_MS 10       /* of all watches of a client: between two reads after ones that showed nothing new */
#define HOPELESS_MS 100     /* the same, between two after ones that failed; few of them need no turns */
#define BUNCH_MS 200        /* such rests end together, so that a few requests name all watches that come back */
#define RELEASE_MS 2        /* between two reads when one has succeeded after all */
#define HASTY 20            /* so many failures in a row are not paced */
#define TELL_MS 30000
#define TELL_LINES 5 /* in that time */

static int64_t back_off(int64_t first, int n)
{
    int64_t ms = first << (n < 12 ? n : 12);
    return ms < REST_MAX_MS ? ms : REST_MAX_MS;
}

/* ---- lists of detectors -------------------------------------------------------------------------------------------------- */

static void put_between(struct watch_list *l, struct nacos_watch *w, struct nacos_watch *prev, struct nacos_watch *next)
{
    w->prev = prev;
    w->next = next;
    *(prev ? &prev->next : &l->first) = w;
    *(next ? &next->prev : &l->last) = w;
    l->count++;
}

void watch_put(struct watch_list *l, struct nacos_watch *w)
{
    put_between(l, w, l->last, NULL);
}

void watch_put_first(struct watch_list *l, struct nacos_watch *w)
{
    put_between(l, w, NULL, l->first);
}

void watch_cut(struct watch_list *l, struct nacos_watch *w)
{
    *(w->prev ? &w->prev->next : &l->first) = w->next;
    *(w->next ? &w->next->prev : &l->last) = w->prev;
    w->prev = w->next = NULL;
    l->count--;
}

/* ---- states -------------------------------------------------------------------------------------------------------------- */

static void rested_read(void *arg)
{
    watch_go(arg, WATCH_READING);
}

static void rested_wait(void *arg)
{
    watch_go(arg, WATCH_WAITING);
}

/** Takes it out of whatever its state holds. */
static void leave_state(struct nacos_watch *w)
{
    timer_clear(&w->client->engine->timers, &w->timer);
    if (w->read)
        config_read_leave(w->read);
    w->read = NULL;
    if (w->detector)
        w->detector->remove(w->client, w);
    w->detector = NULL;
    w->state = WATCH_RESTING;
}

void watch_rest(struct nacos_watch *w, int64_t ms, enum watch_state then)
{
    leave_state(w);
    timer_set(&w->client->engine->timers, &w->timer, ms, then == WATCH_READING ? rested_read : rested_wait, w);
}

void watch_go(struct nacos_watch *w, enum watch_state state)
{
    const struct detector *d = w->detector;
    const struct protocol *now = w->client->dialect.now;
    leave_state(w);
    w->state = state;
    if (state == WATCH_ARMED)
        w->detector = d;
    if (state == WATCH_WAITING && now) {
        w->detector = now->detector;
        w->detector->add(w->client, w);
    }
    if (state != WATCH_READING)
        return;
    w->read = config_read_for(w, w->listed);
    if (!w->read)
        watch_rest(w, 1000, WATCH_READING);
}

/* ---- events -------------------------------------------------------------------------------------------------------------- */

/** Makes `v` (NULL: absent) the newest value; an event only if that is news. `server`: that told it, if one did. */
static void deliver(struct nacos_watch *w, struct value *v, nacos_source source, nacos_via via, const char *server)
{
    nacos_engine *e = w->client->engine;
    struct event *ev = &w->event;
    double confirmed = source == NACOS_FROM_SERVER ? unix_now() : 0;
    pthread_mutex_lock(&e->lock);
    bool same = w->known && (v ? ev->value && strcmp(v->md5, ev->value->md5) == 0 : !ev->value);
    struct value *old = NULL;
    w->client->watches.failovers += (source == NACOS_FROM_FAILOVER) - (ev->source == NACOS_FROM_FAILOVER);
    if (!same) {
        old = ev->value;
        ev->value = value_ref(v);
        ev->version++;
        ev->via = via;
        w->known = true;
    }
    if (!same || ev->source != (v ? source : NACOS_FROM_NONE))
        snprintf(ev->server, sizeof ev->server, "%s", server);
    ev->source = v ? source : NACOS_FROM_NONE;
    ev->confirmed = confirmed;
    if (!same)
        engine_ready_locked(e, ev);
    pthread_mutex_unlock(&e->lock);
    value_unref(old);
}

/** Thousands may have the same. */
static void log_trouble(struct nacos_client *c, const nacos_error *err)
{
    struct watches *all = &c->watches;
    char more[60] = "";
    if (now_ms() >= all->tell_at) {
        if (all->untold)
            snprintf(more, sizeof more, " (before this, %d more watches failed)", all->untold);
        all->tell_at = now_ms() + TELL_MS;
        all->told = all->untold = 0;
    }
    bool tell = all->told++ < TELL_LINES;
    all->untold += !tell;
    log_write(c->log, tell ? LOG_WARN : LOG_DEBUG, "%s; the watch goes on trying%s", err->message, more);
}

void watch_trouble(struct nacos_watch *w, const nacos_error *err)
{
    if (w->trouble == err->code)
        return;
    w->trouble = err->code;
    log_trouble(w->client, err);
    struct event *ev = event_new(w->event.id, NACOS_EVENT_TROUBLE);
    if (!ev)
        return;
    w->told = true;
    event_set_error(ev, err);
    engine_ready(w->client->engine, ev);
}

void watch_refused(struct nacos_watch *w, const nacos_error *err)
{
    watch_trouble(w, err);
    watch_rest(w, back_off(1000, w->failures++), WATCH_WAITING);
}

void watch_confirmed(struct nacos_watch *w, double unix_time, const char *server)
{
    nacos_engine *e = w->client->engine;
    if (!w->known) { /* nothing is known but that a poll did not list it: let the server say that it does not exist */
        watch_go(w, WATCH_READING);
        return;
    }
    w->failures = 0;
    w->trouble = NACOS_OK;
    pthread_mutex_lock(&e->lock);
    /* a value of a failover file is not the server's; a snapshot that the server confirms is */
    if (w->event.source == NACOS_FROM_SNAPSHOT) {
        w->event.source = NACOS_FROM_SERVER;
        snprintf(w->event.server, sizeof w->event.server, "%s", server);
    }
    if (w->event.source != NACOS_FROM_FAILOVER)
        w->event.confirmed = unix_time;
    pthread_mutex_unlock(&e->lock);
}

/* ---- values -------------------------------------------------------------------------------------------------------------- */

/** Until the end of the bunch that these milliseconds and the next turn lead to. */
static void rest_paced(struct nacos_watch *w, int64_t ms, int64_t *turn, int64_t pace, enum watch_state then)
{
    int64_t now = now_ms();
    *turn = (*turn > now ? *turn : now) + pace;
    ms += *turn - now;
    watch_rest(w, ms + BUNCH_MS - (now + ms) % BUNCH_MS, then);
}

/** It was told to have changed, and has not: it rests for longer each time, and the whole client has so many turns a second. */
static void rest_useless(struct nacos_watch *w)
{
    int64_t ms = back_off(200, w->spurious++);
    if (w->via == NACOS_VIA_PUSH && ms > REST_PUSHED_MS)
        ms = REST_PUSHED_MS;
    rest_paced(w, ms, &w->client->watches.useless, USELESS_MS, WATCH_WAITING);
}

/** A server answers, but not with its value. As long as this is so with all, they share the turns. */
static void rest_hopeless(struct nacos_watch *w, int64_t ms, enum watch_state then)
{
    struct watches *all = &w->client->watches;
    if (++all->failed <= HASTY)
        watch_rest(w, ms, then);
    else
        rest_paced(w, ms, &all->hopeless, HOPELESS_MS, then);
}

/** A server told the value, or that there is none. */
static void value_came(struct nacos_watch *w, struct value *v, bool listed)
{
    const char *md5 = v ? v->md5 : "";
    bool spurious = listed && strcmp(md5, w->poll_md5) == 0;
    int64_t now = now_ms();
    snprintf(w->poll_md5, sizeof w->poll_md5, "%s", md5);
    w->failures = 0;
    w->trouble = NACOS_OK;
    if (now - w->window > 1000) {
        w->window = now;
        w->changes = 0;
    }
    if (spurious) {
        rest_useless(w);
        return;
    }
    w->spurious = 0;
    if (++w->changes > CHANGES_PER_SECOND)
        watch_rest(w, 1000, WATCH_WAITING);
    else
        watch_go(w, WATCH_WAITING);
}

/** A copy of the table: the host may add to it meanwhile; only this thread frees watches. free(). */
static struct nacos_watch **all_watches(struct nacos_client *c, size_t *n)
{
    struct nacos_watch *w, *tmp;
    *n = 0;
    pthread_mutex_lock(&c->engine->lock);
    struct nacos_watch **all = malloc(sizeof *all * (HASH_COUNT(c->watches.table) + 1));
    HASH_ITER (hh, c->watches.table, w, tmp) {
        if (all)
            all[(*n)++] = w;
    }
    pthread_mutex_unlock(&c->engine->lock);
    return all;
}

/** A read has not failed. If all had since the last that did not, those that rest need not wait for their turns. */
static void give_hope(struct nacos_client *c)
{
    struct watches *all = &c->watches;
    int failed = all->failed, resting = 0;
    size_t n;
    all->failed = 0;
    if (failed <= HASTY)
        return;
    struct nacos_watch **some = all_watches(c, &n);
    for (size_t i = 0; i < n; i++)
        resting += some[i]->state == WATCH_RESTING && some[i]->failures > 0;
    all->hopeless = 0;
    for (size_t i = 0, turn = 0; i < n && failed >= resting; i++)
        if (some[i]->state == WATCH_RESTING && some[i]->failures > 0)
            watch_rest(some[i], (int64_t)turn++ * RELEASE_MS, WATCH_READING);
    free(some);
}

void watch_read(struct nacos_watch *w, struct value *v, const nacos_error *err)
{
    struct nacos_client *c = w->client;
    bool listed = w->listed;
    w->listed = false;
    w->read = NULL;
    if (err->code == NACOS_CLOSED) {
        leave_state(w);
        return;
    }
    bool told = v || err->code == NACOS_NOT_FOUND;
    struct value *over = config_file(c, c->failover_base, &w->key);
    if (over)
        deliver(w, over, NACOS_FROM_FAILOVER, NACOS_VIA_NONE, "");
    else if (told)
        deliver(w, v, NACOS_FROM_SERVER, listed ? w->via : NACOS_VIA_READ, err->server);
    if (told) {
        value_came(w, v, listed);
        give_hope(c);
    } else if (config_unknown(err)) {
        struct value *old = w->known || c->no_snapshot ? NULL : saver_read(&c->saver, &w->key);
        if (old) {
            deliver(w, old, NACOS_FROM_SNAPSHOT, NACOS_VIA_NONE, "");
            memcpy(w->poll_md5, old->md5, sizeof w->poll_md5); /* the first answer of a server tells whether it still is so */
        }
        value_unref(old);
        if (err->code == NACOS_PROTOCOL) {
            watch_trouble(w, err);
            rest_hopeless(w, back_off(100, w->failures++), WATCH_WAITING);
        } else {
            watch_rest(w, back_off(100, w->failures++), WATCH_WAITING);
        }
    } else {
        watch_trouble(w, err);
        rest_hopeless(w, back_off(1000, w->failures++), WATCH_READING);
    }
    value_unref(over);
}

void watch_changed(struct nacos_watch *w, nacos_via via)
{
    w->listed = true;
    w->via = via;
    watch_go(w, WATCH_READING);
}

void watch_nudge(struct nacos_client *c)
{
    if (c->dialect.now)
        c->dialect.now->detector->nudge(c);
}

void watch_detector_changed(struct nacos_client *c, const struct detector *before)
{
    const struct detector *d = c->dialect.now ? c->dialect.now->detector : NULL;
    size_t n;
    struct nacos_watch **all = all_watches(c, &n);
    for (size_t i = 0; i < n; i++)
        if ((all[i]->state == WATCH_WAITING || all[i]->state == WATCH_ARMED) && all[i]->detector != d)
            watch_go(all[i], WATCH_WAITING);
    free(all);
    if (before && before != d)
        before->shut(c);
}

/* ---- failover files ------------------------------------------------------------------------------------------------------ */

static void recheck(struct nacos_watch *w)
{
    bool was = w->event.source == NACOS_FROM_FAILOVER; /* only the loop writes it */
    struct value *over = config_file(w->client, w->client->failover_base, &w->key);
    if (over)
        deliver(w, over, NACOS_FROM_FAILOVER, NACOS_VIA_NONE, "");
    else if (was && w->state != WATCH_READING)
        watch_go(w, WATCH_READING);
    value_unref(over);
}

static void look_for_failover(void *arg)
{
    struct nacos_client *c = arg;
    struct watches *all = &c->watches;
    struct stat st;
    if (stat(c->failover_base, &st) != 0)
        memset(&st, 0, sizeof st);
    bool same = st.st_mtim.tv_sec == all->failover_mtime.tv_sec && st.st_mtim.tv_nsec == all->failover_mtime.tv_nsec;
    if (same && all->failovers == 0)
        return;
    all->failover_mtime = st.st_mtim;
    size_t n;
    struct nacos_watch **some = all_watches(c, &n);
    for (size_t i = 0; i < n; i++)
        if (!same || some[i]->event.source == NACOS_FROM_FAILOVER)
            recheck(some[i]);
    free(some);
}

void watch_look_for_failover(struct nacos_client *c)
{
    if (!c->closing && !c->watches.failover_timer.slot)
        timer_set(&c->engine->timers, &c->watches.failover_timer, 0, look_for_failover, c);
}

/* ---- the host's side ----------------------------------------------------------------------------------------------------- */

struct watch_job {
    struct job job;
    struct nacos_watch *watch;
};

static void begin_run(struct job *job)
{
    watch_go(((struct watch_job *)job)->watch, WATCH_READING);
    free(job);
}

static bool post_job(struct nacos_watch *w, void (*run)(struct job *))
{
    struct watch_job *j = calloc(1, sizeof *j);
    if (!j)
        return false;
    j->job.run = run;
    j->watch = w;
    engine_post(w->client->engine, &j->job);
    return true;
}

struct nacos_watch *watch_find(struct nacos_client *c, const struct key *k)
{
    char name[KEY_NAME_MAX];
    size_t n = key_name(name, sizeof name, k);
    struct nacos_watch *w = NULL;
    if (!n)
        return NULL;
    pthread_mutex_lock(&c->engine->lock);
    HASH_FIND(hh, c->watches.table, name, n, w);
    pthread_mutex_unlock(&c->engine->lock);
    return w;
}

nacos_watch *nacos_watch_config(nacos_client *c, const char *data_id, const char *group)
{
    nacos_engine *e = c->engine;
    size_t n = strlen(data_id) + strlen(group) + 2;
    struct nacos_watch *w = calloc(1, sizeof *w + n), *same = NULL;
    if (!w)
        return NULL;
    key_name(w->name, n, &(struct key){data_id, group, c->ns});
    w->key = (struct key){w->name, w->name + strlen(data_id) + 1, c->ns};
    w->client = c;
    w->refs = 1;
    w->event.slot = true;
    w->event.kind = NACOS_EVENT_CONFIG;
    w->event.id = engine_next_id(e);
    pthread_mutex_lock(&e->lock);
    HASH_FIND(hh, c->watches.table, w->name, n, same);
    if (same) {
        same->refs++;
    } else {
        HASH_ADD_KEYPTR(hh, c->watches.table, w->name, n, w);
        c->status.watches++;
    }
    pthread_mutex_unlock(&e->lock);
    if (same) {
        free(w);
        return same;
    }
    if (!post_job(w, begin_run)) {
        pthread_mutex_lock(&e->lock);
        HASH_DEL(c->watches.table, w);
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

/** With the lock held. */
static void withdraw_events(struct nacos_watch *w)
{
    if (w->event.queued || w->told) /* else there is no need to walk the list */
        engine_withdraw_locked(w->client->engine, w->event.id);
}

/** On the loop, when it is in no table any more. */
static void watch_free(struct nacos_watch *w)
{
    struct nacos_client *c = w->client;
    leave_state(w);
    c->watches.failovers -= w->event.source == NACOS_FROM_FAILOVER;
    pthread_mutex_lock(&c->engine->lock);
    withdraw_events(w);
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
        HASH_DEL(c->watches.table, w);
        c->status.watches--;
        engine_withdraw_locked(e, w->event.id);
    }
    pthread_mutex_unlock(&e->lock);
    if (last)
        post_job(w, unwatch_run);
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
        out->via = ev->via;
        out->version = ev->version;
        out->confirmed = ev->confirmed;
        memcpy(out->server, ev->server, sizeof out->server);
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

void watch_shut(struct nacos_client *c)
{
    struct nacos_watch *w, *tmp;
    timer_clear(&c->engine->timers, &c->watches.failover_timer);
    pthread_mutex_lock(&c->engine->lock);
    struct nacos_watch *all = c->watches.table;
    c->watches.table = NULL;
    pthread_mutex_unlock(&c->engine->lock);
    HASH_ITER (hh, all, w, tmp) {
        HASH_DELETE(hh, all, w);
        watch_free(w);
    }
}
