/** reqlog: see reqlog.h. */
#include "embedded/reqlog.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/time.h>

enum { RING = 10000, BODY_MAX = 64 << 10, BYTES_MAX = 64 << 20 };

struct entry {
    unsigned long n;
    unsigned long handle;
    unsigned long connection;
    double time;
    int status;
    size_t size, headers_len, body_len;
    const char *method, *path, *query, *headers, *body; /* into text */
    char text[];
};

static struct entry **slot(const struct reqlog *l, size_t i)
{
    return &l->ring[(l->first + i) % RING];
}

static void drop_oldest(struct reqlog *l)
{
    struct entry *e = *slot(l, 0);
    l->bytes -= e->size;
    free(e);
    l->first = (l->first + 1) % RING;
    l->count--;
}

void reqlog_clear(struct reqlog *l)
{
    while (l->count > 0)
        drop_oldest(l);
    l->total = 0;
}

void reqlog_free(struct reqlog *l)
{
    reqlog_clear(l);
    free(l->ring);
    l->ring = NULL;
}

static const char *put(char **at, const char *text, size_t len)
{
    char *to = *at;
    if (len)
        memcpy(to, text, len);
    to[len] = '\0';
    *at += len + 1;
    return to;
}

unsigned long reqlog_add(struct reqlog *l, const struct logged *what)
{
    l->total++;
    if (!l->ring)
        l->ring = calloc(RING, sizeof(struct entry *));
    size_t body_len = what->body_len < BODY_MAX ? what->body_len : BODY_MAX;
    size_t method = strlen(what->method), path = strlen(what->path), query = strlen(what->query);
    size_t size = sizeof(struct entry) + method + path + query + what->headers_len + body_len + 5;
    struct entry *e = l->ring ? malloc(size) : NULL;
    if (!e)
        return 0;
    struct timeval now;
    gettimeofday(&now, NULL);
    *e = (struct entry){.n = l->total,
                        .handle = ++l->generation,
                        .connection = what->connection,
                        .time = (double)now.tv_sec + (double)now.tv_usec / 1e6,
                        .size = size,
                        .headers_len = what->headers_len,
                        .body_len = body_len};
    char *at = e->text;
    e->method = put(&at, what->method, method);
    e->path = put(&at, what->path, path);
    e->query = put(&at, what->query, query);
    e->headers = put(&at, what->headers, what->headers_len);
    e->body = put(&at, what->body, body_len);
    while (l->count > 0 && (l->count == RING || l->bytes + size > BYTES_MAX))
        drop_oldest(l);
    *slot(l, l->count++) = e;
    l->bytes += size;
    return e->handle;
}

void reqlog_status(struct reqlog *l, unsigned long handle, int status)
{
    /* handles run without a gap: they are counted where an entry is made */
    if (l->count == 0 || handle < (*slot(l, 0))->handle)
        return;
    size_t i = handle - (*slot(l, 0))->handle;
    if (i < l->count && (*slot(l, i))->handle == handle)
        (*slot(l, i))->status = status;
}

/** A JSON string of any bytes: what is not UTF-8 is taken for Latin-1. */
static json_t *any_string(const char *text, size_t len)
{
    json_t *s = json_stringn(text, len);
    if (s || len == 0)
        return s;
    char *wide = malloc(len * 2);
    size_t n = 0;
    for (size_t i = 0; wide && i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x80)
            wide[n++] = (char)(0xc0 | c >> 6);
        wide[n++] = (char)(c < 0x80 ? c : 0x80 | (c & 0x3f));
    }
    s = wide ? json_stringn(wide, n) : NULL;
    free(wide);
    return s;
}

static json_t *headers_json(const struct entry *e)
{
    json_t *headers = json_object();
    for (const char *p = e->headers, *end = p + e->headers_len; p < end;) {
        const char *name = p, *value = name + strlen(name) + 1;
        p = value + strlen(value) + 1;
        json_object_set_new_nocheck(headers, name, any_string(value, strlen(value)));
    }
    return headers;
}

json_t *reqlog_json(const struct reqlog *l)
{
    json_t *list = json_array();
    for (size_t i = 0; i < l->count; i++) {
        const struct entry *e = *slot(l, i);
        json_t *o = json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:I, s:f}", "n", (json_int_t)e->n, "method",
                              any_string(e->method, strlen(e->method)), "path", any_string(e->path, strlen(e->path)), "query",
                              any_string(e->query, strlen(e->query)), "headers", headers_json(e), "body",
                              any_string(e->body, e->body_len), "connection", (json_int_t)e->connection, "time", e->time);
        if (o && e->status)
            json_object_set_new(o, "status", json_integer(e->status));
        if (!o || json_array_append_new(list, o) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return json_pack("{s:I, s:o}", "total", (json_int_t)l->total, "requests", list);
}
