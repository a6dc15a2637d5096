#include "engine/dialect.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/client.h"

#define PROBE_MS 1500
#define TRIAL_MS 1100       /* at the start, when HTTP has answered: more than a connection may take, which has its own reason */
#define LOST_MS 3000        /* without its connection a client that can goes on over HTTP */
#define SILENT_LOOK_MS 2000 /* no server answered anything, or the one in use offers nothing: then up to */
#define NOTHING_LOOK_MS 8000
#define LOOK_MIN_MS 30000 /* for gRPC, while HTTP is spoken */
#define LOOK_MAX_MS 300000
#define BACK_MS 2000 /* where it was spoken before, and after an outage */
#define BACK_OFF_MIN_MS 100
#define BACK_OFF_MAX_MS 5000
#define REFUSED_MS 300   /* a refused connection costs nothing, so a server that comes back is seen soon; up to */
#define REFUSED_PART 200 /* of the outage: more than that after a minute */
#define HURRY_MIN_MS 250 /* after a try in vain nobody can make the next one come sooner than that */
#define HURRY_MAX_MS 2000
#define ASK_AGAIN_MS 5000 /* for the version: gRPC may be up before HTTP */
#define FOLLOW_MIN_MS 100
#define FOLLOW_MS 5000  /* between two changes over HTTP */
#define STEADY_MS 10000 /* a connection that lived so long was no failure */

/** What a server does not offer: bits of its `refused`. */
enum { NO_V1 = 1, NO_V3 = 2, NO_HTTP = NO_V1 | NO_V3, NO_GRPC = 4 };

static void on_timer(void *arg);

/** first, twice that, … max */
static int64_t doubled(int64_t first, int times, int64_t max)
{
    int64_t ms = first << (times < 16 ? times : 16);
    return ms < max ? ms : max;
}

static void timer_in(struct dialect *d, int64_t ms)
{
    timer_set(&d->client->engine->timers, &d->timer, ms, on_timer, d);
}

/** In at most so long. */
static void timer_within(struct dialect *d, int64_t ms)
{
    if (d->timer.due > now_ms() + ms)
        timer_in(d, jittered(ms));
}

static struct server *server_of(struct dialect *d)
{
    return servers_find(&d->client->servers, d->origin);
}

static uint32_t bit_of(struct dialect *d)
{
    const struct server *s = server_of(d);
    return s ? 1u << (s - d->client->servers.list) : 0;
}

/** The invariant of the header. */
static void check(const struct dialect *d)
{
    const struct nacos_client *c = d->client;
    bool up = d->phase == DIALECT_LINKED && c->link.state == LINK_READY;
    bool connecting = d->linking && c->link.state != LINK_OFF && c->link.state != LINK_READY;
    assert(d->phase == DIALECT_FIXED || up || connecting || d->probe || d->timer.slot || c->closing);
    assert(d->phase != DIALECT_HTTP || d->timer.slot);
    (void)up, (void)connecting;
}

static void tell_waiters(struct dialect *d)
{
    int n = d->waiter_count;
    d->waiter_count = 0;
    for (int i = 0; i < n; i++)
        request_dialect_known(d->waiters[i]);
}

/** From now on it is this one. */
static void use(struct dialect *d, const struct protocol *p, const char *why)
{
    struct nacos_client *c = d->client;
    const struct protocol *before = d->now;
    snprintf(d->why, sizeof d->why, "%s", why);
    d->now = p;
    if (p != before)
        log_write(c->log, LOG_INFO, "speaking %s", d->why);
    client_note_dialect(c);
    if (p != before)
        client_dialect_changed(c, before);
    else if (d->phase == DIALECT_LINKED)
        client_link_up(c);
    tell_waiters(d);
}

/* ---- tries --------------------------------------------------------------------------------------------------------------- */

static void try_in_vain(struct dialect *d);

