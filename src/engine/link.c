#include "engine/link.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"

#define CONNECT_MS 1000
#define SETUP_MS 20000    /* a starting server says so for 5 to 10 s */
#define SETUP_TRY_MS 3000 /* one health check of the set-up */
#define ACK_MS 20         /* so long a SetupAck is waited for before; 2.x sends none */
#define AGAIN_MIN_MS 50   /* between health checks of the set-up */
#define AGAIN_MAX_MS 500
#define HEALTH_MS 5000
#define HEALTH_ANSWER_MS 3000
#define NOTED_MS 2000      /* after so long every part of a server has noted the connection */
#define DISOWNED_MAX 3     /* answers of one that has not */
#define TLS_FILES_MS 60000 /* they may be renewed while we live */

enum { STARTING = 300, UNKNOWN = 301, DISOWNED = -401 };

struct link_call {
    struct link *link;
    struct link_call *prev, *next;
    struct h2_call *h2; /* NULL: it waits for its turn, or has ended */
    bool waits;
    struct buf message; /* while it waits */
    struct timer timer; /* its deadline, or its end soon */
    http_done done;
    void *arg;
    struct http_response response;
};

static void check(void *arg);

static struct timers *timers_of(const struct link *l)
{
    return &l->client->engine->timers;
}

/* ---- calls --------------------------------------------------------------------------------------------------------------- */

static void start_next(struct link *l);

/** It is not at the server any more. */
static void leave(struct link_call *c)
{
    if (c->h2) {
        c->h2 = NULL;
        c->link->running--;
    }
}

static void put(struct link_calls *l, struct link_call *c)
{
    c->prev = l->last;
    c->next = NULL;
    *(l->last ? &l->last->next : &l->first) = c;
    l->last = c;
}

static void cut(struct link_calls *l, struct link_call *c)
{
    *(c->prev ? &c->prev->next : &l->first) = c->next;
    *(c->next ? &c->next->prev : &l->last) = c->prev;
}

/** It is at the server now, or about to end. */
static void wait_no_more(struct link_call *c)
{
    cut(&c->link->waiting, c);
    put(&c->link->calls, c);
    c->waits = false;
    buf_free(&c->message);
}

static void unlink_call(struct link_call *c)
{
    struct link *l = c->link;
    cut(c->waits ? &l->waiting : &l->calls, c);
    if (l->health == c)
        l->health = NULL;
    timer_clear(timers_of(l), &c->timer);
    h2_cancel(c->h2);
    leave(c);
}

static void free_call(struct link_call *c)
{
    buf_free(&c->response.body);
    buf_free(&c->message);
    free(c);
}

void link_cancel(struct link_call *c)
{
    if (!c)
        return;
    struct link *l = c->link;
    unlink_call(c);
    free_call(c);
    start_next(l);
}

static void finish(void *arg)
{
    struct link_call *c = arg;
    unlink_call(c);
    start_next(c->link);
    c->done(c->arg, &c->response);
    free_call(c);
}

static void failed(struct link_call *c, enum http_outcome outcome, const char *why)
{
    c->response.outcome = outcome;
    snprintf(c->response.why, sizeof c->response.why, "%s", why);
}

/** The end of the connection is near. */
static bool is_leaving(const struct link *l)
{
    return l->h2 && !h2_takes_calls(l->h2);
}

static void too_late(void *arg)
{
    struct link_call *c = arg;
    if (c->waits && is_leaving(c->link))
        failed(c, HTTP_NO_CONNECT, "the server is going away");
    else if (c->waits)
        failed(c, HTTP_BUSY, "too many requests were under way");
    else
        failed(c, HTTP_TIMEOUT, "no answer in time");
    finish(c);
}

/** Everything ends that is on its way: soon, not from inside this. */
static void drop_calls(struct link *l, const char *why)
{
    for (struct link_call *c = l->calls.first; c; c = c->next) {
        if (!c->h2)
            continue; /* is about to end */
        failed(c, h2_seen(c->h2) ? HTTP_BROKEN : HTTP_NO_CONNECT, why);
        leave(c); /* dies with the connection */
        timer_set(timers_of(l), &c->timer, 0, finish, c);
    }
    while (l->waiting.first) {
        struct link_call *c = l->waiting.first;
        wait_no_more(c);
        failed(c, HTTP_NO_CONNECT, why);
        timer_set(timers_of(l), &c->timer, 0, finish, c);
    }
}

