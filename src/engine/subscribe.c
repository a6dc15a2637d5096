#include "engine/subscribe.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/naming.h"

#define INTERVAL_MS 7000 /* as the Python SDK */
#define INTERVAL_MIN_MS 100
#define CACHE_MIN_MS 1000     /* a server that says less is not believed */
#define PUSH_INTERVAL_MS 8000 /* 1.x forgets a subscriber 10 s after its question, and takes up to a second to push */
#define HOLD_MS 10000
#define ASK_MS 5000 /* for one question, servers in turn */
#define RETRY_MS 500
#define HINT_MS 1000 /* at most one question in so long because of datagrams from unknown senders */

static void ask(void *arg);

/* ---- events -------------------------------------------------------------------------------------------------------------- */

static struct hosts *current(const struct nacos_subscription *s)
{
    return s->event.hosts; /* only this thread changes it */
}

/** Makes `h` the newest list; an event only if that is news. */
static void deliver(struct nacos_subscription *s, struct hosts *h, nacos_source source, size_t held)
{
    nacos_engine *e = s->client->engine;
    struct event *ev = &s->event;
    struct hosts *old = current(s);
    bool same = old && hosts_equal(old, h) && old->view.protection == h->view.protection;
    bool news = !same || (ev->held > 0) != (held > 0) || ev->source != source;
    pthread_mutex_lock(&e->lock);
    if (!same)
        ev->hosts = hosts_ref(h);
    ev->held = held;
    ev->source = source;
    if (news && !s->gone)
        engine_ready_locked(e, ev);
    pthread_mutex_unlock(&e->lock);
    if (!same)
        hosts_unref(old);
}

static void trouble(struct nacos_subscription *s, const nacos_error *err)
{
    if (s->trouble == err->code)
        return;
    s->trouble = err->code;
    log_write(s->client->log, LOG_WARN, "%s; it goes on trying", err->message);
    struct event *ev = event_new(s->event.id, NACOS_EVENT_TROUBLE);
    if (!ev)
        return;
    s->told = true;
    event_set_error(ev, err);
    engine_ready(s->client->engine, ev);
}

/* ---- lists --------------------------------------------------------------------------------------------------------------- */

static bool drops_too_much(const struct nacos_subscription *s, size_t missing)
{
    size_t known = current(s) ? current(s)->view.count : 0;
    if (missing == 0 || s->hold_ms < 0)
        return false;
    return missing == known || (double)missing > s->max_drop * (double)known;
}

/** A server says that this is the list. */
static void take(struct nacos_subscription *s, struct hosts *h)
{
    struct nacos_client *c = s->client;
    size_t missing =
        s->event.source == NACOS_FROM_FAILOVER ? 0 : hosts_missing(current(s), h); /* what an operator wrote is no loss */
    int64_t now = now_ms();
    s->ref_time = h->view.ref_time;
    s->cache_ms = h->view.cache_ms;
    s->trouble = NACOS_OK;
    if (h->view.skipped) {
        pthread_mutex_lock(&c->engine->lock);
        c->status.entries_skipped += h->view.skipped;
        pthread_mutex_unlock(&c->engine->lock);
    }
    bool hold = drops_too_much(s, missing) && (s->hold_until == 0 || now < s->hold_until);
    struct hosts *merged = hold ? hosts_union(current(s), h) : NULL;
    if (hold && s->hold_until == 0) {
        s->hold_until = now + s->hold_ms;
        log_write(c->log, LOG_WARN,
                  "%s (group %s): the answer lacks %zu of %zu instances; they are kept for %.3g s, unless it goes on so",
                  s->key.data_id, s->key.group, missing, current(s)->view.count, (double)s->hold_ms / 1000);
    } else if (!hold && s->hold_until) {
        s->hold_until = 0;
        log_write(c->log, LOG_WARN, "%s (group %s): %s", s->key.data_id, s->key.group,
                  missing ? "the missing instances are gone" : "the missing instances are back");
    }
    deliver(s, merged ? merged : h, NACOS_FROM_SERVER, merged ? missing : 0);
    if (!merged && !c->no_snapshot)
        naming_save(c, &s->key, s->clusters, h);
    hosts_unref(merged);
}

/** An operator's file comes before what servers say. True: there is one. */
static bool overridden(struct nacos_subscription *s)
{
    struct hosts *over = naming_failover(s->client, &s->key, s->clusters);
    if (over) {
        s->hold_until = 0;
        deliver(s, over, NACOS_FROM_FAILOVER, 0);
    }
    hosts_unref(over);
    return over != NULL;
}

static void ask_later(struct nacos_subscription *s);

static bool subscribes(const struct nacos_subscription *s, const struct hosts *h)
{
    return strcmp(s->key.data_id, h->name) == 0 && (!*h->group || strcmp(s->key.group, h->group) == 0);
}

