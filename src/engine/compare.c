#include "engine/compare.h"

#include <string.h>

#include "engine/client.h"

#define PAUSE_MIN_MS 10 /* between two requests */
#define ANSWER_MS 5000
#define BACK_OFF_MIN_MS 100
#define BACK_OFF_MAX_MS 5000

static void take_turn(void *arg);

/** Between three and five quarters of it. */
static int64_t around(int64_t ms)
{
    return ms / 4 + jittered(ms);
}

static bool is_listed(const struct compare *p, const struct nacos_watch *w)
{
    return w->prev || p->list.first == w;
}

/* ---- turns --------------------------------------------------------------------------------------------------------------- */

static void set_turn(struct nacos_client *c, int64_t ms)
{
    c->compare.turn = now_ms() + ms;
    timer_set(&c->engine->timers, &c->compare.timer, ms, take_turn, c);
}

/** How long until the next turn when all is well. */
static int64_t pause_of(const struct nacos_client *c)
{
    int64_t ms = c->poll_interval_ms / (c->compare.list.count ? c->compare.list.count : 1);
    return ms > PAUSE_MIN_MS ? around(ms) : PAUSE_MIN_MS;
}

static void failed(struct nacos_client *c, const nacos_error *err)
{
    struct compare *p = &c->compare;
    if (p->failures > 0 && p->in_flight > 0)
        return; /* they failed together */
    int64_t ms = (int64_t)BACK_OFF_MIN_MS << (p->failures < 6 ? p->failures : 6);
    if (p->failures++ == 0)
        log_write(c->log, LOG_WARN, "%s; the watches go on trying", err->message);
    set_turn(c, around(ms < BACK_OFF_MAX_MS ? ms : BACK_OFF_MAX_MS));
}

static void compared(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct comparison *f = arg;
    struct nacos_client *c = f->client;
    struct compare *p = &c->compare;
    struct nacos_watch *w = f->watch;
    struct value *v = err->code == NACOS_OK ? question_value(q, r) : NULL;
    const char *md5 = v ? v->md5 : "";
    *f = (struct comparison){0};
    p->in_flight--;
    if (err->code == NACOS_CLOSED)
        return;
    watch_look_for_failover(c);
    if (config_unknown(err)) {
        failed(c, err);
    } else if (p->failures > 0) {
        p->failures = 0;
        set_turn(c, 0);
    }
    bool told = v || err->code == NACOS_NOT_FOUND;
    if (told && strcmp(md5, w->poll_md5) == 0)
        watch_confirmed(w, unix_now(), err->server);
    else if (told)
        watch_changed(w, NACOS_VIA_COMPARE);
    else if (err->code != NACOS_OK && err->code != NACOS_UNAVAILABLE && !(err->code == NACOS_UNSUPPORTED && !q))
        watch_trouble(w, err); /* unless another dialect is about to be spoken */
    value_unref(v);
}

static bool word_read(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    const struct comparison *f = arg;
    (void)err;
    p->read(q, &f->watch->key);
    return true;
}

static void take_turn(void *arg)
{
    struct nacos_client *c = arg;
    struct compare *p = &c->compare;
    struct nacos_watch *w = p->list.first;
    struct comparison *f = NULL;
    if (!w || c->closing)
        return;
    set_turn(c, pause_of(c));
    for (int i = 0; i < COMPARES_MAX; i++) {
        if (p->flights[i].watch == w)
            return; /* all are being asked for */
        if (!p->flights[i].client)
            f = &p->flights[i];
    }
    if (!f || (p->failures > 0 && p->in_flight > 0))
        return;
    watch_cut(&p->list, w);
    watch_put(&p->list, w);
    *f = (struct comparison){.client = c, .watch = w};
    f->request = request_start(c, word_read, ANSWER_MS, compared, f);
    if (f->request)
        p->in_flight++;
    else
        *f = (struct comparison){0};
}

/* ---- the detector -------------------------------------------------------------------------------------------------------- */

static void add(struct nacos_client *c, struct nacos_watch *w)
{
    struct compare *p = &c->compare;
    bool open = w->failures > 0; /* whether its value still holds should be known soon */
    (open ? watch_put_first : watch_put)(&p->list, w);
    int64_t ms = open ? 0 : pause_of(c);
    if (!p->timer.slot || (p->failures == 0 && now_ms() + ms < p->turn)) /* else the back-off stays */
        set_turn(c, ms);
}

static void leave(struct nacos_client *c, struct nacos_watch *w)
{
    struct compare *p = &c->compare;
    if (!is_listed(p, w))
        return;
    watch_cut(&p->list, w);
    for (int i = 0; i < COMPARES_MAX; i++)
        if (p->flights[i].watch == w) {
            request_cancel(p->flights[i].request);
            p->flights[i] = (struct comparison){0};
            p->in_flight--;
        }
}

static void nudge(struct nacos_client *c)
{
    (void)c;
}

static void shut(struct nacos_client *c)
{
    for (int i = 0; i < COMPARES_MAX; i++)
        request_cancel(c->compare.flights[i].request);
    while (c->compare.list.first)
        watch_cut(&c->compare.list, c->compare.list.first);
    timer_clear(&c->engine->timers, &c->compare.timer);
    c->compare = (struct compare){0};
}

const struct detector detector_compare = {.name = "comparisons", .add = add, .remove = leave, .nudge = nudge, .shut = shut};
