#include "engine/process.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/engine.h"
#include "engine/file.h"

/* The 16-bit calls of old have these names where both exist. */
#ifndef SYS_setresuid32
#define SYS_setresuid32 SYS_setresuid
#define SYS_setresgid32 SYS_setresgid
#define SYS_setgroups32 SYS_setgroups
#endif

enum {
    SETTLE_MS = 100,      /* after a SIGCHLD libuv has waited for the children it knows */
    PATIENCE_MS = 30000,  /* for who may still wait for a process of our own session */
    LOOK_AGAIN_MS = 1000, /* while one of those is in the way */
};

struct identity {
    uid_t uid;
    gid_t gid;
    int count;
    gid_t groups[];
};

struct orphans {
    uv_signal_t uv;
    struct timer timer;
    nacos_engine *engine;
    pid_t waiting_for; /* of our session, ended, first seen at `since` */
    int64_t since;
};

struct process {
    struct job job;
    uv_process_t uv;
    struct process *next; /* of those that run */
    nacos_engine *engine;
    struct event *event;
    char **argv, **env; /* until it was started */
    char *input;        /* likewise; NULL: our standard input */
    size_t input_len;
    char *cwd;
    struct identity *who; /* NULL: as we are */
    int output;           /* a descriptor of its own; 0: ours, -1: none */
    bool sweep;           /* the end of it is the end of its group */
};

struct kill_job {
    struct job job;
    nacos_engine *engine;
    uint64_t id;
    int signum;
    bool all;
};

struct reap_job {
    struct job job;
    nacos_engine *engine;
};

static void process_free(struct process *p)
{
    event_free(p->event);
    if (p->output > 0)
        file_close_copy(p->output);
    free(p->input);
    free(p->cwd);
    free(p->who);
    free(p->argv);
    free(p->env);
    free(p);
}

static void on_closed(uv_handle_t *handle)
{
    process_free(handle->data);
}

/** The engine's thread listens to SIGCHLD while it has children: every other thread of the host may have it blocked. */
static void listen_to_children(const nacos_engine *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    pthread_sigmask(e->processes || e->orphans ? SIG_UNBLOCK : SIG_BLOCK, &set, NULL);
}

/** Gives the event away; the process is freed when its handle is closed, if there is one. */
static void deliver(struct process *p)
{
    engine_ready(p->engine, p->event);
    p->event = NULL;
    if (p->uv.loop)
        uv_close((uv_handle_t *)&p->uv, on_closed);
    else
        process_free(p);
}

static void on_exit_of(uv_process_t *uv, int64_t status, int signum)
{
    struct process *p = uv->data, **at = &p->engine->processes;
    if (p->sweep)
        kill(-uv->pid, SIGKILL); /* it was waited for this very moment: nobody can have got its number yet */
    while (*at != p)
        at = &(*at)->next;
    pthread_mutex_lock(&p->engine->lock);
    *at = p->next;
    pthread_mutex_unlock(&p->engine->lock);
    listen_to_children(p->engine);
    p->event->exit_code = (int)status;
    p->event->exit_signal = signum;
    p->event->exit_pid = uv->pid;
    deliver(p);
}

static void set_problem(struct process *p, int problem, const char *what)
{
    nacos_error err = {.code = NACOS_INVALID};
    snprintf(err.message, sizeof err.message, "cannot start %s: %s%s", p->argv[0], what, strerror(problem));
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
        stdio[i].flags = i && p->output < 0 ? UV_IGNORE : UV_INHERIT_FD;
        stdio[i].data.fd = i && p->output > 0 ? p->output : i;
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
        .cwd = p->cwd,
        .flags = UV_PROCESS_DETACHED,
        .stdio_count = 3,
        .stdio = stdio,
    };
    return -uv_spawn(&p->engine->loop, &p->uv, &o);
}

/** Spawns as p->who. 0, or an errno and what failed. libuv's own way (UV_PROCESS_SETUID) would leave the child without
 * supplementary groups. So this thread takes on the identity, with which its child is born, and returns to its own. Credentials are
 * a thread's for the kernel; that they are the same in all threads is the work of the C library, which bare system calls bypass.
 * The saved user stays and lets us return; a program that is executed does not get it. */
