/** v3: the HTTP API of Nacos 3 as 3.1.0 answers it: configurations, instances and services, the state of the server, the login.
 *
 *  About services it says what v1 says, in other words: naming.c does the work, and its answer is put into the form of v3 here.
 *
 *  Not here: history, beta and tag versions, namespaces, everything of the console. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "embedded/ids.h"
#include "embedded/request.h"

enum { PAGE_SIZE = 100 };
#define DEFAULT_GROUP "DEFAULT_GROUP"

/* ---- answers ---- */

/** Takes the reference. */
static void result(struct request *r, int status, int code, const char *message, json_t *data)
{
    reply_json(&r->reply, status, TYPE_JSON, json_pack("{s:i, s:s, s:o}", "code", code, "message", message, "data", data));
}

static void success(struct request *r, json_t *data)
{
    result(r, 200, 0, "success", data);
}

static void refuse(struct request *r, int status, int code, const char *message, const char *why)
{
    result(r, status, code, message, json_string(why));
}

static bool at_client(const struct request *r)
{
    return strstr(r->path, "/v3/client/cs/") != NULL;
}

/** A parameter that is not there. The client API of configurations words its errors in the old way. */
static void missing(struct request *r, const char *name, const char *type)
{
    char why[128];
    snprintf(why, sizeof why, "Required parameter '%.40s' type %s is not present", name, type);
    if (at_client(r))
        reply_caused(&r->reply, 400, why, false);
    else
        refuse(r, 400, 10000, "parameter missing", why);
}

static bool allowed(struct request *r)
{
    const char *why = request_refusal(r);
    if (!why)
        return true;
    char message[200];
    if (strcmp(why, "user not found!") == 0)
        why = "User not found! Please check user exist or password is right!";
    snprintf(message, sizeof message, "Code: 401, Message: %.150s.", why);
    request_error_page(r, 403, message);
    return false;
}

/* ---- parameters ---- */

static const char *param(const struct request *r, const char *name, const char *otherwise)
{
    const char *value = request_param(r, name);
    return text_blank(value) ? otherwise : value;
}

static bool given(struct request *r, const char *name)
{
    if (param(r, name, NULL))
        return true;
    missing(r, name, "String");
    return false;
}

/** The store knows the public namespace by no name. */
static const char *tenant_of(const struct request *r)
{
    const char *ns = param(r, "namespaceId", "");
    return strcmp(ns, "public") == 0 ? "" : ns;
}

static const char *name_of(const char *tenant)
{
    return *tenant ? tenant : "public";
}

static bool ids_legal(struct request *r)
{
    size_t tenant_len = 0, data_id_len = 0, group_len = 0;
    const char *tenant = form_get(&r->form, "namespaceId", &tenant_len), *data_id = form_get(&r->form, "dataId", &data_id_len);
    const char *group = form_get(&r->form, "groupName", &group_len);
    const char *why = ids_refusal(tenant, tenant_len, data_id, data_id_len, group, group_len);
    if (!why)
        return true;
    reply_clear(&r->reply);
    r->reply.status = 400;
    reply_no_cache(&r->reply);
    buf_puts(&r->reply.body, why);
    return false;
}

static bool key_given(struct request *r)
{
    return given(r, "dataId") && given(r, "groupName");
}

/** Page number and size. False: answered. */
static bool page_of(struct request *r, int *page, int *size)
{
    static const char *const names[] = {"pageNo", "pageSize"};
    int *out[] = {page, size};
    *page = 1;
    *size = PAGE_SIZE;
    for (int i = 0; i < 2; i++) {
        const char *text = param(r, names[i], NULL);
        if (text)
            *out[i] = atoi(text);
        if (*out[i] > 0)
            continue;
        char why[160];
        snprintf(why, sizeof why, "Required parameter '%s' should be positive integer, current is %.40s", names[i], text);
        refuse(r, 400, 20002, "parameter validate error", why);
        return false;
    }
    return true;
}

/** Answers with one page; takes the list. */
static void answer_page(struct request *r, json_t *items, long long total, int page, int size)
{
    success(r, json_pack("{s:I, s:i, s:I, s:o}", "totalCount", (json_int_t)total, "pageNumber", page, "pagesAvailable",
                         (json_int_t)((total + size - 1) / size), "pageItems", items));
}

