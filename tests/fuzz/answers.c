/** Any bytes as the body of an answer to any question of any dialect: judged, and what is in it taken out. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/hosts.h"
#include "engine/protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct key KEY = {"name", "DEFAULT_GROUP", "ns"};
static const nacos_instance INSTANCE = {.ip = "10.0.0.1", .port = 80};

/** False: the dialect has no words for it. */
static bool word(struct question *q, const struct protocol *p, int what)
{
    switch (what) {
#define ASK(n, member, ...)                                                                                                        \
    case n:                                                                                                                        \
        if (!p->member)                                                                                                            \
            return false;                                                                                                          \
        p->member(q, __VA_ARGS__);                                                                                                 \
        return true;
        ASK(0, read, &KEY)
        ASK(1, remove, &KEY)
        ASK(2, list, &KEY, 1, 10)
        ASK(3, register_instance, &KEY, &INSTANCE, NULL, 0)
        ASK(4, deregister_instance, &KEY, &INSTANCE, NULL, 0)
        ASK(5, modify_instance, &KEY, &INSTANCE)
        ASK(6, get_instance, &KEY, &INSTANCE)
        ASK(7, beat, &KEY, &INSTANCE, 5000, false)
        ASK(8, list_instances, &KEY, "", false)
        ASK(9, follow, &KEY, "", &(struct push_address){0})
        ASK(10, unfollow, &KEY, "")
        ASK(11, get_service, &KEY)
        ASK(12, remove_service, &KEY)
        ASK(13, list_services, &KEY, 1, 10)
    case 14:
        if (!p->version)
            return false;
        p->version(q);
        return true;
    default:
        return p->publish && p->publish(q, &KEY, &(nacos_publish){.content = "x", .len = 1}, &(nacos_error){0});
    }
}

static void changed(void *arg, const struct key *k)
{
    *(size_t *)arg += strlen(k->data_id) + strlen(k->group) + strlen(k->ns);
}

static void name_type(const char *rpc, bool error, char out[64])
{
    size_t len = strlen(rpc) - strlen("Request");
    if (error)
        strcpy(out, "ErrorResponse");
    else if (strcmp(rpc, "ServiceQueryRequest") == 0)
        strcpy(out, "QueryServiceResponse");
    else
        snprintf(out, 64, "%.*sResponse", (int)len, rpc);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct protocol *const dialects[] = {&protocol_v1, &protocol_v3, &protocol_grpc};
    static const int statuses[] = {200, 200, 200, 200, 400, 403, 404, 500};
    if (size < 2)
        return 0;
    const struct protocol *p = dialects[data[0] / 16 % 3];
    struct http_response r = {.outcome = HTTP_ANSWERED, .status = statuses[data[1] % 8]};
    struct question q = {0};
    nacos_error err = {.server = "http://10.0.0.1:8848"};
    buf_init(&r.body, 1 << 20);
    buf_append(&r.body, data + 2, size - 2);
    if (word(&q, p, data[0] % 16)) {
        q.protocol = p;
        q.key = KEY;
        if (q.rpc) {
            r.status = 200;
            name_type(q.rpc, data[1] & 8, r.rpc_type);
        }
        if (q.judge(&q, &r, &err) == VERDICT_ANSWER && err.code == NACOS_OK) {
            struct beat_answer beat = {0};
            if (q.hosts)
                hosts_unref(question_hosts(&q, &r));
            if (q.beat)
                q.beat(&r, &beat);
            if (!q.hosts && !q.beat)
                value_unref(question_value(&q, &r));
        }
    }
    size_t sum = 0;
    char version[32];
    if (p->listen_changed)
        p->listen_changed(&r, changed, &sum);
    parse_version(&r, version, sizeof version);
    question_free(&q);
    buf_free(&r.body);
    return 0;
}
