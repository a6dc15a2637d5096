#include "engine/process.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/engine.h"

struct process {
    struct job job;
    uv_process_t uv;
    struct process *next; /* of those that run */
    nacos_engine *engine;
    struct event *event;
    char **argv, **env; /* until it was started */
    char *input;        /* likewise; NULL: our standard input */
    size_t input_len;
};

struct kill_job {
    struct job job;
    nacos_engine *engine;
    uint64_t id;
    int signum;
};

static void process_free(struct process *p)
{
    event_free(p->event);
    free(p->input);
    free(p->argv);
    free(p->env);
    free(p);
}

static void on_closed(uv_handle_t *handle)
{
    process_free(handle->data);
}

/** The engine's thread listens to SIGCHLD while it has children: every other thread of the host may have it blocked. */
static void listen_to_children(bool on)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    pthread_sigmask(on ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
}

/** Gives the event away; the process is freed when its handle is closed. */
static void deliver(struct process *p)
{
    engine_ready(p->engine, p->event);
    p->event = NULL;
    uv_close((uv_handle_t *)&p->uv, on_closed);
}

static void on_exit_of(uv_process_t *uv, int64_t status, int signum)
{
    struct process *p = uv->data, **at = &p->engine->processes;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    listen_to_children(p->engine->processes != NULL);
    p->event->exit_code = (int)status;
    p->event->exit_signal = signum;
    deliver(p);
}

static void set_problem(struct process *p, int problem)
{
    nacos_error err = {.code = NACOS_INVALID};
    snprintf(err.message, sizeof err.message, "cannot start %s: %s", p->argv[0], strerror(problem));
    event_set_error(p->event, &err);
}

/** A file without a name that holds these bytes, read from the start; -1 and errno. */
static int file_of(const char *data, size_t len)
{
    int fd = memfd_create("input", MFD_CLOEXEC);
    for (ssize_t n; fd >= 0 && len; data += n, len -= (size_t)n) {
        n = write(fd, data, len);
        if (n < 0) {
            int problem = errno;
            close(fd);
            errno = problem;
            return -1;
        }
    }
    if (fd >= 0)
        lseek(fd, 0, SEEK_SET);
    return fd;
}

/** 0, or an errno: then it does not run. */
static int spawn(struct process *p, int input)
{
    uv_stdio_container_t stdio[3];
    for (int i = 0; i < 3; i++) {
        stdio[i].flags = UV_INHERIT_FD;
        stdio[i].data.fd = i;
    }
    if (input >= 0)
        stdio[0].data.fd = input;
    /* Detached: a session of its own. To a terminal a group of its own in our session would be a background job, which is stopped
     * when it reads. libuv gives it default signal dispositions and an empty mask. */
    uv_process_options_t o = {
        .exit_cb = on_exit_of,
        .file = p->argv[0],
        .args = p->argv,
        .env = p->env,
        .flags = UV_PROCESS_DETACHED,
        .stdio_count = 3,
        .stdio = stdio,
    };
    p->uv.data = p;
    return -uv_spawn(&p->engine->loop, &p->uv, &o);
}

static void start(struct job *job)
{
    struct process *p = (struct process *)job;
    int input = p->input ? file_of(p->input, p->input_len) : -1;
    if (p->input && input < 0) { /* there is no handle yet */
        set_problem(p, errno);
        engine_ready(p->engine, p->event);
        p->event = NULL;
        process_free(p);
        return;
    }
    int problem = spawn(p, input);
    if (input >= 0)
        close(input);
    free(p->input);
    p->input = NULL;
    if (problem) {
        set_problem(p, problem);
        deliver(p);
        return;
    }
    p->next = p->engine->processes;
    p->engine->processes = p;
    listen_to_children(true);
}

void processes_forget(nacos_engine *e)
{
    for (struct process *p = e->processes; p; p = p->next)
        uv_close((uv_handle_t *)&p->uv, on_closed);
    e->processes = NULL;
}

/* ---- the host ------------------------------------------------------------------------------------------------------------ */

/** Are these "NAME=value" for the same NAME? */
static bool same_name(const char *a, const char *b)
{
    size_t n = strcspn(a, "=");
    return strncmp(a, b, n) == 0 && (b[n] == '=' || !b[n]);
}

static bool named_in(const char *const *list, const char *entry)
{
    for (; *list; list++) {
        if (same_name(*list, entry))
            return true;
    }
    return false;
}

/** Copies what `list` has and `more` does not name, then `more`, in one piece of memory. */
static char **copy_lists(const char *const *list, const char *const *more)
{
    static const char *const none[] = {NULL};
    more = more ? more : none;
    size_t count = 1, bytes = 0;
    for (const char *const *lists[] = {list, more}, *const **l = lists; l < lists + 2; l++) {
        for (const char *const *s = *l; *s; s++) {
            count++;
            bytes += strlen(*s) + 1;
        }
    }
    char **copy = malloc(count * sizeof *copy + bytes);
    if (!copy)
        return NULL;
    char **to = copy, *text = (char *)(copy + count);
    for (; *list; list++) {
        if (named_in(more, *list))
            continue;
        *to++ = text;
        text = stpcpy(text, *list) + 1;
    }
    for (; *more; more++) {
        *to++ = text;
        text = stpcpy(text, *more) + 1;
    }
    *to = NULL;
    return copy;
}

uint64_t nacos_spawn(nacos_engine *e, const nacos_command *c)
{
    struct process *p = calloc(1, sizeof *p);
    if (!p)
        return 0;
    p->job.run = start;
    p->engine = e;
    p->event = event_new(engine_next_id(e), NACOS_EVENT_EXIT);
    p->argv = copy_lists(c->argv, NULL);
    p->env = copy_lists((const char *const *)environ, c->env);
    p->input = c->input ? malloc(c->input_len + 1) : NULL; /* an empty one is not NULL */
    if (!p->event || !p->argv || !p->env || (c->input && !p->input)) {
        process_free(p);
        return 0;
    }
    if (c->input)
        memcpy(p->input, c->input, c->input_len);
    p->input_len = c->input_len;
    uint64_t id = p->event->id;
    engine_post(e, &p->job);
    return id;
}

static void send_signal(struct job *job)
{
    struct kill_job *k = (struct kill_job *)job;
    for (const struct process *p = k->engine->processes; p; p = p->next) {
        if (p->event->id == k->id)
            kill(-p->uv.pid, k->signum);
    }
    free(k);
}

void nacos_kill(nacos_engine *e, uint64_t id, int signum)
{
    struct kill_job *k = calloc(1, sizeof *k);
    if (!k)
        return;
    *k = (struct kill_job){.job.run = send_signal, .engine = e, .id = id, .signum = signum};
    engine_post(e, &k->job);
}
