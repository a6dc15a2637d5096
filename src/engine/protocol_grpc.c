/** protocol_grpc: the messages of 2.0 and newer. What has none (lists of configurations, services as such) is asked over HTTP, in
 * the words of v1; askers know the next way where a server has those no more. */
#include <stdlib.h>
#include <string.h>

#include "engine/detector.h"
#include "engine/engine.h"
#include "engine/envelope.h"
#include "engine/hosts.h"
#include "engine/protocol.h"

#define MESSAGE_ROOM (ENVELOPE_MAX - 4096) /* for the token and the envelope */
#define FOLLOW_MS 60000                    /* pushes tell; this is the net below them */

enum { STARTING = 300, NO_HANDLER = 302, BAD = 400, FORBIDDEN = 403, BUSY = 503, NOT_CONNECTED = -401 };

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

/** The answer's object; json_decref(). */
static json_t *load(const struct http_response *r)
{
    const char *text = r->body.data ? r->body.data : "";
    json_t *j = hosts_dense(text, r->body.len) ? NULL : json_loadb(text, r->body.len, JSON_ALLOW_NUL, NULL);
    if (!j)
        j = hosts_load_json(text, r->body.len); /* with what others registered mended */
    if (json_is_object(j))
        return j;
    json_decref(j);
    return NULL;
}

static bool is_type(const struct http_response *r, const char *type)
{
    return strcmp(r->rpc_type, type) == 0;
}

/** What answers a request is called like it, with three exceptions. */
static bool answers(const char *type, const char *request)
{
    static const char *const odd[][2] = {{"ConfigBatchListenRequest", "ConfigChangeBatchListenResponse"},
                                         {"PersistentInstanceRequest", "InstanceResponse"},
                                         {"ServiceQueryRequest", "QueryServiceResponse"}};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
        if (strcmp(request, odd[i][0]) == 0)
            return strcmp(type, odd[i][1]) == 0;
    size_t n = strlen(request) - strlen("Request");
    return strncmp(type, request, n) == 0 && strcmp(type + n, "Response") == 0;
}

static enum verdict judge_refusal(const struct question *q, const struct http_response *r, const json_t *j, nacos_error *err)
{
    json_int_t result = json_integer_value(json_object_get(j, "resultCode"));
    json_int_t code = json_integer_value(json_object_get(j, "errorCode"));
    const char *message = json_string_value(json_object_get(j, "message"));
    bool reading = is_type(r, "ConfigQueryResponse");
    char what[300];
    if (!json_is_integer(json_object_get(j, "resultCode")))
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "what answered is not a Nacos server; check address and port");
    snprintf(what, sizeof what, "code %lld%s%.200s", (long long)code, message && *message ? ": " : "", message ? message : "");
    if (reading && code == STARTING)
        return judged(q, r, err, NACOS_NOT_FOUND, VERDICT_ANSWER, "it does not exist");
    if (code == FORBIDDEN)
        return judged(q, r, err, NACOS_FORBIDDEN, VERDICT_NO_RIGHT, what);
    if (code == STARTING || code == NOT_CONNECTED || (reading && code == BAD && !body_has(r, "illegal")))
        return judged(q, r, err, NACOS_UNAVAILABLE, VERDICT_AGAIN, what); /* starting; not noted yet; being modified */
    if (code == NO_HANDLER)
        return judged(q, r, err, NACOS_UNSUPPORTED, VERDICT_ANSWER, "it does not offer this call (by grpc)");
    if (q->retry == RETRY_UNSENT && body_has(r, "Cas publish fail"))
        return judged(q, r, err, NACOS_CONFLICT, VERDICT_ANSWER,
                      "the content is no longer the one with the expected md5; read it and decide again");
    /* every other server would answer the same */
    if (result == BAD || code == BAD || body_has(r, "errCode: 4") || body_has(r, "can't register"))
        return judged(q, r, err, NACOS_REFUSED, VERDICT_ANSWER, what);
    return judged(q, r, err, NACOS_UNAVAILABLE, VERDICT_NEXT, what);
}

static enum verdict judge_rpc(const struct question *q, const struct http_response *r, nacos_error *err)
{
    json_t *j = NULL;
    enum verdict v = VERDICT_ANSWER;
    if (r->outcome != HTTP_ANSWERED)
        v = judge_failure(q, r, err);
    else if (!r->rpc_type[0]) /* an error of gRPC itself */
        v = judged(q, r, err, NACOS_UNAVAILABLE, VERDICT_NEXT, r->why);
    else if (!(j = load(r)))
        v = judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer is not JSON");
    else if (json_integer_value(json_object_get(j, "resultCode")) != 200)
        v = judge_refusal(q, r, j, err);
    else if (!answers(r->rpc_type, q->rpc))
        v = judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer is one to something else");
    json_decref(j);
    err->http_status = 0;
    /* nobody knows whether it was done */
    return v == VERDICT_NEXT && q->retry == RETRY_UNSENT && r->outcome != HTTP_NO_CONNECT ? VERDICT_ANSWER : v;
}

