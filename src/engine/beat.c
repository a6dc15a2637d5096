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
#define END_MS 1000     /* after a deregistration that failed */

struct registration {
    UT_hash_handle hh;
    UT_hash_handle by_service;
    struct registration *sibling; /* the next of this service */
    struct beats *beats;
    struct key service;
    struct hosts *instance; /* a list of one */
    int64_t interval, due;
    struct timer timer;
    struct registration *next;     /* in the queue */
    bool queued, gone;             /* gone: in no table; freed when its request ends */
    bool light;                    /* the server takes light beats, and has had a whole one */
    bool changed;                  /* the instance is another than the request under way says */
    bool forgotten;                /* the server said that it does not know it */
    bool stale;                    /* it has to be registered before anything else */
    bool ending;                   /* the host has taken it away, but no server was told */
    bool replaced;                 /* by what is being worded */
    const struct protocol *retire; /* it is still registered in this way, too, and has to be deregistered in it */
    struct turn turn;
    struct request *request;
    nacos_code trouble; /* the last one logged */
    void (*idle)(void *arg);
    void *idle_arg;
    size_t service_len;
    char name[]; /* service NUL group NUL namespace NUL (service_len) ip NUL port NUL */
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

/** `ip` NULL: of the service. */
static size_t name_of(char out[PLACE_BYTES], const struct key *k, const char *ip, int port)
{
    size_t n = 0;
    char digits[16];
    snprintf(digits, sizeof digits, "%d", port);
    const char *parts[] = {k->data_id, k->group, k->ns, ip, digits};
    for (size_t i = 0; i < (ip ? 5 : 3); i++) {
        size_t len = strlen(parts[i]) + 1;
        if (n + len > PLACE_BYTES)
            return 0;
        memcpy(out + n, parts[i], len);
        n += len;
    }
    return n;
}

static struct registration *find(struct beats *b, const struct key *k, const char *ip, int port)
{
    char name[PLACE_BYTES];
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

static struct registration *siblings(struct beats *b, const char *service, size_t len)
{
    struct registration *r = NULL;
    HASH_FIND(by_service, b->services, service, len, r);
    return r;
}

static void join_service(struct registration *r)
{
    struct beats *b = r->beats;
    struct registration *first = siblings(b, r->name, r->service_len);
    if (first) {
        r->sibling = first->sibling;
        first->sibling = r;
    } else {
        HASH_ADD_KEYPTR(by_service, b->services, r->name, r->service_len, r);
    }
}

static void leave_service(struct registration *r)
{
    struct beats *b = r->beats;
    struct registration *s = siblings(b, r->name, r->service_len), *next = r->sibling;
    if (s == r) {
        HASH_DELETE(by_service, b->services, r);
        if (next)
            HASH_ADD_KEYPTR(by_service, b->services, next->name, next->service_len, next);
    } else {
        while (s->sibling != r)
            s = s->sibling;
        s->sibling = next;
    }
    r->sibling = NULL;
}

void beat_too_large(const struct key *k, const nacos_instance *i, const char *verb, nacos_error *err)
{
    char of[100] = "";
    if (i)
        snprintf(of, sizeof of, "%.64s:%d of ", i->ip, i->port);
    *err = (nacos_error){.code = NACOS_INVALID};
    snprintf(
        err->message, sizeof err->message,
        "cannot %s %s%.256s (group %.128s): the message that names all its instances here would be larger than a server reads; "
        "give them less metadata, or register some in another process",
        verb, of, k->data_id, k->group);
}

bool beat_word(struct beats *b, const struct protocol *p, struct question *q, bool deregister, const struct key *k,
               const nacos_instance *const *list, size_t count, nacos_error *err)
{
    char service[PLACE_BYTES];
    size_t len = name_of(service, k, NULL, 0), n = 0;
    struct registration *first = p->one_publisher && list[0]->ephemeral ? siblings(b, service, len) : NULL;
    for (struct registration *s = first; s; s = s->sibling)
        n++;
    const nacos_instance **with = malloc((n + count) * sizeof *with);
    if (!with) {
        *err = (nacos_error){.code = NACOS_NOMEM, .message = "out of memory"};
        return false;
    }
    for (size_t i = 0; first && i < count; i++) {
        struct registration *same = find(b, k, list[i]->ip, list[i]->port);
        if (same)
            same->replaced = true;
    }
    n = 0;
    for (struct registration *s = first; s; s = s->sibling) {
        if (!s->ending && !s->replaced)
            with[n++] = instance_of(s);
        s->replaced = false;
    }
    for (size_t i = 1; i < count && !deregister; i++) /* last: these may be left out */
        with[n++] = list[i];
    (deregister ? p->deregister_instance : p->register_instance)(q, k, list[0], with, n);
    free(with);
    if (q->left_out < (deregister ? 1 : count))
        return true;
    beat_too_large(k, NULL, q->verb, err);
    return false;
}

/** How instances live now. */
static bool by_beats(const struct beats *b)
{
    const struct protocol *now = b->client->dialect.now;
    return !now || now->beats;
}

static bool one_publisher(const struct beats *b)
{
    const struct protocol *now = b->client->dialect.now;
    return now && now->one_publisher;
}

void beat_turn(struct beats *b, struct turn *t, char name[PLACE_BYTES], const struct key *k, const nacos_instance *i,
               void (*go)(void *arg), void *arg)
{
    size_t n = name_of(name, k, i ? i->ip : NULL, i ? i->port : 0);
    turn_take(&b->turns, t, name, n, go, arg);
}

struct turn *beat_turn_holder(struct beats *b, const struct key *k)
{
    char name[PLACE_BYTES];
    size_t n = name_of(name, k, NULL, 0);
    return turn_holder(b->turns, name, n);
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

/** A server knows it: what is due next. */
static void next_interval(struct registration *r)
{
    if (!by_beats(r->beats))
        return;
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
    leave_service(r);
    leave_queue(r);
    if (r->turn.waits) {
        turn_end(&r->beats->turns, &r->turn);
        r->beats->in_flight--;
    }
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
    turn_end(&b->turns, &r->turn);
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

/** Starts the request of this registration. */
static bool put(struct registration *r, request_word word, int64_t timeout_ms, request_done done)
{
    r->request = request_start(r->beats->client, word, timeout_ms, done, r);
    if (r->request)
        r->beats->in_flight++;
    return r->request != NULL;
}

/** After its request: whatever is next, now. */
static void go_on(struct registration *r)
{
    r->due = now_ms();
    push_queue(r);
}

/** What is told of one instance was told of all of the service. */
static void all_told(struct registration *r)
{
    for (struct registration *s = siblings(r->beats, r->name, r->service_len); s; s = s->sibling) {
        if (s == r || s->request || !s->stale || s->ending)
            continue;
        s->stale = false;
        if (s->turn.waits)
            continue; /* it sees that when its turn comes */
        leave_queue(s);
        if (s->retire)
            go_on(s);
        else
            next_interval(s);
    }
}

static bool word_register(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct registration *r = arg;
    const nacos_instance *i = instance_of(r);
    return beat_word(r->beats, p, q, false, &r->service, &i, 1, err);
}

static void on_registered(void *arg, const struct question *q, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    (void)resp;
    if (!ended(r, err))
        return;
    if (err->code == NACOS_OK) {
        if (q->protocol->one_publisher)
            all_told(r);
        const nacos_instance *i = instance_of(r);
        if (r->forgotten)
            log_write(r->beats->client->log, LOG_INFO, "registered %s:%d of %s (group %s) again at %s, which had forgotten it",
                      i->ip, i->port, r->service.data_id, r->service.group, err->server);
        r->forgotten = false;
        r->trouble = NACOS_OK;
        if (r->changed || r->stale) {
            r->stale = true;
            go_on(r);
        } else if (r->retire) {
            go_on(r);
        } else {
            next_interval(r);
        }
    } else if (err->code != NACOS_CLOSED) {
        r->stale = true;
        failed(r, err);
    }
    turn_end(&r->beats->turns, &r->turn);
    pump(r->beats);
}

static void register_now(void *arg)
{
    struct registration *r = arg;
    struct beats *b = r->beats;
    r->light = r->changed = r->stale = false;
    if (put(r, word_register, REGISTER_MS, on_registered)) {
        request_lasts(r->request);
    } else {
        r->stale = true;
        turn_end(&b->turns, &r->turn);
        sleep_until(r, now_ms() + r->interval);
    }
}

static bool word_deregister(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct registration *r = arg;
    const nacos_instance *i = instance_of(r);
    return beat_word(r->beats, p, q, true, &r->service, &i, 1, err);
}

static void on_ended(void *arg, const struct question *q, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    struct beats *b = r->beats;
    (void)q, (void)resp;
    if (!ended(r, err))
        return;
    if (!r->ending) { /* meanwhile it was registered over HTTP */
        r->stale = true;
        go_on(r);
    } else if (err->code == NACOS_OK) {
        take_out(r);
    } else if (err->code != NACOS_CLOSED) {
        failed(r, err);
    }
    turn_end(&b->turns, &r->turn);
    if (r->gone)
        finish(r);
    pump(b);
}

static void end_now(struct registration *r)
{
    if (put(r, word_deregister, REGISTER_MS, on_ended)) {
        request_lasts(r->request);
    } else {
        turn_end(&r->beats->turns, &r->turn);
        sleep_until(r, now_ms() + END_MS);
    }
}

/** It may have had to wait for others of the service, and counted as in flight meanwhile. */
static void its_turn(void *arg)
{
    struct registration *r = arg;
    struct beats *b = r->beats;
    b->in_flight--;
    if (!b->left && (r->ending || r->stale)) {
        if (r->ending)
            end_now(r);
        else
            register_now(r);
        return;
    }
    turn_end(&b->turns, &r->turn);
    go_on(r);
    pump(b);
}

static void take_turn(struct registration *r)
{
    struct beats *b = r->beats;
    b->in_flight++;
    turn_take(&b->turns, &r->turn, r->name, r->service_len, its_turn, r);
}

static void register_again(struct registration *r)
{
    r->stale = true;
    if (one_publisher(r->beats))
        take_turn(r);
    else
        register_now(r);
}

static bool word_retire(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct registration *r = arg;
    (void)p, (void)err;
    if (!r->retire) /* that is the way of now again */
        return false;
    r->retire->deregister_instance(q, &r->service, instance_of(r), NULL, 0);
    q->core = false;
    return true;
}

static void on_retired(void *arg, const struct question *q, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    (void)q, (void)resp;
    r->retire = NULL;
    if (!ended(r, err))
        return;
    if (config_unknown(err) || err->code == NACOS_FORBIDDEN)
        log_write(r->beats->client->log, LOG_WARN, "%s; what was registered there by HTTP expires by itself", err->message);
    if (r->stale)
        go_on(r);
    else
        next_interval(r);
    pump(r->beats);
}

/** The instance is registered over the stream now. Left to itself, the same instance over HTTP would first become unhealthy and
 * then expire. */
static void retire(struct registration *r)
{
    if (put(r, word_retire, REGISTER_MS, on_retired))
        request_lasts(r->request);
    else
        r->retire = NULL;
}

static bool word_beat(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct registration *r = arg;
    if (!p->beats)
        return word_register(arg, p, q, err);
    p->beat(q, &r->service, instance_of(r), r->interval, r->light);
    return true;
}

static void on_beat(void *arg, const struct question *q, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    struct beats *b = r->beats;
    struct nacos_client *c = b->client;
    struct beat_answer answer;
    if (!ended(r, err))
        return;
    if (err->code == NACOS_OK && !q->beat) { /* it was registered instead, at a server without beats */
        if (r->stale || r->retire)
            go_on(r);
        else
            next_interval(r);
    } else if (err->code == NACOS_OK && q->beat(resp, &answer)) {
        pthread_mutex_lock(&c->engine->lock);
        c->status.beats++;
        c->status.reregistrations += answer.unknown;
        pthread_mutex_unlock(&c->engine->lock);
        if (answer.interval_ms > 0)
            r->interval = bounded(answer.interval_ms);
        if (answer.unknown) {
            r->forgotten = true;
            register_again(r);
        } else if (r->stale) {
            go_on(r);
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
    r->changed = false;
    if (put(r, word_beat, BEAT_MS, on_beat))
        request_lasts(r->request);
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
        else if (r->ending)
            take_turn(r);
        else if (r->stale)
            register_again(r);
        else if (r->retire)
            retire(r);
        else if (by_beats(b))
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

static struct registration *new_registration(struct beats *b, const struct key *k, struct hosts *instance)
{
    const nacos_instance *i = &instance->view.list[0];
    char name[PLACE_BYTES];
    size_t n = name_of(name, k, i->ip, i->port);
    struct registration *r = n ? calloc(1, sizeof *r + n) : NULL;
    if (!r)
        return NULL;
    memcpy(r->name, name, n);
    r->beats = b;
    r->service.data_id = r->name;
    r->service.group = r->name + strlen(r->name) + 1;
    r->service.ns = r->service.group + strlen(r->service.group) + 1;
    r->instance = hosts_ref(instance);
    r->service_len = name_of(name, k, NULL, 0);
    HASH_ADD_KEYPTR(hh, b->table, r->name, n, r);
    join_service(r);
    count(b);
    return r;
}

bool beat_start(struct beats *b, const struct key *k, struct hosts *instance, int64_t interval_ms, const struct protocol *by)
{
    const nacos_instance *i = &instance->view.list[0];
    struct registration *r = find(b, k, i->ip, i->port);
    bool known = r != NULL;
    if (known)
        replace(r, instance);
    else if (!(r = new_registration(b, k, instance)))
        return false;
    r->interval = bounded(interval_ms);
    r->trouble = NACOS_OK;
    r->ending = false;
    if (by != b->client->dialect.now) /* which changed meanwhile */
        r->stale = true;
    if (by->beats && !by_beats(b))
        r->retire = by;
    if (r->request || r->turn.waits || r->queued)
        return true;           /* when that ends */
    if (b->left || r->stale) { /* the client leaves: so does this */
        leave_queue(r);
        r->due = b->left ? 0 : now_ms();
        push_queue(r);
        pump(b);
    } else if (by_beats(b) && !known) {
        /* multiples of the golden ratio fall into the largest gap each time: any number of them is spread */
        int64_t phase = (int64_t)((double)r->interval * ((double)(b->born++ * 2654435769u) / 4294967296.0));
        sleep_until(r, now_ms() + (phase > TICK_MS ? phase : TICK_MS));
    } else if (r->timer.slot && r->due > now_ms() + r->interval) {
        sleep_until(r, now_ms() + r->interval);
    }
    return true;
}

void beat_end_later(struct beats *b, const struct key *k, struct hosts *instance)
{
    const nacos_instance *i = &instance->view.list[0];
    struct registration *r = find(b, k, i->ip, i->port);
    if (by_beats(b) || r || !(r = new_registration(b, k, instance)))
        return;
    r->interval = INTERVAL_MIN_MS;
    r->ending = true;
    if (b->left) {
        push_queue(r);
        pump(b);
    } else {
        sleep_until(r, now_ms() + END_MS);
    }
}

void beat_change(struct beats *b, const struct key *k, struct hosts *instance)
{
    const nacos_instance *i = &instance->view.list[0];
    struct registration *r = find(b, k, i->ip, i->port);
    if (r)
        replace(r, instance);
}

void beat_again(struct beats *b, const struct key *k, const nacos_instance *i)
{
    struct registration *r = find(b, k, i->ip, i->port);
    if (!r || r->ending || b->left)
        return;
    r->stale = true;
    if (r->request || r->turn.waits || r->queued)
        return; /* when that ends */
    leave_queue(r);
    go_on(r);
    pump(b);
}

void beats_renew(struct beats *b, const struct protocol *before)
{
    struct registration *r, *tmp;
    if (b->left)
        return;
    a_server(b);
    HASH_ITER (hh, b->table, r, tmp) {
        if (r->ending && !r->request) { /* it went with the connection */
            take_out(r);
            finish(r);
            continue;
        }
        r->stale = true;
        r->light = false;
        r->retire = by_beats(b) ? NULL : before && before->beats ? before : r->retire;
        if (r->request || r->turn.waits)
            continue; /* when that ends */
        leave_queue(r);
        go_on(r);
    }
    pump(b);
}

bool beats_any(const struct beats *b)
{
    return b->table || b->in_flight || b->others;
}

static void on_left(void *arg, const struct question *q, const struct http_response *resp, const nacos_error *err)
{
    struct registration *r = arg;
    struct beats *b = r->beats;
    (void)q, (void)resp;
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
    struct registration *s, *next;
    take_out(r);
    s = one_publisher(r->beats) ? siblings(r->beats, r->name, r->service_len) : NULL;
    for (; s; s = next) { /* one deregistration is that of all */
        next = s->sibling;
        if (!s->request) {
            take_out(s);
            finish(s);
        }
    }
    if (!put(r, word_deregister, BEAT_MS, on_left))
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
        r->due = 0; /* all are late */
        if (r->turn.waits) {
            turn_end(&b->turns, &r->turn);
            b->in_flight--;
        }
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
        leave_service(r);
        turn_end(&b->turns, &r->turn);
        r->queued = false;
        request_cancel(r->request);
        free_registration(r);
    }
}
