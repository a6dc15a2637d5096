/** datagram: what servers push over UDP, taken apart. Nothing in it is trusted. */
#ifndef LUNACOS_DATAGRAM_H
#define LUNACOS_DATAGRAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/hosts.h"

#define DATAGRAM_MAX 65536          /* bytes as they come */
#define DATAGRAM_INFLATED (4 << 20) /* bytes after unzipping: more is an attack; real lists compress by about ten */
#define DATAGRAM_ACK 128            /* room for every acknowledgement */

struct datagram {
    char type[16];       /* "dom", "service", "dump", … */
    int64_t ref_time;    /* the outer lastRefTime: a number to acknowledge, in nanoseconds of no known clock */
    struct hosts *hosts; /* of dom and service, with the name of the service; else NULL */
};

/** Unzips (by its first two bytes) and reads one datagram. False: `why` (static) says what is wrong with it, and there is nothing
 * to free. */
bool datagram_read(struct datagram *d, const void *bytes, size_t len, const char **why);
void datagram_free(struct datagram *d);
/** The acknowledgement: push-ack for dom and service, dump-ack for dump (with empty data), else unknown-ack. Returns its length. */
size_t datagram_ack(const struct datagram *d, char *out, size_t size);

#endif
