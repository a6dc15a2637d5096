/** naming: /v1/ns as Nacos 2.5.1 answers it: instances, their beats, services, subscriptions.
 *
 *  Not here: selectors by label, health checks of persistent instances (they stay as they were registered). */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "embedded/ids.h"
#include "embedded/request.h"

enum { NAME_MAX_BYTES = 4096 };
#define DEFAULT_GROUP "DEFAULT_GROUP"
#define DEFAULT_CLUSTER "DEFAULT"

/* ---- answers ---- */

__attribute__((format(printf, 3, 4))) static void refuse(struct request *r, int status, const char *format, ...)
{
    char text[NAME_MAX_BYTES + 512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    reply_text(&r->reply, status, TYPE_TEXT, text);
}

static void no_memory(struct request *r)
{
    request_error_page(r, 500, "out of memory");
}

static void done(struct request *r, bool ok)
{
    if (ok)
        reply_text(&r->reply, 200, TYPE_TEXT, "ok");
    else
        no_memory(r);
}

static void answer(struct request *r, json_t *value)
{
    reply_json(&r->reply, 200, TYPE_JSON, value);
}

/* ---- parameters ---- */

static const char *param(const struct request *r, const char *name, const char *otherwise)
{
    const char *value = request_param(r, name);
    return value && *value ? value : otherwise;
}

/** A parameter that must be there. NULL: answered. */
static const char *need(struct request *r, const char *name)
{
    const char *value = param(r, name, NULL);
    if (!value)
        refuse(r, 400, "Param '%s' is required.", name);
    return value;
}

static bool is_true(const char *text)
{
    static const char *const words[] = {"true", "on", "yes", "t", "y"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcasecmp(text, words[i]) == 0)
            return true;
    return false;
}

static bool bool_param(const struct request *r, const char *name, bool otherwise)
{
    const char *text = param(r, name, NULL);
    return text ? is_true(text) : otherwise;
}

static bool bad_number(struct request *r, const char *text)
{
    refuse(r, 400, "For input string: \"%.200s\"", text);
    return false;
}

/** A whole number, white space around it allowed. */
static bool parse_int(const char *text, int *out)
{
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (end == text || errno || n < INT32_MIN || n > INT32_MAX || !text_blank(end))
        return false;
    *out = (int)n;
    return true;
}

static bool parse_number(const char *text, double *out)
{
    char *end;
    if (strpbrk(text, "xXpP") || (strpbrk(text, "nN") && strcmp(text, "NaN") != 0 && !strstr(text, "Infinity")))
        return false;
    *out = strtod(text, &end);
    return end != text && text_blank(end);
}

/* ---- the checks that come first ---- */

static bool legal(struct request *r, enum naming_id which, const char *text, size_t len)
{
    const char *why = text ? ids_naming_refusal(which, text, len) : NULL;
    if (!why)
        return true;
    reply_clear(&r->reply);
    r->reply.status = 400;
    reply_no_cache(&r->reply);
    buf_puts(&r->reply.body, why);
    return false;
}

static bool legal_text(struct request *r, enum naming_id which, const char *text)
{
    return legal(r, which, text, text ? strlen(text) : 0);
}

static bool legal_clusters(struct request *r, const char *text)
{
    while (text && *text) {
        size_t n = strcspn(text, ",");
        char one[300];
        snprintf(one, sizeof one, "%.*s", (int)n, text);
        if (!legal(r, NAMING_CLUSTER, one, strlen(one)))
            return false;
        text += n + (text[n] == ',');
    }
    return true;
}

/** A service name, grouped or not. */
static bool legal_name(struct request *r, const char *name)
{
    const char *at = name ? strstr(name, "@@") : NULL;
    return (!at || legal(r, NAMING_GROUP, name, (size_t)(at - name))) && legal_text(r, NAMING_SERVICE, at ? at + 2 : name);
}

static bool names_legal(struct request *r)
{
    static const struct {
        const char *name;
        enum naming_id which;
    } checks[] = {{"namespaceId", NAMING_NAMESPACE},
                  {"groupName", NAMING_GROUP},
                  {"ip", NAMING_IP},
                  {"port", NAMING_PORT},
                  {"metadata", NAMING_METADATA}};
    size_t len;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        const char *text = form_get(&r->form, checks[i].name, &len);
        if (!legal(r, checks[i].which, text, len))
            return false;
    }
    const char *name = request_param(r, "serviceName");
    if (name && strncmp(name, "@@", 2) == 0) {
        request_error_page(r, 400, "Service name filter error,caused: Param 'serviceName' is illegal, groupName can't be empty;");
        return false;
    }
    return legal_name(r, name) && legal_clusters(r, request_param(r, "clusterName")) &&
           legal_clusters(r, request_param(r, "cluster")) && legal_clusters(r, request_param(r, "clusters"));
}

