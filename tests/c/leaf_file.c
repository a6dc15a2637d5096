/** Tests of file. */
#include "leaf.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/file.h"

static char why[1024];

static unsigned int mode_of(const char *path)
{
    return stat_of(path).st_mode & 07777;
}

static enum file_status read_status(const char *path, size_t max)
{
    char *data;
    size_t len;

    why[0] = '\0';
    enum file_status status = file_read(path, max, &data, &len, why, sizeof(why));
    CHECK((status == FILE_OK) == (data != NULL));
    CHECK(status != FILE_ERROR || strstr(why, path));
    free(data);
    return status;
}

static void file_reads_whole_files(void)
{
    const char *path = in_dir("f");
    char *data;
    size_t len;

    put(path, "hello\n");
    CHECK(file_read(path, 6, &data, &len, why, sizeof(why)) == FILE_OK && len == 6 && strcmp(data, "hello\n") == 0);
    free(data);
    CHECK(symlink("f", in_dir("link")) == 0 && read_status(in_dir("link"), 6) == FILE_OK);
    put(path, "");
    CHECK(file_read(path, 0, &data, &len, why, sizeof(why)) == FILE_OK && len == 0 && data && data[0] == '\0');
    free(data);
}

static void file_read_refuses(void)
{
    put(in_dir("f"), "hello\n");
    CHECK(read_status(in_dir("f"), 5) == FILE_ERROR);
    CHECK(read_status(in_dir("none"), 10) == FILE_ABSENT);
    CHECK(read_status(in_dir("none/none"), 10) == FILE_ABSENT);
    CHECK(read_status(in_dir("f/none"), 10) == FILE_ABSENT);
    CHECK(read_status(dir, 10) == FILE_ERROR);
    CHECK(mkfifo(in_dir("fifo"), 0600) == 0 && read_status(in_dir("fifo"), 10) == FILE_ERROR);
    CHECK(read_status("/dev/zero", 10) == FILE_ERROR);
    CHECK(symlink("loop", in_dir("loop")) == 0 && read_status(in_dir("loop"), 10) == FILE_ERROR);
    CHECK(read_status("/proc/self/status", 1 << 20) == FILE_ERROR); /* says 0 bytes and has more: like a file that grows */
    chmod(in_dir("f"), 0);
    drop_root();
    CHECK(read_status(in_dir("f"), 10) == FILE_ERROR && strstr(why, "Permission denied"));
    regain_root();
    char *data; /* no room for a sentence */
    size_t len;
    CHECK(file_read(dir, 10, &data, &len, NULL, 0) == FILE_ERROR);
}

static const struct file_attr keep = {.uid = (uid_t)-1, .gid = (gid_t)-1};

static bool replace(const char *path, const char *text, const struct file_attr *attr)
{
    why[0] = '\0';
    bool ok = file_replace(path, text, strlen(text), attr, why, sizeof(why));
    CHECK(ok || strstr(why, path));
    return ok;
}

static void file_replaces_and_keeps_the_mode(void)
{
    const char *path = in_dir("f");
    struct file_attr attr = keep;

    mode_t old = umask(077);
    CHECK(replace(path, "one", &keep) && file_is(path, "one") && mode_of(path) == 0644);
    umask(old);
    chmod(path, 0750);
    CHECK(replace(path, "two", &keep) && file_is(path, "two") && mode_of(path) == 0750);
    chmod(path, 0444); /* what may be replaced depends on the folder alone */
    CHECK(replace(path, "three", &keep) && file_is(path, "three") && mode_of(path) == 0444);
    attr.mode = 0600;
    attr.sync = true;
    CHECK(replace(path, "", &attr) && file_is(path, "") && mode_of(path) == 0600);
    CHECK(file_replace(path, NULL, 0, &keep, why, sizeof(why)) && file_is(path, ""));
    CHECK(count_files(dir) == 1);
}

static void file_replace_works_without_a_folder_in_the_path(void)
{
    char before[PATH_MAX];
    struct file_attr attr = keep;

    attr.sync = true;
    CHECK(getcwd(before, sizeof(before)) && chdir(dir) == 0);
    CHECK(replace("f", "text", &attr) && file_is("f", "text") && count_files(".") == 1);
    CHECK(chdir(before) == 0);
}

static void file_replace_takes_the_longest_name(void)
{
    char name[NAME_MAX + 2];
    memset(name, 'n', sizeof(name) - 1);
    name[NAME_MAX + 1] = '\0';
    CHECK(!replace(in_dir(name), "text", &keep) && count_files(dir) == 0);
    name[NAME_MAX] = '\0';
    CHECK(replace(in_dir(name), "text", &keep) && file_is(in_dir(name), "text"));
}

static void file_replace_is_a_new_file(void)
{
    char text[10] = "";
    const char *path = in_dir("f");

    put(path, "old");
    int fd = open(path, O_RDONLY);
    CHECK(replace(path, "new", &keep));
    CHECK(read(fd, text, sizeof(text)) == 3 && strcmp(text, "old") == 0); /* a reader keeps what it opened */
    close(fd);
    CHECK(symlink("f", in_dir("link")) == 0 && replace(in_dir("link"), "mine", &keep));
    CHECK(file_is(path, "new") && file_is(in_dir("link"), "mine"));
}