/** The server shall be asked about it soon, not more than once in HINT_MS because of pushes. */
static void hint(struct nacos_subscription *s)
{
    int64_t since = now_ms() - s->asked;
    if (!s->request)
        timer_set(&s->client->engine->timers, &s->timer, since > HINT_MS ? 0 : HINT_MS - since, ask, s);
}

/** Why a list that was pushed for this subscription cannot be taken; NULL: it was. */
static const char *take_push(struct nacos_subscription *s, struct hosts *h)
{
    if (s->event.source == NACOS_FROM_FAILOVER)
        return "a failover file says what the list is";
    if (h->view.ref_time <= s->ref_time)
        return "it is not newer than what is known";
    take(s, h);
    if (s->hold_until && !s->request)
        ask_later(s); /* not after the end of the hold */
    return NULL;
}

bool subscribe_pushed(struct nacos_client *c, struct hosts *h, bool trusted, const char **why)
{
    struct nacos_subscription *exact = NULL;
    int matches = 0;
    *why = "no such service is followed";
    for (struct nacos_subscription *s = c->subscriptions; s; s = s->next) {
        if (subscribes(s, h) && strcmp(s->clusters, h->clusters) == 0) {
            exact = s;
            matches++;
        }
    }
    /* a datagram names no namespace, and its sender may be anybody: then let the servers say what is true */
    bool sure = matches == 1 && trusted, taken = false;
    if (sure) {
        *why = take_push(exact, h);
        taken = *why == NULL;
    }
    /* a server pushes with the clusters of the question that came last, once for all who follow the service */
    for (struct nacos_subscription *s = c->subscriptions; s; s = s->next) {
        if (!subscribes(s, h) || (sure && (s == exact || !taken)))
            continue;
        hint(s);
        if (!sure)
            *why = trusted ? "others may be meant: the server is asked"
                           : "it comes from no server of the list: the servers are asked instead";
    }
    return taken;
}

/* ---- questions ----------------------------------------------------------------------------------------------------------- */

/** Up to a tenth less, so that the questions of many clients do not meet. */
static int64_t jitter(int64_t ms)
{
    return ms - (int64_t)(uv_hrtime() / 1000 % (uint64_t)(ms / 10 + 1));
}

static void ask_later(struct nacos_subscription *s)
{
    int64_t ms = s->interval, now = now_ms();
    if (s->cache_ms && ms > s->cache_ms)
        ms = s->cache_ms > CACHE_MIN_MS ? s->cache_ms : CACHE_MIN_MS;
    if (s->pushable && ms > PUSH_INTERVAL_MS)
        ms = PUSH_INTERVAL_MS;
    int64_t retry = (int64_t)RETRY_MS << (s->failures < 6 ? s->failures : 6);
    if (s->failures && ms > retry)
        ms = retry;
    ms = jitter(ms);
    if (s->hold_until && !s->failures && ms > s->hold_until - now) /* when a hold is over, an answer decides */
        ms = s->hold_until > now ? s->hold_until - now : RETRY_MS;
    timer_set(&s->client->engine->timers, &s->timer, ms, ask, s);
}

static void no_answer(struct nacos_subscription *s, const nacos_error *err)
{
    struct nacos_client *c = s->client;
    s->failures++;
    if (!config_unknown(err) || err->code == NACOS_PROTOCOL)
        trouble(s, err);
    struct hosts *old = current(s) || c->no_snapshot || !config_unknown(err) ? NULL : naming_snapshot(c, &s->key, s->clusters);
    if (old) {
        log_write(c->log, LOG_WARN, "%s; the last list on disk is used until a server answers", err->message);
        deliver(s, old, NACOS_FROM_SNAPSHOT, 0);
    }
    hosts_unref(old);
}

static void on_answer(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct nacos_subscription *s = arg;
    s->request = NULL;
    if (err->code == NACOS_CLOSED)
        return;
    struct hosts *h = err->code == NACOS_OK ? hosts_parse(r->body.data, r->body.len) : NULL;
    bool first_push = h && !s->pushable && s->asked && push_address(&s->client->push).port;
    if (overridden(s)) {
        s->failures = h ? 0 : s->failures + 1;
    } else if (h && h->view.ref_time && h->view.ref_time < s->ref_time && !s->older) {
        s->older = true; /* a push was faster than this answer. Twice in a row: it is another clock, of another server */
    } else if (h) {
        s->failures = 0;
        s->older = false;
        take(s, h);
    } else {
        nacos_error odd = *err;
        if (err->code == NACOS_OK) {
            odd.code = NACOS_PROTOCOL;
            snprintf(odd.message, sizeof odd.message,
                     "cannot read the answer about %.500s (group %.256s) of %s: it is no list of instances", s->key.data_id,
                     s->key.group, err->server);
        }
        no_answer(s, &odd);
    }
    hosts_unref(h);
    if (first_push)
        timer_set(&s->client->engine->timers, &s->timer, 0, ask, s); /* only now is it known which address to push to */
    else
        ask_later(s);
}

