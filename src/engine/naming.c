#include "engine/naming.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "engine/ask.h"
#include "engine/client.h"

#define INTERVAL_MS 5000         /* of beats, as every server assumes without a word */
#define INTERVAL_MAX_MS 86400000 /* a day */
#define PUBLISHED_MAX 3          /* times that one ask joins a publication; more only while the dialect goes to and fro */

struct key naming_key(const struct nacos_client *c, const nacos_service *s)
{
    const char *ns = s->ns ? s->ns : c->ns;
    return (struct key){s->name ? s->name : "", s->group && *s->group ? s->group : "DEFAULT_GROUP",
                        strcmp(ns, "public") == 0 ? "" : ns};
}

/* ---- lists on disk ------------------------------------------------------------------------------------------------------- */

/** The part of the file's name that is not group and namespace; buf_free(). */
static struct key file_key(const struct key *k, const char *clusters, struct buf *name)
{
    buf_init(name, 8192);
    buf_append_encoded(name, k->data_id, strlen(k->data_id));
    if (clusters && *clusters) {
        buf_puts(name, "@@");
        buf_append_encoded(name, clusters, strlen(clusters));
    }
    return (struct key){name->data ? name->data : "", k->group, k->ns};
}

static struct hosts *take(struct nacos_client *c, struct value *v, const struct key *file)
{
    struct hosts *h = v ? hosts_parse(v->data, v->len) : NULL;
    if (v && !h)
        log_write(c->log, LOG_WARN, "file ignored: naming/%s+%s+%s is no list of instances", file->data_id, file->group, file->ns);
    value_unref(v);
    return h;
}

struct hosts *naming_failover(struct nacos_client *c, const struct key *k, const char *clusters)
{
    char base[PATH_MAX];
    struct buf name;
    struct key file = file_key(k, clusters, &name);
    snprintf(base, sizeof base, "%s/naming", c->failover_base);
    struct hosts *h = take(c, config_file(c, base, &file), &file);
    buf_free(&name);
    return h;
}

struct hosts *naming_snapshot(struct nacos_client *c, const struct key *k, const char *clusters)
{
    struct buf name;
    struct key file = file_key(k, clusters, &name);
    struct hosts *h = take(c, saver_read(&c->naming_saver, &file), &file);
    buf_free(&name);
    return h;
}

void naming_save(struct nacos_client *c, const struct key *k, const char *clusters, const struct hosts *h)
{
    struct buf name;
    struct key file = file_key(k, clusters, &name);
    size_t len;
    char *json = hosts_json(h, k->data_id, &len);
    struct value *v = json ? value_new(json, len, "json", NULL) : NULL;
    if (v)
        saver_note(&c->naming_saver, &file, v);
    value_unref(v);
    free(json);
    buf_free(&name);
}

/* ---- what the host asks -------------------------------------------------------------------------------------------------- */

struct naming_ask {
    struct ask ask;
    struct hosts *instance; /* a list of one */
    int64_t beat_ms;
    char *text; /* clusters of a list; the selector of a service */
    bool healthy_only, update;
    double protect_threshold;
    int page, page_size;
    int flags;
    bool mine;               /* it is kept here */
    struct hosts *kept;      /* so, before it is deregistered */
    bool by_registering;     /* modified so */
    struct turn turn;        /* of the place */
    char place[PLACE_BYTES]; /* memory of the turn */
    const char *verb;
    void (*go)(void *arg); /* when it is its turn */
    request_done done;     /* or that takes too long */
    struct timer late;
    struct publication *publication; /* that it is part of */
    struct naming_ask *prev, *next;  /* there */
    int published;                   /* times it was part of one */
    bool left_out;                   /* of the last one, for want of room */
};

/** Of a service as a whole: all that wait when its turn comes are told in one message, and share what comes of it. */
struct publication {
    struct nacos_client *client;
    struct turn turn; /* of the service */
    char name[PLACE_BYTES];
    bool deregister;
    struct naming_ask *asks; /* never empty */
    struct key key;          /* outlives each of them */
    char text[];
};