static int spawn_as(struct process *p, int input, const char **what)
{
    uid_t uid = getuid();
    gid_t gid = getgid();
    int dumpable = prctl(PR_GET_DUMPABLE), count = getgroups(0, NULL), problem;
    gid_t *groups = malloc((size_t)(count + 1) * sizeof *groups);
    if (!groups || getgroups(count, groups) != count) {
        free(groups);
        return ENOMEM;
    }
    *what = "cannot become its user and group: ";
    if (syscall(SYS_setgroups32, p->who->count, p->who->groups)) {
        problem = errno;
    } else {
        if (syscall(SYS_setresgid32, p->who->gid, p->who->gid, -1) || syscall(SYS_setresuid32, p->who->uid, p->who->uid, -1)) {
            problem = errno;
        } else {
            *what = "";
            problem = spawn(p, input);
            if (problem && p->cwd && access(p->cwd, X_OK))
                *what = "its folder: ";
        }
        /* the user first: it has the right to do the rest */
        if (syscall(SYS_setresuid32, uid, uid, -1) || syscall(SYS_setresgid32, gid, gid, -1) ||
            syscall(SYS_setgroups32, count, groups))
            abort(); /* a thread with the wrong rights must not go on */
    }
    if (dumpable == 1)
        prctl(PR_SET_DUMPABLE, 1); /* a change of identity takes it away */
    free(groups);
    return problem;
}

static void start(struct job *job)
{
    struct process *p = (struct process *)job;
    int input = p->input ? file_of(p->input, p->input_len) : -1;
    if (p->input && input < 0) {
        set_problem(p, errno, "its input: ");
        deliver(p);
        return;
    }
    p->uv.data = p;
    const char *what = "";
    int problem = p->who ? spawn_as(p, input, &what) : spawn(p, input);
    if (problem && !p->who && p->cwd && access(p->cwd, X_OK))
        what = "its folder: ";
    if (input >= 0)
        file_close_copy(input);
    free(p->input);
    p->input = NULL;
    if (p->output > 0)
        file_close_copy(p->output); /* so that the last one who has it is the child */
    p->output = 0;
    if (problem) {
        set_problem(p, problem, what);
        deliver(p);
        return;
    }
    pthread_mutex_lock(&p->engine->lock);
    p->next = p->engine->processes;
    p->engine->processes = p;
    pthread_mutex_unlock(&p->engine->lock);
    listen_to_children(p->engine);
}

/* ---- orphans ------------------------------------------------------------------------------------------------------------- */

static bool is_ours(const nacos_engine *e, pid_t pid)
{
    const struct process *p = e->processes;
    while (p && p->uv.pid != pid)
        p = p->next;
    return p;
}

/** May this one, which has ended, be waited for? What we spawned is libuv's. What is in our session was likely started by system()
 * or popen() in this process, which wait themselves: it gets time. Orphans come out of the sessions of their families. */
static bool is_orphan(struct orphans *o, pid_t pid)
{
    if (is_ours(o->engine, pid))
        return false;
    if (getsid(pid) != getsid(0))
        return true;
    if (o->waiting_for != pid) {
        o->waiting_for = pid;
        o->since = now_ms();
    }
    return now_ms() - o->since >= PATIENCE_MS;
}

static void reap(void *arg)
{
    struct orphans *o = arg;
    for (;;) {
        siginfo_t info = {.si_pid = 0};
        if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == 0)
            return;
        if (!is_orphan(o, info.si_pid))
            break; /* it also hides those behind it */
        waitpid(info.si_pid, NULL, WNOHANG);
    }
    timer_set(&o->engine->timers, &o->timer, LOOK_AGAIN_MS, reap, o);
}

static void on_child(uv_signal_t *uv, int signum)
{
    (void)signum;
    struct orphans *o = uv->data;
    timer_set(&o->engine->timers, &o->timer, SETTLE_MS, reap, o);
}

