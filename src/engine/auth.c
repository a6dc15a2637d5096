#include "engine/auth.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/file.h"

#define LOGIN_MS 5000
#define LOGIN_SHARE_MS 1500 /* while other servers are left to ask */
#define RETRY_MIN_MS 500
#define RETRY_MAX_MS 2000
#define ASKED_MS 100 /* the least between two rounds when somebody wants the token */
#define REFUSED_MAX_MS 30000
#define PATIENCE_MS 15000     /* a server that just started answers 500 so long (2.3.2: 5 s, 3.1.0: up to 15 s) */
#define RELOGIN_PAUSE_MS 1000 /* a 403 right after a login that a 403 asked for is not about the token */
#define PASSWORD_MAX 4096

/* 1.2 and later have the first two, 3.x the last; a 3.x server may have the others switched off */
static const char *const paths[] = {"/v1/auth/login", "/v1/auth/users/login", "/v3/auth/user/login"};
#define PATHS ((int)(sizeof paths / sizeof *paths))

static void next_server(struct auth *a);

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
    if (!a->client)
        return;
    timer_clear(&a->client->engine->timers, &a->timer);
    request_cancel(a->running);
    a->running = NULL;
    free(a->username);
    wipe(a->password);
    free(a->password_file);
    free(a->password_env);
    wipe(a->token);
    free(a->waiters);
    *a = (struct auth){0};
}

/* ---- what requests ask --------------------------------------------------------------------------------------------------- */

static bool patient(const struct auth *a)
{
    return a->patient_since && now_ms() - a->patient_since < PATIENCE_MS;
}

static void start_round(void *arg)
{
    struct auth *a = arg;
    if (a->running || a->client->closing)
        return;
    timer_clear(&a->client->engine->timers, &a->timer);
    a->tried = 0;
    a->round_error = (nacos_error){0};
    next_server(a);
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
    if (a->error.code != NACOS_OK) {
        *err = a->error;
    } else {
        *err = (nacos_error){.code = NACOS_UNAVAILABLE};
        snprintf(err->message, sizeof err->message, "cannot log in as %.64s: no answer in time", a->username);
    }
    if (a->running || patient(a))
        return AUTH_WAIT;
    if (now_ms() >= a->retry_at) {
        start_round(a);
    } else if (a->error.code == NACOS_UNAVAILABLE) { /* that no server answered then says nothing about now */
        int64_t pause = a->ended + ASKED_MS - now_ms();
        timer_set(&a->client->engine->timers, &a->timer, pause > 0 ? pause : 0, start_round, a);
    } else {
        return AUTH_FAILED;
    }
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

void auth_accepted(struct auth *a, uint64_t generation)
{
    if (generation == a->generation)
        a->accepted = true;
}

bool auth_refused(struct auth *a, uint64_t generation, const struct http_response *r)
{
    if (!a->username)
        return false;
    if (generation != a->generation)
        return true;
    if (body_has(r, "authorization failed"))
        return false;
    /* "token expired!", "token invalid!", "Invalid signature" of a restarted server: certain, if the token was good before.
     * Else not right after a login that did not help. */
    bool certain = a->accepted && (body_has(r, "token") || body_has(r, "signature"));
    if (!certain && now_ms() < a->pause_until)
        return false;
    a->not_needed = false; /* if it was so, it no longer is */
    a->expires = 0;
    a->forced = true;
    return true;
}

static void tell_waiters(struct auth *a, const nacos_error *err)
{
    int n = a->waiter_count;
    a->waiter_count = 0;
    for (int i = 0; i < n; i++)
        request_login_over(a->waiters[i], err);
}

/* ---- a round ------------------------------------------------------------------------------------------------------------- */

static void round_worked(struct auth *a, char *token, int64_t ttl_s, bool no_auth)
{
    struct nacos_client *c = a->client;
    wipe(a->token);
    a->token = token;
    a->not_needed = no_auth;
    a->accepted = false;
    a->generation++;
    a->expires = now_ms() + ttl_s * 1000;
    a->pause_until = a->forced ? now_ms() + RELOGIN_PAUSE_MS : 0;
    a->forced = false;
    a->failures = 0;
    a->patient_since = 0;
    a->retry_at = 0;
    a->error = (nacos_error){0};
    pthread_mutex_lock(&c->engine->lock);
    c->status.logins++;
    pthread_mutex_unlock(&c->engine->lock);
    log_write(c->log, LOG_INFO, "logged in as %s at %s, for %lld s", a->username, a->origin, (long long)ttl_s);
    if (!no_auth)
        timer_set(&c->engine->timers, &a->timer, ttl_s * 900, start_round, a);
    tell_waiters(a, NULL);
}

/** Plans the next round; the waiters wait for it or are told. */
static void round_failed(struct auth *a, const nacos_error *err)
{
    struct nacos_client *c = a->client;
    bool first = a->error.code == NACOS_OK, was_patient = patient(a);
    a->error = *err;
    a->forced = false;
    if (err->http_status == 500) {
        if (!a->patient_since)
            a->patient_since = now_ms();
        a->error.code = NACOS_FORBIDDEN; /* perhaps only for now; but no old value shall hide it */
        snprintf(a->error.message, sizeof a->error.message,
                 "cannot log in as %.64s at %s: HTTP 500, which a Nacos server says to a wrong user or password, and for some "
                 "seconds after its start",
                 a->username, err->server);
    } else {
        a->patient_since = 0;
        if (err->code == NACOS_FORBIDDEN && err->http_status)
            snprintf(a->error.message, sizeof a->error.message, "cannot log in as %.64s at %s: user or password is wrong (HTTP %d)",
                     a->username, err->server, err->http_status);
    }
    int64_t pause = (int64_t)RETRY_MIN_MS << (a->failures < 6 ? a->failures : 6);
    int64_t most = patient(a) ? RETRY_MIN_MS : a->error.code == NACOS_FORBIDDEN ? REFUSED_MAX_MS : RETRY_MAX_MS;
    a->failures++;
    a->ended = now_ms();
    a->retry_at = a->ended + (pause < most ? pause : most);
    log_write(c->log, first || (was_patient && !patient(a)) ? LOG_WARN : LOG_DEBUG, "%s", a->error.message);
    timer_set(&c->engine->timers, &a->timer, a->retry_at - now_ms(), start_round, a);
    if (!patient(a))
        tell_waiters(a, &a->error);
    for (int i = 0; i < a->waiter_count; i++)
        request_login_trouble(a->waiters[i], &a->error);
}

/** The password as it is now; NULL and a->round_error when it cannot be had. The caller wipes it. */
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
    a->round_error = (nacos_error){.code = NACOS_INVALID};
    snprintf(a->round_error.message, sizeof a->round_error.message, "cannot log in as %.64s: no password: %s", a->username, why);
    return NULL;
}