static void forget(struct ask *a)
{
    struct naming_ask *n = (struct naming_ask *)a;
    hosts_unref(n->instance);
    hosts_unref(n->kept);
    free(n->text);
}

static const nacos_instance *instance_of(const struct naming_ask *n)
{
    return &n->instance->view.list[0];
}

static struct naming_ask *new_ask(nacos_client *c, void (*run)(struct job *), request_word word, const nacos_service *s,
                                  const nacos_instance *i, int timeout_ms)
{
    struct key k = naming_key(c, s);
    struct naming_ask *n = ask_new(c, sizeof *n, run, &k, timeout_ms);
    if (!n)
        return NULL;
    n->ask.word = word;
    n->ask.forget = forget;
    if (i && !(n->instance = hosts_of(i))) {
        ask_drop(&n->ask);
        return NULL;
    }
    return n;
}

static void reply_hosts(struct naming_ask *n, struct hosts *h, nacos_source source)
{
    n->ask.event->hosts = h;
    ask_reply(&n->ask, NULL, source, NULL);
}

static void on_raw(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    if (!ask_second(arg, err, on_raw))
        ask_answered(arg, q, r, err);
}

static void run_raw(struct job *job)
{
    ask_put((struct ask *)job, on_raw);
}

/* ---- metadata ------------------------------------------------------------------------------------------------------------ */

static const char *metadata(const nacos_instance *i, const char *name)
{
    for (size_t k = 0; k < i->metadata_count; k++)
        if (strcmp(i->metadata[k].name, name) == 0)
            return i->metadata[k].value;
    return NULL;
}

static const char *const preserved[] = {"preserved.heart.beat.interval", "preserved.heart.beat.timeout",
                                        "preserved.ip.delete.timeout"};
#define PRESERVED ((int)(sizeof preserved / sizeof *preserved))

/** The instance, with those of the `preserved` that have a value and are not in it. NULL: out of memory. */
static struct hosts *with_preserved(const nacos_instance *i, const char *const values[PRESERVED])
{
    nacos_pair *pairs = calloc(i->metadata_count + PRESERVED, sizeof *pairs);
    nacos_instance more = *i;
    if (!pairs)
        return NULL;
    if (i->metadata_count)
        memcpy(pairs, i->metadata, i->metadata_count * sizeof *pairs);
    for (int k = 0; k < PRESERVED; k++)
        if (values[k] && !metadata(i, preserved[k]))
            pairs[more.metadata_count++] = (nacos_pair){preserved[k], values[k]};
    more.metadata = pairs;
    struct hosts *h = hosts_of(&more);
    free(pairs);
    return h;
}

/** A server learns of another interval than its own by metadata only, and would otherwise ask for beats every 5 s. */
static struct hosts *with_interval(const nacos_instance *i, int64_t ms)
{
    char interval[24], timeout[24], removal[24];
    const char *const values[PRESERVED] = {interval, ms > INTERVAL_MS ? timeout : NULL, ms > INTERVAL_MS ? removal : NULL};
    snprintf(interval, sizeof interval, "%lld", (long long)ms);
    snprintf(timeout, sizeof timeout, "%lld", (long long)ms * 3);
    snprintf(removal, sizeof removal, "%lld", (long long)ms * 6);
    return with_preserved(i, values);
}

/* ---- turns --------------------------------------------------------------------------------------------------------------- */

static void nothing(void *arg)
{
    (void)arg;
}

/** It was its turn: answers, and lets the next go. */
static void reply_in_turn(struct naming_ask *n, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct beats *b = &n->ask.client->beats;
    turn_end(&b->turns, &n->turn);
    ask_answered(n, q, r, err);
    beats_other(b, -1);
}

static void leave_publication(struct naming_ask *n)
{
    struct publication *p = n->publication;
    n->publication = NULL;
    DL_DELETE(p->asks, n);
    if (p->asks || p->turn.held) /* held: its request lasts as long as the last one of it */
        return;
    turn_end(&p->client->beats.turns, &p->turn);
    free(p);
}