/* ---- configurations ---- */

static json_t *text_json(const char *text)
{
    return text ? json_string(text) : json_null();
}

static struct item *item_of(struct request *r)
{
    return store_find(&r->service->store, request_param(r, "dataId"), request_param(r, "groupName"), tenant_of(r));
}

static void read_config(struct request *r)
{
    if (!key_given(r))
        return;
    struct item *item = item_of(r);
    const struct record *v = item ? item->visible : NULL;
    if (!v) {
        result(r, 200, 20004, "resource not found", json_null());
        return;
    }
    success(r, json_pack("{s:i, s:i, s:n, s:n, s:o, s:s, s:s, s:s, s:I, s:n, s:b, s:b}", "resultCode", 200, "errorCode", 0,
                         "message", "requestId", "content", json_stringn(v->content, v->len), "encryptedDataKey", "", "contentType",
                         v->type, "md5", v->md5, "lastModified", (json_int_t)v->modified, "tag", "beta", 0, "success", 1));
}

/** What lists and the database's view of one configuration have in common. */
static json_t *record_json(const struct item *item)
{
    const struct record *v = item->record;
    char id[24];
    snprintf(id, sizeof id, "%llu", (unsigned long long)v->id);
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:i, s:i}", "id", id, "namespaceId", name_of(item->tenant), "groupName",
                     item->group, "dataId", item->data_id, "md5", v->md5, "type", v->type, "appName", text_json(v->app_name),
                     "createTime", 0, "modifyTime", 0);
}

static void show_config(struct request *r)
{
    if (!key_given(r))
        return;
    struct item *item = item_of(r);
    const struct record *v = item ? item->record : NULL;
    if (!v) {
        refuse(r, 404, 20004, "resource not found", "Config not exist, please publish Config first.");
        return;
    }
    json_t *all = record_json(item);
    json_t *more = json_pack("{s:I, s:I, s:o, s:o, s:s, s:o, s:s, s:o}", "createTime", (json_int_t)v->created, "modifyTime",
                             (json_int_t)v->modified, "content", json_stringn(v->content, v->len), "desc", text_json(v->desc),
                             "encryptedDataKey", "", "createUser", text_json(v->user), "createIp", "127.0.0.1", "configTags",
                             text_json(v->tags));
    json_object_update(all, more);
    json_decref(more);
    success(r, all);
}

static void written(struct request *r, enum store_status status)
{
    switch (status) {
    case STORE_DONE:
        success(r, json_true());
        break;
    case STORE_CONFLICT:
        refuse(r, 500, 20005, "resource conflict", "Cas publish fail, server md5 may have changed.");
        break;
    case STORE_NO_MEMORY:
        request_error_page(r, 500, "out of memory");
    }
}

static void publish(struct request *r)
{
    if (!key_given(r) || !given(r, "content"))
        return;
    struct publish p = {.data_id = request_param(r, "dataId"),
                        .group = request_param(r, "groupName"),
                        .tenant = tenant_of(r),
                        .type = request_param(r, "type"),
                        .cas_md5 = request_header(r, "casMd5"),
                        .app_name = request_param(r, "appName"),
                        .tags = request_param(r, "configTags"),
                        .desc = request_param(r, "desc"),
                        .user = access_enabled(&r->service->auth) ? r->service->auth.username : request_param(r, "srcUser")};
    p.content = form_get(&r->form, "content", &p.len);
    if (!text_blank(request_param(r, "tag")) || !text_blank(request_header(r, "betaIps")))
        request_error_page(r, 501, "the embedded server has no beta and tag versions");
    else
        written(r, store_publish(&r->service->store, &p));
}

static void remove_config(struct request *r)
{
    if (key_given(r))
        written(r, store_remove(&r->service->store, request_param(r, "dataId"), request_param(r, "groupName"), tenant_of(r)));
}

static void list_configs(struct request *r)
{
    int page, size;
    if (!page_of(r, &page, &size))
        return;
    struct query q = {.like = strcmp(param(r, "search", "blur"), "accurate") != 0,
                      .data_id = request_param(r, "dataId"),
                      .group = request_param(r, "groupName"),
                      .tenant = tenant_of(r),
                      .app_name = request_param(r, "appName"),
                      .tags = request_param(r, "configTags"),
                      .types = request_param(r, "type")};
    json_t *items = json_array();
    long long total = 0, first = ((long long)page - 1) * size;
    for (struct item *i = r->service->store.first; i; i = i->after)
        if (store_matches(&q, i)) {
            if (total >= first && total < first + size)
                json_array_append_new(items, record_json(i));
            total++;
        }
    answer_page(r, items, total, page, size);
}