static void disconnect(struct link *l, const char *why)
{
    timer_clear(timers_of(l), &l->timer);
    drop_calls(l, why); /* first, or those that wait would be started */
    link_cancel(l->health);
    h2_free(l->h2);
    l->h2 = NULL;
    l->stream = NULL;
    l->state = LINK_OFF;
}

/** The connection is over. */
static void end(struct link *l, const char *why)
{
    bool was = l->state == LINK_READY;
    char reason[260]; /* `why` may die with the connection */
    snprintf(reason, sizeof reason, "%s", why);
    disconnect(l, reason);
    dialect_link_down(&l->client->dialect, was, reason);
}

static long error_code(const struct http_response *r)
{
    json_t *j = hosts_load_json(r->body.data ? r->body.data : "", r->body.len);
    long code = (long)json_integer_value(json_object_get(j, "errorCode"));
    json_decref(j);
    return code;
}

/** Services are kept by another part of a server than the one that answers health checks, and it may be the only one that has
 * lost the connection. While that is new it may not have noted it yet. */
static bool disowned(struct link *l, const struct http_response *r)
{
    if (l->state != LINK_READY || strcmp(r->rpc_type, "ErrorResponse") != 0)
        return false;
    long code = error_code(r);
    l->disowned += code == DISOWNED && now_ms() - l->began > NOTED_MS;
    return code == UNKNOWN || l->disowned >= DISOWNED_MAX;
}

static void on_answer(void *arg, const struct h2_result *h)
{
    static const enum http_outcome outcomes[] = {
        [H2_BROKEN] = HTTP_BROKEN, [H2_TOO_LARGE] = HTTP_TOO_LARGE, [H2_UNSENT] = HTTP_NO_CONNECT};
    struct link_call *c = arg;
    struct link *l = c->link;
    struct http_response *r = &c->response;
    struct envelope e;
    leave(c);
    if (h->end == H2_STATUS) { /* an answer, but of gRPC: its type stays empty */
        failed(c, HTTP_ANSWERED, h->why);
        r->status = 500;
    } else if (h->end != H2_OK) {
        failed(c, outcomes[h->end], h->why);
    } else if (!envelope_read(h->data, h->len, &e)) {
        failed(c, HTTP_BROKEN, "the answer is no message of Nacos");
    } else {
        r->outcome = HTTP_ANSWERED;
        r->status = 200;
        snprintf(r->rpc_type, sizeof r->rpc_type, "%.*s", (int)(e.type.len < 63 ? e.type.len : 63), e.type.data ? e.type.data : "");
        buf_append(&r->body, e.json.data, e.json.len);
        h2_addresses(l->h2, r->ip, r->local_ip);
        l->answered = now_ms();
        l->alive = unix_now();
    }
    if (disowned(l, r)) {
        failed(c, HTTP_NO_CONNECT, "the server does not know the connection any more");
        timer_set(timers_of(l), &c->timer, 0, finish, c);
        end(l, "the server does not know the connection any more");
    } else {
        finish(c);
    }
}

static void start(struct link_call *c)
{
    struct link *l = c->link;
    if (l->h2)
        c->h2 = h2_unary(l->h2, "/Request/request", c->message.data, c->message.len, on_answer, c);
    wait_no_more(c);
    if (c->h2) {
        l->running++;
    } else {
        failed(c, HTTP_NO_CONNECT, "there is no connection");
        timer_set(timers_of(l), &c->timer, 0, finish, c);
    }
}

static void start_next(struct link *l)
{
    while (l->waiting.first && l->running < LINK_CALLS && !is_leaving(l))
        start(l->waiting.first);
}