/* ---- which service, which instance ---- */

/** What most calls are about. */
struct target {
    const char *namespace;
    char name[NAME_MAX_BYTES]; /* grouped */
    const char *ip, *cluster;
    int port;
};

static void grouped(const char *group, const char *service, char name[NAME_MAX_BYTES])
{
    snprintf(name, NAME_MAX_BYTES, strstr(service, "@@") ? "%.0s%s" : "%s@@%s", group, service);
}

/** Namespace and service. False: answered. */
static bool need_service(struct request *r, struct target *t)
{
    const char *service = need(r, "serviceName");
    if (!service)
        return false;
    t->namespace = param(r, "namespaceId", "public");
    grouped(param(r, "groupName", DEFAULT_GROUP), service, t->name);
    return true;
}

static const char *cluster_param(const struct request *r)
{
    return param(r, "clusterName", param(r, "cluster", DEFAULT_CLUSTER));
}

static bool need_instance(struct request *r, struct target *t)
{
    const char *port = NULL;
    if (!need_service(r, t) || !(t->ip = need(r, "ip")) || !(port = need(r, "port")))
        return false;
    t->cluster = cluster_param(r);
    return parse_int(port, &t->port) || bad_number(r, text_blank(port) ? "" : port);
}

static struct roster *find_roster(struct request *r, const struct target *t)
{
    return registry_find(&r->service->registry, t->namespace, t->name);
}

/** The roster for an instance of this kind. NULL: answered. */
static struct roster *roster_for(struct request *r, const struct target *t, bool ephemeral)
{
    struct roster *o = registry_roster(&r->service->registry, t->namespace, t->name, ephemeral);
    if (!o) {
        no_memory(r);
    } else if (o->ephemeral != ephemeral) {
        refuse(r, 400, "errCode: 400, errMsg: Current service %s is %s service, can't register %s instance. ", t->name,
               o->ephemeral ? "ephemeral" : "persistent", ephemeral ? "ephemeral" : "persistent");
        o = NULL;
    }
    return o;
}

/* ---- metadata ---- */

/** One metadata value as text; NULL: it is none. */
static json_t *value_text(json_t *value)
{
    if (json_is_string(value))
        return json_incref(value);
    if (json_is_object(value) || json_is_array(value))
        return NULL;
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    json_t *string = text ? json_string(text) : NULL;
    free(text);
    return string;
}

/** An object of strings, from an object of scalars. NULL: it is none, or memory ran out. */
static json_t *strings_of(json_t *object)
{
    json_t *strings = json_is_object(object) ? json_object() : NULL;
    for (void *i = strings ? json_object_iter(object) : NULL; i; i = json_object_iter_next(object, i)) {
        json_t *value = json_object_iter_value(i);
        if (!json_is_null(value) && json_object_set_new(strings, json_object_iter_key(i), value_text(value)) != 0) {
            json_decref(strings);
            return NULL;
        }
    }
    return strings;
}

/** name=value,name=value */
static json_t *pairs_of(const char *text)
{
    json_t *strings = json_object();
    while (strings && *text) {
        size_t n = strcspn(text, ","), name = strcspn(text, "=,");
        json_t *value =
            name < n && !memchr(text + name + 1, '=', n - name - 1) ? json_stringn(text + name + 1, n - name - 1) : NULL;
        char *key = value ? strndup(text, name) : NULL;
        bool ok = key && json_object_set(strings, key, value) == 0;
        free(key);
        json_decref(value);
        if (!ok) {
            json_decref(strings);
            return NULL;
        }
        text += n + (text[n] == ',');
    }
    return strings;
}

/** The parameter `metadata`, a new reference; empty when it is absent. NULL: answered. */
static json_t *metadata_param(struct request *r)
{
    const char *text = param(r, "metadata", "");
    if (text_blank(text))
        return json_object();
    json_t *object = json_loads(text, 0, NULL);
    json_t *strings = object ? strings_of(object) : pairs_of(text);
    json_decref(object);
    if (!strings) {
        char message[2 * NAME_MAX_BYTES];
        snprintf(message, sizeof message,
                 "Server failed, caused: ErrCode:400, ErrMsg:metadata format incorrect:%.3000s;caused: metadata format "
                 "incorrect:%.3000s;",
                 text, text);
        request_error_page(r, 500, message);
    }
    return strings;
}

