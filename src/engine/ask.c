#include "engine/ask.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"

const nacos_error no_memory = {.code = NACOS_NOMEM, .message = "out of memory"};

static void free_ask(struct ask *a)
{
    if (a->forget)
        a->forget(a);
    question_free(&a->question);
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

void ask_put(struct ask *a, request_done done)
{
    struct question q = a->question;
    a->question = (struct question){0};
    if (!a->deadline)
        a->deadline = now_ms() + a->timeout_ms;
    if (!request_start(a->client, &q, a->deadline - now_ms(), done, a))
        done(a, NULL, &no_memory);
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

void ask_answered(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct value *v = err->code == NACOS_OK ? value_new(r->body.data, r->body.len, NULL, "") : NULL;
    ask_reply(arg, v, NACOS_FROM_SERVER, err);
    value_unref(v);
}
