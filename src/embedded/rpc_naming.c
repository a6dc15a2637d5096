/** rpc_naming: instances and services over gRPC. An instance lives as long as the connection that registered it. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "embedded/ids.h"
#include "embedded/request.h"

enum { NAME = 1024 /* bytes */, AGAIN = 3000 /* ms until a push is repeated */, BATCH = 10000 /* instances */ };
#define DEFAULT_CLUSTER "DEFAULT"

struct service_name {
    const char *namespace, *group, *plain;
    char grouped[NAME];
};

/** Service and namespace of the message. False: answered. */
static bool read_name(struct question *q, struct service_name *n)
{
    const json_t *namespace = json_object_get(q->json, "namespace");
    n->namespace = json_string_value(namespace);
    n->group = question_text(q, "groupName", NULL);
    n->plain = question_text(q, "serviceName", NULL);
    const char *why = NULL;
    char message[300];
    if (n->namespace)
        why = ids_naming_refusal(NAMING_NAMESPACE, n->namespace, strlen(n->namespace));
    if (!why && n->plain)
        why = ids_naming_refusal(NAMING_SERVICE, n->plain, strlen(n->plain));
    if (!why && n->group)
        why = ids_naming_refusal(NAMING_GROUP, n->group, strlen(n->group));
    if (why) {
        snprintf(message, sizeof message, "Param check invalid:%s", why);
        question_fail(q, 500, 400, message);
    } else if (text_blank(n->group)) {
        question_error(q, 500, 500, "Param 'groupName' is illegal, groupName is blank");
    } else if (text_blank(n->plain)) {
        question_error(q, 500, 500, "Param 'serviceName' is illegal, serviceName is blank");
    } else if (!n->namespace) {
        question_error(q, 500, 500, NULL);
    } else if (snprintf(n->grouped, sizeof n->grouped, "%s@@%s", n->group, n->plain) >= (int)sizeof n->grouped) {
        question_error(q, 500, 500, "the name is too long");
    } else {
        return true;
    }
    return false;
}

/** The roster for instances of this kind. NULL: answered. */
static struct roster *roster_for(struct question *q, const struct service_name *n, bool ephemeral)
{
    struct roster *o = registry_roster(&q->service->registry, n->namespace, n->grouped, ephemeral);
    if (!o) {
        question_error(q, 500, 500, "out of memory");
    } else if (o->ephemeral != ephemeral) {
        char message[NAME + 128];
        snprintf(message, sizeof message, "errCode: 400, errMsg: Current service %s is %s service, can't register %s instance. ",
                 n->grouped, o->ephemeral ? "ephemeral" : "persistent", ephemeral ? "ephemeral" : "persistent");
        question_error(q, 400, 400, message);
        o = NULL;
    }
    return o;
}

static bool flag(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return !value || json_is_null(value) || json_is_true(value);
}

/** An object of strings, from what the message has; other values are left out. */
static json_t *strings_of(json_t *object)
{
    json_t *strings = json_object();
    for (void *i = json_object_iter(object); i; i = json_object_iter_next(object, i))
        if (json_is_string(json_object_iter_value(i)))
            json_object_set(strings, json_object_iter_key(i), json_object_iter_value(i));
    return strings;
}

/** One instance of the message; `metadata` is a new reference. False: answered. */
static bool read_instance(struct question *q, const json_t *json, struct registration *out)
{
    const json_t *weight = json_object_get(json, "weight"), *port = json_object_get(json, "port");
    const char *ip = json_string_value(json_object_get(json, "ip")),
               *cluster = json_string_value(json_object_get(json, "clusterName"));
    json_int_t number = json_integer_value(port);
    const char *why = text_blank(ip) ? "instance ip is blank" : ids_naming_refusal(NAMING_IP, ip, strlen(ip));
    if (!why && (!json_is_integer(port) || number < 0 || number > 65535))
        why = "Param 'port' is illegal, the value should be between 0 and 65535.";
    if (!why && cluster)
        why = ids_naming_refusal(NAMING_CLUSTER, cluster, strlen(cluster));
    if (why) {
        char message[300];
        snprintf(message, sizeof message, "Param check invalid:%s", why);
        question_fail(q, 500, 400, message);
        return false;
    }
    *out = (struct registration){.ip = ip,
                                 .port = (int)number,
                                 .cluster = text_blank(cluster) ? DEFAULT_CLUSTER : cluster,
                                 .weight = json_is_number(weight) ? json_number_value(weight) : 1,
                                 .healthy = flag(json, "healthy"),
                                 .enabled = flag(json, "enabled"),
                                 .metadata = strings_of(json_object_get(json, "metadata"))};
    if (!out->metadata)
        question_error(q, 500, 500, "out of memory");
    return out->metadata != NULL;
}

