/** protocol_v1: the HTTP API of 0.8 to 3.1, and the two calls of v3 that replace what 3.x took out of it. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/digest.h"
#include "engine/protocol.h"

#define WORD "\x02"
#define LINE "\x01"

static void question_init(struct question *q, const char *method, const char *path, const char *verb)
{
    memset(q, 0, sizeof *q);
    q->method = method;
    q->verb = verb;
    buf_init(&q->target, TARGET_MAX);
    buf_init(&q->body, PUBLISH_MAX);
    buf_puts(&q->target, path);
}

void question_free(struct question *q)
{
    buf_free(&q->target);
    buf_free(&q->body);
}

static void add_header(struct question *q, const char *name, const char *value)
{
    snprintf(q->headers[q->header_count++], sizeof q->headers[0], "%s: %s", name, value);
}

static void add_key(struct buf *b, const struct key *k)
{
    buf_form(b, "dataId", k->data_id);
    buf_form(b, "group", k->group);
    buf_form(b, "tenant", *k->ns ? k->ns : NULL); /* never "public": no two versions agree on it */
}

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

static bool body_is(const struct http_response *r, const char *text)
{
    const struct buf *b = &r->body;
    size_t n = strlen(text), len = b->len;
    while (len && (b->data[len - 1] == '\n' || b->data[len - 1] == '\r'))
        len--;
    return len == n && memcmp(b->data, text, n) == 0;
}

static bool body_has(const struct http_response *r, const char *text)
{
    return r->body.len && memmem(r->body.data, r->body.len, text, strlen(text));
}

/** What the server said, short: the `message` of an error JSON, else the start of a text; a page of HTML says nothing. */
static void server_words(const struct http_response *r, char *out, size_t size)
{
    out[0] = 0;
    if (!r->body.len || r->body.data[0] == '<')
        return;
    json_t *j = json_loadb(r->body.data, r->body.len, 0, NULL);
    const char *message = json_string_value(json_object_get(j, "message")), *data = json_string_value(json_object_get(j, "data"));
    const char *text = data && *data ? data : message ? message : j ? "" : r->body.data;
    size_t n = strcspn(text, "\r\n");
    snprintf(out, size, ": %.*s", (int)(n > 200 ? 200 : n), text);
    if (n == 0)
        out[0] = 0;
    json_decref(j);
}

static enum verdict failed(const struct question *q, const struct http_response *r, nacos_error *err, nacos_code code,
                           enum verdict v, const char *what)
{
    char about[700] = "";
    if (q->key.data_id)
        snprintf(about, sizeof about, " %.256s (group %.256s%s%.128s)", q->key.data_id, q->key.group,
                 *q->key.ns ? ", namespace " : "", q->key.ns);
    err->code = code;
    err->http_status = r->status;
    snprintf(err->message, sizeof err->message, "cannot %s%s at %s: %s", q->verb, about, err->server, what);
    return v;
}

/** Everything that is not a call's own good answer. */
static enum verdict judge_failure(const struct question *q, const struct http_response *r, nacos_error *err)
{
    char words[220], what[300];
    if (r->outcome != HTTP_ANSWERED)
        return failed(q, r, err, r->outcome == HTTP_TOO_LARGE ? NACOS_PROTOCOL : NACOS_UNAVAILABLE, VERDICT_NEXT, r->why);
    server_words(r, words, sizeof words);
    snprintf(what, sizeof what, "HTTP %d%s", r->status, words);
    switch (r->status) {
    case 401:
    case 403:
        return failed(q, r, err, NACOS_FORBIDDEN, VERDICT_NO_RIGHT, what);
    case 409:
        return failed(q, r, err, NACOS_UNAVAILABLE, VERDICT_AGAIN, what);
    case 404:
    case 405:
    case 410:
    case 501:
        snprintf(what, sizeof what, "it does not offer this call (HTTP %d%s)", r->status, words);
        return failed(q, r, err, NACOS_UNSUPPORTED, VERDICT_ANSWER, what);
    case 408:
    case 429:
        return failed(q, r, err, NACOS_UNAVAILABLE, VERDICT_NEXT, what);
    default:
        break;
    }
    if (r->status >= 500)
        return failed(q, r, err, NACOS_UNAVAILABLE, VERDICT_NEXT, what);
    if (r->status >= 400)
        return failed(q, r, err, NACOS_REFUSED, VERDICT_ANSWER, what);
    snprintf(what, sizeof what, "what answered (HTTP %d) is not a Nacos server; check address, port and proxy", r->status);
    return failed(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, what);
}

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
        return failed(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT,
                      r->content_md5[0] ? "the content does not have the md5 that came with it"
                                        : "what answered is not a Nacos server (no Content-MD5); check address, port and proxy");
    }
    if (r->outcome == HTTP_ANSWERED && r->status == 404 && body_is(r, "config data not exist"))
        return failed(q, r, err, NACOS_NOT_FOUND, VERDICT_ANSWER, "it does not exist");
    return judge_failure(q, r, err);
}

