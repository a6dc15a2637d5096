/** config: /v1/cs/configs as Nacos 2.5.1 answers it: read, publish, remove, search, listen.
 *
 *  Not here: beta and tag versions, history, import and export. */
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "embedded/ids.h"
#include "embedded/request.h"

enum {
    MIN_HOLD = 10000,     /* ms */
    EARLY = 500,          /* ms before the client's timeout */
    BUFFERED = 8192,      /* a servlet answer up to this size has a Content-Length */
    HEADER_VALUES = 8192, /* as much as the real server has room for in headers */
    HEADERS_UNTIL = 204,  /* clients from version 2.0.4 on ask with a timeout */
};

static void caused(struct request *r, int status, const char *message)
{
    reply_caused(&r->reply, status, message, status == 500);
}

static void no_memory(struct request *r)
{
    request_error_page(r, 500, "out of memory");
}

static const char *or_empty(const char *text)
{
    return text_blank(text) ? "" : text;
}

/** The check that comes before anything else. False: answered. */
static bool ids_legal(struct request *r, bool aliases)
{
    size_t tenant_len = 0, data_id_len = 0, group_len = 0;
    const char *tenant = aliases ? form_get(&r->form, "namespaceId", &tenant_len) : NULL;
    if (text_blank(tenant))
        tenant = form_get(&r->form, "tenant", &tenant_len);
    if (aliases && text_blank(tenant))
        tenant = form_get(&r->form, "namespace", &tenant_len);
    const char *data_id = form_get(&r->form, "dataId", &data_id_len), *group = form_get(&r->form, "group", &group_len);
    const char *why = ids_refusal(tenant, tenant_len, data_id, data_id_len, group, group_len);
    if (!why)
        return true;
    reply_text(&r->reply, 400, TYPE_JSON_UTF8, why);
    reply_no_cache(&r->reply);
    return false;
}

static bool need(struct request *r, const char *name)
{
    return request_need_param(r, name, "String");
}

/** dataId and group are there and not blank. False: answered. */
static bool key_given(struct request *r)
{
    if (!need(r, "dataId") || !need(r, "group"))
        return false;
    const char *data_id = request_param(r, "dataId"), *group = request_param(r, "group");
    if (!text_blank(data_id) && !text_blank(group))
        return true;
    char message[300];
    if (text_blank(data_id))
        snprintf(message, sizeof message, "invalid dataId : %.256s", data_id);
    else
        snprintf(message, sizeof message, "invalid group : %.256s", group);
    caused(r, 400, message);
    return false;
}

static void answer_true(struct request *r)
{
    reply_text(&r->reply, 200, TYPE_JSON_UTF8, "true");
    r->reply.chunked = true;
}

static void read_one(struct request *r)
{
    if (!key_given(r))
        return;
    /* tenant is taken as it is: `public` is a namespace of its own here, in which 2.5.1 never stores anything */
    struct item *item =
        store_find(&r->service->store, request_param(r, "dataId"), request_param(r, "group"), or_empty(request_param(r, "tenant")));
    const struct record *v = item ? item->visible : NULL;
    if (!v || !text_blank(request_param(r, "tag"))) {
        reply_text(&r->reply, 404, TYPE_JSON_UTF8, "config data not exist\n");
        return;
    }
    reply_text(&r->reply, 200, TYPE_TEXT, "");
    reply_header(&r->reply, "Config-Type", v->type);
    reply_header(&r->reply, "Content-MD5", v->md5);
    reply_no_cache(&r->reply);
    char date[32];
    reply_date(v->modified / 1000, date);
    reply_header(&r->reply, "Last-Modified", date);
    reply_header(&r->reply, "Encrypted-Data-Key", "");
    r->reply.chunked = true;
    buf_append(&r->reply.body, v->content, v->len);
}

static json_t *text_json(const char *text)
{
    return text ? json_string(text) : json_null();
}

static json_t *id_json(const struct record *r)
{
    char id[24];
    snprintf(id, sizeof id, "%llu", (unsigned long long)r->id);
    return json_string(id);
}

