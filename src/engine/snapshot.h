/** snapshot: the last good value of each configuration on disk, and the operator's failover files.
 *
 *  Both are plain files named as the Nacos Python SDK names them, `dataId+group+namespace` (the public namespace is empty, so
 *  the name then ends in `+`), in two folders, so that an operator can copy one to the other.
 *  A file that cannot be read is logged and counts as absent: a snapshot never fails a call. So does a name with a slash in it,
 *  which no server accepts and which would leave the folder. A NULL namespace is the public one. */
#ifndef LUNACOS_SNAPSHOT_H
#define LUNACOS_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>

struct log;

/** Reads `base/dataId+group+namespace`; NULL if absent or unusable, also empty (then logged). The caller frees. `max` bounds the
 * size. */
char *snapshot_read(const char *base, const char *data_id, const char *group, const char *ns, size_t max, size_t *len,
                    struct log *log);
/** Writes it atomically, making the folder when needed; false (logged) on any failure. Writes nothing, and returns true, when the
 *  file already holds exactly these bytes. */
bool snapshot_write(const char *base, const char *data_id, const char *group, const char *ns, const void *data, size_t len,
                    struct log *log);
/** Removes it; absent is fine. */
void snapshot_remove(const char *base, const char *data_id, const char *group, const char *ns, struct log *log);

#endif
