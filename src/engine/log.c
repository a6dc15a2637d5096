/** log: see log.h.
 *
 *  A line is composed on the stack and leaves in one write(2) on an O_APPEND descriptor, so that threads and even processes
 *  that share the file do not mix their lines. The lock guards the descriptor, which changes at midnight and on failure. */
#include "engine/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/file.h"

enum { LINE_BYTES = 4096, WHY_BYTES = 1024 };
#define JSON_BEGIN "{\"time\":\""

struct log {
    _Atomic enum log_level level;
    void (*clock)(struct timespec *now);
    char *dir, *path; /* NULL: standard error was asked for */
    int backup_count;
    bool json;
    pthread_mutex_t lock; /* guards what follows */
    int fd;               /* STDERR_FILENO as well before the first line and while the file fails */
    char day[11];         /* of the newest line; empty before the first one */
};

static void wall_clock(struct timespec *now)
{
    clock_gettime(CLOCK_REALTIME, now);
}

bool log_level_parse(const char *name, enum log_level *out)
{
    static const struct {
        const char *name;
        enum log_level level;
    } names[] = {{"debug", LOG_DEBUG}, {"info", LOG_INFO},      {"warning", LOG_WARN}, {"warn", LOG_WARN},
                 {"error", LOG_ERROR}, {"critical", LOG_ERROR}, {"off", LOG_OFF}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcasecmp(name, names[i].name) == 0) {
            *out = names[i].level;
            return true;
        }
    }
    return false;
}

void log_plain(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p; p++) {
        if (*p < ' ' || *p == 0x7F)
            *p = ' ';
        else if (*p == 0xC2 && p[1] >= 0x80 && p[1] < 0xA0)
            *p = p[1] = ' ';
    }
}

/** Escapes the message, from `start` to `end`, closes the object, and returns the new end. There is room for it. */
static size_t escape(char line[LINE_BYTES], size_t start, size_t end)
{
    size_t more = 0;
    for (size_t i = start; i < end; i++)
        more += line[i] == '"' || line[i] == '\\';
    for (size_t from = end, to = end + more; from > start && to > from;) {
        char c = line[--from];
        line[--to] = c;
        if (c == '"' || c == '\\')
            line[--to] = '\\';
    }
    memcpy(line + end + more, "\"}", 2);
    return end + more + 2;
}

/** Makes the line, newline included, and returns its length. It starts with the day, which rotation compares. */
static size_t compose(const struct log *l, char line[LINE_BYTES], enum log_level level, const char *fmt, va_list args)
{
    static const char *const tags[] = {"DEBUG", "INFO ", "WARN ", "ERROR"}, *const names[] = {"debug", "info", "warn", "error"};
    struct timespec now;
    struct tm tm;
    int err = errno; /* for %m */

    l->clock(&now);
    localtime_r(&now.tv_sec, &tm);
    size_t start = l->json ? (size_t)sprintf(line, JSON_BEGIN) : 0;
    start += strftime(line + start, LINE_BYTES - start, "%Y-%m-%dT%H:%M:%S", &tm);
    start += (size_t)snprintf(line + start, LINE_BYTES - start, ".%03ld", now.tv_nsec / 1000000);
    start += strftime(line + start, LINE_BYTES - start, "%z", &tm);
    start += (size_t)snprintf(line + start, LINE_BYTES - start, l->json ? "\",\"level\":\"%s\",\"message\":\"" : " %s ",
                              l->json ? names[level] : tags[level]);

    size_t end = start;
    errno = err;
    size_t room = l->json ? LINE_BYTES - (LINE_BYTES - start) / 2 : LINE_BYTES; /* each character may need a backslash */
    int n = vsnprintf(line + start, room - start, fmt, args);
    if (n > 0)
        end += (size_t)n;
    if (end > room - 1) {
        end = room - 4;
        while (end > start && ((unsigned char)line[end] & 0xC0) == 0x80) /* not through the middle of a character */
            end--;
        memcpy(line + end, "...", 3);
        end += 3;
    }
    line[end] = 0;
    log_plain(line + start);
    if (l->json)
        end = escape(line, start, end);
    line[end++] = '\n';
    return end;
}

/** A line of the log's own, past rotation, to wherever lines go now. The lock is held. */
__attribute__((format(printf, 2, 3))) static void say(const struct log *l, const char *fmt, ...)
{
    char line[LINE_BYTES];
    va_list args;

    va_start(args, fmt);
    size_t n = compose(l, line, LOG_WARN, fmt, args);
    va_end(args);
    if (write(l->fd, line, n) < 0)
        return; /* nowhere left to complain */
}

