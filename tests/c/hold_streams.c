/** hold_streams PORT [STREAMS [KEYS]]: sets up STREAMS (10,000) gRPC connections to the embedded server (started with --faults and
 * --push-delay 0) at 127.0.0.1:PORT + 1000. Each listens to KEYS (10) absent configurations, one of everybody and the others its
 * group's, and follows one service. Waits until the server says that it holds them all, publishes a configuration of one group, the
 * one of everybody, and an instance of the service, and checks that exactly those are told who should be. Prints what it measured;
 * exit code 0 when all was as it should be. */
#include <errno.h>
#include <netinet/in.h>
#include <nghttp2/nghttp2.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine/envelope.h"

enum { PATIENCE_MS = 20000, QUIET_MS = 300, ANSWER_MAX = 4096, AT_ONCE = 256, GROUPS = 100, ALL = -1 };

struct listener {
    int fd;
    int group;
    bool told;
};

static struct sockaddr_in server = {.sin_family = AF_INET};

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "hold_streams: ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int dial(int offset)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    struct sockaddr_in to = server;
    to.sin_port = htons((uint16_t)(ntohs(server.sin_port) + offset));
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        fail("connect: %s", strerror(errno));
    return fd;
}

static void send_all(int fd, const char *text, size_t len)
{
    if (send(fd, text, len, MSG_NOSIGNAL) != (ssize_t)len)
        fail("send: %s", strerror(errno));
}

/** One request on a connection of its own; the whole answer. */
static void ask(const char *request, char answer[ANSWER_MAX])
{
    int fd = dial(0);
    size_t len = 0;
    send_all(fd, request, strlen(request));
    for (ssize_t n; len < ANSWER_MAX - 1 && (n = recv(fd, answer + len, ANSWER_MAX - 1 - len, 0)) > 0;)
        len += (size_t)n;
    answer[len] = '\0';
    close(fd);
    if (strncmp(answer, "HTTP/1.1 200", 12) != 0)
        fail("unexpected answer: %s", answer);
}

static void post(const char *path, const char *type, const char *body)
{
    char request[600], answer[ANSWER_MAX];
    snprintf(request, sizeof request,
             "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", path, type,
             strlen(body), body);
    ask(request, answer);
}

static void post_form(const char *path, const char *body)
{
    post(path, "application/x-www-form-urlencoded", body);
}

/** A number of the server's statistics. */
static long stat_of(const char *name)
{
    char answer[ANSWER_MAX], member[64];
    ask("GET /__lunacos/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", answer);
    snprintf(member, sizeof member, "\"%s\":", name);
    const char *number = strstr(answer, member);
    if (!number)
        fail("no %s in: %s", name, answer);
    return strtol(number + strlen(member), NULL, 10);
}

static void await(const char *name, long wanted)
{
    double deadline = now_ms() + PATIENCE_MS;
    long n;
    while ((n = stat_of(name)) != wanted)
        if (now_ms() > deadline)
            fail("%s is %ld, not %ld", name, n, wanted);
        else
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* ---- what a client says on its connection, as bytes ---- */

struct body {
    struct buf bytes;
    size_t sent;
    bool last;
};

static ssize_t read_body(nghttp2_session *h2, int32_t id, uint8_t *to, size_t room, uint32_t *flags, nghttp2_data_source *source,
                         void *arg)
{
    struct body *b = source->ptr;
    (void)h2;
    (void)id;
    (void)arg;
    size_t n = b->bytes.len - b->sent;
    n = n < room ? n : room;
    if (n == 0 && !b->last)
        return NGHTTP2_ERR_DEFERRED;
    memcpy(to, b->bytes.data + b->sent, n);
    b->sent += n;
    if (b->last && b->sent == b->bytes.len)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)n;
}

static nghttp2_nv nv(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), NGHTTP2_NV_FLAG_NONE};
}

static void add_call(nghttp2_session *h2, struct body *b, const char *path, const char *type, const struct buf *json)
{
    struct envelope e = {.type = slice_of(type), .json = {json->data, json->len}};
    struct buf message;
    buf_init(&message, ENVELOPE_MAX);
    envelope_write(&message, &e);
    unsigned char prefix[5] = {0, 0, (unsigned char)(message.len >> 16), (unsigned char)(message.len >> 8),
                               (unsigned char)message.len};
    buf_init(&b->bytes, ENVELOPE_MAX);
    buf_append(&b->bytes, prefix, sizeof prefix);
    buf_append(&b->bytes, message.data, message.len);
    buf_free(&message);
    nghttp2_nv list[] = {nv(":method", "POST"),    nv(":scheme", "http"), nv(":path", path),
                         nv(":authority", "test"), nv("te", "trailers"),  nv("content-type", "application/grpc")};
    nghttp2_data_provider out = {.source.ptr = b, .read_callback = read_body};
    nghttp2_submit_request(h2, NULL, list, sizeof list / sizeof *list, &out, NULL);
}

