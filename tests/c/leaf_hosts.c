/** Instance lists: what is read of a server's JSON, compared, merged; datagrams; and what may be registered. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "engine/buf.h"
#include "engine/datagram.h"
#include "engine/hosts.h"
#include "leaf.h"

static struct hosts *parse(const char *json)
{
    return hosts_parse(json, strlen(json));
}

/** A list of these entries, which stand between commas. */
static struct hosts *list_of(const char *entries)
{
    char json[4096];
    snprintf(json, sizeof json, "{\"name\":\"G@@s\",\"clusters\":\"\",\"hosts\":[%s]}", entries);
    return parse(json);
}

#define A "{\"ip\":\"10.0.0.1\",\"port\":80}"
#define B "{\"ip\":\"10.0.0.2\",\"port\":80}"
#define C "{\"ip\":\"10.0.0.10\",\"port\":80}"

static void answers_of_servers_are_read(void)
{
    struct hosts *h =
        parse("{\"name\":\"DEFAULT_GROUP@@svc\",\"groupName\":\"DEFAULT_GROUP\",\"clusters\":\"c1,c2\",\"cacheMillis\":10000,"
              "\"lastRefTime\":1690000000123,\"checksum\":\"\",\"allIPs\":false,\"reachProtectionThreshold\":true,\"valid\":true,"
              "\"hosts\":["
              "{\"instanceId\":\"i1\",\"ip\":\"1.2.3.4\",\"port\":80,\"weight\":2.5,\"healthy\":false,\"enabled\":true,"
              "\"ephemeral\":false,"
              "\"clusterName\":\"c1\",\"serviceName\":\"DEFAULT_GROUP@@svc\",\"metadata\":{\"z\":\"1\",\"a\":\"2\"},"
              "\"ipDeleteTimeout\":30000}]}");
    CHECK(h && h->view.count == 1 && h->view.protection && h->view.ref_time == 1690000000123 && h->view.cache_ms == 10000);
    if (!h)
        return;
    const nacos_instance *i = &h->view.list[0];
    CHECK(strcmp(h->name, "svc") == 0 && strcmp(h->group, "DEFAULT_GROUP") == 0 && strcmp(h->clusters, "c1,c2") == 0);
    CHECK(strcmp(i->ip, "1.2.3.4") == 0 && i->port == 80 && i->weight == 2.5 && !i->healthy && i->enabled && !i->ephemeral);
    CHECK(strcmp(i->cluster, "c1") == 0 && strcmp(i->id, "i1") == 0 && i->metadata_count == 2);
    CHECK(strcmp(i->metadata[0].name, "a") == 0 && strcmp(i->metadata[1].value, "1") == 0); /* by name */
    hosts_unref(h);
    /* 1.x */
    h = parse("{\"dom\":\"svc\",\"cacheMillis\":3000,\"clusters\":\"\",\"env\":\"\",\"hosts\":[{\"ip\":\"1.2.3.4\",\"port\":80,"
              "\"valid\":false,"
              "\"marked\":false,\"weight\":1}]}");
    CHECK(h && h->view.count == 1 && !h->view.list[0].healthy && strcmp(h->name, "svc") == 0 && !*h->group);
    hosts_unref(h);
    h = parse("{\"name\":\"DEFAULT_GROUP@@nosvc\",\"clusters\":\"\",\"cacheMillis\":3000,\"hosts\":[]}");
    CHECK(h && h->view.count == 0 && h->view.skipped == 0);
    hosts_unref(h);
}

static void what_is_missing_has_the_servers_defaults(void)
{
    struct hosts *h = list_of("{\"ip\":\"a.example\",\"port\":0,\"metadata\":null,\"weight\":null,\"clusterName\":\"\"}");
    CHECK(h && h->view.count == 1);
    const nacos_instance *i = &h->view.list[0];
    CHECK(i->weight == 1 && i->healthy && i->enabled && i->ephemeral && strcmp(i->cluster, "DEFAULT") == 0 && !i->id &&
          i->metadata_count == 0);
    hosts_unref(h);
}