/** The console's view: what the database holds. */
static void show_all(struct request *r)
{
    if (!key_given(r))
        return;
    struct item *item =
        store_find(&r->service->store, request_param(r, "dataId"), request_param(r, "group"), or_empty(request_param(r, "tenant")));
    const struct record *v = item ? item->record : NULL;
    if (!v) {
        reply_text(&r->reply, 200, TYPE_JSON_UTF8, "");
        return;
    }
    reply_json(&r->reply, 200, TYPE_JSON_UTF8,
               json_pack("{s:o, s:s, s:s, s:o, s:s, s:s, s:s, s:o, s:s, s:I, s:I, s:o, s:s, s:o, s:o, s:o, s:o, s:o}", "id",
                         id_json(v), "dataId", item->data_id, "group", item->group, "content", json_stringn(v->content, v->len),
                         "md5", v->md5, "encryptedDataKey", "", "tenant", item->tenant, "appName", text_json(v->app_name), "type",
                         v->type, "createTime", (json_int_t)v->created, "modifyTime", (json_int_t)v->modified, "createUser",
                         text_json(v->user), "createIp", "127.0.0.1", "desc", text_json(v->desc), "use", text_json(v->use),
                         "effect", text_json(v->effect), "schema", text_json(v->schema), "configTags", text_json(v->tags)));
}

/** A whole number in a parameter. False: answered. */
static bool int_param(struct request *r, const char *name, int *out)
{
    if (!request_need_param(r, name, "int"))
        return false;
    const char *text = request_param(r, name);
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (*text && !*end && errno == 0 && n >= INT_MIN && n <= INT_MAX) {
        *out = (int)n;
        return true;
    }
    char message[400];
    snprintf(message, sizeof message,
             "Failed to convert value of type 'java.lang.String' to required type 'int'; nested exception is "
             "java.lang.NumberFormatException: For input string: \"%.80s\";caused: For input string: \"%.80s\"",
             text, text);
    caused(r, 500, message);
    return false;
}

static json_t *found_json(const struct item *item, bool like)
{
    const struct record *v = item->record;
    return json_pack("{s:o, s:s, s:s, s:o, s:n, s:o, s:s, s:o, s:s}", "id", id_json(v), "dataId", item->data_id, "group",
                     item->group, "content", json_stringn(v->content, v->len), "md5", "encryptedDataKey",
                     like ? json_string("") : json_null(), "tenant", item->tenant, "appName", text_json(v->app_name), "type",
                     v->type);
}

static void search(struct request *r, bool like)
{
    int page, size;
    if (!need(r, "dataId") || !need(r, "group") || !int_param(r, "pageNo", &page) || !int_param(r, "pageSize", &size))
        return;
    struct query q = {.like = like,
                      .data_id = request_param(r, "dataId"),
                      .group = request_param(r, "group"),
                      .tenant = or_empty(request_param(r, "tenant")),
                      .app_name = request_param(r, "appName"),
                      .tags = request_param(r, "config_tags"),
                      .types = like ? request_param(r, "types") : NULL};
    if (page <= 0 || size <= 0) {
        char message[400];
        snprintf(message, sizeof message,
                 "serialize page error, dataId=%.150s, group=%.150s;caused: pageNo and pageSize must be greater than zero",
                 q.data_id, q.group);
        caused(r, 500, message);
        return;
    }
    json_t *list = json_array();
    long long total = 0, first = ((long long)page - 1) * size;
    for (struct item *i = r->service->store.first; i; i = i->after)
        if (store_matches(&q, i)) {
            if (total >= first && total < first + size)
                json_array_append_new(list, found_json(i, like));
            total++;
        }
    reply_json(&r->reply, 200, TYPE_JSON_UTF8,
               json_pack("{s:I, s:i, s:I, s:o}", "totalCount", (json_int_t)total, "pageNumber", page, "pagesAvailable",
                         (json_int_t)((total + size - 1) / size), "pageItems", list));
}

static void read_any(struct request *r)
{
    const char *show = request_param(r, "show"), *how = request_param(r, "search");
    bool accurate = how && strcmp(how, "accurate") == 0, blur = how && strcmp(how, "blur") == 0;
    bool all = show && strcmp(show, "all") == 0;
    if (!all && blur) /* a pattern may hold what an identifier may not */
        search(r, true);
    else if (!ids_legal(r, all || !accurate))
        return;
    else if (all)
        show_all(r);
    else if (accurate)
        search(r, false);
    else
        read_one(r);
}

