#include "engine/request.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/digest.h"

#define CONNECT_MS 1000 /* a server that does not accept in this time counts as down */
#define ATTEMPT_MIN_MS 200
#define HOLD_MARGIN_MS 10000 /* beyond the hold, for a slow answer of 3,000 keys */
#define AGAIN_MS 60          /* a value being modified is there within ~100 ms */

struct request {
    struct nacos_client *client;
    struct request *prev, *next; /* in client->requests */
    struct request *auth_next;   /* in auth->waiters */
    struct question q;
    char *data_id, *group;
    int64_t deadline;
    uint32_t tried;
    bool relogged; /* this request has had its second chance */
    bool in_auth, direct, context;
    uint32_t current;    /* the bit of the server in use */
    uint64_t token_used; /* generation of the token in the last attempt */
    char origin[128];
    struct http_call *call;
    struct timer timer;
    nacos_error error; /* of the last server that failed */
    request_done done;
    void *arg;
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
    free(r);
}

static void finish(struct request *r, const struct http_response *resp, const nacos_error *err)
{
    unlink_request(r);
    r->done(r->arg, resp, err);
    free_request(r);
}

static void finish_failed(void *arg)
{
    struct request *r = arg;
    finish(r, NULL, &r->error);
}

static void set_error(struct request *r, nacos_code code, const char *why)
{
    r->error.code = code;
    if (r->q.key.data_id)
        snprintf(r->error.message, sizeof r->error.message, "cannot %s %.200s (group %.100s): %s", r->q.verb, r->q.key.data_id,
                 r->q.key.group, why);
    else
        snprintf(r->error.message, sizeof r->error.message, "cannot %s: %s", r->q.verb, why);
}

void request_fail(struct request *r, nacos_code code, const char *why)
{
    set_error(r, code, why);
    finish(r, NULL, &r->error);
}

void request_cancel(struct request *r)
{
    if (!r)
        return;
    unlink_request(r);
    free_request(r);
}

static void time_up(void *arg)
{
    struct request *r = arg;
    if (r->error.code == NACOS_OK)
        set_error(r, NACOS_UNAVAILABLE, "no answer in time");
    finish(r, NULL, &r->error);
}

static void try_again(void *arg)
{
    attempt(arg);
}

static void on_response(void *arg, struct http_response *resp)
{
    struct request *r = arg;
    struct nacos_client *c = r->client;
    r->call = NULL;
    nacos_error err = {0};
    snprintf(err.server, sizeof err.server, "%s", r->origin);
    enum verdict v = r->q.judge(&r->q, resp, &err);

    if (v == VERDICT_NEXT) {
        if (!r->direct)
            servers_failed(&c->servers, r->origin, now_ms());
        client_note(c, r->origin, &err);
        if (log_enabled(c->log, LOG_DEBUG))
            log_write(c->log, LOG_DEBUG, "%s", err.message);
        r->error = err;
        if (r->q.one_try || r->direct)
            finish(r, resp, &err);
        else
            attempt(r);
        return;
    }
    if (!r->direct)
        servers_worked(&c->servers, r->origin);
    client_note(c, r->origin, NULL);
    if (v == VERDICT_ANSWER && !r->direct)
        auth_accepted(&c->auth, r->token_used);
    if (v == VERDICT_AGAIN && r->deadline - now_ms() > AGAIN_MS) {
        r->error = err;
        r->tried &= ~r->current;
        timer_set(&c->engine->timers, &r->timer, AGAIN_MS, try_again, r);
        return;
    }
    if (v == VERDICT_NO_RIGHT && !r->direct && !r->relogged && auth_refused(&c->auth, r->token_used, resp)) {
        r->relogged = true;
        r->tried &= ~r->current;
        r->error = err;
        attempt(r);
        return;
    }
    finish(r, resp, &err);
}

void request_login_over(struct request *r, const nacos_error *err)
{
    r->in_auth = false;
    if (err && err->code != NACOS_OK) {
        r->error = *err;
        /* not from inside the caller: it walks the waiters */
        timer_set(&r->client->engine->timers, &r->timer, 0, finish_failed, r);
    } else {
        timer_set(&r->client->engine->timers, &r->timer, 0, try_again, r);
    }
}

