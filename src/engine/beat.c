#include "engine/beat.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "engine/client.h"

#define TICK_MS 100     /* due times lie on this grid */
#define AT_ONCE 4       /* beats on their way; enough for 10,000 instances at 2 ms a beat */
#define AT_ONCE_LATE 12 /* while the oldest is late */
#define LATE_MS 1000
#define BEAT_MS 3000 /* for one beat, servers in turn */
#define REGISTER_MS 3000
#define INTERVAL_MIN_MS 500
#define INTERVAL_MAX_MS 86400000 /* a day */
#define PROBE_MIN_MS 100
#define PROBE_MAX_MS 1000
#define REFUSED_MS 5000 /* a server said no: not sooner than this again */
#define NAME_BYTES 1200

struct registration {
    UT_hash_handle hh;
    struct beats *beats;
    struct key service;
    struct hosts *instance; /* a list of one */
    int64_t interval, due;
    struct timer timer;
    struct registration *next; /* in the queue */
    bool queued, gone;         /* gone: in no table; freed when its request ends */
    bool light;                /* the server takes light beats, and has had a whole one */
    bool changed;              /* the instance is another than the request under way says */
    bool forgotten;            /* the server said that it does not know it */
    struct request *request;
    nacos_code trouble; /* the last one logged */
    void (*idle)(void *arg);
    void *idle_arg;
    char name[]; /* service NUL group NUL namespace NUL ip NUL port NUL */
};

static void pump(struct beats *b);

void beats_init(struct beats *b, struct nacos_client *c)
{
    b->client = c;
    b->queue_end = &b->queue;
}

static const nacos_instance *instance_of(const struct registration *r)
{
    return &r->instance->view.list[0];
}

static size_t name_of(char out[NAME_BYTES], const struct key *k, const char *ip, int port)
{
    size_t n = 0;
    char digits[16];
    snprintf(digits, sizeof digits, "%d", port);
    const char *parts[] = {k->data_id, k->group, k->ns, ip, digits};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t len = strlen(parts[i]) + 1;
        if (n + len > NAME_BYTES)
            return 0;
        memcpy(out + n, parts[i], len);
        n += len;
    }
    return n;
}

static struct registration *find(struct beats *b, const struct key *k, const char *ip, int port)
{
    char name[NAME_BYTES];
    size_t n = name_of(name, k, ip, port);
    struct registration *r = NULL;
    if (n)
        HASH_FIND(hh, b->table, name, n, r);
    return r;
}

const struct hosts *beat_instance(struct beats *b, const struct key *k, const char *ip, int port)
{
    struct registration *r = find(b, k, ip, port);
    return r ? r->instance : NULL;
}

static void count(struct beats *b)
{
    nacos_engine *e = b->client->engine;
    pthread_mutex_lock(&e->lock);
    b->client->status.instances = (int)HASH_COUNT(b->table);
    pthread_mutex_unlock(&e->lock);
}

/* ---- when ---------------------------------------------------------------------------------------------------------------- */

static void push_queue(struct registration *r)
{
    struct beats *b = r->beats;
    r->queued = true;
    r->next = NULL;
    *b->queue_end = r;
    b->queue_end = &r->next;
}

static void leave_queue(struct registration *r)
{
    struct beats *b = r->beats;
    timer_clear(&b->client->engine->timers, &r->timer);
    if (!r->queued)
        return;
    struct registration **p = &b->queue;
    while (*p != r)
        p = &(*p)->next;
    *p = r->next;
    if (!*p)
        b->queue_end = p;
    r->queued = false;
}

static void is_due(void *arg)
{
    struct registration *r = arg;
    push_queue(r);
    pump(r->beats);
}

static void sleep_until(struct registration *r, int64_t due)
{
    int64_t now = now_ms();
    r->due = due;
    due = (due + TICK_MS - 1) / TICK_MS * TICK_MS;
    timer_set(&r->beats->client->engine->timers, &r->timer, due > now ? due - now : 0, is_due, r);
}

static int64_t bounded(int64_t interval_ms)
{
    return interval_ms < INTERVAL_MIN_MS ? INTERVAL_MIN_MS : interval_ms > INTERVAL_MAX_MS ? INTERVAL_MAX_MS : interval_ms;
}

static void next_interval(struct registration *r)
{
    int64_t now = now_ms(), due = r->due + r->interval;
    sleep_until(r, due > now ? due : now + r->interval);
}

/* ---- the end of one ------------------------------------------------------------------------------------------------------ */

static void free_registration(struct registration *r)
{
    leave_queue(r);
    hosts_unref(r->instance);
    free(r);
}

/** Its request is over, and it was stopped meanwhile. */
static void finish(struct registration *r)
{
    if (r->idle)
        r->idle(r->idle_arg);
    free_registration(r);
}

