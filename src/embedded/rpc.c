/** rpc: see rpc.h. */
#include "embedded/rpc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "embedded/request.h"

enum {
    IDLE = 20000,    /* ms of silence after which a client is asked whether it is there */
    PATIENCE = 5000, /* ms it has for its answer */
    TICK = 3000,     /* ms between looks for silent ones */
    SOON = 1000      /* ms until a push is repeated that the client could not use */
};

static int64_t wall_ms(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000;
}

static bool is_old(const struct rpc *r)
{
    return !embedded_claims(r->service->options, 3);
}

/* ---- what goes out ---- */

/** JSON as the real server writes it: characters beyond the BMP as two escapes. */
static void append_json(struct buf *out, const struct buf *text)
{
    const unsigned char *p = (const unsigned char *)text->data, *end = p + text->len;
    while (p < end) {
        const unsigned char *from = p;
        while (p < end && *p < 0xf0)
            p++;
        buf_append(out, from, (size_t)(p - from));
        if (end - p >= 4) { /* what a byte like this begins: Jansson writes valid UTF-8 */
            unsigned long c = ((p[0] & 7UL) << 18 | (p[1] & 63UL) << 12 | (p[2] & 63UL) << 6 | (p[3] & 63UL)) - 0x10000;
            buf_printf(out, "\\u%04lX\\u%04lX", 0xd800 + (c >> 10), 0xdc00 + (c & 0x3ff));
            p += 4;
        } else {
            p = end;
        }
    }
    out->failed |= text->failed;
}

void append_value(struct buf *out, json_t *value)
{
    char *text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    json_decref(value);
    if (text)
        buf_puts(out, text);
    else
        out->failed = true;
    free(text);
}

/** The envelope around a JSON text. */
static void wrap(struct buf *out, const char *type, const struct buf *json, const char *client_ip)
{
    struct buf text;
    buf_init(&text, ENVELOPE_MAX);
    append_json(&text, json);
    struct envelope e = {.type = slice_of(type), .client_ip = slice_of(client_ip), .json = {text.data, text.len}};
    envelope_write(out, &e);
    out->failed |= text.failed;
    buf_free(&text);
}

/** Puts a push on the stream. Sending may end the session. False: it is no message, and nothing was done. */
static bool send_push(struct session *s, struct grpc_call *stream, const char *type, const struct buf *json)
{
    struct rpc *r = s->rpc;
    struct grpc_conn *c = s->conn;
    struct buf out;
    buf_init(&out, ENVELOPE_MAX + 4096);
    wrap(&out, type, json, c->local_ip);
    bool ok = !out.failed;
    for (int n = r->duplicate ? 2 : 1; n > 0 && ok && stream && !c->closing; n--) {
        grpc_send(stream, out.data, out.len);
        r->pushes++;
    }
    if (ok)
        grpc_flush(c);
    buf_free(&out);
    return ok;
}

/** The same; takes the reference. */
static void push_value(struct session *s, struct grpc_call *stream, const char *type, json_t *body)
{
    struct buf json;
    buf_init(&json, ENVELOPE_MAX);
    append_value(&json, body);
    send_push(s, stream, type, &json);
    buf_free(&json);
}

/* ---- pushes that are acknowledged ---- */

static void stop_waiting(struct notice *n)
{
    if (n->id)
        HASH_DEL(n->session->rpc->notices, n);
    n->id = 0;
}

void notice_clear(struct notice *n)
{
    stop_waiting(n);
    timer_clear(&n->session->rpc->service->timers, &n->again);
    n->tries = 0;
}

static void on_again(void *arg)
{
    struct notice *n = arg;
    n->session->rpc->repeated++;
    n->tries++;
    n->repeat(n);
}

