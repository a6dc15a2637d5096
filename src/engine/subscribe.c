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
static void deliver(struct nacos_subscription *s, struct hosts *h, nacos_source source, nacos_via via, size_t held)
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
    if (news)
        ev->via = via;
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
static void take(struct nacos_subscription *s, struct hosts *h, nacos_via via)
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
    deliver(s, merged ? merged : h, NACOS_FROM_SERVER, via, merged ? missing : 0);
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
        deliver(s, over, NACOS_FROM_FAILOVER, NACOS_VIA_NONE, 0);
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
static const char *take_push(struct nacos_subscription *s, struct hosts *h, nacos_via via)
{
    if (s->event.source == NACOS_FROM_FAILOVER)
        return "a failover file says what the list is";
    if (h->view.ref_time <= s->ref_time)
        return "it is not newer than what is known";
    struct hosts *mine = hosts_in_clusters(h, s->clusters);
    if (!mine)
        return "out of memory";
    take(s, mine, via);
    hosts_unref(mine);
    if (s->hold_until && !s->request)
        ask_later(s); /* not after the end of the hold */
    return NULL;
}

/** Does the push tell all that this subscription wants to know? A stream brings whole services. */
static bool exact(const struct nacos_subscription *s, const struct hosts *h, nacos_via via)
{
    return subscribes(s, h) && (strcmp(s->clusters, h->clusters) == 0 || (via == NACOS_VIA_PUSH && !*h->clusters));
}

bool subscribe_pushed(struct nacos_client *c, struct hosts *h, bool trusted, nacos_via via, const char **why)
{
    struct nacos_subscription *first = NULL;
    bool sure = trusted, taken = false;
    *why = "no such service is followed";
    for (struct nacos_subscription *s = c->subscriptions; s; s = s->next) {
        if (!exact(s, h, via))
            continue;
        first = first ? first : s;
        sure &= strcmp(s->key.ns, first->key.ns) == 0;
    }
    /* a push names no namespace, and the sender of a datagram may be anybody: then let the servers say what is true */
    sure &= first != NULL;
    for (struct nacos_subscription *s = c->subscriptions; s && sure; s = s->next) {
        if (!exact(s, h, via))
            continue;
        const char *not_taken = take_push(s, h, via);
        if (!taken)
            *why = not_taken;
        taken |= !not_taken;
    }
    /* a server pushes with the clusters of the question that came last, once for all who follow the service */
    for (struct nacos_subscription *s = c->subscriptions; s; s = s->next) {
        if (!subscribes(s, h) || (sure && (exact(s, h, via) || !taken)))
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
    const struct protocol *p = s->client->dialect.now;
    int64_t ms = s->interval, now = now_ms(), follow = p ? p->follow_ms : 0;
    if (follow) {
        ms = ms > follow ? ms : follow;
    } else {
        if (s->cache_ms && ms > s->cache_ms)
            ms = s->cache_ms > CACHE_MIN_MS ? s->cache_ms : CACHE_MIN_MS;
        if (s->pushable && ms > PUSH_INTERVAL_MS)
            ms = PUSH_INTERVAL_MS;
    }
    int64_t retry = (int64_t)RETRY_MS << (s->failures < 6 ? s->failures : 6);
    if ((s->failures || s->older) && ms > retry)
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
        deliver(s, old, NACOS_FROM_SNAPSHOT, NACOS_VIA_NONE, 0);
    }
    hosts_unref(old);
}

/** Where servers that push by datagrams shall send them. */
static struct push_address udp_address(struct nacos_client *c)
{
    return c->dialect.now && c->dialect.now->udp ? push_address(&c->push) : (struct push_address){0};
}