static void bad_entries_cost_themselves_only(void)
{
    static const char *const bad[] = {"1",
                                      "null",
                                      "[]",
                                      "{}",
                                      "{\"ip\":\"1.1.1.1\"}",
                                      "{\"port\":80}",
                                      "{\"ip\":\"\",\"port\":80}",
                                      "{\"ip\":\"a b\",\"port\":80}",
                                      "{\"ip\":\"a\\u0000b\",\"port\":80}",
                                      "{\"ip\":7,\"port\":80}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":\"80\"}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80.5}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":-1}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":65536}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80,\"weight\":-1}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80,\"weight\":\"1\"}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80,\"healthy\":\"yes\"}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80,\"enabled\":1}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80,\"metadata\":[]}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80,\"metadata\":{\"a\":1}}",
                                      "{\"ip\":\"1.1.1.1;}evil{a\",\"port\":80}",
                                      "{\"ip\":\"256.1.1.1\",\"port\":80}",
                                      "{\"ip\":\"1.1.1.1\",\"port\":80,\"clusterName\":{}}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char entries[512];
        snprintf(entries, sizeof entries, A ",%s," B, bad[i]);
        struct hosts *h = list_of(entries);
        if (!h || h->view.count != 2 || h->view.skipped != 1)
            printf("# not skipped: %s\n", bad[i]);
        CHECK(h && h->view.count == 2 && h->view.skipped == 1);
        hosts_unref(h);
    }
    struct hosts *h = list_of(A "," B "," A "," A);
    CHECK(h && h->view.count == 2 && h->view.skipped == 2);
    hosts_unref(h);
    static const char *const no_lists[] = {"", "[]", "{}", "{\"hosts\":{}}", "{\"hosts\":[", "{\"hosts\":[]}x", "<html>", "null"};
    for (size_t i = 0; i < sizeof no_lists / sizeof *no_lists; i++)
        CHECK(!parse(no_lists[i]));
}

