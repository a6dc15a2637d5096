/** protocol_v1: the HTTP API of 0.8 to 3.1. */
#include <stdlib.h>
#include <string.h>

#include "engine/detector.h"
#include "engine/digest.h"
#include "engine/hosts.h"
#include "engine/protocol.h"

#define WORD "\x02"
#define LINE "\x01"

static void add_key(struct buf *b, const struct key *k)
{
    buf_form(b, "dataId", k->data_id);
    buf_form(b, "group", k->group);
    buf_form(b, "tenant", *k->ns ? k->ns : NULL); /* never "public": no two versions agree on it */
}

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

/** The body is believed only if it has the md5 that the server gave: a proxy's page or half a value never becomes a configuration.
 */
static enum verdict judge_read(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200) {
        char md5[MD5_HEX];
        md5_hex(r->body.data ? r->body.data : "", r->body.len, md5);
        /* "cipher-" items are decrypted by a server plugin, their md5 is that of the stored form */
        if (r->content_md5[0] && (strcmp(md5, r->content_md5) == 0 || strncmp(q->key.data_id, "cipher-", 7) == 0))
            return VERDICT_ANSWER;
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT,
                      r->content_md5[0] ? "the content does not have the md5 that came with it"
                                        : "what answered is not a Nacos server (no Content-MD5); check address, port and proxy");
    }
    if (r->outcome == HTTP_ANSWERED && r->status == 404 && body_is(r, "config data not exist"))
        return judged(q, r, err, NACOS_NOT_FOUND, VERDICT_ANSWER, "it does not exist");
    return judge_failure(q, r, err);
}

static enum verdict judge_write(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200) {
        if (body_is(r, "true"))
            return VERDICT_ANSWER;
        if (body_is(r, "false"))
            return judged(q, r, err, NACOS_REFUSED, VERDICT_ANSWER, "the server answered false");
        return judged(q, r, err, NACOS_PROTOCOL, q->retry == RETRY_UNSENT ? VERDICT_ANSWER : VERDICT_NEXT,
                      "what answered is not a Nacos server; check address, port and proxy");
    }
    /* 2.3–2.5 say it in words, 3.x answers a bare false */
    if (q->retry == RETRY_UNSENT && r->outcome == HTTP_ANSWERED && r->status == 500 &&
        (body_has(r, "Cas publish fail") || body_is(r, "false")))
        return judged(q, r, err, NACOS_CONFLICT, VERDICT_ANSWER,
                      "the content is no longer the one with the expected md5; read it and decide again");
    enum verdict v = judge_failure(q, r, err);
    return v == VERDICT_NEXT && q->retry == RETRY_UNSENT && r->outcome != HTTP_NO_CONNECT ? VERDICT_ANSWER : v;
}

/* ---- questions ----------------------------------------------------------------------------------------------------------- */

static void v1_read(struct question *q, const struct key *k)
{
    question_init(q, "GET", "/v1/cs/configs?", "read");
    add_key(&q->target, k);
    q->key = *k;
    q->core = true;
    q->judge = judge_read;
}

static bool v1_publish(struct question *q, const struct key *k, const nacos_publish *p, nacos_error *err)
{
    question_init(q, "POST", "/v1/cs/configs", "publish");
    q->key = *k;
    q->core = true;
    q->judge = judge_write;
    q->body.max = PUBLISH_ROOM;
    add_key(&q->body, k);
    buf_form(&q->body, "type", p->type);
    buf_form(&q->body, "appName", p->app_name);
    buf_form(&q->body, "config_tags", p->tags);
    buf_form(&q->body, "desc", p->desc);
    buf_form_n(&q->body, "content", p->content, p->len);
    if (!publish_fits(q, p->len, err))
        return false;
    if (p->cas_md5) {
        q->retry = RETRY_UNSENT;
        question_header(q, "casMd5", p->cas_md5);
    }
    return true;
}

static void v1_remove(struct question *q, const struct key *k)
{
    question_init(q, "DELETE", "/v1/cs/configs?", "remove");
    add_key(&q->target, k);
    q->key = *k;
    q->core = true;
    q->judge = judge_write;
}

static void add_page(struct question *q, const struct key *pattern, int page, int page_size)
{
    buf_form(&q->target, "search",
             strchr(pattern->data_id, '*') || !*pattern->data_id || !*pattern->group || strchr(pattern->group, '*') ? "blur"
                                                                                                                    : "accurate");
    buf_printf(&q->target, "&pageNo=%d&pageSize=%d", page, page_size);
    buf_form(&q->target, "dataId", pattern->data_id);
    q->judge = judge_json;
}