/* ---- publishing ---- */

static struct publication *find_publication(struct session *s, struct roster *o)
{
    struct publication *p = NULL;
    HASH_FIND_PTR(s->publications, &o, p);
    return p;
}

static void publication_free(struct session *s, struct publication *p)
{
    publication_set(p, NULL, 0);
    p->roster->publications--;
    HASH_DEL(s->publications, p);
    free(p);
}

static bool publish(struct session *s, struct roster *o, const struct registration *r, size_t count)
{
    struct publication *p = find_publication(s, o);
    if (!p) {
        if (!(p = calloc(1, sizeof *p)))
            return false;
        p->roster = o;
        o->publications++;
        HASH_ADD_PTR(s->publications, roster, p);
    }
    return publication_set(p, r, count);
}

static void done(struct question *q, const char *type)
{
    question_answer(q, json_pack("{s:i, s:i, s:s, s:b}", "resultCode", 200, "errorCode", 0, "type", type, "success", 1));
}

static void no_memory_or(struct question *q, bool ok, const char *type)
{
    if (ok)
        done(q, type);
    else
        question_error(q, 500, 500, "out of memory");
}

static void unsupported(struct question *q, const char *type)
{
    char message[200];
    snprintf(message, sizeof message, "Unsupported request type %.100s", type);
    question_error(q, 400, 400, message);
}

void rpc_instance(struct question *q)
{
    const char *type = question_text(q, "type", "null");
    struct service_name n;
    struct registration r;
    if (!read_name(q, &n))
        return;
    if (strcmp(type, "deregisterInstance") == 0) { /* whatever it was that this connection published there */
        struct roster *o = registry_find(&q->service->registry, n.namespace, n.grouped);
        struct publication *p = o ? find_publication(q->session, o) : NULL;
        if (p)
            publication_free(q->session, p);
        done(q, type);
    } else if (strcmp(type, "registerInstance") != 0) {
        unsupported(q, type);
    } else if (read_instance(q, json_object_get(q->json, "instance"), &r)) {
        struct roster *o = roster_for(q, &n, true);
        if (o)
            no_memory_or(q, publish(q->session, o, &r, 1), type);
        json_decref(r.metadata);
    }
}

void rpc_persistent(struct question *q)
{
    const char *type = question_text(q, "type", "null");
    struct service_name n;
    struct registration r;
    bool adds = strcmp(type, "registerInstance") == 0;
    if (!read_name(q, &n))
        return;
    if (!adds && strcmp(type, "deregisterInstance") != 0) {
        unsupported(q, type);
    } else if (read_instance(q, json_object_get(q->json, "instance"), &r)) {
        struct roster *o = adds ? roster_for(q, &n, false) : registry_find(&q->service->registry, n.namespace, n.grouped);
        struct instance *i = !adds && o && !o->ephemeral ? roster_find(o, r.ip, r.port) : NULL;
        if (i)
            instance_remove(i);
        if (o || !adds)
            no_memory_or(q, !adds || roster_register(o, &r), type);
        json_decref(r.metadata);
    }
}

void rpc_batch(struct question *q)
{
    const char *type = question_text(q, "type", "null");
    json_t *list = json_object_get(q->json, "instances");
    size_t count = json_array_size(list), read = 0;
    struct service_name n;
    if (!read_name(q, &n))
        return;
    if (strcmp(type, "batchRegisterInstance") != 0) {
        unsupported(q, type);
        return;
    }
    struct registration *r = count <= BATCH ? calloc(count + 1, sizeof *r) : NULL;
    if (!r) {
        question_error(q, 500, 500, "too many instances");
        return;
    }
    while (read < count && read_instance(q, json_array_get(list, read), &r[read]))
        read++;
    struct roster *o = read == count ? roster_for(q, &n, true) : NULL;
    if (o)
        no_memory_or(q, publish(q->session, o, r, count), type);
    for (size_t i = 0; i < read; i++)
        json_decref(r[i].metadata);
    free(r);
}

/* ---- following ---- */

struct following {
    struct notice notice; /* first member */
    struct follower follower;
};

static struct following *following_of(struct follower *f)
{
    return (struct following *)((char *)f - offsetof(struct following, follower));
}

/** The list as it is now. */
static void push_list(struct notice *n)
{
    struct follower *f = &((struct following *)n)->follower;
    struct service *v = n->session->rpc->service;
    struct roster *o = f->roster;
    json_t *head = json_pack("{s:s}", "module", "naming");
    struct buf body;
    if (head && !embedded_claims(v->options, 3)) {
        json_object_set_new(head, "namespace", json_string(o->namespace));
        json_object_set_new(head, "serviceName", json_string(o->plain));
        json_object_set_new(head, "groupName", json_stringn(o->name, o->group_len));
    }
    buf_init(&body, ENVELOPE_MAX);
    append_value(&body, head);
    body.len -= body.len > 0; /* the list goes before the last brace */
    buf_puts(&body, ",\"serviceInfo\":");
    registry_info(&v->registry, o, o->name, f->clusters, false, &body);
    buf_puts(&body, "}");
    notice_send(n, "NotifySubscriberRequest", &body, AGAIN);
    buf_free(&body);
}

