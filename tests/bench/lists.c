/** lists: what an instance list costs without a network. Prints `NAME SECONDS` lines; jansson_N is the bare parsing of the text. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/buf.h"
#include "engine/hosts.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/** A list as a 2.x server writes it; `weight` is that of the instance in the middle. */
static char *list(int count, int weight, size_t *len)
{
    struct buf b;
    buf_init(&b, 1u << 30);
    buf_puts(
        &b,
        "{\"name\":\"DEFAULT_GROUP@@bench\",\"groupName\":\"DEFAULT_GROUP\",\"clusters\":\"\",\"cacheMillis\":10000,\"hosts\":[");
    for (int i = 0; i < count; i++)
        buf_printf(&b,
                   "%s{\"instanceId\":\"10.%d.%d.%d#8080#DEFAULT#DEFAULT_GROUP@@bench\",\"ip\":\"10.%d.%d.%d\",\"port\":8080,"
                   "\"weight\":%d.0,"
                   "\"healthy\":true,\"enabled\":true,\"ephemeral\":true,\"clusterName\":\"DEFAULT\",\"serviceName\":\"DEFAULT_"
                   "GROUP@@bench\","
                   "\"metadata\":{\"zone\":\"a\",\"version\":\"1.%d\"},\"instanceHeartBeatInterval\":5000,"
                   "\"instanceHeartBeatTimeOut\":15000,"
                   "\"ipDeleteTimeout\":30000,\"instanceIdGenerator\":\"simple\"}",
                   i ? "," : "", i >> 16, i >> 8 & 255, i & 255, i >> 16, i >> 8 & 255, i & 255, i == count / 2 ? weight : 1,
                   i % 10);
    buf_puts(
        &b,
        "],\"lastRefTime\":1690000000000,\"checksum\":\"\",\"allIPs\":false,\"reachProtectionThreshold\":false,\"valid\":true}");
    return buf_take(&b, len);
}

/** The least of some rounds. */
#define MEASURE(name, count, rounds, ...)                                                                                          \
    do {                                                                                                                           \
        double least = 1e9;                                                                                                        \
        for (int round = 0; round < (rounds); round++) {                                                                           \
            double began = now();                                                                                                  \
            __VA_ARGS__;                                                                                                           \
            double took = now() - began;                                                                                           \
            least = took < least ? took : least;                                                                                   \
        }                                                                                                                          \
        printf("%s_%d %.9f\n", name, count, least);                                                                                \
    } while (0)

static void measure(int count)
{
    size_t len, len2, n;
    bool failed;
    char *text = list(count, 1, &len), *text2 = list(count, 2, &len2);
    struct hosts *a = hosts_parse(text, len), *same = hosts_parse(text, len), *b = hosts_parse(text2, len2);
    volatile bool equal = true;
    MEASURE("jansson", count, 20, json_decref(json_loadb(text, len, 0, NULL)));
    MEASURE("parse", count, 20, hosts_unref(hosts_parse(text, len)));
    MEASURE("diff", count, 50, free(hosts_diff(a, b, &n, &failed)));
    MEASURE("equal", count, 50, equal = hosts_equal(a, same));
    if (!equal || n != 1)
        exit(1);
    hosts_unref(a);
    hosts_unref(b);
    hosts_unref(same);
    free(text);
    free(text2);
}

int main(void)
{
    measure(1000);
    measure(10000);
    return 0;
}