static void v1_list(struct question *q, const struct key *pattern, int page, int page_size)
{
    question_init(q, "GET", "/v1/cs/configs?", "list configurations");
    add_page(q, pattern, page, page_size);
    buf_form(&q->target, "group", pattern->group);
    buf_form(&q->target, "tenant", *pattern->ns ? pattern->ns : NULL);
}

static void v1_version(struct question *q)
{
    question_init(q, "GET", "/v1/console/server/state", "ask for the version");
    q->judge = judge_json;
}

/* ---- long poll ----------------------------------------------------------------------------------------------------------- */

static void v1_listen_add(struct question *q, const struct key *k, const char *md5)
{
    struct buf *b = &q->body;
    buf_append_encoded(b, k->data_id, strlen(k->data_id));
    buf_puts(b, "%02");
    buf_append_encoded(b, k->group, strlen(k->group));
    buf_puts(b, "%02");
    buf_puts(b, md5);
    if (*k->ns) {
        buf_puts(b, "%02");
        buf_puts(b, k->ns);
    }
    buf_puts(b, "%01");
}

/** Percent-decoding in place. */
static void decode(char *p)
{
    char *out = p;
    for (; *p; p++) {
        char hex[3] = {0};
        if (p[0] == '%' && p[1] && p[2]) {
            char *end;
            memcpy(hex, p + 1, 2);
            long c = strtol(hex, &end, 16);
            if (!*end) {
                *out++ = (char)c;
                p += 2;
                continue;
            }
        }
        *out++ = *p;
    }
    *out = 0;
}

static bool v1_listen_changed(const struct http_response *r, void (*changed)(void *arg, const struct key *k), void *arg)
{
    if (!r->body.len)
        return true;
    char *text = strdup(r->body.data);
    if (!text)
        return false;
    decode(text);
    bool ok = true;
    char *save_line = NULL;
    for (char *line = strtok_r(text, LINE "\r\n", &save_line); line && ok; line = strtok_r(NULL, LINE "\r\n", &save_line)) {
        char *save_word = NULL;
        struct key k = {.data_id = strtok_r(line, WORD, &save_word)};
        k.group = k.data_id ? strtok_r(NULL, WORD, &save_word) : NULL;
        const char *ns = k.group ? strtok_r(NULL, WORD, &save_word) : NULL;
        k.ns = ns ? ns : "";
        ok = k.group != NULL;
        if (ok && changed)
            changed(arg, &k);
    }
    free(text);
    return ok;
}

static enum verdict judge_listen(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && (r->status == 200 || r->status == 204)) {
        if (r->body.len == 0 || (r->body.data[0] != '<' && v1_listen_changed(r, NULL, NULL)))
            return VERDICT_ANSWER;
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT,
                      "the answer is not that of a long poll; check address, port and proxy");
    }
    return judge_failure(q, r, err);
}

static void v1_listen(struct question *q, const char *ns, int64_t hold_ms, bool at_once)
{
    char ms[24];
    question_init(q, "POST", "/v1/cs/configs/listener", "listen for changes");
    q->core = true;
    q->judge = judge_listen;
    q->retry = RETRY_NEVER;
    q->hold_ms = at_once ? 0 : hold_ms;
    snprintf(ms, sizeof ms, "%lld", (long long)hold_ms);
    question_header(q, "Long-Pulling-Timeout", ms);
    if (at_once)
        question_header(q, "Long-Pulling-Timeout-No-Hangup", "true");
    /* users with rights to one namespace only are refused without it */
    buf_form(&q->body, "tenant", *ns ? ns : NULL);
    buf_form(&q->body, "Listening-Configs", "");
}

/* ---- services ------------------------------------------------------------------------------------------------------------ */

/** What servers say of something that is not there: 2.5 with 404 or 400, 2.3 and older with 500. */
static bool says_absent(const struct http_response *r)
{
    static const char *const words[] = {"no matched ip found", "no ips found", " not found", "no service", NULL};
    if (body_has(r, "No endpoint") || body_has(r, "no such api"))
        return false;
    for (int i = 0; words[i]; i++)
        if (body_has(r, words[i]))
            return true;
    return false;
}

/** A 500 of 2.3 and older that means "this request is wrong", as newer ones say with 400: every other server would answer the same.
 */
static bool says_refused(const struct http_response *r)
{
    static const char *const words[] = {"errCode: 4",   "is required", "is illegal",     "illegal", "nvalid", "already exist",
                                        "is not empty", "heart beat",  "can't register", "weight",  NULL};
    if (!body_has(r, "caused:"))
        return false;
    for (int i = 0; words[i]; i++)
        if (body_has(r, words[i]))
            return true;
    return false;
}