/* ---- instances and services ---- */

/** Puts what naming.c answered into the form of v3. */
static void translate(struct request *r)
{
    static const struct {
        const char *words;
        int status, code;
        const char *message;
    } refusals[] = {{"The weights range", 400, 21001, "weight error"},
                    {"'heart beat interval'", 400, 21004, "instance error"},
                    {"already exists!", 400, 21007, "service already exist"},
                    {"is not empty", 400, 21009, "service delete failure"},
                    {"service: Service{", 400, 21004, "instance error"},
                    {"no matched ip", 404, 20004, "resource not found"},
                    {"no ips found", 404, 20004, "resource not found"},
                    {"not found", 400, 21008, "service not exist"},
                    {"", 400, 30000, "server error"}};
    struct reply *p = &r->reply;
    char name[41];
    if (p->status == 200) {
        success(r, json_string("ok"));
        return;
    }
    /* illegal names have no Content-Type and are worded alike; errors that nobody foresaw are pages everywhere */
    if (!p->body.data || p->body.data[0] == '{' || !reply_has_header(p, "Content-Type"))
        return;
    if (sscanf(p->body.data, "Param '%40[^']' is required.", name) == 1) {
        missing(r, name, strcmp(name, "port") == 0 ? "Integer" : "String");
        return;
    }
    size_t i = 0;
    while (!strstr(p->body.data, refusals[i].words))
        i++;
    char *why = buf_take(&p->body, NULL);
    refuse(r, refusals[i].status, refusals[i].code, refusals[i].message, why);
    free(why);
}

/** Lets v1 answer. */
static void as_v1(struct request *r, const char *method, const char *path)
{
    char *own = r->method;
    r->method = (char *)method;
    naming_handle(r, path);
    r->method = own;
}

/** Namespace and grouped name; NULL: answered, or no such service. */
static struct roster *roster_of(struct request *r)
{
    char name[4096];
    snprintf(name, sizeof name, "%s@@%s", param(r, "groupName", DEFAULT_GROUP), param(r, "serviceName", ""));
    struct roster *o = registry_find(&r->service->registry, param(r, "namespaceId", "public"), name);
    if (o)
        roster_look(o);
    return o;
}

static void change_instance(struct request *r)
{
    as_v1(r, r->method, "instance");
    translate(r);
}

/** Registers, or is a beat. */
static void register_instance(struct request *r)
{
    if (strcmp(param(r, "heartBeat", "false"), "true") != 0) {
        change_instance(r);
        return;
    }
    as_v1(r, "PUT", "instance/beat");
    bool unknown = r->reply.status == 200 && strstr(r->reply.body.data, "\"code\":20404");
    translate(r);
    if (unknown)
        result(r, 200, 21003, "instance not found", json_null());
}

static json_t *instance_json(const struct instance *i)
{
    json_t *j = json_loads(i->view.rest, 0, NULL);
    json_object_set_new(j, "healthy", json_boolean(i->view.healthy));
    json_object_del(j, "instanceId");
    return j;
}

static void show_instance(struct request *r)
{
    as_v1(r, "GET", "instance");
    struct roster *o = r->reply.status == 200 ? roster_of(r) : NULL;
    struct instance *i = o ? roster_seen(o, request_param(r, "ip"), atoi(request_param(r, "port"))) : NULL;
    bool astray = r->reply.status == 200 && !i; /* v1 takes a group in the name of the service, v3 does not */
    translate(r);
    if (i)
        success(r, instance_json(i));
    else if (astray)
        refuse(r, 404, 20004, "resource not found", "no matched ip found!");
}