static enum verdict judge_write(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200) {
        if (body_is(r, "true"))
            return VERDICT_ANSWER;
        if (body_is(r, "false"))
            return failed(q, r, err, NACOS_REFUSED, VERDICT_ANSWER, "the server answered false");
        return failed(q, r, err, NACOS_PROTOCOL, q->cas ? VERDICT_ANSWER : VERDICT_NEXT,
                      "what answered is not a Nacos server; check address, port and proxy");
    }
    /* 2.3–2.5 say it in words, 3.x answers a bare false */
    if (q->cas && r->outcome == HTTP_ANSWERED && r->status == 500 && (body_has(r, "Cas publish fail") || body_is(r, "false")))
        return failed(q, r, err, NACOS_CONFLICT, VERDICT_ANSWER,
                      "the content is no longer the one with the expected md5; read it and decide again");
    enum verdict v = judge_failure(q, r, err);
    return v == VERDICT_NEXT && q->cas && r->outcome != HTTP_NO_CONNECT ? VERDICT_ANSWER : v;
}

static enum verdict judge_json(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200) {
        size_t i = 0;
        while (i < r->body.len && strchr(" \r\n\t", r->body.data[i]))
            i++;
        if (i < r->body.len && r->body.data[i] == '{')
            return VERDICT_ANSWER;
        return failed(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer is not JSON");
    }
    return judge_failure(q, r, err);
}

/* ---- questions ----------------------------------------------------------------------------------------------------------- */

static void v1_read(struct question *q, const struct key *k)
{
    question_init(q, "GET", "/v1/cs/configs?", "read");
    add_key(&q->target, k);
    q->key = *k;
    q->judge = judge_read;
}

static bool v1_publish(struct question *q, const struct key *k, const nacos_publish *p, nacos_error *err)
{
    question_init(q, "POST", "/v1/cs/configs", "publish");
    q->key = *k;
    q->judge = judge_write;
    /* one byte more than allowed, so that the message can tell the real size of what is only a little too large */
    q->body.max = (size_t)PUBLISH_MAX * 4;
    add_key(&q->body, k);
    buf_form(&q->body, "type", p->type);
    buf_form(&q->body, "appName", p->app_name);
    buf_form(&q->body, "config_tags", p->tags);
    buf_form(&q->body, "desc", p->desc);
    buf_form_n(&q->body, "content", p->content, p->len);
    if (q->body.failed || q->body.len > PUBLISH_MAX) {
        *err = (nacos_error){.code = NACOS_INVALID};
        snprintf(err->message, sizeof err->message,
                 "cannot publish %.256s (group %.128s): the content of %zu bytes takes %s%zu bytes in the encoded form, a server "
                 "reads at most %d; "
                 "split the configuration",
                 k->data_id, k->group, p->len, q->body.failed ? "over " : "", q->body.failed ? q->body.max : q->body.len,
                 PUBLISH_MAX);
        return false;
    }
    if (p->cas_md5) {
        q->cas = true;
        add_header(q, "casMd5", p->cas_md5);
    }
    return true;
}

