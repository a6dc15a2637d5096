/** The judges of the v1 dialect against literal answers of real servers, its request bodies byte for byte, and the parsing of
 * addresses. */
#include <stdlib.h>
#include <string.h>

#include "engine/hosts.h"
#include "engine/protocol.h"
#include "engine/server.h"
#include "engine/timer.h"
#include "leaf.h"

static const struct key KEY = {"app.yaml", "DEFAULT_GROUP", ""};
static const struct key TENANT_KEY = {"app.yaml", "G", "ns9"};

#define HELLO_MD5 "5d41402abc4b2a76b9719d911017c592"

static struct http_response answer(int status, const char *body, const char *md5)
{
    struct http_response r = {.outcome = HTTP_ANSWERED, .status = status};
    buf_init(&r.body, 1 << 20);
    buf_puts(&r.body, body);
    snprintf(r.content_md5, sizeof r.content_md5, "%s", md5 ? md5 : "");
    return r;
}

static void expect(struct question *q, int status, const char *body, const char *md5, enum verdict verdict, nacos_code code)
{
    struct http_response r = answer(status, body, md5);
    nacos_error err = {.server = "http://10.0.0.1:8848"};
    enum verdict v = q->judge(q, &r, &err);
    if (v != verdict || err.code != code) {
        printf("# HTTP %d %.60s: verdict %d code %s, expected %d %s\n", status, body, v, nacos_code_name(err.code), verdict,
               nacos_code_name(code));
        test_failed = true;
    }
    if (code != NACOS_OK)
        CHECK(strstr(err.message, "http://10.0.0.1:8848") && (!q->key.data_id || strstr(err.message, q->key.data_id)));
    buf_free(&r.body);
}

static bool is(const struct buf *b, const char *text)
{
    return b->len == strlen(text) && memcmp(b->data, text, b->len) == 0;
}