static void list_instances(struct request *r)
{
    if (!given(r, "serviceName"))
        return;
    struct roster *o = roster_of(r);
    struct buf text;
    buf_init(&text, SIZE_MAX / 2);
    const char *clusters = param(r, "clusterName", "DEFAULT");
    clusters += strspn(clusters, ","); /* a list of none is all */
    registry_list(&r->service->registry, o, "", clusters, false, &text);
    json_t *list = text.failed ? NULL : json_loadb(text.data, text.len, 0, NULL), *hosts = json_object_get(list, "hosts"), *one;
    size_t n;
    json_array_foreach(hosts, n, one) json_object_del(one, "instanceId");
    success(r, json_incref(hosts));
    json_decref(list);
    buf_free(&text);
}

/** Of one cluster, disabled ones too. */
static void show_instances(struct request *r)
{
    if (!given(r, "serviceName"))
        return;
    struct roster *o = roster_of(r);
    if (!o) {
        char why[4300];
        snprintf(why, sizeof why, "service %.200s@@%.4000s is not found!", param(r, "groupName", DEFAULT_GROUP),
                 request_param(r, "serviceName"));
        refuse(r, 404, 30000, "server error", why);
        return;
    }
    json_t *list = json_array();
    for (struct instance *i = o->instances; i; i = i->hh.next)
        if (i->view.rest && strcmp(i->view.cluster, param(r, "clusterName", "DEFAULT")) == 0)
            json_array_append_new(list, instance_json(i));
    success(r, list);
}

static void change_service(struct request *r)
{
    as_v1(r, r->method, "service");
    struct roster *o = strcmp(r->method, "POST") == 0 && r->reply.status == 200 ? roster_of(r) : NULL;
    if (o) /* v1 makes services for persistent instances only */
        o->ephemeral = strcmp(param(r, "ephemeral", "false"), "true") == 0;
    translate(r);
}

static void show_service(struct request *r)
{
    as_v1(r, "GET", "service");
    struct roster *o = r->reply.status == 200 ? roster_of(r) : NULL;
    translate(r);
    if (!o)
        return;
    json_t *clusters = json_object();
    for (struct instance *i = o->instances; i; i = i->hh.next)
        if (i->registered)
            json_object_set_new(clusters, i->cluster,
                                json_pack("{s:s, s:{s:s}, s:i, s:b, s:{}, s:n}", "clusterName", i->cluster, "healthChecker", "type",
                                          "TCP", "healthyCheckPort", 80, "useInstancePortForCheck", 1, "metadata", "hosts"));
    success(r,
            json_pack("{s:s, s:s, s:s%, s:o, s:O, s:f, s:{s:s, s:s}, s:b}", "namespaceId", o->namespace, "serviceName", o->plain,
                      "groupName", o->name, (int)o->group_len, "clusterMap", clusters, "metadata", o->metadata, "protectThreshold",
                      o->threshold, "selector", "type", "none", "contextType", "NONE", "ephemeral", o->ephemeral));
}

static json_t *service_json(const struct roster *o)
{
    json_t *clusters = json_object();
    json_int_t count = 0, healthy = 0;
    for (struct instance *i = o->instances; i; i = i->hh.next)
        if (i->registered) {
            json_object_set_new(clusters, i->cluster, json_null());
            count++;
            healthy += i->healthy;
        }
    json_t *j = json_pack("{s:s, s:s%, s:I, s:I, s:I, s:s}", "name", o->plain, "groupName", o->name, (int)o->group_len,
                          "clusterCount", (json_int_t)json_object_size(clusters), "ipCount", count, "healthyInstanceCount", healthy,
                          "triggerFlag", "false");
    json_decref(clusters);
    return j;
}

/** The names are looked for anywhere in those of group and service, as 3.1.0 does. */
static void list_services(struct request *r)
{
    int page, size;
    if (!page_of(r, &page, &size))
        return;
    const char *namespace = param(r, "namespaceId", "public"), *group = param(r, "groupNameParam", "");
    const char *name = param(r, "serviceNameParam", "");
    json_t *items = json_array();
    long long total = 0, first = ((long long)page - 1) * size;
    for (struct roster *o = r->service->registry.rosters; o; o = o->hh.next) {
        if (o->open || strcmp(o->namespace, namespace) != 0 || !memmem(o->name, o->group_len, group, strlen(group)) ||
            !strstr(o->plain, name))
            continue;
        if (total >= first && total < first + size)
            json_array_append_new(items, service_json(o));
        total++;
    }
    answer_page(r, items, total, page, size);
}

/* ---- the server, the login ---- */

