#include "engine/http.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define POOL 16
#define KEPT_CONNECTIONS 512L    /* held polls count, too: with fewer libcurl would close each one that becomes idle */
#define CONNECTION_MAX_AGE_S 55L /* servers close an idle connection after 60 s */

/** One server as curl sees it, with those who wait for their turn. Few: they live as long as the engine. */
struct origin {
    struct origin *next;
    int active;
    struct http_call *wait_head, *wait_tail;
    char name[];
};

struct http_call {
    struct http *http;
    struct origin *origin;
    struct http_call *prev, *next; /* in http->calls */
    struct http_call *wait_next;
    CURL *easy;
    struct curl_slist *headers, *connect_to;
    const char *body;
    size_t body_len;
    char *method, *url, *proxy;
    struct http_tls tls;
    bool held, fresh, started, waiting;
    bool headers_whole; /* libcurl takes an end inside the headers for a whole answer without a body */
    int64_t deadline, timeout_ms, connect_timeout_ms;
    struct timer timer; /* while it waits: its deadline */
    http_done done;
    void *arg;
    struct http_response response;
    char errbuf[CURL_ERROR_SIZE];
};

struct http {
    uv_loop_t *loop;
    struct timers *timers;
    struct timer timer;
    CURLM *multi;
    CURL *pool[POOL];
    int pooled;
    struct origin *origins;
    struct http_call *calls;
};

struct sock {
    uv_poll_t poll;
    struct http *http;
    curl_socket_t fd;
};

static void start_next(struct http *h, struct origin *o);

/* ---- curl on the loop ---------------------------------------------------------------------------------------------------- */

static void unlink_call(struct http_call *c)
{
    struct http *h = c->http;
    if (c->prev)
        c->prev->next = c->next;
    else
        h->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    timer_clear(h->timers, &c->timer);
    if (c->waiting) {
        struct http_call **p = &c->origin->wait_head, *before = NULL;
        while (*p != c) {
            before = *p;
            p = &(*p)->wait_next;
        }
        *p = c->wait_next;
        if (c->origin->wait_tail == c)
            c->origin->wait_tail = before;
    }
    if (c->easy) {
        curl_multi_remove_handle(h->multi, c->easy);
        if (h->pooled < POOL) {
            curl_easy_reset(c->easy);
            h->pool[h->pooled++] = c->easy;
        } else {
            curl_easy_cleanup(c->easy);
        }
        c->easy = NULL;
    }
    if (c->started && !c->held) {
        c->origin->active--;
        start_next(h, c->origin);
    }
}

static void free_call(struct http_call *c)
{
    curl_slist_free_all(c->headers);
    curl_slist_free_all(c->connect_to);
    buf_free(&c->response.body);
    free(c->method);
    free(c->url);
    free(c->proxy);
    free(c);
}

static void finish(struct http_call *c)
{
    unlink_call(c);
    c->done(c->arg, &c->response);
    free_call(c);
}

static void finish_later(void *arg)
{
    finish(arg);
}

static void fail(struct http_call *c, enum http_outcome outcome, const char *why)
{
    c->response.outcome = outcome;
    snprintf(c->response.why, sizeof c->response.why, "%.190s", why);
}

static void copy_info(CURL *easy, CURLINFO info, char *out, size_t size)
{
    const char *text = NULL;
    if (curl_easy_getinfo(easy, info, &text) == CURLE_OK && text)
        snprintf(out, size, "%s", text);
}

/** Turns curl's verdict into ours. */
static void conclude(struct http_call *c, CURLcode code)
{
    struct http_response *r = &c->response;
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    r->status = (int)status;
    copy_info(c->easy, CURLINFO_PRIMARY_IP, r->ip, sizeof r->ip);
    copy_info(c->easy, CURLINFO_LOCAL_IP, r->local_ip, sizeof r->local_ip);
    if (code == CURLE_OK && status >= 100 && !c->headers_whole)
        code = CURLE_PARTIAL_FILE;
    if (code == CURLE_OK && status >= 100) {
        r->outcome = HTTP_ANSWERED;
        return;
    }
    char *text = c->errbuf[0] ? c->errbuf : NULL;
    curl_off_t connected = 0;
    curl_easy_getinfo(c->easy, CURLINFO_PRETRANSFER_TIME_T, &connected);
    switch (code) {
    case CURLE_WRITE_ERROR:
        fail(c, HTTP_TOO_LARGE, "the answer is larger than max_response_size");
        break;
    case CURLE_OPERATION_TIMEDOUT:
        fail(c, connected ? HTTP_TIMEOUT : HTTP_NO_CONNECT, connected ? "no answer in time" : "could not connect in time");
        break;
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
        fail(c, HTTP_NO_CONNECT, text ? text : curl_easy_strerror(code));
        break;
    case CURLE_SEND_ERROR: /* curl says that poll returned an error */
        fail(c, HTTP_BROKEN, "the server closed the connection without an answer");
        break;
    default:
        fail(c, HTTP_BROKEN, text ? text : curl_easy_strerror(code));
    }
}