static enum verdict judge_naming_failure(const struct question *q, const struct http_response *r, nacos_error *err)
{
    int status = r->outcome == HTTP_ANSWERED ? r->status : 0;
    if ((status == 404 || status == 400 || status == 500) && says_absent(r)) {
        return judged(q, r, err, NACOS_NOT_FOUND, VERDICT_ANSWER, "it does not exist");
    }
    enum verdict v = judge_failure(q, r, err);
    if (status == 500 && says_refused(r)) {
        err->code = NACOS_REFUSED;
        v = VERDICT_ANSWER;
    }
    return v;
}

static enum verdict judge_ok(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200) {
        if (body_is(r, "ok"))
            return VERDICT_ANSWER;
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT,
                      "what answered is not a Nacos server; check address, port and proxy");
    }
    return judge_naming_failure(q, r, err);
}

static enum verdict judge_naming_json(const struct question *q, const struct http_response *r, nacos_error *err)
{
    return r->outcome == HTTP_ANSWERED && r->status == 200 ? judge_json(q, r, err) : judge_naming_failure(q, r, err);
}

static enum verdict judge_hosts(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200 && !body_has(r, "\"hosts\""))
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer is no list of instances");
    return judge_naming_json(q, r, err);
}

static struct hosts *hosts_of_list(const struct http_response *r)
{
    return hosts_parse(r->body.data, r->body.len);
}

static bool beat_answer(const struct http_response *r, struct beat_answer *out)
{
    json_t *j = json_loadb(r->body.data ? r->body.data : "", r->body.len, 0, NULL);
    json_t *interval = json_object_get(j, "clientBeatInterval");
    *out = (struct beat_answer){.unknown = json_integer_value(json_object_get(j, "code")) == 20404,
                                .light = json_is_true(json_object_get(j, "lightBeatEnabled")),
                                .interval_ms = json_integer_value(interval)};
    bool ok = json_is_integer(interval) || out->unknown;
    json_decref(j);
    return ok;
}

static enum verdict judge_beat(const struct question *q, const struct http_response *r, nacos_error *err)
{
    struct beat_answer answer;
    if (r->outcome == HTTP_ANSWERED && r->status == 200) {
        if (beat_answer(r, &answer))
            return VERDICT_ANSWER;
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer is not that to a beat");
    }
    return judge_naming_failure(q, r, err);
}

/** Parameters stand in the query, always: 1.4.8 does not see those in the body of a POST. */
static void service_question(struct question *q, const char *method, const char *path, const char *verb, const struct key *k)
{
    question_init(q, method, path, verb);
    q->naming = true;
    q->key = *k;
    q->judge = judge_ok;
    buf_form(&q->target, "serviceName", k->data_id);
    buf_form(&q->target, "groupName", k->group);
    buf_form(&q->target, "namespaceId", *k->ns ? k->ns : NULL);
}

static void add_place(struct buf *b, const nacos_instance *i)
{
    buf_form(b, "ip", i->ip);
    buf_printf(b, "&port=%d", i->port);
    buf_form(b, "clusterName", i->cluster && *i->cluster ? i->cluster : "DEFAULT");
    buf_puts(b, i->ephemeral ? "&ephemeral=true" : "&ephemeral=false");
}

/** A form field with a JSON value; takes the reference. */
static void add_json(struct buf *b, const char *name, json_t *j)
{
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    if (text)
        buf_form(b, name, text);
    else
        b->failed = true;
    free(text);
    json_decref(j);
}

static void add_details(struct buf *b, const nacos_instance *i)
{
    buf_printf(b, "&weight=%.15g", i->weight);
    buf_puts(b, i->enabled ? "&enabled=true" : "&enabled=false");
    buf_puts(b, i->healthy ? "&healthy=true" : "&healthy=false");
    if (i->metadata_count)
        add_json(b, "metadata", pairs_json(i->metadata, i->metadata_count));
}

static void v1_register(struct question *q, const struct key *k, const nacos_instance *i, const nacos_instance *const *with,
                        size_t with_count)
{
    (void)with, (void)with_count;
    service_question(q, "POST", "/v1/ns/instance?", "register", k);
    q->core = true;
    add_place(&q->target, i);
    add_details(&q->target, i);
}

static void v1_deregister(struct question *q, const struct key *k, const nacos_instance *i, const nacos_instance *const *with,
                          size_t with_count)
{
    (void)with, (void)with_count;
    service_question(q, "DELETE", "/v1/ns/instance?", "deregister", k);
    q->core = true;
    add_place(&q->target, i);
}

static void v1_modify(struct question *q, const struct key *k, const nacos_instance *i)
{
    service_question(q, "PUT", "/v1/ns/instance?", "modify", k);
    add_place(&q->target, i);
    add_details(&q->target, i);
}