/** The longer texts of a publish. NULL: fine. */
static const char *too_long(const struct request *r)
{
    static const struct {
        const char *name;
        size_t max;
        const char *why;
    } limits[] = {{"desc", 128, "too long desc, over 128"},
                  {"use", 32, "too long use, over 32"},
                  {"effect", 32, "too long effect, over 32"},
                  {"schema", 32768, "too long schema, over 32768"}};
    size_t len;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        const char *text = form_get(&r->form, limits[i].name, &len);
        if (text && text_units(text, len) > limits[i].max)
            return limits[i].why;
    }
    const char *tags = request_param(r, "config_tags");
    size_t count = 0;
    for (const char *tag = tags; tag && *tag; count++) {
        size_t n = strcspn(tag, ",");
        if (text_units(tag, n) > 64)
            return "too long tag, over 64";
        tag += n + (tag[n] == ',');
    }
    return count > 5 ? "too much config_tags, over 5" : NULL;
}

static void publish(struct request *r)
{
    struct publish p = {.data_id = request_param(r, "dataId"),
                        .group = request_param(r, "group"),
                        .tenant = or_empty(request_param(r, "tenant")),
                        .type = request_param(r, "type"),
                        .cas_md5 = request_header(r, "casMd5"),
                        .app_name = request_param(r, "appName"),
                        .tags = request_param(r, "config_tags"),
                        .desc = request_param(r, "desc"),
                        .use = request_param(r, "use"),
                        .effect = request_param(r, "effect"),
                        .schema = request_param(r, "schema"),
                        .user = request_param(r, "src_user")};
    if (!need(r, "dataId") || !need(r, "group") || !need(r, "content") || !key_given(r))
        return;
    p.content = form_get(&r->form, "content", &p.len);
    if (strcasecmp(p.tenant, "public") == 0 || strcasecmp(p.tenant, "null") == 0)
        p.tenant = "";
    const char *why = too_long(r);
    if (text_blank(p.content) && strlen(p.content) == p.len) {
        char message[64];
        snprintf(message, sizeof message, "content is blank : %.32s", p.content);
        caused(r, 400, message);
    } else if (why) {
        caused(r, 400, why);
    } else if (!text_blank(request_param(r, "tag")) || !text_blank(request_header(r, "betaIps"))) {
        request_error_page(r, 501, "the embedded server has no beta and tag versions");
    } else {
        switch (store_publish(&r->service->store, &p)) {
        case STORE_DONE:
            answer_true(r);
            break;
        case STORE_CONFLICT:
            caused(r, 500, "Cas publish fail, server md5 may have changed.");
            break;
        case STORE_NO_MEMORY:
            no_memory(r);
        }
    }
}

static void remove_one(struct request *r)
{
    if (!key_given(r))
        return;
    /* `public` is not mapped here: the item without a tenant stays */
    if (text_blank(request_param(r, "tag")) &&
        store_remove(&r->service->store, request_param(r, "dataId"), request_param(r, "group"),
                     or_empty(request_param(r, "tenant"))) != STORE_DONE)
        no_memory(r);
    else
        answer_true(r);
}

static void answer_keys(struct reply *reply, struct buf *keys)
{
    reply_text(reply, 200, TYPE_JSON_UTF8, "");
    reply_no_cache(reply);
    buf_puts(keys, "\n");
    buf_free(&reply->body);
    reply->body = *keys;
    reply->chunked = keys->len > BUFFERED;
}

void config_poll_ended(void *arg, struct poll *p, const struct item *item)
{
    (void)arg;
    struct request *r = (struct request *)((char *)p - offsetof(struct request, poll));
    reply_text(&r->reply, 200, TYPE_JSON_UTF8, "");
    if (item) {
        struct buf keys;
        buf_init(&keys, SIZE_MAX / 2);
        poll_append_key(&keys, item);
        answer_keys(&r->reply, &keys);
    }
    request_answer(r);
}

/** A client's version as one number, as the real server reckons: 2.0.4 is 204. */
static long version_number(const char *version)
{
    long sum = 0;
    while (version && *version) {
        char *end;
        long part = strtol(version, &end, 10);
        if (end > version && (*end == '.' || !*end) && part >= 0 && part < 1000 && sum < 1000000)
            sum = sum * 10 + part;
        version = strchr(version, '.');
        version = version ? version + 1 : NULL;
    }
    return sum;
}

