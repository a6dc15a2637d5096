/** buf: see buf.h. Growth doubles, so that n appends cost O(n), and stops exactly at `max`. */
#include "engine/buf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_CAP = 64 };

void buf_init(struct buf *b, size_t max)
{
    *b = (struct buf){.max = max < SIZE_MAX ? max : SIZE_MAX - 1}; /* room for the NUL */
}

void buf_free(struct buf *b)
{
    free(b->data);
    buf_init(b, b->max);
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = '\0';
}

/** Makes room for n more bytes and the NUL. `cap` is the size of the allocation, NUL included. */
static bool reserve(struct buf *b, size_t n)
{
    if (n > b->max - b->len)
        goto fail;
    size_t need = b->len + n + 1, cap = b->cap ? b->cap : FIRST_CAP;
    if (need <= b->cap)
        return true;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    if (cap > b->max + 1)
        cap = b->max + 1;
    char *data = realloc(b->data, cap);
    if (!data)
        goto fail;
    b->data = data;
    b->cap = cap;
    return true;
fail:
    b->failed = true;
    return false;
}

/** Back to an earlier length, after an append that failed half-way. */
static bool rewind_to(struct buf *b, size_t len)
{
    b->len = len;
    if (b->data)
        b->data[len] = '\0';
    return false;
}

bool buf_append(struct buf *b, const void *p, size_t n)
{
    if (!reserve(b, n))
        return false;
    if (n) /* p may be NULL then, which memcpy does not allow */
        memcpy(b->data + b->len, p, n);
    b->len += n;
    b->data[b->len] = '\0';
    return true;
}

bool buf_puts(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s));
}

bool buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    bool ok = n >= 0 && reserve(b, (size_t)n);
    if (ok) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    } else {
        b->failed = true;
    }
    va_end(again);
    return ok;
}

/** Not isalnum(): that one follows the locale, RFC 3986 does not. */
static bool unreserved(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' ||
           c == '~';
}

bool buf_append_encoded(struct buf *b, const char *p, size_t n)
{
    static const char hex[] = "0123456789ABCDEF";
    size_t size = n;
    for (size_t i = 0; i < n; i++)
        size += unreserved((unsigned char)p[i]) ? 0 : 2;
    if (!reserve(b, size))
        return false;
    char *out = b->data + b->len;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (unreserved(c)) {
            *out++ = p[i];
        } else {
            *out++ = '%';
            *out++ = hex[c >> 4];
            *out++ = hex[c & 15];
        }
    }
    *out = '\0';
    b->len += size;
    return true;
}

bool buf_form(struct buf *b, const char *name, const char *value)
{
    return buf_form_n(b, name, value, value ? strlen(value) : 0);
}

bool buf_form_n(struct buf *b, const char *name, const char *value, size_t n)
{
    if (!value)
        return true;
    size_t len = b->len;
    if (len && b->data[len - 1] != '?' && !buf_append(b, "&", 1))
        return false;
    if (buf_puts(b, name) && buf_append(b, "=", 1) && buf_append_encoded(b, value, n))
        return true;
    return rewind_to(b, len);
}

char *buf_take(struct buf *b, size_t *len)
{
    char *data = b->len ? b->data : NULL;
    if (len)
        *len = b->len;
    if (!data)
        free(b->data);
    buf_init(b, b->max);
    return data;
}
