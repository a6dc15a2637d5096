#include "engine/request.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/digest.h"

#define CONNECT_MS 1000 /* a server that does not accept in this time counts as down */
#define ATTEMPT_MIN_MS 200
#define AGAIN_MS 60 /* a value being modified is there within ~100 ms; an address server's list, too */
#define HEADERS_MAX 12
#define CREDENTIALS_MAX 3
#define LOST_MAX 5 /* times it is asked again because the stream's connection ended under it */
#define LOST_PAUSE_MS 50
#define REWORDED_MAX 3 /* times in other words */

struct request {
    struct nacos_client *client;
    struct request *prev, *next; /* in client->requests */
    request_word word;
    struct question q; /* of the last attempt; zeroed before the first */
    bool direct;       /* one given origin, no token */
    bool context;
    bool lasting; /* goes on while its client leaves */
    int64_t deadline;
    request_done done;
    void *arg;

    /* it is in exactly one of: asking (call or link_call; the timer may be set to look after the link), waiting for a login
     * (in_auth) or for the dialect (in_dialect; the timer is the deadline of both), pausing (timer) */
    struct http_call *call;
    struct link_call *link_call;
    bool in_auth, in_dialect;
    struct timer timer;

    uint32_t tried, current; /* bits of servers in the list of `generation` */
    unsigned generation;
    int again; /* times it was told to come back in a moment */
    int lost, reworded;
    bool relogged;       /* it has had its second chance */
    bool proxied;        /* the last attempt went through a proxy */
    uint64_t token_used; /* generation of the token in the last attempt */
    char origin[128];
    nacos_error error; /* of the last server that failed */
    bool reason_only;  /* "cannot VERB KEY: " does not yet stand before its message */
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
    if (r->in_dialect)
        dialect_leave(&c->dialect, r);
    http_cancel(r->call);
    link_cancel(r->link_call);
    r->call = NULL;
    r->link_call = NULL;
}

static void free_request(struct request *r)
{
    question_free(&r->q);
    free(r);
}

static void end(struct request *r, const struct http_response *resp, const nacos_error *err)
{
    unlink_request(r);
    r->done(r->arg, resp ? &r->q : NULL, resp, err);
    free_request(r);
}

static void set_error(struct request *r, nacos_code code, const char *why)
{
    r->error = (nacos_error){.code = code};
    snprintf(r->error.message, sizeof r->error.message, "%s", why);
    r->reason_only = true;
}

static void note_error(struct request *r, const nacos_error *err)
{
    r->error = *err;
    r->reason_only = false;
}

/** What it was about, for people. */
static void complete_message(struct request *r)
{
    struct question words = {0};
    nacos_error ignored = {0};
    char why[sizeof r->error.message];
    const struct question *q = r->q.verb ? &r->q : &words;
    if (q == &words) /* v1 has words for everything */
        r->word(r->arg, &protocol_v1, &words, &ignored);
    snprintf(why, sizeof why, "%s", r->error.message);
    if (q->key.data_id)
        snprintf(r->error.message, sizeof r->error.message, "cannot %s %.256s (group %.256s): %.400s", q->verb, q->key.data_id,
                 q->key.group, why);
    else
        snprintf(r->error.message, sizeof r->error.message, "cannot %s: %.400s", q->verb ? q->verb : "ask", why);
    question_free(&words);
}

static void end_failed(void *arg)
{
    struct request *r = arg;
    int servers = __builtin_popcount(r->tried);
    if (r->reason_only)
        complete_message(r);
    size_t n = strlen(r->error.message);
    if (servers > 1)
        snprintf(r->error.message + n, sizeof r->error.message - n, " (%d servers tried, this was the last)", servers);
    end(r, NULL, &r->error);
}

/** Ends it soon, not from inside the caller. */
static void fail_soon(struct request *r)
{
    timer_set(&r->client->engine->timers, &r->timer, 0, end_failed, r);
}

