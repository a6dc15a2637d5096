/** protocol_v3: the HTTP API of 3.0 and newer. Clients may read configurations, register, beat and list; what else there is belongs
 * to the admin API, which asks for a token unless it is told not to. Every answer is {"code":…,"message":…,"data":…}. */
#include <stdlib.h>
#include <string.h>

#include "engine/detector.h"
#include "engine/engine.h"
#include "engine/hosts.h"
#include "engine/protocol.h"

#define CONFIG "/v3/admin/cs/config"
#define INSTANCE "/v3/client/ns/instance"
#define ADMIN_INSTANCE "/v3/admin/ns/instance"
#define SERVICE "/v3/admin/ns/service"
#define BEAT_MS 5000 /* servers name no interval */

enum { ABSENT = 20004, CONFLICT = 20005, NO_INSTANCE = 21003, NO_SERVICE = 21008 };

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

/** The answer, if it is one of v3, and its code. json_decref(). */
static json_t *load(const struct http_response *r, json_int_t *code)
{
    const char *text = r->body.data ? r->body.data : "";
    json_t *j = hosts_dense(text, r->body.len) ? NULL : json_loadb(text, r->body.len, JSON_ALLOW_NUL, NULL), *c;
    if (!j)
        j = hosts_load_json(text, r->body.len); /* mends what instances may have brought in */
    c = json_object_get(j, "code");
    *code = json_integer_value(c);
    if (json_is_integer(c))
        return j;
    json_decref(j);
    return NULL;
}

/** What is in the answer; json_decref(). */
static json_t *data_of(const struct http_response *r)
{
    json_int_t code;
    json_t *j = load(r, &code), *data = json_incref(json_object_get(j, "data"));
    json_decref(j);
    return data;
}

/** Nobody has logged in: a call of the admin API needs that. */
static bool wants_login(const struct http_response *r)
{
    return r->outcome == HTTP_ANSWERED && r->status == 403 && body_has(r, "User not found");
}

static enum verdict judge_refusal(const struct question *q, const struct http_response *r, json_int_t code, nacos_error *err)
{
    bool names_absence = body_has(r, "service not found") || body_has(r, "is not found!");
    if (code == ABSENT || code == NO_INSTANCE || code == NO_SERVICE || (code != 0 && names_absence))
        return judged(q, r, err, NACOS_NOT_FOUND, VERDICT_ANSWER, "it does not exist");
    if (code == CONFLICT)
        return judged(q, r, err, NACOS_CONFLICT, VERDICT_ANSWER,
                      "the content is no longer the one with the expected md5; read it and decide again");
    if (wants_login(r) && q->target.data && strncmp(q->target.data, "/v3/admin/", 10) == 0)
        return judged(q, r, err, NACOS_FORBIDDEN, VERDICT_NO_RIGHT,
                      "HTTP 403: over HTTP this goes through the admin API of Nacos 3, which wants a login by default; give "
                      "username and password of a user with that right");
    enum verdict v = judge_failure(q, r, err);
    if (r->status == 200 && code != 0) {
        char what[60];
        snprintf(what, sizeof what, "the server answers with code %lld", (long long)code);
        v = judged(q, r, err, NACOS_REFUSED, VERDICT_ANSWER, what);
    } else if (r->status == 500 && (body_has(r, "errCode: 4") || body_has(r, "Validation failed"))) {
        err->code = NACOS_REFUSED; /* every other server would answer the same */
        v = VERDICT_ANSWER;
    }
    return v;
}

static enum verdict judge_result(const struct question *q, const struct http_response *r, nacos_error *err)
{
    json_int_t code = 0;
    json_t *j = r->outcome == HTTP_ANSWERED ? load(r, &code) : NULL;
    bool good = j && r->status == 200 && code == 0;
    json_decref(j);
    enum verdict v = good                          ? VERDICT_ANSWER
                     : r->outcome == HTTP_ANSWERED ? judge_refusal(q, r, code, err)
                                                   : judge_failure(q, r, err);
    /* nobody knows whether it was done */
    return v == VERDICT_NEXT && q->retry == RETRY_UNSENT && r->outcome != HTTP_NO_CONNECT ? VERDICT_ANSWER : v;
}

