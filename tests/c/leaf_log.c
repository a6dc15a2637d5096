/** Tests of log, with a clock of their own. */
#include "leaf.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/log.h"

static _Atomic int64_t fake_time; /* milliseconds since the epoch */
static int64_t fake_step;

enum { DAY_MS = 86400000 };
static const int64_t NOON = 1795608000000; /* 2026-11-25T12:00:00Z */

static void fake_clock(struct timespec *now)
{
    int64_t ms = atomic_fetch_add(&fake_time, fake_step);
    *now = (struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
}

static struct log *open_fake(const char *folder, int backups)
{
    struct log *l = log_open(LOG_DEBUG, folder, backups);
    CHECK(l);
    log_set_clock(l, fake_clock);
    atomic_store(&fake_time, NOON);
    fake_step = 0;
    return l;
}

static int real_stderr;

/** Standard error goes to a file of this folder until stderr_text(). */
static void capture_stderr(void)
{
    int fd = open(in_dir("stderr"), O_WRONLY | O_CREAT | O_APPEND | O_TRUNC, 0600);
    real_stderr = dup(STDERR_FILENO);
    CHECK(fd >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    close(fd);
}

static const char *stderr_text(void)
{
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    return slurp(in_dir("stderr"));
}

static void log_levels(void)
{
    enum log_level level;
    CHECK(log_level_parse("debug", &level) && level == LOG_DEBUG);
    CHECK(log_level_parse("INFO", &level) && level == LOG_INFO);
    CHECK(log_level_parse("warning", &level) && level == LOG_WARN);
    CHECK(log_level_parse("Warn", &level) && level == LOG_WARN);
    CHECK(log_level_parse("error", &level) && level == LOG_ERROR);
    CHECK(log_level_parse("CRITICAL", &level) && level == LOG_ERROR);
    CHECK(log_level_parse("off", &level) && level == LOG_OFF);
    CHECK(!log_level_parse("", &level) && !log_level_parse("loud", &level) && level == LOG_OFF);

    struct log *l = log_open(LOG_WARN, dir, 0);
    CHECK(!log_enabled(l, LOG_INFO) && log_enabled(l, LOG_WARN) && log_enabled(l, LOG_ERROR));
    log_write(l, LOG_INFO, "no");
    log_write(l, LOG_ERROR, "yes");
    log_set_level(l, LOG_OFF);
    CHECK(!log_enabled(l, LOG_ERROR) && !log_enabled(l, LOG_OFF));
    log_write(l, LOG_ERROR, "no");
    log_set_level(l, LOG_DEBUG);
    CHECK(log_enabled(l, LOG_DEBUG));
    log_free(l);
    CHECK(count_lines(slurp(in_dir("lunacos.log"))) == 1 && strstr(slurp(in_dir("lunacos.log")), " ERROR yes\n"));

    CHECK(!log_enabled(NULL, LOG_ERROR));
    log_write(NULL, LOG_ERROR, "dropped");
    log_free(NULL);
}

static void log_lines(void)
{
    static char big[8000];
    const char *path = in_dir("deep/er/lunacos.log");
    struct log *l = open_fake(in_dir("deep/er"), 0);

    atomic_store(&fake_time, NOON + 7);
    log_write(l, LOG_WARN, "a%db\nc\r\td\x7F\x01%s", 1, "\xC3\xA9");
    CHECK(file_is(path, "2026-11-25T12:00:00.007+0000 WARN  a1b c  d  \xC3\xA9\n"));
    errno = ENOENT;
    log_write(l, LOG_INFO, "%m");
    CHECK(strstr(slurp(path), "INFO  No such file or directory\n"));
    log_write(l, LOG_INFO, "%s", "");
    CHECK(strstr(slurp(path), "\n2026-11-25T12:00:00.007+0000 INFO  \n"));
    CHECK(truncate(path, 0) == 0);
    memset(big, 'x', sizeof(big) - 1);
    log_write(l, LOG_DEBUG, "%s", big);
    const char *text = slurp(path);
    CHECK(strlen(text) == 4096 && strcmp(text + 4090, "xx...\n") == 0);
    CHECK(truncate(path, 0) == 0);
    for (size_t i = 0; i + 1 < sizeof(big); i++) /* two-byte characters: never half of one */
        big[i] = i % 2 ? '\xA9' : '\xC3';
    log_write(l, LOG_DEBUG, "%s", big);
    log_write(l, LOG_DEBUG, "x%s", big);
    CHECK(strstr(slurp(path), "\xA9...\n2026") && !strstr(slurp(path), "\xC3.") && strstr(slurp(path) + 4096, "\xA9...\n"));
    log_free(l);
}

static void log_goes_to_stderr(void)
{
    capture_stderr();
    struct log *l = log_open(LOG_INFO, NULL, 7);
    log_write(l, LOG_INFO, "one");
    log_free(l);
    l = log_open(LOG_INFO, "", 7);
    log_write(l, LOG_INFO, "two");
    log_free(l);
    const char *text = stderr_text();
    CHECK(count_lines(text) == 2 && strstr(text, " INFO  one\n") && strstr(text, " INFO  two\n"));
}

/** Every open descriptor of the file of this name, and there is one, ends at exec. */
static bool closes_on_exec(const char *name)
{
    char link[64], target[PATH_MAX];
    int found = 0;

    for (int fd = 0; fd < 100; fd++) {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, target, sizeof(target) - 1);
        target[n > 0 ? n : 0] = '\0';
        if (strcmp(target, in_dir(name)) == 0) {
            found++;
            if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC))
                return false;
        }
    }
    return found > 0;
}

