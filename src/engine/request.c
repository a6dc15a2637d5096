#include "engine/request.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/digest.h"

#define CONNECT_MS 1000 /* a server that does not accept in this time counts as down */
#define ATTEMPT_MIN_MS 200
#define HOLD_MARGIN_MS 10000 /* beyond the hold, for a slow answer of 3,000 keys */
#define AGAIN_MS 60          /* a value being modified is there within ~100 ms; an address server's list, too */
#define HEADERS_MAX 12

struct request {
    struct nacos_client *client;
    struct request *prev, *next; /* in client->requests */
    struct question q;
    char *data_id, *group, *ns; /* what q.key points to */
    bool direct;                /* one given origin, no token */
    bool context;
    int64_t deadline;
    request_done done;
    void *arg;

    /* it is in exactly one of: asking (call), waiting for a login (in_auth; the timer is the deadline), pausing (timer) */
    struct http_call *call;
    bool in_auth;
    struct timer timer;

    uint32_t tried, current; /* bits of servers in the list of `generation` */
    unsigned generation;
    int again;           /* times it was told to come back in a moment */
    bool relogged;       /* it has had its second chance */
    bool proxied;        /* the last attempt went through a proxy */
    uint64_t token_used; /* generation of the token in the last attempt */
    char origin[128];
    nacos_error error; /* of the last server that failed */
};

static void attempt(struct request *r);

static void unlink_request(struct request *r)
{
    struct nacos_client *c = r->client;
    if (r->prev)
        r->prev->next = r->next;
    else
        c->requests = r->next;
    if (r->next)
        r->next->prev = r->prev;
    timer_clear(&c->engine->timers, &r->timer);
    if (r->in_auth)
        auth_leave(&c->auth, r);
    http_cancel(r->call);
    r->call = NULL;
}

static void free_request(struct request *r)
{
    question_free(&r->q);
    free(r->data_id);
    free(r->group);
    free(r->ns);
    free(r);
}

static void end(struct request *r, const struct http_response *resp, const nacos_error *err)
{
    unlink_request(r);
    r->done(r->arg, resp, err);
    free_request(r);
}

static void end_failed(void *arg)
{
    struct request *r = arg;
    int servers = __builtin_popcount(r->tried);
    size_t n = strlen(r->error.message);
    if (servers > 1)
        snprintf(r->error.message + n, sizeof r->error.message - n, " (%d servers tried, this was the last)", servers);
    end(r, NULL, &r->error);
}

static void set_error(struct request *r, nacos_code code, const char *why)
{
    r->error = (nacos_error){.code = code};
    if (r->q.key.data_id)
        snprintf(r->error.message, sizeof r->error.message, "cannot %s %s (group %s): %s", r->q.verb, r->q.key.data_id,
                 r->q.key.group, why);
    else
        snprintf(r->error.message, sizeof r->error.message, "cannot %s: %s", r->q.verb, why);
}

/** Ends it soon, not from inside the caller. */
static void fail_soon(struct request *r)
{
    timer_set(&r->client->engine->timers, &r->timer, 0, end_failed, r);
}

void request_fail(struct request *r, nacos_code code, const char *why)
{
    set_error(r, code, why);
    end(r, NULL, &r->error);
}

void requests_fail(struct nacos_client *c, nacos_code code, const char *why)
{
    for (struct request *r = c->requests; r;) {
        if (r->q.lasting) {
            r = r->next;
        } else {
            request_fail(r, code, why);
            r = c->requests; /* its end may have ended others */
        }
    }
}

void request_cancel(struct request *r)
{
    if (!r)
        return;
    unlink_request(r);
    free_request(r);
}

static void try_again(void *arg)
{
    attempt(arg);
}

static void pause_request(struct request *r, int64_t ms)
{
    timer_set(&r->client->engine->timers, &r->timer, ms, try_again, r);
}