/** Where there is another way it is taken rather than asking for a login. */
static enum verdict judge_optional(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (wants_login(r))
        return judged(q, r, err, NACOS_UNSUPPORTED, VERDICT_ANSWER, "the admin API of Nacos 3 wants a login");
    return judge_result(q, r, err);
}

/* ---- configurations ------------------------------------------------------------------------------------------------------ */

static void add_key(struct buf *b, const struct key *k)
{
    buf_form(b, "dataId", k->data_id);
    buf_form(b, "groupName", k->group);
    buf_form(b, "namespaceId", namespace_name(k->ns));
}

static struct value *content_of(const struct question *q, const struct http_response *r)
{
    json_t *data = data_of(r);
    struct value *v = value_of_content(q, data);
    json_decref(data);
    return v;
}

static enum verdict judge_read(const struct question *q, const struct http_response *r, nacos_error *err)
{
    return judge_content(q, r, err, judge_result(q, r, err));
}

static void v3_read(struct question *q, const struct key *k)
{
    question_init(q, "GET", "/v3/client/cs/config?", "read");
    add_key(&q->target, k);
    q->key = *k;
    q->core = true;
    q->judge = judge_read;
    q->value = content_of;
}

static bool v3_publish(struct question *q, const struct key *k, const nacos_publish *p, nacos_error *err)
{
    question_init(q, "POST", CONFIG, "publish"); /* not core: gateways may close the admin API */
    q->key = *k;
    q->judge = judge_result;
    q->body.max = PUBLISH_ROOM;
    add_key(&q->body, k);
    buf_form(&q->body, "type", p->type);
    buf_form(&q->body, "appName", p->app_name);
    buf_form(&q->body, "configTags", p->tags);
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

static void v3_remove(struct question *q, const struct key *k)
{
    question_init(q, "DELETE", CONFIG "?", "remove");
    add_key(&q->target, k);
    q->key = *k;
    q->judge = judge_result;
}

/** A member for another object; null when there is none. */
static json_t *member(json_t *j, const char *name)
{
    json_t *m = json_object_get(j, name);
    return m ? json_incref(m) : json_null();
}

static struct value *listed_configs(const struct question *q, const struct http_response *r)
{
    json_t *data = data_of(r), *items = json_object_get(data, "pageItems"), *list = json_array(), *i;
    struct value *v = NULL;
    size_t n;
    (void)q;
    json_array_foreach(items, n, i) json_array_append_new(
        list, json_pack("{s:o, s:o, s:o, s:o, s:o}", "dataId", member(i, "dataId"), "group", member(i, "groupName"), "md5",
                        member(i, "md5"), "type", member(i, "type"), "appName", member(i, "appName")));
    if (json_is_array(items))
        v = value_of_json(json_pack("{s:o, s:o, s:o, s:O}", "totalCount", member(data, "totalCount"), "pageNumber",
                                    member(data, "pageNumber"), "pagesAvailable", member(data, "pagesAvailable"), "pageItems",
                                    list));
    json_decref(list);
    json_decref(data);
    return v;
}

static void v3_list(struct question *q, const struct key *pattern, int page, int page_size)
{
    bool like = strchr(pattern->data_id, '*') || !*pattern->data_id || !*pattern->group || strchr(pattern->group, '*');
    question_init(q, "GET", CONFIG "/list?", "list configurations");
    buf_form(&q->target, "search", like ? "blur" : "accurate");
    buf_printf(&q->target, "&pageNo=%d&pageSize=%d", page, page_size);
    add_key(&q->target, pattern);
    q->judge = judge_result;
    q->value = listed_configs;
}

static void v3_version(struct question *q)
{
    question_init(q, "GET", "/v3/admin/core/state", "ask for the version");
    q->judge = judge_result;
}

/* ---- instances ----------------------------------------------------------------------------------------------------------- */

static void service_question(struct question *q, const char *method, const char *path, const char *verb, const struct key *k)
{
    question_init(q, method, path, verb);
    q->naming = true;
    q->key = *k;
    q->judge = judge_result;
    buf_form(&q->target, "serviceName", k->data_id);
    buf_form(&q->target, "groupName", k->group);
    buf_form(&q->target, "namespaceId", namespace_name(k->ns));
}

static void instance_question(struct question *q, const char *method, const char *path, const char *verb, const struct key *k,
                              const nacos_instance *i)
{
    service_question(q, method, path, verb, k);
    buf_form(&q->target, "ip", i->ip);
    buf_printf(&q->target, "&port=%d", i->port);
    buf_form(&q->target, "clusterName", i->cluster && *i->cluster ? i->cluster : "DEFAULT");
    buf_puts(&q->target, i->ephemeral ? "&ephemeral=true" : "&ephemeral=false");
}

static void add_metadata(struct buf *b, const nacos_pair *pairs, size_t count)
{
    json_t *j = pairs_json(pairs, count);
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    if (text)
        buf_form(b, "metadata", text);
    else
        b->failed = true;
    free(text);
    json_decref(j);
}

static void add_details(struct question *q, const nacos_instance *i)
{
    buf_printf(&q->target, "&weight=%.15g", i->weight);
    buf_puts(&q->target, i->enabled ? "&enabled=true" : "&enabled=false");
    buf_puts(&q->target, i->healthy ? "&healthy=true" : "&healthy=false");
    if (i->metadata_count)
        add_metadata(&q->target, i->metadata, i->metadata_count);
}

static void v3_register(struct question *q, const struct key *k, const nacos_instance *i, const nacos_instance *const *with,
                        size_t with_count)
{
    (void)with, (void)with_count;
    instance_question(q, "POST", INSTANCE "?", "register", k, i);
    add_details(q, i);
    q->core = true;
}

static void v3_deregister(struct question *q, const struct key *k, const nacos_instance *i, const nacos_instance *const *with,
                          size_t with_count)
{
    (void)with, (void)with_count;
    instance_question(q, "DELETE", INSTANCE "?", "deregister", k, i);
    q->core = true;
}

static void v3_modify(struct question *q, const struct key *k, const nacos_instance *i)
{
    instance_question(q, "PUT", ADMIN_INSTANCE "?", "modify", k, i);
    add_details(q, i);
    q->judge = judge_optional;
}

/** The list of these instances; takes the reference. */
static struct hosts *hosts_from(json_t *instances)
{
    json_t *j = instances ? json_pack("{s:o}", "hosts", instances) : NULL;
    struct hosts *h = hosts_of_json(j);
    json_decref(j);
    return h;
}

static struct hosts *hosts_of_one(const struct http_response *r)
{
    json_t *data = data_of(r);
    return hosts_from(data ? json_pack("[o]", data) : NULL);
}

static void v3_get_instance(struct question *q, const struct key *k, const nacos_instance *i)
{
    instance_question(q, "GET", ADMIN_INSTANCE "?", "read an instance of", k, i);
    q->judge = judge_optional;
    q->hosts = hosts_of_one;
}

static bool beat_answer(const struct http_response *r, struct beat_answer *out)
{
    json_int_t code;
    json_t *j = load(r, &code);
    bool ok = j && (code == 0 || code == NO_INSTANCE);
    *out = (struct beat_answer){.unknown = code == NO_INSTANCE, .light = true};
    json_decref(j);
    return ok;
}

static struct value *beat_text(const struct question *q, const struct http_response *r)
{
    struct beat_answer a;
    (void)q;
    if (!beat_answer(r, &a))
        return NULL;
    return value_of_json(
        json_pack("{s:i, s:i, s:b}", "clientBeatInterval", BEAT_MS, "code", a.unknown ? 20404 : 10200, "lightBeatEnabled", 1));
}

static enum verdict judge_beat(const struct question *q, const struct http_response *r, nacos_error *err)
{
    struct beat_answer a;
    if (r->outcome == HTTP_ANSWERED && r->status == 200 && beat_answer(r, &a))
        return VERDICT_ANSWER;
    return judge_result(q, r, err);
}

/** It names the instance and nothing else of it. */
static void v3_beat(struct question *q, const struct key *k, const nacos_instance *i, int64_t period_ms, bool light)
{
    (void)period_ms, (void)light;
    instance_question(q, "POST", INSTANCE "?heartBeat=true", "send a beat for", k, i);
    q->core = true;
    q->judge = judge_beat;
    q->beat = beat_answer;
    q->value = beat_text;
}

static struct hosts *hosts_of_list(const struct http_response *r)
{
    return hosts_from(data_of(r));
}

/** Servers do not look at `healthyOnly`. */
static struct hosts *healthy_of_list(const struct http_response *r)
{
    struct hosts *all = hosts_of_list(r), *healthy = all ? hosts_healthy(all) : NULL;
    hosts_unref(all);
    return healthy;
}

static void v3_list_instances(struct question *q, const struct key *k, const char *clusters, bool healthy_only)
{
    service_question(q, "GET", INSTANCE "/list?", "list the instances of", k);
    buf_form(&q->target, "clusterName", clusters && *clusters ? clusters : ","); /* none at all is DEFAULT; a list of none is all */
    q->core = true;
    q->hosts = healthy_only ? healthy_of_list : hosts_of_list;
}

static void v3_follow(struct question *q, const struct key *k, const char *clusters, const struct push_address *push)
{
    (void)push;
    v3_list_instances(q, k, clusters, false);
}

/* ---- services ------------------------------------------------------------------------------------------------------------ */

static void v3_put_service(struct question *q, const struct key *k, const nacos_service_settings *o, bool update)
{
    service_question(q, update ? "PUT" : "POST", SERVICE "?", update ? "update" : "create", k);
    buf_printf(&q->target, "&protectThreshold=%.15g", o->protect_threshold);
    if (o->metadata_count)
        add_metadata(&q->target, o->metadata, o->metadata_count);
    buf_form(&q->target, "selector", o->selector);
}

static struct value *service_text(const struct question *q, const struct http_response *r)
{
    json_t *data = data_of(r), *clusters = json_array(), *c;
    struct value *v = NULL;
    const char *name;
    (void)q;
    json_object_foreach(json_object_get(data, "clusterMap"), name, c)
        json_array_append_new(clusters, json_pack("{s:s, s:o, s:o}", "name", name, "healthChecker", member(c, "healthChecker"),
                                                  "metadata", member(c, "metadata")));
    if (json_is_object(data))
        v = value_of_json(json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:O}", "namespaceId", member(data, "namespaceId"), "groupName",
                                    member(data, "groupName"), "name", member(data, "serviceName"), "protectThreshold",
                                    member(data, "protectThreshold"), "metadata", member(data, "metadata"), "selector",
                                    member(data, "selector"), "clusters", clusters));
    json_decref(clusters);
    json_decref(data);
    return v;
}

