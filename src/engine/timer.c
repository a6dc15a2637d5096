#include "engine/timer.h"

#include <stdlib.h>

int64_t now_ms(void)
{
    return (int64_t)(uv_hrtime() / 1000000);
}

static void place(struct timers *t, int i, struct timer *tm)
{
    t->heap[i] = tm;
    tm->slot = i + 1;
}

static void sift_up(struct timers *t, int i)
{
    struct timer *tm = t->heap[i];
    while (i > 0 && t->heap[(i - 1) / 2]->due > tm->due) {
        place(t, i, t->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    place(t, i, tm);
}

static void sift_down(struct timers *t, int i)
{
    struct timer *tm = t->heap[i];
    for (int child; (child = 2 * i + 1) < t->len; i = child) {
        if (child + 1 < t->len && t->heap[child + 1]->due < t->heap[child]->due)
            child++;
        if (t->heap[child]->due >= tm->due)
            break;
        place(t, i, t->heap[child]);
    }
    place(t, i, tm);
}

static void on_uv(uv_timer_t *uv);

static void arm(struct timers *t)
{
    if (t->len == 0) {
        uv_timer_stop(&t->uv);
        return;
    }
    int64_t wait = t->heap[0]->due - now_ms();
    uv_update_time(t->uv.loop);
    uv_timer_start(&t->uv, on_uv, wait > 0 ? (uint64_t)wait : 0, 0);
}

static void on_uv(uv_timer_t *uv)
{
    struct timers *t = uv->data;
    int64_t now = now_ms();
    /* Only what is due now: a timer set to 0 from inside fire() waits for the next turn, so I/O is never starved. */
    for (int budget = t->len; budget > 0 && t->len > 0 && t->heap[0]->due <= now; budget--) {
        struct timer *tm = t->heap[0];
        timer_clear(t, tm);
        tm->fire(tm->arg);
    }
    arm(t);
}

void timers_init(struct timers *t, uv_loop_t *loop)
{
    *t = (struct timers){0};
    uv_timer_init(loop, &t->uv);
    t->uv.data = t;
}

void timers_free(struct timers *t)
{
    free(t->heap);
    t->heap = NULL;
    t->len = t->cap = 0;
}

void timer_clear(struct timers *t, struct timer *tm)
{
    if (!tm->slot)
        return;
    int i = tm->slot - 1;
    tm->slot = 0;
    struct timer *last = t->heap[--t->len];
    if (last == tm)
        return;
    place(t, i, last);
    sift_up(t, i);
    sift_down(t, last->slot - 1);
}

void timer_set(struct timers *t, struct timer *tm, int64_t ms, void (*fire)(void *), void *arg)
{
    timer_clear(t, tm);
    if (t->len == t->cap) {
        int cap = t->cap ? t->cap * 2 : 64;
        struct timer **heap = realloc(t->heap, sizeof *heap * (size_t)cap);
        if (!heap)
            abort(); /* a deadline that is never met would be worse */
        t->heap = heap;
        t->cap = cap;
    }
    tm->due = now_ms() + (ms > 0 ? ms : 0);
    tm->fire = fire;
    tm->arg = arg;
    place(t, t->len++, tm);
    sift_up(t, tm->slot - 1);
    if (t->heap[0] == tm)
        arm(t);
}

int64_t jittered(int64_t ms)
{
    uint32_t dice = 0;
    uv_random(NULL, NULL, &dice, sizeof dice, 0, NULL);
    return ms / 2 + (int64_t)(dice % (uint32_t)(ms / 2 + 1));
}
