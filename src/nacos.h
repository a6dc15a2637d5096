/**
 * nacos.h: the C API of lunacos, a client of the Nacos service registry and configuration centre.
 *
 * The one idea: an *engine* is a thread that does all I/O (HTTP, gRPC, logins, snapshots, timers). The host asks it for
 * things and collects *events*; nothing ever calls back into the host. The Lua binding is one host, a C program may be another.
 *
 *     nacos_engine *e = nacos_engine_new(&err);
 *     nacos_client *c = nacos_client_new(e, &(nacos_options){.server_addresses = "127.0.0.1:8848"}, &err);
 *     uint64_t id = nacos_get_config(c, "app.yaml", "DEFAULT_GROUP", 3000, 0);
 *     const nacos_event *ev = nacos_wait(e, id, 5000);
 *     if (ev && ev->error.code == NACOS_OK) fwrite(ev->value.data, 1, ev->value.len, stdout);
 *     nacos_client_close(c, true);
 *     nacos_engine_free(e);
 *
 * Threads: one host thread at a time may use an engine and its clients. Different engines are independent.
 * Strings given to a function are copied before it returns. Durations are milliseconds, times come from the monotonic clock
 * unless a field says "unix".
 * After fork() the child owns none of this: it may ask nacos_engine_forked() and must call nothing else with what the parent made.
 */
#ifndef NACOS_H
#define NACOS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NACOS_API __attribute__((visibility("default")))

typedef struct nacos_engine nacos_engine;
typedef struct nacos_client nacos_client;
typedef struct nacos_watch nacos_watch;
typedef struct nacos_subscription nacos_subscription;

/** Why something did not work: one list makes the enum and the names that nacos_code_name() and Lua's `err.code` show. */
#define NACOS_CODES(X)                                                                                                             \
    X(OK, "ok")                                                                                                                    \
    X(NOT_FOUND, "not_found")     /* the server says that the item does not exist */                                               \
    X(FORBIDDEN, "forbidden")     /* login refused, or no right to this item */                                                    \
    X(UNAVAILABLE, "unavailable") /* no server answered in time: nothing is known about the item */                                \
    X(CONFLICT, "conflict")       /* compare-and-set: the content is no longer what the caller expected */                         \
    X(UNSUPPORTED, "unsupported") /* this server does not offer the call */                                                        \
    X(REFUSED, "refused")         /* the server understood and said no (another 4xx) */                                            \
    X(PROTOCOL, "protocol")       /* what came back is not an answer of Nacos, or too large */                                     \
    X(INVALID, "invalid")         /* refused here, before anything was sent */                                                     \
    X(CLOSED, "closed")           /* the client was closed meanwhile */                                                            \
    X(FORKED, "forked")           /* used in a child process of the one that made it */                                            \
    X(NOMEM, "nomem")

typedef enum nacos_code {
#define X(name, text) NACOS_##name,
    NACOS_CODES(X)
#undef X
} nacos_code;

NACOS_API const char *nacos_code_name(nacos_code code);

/** A failure, told to a person: `message` is a whole sentence with key and server and never holds a secret. */
typedef struct nacos_error {
    nacos_code code;
    int http_status;  /* of the answer behind it; 0: there was none */
    char server[128]; /* "http://10.0.0.1:8848", or empty */
    char message[1024];
} nacos_error;

/** Where a value came from. */
typedef enum nacos_source { NACOS_FROM_NONE, NACOS_FROM_SERVER, NACOS_FROM_FAILOVER, NACOS_FROM_SNAPSHOT } nacos_source;

/** How the client learned of a value. */
typedef enum nacos_via {
    NACOS_VIA_NONE,
    NACOS_VIA_READ,    /* it was read for itself: the first value; a read after a failure */
    NACOS_VIA_POLL,    /* a long poll listed it */
    NACOS_VIA_COMPARE, /* asked again: the md5 (or the list of a service) was another one */
    NACOS_VIA_PUSH,    /* pushed over gRPC */
    NACOS_VIA_UDP      /* pushed as a datagram */
} nacos_via;