/* ---- instances ---- */

static bool weight_legal(struct request *r, double weight)
{
    if (weight < 0 || weight > 10000)
        refuse(r, 400, "instance format invalid: The weights range from 0.0 to 10000.0");
    return !(weight < 0 || weight > 10000);
}

static bool times_legal(struct request *r, const json_t *metadata)
{
    int64_t interval = preserved_ms(metadata, BEAT_INTERVAL, 5000);
    if (preserved_ms(metadata, BEAT_TIMEOUT, 15000) >= interval && preserved_ms(metadata, DELETE_TIMEOUT, 30000) >= interval)
        return true;
    refuse(r, 400, "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'.");
    return false;
}

static bool enabled_param(const struct request *r)
{
    return bool_param(r, "enabled", bool_param(r, "enable", true));
}

/** What a registration or modification says of the instance; `metadata` is a new reference. False: answered. */
static bool read_registration(struct request *r, const struct target *t, struct registration *out)
{
    const char *weight = param(r, "weight", "1");
    *out = (struct registration){.ip = t->ip,
                                 .port = t->port,
                                 .cluster = t->cluster,
                                 .healthy = bool_param(r, "healthy", true),
                                 .enabled = enabled_param(r)};
    if (!parse_number(weight, &out->weight))
        return bad_number(r, weight);
    if (!(out->metadata = metadata_param(r)))
        return false;
    if (weight_legal(r, out->weight) && times_legal(r, out->metadata))
        return true;
    json_decref(out->metadata);
    return false;
}

static void add_instance(struct request *r)
{
    struct target t;
    struct registration what;
    if (!need_instance(r, &t) || !read_registration(r, &t, &what))
        return;
    struct roster *o = roster_for(r, &t, bool_param(r, "ephemeral", true));
    if (o)
        done(r, roster_register(o, &what));
    json_decref(what.metadata);
}

static void remove_instance(struct request *r)
{
    struct target t;
    if (!need_instance(r, &t))
        return;
    struct roster *o = find_roster(r, &t);
    struct instance *i = o && o->ephemeral == bool_param(r, "ephemeral", true) ? roster_find(o, t.ip, t.port) : NULL;
    if (i)
        instance_remove(i);
    done(r, true);
}

/** Replaces what earlier modifications said. The instance itself need not exist. */
static void modify_instance(struct request *r)
{
    struct target t;
    struct registration what;
    if (!need_instance(r, &t) || !read_registration(r, &t, &what))
        return;
    struct roster *o = find_roster(r, &t);
    if (!o) {
        const char *at = strstr(t.name, "@@");
        refuse(
            r, 400,
            "service not found, namespace: %s, service: Service{namespace='%s', group='%.*s', name='%s', ephemeral=%s, revision=0}",
            t.namespace, t.namespace, (int)(at - t.name), t.name, at + 2, bool_param(r, "ephemeral", true) ? "true" : "false");
        json_decref(what.metadata);
        return;
    }
    struct patch *p = roster_patch(o, t.ip, t.port, t.cluster, true);
    if (p) {
        json_decref(p->metadata);
        p->metadata = json_incref(what.metadata);
        p->weight = what.weight;
        p->enabled = what.enabled;
        struct instance *i = roster_find(o, t.ip, t.port);
        if (i)
            instance_changed(i);
    }
    done(r, p != NULL);
    json_decref(what.metadata);
}

/** The patch of an instance, made from what the instance is if there is none. */
static struct patch *patch_for(struct instance *i)
{
    struct patch *p = roster_patch(i->roster, i->ip, i->port, i->cluster, false);
    if (!p && (p = roster_patch(i->roster, i->ip, i->port, i->cluster, true))) {
        p->weight = i->weight;
        p->enabled = i->enabled;
    }
    return p;
}

