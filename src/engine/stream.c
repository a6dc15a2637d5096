#include "engine/stream.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"

#define REQUESTS_MAX 4
#define KEYS_MAX 1000 /* of one */
#define BYTES_MAX (256 << 10)
#define ANSWER_MS 10000
#define FORGET_MS 1000 /* after so long the server is told of keys that are watched no more */
#define BACK_OFF_MIN_MS 200
#define BACK_OFF_MAX_MS 5000
#define TICK_MS 10000
#define RESYNC_MS 300000

struct gone {
    struct gone *next;
    struct key key;
    char name[];
};

/** A request under way. */
struct listen {
    struct nacos_client *client;
    struct listen *prev, *next;
    struct watch_list watches; /* to be armed; or */
    struct gone *gone;         /* to be forgotten */
    struct request *request;
};

static void flush(void *arg);

static struct timers *timers_of(struct nacos_client *c)
{
    return &c->engine->timers;
}

/* ---- lists --------------------------------------------------------------------------------------------------------------- */

static void free_gone(struct gone **list)
{
    while (*list) {
        struct gone *g = *list;
        *list = g->next;
        free(g);
    }
}

/** What is watched again need not be forgotten: the server knows it, or will. */
static void drop_watched(struct gone **list, struct nacos_client *c)
{
    while (*list) {
        struct gone *g = *list;
        if (!watch_find(c, &g->key)) {
            list = &g->next;
        } else {
            *list = g->next;
            free(g);
        }
    }
}

static void note_gone(struct nacos_client *c, const struct nacos_watch *w)
{
    size_t d = strlen(w->key.data_id) + 1, n = d + strlen(w->key.group) + 1;
    struct gone *g = malloc(sizeof *g + n);
    if (!g)
        return; /* its pushes are dropped */
    memcpy(g->name, w->name, n);
    g->key = (struct key){g->name, g->name + d, c->ns};
    g->next = c->stream.gone;
    c->stream.gone = g;
}

/** No later than in `ms`; after failures not before their pause is over. */
static void schedule(struct nacos_client *c, int64_t ms)
{
    struct stream *s = &c->stream;
    if (s->failures > 0) {
        int64_t pause = (int64_t)BACK_OFF_MIN_MS << (s->failures < 6 ? s->failures : 6);
        ms = jittered(pause < BACK_OFF_MAX_MS ? pause : BACK_OFF_MAX_MS);
    }
    bool sooner = s->failures == 0 && s->flush_timer.due > now_ms() + ms;
    if (!c->closing && (!s->flush_timer.slot || sooner))
        timer_set(timers_of(c), &s->flush_timer, ms, flush, c);
}

/** Its watches wait again, behind all others. */
static void free_listen(struct listen *l)
{
    struct stream *s = &l->client->stream;
    request_cancel(l->request);
    while (l->watches.first) {
        struct nacos_watch *w = l->watches.first;
        watch_cut(&l->watches, w);
        w->batch = NULL;
        watch_put(&s->waiting, w);
    }
    free_gone(&l->gone);
    *(l->prev ? &l->prev->next : &s->requests) = l->next;
    if (l->next)
        l->next->prev = l->prev;
    s->request_count--;
    free(l);
}

/* ---- requests ------------------------------------------------------------------------------------------------------------ */

static bool word_listen(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    const struct listen *l = arg;
    (void)err;
    if (p->detector != &detector_stream)
        return false;
    p->listen(q, l->client->ns, l->gone ? -1 : 0, true);
    for (const struct nacos_watch *w = l->watches.first; w; w = w->next)
        p->listen_add(q, &w->key, w->poll_md5);
    for (const struct gone *g = l->gone; g; g = g->next)
        p->listen_add(q, &g->key, "");
    p->listen_close(q);
    return true;
}

static void changed(void *arg, const struct key *k)
{
    struct listen *l = arg;
    struct nacos_watch *w = watch_find(l->client, k);
    if (w && w->batch == l)
        watch_changed(w, NACOS_VIA_COMPARE);
}

static void armed(struct listen *l, const char *server)
{
    struct stream *s = &l->client->stream;
    while (l->watches.first) {
        struct nacos_watch *w = l->watches.first;
        watch_go(w, WATCH_ARMED); /* takes it out of the request */
        watch_put(&s->armed, w);
        watch_confirmed(w, unix_now(), server);
    }
}

/** What was watched again meanwhile may have been named to the server before it was told to forget: once more. */
static void forgotten(struct listen *l)
{
    for (const struct gone *g = l->gone; g; g = g->next) {
        struct nacos_watch *w = watch_find(l->client, &g->key);
        if (w && (w->batch || w->state == WATCH_ARMED))
            watch_go(w, WATCH_WAITING);
    }
}

static void refused(struct listen *l, const nacos_error *err)
{
    struct stream *s = &l->client->stream;
    s->failures++;
    if (l->watches.first)
        s->most = (l->watches.count + 1) / 2;
    log_write(l->client->log, LOG_DEBUG, "%s; the watches go on trying", err->message);
    if (err->code == NACOS_UNAVAILABLE)
        return;
    if (l->watches.count == 1)
        watch_refused(l->watches.first, err);
    for (struct nacos_watch *w = l->watches.first; w; w = w->next)
        watch_trouble(w, err);
}

