/** api: which request goes where, who may ask, and the small answers. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "embedded/request.h"

const char *request_param(const struct request *r, const char *name)
{
    return form_get(&r->form, name, NULL);
}

static bool below_cs(const struct request *r)
{
    const char *context = r->service->options->context_path;
    return strncmp(r->path, context, strlen(context)) == 0 && strncmp(r->path + strlen(context), "/v1/cs/", 7) == 0;
}

void request_error_page(struct request *r, int status, const char *message)
{
    reply_error_page(&r->reply, status, below_cs(r) ? TYPE_JSON_UTF8 : TYPE_JSON, message, r->path);
}

bool request_need_param(struct request *r, const char *name, const char *type)
{
    if (!form_join(&r->form, name)) {
        request_error_page(r, 500, "out of memory");
        return false;
    }
    if (request_param(r, name))
        return true;
    char message[160];
    snprintf(message, sizeof message, "Required request parameter '%s' for method parameter type %s is not present", name, type);
    reply_caused(&r->reply, 500, message, true);
    return false;
}

void request_wrong_method(struct request *r)
{
    char message[96];
    snprintf(message, sizeof message, "Request method '%.32s' not supported", r->method);
    reply_caused(&r->reply, 500, message, true);
}

static bool is_get(const struct request *r)
{
    return strcmp(r->method, "GET") == 0 || strcmp(r->method, "HEAD") == 0;
}

/** Equal, but for one slash at the end, which Spring forgives. */
static bool is(const char *path, const char *wanted)
{
    size_t n = strlen(wanted);
    return strncmp(path, wanted, n) == 0 && (path[n] == '\0' || strcmp(path + n, "/") == 0);
}

static const char *bearer(struct request *r)
{
    const char *value = request_header(r, "Authorization");
    return value && strncmp(value, "Bearer ", 7) == 0 && !text_blank(value + 7) ? value + 7 : NULL;
}

/** A parameter, or else a header of this name. */
static const char *param_or_header(struct request *r, const char *name)
{
    const char *value = request_param(r, name);
    return text_blank(value) ? request_header(r, name) : value;
}

static void unknown_user(const char *username, const char *before, char message[300])
{
    snprintf(message, 300, "%sUser %.200s not found", before, username);
}

const char *request_refusal(struct request *r)
{
    const struct access *a = &r->service->auth;
    if (!access_enabled(a))
        return NULL;
    const char *token = bearer(r);
    if (!token)
        token = param_or_header(r, "accessToken");
    if (!text_blank(token))
        return access_refusal(a, token);
    return access_password_ok(a, param_or_header(r, "username"), param_or_header(r, "password")) ? NULL : "user not found!";
}

bool request_allowed(struct request *r)
{
    const char *why = request_refusal(r);
    if (!why)
        return true;
    const char *username = param_or_header(r, "username"), *password = param_or_header(r, "password");
    bool by_token = bearer(r) || !text_blank(param_or_header(r, "accessToken"));
    if (!by_token && !text_blank(username) && !text_blank(password) && strcmp(username, r->service->auth.username) != 0) {
        char message[300];
        unknown_user(username, "Server failed, ", message);
        request_error_page(r, 500, message);
    } else {
        request_error_page(r, 403, why);
    }
    return false;
}

static void logged_in(struct request *r, const char *token, const char *username)
{
    reply_json(&r->reply, 200, TYPE_JSON,
               json_pack("{s:s, s:I, s:b, s:s}", "accessToken", token, "tokenTtl", (json_int_t)r->service->auth.ttl, "globalAdmin",
                         1, "username", username));
}