/* ---- messages ------------------------------------------------------------------------------------------------------------ */

static void message(struct question *q, const char *type, const char *verb, const struct key *k)
{
    question_init(q, "POST", "", verb);
    q->rpc = type;
    q->core = true;
    q->key = *k;
    q->judge = judge_rpc;
    q->body.max = MESSAGE_ROOM;
}

/** Takes the reference; NULL: this part cannot be said. */
static void put(struct question *q, json_t *object, const char *name, json_t *part)
{
    q->body.failed |= json_object_set_new(object, name, part) != 0;
}

/** Takes the reference. */
static void set_body(struct question *q, json_t *j)
{
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    if (text && !q->body.failed)
        buf_puts(&q->body, text);
    else
        q->body.failed = true;
    free(text);
    json_decref(j);
}

static json_t *key_json(const struct key *k)
{
    return json_pack("{s:s, s:s, s:s}", "dataId", k->data_id, "group", k->group, "tenant", k->ns);
}

/* ---- configurations ------------------------------------------------------------------------------------------------------ */

static struct value *content_of(const struct question *q, const struct http_response *r)
{
    json_t *j = load(r);
    struct value *v = value_of_content(q, j);
    json_decref(j);
    return v;
}

static enum verdict judge_read(const struct question *q, const struct http_response *r, nacos_error *err)
{
    return judge_content(q, r, err, judge_rpc(q, r, err));
}

static void grpc_read(struct question *q, const struct key *k)
{
    message(q, "ConfigQueryRequest", "read", k);
    set_body(q, key_json(k));
    q->judge = judge_read;
    q->value = content_of;
}

static struct value *said_true(const struct question *q, const struct http_response *r)
{
    (void)q, (void)r;
    return value_new("true", 4, NULL, "");
}

static bool grpc_publish(struct question *q, const struct key *k, const nacos_publish *p, nacos_error *err)
{
    json_t *j = key_json(k), *more = json_object();
    const char *const names[] = {"type", "appName", "config_tags", "desc"}, *values[] = {p->type, p->app_name, p->tags, p->desc};
    message(q, "ConfigPublishRequest", "publish", k);
    q->value = said_true;
    for (int i = 0; i < 4; i++)
        if (values[i])
            put(q, more, names[i], json_string(values[i]));
    put(q, j, "content", json_stringn(p->content, p->len));
    put(q, j, "additionMap", more);
    if (p->cas_md5) {
        put(q, j, "casMd5", json_string(p->cas_md5));
        q->retry = RETRY_UNSENT;
    }
    set_body(q, j);
    if (!q->body.failed)
        return true;
    *err = (nacos_error){.code = NACOS_INVALID};
    snprintf(err->message, sizeof err->message,
             "cannot publish %.256s (group %.128s): a message with its content of %zu bytes is larger than the %d bytes a server "
             "reads; split the configuration",
             k->data_id, k->group, p->len, ENVELOPE_MAX);
    return false;
}

static void grpc_remove(struct question *q, const struct key *k)
{
    message(q, "ConfigRemoveRequest", "remove", k);
    set_body(q, key_json(k));
    q->value = said_true;
}

/** hold_ms < 0: no longer. */
static void grpc_listen(struct question *q, const char *ns, int64_t hold_ms, bool at_once)
{
    static const struct key none;
    (void)ns, (void)at_once;
    message(q, "ConfigBatchListenRequest", "listen for changes", &none);
    q->retry = RETRY_NEVER;
    buf_printf(&q->body, "{\"listen\":%s,\"configListenContexts\":[", hold_ms < 0 ? "false" : "true");
}

/** Identifiers need no escapes. */
static void grpc_listen_add(struct question *q, const struct key *k, const char *md5)
{
    bool first = q->body.len && q->body.data[q->body.len - 1] == '[';
    buf_printf(&q->body, "%s{\"dataId\":\"%s\",\"group\":\"%s\",\"tenant\":\"%s\",\"md5\":\"%s\"}", first ? "" : ",", k->data_id,
               k->group, k->ns, md5);
}

static void grpc_listen_close(struct question *q)
{
    buf_puts(&q->body, "]}");
}

