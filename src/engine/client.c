#include "engine/client.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/digest.h"
#include "engine/file.h"

#define ENDPOINT_PORT 8080
#define ENDPOINT_EVERY_MS 30000
#define ENDPOINT_RETRY_MS 1000
#define CLOSE_WAIT_MS 100
#define LEAVE_MS 3000 /* for deregistering */
#define TELL_MS 10000 /* between two lines that a server fails */

static void refresh_endpoint(void *arg);

const char *nacos_code_name(nacos_code code)
{
    static const char *const names[] = {
#define X(name, text) text,
        NACOS_CODES(X)
#undef X
    };
    return (unsigned)code < sizeof names / sizeof *names ? names[code] : "?";
}

const char *nacos_version(void)
{
    return LUNACOS_VERSION;
}

const char *nacos_check_id(const char *id)
{
    if (!*id)
        return "is empty";
    if (strlen(id) > 256)
        return "is longer than 256 bytes";
    for (const char *p = id; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("_-.:", *p))
            return "may hold only letters, digits and _ - . :";
    return NULL;
}

const char *nacos_check_namespace(const char *ns)
{
    if (strlen(ns) > 128)
        return "is longer than 128 bytes";
    for (const char *p = ns; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("_-", *p))
            return "may hold only letters, digits, _ and -; it is the namespace's id, not its name";
    return NULL;
}

bool nacos_md5(const void *data, size_t len, char out[33])
{
    return md5_hex(data, len, out);
}

bool nacos_write_file(const char *path, const void *data, size_t len, unsigned mode, bool sync, nacos_error *err)
{
    struct file_attr attr = {.mode = mode, .uid = (uid_t)-1, .gid = (gid_t)-1, .sync = sync};
    *err = (nacos_error){0};
    if (file_replace(path, data, len, &attr, err->message, sizeof err->message))
        return true;
    err->code = NACOS_INVALID;
    return false;
}

void client_note(struct nacos_client *c, const char *origin, const nacos_error *err)
{
    nacos_engine *e = c->engine;
    pthread_mutex_lock(&e->lock);
    nacos_status *s = &c->status;
    bool moved = !err && strcmp(s->server, origin) != 0;
    s->requests++;
    s->connected = !err;
    if (err) {
        s->failures++;
        s->last_error = *err;
    } else {
        snprintf(s->server, sizeof s->server, "%s", origin);
    }
    pthread_mutex_unlock(&e->lock);
    if (err && !c->told_down && now_ms() >= c->tell_down_at) {
        c->told_down = true;
        c->tell_down_at = now_ms() + TELL_MS;
        log_write(c->log, LOG_WARN, "%s", err->message);
    } else if (!err && (moved || c->told_down)) {
        c->told_down = false;
        log_write(c->log, LOG_INFO, "using %s", origin);
    }
}

/* ---- dialect ------------------------------------------------------------------------------------------------------------- */

void client_note_dialect(struct nacos_client *c)
{
    nacos_engine *e = c->engine;
    const struct protocol *now = c->dialect.now;
    pthread_mutex_lock(&e->lock);
    nacos_status *s = &c->status;
    s->link = c->link.state == LINK_READY;
    if (s->link) {
        s->connected = true;
        snprintf(s->server, sizeof s->server, "%s", c->link.origin);
    }
    const struct server *v = servers_find(&c->servers, s->server);
    snprintf(s->protocol, sizeof s->protocol, "%s", now ? now->name : "");
    bool away = now == &protocol_grpc && !s->link && c->dialect.link_why[0];
    snprintf(s->protocol_why, sizeof s->protocol_why, "%s%.280s", away ? "grpc: " : "",
             away ? c->dialect.link_why : c->dialect.why);
    snprintf(s->server_version, sizeof s->server_version, "%s", v ? v->version : "");
    pthread_mutex_unlock(&e->lock);
}

