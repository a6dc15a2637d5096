#include "engine/scan.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

void scan_init(struct scan *s, const char *text, size_t len)
{
    *s = (struct scan){.p = text, .end = text + len, .failed = len > SCAN_LENGTH};
}

void scan_free(struct scan *s)
{
    free(s->room);
    s->room = s->room_next = NULL;
}

/** Stops everything: nothing is left to read. */
static bool fail(struct scan *s)
{
    s->failed = true;
    s->p = s->end;
    return false;
}

/** The next character that is not white space, not yet read; 0 at the end (a NUL in the text is no JSON either). */
static char peek(struct scan *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t'))
        s->p++;
    return s->p < s->end ? *s->p : '\0';
}

/* ---- strings ---- */

/** Length of the UTF-8 sequence at `p` (whose first byte is not ASCII), 0: it is none. */
static size_t sequence(const unsigned char *p, size_t left)
{
    unsigned char c = p[0];
    size_t n = c >= 0xC2 && c <= 0xDF ? 2 : c >= 0xE0 && c <= 0xEF ? 3 : c >= 0xF0 && c <= 0xF4 ? 4 : 0;

    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    if ((c == 0xE0 && p[1] < 0xA0) || (c == 0xED && p[1] > 0x9F) || (c == 0xF0 && p[1] < 0x90) || (c == 0xF4 && p[1] > 0x8F))
        return 0; /* written too long, a surrogate, or past U+10FFFF */
    return n;
}

bool scan_utf8(const char *p, size_t len)
{
    for (size_t i = 0, n; i < len; i += n) {
        n = (unsigned char)p[i] < 0x80 ? 1 : sequence((const unsigned char *)p + i, len - i);
        if (n == 0)
            return false;
    }
    return true;
}

/** Steps over what is plain: printable ASCII but for the quote and the backslash. Eight bytes at a time: no byte of the word may be
 * below 0x20, above 0x7F, or become zero when compared with one of the two. */
static const char *plain(const char *p, const char *end)
{
    const uint64_t ones = 0x0101010101010101, high = 0x8080808080808080;
    uint64_t w;

    for (; end - p >= 8; p += 8) {
        memcpy(&w, p, 8);
        uint64_t quote = w ^ (ones * '"'), back = w ^ (ones * '\\');
        if ((((w - ones * 0x20) | (quote - ones) | (back - ones)) | w) & high)
            break; /* perhaps: the bytes are looked at singly */
    }
    while (p < end && (unsigned char)*p >= 0x20 && (unsigned char)*p < 0x80 && *p != '"' && *p != '\\')
        p++;
    return p;
}

/** Four hex digits; -1: they are none. */
static int32_t hex4(const char *p, const char *end)
{
    int32_t n = 0;

    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return -1;
        n = n * 16 + digit;
    }
    return n;
}

static char *put_utf8(char *o, uint32_t c)
{
    if (c < 0x80) {
        *o++ = (char)c;
    } else if (c < 0x800) {
        *o++ = (char)(0xC0 | c >> 6);
        *o++ = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        *o++ = (char)(0xE0 | c >> 12);
        *o++ = (char)(0x80 | (c >> 6 & 0x3F));
        *o++ = (char)(0x80 | (c & 0x3F));
    } else {
        *o++ = (char)(0xF0 | c >> 18);
        *o++ = (char)(0x80 | (c >> 12 & 0x3F));
        *o++ = (char)(0x80 | (c >> 6 & 0x3F));
        *o++ = (char)(0x80 | (c & 0x3F));
    }
    return o;
}

/** Reads the escape at s->p (behind its backslash) into *o. */
static bool escape(struct scan *s, char **o, bool *usable)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char c = s->p < s->end ? *s->p++ : '\0';
    const char *simple = c ? strchr(names, c) : NULL;

    if (simple) {
        *(*o)++ = values[simple - names];
        return true;
    }
    int32_t unit = c == 'u' ? hex4(s->p, s->end) : -1;
    if (unit < 0)
        return fail(s);
    s->p += 4;
    if (unit >= 0xD800 && unit <= 0xDBFF && s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u') {
        int32_t low = hex4(s->p + 2, s->end);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            s->p += 6;
            *o = put_utf8(*o, 0x10000 + ((uint32_t)(unit - 0xD800) << 10) + (uint32_t)(low - 0xDC00));
            return true;
        }
    }
    if (unit == 0 || (unit >= 0xD800 && unit <= 0xDFFF))
        *usable = false;
    else
        *o = put_utf8(*o, (uint32_t)unit);
    return true;
}

/** Reads a string from its opening quote. */
static bool string(struct scan *s, struct scan_text *t)
{
    const char *start = ++s->p; /* of what is not copied yet */
    char *text = NULL, *o = NULL;
    bool usable = true;

    for (;;) {
        s->p = plain(s->p, s->end);
        if (s->p == s->end || (unsigned char)*s->p < 0x20)
            return fail(s);
        if ((unsigned char)*s->p >= 0x80) {
            size_t n = sequence((const unsigned char *)s->p, (size_t)(s->end - s->p));
            usable = usable && n > 0;
            s->p += n ? n : 1;
            continue;
        }
        if (*s->p == '"' && !text)
            break;
        if (!text) { /* decoded text is never longer than the text itself, so one room is enough for all that follows */
            if (!s->room)
                s->room = s->room_next = malloc((size_t)(s->end - start));
            if (!s->room)
                return fail(s);
            text = o = s->room_next;
        }
        memcpy(o, start, (size_t)(s->p - start));
        o += s->p - start;
        if (*s->p == '"')
            break;
        s->p++;
        if (!escape(s, &o, &usable))
            return false;
        start = s->p;
    }
    *t = text ? (struct scan_text){text, (size_t)(o - text)} : (struct scan_text){start, (size_t)(s->p - start)};
    if (text)
        s->room_next = o;
    if (!usable)
        *t = (struct scan_text){NULL, 0};
    s->p++;
    return true;
}

