/** auth: one login for everybody who needs a token, renewed before it runs out.
 *
 *  The password is read anew at each login (option, file or environment), so a rotated one is found by the login that fails with
 * the old.
 *
 *  A *round* of login asks the servers in turn, each on the paths it may know. It ends with a token; or refused (401, 403: user or
 * password is wrong), which is told at once; or with a 500 from every server that answered, which a server says to a wrong user and
 * also for some seconds after its start: rounds go on for PATIENCE while callers wait; or no server answered ("unavailable"). */
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
    bool accepted;       /* a server took this token at least once */
    uint64_t generation; /* counts logins that worked */
    int64_t expires;     /* monotonic ms */
    bool forced;         /* the login under way was asked for by a 403 */
    int64_t pause_until; /* before it a 403 starts no login: the last one, forced like that, did not help */

    /* the round */
    struct request *running;
    uint32_t tried; /* servers */
    char origin[128];
    int paths_tried, path; /* the path that worked last is the first to try */
    nacos_error round_error;

    int failures;          /* rounds in a row */
    int64_t patient_since; /* the first of the rounds that ended with 500; 0: none */
    int64_t ended;         /* the last round that failed */
    int64_t retry_at;      /* until then `error` answers everybody, unless patient or no server had answered */
    nacos_error error;
    struct timer timer; /* the next round: renewal, or after a failure */

    struct request **waiters;
    int waiter_count, waiter_cap;
};

enum auth_state { AUTH_READY, AUTH_WAIT, AUTH_FAILED };

bool auth_init(struct auth *a, struct nacos_client *c, const nacos_options *o);
void auth_free(struct auth *a);
/** READY: *token (NULL: none needed) and its generation. WAIT: join; *err is what to say when the time ends first. FAILED: *err
 * says why. */
enum auth_state auth_token(struct auth *a, const char **token, uint64_t *generation, nacos_error *err);
/** The request is told by request_login_over(). */
void auth_join(struct auth *a, struct request *r);
void auth_leave(struct auth *a, struct request *r);
/** A server took this token. */
void auth_accepted(struct auth *a, uint64_t generation);
/** A 403 came for a request that used this token. True: try again (with a newer token, or after the login that this asks for).
 * False: it is about the right itself. */
bool auth_refused(struct auth *a, uint64_t generation, const struct http_response *r);

#endif