/** With a user: a good token, or the user's name and password, give a token. */
static void login_checked(struct request *r, const char *username, const char *password)
{
    struct access *a = &r->service->auth;
    const char *given = bearer(r), *why = NULL;
    if (!given && !text_blank(request_param(r, "accessToken")))
        given = request_param(r, "accessToken");
    if (given) {
        why = access_refusal(a, given);
    } else if (text_blank(username) || text_blank(password)) {
        why = "user not found!";
    } else if (strcmp(username, a->username) != 0) {
        char message[300];
        unknown_user(username, "", message);
        reply_caused(&r->reply, 500, message, true);
        return;
    } else if (!access_password_ok(a, username, password)) {
        why = "user not found!";
    }
    if (why) {
        reply_text(&r->reply, 403, TYPE_TEXT, why);
        return;
    }
    char *token = given ? strdup(given) : access_token(a), header[ACCESS_TOKEN_MAX + 16];
    if (token) {
        logged_in(r, token, a->username);
        snprintf(header, sizeof header, "Bearer %s", token);
        reply_header(&r->reply, "Authorization", header);
    } else {
        request_error_page(r, 500, "out of memory");
    }
    free(token);
}

static void login(struct request *r)
{
    if (!request_need_param(r, "username", "String") || !request_need_param(r, "password", "String"))
        return;
    const char *username = request_param(r, "username"), *password = request_param(r, "password");
    if (access_enabled(&r->service->auth))
        login_checked(r, username, password);
    else if (text_blank(username) || text_blank(password))
        reply_text(&r->reply, 403, TYPE_TEXT, "user not found!");
    else /* nobody checks tokens here: anybody gets a dummy, as from servers without a signing key */
        logged_in(r, "AUTH_DISABLED", username);
}

static void state(struct request *r)
{
    char port[16];
    snprintf(port, sizeof port, "%d", r->service->port);
    const char *version = r->service->options->version;
    reply_json(&r->reply, 200, TYPE_JSON,
               json_pack("{s:s, s:s, s:n, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "version", version, "standalone_mode", "standalone",
                         "function_mode", "server_port", port, "auth_enabled", access_enabled(&r->service->auth) ? "true" : "false",
                         "auth_system_type", "nacos", "auth_admin_request", "false", "console_ui_enabled", "true",
                         "login_page_enabled", "false", "maxContent", "10485760"));
}

static void namespaces(struct request *r)
{
    reply_json(&r->reply, 200, TYPE_JSON,
               json_pack("{s:i, s:n, s:[{s:s, s:s, s:n, s:i, s:I, s:i}]}", "code", 200, "message", "data", "namespace", "",
                         "namespaceShowName", "public", "namespaceDesc", "quota", 200, "configCount",
                         (json_int_t)r->service->store.record_count, "type", 0));
}

static void health(struct request *r)
{
    reply_text(&r->reply, 200, TYPE_TEXT, "UP");
}

static void alive(struct request *r)
{
    reply_text(&r->reply, 200, TYPE_TEXT, "OK");
}

/** What an address server says: the members of the cluster, one a line. */
static void server_list(struct request *r)
{
    char text[300];
    const char *host = r->service->options->host;
    snprintf(text, sizeof text, strchr(host, ':') ? "[%.255s]:%d\n" : "%.255s:%d\n", host, r->service->port);
    reply_text(&r->reply, 200, TYPE_TEXT, text);
}

static const struct small_route {
    const char *path, *method;
    void (*handle)(struct request *r);
} routes[] = {{"/v1/auth/login", "POST", login},
              {"/v1/auth/users/login", "POST", login},
              {"/v1/cs/health", "GET", health},
              {"/v1/console/server/state", "GET", state},
              {"/v1/console/namespaces", "GET", namespaces},
              {"/v1/console/health/liveness", "GET", alive},
              {"/v1/console/health/readiness", "GET", alive}};

#define CONFIGS "/v1/cs/configs"

/** Answers a request to the configurations, if it may be asked. */
static void configs(struct request *r, const char *below)
{
    bool get = is_get(r), post = strcmp(r->method, "POST") == 0, delete = strcmp(r->method, "DELETE") == 0;
    if (!get && !post && !(delete &&!*below))
        request_wrong_method(r);
    else if (request_allowed(r) && !config_handle(r, below))
        return;
    request_answer(r);
}

static void small(struct request *r, const char *path)
{
    if (strncmp(path, "/v1/ns/", 7) == 0) {
        naming_handle(r, path + 7);
        return;
    }
    bool known = false;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const struct small_route *route = &routes[i];
        if (!is(path, route->path))
            continue;
        known = true;
        if (strcmp(route->method, "GET") == 0 ? is_get(r) : strcmp(route->method, r->method) == 0) {
            route->handle(r);
            return;
        }
    }
    if (known) {
        request_wrong_method(r);
    } else {
        request_error_page(r, 404, "No message available");
    }
}