static struct hosts *hosts_of_one(const struct http_response *r)
{
    struct buf list;
    buf_init(&list, r->body.len + 32);
    buf_puts(&list, "{\"hosts\":[");
    buf_append(&list, r->body.data, r->body.len);
    buf_puts(&list, "]}");
    struct hosts *h = list.failed ? NULL : hosts_parse(list.data, list.len);
    buf_free(&list);
    return h;
}

static void v1_get_instance(struct question *q, const struct key *k, const nacos_instance *i)
{
    service_question(q, "GET", "/v1/ns/instance?", "read an instance of", k);
    add_place(&q->target, i);
    q->judge = judge_naming_json;
    q->hosts = hosts_of_one;
}

static void v1_beat(struct question *q, const struct key *k, const nacos_instance *i, int64_t period_ms, bool light)
{
    const char *cluster = i->cluster && *i->cluster ? i->cluster : "DEFAULT";
    service_question(q, "PUT", "/v1/ns/instance/beat?", "send a beat for", k);
    add_place(&q->target, i);
    q->core = true;
    q->judge = judge_beat;
    q->beat = beat_answer;
    if (light)
        return;
    /* 2.x takes the service from here: without its group the beat would be lost, with the answer that all is well */
    char grouped[800];
    snprintf(grouped, sizeof grouped, "%s@@%s", k->group, k->data_id);
    add_json(&q->target, "beat",
             json_pack("{s:s, s:s, s:i, s:s, s:f, s:o, s:b, s:b, s:I}", "serviceName", grouped, "ip", i->ip, "port", i->port,
                       "cluster", cluster, "weight", i->weight, "metadata", pairs_json(i->metadata, i->metadata_count), "ephemeral",
                       1, "scheduled", 0, "period", (json_int_t)period_ms));
}

static void v1_list_instances(struct question *q, const struct key *k, const char *clusters, bool healthy_only)
{
    service_question(q, "GET", "/v1/ns/instance/list?", "list the instances of", k);
    buf_form(&q->target, "clusters", clusters && *clusters ? clusters : NULL);
    buf_puts(&q->target, healthy_only ? "&healthyOnly=true" : "&healthyOnly=false");
    q->core = true;
    q->judge = judge_hosts;
    q->hosts = hosts_of_list;
}

static void v1_follow(struct question *q, const struct key *k, const char *clusters, const struct push_address *push)
{
    v1_list_instances(q, k, clusters, false);
    if (push->port) {
        buf_printf(&q->target, "&udpPort=%d", push->port);
        buf_form(&q->target, "clientIP", push->ip);
    }
}

static void v1_put_service(struct question *q, const struct key *k, const nacos_service_settings *o, bool update)
{
    service_question(q, update ? "PUT" : "POST", "/v1/ns/service?", update ? "update" : "create", k);
    buf_printf(&q->target, "&protectThreshold=%.15g", o->protect_threshold);
    if (o->metadata_count)
        add_json(&q->target, "metadata", pairs_json(o->metadata, o->metadata_count));
    buf_form(&q->target, "selector", o->selector);
}

static void v1_get_service(struct question *q, const struct key *k)
{
    service_question(q, "GET", "/v1/ns/service?", "read the service", k);
    q->judge = judge_naming_json;
}

static void v1_remove_service(struct question *q, const struct key *k)
{
    service_question(q, "DELETE", "/v1/ns/service?", "remove the service", k);
}

static enum verdict judge_services(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200 && !body_has(r, "\"doms\""))
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer is no list of services");
    return judge_naming_json(q, r, err);
}

static void v1_list_services(struct question *q, const struct key *k, int page, int page_size)
{
    question_init(q, "GET", "/v1/ns/service/list?", "list services");
    q->naming = true;
    buf_printf(&q->target, "pageNo=%d&pageSize=%d", page, page_size);
    buf_form(&q->target, "groupName", k->group);
    buf_form(&q->target, "namespaceId", *k->ns ? k->ns : NULL);
    q->judge = judge_services;
}

const struct protocol protocol_v1 = {
    .name = "v1",
    .detector = &detector_longpoll,
    .beats = true,
    .udp = true,
    .read = v1_read,
    .publish = v1_publish,
    .remove = v1_remove,
    .list = v1_list,
    .version = v1_version,
    .listen = v1_listen,
    .listen_add = v1_listen_add,
    .listen_changed = v1_listen_changed,
    .register_instance = v1_register,
    .deregister_instance = v1_deregister,
    .modify_instance = v1_modify,
    .get_instance = v1_get_instance,
    .beat = v1_beat,
    .list_instances = v1_list_instances,
    .follow = v1_follow,
    .put_service = v1_put_service,
    .get_service = v1_get_service,
    .remove_service = v1_remove_service,
    .list_services = v1_list_services,
};
