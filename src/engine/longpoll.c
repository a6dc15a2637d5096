#include "engine/longpoll.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"

#define BATCH_BYTES (1 << 20) /* of one request: half of what a server reads */
#define BATCH_SMALL 128       /* up to here one batch costs less than two polls */
#define COLD_POLLS 16         /* for everything that does not change; the rest of POLLS_MAX is for what did lately */
#define GATHER_MS 10          /* while reads are under way more watches will be ready soon */
#define BACK_OFF_MIN_MS 100
#define BACK_OFF_MAX_MS 5000
#define QUICK_MS 1000 /* an empty answer that comes sooner was not a hold */
#define QUICK_MAX_MS 30000
#define PROBE_MS 5000
#define HOLD_MARGIN_MS 10000 /* beyond the hold, for a slow answer of 3,000 keys */
#define REARM_MS 2           /* the reads of what changed go before the rest of the batch, which is long */
/* Servers compare the md5s first and note the poll as one to be answered later, on another thread: a change between the two is told
 * by no poll but the next. Changes come in flocks, so the poll after one is as short as servers allow. */
#define HOLD_AFTER_CHANGE_MS 10000

struct batch {
    struct longpoll *l;
    struct batch *prev, *next;
    struct watch_list watches;
    struct request *poll;
    struct timer timer; /* set while it pauses */
    int64_t sent, hold; /* how long a server shall hold it */
    bool probe;         /* sent with "do not hold", after a failure of the server or of a read */
    bool lively;        /* it is new, or the answer before told of a change */
    bool kept;          /* also when its last watch leaves */
    int quick;          /* quick answers in a row */
    int changed;        /* in the answer being read */
};

static void send_batch(struct batch *b);
static void flush(void *arg);

static struct timers *timers_of(struct longpoll *l)
{
    return &l->client->engine->timers;
}

static void count_polls(struct longpoll *l)
{
    int held = 0;
    for (struct batch *b = l->batches; b; b = b->next)
        held += b->poll != NULL;
    pthread_mutex_lock(&l->client->engine->lock);
    l->client->status.polls = held;
    pthread_mutex_unlock(&l->client->engine->lock);
}

/** The size a batch should have: a few polls for everything, and never more than the option allows. */
static int target_size(const struct longpoll *l)
{
    int all = l->waiting.count;
    for (const struct batch *b = l->batches; b; b = b->next)
        all += b->watches.count;
    int n = all / COLD_POLLS + 1;
    n = n > BATCH_SMALL ? n : BATCH_SMALL;
    return n < l->client->poll_batch ? n : l->client->poll_batch;
}

/* ---- lists --------------------------------------------------------------------------------------------------------------- */

static void resume(void *arg)
{
    send_batch(arg);
}

static void pause_batch(struct batch *b, int64_t ms)
{
    timer_set(timers_of(b->l), &b->timer, ms, resume, b);
}

/** While servers fail one batch asks for all, with polls that are answered at once ("probes"). True if that is one other than `b`.
 * A held poll is no answer in sight: it may stay for 30 s. */
static bool others_ask(const struct longpoll *l, const struct batch *b)
{
    for (const struct batch *o = l->batches; o; o = o->next)
        if (o != b && (o->timer.slot || (o->poll && o->probe)))
            return true;
    return false;
}

static void free_batch(struct batch *b)
{
    struct longpoll *l = b->l;
    request_cancel(b->poll);
    timer_clear(timers_of(l), &b->timer);
    if (b->prev)
        b->prev->next = b->next;
    else
        l->batches = b->next;
    if (b->next)
        b->next->prev = b->prev;
    l->batch_count--;
    free(b);
    if (l->failures == 0 || others_ask(l, NULL))
        return;
    for (struct batch *o = l->batches; o; o = o->next) /* the one that asked is gone: another has to */
        if (!o->poll) {
            pause_batch(o, BACK_OFF_MIN_MS);
            return;
        }
}

static void dissolve(struct batch *b)
{
    b->kept = true;
    while (b->watches.first)
        watch_go(b->watches.first, WATCH_WAITING);
    free_batch(b);
}

