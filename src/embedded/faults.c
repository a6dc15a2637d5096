/** faults: see faults.h. */
#include "embedded/faults.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

void fault_release(struct fault *fault)
{
    if (!fault || --fault->refs > 0)
        return;
    json_decref(fault->spec);
    free(fault);
}

void faults_clear(struct faults *f)
{
    for (struct fault *fault; (fault = f->first);) {
        f->first = fault->next;
        fault_release(fault);
    }
    *f = (struct faults){0};
}

enum wanted { TEXT, NUMBER, INTEGER, CODE, TRUE, OBJECT };

static const struct member {
    const char *name;
    enum wanted wanted;
    int kind; /* the enum fault_kind it stands for, or -1 */
} members[] = {{"path", TEXT, -1},
               {"method", TEXT, -1},
               {"data_id", TEXT, -1},
               {"times", INTEGER, -1},
               {"delay", NUMBER, -1},
               {"body", TEXT, -1},
               {"headers", OBJECT, -1},
               {"status", INTEGER, FAULT_STATUS},
               {"drop_at", INTEGER, FAULT_DROP},
               {"garbage", TRUE, FAULT_GARBAGE},
               {"length", INTEGER, FAULT_LENGTH},
               {"endless", TRUE, FAULT_ENDLESS},
               {"hang", TRUE, FAULT_HANG},
               {"code", CODE, FAULT_CODE},
               {"reset", TRUE, FAULT_RESET},
               {"grpc_status", INTEGER, FAULT_GRPC_STATUS}};

static bool fits(const json_t *value, enum wanted wanted)
{
    switch (wanted) {
    case TEXT:
        return json_is_string(value);
    case NUMBER:
        return json_is_number(value) && json_number_value(value) >= 0;
    case INTEGER:
        /* a number like 200.0 is what a Lua JSON writer may make of 200 */
        return json_is_number(value) && json_number_value(value) >= 0 && json_number_value(value) < 1e15;
    case CODE: /* there are negative ones */
        return json_is_number(value) && json_number_value(value) > -1e6 && json_number_value(value) < 1e6;
    case TRUE:
        return json_is_true(value);
    case OBJECT:
        break;
    }
    json_t *headers = (json_t *)value; /* iterating wants it so, but changes nothing */
    for (void *i = json_object_iter(headers); i; i = json_object_iter_next(headers, i))
        if (!json_is_string(json_object_iter_value(i)))
            return false;
    return json_is_object(value);
}

/** Sets what one member says. False: it says nothing sensible. */
static bool apply(struct fault *fault, const char *name, json_t *value)
{
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        const struct member *m = &members[i];
        if (strcmp(name, m->name) != 0)
            continue;
        if (!fits(value, m->wanted))
            return false;
        if (m->kind >= 0) {
            if (fault->kind != FAULT_DELAY) /* two answers at once */
                return false;
            fault->kind = (enum fault_kind)m->kind;
            fault->number = (json_int_t)json_number_value(value);
        }
        return true;
    }
    return false;
}

static struct fault *fault_new(json_t *spec, char *why, size_t why_size)
{
    struct fault *fault = calloc(1, sizeof *fault);
    if (!fault) {
        snprintf(why, why_size, "out of memory");
        return NULL;
    }
    *fault = (struct fault){.refs = 1, .spec = json_incref(spec), .times = -1};
    snprintf(why, why_size, "a fault is an object with a \"path\"");
    if (!json_is_string(json_object_get(spec, "path")))
        goto fail;
    for (void *i = json_object_iter(spec); i; i = json_object_iter_next(spec, i))
        if (!apply(fault, json_object_iter_key(i), json_object_iter_value(i))) {
            snprintf(why, why_size, "fault: \"%s\" is unknown, of the wrong kind, or a second answer", json_object_iter_key(i));
            goto fail;
        }
    fault->path = json_string_value(json_object_get(spec, "path"));
    fault->prefix = fault->path[0] && fault->path[strlen(fault->path) - 1] == '*';
    fault->method = json_string_value(json_object_get(spec, "method"));
    fault->data_id = json_string_value(json_object_get(spec, "data_id"));
    fault->delay = json_number_value(json_object_get(spec, "delay"));
    fault->status = fault->kind == FAULT_STATUS ? (int)fault->number : 0;
    if (json_object_get(spec, "times"))
        fault->times = (json_int_t)json_number_value(json_object_get(spec, "times"));
    snprintf(why, why_size, "fault: \"status\" must be 200 to 999 and \"times\" at least 1");
    if ((fault->kind == FAULT_STATUS && (fault->status < 200 || fault->status > 999)) || fault->times == 0)
        goto fail;
    return fault;
fail:
    fault_release(fault);
    return NULL;
}

static void append(struct faults *f, struct fault *fault)
{
    fault->next = NULL;
    if (f->last)
        f->last->next = fault;
    else
        f->first = fault;
    f->last = fault;
    f->count++;
}

