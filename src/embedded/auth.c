/** auth: see auth.h. */
#include "embedded/auth.h"

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "embedded/form.h"
#include "engine/buf.h"

bool access_init(struct access *a, const char *username, const char *password, long ttl)
{
    *a = (struct access){.username = username, .password = password ? password : "", .ttl = ttl};
    return RAND_bytes(a->key, sizeof a->key) == 1;
}

bool access_enabled(const struct access *a)
{
    return a->username != NULL;
}

bool access_password_ok(const struct access *a, const char *username, const char *password)
{
    return username && password && strcmp(username, a->username) == 0 && strcmp(password, a->password) == 0;
}

/** Appends base64 in the URL alphabet, without padding. */
static void append_base64url(struct buf *b, const void *data, size_t len)
{
    unsigned char *text = malloc(len / 3 * 4 + 8);
    if (!text) {
        b->failed = true;
        return;
    }
    int n = EVP_EncodeBlock(text, data, (int)len);
    for (int i = 0; i < n; i++)
        text[i] = text[i] == '+' ? '-' : text[i] == '/' ? '_' : text[i];
    while (n > 0 && text[n - 1] == '=')
        n--;
    buf_append(b, text, (size_t)n);
    free(text);
}

/** Decodes that again; NUL-terminated, NULL when it is not such text. */
static char *base64url_text(const char *text, size_t len)
{
    size_t padded = (len + 3) / 4 * 4;
    char *in = malloc(padded + 1), *out = malloc(padded / 4 * 3 + 1);
    int n = -1;
    if (in && out && len > 0) {
        for (size_t i = 0; i < padded; i++)
            in[i] = i >= len ? '=' : text[i] == '-' ? '+' : text[i] == '_' ? '/' : text[i];
        n = EVP_DecodeBlock((unsigned char *)out, (unsigned char *)in, (int)padded);
    }
    free(in);
    if (n < 0) {
        free(out);
        return NULL;
    }
    out[n] = '\0';
    return out;
}

/** Appends `.` and the signature of what `b` holds. */
static void sign(const struct access *a, struct buf *b)
{
    unsigned char mac[EVP_MAX_MD_SIZE];
    unsigned int n = 0;
    if (!b->data || !HMAC(EVP_sha256(), a->key, sizeof a->key, (unsigned char *)b->data, b->len, mac, &n))
        b->failed = true;
    buf_puts(b, ".");
    append_base64url(b, mac, n);
}

#define JWT_HEADER "{\"alg\":\"HS256\"}"

char *access_token(struct access *a)
{
    json_t *claims =
        json_pack("{s:s, s:I, s:I}", "sub", a->username, "exp", (json_int_t)(time(NULL) + a->ttl), "jti", (json_int_t)++a->serial);
    char *text = claims ? json_dumps(claims, JSON_COMPACT) : NULL;
    json_decref(claims);
    struct buf b;
    buf_init(&b, ACCESS_TOKEN_MAX);
    append_base64url(&b, JWT_HEADER, sizeof JWT_HEADER - 1);
    buf_puts(&b, ".");
    append_base64url(&b, text ? text : "", text ? strlen(text) : 0);
    b.failed |= !text;
    free(text);
    sign(a, &b);
    if (b.failed) {
        buf_free(&b);
        return NULL;
    }
    return buf_take(&b, NULL);
}

const char *access_refusal(const struct access *a, const char *token)
{
    if (text_blank(token))
        return "user not found!";
    const char *dot = strchr(token, '.'), *dot2 = dot ? strchr(dot + 1, '.') : NULL;
    if (!dot2 || strchr(dot2 + 1, '.') || strlen(token) > ACCESS_TOKEN_MAX)
        return "token invalid!";
    struct buf header;
    buf_init(&header, sizeof JWT_HEADER * 2);
    append_base64url(&header, JWT_HEADER, sizeof JWT_HEADER - 1);
    bool ours = !header.failed && header.len == (size_t)(dot - token) && memcmp(header.data, token, header.len) == 0;
    buf_free(&header);
    if (!ours)
        return "unsupported signature algorithm";
    struct buf signed_text;
    buf_init(&signed_text, ACCESS_TOKEN_MAX * 2);
    buf_append(&signed_text, token, (size_t)(dot2 - token));
    sign(a, &signed_text);
    bool genuine = !signed_text.failed && strcmp(signed_text.data, token) == 0;
    buf_free(&signed_text);
    if (!genuine)
        return "Invalid signature";
    char *text = base64url_text(dot + 1, (size_t)(dot2 - dot - 1));
    json_t *claims = text ? json_loads(text, 0, NULL) : NULL;
    free(text);
    json_int_t exp = json_integer_value(json_object_get(claims, "exp")),
               serial = json_integer_value(json_object_get(claims, "jti"));
    json_decref(claims);
    return exp <= (json_int_t)time(NULL) || serial <= (json_int_t)a->expired ? "token expired!" : NULL;
}

void access_expire(struct access *a)
{
    a->expired = a->serial;
}