/** Changes only what is named. */
static void patch_instance(struct request *r)
{
    struct target t;
    if (!need_instance(r, &t))
        return;
    struct roster *o = find_roster(r, &t);
    struct instance *i = o ? roster_find(o, t.ip, t.port) : NULL;
    if (!i || strcmp(i->cluster, t.cluster) != 0) {
        refuse(r, 404, "no matched ip found!");
        return;
    }
    const char *weight = param(r, "weight", NULL);
    double number = 0;
    if (weight && !parse_number(weight, &number)) {
        bad_number(r, weight);
        return;
    }
    json_t *metadata = metadata_param(r);
    if (!metadata)
        return;
    struct patch *p = patch_for(i);
    if (p) {
        if (weight)
            p->weight = number;
        p->enabled = bool_param(r, "enabled", bool_param(r, "enable", p->enabled));
        json_object_update(p->metadata, metadata);
        instance_changed(i);
    }
    json_decref(metadata);
    done(r, p != NULL);
}

static void read_instance(struct request *r)
{
    struct target t;
    if (!need_instance(r, &t))
        return;
    struct roster *o = find_roster(r, &t);
    if (o)
        roster_look(o);
    struct instance *i = o ? roster_seen(o, t.ip, t.port) : NULL;
    if (i && strcmp(i->view.cluster, t.cluster) == 0) {
        json_t *rest = json_loads(i->view.rest, 0, NULL);
        answer(r, json_pack("{s:s, s:s, s:i, s:s, s:O, s:b, s:O, s:O}", "service", o->name, "ip", i->ip, "port", i->port,
                            "clusterName", i->view.cluster, "weight", json_object_get(rest, "weight"), "healthy", i->view.healthy,
                            "instanceId", json_object_get(rest, "instanceId"), "metadata", i->view.metadata));
        json_decref(rest);
    } else if (o && roster_any_seen(o)) {
        refuse(r, 404, "no matched ip found!");
    } else {
        refuse(r, 404, "no ips found for cluster %s in service %s", t.cluster, t.name);
    }
}

/* ---- lists and subscriptions ---- */

/** A version like 1.1.0 as one number; the text may go on after it. */
static long version_of(const char *text)
{
    int major = 0, minor = 0, patch = 0;
    return sscanf(text, "%4d.%4d.%4d", &major, &minor, &patch) >= 2 ? major * 100000000L + minor * 10000L + patch : -1;
}

/** Only programs known to understand pushes get them. */
static bool can_be_pushed(const char *agent)
{
    static const struct {
        const char *name, *since;
    } known[] = {{"Nacos-Java-Client:v", "0.1.0"}, {"Nacos-DNS:v", "0.4.3"},       {"Nacos-C-Client:v", "1.0.12"},
                 {"vip-client4cpp:v", "1.0.12"},   {"Nacos-Go-Client:v", "0.1.0"}, {"Nacos-CSharp-Client:v", "0.9.0"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t n = strlen(known[i].name);
        if (strncmp(agent, known[i].name, n) == 0)
            return version_of(agent + n) >= version_of(known[i].since);
    }
    return false;
}

static const char *agent_of(struct request *r)
{
    const char *agent = request_header(r, "User-Agent");
    if (text_blank(agent))
        agent = request_header(r, "Client-Version");
    return agent ? agent : "";
}

static void list_instances(struct request *r)
{
    struct target t;
    const char *clusters = param(r, "clusters", ""), *port_text = param(r, "udpPort", "0"), *ip = param(r, "clientIP", "");
    struct registry *g = &r->service->registry;
    int port;
    if (!need_service(r, &t))
        return;
    if (!parse_int(port_text, &port)) {
        bad_number(r, port_text);
        return;
    }
    const char *agent = agent_of(r);
    bool subscribes = port > 0 && port <= 65535 && *ip && can_be_pushed(agent);
    struct roster *o = subscribes ? registry_followed(g, t.namespace, t.name) : find_roster(r, &t);
    if (o && subscribes)
        roster_subscribe(o, ip, port, agent, param(r, "app", ""), clusters);
    if (o)
        roster_look(o);
    reply_text(&r->reply, 200, TYPE_JSON, "");
    buf_clear(&r->reply.body);
    registry_list(g, o, t.name, clusters, strcasecmp(param(r, "healthyOnly", "false"), "true") == 0, &r->reply.body);
    r->reply.chunked = true;
}

static json_t *subscriber_json(const struct roster *o, const struct subscriber *s)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:s, s:s, s:s}", "addrStr", s->key, "agent", s->agent, "app", s->app, "ip", s->ip,
                     "port", s->port, "namespaceId", o->namespace, "serviceName", o->name, "cluster", s->clusters);
}