void dialect_address(const struct dialect *d, const char *origin, char out[140])
{
    const char *host = strstr(origin, "://") + 3, *colon = strrchr(host, ':');
    snprintf(out, 140, "%.*s:%d", (int)(colon - host), host, atoi(colon + 1) + d->port_offset);
}

static void link_address(const struct dialect *d, char out[140])
{
    dialect_address(d, d->redirect[0] ? d->redirect : d->origin, out);
}

/** "grpc: 10.0.0.1:9848 answers", with the version as far as it is known. */
static void describe_link(struct dialect *d, char why[300])
{
    const struct server *s = server_of(d);
    char address[140];
    link_address(d, address);
    int n = snprintf(why, 300, "grpc: %s answers", address);
    if (s && s->version[0])
        snprintf(why + n, 300 - (size_t)n, " (Nacos %s)", s->version);
    else if (strncmp(d->why, why, (size_t)n) == 0) /* it was away for a moment */
        snprintf(why, 300, "%s", d->why);
}

static void ask_version(struct dialect *d, bool old);

/** The version is known, or cannot be: of a try, or of the server that the connection is to. */
static void on_version(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err)
{
    struct dialect *d = arg;
    struct server *s = server_of(d);
    char version[32] = "";
    (void)q;
    d->probe = NULL;
    if (err->code == NACOS_CLOSED)
        return;
    d->answered = r && r->outcome == HTTP_ANSWERED;
    if (d->answered) {
        bool told = err->code == NACOS_OK && parse_version(r, version, sizeof version);
        if (!told && !d->old)
            ask_version(d, true);
        if (d->probe)
            return;
        if (s && version[0]) {
            if (s->version[0] && strcmp(version, s->version) != 0)
                s->refused = 0; /* that was another server */
            snprintf(s->version, sizeof s->version, "%s", version);
        }
    }
    if (d->phase != DIALECT_LINKED) {
        try_in_vain(d);
    } else if (version[0]) {
        describe_link(d, d->why);
        client_note_dialect(d->client);
    } else if (!d->timer.slot) {
        timer_in(d, jittered(doubled(ASK_AGAIN_MS, d->looks++, LOOK_MAX_MS)));
    }
    check(d);
}

static void ask_version(struct dialect *d, bool old)
{
    struct question q;
    d->old = old;
    (old ? &protocol_v1 : &protocol_v3)->version(&q);
    d->probe = request_start_at(d->client, &q, d->origin, true, PROBE_MS, on_version, d);
    if (d->probe)
        request_lasts(d->probe); /* a client that leaves has to find its way, too */
}

static bool may_link(struct dialect *d)
{
    const struct nacos_client *c = d->client;
    const struct server *s = server_of(d);
    const char *proxy = strncmp(d->origin, "https:", 6) == 0 ? c->proxy_https : c->proxy_http;
    if (d->option == DIALECT_GRPC)
        return true;
    if (proxy)
        snprintf(d->link_why, sizeof d->link_why, "a proxy is set for %.100s, which gRPC cannot pass", d->origin);
    else if (s && s->refused & NO_GRPC)
        snprintf(d->link_why, sizeof d->link_why, "%.100s does not offer all by gRPC", d->origin);
    return !proxy && !(s && s->refused & NO_GRPC);
}

/** The pause is over. */
static void begin_try(struct dialect *d)
{
    struct nacos_client *c = d->client;
    d->linking = may_link(d);
    if (d->linking) {
        link_open(&c->link, d->origin);
        snprintf(c->link.redirect, sizeof c->link.redirect, "%s", d->redirect);
    }
    if (d->option == DIALECT_AUTO)
        ask_version(d, false);
    if (d->linking && d->phase == DIALECT_STARTING)
        timer_in(d, TRIAL_MS);
    try_in_vain(d); /* nothing could be begun */
}

