/** limit: what plain libcurl does with the same server, and nothing else: the lower bound that scripts/bench puts beside lunacos.
 * It also makes the changes that the others wait for.
 *
 *    limit publish URL                    reads lines: "one GROUP INDEX TAG", "all GROUP COUNT TAG", "instance SERVICE TAG";
 * answers "done NS" limit watch URL GROUP INDEX [FILE]   one key: long poll, then GET, for ever; with FILE the content goes there,
 * fsynced and renamed limit read URL GROUP KEYS WAYS       reads lines: "COUNT"; answers "done WALL_NS CPU_NS" after so many GETs,
 * WAYS at a time limit once URL GROUP KEYS WAYS       each key once, then "ready NS" limit beat URL SERVICE               registers
 * one instance; reads lines "COUNT"; answers "done WALL_NS CPU_NS" after so many beats
 *
 *  Key i of a group is "cfg-i", its content "NS.TAG.xxx…" (1,024 bytes), NS the CLOCK_MONOTONIC moment before it was sent. The
 * clients print "ready NS" and "change TAG NS_SENT NS_SEEN", as every other contestant does. */
#include <curl/curl.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum { CONTENT = 1024, ANSWER = 4096, WAYS_MAX = 256, PUBLISH_WAYS = 16 };

/** One handle with its answer. */
struct slot {
    CURL *easy;
    char body[ANSWER], md5[33];
    size_t len;
    char form[CONTENT + 256];
};

static const char *base; /* http://127.0.0.1:PORT/nacos */
static struct curl_slist *poll_headers;

static int64_t now(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "limit: %s\n", what);
    exit(1);
}

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct slot *s = arg;
    size_t fits = ANSWER - 1 - s->len;
    size_t take = size * n < fits ? size * n : fits;
    memcpy(s->body + s->len, p, take);
    s->len += take;
    s->body[s->len] = 0;
    return size * n;
}

static size_t on_header(char *p, size_t size, size_t n, void *arg)
{
    static const char name[] = "Content-MD5: ";
    struct slot *s = arg;
    if (size * n > sizeof name + 31 && strncasecmp(p, name, sizeof name - 1) == 0)
        memcpy(s->md5, p + sizeof name - 1, 32);
    return size * n;
}

static void slot_init(struct slot *s)
{
    s->easy = curl_easy_init();
    if (!s->easy)
        die("out of memory");
    curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(s->easy, CURLOPT_WRITEDATA, s);
    curl_easy_setopt(s->easy, CURLOPT_PRIVATE, s);
    curl_easy_setopt(s->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(s->easy, CURLOPT_PROXY, "");
}

static void set_get(struct slot *s, const char *group, int i)
{
    char url[512];
    snprintf(url, sizeof url, "%s/v1/cs/configs?dataId=cfg-%d&group=%s&tenant=", base, i, group);
    curl_easy_setopt(s->easy, CURLOPT_URL, url);
    curl_easy_setopt(s->easy, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, NULL);
    s->len = 0;
}

static void set_publish(struct slot *s, const char *group, int i, const char *tag)
{
    char url[256];
    int n = snprintf(s->form, sizeof s->form, "dataId=cfg-%d&group=%s&tenant=&content=", i, group);
    int m = snprintf(s->form + n, sizeof s->form - (size_t)n, "%" PRId64 ".%s.", now(CLOCK_MONOTONIC), tag);
    memset(s->form + n + m, 'x', (size_t)(CONTENT - m));
    snprintf(url, sizeof url, "%s/v1/cs/configs", base);
    curl_easy_setopt(s->easy, CURLOPT_URL, url);
    curl_easy_setopt(s->easy, CURLOPT_POSTFIELDSIZE, (long)(n + CONTENT));
    curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, s->form);
    s->len = 0;
}

static void check(struct slot *s, CURLcode code)
{
    long status = 0;
    curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &status);
    if (code == CURLE_OK && status == 200)
        return;
    fprintf(stderr, "limit: %s, HTTP %ld: %s\n", curl_easy_strerror(code), status, s->body);
    exit(1);
}