void notice_send(struct notice *n, const char *type, const struct buf *body, int64_t again_ms)
{
    struct rpc *r = n->session->rpc;
    struct buf json;
    stop_waiting(n);
    n->id = ++r->last_id;
    HASH_ADD(hh, r->notices, id, sizeof n->id, n);
    timer_set(&r->service->timers, &n->again, r->again_ms ? r->again_ms : again_ms, on_again, n);
    buf_init(&json, ENVELOPE_MAX);
    buf_printf(&json, "{\"headers\":{},\"requestId\":\"%llu\",", (unsigned long long)n->id);
    if (body->failed || !buf_append(&json, body->data + 1, body->len - 1) ||
        !send_push(n->session, n->session->stream, type, &json))
        notice_clear(n);
    buf_free(&json);
}

/** An answer to a push has come. */
static void take_ack(struct session *s, const json_t *json)
{
    struct rpc *r = s->rpc;
    const char *text = json_string_value(json_object_get(json, "requestId"));
    const json_t *code = json_object_get(json, "resultCode");
    uint64_t id = text ? strtoull(text, NULL, 10) : 0;
    struct notice *n = NULL;
    HASH_FIND(hh, r->notices, &id, sizeof id, n);
    if (!n || n->session != s || r->ignore_acks)
        return;
    if (code && json_integer_value(code) != 200) {
        timer_set(&r->service->timers, &n->again, r->again_ms ? r->again_ms : SOON, on_again, n);
        return;
    }
    r->acked++;
    notice_clear(n);
}

/* ---- sessions ---- */

static void session_end(struct session *s)
{
    s->registered = false;
    rpc_config_forget(s);
    rpc_naming_forget(s);
}

static void on_opened(void *arg, struct grpc_conn *c)
{
    struct rpc *r = arg;
    struct session *s = calloc(1, sizeof *s);
    if (!s) {
        grpc_close(c);
        return;
    }
    s->rpc = r;
    s->conn = c;
    s->active_at = now_ms();
    snprintf(s->id, sizeof s->id, "%lld_%s_%d", (long long)wall_ms(), c->ip, c->port);
    c->arg = s;
}

static void on_closed(void *arg, struct grpc_conn *c)
{
    struct session *s = c->arg;
    (void)arg;
    if (!s)
        return;
    s->stream = NULL;
    session_end(s);
    free(s);
    c->arg = NULL;
}

/** ConnectionSetupRequest, the first message of a stream. What cannot be read is ignored. */
static void set_up(struct session *s, struct grpc_call *stream, const json_t *json)
{
    const json_t *labels = json_object_get(json, "labels");
    const char *module = json_string_value(json_object_get(labels, "module")),
               *version = json_string_value(json_object_get(json, "clientVersion"));
    if (!s->registered) {
        s->registered = true;
        s->naming = module && strcmp(module, "naming") == 0;
        s->stream = stream;
        stream->arg = s;
        snprintf(s->version, sizeof s->version, "%s", version ? version : "");
    }
    if (!is_old(s->rpc) && json_object_get(json, "abilityTable"))
        push_value(s, stream, "SetupAckRequest",
                   json_pack("{s:{}, s:{s:b, s:b, s:b, s:b, s:b}, s:s}", "headers", "abilityTable",
                             "supportPersistentInstanceByGrpc", 1, "agent", 0, "fuzzyWatch", 0, "lock", 0, "mcp", 0, "module",
                             "internal"));
}

/* ---- silent ones ---- */

static void ask(struct session *s)
{
    char id[24];
    s->asked_at = now_ms();
    s->rpc->detections++;
    snprintf(id, sizeof id, "%llu", (unsigned long long)++s->rpc->last_id);
    push_value(s, s->stream, "ClientDetectionRequest",
               json_pack("{s:{}, s:s, s:s}", "headers", "requestId", id, "module", "internal"));
}

/** Throws it out: the stream ends, TCP stays, and calls are told that they are from nobody. */
static void throw_out(struct session *s)
{
    if (s->stream)
        grpc_finish(s->stream, GRPC_OK, "");
    s->stream = NULL;
    session_end(s);
    grpc_flush(s->conn);
}