static void log_rotates_at_midnight(void)
{
    struct log *l = open_fake(dir, 2);
    int64_t midnight = NOON + DAY_MS / 2;

    log_write(l, LOG_INFO, "first");
    CHECK(closes_on_exec("lunacos.log"));
    atomic_store(&fake_time, midnight - 1);
    log_write(l, LOG_INFO, "last");
    CHECK(count_files(dir) == 1);
    atomic_store(&fake_time, midnight);
    log_write(l, LOG_INFO, "next");
    CHECK(count_files(dir) == 2 && count_lines(slurp(in_dir("lunacos.log"))) == 1 && strstr(slurp(in_dir("lunacos.log")), "next"));
    const char *text = slurp(in_dir("lunacos.log.2026-11-25"));
    CHECK(count_lines(text) == 2 && strstr(text, "first") && strstr(text, "last"));

    atomic_store(&fake_time, midnight - 1); /* a clock set back does not rotate */
    log_write(l, LOG_INFO, "back");
    CHECK(count_files(dir) == 2 && count_lines(slurp(in_dir("lunacos.log"))) == 2);

    atomic_store(&fake_time, midnight);
    log_write(l, LOG_INFO, "again");
    CHECK(count_files(dir) == 2 && count_lines(slurp(in_dir("lunacos.log"))) == 3);

    put(in_dir("lunacos.log.old"), "of somebody else");
    for (int day = 1; day < 5; day++) {
        atomic_store(&fake_time, midnight + day * (int64_t)DAY_MS);
        log_write(l, LOG_INFO, "day %d", day);
    }
    CHECK(count_files(dir) == 4 && access(in_dir("lunacos.log.old"), F_OK) == 0); /* log, two backups, the foreign file */
    CHECK(strstr(slurp(in_dir("lunacos.log.2026-11-28")), "day 2") && strstr(slurp(in_dir("lunacos.log.2026-11-29")), "day 3"));
    log_free(l);
}

static void log_keeps_all_backups(void)
{
    struct log *l = open_fake(dir, 0);
    for (int day = 0; day < 12; day++) {
        log_write(l, LOG_INFO, "day %d", day);
        atomic_fetch_add(&fake_time, DAY_MS);
    }
    log_free(l);
    CHECK(count_files(dir) == 12);
}