static void state(struct request *r)
{
    char port[16];
    snprintf(port, sizeof port, "%d", r->service->port);
    const char *version = r->service->options->version, *locked = access_enabled(&r->service->auth) ? "true" : "false";
    success(r, json_pack("{s:s, s:s, s:s, s:s, s:s, s:n, s:s, s:s}", "version", version, "startup_mode", "standalone",
                         "auth_enabled", locked, "auth_system_type", "nacos", "auth_admin_request", "false", "function_mode",
                         "server_port", port, "maxContent", "10485760"));
}

static void alive(struct request *r)
{
    success(r, json_string("ok"));
}

/** A wrong password is a 500 in 3.x, an unknown user is not. */
static void login(struct request *r)
{
    struct access *a = &r->service->auth;
    const char *username = request_param(r, "username"), *password = request_param(r, "password");
    bool open = !access_enabled(a);
    if (text_blank(username) || text_blank(password) ||
        (!open && strcmp(username, a->username) == 0 && !access_password_ok(a, username, password))) {
        request_error_page(r, 500, "No message available");
        return;
    }
    if (!open && strcmp(username, a->username) != 0) {
        request_error_page(r, 403, "Access Denied");
        return;
    }
    char *token = open ? strdup("AUTH_DISABLED") : access_token(a), header[ACCESS_TOKEN_MAX + 16];
    if (!token) {
        request_error_page(r, 500, "out of memory");
        return;
    }
    reply_json(&r->reply, 200, TYPE_JSON,
               json_pack("{s:s, s:I, s:b, s:s}", "accessToken", token, "tokenTtl", (json_int_t)a->ttl, "globalAdmin", 1, "username",
                         username));
    snprintf(header, sizeof header, "Bearer %s", token);
    reply_header(&r->reply, "Authorization", header);
    free(token);
}

static const struct v3_route {
    const char *path, *method;
    void (*handle)(struct request *r);
    bool open; /* to everybody */
} routes[] = {{"client/cs/config", "GET", read_config, false},
              {"client/ns/instance", "POST", register_instance, false},
              {"client/ns/instance", "DELETE", change_instance, false},
              {"client/ns/instance/list", "GET", list_instances, false},
              {"admin/cs/config", "GET", show_config, false},
              {"admin/cs/config", "POST", publish, false},
              {"admin/cs/config", "DELETE", remove_config, false},
              {"admin/cs/config/list", "GET", list_configs, false},
              {"admin/ns/instance", "GET", show_instance, false},
              {"admin/ns/instance", "POST", change_instance, false},
              {"admin/ns/instance", "PUT", change_instance, false},
              {"admin/ns/instance", "DELETE", change_instance, false},
              {"admin/ns/instance/list", "GET", show_instances, false},
              {"admin/ns/service", "GET", show_service, false},
              {"admin/ns/service", "POST", change_service, false},
              {"admin/ns/service", "PUT", change_service, false},
              {"admin/ns/service", "DELETE", change_service, false},
              {"admin/ns/service/list", "GET", list_services, false},
              {"admin/core/state", "GET", state, true},
              {"admin/core/state/liveness", "GET", alive, true},
              {"admin/core/state/readiness", "GET", alive, true},
              {"auth/user/login", "POST", login, true}};

void v3_handle(struct request *r, const char *path)
{
    const char *method = strcmp(r->method, "HEAD") == 0 ? "GET" : r->method;
    size_t len = strlen(path);
    bool known = false;
    len -= len > 0 && path[len - 1] == '/'; /* Spring forgives one */
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const struct v3_route *route = &routes[i];
        if (strlen(route->path) != len || strncmp(path, route->path, len) != 0)
            continue;
        known = true;
        if (strcmp(route->method, method) != 0)
            continue;
        /* a pattern may hold what an identifier may not */
        bool searches = route->handle == list_configs && strcmp(param(r, "search", "blur"), "accurate") != 0;
        if (route->open || ((searches || ids_legal(r)) && allowed(r)))
            route->handle(r);
        return;
    }
    char message[512];
    if (known)
        snprintf(message, sizeof message, "Method '%.32s' is not supported.", r->method);
    else
        snprintf(message, sizeof message, "No endpoint %.32s %.400s.", r->method, r->path);
    request_error_page(r, known ? 405 : 404, message);
}
