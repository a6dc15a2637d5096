/** rpc_config: configurations over gRPC. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "embedded/ids.h"
#include "embedded/request.h"

enum { AGAIN = 5000, LONGER = 2000 }; /* ms: the first repetition of a push comes after so long, each next one so much later */

struct config_key {
    const char *data_id, *group, *tenant;
};

/** The namespace `public` is the one without a name. */
static const char *plain_tenant(const char *tenant)
{
    return text_blank(tenant) || strcmp(tenant, "public") == 0 ? "" : tenant;
}

/** What is wrong with the key, NULL: nothing. */
static const char *key_refusal(const struct config_key *k)
{
    const char *tenant = k->tenant ? k->tenant : "";
    return ids_refusal(tenant, strlen(tenant), k->data_id, strlen(k->data_id), k->group, strlen(k->group));
}

/** Reads the key of the message. False: answered. */
static bool read_key(struct question *q, struct config_key *k)
{
    *k = (struct config_key){.data_id = question_text(q, "dataId", NULL),
                             .group = question_text(q, "group", NULL),
                             .tenant = plain_tenant(question_text(q, "tenant", ""))};
    if (!k->data_id || !k->group) {
        question_fail(q, 500, 500, "Cannot invoke \"String.length()\" because \"str\" is null");
        return false;
    }
    const char *why = key_refusal(k);
    if (why) {
        char message[300];
        snprintf(message, sizeof message, "Param check invalid:%s", why);
        question_fail(q, 500, 400, message);
    }
    return !why;
}

void rpc_config_query(struct question *q)
{
    struct config_key k;
    if (!read_key(q, &k))
        return;
    const struct item *item = store_find(&q->service->store, k.data_id, k.group, k.tenant);
    const struct record *v = item ? item->visible : NULL;
    if (!v || !text_blank(question_text(q, "tag", ""))) {
        question_fail(q, 500, 300, "config data not exist");
        return;
    }
    question_answer(q, json_pack("{s:i, s:i, s:o, s:s, s:s, s:s, s:I, s:b, s:b}", "resultCode", 200, "errorCode", 0, "content",
                                 json_stringn(v->content, v->len), "encryptedDataKey", "", "contentType", v->type, "md5", v->md5,
                                 "lastModified", (json_int_t)v->modified, "beta", 0, "success", 1));
}

void rpc_config_publish(struct question *q)
{
    struct config_key k;
    if (!read_key(q, &k))
        return;
    const json_t *more = json_object_get(q->json, "additionMap"), *content = json_object_get(q->json, "content");
    struct publish p = {.data_id = k.data_id,
                        .group = k.group,
                        .tenant = k.tenant,
                        .content = json_string_value(content),
                        .len = json_string_length(content),
                        .cas_md5 = question_text(q, "casMd5", NULL),
                        .type = json_string_value(json_object_get(more, "type")),
                        .app_name = json_string_value(json_object_get(more, "appName")),
                        .tags = json_string_value(json_object_get(more, "config_tags")),
                        .desc = json_string_value(json_object_get(more, "desc")),
                        .use = json_string_value(json_object_get(more, "use")),
                        .effect = json_string_value(json_object_get(more, "effect")),
                        .schema = json_string_value(json_object_get(more, "schema")),
                        .user = json_string_value(json_object_get(more, "src_user"))};
    if (text_blank(p.content) && (!p.content || strlen(p.content) == p.len)) {
        char message[64];
        snprintf(message, sizeof message, "content is blank : %.32s", p.content ? p.content : "null");
        question_fail(q, 500, 400, message);
        return;
    }
    switch (store_publish(&q->service->store, &p)) {
    case STORE_DONE:
        question_done(q);
        break;
    case STORE_CONFLICT:
        question_fail(q, 500, 500, "Cas publish fail, server md5 may have changed.");
        break;
    case STORE_NO_MEMORY:
        question_fail(q, 500, 500, "out of memory");
    }
}

void rpc_config_remove(struct question *q)
{
    struct config_key k;
    if (!read_key(q, &k))
        return;
    if (store_remove(&q->service->store, k.data_id, k.group, k.tenant) == STORE_DONE)
        question_done(q);
    else
        question_fail(q, 500, 500, "out of memory");
}