static void log_follows_the_local_zone(void)
{
    setenv("TZ", "XYZ-2", 1);
    tzset();
    struct log *l = open_fake(dir, 0);
    atomic_store(&fake_time, NOON + 10 * 3600000 - 1);
    log_write(l, LOG_INFO, "before");
    atomic_store(&fake_time, NOON + 10 * 3600000);
    log_write(l, LOG_INFO, "after");
    log_free(l);
    CHECK(file_is(in_dir("lunacos.log.2026-11-25"), "2026-11-25T23:59:59.999+0200 INFO  before\n"));
    CHECK(file_is(in_dir("lunacos.log"), "2026-11-26T00:00:00.000+0200 INFO  after\n"));
    setenv("TZ", "UTC0", 1);
    tzset();
}

static void last_changed(const char *path, int64_t ms)
{
    const struct timespec when[2] = {{.tv_sec = ms / 1000}, {.tv_sec = ms / 1000}};
    CHECK(utimensat(AT_FDCWD, path, when, 0) == 0);
}

static void log_continues_a_file(void)
{
    put(in_dir("lunacos.log"), "of yesterday\n");
    last_changed(in_dir("lunacos.log"), NOON - DAY_MS);
    struct log *l = open_fake(dir, 0);
    log_write(l, LOG_INFO, "today");
    log_free(l);
    CHECK(file_is(in_dir("lunacos.log.2026-11-24"), "of yesterday\n"));
    CHECK(strstr(slurp(in_dir("lunacos.log")), "today"));
}

static void log_never_overwrites_a_backup(void)
{
    put(in_dir("lunacos.log.2026-11-25"), "precious\n");
    struct log *l = open_fake(dir, 0);
    log_write(l, LOG_INFO, "one");
    atomic_fetch_add(&fake_time, DAY_MS);
    log_write(l, LOG_INFO, "two");
    log_write(l, LOG_INFO, "three");
    log_free(l);
    CHECK(file_is(in_dir("lunacos.log.2026-11-25"), "precious\n"));
    const char *text = slurp(in_dir("lunacos.log"));
    CHECK(count_lines(text) == 4 && strstr(text, "WARN  cannot rotate the log to") && strstr(text, "one") && strstr(text, "three"));
}

static void log_is_shared_by_processes(void)
{
    struct log *a = open_fake(dir, 0), *b = open_fake(dir, 0);
    log_write(a, LOG_INFO, "one");
    last_changed(in_dir("lunacos.log"), NOON);
    log_write(b, LOG_INFO, "two");
    atomic_fetch_add(&fake_time, DAY_MS);
    log_write(a, LOG_INFO, "three");
    log_write(b, LOG_INFO, "four");
    log_free(a);
    log_free(b);
    const char *text = slurp(in_dir("lunacos.log.2026-11-25"));
    CHECK(count_lines(text) == 2 && strstr(text, "one") && strstr(text, "two"));
    text = slurp(in_dir("lunacos.log"));
    CHECK(count_lines(text) == 2 && strstr(text, "three") && strstr(text, "four"));
}

static void log_falls_back_when_it_cannot_open(void)
{
    put(in_dir("file"), "");
    CHECK(mkdir(in_dir("a"), 0755) == 0 && mkdir(in_dir("a/lunacos.log"), 0755) == 0);
    CHECK(mkdir(in_dir("b"), 0755) == 0 && mkfifo(in_dir("b/lunacos.log"), 0600) == 0);
    const char *const folders[] = {"file", "a", "b"};
    for (size_t i = 0; i < 3; i++) {
        capture_stderr();
        struct log *l = open_fake(in_dir(folders[i]), 0);
        log_write(l, LOG_INFO, "line");
        log_write(l, LOG_INFO, "line");
        atomic_fetch_add(&fake_time, DAY_MS);
        log_set_level(l, LOG_ERROR); /* said even where warnings are not wanted: the lines are not where they are sought */
        log_write(l, LOG_ERROR, "line");
        log_free(l);
        const char *text = stderr_text();
        CHECK(strstr(text, "25T12:00:00.000+0000 WARN  logging to standard error: ") && strstr(text, in_dir(folders[i])));
        CHECK(strstr(text, "26T12:00:00.000+0000 WARN  logging to standard error: "));
        CHECK(count_lines(text) == 5 && strstr(text, "INFO  line\n") && strstr(text, "ERROR line\n"));
    }
}