static void v3_get_service(struct question *q, const struct key *k)
{
    service_question(q, "GET", SERVICE "?", "read the service", k);
    q->value = service_text;
}

static void v3_remove_service(struct question *q, const struct key *k)
{
    service_question(q, "DELETE", SERVICE "?", "remove the service", k);
}

/** Servers look for the group's name anywhere in those of groups: what else they find is left out here, and counts no more. */
static struct value *listed_services(const struct question *q, const struct http_response *r)
{
    json_t *data = data_of(r), *items = json_object_get(data, "pageItems"), *names = json_array(), *i;
    json_int_t count = json_integer_value(json_object_get(data, "totalCount"));
    struct value *v = NULL;
    size_t n;
    json_array_foreach(items, n, i)
    {
        const char *group = json_string_value(json_object_get(i, "groupName"));
        if (group && strcmp(group, q->key.group) == 0)
            json_array_append(names, json_object_get(i, "name"));
        else if (count > 0)
            count--;
    }
    if (json_is_array(items))
        v = value_of_json(json_pack("{s:I, s:O}", "count", count, "doms", names));
    json_decref(names);
    json_decref(data);
    return v;
}

static void v3_list_services(struct question *q, const struct key *k, int page, int page_size)
{
    question_init(q, "GET", SERVICE "/list?", "list services");
    q->naming = true;
    q->key.group = k->group;
    buf_printf(&q->target, "pageNo=%d&pageSize=%d", page, page_size);
    buf_form(&q->target, "groupNameParam", k->group);
    buf_form(&q->target, "namespaceId", namespace_name(k->ns));
    q->judge = judge_result;
    q->value = listed_services;
}

const struct protocol protocol_v3 = {
    .name = "v3",
    .detector = &detector_compare,
    .beats = true,
    .read = v3_read,
    .publish = v3_publish,
    .remove = v3_remove,
    .list = v3_list,
    .version = v3_version,
    .register_instance = v3_register,
    .deregister_instance = v3_deregister,
    .modify_instance = v3_modify,
    .get_instance = v3_get_instance,
    .beat = v3_beat,
    .list_instances = v3_list_instances,
    .follow = v3_follow,
    .put_service = v3_put_service,
    .get_service = v3_get_service,
    .remove_service = v3_remove_service,
    .list_services = v3_list_services,
};
