#include "engine/ask.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"

const nacos_error no_memory = {.code = NACOS_NOMEM, .message = "out of memory"};

static void free_ask(struct ask *a)
{
    if (a->forget)
        a->forget(a);
    free((char *)a->key.data_id);
    free((char *)a->key.group);
    free((char *)a->key.ns);
    free(a);
}

static char *copy(const char *s)
{
    return strdup(s ? s : "");
}

void *ask_new(struct nacos_client *c, size_t size, void (*run)(struct job *), const struct key *k, int timeout_ms)
{
    struct ask *a = calloc(1, size);
    if (!a)
        return NULL;
    a->job.run = run;
    a->client = c;
    a->timeout_ms = timeout_ms;
    a->key = (struct key){copy(k->data_id), copy(k->group), copy(k->ns)};
    a->event = event_new(engine_next_id(c->engine), NACOS_EVENT_REPLY);
    if (a->key.data_id && a->key.group && a->key.ns && a->event)
        return a;
    ask_drop(a);
    return NULL;
}

void ask_drop(struct ask *a)
{
    event_free(a->event);
    free_ask(a);
}

uint64_t ask_post(struct ask *a)
{
    uint64_t id = a->event->id;
    engine_post(a->client->engine, &a->job);
    return id;
}

static bool word(void *arg, const struct protocol *p, struct question *q, nacos_error *err)
{
    struct ask *a = arg;
    bool ok = a->word(arg, p, q, err);
    q->core &= !a->second; /* those words say nothing of what else the server offers */
    return ok;
}

void ask_put(struct ask *a, request_done done)
{
    if (!a->deadline)
        a->deadline = now_ms() + a->timeout_ms;
    struct request *r = request_start(a->client, word, a->deadline - now_ms(), done, a);
    if (!r)
        done(a, NULL, NULL, &no_memory);
    else if (a->lasting)
        request_lasts(r);
}

const struct protocol *ask_words(const struct ask *a, const struct protocol *p)
{
    return a->second ? &protocol_v3 : p;
}

bool ask_second(struct ask *a, const nacos_error *err, request_done done)
{
    if (err->code != NACOS_UNSUPPORTED || a->second || a->client->dialect.now == &protocol_v3)
        return false;
    a->second = true;
    ask_put(a, done);
    return true;
}

void ask_reply(struct ask *a, struct value *v, nacos_source source, const nacos_error *err)
{
    struct event *ev = a->event;
    ev->value = value_ref(v);
    ev->source = v || ev->hosts ? source : NACOS_FROM_NONE;
    ev->confirmed = v && source == NACOS_FROM_SERVER ? unix_now() : 0;
    if (err && err->code != NACOS_OK)
        event_set_error(ev, err);
    engine_ready(a->client->engine, ev);
    free_ask(a);
}

void ask_answered(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    nacos_error odd = *err;
    struct value *v = err->code == NACOS_OK ? question_value(q, r) : NULL;
    if (err->code == NACOS_OK && !v)
        judged(q, r, &odd, NACOS_PROTOCOL, VERDICT_ANSWER, "the answer is not what was asked for");
    ask_reply(arg, v, NACOS_FROM_SERVER, &odd);
    value_unref(v);
}