/* ---- listening ---- */

/** Tells the client that the configuration has changed; what it is now, the client asks. */
static void notify(struct notice *n)
{
    struct listener *l = (struct listener *)n;
    json_t *json = json_pack("{s:s, s:s, s:s}", "dataId", l->item->data_id, "group", l->item->group, "module", "config");
    struct buf body;
    buf_init(&body, ENVELOPE_MAX);
    if (json && *l->tenant)
        json_object_set_new(json, "tenant", json_string(l->tenant));
    append_value(&body, json);
    notice_send(n, "ConfigChangeNotifyRequest", &body, AGAIN + (int64_t)n->tries * LONGER);
    buf_free(&body);
}

void rpc_config_changed(struct item *item)
{
    for (struct listener *l = item->listeners, *after; l; l = after) {
        after = l->after; /* a client that cannot keep up is dropped */
        l->notice.tries = 0;
        notify(&l->notice);
    }
}

static void listener_free(struct listener *l)
{
    struct session *s = l->notice.session;
    notice_clear(&l->notice);
    HASH_DEL(s->listeners, l);
    s->rpc->listened--;
    if (l->before)
        l->before->after = l->after;
    else
        l->item->listeners = l->after;
    if (l->after)
        l->after->before = l->before;
    store_settle(&s->rpc->service->store, l->item);
    free(l);
}

void rpc_config_forget(struct session *s)
{
    struct listener *l, *next;
    HASH_ITER (hh, s->listeners, l, next) {
        listener_free(l);
    }
}

/** NULL: out of memory. */
static struct listener *listen_to(struct session *s, struct item *item)
{
    struct listener *l = NULL;
    HASH_FIND_PTR(s->listeners, &item, l);
    if (l || !(l = calloc(1, sizeof *l)))
        return l;
    l->notice.session = s;
    l->notice.repeat = notify;
    l->item = item;
    l->after = item->listeners;
    if (l->after)
        l->after->before = l;
    item->listeners = l;
    HASH_ADD_PTR(s->listeners, item, l);
    s->rpc->listened++;
    return l;
}

/** One key of a listen. Is it to be named as changed? */
static bool listen_one(struct question *q, const struct config_key *k, const char *md5, bool on)
{
    struct session *s = q->session;
    struct store *store = &q->service->store;
    const char *tenant = plain_tenant(k->tenant);
    struct item *item = on ? store_item(store, k->data_id, k->group, tenant) : store_find(store, k->data_id, k->group, tenant);
    struct listener *l = NULL;
    if (!item)
        return false;
    if (!on) {
        HASH_FIND_PTR(s->listeners, &item, l);
        if (l)
            listener_free(l);
        return false;
    }
    l = listen_to(s, item);
    if (l)
        snprintf(l->tenant, sizeof l->tenant, "%s", k->tenant ? k->tenant : "");
    else
        store_settle(store, item);
    return l && strcmp(item_md5(item), md5) != 0;
}

void rpc_config_listen(struct question *q)
{
    json_t *keys = json_object_get(q->json, "configListenContexts"), *changed = json_array();
    const json_t *listen = json_object_get(q->json, "listen");
    bool on = !listen || json_is_true(listen);
    for (size_t i = 0; i < json_array_size(keys); i++) {
        const json_t *key = json_array_get(keys, i);
        struct config_key k = {.data_id = json_string_value(json_object_get(key, "dataId")),
                               .group = json_string_value(json_object_get(key, "group")),
                               .tenant = json_string_value(json_object_get(key, "tenant"))};
        const char *md5 = json_string_value(json_object_get(key, "md5"));
        if (text_blank(k.data_id) || text_blank(k.group) || key_refusal(&k))
            continue;
        if (listen_one(q, &k, md5 ? md5 : "", on)) {
            json_t *one = json_pack("{s:s, s:s}", "group", k.group, "dataId", k.data_id);
            if (k.tenant)
                json_object_set_new(one, "tenant", json_string(k.tenant));
            json_array_append_new(changed, one);
        }
    }
    question_answer(q,
                    json_pack("{s:i, s:i, s:o, s:b}", "resultCode", 200, "errorCode", 0, "changedConfigs", changed, "success", 1));
}