/** Before the next try: it grows with the failures. */
static int64_t pause_of(const struct dialect *d)
{
    int64_t max = BACK_OFF_MAX_MS, soon = (now_ms() - d->phase_at) / REFUSED_PART;
    if (d->phase == DIALECT_LOST && d->client->link.refused && soon < max)
        max = soon > REFUSED_MS ? soon : REFUSED_MS;
    return d->failures ? jittered(doubled(BACK_OFF_MIN_MS, d->failures, max)) : 0;
}

/** After a pause. */
static void try_server(struct dialect *d, const char *origin)
{
    request_cancel(d->probe);
    d->probe = NULL;
    link_close(&d->client->link);
    d->linking = d->answered = false;
    d->redirect[0] = 0;
    if (origin != d->origin)
        snprintf(d->origin, sizeof d->origin, "%s", origin);
    timer_in(d, pause_of(d));
}

static void new_round(struct dialect *d)
{
    d->tried = 0;
    d->generation = d->client->servers.generation;
    d->heard = false;
}

/** The first try of the first round of this phase, at any server but those in `not_first` if there are others. */
static void search(struct dialect *d, enum dialect_phase phase, uint32_t not_first)
{
    struct servers *s = &d->client->servers;
    if (d->phase != phase)
        d->phase_at = now_ms();
    d->phase = phase;
    d->round_failed = false;
    d->http_at = 0;
    new_round(d);
    try_server(d, s->list[servers_pick(s, s->count > 1 ? not_first : 0, now_ms())].origin);
}

/* ---- over HTTP ----------------------------------------------------------------------------------------------------------- */

/** What is spoken with this server over HTTP: what its version says (or what is spoken anyway), unless it has refused just that. */
static const struct protocol *words_for(const struct dialect *d, const struct server *s)
{
    int major = 0, minor = 0;
    bool known = sscanf(s->version, "%d.%d", &major, &minor) == 2;
    bool three = known ? major > 3 || (major == 3 && minor >= 2) : d->now == &protocol_v3;
    unsigned refused = s->refused & NO_HTTP;
    if (refused == (three ? NO_V3 : NO_V1))
        three = !three;
    return three ? &protocol_v3 : &protocol_v1;
}

/** The mechanisms use the words for the server in use. */
static void use_http(struct dialect *d)
{
    struct servers *all = &d->client->servers;
    const struct server *s = &all->list[all->current];
    const struct protocol *p = words_for(d, s);
    char why[300];
    static const char *const lacks[] = {"", "; it does not offer v1", "; it does not offer v3", "; it offers neither v1 nor v3"};
    snprintf(why, sizeof why, "%s: %.180s%s%.32s%s", p->name, d->link_why, s->version[0] ? "; the server is Nacos " : "",
             s->version, lacks[s->refused & NO_HTTP]);
    use(d, p, why);
}

/** There is no gRPC: by HTTP, and the next look in a while. */
static void give_up_link(struct dialect *d)
{
    if (d->answered && d->phase != DIALECT_LOOKING)
        servers_worked(&d->client->servers, d->origin);
    d->phase = DIALECT_HTTP;
    timer_in(d, jittered(d->heard ? doubled(d->up_at ? BACK_MS : LOOK_MIN_MS, d->looks, LOOK_MAX_MS) : SILENT_LOOK_MS));
    d->looks = d->heard ? d->looks + 1 : 0;
    use_http(d);
}

static void on_follow(void *arg)
{
    struct dialect *d = arg;
    struct servers *all = &d->client->servers;
    if ((d->phase != DIALECT_HTTP && d->phase != DIALECT_LOOKING) || words_for(d, &all->list[all->current]) == d->now)
        return;
    d->follow_due = now_ms() + FOLLOW_MS;
    use_http(d);
}

/** Soon, when a request has seen whether the other words do better; and not in flocks, whatever servers say. */
static void follow(struct dialect *d)
{
    int64_t ms = d->follow_due - now_ms();
    if (!d->follow_timer.slot)
        timer_set(&d->client->engine->timers, &d->follow_timer, ms > FOLLOW_MIN_MS ? ms : FOLLOW_MIN_MS, on_follow, d);
}