static void reap(struct http *h)
{
    CURLMsg *m;
    int left;
    while ((m = curl_multi_info_read(h->multi, &left))) {
        if (m->msg != CURLMSG_DONE)
            continue;
        struct http_call *c;
        CURLcode code = m->data.result; /* `m` dies with the handle */
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, (char **)&c);
        conclude(c, code);
        finish(c);
    }
}

static void on_timer(void *arg)
{
    struct http *h = arg;
    int running;
    curl_multi_socket_action(h->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    reap(h);
}

static int timer_cb(CURLM *multi, long ms, void *arg)
{
    (void)multi;
    struct http *h = arg;
    if (ms < 0)
        timer_clear(h->timers, &h->timer);
    else
        timer_set(h->timers, &h->timer, ms, on_timer, h);
    return 0;
}

static void on_socket_ready(uv_poll_t *poll, int status, int events)
{
    struct sock *s = poll->data;
    struct http *h = s->http;
    int mask = status < 0 ? CURL_CSELECT_ERR : 0;
    if (events & UV_READABLE)
        mask |= CURL_CSELECT_IN;
    if (events & UV_WRITABLE)
        mask |= CURL_CSELECT_OUT;
    int running;
    curl_multi_socket_action(h->multi, s->fd, mask, &running); /* may free s */
    reap(h);
}

static void free_sock(uv_handle_t *handle)
{
    free(handle->data);
}

static int socket_cb(CURL *easy, curl_socket_t fd, int what, void *arg, void *sockp)
{
    (void)easy;
    struct http *h = arg;
    struct sock *s = sockp;
    if (what == CURL_POLL_REMOVE) {
        if (s) {
            curl_multi_assign(h->multi, fd, NULL);
            uv_close((uv_handle_t *)&s->poll, free_sock);
        }
        return 0;
    }
    if (!s) {
        /* no memory, no descriptor: the request runs into its deadline. -1 would end every transfer of this multi handle, for ever
         */
        s = calloc(1, sizeof *s);
        if (!s)
            return 0;
        s->http = h;
        s->fd = fd;
        s->poll.data = s;
        if (uv_poll_init(h->loop, &s->poll, fd) != 0) {
            free(s);
            return 0;
        }
        curl_multi_assign(h->multi, fd, s);
    }
    int events = (what != CURL_POLL_OUT ? UV_READABLE : 0) | (what != CURL_POLL_IN ? UV_WRITABLE : 0);
    uv_poll_start(&s->poll, events, on_socket_ready);
    return 0;
}

/** libcurl before 8.19 opens sockets that children inherit. */
static curl_socket_t open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
    (void)arg;
    (void)purpose;
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct http_call *c = arg;
    return buf_append(&c->response.body, p, size * n) ? size * n : 0;
}

static void copy_header(const char *p, size_t n, const char *name, char *out, size_t out_size)
{
    size_t skip = strlen(name);
    if (n < skip || strncasecmp(p, name, skip) != 0)
        return;
    for (p += skip, n -= skip; n && (*p == ' ' || *p == '\t'); p++)
        n--;
    while (n && (p[n - 1] == '\r' || p[n - 1] == '\n' || p[n - 1] == ' '))
        n--;
    if (n < out_size) {
        memcpy(out, p, n);
        out[n] = 0;
    }
}

static size_t on_header(char *p, size_t size, size_t n, void *arg)
{
    struct http_call *c = arg;
    c->headers_whole = size * n <= 2; /* the empty line that ends them */
    copy_header(p, size * n, "Content-MD5:", c->response.content_md5, sizeof c->response.content_md5);
    copy_header(p, size * n, "Config-Type:", c->response.config_type, sizeof c->response.config_type);
    return size * n;
}

/* ---- calls --------------------------------------------------------------------------------------------------------------- */