static struct link_call *start_call(struct link *l, const char *type, const char *json, size_t len,
                                    const struct envelope_header *headers, int header_count, int64_t timeout_ms, bool at_once,
                                    http_done done, void *arg)
{
    struct link_call *c = calloc(1, sizeof *c);
    struct envelope e = {.type = slice_of(type), .json = {json, len}, .header_count = header_count};
    if (!c)
        return NULL;
    for (int i = 0; i < header_count; i++)
        e.headers[i] = headers[i];
    buf_init(&c->message, ENVELOPE_MAX);
    buf_init(&c->response.body, ENVELOPE_MAX);
    envelope_write(&c->message, &e);
    if (c->message.failed) {
        free_call(c);
        return NULL;
    }
    c->link = l;
    c->done = done;
    c->arg = arg;
    c->waits = true;
    put(&l->waiting, c);
    timer_set(timers_of(l), &c->timer, timeout_ms, too_late, c);
    if ((at_once || l->running < LINK_CALLS) && !is_leaving(l))
        start(c);
    return c;
}

struct link_call *link_call(struct link *l, const char *type, const char *json, size_t len, const struct envelope_header *headers,
                            int header_count, int64_t timeout_ms, http_done done, void *arg)
{
    return start_call(l, type, json, len, headers, header_count, timeout_ms, false, done, arg);
}

/* ---- health -------------------------------------------------------------------------------------------------------------- */

static void on_health(void *arg, struct http_response *r)
{
    struct link *l = arg;
    char why[260];
    l->health = NULL;
    if (r->outcome == HTTP_ANSWERED && strcmp(r->rpc_type, "HealthCheckResponse") == 0 && error_code(r) == 0) {
        timer_set(timers_of(l), &l->timer, HEALTH_MS, check, l);
        return;
    }
    snprintf(why, sizeof why, "the connection failed its health check: %s",
             r->outcome == HTTP_ANSWERED && r->rpc_type[0] ? r->rpc_type : r->why);
    end(l, why);
}

void link_check(struct link *l)
{
    if (l->state != LINK_READY || l->health)
        return;
    timer_clear(timers_of(l), &l->timer);
    l->health = start_call(l, "HealthCheckRequest", "{}", 2, NULL, 0, HEALTH_ANSWER_MS, true, on_health, l);
    if (!l->health)
        timer_set(timers_of(l), &l->timer, HEALTH_MS, check, l);
}

static void check(void *arg)
{
    struct link *l = arg;
    int64_t quiet = now_ms() - l->answered;
    if (quiet >= HEALTH_MS)
        link_check(l);
    else
        timer_set(timers_of(l), &l->timer, HEALTH_MS - quiet, check, l);
}

/* ---- set-up -------------------------------------------------------------------------------------------------------------- */

static void try_health(void *arg);

static void ready(struct link *l)
{
    if (l->state != LINK_SETTING_UP)
        return;
    l->state = LINK_READY;
    l->disowned = 0;
    l->began = l->answered = now_ms();
    l->alive = unix_now();
    timer_set(timers_of(l), &l->timer, HEALTH_MS, check, l);
    dialect_link_up(&l->client->dialect);
}

/** Until the server has noted the connection it answers 301; while it starts, 300. */
static void on_try(void *arg, struct http_response *r)
{
    struct link *l = arg;
    l->health = NULL;
    if (l->state != LINK_SETTING_UP)
        return;
    long code = r->outcome == HTTP_ANSWERED && r->rpc_type[0] ? error_code(r) : -1;
    if (code == 0 && strcmp(r->rpc_type, "HealthCheckResponse") == 0) {
        ready(l);
        return;
    }
    int64_t took = now_ms() - l->began, pause = took < AGAIN_MIN_MS ? AGAIN_MIN_MS : took < AGAIN_MAX_MS ? took : AGAIN_MAX_MS;
    const char *strange = code < 0 && r->why[0] ? r->why : "what answers is not a Nacos server";
    if ((code == STARTING || code == UNKNOWN) && took < SETUP_MS)
        timer_set(timers_of(l), &l->timer, pause, try_health, l);
    else
        end(l, code == STARTING ? "the server is starting" : code == UNKNOWN ? "the server does not take the connection" : strange);
}

static void try_health(void *arg)
{
    struct link *l = arg;
    l->health = start_call(l, "HealthCheckRequest", "{}", 2, NULL, 0, SETUP_TRY_MS, true, on_try, l);
    if (!l->health)
        timer_set(timers_of(l), &l->timer, AGAIN_MAX_MS, try_health, l);
}