static void perform(struct slot *s)
{
    check(s, curl_easy_perform(s->easy));
}

/* ---- many at a time -------------------------------------------------------------------------------------------------------- */

struct work {
    const char *group, *tag; /* tag: publish, else get */
    int keys, count, next, retries;
};

/** The database of a real server now and then cannot do two inserts at once, and says 500. */
static bool try_again(const struct slot *s, CURLcode code, struct work *w)
{
    long status = 0;
    curl_easy_getinfo(s->easy, CURLINFO_RESPONSE_CODE, &status);
    return w->tag && code == CURLE_OK && status == 500 && w->retries++ < 200;
}

static bool start_next(CURLM *multi, struct slot *s, struct work *w)
{
    if (w->next == w->count)
        return false;
    int i = w->next++ % w->keys;
    if (w->tag)
        set_publish(s, w->group, i, w->tag);
    else
        set_get(s, w->group, i);
    curl_multi_add_handle(multi, s->easy);
    return true;
}

static void run_many(CURLM *multi, struct slot *slots, int ways, struct work *w)
{
    int busy = 0, running, left;
    for (int i = 0; i < ways; i++)
        busy += start_next(multi, &slots[i], w);
    while (busy) {
        curl_multi_perform(multi, &running);
        for (CURLMsg *m; (m = curl_multi_info_read(multi, &left));) {
            struct slot *s;
            CURLcode code = m->data.result;
            curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&s);
            curl_multi_remove_handle(multi, s->easy);
            if (try_again(s, code, w)) {
                s->len = 0;
                curl_multi_add_handle(multi, s->easy);
                continue;
            }
            check(s, code);
            busy -= !start_next(multi, s, w);
        }
        if (busy)
            curl_multi_poll(multi, NULL, 0, 1000, NULL);
    }
}

static struct slot *new_slots(int n)
{
    struct slot *slots = n > 0 && n <= WAYS_MAX ? calloc((size_t)n, sizeof *slots) : NULL;
    if (!slots)
        die("bad number of ways");
    for (int i = 0; i < n; i++)
        slot_init(&slots[i]);
    return slots;
}

/* ---- services -------------------------------------------------------------------------------------------------------------- */

/** A question whose parameters stand in the query. */
static void ask_service(struct slot *s, const char *method, const char *query)
{
    char url[768];
    snprintf(url, sizeof url, "%s/v1/ns/instance%s", base, query);
    curl_easy_setopt(s->easy, CURLOPT_URL, url);
    curl_easy_setopt(s->easy, CURLOPT_CUSTOMREQUEST, method);
    s->len = 0;
    perform(s);
}

/** Registers 10.9.9.9 again, with the moment and the tag in its metadata. */
static void set_instance(struct slot *s, const char *service, const char *tag)
{
    char query[512];
    snprintf(query, sizeof query, "?serviceName=%s&ip=10.9.9.9&port=9&metadata=sent%%3D%" PRId64 "%%2Ctag%%3D%s", service,
             now(CLOCK_MONOTONIC), tag);
    ask_service(s, "POST", query);
}

static void beat(const char *service)
{
    char line[64], query[256];
    struct slot *s = new_slots(1);
    snprintf(query, sizeof query, "?serviceName=%s&ip=10.9.9.8&port=8", service);
    ask_service(s, "POST", query);
    snprintf(query, sizeof query, "/beat?serviceName=%s&ip=10.9.9.8&port=8&clusterName=DEFAULT&ephemeral=true", service);
    while (fgets(line, sizeof line, stdin)) {
        int64_t wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        for (int i = atoi(line); i > 0; i--)
            ask_service(s, "PUT", query);
        printf("done %" PRId64 " %" PRId64 "\n", now(CLOCK_MONOTONIC) - wall, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    }
}

/* ---- the programs ------------------------------------------------------------------------------------------------------- */

static void publish(void)
{
    char line[256], group[64], tag[64];
    struct slot *slots = new_slots(PUBLISH_WAYS);
    CURLM *multi = curl_multi_init();
    int n;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "one %63s %d %63s", group, &n, tag) == 3) {
            set_publish(slots, group, n, tag);
            perform(slots);
        } else if (sscanf(line, "all %63s %d %63s", group, &n, tag) == 3) {
            run_many(multi, slots, PUBLISH_WAYS, &(struct work){group, tag, n, n, 0, 0});
        } else if (sscanf(line, "instance %63s %63s", group, tag) == 2) {
            set_instance(slots + 1, group, tag);
        } else {
            die("unknown command");
        }
        printf("done %" PRId64 "\n", now(CLOCK_MONOTONIC));
    }
}