/** ak/sk headers: Timestamp and base64(HMAC-SHA1(sk, resource "+" timestamp)), resource = [tenant "+"] group. */
static int sign(const struct request *r, char lines[3][200])
{
    const struct nacos_client *c = r->client;
    char text[512], signature[32], ms[24];
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

/** How long this attempt may take: an equal share of what is left for each server not yet tried. */
static int64_t share(const struct request *r, int64_t left)
{
    if (r->q.hold_ms > 0 || r->direct)
        return left;
    int untried = 0;
    for (int i = 0; i < r->client->servers.count; i++)
        untried += !(r->tried & (1u << i));
    int64_t part = left / (untried + 1); /* this one is marked as tried already */
    return part > ATTEMPT_MIN_MS ? part : ATTEMPT_MIN_MS < left ? ATTEMPT_MIN_MS : left;
}

static void attempt(struct request *r)
{
    struct nacos_client *c = r->client;
    int64_t left = r->deadline - now_ms();
    if (left <= 0) {
        timer_set(&c->engine->timers, &r->timer, 0, time_up, r);
        return;
    }
    const char *token = NULL;
    if (!r->direct) {
        nacos_error refused = {0};
        switch (auth_token(&c->auth, &token, &r->token_used, &refused)) {
        case AUTH_WAIT:
            auth_join(&c->auth, r);
            r->in_auth = true;
            timer_set(&c->engine->timers, &r->timer, left, time_up, r);
            r->error = (nacos_error){0};
            set_error(r, NACOS_UNAVAILABLE, "no answer to the login in time");
            return;
        case AUTH_FAILED:
            r->error = refused;
            timer_set(&c->engine->timers, &r->timer, 0, finish_failed, r);
            return;
        case AUTH_READY:
            break;
        }
        int k = servers_pick(&c->servers, r->tried, now_ms());
        if (k < 0 && c->endpoint && c->servers.count == 0) {
            timer_set(&c->engine->timers, &r->timer, left < AGAIN_MS ? left : AGAIN_MS, try_again, r);
            return;
        }
        if (k < 0) {
            if (r->error.code == NACOS_OK)
                set_error(r, NACOS_UNAVAILABLE, "no server is known");
            timer_set(&c->engine->timers, &r->timer, 0, finish_failed, r);
            return;
        }
        snprintf(r->origin, sizeof r->origin, "%s", c->servers.list[k].origin);
        r->current = 1u << k;
        r->tried |= r->current;
    }

    char token_line[4200], signature[3][200];
    const char *headers[12];
    int n = 0;
    headers[n++] = VERSION_HEADER;
    for (int i = 0; i < r->q.header_count; i++)
        headers[n++] = r->q.headers[i];
    if (r->q.body.len)
        headers[n++] = "Content-Type: application/x-www-form-urlencoded; charset=UTF-8";
    if (token && snprintf(token_line, sizeof token_line, "accessToken: %s", token) < (int)sizeof token_line)
        headers[n++] = token_line;
    if (c->ak && c->sk && !r->direct)
        for (int i = 0, count = sign(r, signature); i < count; i++)
            headers[n++] = signature[i];
    headers[n] = NULL;

    struct buf target;
    buf_init(&target, TARGET_MAX + 1024);
    buf_puts(&target, r->context ? c->context_path : "");
    buf_append(&target, r->q.target.data, r->q.target.len);
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
        .connect_timeout_ms = CONNECT_MS,
        .held = r->q.hold_ms > 0,
        .fresh = r->q.cas,
        .tls = &c->tls,
        .proxy = https ? c->proxy_https : c->proxy_http,
        .max_response = c->max_response,
    };
    if (!target.failed && !r->q.target.failed && !r->q.body.failed)
        r->call = http_start(c->engine->http, &spec, on_response, r);
    buf_free(&target);
    if (!r->call) {
        set_error(r, NACOS_NOMEM, "out of memory");
        timer_set(&c->engine->timers, &r->timer, 0, finish_failed, r);
    }
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
        r->q.key.ns = c->ns;
    }
    if (q->key.data_id && (!r->data_id || !r->group)) {
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
        timer_set(&c->engine->timers, &r->timer, 0, finish_failed, r);
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
