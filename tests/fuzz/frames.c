/** Any bytes as what a server sends on an HTTP/2 connection with calls on it. The first byte chooses what the client does
 * meanwhile. */
#include <stdint.h>
#include <stdlib.h>

#include "engine/h2.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct client {
    uv_loop_t loop;
    struct timers timers;
    struct h2 *h2;
    struct h2_call *stream, *unary;
    int choice, ups, closes, dones, ends;
};

static void act(struct client *c)
{
    if (c->choice & 1 && c->h2) {
        h2_free(c->h2);
        c->h2 = NULL;
        c->stream = c->unary = NULL;
    }
    if (c->choice & 2) {
        h2_cancel(c->stream);
        c->stream = NULL;
    }
    if (c->choice & 4) {
        h2_cancel(c->unary);
        c->unary = NULL;
    }
    if (c->choice & 8 && c->stream)
        h2_send(c->stream, "more", 4);
}

static void up(void *arg)
{
    struct client *c = arg;
    if (c->ups++)
        abort();
    if (c->choice & 16)
        act(c);
}

static void closed(void *arg, const char *why)
{
    struct client *c = arg;
    (void)why;
    if (c->closes++ || c->stream || c->unary)
        abort();
    act(c);
}

static void done(void *arg, const struct h2_result *r)
{
    struct client *c = arg;
    (void)r;
    if (c->dones++)
        abort();
    c->unary = NULL;
    act(c);
}

static void ended(void *arg, const struct h2_result *r)
{
    struct client *c = arg;
    (void)r;
    if (c->ends++)
        abort();
    c->stream = NULL;
    act(c);
}

static void message(void *arg, const char *data, size_t len)
{
    static volatile char last;
    act(arg);
    if (len)
        last = data[len - 1]; /* it must live until this returns */
    (void)last;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct client c = {0};
    if (size < 2)
        return 0;
    c.choice = data[0];
    uv_loop_init(&c.loop);
    timers_init(&c.timers, &c.loop);
    struct h2_spec spec = {.port = 1, .connect_ms = 60000, .max_message = 1000, .up = up, .closed = closed, .arg = &c};
    c.h2 = h2_new(&c.loop, &c.timers, &spec);
    c.stream = h2_stream(c.h2, "/s", message, ended, &c);
    c.unary = h2_unary(c.h2, "/u", "x", 1, done, &c);
    h2_send(c.stream, "y", 1);
    uv_run(&c.loop, UV_RUN_NOWAIT);
    size_t half = 1 + (size - 1) * (c.choice >> 5) / 8; /* in two parts */
    if (half > 1)
        h2_feed(c.h2, data + 1, half - 1);
    uv_run(&c.loop, UV_RUN_NOWAIT);
    if (c.h2)
        h2_feed(c.h2, data + half, size - half);
    uv_run(&c.loop, UV_RUN_NOWAIT);
    h2_free(c.h2);
    uv_close((uv_handle_t *)&c.timers.uv, NULL);
    uv_run(&c.loop, UV_RUN_DEFAULT);
    if (uv_loop_close(&c.loop) != 0)
        abort();
    timers_free(&c.timers);
    return 0;
}