typedef enum nacos_event_kind {
    NACOS_EVENT_REPLY,   /* the one answer to a request */
    NACOS_EVENT_CONFIG,  /* a watched configuration: its newest value. May come any number of times */
    NACOS_EVENT_SERVICE, /* a followed service: its newest list. Likewise */
    NACOS_EVENT_TIMER,
    NACOS_EVENT_SIGNAL,
    NACOS_EVENT_EXIT,    /* a child process has ended */
    NACOS_EVENT_TROUBLE, /* a watch or subscription cannot be served now (error says why); once per change of the reason */
    NACOS_EVENT_READABLE
} nacos_event_kind;

typedef struct nacos_value {
    const char *data; /* NULL: the item does not exist. Not NUL-terminated */
    size_t len;
    char md5[33];  /* lower-case hex of the bytes; empty when absent */
    char type[24]; /* as the server names it: text json xml yaml html properties toml; empty: unknown */
    nacos_source source;
    nacos_via via;    /* of watches and followed services; else NONE */
    double confirmed; /* unix seconds: when the server last said that this is the newest value; 0: never */
    char server[128]; /* of a watch: that told the value (or that there is none), as in nacos_error; else empty */
    uint64_t version; /* counts the values of this item; equal versions are equal bytes */
} nacos_value;

/** One entry of an instance's metadata. */
typedef struct nacos_pair {
    const char *name, *value;
} nacos_pair;

typedef struct nacos_instance {
    const char *ip; /* or a host name */
    int port;
    const char *cluster; /* [DEFAULT] */
    double weight;       /* 0 … 10000; 0 is never selected */
    bool healthy, enabled, ephemeral;
    const nacos_pair *metadata; /* sorted by name in what the engine gives */
    size_t metadata_count;
    const char *id; /* as the server names it; NULL: it did not. Ignored in what the host gives */
} nacos_instance;

/** The instances of a service, sorted by ip, port and cluster. */
typedef struct nacos_hosts {
    const nacos_instance *list;
    size_t count;
    size_t skipped;   /* entries of the answer that were no instances, or came twice */
    bool protection;  /* too few are healthy: the server shows all of them as such (protectThreshold) */
    int64_t ref_time; /* lastRefTime: unix milliseconds of the server's clock; 0: none */
    int64_t cache_ms; /* cacheMillis: how long the server lets the answer be kept; 0: not said */
} nacos_hosts;

typedef enum nacos_change_kind { NACOS_ADDED, NACOS_MODIFIED, NACOS_DELETED } nacos_change_kind;

typedef struct nacos_change {
    nacos_change_kind kind;
    const nacos_instance *now, *before; /* DELETED has no `now`, ADDED no `before` */
} nacos_change;

typedef struct nacos_event {
    uint64_t id; /* of the request, watch, timer, signal, … */
    nacos_event_kind kind;
    nacos_error error;        /* code NACOS_OK unless something failed */
    nacos_value value;        /* of reads, watches and raw answers; value.source and .via also say where `hosts` came from */
    const nacos_hosts *hosts; /* answers with instances, SERVICE; else NULL */

    /* SERVICE */
    const nacos_change *changes; /* against the event before; the first has all as ADDED */
    size_t change_count;
    bool first;
    size_t held; /* instances that the server no longer lists but `hosts` still does: see nacos_follow */

    /* EXIT */
    int exit_code;   /* 0 … 255 */
    int exit_signal; /* > 0: ended by it */
    int exit_pid;    /* its process id until then, still that of its group if others are left in it; 0: it could not start */
} nacos_event;

/* ---- engine ------------------------------------------------------------------------------------------------------------ */

/** Starts the thread, with every signal blocked in it. NULL and `err` when the system refuses. */
NACOS_API nacos_engine *nacos_engine_new(nacos_error *err);

/** Closes every client, ends the thread, frees everything. In a forked child it does nothing. */
NACOS_API void nacos_engine_free(nacos_engine *e);

/** A descriptor that is readable while an event waits; for poll, epoll, luv … Never read from it: nacos_wait() does. */
NACOS_API int nacos_engine_fd(const nacos_engine *e);

/** True in a child of the process that made the engine. */
NACOS_API bool nacos_engine_forked(const nacos_engine *e);

/**
 * The next event, or only that of `id` when `id` is not 0 (others stay pending, in order).
 * Waits up to `timeout_ms` (0: does not wait and costs no system call; < 0: without limit).
 * NULL: none came in time, or a signal handler ran in this thread (so that a host can look at its flags).
 * The event and what it points to stay valid until the next call.
 */
