/** timer: deadlines that live inside the objects they belong to.
 *
 *  A libuv timer dies asynchronously: its memory must outlive uv_close(). These are plain members, set and cleared at will and
 * freed with their owner; one uv_timer drives all of them from a binary heap. */
#ifndef LUNACOS_TIMER_H
#define LUNACOS_TIMER_H

#include <stdint.h>
#include <uv.h>

struct timer {
    int64_t due; /* monotonic ms */
    int slot;    /* index in the heap + 1; 0: not set. So a zeroed timer is a valid one */
    void (*fire)(void *arg);
    void *arg;
};

struct timers {
    uv_timer_t uv;
    struct timer **heap;
    int len, cap;
};

int64_t now_ms(void);
void timers_init(struct timers *t, uv_loop_t *loop);
/** Frees the heap; the uv handle is closed by the loop's owner. */
void timers_free(struct timers *t);
/** Calls fire(arg) once, at the earliest `ms` from now and never from inside this call. Setting a set timer moves it. */
void timer_set(struct timers *t, struct timer *tm, int64_t ms, void (*fire)(void *), void *arg);
void timer_clear(struct timers *t, struct timer *tm);
/** Between half of it and all, by chance: so that not everybody comes at the same moment. */
int64_t jittered(int64_t ms);

#endif