void client_dialect_changed(struct nacos_client *c, const struct protocol *before)
{
    client_note_dialect(c);
    watch_detector_changed(c, before ? before->detector : NULL);
    beats_renew(&c->beats, before);
    if (before) /* else they wait for it */
        subscribe_renew(c);
}

void client_link_up(struct nacos_client *c)
{
    const struct protocol *now = c->dialect.now;
    client_note_dialect(c);
    if (now && now->detector->renew)
        now->detector->renew(c);
    beats_renew(&c->beats, NULL);
    subscribe_renew(c);
}

/* ---- address server ------------------------------------------------------------------------------------------------------ */

static enum verdict judge_list(const struct question *q, const struct http_response *r, nacos_error *err)
{
    if (r->outcome == HTTP_ANSWERED && r->status == 200 && r->body.len && r->body.data[0] != '<')
        return VERDICT_ANSWER;
    return judged(q, r, err, NACOS_UNAVAILABLE, VERDICT_NEXT, r->outcome == HTTP_ANSWERED ? "no list came" : r->why);
}

/** Every line looks like an address: a word ("maintenance") would parse as a host, and replace good ones. */
static bool is_list(const char *text)
{
    bool any = false;
    for (const char *p = text; *p;) {
        size_t n = strcspn(p, ",;\r\n"), word = strspn(p, " \t");
        if (word < n && strncmp(p + word, "localhost", 9) != 0 && !memchr(p, '.', n) && !memchr(p, ':', n))
            return false;
        any |= word < n;
        p += n;
        p += *p != 0;
    }
    return any;
}

static void on_endpoint(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct nacos_client *c = arg;
    nacos_error bad = *err;
    (void)q;
    c->endpoint_request = NULL;
    if (err->code == NACOS_CLOSED)
        return;
    if (err->code == NACOS_OK && !is_list(r->body.data))
        snprintf(bad.message, sizeof bad.message, "cannot read the server list at %s: the answer is not a list of addresses",
                 err->server);
    else if (err->code == NACOS_OK && servers_parse(&c->servers, r->body.data, &bad))
        bad.message[0] = 0;
    snprintf(c->endpoint_trouble, sizeof c->endpoint_trouble, "%.290s", bad.message);
    if (bad.message[0])
        log_write(c->log, LOG_WARN, "%s; %s", bad.message,
                  c->servers.count ? "the servers known before stay in use" : "no server is known yet");
    dialect_start(&c->dialect);
    timer_set(&c->engine->timers, &c->endpoint_timer, c->servers.count ? ENDPOINT_EVERY_MS : ENDPOINT_RETRY_MS, refresh_endpoint,
              c);
}

static void refresh_endpoint(void *arg)
{
    struct nacos_client *c = arg;
    struct question q;
    question_init(&q, "GET", c->endpoint_path, "read the server list");
    q.judge = judge_list;
    if (*c->ns) {
        buf_puts(&q.target, strchr(c->endpoint_path, '?') ? "&" : "?");
        buf_puts(&q.target, "namespace=");
        buf_puts(&q.target, c->ns);
    }
    c->endpoint_request = request_start_at(c, &q, c->endpoint, false, ENDPOINT_RETRY_MS * 3, on_endpoint, c);
}

/** "host", "host:port" or a URL with a path: its origin. `n`: the length of that part of the text. */
static bool endpoint_origin(const char *text, size_t *n, char origin[128], nacos_error *err)
{
    const char *name = strstr(text, "://") ? strstr(text, "://") + 3 : text;
    *n = strcspn(name, "/?") + (size_t)(name - text);
    return server_parse(text, *n, strncasecmp(text, "https:", 6) == 0 ? 443 : ENDPOINT_PORT, origin, err);
}

bool nacos_check_endpoint(const char *endpoint, nacos_error *err)
{
    size_t n;
    char origin[128];
    return endpoint_origin(endpoint, &n, origin, err);
}

bool nacos_check_servers(const char *addresses, nacos_error *err)
{
    struct servers servers = {0};
    return servers_parse(&servers, addresses, err);
}

