/** envelope: the protobuf message in which Nacos wraps everything it sends over gRPC: a type, headers, and a JSON text.
 *
 *      Payload  { 2: Metadata { 3: string type, 7: map<string,string> headers, 8: string clientIp }, 3: Any { 2: bytes value } }
 *
 *  Written by hand, because two field kinds of protobuf (varint, length-delimited) are all there is. Knows nothing of HTTP/2. */
#ifndef LUNACOS_ENVELOPE_H
#define LUNACOS_ENVELOPE_H

#include <stdbool.h>
#include <stddef.h>

#include "engine/buf.h"

#define ENVELOPE_MAX (10 << 20) /* bytes of one message, on both sides of every Nacos server */
#define ENVELOPE_HEADERS_MAX 16 /* further ones are left out */

struct slice {
    const char *data; /* not NUL-terminated */
    size_t len;
};

struct envelope_header {
    struct slice name, value;
};

/** A message taken apart; everything points into it. Absent parts are empty. */
struct envelope {
    struct slice type, client_ip, json;
    struct envelope_header headers[ENVELOPE_HEADERS_MAX];
    int header_count;
};

/** Appends the message (without the five bytes of gRPC before it). Look at out->failed. */
void envelope_write(struct buf *out, const struct envelope *e);
/** False: not such a message (a length that lies, a varint without an end, a group …). Unknown fields are skipped; of a field that
 * comes twice the last counts. */
bool envelope_read(const void *data, size_t len, struct envelope *out);
bool slice_is(struct slice s, const char *text);
struct slice slice_of(const char *text); /* NULL: empty */

#endif
