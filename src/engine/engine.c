#include "engine/engine.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "engine/client.h"
#include "engine/poll.h"
#include "engine/process.h"

static atomic_int forks; /* counts in each child: an engine born before is dead there */

static void in_child(void)
{
    atomic_fetch_add(&forks, 1);
}

static void init_process(void)
{
    http_init_process();
    pthread_atfork(NULL, NULL, in_child);
}

double unix_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- values and events ----------------------------------------------------------------------------------------------------- */

struct value *value_new(const void *data, size_t len, const char *type, const char *md5)
{
    struct value *v = malloc(sizeof *v + len + 1);
    if (!v)
        return NULL;
    atomic_init(&v->refs, 1);
    v->len = len;
    if (len)
        memcpy(v->data, data, len);
    v->data[len] = 0;
    if (md5)
        snprintf(v->md5, sizeof v->md5, "%s", md5);
    else
        nacos_md5(v->data, len, v->md5);
    snprintf(v->type, sizeof v->type, "%s", type ? type : "");
    return v;
}

struct value *value_ref(struct value *v)
{
    if (v)
        atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);
    return v;
}

void value_unref(struct value *v)
{
    if (v && atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel) == 1)
        free(v);
}

struct event *event_new(uint64_t id, nacos_event_kind kind)
{
    struct event *ev = calloc(1, sizeof *ev);
    if (ev) {
        ev->id = id;
        ev->kind = kind;
    }
    return ev;
}

void event_set_error(struct event *ev, const nacos_error *err)
{
    ev->error = malloc(sizeof *ev->error);
    if (ev->error)
        *ev->error = *err;
}

void event_free(struct event *ev)
{
    if (!ev)
        return;
    free(ev->error);
    value_unref(ev->value);
    hosts_unref(ev->hosts);
    hosts_unref(ev->seen);
    free(ev);
}

static void raise_fd(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    (void)n; /* an eventfd that is full is readable: all we want */
}

static void lower_fd(int fd)
{
    uint64_t n;
    ssize_t got = read(fd, &n, sizeof n);
    (void)got;
}

void engine_ready_locked(nacos_engine *e, struct event *ev)
{
    if (ev->queued)
        return;
    ev->queued = true;
    ev->next = NULL;
    ev->prev = e->ready_tail;
    if (e->ready_tail)
        e->ready_tail->next = ev;
    else
        e->ready_head = ev;
    e->ready_tail = ev;
    atomic_store(&e->pending, true);
    atomic_store(&e->came, true);
}

static struct event *find_locked(nacos_engine *e, uint64_t id)
{
    struct event *ev = e->ready_head;
    while (ev && id && ev->id != id)
        ev = ev->next;
    return ev;
}

/** The public descriptor is readable exactly while the list is not empty. */
static void settle_fd_locked(nacos_engine *e)
{
    bool more = e->ready_head != NULL;
    if (more == e->fd_raised)
        return;
    e->fd_raised = more;
    if (more)
        raise_fd(e->fd);
    else
        lower_fd(e->fd);
}

static void tell_host_locked(nacos_engine *e)
{
    atomic_store(&e->came, false);
    if (!e->waiting) {
        settle_fd_locked(e);
    } else if (find_locked(e, e->waiting_for)) {
        e->waiting = false;
        raise_fd(e->wake_fd);
    }
}

static void tell_host(nacos_engine *e)
{
    if (!atomic_load(&e->came))
        return;
    pthread_mutex_lock(&e->lock);
    tell_host_locked(e);
    pthread_mutex_unlock(&e->lock);
}

static void before_sleep(uv_prepare_t *handle)
{
    tell_host(handle->data);
}

static void after_io(uv_check_t *handle)
{
    tell_host(handle->data);
}

void engine_ready(nacos_engine *e, struct event *ev)
{
    pthread_mutex_lock(&e->lock);
    engine_ready_locked(e, ev);
    if (!pthread_equal(pthread_self(), e->thread))
        tell_host_locked(e); /* the host itself refused something: no turn of the loop will end for it */
    pthread_mutex_unlock(&e->lock);
}

static void take_locked(nacos_engine *e, struct event *ev)
{
    if (ev->prev)
        ev->prev->next = ev->next;
    else
        e->ready_head = ev->next;
    if (ev->next)
        ev->next->prev = ev->prev;
    else
        e->ready_tail = ev->prev;
    ev->queued = false;
    atomic_store(&e->pending, e->ready_head != NULL);
}