/** The part of a list that is one page: from `*first` until `*last`. False: answered. */
static bool page_of(struct request *r, const char *page_text, const char *size_text, long long *first, long long *last)
{
    int page, size;
    if (!parse_int(page_text, &page))
        page = 0;
    if (!parse_int(size_text, &size))
        size = 0;
    *first = page > 1 ? ((long long)page - 1) * size : 0;
    *last = *first + size;
    if (size < 0)
        refuse(r, 400, "fromIndex(0) > toIndex(%d)", size);
    return size >= 0;
}

/** Who gets pushes of this service, and of those with its name in theirs. */
static void list_subscribers(struct request *r)
{
    struct target t;
    long long first, last, count = 0;
    if (!need_service(r, &t) || !page_of(r, param(r, "pageNo", "1"), param(r, "pageSize", "1000"), &first, &last))
        return;
    const char *plain = strstr(t.name, "@@") + 2;
    size_t group_len = (size_t)(plain - 2 - t.name);
    struct registry *g = &r->service->registry;
    json_t *list = json_array();
    for (struct roster *o = g->rosters; o; o = o->hh.next) {
        if (strcmp(o->namespace, t.namespace) != 0 || o->group_len != group_len || strncmp(o->name, t.name, group_len) != 0 ||
            !strstr(o->plain, plain))
            continue;
        for (struct subscriber *s = o->subscribers; s; s = s->hh.next) {
            if (!subscriber_alive(g, s))
                continue;
            if (count >= first && count < last)
                json_array_append_new(list, subscriber_json(o, s));
            count++;
        }
    }
    answer(r, json_pack("{s:o, s:I}", "subscribers", list, "count", (json_int_t)count));
}

/* ---- beats ---- */

/** A number, or a text that is one, as Jackson takes it. */
static bool number_member(json_t *object, const char *name, double *out)
{
    json_t *value = json_object_get(object, name);
    if (json_is_string(value))
        return parse_number(json_string_value(value), out);
    if (json_is_number(value))
        *out = json_number_value(value);
    return !value || json_is_null(value) || json_is_number(value);
}

static bool text_member(json_t *object, const char *name, const char **out)
{
    json_t *value = json_object_get(object, name);
    if (json_is_string(value))
        *out = json_string_value(value);
    return !value || json_is_null(value) || json_is_string(value);
}

/** A full beat. */
struct beat {
    json_t *json, *metadata;
    const char *service;
    double weight;
};

/** Reads the parameter `beat` and lets it overrule what `t` says of the instance. False: answered. */
static bool read_beat(struct request *r, const char *text, struct beat *b, struct target *t)
{
    const char *cluster = NULL;
    double port = 0;
    *b = (struct beat){.json = json_loads(text, 0, NULL)};
    json_t *metadata = json_object_get(b->json, "metadata");
    bool ok = json_is_object(b->json) && text_member(b->json, "serviceName", &b->service) && text_member(b->json, "ip", &t->ip) &&
              text_member(b->json, "cluster", &cluster) && number_member(b->json, "port", &port) &&
              number_member(b->json, "weight", &b->weight) && (!metadata || json_is_null(metadata) || json_is_object(metadata));
    if (ok)
        b->metadata = json_is_object(metadata) ? strings_of(metadata) : json_object();
    if (!b->metadata) {
        request_error_page(r, 500,
                           "Server failed, caused: errCode: 101, errMsg: Nacos deserialize for class "
                           "[com.alibaba.nacos.naming.healthcheck.RsInfo] failed, cause error[the beat is not one].  ;");
        return false;
    }
    if (!(port >= 0 && port <= 65535)) {
        legal_text(r, NAMING_PORT, "-1");
        return false;
    }
    t->port = (int)port;
    if (!text_blank(cluster))
        t->cluster = cluster;
    return legal_text(r, NAMING_IP, t->ip) && legal_text(r, NAMING_CLUSTER, t->cluster) && legal_name(r, b->service) &&
           weight_legal(r, b->weight) && times_legal(r, b->metadata);
}

/** Notes that somebody lives. The real server takes the service from the beat's own text, if there is one, and a plain name there
 * is one of the default group: the beat then goes astray, although its answer is the same. */
static void note_beat(struct request *r, const struct target *t, const char *service)
{
    struct target at = *t;
    if (!service)
        return;
    grouped(DEFAULT_GROUP, service, at.name);
    struct roster *o = find_roster(r, &at);
    struct instance *i = o ? roster_find(o, at.ip, at.port) : NULL;
    if (i)
        instance_beat(i);
}

