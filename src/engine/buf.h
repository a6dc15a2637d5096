/** buf: a byte buffer that grows up to a cap it is born with.
 *
 *  Every append either succeeds whole or marks the buffer `failed` and leaves it as it was: callers append
 *  freely and look at `failed` once, before they use the result. A zeroed struct is not a buffer: buf_init(). */
#ifndef LUNACOS_BUF_H
#define LUNACOS_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* NULL until the first append; then followed by a NUL that `len` does not count */
    size_t len, cap;
    size_t max;  /* the cap in bytes */
    bool failed; /* an append would have passed `max`, or memory ran out */
};

void buf_init(struct buf *b, size_t max);
void buf_free(struct buf *b);
/** Empties the buffer and clears `failed`; keeps its memory. */
void buf_clear(struct buf *b);
bool buf_append(struct buf *b, const void *p, size_t n);
bool buf_puts(struct buf *b, const char *s);
bool buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/** Appends p percent-encoded: unreserved characters of RFC 3986 stay, every other byte becomes %XX. */
bool buf_append_encoded(struct buf *b, const char *p, size_t n);
/** Appends `name=value` of a form or query, value encoded, preceded by `&` unless the buffer is empty or ends in `?`.
 *  A NULL value appends nothing. */
bool buf_form(struct buf *b, const char *name, const char *value);
bool buf_form_n(struct buf *b, const char *name, const char *value, size_t n);
/** Hands the memory to the caller (free()); the buffer is empty again and not `failed`: look at that before. NULL when it was
 * empty. */
char *buf_take(struct buf *b, size_t *len);

#endif