static int64_t tick_ms(const struct rpc *r)
{
    int64_t ms = (r->idle_ms < r->patience_ms ? r->idle_ms : r->patience_ms) / 2 + 1;
    return ms < TICK ? ms : TICK;
}

static void on_tick(void *arg)
{
    struct rpc *r = arg;
    int64_t now = now_ms();
    for (struct grpc_conn *c = r->grpc.conns, *after; c; c = after) {
        struct session *s = c->arg;
        after = c->after;
        if (!s || !s->registered)
            continue;
        if (s->asked_at > s->active_at) {
            if (now - s->asked_at >= r->patience_ms)
                throw_out(s);
        } else if (now - s->active_at >= r->idle_ms) {
            ask(s);
        }
    }
    timer_set(&r->service->timers, &r->tick, tick_ms(r), on_tick, r);
}

/* ---- questions ---- */

const char *question_text(const struct question *q, const char *name, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(q->json, name));
    return text && *text ? text : otherwise;
}

void question_answer(struct question *q, json_t *body)
{
    buf_clear(&q->out);
    append_value(&q->out, body);
}

void question_done(struct question *q)
{
    question_answer(q, json_pack("{s:i, s:i, s:b}", "resultCode", 200, "errorCode", 0, "success", 1));
}

void question_fail(struct question *q, int result, int error, const char *why)
{
    json_t *body = json_pack("{s:i, s:i}", "resultCode", result, "errorCode", error);
    if (why)
        json_object_set_new(body, "message", json_string(why));
    if (strcmp(q->answer, "ConfigQueryResponse") == 0) {
        json_object_set_new(body, "lastModified", json_integer(0));
        json_object_set_new(body, "beta", json_false());
    }
    json_object_set_new(body, "success", json_false());
    question_answer(q, body);
}

void question_error(struct question *q, int result, int error, const char *why)
{
    q->answer = "ErrorResponse";
    question_fail(q, result, error, why);
}

static void server_check(struct question *q)
{
    json_t *body =
        json_pack("{s:i, s:i, s:s, s:b}", "resultCode", 200, "errorCode", 0, "connectionId", q->session->id, "success", 1);
    if (body && !is_old(q->session->rpc))
        json_object_set_new(body, "supportAbilityNegotiation", json_true());
    question_answer(q, body);
}

static const struct rpc_route {
    const char *type, *answer;
    void (*handle)(struct question *q);
    bool open;   /* to everybody */
    bool early;  /* before the set-up, too */
    bool stream; /* needs labels.module = naming */
} routes[] = {
    {"ServerCheckRequest", "ServerCheckResponse", server_check, true, true, false},
    {"HealthCheckRequest", "HealthCheckResponse", question_done, true, false, false},
    {"ConfigQueryRequest", "ConfigQueryResponse", rpc_config_query, false, false, false},
    {"ConfigPublishRequest", "ConfigPublishResponse", rpc_config_publish, false, false, false},
    {"ConfigRemoveRequest", "ConfigRemoveResponse", rpc_config_remove, false, false, false},
    {"ConfigBatchListenRequest", "ConfigChangeBatchListenResponse", rpc_config_listen, false, false, false},
    {"InstanceRequest", "InstanceResponse", rpc_instance, false, false, true},
    {"PersistentInstanceRequest", "InstanceResponse", rpc_persistent, false, false, false},
    {"BatchInstanceRequest", "BatchInstanceResponse", rpc_batch, false, false, true},
    {"SubscribeServiceRequest", "SubscribeServiceResponse", rpc_subscribe, false, false, true},
    {"ServiceQueryRequest", "QueryServiceResponse", rpc_service_query, false, false, false},
    {"ServiceListRequest", "ServiceListResponse", rpc_service_list, false, false, false},
};

/** A header of the envelope, NUL-terminated, or the member of the message's own `headers`. */
static const char *header_of(const struct question *q, const char *name, char *room, size_t size)
{
    for (int i = 0; i < q->envelope->header_count; i++) {
        const struct envelope_header *h = &q->envelope->headers[i];
        if (slice_is(h->name, name) && h->value.len < size) {
            memcpy(room, h->value.data, h->value.len);
            room[h->value.len] = '\0';
            return room;
        }
    }
    return json_string_value(json_object_get(json_object_get(q->json, "headers"), name));
}