static void beat_answer(struct request *r, int64_t interval, int code)
{
    answer(r, json_pack("{s:I, s:i, s:b}", "clientBeatInterval", (json_int_t)interval, "code", code, "lightBeatEnabled", 1));
}

/** A beat of an instance that is unknown. False: answered. */
static bool register_by_beat(struct request *r, const struct target *t, const struct beat *b)
{
    struct registration what = {.ip = t->ip,
                                .port = t->port,
                                .cluster = t->cluster,
                                .weight = b->weight,
                                .healthy = true,
                                .enabled = true,
                                .metadata = b->metadata};
    struct roster *o = roster_for(r, t, true);
    if (o && !roster_register(o, &what))
        no_memory(r);
    return o && !r->reply.status;
}

static void take_beat(struct request *r)
{
    struct target t;
    struct beat b = {0};
    const char *text = param(r, "beat", NULL);
    if (!need_service(r, &t))
        return;
    r->service->registry.beats++;
    t.ip = param(r, "ip", "");
    t.cluster = cluster_param(r);
    if (!parse_int(param(r, "port", "0"), &t.port))
        t.port = 0;
    if (!text || read_beat(r, text, &b, &t)) {
        struct roster *o = find_roster(r, &t);
        struct instance *i = o && o->ephemeral ? roster_find(o, t.ip, t.port) : NULL;
        if (!i && (!text || text_blank(t.ip))) {
            beat_answer(r, 5000, 20404);
        } else if (i || register_by_beat(r, &t, &b)) {
            int64_t interval = i ? i->interval : preserved_ms(b.metadata, BEAT_INTERVAL, 5000);
            note_beat(r, &t, text ? b.service : t.name);
            beat_answer(r, interval, 10200);
        }
    }
    json_decref(b.json);
    json_decref(b.metadata);
}

/* ---- metadata of many ---- */

static bool same_instance(const struct instance *i, json_t *wanted)
{
    const char *ip = json_string_value(json_object_get(wanted, "ip")),
               *cluster = json_string_value(json_object_get(wanted, "clusterName"));
    return ip && strcmp(ip, i->ip) == 0 && json_integer_value(json_object_get(wanted, "port")) == i->port &&
           (!cluster || strcmp(cluster, i->cluster) == 0);
}

/** Is the instance one of those named? With no list all are. */
static bool in_batch(const struct instance *i, json_t *list)
{
    if (!list || json_array_size(list) == 0)
        return true;
    for (size_t n = 0; n < json_array_size(list); n++)
        if (same_instance(i, json_array_get(list, n)))
            return true;
    return false;
}

static void batch_one(struct instance *i, json_t *metadata, bool removes, json_t *updated)
{
    struct patch *p = patch_for(i);
    if (!p)
        return;
    if (!removes)
        json_object_update(p->metadata, metadata);
    for (void *m = removes ? json_object_iter(metadata) : NULL; m; m = json_object_iter_next(metadata, m))
        json_object_del(p->metadata, json_object_iter_key(m));
    instance_changed(i);
    json_array_append_new(updated, json_sprintf("%s:%d:unknown:%s:%s", i->ip, i->port, i->cluster,
                                                i->roster->ephemeral ? "ephemeral" : "persistent"));
}

static void change_metadata(struct request *r)
{
    struct target t;
    if (!need_service(r, &t) || !need(r, "metadata"))
        return;
    const char *text = param(r, "instances", NULL);
    json_t *list = text ? json_loads(text, 0, NULL) : NULL;
    if (text && !json_is_array(list)) {
        json_decref(list);
        request_error_page(r, 500, "Server failed, caused: errCode: 101, errMsg: Nacos deserialize of the instances failed.  ;");
        return;
    }
    json_t *metadata = metadata_param(r);
    struct roster *o = find_roster(r, &t);
    if (metadata) {
        json_t *updated = json_array();
        for (struct instance *i = o ? o->instances : NULL; i; i = i->hh.next)
            if (i->registered && in_batch(i, list))
                batch_one(i, metadata, strcmp(r->method, "DELETE") == 0, updated);
        answer(r, json_pack("{s:o}", "updated", updated));
    }
    json_decref(metadata);
    json_decref(list);
}

/* ---- services ---- */