/** Tries gRPC again. */
static void look(struct dialect *d)
{
    struct servers *all = &d->client->servers;
    for (int i = 0; i < all->count; i++)
        if ((all->list[i].refused & NO_HTTP) == NO_HTTP)
            all->list[i].refused = 0; /* such a place may become a server */
    d->failures = 0;
    search(d, DIALECT_LOOKING, 0);
}

/* ---- what follows on a try ------------------------------------------------------------------------------------------------ */

static void next_server(struct dialect *d)
{
    struct servers *s = &d->client->servers;
    if (d->generation != s->generation)
        new_round(d);
    d->tried |= bit_of(d);
    int k = servers_pick(s, d->tried, now_ms());
    if (k < 0 && d->phase != DIALECT_LOST) {
        give_up_link(d);
        return;
    }
    if (k < 0) {
        if (!d->heard)
            d->http_at = 0;
        d->round_failed = true;
        tell_waiters(d);
        new_round(d);
        k = servers_pick(s, s->count > 1 ? bit_of(d) : 0, now_ms());
    }
    try_server(d, s->list[k].origin);
}

/** Calls wait for the first try: a server that has answered over HTTP, but says nothing by gRPC, is not waited for. */
static void end_trial(struct dialect *d)
{
    char address[140];
    if (d->phase != DIALECT_STARTING || !d->linking || !d->answered || d->timer.slot || link_answered(&d->client->link))
        return;
    link_close(&d->client->link);
    d->linking = false;
    link_address(d, address);
    snprintf(d->link_why, sizeof d->link_why, "no gRPC at %s: no answer for a second", address);
}

/** Called when the connection could not be made, when the version is known or not to be had, and when the time for that is up: goes
 * on when both have ended. */
static void try_in_vain(struct dialect *d)
{
    end_trial(d);
    if (d->linking || d->probe)
        return;
    int64_t now = now_ms();
    d->failed_at = now;
    d->heard |= d->answered;
    if (d->phase == DIALECT_STARTING && d->answered) {
        give_up_link(d);
        return;
    }
    if (d->phase == DIALECT_LOST) {
        d->failures++;
        if (!d->answered)
            servers_failed(&d->client->servers, d->origin, now);
        else if (!d->http_at)
            d->http_at = now;
        else if (now - d->http_at >= LOST_MS) { /* a server that comes back answers over HTTP before it does over gRPC */
            give_up_link(d);
            return;
        }
    }
    next_server(d);
}

static void on_timer(void *arg)
{
    struct dialect *d = arg;
    const struct server *s = server_of(d);
    if (d->phase == DIALECT_HTTP)
        look(d);
    else if (d->phase != DIALECT_LINKED && (d->linking || d->probe))
        try_in_vain(d);
    else if (d->phase != DIALECT_LINKED)
        begin_try(d);
    else if (s && s->refused & NO_GRPC)
        search(d, DIALECT_STARTING, 0);
    else if (!d->probe)
        ask_version(d, false);
    check(d);
}

/* ---- the link ------------------------------------------------------------------------------------------------------------ */

void dialect_link_up(struct dialect *d)
{
    char why[300];
    timer_clear(&d->client->engine->timers, &d->timer);
    servers_worked(&d->client->servers, d->origin);
    d->phase = DIALECT_LINKED;
    d->linking = d->round_failed = d->outage = false;
    d->looks = 0;
    d->up_at = now_ms();
    describe_link(d, why);
    use(d, &protocol_grpc, why);
    const struct server *s = server_of(d);
    bool known = d->answered && s && s->version[0]; /* by this try: it may be another than before */
    if (!known && !d->probe)
        ask_version(d, false);
    if (!known && !d->probe)
        timer_in(d, ASK_AGAIN_MS);
    check(d);
}

