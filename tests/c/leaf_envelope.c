/** Tests of envelope. grpc-vectors.jsonl: what a Nacos 3.1.0 and its clients really sent. */
#include "leaf.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/envelope.h"

static size_t unhex(const char *hex, char *out)
{
    size_t n = 0;
    for (unsigned int x; sscanf(hex, "%2x", &x) == 1; hex += 2)
        out[n++] = (char)x;
    return n;
}

static bool reads(const char *bytes, size_t len, struct envelope *e)
{
    static char *exact; /* until the next call; a sanitizer sees what is read behind it */
    free(exact);
    exact = malloc(len ? len : 1);
    memcpy(exact, bytes, len);
    return envelope_read(exact, len, e);
}

static void envelope_real_messages(void)
{
    static char line[65536], bytes[32768];
    FILE *f = fopen(TEST_DATA "/grpc-vectors.jsonl", "r");
    int n = 0;
    CHECK(f);
    while (f && fgets(line, sizeof line, f)) {
        json_t *v = json_loads(line, 0, NULL), *value;
        const char *name, *type = json_string_value(json_object_get(v, "type")),
                          *client_ip = json_string_value(json_object_get(v, "clientIp")),
                          *text = json_string_value(json_object_get(v, "json"));
        size_t len = unhex(json_string_value(json_object_get(v, "hex")), bytes);
        struct envelope e;
        struct buf out;
        buf_init(&out, ENVELOPE_MAX);
        CHECK(envelope_read(bytes, len, &e));
        CHECK(slice_is(e.type, type) && slice_is(e.client_ip, client_ip) && slice_is(e.json, text));
        CHECK(e.header_count == (int)json_object_size(json_object_get(v, "headers")));
        int i = 0;
        json_object_foreach(json_object_get(v, "headers"), name, value)
        {
            CHECK(slice_is(e.headers[i].name, name) && slice_is(e.headers[i].value, json_string_value(value)));
            i++;
        }
        envelope_write(&out, &e);
        CHECK(!out.failed && out.len == len && memcmp(out.data, bytes, len) == 0);
        for (size_t cut = 1; cut < len; cut++) /* torn anywhere it is none, or one without its body */
            CHECK(!reads(bytes, cut, &e) || e.json.len == 0);
        buf_free(&out);
        json_decref(v);
        n++;
    }
    if (f)
        fclose(f);
    CHECK(n == 87);
}

static void envelope_headers_there_and_back(void)
{
    struct envelope e = {.type = slice_of("T"), .json = slice_of("{}")}, back;
    struct buf out;
    static char big[300000];
    memset(big, 'x', sizeof big);
    for (int i = 0; i < ENVELOPE_HEADERS_MAX; i++)
        e.headers[e.header_count++] = (struct envelope_header){slice_of("name"), {big, (size_t)(i ? i * 20000 - 1 : 0)}};
    buf_init(&out, ENVELOPE_MAX);
    envelope_write(&out, &e);
    CHECK(envelope_read(out.data, out.len, &back) && back.header_count == ENVELOPE_HEADERS_MAX && slice_is(back.json, "{}"));
    for (int i = 0; i < back.header_count; i++)
        CHECK(slice_is(back.headers[i].name, "name") && back.headers[i].value.len == e.headers[i].value.len);
    CHECK(!reads(out.data, out.len - 1, &back));
    buf_free(&out);
    buf_init(&out, 1000);
    envelope_write(&out, &e);
    CHECK(out.failed);
    buf_free(&out);
}

#define READS(text, e) reads(text, sizeof(text) - 1, e)

static void envelope_hostile(void)
{
    struct envelope e;
    CHECK(READS("", &e) && e.type.len == 0 && e.json.len == 0);
    CHECK(!READS("\x12", &e));                                                      /* no length */
    CHECK(!READS("\x12\x05\x1a\x01X", &e));                                         /* longer than all there is */
    CHECK(!READS("\x12\x03\x1a\x02X", &e));                                         /* the inner one */
    CHECK(!READS("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", &e));              /* 2^64 - 1 */
    CHECK(!READS("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", &e));  /* without an end */
    CHECK(!READS("\x08\x80", &e) && !READS("\x0d\x01\x02\x03", &e));                /* torn numbers */
    CHECK(!READS("\x13\x14", &e) && !READS("\x16", &e) && !READS("\x02\x01X", &e)); /* groups, type 6, field 0 */
    CHECK(!READS("\x12\x04\x3a\x02\x0a\x05", &e));                                  /* in a header */
    CHECK(!READS("\x1a\x02\x12\x05", &e));                                          /* in the body */
    /* what is unknown is skipped, of what comes twice the last counts, another wire type is another field */
    CHECK(READS("\x08\x7f\x0d"
                "1234"
                "\x09"
                "12345678"
                "\x72\x01?\x12\x03\x1a\x01"
                "A\x12\x06\x1a\x01"
                "B\x42\x01"
                "C\x1a\x03\x12\x01"
                "D\x10\x05\x18\x06",
                &e));
    CHECK(slice_is(e.type, "B") && slice_is(e.client_ip, "C") && slice_is(e.json, "D"));
    struct buf b;
    buf_init(&b, 10000);
    buf_puts(&b, "\x12\x64"); /* 20 headers of 5 bytes */
    for (int i = 0; i < 20; i++)
        buf_puts(&b, "\x3a\x03\x0a\x01N");
    CHECK(reads(b.data, b.len, &e) && e.header_count == ENVELOPE_HEADERS_MAX);
    buf_free(&b);
    CHECK(slice_is(slice_of(NULL), "") && !slice_is(slice_of("ab"), "a") && !slice_is(slice_of("a"), "ab"));
}

const struct leaf_test envelope_tests[] = {
    TEST(envelope_real_messages), TEST(envelope_headers_there_and_back), TEST(envelope_hostile), {NULL, NULL}};
