/** What the tests of the leaf rooms (leaf_*.c) share. Each test runs in `dir`, a folder of its own, new and empty. */
#ifndef LUNACOS_LEAF_H
#define LUNACOS_LEAF_H

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>

struct leaf_test {
    const char *name;
    void (*run)(void);
};
#define TEST(name)                                                                                                                 \
    {                                                                                                                              \
#name, name                                                                                                                \
    }

/* each ends with a NULL name */
extern const struct leaf_test buf_tests[], file_tests[], log_tests[], snapshot_tests[], protocol_tests[], hosts_tests[],
    envelope_tests[], h2_tests[];

extern bool test_failed;
extern char dir[PATH_MAX];

#define CHECK(cond)                                                                                                                \
    do {                                                                                                                           \
        if (!(cond)) {                                                                                                             \
            printf("# %s:%d: %s\n", __FILE__, __LINE__, #cond);                                                                    \
            test_failed = true;                                                                                                    \
        }                                                                                                                          \
    } while (0)

/** `dir/name`, in one of a few rotating buffers. */
const char *in_dir(const char *name);
void put(const char *path, const char *text);
/** The whole file, without the room under test; empty if there is none. Until the next call. */
char *slurp(const char *path);
bool file_is(const char *path, const char *text);
int count_files(const char *path);
int count_lines(const char *text);
struct stat stat_of(const char *path);
/** Root may read and write everything: as nobody, permissions mean something. */
void drop_root(void);
void regain_root(void);
/** A disk that is full after n bytes of a file; RLIM_INFINITY ends it. */
void limit_files(rlim_t n);

enum { NOBODY = 65534 };

#endif
