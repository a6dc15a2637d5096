/** Tests of buf and digest. */
#include "leaf.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/digest.h"

/* ---- buf ---- */

static void buf_appends_and_clears(void)
{
    struct buf b;
    buf_init(&b, 1000);
    CHECK(b.data == NULL && b.len == 0 && !b.failed);
    CHECK(buf_append(&b, "a\0b", 3) && buf_puts(&b, "cd") && buf_printf(&b, "-%d-%s", 42, "x"));
    CHECK(b.len == 10 && memcmp(b.data, "a\0bcd-42-x", 11) == 0);
    CHECK(buf_append(&b, NULL, 0) && b.len == 10);
    char *memory = b.data;
    buf_clear(&b);
    CHECK(b.data == memory && b.len == 0 && b.data[0] == '\0');
    buf_free(&b);
    CHECK(b.data == NULL && b.cap == 0 && b.max == 1000);
    buf_free(&b);
}

static void buf_stops_at_its_cap(void)
{
    struct buf b;
    buf_init(&b, 10);
    CHECK(buf_puts(&b, "0123456789") && !b.failed);
    CHECK(b.cap <= 11);
    CHECK(!buf_append(&b, "x", 1) && b.failed);
    CHECK(b.len == 10 && strcmp(b.data, "0123456789") == 0);
    buf_clear(&b);
    CHECK(!b.failed);
    CHECK(!buf_printf(&b, "%s", "0123456789a") && b.failed && b.len == 0 && b.data[0] == '\0');
    CHECK(buf_puts(&b, "short") && b.failed); /* stays until somebody clears it */
    buf_free(&b);

    buf_init(&b, 0);
    CHECK(buf_puts(&b, "") && !b.failed && !buf_puts(&b, "x") && b.failed);
    buf_free(&b);
}

static void buf_grows_by_doubling(void)
{
    struct buf b;
    unsigned int moves = 0;
    size_t cap = 0;

    buf_init(&b, 1000000);
    for (int i = 0; i < 1000000; i++) {
        buf_append(&b, "x", 1);
        moves += b.cap != cap;
        cap = b.cap;
    }
    CHECK(!b.failed && b.len == 1000000 && strlen(b.data) == 1000000 && b.cap == 1000001 && moves < 20);
    CHECK(!buf_append(&b, "x", 1));
    buf_free(&b);
}

static void buf_survives_out_of_memory(void)
{
    struct buf b;
    volatile size_t huge = SIZE_MAX / 4 - 64;

    buf_init(&b, SIZE_MAX);
    CHECK(buf_puts(&b, "kept"));
    CHECK(!buf_append(&b, "x", huge) && b.failed && strcmp(b.data, "kept") == 0);
    huge = SIZE_MAX - 1;
    CHECK(!buf_append(&b, "x", huge) && b.len == 4);
    CHECK(buf_puts(&b, "!") && strcmp(b.data, "kept!") == 0);
    buf_free(&b);
}

static void buf_encodes(void)
{
    struct buf b;
    char all[256];

    buf_init(&b, 1000);
    CHECK(buf_append_encoded(&b, "azAZ09-._~", 10) && strcmp(b.data, "azAZ09-._~") == 0);
    buf_clear(&b);
    CHECK(buf_append_encoded(&b, "a b+c%&=/:\0\x01\x02\xC3\xA9", 15));
    CHECK(strcmp(b.data, "a%20b%2Bc%25%26%3D%2F%3A%00%01%02%C3%A9") == 0);
    buf_clear(&b);
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    CHECK(buf_append_encoded(&b, all, 256) && b.len == 66 + 190 * 3);
    buf_free(&b);

    buf_init(&b, 8); /* all or nothing */
    CHECK(buf_append_encoded(&b, "ab", 2) && !buf_append_encoded(&b, "  +", 3) && b.failed && strcmp(b.data, "ab") == 0);
    buf_free(&b);
}

static void buf_makes_forms(void)
{
    struct buf b;
    buf_init(&b, 1000);
    CHECK(buf_form(&b, "dataId", "a b") && buf_form(&b, "skipped", NULL) && buf_form_n(&b, "skipped", NULL, 3));
    CHECK(buf_form(&b, "tenant", "") && buf_form_n(&b, "content", "x\0&y", 3));
    CHECK(strcmp(b.data, "dataId=a%20b&tenant=&content=x%00%26") == 0);
    buf_clear(&b);
    CHECK(buf_puts(&b, "/path?") && buf_form(&b, "a", "1") && buf_form(&b, "b", "2") && strcmp(b.data, "/path?a=1&b=2") == 0);
    buf_free(&b);

    buf_init(&b, 12);
    CHECK(buf_form(&b, "a", "1") && !buf_form(&b, "name", "too long") && b.failed && strcmp(b.data, "a=1") == 0 && b.len == 3);
    buf_free(&b);
}

static void buf_gives_its_memory(void)
{
    struct buf b;
    size_t len = 99;

    buf_init(&b, 100);
    CHECK(buf_take(&b, &len) == NULL && len == 0);
    buf_puts(&b, "");
    CHECK(buf_take(&b, NULL) == NULL);
    buf_puts(&b, "mine");
    char *s = buf_take(&b, &len);
    CHECK(s && strcmp(s, "mine") == 0 && len == 4 && b.data == NULL && b.len == 0 && b.cap == 0 && b.max == 100);
    CHECK(buf_puts(&b, "next") && strcmp(s, "mine") == 0);
    free(s);
    buf_free(&b);
}

/* ---- digest ---- */

static void digest_md5(void)
{
    char hex[MD5_HEX];
    CHECK(md5_hex("", 0, hex) && strcmp(hex, "d41d8cd98f00b204e9800998ecf8427e") == 0);
    CHECK(md5_hex(NULL, 0, hex) && strcmp(hex, "d41d8cd98f00b204e9800998ecf8427e") == 0);
    CHECK(md5_hex("abc", 3, hex) && strcmp(hex, "900150983cd24fb0d6963f7d28e17f72") == 0);
    CHECK(md5_hex("a\0b", 3, hex) && strcmp(hex, "70350f6027bce3713f6b76473084309b") == 0);
}

static void digest_hmac(void)
{
    char out[32], key[81];
    const char *more = "Test Using Larger Than Block-Size Key - Hash Key First";

    CHECK(hmac_sha1_base64("Jefe", "what do ya want for nothing?", 28, out) && strcmp(out, "7/zfauXrL6LSdBbV8YTfnCWafHk=") == 0);
    memset(key, 0xAA, 80); /* RFC 2202, case 6: longer than a block */
    key[80] = '\0';
    CHECK(hmac_sha1_base64(key, more, strlen(more), out) && strcmp(out, "qkrl4VJy0A6VcFY3zoo7Ve1AIRI=") == 0);
    CHECK(hmac_sha1_base64("", "", 0, out) && strcmp(out, "+9sdGxiqbAgyS31ktx+3Y3BpDh0=") == 0);
    CHECK(hmac_sha1_base64("", NULL, 0, out) && strcmp(out, "+9sdGxiqbAgyS31ktx+3Y3BpDh0=") == 0);
}

const struct leaf_test buf_tests[] = {
    TEST(buf_appends_and_clears),
    TEST(buf_stops_at_its_cap),
    TEST(buf_grows_by_doubling),
    TEST(buf_survives_out_of_memory),
    TEST(buf_encodes),
    TEST(buf_makes_forms),
    TEST(buf_gives_its_memory),
    TEST(digest_md5),
    TEST(digest_hmac),
    {NULL, NULL},
};
