#include "engine/auth.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/file.h"

#define LOGIN_MS 5000
#define RETRY_MIN_MS 500
#define RETRY_MAX_MS 30000
#define PATIENCE 10           /* tries with 500 before waiters are told: a server that just started answers so for ~6 s */
#define RELOGIN_PAUSE_MS 1000 /* a 403 right after a login that a 403 asked for is not about the token */
#define PASSWORD_MAX 4096

/* 1.2 and later have the first two, 3.x the last; a 3.x server may have the others switched off */
static const char *const paths[] = {"/v1/auth/login", "/v1/auth/users/login", "/v3/auth/user/login"};
#define PATHS ((int)(sizeof paths / sizeof *paths))

static void login(struct auth *a);

static char *copy(const char *s)
{
    return s ? strdup(s) : NULL;
}

bool auth_init(struct auth *a, struct nacos_client *c, const nacos_options *o)
{
    a->client = c;
    if (!o->username || !*o->username)
        return true;
    a->username = copy(o->username);
    a->password = copy(o->password);
    a->password_file = copy(o->password_file);
    a->password_env = copy(o->password_env);
    return a->username && (!o->password || a->password) && (!o->password_file || a->password_file) &&
           (!o->password_env || a->password_env);
}

static void wipe(char *s)
{
    if (s)
        explicit_bzero(s, strlen(s));
    free(s);
}

void auth_free(struct auth *a)
{
    timer_clear(&a->client->engine->timers, &a->timer);
    request_cancel(a->running);
    a->running = NULL;
    free(a->username);
    wipe(a->password);
    free(a->password_file);
    free(a->password_env);
    wipe(a->token);
    free(a->waiters);
    a->waiters = NULL;
    a->waiter_count = 0;
}

enum auth_state auth_token(struct auth *a, const char **token, uint64_t *generation, nacos_error *err)
{
    *token = NULL;
    *generation = a->generation;
    if (!a->username || a->not_needed)
        return AUTH_READY;
    if (a->token && now_ms() < a->expires) {
        *token = a->token;
        return AUTH_READY;
    }
    if (a->running)
        return AUTH_WAIT;
    if (a->retry_at > now_ms()) {
        if (a->failures < PATIENCE && a->error.http_status == 500)
            return AUTH_WAIT; /* the timer tries again soon */
        *err = a->error;
        return AUTH_FAILED;
    }
    login(a);
    return AUTH_WAIT;
}

void auth_join(struct auth *a, struct request *r)
{
    if (a->waiter_count == a->waiter_cap) {
        int cap = a->waiter_cap ? a->waiter_cap * 2 : 16;
        struct request **more = realloc(a->waiters, sizeof *more * (size_t)cap);
        if (!more)
            return; /* its deadline ends it */
        a->waiters = more;
        a->waiter_cap = cap;
    }
    a->waiters[a->waiter_count++] = r;
}

void auth_leave(struct auth *a, struct request *r)
{
    for (int i = 0; i < a->waiter_count; i++) {
        if (a->waiters[i] == r) {
            a->waiters[i] = a->waiters[--a->waiter_count];
            return;
        }
    }
}

static bool says(const struct http_response *r, const char *words)
{
    return r->body.len && memmem(r->body.data, r->body.len, words, strlen(words));
}

bool auth_refused(struct auth *a, uint64_t generation, const struct http_response *r)
{
    if (!a->username || a->not_needed)
        return false;
    if (generation != a->generation)
        return true;
    if (says(r, "authorization failed"))
        return false;
    /* "token expired!", "token invalid!", "Invalid signature" of a restarted server: certain, if the token was good before.
     * Else not right after a login that did not help. */
    bool certain = a->accepted && (says(r, "token") || says(r, "signature"));
    if (!certain && now_ms() < a->pause_until)
        return false;
    a->expires = 0;
    a->forced = true;
    return true;
}

void auth_accepted(struct auth *a, uint64_t generation)
{
    if (generation == a->generation)
        a->accepted = true;
}

static void tell_waiters(struct auth *a, const nacos_error *err)
{
    int n = a->waiter_count;
    a->waiter_count = 0;
    for (int i = 0; i < n; i++)
        request_login_over(a->waiters[i], err);
}

static void retry(void *arg)
{
    struct auth *a = arg;
    if (!a->running)
        login(a);
}

static void worked(struct auth *a, const struct http_response *r)
{
    struct nacos_client *c = a->client;
    char *token = NULL;
    int64_t ttl = 0;
    bool no_auth = false;
    if (!login_parse(r, &token, &ttl, &no_auth))
        return;
    wipe(a->token);
    a->token = token;
    a->not_needed = no_auth;
    a->generation++;
    a->tried = 0;
    a->failures = 0;
    a->retry_at = 0;
    a->expires = now_ms() + ttl * 1000;
    a->pause_until = a->forced ? now_ms() + RELOGIN_PAUSE_MS : 0;
    a->forced = false;
    a->accepted = false;
    pthread_mutex_lock(&c->engine->lock);
    c->status.logins++;
    pthread_mutex_unlock(&c->engine->lock);
    log_write(c->log, LOG_INFO, "logged in as %s at %s, for %lld s", a->username, a->origin, (long long)ttl);
    if (!no_auth)
        timer_set(&c->engine->timers, &a->timer, ttl * 900, retry, a);
}