static void too_late(void *arg)
{
    struct naming_ask *n = arg;
    nacos_error err = {.code = NACOS_UNAVAILABLE};
    bool under_way = n->publication && n->publication->turn.held;
    snprintf(err.message, sizeof err.message, "cannot %s %.500s (group %.256s): no answer in %.3g s%s", n->verb, n->ask.key.data_id,
             n->ask.key.group, (double)n->ask.timeout_ms / 1000, under_way ? "" : "; others of it were first");
    if (n->publication)
        leave_publication(n);
    n->done(n, NULL, NULL, &err);
}

static void my_turn(void *arg)
{
    struct naming_ask *n = arg;
    timer_clear(&n->ask.client->engine->timers, &n->late);
    n->go(n);
}

/** What reaches the servers one after the other; the others are waited for only within its time. */
static void take_turn(struct naming_ask *n, const char *verb, void (*go)(void *arg), request_done done)
{
    struct nacos_client *c = n->ask.client;
    beats_other(&c->beats, 1);
    n->ask.lasting = true;
    n->ask.deadline = now_ms() + n->ask.timeout_ms;
    n->verb = verb;
    n->go = go;
    n->done = done;
    timer_set(&c->engine->timers, &n->late, n->ask.timeout_ms, too_late, n);
    beat_turn(&c->beats, &n->turn, n->place, &n->ask.key, instance_of(n), my_turn, n);
}

/* ---- publications -------------------------------------------------------------------------------------------------------- */

/** In which dialect it is said is known only now, perhaps long after the turn of the place came: where a service is published as a
 * whole one alone has no words, and publish_in_turn() sees to it. */
static bool word_alone(struct naming_ask *n, const struct protocol *p, struct question *q, bool deregister, nacos_error *err)
{
    const nacos_instance *i = instance_of(n);
    return !(p->one_publisher && i->ephemeral) && beat_word(&n->ask.client->beats, p, q, deregister, &n->ask.key, &i, 1, err);
}

static bool word_publication(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct publication *all = arg;
    struct naming_ask *first = all->asks, *n;
    size_t count, i = 0;
    DL_COUNT(first, n, count);
    const nacos_instance **list = malloc(count * sizeof *list);
    if (!list) {
        *err = no_memory;
        return false;
    }
    for (n = first; n; n = n->next)
        list[i++] = instance_of(n);
    bool said = beat_word(&all->client->beats, p, q, all->deregister, &all->key, list, p->one_publisher ? count : 1, err);
    free(list);
    if (!p->one_publisher) /* then each has words of its own; these are for what an error says */
        return false;
    for (n = first; n; n = n->next)
        n->left_out = i-- <= q->left_out;
    return said;
}

static void on_published(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct publication *all = arg;
    struct nacos_client *c = all->client;
    struct naming_ask *n;
    while ((n = all->asks)) {
        DL_DELETE(all->asks, n);
        n->publication = NULL;
        timer_clear(&c->engine->timers, &n->late);
        if (!q && err->code == NACOS_UNSUPPORTED) { /* another dialect */
            ask_put(&n->ask, n->done);
        } else if (err->code == NACOS_OK && n->left_out) {
            nacos_error too_large;
            beat_too_large(&n->ask.key, instance_of(n), n->verb, &too_large);
            beat_again(&c->beats, &n->ask.key, instance_of(n)); /* as it was before */
            n->done(n, NULL, NULL, &too_large);
        } else {
            n->done(n, q, r, err);
        }
    }
    turn_end(&c->beats.turns, &all->turn); /* last: the next one names these, too */
    free(all);
}

