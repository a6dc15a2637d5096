/** request: a question put to the servers of a client until one answers or the time is up.
 *
 *  It waits for the login and for the list of an address server, signs, divides the caller's time among the servers not yet tried,
 * goes to the next one when a server fails (as the question's `retry` allows), and asks for one new login when a token is refused.
 */
#ifndef LUNACOS_REQUEST_H
#define LUNACOS_REQUEST_H

#include "engine/http.h"
#include "engine/protocol.h"

struct nacos_client;
struct request;

/** Puts what is asked into the words of `p`, the dialect of the server that is asked next: fills `q`. Called before each attempt,
 * and for what a message says of the request; it may change no state. False: it cannot be asked; *err (code OK at first) says why,
 * or stays as it is: this dialect has no words for it (NACOS_UNSUPPORTED). */
typedef bool (*request_word)(void *arg, const struct protocol *p, struct question *q, nacos_error *err);

/** `err->code` NACOS_OK: the server's answer is in `r`, to the question `q`; err->server says whose. Otherwise `r` and `q` may be
 * NULL. All die when it returns. */
typedef void (*request_done)(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err);

/** `arg` is that of both functions. `done` is called exactly once, never from inside this call, unless request_cancel() comes
 * first. NULL: out of memory, `done` will not be called. */
struct request *request_start(struct nacos_client *c, request_word word, int64_t timeout_ms, request_done done, void *arg);
/** As above, but this question and only this origin, without a token: address server, login, version. Takes the question over (also
 * on failure). `context` false: the target is the whole path. */
struct request *request_start_at(struct nacos_client *c, struct question *q, const char *origin, bool context, int64_t timeout_ms,
                                 request_done done, void *arg);
/** It goes on while its client leaves. */
void request_lasts(struct request *r);
void request_cancel(struct request *r);
/** Ends all of the client with this error, but for the lasting ones. */
void requests_fail(struct nacos_client *c, nacos_code code, const char *why);
/** Ends it with this error, through `done`. */
void request_fail(struct request *r, nacos_code code, const char *why);
/** What to say should the time of this request run out while it waits for the login. */
void request_login_trouble(struct request *r, const nacos_error *err);
/** The login that this request waited for is over: err NULL when it worked. */
void request_login_over(struct request *r, const nacos_error *err);
/** dialect_pick() may say something else than WAIT now. */
void request_dialect_known(struct request *r);

#endif
