/** hosts: the instances of a service, as one immutable list: read from a server's JSON, compared, filtered, merged.
 *
 *  Two lists are equal when their instances are: order, lastRefTime, checksum and the ids that servers give do not count. Identity
 *  is ip, port and cluster. Lists are sorted by it: IPv4 addresses first, as numbers, then all other ips as text.
 *
 *  A list is one block of memory. What counts of an instance is also there as one *record* of bytes; the records lie one behind the
 *  other in the order of the list, so that comparing two equal lists is one memcmp(). */
#ifndef LUNACOS_HOSTS_H
#define LUNACOS_HOSTS_H

#include <jansson.h>
#include <stdatomic.h>

#include "nacos.h"

struct hosts {
    atomic_int refs;
    nacos_hosts view; /* what the host gets to see; its strings live as long as the list */
    /* What the text said about the service, "group@@name" taken apart. A 1.x server may leave the group out: group "". */
    const char *name; /* NULL: nothing */
    const char *group;
    const char *clusters; /* as asked for; "": all */

    /* private */
    const uint64_t *keys; /* of each instance: orders as ip and port do, see hosts.c */
    const char *records;
    size_t records_len;
};

/** Reads the ServiceInfo JSON of 1.x, 2.x and 3.x, `{"hosts":[…],…}`. Entries that are no instances (not an object, no usable ip or
 * port, members of the wrong type, metadata that is not an object of strings) are left out and counted in
 * view.skipped, as are further ones with the same identity. Missing members take the server's defaults: weight 1, healthy, enabled,
 * ephemeral, cluster DEFAULT; null is the same as missing. Unknown members are fine; of a member that comes twice the last counts.
 * `valid` (1.x) is an older name of `healthy`. NULL: not such JSON, or out of memory. */
struct hosts *hosts_parse(const char *json, size_t len);
struct hosts *hosts_of_json(json_t *j); /* that JSON, loaded by hosts_load_json(); NULL gives NULL */
/** NULL when an instance may have this ip, else what is wrong with it. */
const char *check_ip(const char *ip);
/** The text as JSON. What no JSON string may hold (bytes that are not UTF-8, NUL, half characters) becomes '?' or U+FFFD: one
 * instance must not hide the others. NULL: no JSON, or too dense. */
json_t *hosts_load_json(const char *text, size_t len);
/** Whether a text has more brackets or commas than an instance list of its length can have: jansson makes 230 bytes of each `{}`,
 * so that a zipped datagram of 4 KB could cost 300 MB. hosts_load_json() reads no such text. */
bool hosts_dense(const char *json, size_t len);
/** A list of this one instance, copied. NULL: out of memory. */
struct hosts *hosts_of(const nacos_instance *i);
struct hosts *hosts_ref(struct hosts *h); /* NULL is fine */
void hosts_unref(struct hosts *h);        /* likewise */

bool hosts_equal(const struct hosts *a, const struct hosts *b);
/** The instance with this identity, or NULL. An empty or NULL cluster: that of the first with this ip and port. */
const nacos_instance *hosts_find(const struct hosts *h, const char *ip, int port, const char *cluster);
/** How many of `before` (NULL: nothing) are missing in `now`. */
size_t hosts_missing(const struct hosts *before, const struct hosts *now);
/** `now`, and those of `before` that are missing in it. All else is as in `now`. NULL: out of memory. */
struct hosts *hosts_union(struct hosts *before, struct hosts *now);
/** Those that are healthy. All else is as in `h`. NULL: out of memory. */
struct hosts *hosts_healthy(struct hosts *h);
/** Those in these clusters ("c1,c2"; "" or NULL: all). Likewise. */
struct hosts *hosts_in_clusters(struct hosts *h, const char *clusters);
/** What turns `before` (NULL: nothing) into `now`, in order of identity; free(). *count may be 0 (then NULL). The pointers in it
 * live as long as both lists. *failed: out of memory. */
nacos_change *hosts_diff(const struct hosts *before, const struct hosts *now, size_t *count, bool *failed);
/** The list as JSON that hosts_parse() reads, for the file on disk; free(). `name` as servers write it, "group@@name". NULL: out of
 * memory. */
char *hosts_json(const struct hosts *h, const char *name, size_t *len);

#endif