/** Its turn has come. It has the time of the one that waits longest; those with less of it are answered when theirs is up. */
static void publish(void *arg)
{
    struct publication *all = arg;
    struct nacos_client *c = all->client;
    struct naming_ask *n;
    int64_t deadline = 0;
    for (n = all->asks; n; n = n->next)
        deadline = n->ask.deadline > deadline ? n->ask.deadline : deadline;
    for (n = all->asks; n; n = n->next)
        if (n->ask.deadline == deadline)
            timer_clear(&c->engine->timers, &n->late); /* the request ends then, and can say why */
    struct request *r = request_start(c, word_publication, deadline - now_ms(), on_published, all);
    if (r)
        request_lasts(r);
    else
        on_published(all, NULL, NULL, &no_memory);
}

static struct publication *new_publication(struct nacos_client *c, const struct key *k, bool deregister)
{
    size_t service = strlen(k->data_id) + 1, group = strlen(k->group) + 1, ns = strlen(k->ns) + 1;
    struct publication *p = calloc(1, sizeof *p + service + group + ns);
    if (!p)
        return NULL;
    p->client = c;
    p->deregister = deregister;
    p->key.data_id = memcpy(p->text, k->data_id, service);
    p->key.group = memcpy(p->text + service, k->group, group);
    p->key.ns = memcpy(p->text + service + group, k->ns, ns);
    return p;
}

static struct publication *waiting(struct naming_ask *n, bool deregister)
{
    for (struct turn *t = beat_turn_holder(&n->ask.client->beats, &n->ask.key); t; t = t->next) {
        struct publication *p = t->go == publish ? t->arg : NULL;
        if (p && t->waits && p->deregister == deregister)
            return p;
    }
    return NULL;
}

/** True: there were no words for it alone; it is, or becomes, part of a publication that waits for the turn of the service. */
static bool publish_in_turn(struct naming_ask *n, bool deregister, const struct question *q, const nacos_error *err)
{
    struct nacos_client *c = n->ask.client;
    int64_t left = n->ask.deadline - now_ms();
    if (q || err->code != NACOS_UNSUPPORTED || n->published >= PUBLISHED_MAX || !instance_of(n)->ephemeral)
        return false;
    struct publication *p = waiting(n, deregister);
    bool begins = !p;
    if (begins && !(p = new_publication(c, &n->ask.key, deregister)))
        return false;
    n->published++;
    n->publication = p;
    DL_APPEND(p->asks, n);
    timer_set(&c->engine->timers, &n->late, left > 0 ? left : 0, too_late, n);
    if (begins)
        beat_turn(&c->beats, &p->turn, p->name, &p->key, NULL, publish, p);
    return true;
}

/* ---- register, deregister ------------------------------------------------------------------------------------------------ */

static bool word_register(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    if (!n->ask.second)
        return word_alone(n, p, q, false, err);
    protocol_v1.register_instance(q, &n->ask.key, instance_of(n), NULL, 0);
    return true;
}

static void on_registered(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    const nacos_instance *i = instance_of(n);
    struct beats *b = &n->ask.client->beats;
    nacos_error none = *err;
    bool no_message = !i->ephemeral && q && q->protocol->one_publisher; /* the first 2.x have only the call of v1 */
    if (publish_in_turn(n, false, q, err) || (no_message && ask_second(&n->ask, err, on_registered)))
        return;
    if (err->code == NACOS_OK && !i->ephemeral)
        beat_stop(b, &n->ask.key, i->ip, i->port, nothing, NULL);
    else if (err->code == NACOS_OK && !beat_start(b, &n->ask.key, n->instance, n->beat_ms, q->protocol))
        none = no_memory;
    reply_in_turn(n, q, r, &none);
}

static void register_now(void *arg)
{
    ask_put(arg, on_registered);
}

static void run_register(struct job *job)
{
    take_turn((struct naming_ask *)job, "register", register_now, on_registered);
}

uint64_t nacos_register_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int beat_ms, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_register, word_register, s, i, timeout_ms);
    if (!n)
        return 0;
    const char *told = metadata(i, preserved[0]);
    char *end = NULL;
    n->beat_ms = told ? strtoll(told, &end, 10) : beat_ms;
    if (n->beat_ms <= 0 || n->beat_ms > INTERVAL_MAX_MS || (end && *end))
        n->beat_ms = INTERVAL_MS;
    if (i->ephemeral && n->beat_ms != INTERVAL_MS) {
        struct hosts *h = with_interval(i, n->beat_ms);
        hosts_unref(n->instance);
        n->instance = h;
        if (!h) {
            ask_drop(&n->ask);
            return 0;
        }
    }
    return ask_post(&n->ask);
}