/** NULL: the question may pass. */
static const char *refusal(const struct question *q)
{
    const struct access *a = &q->service->auth;
    char room[ACCESS_TOKEN_MAX + 16], name[256];
    if (!access_enabled(a))
        return NULL;
    const char *token = header_of(q, "Authorization", room, sizeof room);
    token = token && strncmp(token, "Bearer ", 7) == 0 ? token + 7 : header_of(q, "accessToken", room, sizeof room);
    if (!text_blank(token))
        return access_refusal(a, token) ? "Code: 401, Message: token invalid!." : NULL;
    const char *username = header_of(q, "username", name, sizeof name), *password = header_of(q, "password", room, sizeof room);
    if (access_password_ok(a, username, password))
        return NULL;
    return "Code: 401, Message: User not found! Please check user exist or password is right!.";
}

static void disconnected(struct question *q)
{
    char why[200];
    snprintf(why, sizeof why,
             "errCode: -401, errMsg: Client [%s] connection already disconnect, can't register ephemeral instance. ",
             q->session->id);
    question_error(q, -401, -401, why);
}

static const struct rpc_route *find_route(const char *type)
{
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        if (strcmp(routes[i].type, type) == 0)
            return &routes[i];
    return NULL;
}

/** Fills q->answer and q->out. */
static void answer(struct question *q)
{
    const struct rpc_route *route = find_route(q->type);
    const char *why;
    q->answer = route ? route->answer : "ErrorResponse";
    if (!route) {
        question_error(q, 500, 302, "RequestHandler Not Found");
    } else if (!q->json) {
        question_error(q, 500, 502, "errCode: 101, errMsg: Nacos deserialize failed.  ");
    } else if (!q->session->registered && !route->early) {
        question_error(q, 500, 301, "Connection is unregistered.");
    } else if (!route->open && (why = refusal(q))) {
        question_fail(q, 500, 403, why);
    } else if (route->stream && !q->session->naming) {
        disconnected(q);
    } else {
        route->handle(q);
    }
}

/** The answer that a fault wants instead. */
static void answer_code(struct question *q, int code)
{
    switch (code) {
    case -401:
        disconnected(q);
        break;
    case 300:
        question_error(q, 500, code, "Server is starting,please try later.");
        break;
    case 301:
        question_error(q, 500, code, "Connection is unregistered.");
        break;
    case 302:
        question_error(q, 500, code, "RequestHandler Not Found");
        break;
    case 403: { /* this one keeps the type */
        const struct rpc_route *route = find_route(q->type);
        q->answer = route ? route->answer : "ErrorResponse";
        question_fail(q, 500, code, "Code: 401, Message: token invalid!.");
        break;
    }
    default:
        question_error(q, 500, code, "as ordered");
    }
}

/** A fault that says no more may name the answer's JSON (`body`) and its type (`headers`). */
static void answer_ordered(struct question *q, const json_t *spec)
{
    const char *body = json_string_value(json_object_get(spec, "body"));
    const char *type = json_string_value(json_object_get(json_object_get(spec, "headers"), "type"));
    q->answer = type ? type : q->answer;
    if (!body)
        return;
    buf_free(&q->out);
    buf_init(&q->out, ENVELOPE_MAX);
    buf_puts(&q->out, body);
}

/* ---- answers, also late ones ---- */

/** An answer on its way. */
struct reply_out {
    struct rpc *rpc;
    struct grpc_call *call;
    struct fault *fault;
    struct timer delay;
    struct buf message;
    unsigned long logged;
};

static void reply_out_free(struct reply_out *o)
{
    timer_clear(&o->rpc->service->timers, &o->delay);
    fault_release(o->fault);
    buf_free(&o->message);
    free(o);
}