/* ---- the stream ---------------------------------------------------------------------------------------------------------- */

static bool send_message(struct link *l, const char *type, json_t *j)
{
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    struct envelope e = {.type = slice_of(type), .json = slice_of(text)};
    struct buf b;
    json_decref(j);
    buf_init(&b, ENVELOPE_MAX);
    envelope_write(&b, &e);
    bool ok = text && !b.failed && h2_send(l->stream, b.data, b.len);
    buf_free(&b);
    free(text);
    return ok;
}

static void count_push(struct link *l, bool taken)
{
    pthread_mutex_lock(&l->client->engine->lock);
    if (taken)
        l->client->status.pushes++;
    else
        l->client->status.pushes_dropped++;
    pthread_mutex_unlock(&l->client->engine->lock);
}

static void push_config(struct link *l, const json_t *j)
{
    const char *id = json_string_value(json_object_get(j, "dataId")), *group = json_string_value(json_object_get(j, "group"));
    const char *ns = json_string_value(json_object_get(j, "tenant"));
    if (!ns || strcmp(ns, "public") == 0)
        ns = "";
    bool ours = id && group && strcmp(ns, l->client->ns) == 0;
    count_push(l, ours && stream_pushed(l->client, &(struct key){id, group, ns}));
}

static void push_service(struct link *l, const json_t *j)
{
    json_t *info = json_object_get(j, "serviceInfo");
    struct hosts *h = info ? hosts_of_json(info) : NULL;
    const char *why = "it is no list of instances";
    bool taken = h && subscribe_pushed(l->client, h, true, NACOS_VIA_PUSH, &why);
    if (!taken)
        log_write(l->client->log, LOG_DEBUG, "push of %s dropped: %s", l->origin, why);
    count_push(l, taken);
    hosts_unref(h);
}

/** The server wants us elsewhere. */
static void reset(struct link *l, const json_t *j)
{
    const char *ip = json_string_value(json_object_get(j, "serverIp"));
    json_t *p = json_object_get(j, "serverPort");
    long port = json_is_integer(p) ? (long)json_integer_value(p) : strtol(json_is_string(p) ? json_string_value(p) : "", NULL, 10);
    char text[80], to[128] = "";
    nacos_error ignored;
    if (ip && port > 0 && port < 65536 && strlen(ip) < 46) {
        bool https = strncmp(l->origin, "https:", 6) == 0;
        snprintf(text, sizeof text, "%s%s%s%s:%ld", https ? "https://" : "", strchr(ip, ':') ? "[" : "", ip,
                 strchr(ip, ':') ? "]" : "", port);
        if (!server_parse(text, strlen(text), (int)port, to, &ignored))
            to[0] = 0;
    }
    disconnect(l, "the server asked for another connection");
    dialect_link_reset(&l->client->dialect, to);
}

static void on_message(void *arg, const char *data, size_t len)
{
    struct link *l = arg;
    struct envelope e;
    char type[80];
    bool whole = envelope_read(data, len, &e) && e.type.len < 64;
    json_t *j = whole ? hosts_load_json(e.json.data ? e.json.data : "", e.json.len) : NULL;
    size_t n = whole ? e.type.len : 0;
    if (!json_is_object(j) || n < 7 || memcmp(e.type.data + n - 7, "Request", 7) != 0) {
        count_push(l, false);
        json_decref(j);
        return;
    }
    if (slice_is(e.type, "SetupAckRequest")) {
        json_decref(j);
        if (l->state == LINK_SETTING_UP && !l->health) {
            timer_clear(timers_of(l), &l->timer);
            try_health(l);
        }
        return;
    }
    snprintf(type, sizeof type, "%.*sResponse", (int)(n - 7), e.type.data);
    json_t *id = json_object_get(j, "requestId"), *ack = json_pack("{s:i}", "resultCode", 200);
    if (ack && id)
        json_object_set(ack, "requestId", id);
    bool sent = send_message(l, type, ack);
    if (slice_is(e.type, "ConfigChangeNotifyRequest"))
        push_config(l, j);
    else if (slice_is(e.type, "NotifySubscriberRequest"))
        push_service(l, j);
    if (!sent)
        end(l, "the server does not read what is sent to it");
    else if (slice_is(e.type, "ConnectResetRequest"))
        reset(l, j);
    json_decref(j);
}