void engine_withdraw_locked(nacos_engine *e, uint64_t id)
{
    for (struct event *ev = e->ready_head, *next; ev; ev = next) {
        next = ev->next;
        if (ev->id == id) {
            take_locked(e, ev);
            if (!ev->slot)
                event_free(ev);
        }
    }
    settle_fd_locked(e);
}

/* ---- the loop -------------------------------------------------------------------------------------------------------------- */

uint64_t engine_next_id(nacos_engine *e)
{
    pthread_mutex_lock(&e->lock);
    uint64_t id = ++e->last_id;
    pthread_mutex_unlock(&e->lock);
    return id;
}

void engine_post(nacos_engine *e, struct job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&e->lock);
    bool wake = !e->mail_head;
    if (wake)
        e->mail_head = job;
    else
        e->mail_tail->next = job;
    e->mail_tail = job;
    pthread_mutex_unlock(&e->lock);
    if (wake)
        uv_async_send(&e->wake_loop);
}

static void on_mail(uv_async_t *async)
{
    nacos_engine *e = async->data;
    pthread_mutex_lock(&e->lock);
    struct job *job = e->mail_head;
    e->mail_head = e->mail_tail = NULL;
    pthread_mutex_unlock(&e->lock);
    for (struct job *next; job; job = next) {
        next = job->next;
        job->run(job);
    }
    engine_client_gone(e);
}

void engine_client_gone(nacos_engine *e)
{
    if (e->stopping && !e->clients)
        uv_stop(&e->loop);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

struct sigwatch {
    uv_signal_t uv;
    struct sigwatch *next;
    nacos_engine *engine;
    struct event *event;
};

static void free_sigwatch(uv_handle_t *handle)
{
    free(handle->data);
}

/** The event goes with it, unless it has been given away. */
static void end_sigwatch(struct sigwatch *s)
{
    struct sigwatch **at = &s->engine->signals;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    if (s->event) {
        pthread_mutex_lock(&s->engine->lock);
        engine_withdraw_locked(s->engine, s->event->id);
        pthread_mutex_unlock(&s->engine->lock);
        event_free(s->event);
    }
    uv_close((uv_handle_t *)&s->uv, free_sigwatch);
}

struct engine_job {
    struct job job;
    nacos_engine *engine;
    struct event *event;
    struct timer timer;
    int64_t number;
    bool every;
};

static struct engine_job *new_job(nacos_engine *e, void (*run)(struct job *), nacos_event_kind kind)
{
    struct engine_job *j = calloc(1, sizeof *j);
    if (!j)
        return NULL;
    j->job.run = run;
    j->engine = e;
    j->event = event_new(engine_next_id(e), kind);
    if (!j->event) {
        free(j);
        return NULL;
    }
    return j;
}

static void stop(struct job *job)
{
    struct engine_job *j = (struct engine_job *)job;
    j->engine->stopping = true;
    for (struct nacos_client *c = j->engine->clients, *next; c; c = next) {
        next = c->next;
        if (!c->leaving)
            client_leave(c, NULL);
    }
    event_free(j->event);
    free(j);
}

static void timer_fired(void *arg)
{
    struct engine_job *j = arg;
    engine_ready(j->engine, j->event);
    free(j);
}

static void *run_loop(void *arg)
{
    nacos_engine *e = arg;
    uv_run(&e->loop, UV_RUN_DEFAULT);
    while (e->clients)
        client_shut(e->clients);
    http_free(e->http);
    while (e->signals)
        end_sigwatch(e->signals);
    polls_forget(e, 0);
    processes_forget(e);
    uv_walk(&e->loop, close_handle, NULL);
    uv_run(&e->loop, UV_RUN_DEFAULT);
    for (int i = 0; i < e->timers.len; i++) {
        if (e->timers.heap[i]->fire != timer_fired)
            continue;
        struct engine_job *j = e->timers.heap[i]->arg; /* a sleep that nobody will see end */
        event_free(j->event);
        free(j);
    }
    return NULL;
}

/* ---- public -------------------------------------------------------------------------------------------------------------- */

static bool start_thread(nacos_engine *e)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread inherits it */
    int rc = pthread_create(&e->thread, NULL, run_loop, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        pthread_setname_np(e->thread, "nacos");
    return rc == 0;
}

nacos_engine *nacos_engine_new(nacos_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_process);

    nacos_engine *e = calloc(1, sizeof *e);
    if (e) {
        e->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        e->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        e->forks = atomic_load(&forks);
        pthread_mutex_init(&e->lock, NULL);
    }
    if (e && e->fd >= 0 && e->wake_fd >= 0 && uv_loop_init(&e->loop) == 0) {
        timers_init(&e->timers, &e->loop);
        uv_async_init(&e->loop, &e->wake_loop, on_mail);
        e->wake_loop.data = e;
        uv_prepare_init(&e->loop, &e->before_sleep);
        uv_check_init(&e->loop, &e->after_io);
        e->before_sleep.data = e->after_io.data = e;
        uv_prepare_start(&e->before_sleep, before_sleep);
        uv_check_start(&e->after_io, after_io);
        e->http = http_new(&e->loop, &e->timers);
        if (e->http && start_thread(e))
            return e;
        http_free(e->http);
        uv_walk(&e->loop, close_handle, NULL);
        uv_run(&e->loop, UV_RUN_DEFAULT);
        uv_loop_close(&e->loop);
        timers_free(&e->timers);
    }
    if (err) {
        *err = (nacos_error){.code = NACOS_UNAVAILABLE};
        snprintf(err->message, sizeof err->message, "cannot start the runtime thread: %s", strerror(errno));
    }
    if (e) {
        if (e->fd >= 0)
            close(e->fd);
        if (e->wake_fd >= 0)
            close(e->wake_fd);
        free(e);
    }
    return NULL;
}