static void schedule(struct longpoll *l)
{
    if (!l->waiting.first || l->client->closing)
        return;
    int64_t ms = l->client->config.reading > 0 ? GATHER_MS : 0;
    if (!l->flush_timer.slot || ms == 0)
        timer_set(timers_of(l), &l->flush_timer, ms, flush, l);
}

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

static void on_key(void *arg, const struct key *k)
{
    struct batch *b = arg;
    struct nacos_client *c = b->l->client;
    struct nacos_watch *w = strcmp(k->ns, c->ns) == 0 ? watch_find(c, k) : NULL;
    if (!w || w->state != WATCH_ARMED || w->batch != b)
        return;
    b->changed++;
    watch_changed(w, NACOS_VIA_POLL);
}

/** Another batch that this small one fits into. */
static struct batch *room_for(struct batch *b)
{
    int target = target_size(b->l);
    if (b->watches.count >= target)
        return NULL;
    struct batch *best = NULL;
    for (struct batch *o = b->l->batches; o; o = o->next)
        if (o != b && o->watches.count + b->watches.count <= target && (!best || o->watches.count < best->watches.count))
            best = o;
    return best;
}

static void answered(struct batch *b, const struct question *q, const struct http_response *r, const char *server)
{
    struct longpoll *l = b->l;
    bool was_down = l->failures > 0, probe = b->probe;
    bool quick = now_ms() - b->sent < QUICK_MS;
    l->failures = 0;
    b->changed = 0;
    b->kept = true;
    q->protocol->listen_changed(r, on_key, b);
    double now = unix_now();
    for (struct nacos_watch *w = b->watches.first, *next; w; w = next) {
        next = w->next;
        watch_confirmed(w, now, server);
    }
    b->kept = false;
    if (!probe && (b->changed > 0 || !quick))
        l->streak = 0;
    if (was_down) {
        for (struct batch *o = l->batches; o; o = o->next)
            if (o != b && !o->poll)
                pause_batch(o, 0);
        schedule(l);
    }
    if (!b->watches.first) {
        free_batch(b);
        count_polls(l);
        return;
    }
    if (b->changed == 0 && !probe && quick) {
        int64_t ms = (int64_t)BACK_OFF_MIN_MS << (b->quick < 10 ? b->quick : 10);
        b->quick++;
        pause_batch(b, jittered(ms < QUICK_MAX_MS ? ms : QUICK_MAX_MS));
        return;
    }
    b->quick = 0;
    b->lively = b->changed > 0;
    struct batch *other = b->changed == 0 && !probe ? room_for(b) : NULL;
    if (other) {
        dissolve(other);
        dissolve(b);
        schedule(l);
    } else if (b->changed > 0) {
        pause_batch(b, REARM_MS);
    } else {
        send_batch(b);
    }
}

static void poll_ended(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct batch *b = arg;
    struct longpoll *l = b->l;
    struct nacos_client *c = l->client;
    b->poll = NULL;
    if (err->code == NACOS_CLOSED)
        return;
    watch_look_for_failover(c);
    if (err->code == NACOS_OK) {
        answered(b, q, r, err->server);
        return;
    }
    if (!b->probe)
        l->streak = now_ms() - b->sent < QUICK_MS ? l->streak + 1 : 0;
    /* a server that answers probes but refuses to hold must not be asked ever again without a pause */
    int n = l->failures > l->streak - 1 ? l->failures : l->streak - 1;
    int64_t ms = (int64_t)BACK_OFF_MIN_MS << (n < 9 ? n : 9);
    int64_t most = err->code == NACOS_UNAVAILABLE ? BACK_OFF_MAX_MS : QUICK_MAX_MS;
    if (n == 0)
        log_write(c->log, LOG_WARN, "%s; the watches go on trying", err->message);
    if (n == 0 && c->servers.count > 1)
        ms = 10; /* another server may answer at once */
    l->failures++;
    pause_batch(b, jittered(ms < most ? ms : most));
    count_polls(l);
    bool other = err->code == NACOS_UNSUPPORTED && !q; /* the dialect is about to change */
    if (err->code != NACOS_UNAVAILABLE && !other)
        for (struct nacos_watch *w = b->watches.first; w; w = w->next)
            watch_trouble(w, err);
}

