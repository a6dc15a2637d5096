/** file: whole files, read with a bound and replaced atomically. */
#ifndef LUNACOS_FILE_H
#define LUNACOS_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum file_status { FILE_OK, FILE_ABSENT, FILE_ERROR };

/** Reads a regular file whole (malloc, NUL-terminated; `*data` is NULL unless FILE_OK). FILE_ABSENT: no such file or no such
 *  folder. Longer than `max` bytes, a folder, a fifo, an unreadable file: FILE_ERROR with a sentence in `why` that names the path.
 *  Never blocks on a fifo. */
enum file_status file_read(const char *path, size_t max, char **data, size_t *len, char *why, size_t why_size);

struct file_attr {
    mode_t mode; /* 0: keep that of the file replaced, else 0644 */
    uid_t uid;   /* (uid_t)-1: unchanged */
    gid_t gid;   /* (gid_t)-1: unchanged */
    bool sync;   /* fsync file and folder: survives a power cut, not just kill -9 */
};

/** Replaces `path` by `data`: temp file in the same folder, mode and owner on the descriptor, fsync (if asked), rename.
 *  On failure the old file stands, no temp file stays and `why` says what failed; only where the folder cannot be synced after
 *  the rename is false returned with the new file in place. A symbolic link is replaced, not followed. A process killed half-way
 *  leaves `.lunacos-PID-N.tmp`, which nobody reads. */
bool file_replace(const char *path, const void *data, size_t len, const struct file_attr *attr, char *why, size_t why_size);

/** A copy of a descriptor, close-on-exec and above the standard ones; -1 and errno. */
int file_copy_fd(int fd);
/** Closes a copy, or a file without a name. The thread sanitizer has not seen these being made: see scripts/test. */
void file_close_copy(int fd);

/** mkdir -p, mode 0755 less the umask. */
bool file_mkdirs(const char *dir, char *why, size_t why_size);

#endif
