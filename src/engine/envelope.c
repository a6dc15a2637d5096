#include "engine/envelope.h"

#include <stdint.h>
#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 }; /* wire types; the others (groups) are long gone */
enum {
    PAYLOAD_METADATA = 2,
    PAYLOAD_BODY = 3,
    META_TYPE = 3,
    META_HEADERS = 7,
    META_CLIENT_IP = 8,
    ENTRY_NAME = 1,
    ENTRY_VALUE = 2,
    ANY_VALUE = 2
};

struct slice slice_of(const char *text)
{
    return text ? (struct slice){text, strlen(text)} : (struct slice){NULL, 0};
}

bool slice_is(struct slice s, const char *text)
{
    size_t len = strlen(text);
    return s.len == len && (len == 0 || memcmp(s.data, text, len) == 0);
}

/* ---- writing: the sizes first, since each message has its length before it ------------------------------------------------ */

static size_t field_size(size_t len)
{
    size_t size = 2 + len; /* every tag here is one byte */
    for (size_t n = len; n > 127; n >>= 7)
        size++;
    return size;
}

static void put_head(struct buf *out, int field, size_t len)
{
    char bytes[11] = {(char)(field << 3 | BYTES)};
    size_t n = 1;
    for (; len > 127; len >>= 7)
        bytes[n++] = (char)(len | 128);
    bytes[n++] = (char)len;
    buf_append(out, bytes, n);
}

static void put(struct buf *out, int field, struct slice s)
{
    put_head(out, field, s.len);
    buf_append(out, s.data, s.len);
}

static size_t header_size(const struct envelope_header *h)
{
    return field_size(h->name.len) + field_size(h->value.len);
}

void envelope_write(struct buf *out, const struct envelope *e)
{
    size_t size = field_size(e->type.len);
    for (int i = 0; i < e->header_count; i++)
        size += field_size(header_size(&e->headers[i]));
    if (e->client_ip.len)
        size += field_size(e->client_ip.len);
    put_head(out, PAYLOAD_METADATA, size);
    put(out, META_TYPE, e->type);
    for (int i = 0; i < e->header_count; i++) {
        put_head(out, META_HEADERS, header_size(&e->headers[i]));
        put(out, ENTRY_NAME, e->headers[i].name);
        put(out, ENTRY_VALUE, e->headers[i].value);
    }
    if (e->client_ip.len)
        put(out, META_CLIENT_IP, e->client_ip);
    put_head(out, PAYLOAD_BODY, field_size(e->json.len));
    put(out, ANY_VALUE, e->json);
}

/* ---- reading --------------------------------------------------------------------------------------------------------------- */

static bool take_varint(struct slice *s, uint64_t *n)
{
    *n = 0;
    for (int shift = 0; s->len && shift < 70; shift += 7) {
        unsigned char byte = (unsigned char)*s->data++;
        s->len--;
        *n |= (uint64_t)(byte & 127) << shift; /* what the tenth byte has too much falls off, as everywhere */
        if (byte < 128)
            return true;
    }
    return false;
}

/** Takes the next field off the front. *field is 0 unless it is one of bytes. */
static bool take_field(struct slice *s, uint64_t *field, struct slice *value)
{
    uint64_t tag, n;
    if (!take_varint(s, &tag) || tag >> 3 == 0 || tag > UINT32_MAX)
        return false;
    *field = 0;
    switch (tag & 7) {
    case VARINT:
        return take_varint(s, &n);
    case FIXED64:
        n = 8;
        break;
    case FIXED32:
        n = 4;
        break;
    case BYTES:
        if (!take_varint(s, &n))
            return false;
        *field = tag >> 3;
        break;
    default:
        return false;
    }
    if (n > s->len)
        return false;
    *value = (struct slice){s->data, (size_t)n};
    s->data += n;
    s->len -= (size_t)n;
    return true;
}

static bool read_header(struct slice s, struct envelope *out)
{
    struct envelope_header h = {0};
    struct slice v;
    uint64_t field;
    while (s.len) {
        if (!take_field(&s, &field, &v))
            return false;
        if (field == ENTRY_NAME)
            h.name = v;
        else if (field == ENTRY_VALUE)
            h.value = v;
    }
    if (out->header_count < ENVELOPE_HEADERS_MAX)
        out->headers[out->header_count++] = h;
    return true;
}

static bool read_metadata(struct slice s, struct envelope *out)
{
    struct slice v;
    uint64_t field;
    while (s.len) {
        if (!take_field(&s, &field, &v) || (field == META_HEADERS && !read_header(v, out)))
            return false;
        if (field == META_TYPE)
            out->type = v;
        else if (field == META_CLIENT_IP)
            out->client_ip = v;
    }
    return true;
}

static bool read_body(struct slice s, struct envelope *out)
{
    struct slice v;
    uint64_t field;
    while (s.len) {
        if (!take_field(&s, &field, &v))
            return false;
        if (field == ANY_VALUE)
            out->json = v;
    }
    return true;
}

bool envelope_read(const void *data, size_t len, struct envelope *out)
{
    struct slice s = {data, len}, v;
    uint64_t field;
    *out = (struct envelope){0};
    while (s.len) {
        if (!take_field(&s, &field, &v) || (field == PAYLOAD_METADATA && !read_metadata(v, out)) ||
            (field == PAYLOAD_BODY && !read_body(v, out)))
            return false;
    }
    return true;
}