/* ---- polls --------------------------------------------------------------------------------------------------------------- */

static bool word_listen(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct batch *b = arg;
    (void)err;
    if (!p->listen || p->detector != &detector_longpoll)
        return false;
    p->listen(q, b->l->client->ns, b->hold, b->probe);
    for (struct nacos_watch *w = b->watches.first; w; w = w->next)
        p->listen_add(q, &w->key, w->poll_md5);
    if (p->listen_close)
        p->listen_close(q);
    return true;
}

static void send_batch(struct batch *b)
{
    struct longpoll *l = b->l;
    struct nacos_client *c = l->client;
    if (l->failures > 0 && others_ask(l, b))
        return; /* answered() sets it going */
    b->probe = l->failures > 0;
    for (struct nacos_watch *w = b->watches.first; w; w = w->next)
        b->probe |= w->failures > 0; /* its last read failed: whether its value still holds should be known now, not in 30 s */
    b->hold = b->lively && c->poll_timeout_ms > HOLD_AFTER_CHANGE_MS ? HOLD_AFTER_CHANGE_MS : c->poll_timeout_ms;
    b->sent = now_ms();
    b->poll = request_start(c, word_listen, b->probe ? PROBE_MS : b->hold + HOLD_MARGIN_MS, poll_ended, b);
    if (!b->poll)
        pause_batch(b, 1000);
    count_polls(l);
}

static size_t encoded(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += *text == ':' ? 3 : 1; /* the only character of an identifier that is encoded */
    return n;
}

static size_t line_bytes(const struct nacos_watch *w)
{
    return encoded(w->key.data_id) + encoded(w->key.group) + strlen(w->key.ns) + 32 + 12;
}

static void flush(void *arg)
{
    struct longpoll *l = arg;
    if (!l->waiting.first)
        return;
    int target = target_size(l);
    if (l->batch_count + l->waiting.count / target + 1 > POLLS_MAX)
        for (struct batch *b = l->batches, *next; b; b = next) {
            next = b->next;
            if (b->watches.count < target)
                dissolve(b);
        }
    while (l->waiting.first) {
        struct batch *b = calloc(1, sizeof *b);
        if (!b) {
            timer_set(timers_of(l), &l->flush_timer, 1000, flush, l);
            return;
        }
        b->l = l;
        b->lively = true; /* of what changed lately, or comes from another poll: between those two it was in none */
        b->next = l->batches;
        if (b->next)
            b->next->prev = b;
        l->batches = b;
        l->batch_count++;
        size_t bytes = 0;
        while (l->waiting.first && b->watches.count < target && bytes < BATCH_BYTES) {
            struct nacos_watch *w = l->waiting.first;
            watch_go(w, WATCH_ARMED);
            watch_put_first(&b->watches, w);
            bytes += line_bytes(w);
            w->batch = b;
        }
        send_batch(b);
    }
}

/* ---- the detector -------------------------------------------------------------------------------------------------------- */

void longpoll_init(struct longpoll *l, struct nacos_client *c)
{
    l->client = c;
}

static void add(struct nacos_client *c, struct nacos_watch *w)
{
    struct longpoll *l = &c->longpoll;
    watch_put_first(&l->waiting, w);
    schedule(l);
}

static void leave(struct nacos_client *c, struct nacos_watch *w)
{
    struct longpoll *l = &c->longpoll;
    struct batch *b = w->batch;
    if (w->state == WATCH_WAITING) {
        watch_cut(&l->waiting, w);
    } else if (w->state == WATCH_ARMED && b) {
        watch_cut(&b->watches, w);
        w->batch = NULL;
        if (!b->watches.first && !b->kept) {
            free_batch(b);
            count_polls(l);
        }
    }
}

static void nudge(struct nacos_client *c)
{
    if (c->config.reading == 0)
        schedule(&c->longpoll);
}

static void shut(struct nacos_client *c)
{
    while (c->longpoll.batches)
        dissolve(c->longpoll.batches);
    timer_clear(timers_of(&c->longpoll), &c->longpoll.flush_timer);
}

const struct detector detector_longpoll = {.name = "long polls", .add = add, .remove = leave, .nudge = nudge, .shut = shut};
