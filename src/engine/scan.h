/** scan: reads JSON text as it comes, value by value, without building a tree: what a hostile text can cost is bounded by its
 * length.
 *
 *     struct scan s;
 *     struct scan_value v;
 *     struct scan_text name;
 *     scan_init(&s, json, len);
 *     if (scan_value(&s, &v) && v.kind == SCAN_OBJECT)
 *         for (bool first = true; scan_member(&s, &first, &name);)
 *             if (!scan_value(&s, &v) || !take(&name, &v)) // takes scalars; of what it does not know:
 *                 scan_skip(&s, &v);
 *     bool fine = scan_end(&s);
 *     scan_free(&s); // what the texts pointed into
 *
 *  An error of syntax ends everything: each function then says false, and scan_end() too. Text that is well formed but not usable
 * as a C string of UTF-8 (invalid UTF-8, lone surrogates, NUL) is not an error: it is marked, so that only its entry is lost. */
#ifndef LUNACOS_SCAN_H
#define LUNACOS_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SCAN_DEPTH 64                 /* deeper nesting is an error */
#define SCAN_LENGTH ((size_t)1 << 30) /* so is a longer text */

struct scan {
    const char *p, *end;
    char *room, *room_next; /* strings with escapes, decoded; made with the first */
    int depth;
    bool failed;
};

struct scan_text {
    const char *p; /* in the text or in the room. Not NUL-terminated. NULL: not usable */
    size_t len;
};

enum scan_kind { SCAN_NOTHING, SCAN_NULL, SCAN_FALSE, SCAN_TRUE, SCAN_INTEGER, SCAN_REAL, SCAN_STRING, SCAN_ARRAY, SCAN_OBJECT };

struct scan_value {
    enum scan_kind kind; /* ARRAY, OBJECT: the opening bracket was read; what follows is to be walked, or skipped */
    struct scan_text text;
    int64_t integer;
    double real; /* also of an INTEGER. Integers past 64 bits are REAL, numbers past a double infinite */
};

void scan_init(struct scan *s, const char *text, size_t len);
void scan_free(struct scan *s);

bool scan_value(struct scan *s, struct scan_value *v);
/** Inside an object or array whose bracket was read: the next name, or whether there is a next item; false at the end, which is
 * read, too. `*first` starts as true. */
bool scan_member(struct scan *s, bool *first, struct scan_text *name);
bool scan_item(struct scan *s, bool *first);
/** Reads past the rest of a value: nothing unless it is an array or object. */
void scan_skip(struct scan *s, const struct scan_value *v);
/** Whether all of the text was read, without an error. */
bool scan_end(struct scan *s);

/** Whether `p` is UTF-8 (NUL is). */
bool scan_utf8(const char *p, size_t len);

static inline bool scan_is(const struct scan_text *t, const char *s)
{
    size_t len = strlen(s);
    return t->len == len && t->p && memcmp(t->p, s, len) == 0;
}

#endif