static void set_tls(struct http_call *c)
{
    CURL *e = c->easy;
    curl_easy_setopt(e, CURLOPT_SSL_VERIFYPEER, c->tls.verify ? 1L : 0L);
    curl_easy_setopt(e, CURLOPT_SSL_VERIFYHOST, c->tls.verify ? 2L : 0L);
    if (c->tls.ca_file)
        curl_easy_setopt(e, CURLOPT_CAINFO, c->tls.ca_file);
    if (c->tls.cert_file)
        curl_easy_setopt(e, CURLOPT_SSLCERT, c->tls.cert_file);
    if (c->tls.key_file)
        curl_easy_setopt(e, CURLOPT_SSLKEY, c->tls.key_file);
}

static void begin(struct http_call *c)
{
    struct http *h = c->http;
    int64_t left = c->deadline - now_ms();
    if (left > c->timeout_ms)
        left = c->timeout_ms;
    c->easy = h->pooled ? h->pool[--h->pooled] : curl_easy_init();
    if (!c->easy || left <= 0) {
        fail(c, HTTP_TIMEOUT, c->easy ? "no answer in time" : "out of memory");
        timer_set(h->timers, &c->timer, 0, finish_later, c);
        return;
    }
    CURL *e = c->easy;
    curl_easy_setopt(e, CURLOPT_PRIVATE, c);
    curl_easy_setopt(e, CURLOPT_URL, c->url);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_QUICK_EXIT,
                     1L); /* a name server that hangs must not stop the loop: libcurl would join the resolver's thread */
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_PROXY, c->proxy ? c->proxy : ""); /* both keep libcurl from asking the environment */
    curl_easy_setopt(e, CURLOPT_NOPROXY, "");
    curl_easy_setopt(e, CURLOPT_OPENSOCKETFUNCTION, open_socket);
    curl_easy_setopt(e, CURLOPT_MAXAGE_CONN, CONNECTION_MAX_AGE_S);
    curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, c);
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, c->errbuf);
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)left);
    curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)(c->connect_timeout_ms < left ? c->connect_timeout_ms : left));
    if (c->body) {
        curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->body_len);
        curl_easy_setopt(e, CURLOPT_POSTFIELDS, c->body);
    }
    if (strcmp(c->method, c->body ? "POST" : "GET") != 0)
        curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, c->method);
    if (c->fresh)
        curl_easy_setopt(e, CURLOPT_FRESH_CONNECT, 1L);
    if (c->connect_to)
        curl_easy_setopt(e, CURLOPT_CONNECT_TO, c->connect_to);
    if (strncmp(c->url, "https:", 6) == 0)
        set_tls(c);
    c->started = true;
    if (!c->held)
        c->origin->active++;
    if (curl_multi_add_handle(h->multi, e) != CURLM_OK) {
        fail(c, HTTP_NO_CONNECT, "libcurl refuses the request");
        timer_set(h->timers, &c->timer, 0, finish_later, c);
    }
}

static void start_next(struct http *h, struct origin *o)
{
    while (o->wait_head && o->active < HTTP_PER_SERVER) {
        struct http_call *c = o->wait_head;
        o->wait_head = c->wait_next;
        if (!o->wait_head)
            o->wait_tail = NULL;
        c->waiting = false;
        timer_clear(h->timers, &c->timer);
        begin(c);
    }
}

static void waited_too_long(void *arg)
{
    struct http_call *c = arg;
    fail(c, HTTP_BUSY, "every connection to this server was busy");
    finish(c);
}

static struct origin *find_origin(struct http *h, const char *name)
{
    for (struct origin *o = h->origins; o; o = o->next)
        if (strcmp(o->name, name) == 0)
            return o;
    struct origin *o = calloc(1, sizeof *o + strlen(name) + 1);
    if (o) {
        strcpy(o->name, name);
        o->next = h->origins;
        h->origins = o;
    }
    return o;
}

/** The URL asks for `server_name`, the connection goes to the address: so name check and SNI see the name. */
static bool set_url(struct http_call *c, const struct http_spec *s)
{
    struct buf url;
    buf_init(&url, 1 << 20);
    const char *host = strstr(s->origin, "://") + 3, *port = strrchr(host, ':');
    if (c->tls.server_name && strncmp(s->origin, "https:", 6) == 0 && port) {
        struct buf to;
        buf_init(&to, 1024);
        buf_printf(&to, "%s%s:%s", c->tls.server_name, port, host);
        c->connect_to = to.data ? curl_slist_append(NULL, to.data) : NULL;
        buf_free(&to);
        buf_printf(&url, "https://%s%s%s", c->tls.server_name, port, s->target);
        if (!c->connect_to)
            url.failed = true;
    } else {
        buf_puts(&url, s->origin);
        buf_puts(&url, s->target);
    }
    bool ok = !url.failed;
    c->url = buf_take(&url, NULL);
    return ok && c->url;
}

