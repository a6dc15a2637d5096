/** listen: opens the sockets where the server listens. */
#ifndef LUNACOS_EMBEDDED_LISTEN_H
#define LUNACOS_EMBEDDED_LISTEN_H

#include <stddef.h>

enum { LISTEN_BACKLOG = 4096 };

/** A listening socket, or -1 and `why`. Port 0: any free one; `real_port` is which. */
int listen_on(const char *host, int port, int *real_port, char *why, size_t why_size);

#endif