static void log_falls_back_when_it_cannot_write(void)
{
    CHECK(symlink("/dev/full", in_dir("lunacos.log")) == 0);
    capture_stderr();
    struct log *l = open_fake(dir, 0);
    log_write(l, LOG_INFO, "one");
    log_write(l, LOG_INFO, "two");
    CHECK(unlink(in_dir("lunacos.log")) == 0);
    log_write(l, LOG_INFO, "three");
    atomic_fetch_add(&fake_time, DAY_MS);
    log_write(l, LOG_INFO, "four"); /* the next day it tries again */
    log_free(l);
    const char *text = stderr_text();
    CHECK(count_lines(text) == 4 && strstr(text, "No space left") && strstr(text, "one") && strstr(text, "three"));
    CHECK(count_lines(slurp(in_dir("lunacos.log"))) == 1 && strstr(slurp(in_dir("lunacos.log")), "four"));
}

static void log_falls_back_on_a_short_write(void)
{
    struct log *l = open_fake(in_dir("log"), 0);
    capture_stderr();
    log_write(l, LOG_INFO, "one");
    limit_files(200);
    log_write(l, LOG_INFO, "two %0300d", 0);
    limit_files(RLIM_INFINITY);
    log_free(l);
    const char *text = stderr_text();
    CHECK(strstr(text, "logging to standard error: cannot write"));
    CHECK(strlen(slurp(in_dir("log/lunacos.log"))) == 200);
}

/** A line of log_threads is whole: the stamp, its digits, its end. */
static int count_whole(const char *name)
{
    char line[8192];
    int n = 0;
    FILE *f = fopen(in_dir(name), "r");

    while (f && fgets(line, sizeof(line), f))
        n += strlen(line) == 29 + 6 + 205 && strncmp(line, "2026-11-2", 9) == 0 && strcmp(line + 29 + 6 + 200, " end\n") == 0;
    if (f)
        fclose(f);
    return n;
}

enum { THREADS = 4, LINES = 500 };

static void *write_lines(void *l)
{
    for (int i = 0; i < LINES; i++)
        log_write(l, LOG_INFO, "%0200d end", i);
    return NULL;
}

static void log_threads(void)
{
    pthread_t threads[THREADS];
    struct log *l = open_fake(dir, 0);

    fake_step = 10;
    atomic_store(&fake_time, NOON + DAY_MS / 2 - (int64_t)THREADS * LINES * 10 / 2); /* midnight in the middle */
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, write_lines, l) == 0);
    for (int i = 0; i < 100; i++)
        log_set_level(l, i % 2 ? LOG_INFO : LOG_DEBUG);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    log_free(l);
    int before = count_whole("lunacos.log.2026-11-25"), after = count_whole("lunacos.log");
    CHECK(count_files(dir) == 2 && before > 0 && after > 0 && before + after == THREADS * LINES);
}

const struct leaf_test log_tests[] = {
    TEST(log_levels),
    TEST(log_lines),
    TEST(log_goes_to_stderr),
    TEST(log_rotates_at_midnight),
    TEST(log_keeps_all_backups),
    TEST(log_follows_the_local_zone),
    TEST(log_continues_a_file),
    TEST(log_never_overwrites_a_backup),
    TEST(log_is_shared_by_processes),
    TEST(log_falls_back_when_it_cannot_open),
    TEST(log_falls_back_when_it_cannot_write),
    TEST(log_falls_back_on_a_short_write),
    TEST(log_threads),
    {NULL, NULL},
};