static void on_listening(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct listen *l = arg;
    struct nacos_client *c = l->client;
    struct stream *s = &c->stream;
    l->request = NULL;
    if (err->code == NACOS_OK) {
        s->failures = 0;
        s->most = s->most < KEYS_MAX ? s->most * 2 : 0;
        if (!l->gone)
            q->protocol->listen_changed(r, changed, l);
        armed(l, err->server);
    } else if (err->code != NACOS_CLOSED) {
        refused(l, err);
    }
    if (err->code != NACOS_CLOSED)
        forgotten(l);
    free_listen(l);
    if (s->waiting.first || s->gone)
        schedule(c, 0);
}

static size_t bytes_of(const struct key *k)
{
    return strlen(k->data_id) + strlen(k->group) + strlen(k->ns) + 90;
}

/** A request of what waits, or else of what is gone. */
static struct listen *next_listen(struct nacos_client *c)
{
    struct stream *s = &c->stream;
    struct listen *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->client = c;
    l->next = s->requests;
    if (l->next)
        l->next->prev = l;
    s->requests = l;
    s->request_count++;
    size_t bytes = 0;
    int most = s->most && s->most < KEYS_MAX ? s->most : KEYS_MAX;
    while (s->waiting.first && l->watches.count < most && bytes < BYTES_MAX) {
        struct nacos_watch *w = s->waiting.first;
        watch_cut(&s->waiting, w);
        watch_put(&l->watches, w);
        w->batch = l;
        bytes += bytes_of(&w->key);
    }
    for (int keys = 0; !l->watches.first && s->gone && keys < KEYS_MAX && bytes < BYTES_MAX; keys++) {
        struct gone *g = s->gone;
        s->gone = g->next;
        g->next = l->gone;
        l->gone = g;
        bytes += bytes_of(&g->key);
    }
    return l;
}

static void flush(void *arg)
{
    struct nacos_client *c = arg;
    struct stream *s = &c->stream;
    drop_watched(&s->gone, c);
    /* the next connection starts it again; after a failure one request tries for all */
    while (c->link.state == LINK_READY && (s->waiting.first || s->gone) && s->request_count < (s->failures ? 1 : REQUESTS_MAX)) {
        struct listen *l = next_listen(c);
        if (l)
            l->request = request_start(c, word_listen, ANSWER_MS, on_listening, l);
        if (!l || !l->request) {
            if (l)
                free_listen(l);
            s->failures++;
            schedule(c, 0);
            return;
        }
    }
}

/* ---- for watch and link -------------------------------------------------------------------------------------------------- */

/** While the connection lives, no news is good news. */
static void tick(void *arg)
{
    struct nacos_client *c = arg;
    struct stream *s = &c->stream;
    timer_set(timers_of(c), &s->tick_timer, TICK_MS, tick, c);
    if (c->link.state != LINK_READY)
        return;
    pthread_mutex_lock(&c->engine->lock);
    for (struct nacos_watch *w = s->armed.first; w; w = w->next)
        if (w->event.source != NACOS_FROM_FAILOVER)
            w->event.confirmed = c->link.alive;
    pthread_mutex_unlock(&c->engine->lock);
    watch_look_for_failover(c);
    if (now_ms() < s->resync_at)
        return;
    s->resync_at = now_ms() + jittered(2 * RESYNC_MS);
    while (s->armed.first)
        watch_go(s->armed.first, WATCH_WAITING);
}

static void stream_add(struct nacos_client *c, struct nacos_watch *w)
{
    struct stream *s = &c->stream;
    watch_put(&s->waiting, w);
    schedule(c, 0);
    if (!s->tick_timer.slot && !c->closing) {
        s->resync_at = now_ms() + jittered(2 * RESYNC_MS);
        timer_set(timers_of(c), &s->tick_timer, TICK_MS, tick, c);
    }
}

static void stream_remove(struct nacos_client *c, struct nacos_watch *w)
{
    struct stream *s = &c->stream;
    bool is_armed = w->state == WATCH_ARMED, told = is_armed || w->batch;
    watch_cut(w->batch ? &((struct listen *)w->batch)->watches : is_armed ? &s->armed : &s->waiting, w);
    w->batch = NULL;
    if (told && !c->closing && !watch_find(c, &w->key)) {
        note_gone(c, w);
        schedule(c, FORGET_MS);
    }
}

static void stream_nudge(struct nacos_client *c)
{
    if (c->stream.waiting.first)
        schedule(c, 0);
}

static void stream_renew(struct nacos_client *c)
{
    struct stream *s = &c->stream;
    free_gone(&s->gone);
    while (s->requests)
        free_listen(s->requests);
    while (s->armed.first)
        watch_go(s->armed.first, WATCH_WAITING);
    s->failures = s->most = 0;
    timer_clear(timers_of(c), &s->flush_timer);
    if (s->waiting.first)
        schedule(c, 0);
}

static void stream_shut(struct nacos_client *c)
{
    struct stream *s = &c->stream;
    free_gone(&s->gone);
    while (s->requests)
        free_listen(s->requests);
    timer_clear(timers_of(c), &s->flush_timer);
    timer_clear(timers_of(c), &s->tick_timer);
    s->failures = s->most = 0;
}

bool stream_pushed(struct nacos_client *c, const struct key *k)
{
    struct nacos_watch *w = watch_find(c, k);
    if (!w || w->detector != &detector_stream)
        return w != NULL;
    /* one that is being read, or waits to be named, is compared when it is named */
    if (w->state == WATCH_ARMED || w->batch)
        watch_changed(w, NACOS_VIA_PUSH);
    return true;
}

const struct detector detector_stream = {
    .name = "stream",
    .add = stream_add,
    .remove = stream_remove,
    .nudge = stream_nudge,
    .shut = stream_shut,
    .renew = stream_renew,
};