static void start_reaping(struct job *job)
{
    nacos_engine *e = ((struct reap_job *)job)->engine;
    free(job);
    struct orphans *o = e->orphans ? NULL : calloc(1, sizeof *o);
    if (!o)
        return;
    o->engine = e;
    o->uv.data = o;
    if (uv_signal_init(&e->loop, &o->uv)) {
        free(o);
        return;
    }
    e->orphans = o;
    uv_signal_start(&o->uv, on_child, SIGCHLD);
    listen_to_children(e);
    reap(o); /* those that are there already */
}

void nacos_reap(nacos_engine *e)
{
    struct reap_job *j = calloc(1, sizeof *j);
    if (!j)
        return;
    if (getpid() != 1)
        prctl(PR_SET_CHILD_SUBREAPER, 1);
    *j = (struct reap_job){.job.run = start_reaping, .engine = e};
    engine_post(e, &j->job);
}

static void free_orphans(uv_handle_t *handle)
{
    free(handle->data);
}

void processes_forget(nacos_engine *e)
{
    for (struct process *p = e->processes; p; p = p->next)
        uv_close((uv_handle_t *)&p->uv, on_closed);
    e->processes = NULL;
    if (e->orphans) {
        timer_clear(&e->timers, &e->orphans->timer);
        uv_close((uv_handle_t *)&e->orphans->uv, free_orphans);
    }
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

/** Copies what `list` has and `more` does not name, then `more`, in one piece of memory; either may be NULL. */
static char **copy_lists(const char *const *list, const char *const *more)
{
    static const char *const none[] = {NULL};
    list = list ? list : none;
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

/** This user with all its groups, as at a login; NULL: out of memory. One that the system does not know has the one group. Asked
 * for here, where it may take its time: the answer may come over the network. */
static struct identity *look_up(const nacos_user *user)
{
    char room[16384];
    struct passwd entry, *found = NULL;
    getpwuid_r(user->uid, &entry, room, sizeof room, &found);
    for (int count = 64;; count *= 2) {
        struct identity *who = malloc(sizeof *who + (size_t)count * sizeof *who->groups);
        if (!who)
            return NULL;
        *who = (struct identity){.uid = user->uid, .gid = user->gid, .count = count};
        if (found && getgrouplist(found->pw_name, user->gid, who->groups, &who->count) >= 0)
            return who;
        if (!found || count >= 65536) { /* no process can have more groups */
            who->groups[0] = user->gid;
            who->count = 1;
            return who;
        }
        free(who);
    }
}

static bool as_we_are(const nacos_user *user)
{
    return !user || (user->uid == geteuid() && user->gid == getegid());
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
    p->env = copy_lists(c->clear_env ? NULL : (const char *const *)environ, c->env);
    p->input = c->input ? malloc(c->input_len + 1) : NULL; /* an empty one is not NULL */
    p->cwd = c->cwd ? strdup(c->cwd) : NULL;
    p->who = as_we_are(c->user) ? NULL : look_up(c->user);
    p->output = c->output > 0 ? file_copy_fd(c->output) : c->output;
    if (!p->event || !p->argv || !p->env || (c->input && !p->input) || (c->cwd && !p->cwd) || (!as_we_are(c->user) && !p->who) ||
        (c->output > 0 && p->output < 0)) {
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

int nacos_pid(nacos_engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    const struct process *p = e->processes;
    while (p && p->event->id != id)
        p = p->next;
    int pid = p ? p->uv.pid : 0;
    pthread_mutex_unlock(&e->lock);
    return pid;
}

static void send_signal(struct job *job)
{
    struct kill_job *k = (struct kill_job *)job;
    for (struct process *p = k->engine->processes; p; p = p->next) {
        if (p->event->id != k->id)
            continue;
        p->sweep = p->sweep || k->all;
        kill(-p->uv.pid, k->signum);
    }
    free(k);
}

void nacos_kill(nacos_engine *e, uint64_t id, int signum, bool all)
{
    struct kill_job *k = calloc(1, sizeof *k);
    if (!k)
        return;
    *k = (struct kill_job){.job.run = send_signal, .engine = e, .id = id, .signum = signum, .all = all};
    engine_post(e, &k->job);
}