void nacos_engine_free(nacos_engine *e)
{
    if (!e || nacos_engine_forked(e))
        return;
    struct engine_job *j = new_job(e, stop, NACOS_EVENT_REPLY);
    if (!j)
        abort(); /* returning with the thread alive would free memory under it */
    engine_post(e, &j->job);
    pthread_join(e->thread, NULL);
    while (e->ready_head) {
        struct event *ev = e->ready_head;
        take_locked(e, ev);
        event_free(ev);
    }
    event_free(e->current_event);
    free(e->current_changes);
    value_unref(e->peeked);
    timers_free(&e->timers);
    uv_loop_close(&e->loop);
    pthread_mutex_destroy(&e->lock);
    close(e->fd);
    close(e->wake_fd);
    free(e);
}

int nacos_engine_fd(const nacos_engine *e)
{
    return e->fd;
}

bool nacos_engine_forked(const nacos_engine *e)
{
    return atomic_load_explicit(&forks, memory_order_relaxed) != e->forks;
}

/** What the host gets must not change under it: a slot is copied, a one-shot event is handed over. */
static struct event *detach_locked(nacos_engine *e, struct event *ev)
{
    take_locked(e, ev);
    if (!ev->slot)
        return ev;
    struct event *copy = event_new(ev->id, ev->kind);
    if (!copy) {
        engine_ready_locked(e, ev);
        return NULL;
    }
    copy->source = ev->source;
    copy->via = ev->via;
    copy->version = ev->version;
    copy->confirmed = ev->confirmed;
    memcpy(copy->server, ev->server, sizeof copy->server);
    copy->value = value_ref(ev->value);
    copy->hosts = hosts_ref(ev->hosts);
    copy->held = ev->held;
    copy->seen = ev->seen;
    ev->seen = hosts_ref(ev->hosts);
    return copy;
}

struct event *engine_take(nacos_engine *e, uint64_t id, int timeout_ms)
{
    struct event *got = NULL;
    int64_t deadline = timeout_ms > 0 ? now_ms() + timeout_ms : 0;
    pthread_mutex_lock(&e->lock);
    for (bool last = timeout_ms == 0;;) {
        struct event *ev = find_locked(e, id);
        if (ev)
            got = detach_locked(e, ev);
        if (ev || last)
            break;
        int64_t left = timeout_ms < 0 ? -1 : deadline - now_ms();
        if (timeout_ms > 0 && left <= 0)
            break;
        e->waiting = true;
        e->waiting_for = id;
        pthread_mutex_unlock(&e->lock);
        struct pollfd p = {.fd = e->wake_fd, .events = POLLIN};
        int n = poll(&p, 1, (int)left);
        last = n < 0; /* a signal: look once more, then let the host see to it */
        if (n > 0)
            lower_fd(e->wake_fd);
        pthread_mutex_lock(&e->lock);
        e->waiting = false;
    }
    settle_fd_locked(e);
    pthread_mutex_unlock(&e->lock);
    return got;
}

static void set_changes(nacos_engine *e, const struct event *ev)
{
    nacos_event *now = &e->current;
    bool failed = false;
    e->current_changes = hosts_diff(ev->seen, ev->hosts, &now->change_count, &failed);
    if (failed)
        now->error = (nacos_error){.code = NACOS_NOMEM, .message = "out of memory"};
    now->changes = e->current_changes;
    now->first = !ev->seen;
    now->held = ev->held;
}

