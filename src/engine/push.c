#include "engine/push.h"

#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/datagram.h"

#define STRANGERS_PER_SECOND 20 /* datagrams from unknown addresses that are looked into */
#define FRIENDS_PER_SECOND 2000 /* and of those from servers: an address can be forged */

struct push_socket {
    uv_udp_t udp;
    struct push *push;
    char bytes[DATAGRAM_MAX];
};

static void count(struct nacos_client *c, bool good)
{
    pthread_mutex_lock(&c->engine->lock);
    if (good)
        c->status.pushes++;
    else
        c->status.pushes_dropped++;
    pthread_mutex_unlock(&c->engine->lock);
}

static void drop(struct nacos_client *c, const char *from, const char *why)
{
    count(c, false);
    log_write(c->log, LOG_DEBUG, "push from %s ignored: %s", from, why);
}

/** The text of an address, as libcurl writes it: IPv4 also where it came in by a socket of both kinds. */
static void name_of(const struct sockaddr *a, char out[64])
{
    out[0] = 0;
    if (a->sa_family == AF_INET6)
        uv_ip6_name((const struct sockaddr_in6 *)a, out, 64);
    else
        uv_ip4_name((const struct sockaddr_in *)a, out, 64);
    if (strncmp(out, "::ffff:", 7) == 0)
        memmove(out, out + 7, strlen(out + 7) + 1);
}

static bool too_many(struct push *p, bool known)
{
    int64_t now = now_ms();
    if (now - p->window >= 1000) {
        p->window = now;
        p->strangers = p->friends = 0;
    }
    return known ? ++p->friends > FRIENDS_PER_SECOND : ++p->strangers > STRANGERS_PER_SECOND;
}

static void acknowledge(struct push_socket *s, const struct datagram *d, const struct sockaddr *to)
{
    char text[DATAGRAM_ACK];
    uv_buf_t buf = uv_buf_init(text, (unsigned)datagram_ack(d, text, sizeof text));
    uv_udp_try_send(&s->udp, &buf, 1, to);
}

static void received(struct push_socket *s, size_t len, const struct sockaddr *from)
{
    struct push *p = s->push;
    struct nacos_client *c = p->client;
    struct datagram d;
    char name[64];
    const char *why = NULL;
    name_of(from, name);
    bool known = servers_know_ip(&c->servers, name);
    if (!c->subscriptions || too_many(p, known)) {
        drop(c, name, c->subscriptions ? "too many" : "no service is followed");
        return;
    }
    if (!datagram_read(&d, s->bytes, len, &why)) {
        drop(c, name, why);
        return;
    }
    acknowledge(s, &d, from);
    if (d.hosts && subscribe_pushed(c, d.hosts, known, NACOS_VIA_UDP, &why))
        count(c, true);
    else
        drop(c, name, d.hosts ? why : "it brings no list");
    datagram_free(&d);
}

static void give_buffer(uv_handle_t *handle, size_t size, uv_buf_t *buf)
{
    struct push_socket *s = handle->data;
    (void)size;
    *buf = uv_buf_init(s->bytes, sizeof s->bytes);
}

static void on_datagram(uv_udp_t *udp, ssize_t n, const uv_buf_t *buf, const struct sockaddr *from, unsigned flags)
{
    struct push_socket *s = udp->data;
    (void)buf;
    if (n > 0 && from && !(flags & UV_UDP_PARTIAL))
        received(s, (size_t)n, from);
}

static void free_socket(uv_handle_t *handle)
{
    free(handle->data);
}

static int bind_to(struct push_socket *s, const char *any, int port)
{
    struct sockaddr_storage a;
    bool v6 = strchr(any, ':') != NULL;
    int rc = v6 ? uv_ip6_addr(any, port, (struct sockaddr_in6 *)&a) : uv_ip4_addr(any, port, (struct sockaddr_in *)&a);
    return rc ? rc : uv_udp_bind(&s->udp, (struct sockaddr *)&a, 0);
}

/** Both kinds of addresses where the system has IPv6. */
static int open_socket(struct push *p, const char *any)
{
    nacos_engine *e = p->client->engine;
    struct push_socket *s = calloc(1, sizeof *s);
    if (!s)
        return UV_ENOMEM;
    s->push = p;
    int rc = uv_udp_init(&e->loop, &s->udp);
    if (rc) {
        free(s);
        return rc;
    }
    s->udp.data = s;
    struct sockaddr_storage a;
    int size = sizeof a;
    rc = bind_to(s, any, p->wanted_port);
    rc = rc ? rc : uv_udp_recv_start(&s->udp, give_buffer, on_datagram);
    rc = rc ? rc : uv_udp_getsockname(&s->udp, (struct sockaddr *)&a, &size);
    if (rc) {
        uv_close((uv_handle_t *)&s->udp, free_socket);
        return rc;
    }
    p->socket = s;
    p->port = ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port : ((struct sockaddr_in *)&a)->sin_port);
    return 0;
}

struct push_address push_address(struct push *p)
{
    struct push_address none = {0}, to = {0};
    struct nacos_client *c = p->client;
    if (p->wanted_port < 0)
        return none;
    if (!p->tried) {
        p->tried = true;
        int rc = open_socket(p, "::");
        if (rc == UV_EAFNOSUPPORT || rc == UV_EADDRNOTAVAIL || rc == UV_EINVAL)
            rc = open_socket(p, "0.0.0.0");
        if (rc)
            log_write(c->log, LOG_WARN, "cannot open UDP port %d for pushes: %s; services are asked for instead", p->wanted_port,
                      uv_strerror(rc));
    }
    int k = servers_pick(&c->servers, 0, now_ms());
    const char *ip = p->wanted_ip ? p->wanted_ip : k >= 0 ? c->servers.list[k].local_ip : "";
    if (!p->port || !*ip)
        return none;
    to.port = p->port;
    snprintf(to.ip, sizeof to.ip, "%s", ip);
    return to;
}

void push_shut(struct push *p)
{
    if (p->socket)
        uv_close((uv_handle_t *)&p->socket->udp, free_socket);
    p->socket = NULL;
    p->port = 0;
}
