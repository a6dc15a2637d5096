/** pusher: see pusher.h. */
#include "embedded/pusher.h"

#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <zlib.h>

enum {
    PLAIN = 1024,       /* bytes; a text of this size or more goes out compressed */
    PATIENCE = 10000,   /* ms until the retry */
    WAITING = 64 << 20, /* bytes kept for retries; what is beyond is sent only once */
    DATAGRAM = 65507    /* bytes that fit into one */
};

struct push {
    UT_hash_handle hh;
    uint64_t number;
    struct pusher *pusher;
    struct timer retry;
    struct sockaddr_storage to;
    size_t len;
    char bytes[];
};

static void drop(struct push *push)
{
    struct pusher *p = push->pusher;
    HASH_DEL(p->waiting, push);
    p->waiting_bytes -= push->len;
    timer_clear(p->timers, &push->retry);
    free(push);
}

static bool transmit(struct pusher *p, const struct sockaddr *to, char *bytes, size_t len)
{
    uv_buf_t buf = uv_buf_init(bytes, (unsigned)len);
    return len <= DATAGRAM && uv_udp_try_send(&p->udp, &buf, 1, to) >= 0;
}

static void on_no_ack(void *arg)
{
    struct push *push = arg;
    struct pusher *p = push->pusher;
    if (transmit(p, (struct sockaddr *)&push->to, push->bytes, push->len))
        p->retried++;
    drop(push);
}

/** Keeps a copy for the retry. */
static void wait_for_ack(struct pusher *p, const struct sockaddr *to, const char *bytes, size_t len)
{
    struct push *push = p->waiting_bytes + len <= WAITING ? calloc(1, sizeof *push + len) : NULL;
    if (!push)
        return;
    push->number = p->last;
    push->pusher = p;
    push->len = len;
    memcpy(&push->to, to, to->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in));
    memcpy(push->bytes, bytes, len);
    HASH_ADD(hh, p->waiting, number, sizeof push->number, push);
    p->waiting_bytes += len;
    timer_set(p->timers, &push->retry, PATIENCE, on_no_ack, push);
}

/** The gzip form; NULL: out of memory. */
static char *zipped(const char *text, size_t *len)
{
    z_stream z = {0};
    if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, MAX_WBITS + 16, MAX_MEM_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
        return NULL;
    uLong room = deflateBound(&z, *len);
    char *out = malloc(room);
    z.next_in = (Bytef *)text;
    z.avail_in = (uInt)*len;
    z.next_out = (Bytef *)out;
    z.avail_out = (uInt)room;
    bool done = out && deflate(&z, Z_FINISH) == Z_STREAM_END;
    *len = z.total_out;
    deflateEnd(&z);
    if (!done)
        free(out);
    return done ? out : NULL;
}

void pusher_send(struct pusher *p, const struct sockaddr *to, const char *json, size_t len)
{
    if (!p->open)
        return;
    uint64_t now = uv_hrtime();
    p->last = now > p->last ? now : p->last + 1;
    json_t *packet =
        json_pack("{s:s, s:o, s:I}", "type", "dom", "data", json_stringn(json, len), "lastRefTime", (json_int_t)p->last);
    char *bytes = packet ? json_dumps(packet, JSON_COMPACT) : NULL;
    json_decref(packet);
    size_t size = bytes ? strlen(bytes) : 0;
    if (size >= PLAIN) {
        char *small = zipped(bytes, &size);
        free(bytes);
        bytes = small;
    }
    if (bytes && transmit(p, to, bytes, size)) {
        p->sent++;
        wait_for_ack(p, to, bytes, size);
    }
    free(bytes);
}

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET6) {
        const struct sockaddr_in6 *x = (const struct sockaddr_in6 *)a, *y = (const struct sockaddr_in6 *)b;
        return x->sin6_port == y->sin6_port && memcmp(&x->sin6_addr, &y->sin6_addr, sizeof x->sin6_addr) == 0;
    }
    const struct sockaddr_in *x = (const struct sockaddr_in *)a, *y = (const struct sockaddr_in *)b;
    return x->sin_port == y->sin_port && x->sin_addr.s_addr == y->sin_addr.s_addr;
}

/** {"type":"push-ack","lastRefTime":"the number of the datagram"}; anything else is none. */
static void on_ack(struct pusher *p, const char *text, size_t len, const struct sockaddr *from)
{
    json_t *ack = json_loadb(text, len, 0, NULL), *number = json_object_get(ack, "lastRefTime");
    const char *type = json_string_value(json_object_get(ack, "type"));
    if (type && strcmp(type, "push-ack") == 0 && number) {
        uint64_t n = json_is_integer(number)  ? (uint64_t)json_integer_value(number)
                     : json_is_string(number) ? strtoull(json_string_value(number), NULL, 10)
                                              : 0;
        struct push *push;
        HASH_FIND(hh, p->waiting, &n, sizeof n, push);
        if (push && same_address(from, (struct sockaddr *)&push->to)) {
            p->acked++;
            drop(push);
        }
    }
    json_decref(ack);
}

static void give_inbox(uv_handle_t *handle, size_t wanted, uv_buf_t *buf)
{
    struct pusher *p = handle->data;
    (void)wanted;
    *buf = uv_buf_init(p->inbox, sizeof p->inbox);
}

static void on_datagram(uv_udp_t *udp, ssize_t len, const uv_buf_t *buf, const struct sockaddr *from, unsigned flags)
{
    if (len > 0 && from && !(flags & UV_UDP_PARTIAL))
        on_ack(udp->data, buf->base, (size_t)len, from);
}

bool pusher_init(struct pusher *p, uv_loop_t *loop, struct timers *timers, const struct sockaddr *listening)
{
    struct sockaddr_storage local = {0};
    if (listening->sa_family == AF_INET6) {
        memcpy(&local, listening, sizeof(struct sockaddr_in6));
        ((struct sockaddr_in6 *)&local)->sin6_port = 0;
    } else {
        memcpy(&local, listening, sizeof(struct sockaddr_in));
        ((struct sockaddr_in *)&local)->sin_port = 0;
    }
    p->timers = timers;
    if (uv_udp_init(loop, &p->udp) != 0)
        return false;
    p->udp.data = p;
    p->open = uv_udp_bind(&p->udp, (struct sockaddr *)&local, 0) == 0 && uv_udp_recv_start(&p->udp, give_inbox, on_datagram) == 0;
    return p->open;
}

void pusher_forget(struct pusher *p)
{
    while (p->waiting)
        drop(p->waiting);
}

void pusher_free(struct pusher *p)
{
    pusher_forget(p);
    p->open = false;
}