/** A 3.2 server has no v1 any more, but for the login and the metrics. True: answered. */
static bool is_gone(struct request *r, const char *path)
{
    if (strncmp(path, "/v1/", 4) != 0 || embedded_serves(r->service->options, "v1") || is(path, "/v1/auth/login") ||
        is(path, "/v1/auth/users/login") || is(path, "/v1/ns/operator/metrics"))
        return false;
    char message[512];
    bool naming = strncmp(path, "/v1/ns/", 7) == 0;
    snprintf(message, sizeof message, naming ? "no such api:%.32s:%.400s" : "No endpoint %.32s %.400s.", r->method, r->path);
    request_error_page(r, naming ? 501 : 404, message);
    return true;
}

static void route(struct request *r)
{
    const char *context = r->service->options->context_path;
    size_t n = strlen(context);
    const char *path = strncmp(r->path, context, n) == 0 && (r->path[n] == '/' || r->path[n] == '\0') ? r->path + n : NULL;
    if (strcmp(r->path, "/nacos/serverlist") == 0 && is_get(r)) {
        server_list(r);
    } else if (!path) {
        reply_text(&r->reply, 404, "text/html;charset=utf-8",
                   "<!doctype html><html lang=\"en\"><head><title>HTTP Status 404 - Not Found</title></head>"
                   "<body><h1>HTTP Status 404 - Not Found</h1></body></html>");
    } else if (is_gone(r, path)) {
        /* answered */
    } else if (strncmp(path, "/v3/", 4) == 0 && embedded_serves(r->service->options, "v3")) {
        v3_handle(r, path + 4);
    } else if (is(path, CONFIGS)) {
        configs(r, "");
        return;
    } else if (is(path, CONFIGS "/listener")) {
        configs(r, "/listener");
        return;
    } else {
        small(r, path);
    }
    request_answer(r);
}

static void write_down(struct request *r)
{
    struct buf headers;
    buf_init(&headers, 64 << 10);
    request_headers(r, &headers);
    struct logged what = {.method = r->method,
                          .path = r->path,
                          .query = r->query,
                          .headers = headers.data ? headers.data : "",
                          .headers_len = headers.len,
                          .body = r->body.data ? r->body.data : "",
                          .body_len = r->body.len,
                          .connection = r->connection};
    r->logged = reqlog_add(&r->service->log, &what);
    buf_free(&headers);
}

/** Parameters of query and body. False: out of memory. */
static bool read_form(struct request *r)
{
    char *query = r->query;
    r->query = NULL;
    if (!form_parse(&r->form, query, strlen(query)))
        return false;
    const char *type = request_header(r, "Content-Type"), form[] = "application/x-www-form-urlencoded";
    bool has_form = strcmp(r->method, "GET") != 0 && type && strncasecmp(type, form, sizeof form - 1) == 0;
    size_t len = r->body.len;
    char *body = has_form ? buf_take(&r->body, NULL) : NULL;
    return !body || form_parse(&r->form, body, len);
}

void api_begin(struct request *r)
{
    struct service *s = r->service;
    if (s->options->faults && strncmp(r->path, "/__lunacos/", 11) == 0) {
        control_handle(r);
        return;
    }
    if (s->options->faults)
        write_down(r);
    if (!read_form(r)) {
        r->phase = PHASE_CLOSE;
        return;
    }
    r->fault = faults_match(&s->faults, r->path, r->method, request_param(r, "dataId"));
    switch (r->fault ? r->fault->kind : FAULT_DELAY) {
    case FAULT_DELAY:
    case FAULT_DROP:
    case FAULT_LENGTH:
        route(r);
        break;
    case FAULT_STATUS:
    case FAULT_ENDLESS:
        fault_reply(r->fault, &r->reply);
        request_answer(r);
        break;
    case FAULT_GARBAGE:
    case FAULT_HANG:
    case FAULT_CODE: /* these are never matched here */
    case FAULT_RESET:
    case FAULT_GRPC_STATUS:
        request_answer(r);
    }
}