struct settings {
    double threshold;
    json_t *metadata;
};

/** What creation and change of a service say; `metadata` is a new reference. False: answered. */
static bool read_settings(struct request *r, const char *threshold, struct settings *out)
{
    char message[700];
    if (!parse_number(threshold, &out->threshold)) {
        snprintf(message, sizeof message,
                 "Failed to convert value of type 'java.lang.String' to required type 'float'; nested exception is "
                 "java.lang.NumberFormatException: For input string: \"%.100s\";caused: For input string: \"%.100s\"",
                 threshold, threshold);
        reply_caused(&r->reply, 500, message, true);
        return false;
    }
    const char *selector = param(r, "selector", NULL);
    json_t *json = selector ? json_loads(selector, 0, NULL) : NULL;
    const char *type = json_string_value(json_object_get(json, "type"));
    bool none = !selector || (type && strcmp(type, "none") == 0), label = type && strcmp(type, "label") == 0;
    json_decref(json);
    if (none)
        return (out->metadata = metadata_param(r)) != NULL;
    if (label)
        request_error_page(r, 501, "the embedded server has no selectors by label");
    else
        refuse(r, 400, "not match any type of selector!");
    return false;
}

static void apply_settings(struct roster *o, struct settings *s)
{
    json_decref(o->metadata);
    o->metadata = s->metadata;
    o->threshold = s->threshold;
}

/** A service made in so many words is one for persistent instances. */
static void create_service(struct request *r)
{
    struct target t;
    struct settings s;
    if (!need_service(r, &t))
        return;
    struct roster *o = find_roster(r, &t);
    if (o && !o->open) {
        refuse(r, 400, "specified service %s already exists!", t.name);
        return;
    }
    if (!read_settings(r, param(r, "protectThreshold", "0"), &s))
        return;
    o = registry_roster(&r->service->registry, t.namespace, t.name, false);
    if (o)
        apply_settings(o, &s);
    else
        json_decref(s.metadata);
    done(r, o != NULL);
}

static void change_service(struct request *r)
{
    struct target t;
    struct settings s;
    const char *threshold;
    if (!need_service(r, &t) || !(threshold = need(r, "protectThreshold")))
        return;
    struct roster *o = find_roster(r, &t);
    if (!o) {
        refuse(r, 400, "service %s not found!", t.name);
    } else if (read_settings(r, threshold, &s)) {
        apply_settings(o, &s);
        done(r, true);
    }
}

static void remove_service(struct request *r)
{
    struct target t;
    if (!need_service(r, &t))
        return;
    struct roster *o = find_roster(r, &t);
    if (!o) {
        refuse(r, 400, "service %s not found!", t.name);
    } else if (o->registered > 0) {
        refuse(r, 400, "Service %s is not empty, can't be delete. Please unregister instance first", t.name);
    } else {
        roster_remove(o);
        done(r, true);
    }
}

static bool has_cluster(json_t *clusters, const char *name)
{
    for (size_t i = 0; i < json_array_size(clusters); i++)
        if (strcmp(json_string_value(json_object_get(json_array_get(clusters, i), "name")), name) == 0)
            return true;
    return false;
}

static void read_service(struct request *r)
{
    struct target t;
    if (!need_service(r, &t))
        return;
    struct roster *o = find_roster(r, &t);
    if (!o) {
        refuse(r, 400, "service not found, namespace: %s, serviceName: %s", t.namespace, t.name);
        return;
    }
    json_t *clusters = json_array();
    for (struct instance *i = o->instances; i; i = i->hh.next)
        if (i->registered && !has_cluster(clusters, i->cluster))
            json_array_append_new(
                clusters, json_pack("{s:s, s:{s:s}, s:{}}", "name", i->cluster, "healthChecker", "type", "TCP", "metadata"));
    answer(r, json_pack("{s:s, s:s%, s:s, s:f, s:O, s:{s:s, s:s}, s:o}", "namespaceId", o->namespace, "groupName", o->name,
                        (int)o->group_len, "name", o->plain, "protectThreshold", o->threshold, "metadata", o->metadata, "selector",
                        "type", "none", "contextType", "NONE", "clusters", clusters));
}

