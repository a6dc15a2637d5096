/** reply: one answer before it meets HTTP: status, headers, body. */
#ifndef LUNACOS_EMBEDDED_REPLY_H
#define LUNACOS_EMBEDDED_REPLY_H

#include <jansson.h>

#include "engine/buf.h"

#define TYPE_JSON "application/json"
#define TYPE_JSON_UTF8 "application/json;charset=UTF-8"
#define TYPE_TEXT "text/plain;charset=UTF-8"

struct reply {
    int status;
    struct buf head; /* name NUL value NUL … */
    struct buf body;
    bool chunked; /* no Content-Length, as the real server's larger and JSON answers */
};

void reply_init(struct reply *p);
void reply_free(struct reply *p);
/** Empty again: status 0, no header, no body. */
void reply_clear(struct reply *p);

void reply_header(struct reply *p, const char *name, const char *value);
/** Next header; `at` starts as 0. False: no more. */
bool reply_next_header(const struct reply *p, size_t *at, const char **name, const char **value);
bool reply_has_header(const struct reply *p, const char *name);
void reply_no_cache(struct reply *p);
/** Date text of a header (29 characters and a NUL). */
void reply_date(int64_t unix_seconds, char out[32]);

/** A whole answer of text. */
void reply_text(struct reply *p, int status, const char *type, const char *text);
/** A whole answer of JSON; takes the reference. */
void reply_json(struct reply *p, int status, const char *type, json_t *value);
/** An exception as the real server words it: `caused: MESSAGE;`, HTML-escaped if `escape`. */
void reply_caused(struct reply *p, int status, const char *message, bool escape);
/** The error page of Spring, in JSON. */
void reply_error_page(struct reply *p, int status, const char *type, const char *message, const char *path);

/** The reason phrase of a status. */
const char *reply_reason(int status);
/** The answer as it goes over the wire, closing the connection. `length` ≥ 0 is claimed as Content-Length instead of the true one.
 */
void reply_compose(const struct reply *p, long long length, struct buf *out);

#endif
