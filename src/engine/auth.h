/** auth: one login for everybody who needs a token, renewed before it runs out.
 *
 *  The password is read anew at each login (option, file or environment), so a rotated one is found by the login that fails with
 * the old. */
#ifndef LUNACOS_AUTH_H
#define LUNACOS_AUTH_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/timer.h"
#include "nacos.h"

struct nacos_client;
struct request;
struct http_response;

struct auth {
    struct nacos_client *client;
    char *username, *password, *password_file, *password_env; /* username NULL: no login */
    char *token;
    bool not_needed;     /* a server without authentication said so */
    uint64_t generation; /* of the token: counts logins that worked */
    int64_t expires;     /* monotonic ms */
    bool accepted;       /* a server took this token at least once */
    bool forced;         /* the login under way was asked for by a 403 */
    int64_t pause_until; /* before it a 403 starts no login: the last one, forced like that, did not help */
    struct request *running;
    int path, failures;
    uint32_t tried;
    char origin[128];
    struct timer timer; /* renewal, or the next try after a failure */
    int64_t retry_at;   /* until then `error` answers everybody */
    nacos_error error;
    struct request **waiters;
    int waiter_count, waiter_cap;
};

enum auth_state { AUTH_READY, AUTH_WAIT, AUTH_FAILED };

bool auth_init(struct auth *a, struct nacos_client *c, const nacos_options *o);
void auth_free(struct auth *a);
/** READY: *token (NULL: none needed) and its generation. WAIT: join. FAILED: *err says why. */
enum auth_state auth_token(struct auth *a, const char **token, uint64_t *generation, nacos_error *err);
/** The request is told by request_login_over(). */
void auth_join(struct auth *a, struct request *r);
void auth_leave(struct auth *a, struct request *r);
/** A server took this token. */
void auth_accepted(struct auth *a, uint64_t generation);
/** A 403 came for a request that used this token. True: try again (with a newer token, or after the login that this started).
 * False: it is about the right itself. */
bool auth_refused(struct auth *a, uint64_t generation, const struct http_response *r);

#endif