const nacos_event *nacos_wait(nacos_engine *e, uint64_t id, int timeout_ms)
{
    if ((timeout_ms == 0 && !atomic_load_explicit(&e->pending, memory_order_acquire)) || nacos_engine_forked(e))
        return NULL;
    event_free(e->current_event);
    free(e->current_changes);
    e->current_changes = NULL;
    struct event *ev = e->current_event = engine_take(e, id, timeout_ms);
    if (!ev)
        return NULL;
    e->current = (nacos_event){.id = ev->id, .kind = ev->kind};
    if (ev->error)
        e->current.error = *ev->error;
    nacos_value *v = &e->current.value;
    v->source = ev->source;
    v->via = ev->via;
    v->confirmed = ev->confirmed;
    memcpy(v->server, ev->server, sizeof v->server);
    v->version = ev->version;
    if (ev->value) {
        v->data = ev->value->data;
        v->len = ev->value->len;
        memcpy(v->md5, ev->value->md5, sizeof v->md5);
        memcpy(v->type, ev->value->type, sizeof v->type);
    }
    if (ev->hosts)
        e->current.hosts = &ev->hosts->view;
    if (ev->kind == NACOS_EVENT_SERVICE)
        set_changes(e, ev);
    e->current.exit_code = ev->exit_code;
    e->current.exit_signal = ev->exit_signal;
    e->current.exit_pid = ev->exit_pid;
    return &e->current;
}

static void set_timer(struct job *job)
{
    struct engine_job *j = (struct engine_job *)job;
    timer_set(&j->engine->timers, &j->timer, j->number, timer_fired, j);
}

uint64_t nacos_timer(nacos_engine *e, int64_t ms)
{
    struct engine_job *j = new_job(e, set_timer, NACOS_EVENT_TIMER);
    if (!j)
        return 0;
    uint64_t id = j->event->id;
    j->number = ms;
    engine_post(e, &j->job);
    return id;
}

static void on_signal(uv_signal_t *uv, int signum)
{
    (void)signum;
    struct sigwatch *s = uv->data;
    bool stays = s->event->slot; /* else it is the host's from now on */
    engine_ready(s->engine, s->event);
    if (stays)
        return;
    s->event = NULL;
    end_sigwatch(s);
}

static void watch_signal(struct job *job)
{
    struct engine_job *j = (struct engine_job *)job;
    nacos_engine *e = j->engine;
    struct sigwatch *s = calloc(1, sizeof *s);
    if (s && uv_signal_init(&e->loop, &s->uv) == 0) {
        s->uv.data = s;
        s->engine = e;
        s->event = j->event;
        s->next = e->signals;
        e->signals = s;
        s->event->slot = j->every;
        (j->every ? uv_signal_start : uv_signal_start_oneshot)(&s->uv, on_signal, (int)j->number);
    } else {
        free(s);
        event_free(j->event);
    }
    free(j);
}

uint64_t nacos_signal(nacos_engine *e, int signum, bool every)
{
    struct engine_job *j = new_job(e, watch_signal, NACOS_EVENT_SIGNAL);
    if (!j)
        return 0;
    uint64_t id = j->event->id;
    j->number = signum;
    j->every = every;
    engine_post(e, &j->job);
    return id;
}

static void forget_timer(nacos_engine *e, uint64_t id)
{
    for (int i = 0; i < e->timers.len; i++) {
        struct engine_job *j = e->timers.heap[i]->arg;
        if (e->timers.heap[i]->fire != timer_fired || j->event->id != id)
            continue;
        timer_clear(&e->timers, &j->timer);
        event_free(j->event);
        free(j);
        return;
    }
}

static void forget(struct job *job)
{
    struct engine_job *j = (struct engine_job *)job;
    uint64_t id = (uint64_t)j->number;
    forget_timer(j->engine, id);
    polls_forget(j->engine, id);
    for (struct sigwatch *s = j->engine->signals; s; s = s->next) {
        if (s->event->id == id) {
            end_sigwatch(s);
            break;
        }
    }
    free(j);
}

void nacos_forget(nacos_engine *e, uint64_t id)
{
    struct engine_job *j = calloc(1, sizeof *j);
    if (!j)
        return; /* then it comes */
    *j = (struct engine_job){.job.run = forget, .engine = e, .number = (int64_t)id};
    engine_post(e, &j->job);
}