/* ---- numbers ---- */

static size_t digits(struct scan *s)
{
    const char *start = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
        s->p++;
    return (size_t)(s->p - start);
}

/** The double nearest to a number in JSON's grammar. */
static double nearest(const char *p, size_t len)
{
    json_t *j = json_loadb(p, len, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL); /* knows about locales */
    double d = j ? json_real_value(j) : *p == '-' ? -HUGE_VAL : HUGE_VAL;
    json_decref(j);
    return d;
}

static bool number(struct scan *s, struct scan_value *v)
{
    static const double tens[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000, 1000000000};
    const char *start = s->p;
    bool negative = *s->p == '-';
    size_t fraction = 0, total;
    int64_t n = 0;

    s->p += negative;
    const char *first = s->p;
    total = digits(s);
    if (total == 0 || (total > 1 && *first == '0'))
        return fail(s);
    v->kind = SCAN_INTEGER;
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if ((fraction = digits(s)) == 0)
            return fail(s);
        v->kind = SCAN_REAL;
        total += fraction;
    }
    bool simple = total <= 15 && fraction < sizeof(tens) / sizeof(tens[0]);
    if (s->p < s->end && (*s->p == 'e' || *s->p == 'E')) {
        s->p++;
        if (s->p < s->end && (*s->p == '+' || *s->p == '-'))
            s->p++;
        if (digits(s) == 0)
            return fail(s);
        v->kind = SCAN_REAL;
        simple = false;
    }
    if (v->kind == SCAN_INTEGER || simple) {
        for (const char *p = first; p < s->p; p++) {
            if (*p == '.')
                continue;
            int digit = negative ? '0' - *p : *p - '0';
            if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, digit, &n)) {
                v->kind = SCAN_REAL;
                break;
            }
        }
    }
    if (v->kind == SCAN_INTEGER) {
        v->integer = n;
        v->real = (double)n;
    } else if (simple) { /* both numbers are exact, so the quotient is the nearest */
        v->real = (double)n / tens[fraction];
    } else {
        v->real = nearest(start, (size_t)(s->p - start));
    }
    return true;
}

/* ---- values ---- */

static bool word(struct scan *s, const char *text, size_t len)
{
    if ((size_t)(s->end - s->p) < len || memcmp(s->p, text, len) != 0)
        return fail(s);
    s->p += len;
    return true;
}

bool scan_value(struct scan *s, struct scan_value *v)
{
    char c = peek(s);

    v->kind = SCAN_NOTHING;
    if (s->failed)
        return false;
    switch (c) {
    case '"':
        v->kind = SCAN_STRING;
        return string(s, &v->text);
    case '{':
    case '[':
        if (++s->depth > SCAN_DEPTH)
            return fail(s);
        s->p++;
        v->kind = c == '{' ? SCAN_OBJECT : SCAN_ARRAY;
        return true;
    case 't':
        v->kind = SCAN_TRUE;
        return word(s, "true", 4);
    case 'f':
        v->kind = SCAN_FALSE;
        return word(s, "false", 5);
    case 'n':
        v->kind = SCAN_NULL;
        return word(s, "null", 4);
    default:
        return c == '-' || (c >= '0' && c <= '9') ? number(s, v) : fail(s);
    }
}

/** Steps to the next thing in brackets: over a comma unless it is the first. False: over the closing bracket. */
static bool next(struct scan *s, bool *first, char close)
{
    char c = peek(s);

    if (s->failed)
        return false;
    if (c == close) {
        s->p++;
        s->depth--;
        return false;
    }
    if (!*first) {
        if (c != ',')
            return fail(s);
        s->p++;
    }
    *first = false;
    return true;
}

bool scan_item(struct scan *s, bool *first)
{
    return next(s, first, ']');
}

bool scan_member(struct scan *s, bool *first, struct scan_text *name)
{
    if (!next(s, first, '}'))
        return false;
    if (peek(s) != '"')
        return fail(s);
    if (!string(s, name))
        return false;
    if (peek(s) != ':')
        return fail(s);
    s->p++;
    return true;
}

void scan_skip(struct scan *s, const struct scan_value *v)
{
    struct scan_value inner;
    struct scan_text name;

    /* no deeper than SCAN_DEPTH */
    if (v->kind == SCAN_ARRAY) {
        for (bool first = true; scan_item(s, &first);)
            if (scan_value(s, &inner))
                scan_skip(s, &inner);
    } else if (v->kind == SCAN_OBJECT) {
        for (bool first = true; scan_member(s, &first, &name);)
            if (scan_value(s, &inner))
                scan_skip(s, &inner);
    }
}

bool scan_end(struct scan *s)
{
    peek(s);
    return !s->failed && s->p == s->end && s->depth == 0;
}