static bool word_deregister(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    if (n->mine)
        return word_alone(n, p, q, true, err);
    if (n->ask.second) /* for persistent ones 3.x has a message, the first 2.x only the call of v1 */
        (instance_of(n)->ephemeral ? &protocol_v3 : &protocol_v1)->deregister_instance(q, &n->ask.key, instance_of(n), NULL, 0);
    else if (p->deregister_other)
        p->deregister_other(q, &n->ask.key, instance_of(n));
    else
        p->deregister_instance(q, &n->ask.key, instance_of(n), NULL, 0);
    return true;
}

static void on_deregistered(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    if (n->mine ? publish_in_turn(n, true, q, err)
                : q && q->protocol->deregister_other && ask_second(&n->ask, err, on_deregistered))
        return;
    if (n->mine && err->code != NACOS_OK && err->code != NACOS_CLOSED)
        beat_end_later(&n->ask.client->beats, &n->ask.key, n->kept);
    reply_in_turn(n, q, r, err);
}

static void beats_ended(void *arg)
{
    ask_put(arg, on_deregistered);
}

static void deregister_now(void *arg)
{
    struct naming_ask *n = arg;
    struct beats *b = &n->ask.client->beats;
    const nacos_instance *i = instance_of(n);
    n->kept = hosts_ref((struct hosts *)beat_instance(b, &n->ask.key, i->ip, i->port));
    n->mine = n->kept != NULL;
    beat_stop(b, &n->ask.key, i->ip, i->port, beats_ended, n);
}

static void run_deregister(struct job *job)
{
    take_turn((struct naming_ask *)job, "deregister", deregister_now, on_deregistered);
}

uint64_t nacos_deregister_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_deregister, word_deregister, s, i, timeout_ms);
    return n ? ask_post(&n->ask) : 0;
}

/* ---- modify, read, beat -------------------------------------------------------------------------------------------------- */

static bool word_modify(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    if (n->by_registering && !n->mine && p->one_publisher && instance_of(n)->ephemeral) /* another's would become ours */
        return false;
    if (n->by_registering)
        return word_alone(n, p, q, false, err);
    p = ask_words(&n->ask, p);
    if (p->modify_instance)
        p->modify_instance(q, &n->ask.key, instance_of(n));
    return p->modify_instance;
}

/** 2.x and 3.x keep what was modified, and let it win over what is registered later: so the call for it comes first, in its two
 * forms, and registering the instance again only where it is not to be had. */
static void on_modified(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    if (n->by_registering ? n->mine && publish_in_turn(n, false, q, err) : ask_second(&n->ask, err, on_modified))
        return;
    bool not_to_be_had = err->code == NACOS_UNSUPPORTED || (err->code == NACOS_FORBIDDEN && n->ask.second && n->mine);
    if (!n->by_registering && not_to_be_had) {
        n->by_registering = true;
        ask_put(&n->ask, on_modified);
        return;
    }
    if (err->code == NACOS_OK)
        beat_change(&n->ask.client->beats, &n->ask.key, n->instance);
    reply_in_turn(n, q, r, err);
}

static void modify_now(void *arg)
{
    struct naming_ask *n = arg;
    struct nacos_client *c = n->ask.client;
    const nacos_instance *i = instance_of(n);
    const struct hosts *mine = beat_instance(&c->beats, &n->ask.key, i->ip, i->port);
    if (mine) { /* what the registration said about beats must not get lost */
        const char *values[PRESERVED];
        for (int k = 0; k < PRESERVED; k++)
            values[k] = metadata(&mine->view.list[0], preserved[k]);
        struct hosts *h = with_preserved(i, values);
        if (!h) {
            reply_in_turn(n, NULL, NULL, &no_memory);
            return;
        }
        hosts_unref(n->instance);
        n->instance = h;
        n->mine = true;
    }
    ask_put(&n->ask, on_modified);
}