static void give_up(void *arg)
{
    struct auth *a = arg;
    nacos_error err = a->round_error;
    round_failed(a, &err);
}

static void on_login(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err);

static void send_login(struct auth *a, const char *password)
{
    struct nacos_client *c = a->client;
    struct question q;
    login_question(&q, paths[(a->path + a->paths_tried) % PATHS], a->username, password);
    a->paths_tried++;
    bool others = servers_pick(&c->servers, a->tried, now_ms()) >= 0;
    a->running = request_start_at(c, &q, a->origin, true, others ? LOGIN_SHARE_MS : LOGIN_MS, on_login, a);
    if (a->running) {
        request_lasts(a->running); /* a client that leaves may need it; auth_free() ends it */
    } else {
        a->round_error = (nacos_error){.code = NACOS_NOMEM, .message = "out of memory"};
        timer_set(&c->engine->timers, &a->timer, 0, give_up, a);
    }
}

/** Asks the present server on its next path. */
static void next_path(struct auth *a)
{
    char *password = read_password(a);
    if (password)
        send_login(a, password);
    else
        timer_set(&a->client->engine->timers, &a->timer, 0, give_up, a); /* not from inside auth_token() */
    wipe(password);
}

static void next_server(struct auth *a)
{
    struct servers *s = &a->client->servers;
    int k = servers_pick(s, a->tried, now_ms());
    if (k < 0) {
        if (a->round_error.code == NACOS_OK) {
            a->round_error = (nacos_error){.code = NACOS_UNAVAILABLE};
            snprintf(a->round_error.message, sizeof a->round_error.message, "cannot log in as %.64s: no server is known",
                     a->username);
        }
        timer_set(&a->client->engine->timers, &a->timer, 0, give_up, a);
        return;
    }
    a->tried |= 1u << k;
    a->paths_tried = 0;
    snprintf(a->origin, sizeof a->origin, "%s", s->list[k].origin);
    next_path(a);
}

static void on_login(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct auth *a = arg;
    (void)q;
    nacos_error odd = {.code = NACOS_PROTOCOL};
    a->running = NULL;
    if (err->code == NACOS_CLOSED)
        return;
    if (err->code == NACOS_OK) {
        char *token = NULL;
        int64_t ttl_s = 0;
        bool no_auth = false;
        if (login_parse(r, &token, &ttl_s, &no_auth)) {
            a->path = (a->path + a->paths_tried - 1) % PATHS;
            round_worked(a, token, ttl_s, no_auth);
            return;
        }
        snprintf(odd.server, sizeof odd.server, "%s", a->origin);
        snprintf(odd.message, sizeof odd.message,
                 "cannot log in as %.64s at %s: the answer holds no token; is this a Nacos server?", a->username, a->origin);
        err = &odd;
    }
    if (err->code == NACOS_UNSUPPORTED && a->paths_tried < PATHS) {
        next_path(a);
        return;
    }
    if (err->code == NACOS_FORBIDDEN) {
        round_failed(a, err);
        return;
    }
    servers_failed(&a->client->servers, a->origin, now_ms());
    if (a->round_error.http_status != 500) /* what a live server said tells more than that another one is dead */
        a->round_error = *err;
    next_server(a);
}
