/** protocol: the seam between what the client asks of a server and how a dialect of the protocol says it.
 *
 *  config and longpoll know keys, md5s and contents; they ask a dialect for a *question* (a request line, headers, a body) and hand
 * the answer to the question's judge, which says what it means. A judge sees one response and decides; it never does I/O and keeps
 * no state, so a dialect can be tested with literal bytes. Whoever adds a dialect writes another table of these functions in a file
 * of its own; nothing outside looks at a status code. */
#ifndef LUNACOS_PROTOCOL_H
#define LUNACOS_PROTOCOL_H

#include "engine/buf.h"
#include "engine/http.h"
#include "nacos.h"

#define PUBLISH_MAX 2097152   /* bytes of encoded form that a server reads (Tomcat's default, measured on every version) */
#define TARGET_MAX (64 << 10) /* bytes of path and query */

struct key {
    const char *data_id, *group, *ns; /* ns: "" is the public one */
};

enum verdict {
    VERDICT_ANSWER,  /* final: err->code says which */
    VERDICT_NEXT,    /* this server failed; another may answer. err says how */
    VERDICT_AGAIN,   /* the same server in a moment (409: being modified) */
    VERDICT_NO_RIGHT /* 403: perhaps the token is stale */
};

struct question {
    const char *method;
    struct buf target; /* path after the context path, and query */
    struct buf body;   /* form; empty: none */
    char headers[3][160];
    int header_count;
    bool cas;         /* sent at most once: a repeat would be answered "conflict" by its own first copy */
    bool one_try;     /* its owner does the retrying */
    int64_t hold_ms;  /* > 0: a long poll that may be held so long */
    struct key key;   /* for messages and signatures; data_id NULL: not about one item. Not owned */
    const char *verb; /* "read", "publish", … */
    enum verdict (*judge)(const struct question *, const struct http_response *, nacos_error *);
};

void question_free(struct question *q);

struct protocol {
    const char *name;
    void (*read)(struct question *q, const struct key *k);
    /** False and err (NACOS_INVALID) when it is larger than a server reads. */
    bool (*publish)(struct question *q, const struct key *k, const nacos_publish *p, nacos_error *err);
    void (*remove)(struct question *q, const struct key *k);
    void (*list)(struct question *q, const struct key *pattern, int page, int page_size);
    void (*version)(struct question *q);
    /** The version out of an answer to the question above. */
    bool (*parse_version)(const struct http_response *r, char *out, size_t size);

    /* "Tell me when one of these differs from what I hold": open, add each key, close. */
    void (*listen)(struct question *q, const char *ns, int64_t hold_ms, bool at_once);
    void (*listen_add)(struct question *q, const struct key *k, const char *md5);
    /** Calls `changed` for each key of the answer; false: not such an answer. */
    bool (*listen_changed)(const struct http_response *r, void (*changed)(void *arg, const struct key *k), void *arg);
};

extern const struct protocol protocol_v1;
/** What a server without parts of v1 still offers (3.x): only list and version differ. */
extern const struct protocol protocol_v3_admin;

/* The login is the same everywhere but for its path. */
void login_question(struct question *q, const char *path, const char *username, const char *password);
bool login_parse(const struct http_response *r, char **token, int64_t *ttl_s, bool *no_auth);

#endif