static void take_out(struct registration *r)
{
    HASH_DEL(r->beats->table, r);
    leave_queue(r);
    r->gone = true;
    count(r->beats);
}

void beat_stop(struct beats *b, const struct key *k, const char *ip, int port, void (*idle)(void *arg), void *arg)
{
    struct registration *r = find(b, k, ip, port);
    if (!r) {
        idle(arg);
        return;
    }
    take_out(r);
    r->idle = idle;
    r->idle_arg = arg;
    if (!r->request)
        finish(r);
}

/* ---- one beat ------------------------------------------------------------------------------------------------------------ */

/** A server is there, but says no; the operator should know, once per reason. */
static void tell(struct registration *r, const nacos_error *err)
{
    if (r->trouble != err->code)
        log_write(r->beats->client->log, LOG_WARN, "%s; it goes on trying", err->message);
    r->trouble = err->code;
}

static void probe(void *arg)
{
    pump(arg);
}

static void no_server(struct beats *b)
{
    if (b->probe.slot || b->left)
        return; /* others of the same moment have said so */
    int64_t ms = (int64_t)PROBE_MIN_MS << (b->failures < 6 ? b->failures : 6);
    b->failures++;
    b->stopped = true;
    timer_set(&b->client->engine->timers, &b->probe, ms < PROBE_MAX_MS ? ms : PROBE_MAX_MS, probe, b);
}

static void a_server(struct beats *b)
{
    b->failures = 0;
    b->stopped = false;
    timer_clear(&b->client->engine->timers, &b->probe);
}

/** Common to the ends of all requests. True: the registration lives on. */
static bool ended(struct registration *r, const nacos_error *err)
{
    struct beats *b = r->beats;
    r->request = NULL;
    b->in_flight--;
    if (err->code == NACOS_UNAVAILABLE || err->code == NACOS_PROTOCOL)
        no_server(b);
    else if (err->code != NACOS_CLOSED)
        a_server(b);
    if (!r->gone && !b->left)
        return true;
    if (r->gone)
        finish(r);
    else
        push_queue(r);
    pump(b);
    return false;
}

static void failed(struct registration *r, const nacos_error *err)
{
    r->light = false;
    if (err->code == NACOS_UNAVAILABLE || err->code == NACOS_PROTOCOL) {
        push_queue(r);
    } else {
        tell(r, err);
        sleep_until(r, now_ms() + (r->interval > REFUSED_MS ? r->interval : REFUSED_MS));
    }
}

static void register_again(struct registration *r);

static void on_registered(void *arg, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    (void)resp;
    if (!ended(r, err))
        return;
    if (err->code == NACOS_OK) {
        const nacos_instance *i = instance_of(r);
        if (r->forgotten)
            log_write(r->beats->client->log, LOG_INFO, "registered %s:%d of %s (group %s) again at %s, which had forgotten it",
                      i->ip, i->port, r->service.data_id, r->service.group, err->server);
        r->forgotten = false;
        r->trouble = NACOS_OK;
        if (r->changed)
            register_again(r);
        else
            next_interval(r);
    } else if (err->code != NACOS_CLOSED) {
        failed(r, err);
    }
    pump(r->beats);
}

static void register_again(struct registration *r)
{
    struct nacos_client *c = r->beats->client;
    struct question q;
    r->light = r->changed = false;
    c->protocol->register_instance(&q, &r->service, instance_of(r));
    q.lasting = true;
    r->request = request_start(c, &q, REGISTER_MS, on_registered, r);
    if (r->request)
        r->beats->in_flight++;
    else
        sleep_until(r, now_ms() + r->interval);
}

static void on_beat(void *arg, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    struct beats *b = r->beats;
    struct nacos_client *c = b->client;
    struct beat_answer answer;
    if (!ended(r, err))
        return;
    if (err->code == NACOS_OK && c->protocol->beat_answer(resp, &answer)) {
        pthread_mutex_lock(&c->engine->lock);
        c->status.beats++;
        c->status.reregistrations += answer.unknown;
        pthread_mutex_unlock(&c->engine->lock);
        if (answer.interval_ms > 0)
            r->interval = bounded(answer.interval_ms);
        if (answer.unknown) {
            r->forgotten = true;
            register_again(r);
        } else {
            r->light = answer.light && !r->changed;
            r->trouble = NACOS_OK;
            next_interval(r);
        }
    } else if (err->code != NACOS_CLOSED) {
        failed(r, err);
    }
    pump(b);
}

static void send_beat(struct registration *r)
{
    struct nacos_client *c = r->beats->client;
    struct question q;
    r->changed = false;
    c->protocol->beat(&q, &r->service, instance_of(r), r->interval, r->light);
    q.lasting = true;
    r->request = request_start(c, &q, BEAT_MS, on_beat, r);
    if (r->request)
        r->beats->in_flight++;
    else
        sleep_until(r, now_ms() + TICK_MS); /* out of memory */
}