/** Into c->endpoint (an origin) and c->endpoint_path. */
static bool parse_endpoint(struct nacos_client *c, const char *text, nacos_error *err)
{
    size_t n;
    char origin[128], path[300];
    if (!endpoint_origin(text, &n, origin, err))
        return false;
    bool given = text[n] && text[n + 1];
    if (snprintf(path, sizeof path, "%s%s", given ? text + n : c->context_path, given ? "" : "/serverlist") >= (int)sizeof path) {
        *err = (nacos_error){.code = NACOS_INVALID, .message = "bad endpoint: the path is longer than 300 bytes"};
        return false;
    }
    c->endpoint = strdup(origin);
    c->endpoint_path = strdup(path);
    return c->endpoint && c->endpoint_path;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

struct client_job {
    struct job job;
    struct nacos_client *client;
    struct event *event;
    bool deregister;
    nacos_options options;
    char *strings[4]; /* proxies and folders, owned */
};

static bool put(char **out, const char *s, const char *fallback)
{
    s = s && *s ? s : fallback;
    *out = s ? strdup(s) : NULL;
    return !s || *out;
}

static void free_client(struct nacos_client *c)
{
    char *strings[] = {c->ns,          c->context_path,  c->endpoint,      c->endpoint_path, c->ak,
                       c->ca_file,     c->cert_file,     c->key_file,      c->server_name,   c->proxy_http,
                       c->proxy_https, c->failover_base, c->snapshot_base, c->push.wanted_ip};
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
        free(strings[i]);
    if (c->sk)
        explicit_bzero(c->sk, strlen(c->sk));
    free(c->sk);
    log_free(c->log);
    free(c);
}

/** Ends what the client does for its host; beats go on. */
static void end_work(struct nacos_client *c)
{
    c->closing = true;
    timer_clear(&c->engine->timers, &c->endpoint_timer);
    request_cancel(c->endpoint_request);
    c->endpoint_request = NULL;
    if (c->dialect.now)
        c->dialect.now->detector->shut(c);
    subscribe_shut(c);
    push_shut(&c->push);
    requests_fail(c, NACOS_CLOSED, "the client was closed");
    watch_shut(c);
    saver_shut(&c->saver);
    saver_shut(&c->naming_saver);
}

void client_shut(struct nacos_client *c)
{
    nacos_engine *e = c->engine;
    timer_clear(&e->timers, &c->leave_timer);
    beats_shut(&c->beats);
    if (!c->leaving)
        end_work(c);
    c->closing = true;
    auth_free(&c->auth);
    while (c->requests)
        request_fail(c->requests, NACOS_CLOSED, "the client was closed");
    dialect_shut(&c->dialect);
    if (c->prev)
        c->prev->next = c->next;
    else
        e->clients = c->next;
    if (c->next)
        c->next->prev = c->prev;
    if (c->left)
        engine_ready(e, c->left);
    free_client(c);
    engine_client_gone(e);
}

static void shut(void *arg)
{
    client_shut(arg);
}

static void left(struct nacos_client *c)
{
    timer_set(&c->engine->timers, &c->leave_timer, 0, shut, c);
}

void client_leave(struct nacos_client *c, struct event *event)
{
    c->left = event;
    if (!beats_any(&c->beats)) {
        client_shut(c);
        return;
    }
    end_work(c);
    c->closing = false;
    c->leaving = true;
    timer_set(&c->engine->timers, &c->leave_timer, LEAVE_MS, shut, c);
    beats_leave(&c->beats, left);
}

static void open_run(struct job *job)
{
    struct client_job *j = (struct client_job *)job;
    struct nacos_client *c = j->client;
    c->next = c->engine->clients;
    if (c->next)
        c->next->prev = c;
    c->engine->clients = c;
    if (c->endpoint)
        refresh_endpoint(c);
    dialect_start(&c->dialect);
    free(j);
}

static void close_run(struct job *job)
{
    struct client_job *j = (struct client_job *)job;
    struct nacos_client *c = j->client;
    if (j->deregister) {
        client_leave(c, j->event);
    } else {
        c->left = j->event;
        client_shut(c);
    }
    free(j);
}

static struct client_job *new_job(struct nacos_client *c, void (*run)(struct job *))
{
    struct client_job *j = calloc(1, sizeof *j);
    if (j) {
        j->job.run = run;
        j->client = c;
    }
    return j;
}

static void apply(struct nacos_client *c, const nacos_options *o)
{
    c->no_snapshot = o->no_snapshot;
    c->poll_timeout_ms = o->poll_timeout_ms > 0 ? o->poll_timeout_ms : 30000;
    c->poll_interval_ms = o->poll_interval_ms > 0 ? o->poll_interval_ms : 5000;
    c->poll_batch = o->poll_batch > 0 ? o->poll_batch : 3000;
    c->max_response = o->max_response ? o->max_response : 16u << 20;
    log_set_level(c->log, (enum log_level)o->log_level);
}

static bool strings_of(char **out, const nacos_options *o)
{
    return put(&out[0], o->proxy_http, NULL) & put(&out[1], o->proxy_https, NULL) &
           put(&out[2], o->failover_base, "nacos-data/data") & put(&out[3], o->snapshot_base, "nacos-data/snapshot");
}

static bool parse_protocol(const char *text, enum dialect_option *out)
{
    static const char *const names[] = {[DIALECT_AUTO] = "auto", [DIALECT_GRPC] = "grpc", [DIALECT_V3] = "v3", [DIALECT_V1] = "v1"};
    if (!text || !*text)
        return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (enum dialect_option)i;
            return true;
        }
    return false;
}

