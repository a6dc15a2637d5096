/** control: what tests ask of the server under /__lunacos/: faults, the requests seen, numbers. */
#include <string.h>

#include "embedded/request.h"

static void refuse(struct request *r, int status, const char *why)
{
    reply_json(&r->reply, status, TYPE_JSON, json_pack("{s:s}", "error", why));
}

static void add_faults(struct request *r)
{
    struct faults *faults = &r->service->faults;
    json_error_t error;
    char why[160] = "the body must be JSON";
    json_t *spec = r->body.data ? json_loadb(r->body.data, r->body.len, 0, &error) : NULL;
    if (spec && faults_add(faults, spec, why, sizeof why))
        reply_json(&r->reply, 200, TYPE_JSON, json_pack("{s:I}", "faults", (json_int_t)faults->count));
    else
        refuse(r, 400, why);
    json_decref(spec);
}

static void clear_faults(struct request *r)
{
    faults_clear(&r->service->faults);
    reply_json(&r->reply, 200, TYPE_JSON, json_pack("{s:i}", "faults", 0));
}

static void show_requests(struct request *r)
{
    reply_json(&r->reply, 200, TYPE_JSON, reqlog_json(&r->service->log));
}

static void clear_requests(struct request *r)
{
    reqlog_clear(&r->service->log);
    reply_json(&r->reply, 200, TYPE_JSON, json_pack("{s:i}", "total", 0));
}

static void show_stats(struct request *r)
{
    const struct service *s = r->service;
    reply_json(&r->reply, 200, TYPE_JSON,
               json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "services",
                         (json_int_t)HASH_COUNT(s->registry.rosters), "instances", (json_int_t)s->registry.registered,
                         "subscribers", (json_int_t)registry_subscribers(&s->registry), "beats", (json_int_t)s->registry.beats,
                         "pushes_sent", (json_int_t)s->pusher.sent, "pushes_acked", (json_int_t)s->pusher.acked, "pushes_retried",
                         (json_int_t)s->pusher.retried, "polls_held", (json_int_t)s->polls.parked, "connections",
                         (json_int_t)request_connections(r), "configs", (json_int_t)s->store.record_count, "bytes_in",
                         (json_int_t)s->bytes_in, "grpc_connections", (json_int_t)s->rpc.grpc.count, "keys_listened",
                         (json_int_t)s->rpc.listened, "services_followed", (json_int_t)s->rpc.followed, "stream_pushes",
                         (json_int_t)s->rpc.pushes, "stream_acks", (json_int_t)s->rpc.acked));
}

static void expire(struct request *r)
{
    access_expire(&r->service->auth);
    reply_json(&r->reply, 200, TYPE_JSON, json_pack("{s:I}", "expired", (json_int_t)r->service->auth.expired));
}

static void forget_instances(struct request *r)
{
    rpc_drop_all(&r->service->rpc);
    registry_forget(&r->service->registry);
    reply_json(&r->reply, 200, TYPE_JSON, json_pack("{s:I}", "instances", (json_int_t)r->service->registry.registered));
}

static void order_grpc(struct request *r)
{
    char why[160] = "the body must be JSON";
    json_t *spec = r->body.data ? json_loadb(r->body.data, r->body.len, 0, NULL) : NULL;
    if (spec && rpc_control(&r->service->rpc, spec, why, sizeof why))
        reply_json(&r->reply, 200, TYPE_JSON, rpc_json(&r->service->rpc));
    else
        refuse(r, 400, why);
    json_decref(spec);
}

static void show_grpc(struct request *r)
{
    reply_json(&r->reply, 200, TYPE_JSON, rpc_json(&r->service->rpc));
}

void control_handle(struct request *r)
{
    static const struct {
        const char *path, *method;
        void (*handle)(struct request *r);
    } routes[] = {{"/__lunacos/faults", "POST", add_faults},
                  {"/__lunacos/faults", "DELETE", clear_faults},
                  {"/__lunacos/requests", "GET", show_requests},
                  {"/__lunacos/requests", "DELETE", clear_requests},
                  {"/__lunacos/stats", "GET", show_stats},
                  {"/__lunacos/expire", "POST", expire},
                  {"/__lunacos/grpc", "POST", order_grpc},
                  {"/__lunacos/grpc", "GET", show_grpc},
                  {"/__lunacos/naming/forget", "POST", forget_instances}};
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        if (strcmp(r->path, routes[i].path) == 0 && strcmp(r->method, routes[i].method) == 0) {
            routes[i].handle(r);
            request_answer(r);
            return;
        }
    refuse(r, 404, "no such path or method under /__lunacos/");
    request_answer(r);
}