bool faults_add(struct faults *f, json_t *spec, char *why, size_t why_size)
{
    struct faults fresh = {0};
    size_t count = json_is_array(spec) ? json_array_size(spec) : 1;
    for (size_t i = 0; i < count; i++) {
        struct fault *fault = fault_new(json_is_array(spec) ? json_array_get(spec, i) : spec, why, why_size);
        if (!fault) {
            faults_clear(&fresh);
            return false;
        }
        append(&fresh, fault);
    }
    for (struct fault *fault; (fault = fresh.first);) {
        fresh.first = fault->next;
        append(f, fault);
    }
    return true;
}

static bool applies(const struct fault *fault, const char *path, const char *method, const char *data_id)
{
    size_t n = strlen(fault->path);
    bool here = fault->prefix ? strncmp(path, fault->path, n - 1) == 0 : strcmp(path, fault->path) == 0;
    bool able = fault->kind < FAULT_CODE || strcmp(method, "GRPC") == 0;
    return here && able && (!fault->method || strcasecmp(fault->method, method) == 0) &&
           (!fault->data_id || (data_id && strcmp(fault->data_id, data_id) == 0));
}

struct fault *faults_match(struct faults *f, const char *path, const char *method, const char *data_id)
{
    struct fault *before = NULL;
    for (struct fault *fault = f->first, *next; fault; before = fault, fault = next) {
        next = fault->next;
        if (!applies(fault, path, method, data_id))
            continue;
        fault->refs++;
        if (fault->times > 0)
            fault->times--;
        if (fault->times == 0) { /* used up */
            if (before)
                before->next = next;
            else
                f->first = next;
            if (f->last == fault)
                f->last = before;
            f->count--;
            fault_release(fault);
        }
        return fault;
    }
    return NULL;
}

void fault_reply(const struct fault *fault, struct reply *reply)
{
    const json_t *body = json_object_get(fault->spec, "body");
    json_t *headers = json_object_get(fault->spec, "headers");
    reply->status = fault->kind == FAULT_STATUS ? fault->status : 200;
    for (void *i = json_object_iter(headers); i; i = json_object_iter_next(headers, i))
        reply_header(reply, json_object_iter_key(i), json_string_value(json_object_iter_value(i)));
    if (!reply_has_header(reply, "Content-Type"))
        reply_header(reply, "Content-Type", TYPE_TEXT);
    if (body)
        buf_append(&reply->body, json_string_value(body), json_string_length(body));
}

bool fault_bytes(const struct fault *fault, const struct reply *reply, struct buf *out)
{
    static const char garbage[] = "\x16\x03 these bytes are not HTTP \xff\xfe\0\r\n";
    switch (fault->kind) {
    case FAULT_DROP:
        reply_compose(reply, -1, out);
        if ((json_int_t)out->len > fault->number)
            out->len = (size_t)fault->number;
        return true;
    case FAULT_LENGTH:
        reply_compose(reply, fault->number, out);
        return true;
    case FAULT_GARBAGE:
        for (int i = 0; i < 16; i++)
            buf_append(out, garbage, sizeof garbage - 1);
        return true;
    case FAULT_HANG:
        return true;
    case FAULT_DELAY:
    case FAULT_STATUS:
    case FAULT_ENDLESS:
    case FAULT_CODE:
    case FAULT_RESET:
    case FAULT_GRPC_STATUS:
        break;
    }
    return false;
}

struct raw {
    uv_poll_t poll;
    struct buf bytes;
    size_t sent;
    int fd;
    bool hang;
    void (*over)(void *arg);
    void *arg;
};

static void on_closed(uv_handle_t *h)
{
    struct raw *raw = h->data;
    buf_free(&raw->bytes);
    free(raw);
}

void raw_stop(struct raw *raw)
{
    if (raw)
        uv_close((uv_handle_t *)&raw->poll, on_closed);
}

/** True: the error of the last call on the socket is none. */
static bool just_busy(void)
{
    return errno == EAGAIN || errno == EINTR;
}

static void on_ready(uv_poll_t *poll, int status, int events)
{
    struct raw *raw = poll->data;
    bool over = status < 0;
    if (!over && (events & UV_WRITABLE) && raw->sent < raw->bytes.len) {
        ssize_t n = send(raw->fd, raw->bytes.data + raw->sent, raw->bytes.len - raw->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        raw->sent += n > 0 ? (size_t)n : 0;
        over = n < 0 && !just_busy();
    }
    if (!over && (events & UV_READABLE)) {
        char scrap[512];
        ssize_t n = recv(raw->fd, scrap, sizeof scrap, MSG_DONTWAIT);
        over = n == 0 || (n < 0 && !just_busy());
    }
    if (over || (!raw->hang && raw->sent == raw->bytes.len)) {
        raw_stop(raw);
        raw->over(raw->arg);
    }
}

struct raw *raw_start(uv_loop_t *loop, int fd, struct buf *bytes, bool hang, void (*over)(void *arg), void *arg)
{
    struct raw *raw = bytes->failed ? NULL : calloc(1, sizeof *raw);
    if (!raw || uv_poll_init(loop, &raw->poll, fd) != 0) {
        free(raw);
        return NULL;
    }
    raw->bytes = *bytes;
    buf_init(bytes, 0);
    raw->poll.data = raw;
    raw->fd = fd;
    raw->hang = hang;
    raw->over = over;
    raw->arg = arg;
    uv_poll_start(&raw->poll, hang ? UV_READABLE : UV_WRITABLE, on_ready);
    return raw;
}
