/** digest: the two hashes the protocol needs, by OpenSSL. */
#ifndef LUNACOS_DIGEST_H
#define LUNACOS_DIGEST_H

#include <stdbool.h>
#include <stddef.h>

#define MD5_HEX 33 /* 32 lower-case hex digits and a NUL */

/** Lower-case hex md5. False (and an empty string) only where the crypto library refuses md5. */
bool md5_hex(const void *data, size_t len, char out[MD5_HEX]);
/** base64(HMAC-SHA1(key, data)), NUL-terminated: 28 characters. */
bool hmac_sha1_base64(const char *key, const void *data, size_t len, char out[32]);

#endif