static void read_is_judged(void)
{
    struct question q;
    protocol_v1.read(&q, &KEY);
    CHECK(is(&q.target, "/v1/cs/configs?dataId=app.yaml&group=DEFAULT_GROUP"));
    expect(&q, 200, "hello", HELLO_MD5, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 200, "hell", HELLO_MD5, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 200, "<html>portal</html>", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 200, "", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 404, "config data not exist\n", NULL, VERDICT_ANSWER, NACOS_NOT_FOUND);
    expect(&q, 404, "config data not exist", NULL, VERDICT_ANSWER, NACOS_NOT_FOUND);
    expect(&q, 404, "{\"status\":404,\"error\":\"Not Found\",\"message\":\"No endpoint GET /nacos/v1/cs/configs.\"}", NULL,
           VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 404, "<html>config data not exist</html>", NULL, VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 404, "", NULL, VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 410, "{\"status\":410}", NULL, VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 501, "no such api", NULL, VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 403, "{\"message\":\"token expired!\"}", NULL, VERDICT_NO_RIGHT, NACOS_FORBIDDEN);
    expect(&q, 409, "requested file is being modified, please try later.", NULL, VERDICT_AGAIN, NACOS_UNAVAILABLE);
    expect(&q, 400, "Param 'dataId' is illegal\r\n", NULL, VERDICT_ANSWER, NACOS_REFUSED);
    expect(&q, 500, "caused: x;", NULL, VERDICT_NEXT, NACOS_UNAVAILABLE);
    expect(&q, 503, "", NULL, VERDICT_NEXT, NACOS_UNAVAILABLE);
    expect(&q, 302, "", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 204, "", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    question_free(&q);
}

static void server_words_reach_the_user(void)
{
    struct question q;
    protocol_v1.read(&q, &KEY);
    struct http_response r = answer(403, "{\"status\":403,\"message\":\"authorization failed!\"}", NULL);
    nacos_error err = {.server = "http://h:1"};
    q.judge(&q, &r, &err);
    CHECK(strcmp(err.message, "cannot read app.yaml (group DEFAULT_GROUP) at http://h:1: HTTP 403: authorization failed!") == 0);
    buf_free(&r.body);
    question_free(&q);
}

static void publish_is_a_form(void)
{
    struct question q;
    nacos_error err;
    nacos_publish p = {.content = "a=1&b=ü %", .len = strlen("a=1&b=ü %"), .type = "properties", .desc = "x y"};
    CHECK(protocol_v1.publish(&q, &TENANT_KEY, &p, &err));
    CHECK(is(&q.body, "dataId=app.yaml&group=G&tenant=ns9&type=properties&desc=x%20y&content=a%3D1%26b%3D%C3%BC%20%25"));
    CHECK(q.retry == RETRY_SERVERS && q.header_count == 0);
    expect(&q, 200, "true", NULL, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 200, "false", NULL, VERDICT_ANSWER, NACOS_REFUSED);
    expect(&q, 200, "<html>", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 500, "false", NULL, VERDICT_NEXT, NACOS_UNAVAILABLE);
    question_free(&q);
}

static void cas_conflict_is_final(void)
{
    struct question q;
    nacos_error err;
    nacos_publish p = {.content = "x", .len = 1, .cas_md5 = HELLO_MD5};
    CHECK(protocol_v1.publish(&q, &KEY, &p, &err));
    CHECK(q.retry == RETRY_UNSENT && q.header_count == 1 && strcmp(q.headers[0], "casMd5: " HELLO_MD5) == 0);
    expect(&q, 500, "caused: Cas publish fail, server md5 may have changed.;", NULL, VERDICT_ANSWER, NACOS_CONFLICT);
    expect(&q, 500, "false", NULL, VERDICT_ANSWER, NACOS_CONFLICT);
    /* it may have been written: asking another server could only answer "conflict" */
    expect(&q, 500, "caused: disk full;", NULL, VERDICT_ANSWER, NACOS_UNAVAILABLE);
    struct http_response r = {.outcome = HTTP_NO_CONNECT};
    CHECK(q.judge(&q, &r, &err) == VERDICT_NEXT);
    r.outcome = HTTP_TIMEOUT;
    CHECK(q.judge(&q, &r, &err) == VERDICT_ANSWER);
    question_free(&q);
}

static void publish_is_bounded_by_the_encoded_size(void)
{
    enum { FIXED = sizeof "dataId=app.yaml&group=DEFAULT_GROUP&content=" - 1, MOST = PUBLISH_MAX - FIXED };
    char *text = malloc(MOST + 1);
    memset(text, 'a', MOST + 1);
    nacos_publish p = {.content = text, .len = MOST};
    struct question q;
    nacos_error err;
    CHECK(protocol_v1.publish(&q, &KEY, &p, &err) && q.body.len == PUBLISH_MAX);
    question_free(&q);
    p.len = MOST + 1;
    CHECK(!protocol_v1.publish(&q, &KEY, &p, &err) && err.code == NACOS_INVALID);
    CHECK(strstr(err.message, "2097153") && strstr(err.message, "2097152"));
    question_free(&q);
    memset(text, '\n', MOST); /* three bytes each */
    p.len = MOST / 2;
    CHECK(!protocol_v1.publish(&q, &KEY, &p, &err) && strstr(err.message, "2097152"));
    question_free(&q);
    free(text);
}

static void listen_lines(void)
{
    struct question q;
    protocol_v1.listen(&q, "", 30000, false);
    protocol_v1.listen_add(&q, &KEY, HELLO_MD5);
    protocol_v1.listen_add(&q, &(struct key){"b", "G", ""}, "");
    CHECK(is(&q.body, "Listening-Configs=app.yaml%02DEFAULT_GROUP%02" HELLO_MD5 "%01b%02G%02%01"));
    CHECK(q.header_count == 1 && strcmp(q.headers[0], "Long-Pulling-Timeout: 30000") == 0);
    CHECK(q.hold_ms == 30000 && q.retry == RETRY_NEVER);
    expect(&q, 200, "", NULL, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 204, "", NULL, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 200, "app.yaml%02DEFAULT_GROUP%01\n", NULL, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 200, "<html></html>", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 200, "OK", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 400, "caused: invalid probeModify;", NULL, VERDICT_ANSWER, NACOS_REFUSED);
    question_free(&q);

    protocol_v1.listen(&q, "ns9", 10000, true);
    protocol_v1.listen_add(&q, &TENANT_KEY, "");
    CHECK(is(&q.body, "tenant=ns9&Listening-Configs=app.yaml%02G%02%02ns9%01"));
    CHECK(q.hold_ms == 0 && q.header_count == 2 && strcmp(q.headers[1], "Long-Pulling-Timeout-No-Hangup: true") == 0);
    question_free(&q);
}

static void note_key(void *arg, const struct key *k)
{
    char *out = arg;
    snprintf(out + strlen(out), 400 - strlen(out), "[%.60s|%.60s|%.60s]", k->data_id, k->group, k->ns);
}

static void changed(const char *body, bool ok, const char *keys)
{
    char got[400] = "";
    struct http_response r = answer(200, body, NULL);
    CHECK(protocol_v1.listen_changed(&r, note_key, got) == ok);
    if (ok && strcmp(got, keys) != 0) {
        printf("# %s gave %s\n", body, got);
        test_failed = true;
    }
    buf_free(&r.body);
}

static void changed_keys(void)
{
    changed("", true, "");
    changed("a%02G%01\n", true, "[a|G|]");
    changed("a%02G%01b%02G%02ns%01\n", true, "[a|G|][b|G|ns]");
    changed("a%02G%02%01", true, "[a|G|]");
    changed("a\x02G\x01", true, "[a|G|]"); /* not encoded */
    changed("a%01", false, "");
    changed("garbage", false, "");
    changed("a%02G%0", true, "[a|G%0|]");
    changed("%", false, "");
    changed("\n\n", true, "");
}

static void login_shapes(void)
{
    char *token = NULL;
    int64_t ttl = 0;
    bool none = false;
    struct http_response r = answer(200, "{\"accessToken\":\"eyJ\",\"tokenTtl\":18000,\"globalAdmin\":true}", NULL);
    CHECK(login_parse(&r, &token, &ttl, &none) && strcmp(token, "eyJ") == 0 && ttl == 18000 && !none);
    free(token);
    buf_free(&r.body);
    r = answer(200, "{\"code\":200,\"data\":\"Bearer x\",\"message\":null}", NULL);
    token = NULL;
    CHECK(login_parse(&r, &token, &ttl, &none) && none && !token);
    buf_free(&r.body);
    r = answer(200, "{\"code\":401,\"data\":null}", NULL);
    CHECK(!login_parse(&r, &token, &ttl, &none));
    buf_free(&r.body);
    r = answer(200, "{\"accessToken\":\"a\\r\\nX: y\"}", NULL); /* would be a header of its own */
    CHECK(!login_parse(&r, &token, &ttl, &none));
    buf_free(&r.body);
    r = answer(200, "<html>", NULL);
    CHECK(!login_parse(&r, &token, &ttl, &none));
    buf_free(&r.body);
}

static void version_shapes(void)
{
    char v[32];
    struct http_response r = answer(200, "{\"version\":\"2.3.2\",\"standalone_mode\":\"standalone\"}", NULL);
    CHECK(parse_version(&r, v, sizeof v) && strcmp(v, "2.3.2") == 0);
    buf_free(&r.body);
    r = answer(200, "{\"code\":0,\"data\":{\"version\":\"3.1.0-bugfix\"}}", NULL);
    CHECK(parse_version(&r, v, sizeof v) && strcmp(v, "3.1.0-bugfix") == 0);
    buf_free(&r.body);
    r = answer(200, "{\"code\":0,\"data\":null}", NULL);
    CHECK(!parse_version(&r, v, sizeof v));
    buf_free(&r.body);
}

static void address(const char *text, const char *origin)
{
    struct servers s = {0};
    nacos_error err = {0};
    bool ok = servers_parse(&s, text, &err);
    if (ok != (origin != NULL) || (ok && (s.count != 1 || strcmp(s.list[0].origin, origin ? origin : "") != 0))) {
        printf("# %s: %s\n", text, ok ? s.list[0].origin : err.message);
        test_failed = true;
    }
}

static void addresses(void)
{
    address("10.0.0.1", "http://10.0.0.1:8848");
    address(" 10.0.0.1:80 ", "http://10.0.0.1:80");
    address("https://nacos.example", "https://nacos.example:8848");
    address("HTTPS://nacos.example:443/", "https://nacos.example:443");
    address("[::1]", "http://[::1]:8848");
    address("http://[fe80::1]:9", "http://[fe80::1]:9");
    address("a:1, a:1 ,", "http://a:1");
    address("", NULL);
    address(" , ", NULL);
    address("::1", NULL);
    address("a:0", NULL);
    address("a:65536", NULL);
    address("a:", NULL);
    address("a:1x", NULL);
    address("ftp://a", NULL);
    address("http://", NULL);
    address("http://u:p@host", NULL);
    address("a/nacos", NULL);
    address("[::1", NULL);
    address("a b", NULL);
}

static void servers_are_sticky_and_failed_ones_come_last(void)
{
    struct servers s = {0};
    nacos_error err;
    CHECK(servers_parse(&s, "a:1,b:2,c:3", &err) && s.count == 3);
    servers_worked(&s, "http://b:2");
    CHECK(servers_pick(&s, 0, 1000) == 1);
    servers_failed(&s, "http://b:2", 1000);
    CHECK(servers_pick(&s, 0, 1000) == 2);
    servers_failed(&s, "http://c:3", 1001);
    servers_failed(&s, "http://a:1", 1002);
    CHECK(servers_pick(&s, 0, 1003) == 1); /* all rest: the one that rests the shortest */
    CHECK(servers_pick(&s, 1u << 1, 1003) == 2);
    CHECK(servers_pick(&s, 7, 1003) == -1);
    CHECK(servers_pick(&s, 0, 1000000) == 1); /* rested: the current one again */
    servers_worked(&s, "http://c:3");
    CHECK(servers_parse(&s, "c:3,d:4", &err) && strcmp(s.list[servers_pick(&s, 0, 1003)].origin, "http://c:3") == 0);
}

static int fired[8], fired_count;

static void fire(void *arg)
{
    fired[fired_count++] = (int)(intptr_t)arg;
}

static void timers_fire_in_order(void)
{
    uv_loop_t loop;
    struct timers t;
    struct timer a = {0}, b = {0}, c = {0}, d = {0};
    fired_count = 0;
    uv_loop_init(&loop);
    timers_init(&t, &loop);
    timer_set(&t, &a, 20, fire, (void *)1);
    timer_set(&t, &b, 5, fire, (void *)2);
    timer_set(&t, &c, 10, fire, (void *)3);
    timer_set(&t, &d, 1, fire, (void *)4);
    timer_set(&t, &b, 30, fire, (void *)5); /* moved */
    timer_clear(&t, &c);
    timer_clear(&t, &c); /* twice is fine */
    uv_run(&loop, UV_RUN_DEFAULT);
    CHECK(fired_count == 3 && fired[0] == 4 && fired[1] == 1 && fired[2] == 5);
    uv_close((uv_handle_t *)&t.uv, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    timers_free(&t);
    CHECK(uv_loop_close(&loop) == 0);
}

/* ---- services ------------------------------------------------------------------------------------------------------------ */

static const struct key SHOP = {"shop", "G", "ns9"};
static const nacos_pair PAIRS[] = {{"a", "b"}, {"z one", "ü"}};
static const nacos_instance INSTANCE = {.ip = "10.0.0.1",
                                        .port = 80,
                                        .cluster = "c1",
                                        .weight = 2.5,
                                        .healthy = true,
                                        .enabled = true,
                                        .ephemeral = true,
                                        .metadata = PAIRS,
                                        .metadata_count = 2};
#define SHOP_QUERY "serviceName=shop&groupName=G&namespaceId=ns9"
#define PLACE_QUERY "&ip=10.0.0.1&port=80&clusterName=c1&ephemeral=true"

static void registration_is_a_query(void)
{
    struct question q;
    protocol_v1.register_instance(&q, &SHOP, &INSTANCE, NULL, 0);
    CHECK(strcmp(q.method, "POST") == 0 && q.body.len == 0 && q.naming);
    CHECK(is(&q.target, "/v1/ns/instance?" SHOP_QUERY PLACE_QUERY "&weight=2.5&enabled=true&healthy=true&metadata="
                        "%7B%22a%22%3A%22b%22%2C%22z%20one%22%3A%22%C3%BC%22%7D"));
    expect(&q, 200, "ok", NULL, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 200, "<html>", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    /* the same refusal by 2.3 and older, by 2.5, and by 3.1 */
    expect(&q, 500,
           "caused: errCode: 400, errMsg: Current service G@@shop is persistent service, can't register ephemeral instance. ;",
           NULL, VERDICT_ANSWER, NACOS_REFUSED);
    expect(&q, 400, "errCode: 400, errMsg: Current service G@@shop is ephemeral service, can't register persistent instance. ",
           NULL, VERDICT_ANSWER, NACOS_REFUSED);
    expect(&q, 400, "caused: Param 'serviceName' is required.;", NULL, VERDICT_ANSWER, NACOS_REFUSED);
    expect(&q, 403, "{\"status\":403,\"message\":\"token invalid!\"}", NULL, VERDICT_NO_RIGHT, NACOS_FORBIDDEN);
    expect(&q, 501, "no such api:POST:/nacos/v1/ns/instance", NULL, VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 503, "server is STARTING now, please try again later!", NULL, VERDICT_NEXT, NACOS_UNAVAILABLE);
    expect(&q, 500, "caused: java.lang.NullPointerException;", NULL, VERDICT_NEXT, NACOS_UNAVAILABLE);
    question_free(&q);
    protocol_v1.deregister_instance(&q, &(struct key){"shop", "G", ""}, &INSTANCE, NULL, 0);
    CHECK(is(&q.target, "/v1/ns/instance?serviceName=shop&groupName=G" PLACE_QUERY));
    question_free(&q);
}

static void absent_instances_are_not_found(void)
{
    struct question q;
    protocol_v1.get_instance(&q, &SHOP, &INSTANCE);
    expect(&q, 404, "no matched ip found!", NULL, VERDICT_ANSWER, NACOS_NOT_FOUND);
    expect(&q, 500, "caused: no matched ip found!;", NULL, VERDICT_ANSWER, NACOS_NOT_FOUND);
    expect(&q, 404, "no ips found for cluster c1 in service G@@shop", NULL, VERDICT_ANSWER, NACOS_NOT_FOUND);
    expect(&q, 500, "caused: service DEFAULT_GROUP@@shop not found!;", NULL, VERDICT_ANSWER, NACOS_NOT_FOUND);
    expect(&q, 404, "{\"status\":404,\"error\":\"Not Found\",\"message\":\"No endpoint GET /nacos/v1/ns/instance.\"}", NULL,
           VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 410, "{\"status\":410,\"error\":\"Gone\",\"message\":\"x\"}", NULL, VERDICT_ANSWER, NACOS_UNSUPPORTED);
    expect(&q, 200, "{\"ip\":\"10.0.0.1\"}", NULL, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 200, "ok", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    struct http_response r =
        answer(200,
               "{\"service\":\"G@@shop\",\"ip\":\"10.0.0.1\",\"port\":80,\"clusterName\":\"c1\",\"weight\":2.5,"
               "\"healthy\":false,\"instanceId\":\"i\",\"metadata\":{\"a\":\"b\"}}",
               NULL);
    struct hosts *h = question_hosts(&q, &r);
    CHECK(h && h->view.count == 1 && h->view.list[0].port == 80 && !h->view.list[0].healthy && h->view.list[0].metadata_count == 1);
    hosts_unref(h);
    buf_free(&r.body);
    question_free(&q);
}

static void beats_name_the_group(void)
{
    struct question q;
    struct beat_answer a;
    protocol_v1.beat(&q, &SHOP, &INSTANCE, 5000, true);
    CHECK(is(&q.target, "/v1/ns/instance/beat?" SHOP_QUERY PLACE_QUERY));
    expect(&q, 200, "{\"clientBeatInterval\":5000,\"code\":10200,\"lightBeatEnabled\":true}", NULL, VERDICT_ANSWER, NACOS_OK);
    expect(&q, 200, "{\"clientBeatInterval\":5000}", NULL, VERDICT_ANSWER, NACOS_OK); /* before 1.2 */
    expect(&q, 200, "{}", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    expect(&q, 200, "ok", NULL, VERDICT_NEXT, NACOS_PROTOCOL);
    question_free(&q);
    protocol_v1.beat(&q, &SHOP, &INSTANCE, 5000, false);
    CHECK(strstr(q.target.data, "&beat=%7B%22serviceName%22%3A%22G%40%40shop%22%2C"));
    CHECK(strstr(q.target.data, "%22weight%22%3A2.5%2C%22metadata%22%3A%7B%22a%22%3A%22b%22"));
    struct http_response r = answer(200, "{\"clientBeatInterval\":7000,\"code\":20404,\"lightBeatEnabled\":false}", NULL);
    CHECK(q.beat(&r, &a) && a.unknown && !a.light && a.interval_ms == 7000);
    buf_free(&r.body);
    r = answer(200, "{\"clientBeatInterval\":1000,\"code\":10200,\"lightBeatEnabled\":true}", NULL);
    CHECK(q.beat(&r, &a) && !a.unknown && a.light && a.interval_ms == 1000);
    buf_free(&r.body);
    question_free(&q);
}

static void lists_ask_for_pushes(void)
{
    struct question q;
    protocol_v1.list_instances(&q, &SHOP, "c1,c2", true);
    CHECK(is(&q.target, "/v1/ns/instance/list?" SHOP_QUERY "&clusters=c1%2Cc2&healthyOnly=true"));
    question_free(&q);
    protocol_v1.follow(&q, &SHOP, "", &(struct push_address){.port = 4000, .ip = "::1"});
    CHECK(is(&q.target, "/v1/ns/instance/list?" SHOP_QUERY "&healthyOnly=false&udpPort=4000&clientIP=%3A%3A1"));
    question_free(&q);
    protocol_v1.list_services(&q, &SHOP, 2, 50);
    CHECK(is(&q.target, "/v1/ns/service/list?pageNo=2&pageSize=50&groupName=G&namespaceId=ns9"));
    question_free(&q);
}

const struct leaf_test protocol_tests[] = {TEST(read_is_judged),
                                           TEST(server_words_reach_the_user),
                                           TEST(publish_is_a_form),
                                           TEST(cas_conflict_is_final),
                                           TEST(publish_is_bounded_by_the_encoded_size),
                                           TEST(listen_lines),
                                           TEST(changed_keys),
                                           TEST(login_shapes),
                                           TEST(version_shapes),
                                           TEST(registration_is_a_query),
                                           TEST(absent_instances_are_not_found),
                                           TEST(beats_name_the_group),
                                           TEST(lists_ask_for_pushes),
                                           TEST(addresses),
                                           TEST(servers_are_sticky_and_failed_ones_come_last),
                                           TEST(timers_fire_in_order),
                                           {NULL, NULL}};