NACOS_API const nacos_event *nacos_wait(nacos_engine *e, uint64_t id, int timeout_ms);

/** One NACOS_EVENT_TIMER after `ms`. */
NACOS_API uint64_t nacos_timer(nacos_engine *e, int64_t ms);

/** Turns the next delivery of `signum` into one NACOS_EVENT_SIGNAL, after which the signal has its default effect again; with
 * `every` every delivery, until nacos_forget(): those that come faster than the host collects them are one. Touches a process-wide
 * signal disposition: for executables, not for libraries. 0: out of memory. */
NACOS_API uint64_t nacos_signal(nacos_engine *e, int signum, bool every);

/** One NACOS_EVENT_READABLE when `fd` can be read, has met its end or is in error; at once with an error when it cannot be watched
 * (a plain file). The descriptor becomes non-blocking and may be closed at any time. 0: out of memory or descriptors. */
NACOS_API uint64_t nacos_readable(nacos_engine *e, int fd);

/** Ends a timer, signal or readable that is still waited for. An event that is under way may come all the same. */
NACOS_API void nacos_forget(nacos_engine *e, uint64_t id);

typedef struct nacos_user {
    uint32_t uid, gid;
} nacos_user;

/** A child process. Zeroed members mean the default in brackets. */
typedef struct nacos_command {
    const char *const *argv; /* NULL-terminated; argv[0] is looked up in PATH */
    const char *const *env;  /* "NAME=value", NULL-terminated: added to the environment; NULL: nothing */
    bool clear_env;          /* the environment is `env` and nothing else */
    const char *cwd;         /* where it starts [where this process is] */
    const nacos_user *user;  /* whom it runs as, with the supplementary groups of that user [as this process] */
    const char *input;       /* its standard input [that of this process] */
    size_t input_len;
    int output; /* its standard output and error; copied, the caller closes it [those of this process]; -1: /dev/null */
} nacos_command;

/** Starts it in a session, and so a process group, of its own. One NACOS_EVENT_EXIT when it has ended, or at once with an error
 * when it could not start. A child that outlives the engine goes on. While children live, SIGCHLD has a handler of the engine: for
 * executables, not for libraries. 0: out of memory or descriptors. */
NACOS_API uint64_t nacos_spawn(nacos_engine *e, const nacos_command *c);
/** Its process id; 0: it does not run yet, or no more. */
NACOS_API int nacos_pid(nacos_engine *e, uint64_t id);
/** Sends a signal to the process group of a child; nothing happens when it has ended. With `all` SIGKILL goes to what is left of
 * the group when the child has ended. */
NACOS_API void nacos_kill(nacos_engine *e, uint64_t id, int signum, bool all);
/**
 * From now on waits for adopted processes, so that none stays a zombie: those the kernel gives to PID 1, or, as any other process,
 * orphaned descendants (this process becomes a "child sub-reaper" for that). What this process itself has started by other means
 * (system, popen) has ended unnoticed for 30 s before it is taken for an orphan; but it must not have a session of its own.
 * For executables, not for libraries.
 */
NACOS_API void nacos_reap(nacos_engine *e);

/* ---- client ------------------------------------------------------------------------------------------------------------ */

typedef enum nacos_log_level { NACOS_LOG_DEBUG, NACOS_LOG_INFO, NACOS_LOG_WARN, NACOS_LOG_ERROR, NACOS_LOG_OFF } nacos_log_level;