static void leave_one(struct registration *r);

static int at_once(const struct beats *b)
{
    if (b->stopped)
        return b->probe.slot ? 0 : 1;
    return now_ms() - b->queue->due > LATE_MS ? AT_ONCE_LATE : AT_ONCE;
}

static void pump(struct beats *b)
{
    while (b->queue && b->in_flight < at_once(b)) {
        struct registration *r = b->queue;
        leave_queue(r);
        if (b->left)
            leave_one(r);
        else
            send_beat(r);
    }
    if (b->left && !b->table && b->in_flight == 0 && b->others == 0)
        b->left(b->client);
}

void beats_other(struct beats *b, int change)
{
    b->others += change;
    pump(b);
}

/* ---- begin, change, leave ------------------------------------------------------------------------------------------------ */

static void replace(struct registration *r, struct hosts *instance)
{
    hosts_unref(r->instance);
    r->instance = hosts_ref(instance);
    r->light = false;
    r->changed = true;
}

bool beat_start(struct beats *b, const struct key *k, struct hosts *instance, int64_t interval_ms)
{
    const nacos_instance *i = &instance->view.list[0];
    struct registration *r = find(b, k, i->ip, i->port);
    int64_t phase;
    if (r) {
        replace(r, instance);
        r->interval = bounded(interval_ms);
        r->trouble = NACOS_OK;
        if (r->timer.slot && r->due > now_ms() + r->interval)
            sleep_until(r, now_ms() + r->interval);
        return true;
    }
    char name[NAME_BYTES];
    size_t n = name_of(name, k, i->ip, i->port);
    r = n ? calloc(1, sizeof *r + n) : NULL;
    if (!r)
        return false;
    memcpy(r->name, name, n);
    r->beats = b;
    r->service.data_id = r->name;
    r->service.group = r->name + strlen(r->name) + 1;
    r->service.ns = r->service.group + strlen(r->service.group) + 1;
    r->instance = hosts_ref(instance);
    r->interval = bounded(interval_ms);
    HASH_ADD_KEYPTR(hh, b->table, r->name, n, r);
    count(b);
    /* multiples of the golden ratio fall into the largest gap each time: any number of them is spread */
    phase = (int64_t)((double)r->interval * ((double)(b->born++ * 2654435769u) / 4294967296.0));
    if (b->left) {
        push_queue(r); /* the client leaves: so does this */
        pump(b);
    } else {
        sleep_until(r, now_ms() + (phase > TICK_MS ? phase : TICK_MS));
    }
    return true;
}

void beat_change(struct beats *b, const struct key *k, struct hosts *instance)
{
    const nacos_instance *i = &instance->view.list[0];
    struct registration *r = find(b, k, i->ip, i->port);
    if (r)
        replace(r, instance);
}

bool beats_any(const struct beats *b)
{
    return b->table || b->in_flight || b->others;
}

static void on_left(void *arg, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    struct beats *b = r->beats;
    (void)resp;
    r->request = NULL;
    b->in_flight--;
    bool no_use = err->code == NACOS_UNAVAILABLE && b->left;
    if (err->code != NACOS_OK && err->code != NACOS_CLOSED)
        log_write(b->client->log, LOG_WARN, "%s; it expires there by itself%s", err->message, no_use ? ", as others may" : "");
    finish(r);
    if (no_use)
        b->left(b->client);
    else
        pump(b);
}

static void leave_one(struct registration *r)
{
    struct beats *b = r->beats;
    struct nacos_client *c = b->client;
    struct question q;
    take_out(r);
    c->protocol->deregister_instance(&q, &r->service, instance_of(r));
    r->request = request_start(c, &q, BEAT_MS, on_left, r);
    if (r->request)
        b->in_flight++;
    else
        finish(r);
}

void beats_leave(struct beats *b, void (*left)(struct nacos_client *c))
{
    struct registration *r, *tmp;
    b->left = left;
    a_server(b);
    b->queue = NULL;
    b->queue_end = &b->queue;
    HASH_ITER (hh, b->table, r, tmp) {
        timer_clear(&b->client->engine->timers, &r->timer);
        r->queued = false;
        r->due = 0;      /* all are late */
        if (!r->request) /* else when it ends */
            push_queue(r);
    }
    pump(b);
}

void beats_shut(struct beats *b)
{
    struct registration *r, *tmp;
    b->left = NULL;
    timer_clear(&b->client->engine->timers, &b->probe);
    b->queue = NULL;
    b->queue_end = &b->queue;
    HASH_ITER (hh, b->table, r, tmp) {
        HASH_DEL(b->table, r);
        r->queued = false;
        request_cancel(r->request);
        free_registration(r);
    }
}
