/** form: see form.h. */
#include "embedded/form.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool form_decode(char *text, size_t *len)
{
    size_t out = 0;
    for (size_t i = 0; i < *len; i++) {
        char c = text[i];
        if (c == '+') {
            c = ' ';
        } else if (c == '%') {
            int high = i + 2 < *len ? hex(text[i + 1]) : -1, low = i + 2 < *len ? hex(text[i + 2]) : -1;
            if (high < 0 || low < 0)
                return false;
            c = (char)(high << 4 | low);
            i += 2;
        }
        text[out++] = c;
    }
    text[out] = '\0';
    *len = out;
    return true;
}

/** Length of the UTF-8 sequence at p (n bytes are left); negative: that many bytes are one malformed unit. */
static int sequence(const unsigned char *p, size_t n)
{
    if (p[0] < 0x80)
        return 1;
    int want = p[0] >= 0xc2 && p[0] <= 0xdf ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : p[0] >= 0xf0 && p[0] <= 0xf4 ? 4 : 0;
    if (!want)
        return -1;
    for (int i = 1; i < want; i++) {
        unsigned char low = 0x80, high = 0xbf;
        if (i == 1) { /* no overlong forms, nothing above U+10FFFF */
            low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : low;
            high = p[0] == 0xf4 ? 0x8f : high;
        }
        if ((size_t)i >= n || p[i] < low || p[i] > high)
            return -i;
    }
    return p[0] == 0xed && p[1] >= 0xa0 ? -3 : want; /* a surrogate is one unit, where Java itself sees three */
}

/** Replaces what is not UTF-8 by U+FFFD. */
static bool scrub(struct param *p)
{
    const unsigned char *s = (const unsigned char *)p->value;
    size_t bad = 0;
    for (size_t i = 0; i < p->len;) {
        int n = sequence(s + i, p->len - i);
        bad += n < 0;
        i += (size_t)(n < 0 ? -n : n);
    }
    if (!bad)
        return true;
    char *clean = malloc(p->len + 2 * bad + 1);
    if (!clean)
        return false;
    size_t out = 0;
    for (size_t i = 0; i < p->len;) {
        int n = sequence(s + i, p->len - i);
        memcpy(clean + out, n < 0 ? "\xef\xbf\xbd" : (const char *)s + i, (size_t)(n < 0 ? 3 : n));
        out += (size_t)(n < 0 ? 3 : n);
        i += (size_t)(n < 0 ? -n : n);
    }
    clean[out] = '\0';
    *p = (struct param){.name = p->name, .value = clean, .len = out, .owned = true};
    return true;
}

static bool add(struct form *f, char *text, size_t len)
{
    char *eq = memchr(text, '=', len);
    size_t name_len = eq ? (size_t)(eq - text) : len;
    char *value = eq ? eq + 1 : text + len;
    size_t value_len = eq ? len - name_len - 1 : 0;
    if (eq)
        *eq = '\0';
    if (name_len == 0 || !form_decode(text, &name_len) || !form_decode(value, &value_len))
        return true;
    if (f->count == f->cap) {
        size_t cap = f->cap ? f->cap * 2 : 8;
        struct param *params = realloc(f->params, sizeof *params * cap);
        if (!params)
            return false;
        f->params = params;
        f->cap = cap;
    }
    struct param *p = &f->params[f->count];
    *p = (struct param){.name = text, .value = value, .len = value_len};
    if (!scrub(p))
        return false;
    f->count++;
    return true;
}

bool form_parse(struct form *f, char *text, size_t len)
{
    f->texts[f->texts[0] ? 1 : 0] = text;
    for (char *p = text, *end = text + len; p < end;) {
        char *amp = memchr(p, '&', (size_t)(end - p));
        size_t n = (size_t)((amp ? amp : end) - p);
        p[n] = '\0';
        if (!add(f, p, n))
            return false;
        p += n + 1;
    }
    return true;
}

const char *form_get(const struct form *f, const char *name, size_t *len)
{
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->params[i].name, name) == 0) {
            if (len)
                *len = f->params[i].len;
            return f->params[i].value;
        }
    return NULL;
}

bool form_join(struct form *f, const char *name)
{
    struct param *first = NULL;
    for (size_t i = 0; i < f->count; i++) {
        struct param *p = &f->params[i];
        if (strcmp(p->name, name) != 0)
            continue;
        if (!first) {
            first = p;
            continue;
        }
        char *joined = malloc(first->len + 1 + p->len + 1);
        if (!joined)
            return false;
        memcpy(joined, first->value, first->len);
        joined[first->len] = ',';
        memcpy(joined + first->len + 1, p->value, p->len + 1);
        if (first->owned)
            free(first->value);
        *first = (struct param){.name = first->name, .value = joined, .len = first->len + 1 + p->len, .owned = true};
        *p->name = '\0'; /* counted */
    }
    return true;
}

void form_free(struct form *f)
{
    for (size_t i = 0; i < f->count; i++)
        if (f->params[i].owned)
            free(f->params[i].value);
    free(f->params);
    free(f->texts[0]);
    free(f->texts[1]);
    *f = (struct form){0};
}

bool text_blank(const char *text)
{
    while (text && isspace((unsigned char)*text))
        text++;
    return !text || !*text;
}

size_t text_units(const char *text, size_t len)
{
    size_t units = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        units += ((c & 0xc0) != 0x80) + (c >= 0xf0);
    }
    return units;
}