/** Zeroed members mean the default in brackets. */
typedef struct nacos_options {
    const char *server_addresses; /* "10.0.0.1:8848,https://nacos.example:443,[::1]"; scheme [http], port [8848] */
    const char *endpoint;         /* address server "host[:8080]" or URL: asked for the list instead, every 30 s */
    const char *ns;               /* namespace id; "public" is the same as empty */
    const char *context_path;     /* [/nacos] */
    const char *username, *password;
    const char *password_file; /* read at each login: may be rotated. One trailing newline is cut */
    const char *password_env;  /* name of an environment variable, likewise */
    const char *ak, *sk;
    const char *ca_file, *cert_file, *key_file;
    const char *server_name; /* name to ask for and to verify instead of the address */
    int verify;              /* 1 on, -1 off, 0: on when ca_file is given, else off */
    const char *proxy_http, *proxy_https;
    const char *failover_base; /* [nacos-data/data] */
    const char *snapshot_base; /* [nacos-data/snapshot] */
    bool no_snapshot;
    const char *log_dir;       /* [standard error] */
    nacos_log_level log_level; /* as given: DEBUG is 0 */
    int log_backups;           /* as given: 0 keeps all */
    bool log_json;             /* a JSON object for each line */
    int poll_timeout_ms;       /* [30000] how long a server may hold a long poll */
    int poll_batch;            /* [3000] most keys in one long poll */
    size_t max_response;       /* [16 MiB] bytes */
    int push_port;             /* UDP port for pushes; [any free one]; -1: ask for none */
    const char *push_ip;       /* address that servers shall push to [that of the connection to the server] */
    const char *protocol; /* "auto", "grpc", "v3" or "v1" ["auto"]: how to speak with the servers; see nacos_status.protocol_why */
    int grpc_port_offset; /* [1000] the gRPC port is that of the address plus this */
    int poll_interval_ms; /* [5000] where changes are noticed by comparing md5s (v3 over HTTP): how often each is compared */
} nacos_options;

/** Makes a client; no I/O happens yet. NULL and `err` (NACOS_INVALID) when an address cannot be parsed. */
NACOS_API nacos_client *nacos_client_new(nacos_engine *e, const nacos_options *o, nacos_error *err);

/** Changes what may change in a running client: proxies, failover_base, snapshot_base, no_snapshot, log_level, poll_timeout_ms,
 * poll_batch, poll_interval_ms, max_response. All of them are taken from `o`. */
NACOS_API void nacos_client_configure(nacos_client *c, const nacos_options *o);

/** Ends everything of the client: its requests answer NACOS_CLOSED, its watches are gone. Returns within 100 ms, whatever is in
 * flight. The handle is freed. With `deregister` its registered instances are taken out of the server: usually before this returns,
 * else in the background for up to 3 s, for which nacos_engine_free() waits. Without, they expire at the server (over gRPC at
 * once). */
NACOS_API void nacos_client_close(nacos_client *c, bool deregister);

/** Writes to the client's log. */
NACOS_API void nacos_client_log(nacos_client *c, nacos_log_level level, const char *message);

/** Bits for nacos_get_config(); without any the client's no_snapshot decides. */
enum {
    NACOS_NO_SNAPSHOT = 1,  /* do not fall back to the snapshot */
    NACOS_SERVER_ONLY = 2,  /* neither failover file nor snapshot */
    NACOS_USE_SNAPSHOT = 4, /* fall back to it even when the client has no_snapshot */
};

/**
 * Each of these sends one request and gives the id of the one NACOS_EVENT_REPLY that answers it, within `timeout_ms` whatever
 * happens. Identifiers must be valid (nacos_check_id()).
 *
 * Read: failover file, then the servers in turn, then the snapshot; value.source says which it was.
 */
NACOS_API uint64_t nacos_get_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms, int flags);

typedef struct nacos_publish {
    const char *data_id, *group;
    const char *content; /* UTF-8, not empty */
    size_t len;
    const char *type, *app_name, *tags, *desc; /* NULL: not sent. The server takes a missing type for "text" */
    const char *cas_md5;                       /* publish only over content with this md5 */
} nacos_publish;

/** Refused with NACOS_INVALID before anything is sent when the encoded form passes the 2,097,152 bytes a server reads. */
NACOS_API uint64_t nacos_publish_config(nacos_client *c, const nacos_publish *p, int timeout_ms);
NACOS_API uint64_t nacos_remove_config(nacos_client *c, const char *data_id, const char *group, int timeout_ms);

/** One page of the configurations whose dataId matches `pattern` ("*" is the wildcard; NULL or "": all). value.data is the server's
 * JSON. */
NACOS_API uint64_t nacos_list_configs(nacos_client *c, const char *pattern, const char *group, int page, int page_size,
                                      int timeout_ms);

/** value.data is the server's version as it names it ("2.3.2"). Asked once per server and remembered. */
NACOS_API uint64_t nacos_server_version(nacos_client *c, int timeout_ms);