static bool grpc_listen_changed(const struct http_response *r, void (*changed)(void *arg, const struct key *k), void *arg)
{
    json_t *j = load(r), *i;
    size_t n;
    json_array_foreach(json_object_get(j, "changedConfigs"), n, i)
    {
        const char *ns = json_string_value(json_object_get(i, "tenant"));
        struct key k = {json_string_value(json_object_get(i, "dataId")), json_string_value(json_object_get(i, "group")),
                        ns && strcmp(ns, "public") != 0 ? ns : ""};
        if (k.data_id && k.group)
            changed(arg, &k);
    }
    bool ok = j != NULL;
    json_decref(j);
    return ok;
}

/* ---- services ------------------------------------------------------------------------------------------------------------ */

static json_t *service_json(const struct key *k)
{
    return json_pack("{s:s, s:s, s:s}", "namespace", namespace_name(k->ns), "serviceName", k->data_id, "groupName", k->group);
}

static json_t *instance_json(const struct key *k, const nacos_instance *i)
{
    return json_pack("{s:s, s:i, s:f, s:b, s:b, s:b, s:s, s:s, s:o}", "ip", i->ip, "port", i->port, "weight", i->weight, "healthy",
                     i->healthy, "enabled", i->enabled, "ephemeral", i->ephemeral, "clusterName",
                     i->cluster && *i->cluster ? i->cluster : "DEFAULT", "serviceName", k->data_id, "metadata",
                     pairs_json(i->metadata, i->metadata_count));
}

static struct value *said_ok(const struct question *q, const struct http_response *r)
{
    (void)q, (void)r;
    return value_new("ok", 2, NULL, "");
}

/** One instance: the connection's only one of this service, or a persistent one. */
static void single(struct question *q, const char *verb, const char *what, const struct key *k, const nacos_instance *i)
{
    json_t *j = service_json(k);
    message(q, i->ephemeral ? "InstanceRequest" : "PersistentInstanceRequest", verb, k);
    q->naming = true;
    q->core = i->ephemeral; /* the first 2.x have no message for others: askers know the call of v1 */
    q->value = said_ok;
    put(q, j, "type", json_string(what));
    put(q, j, "instance", instance_json(k, i));
    set_body(q, j);
}

/** To the list at the end of the body. False: there is no room for it. */
static bool add_instance(struct question *q, const struct key *k, const nacos_instance *i)
{
    json_t *j = instance_json(k, i);
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    bool first = q->body.len && q->body.data[q->body.len - 1] == '[';
    bool room = !text || strlen(text) + q->body.len + strlen(",]}") < q->body.max;
    if (!text)
        q->body.failed = true;
    else if (room)
        buf_printf(&q->body, "%s%s", first ? "" : ",", text);
    free(text);
    json_decref(j);
    return room;
}

/** All that the connection publishes of the service from now on, as far as it has room; `i` may be NULL. */
static void batch(struct question *q, const char *verb, const struct key *k, const nacos_instance *i,
                  const nacos_instance *const *with, size_t with_count)
{
    json_t *j = service_json(k);
    message(q, "BatchInstanceRequest", verb, k);
    q->naming = true;
    q->value = said_ok;
    put(q, j, "type", json_string("batchRegisterInstance"));
    set_body(q, j);
    if (q->body.failed)
        return;
    q->body.data[--q->body.len] = 0; /* the object goes on */
    buf_puts(&q->body, ",\"instances\":[");
    if (i && !add_instance(q, k, i))
        q->body.failed = true;
    for (size_t n = 0; n < with_count && !q->left_out; n++)
        if (!add_instance(q, k, with[n]))
            q->left_out = with_count - n;
    buf_puts(&q->body, "]}");
}

static void grpc_register(struct question *q, const struct key *k, const nacos_instance *i, const nacos_instance *const *with,
                          size_t with_count)
{
    if (with_count && i->ephemeral)
        batch(q, "register", k, i, with, with_count);
    else
        single(q, "register", "registerInstance", k, i);
}

static void grpc_deregister(struct question *q, const struct key *k, const nacos_instance *i, const nacos_instance *const *with,
                            size_t with_count)
{
    if (with_count && i->ephemeral)
        batch(q, "deregister", k, NULL, with, with_count);
    else
        single(q, "deregister", "deregisterInstance", k, i);
}

static struct hosts *hosts_of_info(const struct http_response *r)
{
    json_t *j = load(r);
    struct hosts *h = hosts_of_json(json_object_get(j, "serviceInfo"));
    json_decref(j);
    return h;
}