/** The connection was there and is not any more: another server of the list first. */
static void lost(struct dialect *d)
{
    struct nacos_client *c = d->client;
    d->failures = now_ms() - d->up_at < STEADY_MS ? d->failures + 1 : 0;
    pthread_mutex_lock(&c->engine->lock);
    c->status.reconnects++;
    pthread_mutex_unlock(&c->engine->lock);
    search(d, DIALECT_LOST, bit_of(d));
    client_note_dialect(c);
}

void dialect_link_down(struct dialect *d, bool was, const char *why)
{
    char address[140];
    link_address(d, address);
    snprintf(d->link_why, sizeof d->link_why, was ? "the connection to %s was lost: %.120s" : "no gRPC at %s: %.120s", address,
             why);
    bool news = was || (d->option == DIALECT_GRPC && !d->up_at && d->failures == 0);
    log_write(d->client->log, news ? LOG_WARN : LOG_DEBUG, "%s", d->link_why);
    d->linking = false;
    if (was)
        lost(d);
    else
        try_in_vain(d);
    client_note_dialect(d->client);
    check(d);
}

void dialect_link_reset(struct dialect *d, const char *origin)
{
    struct nacos_client *c = d->client;
    if (d->phase != DIALECT_LINKED) {
        dialect_link_down(d, false, "it asks for another connection");
        return;
    }
    log_write(c->log, LOG_INFO, "%s asks for another connection%s%s", d->origin, *origin ? ", to " : "", origin);
    snprintf(d->link_why, sizeof d->link_why, "%.128s asked for another connection", d->origin);
    char was[128];
    snprintf(was, sizeof was, "%s", d->origin);
    const struct server *to = servers_find(&c->servers, origin);
    lost(d); /* with its pause: servers may say it again and again */
    if (*origin)
        try_server(d, to ? to->origin : was);
    if (*origin && !to)
        snprintf(d->redirect, sizeof d->redirect, "%s", origin);
    check(d);
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

void dialect_start(struct dialect *d)
{
    struct nacos_client *c = d->client;
    if (c->closing || c->servers.count == 0)
        return;
    if (d->option == DIALECT_V1 || d->option == DIALECT_V3) {
        if (!d->now)
            use(d, d->option == DIALECT_V1 ? &protocol_v1 : &protocol_v3,
                d->option == DIALECT_V1 ? "v1: the option says so" : "v3: the option says so");
    } else if (d->phase == DIALECT_FIXED) {
        client_note_dialect(c);
        search(d, d->option == DIALECT_GRPC ? DIALECT_LOST : DIALECT_STARTING, 0);
    } else if (d->phase != DIALECT_HTTP && !server_of(d)) { /* it is not in the list any more */
        snprintf(d->link_why, sizeof d->link_why, "%.128s is no longer in the list of servers", d->origin);
        if (d->phase == DIALECT_LINKED)
            lost(d);
        else
            search(d, d->phase, 0);
    }
    check(d);
}

void dialect_init(struct dialect *d, struct nacos_client *c, enum dialect_option option, int port_offset)
{
    d->client = c;
    d->option = option;
    d->port_offset = port_offset ? port_offset : 1000;
    if (option == DIALECT_GRPC)
        d->now = &protocol_grpc;
    snprintf(d->why, sizeof d->why, "%s", option == DIALECT_GRPC ? "grpc: the option says so" : "");
    link_init(&c->link, c);
}

void dialect_shut(struct dialect *d)
{
    timer_clear(&d->client->engine->timers, &d->timer);
    timer_clear(&d->client->engine->timers, &d->follow_timer);
    request_cancel(d->probe);
    d->probe = NULL;
    link_close(&d->client->link);
    free(d->waiters);
    d->waiters = NULL;
    d->waiter_count = d->waiter_cap = 0;
}

/* ---- for requests -------------------------------------------------------------------------------------------------------- */

/** Somebody asks while the next try is some time away: it is made now, unless the last one was a moment ago. */
static bool hurry(struct dialect *d)
{
    if (now_ms() - d->failed_at < doubled(HURRY_MIN_MS, d->failures, HURRY_MAX_MS))
        return false;
    timer_in(d, 0);
    return true;
}

static enum dialect_state pick_link(struct dialect *d, uint32_t tried, bool by_http, int *server, nacos_error *err)
{
    struct servers *s = &d->client->servers;
    const struct server *v = server_of(d);
    if (d->phase != DIALECT_LINKED) {
        char address[140];
        err->code = NACOS_UNAVAILABLE;
        link_address(d, address);
        if (d->link_why[0])
            snprintf(err->message, sizeof err->message, "%s", d->link_why);
        else
            snprintf(err->message, sizeof err->message, "no gRPC at %s yet: it has not answered", address);
        return d->round_failed && d->timer.slot && !hurry(d) ? DIALECT_FAILED : DIALECT_WAIT;
    }
    if (v && v->refused & NO_GRPC && d->option == DIALECT_AUTO)
        return DIALECT_WAIT; /* it is about to be left */
    *server = v ? (int)(v - s->list) : -1;
    if (by_http && tried & bit_of(d))
        *server = servers_pick(s, tried, now_ms());
    else if (tried & bit_of(d))
        *server = -1;
    return *server < 0 ? DIALECT_FAILED : DIALECT_READY;
}

enum dialect_state dialect_pick(struct dialect *d, uint32_t tried, bool by_http, int *server, const struct protocol **p,
                                nacos_error *err)
{
    struct servers *s = &d->client->servers;
    if (!d->now || d->now == &protocol_grpc) {
        *p = &protocol_grpc;
        return pick_link(d, tried, by_http, server, err);
    }
    *server = servers_pick(s, tried, now_ms());
    if (*server < 0)
        return DIALECT_FAILED;
    *p = d->now;
    if (d->option != DIALECT_AUTO)
        return DIALECT_READY;
    const struct server *v = &s->list[*server];
    *p = words_for(d, v);
    if (*p != d->now && !tried)
        follow(d);
    if (v->failures) {
        d->outage = true;
    } else if (d->outage) {
        d->outage = false;
        d->looks = 0;
        if (d->phase == DIALECT_HTTP)
            timer_within(d, BACK_MS);
    }
    return DIALECT_READY;
}

void dialect_join(struct dialect *d, struct request *r)
{
    if (d->waiter_count == d->waiter_cap) {
        int cap = d->waiter_cap ? d->waiter_cap * 2 : 16;
        struct request **more = realloc(d->waiters, sizeof *more * (size_t)cap);
        if (!more)
            return; /* its time runs out */
        d->waiters = more;
        d->waiter_cap = cap;
    }
    d->waiters[d->waiter_count++] = r;
}

void dialect_leave(struct dialect *d, struct request *r)
{
    for (int i = 0; i < d->waiter_count; i++)
        if (d->waiters[i] == r) {
            d->waiters[i] = d->waiters[--d->waiter_count];
            return;
        }
}

bool dialect_gone(struct dialect *d, const char *origin, const struct protocol *p)
{
    struct server *s = servers_find(&d->client->servers, origin);
    if (d->option != DIALECT_AUTO || !s)
        return false;
    s->refused |= p == &protocol_grpc ? NO_GRPC : p == &protocol_v3 ? NO_V3 : NO_V1;
    if (p == &protocol_grpc) {
        if (d->phase == DIALECT_LINKED)
            timer_in(d, 0);
        return true;
    }
    if ((s->refused & NO_HTTP) == NO_HTTP) { /* it may be one that starts */
        if (d->phase == DIALECT_HTTP)
            timer_within(d, doubled(SILENT_LOOK_MS, d->looks, NOTHING_LOOK_MS));
        return false;
    }
    if (d->now == p)
        follow(d);
    return true;
}
