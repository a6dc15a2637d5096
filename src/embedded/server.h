/** server: the embedded Nacos server. HTTP by libmicrohttpd on a libuv loop, one thread, everything in memory.
 *
 *  For development and tests, not for production: one process, nothing on disk, no cluster. */
#ifndef LUNACOS_EMBEDDED_SERVER_H
#define LUNACOS_EMBEDDED_SERVER_H

#include <stdbool.h>
#include <stddef.h>

struct embedded_options {
    const char *host;                /* NULL: 127.0.0.1 */
    int port;                        /* 0: any free one */
    const char *context_path;        /* NULL: /nacos; "" or "/": none */
    const char *username, *password; /* NULL: open to everybody */
    long token_ttl;                  /* seconds; 0: 18000 */
    double lag;                      /* seconds until a publish is visible to readers */
    double push_delay;               /* seconds until a change of instances is visible in lists and pushed */
    const char *tls_cert, *tls_key;  /* PEM files; NULL: plain HTTP */
    const char *tls_ca;              /* PEM file: clients must show a certificate of this CA */
    const char *version;             /* what it says it is; NULL: 2.5.1 */
    bool faults;                     /* serve /__lunacos/ */
};

/** Serves until SIGTERM or SIGINT; says so in one line on standard output when it listens. False: it could not start, `why` says
 * what is wrong and what to do. The strings of `options` must outlive the call. */
bool embedded_serve(const struct embedded_options *options, char *why, size_t why_size);

#endif
