#include "engine/poll.h"

#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/file.h"

struct poll {
    struct job job;
    uv_poll_t uv;
    struct poll *next;
    nacos_engine *engine;
    struct event *event;
    int fd;
};

static void poll_free(struct poll *p)
{
    event_free(p->event);
    file_close_copy(p->fd);
    free(p);
}

static void on_closed(uv_handle_t *handle)
{
    poll_free(handle->data);
}

static void end(struct poll *p)
{
    struct poll **at = &p->engine->polls;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    uv_close((uv_handle_t *)&p->uv, on_closed);
}

static void on_readable(uv_poll_t *uv, int status, int events)
{
    (void)status; /* what is wrong is what reading tells */
    (void)events;
    struct poll *p = uv->data;
    engine_ready(p->engine, p->event);
    p->event = NULL;
    end(p);
}

static void watch(struct job *job)
{
    struct poll *p = (struct poll *)job;
    int problem = uv_poll_init(&p->engine->loop, &p->uv, p->fd);
    if (problem) {
        nacos_error err = {.code = NACOS_INVALID};
        snprintf(err.message, sizeof err.message, "this descriptor cannot be watched: %s", uv_strerror(problem));
        event_set_error(p->event, &err);
        engine_ready(p->engine, p->event);
        p->event = NULL;
        poll_free(p); /* there is no handle */
        return;
    }
    p->uv.data = p;
    p->next = p->engine->polls;
    p->engine->polls = p;
    uv_poll_start(&p->uv, UV_READABLE, on_readable);
}

void polls_forget(nacos_engine *e, uint64_t id)
{
    for (struct poll *p = e->polls, *next; p; p = next) {
        next = p->next;
        if (!id || p->event->id == id)
            end(p);
    }
}

uint64_t nacos_readable(nacos_engine *e, int fd)
{
    struct poll *p = calloc(1, sizeof *p);
    if (!p)
        return 0;
    p->job.run = watch;
    p->engine = e;
    p->event = event_new(engine_next_id(e), NACOS_EVENT_READABLE);
    p->fd = p->event ? file_copy_fd(fd) : -1;
    if (p->fd < 0) {
        event_free(p->event);
        free(p);
        return 0;
    }
    uint64_t id = p->event->id;
    engine_post(e, &p->job);
    return id;
}