static void failed(struct auth *a, const nacos_error *err)
{
    struct nacos_client *c = a->client;
    int64_t pause = (int64_t)RETRY_MIN_MS << (a->failures < 6 ? a->failures : 6);
    if (a->failures < PATIENCE && err->http_status == 500)
        pause = RETRY_MIN_MS;
    a->failures++;
    a->retry_at = now_ms() + (pause < RETRY_MAX_MS ? pause : RETRY_MAX_MS);
    a->error = *err;
    if (err->http_status >= 400 && err->http_status <= 500)
        a->error.code = NACOS_FORBIDDEN;
    if (err->http_status == 500)
        snprintf(a->error.message, sizeof a->error.message,
                 "cannot log in as %.64s at %s: HTTP %d, which a Nacos server answers to a wrong user or password, and while it is "
                 "starting",
                 a->username, a->origin, err->http_status);
    else if (err->http_status == 401 || err->http_status == 403)
        snprintf(a->error.message, sizeof a->error.message, "cannot log in as %.64s at %s: user or password is wrong (HTTP %d)",
                 a->username, a->origin, err->http_status);
    log_write(c->log, a->failures == 1 || a->failures == PATIENCE ? LOG_WARN : LOG_DEBUG, "%s", a->error.message);
    timer_set(&c->engine->timers, &a->timer, a->retry_at - now_ms(), retry, a);
}

static void on_login(void *arg, const struct http_response *r, const nacos_error *err)
{
    struct auth *a = arg;
    struct nacos_client *c = a->client;
    a->running = NULL;
    if (err->code == NACOS_OK) {
        uint64_t before = a->generation;
        worked(a, r);
        if (a->generation != before) {
            tell_waiters(a, NULL);
            return;
        }
        nacos_error odd = {.code = NACOS_PROTOCOL};
        snprintf(odd.message, sizeof odd.message,
                 "cannot log in as %.64s at %s: the answer holds no token; is this a Nacos server?", a->username, a->origin);
        failed(a, &odd);
        tell_waiters(a, &a->error);
        return;
    }
    if (err->code == NACOS_UNSUPPORTED && a->path + 1 < PATHS) {
        a->path++;
        login(a);
        return;
    }
    a->path = 0;
    bool reached = err->http_status != 0 && err->http_status <= 500; /* 502 and 503 are a gateway's words for a dead server */
    if (!reached) {
        servers_failed(&c->servers, a->origin, now_ms());
        if (servers_pick(&c->servers, a->tried, now_ms()) >= 0) {
            login(a);
            return;
        }
    }
    failed(a, err);
    a->tried = 0;
    if (err->http_status != 500 || a->failures >= PATIENCE)
        tell_waiters(a, &a->error);
}

/** The password as it is now; NULL and a->error when it cannot be had. The caller wipes it. */
static char *read_password(struct auth *a)
{
    char why[300] = "";
    if (a->password_file) {
        char *text = NULL;
        size_t len = 0;
        if (file_read(a->password_file, PASSWORD_MAX, &text, &len, why, sizeof why) == FILE_OK) {
            text[strcspn(text, "\r\n")] = 0;
            return text;
        }
        if (!why[0])
            snprintf(why, sizeof why, "%s: no such file", a->password_file);
    } else if (a->password_env) {
        const char *v = getenv(a->password_env);
        if (v)
            return strdup(v);
        snprintf(why, sizeof why, "the environment variable %s is not set", a->password_env);
    } else {
        return strdup(a->password ? a->password : "");
    }
    a->error = (nacos_error){.code = NACOS_FORBIDDEN};
    snprintf(a->error.message, sizeof a->error.message, "cannot log in as %.64s: no password: %.300s", a->username, why);
    return NULL;
}

static void no_password(void *arg)
{
    struct auth *a = arg;
    nacos_error err = a->error;
    failed(a, &err);
    tell_waiters(a, &a->error);
}

static void login(struct auth *a)
{
    struct nacos_client *c = a->client;
    if (c->closing)
        return;
    char *password = read_password(a);
    bool same = a->path > 0; /* another path of the server that has just answered */
    int k = same ? 0 : servers_pick(&c->servers, a->tried, now_ms());
    if (!password || k < 0) {
        if (password) {
            a->error = (nacos_error){.code = NACOS_UNAVAILABLE};
            snprintf(a->error.message, sizeof a->error.message, "cannot log in as %.64s: no server is known", a->username);
        }
        wipe(password);
        a->tried = 0;
        a->retry_at = now_ms() + RETRY_MIN_MS;
        timer_set(&c->engine->timers, &a->timer, 0, no_password, a);
        return;
    }
    if (!same) {
        a->tried |= 1u << k;
        snprintf(a->origin, sizeof a->origin, "%s", c->servers.list[k].origin);
    }
    struct question q;
    login_question(&q, paths[a->path], a->username, password);
    wipe(password);
    a->running = request_start_at(c, &q, a->origin, true, LOGIN_MS, on_login, a);
}
