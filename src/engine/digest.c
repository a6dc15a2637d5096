/** digest: see digest.h. */
#include "engine/digest.h"

#include <limits.h>
#include <string.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

bool md5_hex(const void *data, size_t len, char out[MD5_HEX])
{
    static const char hex[] = "0123456789abcdef";
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned int n = 0;

    out[0] = '\0';
    /* md5 names a version of the text here, it protects nothing; a FIPS provider refuses it all the same */
    if (!EVP_Digest(data, len, md, &n, EVP_md5(), NULL) || n != 16)
        return false;
    for (unsigned int i = 0; i < n; i++) {
        out[2 * i] = hex[md[i] >> 4];
        out[2 * i + 1] = hex[md[i] & 15];
    }
    out[2 * n] = '\0';
    return true;
}

bool hmac_sha1_base64(const char *key, const void *data, size_t len, char out[32])
{
    unsigned char md[EVP_MAX_MD_SIZE];
    unsigned int n = 0;
    size_t key_len = strlen(key);

    out[0] = '\0';
    if (key_len > INT_MAX || !HMAC(EVP_sha1(), key, (int)key_len, data, len, md, &n) || n != 20)
        return false;
    EVP_EncodeBlock((unsigned char *)out, md, (int)n);
    return true;
}