nacos_client *nacos_client_new(nacos_engine *e, const nacos_options *o, nacos_error *err)
{
    struct nacos_client *c = calloc(1, sizeof *c);
    struct client_job *j = new_job(c, open_run);
    char *strings[4] = {0};
    enum dialect_option option = DIALECT_AUTO;
    *err = (nacos_error){.code = NACOS_NOMEM, .message = "out of memory"};
    if (!c || !j)
        goto failed;
    c->engine = e;
    const char *ns = o->ns && strcmp(o->ns, "public") != 0 ? o->ns : "";
    const char *path = o->context_path && *o->context_path ? o->context_path : "/nacos";
    char context[300];
    snprintf(context, sizeof context, "%s%s", *path == '/' ? "" : "/", path);
    for (size_t n = strlen(context); n && context[n - 1] == '/'; n--)
        context[n - 1] = 0;
    bool ok = put(&c->ns, ns, "") & put(&c->context_path, context, "") & put(&c->ak, o->ak, NULL) & put(&c->sk, o->sk, NULL) &
              put(&c->ca_file, o->ca_file, NULL) & put(&c->cert_file, o->cert_file, NULL) & put(&c->key_file, o->key_file, NULL) &
              put(&c->server_name, o->server_name, NULL) & put(&c->push.wanted_ip, o->push_ip, NULL) & strings_of(strings, o);
    c->log = log_open((enum log_level)o->log_level, o->log_dir, o->log_backups);
    if (c->log)
        log_set_json(c->log, o->log_json);
    if (!ok || !c->log)
        goto failed;
    c->proxy_http = strings[0];
    c->proxy_https = strings[1];
    c->failover_base = strings[2];
    c->snapshot_base = strings[3];
    memset(strings, 0, sizeof strings);
    c->tls =
        (struct http_tls){o->verify > 0 || (o->verify == 0 && c->ca_file), c->ca_file, c->cert_file, c->key_file, c->server_name};
    const char *const files[] = {c->ca_file, c->cert_file, c->key_file}, *const names[] = {"ca_file", "cert_file", "key_file"};
    for (int i = 0; i < 3; i++)
        if (files[i] && access(files[i], R_OK) != 0) {
            *err = (nacos_error){.code = NACOS_INVALID};
            snprintf(err->message, sizeof err->message, "cannot read %s %s: %s", names[i], files[i], strerror(errno));
            goto failed;
        }
    const char *addresses = o->server_addresses ? o->server_addresses : "";
    bool endpoint = o->endpoint && *o->endpoint;
    if (endpoint && !parse_endpoint(c, o->endpoint, err))
        goto failed;
    if (!(endpoint && !*addresses) && !servers_parse(&c->servers, addresses, err))
        goto failed;
    if (!auth_init(&c->auth, c, o))
        goto failed;
    longpoll_init(&c->longpoll, c);
    if (!parse_protocol(o->protocol, &option)) {
        *err = (nacos_error){.code = NACOS_INVALID};
        snprintf(err->message, sizeof err->message, "bad protocol '%.20s': it is one of auto, grpc, v3 and v1", o->protocol);
        goto failed;
    }
    if (o->grpc_port_offset < -65535 || o->grpc_port_offset > 65535) {
        *err = (nacos_error){.code = NACOS_INVALID, .message = "bad grpc_port_offset: no port is so far away"};
        goto failed;
    }
    dialect_init(&c->dialect, c, option, o->grpc_port_offset);
    saver_init(&c->saver, c, "");
    saver_init(&c->naming_saver, c, "/naming");
    beats_init(&c->beats, c);
    c->push.client = c;
    c->push.wanted_port = o->push_port;
    apply(c, o);
    for (int i = 0; i < c->servers.count; i++)
        if (strncmp(c->servers.list[i].origin, "https:", 6) == 0 && !c->tls.verify) {
            log_write(c->log, LOG_WARN, "the certificate of %s is not verified; give ca_file (or verify = true) to turn it on",
                      c->servers.list[i].origin);
            break;
        }
    *err = (nacos_error){0};
    engine_post(e, &j->job);
    return c;
failed:
    free(j);
    for (int i = 0; i < 4; i++)
        free(strings[i]);
    if (c) {
        auth_free(&c->auth);
        free_client(c);
    }
    return NULL;
}

