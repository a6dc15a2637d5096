/** snapshot: see snapshot.h. */
#include "engine/snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/file.h"
#include "engine/log.h"

enum { WHY_BYTES = 1024 };

/** `base/dataId+group+namespace` (malloc). NULL, logged: no memory, or a name with a slash, which would leave the folder. */
static char *path_of(const char *base, const char *data_id, const char *group, const char *ns, struct log *log)
{
    char *path;

    ns = ns ? ns : "";
    if (strchr(data_id, '/') || strchr(group, '/') || strchr(ns, '/')) {
        log_write(log, LOG_WARN, "no snapshot file for %s+%s+%s: a slash in the name", data_id, group, ns);
        return NULL;
    }
    if (asprintf(&path, "%s/%s+%s+%s", base, data_id, group, ns) < 0) {
        log_write(log, LOG_WARN, "no snapshot file for %s+%s+%s: out of memory", data_id, group, ns);
        return NULL;
    }
    return path;
}

char *snapshot_read(const char *base, const char *data_id, const char *group, const char *ns, size_t max, size_t *len,
                    struct log *log)
{
    char why[WHY_BYTES], *data = NULL;

    *len = 0;
    char *path = path_of(base, data_id, group, ns, log);
    if (path && file_read(path, max, &data, len, why, sizeof(why)) == FILE_ERROR)
        log_write(log, LOG_WARN, "file ignored: %s", why);
    if (data && *len == 0) { /* no server holds empty content: a power cut may leave such a file */
        log_write(log, LOG_WARN, "file ignored: %s is empty", path);
        free(data);
        data = NULL;
    }
    free(path);
    return data;
}

bool snapshot_write(const char *base, const char *data_id, const char *group, const char *ns, const void *data, size_t len,
                    struct log *log)
{
    const struct file_attr attr = {.mode = 0600, .uid = (uid_t)-1, .gid = (gid_t)-1}; /* contents may be secrets */
    char why[WHY_BYTES], *old = NULL;
    size_t old_len;
    bool ok = true;

    char *path = path_of(base, data_id, group, ns, log);
    if (!path)
        return false;
    /* a file longer than `len` is an error here, and as good as one of other bytes */
    enum file_status status = file_read(path, len, &old, &old_len, why, sizeof(why));
    if (status != FILE_OK || old_len != len || (len && memcmp(old, data, len) != 0)) {
        ok = (status != FILE_ABSENT || file_mkdirs(base, why, sizeof(why))) &&
             file_replace(path, data, len, &attr, why, sizeof(why));
        if (!ok)
            log_write(log, LOG_WARN, "snapshot not written: %s", why);
    }
    free(old);
    free(path);
    return ok;
}

void snapshot_remove(const char *base, const char *data_id, const char *group, const char *ns, struct log *log)
{
    char *path = path_of(base, data_id, group, ns, log);

    if (path && unlink(path) < 0 && errno != ENOENT && errno != ENOTDIR)
        log_write(log, LOG_WARN, "snapshot not removed: %s: %m", path);
    free(path);
}