static bool set_headers(struct http_call *c, const struct http_spec *s)
{
    c->headers = curl_slist_append(NULL, "Expect:");
    for (const char *const *p = s->headers; c->headers && p && *p; p++) {
        struct curl_slist *more = curl_slist_append(c->headers, *p);
        if (!more)
            return false;
        c->headers = more;
    }
    return c->headers != NULL;
}

struct http_call *http_start(struct http *h, const struct http_spec *s, http_done done, void *arg)
{
    struct http_call *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->http = h;
    c->done = done;
    c->arg = arg;
    c->body = s->body;
    c->body_len = s->body_len;
    c->held = s->held;
    c->fresh = s->fresh;
    c->deadline = now_ms() + s->wait_ms;
    c->timeout_ms = s->timeout_ms;
    c->connect_timeout_ms = s->connect_timeout_ms;
    if (s->tls)
        c->tls = *s->tls;
    buf_init(&c->response.body, s->max_response);
    c->method = strdup(s->method);
    c->proxy = s->proxy ? strdup(s->proxy) : NULL;
    c->origin = find_origin(h, s->origin);
    if (!c->method || !c->origin || (s->proxy && !c->proxy) || !set_url(c, s) || !set_headers(c, s)) {
        free_call(c);
        return NULL;
    }
    c->next = h->calls;
    if (c->next)
        c->next->prev = c;
    h->calls = c;
    if (!c->held && c->origin->active >= HTTP_PER_SERVER) {
        c->waiting = true;
        if (c->origin->wait_tail)
            c->origin->wait_tail->wait_next = c;
        else
            c->origin->wait_head = c;
        c->origin->wait_tail = c;
        timer_set(h->timers, &c->timer, s->wait_ms, waited_too_long, c);
    } else {
        begin(c);
    }
    return c;
}

void http_cancel(struct http_call *c)
{
    if (!c)
        return;
    unlink_call(c);
    free_call(c);
}

#define LOOK_AT 64

static void flags_of(int first, int flags[LOOK_AT])
{
    for (int i = 0; i < LOOK_AT; i++)
        flags[i] = fcntl(first + i, F_GETFD);
}

/** curl_multi_init(), with the pair of unnamed Unix sockets that it opens for its own use made close-on-exec: there is no option
 * for it. They get the lowest free numbers. */
static CURLM *multi_init(void)
{
    int before[LOOK_AT], after[LOOK_AT], first = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (first < 0)
        return NULL;
    close(first);
    flags_of(first, before);
    CURLM *multi = curl_multi_init();
    flags_of(first, after);
    for (int i = 0; i < LOOK_AT; i++) {
        struct sockaddr_storage a;
        socklen_t n = sizeof a;
        if (before[i] < 0 && after[i] == 0 && getsockname(first + i, (struct sockaddr *)&a, &n) == 0 && a.ss_family == AF_UNIX &&
            n == sizeof a.ss_family)
            fcntl(first + i, F_SETFD, FD_CLOEXEC);
    }
    return multi;
}

void http_init_process(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

struct http *http_new(uv_loop_t *loop, struct timers *timers)
{
    struct http *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->loop = loop;
    h->timers = timers;
    h->multi = multi_init();
    if (!h->multi) {
        free(h);
        return NULL;
    }
    curl_multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, socket_cb);
    curl_multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h);
    curl_multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, timer_cb);
    curl_multi_setopt(h->multi, CURLMOPT_TIMERDATA, h);
    curl_multi_setopt(h->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, KEPT_CONNECTIONS);
    return h;
}

void http_free(struct http *h)
{
    if (!h)
        return;
    while (h->calls)
        http_cancel(h->calls);
    while (h->pooled)
        curl_easy_cleanup(h->pool[--h->pooled]);
    curl_multi_cleanup(h->multi);
    timer_clear(h->timers, &h->timer);
    while (h->origins) {
        struct origin *o = h->origins;
        h->origins = o->next;
        free(o);
    }
    free(h);
}