static void deliver(void *arg)
{
    static const char garbage[] = "\x12\x7f\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01 this is no envelope";
    struct reply_out *o = arg;
    struct grpc_call *call = o->call;
    const struct fault *f = o->fault;
    const char *body = f ? json_string_value(json_object_get(f->spec, "body")) : NULL;
    struct grpc_conn *c = call->conn;
    int status = 200;
    if (f && (f->kind == FAULT_HANG || f->kind == FAULT_ENDLESS)) /* until the client gives up */
        return;
    call->arg = NULL;
    switch (f ? f->kind : FAULT_DELAY) {
    case FAULT_DROP:
        call->conn->breaks_after = f->number;
        /* fallthrough */
    case FAULT_DELAY:
    case FAULT_CODE:
        grpc_send(call, o->message.data, o->message.len);
        grpc_finish(call, GRPC_OK, "");
        break;
    case FAULT_LENGTH:
        grpc_send_as(call, o->message.data, o->message.len, (size_t)f->number);
        grpc_finish(call, GRPC_OK, "");
        break;
    case FAULT_GARBAGE:
        grpc_send(call, garbage, sizeof garbage - 1);
        grpc_finish(call, GRPC_OK, "");
        break;
    case FAULT_STATUS:
        status = f->status;
        grpc_refuse(call, f->status, -1, body ? body : "");
        break;
    case FAULT_RESET:
        status = 0;
        grpc_reset(call, NGHTTP2_CANCEL);
        break;
    case FAULT_GRPC_STATUS:
        grpc_finish(call, (int)f->number, body ? body : "as ordered");
        break;
    case FAULT_ENDLESS:
    case FAULT_HANG:
        break;
    }
    if (o->logged && status)
        reqlog_status(&o->rpc->service->log, o->logged, status);
    reply_out_free(o);
    grpc_flush(c);
}

static void on_gone(void *arg, struct grpc_call *call)
{
    (void)arg;
    if (call->kind == GRPC_UNARY) {
        reply_out_free(call->arg);
        return;
    }
    struct session *s = call->arg;
    if (s->stream == call)
        s->stream = NULL; /* the connection goes on, but nothing is pushed any more: as in the real server */
}

static unsigned long write_down(struct session *s, const char *type, const struct envelope *e)
{
    if (!s->rpc->service->options->faults)
        return 0;
    struct buf headers, body;
    buf_init(&headers, 64 << 10);
    buf_init(&body, ENVELOPE_MAX);
    for (int i = 0; i < e->header_count; i++) {
        buf_append(&headers, e->headers[i].name.data, e->headers[i].name.len);
        buf_append(&headers, "", 1);
        buf_append(&headers, e->headers[i].value.data, e->headers[i].value.len);
        buf_append(&headers, "", 1);
    }
    struct logged what = {.method = "GRPC",
                          .path = type,
                          .query = "",
                          .headers = headers.data ? headers.data : "",
                          .headers_len = headers.len,
                          .body = e->json.len ? e->json.data : "",
                          .body_len = e->json.len,
                          .connection = s->conn->number};
    unsigned long handle = reqlog_add(&s->rpc->service->log, &what);
    buf_free(&headers);
    return handle;
}

/** One about a dataId is for a message that names it, alone or among others. */
static struct fault *fault_of(struct service *v, const char *type, const json_t *json)
{
    struct fault *f = faults_match(&v->faults, type, "GRPC", json_string_value(json_object_get(json, "dataId")));
    json_t *item;
    size_t i;
    json_array_foreach(json_object_get(json, "configListenContexts"), i, item)
    {
        if (!f)
            f = faults_match(&v->faults, type, "GRPC", json_string_value(json_object_get(item, "dataId")));
    }
    return f;
}