static void ask(void *arg)
{
    struct nacos_subscription *s = arg;
    struct nacos_client *c = s->client;
    struct push_address push = push_address(&c->push);
    struct question q;
    s->asked = now_ms();
    s->pushable = push.port != 0;
    c->protocol->list_instances(&q, &s->key, s->clusters, false, &push);
    s->request = request_start(c, &q, ASK_MS, on_answer, s);
    if (!s->request)
        ask_later(s);
}

/* ---- the host's side ----------------------------------------------------------------------------------------------------- */

struct follow_job {
    struct job job;
    struct nacos_subscription *subscription;
    struct nacos_follow how;
};

static void apply(struct nacos_subscription *s, const nacos_follow *how)
{
    s->interval = how->interval_ms > 0 ? how->interval_ms : INTERVAL_MS;
    if (s->interval < INTERVAL_MIN_MS)
        s->interval = INTERVAL_MIN_MS;
    s->max_drop = how->max_drop > 0 ? how->max_drop : how->max_drop < 0 ? 0 : 1;
    s->hold_ms = how->hold_ms ? how->hold_ms : HOLD_MS;
}

static void begin_run(struct job *job)
{
    struct follow_job *j = (struct follow_job *)job;
    struct nacos_subscription *s = j->subscription;
    struct nacos_client *c = s->client;
    s->next = c->subscriptions;
    if (s->next)
        s->next->prev = s;
    c->subscriptions = s;
    apply(s, &j->how);
    free(j);
    overridden(s);
    ask(s);
}

static void change_run(struct job *job)
{
    struct follow_job *j = (struct follow_job *)job;
    struct nacos_subscription *s = j->subscription;
    apply(s, &j->how);
    if (s->timer.slot)
        ask_later(s);
    free(j);
}

static bool post_job(struct nacos_subscription *s, void (*run)(struct job *), const nacos_follow *how)
{
    struct follow_job *j = calloc(1, sizeof *j);
    if (!j)
        return false;
    j->job.run = run;
    j->subscription = s;
    if (how)
        j->how = *how;
    engine_post(s->client->engine, &j->job);
    return true;
}

static void count(struct nacos_client *c, int change)
{
    pthread_mutex_lock(&c->engine->lock);
    c->status.subscriptions += change;
    pthread_mutex_unlock(&c->engine->lock);
}

static void free_memory(struct nacos_subscription *s)
{
    hosts_unref(s->event.hosts);
    hosts_unref(s->event.seen);
    free((char *)s->key.data_id);
    free((char *)s->key.group);
    free((char *)s->key.ns);
    free(s->clusters);
    free(s);
}

nacos_subscription *nacos_follow_service(nacos_client *c, const nacos_service *service, const nacos_follow *how)
{
    struct key k = naming_key(c, service);
    struct nacos_subscription *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->client = c;
    s->key = (struct key){strdup(k.data_id), strdup(k.group), strdup(k.ns)};
    s->clusters = strdup(how && how->clusters ? how->clusters : "");
    s->event.slot = true;
    s->event.kind = NACOS_EVENT_SERVICE;
    s->event.id = engine_next_id(c->engine);
    if (!s->key.data_id || !s->key.group || !s->key.ns || !s->clusters || !post_job(s, begin_run, how)) {
        free_memory(s);
        return NULL;
    }
    count(c, 1);
    return s;
}

uint64_t nacos_subscription_id(const nacos_subscription *s)
{
    return s->event.id;
}

void nacos_refollow(nacos_subscription *s, const nacos_follow *how)
{
    post_job(s, change_run, how);
}

/** On the loop. */
static void end(struct nacos_subscription *s)
{
    struct nacos_client *c = s->client;
    nacos_engine *e = c->engine;
    timer_clear(&e->timers, &s->timer);
    request_cancel(s->request);
    if (s->prev)
        s->prev->next = s->next;
    else
        c->subscriptions = s->next;
    if (s->next)
        s->next->prev = s->prev;
    pthread_mutex_lock(&e->lock);
    if (s->event.queued || s->told)
        engine_withdraw_locked(e, s->event.id);
    pthread_mutex_unlock(&e->lock);
    free_memory(s);
}

static void end_run(struct job *job)
{
    end(((struct follow_job *)job)->subscription);
    free(job);
}

void nacos_unfollow(nacos_subscription *s)
{
    nacos_engine *e = s->client->engine;
    pthread_mutex_lock(&e->lock);
    s->gone = true;
    engine_withdraw_locked(e, s->event.id);
    pthread_mutex_unlock(&e->lock);
    count(s->client, -1);
    post_job(s, end_run, NULL);
}

void subscribe_shut(struct nacos_client *c)
{
    while (c->subscriptions)
        end(c->subscriptions);
}