static void text_that_no_json_may_hold_is_mended(void)
{
    static const struct {
        const char *raw, *read;
    } cases[] = {
        {"a\\u0000b", "a\xEF\xBF\xBD"
                      "b"},          /* NUL */
        {"\\ud800", "\xEF\xBF\xBD"}, /* half characters */
        {"\\uDC00x", "\xEF\xBF\xBDx"},
        {"\\ud800\\u0041", "\xEF\xBF\xBD"
                           "A"},
        {"\xFF", "?"},
        {"\xC3", "?"},
        {"\xE2\x82", "??"},
        {"\xED\xA0\x80", "???"}, /* a half character in UTF-8 */
        {"\xC0\x80", "??"},
        {"\xF5", "?"},
        {"a\x01\nb", "a??b"},
        /* and what it may hold stays, beside something that it may not */
        {"\xFF\\ud83d\\ude00\\\\u0000\\\"\xC3\xA4", "?\xF0\x9F\x98\x80\\u0000\"\xC3\xA4"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char entries[512];
        snprintf(entries, sizeof entries, A ",{\"ip\":\"1.1.1.1\",\"port\":80,\"metadata\":{\"k%s\":\"%s\"}}," B, cases[i].raw,
                 cases[i].raw);
        struct hosts *h = list_of(entries);
        const nacos_instance *found = h ? hosts_find(h, "1.1.1.1", 80, NULL) : NULL;
        bool good = found && h->view.count == 3 && found->metadata_count == 1 &&
                    strcmp(found->metadata[0].value, cases[i].read) == 0 && strcmp(found->metadata[0].name + 1, cases[i].read) == 0;
        if (!good)
            printf("# case %zu: %s\n", i, found && found->metadata_count ? found->metadata[0].value : "not read");
        CHECK(good);
        hosts_unref(h);
    }
    CHECK(!parse("{\"hosts\":[\xFF]}"));
}

static void order_does_not_count(void)
{
    struct hosts *one = list_of(C "," B "," A), *other = list_of(A "," B "," C), *less = list_of(A "," C);
    CHECK(hosts_equal(one, other) && !hosts_equal(one, less));
    CHECK(strcmp(one->view.list[1].ip, "10.0.0.2") == 0 && strcmp(one->view.list[2].ip, "10.0.0.10") == 0); /* as numbers */
    hosts_unref(other);
    other = list_of(A "," B ",{\"ip\":\"10.0.0.10\",\"port\":80,\"metadata\":{\"a\":\"b\"}}");
    CHECK(!hosts_equal(one, other));
    hosts_unref(one);
    hosts_unref(other);
    hosts_unref(less);
}

static void differences(void)
{
    struct hosts *before = list_of(A "," B), *now = list_of("{\"ip\":\"10.0.0.2\",\"port\":80,\"weight\":3}," C);
    size_t n;
    bool failed;
    nacos_change *d = hosts_diff(before, now, &n, &failed);
    CHECK(n == 3 && !failed && d[0].kind == NACOS_DELETED && strcmp(d[0].before->ip, "10.0.0.1") == 0 && !d[0].now);
    CHECK(d[1].kind == NACOS_MODIFIED && d[1].now->weight == 3 && d[1].before->weight == 1);
    CHECK(d[2].kind == NACOS_ADDED && !d[2].before && strcmp(d[2].now->ip, "10.0.0.10") == 0);
    free(d);
    CHECK(hosts_missing(before, now) == 1 && hosts_missing(NULL, now) == 0);
    struct hosts *all = hosts_union(before, now);
    CHECK(all && all->view.count == 3 && all->view.list[1].weight == 3 && strcmp(all->name, "s") == 0);
    CHECK(!hosts_diff(all, all, &n, &failed) && n == 0);
    d = hosts_diff(NULL, all, &n, &failed);
    CHECK(n == 3 && d[2].kind == NACOS_ADDED);
    free(d);
    CHECK(hosts_find(all, "10.0.0.2", 80, NULL) == &all->view.list[1] && hosts_find(all, "10.0.0.2", 80, "DEFAULT"));
    CHECK(!hosts_find(all, "10.0.0.2", 81, NULL) && !hosts_find(all, "10.0.0.2", 80, "x") && !hosts_find(all, "z", 80, NULL));
    hosts_unref(all);
    hosts_unref(now);
    now = list_of(A ",{\"ip\":\"10.0.0.2\",\"port\":80,\"healthy\":false}");
    all = hosts_healthy(now);
    CHECK(all && all->view.count == 1 && all->view.list[0].healthy);
    hosts_unref(all);
    hosts_unref(now);
    hosts_unref(before);
}

static void a_list_survives_its_file(void)
{
    static const nacos_pair pairs[] = {{"a \"b\"", "\\ ü \n"}, {"z", ""}};
    nacos_instance i = {
        .ip = "::1", .port = 1, .cluster = "c", .weight = 0.1, .enabled = true, .metadata = pairs, .metadata_count = 2};
    struct hosts *h = hosts_of(&i), *again = NULL;
    size_t len = 0;
    char *json = hosts_json(h, "G@@s", &len);
    CHECK(json && (again = hosts_parse(json, len)) && hosts_equal(h, again) && strcmp(again->group, "G") == 0);
    free(json);
    hosts_unref(h);
    hosts_unref(again);
}

static void texts_that_are_too_dense_are_not_read(void)
{
    size_t size = 1 << 20, len;
    char *text = malloc(size);
    len = (size_t)sprintf(text, "{\"hosts\":[1");
    while (len < size - 100)
        len += (size_t)sprintf(text + len, ",{}");
    len += (size_t)sprintf(text + len, "]}");
    CHECK(!hosts_parse(text, len));
    len = (size_t)sprintf(text, "{\"hosts\":[1"); /* as dense as instances can be */
    for (int i = 1; len < size - 100; i++)
        len += (size_t)sprintf(text + len, ",{\"ip\":\"h%x\",\"port\":1,\"metadata\":{}}", (unsigned)i);
    len += (size_t)sprintf(text + len, "]}");
    struct hosts *h = hosts_parse(text, len);
    CHECK(h && h->view.count > 20000 && h->view.skipped == 1);
    hosts_unref(h);
    len = (size_t)sprintf(text, "{\"hosts\":[{\"ip\":\"a\",\"port\":1,\"metadata\":{\"k\":\""); /* what is quoted does not count */
    while (len < size - 100)
        len += (size_t)sprintf(text + len, "[1,{2,\\\"");
    len += (size_t)sprintf(text + len, "\"}}]}");
    h = hosts_parse(text, len);
    CHECK(h && h->view.count == 1);
    hosts_unref(h);
    free(text);
}

/** Random damage, always the same. */
static void damage(void)
{
    static const char good[] = "{\"name\":\"G@@s\",\"clusters\":\"\",\"lastRefTime\":17,\"hosts\":[" A "," B
                               ",{\"ip\":\"::1\",\"port\":9,\"metadata\":{\"k\":\"\\u00fcv\"},\"weight\":1e2}]}";
    unsigned seed = 1;
    for (int round = 0; round < 20000; round++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        for (int k = 0; k < 1 + round % 4; k++) {
            seed = seed * 1103515245 + 12345;
            text[(seed >> 8) % (sizeof good - 1)] = (char)(seed >> 24);
        }
        struct hosts *h = hosts_parse(text, sizeof good - 1 - seed % 3);
        struct datagram d;
        const char *why;
        if (datagram_read(&d, text, sizeof good - 1, &why))
            datagram_free(&d);
        hosts_unref(h);
    }
    CHECK(true);
}

/* ---- datagrams ----------------------------------------------------------------------------------------------------------- */

#define DOM                                                                                                                        \
    "{\"type\":\"dom\",\"data\":\"{\\\"name\\\":\\\"G@@s\\\",\\\"clusters\\\":\\\"c1\\\",\\\"lastRefTime\\\":17,"                  \
    "\\\"hosts\\\":[{\\\"ip\\\":\\\"10.0.0.1\\\",\\\"port\\\":80}]}\",\"lastRefTime\":862358008663123}"

static size_t gzip(const void *data, size_t len, void *out, size_t size)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)data, .avail_in = (uInt)len, .next_out = out, .avail_out = (uInt)size};
    deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
    deflate(&z, Z_FINISH);
    deflateEnd(&z);
    return z.total_out;
}