/** Real servers take any answer that they know for an acknowledgement, and no other. */
static bool is_answer(const char *type)
{
    static const char *const answers[] = {"ConfigChangeNotifyResponse", "NotifySubscriberResponse", "ClientDetectionResponse",
                                          "ConnectResetResponse", "SetupAckResponse"};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        if (strcmp(type, answers[i]) == 0)
            return true;
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        if (strcmp(type, routes[i].answer) == 0)
            return true;
    return false;
}

/** A unary message: it is answered now or, under a fault, later. */
static void take_unary(struct session *s, struct grpc_call *call, const char *type, const struct envelope *e, json_t *json)
{
    struct service *v = s->rpc->service;
    struct reply_out *o = calloc(1, sizeof *o);
    if (!o) {
        grpc_close(call->conn);
        return;
    }
    *o = (struct reply_out){.rpc = s->rpc, .call = call, .logged = write_down(s, type, e)};
    o->fault = fault_of(v, type, json);
    buf_init(&o->message, ENVELOPE_MAX + 4096);
    struct question q = {.service = v, .session = s, .type = type, .envelope = e, .json = json, .answer = "ErrorResponse"};
    buf_init(&q.out, ENVELOPE_MAX);
    enum fault_kind kind = o->fault ? o->fault->kind : FAULT_DELAY;
    if (kind == FAULT_CODE)
        answer_code(&q, (int)o->fault->number);
    else if (kind == FAULT_DELAY || kind == FAULT_DROP || kind == FAULT_LENGTH)
        answer(&q);
    if (kind == FAULT_DELAY && o->fault)
        answer_ordered(&q, o->fault->spec);
    if (q.out.failed)
        question_error(&q, 500, 500, "the answer is too large");
    wrap(&o->message, q.answer, &q.out, "");
    buf_free(&q.out);
    call->arg = o;
    if (o->fault && o->fault->delay > 0)
        timer_set(&v->timers, &o->delay, (int64_t)(o->fault->delay * 1000), deliver, o);
    else
        deliver(o);
}

static void on_message(void *arg, struct grpc_call *call, const char *data, size_t len)
{
    struct session *s = call->conn->arg;
    struct envelope e;
    (void)arg;
    if (!s)
        return;
    if (!envelope_read(data, len, &e)) {
        grpc_finish(call, GRPC_BROKEN, "Application error processing RPC");
        return;
    }
    s->active_at = now_ms();
    char type[96];
    snprintf(type, sizeof type, "%.*s", (int)(e.type.len < sizeof type ? e.type.len : sizeof type - 1),
             e.type.data ? e.type.data : "");
    json_t *json = e.json.len ? json_loadb(e.json.data, e.json.len, JSON_ALLOW_NUL, NULL) : NULL;
    if (json && !json_is_object(json)) {
        json_decref(json);
        json = NULL;
    }
    if (call->kind == GRPC_UNARY) {
        take_unary(s, call, type, &e, json);
    } else {
        write_down(s, type, &e);
        if (json && strcmp(type, "ConnectionSetupRequest") == 0)
            set_up(s, call, json);
        else if (json && is_answer(type))
            take_ack(s, json);
    }
    json_decref(json);
}

/* ---- starting and stopping ---- */

bool rpc_start(struct service *v, int fd, int port, const struct pem *pem, char *why, size_t why_size)
{
    struct rpc *r = &v->rpc;
    r->service = v;
    r->idle_ms = IDLE;
    r->patience_ms = PATIENCE;
    struct grpc *g = &r->grpc;
    g->loop = v->timers.uv.loop;
    g->numbers = &v->connections;
    g->opened = on_opened;
    g->message = on_message;
    g->gone = on_gone;
    g->closed = on_closed;
    g->arg = r;
    if (!grpc_start(g, fd, port, pem, why, why_size))
        return false;
    timer_set(&v->timers, &r->tick, tick_ms(r), on_tick, r);
    return true;
}

void rpc_stop(struct service *v)
{
    if (!v->rpc.service)
        return;
    grpc_stop(&v->rpc.grpc);
    timer_clear(&v->timers, &v->rpc.tick);
}

void rpc_free(struct service *v)
{
    grpc_free(&v->rpc.grpc);
}

