/** log: one line per event, to standard error or to a file that rotates at midnight.
 *
 *  Thread-safe. A message never holds a secret: callers pass keys, servers, sizes and md5s, not contents. */
#ifndef LUNACOS_LOG_H
#define LUNACOS_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

/** Parses "debug", "INFO", "warning"/"warn", "error"/"critical", "off" (any case). False: unknown. */
bool log_level_parse(const char *name, enum log_level *out);

/** `dir` NULL or empty: standard error. Otherwise `dir/lunacos.log`, opened for append at the first line (folder made,
 *  close-on-exec) and renamed to `lunacos.log.YYYY-MM-DD` at the first line after local midnight; the newest `backup_count` of
 *  those are kept (0: all). The day of a file found there is that of its last change. Processes may share the folder.
 *  A file that cannot be opened or written falls back to standard error with one line that says why, and is tried again the
 *  next day. Never NULL unless out of memory. */
struct log *log_open(enum log_level level, const char *dir, int backup_count);
void log_free(struct log *l);
void log_set_level(struct log *l, enum log_level level);
/** Lines are JSON objects with time, level and message. Before the first line. */
void log_set_json(struct log *l, bool json);
/** Cheap test for callers that would build an expensive message. */
bool log_enabled(const struct log *l, enum log_level level);
/** Line format: `2026-11-24T06:41:25.123+0000 WARN  message`. Newlines and control characters inside the message become spaces,
 *  so that one event is one line; at most 4 KiB, a longer one ends in `...`. `%m` is the text of errno. A NULL log drops the
 * message. */
void log_write(struct log *l, enum log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/** Control characters become spaces, in place: what a server says may reach a terminal. */
void log_plain(char *text);

/** For tests: where the time comes from. Not while another thread writes. */
void log_set_clock(struct log *l, void (*clock)(struct timespec *now));

#endif