static void expect_dom(const void *bytes, size_t len)
{
    struct datagram d;
    const char *why = NULL;
    char ack[DATAGRAM_ACK];
    bool read = datagram_read(&d, bytes, len, &why);
    CHECK(read && d.hosts);
    if (!read || !d.hosts)
        return;
    CHECK(d.ref_time == 862358008663123 && d.hosts->view.count == 1 && d.hosts->view.ref_time == 17);
    CHECK(strcmp(d.hosts->name, "s") == 0 && strcmp(d.hosts->group, "G") == 0 && strcmp(d.hosts->clusters, "c1") == 0);
    datagram_ack(&d, ack, sizeof ack);
    CHECK(strcmp(ack, "{\"type\":\"push-ack\",\"lastRefTime\":\"862358008663123\",\"data\":\"\"}") == 0);
    datagram_free(&d);
}

static void pushes_are_read_plain_and_zipped(void)
{
    char zipped[1024];
    size_t n = gzip(DOM, strlen(DOM), zipped, sizeof zipped);
    expect_dom(DOM, strlen(DOM));
    expect_dom(zipped, n);
    struct datagram d;
    const char *why;
    char ack[DATAGRAM_ACK];
    static const char dump[] = "{\"type\":\"dump\",\"lastRefTime\":\"5\"}";
    CHECK(datagram_read(&d, dump, sizeof dump - 1, &why) && !d.hosts && d.ref_time == 5);
    datagram_ack(&d, ack, sizeof ack);
    CHECK(strstr(ack, "\"dump-ack\""));
}