static void configure_run(struct job *job)
{
    struct client_job *j = (struct client_job *)job;
    struct nacos_client *c = j->client;
    char **now[] = {&c->proxy_http, &c->proxy_https, &c->failover_base, &c->snapshot_base};
    for (int i = 0; i < 4; i++) {
        free(*now[i]);
        *now[i] = j->strings[i];
    }
    saver_forget(&c->saver);
    saver_forget(&c->naming_saver);
    apply(c, &j->options);
    free(j);
}

void nacos_client_configure(nacos_client *c, const nacos_options *o)
{
    struct client_job *j = new_job(c, configure_run);
    if (!j)
        return;
    j->options = *o;
    if (!strings_of(j->strings, o)) {
        for (int i = 0; i < 4; i++)
            free(j->strings[i]);
        free(j);
        return;
    }
    engine_post(c->engine, &j->job);
}

void nacos_client_close(nacos_client *c, bool deregister)
{
    nacos_engine *e = c->engine;
    if (nacos_engine_forked(e))
        return;
    struct client_job *j = new_job(c, close_run);
    if (!j || !(j->event = event_new(engine_next_id(e), NACOS_EVENT_REPLY)))
        abort(); /* leaving it running behind the caller's back is no answer */
    uint64_t id = j->event->id;
    j->deregister = deregister;
    engine_post(e, &j->job);
    event_free(engine_take(e, id, CLOSE_WAIT_MS));
}

void nacos_client_log(nacos_client *c, nacos_log_level level, const char *message)
{
    log_write(c->log, (enum log_level)level, "%s", message);
}

void nacos_client_status(const nacos_client *c, nacos_status *out)
{
    pthread_mutex_lock(&c->engine->lock);
    *out = c->status;
    pthread_mutex_unlock(&c->engine->lock);
}