static void on_response(void *arg, struct http_response *resp)
{
    struct request *r = arg;
    struct nacos_client *c = r->client;
    r->call = NULL;
    nacos_error err = {0};
    snprintf(err.server, sizeof err.server, "%s", r->origin);
    enum verdict v = r->q.judge(&r->q, resp, &err);

    if (resp->outcome == HTTP_BUSY) { /* it never was the server's turn: that is no failure of the server */
        end(r, resp, &err);
        return;
    }
    if (v == VERDICT_NEXT) {
        if (!r->direct)
            servers_failed(&c->servers, r->origin, now_ms());
        client_note(c, r->origin, &err);
        log_write(c->log, LOG_DEBUG, "%s", err.message);
        r->error = err;
        if (r->q.retry == RETRY_NEVER || r->direct)
            end(r, resp, &err);
        else
            attempt(r);
        return;
    }
    if (!r->direct)
        servers_worked(&c->servers, r->origin);
    if (!r->proxied)
        servers_note_addresses(&c->servers, r->origin, resp->ip, resp->local_ip);
    client_note(c, r->origin, NULL);
    if (v == VERDICT_ANSWER && !r->direct)
        auth_accepted(&c->auth, r->token_used);
    int64_t moment = AGAIN_MS << (r->again < 6 ? r->again : 6);
    if (v == VERDICT_AGAIN && r->deadline - now_ms() > moment) {
        r->error = err;
        r->again++;
        r->tried &= ~r->current;
        pause_request(r, moment);
        return;
    }
    if (v == VERDICT_NO_RIGHT && !r->direct && !r->relogged && auth_refused(&c->auth, r->token_used, resp)) {
        r->relogged = true;
        r->tried &= ~r->current;
        r->error = err;
        attempt(r);
        return;
    }
    end(r, resp, &err);
}

void request_login_trouble(struct request *r, const nacos_error *err)
{
    r->error = *err;
}

void request_login_over(struct request *r, const nacos_error *err)
{
    r->in_auth = false;
    if (err) {
        r->error = *err;
        fail_soon(r); /* the caller walks the waiters */
    } else {
        pause_request(r, 0);
    }
}

/** ak/sk headers: Timestamp and base64(HMAC-SHA1(sk, resource "+" timestamp)), resource = tenant and group, as far as there are
 * any. */
static int sign(const struct request *r, char lines[3][200])
{
    const struct nacos_client *c = r->client;
    char text[800], signature[32], ms[24];
    snprintf(ms, sizeof ms, "%lld", (long long)(unix_now() * 1000));
    const char *group = r->q.key.data_id ? r->q.key.group : "";
    snprintf(text, sizeof text, "%s%s%s%s%s", c->ns, *c->ns && *group ? "+" : "", group, *c->ns || *group ? "+" : "", ms);
    if (!hmac_sha1_base64(c->sk, text, strlen(text), signature))
        return 0;
    snprintf(lines[0], sizeof lines[0], "Spas-AccessKey: %.180s", c->ak);
    snprintf(lines[1], sizeof lines[1], "Timestamp: %s", ms);
    snprintf(lines[2], sizeof lines[2], "Spas-Signature: %s", signature);
    return 3;
}

/** The same for services, as parameters: ak, data = time "@@" group "@@" service, signature of data. */
static void sign_query(const struct request *r, struct buf *target)
{
    const struct nacos_client *c = r->client;
    char data[900], signature[32];
    int n = snprintf(data, sizeof data, "%lld", (long long)(unix_now() * 1000));
    if (r->q.key.data_id)
        snprintf(data + n, sizeof data - (size_t)n, "@@%s@@%s", r->q.key.group, r->q.key.data_id);
    if (!hmac_sha1_base64(c->sk, data, strlen(data), signature))
        return;
    buf_form(target, "ak", c->ak);
    buf_form(target, "data", data);
    buf_form(target, "signature", signature);
}

/** How long this attempt may take: an equal share of what is left for it and each server not yet tried. */
static int64_t share(const struct request *r, int64_t left)
{
    if (r->q.retry == RETRY_NEVER || r->direct)
        return left;
    int64_t part = left / (r->client->servers.count - __builtin_popcount(r->tried) + 1);
    return part > ATTEMPT_MIN_MS ? part : ATTEMPT_MIN_MS < left ? ATTEMPT_MIN_MS : left;
}