static void on_answer(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct nacos_subscription *s = arg;
    s->request = NULL;
    if (err->code == NACOS_CLOSED)
        return;
    struct hosts *all = err->code == NACOS_OK ? question_hosts(q, r) : NULL, *h = all ? hosts_in_clusters(all, s->clusters) : NULL;
    bool first_push = h && !s->pushable && udp_address(s->client).port;
    hosts_unref(all);
    if (overridden(s)) {
        s->failures = h ? 0 : s->failures + 1;
        s->older = false;
    } else if (h && h->view.ref_time && h->view.ref_time < s->ref_time && !s->older) {
        s->older = true; /* a push was faster than this answer. Twice in a row: it is another clock, of another server */
    } else if (h) {
        s->failures = 0;
        s->older = false;
        take(s, h, current(s) ? NACOS_VIA_COMPARE : NACOS_VIA_READ);
    } else {
        nacos_error odd = *err;
        if (err->code == NACOS_OK)
            judged(q, r, &odd, NACOS_PROTOCOL, VERDICT_ANSWER, "the answer is no list of instances");
        no_answer(s, &odd);
    }
    hosts_unref(h);
    if (first_push || s->again)
        timer_set(&s->client->engine->timers, &s->timer, 0, ask, s); /* only now is it known which address to push to */
    else
        ask_later(s);
}

static bool word_follow(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct nacos_subscription *s = arg;
    (void)err;
    p->follow(q, &s->key, s->clusters, &s->push);
    return true;
}

static void ask(void *arg)
{
    struct nacos_subscription *s = arg;
    struct nacos_client *c = s->client;
    s->asked = now_ms();
    s->again = false;
    s->push = udp_address(c);
    s->pushable = s->push.port != 0;
    s->request = request_start(c, word_follow, ASK_MS, on_answer, s);
    if (!s->request)
        ask_later(s);
}

void subscribe_renew(struct nacos_client *c)
{
    for (struct nacos_subscription *s = c->subscriptions; s; s = s->next) {
        s->failures = 0;
        s->ref_time = 0; /* of another server's clock, perhaps */
        if (s->request)
            s->again = true;
        else
            timer_set(&c->engine->timers, &s->timer, 0, ask, s);
    }
}

/** "Push no more of this", told to the server after its subscription is gone. */
struct goodbye {
    struct nacos_client *client;
    struct key key;
    char *clusters;
};

static bool same_service(const struct key *a, const struct key *b)
{
    return strcmp(a->data_id, b->data_id) == 0 && strcmp(a->group, b->group) == 0 && strcmp(a->ns, b->ns) == 0;
}

static bool followed(struct nacos_client *c, const struct key *k)
{
    struct nacos_subscription *s = c->subscriptions;
    while (s && !same_service(&s->key, k))
        s = s->next;
    return s != NULL;
}

static bool word_goodbye(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct goodbye *g = arg;
    (void)err;
    if (!p->unfollow || followed(g->client, &g->key))
        return false;
    p->unfollow(q, &g->key, g->clusters);
    q->retry = RETRY_NEVER; /* another connection was never told to push it */
    return true;
}

static void free_goodbye(struct goodbye *g)
{
    free((char *)g->key.data_id);
    free((char *)g->key.group);
    free((char *)g->key.ns);
    free(g->clusters);
    free(g);
}

/** Whoever follows it again did not wait for this: in which order the server took the two nobody knows. */
static void on_goodbye(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct goodbye *g = arg;
    (void)r;
    for (struct nacos_subscription *s = g->client->subscriptions; s && q && err->code != NACOS_CLOSED; s = s->next) {
        if (!same_service(&s->key, &g->key))
            continue;
        if (s->request)
            s->again = true;
        else
            hint(s);
    }
    free_goodbye(g);
}

/** Unless others of this client follow the service: a server knows one follower per connection. Takes key and clusters over. */
static void say_goodbye(struct nacos_subscription *s)
{
    struct nacos_client *c = s->client;
    struct goodbye *g;
    if (c->closing || c->leaving || !c->dialect.now || !c->dialect.now->unfollow || followed(c, &s->key))
        return;
    if (!(g = malloc(sizeof *g)))
        return;
    *g = (struct goodbye){c, s->key, s->clusters};
    s->key = (struct key){0};
    s->clusters = NULL;
    if (!request_start(c, word_goodbye, ASK_MS, on_goodbye, g))
        free_goodbye(g);
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
    say_goodbye(s);
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
