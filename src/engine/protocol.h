/** protocol: the seam between what the client asks of a server and how a dialect of the protocol says it.
 *
 *  config, watch, naming, beat and subscribe know keys, md5s and contents, services and instances. What they ask is put into words
 * only when a server has been chosen, because servers of one list may speak different dialects: request.c calls their `word` with
 * the dialect of that server, which makes a *question* of it (a request line, headers and body for HTTP; a message type and JSON
 * for gRPC), and hands the answer to the question's judge, which says what it means. A judge sees one response and decides; it does
 * no I/O and keeps no state, so a dialect is tested with literal bytes. What is in a good answer comes out by the question's
 * `value`, `hosts` or `beat`.
 *
 *  Besides words a dialect has mechanisms: how changes of configurations are noticed (its detector), whether instances live by
 * beats, how long a followed service may go unasked. Whoever adds a dialect writes another `struct protocol` in a file of its own
 * with the tools below, and tells dialect.c when it is to be spoken; nothing outside looks at a status code, a message type, or
 * which dialect it is. */
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

struct value;
struct protocol;
struct beat_answer;

struct question {
    const struct protocol *protocol; /* set by request.c */
    const char *method;              /* HTTP */
    const char *rpc;                 /* gRPC: the type of the message, `body` is its JSON; NULL: HTTP */
    struct buf target;               /* path after the context path, and query */
    struct buf body;                 /* form; empty: none */
    char headers[3][160];
    int header_count;
    enum retry retry;
    int64_t hold_ms;  /* > 0: a long poll that may be held so long */
    bool naming;      /* about services: signed in their way */
    bool core;        /* every server of this dialect offers it, see question_gone() */
    size_t left_out;  /* the last so many of `with` are not in it: it would be larger than a server reads */
    struct key key;   /* for messages and signatures; data_id NULL: not about one item. Not owned */
    const char *verb; /* "read", "publish", … */
    enum verdict (*judge)(const struct question *, const struct http_response *, nacos_error *);
    /* What a good answer (VERDICT_ANSWER, NACOS_OK) holds. */
    /* The content, or the text for the host in the form of v1. The function is NULL: the body as it came. NULL from it: not such an
     * answer, or out of memory. */
    struct value *(*value)(const struct question *, const struct http_response *);
    struct hosts *(*hosts)(const struct http_response *);             /* NULL from it: likewise */
    bool (*beat)(const struct http_response *, struct beat_answer *); /* false: likewise */
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

/** A function that is NULL: this dialect has no words for it; the request ends with NACOS_UNSUPPORTED, unless its asker has another
 * way. */
struct protocol {
    const char *name;
    const struct detector *detector; /* how watches notice changes */
    bool beats;                      /* instances live by beats; else by the connection, and are registered anew with each */
    bool one_publisher;              /* per service and connection: registering names all instances of the service, see `with` */
    bool udp;                        /* pushes of instance lists come as datagrams */
    int64_t follow_ms;               /* a followed service is not asked for more often than this; 0: as the user says */

    void (*read)(struct question *q, const struct key *k);
    /** False and err (NACOS_INVALID) when it is larger than a server reads. */
    bool (*publish)(struct question *q, const struct key *k, const nacos_publish *p, nacos_error *err);
    void (*remove)(struct question *q, const struct key *k);
    void (*list)(struct question *q, const struct key *pattern, int page, int page_size);
    void (*version)(struct question *q);

    /* "Tell me when one of these differs from what I hold": open, add each key, close (may be NULL). For the dialect's own
     * detector. */
    void (*listen)(struct question *q, const char *ns, int64_t hold_ms, bool at_once);
    void (*listen_add)(struct question *q, const struct key *k, const char *md5);
    void (*listen_close)(struct question *q);
    /** Calls `changed` for each key of the answer; false: not such an answer. */
    bool (*listen_changed)(const struct http_response *r, void (*changed)(void *arg, const struct key *k), void *arg);