void rpc_drop_all(struct rpc *r)
{
    while (r->grpc.conns)
        grpc_leave(r->grpc.conns);
}

/* ---- what tests want ---- */

/** The number of an order; JSON writers may make 200.0 of 200. */
static int64_t whole(const json_t *value)
{
    double number = json_number_value(value);
    return number > 0 && number < INT32_MAX ? (int64_t)number : 0;
}

static void reset_stream(struct grpc_conn *c, json_t *value)
{
    struct session *s = c->arg;
    (void)value;
    if (s->stream)
        grpc_reset(s->stream, NGHTTP2_CANCEL);
}

static void end_stream(struct grpc_conn *c, json_t *value)
{
    struct session *s = c->arg;
    (void)value;
    if (s->stream)
        grpc_finish(s->stream, GRPC_OK, "");
    s->stream = NULL;
}

static void goaway(struct grpc_conn *c, json_t *value)
{
    (void)value;
    grpc_goaway(c);
}

static void leave(struct grpc_conn *c, json_t *value)
{
    (void)value;
    grpc_leave(c);
}

static void freeze(struct grpc_conn *c, json_t *value)
{
    grpc_freeze(c, json_is_true(value));
}

static void drop_at(struct grpc_conn *c, json_t *value)
{
    c->breaks_after = whole(value);
}

/** A frame header that promises what does not come, and then no frames at all. */
static void garbage(struct grpc_conn *c, json_t *value)
{
    static const char bytes[] = "\x7f\xff\xff\x01\x05\x80\0\0\x01 these are not frames \xff\xff\xff\xff\xff\xff\xff\xff\xff";
    (void)value;
    for (int i = 0; i < 16; i++)
        buf_append(&c->raw, bytes, sizeof bytes - 1);
}

static void detect(struct grpc_conn *c, json_t *value)
{
    struct session *s = c->arg;
    (void)value;
    if (s->registered)
        ask(s);
}

/** ConnectReset, to here or (a text "ip:port") to another server. */
static void connect_reset(struct grpc_conn *c, json_t *value)
{
    struct session *s = c->arg;
    char id[24], ip[64];
    const char *to = json_string_value(value), *colon = to ? strrchr(to, ':') : NULL;
    snprintf(id, sizeof id, "%llu", (unsigned long long)++s->rpc->last_id);
    json_t *body = json_pack("{s:{}, s:s, s:s}", "headers", "requestId", id, "module", "internal");
    if (colon) {
        snprintf(ip, sizeof ip, "%.*s", (int)(colon - to), to);
        json_object_set_new(body, "serverIp", json_string(ip));
        json_object_set_new(body, "serverPort", json_string(colon + 1));
        json_object_set_new(body, "connectionId", json_string(s->id));
    }
    push_value(s, s->stream, "ConnectResetRequest", body);
}

/** A push that nobody has asked for, as it stands: {"type":…, "json":…}. */
static void push_text(struct grpc_conn *c, json_t *value)
{
    struct session *s = c->arg;
    const char *type = json_string_value(json_object_get(value, "type")), *text = json_string_value(json_object_get(value, "json"));
    struct envelope e = {.type = slice_of(type ? type : ""), .json = slice_of(text ? text : "{}")};
    struct buf out;
    buf_init(&out, ENVELOPE_MAX + 4096);
    envelope_write(&out, &e);
    if (s->stream && !out.failed)
        grpc_send(s->stream, out.data, out.len);
    buf_free(&out);
}

/** What can be done to connections: to all, or to the one whose number `connection` names. */
static const struct action {
    const char *name;
    void (*act)(struct grpc_conn *c, json_t *value);
} actions[] = {{"reset_stream", reset_stream},
               {"end_stream", end_stream},
               {"goaway", goaway},
               {"close", leave},
               {"freeze", freeze},
               {"drop_at", drop_at},
               {"garbage", garbage},
               {"detect", detect},
               {"connect_reset", connect_reset},
               {"push", push_text}};

