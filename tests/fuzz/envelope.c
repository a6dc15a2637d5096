/** Any bytes as an envelope; what can be read is written and read again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/envelope.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool same(struct slice a, struct slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct envelope e, again;
    struct buf out;
    if (!envelope_read(data, size, &e))
        return 0;
    buf_init(&out, ENVELOPE_MAX);
    envelope_write(&out, &e);
    bool ok = !out.failed && envelope_read(out.data, out.len, &again) && same(e.type, again.type) &&
              same(e.client_ip, again.client_ip) && same(e.json, again.json) && e.header_count == again.header_count;
    for (int i = 0; ok && i < e.header_count; i++)
        ok = same(e.headers[i].name, again.headers[i].name) && same(e.headers[i].value, again.headers[i].value);
    if (!ok)
        abort();
    buf_free(&out);
    return 0;
}