static void grpc_list_instances(struct question *q, const struct key *k, const char *clusters, bool healthy_only)
{
    json_t *j = service_json(k);
    message(q, "ServiceQueryRequest", "list the instances of", k);
    q->naming = true;
    q->hosts = hosts_of_info;
    put(q, j, "cluster", json_string(clusters ? clusters : ""));
    put(q, j, "healthyOnly", json_boolean(healthy_only));
    put(q, j, "udpPort", json_integer(0));
    set_body(q, j);
}

/** To all clusters: the server keeps one subscription per service and connection. */
static void subscribe(struct question *q, const char *verb, const struct key *k, bool on)
{
    json_t *j = service_json(k);
    message(q, "SubscribeServiceRequest", verb, k);
    q->naming = true;
    q->hosts = hosts_of_info;
    put(q, j, "clusters", json_string(""));
    put(q, j, "subscribe", json_boolean(on));
    set_body(q, j);
}

static void grpc_follow(struct question *q, const struct key *k, const char *clusters, const struct push_address *to)
{
    (void)clusters, (void)to;
    subscribe(q, "list the instances of", k, true);
}

static void grpc_unfollow(struct question *q, const struct key *k, const char *clusters)
{
    (void)clusters;
    subscribe(q, "unfollow", k, false);
}

static struct value *service_names(const struct question *q, const struct http_response *r)
{
    json_t *j = load(r), *names = json_object_get(j, "serviceNames"), *out = NULL;
    if (!names || json_is_null(names))
        out = json_pack("{s:i, s:[]}", "count", 0, "doms");
    else if (json_is_array(names))
        out = json_pack("{s:I, s:O}", "count", json_integer_value(json_object_get(j, "count")), "doms", names);
    (void)q;
    json_decref(j);
    return value_of_json(out);
}

static void grpc_list_services(struct question *q, const struct key *k, int page, int page_size)
{
    static const struct key none;
    message(q, "ServiceListRequest", "list services", &none);
    q->naming = true;
    q->value = service_names;
    set_body(q, json_pack("{s:s, s:s, s:s, s:i, s:i, s:s}", "namespace", namespace_name(k->ns), "serviceName", "", "groupName",
                          k->group, "pageNo", page, "pageSize", page_size, "selector", ""));
}

/* ---- over HTTP ----------------------------------------------------------------------------------------------------------- */

static void grpc_list(struct question *q, const struct key *pattern, int page, int page_size)
{
    protocol_v1.list(q, pattern, page, page_size);
}

static void grpc_version(struct question *q)
{
    protocol_v1.version(q);
}

/** Over gRPC it would take out what this connection publishes, whichever instance is named. */
static void grpc_deregister_other(struct question *q, const struct key *k, const nacos_instance *i)
{
    if (!i->ephemeral) {
        single(q, "deregister", "deregisterInstance", k, i);
        return;
    }
    protocol_v1.deregister_instance(q, k, i, NULL, 0);
    q->core = false;
}

static void grpc_beat(struct question *q, const struct key *k, const nacos_instance *i, int64_t period_ms, bool light)
{
    protocol_v1.beat(q, k, i, period_ms, light);
    q->core = false;
}

static void grpc_modify(struct question *q, const struct key *k, const nacos_instance *i)
{
    protocol_v1.modify_instance(q, k, i);
}

static void grpc_put_service(struct question *q, const struct key *k, const nacos_service_settings *o, bool update)
{
    protocol_v1.put_service(q, k, o, update);
}

static void grpc_get_service(struct question *q, const struct key *k)
{
    protocol_v1.get_service(q, k);
}

static void grpc_remove_service(struct question *q, const struct key *k)
{
    protocol_v1.remove_service(q, k);
}

const struct protocol protocol_grpc = {
    .name = "grpc",
    .detector = &detector_stream,
    .one_publisher = true,
    .follow_ms = FOLLOW_MS,
    .read = grpc_read,
    .publish = grpc_publish,
    .remove = grpc_remove,
    .list = grpc_list,
    .version = grpc_version,
    .listen = grpc_listen,
    .listen_add = grpc_listen_add,
    .listen_close = grpc_listen_close,
    .listen_changed = grpc_listen_changed,
    .register_instance = grpc_register,
    .deregister_instance = grpc_deregister,
    .deregister_other = grpc_deregister_other,
    .modify_instance = grpc_modify,
    .beat = grpc_beat,
    .list_instances = grpc_list_instances,
    .follow = grpc_follow,
    .unfollow = grpc_unfollow,
    .put_service = grpc_put_service,
    .get_service = grpc_get_service,
    .remove_service = grpc_remove_service,
    .list_services = grpc_list_services,
};
