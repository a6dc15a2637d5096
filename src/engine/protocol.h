/** protocol: the seam between what the client asks of a server and how a dialect of the protocol says it.
 *
 *  config, watch and longpoll know keys, md5s and contents, naming, beat and subscribe know services and instances; they ask a
 * dialect for a *question* (a request line, headers, a body) and hand the answer to the question's judge, which says what it means.
 * A judge sees one response and decides; it does no I/O and keeps no state, so a dialect is tested with literal bytes. Whoever adds
 * a dialect writes another `struct protocol` in a file of its own with the tools below; nothing outside looks at a status code. */
#ifndef LUNACOS_PROTOCOL_H
#define LUNACOS_PROTOCOL_H

#include <jansson.h>

#include "engine/buf.h"
#include "engine/http.h"
#include "nacos.h"

#define PUBLISH_MAX 2097152   /* bytes of encoded form that a server reads (Tomcat's default, measured on every version) */
#define TARGET_MAX (64 << 10) /* bytes of path and query */

/** A configuration; or a service, whose name then stands in data_id. */
struct key {
    const char *data_id, *group, *ns; /* ns: "" is the public one */
};

#define KEY_NAME_MAX 520 /* dataId and group of 256 bytes each, and their NULs */

/** What the tables are keyed by: dataId NUL group NUL. Returns its length; 0: longer than `size`. */
size_t key_name(char *out, size_t size, const struct key *k);

enum verdict {
    VERDICT_ANSWER,  /* final: err->code says which */
    VERDICT_NEXT,    /* this server failed; another may answer. err says how */
    VERDICT_AGAIN,   /* the same server in a moment (409: being modified) */
    VERDICT_NO_RIGHT /* 403: perhaps the token is stale */
};

/** What a request does when a server fails. */
enum retry {
    RETRY_SERVERS, /* asks the others within the caller's time */
    RETRY_NEVER,   /* its owner sees to that */
    RETRY_UNSENT /* asks others only while nothing can have arrived: a repeat would be answered "conflict" by its own first copy */
};

struct question {
    const char *method;
    struct buf target; /* path after the context path, and query */
    struct buf body;   /* form; empty: none */
    char headers[3][160];
    int header_count;
    enum retry retry;
    int64_t hold_ms;  /* > 0: a long poll that may be held so long */
    bool naming;      /* about services: signed in their way */
    bool lasting;     /* goes on while its client leaves */
    struct key key;   /* for messages and signatures; data_id NULL: not about one item. Not owned */
    const char *verb; /* "read", "publish", … */
    enum verdict (*judge)(const struct question *, const struct http_response *, nacos_error *);
};

/** What a server says to a beat. */
struct beat_answer {
    bool unknown;        /* it does not know the instance: register again */
    bool light;          /* the next may leave the instance's data out */
    int64_t interval_ms; /* 0: not said */
};

/** Where pushes are to be sent; port 0: nowhere. */
struct push_address {
    int port;
    char ip[46];
};

struct protocol {
    const char *name;
    void (*read)(struct question *q, const struct key *k);
    /** False and err (NACOS_INVALID) when it is larger than a server reads, or no UTF-8. */
    bool (*publish)(struct question *q, const struct key *k, const nacos_publish *p, nacos_error *err);
    void (*remove)(struct question *q, const struct key *k);
    void (*list)(struct question *q, const struct key *pattern, int page, int page_size);
    void (*version)(struct question *q);

    /* "Tell me when one of these differs from what I hold": open, add each key, close. */
    void (*listen)(struct question *q, const char *ns, int64_t hold_ms, bool at_once);
    void (*listen_add)(struct question *q, const struct key *k, const char *md5);
    /** Calls `changed` for each key of the answer; false: not such an answer. */
    bool (*listen_changed)(const struct http_response *r, void (*changed)(void *arg, const struct key *k), void *arg);

    /* Services. NACOS_UNSUPPORTED to modify and get_instance: register again, look into the list. */
    void (*register_instance)(struct question *q, const struct key *service, const nacos_instance *i);
    void (*deregister_instance)(struct question *q, const struct key *service, const nacos_instance *i);
    void (*modify_instance)(struct question *q, const struct key *service, const nacos_instance *i);
    void (*get_instance)(struct question *q, const struct key *service, const nacos_instance *i);
    /** NULL: not such an answer. */
    struct hosts *(*instance_answer)(const struct http_response *r);
    void (*beat)(struct question *q, const struct key *service, const nacos_instance *i, int64_t period_ms, bool light);
    /** False: not such an answer. */
    bool (*beat_answer)(const struct http_response *r, struct beat_answer *out);
    void (*list_instances)(struct question *q, const struct key *service, const char *clusters, bool healthy_only,
                           const struct push_address *push);
    void (*put_service)(struct question *q, const struct key *service, const nacos_service_settings *o, bool update);
    void (*get_service)(struct question *q, const struct key *service);
    void (*remove_service)(struct question *q, const struct key *service);
    void (*list_services)(struct question *q, const struct key *service, int page, int page_size);
};

extern const struct protocol protocol_v1;
/** What a server without parts of v1 still offers (3.x): list and version, the rest is NULL. */
extern const struct protocol protocol_v3_admin;

/* ---- the same in every dialect (protocol.c) -------------------------------------------------------------------------------- */

/** Both buffers empty, then `path` in the target. */
void question_init(struct question *q, const char *method, const char *path, const char *verb);
void question_header(struct question *q, const char *name, const char *value);
void question_free(struct question *q);

/** Fills err ("cannot VERB KEY at SERVER: what") and returns the verdict. */
enum verdict judged(const struct question *q, const struct http_response *r, nacos_error *err, nacos_code code, enum verdict v,
                    const char *what);
/** Everything that is not a call's own good answer: no answer, 401 … 599, something that is not Nacos. */
enum verdict judge_failure(const struct question *q, const struct http_response *r, nacos_error *err);
/** A JSON object is the answer. */
enum verdict judge_json(const struct question *q, const struct http_response *r, nacos_error *err);
/** Metadata as a JSON object; the caller has the reference. NULL: out of memory. */
json_t *pairs_json(const nacos_pair *pairs, size_t count);
bool body_is(const struct http_response *r, const char *text); /* but for newlines at the end */
bool body_has(const struct http_response *r, const char *text);

/** The version out of the answer to either version question. */
bool parse_version(const struct http_response *r, char *out, size_t size);
void login_question(struct question *q, const char *path, const char *username, const char *password);
/** False: no token in it. *no_auth: a server (before 1.2) whose calls need none. */
bool login_parse(const struct http_response *r, char **token, int64_t *ttl_s, bool *no_auth);

#endif