static void on_stream_end(void *arg, const struct h2_result *r)
{
    struct link *l = arg;
    char why[260];
    l->stream = NULL;
    snprintf(why, sizeof why, "the stream ended%s%s", r->why[0] ? ": " : "", r->why);
    end(l, why);
}

static void on_up(void *arg)
{
    struct link *l = arg;
    l->state = LINK_SETTING_UP;
    l->began = now_ms();
    l->stream = h2_stream(l->h2, "/BiRequestStream/requestBiStream", on_message, on_stream_end, l);
    /* module "naming" gets pushes of both kinds; any other gets none of services */
    bool ok =
        l->stream && send_message(l, "ConnectionSetupRequest",
                                  json_pack("{s:s, s:s, s:{s:s, s:s, s:s}, s:{s:b}}", "clientVersion", "Nacos-C-Client:v1.1.0",
                                            "tenant", l->client->ns, "labels", "source", "sdk", "module", "naming", "AppName",
                                            "lunacos", "abilityTable", "supportPersistentInstanceByGrpc", 1));
    if (ok)
        timer_set(timers_of(l), &l->timer, ACK_MS, try_health, l);
    else
        end(l, "out of memory");
}

static void on_closed(void *arg, const char *why)
{
    struct link *l = arg;
    l->refused = h2_refused(l->h2);
    end(l, why);
}

bool link_answered(const struct link *l)
{
    return l->answered >= l->began;
}

/* ---- for dialect --------------------------------------------------------------------------------------------------------- */

static void no_memory_end(void *arg)
{
    end(arg, "out of memory");
}

static void bad_port(void *arg)
{
    end(arg, "there is no port so high");
}

/** The certificates; reading them takes longer than all the rest. NULL: out of memory. */
static struct h2_tls *tls_of(struct link *l)
{
    if (l->tls && (h2_tls_wrong(l->tls) || now_ms() - l->tls_read_at > TLS_FILES_MS)) {
        h2_tls_free(l->tls);
        l->tls = NULL;
    }
    if (!l->tls) {
        l->tls = h2_tls_new(&l->client->tls);
        l->tls_read_at = now_ms();
    }
    return l->tls;
}

static void open_now(void *arg)
{
    struct link *l = arg;
    struct nacos_client *c = l->client;
    const char *origin = l->redirect[0] ? l->redirect : l->origin;
    const char *host = strstr(origin, "://") + 3, *colon = strrchr(host, ':');
    int port = atoi(colon + 1) + c->dialect.port_offset;
    bool bracket = *host == '[', https = strncmp(origin, "https:", 6) == 0;
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)(colon - host) - 2 * bracket, host + bracket);
    struct h2_spec spec = {.host = name,
                           .port = port,
                           .tls = https ? tls_of(l) : NULL,
                           .connect_ms = CONNECT_MS,
                           .max_message = ENVELOPE_MAX,
                           .up = on_up,
                           .closed = on_closed,
                           .arg = l};
    l->redirect[0] = 0;
    if (port > 0 && port < 65536 && (!https || spec.tls))
        l->h2 = h2_new(&c->engine->loop, timers_of(l), &spec);
    if (!l->h2)
        timer_set(timers_of(l), &l->timer, 0, port > 0 && port < 65536 ? no_memory_end : bad_port, l);
}

void link_init(struct link *l, struct nacos_client *c)
{
    l->client = c;
}

void link_open(struct link *l, const char *origin)
{
    disconnect(l, "the connection was closed");
    if (origin != l->origin)
        snprintf(l->origin, sizeof l->origin, "%s", origin);
    l->state = LINK_CONNECTING;
    l->refused = false;
    l->answered = 0;
    l->began = now_ms();
    timer_set(timers_of(l), &l->timer, 0, open_now, l);
}

void link_close(struct link *l)
{
    disconnect(l, "the connection was closed");
    if (l->client->closing) { /* for good */
        h2_tls_free(l->tls);
        l->tls = NULL;
    }
}
