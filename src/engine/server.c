#include "engine/server.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#define DEFAULT_PORT 8848
#define REST_MIN_MS 1000
#define REST_MAX_MS 30000

static bool bad(nacos_error *err, const char *address, size_t n, const char *what)
{
    *err = (nacos_error){.code = NACOS_INVALID};
    snprintf(err->message, sizeof err->message, "bad server address '%.*s': %s", (int)(n > 100 ? 100 : n), address, what);
    return false;
}

bool server_parse(const char *p, size_t n, int default_port, char origin[128], nacos_error *err)
{
    const char *whole = p, *end = p + n, *scheme = "http";
    const char *at = memchr(p, '@', n);
    if (at) { /* what stands before it may be a password */
        *err = (nacos_error){.code = NACOS_INVALID};
        snprintf(err->message, sizeof err->message,
                 "bad server address '…%.*s': user and password do not belong into it; there are options for them",
                 (int)(end - at > 100 ? 100 : end - at), at);
        return false;
    }
    const size_t whole_n = n;
    if (n >= 7 && strncasecmp(p, "http://", 7) == 0) {
        scheme = "http";
        p += 7;
    } else if (n >= 8 && strncasecmp(p, "https://", 8) == 0) {
        scheme = "https";
        p += 8;
    } else if (memmem(p, n, "://", 3)) {
        return bad(err, whole, whole_n, "only http:// and https:// are known");
    }
    if (end > p && end[-1] == '/')
        end--;
    const char *host = p, *host_end;
    if (p < end && *p == '[') {
        host_end = memchr(p, ']', (size_t)(end - p));
        if (!host_end)
            return bad(err, whole, whole_n, "']' is missing");
        host_end++;
    } else {
        host_end = memchr(p, ':', (size_t)(end - p));
        if (!host_end)
            host_end = end;
        else if (memchr(host_end + 1, ':', (size_t)(end - host_end - 1)))
            return bad(err, whole, whole_n, "an IPv6 address stands in brackets, as in [::1]:8848");
    }
    if (host_end == host)
        return bad(err, whole, whole_n, "the host is missing");
    for (const char *q = host; q < host_end; q++)
        if (!isalnum((unsigned char)*q) && !strchr("-._[]:%", *q))
            return bad(err, whole, whole_n, "a host is made of letters, digits, '-' and '.' (no path or user)");
    long port = default_port;
    if (host_end < end) {
        char digits[8] = "";
        size_t len = (size_t)(end - host_end - 1);
        if (*host_end != ':' || len == 0 || len > 5)
            return bad(err, whole, whole_n, "the port is a number from 1 to 65535");
        memcpy(digits, host_end + 1, len);
        char *rest;
        port = strtol(digits, &rest, 10);
        if (*rest || port < 1 || port > 65535)
            return bad(err, whole, whole_n, "the port is a number from 1 to 65535");
    }
    int len = snprintf(origin, 128, "%s://%.*s:%ld", scheme, (int)(host_end - host), host, port);
    return len < 128 || bad(err, whole, whole_n, "too long");
}

bool servers_parse(struct servers *s, const char *addresses, nacos_error *err)
{
    struct servers fresh = {0};
    for (const char *p = addresses; *p;) {
        size_t n = strcspn(p, ",;\r\n");
        const char *a = p, *z = p + n;
        while (a < z && isspace((unsigned char)*a))
            a++;
        while (z > a && isspace((unsigned char)z[-1]))
            z--;
        if (z > a) {
            if (fresh.count == SERVERS_MAX)
                return bad(err, a, (size_t)(z - a), "more than 32 servers");
            struct server *one = &fresh.list[fresh.count];
            if (!server_parse(a, (size_t)(z - a), DEFAULT_PORT, one->origin, err))
                return false;
            struct server *known = servers_find(s, one->origin);
            if (known)
                *one = *known;
            if (!servers_find(&fresh, one->origin))
                fresh.count++;
        }
        p += n;
        p += *p != 0;
    }
    if (fresh.count == 0)
        return bad(err, addresses, strlen(addresses), "it names no server");
    struct server *current = s->count ? servers_find(&fresh, s->list[s->current].origin) : NULL;
    uint16_t dice = 0;
    if (uv_random(NULL, NULL, &dice, sizeof dice, 0, NULL) != 0)
        dice = (uint16_t)uv_hrtime();
    fresh.current = current ? (int)(current - fresh.list) : dice % fresh.count;
    bool same = fresh.count == s->count;
    for (int i = 0; i < fresh.count && same; i++)
        same = strcmp(fresh.list[i].origin, s->list[i].origin) == 0;
    fresh.generation = s->generation + !same;
    *s = fresh;
    return true;
}

int servers_pick(struct servers *s, uint32_t tried, int64_t now)
{
    int best = -1;
    for (int i = 0; i < s->count; i++) {
        int k = (s->current + i) % s->count;
        if (tried & (1u << k))
            continue;
        if (s->list[k].rest_until <= now)
            return k;
        if (best < 0 || s->list[k].rest_until < s->list[best].rest_until)
            best = k;
    }
    return best;
}

struct server *servers_find(struct servers *s, const char *origin)
{
    for (int i = 0; i < s->count; i++)
        if (strcmp(s->list[i].origin, origin) == 0)
            return &s->list[i];
    return NULL;
}

void servers_failed(struct servers *s, const char *origin, int64_t now)
{
    struct server *v = servers_find(s, origin);
    if (!v)
        return;
    int64_t rest = (int64_t)REST_MIN_MS << (v->failures < 5 ? v->failures : 5);
    v->failures++;
    v->version[0] = 0; /* it may come back as another */
    v->refused = 0;
    v->rest_until = now + (rest < REST_MAX_MS ? rest : REST_MAX_MS);
}

void servers_worked(struct servers *s, const char *origin)
{
    struct server *v = servers_find(s, origin);
    if (!v)
        return;
    v->failures = 0;
    v->rest_until = 0;
    s->current = (int)(v - s->list);
}

void servers_note_addresses(struct servers *s, const char *origin, const char *ip, const char *local_ip)
{
    struct server *v = servers_find(s, origin);
    if (v && *ip && *local_ip) {
        snprintf(v->ip, sizeof v->ip, "%s", ip);
        snprintf(v->local_ip, sizeof v->local_ip, "%s", local_ip);
    }
}

bool servers_know_ip(const struct servers *s, const char *ip)
{
    for (int i = 0; i < s->count; i++)
        if (strcmp(s->list[i].ip, ip) == 0)
            return true;
    return false;
}