static void replace_file(const char *path, const char *data, size_t len)
{
    char temp[512];
    snprintf(temp, sizeof temp, "%s.tmp", path);
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, data, len) != (ssize_t)len || fsync(fd) != 0 || close(fd) != 0 || rename(temp, path) != 0)
        die("cannot write the file");
}

static void watch(const char *group, int i, const char *file)
{
    char url[256], form[256], tag[64];
    int64_t sent;
    struct slot *s = new_slots(1);
    curl_easy_setopt(s->easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(s->easy, CURLOPT_HEADERDATA, s);
    snprintf(url, sizeof url, "%s/v1/cs/configs/listener", base);
    set_get(s, group, i);
    perform(s);
    printf("ready %" PRId64 "\n", now(CLOCK_MONOTONIC));
    for (;;) {
        int n = snprintf(form, sizeof form, "Listening-Configs=cfg-%d%%02%s%%02%s%%01", i, group, s->md5);
        curl_easy_setopt(s->easy, CURLOPT_URL, url);
        curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, poll_headers);
        curl_easy_setopt(s->easy, CURLOPT_POSTFIELDSIZE, (long)n);
        curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, form);
        s->len = 0;
        perform(s);
        if (s->len == 0)
            continue;
        set_get(s, group, i);
        perform(s);
        if (file)
            replace_file(file, s->body, s->len);
        if (sscanf(s->body, "%" SCNd64 ".%63[^.]", &sent, tag) == 2)
            printf("change %s %" PRId64 " %" PRId64 "\n", tag, sent, now(CLOCK_MONOTONIC));
    }
}

static void read_keys(const char *group, int keys, int ways, bool once)
{
    char line[64];
    struct slot *slots = new_slots(ways);
    CURLM *multi = curl_multi_init();
    if (once) {
        run_many(multi, slots, ways, &(struct work){group, NULL, keys, keys, 0, 0});
        printf("ready %" PRId64 "\n", now(CLOCK_MONOTONIC));
        return;
    }
    while (fgets(line, sizeof line, stdin)) {
        struct work w = {group, NULL, keys, atoi(line), 0, 0};
        int64_t wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        if (ways > 1)
            run_many(multi, slots, ways, &w);
        for (; w.next < w.count; w.next++) {
            set_get(slots, group, w.next % keys);
            perform(slots);
        }
        printf("done %" PRId64 " %" PRId64 "\n", now(CLOCK_MONOTONIC) - wall, now(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    poll_headers = curl_slist_append(NULL, "Long-Pulling-Timeout: 30000");
    const char *what = argc > 2 ? argv[1] : "";
    base = argv[2];
    if (strcmp(what, "publish") == 0)
        publish();
    else if (strcmp(what, "watch") == 0 && argc > 4)
        watch(argv[3], atoi(argv[4]), argv[5]);
    else if (strcmp(what, "read") == 0 && argc > 5)
        read_keys(argv[3], atoi(argv[4]), atoi(argv[5]), false);
    else if (strcmp(what, "once") == 0 && argc > 5)
        read_keys(argv[3], atoi(argv[4]), atoi(argv[5]), true);
    else if (strcmp(what, "beat") == 0 && argc > 3)
        beat(argv[3]);
    else
        die("see the top of limit.c");
    return 0;
}
