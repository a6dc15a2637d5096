/** reply: see reply.h. */
#include "embedded/reply.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/time.h>
#include <time.h>

enum { HEAD_MAX = 64 << 10, BODY_MAX = 1 << 30 };

void reply_init(struct reply *p)
{
    *p = (struct reply){0};
    buf_init(&p->head, HEAD_MAX);
    buf_init(&p->body, BODY_MAX);
}

void reply_free(struct reply *p)
{
    buf_free(&p->head);
    buf_free(&p->body);
}

void reply_clear(struct reply *p)
{
    reply_free(p);
    reply_init(p);
}

void reply_header(struct reply *p, const char *name, const char *value)
{
    buf_append(&p->head, name, strlen(name) + 1);
    buf_append(&p->head, value, strlen(value) + 1);
}

bool reply_next_header(const struct reply *p, size_t *at, const char **name, const char **value)
{
    if (*at >= p->head.len)
        return false;
    *name = p->head.data + *at;
    *value = *name + strlen(*name) + 1;
    *at = (size_t)(*value - p->head.data) + strlen(*value) + 1;
    return true;
}

bool reply_has_header(const struct reply *p, const char *wanted)
{
    const char *name, *value;
    for (size_t at = 0; reply_next_header(p, &at, &name, &value);)
        if (strcasecmp(name, wanted) == 0)
            return true;
    return false;
}

void reply_no_cache(struct reply *p)
{
    reply_header(p, "Pragma", "no-cache");
    reply_header(p, "Expires", "Thu, 01 Jan 1970 00:00:00 GMT");
    reply_header(p, "Cache-Control", "no-cache,no-store");
}

void reply_date(int64_t unix_seconds, char out[32])
{
    /* not strftime: its names follow the locale */
    static const char days[][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    time_t t = (time_t)unix_seconds;
    struct tm tm;
    gmtime_r(&t, &tm);
    /* unsigned: so the compiler sees that every number fits */
    snprintf(out, 32, "%s, %02u %s %04u %02u:%02u:%02u GMT", days[tm.tm_wday % 7], (unsigned)tm.tm_mday % 100,
             months[tm.tm_mon % 12], (unsigned)(tm.tm_year + 1900) % 10000, (unsigned)tm.tm_hour % 100, (unsigned)tm.tm_min % 100,
             (unsigned)tm.tm_sec % 100);
}

void reply_text(struct reply *p, int status, const char *type, const char *text)
{
    reply_clear(p);
    p->status = status;
    reply_header(p, "Content-Type", type);
    buf_puts(&p->body, text);
}

void reply_json(struct reply *p, int status, const char *type, json_t *value)
{
    char *text = value ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    json_decref(value);
    reply_text(p, status, type, text ? text : "");
    p->body.failed |= !text;
    p->chunked = true;
    free(text);
}

static void append_escaped(struct buf *b, const char *text)
{
    for (; *text; text++) {
        const char *entity = *text == '&'    ? "&amp;"
                             : *text == '<'  ? "&lt;"
                             : *text == '>'  ? "&gt;"
                             : *text == '"'  ? "&quot;"
                             : *text == '\'' ? "&#39;"
                                             : NULL;
        if (entity)
            buf_puts(b, entity);
        else
            buf_append(b, text, 1);
    }
}

void reply_caused(struct reply *p, int status, const char *message, bool escape)
{
    reply_text(p, status, TYPE_TEXT, "caused: ");
    if (escape)
        append_escaped(&p->body, message);
    else
        buf_puts(&p->body, message);
    buf_puts(&p->body, ";");
}

void reply_error_page(struct reply *p, int status, const char *type, const char *message, const char *path)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    struct tm tm;
    gmtime_r(&now.tv_sec, &tm);
    char date[32], stamp[48];
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(stamp, sizeof stamp, "%s.%03u+00:00", date, (unsigned)(now.tv_usec / 1000) % 1000);
    reply_json(p, status, type,
               json_pack("{s:s, s:i, s:s, s:s, s:s}", "timestamp", stamp, "status", status, "error", reply_reason(status),
                         "message", message, "path", path));
}

const char *reply_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {{200, "OK"},
                   {204, "No Content"},
                   {301, "Moved Permanently"},
                   {302, "Found"},
                   {307, "Temporary Redirect"},
                   {400, "Bad Request"},
                   {401, "Unauthorized"},
                   {403, "Forbidden"},
                   {404, "Not Found"},
                   {405, "Method Not Allowed"},
                   {409, "Conflict"},
                   {410, "Gone"},
                   {500, "Internal Server Error"},
                   {501, "Not Implemented"},
                   {502, "Bad Gateway"},
                   {503, "Service Unavailable"},
                   {504, "Gateway Timeout"}};
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "Status";
}

void reply_compose(const struct reply *p, long long length, struct buf *out)
{
    char date[32];
    reply_date(time(NULL), date);
    buf_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\nConnection: close\r\n", p->status, reply_reason(p->status), date);
    const char *name, *value;
    for (size_t at = 0; reply_next_header(p, &at, &name, &value);)
        buf_printf(out, "%s: %s\r\n", name, value);
    bool chunked = p->chunked && length < 0;
    if (chunked)
        buf_puts(out, "Transfer-Encoding: chunked\r\n\r\n");
    else
        buf_printf(out, "Content-Length: %lld\r\n\r\n", length >= 0 ? length : (long long)p->body.len);
    if (chunked && p->body.len)
        buf_printf(out, "%zx\r\n", p->body.len);
    if (p->body.len)
        buf_append(out, p->body.data, p->body.len);
    if (chunked)
        buf_puts(out, p->body.len ? "\r\n0\r\n\r\n" : "0\r\n\r\n");
}
