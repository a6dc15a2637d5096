/** reqlog: the requests the server saw, for tests to look at. The newest 10,000, and at most 64 MiB of them. */
#ifndef LUNACOS_EMBEDDED_REQLOG_H
#define LUNACOS_EMBEDDED_REQLOG_H

#include <jansson.h>

struct entry;

struct reqlog {
    struct entry **ring; /* entries first … first + count - 1, modulo the ring's size */
    size_t first, count, bytes;
    unsigned long total; /* since the last clearing; also the number of the newest */
    unsigned long generation;
};

/** What is written down. The texts are copied; `headers` is name NUL value NUL … */
struct logged {
    const char *method, *path, *query, *headers, *body;
    size_t headers_len, body_len;
    unsigned long connection;
};

/** Returns a handle for reqlog_status(); 0 if memory ran out. */
unsigned long reqlog_add(struct reqlog *l, const struct logged *what);
/** Notes the status sent; nothing happens when the entry is gone. */
void reqlog_status(struct reqlog *l, unsigned long handle, int status);
/** {"total":n,"requests":[…]}; NULL: out of memory. */
json_t *reqlog_json(const struct reqlog *l);
void reqlog_clear(struct reqlog *l);
void reqlog_free(struct reqlog *l);

#endif