static void run_modify(struct job *job)
{
    take_turn((struct naming_ask *)job, "modify", modify_now, on_modified);
}

uint64_t nacos_modify_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_modify, word_modify, s, i, timeout_ms);
    return n ? ask_post(&n->ask) : 0;
}

/** No list came: it failed, or the answer is another. */
static void reply_failure(struct naming_ask *n, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    nacos_error odd = *err;
    if (err->code == NACOS_OK)
        judged(q, r, &odd, NACOS_PROTOCOL, VERDICT_ANSWER, "the answer is no list of instances");
    ask_reply(&n->ask, NULL, NACOS_FROM_NONE, &odd);
}

/** The answer of a server without the call for one instance: its list. */
static void on_list_for_one(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    struct hosts *h = err->code == NACOS_OK ? question_hosts(q, r) : NULL;
    const nacos_instance *wanted = instance_of(n), *found = h ? hosts_find(h, wanted->ip, wanted->port, wanted->cluster) : NULL;
    if (found) {
        reply_hosts(n, hosts_of(found), NACOS_FROM_SERVER);
    } else if (h) {
        nacos_error none = {.code = NACOS_NOT_FOUND};
        snprintf(none.server, sizeof none.server, "%s", err->server);
        snprintf(none.message, sizeof none.message,
                 "cannot read %s:%d of %.500s (group %.256s) at %s: it is not in the list (where disabled instances never are)",
                 wanted->ip, wanted->port, n->ask.key.data_id, n->ask.key.group, err->server);
        ask_reply(&n->ask, NULL, NACOS_FROM_NONE, &none);
    } else {
        reply_failure(n, q, r, err);
    }
    hosts_unref(h);
}

static bool word_instance(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    (void)err;
    if (n->ask.second)
        p->list_instances(q, &n->ask.key, instance_of(n)->cluster, false);
    else if (p->get_instance)
        p->get_instance(q, &n->ask.key, instance_of(n));
    return n->ask.second || p->get_instance;
}

static void on_instance(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    if (err->code == NACOS_UNSUPPORTED) {
        n->ask.second = true;
        ask_put(&n->ask, on_list_for_one);
        return;
    }
    struct hosts *h = err->code == NACOS_OK ? question_hosts(q, r) : NULL;
    if (h && h->view.count == 1) {
        reply_hosts(n, h, NACOS_FROM_SERVER);
        return;
    }
    hosts_unref(h);
    reply_failure(n, q, r, err);
}

static void run_instance(struct job *job)
{
    ask_put((struct ask *)job, on_instance);
}

uint64_t nacos_get_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_instance, word_instance, s, i, timeout_ms);
    return n ? ask_post(&n->ask) : 0;
}

static bool word_beat(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    (void)err;
    p = ask_words(&n->ask, p);
    if (p->beat)
        p->beat(q, &n->ask.key, instance_of(n), INTERVAL_MS, false);
    return p->beat;
}

uint64_t nacos_send_beat(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, word_beat, s, i, timeout_ms);
    return n ? ask_post(&n->ask) : 0;
}

/* ---- lists --------------------------------------------------------------------------------------------------------------- */

static struct hosts *filtered(const struct naming_ask *n, struct hosts *h)
{
    struct hosts *healthy = h && n->healthy_only ? hosts_healthy(h) : NULL;
    if (!h || !n->healthy_only)
        return h;
    hosts_unref(h);
    return healthy;
}

static bool word_list(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    (void)err;
    p->list_instances(q, &n->ask.key, n->text, n->healthy_only);
    return true;
}

