/** faults: what the server does wrong on purpose, for tests of clients. */
#ifndef LUNACOS_EMBEDDED_FAULTS_H
#define LUNACOS_EMBEDDED_FAULTS_H

#include <jansson.h>
#include <stdbool.h>
#include <uv.h>

#include "embedded/reply.h"

enum fault_kind {
    FAULT_DELAY,   /* the normal answer, late; of gRPC: or what `body` and the type in `headers` say */
    FAULT_STATUS,  /* another answer; the request does nothing */
    FAULT_DROP,    /* the first `number` bytes of the normal answer, then the connection closes */
    FAULT_GARBAGE, /* bytes that are not HTTP, then close; the request does nothing */
    FAULT_LENGTH,  /* the normal answer with `number` as its Content-Length, then close */
    FAULT_ENDLESS, /* 200 and a body without end; the request does nothing */
    FAULT_HANG,    /* never an answer; the request does nothing */
    /* of calls of gRPC only, whose `path` is the type of the message and whose method is GRPC; the request does nothing: */
    FAULT_CODE,       /* an ErrorResponse with `number` as its errorCode */
    FAULT_RESET,      /* RST_STREAM */
    FAULT_GRPC_STATUS /* `number` is the grpc-status, and no message comes */
};

struct fault {
    struct fault *next;
    unsigned refs; /* the list's and those of requests it applies to */
    json_t *spec;  /* owns the texts below */
    const char *path, *method, *data_id;
    bool prefix;
    json_int_t times; /* left; negative: for ever */
    double delay;     /* seconds */
    enum fault_kind kind;
    int status;
    json_int_t number;
};

struct faults {
    struct fault *first, *last;
    size_t count;
};

/** Appends the faults of `spec`, one object or a list of them: all or none. False: `why` says what is wrong. */
bool faults_add(struct faults *f, json_t *spec, char *why, size_t why_size);
void faults_clear(struct faults *f);
/** The first fault that applies, counted down; a reference for the caller. NULL: none. */
struct fault *faults_match(struct faults *f, const char *path, const char *method, const char *data_id);
void fault_release(struct fault *fault);

/** Fills the reply of a fault that takes the place of the normal answer. */
void fault_reply(const struct fault *fault, struct reply *reply);
/** The bytes to send instead of an HTTP answer made of `reply`; false: the fault wants that answer. */
bool fault_bytes(const struct fault *fault, const struct reply *reply, struct buf *out);

/** Writes past the HTTP server to a socket that it has let go of. */
struct raw;

/** Sends the bytes (which it takes) and calls over() once: when all are sent, with `hang` when the client is gone, or on an error.
 * NULL: not started. */
struct raw *raw_start(uv_loop_t *loop, int fd, struct buf *bytes, bool hang, void (*over)(void *arg), void *arg);
/** Stops it before that, without over(). NULL is fine. */
void raw_stop(struct raw *raw);

#endif