static void act(struct rpc *r, const struct action *a, json_t *value, json_t *number)
{
    for (struct grpc_conn *c = r->grpc.conns, *after; c; c = after) {
        after = c->after;
        if (!c->arg || (number && whole(number) != (int64_t)c->number))
            continue;
        a->act(c, value);
        if (!c->closing)
            grpc_flush(c);
    }
}

/** One member of the order. False: it is unknown. */
static bool obey(struct rpc *r, const char *name, json_t *value, json_t *number, char *why, size_t why_size)
{
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (strcmp(name, actions[i].name) == 0) {
            act(r, &actions[i], value, number);
            return true;
        }
    if (strcmp(name, "port") == 0) { /* true: open; false: closed to new connections */
        if (!json_is_true(value)) {
            grpc_close_port(&r->grpc);
        } else if (!grpc_open_port(&r->grpc)) {
            snprintf(why, why_size, "cannot listen again");
            return false;
        }
    } else if (strcmp(name, "freeze_new") == 0) {
        r->grpc.freeze_new = json_is_true(value);
    } else if (strcmp(name, "window") == 0) { /* of new connections, bytes; 0: the usual one */
        r->grpc.window = (uint32_t)whole(value);
    } else if (strcmp(name, "most") == 0) { /* bytes that a connection may make us hold */
        r->grpc.most = (size_t)whole(value);
    } else if (strcmp(name, "again_ms") == 0) {
        r->again_ms = whole(value);
    } else if (strcmp(name, "ignore_acks") == 0) {
        r->ignore_acks = json_is_true(value);
    } else if (strcmp(name, "duplicate") == 0) {
        r->duplicate = json_is_true(value);
    } else if (strcmp(name, "idle_ms") == 0 || strcmp(name, "patience_ms") == 0) {
        int64_t ms = whole(value);
        *(name[0] == 'i' ? &r->idle_ms : &r->patience_ms) = ms > 10 ? ms : 10;
        timer_set(&r->service->timers, &r->tick, tick_ms(r), on_tick, r);
    } else if (strcmp(name, "connection") != 0) {
        snprintf(why, why_size, "unknown order \"%s\"", name);
        return false;
    }
    return true;
}

bool rpc_control(struct rpc *r, json_t *spec, char *why, size_t why_size)
{
    if (!r->service || !json_is_object(spec)) {
        snprintf(why, why_size, r->service ? "an order is an object" : "gRPC is not served");
        return false;
    }
    for (void *i = json_object_iter(spec); i; i = json_object_iter_next(spec, i))
        if (!obey(r, json_object_iter_key(i), json_object_iter_value(i), json_object_get(spec, "connection"), why, why_size))
            return false;
    return true;
}

json_t *rpc_json(const struct rpc *r)
{
    json_t *list = json_array();
    for (const struct grpc_conn *c = r->grpc.conns; c; c = c->after) {
        const struct session *s = c->arg;
        if (s)
            json_array_append_new(list, json_pack("{s:I, s:s, s:s, s:i, s:b, s:b, s:b, s:s, s:I, s:I, s:I}", "connection",
                                                  (json_int_t)c->number, "id", s->id, "ip", c->ip, "port", c->port, "registered",
                                                  s->registered, "naming", s->naming, "stream", s->stream != NULL, "version",
                                                  s->version, "listened", (json_int_t)HASH_COUNT(s->listeners), "followed",
                                                  (json_int_t)HASH_COUNT(s->followers), "published",
                                                  (json_int_t)HASH_COUNT(s->publications)));
    }
    return json_pack("{s:i, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "port", r->grpc.port, "connections", list, "pushes",
                     (json_int_t)r->pushes, "acked", (json_int_t)r->acked, "repeated", (json_int_t)r->repeated, "waiting",
                     (json_int_t)HASH_COUNT(r->notices), "detections", (json_int_t)r->detections, "listened",
                     (json_int_t)r->listened, "followed", (json_int_t)r->followed);
}
