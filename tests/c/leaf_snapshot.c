/** Tests of snapshot. */
#include "leaf.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/log.h"
#include "engine/snapshot.h"

static const char *const DATA_ID = "aZ09_x-y.z:w";

static void snapshot_round_trip(void)
{
    const char *base = in_dir("data/snapshot");
    size_t len = 99;

    CHECK(snapshot_read(base, DATA_ID, "G", "", 100, &len, NULL) == NULL && len == 0);
    snapshot_remove(base, DATA_ID, "G", "", NULL); /* absent is fine */
    CHECK(snapshot_write(base, DATA_ID, "G", "", "a\0b", 3, NULL));
    CHECK(snapshot_write(base, DATA_ID, "G_-.:", "ns-1", "other", 5, NULL));
    CHECK(access(in_dir("data/snapshot/aZ09_x-y.z:w+G+"), F_OK) == 0);
    CHECK(file_is(in_dir("data/snapshot/aZ09_x-y.z:w+G_-.:+ns-1"), "other"));
    CHECK(count_files(base) == 2);
    char *data = snapshot_read(base, DATA_ID, "G", NULL, 3, &len, NULL);
    CHECK(data && len == 3 && memcmp(data, "a\0b", 4) == 0);
    free(data);
    CHECK(snapshot_write(base, DATA_ID, "G", "", "", 0, NULL));
    CHECK(snapshot_read(base, DATA_ID, "G", "", 3, &len, NULL) == NULL); /* no server holds an empty value */
    snapshot_remove(base, DATA_ID, "G", "", NULL);
    CHECK(count_files(base) == 1 && snapshot_read(base, DATA_ID, "G", "", 3, &len, NULL) == NULL);
}

static void snapshot_leaves_equal_bytes_alone(void)
{
    const char *path = in_dir("d+G+");

    CHECK(snapshot_write(dir, "d", "G", "", "same", 4, NULL));
    ino_t first = stat_of(path).st_ino;
    int keep_inode = open(path, O_RDONLY); /* so that its number is not given to the next file */
    CHECK(snapshot_write(dir, "d", "G", "", "same", 4, NULL) && stat_of(path).st_ino == first);
    CHECK(snapshot_write(dir, "d", "G", "", "sam", 3, NULL) && stat_of(path).st_ino != first && file_is(path, "sam"));
    CHECK(snapshot_write(dir, "d", "G", "", "SAM", 3, NULL) && file_is(path, "SAM"));
    CHECK(snapshot_write(dir, "d", "G", "", "SAME", 4, NULL) && file_is(path, "SAME"));
    CHECK(snapshot_write(dir, "d", "G", "", "SAME\0", 5, NULL) && stat_of(path).st_size == 5);
    close(keep_inode);
}

static void snapshot_never_fails_a_call(void)
{
    size_t len;
    char name[300];
    struct log *l = log_open(LOG_DEBUG, in_dir("log"), 0);
    const char *log = in_dir("log/lunacos.log");

    CHECK(mkdir(in_dir("d+G+"), 0755) == 0 && mkfifo(in_dir("fifo+G+"), 0600) == 0);
    put(in_dir("long+G+"), "0123456789");
    CHECK(snapshot_read(dir, "none", "G", "", 10, &len, l) == NULL && file_is(log, ""));
    snapshot_remove(dir, "none", "G", "", l);
    CHECK(file_is(log, ""));
    CHECK(snapshot_read(dir, "long", "G", "", 9, &len, l) == NULL && count_lines(slurp(log)) == 1 && strstr(slurp(log), "long+G+"));
    CHECK(snapshot_read(dir, "d", "G", "", 10, &len, l) == NULL && count_lines(slurp(log)) == 2);
    CHECK(snapshot_read(dir, "fifo", "G", "", 10, &len, l) == NULL && count_lines(slurp(log)) == 3);
    CHECK(!snapshot_write(dir, "d", "G", "", "x", 1, l) && count_lines(slurp(log)) == 4);
    snapshot_remove(dir, "d", "G", "", l);
    CHECK(count_lines(slurp(log)) == 5 && access(in_dir("d+G+"), F_OK) == 0);
    CHECK(!snapshot_write(in_dir("long+G+"), "d", "G", "", "x", 1, l) && count_lines(slurp(log)) == 6); /* a file for a folder */
    CHECK(!snapshot_write("/proc/lunacos-test", "d", "G", "", "x", 1, l) && count_lines(slurp(log)) == 7);
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    CHECK(!snapshot_write(dir, name, "G", "", "x", 1, l) && count_lines(slurp(log)) == 8);

    limit_files(4);
    CHECK(!snapshot_write(dir, "long", "G", "", "too long", 8, NULL));
    limit_files(RLIM_INFINITY);
    CHECK(file_is(in_dir("long+G+"), "0123456789"));
    CHECK(snapshot_write(dir, "fifo", "G", "", "text", 4, l) && file_is(in_dir("fifo+G+"), "text")); /* what is in the way goes */
    CHECK(count_lines(slurp(log)) == 8 && count_files(dir) == 4);
    log_free(l);
}

static void snapshot_stays_in_its_folder(void)
{
    size_t len;
    CHECK(mkdir(in_dir("base"), 0755) == 0);
    put(in_dir("x+G+"), "outside");
    CHECK(snapshot_read(in_dir("base"), "../x", "G", "", 100, &len, NULL) == NULL);
    CHECK(!snapshot_write(in_dir("base"), "../x", "G", "", "in", 2, NULL));
    CHECK(!snapshot_write(in_dir("base"), "x", "../G", "", "in", 2, NULL) &&
          !snapshot_write(in_dir("base"), "x", "G", "/n", "in", 2, NULL));
    snapshot_remove(in_dir("base"), "../x", "G", "", NULL);
    CHECK(file_is(in_dir("x+G+"), "outside") && count_files(in_dir("base")) == 0);
    CHECK(mkdir(in_dir("base/x+G+"), 0755) == 0 && !snapshot_write(in_dir("base"), "x", "G", "/n", "in", 2, NULL));
    CHECK(rmdir(in_dir("base/x+G+")) == 0);
    CHECK(snapshot_write(in_dir("base"), "..", "..", "..", "in", 2, NULL) && count_files(in_dir("base")) == 1);
}

const struct leaf_test snapshot_tests[] = {
    TEST(snapshot_round_trip),
    TEST(snapshot_leaves_equal_bytes_alone),
    TEST(snapshot_never_fails_a_call),
    TEST(snapshot_stays_in_its_folder),
    {NULL, NULL},
};
