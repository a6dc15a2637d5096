/** protocol.c: what every dialect needs: questions, the failures that look the same everywhere, logins. */
#include "engine/protocol.h"

#include <stdlib.h>
#include <string.h>

#include "engine/digest.h"
#include "engine/engine.h"

#define VERSION_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_+"

size_t key_name(char *out, size_t size, const struct key *k)
{
    size_t d = strlen(k->data_id) + 1, g = strlen(k->group) + 1;
    if (d + g > size)
        return 0;
    memcpy(out, k->data_id, d);
    memcpy(out + d, k->group, g);
    return d + g;
}

void question_init(struct question *q, const char *method, const char *path, const char *verb)
{
    memset(q, 0, sizeof *q);
    q->method = method;
    q->verb = verb;
    buf_init(&q->target, TARGET_MAX);
    buf_init(&q->body, PUBLISH_MAX);
    buf_puts(&q->target, path);
}

void question_header(struct question *q, const char *name, const char *value)
{
    snprintf(q->headers[q->header_count++], sizeof q->headers[0], "%s: %s", name, value);
}

void question_free(struct question *q)
{
    buf_free(&q->target);
    buf_free(&q->body);
}

struct value *question_value(const struct question *q, const struct http_response *r)
{
    return q->value ? q->value(q, r) : value_new(r->body.data ? r->body.data : "", r->body.len, r->config_type, r->content_md5);
}

struct hosts *question_hosts(const struct question *q, const struct http_response *r)
{
    return q->hosts ? q->hosts(r) : NULL;
}

struct value *value_of_content(const struct question *q, const json_t *j)
{
    const json_t *content = json_object_get(j, "content");
    const char *type = json_string_value(json_object_get(j, "contentType"));
    const char *said = json_string_value(json_object_get(j, "md5"));
    char md5[MD5_HEX];
    if (!json_is_string(content) || !said)
        return NULL;
    md5_hex(json_string_value(content), json_string_length(content), md5);
    /* "cipher-" items are decrypted by a server plugin, their md5 is that of the stored form */
    bool right = strcmp(md5, said) == 0 || (strlen(said) < MD5_HEX && strncmp(q->key.data_id, "cipher-", 7) == 0);
    return right ? value_new(json_string_value(content), json_string_length(content), type ? type : "text", said) : NULL;
}

struct value *value_of_json(json_t *j)
{
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    struct value *v = text ? value_new(text, strlen(text), "json", "") : NULL;
    free(text);
    json_decref(j);
    return v;
}

const char *namespace_name(const char *ns)
{
    return *ns ? ns : "public";
}

json_t *pairs_json(const nacos_pair *pairs, size_t count)
{
    json_t *j = json_object();
    bool ok = j != NULL;
    for (size_t i = 0; i < count && ok; i++)
        ok = json_object_set_new(j, pairs[i].name, json_string(pairs[i].value)) == 0;
    if (!ok) {
        json_decref(j);
        j = NULL;
    }
    return j;
}

bool body_is(const struct http_response *r, const char *text)
{
    const struct buf *b = &r->body;
    size_t n = strlen(text), len = b->len;
    while (len && (b->data[len - 1] == '\n' || b->data[len - 1] == '\r'))
        len--;
    return len == n && memcmp(b->data, text, n) == 0;
}

bool body_has(const struct http_response *r, const char *text)
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

enum verdict judged(const struct question *q, const struct http_response *r, nacos_error *err, nacos_code code, enum verdict v,
                    const char *what)
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

enum verdict judge_failure(const struct question *q, const struct http_response *r, nacos_error *err)
{
    char words[220], what[300];
    if (r->outcome != HTTP_ANSWERED)
        return judged(q, r, err, r->outcome == HTTP_TOO_LARGE ? NACOS_PROTOCOL : NACOS_UNAVAILABLE, VERDICT_NEXT, r->why);
    server_words(r, words, sizeof words);
    snprintf(what, sizeof what, "HTTP %d%s", r->status, words);
    switch (r->status) {
    case 401:
    case 403:
        return judged(q, r, err, NACOS_FORBIDDEN, VERDICT_NO_RIGHT, what);
    case 409:
        return judged(q, r, err, NACOS_UNAVAILABLE, VERDICT_AGAIN, what);
    case 404:
    case 405:
    case 410:
    case 501:
        snprintf(what, sizeof what, "it does not offer this call (HTTP %d%s)", r->status, words);
        return judged(q, r, err, NACOS_UNSUPPORTED, VERDICT_ANSWER, what);
    case 408:
    case 429:
        return judged(q, r, err, NACOS_UNAVAILABLE, VERDICT_NEXT, what);
    default:
        break;
    }
    if (r->status >= 500)
        return judged(q, r, err, NACOS_UNAVAILABLE, VERDICT_NEXT, what);
    if (r->status >= 400)
        return judged(q, r, err, NACOS_REFUSED, VERDICT_ANSWER, what);
    snprintf(what, sizeof what, "what answered (HTTP %d) is not a Nacos server; check address, port and proxy", r->status);
    return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, what);
}

/** 405 is the word of a gateway that lets only some methods pass; what is asked over HTTP says nothing of gRPC. */
bool question_gone(const struct question *q, const nacos_error *err)
{
    return q->core && err->code == NACOS_UNSUPPORTED && err->http_status != 405 && (q->rpc || q->protocol != &protocol_grpc);
}

enum verdict judge_content(const struct question *q, const struct http_response *r, nacos_error *err, enum verdict v)
{
    if (v != VERDICT_ANSWER || err->code != NACOS_OK)
        return v;
    struct value *content = question_value(q, r);
    if (!content)
        v = judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer holds no content, or not that of its md5");
    value_unref(content);
    return v;
}

enum verdict judge_json(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200) {
        size_t i = 0;
        while (i < r->body.len && strchr(" \r\n\t", r->body.data[i]))
            i++;
        if (i < r->body.len && r->body.data[i] == '{')
            return VERDICT_ANSWER;
        return judged(q, r, err, NACOS_PROTOCOL, VERDICT_NEXT, "the answer is not JSON");
    }
    return judge_failure(q, r, err);
}

bool publish_fits(const struct question *q, size_t len, nacos_error *err)
{
    if (!q->body.failed && q->body.len <= PUBLISH_MAX)
        return true;
    *err = (nacos_error){.code = NACOS_INVALID};
    snprintf(err->message, sizeof err->message,
             "cannot publish %.256s (group %.128s): the content of %zu bytes takes %s%zu bytes in the encoded form, a server "
             "reads at most %d; split the configuration",
             q->key.data_id, q->key.group, len, q->body.failed ? "over " : "", q->body.failed ? q->body.max : q->body.len,
             PUBLISH_MAX);
    return false;
}

bool parse_version(const struct http_response *r, char *out, size_t size)
{
    json_t *j = json_loadb(r->body.data, r->body.len, 0, NULL);
    json_t *data = json_object_get(j, "data");
    const char *version = json_string_value(json_object_get(data ? data : j, "version"));
    bool ok = version && *version && version[strspn(version, VERSION_CHARS)] == 0; /* people will see it on their terminals */
    if (ok)
        snprintf(out, size, "%s", version);
    json_decref(j);
    return ok;
}

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