static void file_replace_steps_over_leftovers(void)
{
    char name[64];

    for (int i = 0; i < 60; i++) { /* of a killed process that had our pid; the counter stands somewhere in here */
        snprintf(name, sizeof(name), ".lunacos-%ld-%d.tmp", (long)getpid(), i);
        put(in_dir(name), "left");
    }
    CHECK(replace(in_dir("f"), "text", &keep) && file_is(in_dir("f"), "text") && count_files(dir) == 61);
}

static void file_replace_changes_the_owner(void)
{
    struct file_attr attr = keep;

    attr.mode = 0640;
    if (getuid() == 0) {
        attr.uid = NOBODY;
        attr.gid = NOBODY;
        CHECK(replace(in_dir("f"), "text", &attr));
        struct stat st = stat_of(in_dir("f"));
        CHECK(st.st_uid == NOBODY && st.st_gid == NOBODY && (st.st_mode & 07777) == 0640);
        chmod(dir, 0777);
    }
    put(in_dir("g"), "old");
    int files = count_files(dir);
    drop_root();
    attr.uid = 0;
    CHECK(!replace(in_dir("g"), "new", &attr) && file_is(in_dir("g"), "old") && count_files(dir) == files);
    regain_root();
}

static void file_replace_fails_clean(void)
{
    const char *text = "0123456789";

    CHECK(mkdir(in_dir("folder"), 0755) == 0);
    CHECK(!replace(in_dir("folder"), text, &keep) && count_files(dir) == 1);
    CHECK(!replace(in_dir("none/f"), text, &keep) && count_files(dir) == 1);
    CHECK(!replace("/proc/lunacos-test", text, &keep));
    put(in_dir("f"), "old");
    CHECK(!replace(in_dir("f/g"), text, &keep) && count_files(dir) == 2);

    limit_files(4); /* the second write fails */
    CHECK(!replace(in_dir("f"), text, &keep) && strstr(why, strerror(EFBIG)));
    limit_files(RLIM_INFINITY);
    CHECK(file_is(in_dir("f"), "old") && count_files(dir) == 2);

    put(in_dir("folder/f"), "old");
    chmod(in_dir("folder/f"), 0666);
    chmod(in_dir("folder"), 0555);
    drop_root();
    CHECK(!replace(in_dir("folder/f"), text, &keep) && strstr(why, "Permission denied"));
    regain_root();
    chmod(in_dir("folder"), 0755);
    CHECK(file_is(in_dir("folder/f"), "old") && count_files(in_dir("folder")) == 1);
}

static void file_is_never_seen_half(void)
{
    /* a reader in another process sees one of the two, whole */
    enum { SIZE = 1 << 16 };
    static char a[SIZE + 1], b[SIZE + 1];
    const char *path = in_dir("f");
    int wrong = 0;

    memset(a, 'a', SIZE);
    memset(b, 'b', SIZE);
    CHECK(replace(path, a, &keep));
    pid_t pid = fork();
    if (pid == 0) {
        for (;;) {
            file_replace(path, b, SIZE, &keep, why, sizeof(why));
            file_replace(path, a, SIZE, &keep, why, sizeof(why));
        }
    }
    for (int i = 0; i < 500; i++) {
        const char *text = slurp(path);
        wrong += strcmp(text, a) != 0 && strcmp(text, b) != 0;
    }
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
    CHECK(wrong == 0);
    const char *text = slurp(path);
    CHECK(strcmp(text, a) == 0 || strcmp(text, b) == 0);
}

static void file_makes_folders(void)
{
    CHECK(file_mkdirs(in_dir("a/b//c/"), why, sizeof(why)) && stat_of(in_dir("a/b/c")).st_mode & S_IFDIR);
    CHECK(mode_of(in_dir("a")) == 0755);
    CHECK(file_mkdirs(in_dir("a/b/c"), why, sizeof(why)) && file_mkdirs("/", why, sizeof(why)));
    put(in_dir("f"), "");
    CHECK(!file_mkdirs(in_dir("f"), why, sizeof(why)) && strstr(why, in_dir("f")));
    CHECK(!file_mkdirs(in_dir("f/g"), why, sizeof(why)));
    CHECK(!file_mkdirs("/proc/lunacos-test/a", why, sizeof(why)) && strstr(why, "/proc/lunacos-test"));
    CHECK(!file_mkdirs("", why, sizeof(why)));
    char before[PATH_MAX];
    CHECK(getcwd(before, sizeof(before)) && chdir(dir) == 0 && file_mkdirs("x/y", why, sizeof(why)) && chdir(before) == 0);
    CHECK(count_files(in_dir("x")) == 1);
}

const struct leaf_test file_tests[] = {
    TEST(file_reads_whole_files),
    TEST(file_read_refuses),
    TEST(file_replaces_and_keeps_the_mode),
    TEST(file_replace_works_without_a_folder_in_the_path),
    TEST(file_replace_takes_the_longest_name),
    TEST(file_replace_is_a_new_file),
    TEST(file_replace_steps_over_leftovers),
    TEST(file_replace_changes_the_owner),
    TEST(file_replace_fails_clean),
    TEST(file_is_never_seen_half),
    TEST(file_makes_folders),
    {NULL, NULL},
};
