/** server: the embedded Nacos server. HTTP by libmicrohttpd and gRPC by nghttp2 on one libuv loop, one thread,
 * everything in memory.
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
    const char *version;             /* what it says it is; NULL: 3.1.0, or 2.5.1 without v3 */
    const char *api;                 /* of v1, v3, grpc, with commas between; NULL: all */
    int grpc_port;                   /* 0: port + 1000 */
    bool faults;                     /* serve /__lunacos/ */
};

/** Is this one of the APIs to serve? */
bool embedded_serves(const struct embedded_options *o, const char *api);
/** Does it claim to be of this major version, 1, 2 or 3? */
bool embedded_claims(const struct embedded_options *o, int major);

/** Serves until SIGTERM or SIGINT; says so in one line on standard output when it listens. False: it could not start, `why` says
 * what is wrong and what to do. The strings of `options` must outlive the call. */
bool embedded_serve(const struct embedded_options *options, char *why, size_t why_size);

#endif