/** Sends the question to r->origin. */
static void ask(struct request *r, const char *token, int64_t left)
{
    struct nacos_client *c = r->client;
    const char *headers[HEADERS_MAX];
    char signature[3][200];
    struct buf token_line, target;
    int n = 0;
    buf_init(&token_line, 64 << 10);
    buf_init(&target, TARGET_MAX + 1024);
    headers[n++] = VERSION_HEADER;
    for (int i = 0; i < r->q.header_count; i++)
        headers[n++] = r->q.headers[i];
    if (r->q.body.len)
        headers[n++] = "Content-Type: application/x-www-form-urlencoded; charset=UTF-8";
    if (token && buf_printf(&token_line, "accessToken: %s", token))
        headers[n++] = token_line.data;
    bool signs = c->ak && c->sk && !r->direct;
    if (signs && !r->q.naming)
        for (int i = 0, count = sign(r, signature); i < count; i++)
            headers[n++] = signature[i];
    headers[n] = NULL;
    buf_puts(&target, r->context ? c->context_path : "");
    buf_append(&target, r->q.target.data, r->q.target.len);
    if (signs && r->q.naming)
        sign_query(r, &target);
    bool https = strncmp(r->origin, "https:", 6) == 0;
    struct http_spec spec = {
        .method = r->q.method,
        .origin = r->origin,
        .target = target.data,
        .headers = headers,
        .body = r->q.body.len                      ? r->q.body.data
                : strcmp(r->q.method, "POST") == 0 ? ""
                                                   : NULL,
        .body_len = r->q.body.len,
        .timeout_ms = share(r, left),
        .wait_ms = left,
        .connect_timeout_ms = CONNECT_MS,
        .held = r->q.hold_ms > 0,
        .fresh = r->q.retry == RETRY_UNSENT,
        .tls = &c->tls,
        .proxy = https ? c->proxy_https : c->proxy_http,
        .max_response = c->max_response,
    };
    r->proxied = spec.proxy != NULL;
    bool fits = !target.failed && !token_line.failed && !r->q.target.failed && !r->q.body.failed;
    if (fits)
        r->call = http_start(c->engine->http, &spec, on_response, r);
    buf_free(&target);
    buf_free(&token_line);
    if (!r->call) {
        set_error(r, fits ? NACOS_NOMEM : NACOS_INVALID, fits ? "out of memory" : "the request is too large");
        fail_soon(r);
    }
}

static void attempt(struct request *r)
{
    struct nacos_client *c = r->client;
    struct servers *s = &c->servers;
    int64_t left = r->deadline - now_ms();
    if (left <= 0) {
        if (r->error.code == NACOS_OK)
            set_error(r, NACOS_UNAVAILABLE,
                      s->count               ? "no answer in time"
                      : *c->endpoint_trouble ? c->endpoint_trouble
                                             : "the address server has not answered yet");
        fail_soon(r);
        return;
    }
    if (r->direct) {
        ask(r, NULL, left);
        return;
    }
    if (s->count == 0) {
        pause_request(r, left < AGAIN_MS ? left : AGAIN_MS);
        return;
    }
    const char *token = NULL;
    switch (auth_token(&c->auth, &token, &r->token_used, &r->error)) {
    case AUTH_WAIT: /* r->error tells, should the time run out first */
        auth_join(&c->auth, r);
        r->in_auth = true;
        timer_set(&c->engine->timers, &r->timer, left, end_failed, r);
        return;
    case AUTH_FAILED:
        fail_soon(r);
        return;
    case AUTH_READY:
        break;
    }
    if (r->generation != s->generation) { /* another list: the bits mean nothing any more */
        r->generation = s->generation;
        r->tried = 0;
    }
    int k = servers_pick(s, r->tried, now_ms());
    if (k < 0) {
        fail_soon(r);
        return;
    }
    snprintf(r->origin, sizeof r->origin, "%s", s->list[k].origin);
    r->current = 1u << k;
    r->tried |= r->current;
    ask(r, token, left);
}

static struct request *start(struct nacos_client *c, struct question *q, const char *origin, bool context, int64_t timeout_ms,
                             request_done done, void *arg)
{
    struct request *r = calloc(1, sizeof *r);
    if (!r) {
        question_free(q);
        return NULL;
    }
    r->client = c;
    r->q = *q;
    r->done = done;
    r->arg = arg;
    r->context = context;
    r->direct = origin != NULL;
    if (origin)
        snprintf(r->origin, sizeof r->origin, "%s", origin);
    if (q->key.data_id) {
        r->q.key.data_id = r->data_id = strdup(q->key.data_id);
        r->q.key.group = r->group = strdup(q->key.group);
        r->q.key.ns = r->ns = strdup(q->key.ns);
    }
    if (q->key.data_id && (!r->data_id || !r->group || !r->ns)) {
        free_request(r);
        return NULL;
    }
    r->next = c->requests;
    if (r->next)
        r->next->prev = r;
    c->requests = r;
    r->deadline = now_ms() + timeout_ms + (q->hold_ms > 0 ? HOLD_MARGIN_MS : 0);
    if (c->closing) {
        set_error(r, NACOS_CLOSED, "the client is closed");
        fail_soon(r);
    } else {
        attempt(r);
    }
    return r;
}

struct request *request_start(struct nacos_client *c, struct question *q, int64_t timeout_ms, request_done done, void *arg)
{
    return start(c, q, NULL, true, timeout_ms, done, arg);
}

struct request *request_start_at(struct nacos_client *c, struct question *q, const char *origin, bool context, int64_t timeout_ms,
                                 request_done done, void *arg)
{
    return start(c, q, origin, context, timeout_ms, done, arg);
}
