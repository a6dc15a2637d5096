/** form: the parameters of one request, as a servlet container sees them.
 *
 *  Query first, then body. Values are UTF-8: what is not becomes U+FFFD, as in Tomcat, so all behind this door is valid text. */
#ifndef LUNACOS_EMBEDDED_FORM_H
#define LUNACOS_EMBEDDED_FORM_H

#include <stdbool.h>
#include <stddef.h>

struct param {
    char *name;
    char *value; /* NUL-terminated; may hold further NULs, which `len` counts */
    size_t len;
    bool owned; /* `value` is an allocation of its own, not part of a text */
};

struct form {
    struct param *params;
    size_t count, cap;
    char *texts[2];
};

/** Adds the parameters of `text` (malloc'ed, len bytes and a NUL), which the form now owns and decodes in place. At most two texts.
 *  A parameter with a broken percent escape is left out. False: out of memory. */
bool form_parse(struct form *f, char *text, size_t len);
/** The value, or NULL when there is no such parameter; of several the first. `len` may be NULL. */
const char *form_get(const struct form *f, const char *name, size_t *len);
/** Makes one parameter of those with this name: their values with commas between, as Spring hands them to a handler.
 *  False: out of memory. */
bool form_join(struct form *f, const char *name);
void form_free(struct form *f);

/** Decodes %XX and `+` in place and terminates the result. False: a broken escape. */
bool form_decode(char *text, size_t *len);
/** Nothing but white space, or NULL. */
bool text_blank(const char *text);
/** Length in UTF-16 units, which is how the real server counts. */
size_t text_units(const char *text, size_t len);

#endif
