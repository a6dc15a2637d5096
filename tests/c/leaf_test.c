/** Runs the tests of the rooms that need no network: buf, digest, file, log, snapshot. Prints `ok NAME` or `not ok NAME` per
 *  test and a sum; the exit code tells. A test that leaves a descriptor open fails. */
#include "leaf.h"

#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

/* One test asks for more memory than there is: the sanitizers' allocators shall answer NULL, as malloc does. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);
__attribute__((visibility("default"))) const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}
__attribute__((visibility("default"))) const char *__tsan_default_options(void)
{
    return "allocator_may_return_null=1";
}

bool test_failed;
char dir[PATH_MAX];

const char *in_dir(const char *name)
{
    static char paths[8][PATH_MAX];
    static unsigned int next;
    char *path = paths[next++ % 8];

    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
        abort();
    return path;
}

void put(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

char *slurp(const char *path)
{
    static char text[1 << 20];
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;

    if (f)
        fclose(f);
    text[n] = '\0';
    return text;
}

bool file_is(const char *path, const char *text)
{
    return strcmp(slurp(path), text) == 0;
}

int count_files(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;

    for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d))
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    if (d)
        closedir(d);
    return n;
}

struct stat stat_of(const char *path)
{
    struct stat st = {0};
    CHECK(stat(path, &st) == 0);
    return st;
}

void drop_root(void)
{
    CHECK(getuid() != 0 || seteuid(NOBODY) == 0);
}

void regain_root(void)
{
    CHECK(getuid() != 0 || seteuid(0) == 0);
}

void limit_files(rlim_t n)
{
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = n == RLIM_INFINITY ? limit.rlim_max : n;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

int count_lines(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += *text == '\n';
    return n;
}

int main(void)
{
    const struct leaf_test *const rooms[] = {buf_tests,      file_tests,  log_tests,      snapshot_tests,
                                             protocol_tests, hosts_tests, envelope_tests, h2_tests};
    int passed = 0, failed = 0;
    char root[] = "/tmp/lunacos-test-XXXXXX", command[64];

    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGXFSZ, SIG_IGN);
    umask(022);
    setenv("TZ", "UTC0", 1);
    tzset();
    uv_loop_t loop; /* the first one opens a pipe for the life of the process */
    if (uv_loop_init(&loop) == 0)
        uv_loop_close(&loop);
    if (!mkdtemp(root) || chmod(root, 0755) < 0) {
        perror(root);
        return 1;
    }
    for (size_t i = 0; i < sizeof(rooms) / sizeof(rooms[0]); i++) {
        for (const struct leaf_test *t = rooms[i]; t->name; t++) {
            test_failed = false;
            snprintf(dir, sizeof(dir), "%s/%s", root, t->name);
            CHECK(mkdir(dir, 0755) == 0);
            int files = count_files("/proc/self/fd");
            t->run();
            CHECK(count_files("/proc/self/fd") == files);
            printf("%s %s\n", test_failed ? "not ok" : "ok", t->name);
            failed += test_failed;
            passed += !test_failed;
        }
    }
    snprintf(command, sizeof(command), "rm -rf %s", root);
    failed += system(command) != 0;
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}
