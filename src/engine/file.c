/** file: see file.h. The sentences in `why` end in glibc's `%m`, which is the text of errno. */
#include "engine/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/** write(2) until all is written. */
static bool write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return false;
        p += done;
        n -= (size_t)done;
    }
    return true;
}

/** Fills a buffer of n bytes; fewer only at the end of the file. -1: errno tells. */
static ssize_t read_all(int fd, char *p, size_t n)
{
    size_t len = 0;

    while (len < n) {
        ssize_t done = read(fd, p + len, n - len);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        if (!done)
            break;
        len += (size_t)done;
    }
    return (ssize_t)len;
}

enum file_status file_read(const char *path, size_t max, char **data, size_t *len, char *why, size_t why_size)
{
    struct stat st;
    const char *reason = NULL;
    char *text = NULL;

    *data = NULL;
    *len = 0;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st) < 0)
        goto fail;
    if (!S_ISREG(st.st_mode)) {
        reason = "not a regular file";
        goto fail;
    }
    if ((uintmax_t)st.st_size > max) {
        reason = "longer than allowed";
        goto fail;
    }
    /* One byte more than the file has: it becomes the NUL, and filled by read() it tells that the file grew meanwhile. */
    size_t size = (size_t)st.st_size;
    text = malloc(size + 1);
    ssize_t n = text ? read_all(fd, text, size + 1) : -1;
    if (n < 0)
        goto fail;
    if ((size_t)n > size) {
        reason = "it changed meanwhile";
        goto fail;
    }
    close(fd);
    text[n] = '\0';
    *data = text;
    *len = (size_t)n;
    return FILE_OK;
fail:;
    int err = errno;
    if (reason)
        snprintf(why, why_size, "cannot read %s: %s", path, reason);
    else
        snprintf(why, why_size, "cannot read %s: %m", path);
    free(text);
    if (fd < 0)
        return err == ENOENT || err == ENOTDIR ? FILE_ABSENT : FILE_ERROR;
    close(fd);
    return FILE_ERROR;
}

/** Opens a new file in the folder of `path`; its name goes to `temp`. The name does not contain that of the target, which
 *  may already be as long as the file system allows. */
static int open_temp(const char *path, char *temp, size_t temp_size)
{
    static atomic_uint counter;
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash + 1 - path) : 0;

    /* a name in use is a leftover of a killed process that had our pid */
    for (int tries = 0; tries < 100; tries++) {
        int n = snprintf(temp, temp_size, "%.*s.lunacos-%ld-%u.tmp", folder, path, (long)getpid(), atomic_fetch_add(&counter, 1));
        if (n < 0 || (size_t)n >= temp_size) {
            errno = ENAMETOOLONG;
            return -1;
        }
        int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

/** Makes the rename itself durable. */
static bool sync_folder(const char *path)
{
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');

    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash + 1 - path) : 1, slash ? path : ".");
    /* cannot be cut short: the name of the temporary file did fit */
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    /* some file systems cannot sync a folder and say EINVAL: nothing more can be done there */
    bool ok = fsync(fd) == 0 || errno == EINVAL;
    int err = errno;
    close(fd);
    errno = err;
    return ok;
}

bool file_replace(const char *path, const void *data, size_t len, const struct file_attr *attr, char *why, size_t why_size)
{
    char temp[PATH_MAX];
    struct stat old;
    mode_t mode = attr->mode;
    const char *what = NULL;

    if (!mode)
        mode = stat(path, &old) == 0 ? old.st_mode & 07777 : 0644;
    int fd = open_temp(path, temp, sizeof(temp));
    if (fd < 0) {
        snprintf(why, why_size, "cannot create a temporary file beside %s: %m", path);
        return false;
    }
    /* the owner first: chown drops set-id bits, and until the mode is set nobody else can read */
    if ((attr->uid != (uid_t)-1 || attr->gid != (gid_t)-1) && fchown(fd, attr->uid, attr->gid) < 0)
        what = "cannot change the owner of";
    else if (fchmod(fd, mode) < 0)
        what = "cannot change the mode of";
    else if (!write_all(fd, data, len) || (attr->sync && fsync(fd) < 0))
        what = "cannot write";
    int err = errno;
    /* close() reports what a network file system found out late */
    if (close(fd) < 0 && !what) {
        what = "cannot write";
        err = errno;
    }
    if (!what && rename(temp, path) < 0) {
        what = "cannot replace";
        err = errno;
    }
    if (what)
        unlink(temp);
    else if (attr->sync && !sync_folder(path)) {
        what = "replaced, but cannot sync the folder of";
        err = errno;
    }
    errno = err;
    if (what)
        snprintf(why, why_size, "%s %s: %m", what, path);
    return !what;
}

bool file_mkdirs(const char *dir, char *why, size_t why_size)
{
    char path[PATH_MAX];
    struct stat st;
    size_t n = strlen(dir);

    if (stat(dir, &st) == 0 && S_ISDIR(st.st_mode))
        return true;
    errno = n ? ENAMETOOLONG : ENOENT;
    bool ok = n && n < sizeof(path);
    if (ok)
        memcpy(path, dir, n + 1);
    for (size_t i = 1; ok && i <= n; i++) {
        if (dir[i] != '/' && dir[i] != '\0')
            continue;
        path[i] = '\0';
        /* whatever mkdir says of a folder that is there (EEXIST, EROFS, EACCES) does not matter */
        if (mkdir(path, 0755) < 0) {
            int err = errno;
            ok = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
            errno = err;
        }
        path[i] = dir[i];
    }
    if (!ok)
        snprintf(why, why_size, "cannot make the folder %s: %m", dir);
    return ok;
}

int file_copy_fd(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
}

__attribute__((noinline)) void file_close_copy(int fd)
{
    close(fd);
}