static void broken_datagrams_are_told(void)
{
    struct datagram d;
    char zipped[1024];
    const char *why;
    size_t n = gzip(DOM, strlen(DOM), zipped, sizeof zipped);
    static const char *const bad[] = {"",
                                      "x",
                                      "[]",
                                      "{}",
                                      "{\"type\":7}",
                                      "{\"type\":\"dom\"}",
                                      "{\"type\":\"dom\",\"data\":\"{}\"}",
                                      "{\"type\":\"dom\",\"data\":{}}",
                                      "{\"type\":\"dom\",\"data\":\"{\\\"hosts\\\":[]}\"}",
                                      "{\"type\":\"a very long type that fits nowhere\"}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        why = NULL;
        CHECK(!datagram_read(&d, bad[i], strlen(bad[i]), &why) && why);
    }
    for (size_t cut = 2; cut < n; cut++)
        CHECK(!datagram_read(&d, zipped, cut, &why) && why);
    for (size_t cut = 0; cut < strlen(DOM); cut++)
        CHECK(!datagram_read(&d, DOM, cut, &why));
    /* 32 MiB of blanks in 32 KiB */
    size_t huge = 32 << 20;
    char *blanks = malloc(huge), *bomb = malloc(65536);
    memset(blanks, ' ', huge);
    n = gzip(blanks, huge, bomb, 65536);
    CHECK(n < 65536 && !datagram_read(&d, bomb, n, &why) && why);
    /* 4 MiB of empty objects in 4 KiB: small enough as text, but not as a tree */
    size_t most = DATAGRAM_INFLATED - 100;
    memcpy(blanks, "{\"type\":\"dump\",\"x\":[", 20);
    for (size_t i = 20; i + 6 <= most; i += 3)
        memcpy(blanks + i, "{},", 3);
    memcpy(blanks + most - 3, "1]}", 3);
    n = gzip(blanks, most, bomb, 65536);
    CHECK(n < 65536 && !datagram_read(&d, bomb, n, &why) && why);
    free(blanks);
    free(bomb);
}

/* ---- checks -------------------------------------------------------------------------------------------------------------- */

static void names_of_services(void)
{
    CHECK(!nacos_check_service("com.example.Shop:1.0") && !nacos_check_service("providers/shop") && !nacos_check_service("a@b"));
    CHECK(nacos_check_service("") && nacos_check_service("a b") && nacos_check_service("a\n") && nacos_check_service("G@@a") &&
          nacos_check_service("@a"));
    char longest[514];
    memset(longest, 'a', 513);
    longest[513] = 0;
    CHECK(nacos_check_service(longest));
    longest[512] = 0;
    CHECK(!nacos_check_service(longest));
    CHECK(!nacos_check_clusters("") && !nacos_check_clusters("a") && !nacos_check_clusters("a,b-1"));
    CHECK(nacos_check_clusters("a,") && nacos_check_clusters(",a") && nacos_check_clusters("a b") && nacos_check_clusters("a_b"));
}

static void expect_wrong(nacos_instance i, const char *field)
{
    const char *found = NULL, *why = nacos_check_instance(&i, &found);
    CHECK(why && found && strcmp(found, field) == 0);
}

static void instances(void)
{
    nacos_instance good = {.ip = "10.0.0.1", .port = 80, .weight = 1}, i;
    CHECK(!nacos_check_instance(&good, NULL));
#define WRONG(field, name, value) (i = good, i.field = (value), expect_wrong(i, name))
    WRONG(ip, "ip", NULL);
    WRONG(ip, "ip", "");
    WRONG(ip, "ip", "1.1.1.1 ");
    WRONG(ip, "ip", "a#b");
    WRONG(port, "port", 0);
    WRONG(port, "port", 65536);
    WRONG(cluster, "cluster", "a_b");
    WRONG(weight, "weight", -1);
    WRONG(weight, "weight", NAN);
    WRONG(weight, "weight", INFINITY);
    WRONG(weight, "weight", 10001);
    nacos_pair not_utf8 = {"a", "\xff"}, long_one = {"a", NULL};
    char text[6001];
    memset(text, 'x', 6000);
    text[6000] = 0;
    long_one.value = text;
    i = good;
    i.metadata = &not_utf8;
    i.metadata_count = 1;
    expect_wrong(i, "metadata");
    i.metadata = &long_one;
    expect_wrong(i, "metadata");
    text[5900] = 0;
    CHECK(!nacos_check_instance(&i, NULL));
}

const struct leaf_test hosts_tests[] = {TEST(answers_of_servers_are_read),
                                        TEST(what_is_missing_has_the_servers_defaults),
                                        TEST(bad_entries_cost_themselves_only),
                                        TEST(text_that_no_json_may_hold_is_mended),
                                        TEST(order_does_not_count),
                                        TEST(differences),
                                        TEST(a_list_survives_its_file),
                                        TEST(texts_that_are_too_dense_are_not_read),
                                        TEST(damage),
                                        TEST(pushes_are_read_plain_and_zipped),
                                        TEST(broken_datagrams_are_told),
                                        TEST(names_of_services),
                                        TEST(instances),
                                        {NULL, NULL}};