/** A listener without a timeout: the oldest clients' way, answered in headers, and newer ones not at all. */
static void answer_without_timeout(struct request *r)
{
    const char *version = request_header(r, "Client-Version");
    if (version && version_number(version) >= HEADERS_UNTIL) {
        reply_text(&r->reply, 200, TYPE_JSON_UTF8, "");
        reply_no_cache(&r->reply);
        return;
    }
    struct buf old_form, new_form;
    buf_init(&old_form, HEADER_VALUES);
    buf_init(&new_form, HEADER_VALUES);
    poll_stale_headers(&r->poll, &old_form, &new_form);
    if (old_form.failed || new_form.failed || old_form.len + new_form.len > HEADER_VALUES) {
        request_error_page(r, 500, "the answer does not fit into headers");
    } else {
        reply_text(&r->reply, 200, TYPE_JSON_UTF8, "");
        reply_header(&r->reply, "Probe-Modify-Response", old_form.data ? old_form.data : "");
        reply_header(&r->reply, "Probe-Modify-Response-New", new_form.data ? new_form.data : "");
        reply_no_cache(&r->reply);
    }
    buf_free(&old_form);
    buf_free(&new_form);
}

/** Java's Long.parseLong. */
static bool parse_long(const char *text, long long *out)
{
    char *end;
    errno = 0;
    *out = strtoll(text, &end, 10);
    return *text && *text != ' ' && !*end && errno == 0;
}

/** A poll that was read: answer it or park it. True: parked. */
static bool poll_or_park(struct request *r, const char *timeout)
{
    struct buf keys;
    buf_init(&keys, SIZE_MAX / 2);
    if (poll_stale(&r->poll, &keys)) {
        answer_keys(&r->reply, &keys);
        return false;
    }
    const char *no_hangup = request_header(r, "Long-Pulling-Timeout-No-Hangup");
    long long wait;
    if (no_hangup && strcasecmp(no_hangup, "true") == 0) {
        reply_text(&r->reply, 200, TYPE_JSON_UTF8, "");
    } else if (!parse_long(timeout, &wait)) {
        char message[128];
        snprintf(message, sizeof message, "For input string: \"%.80s\"", timeout);
        caused(r, 400, message);
    } else {
        poll_park(&r->service->polls, &r->poll, wait > MIN_HOLD + EARLY ? wait - EARLY : MIN_HOLD);
        form_free(&r->form); /* a parked poll is small */
        return true;
    }
    return false;
}

/** True: parked, the answer comes later. */
static bool listen_for(struct request *r)
{
    size_t len = 0;
    const char *text = form_get(&r->form, "Listening-Configs", &len), *why = "";
    enum poll_status status = text ? poll_read(&r->service->polls, &r->poll, (char *)text, len, &why) : POLL_INVALID;
    const char *timeout = request_header(r, "Long-Pulling-Timeout");
    switch (status) {
    case POLL_READ:
        if (timeout && poll_or_park(r, timeout))
            return true;
        if (!timeout)
            answer_without_timeout(r);
        break;
    case POLL_INVALID:
        caused(r, 400, "invalid probeModify");
        break;
    case POLL_BROKEN:
        /* thrown from different depths of the real server */
        if (access_enabled(&r->service->auth))
            request_error_page(r, 400, "caused: invalid probeModify;");
        else
            request_error_page(r, 500, "invalid probeModify");
        break;
    case POLL_ILLEGAL:
        reply_text(&r->reply, 400, TYPE_JSON_UTF8, why);
        reply_no_cache(&r->reply);
        break;
    case POLL_NO_MEMORY:
        no_memory(r);
    }
    poll_clear(&r->service->polls, &r->poll);
    return false;
}

/** Who listens to one configuration: addresses and the md5 they hold, which for a poll that waits is ours. */
static void listeners(struct request *r)
{
    if (!key_given(r))
        return;
    struct item *item =
        store_find(&r->service->store, request_param(r, "dataId"), request_param(r, "group"), or_empty(request_param(r, "tenant")));
    json_t *list = json_object();
    if (item && item->polls)
        json_object_set_new(list, "127.0.0.1", json_string(item_md5(item)));
    reply_json(&r->reply, 200, TYPE_JSON_UTF8, json_pack("{s:i, s:o}", "collectStatus", 200, "lisentersGroupkeyStatus", list));
}

bool config_handle(struct request *r, const char *path)
{
    bool post = strcmp(r->method, "POST") == 0, delete = strcmp(r->method, "DELETE") == 0;
    if (*path && post)
        return !listen_for(r);
    if (*path)
        listeners(r);
    else if (!post && !delete)
        read_any(r);
    else if (ids_legal(r, true))
        (post ? publish : remove_one)(r);
    return true;
}
