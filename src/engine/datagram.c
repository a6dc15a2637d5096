#include "engine/datagram.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/** Unzips into a new block; NULL: broken, or more than DATAGRAM_INFLATED. */
static char *inflated(const void *bytes, size_t len, size_t *out_len)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)bytes, .avail_in = (uInt)len};
    char *out = NULL;
    size_t cap = len * 8 + 1024;
    if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK) /* 16: with a gzip header */
        return NULL;
    int rc = Z_OK;
    do {
        if (cap > DATAGRAM_INFLATED)
            cap = DATAGRAM_INFLATED;
        char *more = realloc(out, cap);
        if (!more)
            break;
        out = more;
        z.next_out = (Bytef *)out + z.total_out;
        z.avail_out = (uInt)(cap - z.total_out);
        rc = inflate(&z, Z_NO_FLUSH);
        if (rc == Z_OK && z.avail_out > 0)
            break; /* it wants more input than there is */
        if (rc == Z_OK && cap == DATAGRAM_INFLATED)
            break;
        cap *= 2;
    } while (rc == Z_OK);
    *out_len = z.total_out;
    inflateEnd(&z);
    if (rc == Z_STREAM_END)
        return out;
    free(out);
    return NULL;
}

static bool read_json(struct datagram *d, const char *text, size_t len, const char **why)
{
    json_t *j = hosts_load_json(text, len);
    const char *type = json_string_value(json_object_get(j, "type"));
    json_t *data = json_object_get(j, "data"), *time = json_object_get(j, "lastRefTime");
    bool list = type && (strcmp(type, "dom") == 0 || strcmp(type, "service") == 0);
    *why = !json_is_object(j) ? "it is no JSON object" : !type || strlen(type) >= sizeof d->type ? "it has no type" : NULL;
    if (!*why) {
        strcpy(d->type, type);
        d->ref_time = json_is_string(time) ? strtoll(json_string_value(time), NULL, 10) : json_integer_value(time);
    }
    if (!*why && list) {
        d->hosts = json_is_string(data) ? hosts_parse(json_string_value(data), json_string_length(data)) : NULL;
        if (!d->hosts || !d->hosts->name) {
            hosts_unref(d->hosts);
            d->hosts = NULL;
            *why = "its data is no list of instances of a service";
        }
    }
    json_decref(j);
    return *why == NULL;
}

bool datagram_read(struct datagram *d, const void *bytes, size_t len, const char **why)
{
    static const unsigned char magic[] = {0x1f, 0x8b};
    *d = (struct datagram){0};
    *why = NULL;
    if (len < sizeof magic || memcmp(bytes, magic, sizeof magic) != 0)
        return read_json(d, bytes, len, why);
    size_t n = 0;
    char *text = inflated(bytes, len, &n);
    if (!text) {
        *why = "it cannot be unzipped, or is too large then";
        return false;
    }
    bool ok = read_json(d, text, n, why);
    free(text);
    return ok;
}

void datagram_free(struct datagram *d)
{
    hosts_unref(d->hosts);
    d->hosts = NULL;
}

size_t datagram_ack(const struct datagram *d, char *out, size_t size)
{
    const char *kind = strcmp(d->type, "dom") == 0 || strcmp(d->type, "service") == 0 ? "push-ack"
                       : strcmp(d->type, "dump") == 0                                 ? "dump-ack"
                                                                                      : "unknown-ack";
    int n = snprintf(out, size, "{\"type\":\"%s\",\"lastRefTime\":\"%" PRId64 "\",\"data\":\"\"}", kind, d->ref_time);
    return n < 0 ? 0 : (size_t)n < size ? (size_t)n : size - 1;
}