static void v1_remove(struct question *q, const struct key *k)
{
    question_init(q, "DELETE", "/v1/cs/configs?", "remove");
    add_key(&q->target, k);
    q->key = *k;
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

static void v3_list(struct question *q, const struct key *pattern, int page, int page_size)
{
    question_init(q, "GET", "/v3/admin/cs/config/list?", "list configurations");
    add_page(q, pattern, page, page_size);
    buf_form(&q->target, "groupName", pattern->group);
    buf_form(&q->target, "namespaceId", *pattern->ns ? pattern->ns : "public");
}

static void v1_version(struct question *q)
{
    question_init(q, "GET", "/v1/console/server/state", "ask for the version");
    q->judge = judge_json;
}

static void v3_version(struct question *q)
{
    question_init(q, "GET", "/v3/admin/core/state", "ask for the version");
    q->judge = judge_json;
}

static bool parse_version(const struct http_response *r, char *out, size_t size)
{
    json_t *j = json_loadb(r->body.data, r->body.len, 0, NULL);
    json_t *data = json_object_get(j, "data");
    const char *version = json_string_value(json_object_get(data ? data : j, "version"));
    bool ok = version && *version;
    if (ok)
        snprintf(out, size, "%s", version);
    json_decref(j);
    return ok;
}

/* ---- long poll ----------------------------------------------------------------------------------------------------------- */

static enum verdict judge_listen(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && (r->status == 200 || r->status == 204)) {
        if (r->body.len == 0 || (r->body.data[0] != '<' && protocol_v1.listen_changed(r, NULL, NULL)))
            return VERDICT_ANSWER;
        return failed(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT,
                      "the answer is not that of a long poll; check address, port and proxy");
    }
    return judge_failure(q, r, err);
}

static void v1_listen(struct question *q, const char *ns, int64_t hold_ms, bool at_once)
{
    char ms[24];
    question_init(q, "POST", "/v1/cs/configs/listener", "listen for changes");
    q->judge = judge_listen;
    q->one_try = true;
    q->hold_ms = hold_ms;
    snprintf(ms, sizeof ms, "%lld", (long long)hold_ms);
    add_header(q, "Long-Pulling-Timeout", ms);
    if (at_once)
        add_header(q, "Long-Pulling-Timeout-No-Hangup", "true");
    /* users with rights to one namespace only are refused without it */
    buf_form(&q->body, "tenant", *ns ? ns : NULL);
    buf_form(&q->body, "Listening-Configs", "");
}

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

const struct protocol protocol_v1 = {
    .name = "v1",
    .read = v1_read,
    .publish = v1_publish,
    .remove = v1_remove,
    .list = v1_list,
    .version = v1_version,
    .parse_version = parse_version,
    .listen = v1_listen,
    .listen_add = v1_listen_add,
    .listen_changed = v1_listen_changed,
};

const struct protocol protocol_v3_admin = {.name = "v3", .list = v3_list, .version = v3_version, .parse_version = parse_version};

/* ---- login --------------------------------------------------------------------------------------------------------------- */

static enum verdict judge_login(const struct question *q, const struct http_response *r, nacos_error *err)
{
    return r->outcome == HTTP_ANSWERED && r->status == 200 ? VERDICT_ANSWER : judge_failure(q, r, err);
}

void login_question(struct question *q, const char *path, const char *username, const char *password)
{
    question_init(q, "POST", path, "log in");
    buf_form(&q->body, "username", username);
    buf_form(&q->body, "password", password);
    q->judge = judge_login;
}

/** New shape {"accessToken":…,"tokenTtl":…}; before 1.2 {"code":200,"data":"Bearer …"}, where no call needs a token. */
bool login_parse(const struct http_response *r, char **token, int64_t *ttl_s, bool *no_auth)
{
    json_t *j = json_loadb(r->body.data ? r->body.data : "", r->body.len, 0, NULL);
    const char *t = json_string_value(json_object_get(j, "accessToken"));
    json_int_t ttl = json_integer_value(json_object_get(j, "tokenTtl"));
    *no_auth = !t && json_integer_value(json_object_get(j, "code")) == 200;
    bool ok = t && *t && strcspn(t, "\r\n") == strlen(t);
    if (ok) {
        *token = strdup(t);
        *ttl_s = ttl > 0 ? ttl : 18000;
        ok = *token != NULL;
    }
    json_decref(j);
    return ok || *no_auth;
}