/**
 * Watches one configuration. NACOS_EVENT_CONFIG with the present value (or without data: the item does not exist) comes first, then
 * one after each change; changes that come faster than the host collects them are merged, the newest wins. Watching an item again
 * gives the same handle and counts; the handle lives until it was unwatched as often, or the client is closed. NULL: out of memory.
 */
NACOS_API nacos_watch *nacos_watch_config(nacos_client *c, const char *data_id, const char *group);
NACOS_API uint64_t nacos_watch_id(const nacos_watch *w);
NACOS_API void nacos_unwatch(nacos_watch *w);

/** The newest known value, from memory, at once. False: nothing is known yet. `known` is a version the caller already holds (0:
 * none): when it is current, value->data stays NULL. Else the data is valid until the next nacos_peek() on this engine. An item
 * known to be absent has an empty md5 and no data. */
NACOS_API bool nacos_peek(nacos_watch *w, uint64_t known, nacos_value *value);

/* ---- services ------------------------------------------------------------------------------------------------------------ */

/** Which service. Strings must be valid (nacos_check_service(), nacos_check_id() for the group). */
typedef struct nacos_service {
    const char *name;
    const char *group; /* [DEFAULT_GROUP] */
    const char *ns;    /* namespace id [the client's] */
} nacos_service;

/**
 * Requests like those above: one NACOS_EVENT_REPLY each. Instances must be valid (nacos_check_instance()).
 *
 * Registers an instance. When the server took it, an ephemeral one (`healthy` and all) is kept alive by the engine until it is
 * deregistered or the client is closed: a beat every `beat_ms` (0: 5000; what the server answers as its interval wins), registered
 * again when the server has forgotten it, without end whatever fails. An interval other than 5000 is told to the server in the
 * metadata `preserved.heart.beat.interval` (with `preserved.heart.beat.timeout` and `preserved.ip.delete.timeout` of 3 and 6
 * intervals if it is longer) unless they are given. Over gRPC instances live as long as the connection: there are no beats, and
 * each new connection registers all again. Registering the same ip and port in the same service again replaces what was.
 */
NACOS_API uint64_t nacos_register_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int beat_ms,
                                           int timeout_ms);
/** Ends the beats first. An instance that is not there is fine. Of `i` ip, port, cluster and ephemeral count. */
NACOS_API uint64_t nacos_deregister_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms);
/** Replaces weight, enabled and metadata; later beats say the new ones. A server that does not offer it (3.x) gets it as a
 * registration. Servers answer the same when there is no such instance: who is not sure asks before. */
NACOS_API uint64_t nacos_modify_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms);
/** event.hosts holds the one instance with this ip, port and cluster, or the error is NACOS_NOT_FOUND. A server that does not offer
 * it (3.x) is asked for the list, which lacks disabled instances. */
NACOS_API uint64_t nacos_get_instance(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms);
/** One whole beat, now. value.data is the server's JSON. */
NACOS_API uint64_t nacos_send_beat(nacos_client *c, const nacos_service *s, const nacos_instance *i, int timeout_ms);
/** Failover file, then the servers, then the last list on disk, as nacos_get_config() with the same `flags`. A service that does
 * not exist has no instances. `clusters`: comma separated; NULL: all. */
NACOS_API uint64_t nacos_list_instances(nacos_client *c, const nacos_service *s, const char *clusters, bool healthy_only, int flags,
                                        int timeout_ms);

/** What a service itself says; zero and NULL are the defaults. */
typedef struct nacos_service_settings {
    double protect_threshold; /* 0 … 1 */
    const nacos_pair *metadata;
    size_t metadata_count;
    const char *selector; /* the server's JSON; NULL: none */
} nacos_service_settings;

/** On 2.x a service made so takes persistent instances only. Raw answers in value.data: get {name, protectThreshold, metadata, …},
 * list {count, doms}. `update`: it exists already, and is changed. */
NACOS_API uint64_t nacos_put_service(nacos_client *c, const nacos_service *s, const nacos_service_settings *o, bool update,
                                     int timeout_ms);
NACOS_API uint64_t nacos_get_service(nacos_client *c, const nacos_service *s, int timeout_ms);
NACOS_API uint64_t nacos_remove_service(nacos_client *c, const nacos_service *s, int timeout_ms);
/** Of `s` group and ns count. */
NACOS_API uint64_t nacos_list_services(nacos_client *c, const nacos_service *s, int page, int page_size, int timeout_ms);