/** Opens the file, where none is open; standard error stays when that fails. */
static void open_file(struct log *l)
{
    char why[WHY_BYTES];
    struct stat st;
    struct tm tm;

    l->day[0] = '\0';
    if (!file_mkdirs(l->dir, why, sizeof(why))) {
        say(l, "logging to standard error: %s", why);
        return;
    }
    /* O_NONBLOCK: a fifo without a reader fails instead of hanging the program */
    int fd = open(l->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
    if (fd < 0) {
        say(l, "logging to standard error: cannot open %s: %m", l->path);
        return;
    }
    l->fd = fd;
    if (fstat(fd, &st) == 0 && st.st_size > 0 && localtime_r(&st.st_mtime, &tm))
        strftime(l->day, sizeof(l->day), "%Y-%m-%d", &tm);
}

static int is_backup(const struct dirent *e)
{
    return fnmatch("lunacos.log.[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]", e->d_name, 0) == 0;
}

/** Removes all but the newest backups. */
static void prune(const struct log *l)
{
    struct dirent **names;
    int n = l->backup_count > 0 ? scandir(l->dir, &names, is_backup, alphasort) : -1;
    if (n < 0)
        return;
    int folder = open(l->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < n; i++) {
        if (i < n - l->backup_count)
            unlinkat(folder, names[i]->d_name, 0);
        free(names[i]);
    }
    free(names);
    if (folder >= 0)
        close(folder);
}

/** Moves the file to the name of its day and opens a new one. */
static void rotate(struct log *l)
{
    char *backup;
    struct stat ours, there;
    int old = l->fd, err = 0;

    if (asprintf(&backup, "%s.%s", l->path, l->day) < 0)
        return;
    /* Of several processes that share the file, each with a descriptor of it, the first moves it; the others see under
     * this lock that the name means another file already. close() unlocks. */
    flock(old, LOCK_EX);
    if (fstat(old, &ours) == 0 && stat(l->path, &there) == 0 && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev) {
        if (access(backup, F_OK) == 0)
            err = EEXIST; /* never over an older log */
        else if (rename(l->path, backup) < 0)
            err = errno;
    }
    l->fd = STDERR_FILENO;
    open_file(l);
    close(old);
    errno = err;
    if (err)
        say(l, "cannot rotate the log to %s: %m", backup);
    else
        prune(l);
    free(backup);
}

struct log *log_open(enum log_level level, const char *dir, int backup_count)
{
    struct log *l = calloc(1, sizeof(*l));
    if (!l)
        return NULL;
    l->level = level;
    l->clock = wall_clock;
    l->backup_count = backup_count;
    l->fd = STDERR_FILENO;
    pthread_mutex_init(&l->lock, NULL);
    static pthread_once_t zone = PTHREAD_ONCE_INIT;
    pthread_once(&zone, tzset); /* localtime_r need not do it, and two at a time may not */
    if (dir && dir[0]) {
        l->dir = strdup(dir);
        if (!l->dir || asprintf(&l->path, "%s/lunacos.log", dir) < 0) {
            l->path = NULL;
            log_free(l);
            return NULL;
        }
    }
    return l;
}

void log_free(struct log *l)
{
    if (!l)
        return;
    if (l->fd != STDERR_FILENO)
        close(l->fd);
    pthread_mutex_destroy(&l->lock);
    free(l->path);
    free(l->dir);
    free(l);
}

void log_set_json(struct log *l, bool json)
{
    l->json = json;
}

void log_set_level(struct log *l, enum log_level level)
{
    atomic_store_explicit(&l->level, level, memory_order_relaxed);
}

bool log_enabled(const struct log *l, enum log_level level)
{
    return l && level < LOG_OFF && level >= atomic_load_explicit(&l->level, memory_order_relaxed);
}

void log_set_clock(struct log *l, void (*clock)(struct timespec *now))
{
    l->clock = clock;
}

void log_write(struct log *l, enum log_level level, const char *fmt, ...)
{
    char line[LINE_BYTES];
    va_list args;

    if (!log_enabled(l, level))
        return;
    va_start(args, fmt);
    size_t n = compose(l, line, level, fmt, args);
    va_end(args);

    pthread_mutex_lock(&l->lock);
    /* only forwards: a clock set back does not rotate */
    size_t day = sizeof(l->day) - 1;
    const char *today = line + (l->json ? sizeof JSON_BEGIN - 1 : 0);
    if (l->path && strncmp(today, l->day, day) > 0) {
        if (l->fd == STDERR_FILENO)
            open_file(l);
        if (l->fd != STDERR_FILENO && l->day[0] && strncmp(today, l->day, day) > 0)
            rotate(l);
        memcpy(l->day, today, day);
    }
    ssize_t done = write(l->fd, line, n);
    if (done != (ssize_t)n && l->fd != STDERR_FILENO) {
        if (done >= 0)
            errno = ENOSPC; /* a short write on a file has no other cause, and the next one would say so */
        int err = errno;
        close(l->fd);
        l->fd = STDERR_FILENO; /* until the next day */
        errno = err;
        say(l, "logging to standard error: cannot write %s: %m", l->path);
        if (write(l->fd, line, n) < 0) {
            /* nowhere left to write to */
        }
    }
    pthread_mutex_unlock(&l->lock);
}