    /* Services. NACOS_UNSUPPORTED to modify and get_instance: register again, look into the list.
     * `with`: the other instances of this service that this client keeps alive; only where one_publisher, else count 0. */
    void (*register_instance)(struct question *q, const struct key *service, const nacos_instance *i,
                              const nacos_instance *const *with, size_t with_count);
    void (*deregister_instance)(struct question *q, const struct key *service, const nacos_instance *i,
                                const nacos_instance *const *with, size_t with_count);
    /** One that this client does not keep alive: persistent, or another's. NULL: as any other. */
    void (*deregister_other)(struct question *q, const struct key *service, const nacos_instance *i);
    void (*modify_instance)(struct question *q, const struct key *service, const nacos_instance *i);
    void (*get_instance)(struct question *q, const struct key *service, const nacos_instance *i);
    void (*beat)(struct question *q, const struct key *service, const nacos_instance *i, int64_t period_ms, bool light);
    void (*list_instances)(struct question *q, const struct key *service, const char *clusters, bool healthy_only);
    /** The list, and pushes from now on as far as the dialect has them. */
    void (*follow)(struct question *q, const struct key *service, const char *clusters, const struct push_address *push);
    void (*unfollow)(struct question *q, const struct key *service, const char *clusters); /* NULL: it lapses by itself */
    void (*put_service)(struct question *q, const struct key *service, const nacos_service_settings *o, bool update);
    void (*get_service)(struct question *q, const struct key *service);
    void (*remove_service)(struct question *q, const struct key *service);
    void (*list_services)(struct question *q, const struct key *service, int page, int page_size);
};

extern const struct protocol protocol_v1, protocol_v3, protocol_grpc;

/* ---- the same in every dialect (protocol.c) -------------------------------------------------------------------------------- */

/** Both buffers empty, then `path` in the target. */
void question_init(struct question *q, const char *method, const char *path, const char *verb);
void question_header(struct question *q, const char *name, const char *value);
void question_free(struct question *q); /* a zeroed one is fine */
/** What is in a good answer: by the question's `value`, or the body as it came; by its `hosts`. The caller has the reference. NULL:
 * as there. */
struct value *question_value(const struct question *q, const struct http_response *r);
struct hosts *question_hosts(const struct question *q, const struct http_response *r);

/** Fills err ("cannot VERB KEY at SERVER: what") and returns the verdict. */
enum verdict judged(const struct question *q, const struct http_response *r, nacos_error *err, nacos_code code, enum verdict v,
                    const char *what);
/** Everything that is not a call's own good answer: no answer, 401 … 599, something that is not Nacos. */
enum verdict judge_failure(const struct question *q, const struct http_response *r, nacos_error *err);
/** The answer that ended in `err` shows that the server does not speak this dialect (any more). */
bool question_gone(const struct question *q, const nacos_error *err);
/** What a judge of reads says whose dialect has said `v`: by the question's `value` there must be a content. */
enum verdict judge_content(const struct question *q, const struct http_response *r, nacos_error *err, enum verdict v);
/** A JSON object is the answer. */
enum verdict judge_json(const struct question *q, const struct http_response *r, nacos_error *err);
/** The content in an object of Nacos 2 and newer: content, contentType, md5. NULL: there is none, or it is not that of the md5. */
struct value *value_of_content(const struct question *q, const json_t *j);
/** A text for the host; takes the reference. NULL is fine, and is what comes out then. */
struct value *value_of_json(json_t *j);
/** Of a namespace: since 2.0 the public one has a name, and an empty one is another to the part for services. */
const char *namespace_name(const char *ns);
/** Metadata as a JSON object; the caller has the reference. NULL: out of memory. */
json_t *pairs_json(const nacos_pair *pairs, size_t count);
bool body_is(const struct http_response *r, const char *text); /* but for newlines at the end */
bool body_has(const struct http_response *r, const char *text);

/** False and err (NACOS_INVALID): the form of this publish, of `len` bytes of content, is larger than a server reads. Until then
 * the body may grow beyond that, so that the message can tell the real size of what is only a little too large. */
bool publish_fits(const struct question *q, size_t len, nacos_error *err);
#define PUBLISH_ROOM ((size_t)PUBLISH_MAX * 4)

/** The version out of the answer to either version question. */
bool parse_version(const struct http_response *r, char *out, size_t size);
void login_question(struct question *q, const char *path, const char *username, const char *password);
/** False: no token in it. *no_auth: a server (before 1.2) whose calls need none. */
bool login_parse(const struct http_response *r, char **token, int64_t *ttl_s, bool *no_auth);

#endif
