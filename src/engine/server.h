/** server: the list of a client's servers, which one is in use and which are resting after a failure.
 *
 *  Sticky: the current one is kept until it fails. The first is chosen at random, so that a fleet of agents spreads. */
#ifndef LUNACOS_SERVER_H
#define LUNACOS_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "nacos.h"

#define SERVERS_MAX 32

struct server {
    char origin[128]; /* "http://host:port" */
    char version[32]; /* as it names it; empty: not asked yet */
    unsigned refused; /* what it does not offer over HTTP, whatever its version says; the bits are dialect's */
    char ip[46];      /* its address, and ours towards it; empty: no answer yet, or by a proxy */
    char local_ip[46];
    int64_t rest_until; /* monotonic ms; it failed and others come first until then */
    int failures;       /* in a row */
};

struct servers {
    struct server list[SERVERS_MAX];
    int count, current;
    unsigned generation; /* counts the lists: indexes of an older one mean nothing */
};

/** Parses "a:8848, https://b, [::1]:80"; replaces the list (what is known of servers that stay is kept). False and err->message on
 * a bad address. */
bool servers_parse(struct servers *s, const char *addresses, nacos_error *err);
/** One address into "scheme://host:port"; `port`: unless it names one. */
bool server_parse(const char *address, size_t n, int port, char origin[128], nacos_error *err);
/** The index to use next, skipping those in the bit set `tried`; -1: all were tried. Servers that failed lately come last. */
int servers_pick(struct servers *s, uint32_t tried, int64_t now);
void servers_failed(struct servers *s, const char *origin, int64_t now);
void servers_worked(struct servers *s, const char *origin);
/** The addresses of both ends of a connection to it. */
void servers_note_addresses(struct servers *s, const char *origin, const char *ip, const char *local_ip);
/** True if one of the servers has answered from this address. */
bool servers_know_ip(const struct servers *s, const char *ip);
struct server *servers_find(struct servers *s, const char *origin);

#endif