/** How to follow a service. */
typedef struct nacos_follow {
    const char *clusters; /* comma separated; NULL: all */
    int interval_ms;      /* [7000] between two questions; the server's cacheMillis and, with pushes, 8000 are upper bounds */
    /* An answer that lacks more than `max_drop` of the instances known is held: the missing ones stay in the list, event.held
     * counts them, until an answer `hold_ms` later still lacks them. */
    double max_drop; /* a share, up to 1 [1: only when all are missing]; -1: none, any that is missing is held */
    int hold_ms;     /* [10000]; -1: believe everything at once */
} nacos_follow;

/**
 * Follows a service. NACOS_EVENT_SERVICE comes once at the start, with the present list, and then after each change; changes that
 * come faster than the host collects them are merged. A failed question never removes an instance. When no server answers at the
 * start, the last list on disk is delivered, its source NACOS_FROM_SNAPSHOT. NULL: out of memory.
 * The handle lives until nacos_unfollow() or the client is closed.
 */
NACOS_API nacos_subscription *nacos_follow_service(nacos_client *c, const nacos_service *s, const nacos_follow *how);
NACOS_API uint64_t nacos_subscription_id(const nacos_subscription *s);
/** Changes interval_ms, max_drop and hold_ms. */
NACOS_API void nacos_refollow(nacos_subscription *s, const nacos_follow *how);
NACOS_API void nacos_unfollow(nacos_subscription *s);

typedef struct nacos_status {
    char server[128];        /* the one in use */
    bool connected;          /* the last exchange with a server worked */
    char protocol[8];        /* "grpc", "v3" or "v1"; empty: not known yet */
    char protocol_why[300];  /* a sentence: why this one, or why it cannot be had at the moment */
    char server_version[32]; /* as the server in use names it; empty: not known */
    bool link;               /* the gRPC stream is up */
    uint64_t reconnects;     /* times it had to be opened again */
    int watches, polls;      /* watched items; long polls held now */
    int instances;           /* registered here and kept alive */
    int subscriptions;       /* followed services */
    uint64_t requests, failures, logins;
    uint64_t beats, reregistrations; /* beats answered; times a server had forgotten an instance */
    uint64_t pushes, pushes_dropped; /* that brought news, by datagram or stream; that were forged, broken, old or not asked for */
    uint64_t entries_skipped;        /* of instance lists: no instances, or twice */
    nacos_error last_error;
} nacos_status;

NACOS_API void nacos_client_status(const nacos_client *c, nacos_status *out);

/* ---- helpers ----------------------------------------------------------------------------------------------------------- */

/** NULL when `id` may be a dataId or group (letters, digits, `_ - . :`; at most 256 bytes), else what is wrong with it. */
NACOS_API const char *nacos_check_id(const char *id);
/** The same for a namespace id (letters, digits, `_` and `-`; at most 128 bytes; empty is the public one). */
NACOS_API const char *nacos_check_namespace(const char *ns);
/** May this be nacos_options.server_addresses (…endpoint)? False and err->message if not. */
NACOS_API bool nacos_check_servers(const char *addresses, nacos_error *err);
NACOS_API bool nacos_check_endpoint(const char *endpoint, nacos_error *err);
/** NULL when a service may have this name (no white space, no "@@", at most 512 bytes), else what is wrong with it. */
NACOS_API const char *nacos_check_service(const char *name);
/** The same for everything in an instance; *field (may be NULL) is then the name of what is wrong. */
NACOS_API const char *nacos_check_instance(const nacos_instance *i, const char **field);
/** And for a comma separated list of clusters (letters, digits and `-`, 64 bytes each). */
NACOS_API const char *nacos_check_clusters(const char *clusters);
NACOS_API bool nacos_md5(const void *data, size_t len, char out[33]);
/** Replaces a file atomically: temp file in the same folder, mode (0: that of the old file, else 0644), fsync when `sync`, rename.
 */
NACOS_API bool nacos_write_file(const char *path, const void *data, size_t len, unsigned mode, bool sync, nacos_error *err);
NACOS_API const char *nacos_version(void);

#ifdef __cplusplus
}
#endif
#endif
