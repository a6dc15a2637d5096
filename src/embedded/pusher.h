/** pusher: UDP datagrams to subscribers, and their acknowledgements.
 *
 *  A datagram that nobody acknowledges is sent once more, as it was, after ten seconds. */
#ifndef LUNACOS_EMBEDDED_PUSHER_H
#define LUNACOS_EMBEDDED_PUSHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "engine/timer.h"

struct push;

struct pusher {
    uv_udp_t udp;
    bool open;
    struct timers *timers;
    struct push *waiting; /* for an acknowledgement, by its number */
    size_t waiting_bytes;
    uint64_t last; /* number of the newest datagram: a clock of nanoseconds */
    uint64_t sent, acked, retried;
    char inbox[512]; /* acknowledgements are short */
};

/** Opens a port beside the address where the server listens. Without one (false) nothing is ever pushed. */
bool pusher_init(struct pusher *p, uv_loop_t *loop, struct timers *timers, const struct sockaddr *listening);
/** The handle is closed by the loop's owner. */
void pusher_free(struct pusher *p);
/** Sends a list of instances (JSON text). */
void pusher_send(struct pusher *p, const struct sockaddr *to, const char *json, size_t len);
/** No retries of what was sent so far. */
void pusher_forget(struct pusher *p);

#endif