static void list_services(struct request *r)
{
    const char *page, *size, *namespace = param(r, "namespaceId", "public"), *group = param(r, "groupName", DEFAULT_GROUP);
    long long first, last, count = 0;
    if (!(page = need(r, "pageNo")) || !(size = need(r, "pageSize")) || !page_of(r, page, size, &first, &last))
        return;
    json_t *names = json_array();
    for (struct roster *o = r->service->registry.rosters; o; o = o->hh.next) {
        if (o->open || strcmp(o->namespace, namespace) != 0 || strlen(group) != o->group_len ||
            strncmp(o->name, group, o->group_len) != 0)
            continue;
        if (count >= first && count < last)
            json_array_append_new(names, json_string(o->plain));
        count++;
    }
    answer(r, json_pack("{s:I, s:o}", "count", (json_int_t)count, "doms", names));
}

/* ---- the server itself ---- */

static void metrics(struct request *r)
{
    const struct registry *g = &r->service->registry;
    if (bool_param(r, "onlyStatus", true)) {
        answer(r, json_pack("{s:s}", "status", "UP"));
        return;
    }
    json_int_t all = (json_int_t)g->registered, lasting = (json_int_t)g->persistent;
    answer(r, json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:I, s:I, s:I, s:f, s:f, s:f}", "status", "UP", "serviceCount",
                        (json_int_t)HASH_COUNT(g->rosters), "instanceCount", all, "subscribeCount",
                        (json_int_t)registry_subscribers(g), "responsibleInstanceCount", all, "clientCount", all,
                        "connectionBasedClientCount", 0, "ephemeralIpPortClientCount", all - lasting, "persistentIpPortClientCount",
                        lasting, "responsibleClientCount", all, "cpu", 0.0, "load", 0.0, "mem", 0.0));
}

static void switches(struct request *r)
{
    answer(r, json_pack(
                  "{s:s, s:n, s:{}, s:i, s:i, s:i, s:f, s:b, s:b, s:b, s:b, s:b, s:i, s:b, s:b, s:b, s:s, s:s, s:s, s:s, s:s, s:b, "
                  "s:n, s:b, s:n}",
                  "name", "00-00---000-NACOS_SWITCH_DOMAIN-000---00-00", "masters", "adWeightMap", "defaultPushCacheMillis", 10000,
                  "clientBeatInterval", 5000, "defaultCacheMillis", 3000, "distroThreshold", 0.7, "healthCheckEnabled", 1,
                  "autoChangeHealthCheckEnabled", 1, "distroEnabled", 1, "enableStandalone", 1, "pushEnabled", 1, "checkTimes", 3,
                  "disableAddIP", 0, "sendBeatOnly", 0, "lightBeatEnabled", 1, "pushGoVersion", "0.1.0", "pushJavaVersion", "0.1.0",
                  "pushPythonVersion", "0.4.3", "pushCVersion", "1.0.12", "pushCSharpVersion", "0.9.0", "enableAuthentication", 0,
                  "overriddenServerStatus", "defaultInstanceEphemeral", 1, "checksum"));
}

static const struct naming_route {
    const char *path, *method;
    void (*handle)(struct request *r);
    bool open; /* to everybody */
} routes[] = {{"instance", "POST", add_instance, false},
              {"instance", "DELETE", remove_instance, false},
              {"instance", "PUT", modify_instance, false},
              {"instance", "PATCH", patch_instance, false},
              {"instance", "GET", read_instance, false},
              {"instance/list", "GET", list_instances, false},
              {"instance/beat", "PUT", take_beat, false},
              {"instance/metadata/batch", "PUT", change_metadata, false},
              {"instance/metadata/batch", "DELETE", change_metadata, false},
              {"service", "POST", create_service, false},
              {"service", "PUT", change_service, false},
              {"service", "DELETE", remove_service, false},
              {"service", "GET", read_service, false},
              {"service/list", "GET", list_services, false},
              {"service/subscribers", "GET", list_subscribers, false},
              {"operator/metrics", "GET", metrics, true},
              {"operator/switches", "GET", switches, true}};

void naming_handle(struct request *r, const char *path)
{
    size_t len = strlen(path);
    len -= len > 0 && path[len - 1] == '/'; /* Spring forgives one */
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const struct naming_route *route = &routes[i];
        if (strlen(route->path) != len || strncmp(path, route->path, len) != 0 || strcmp(route->method, r->method) != 0)
            continue;
        if (route->open || (names_legal(r) && request_allowed(r)))
            route->handle(r);
        return;
    }
    char message[512];
    snprintf(message, sizeof message, "no such api:%.32s:%.400s", r->method, r->path);
    request_error_page(r, 501, message);
}
