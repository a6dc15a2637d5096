/** hold_polls PORT [POLLS [KEYS]]: opens POLLS (10,000) long polls against the embedded server (started with --faults) on
 * 127.0.0.1:PORT, each for one of KEYS (100) absent configurations, waits until the server says that it holds them all, publishes
 * one of the configurations and checks that exactly its pollers are answered, with the right text. Prints what it measured; exit
 * code 0 when all was as it should be. */
#include <errno.h>
#include <netinet/in.h>
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

enum { PATIENCE_MS = 20000, QUIET_MS = 300, ANSWER_MAX = 1024, AT_ONCE = 256 };

struct poller {
    int fd;
    int key;
    bool answered;
};

static struct sockaddr_in server = {.sin_family = AF_INET};

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "hold_polls: ");
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

static int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&server, sizeof server) != 0)
        fail("connect: %s", strerror(errno));
    return fd;
}

static void send_all(int fd, const char *text)
{
    size_t len = strlen(text);
    if (send(fd, text, len, MSG_NOSIGNAL) != (ssize_t)len)
        fail("send: %s", strerror(errno));
}

/** One request on a connection of its own; the whole answer. */
static void ask(const char *request, char answer[ANSWER_MAX])
{
    int fd = dial();
    size_t len = 0;
    send_all(fd, request);
    for (ssize_t n; len < ANSWER_MAX - 1 && (n = recv(fd, answer + len, ANSWER_MAX - 1 - len, 0)) > 0;)
        len += (size_t)n;
    answer[len] = '\0';
    close(fd);
    if (strncmp(answer, "HTTP/1.1 200", 12) != 0)
        fail("unexpected answer: %s", answer);
}

static long held(void)
{
    char answer[ANSWER_MAX];
    ask("GET /__lunacos/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", answer);
    const char *number = strstr(answer, "\"polls_held\":");
    if (!number)
        fail("no polls_held in: %s", answer);
    return strtol(number + strlen("\"polls_held\":"), NULL, 10);
}

static void await_held(long wanted)
{
    double deadline = now_ms() + PATIENCE_MS;
    long n;
    while ((n = held()) != wanted)
        if (now_ms() > deadline)
            fail("the server holds %ld polls, not %ld", n, wanted);
        else
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

static void open_poll(struct poller *p)
{
    char body[96], request[400];
    snprintf(body, sizeof body, "Listening-Configs=hold%d%%02HOLD%%02%%01", p->key);
    snprintf(request, sizeof request,
             "POST /nacos/v1/cs/configs/listener HTTP/1.1\r\nHost: x\r\nLong-Pulling-Timeout: 60000\r\n"
             "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(body), body);
    p->fd = dial();
    send_all(p->fd, request);
}

/** Reads answers until `wanted` have come and it has been quiet for a while; each must be of `key`. The time of the last in ms
 * since `start`. */
static double read_answers(int epoll, struct poller *pollers, long wanted, int key, double start)
{
    long got = 0;
    double last = 0;
    char expected[64];
    snprintf(expected, sizeof expected, "\r\n\r\nhold%d%%02HOLD%%01\n", key);
    for (;;) {
        struct epoll_event events[AT_ONCE];
        int n = epoll_wait(epoll, events, AT_ONCE, got < wanted ? PATIENCE_MS : QUIET_MS);
        if (n == 0 && got < wanted)
            fail("%ld of %ld pollers were answered", got, wanted);
        if (n <= 0)
            return last;
        for (int i = 0; i < n; i++) {
            struct poller *p = &pollers[events[i].data.u32];
            char answer[ANSWER_MAX];
            ssize_t len = recv(p->fd, answer, sizeof answer - 1, 0);
            answer[len > 0 ? len : 0] = '\0';
            if (len <= 0 || p->answered || p->key != key || !strstr(answer, expected))
                fail("the poller of hold%d got%s: %s", p->key, p->answered ? " a second answer" : "", answer);
            p->answered = true;
            got++;
            last = now_ms() - start;
        }
    }
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 0;
    long count = argc > 2 ? atol(argv[2]) : 10000, keys = argc > 3 ? atol(argv[3]) : 100;
    if (port <= 0 || count <= 0 || keys <= 0 || keys > count)
        fail("usage: hold_polls PORT [POLLS [KEYS]]");
    server.sin_port = htons((uint16_t)port);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < (rlim_t)count + 16)
        fail("%ld polls need as many open files here and in the server; the hard limit is %lu (ulimit -Hn)", count,
             (unsigned long)files.rlim_cur);

    struct poller *pollers = calloc((size_t)count, sizeof *pollers);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!pollers || epoll < 0)
        fail("out of memory");
    long before = held(); /* of earlier clients: the server does not notice that they are gone */
    double start = now_ms();
    for (long i = 0; i < count; i++) {
        pollers[i].key = (int)(i % keys);
        open_poll(&pollers[i]);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, pollers[i].fd, &event) != 0)
            fail("epoll_ctl: %s", strerror(errno));
    }
    await_held(before + count);
    double opened = now_ms() - start;

    int key = (int)(keys / 2);
    long wanted = 0;
    for (long i = 0; i < count; i++)
        wanted += pollers[i].key == key;
    char body[96], request[300], answer[ANSWER_MAX];
    snprintf(body, sizeof body, "dataId=hold%d&group=HOLD&content=x", key);
    snprintf(request, sizeof request,
             "POST /nacos/v1/cs/configs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
             "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(body), body);
    start = now_ms();
    ask(request, answer);
    double last = read_answers(epoll, pollers, wanted, key, start);
    await_held(before + count - wanted);
    printf("%ld polls held after %.0f ms; %ld answered within %.1f ms of the publish, the others still held\n", count, opened,
           wanted, last);
    for (long i = 0; i < count; i++)
        close(pollers[i].fd);
    close(epoll);
    free(pollers);
    return 0;
}