void rpc_naming_push(struct follower *f)
{
    push_list(&following_of(f)->notice);
}

static void follower_free(struct follower *f)
{
    struct following *w = following_of(f);
    notice_clear(&w->notice);
    follower_unlink(f);
    HASH_DEL(f->session->followers, f);
    f->session->rpc->followed--;
    free(f->clusters);
    free(w);
}

void rpc_naming_forget(struct session *s)
{
    struct follower *f, *next_follower;
    struct publication *p, *next;
    HASH_ITER (hh, s->followers, f, next_follower) {
        follower_free(f);
    }
    HASH_ITER (hh, s->publications, p, next) {
        publication_free(s, p);
    }
}

/** Starts to follow, or follows other clusters. */
static bool follow(struct session *s, struct roster *o, const char *clusters)
{
    struct follower *f = NULL;
    char *copy = strdup(clusters);
    HASH_FIND_PTR(s->followers, &o, f);
    if (f && copy) {
        free(f->clusters);
        f->clusters = copy;
        follower_unlink(f);
        follower_link(f);
        return true;
    }
    struct following *w = copy ? calloc(1, sizeof *w) : NULL;
    if (!w) {
        free(copy);
        return false;
    }
    w->notice.session = s;
    w->notice.repeat = push_list;
    f = &w->follower;
    f->session = s;
    f->roster = o;
    f->clusters = copy;
    HASH_ADD_PTR(s->followers, roster, f);
    s->rpc->followed++;
    follower_link(f);
    return true;
}

static void answer_list(struct question *q, struct roster *o, const struct service_name *n, const char *clusters, bool healthy_only,
                        const char *message)
{
    if (o)
        roster_look(o);
    buf_clear(&q->out);
    buf_printf(&q->out, "{\"resultCode\":200,\"errorCode\":0,%s\"serviceInfo\":", message);
    registry_info(&q->service->registry, o, n->grouped, clusters, healthy_only, &q->out);
    buf_puts(&q->out, ",\"success\":true}");
}

void rpc_subscribe(struct question *q)
{
    struct session *s = q->session;
    struct service_name n;
    const char *clusters = question_text(q, "clusters", "");
    if (!read_name(q, &n))
        return;
    bool on = json_is_true(json_object_get(q->json, "subscribe"));
    struct registry *g = &q->service->registry;
    struct roster *o = on ? registry_followed(g, n.namespace, n.grouped) : registry_find(g, n.namespace, n.grouped);
    if (on && (!o || !follow(s, o, clusters))) {
        question_error(q, 500, 500, "out of memory");
        return;
    }
    struct follower *f = NULL;
    if (!on && o)
        HASH_FIND_PTR(s->followers, &o, f);
    if (f)
        follower_free(f);
    answer_list(q, o, &n, clusters, false, "\"message\":\"success\",");
}

void rpc_service_query(struct question *q)
{
    struct service_name n;
    if (!read_name(q, &n))
        return;
    answer_list(q, registry_find(&q->service->registry, n.namespace, n.grouped), &n, question_text(q, "cluster", ""),
                json_is_true(json_object_get(q->json, "healthyOnly")), "");
}

void rpc_service_list(struct question *q)
{
    const char *namespace = question_text(q, "namespace", "public"), *group = question_text(q, "groupName", "DEFAULT_GROUP");
    json_int_t page = json_integer_value(json_object_get(q->json, "pageNo")),
               size = json_integer_value(json_object_get(q->json, "pageSize")), count = 0;
    size = size < 0 ? 0 : size > 100000 ? 100000 : size;
    page = page < 1 ? 1 : page > 1000000 ? 1000000 : page;
    json_int_t first = (page - 1) * size;
    json_t *names = json_array();
    for (const struct roster *o = q->service->registry.rosters; o; o = o->hh.next) {
        if (o->open || strcmp(o->namespace, namespace) != 0 || strlen(group) != o->group_len ||
            strncmp(o->name, group, o->group_len) != 0)
            continue;
        if (count >= first && count < first + size)
            json_array_append_new(names, json_string(o->plain));
        count++;
    }
    question_answer(q, json_pack("{s:i, s:i, s:I, s:o, s:b}", "resultCode", 200, "errorCode", 0, "count", count, "serviceNames",
                                 names, "success", 1));
}