static void on_list(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct naming_ask *n = arg;
    struct nacos_client *c = n->ask.client;
    struct hosts *h = err->code == NACOS_OK ? question_hosts(q, r) : NULL;
    if (h) {
        if (!n->healthy_only && saver_wanted(c, n->flags))
            naming_save(c, &n->ask.key, n->text, h);
        reply_hosts(n, h, NACOS_FROM_SERVER);
        return;
    }
    if (config_unknown(err) && saver_wanted(c, n->flags))
        h = filtered(n, naming_snapshot(c, &n->ask.key, n->text));
    if (h) {
        log_write(c->log, LOG_WARN, "%s; the last list on disk is used instead", err->message);
        reply_hosts(n, h, NACOS_FROM_SNAPSHOT);
    } else {
        reply_failure(n, q, r, err);
    }
}

static void run_list(struct job *job)
{
    struct naming_ask *n = (struct naming_ask *)job;
    struct nacos_client *c = n->ask.client;
    struct hosts *over = n->flags & NACOS_SERVER_ONLY ? NULL : filtered(n, naming_failover(c, &n->ask.key, n->text));
    if (over) {
        reply_hosts(n, over, NACOS_FROM_FAILOVER);
        return;
    }
    ask_put(&n->ask, on_list);
}

uint64_t nacos_list_instances(nacos_client *c, const nacos_service *s, const char *clusters, bool healthy_only, int flags,
                              int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_list, word_list, s, NULL, timeout_ms);
    if (!n)
        return 0;
    n->healthy_only = healthy_only;
    n->flags = flags;
    n->text = strdup(clusters ? clusters : "");
    if (n->text)
        return ask_post(&n->ask);
    ask_drop(&n->ask);
    return 0;
}

/* ---- services ------------------------------------------------------------------------------------------------------------ */

static bool word_put_service(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    const nacos_instance *i = instance_of(n);
    nacos_service_settings o = {n->protect_threshold, i->metadata, i->metadata_count, n->text};
    (void)err;
    p = ask_words(&n->ask, p);
    if (p->put_service)
        p->put_service(q, &n->ask.key, &o, n->update);
    return p->put_service;
}

uint64_t nacos_put_service(nacos_client *c, const nacos_service *s, const nacos_service_settings *o, bool update, int timeout_ms)
{
    nacos_instance carrier = {
        .ip = "", .metadata = o->metadata, .metadata_count = o->metadata_count}; /* of a copy of the metadata */
    struct naming_ask *n = new_ask(c, run_raw, word_put_service, s, &carrier, timeout_ms);
    if (!n)
        return 0;
    n->update = update;
    n->protect_threshold = o->protect_threshold;
    n->text = o->selector ? strdup(o->selector) : NULL;
    if (n->text || !o->selector)
        return ask_post(&n->ask);
    ask_drop(&n->ask);
    return 0;
}

static bool word_get_service(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    (void)err;
    p = ask_words(arg, p);
    if (p->get_service)
        p->get_service(q, &((struct ask *)arg)->key);
    return p->get_service;
}

uint64_t nacos_get_service(nacos_client *c, const nacos_service *s, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, word_get_service, s, NULL, timeout_ms);
    return n ? ask_post(&n->ask) : 0;
}

static bool word_remove_service(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    (void)err;
    p = ask_words(arg, p);
    if (p->remove_service)
        p->remove_service(q, &((struct ask *)arg)->key);
    return p->remove_service;
}

uint64_t nacos_remove_service(nacos_client *c, const nacos_service *s, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, word_remove_service, s, NULL, timeout_ms);
    return n ? ask_post(&n->ask) : 0;
}

static bool word_list_services(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct naming_ask *n = arg;
    (void)err;
    p = ask_words(&n->ask, p);
    if (p->list_services)
        p->list_services(q, &n->ask.key, n->page, n->page_size);
    return p->list_services;
}

uint64_t nacos_list_services(nacos_client *c, const nacos_service *s, int page, int page_size, int timeout_ms)
{
    struct naming_ask *n = new_ask(c, run_raw, word_list_services, s, NULL, timeout_ms);
    if (!n)
        return 0;
    n->page = page;
    n->page_size = page_size;
    return ask_post(&n->ask);
}