/** Set-up, listen, and subscription of a client of this group. */
static void conversation(int group, long keys, struct buf *out)
{
    nghttp2_session_callbacks *callbacks;
    nghttp2_session *h2;
    struct body setup = {0}, listen = {.last = true}, follow = {.last = true};
    struct buf json;
    buf_init(&json, ENVELOPE_MAX);
    nghttp2_session_callbacks_new(&callbacks);
    if (nghttp2_session_client_new(&h2, callbacks, NULL) != 0)
        fail("out of memory");
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_submit_settings(h2, NGHTTP2_FLAG_NONE, NULL, 0);
    buf_puts(&json, "{\"clientVersion\":\"hold\",\"labels\":{\"module\":\"naming\"}}");
    add_call(h2, &setup, "/BiRequestStream/requestBiStream", "ConnectionSetupRequest", &json);
    buf_clear(&json);
    buf_puts(&json, "{\"listen\":true,\"configListenContexts\":[{\"dataId\":\"all\",\"group\":\"HOLD\",\"md5\":\"\"}");
    for (long i = 1; i < keys; i++)
        buf_printf(&json, ",{\"dataId\":\"hold%d.%ld\",\"group\":\"HOLD\",\"md5\":\"\"}", group, i);
    buf_puts(&json, "]}");
    add_call(h2, &listen, "/Request/request", "ConfigBatchListenRequest", &json);
    buf_clear(&json);
    buf_puts(&json, "{\"namespace\":\"public\",\"groupName\":\"HOLD\",\"serviceName\":\"s\",\"subscribe\":true}");
    add_call(h2, &follow, "/Request/request", "SubscribeServiceRequest", &json);
    buf_free(&json);
    const uint8_t *bytes;
    for (ssize_t n; (n = nghttp2_session_mem_send(h2, &bytes)) > 0;)
        buf_append(out, bytes, (size_t)n);
    nghttp2_session_del(h2);
    buf_free(&setup.bytes);
    buf_free(&listen.bytes);
    buf_free(&follow.bytes);
    if (out->failed || out->len > 60000)
        fail("too many keys for one connection");
}

/** Reads until `wanted` have been told by a push of this type and it has been quiet for a while; each must be of `group`. The time
 * of the last in ms since `start`. */
static double read_pushes(int epoll, struct listener *all, long count, const char *push, long wanted, int group, double start)
{
    long got = 0;
    for (long i = 0; i < count; i++)
        all[i].told = false;
    double last = 0;
    for (;;) {
        struct epoll_event events[AT_ONCE];
        int n = epoll_wait(epoll, events, AT_ONCE, got < wanted ? PATIENCE_MS : QUIET_MS);
        if (n == 0 && got < wanted)
            fail("%ld of %ld listeners were told", got, wanted);
        if (n <= 0)
            return last;
        for (int i = 0; i < n; i++) {
            struct listener *l = &all[events[i].data.u32];
            char bytes[ANSWER_MAX];
            ssize_t len = recv(l->fd, bytes, sizeof bytes, 0);
            if (len <= 0)
                fail("a connection of group %d has ended", l->group);
            if (!memmem(bytes, (size_t)len, push, strlen(push)))
                continue; /* settings, the answer to the listen */
            if (l->told || (group != ALL && l->group != group))
                fail("a listener of group %d was told%s", l->group, l->told ? " twice" : "");
            l->told = true;
            got++;
            last = now_ms() - start;
        }
    }
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 0;
    long count = argc > 2 ? atol(argv[2]) : 10000, keys = argc > 3 ? atol(argv[3]) : 10;
    if (port <= 0 || count < GROUPS || count % GROUPS || keys <= 1)
        fail("usage: hold_streams PORT [STREAMS, a multiple of %d [KEYS]]", GROUPS);
    server.sin_port = htons((uint16_t)port);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < (rlim_t)count + 16)
        fail("%ld connections need as many open files here and in the server; the hard limit is %lu (ulimit -Hn)", count,
             (unsigned long)files.rlim_cur);

    struct listener *all = calloc((size_t)count, sizeof *all);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!all || epoll < 0)
        fail("out of memory");
    /* nobody answers here */
    post("/__lunacos/grpc", "application/json", "{\"again_ms\":600000,\"idle_ms\":600000}");
    double start = now_ms();
    for (int group = 0; group < GROUPS; group++) {
        struct buf words;
        buf_init(&words, ENVELOPE_MAX);
        conversation(group, keys, &words);
        for (long i = group; i < count; i += GROUPS) {
            all[i] = (struct listener){.fd = dial(1000), .group = group};
            send_all(all[i].fd, words.data, words.len);
            struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
            if (epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event) != 0)
                fail("epoll_ctl: %s", strerror(errno));
        }
        buf_free(&words);
    }
    await("keys_listened", count * keys);
    await("services_followed", count);
    double opened = now_ms() - start;

    static const char config[] = "ConfigChangeNotifyRequest", service[] = "NotifySubscriberRequest";
    int group = GROUPS / 2;
    char body[96];
    read_pushes(epoll, all, count, service, count, ALL, start); /* the first list comes unasked */
    snprintf(body, sizeof body, "dataId=hold%d.%ld&group=HOLD&content=x", group, keys - 1);
    start = now_ms();
    post_form("/nacos/v1/cs/configs", body);
    double few = read_pushes(epoll, all, count, config, count / GROUPS, group, start);
    start = now_ms();
    post_form("/nacos/v1/cs/configs", "dataId=all&group=HOLD&content=x");
    double config_all = read_pushes(epoll, all, count, config, count, ALL, start);
    start = now_ms();
    post_form("/nacos/v1/ns/instance", "serviceName=HOLD@@s&ip=10.0.0.1&port=80");
    double service_all = read_pushes(epoll, all, count, service, count, ALL, start);
    printf(
        "%ld streams and %ld keys held after %.0f ms; %ld told of a publish within %.1f ms, all within %.0f ms, and of an instance "
        "within %.0f ms\n",
        count, count * keys, opened, count / GROUPS, few, config_all, service_all);
    for (long i = 0; i < count; i++)
        close(all[i].fd);
    await("keys_listened", 0);
    await("services_followed", 0);
    close(epoll);
    free(all);
    return 0;
}