void request_fail(struct request *r, nacos_code code, const char *why)
{
    set_error(r, code, why);
    complete_message(r);
    end(r, NULL, &r->error);
}

void requests_fail(struct nacos_client *c, nacos_code code, const char *why)
{
    for (struct request *r = c->requests; r;) {
        if (r->lasting) {
            r = r->next;
        } else {
            request_fail(r, code, why);
            r = c->requests; /* its end may have ended others */
        }
    }
}

void request_lasts(struct request *r)
{
    r->lasting = true;
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

/** The same server is to be asked again, after a pause. */
static void ask_again(struct request *r, int64_t ms)
{
    r->tried &= ~r->current;
    pause_request(r, ms);
}

static void check_link(void *arg)
{
    struct request *r = arg;
    link_check(&r->client->link);
}

static void on_response(void *arg, struct http_response *resp)
{
    struct request *r = arg;
    struct nacos_client *c = r->client;
    r->call = NULL;
    r->link_call = NULL;
    timer_clear(&c->engine->timers, &r->timer);
    nacos_error err = {0};
    char at[140];
    snprintf(at, sizeof at, "%s", r->origin);
    if (r->q.rpc)
        dialect_address(&c->dialect, r->origin, at);
    snprintf(err.server, sizeof err.server, "%.127s", at); /* for the message: what has answered */
    enum verdict v = r->q.judge(&r->q, resp, &err);
    snprintf(err.server, sizeof err.server, "%s", r->origin);
    log_plain(err.message);

    if (resp->outcome == HTTP_BUSY) { /* it never was the server's turn: that is no failure of the server */
        end(r, resp, &err);
        return;
    }
    if (v == VERDICT_NEXT) {
        bool lost = r->q.rpc && (resp->outcome == HTTP_NO_CONNECT || resp->outcome == HTTP_BROKEN); /* its connection ended */
        if (r->q.rpc && resp->outcome == HTTP_TIMEOUT)
            link_check(&c->link);
        if (!r->direct)
            servers_failed(&c->servers, r->origin, now_ms());
        if (!r->direct || c->link.state != LINK_READY) /* without its HTTP a client may do well */
            client_note(c, r->origin, &err);
        log_write(c->log, LOG_DEBUG, "%s", err.message);
        note_error(r, &err);
        if (r->q.retry == RETRY_NEVER || r->direct)
            end(r, resp, &err);
        else if (lost && r->lost < LOST_MAX)
            ask_again(r, r->lost++ ? LOST_PAUSE_MS << r->lost : 0);
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
    note_error(r, &err);
    if (!r->direct && question_gone(&r->q, &err) && r->reworded < REWORDED_MAX &&
        dialect_gone(&c->dialect, r->origin, r->q.protocol)) {
        r->reworded++;
        ask_again(r, 0);
    } else if (v == VERDICT_AGAIN && r->deadline - now_ms() > moment) {
        r->again++;
        ask_again(r, moment);
    } else if (v == VERDICT_NO_RIGHT && !r->direct && !r->relogged && auth_refused(&c->auth, r->token_used, resp)) {
        r->relogged = true;
        ask_again(r, 0);
    } else {
        end(r, resp, &err);
    }
}

void request_login_trouble(struct request *r, const nacos_error *err)
{
    note_error(r, err);
}

void request_login_over(struct request *r, const nacos_error *err)
{
    r->in_auth = false;
    if (err) {
        note_error(r, err);
        fail_soon(r); /* the caller walks the waiters */
    } else {
        pause_request(r, 0);
    }
}

void request_dialect_known(struct request *r)
{
    r->in_dialect = false;
    pause_request(r, 0); /* the caller walks the waiters */
}

struct credential {
    const char *name;
    char value[900];
};

/** By ak/sk. For configurations base64(HMAC-SHA1(sk, resource "+" timestamp)), resource = tenant and group, as far as there are
 * any; for services that of data = time "@@" group "@@" service. */
static int sign(const struct request *r, struct credential out[CREDENTIALS_MAX])
{
    const struct nacos_client *c = r->client;
    const struct key *k = &r->q.key;
    const char *group = k->data_id ? k->group : "";
    char text[900], ms[24];
    if (!c->ak || !c->sk || r->direct)
        return 0;
    snprintf(ms, sizeof ms, "%lld", (long long)(unix_now() * 1000));
    if (!r->q.naming)
        snprintf(text, sizeof text, "%s%s%s%s%s", c->ns, *c->ns && *group ? "+" : "", group, *c->ns || *group ? "+" : "", ms);
    else
        snprintf(text, sizeof text, "%s%s%s%s%s", ms, k->data_id ? "@@" : "", group, k->data_id ? "@@" : "",
                 k->data_id ? k->data_id : "");
    if (!hmac_sha1_base64(c->sk, text, strlen(text), out[2].value))
        return 0;
    out[0].name = r->q.naming ? "ak" : "Spas-AccessKey";
    out[1].name = r->q.naming ? "data" : "Timestamp";
    out[2].name = r->q.naming ? "signature" : "Spas-Signature";
    snprintf(out[0].value, sizeof out[0].value, "%.180s", c->ak);
    snprintf(out[1].value, sizeof out[1].value, "%s", r->q.naming ? text : ms);
    return CREDENTIALS_MAX;
}

/** An equal share of what is left for this attempt and each server not yet tried. */
static int64_t share(const struct request *r, int64_t left)
{
    if (r->q.retry == RETRY_NEVER || r->direct)
        return left;
    int64_t part = left / (r->client->servers.count - __builtin_popcount(r->tried) + 1);
    return part > ATTEMPT_MIN_MS ? part : ATTEMPT_MIN_MS < left ? ATTEMPT_MIN_MS : left;
}

static void start_call(struct request *r, const char *token, const struct credential *signature, int signs, int64_t left)
{
    struct nacos_client *c = r->client;
    struct envelope_header headers[CREDENTIALS_MAX + 1];
    int n = 0;
    if (token)
        headers[n++] = (struct envelope_header){slice_of("accessToken"), slice_of(token)};
    for (int i = 0; i < signs; i++)
        headers[n++] = (struct envelope_header){slice_of(signature[i].name), slice_of(signature[i].value)};
    r->proxied = false;
    if (!r->q.body.failed)
        r->link_call = link_call(&c->link, r->q.rpc, r->q.body.data, r->q.body.len, headers, n, left, on_response, r);
    if (r->link_call && share(r, left) < left) /* the others are asked when the connection is found to be dead */
        timer_set(&c->engine->timers, &r->timer, share(r, left), check_link, r);
}

static void start_http(struct request *r, const char *token, const struct credential *signature, int signs, int64_t left)
{
    struct nacos_client *c = r->client;
    const char *headers[HEADERS_MAX];
    char lines[CREDENTIALS_MAX][1000];
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
    buf_puts(&target, r->context ? c->context_path : "");
    buf_append(&target, r->q.target.data, r->q.target.len);
    for (int i = 0; i < signs; i++) {
        if (r->q.naming) {
            buf_form(&target, signature[i].name, signature[i].value);
        } else {
            snprintf(lines[i], sizeof lines[i], "%s: %s", signature[i].name, signature[i].value);
            headers[n++] = lines[i];
        }
    }
    headers[n] = NULL;
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
    if (!target.failed && !token_line.failed && !r->q.target.failed && !r->q.body.failed)
        r->call = http_start(c->engine->http, &spec, on_response, r);
    buf_free(&target);
    buf_free(&token_line);
}

/** Sends the question to r->origin. */
static void ask(struct request *r, const char *token, int64_t left)
{
    struct credential signature[CREDENTIALS_MAX];
    int signs = sign(r, signature);
    if (r->q.rpc)
        start_call(r, token, signature, signs, left);
    else
        start_http(r, token, signature, signs, left);
    if (!r->call && !r->link_call) {
        set_error(r, NACOS_INVALID, "the request is too large, or memory has run out");
        fail_soon(r);
    }
}

/** Words what is asked for the server of this attempt. False: r->error says why that cannot be. */
static bool word(struct request *r, const struct protocol *p)
{
    nacos_error err = {0};
    char why[200];
    question_free(&r->q);
    r->q = (struct question){0};
    bool ok = r->word(r->arg, p, &r->q, &err);
    r->q.protocol = p;
    if (!ok && err.code != NACOS_OK) {
        note_error(r, &err);
    } else if (!ok) {
        snprintf(why, sizeof why, "%s does not offer this call (by %s)", r->origin, p->name);
        set_error(r, NACOS_UNSUPPORTED, why);
    }
    return ok;
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
    if (r->generation != s->generation) { /* another list: the bits mean nothing any more */
        r->generation = s->generation;
        r->tried = 0;
    }
    const struct protocol *p = NULL;
    nacos_error why = {0};
    int k = -1;
    bool by_http = r->q.verb && !r->q.rpc;
    enum dialect_state known = dialect_pick(&c->dialect, r->tried, by_http, &k, &p, &why);
    if (known != DIALECT_READY && (why.code != NACOS_OK || r->error.code == NACOS_OK))
        set_error(r, why.code ? why.code : NACOS_UNAVAILABLE, why.code ? why.message : "no answer in time");
    if (known == DIALECT_WAIT) { /* r->error tells, should the time run out first */
        dialect_join(&c->dialect, r);
        r->in_dialect = true;
        timer_set(&c->engine->timers, &r->timer, left, end_failed, r);
        return;
    }
    if (known == DIALECT_FAILED) {
        fail_soon(r);
        return;
    }
    const char *token = NULL;
    enum auth_state login = auth_token(&c->auth, &token, &r->token_used, &why);
    if (login != AUTH_READY)
        note_error(r, &why);
    if (login == AUTH_WAIT) { /* r->error tells, should the time run out first */
        auth_join(&c->auth, r);
        r->in_auth = true;
        timer_set(&c->engine->timers, &r->timer, left, end_failed, r);
        return;
    }
    if (login == AUTH_FAILED) {
        fail_soon(r);
        return;
    }
    snprintf(r->origin, sizeof r->origin, "%s", s->list[k].origin);
    r->current = 1u << k;
    r->tried |= r->current;
    if (word(r, p))
        ask(r, token, left);
    else
        fail_soon(r);
}

static struct request *new_request(struct nacos_client *c, int64_t timeout_ms, request_done done, void *arg)
{
    struct request *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->client = c;
    r->done = done;
    r->arg = arg;
    r->deadline = now_ms() + timeout_ms;
    r->next = c->requests;
    if (r->next)
        r->next->prev = r;
    c->requests = r;
    return r;
}

static void begin(struct request *r)
{
    if (r->client->closing) {
        set_error(r, NACOS_CLOSED, "the client is closed");
        fail_soon(r);
    } else {
        attempt(r);
    }
}

struct request *request_start(struct nacos_client *c, request_word how, int64_t timeout_ms, request_done done, void *arg)
{
    struct request *r = new_request(c, timeout_ms, done, arg);
    if (!r)
        return NULL;
    r->word = how;
    r->context = true;
    begin(r);
    return r;
}

struct request *request_start_at(struct nacos_client *c, struct question *q, const char *origin, bool context, int64_t timeout_ms,
                                 request_done done, void *arg)
{
    struct request *r = new_request(c, timeout_ms, done, arg);
    if (!r) {
        question_free(q);
        return NULL;
    }
    r->q = *q;
    r->direct = true;
    r->context = context;
    snprintf(r->origin, sizeof r->origin, "%s", origin);
    begin(r);
    return r;
}
