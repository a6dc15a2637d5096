/** auth: the one optional user, and the tokens a login gives out.
 *
 *  Tokens have the shape of the real ones (a JWT signed with HMAC-SHA256) and are not stored: what they say is checked. */
#ifndef LUNACOS_EMBEDDED_AUTH_H
#define LUNACOS_EMBEDDED_AUTH_H

#include <stdbool.h>
#include <stdint.h>

enum { ACCESS_TOKEN_MAX = 4096 }; /* bytes */

struct access {
    const char *username, *password; /* username NULL: open to everybody */
    long ttl;                        /* seconds */
    unsigned char key[32];
    unsigned long serial, expired; /* tokens up to number `expired` count as expired */
};

/** False: no random bytes for the key. */
bool access_init(struct access *a, const char *username, const char *password, long ttl);
bool access_enabled(const struct access *a);
bool access_password_ok(const struct access *a, const char *username, const char *password);
/** A new token; free(). NULL: out of memory. */
char *access_token(struct access *a);
/** NULL: the token is good. Otherwise the words of the real server's 403. */
const char *access_refusal(const struct access *a, const char *token);
/** Every token given out so far is expired from now on. */
void access_expire(struct access *a);

#endif
