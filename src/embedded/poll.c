/** poll: see poll.h. */
#include "embedded/poll.h"

#include <stdlib.h>
#include <string.h>

#include "embedded/form.h"
#include "embedded/ids.h"

enum { MAX_LINES = 10000, WORDS = 4 };
#define WORD '\2'
#define LINE '\1'

static void ref_link(struct poll_ref *ref, struct item *item)
{
    ref->item = item;
    ref->before = NULL;
    ref->after = item->polls;
    if (item->polls)
        item->polls->before = ref;
    item->polls = ref;
}

static void ref_unlink(struct polls *all, struct poll_ref *ref)
{
    if (ref->before)
        ref->before->after = ref->after;
    else
        ref->item->polls = ref->after;
    if (ref->after)
        ref->after->before = ref->before;
    store_settle(all->store, ref->item);
}

void poll_clear(struct polls *all, struct poll *p)
{
    if (p->parked)
        all->parked--;
    p->parked = false;
    timer_clear(all->timers, &p->timer);
    for (size_t i = 0; i < p->count; i++)
        ref_unlink(all, &p->refs[i]);
    free(p->refs);
    p->refs = NULL;
    p->count = 0;
}

/** Splits [text, end) at `separator`, terminating each piece. Java's split: empty pieces at the end do not count. */
static size_t split(char *text, char *end, char separator, char **pieces, size_t *lens, size_t max)
{
    size_t count = 0, filled = 0;
    for (char *p = text;; p++) {
        char *stop = memchr(p, separator, (size_t)(end - p));
        stop = stop ? stop : end;
        if (count < max) {
            pieces[count] = p;
            lens[count] = (size_t)(stop - p);
        }
        count++;
        if (stop > p)
            filled = count;
        if (stop == end)
            break;
        p = stop;
    }
    return filled ? filled : 1; /* "" is one empty piece */
}

/** First pass, the parameter check of 2.3+: counts words and looks at identifiers, also in a last line without its end mark. */
static enum poll_status check_lines(char *text, char *end, size_t *lines, const char **why)
{
    while (end > text && end[-1] == LINE) /* empty lines at the end do not count either */
        end--;
    *lines = 0;
    if (end == text)
        return POLL_READ;
    for (char *line = text; line <= end; (*lines)++) {
        char *stop = memchr(line, LINE, (size_t)(end - line));
        stop = stop ? stop : end;
        char *words[WORDS];
        size_t lens[WORDS];
        size_t count = split(line, stop, WORD, words, lens, WORDS);
        if (count < 2 || count > WORDS)
            return POLL_BROKEN;
        /* The pieces are not terminated yet: a mark follows each. */
        char *data_end = words[0] + lens[0], *group_end = words[1] + lens[1], data_mark = *data_end, group_mark = *group_end;
        char line_mark = *stop;
        *data_end = *group_end = *stop = '\0';
        *why = ids_refusal(count == WORDS ? words[3] : NULL, count == WORDS ? lens[3] : 0, words[0], lens[0], words[1], lens[1]);
        *stop = line_mark;
        *group_end = group_mark;
        *data_end = data_mark;
        if (*why)
            return POLL_ILLEGAL;
        line = stop + 1;
    }
    return POLL_READ;
}

/** One line (terminated by us at `end`) becomes a ref. */
static enum poll_status read_line(struct polls *all, struct poll *p, char *line, char *end)
{
    char *words[WORDS] = {line};
    size_t count = 1;
    *end = '\0';
    for (char *c = line; c < end; c++)
        if (*c == WORD) {
            *c = '\0';
            if (count == WORDS)
                return POLL_INVALID;
            words[count++] = c + 1;
        }
    if (count < 3)
        return POLL_INVALID;
    struct item *item = store_item(all->store, words[0], words[1], count == WORDS ? words[3] : "");
    if (!item)
        return POLL_NO_MEMORY;
    if (item->seen != all->reads) {
        item->seen = all->reads;
        item->seen_as = &p->refs[p->count++];
        *item->seen_as = (struct poll_ref){.poll = p};
        ref_link(item->seen_as, item);
    }
    item->seen_as->stale = strcmp(item_md5(item), words[2]) != 0; /* of a key named twice the last line counts */
    return p->count > MAX_LINES ? POLL_INVALID : POLL_READ;
}

enum poll_status poll_read(struct polls *all, struct poll *p, char *text, size_t len, const char **why)
{
    /* The real server decodes a second time; a `%` or `+` has no place in an identifier anyway. */
    if (text_blank(text) && strlen(text) == len)
        return POLL_INVALID;
    if (!form_decode(text, &len))
        return POLL_BROKEN;
    if (text_blank(text) && strlen(text) == len)
        return POLL_READ;
    size_t lines;
    enum poll_status status = check_lines(text, text + len, &lines, why);
    if (status != POLL_READ)
        return status;
    p->refs = calloc((lines < MAX_LINES ? lines : MAX_LINES) + 1, sizeof *p->refs);
    if (!p->refs)
        return POLL_NO_MEMORY;
    all->reads++;
    char *line = text, *end = text + len;
    for (char *stop; status == POLL_READ && (stop = memchr(line, LINE, (size_t)(end - line))); line = stop + 1)
        status = read_line(all, p, line, stop); /* a last line without its end mark is ignored */
    if (status != POLL_READ)
        poll_clear(all, p);
    return status;
}

void poll_append_key(struct buf *out, const struct item *item)
{
    buf_append_encoded(out, item->data_id, strlen(item->data_id));
    buf_puts(out, "%02");
    buf_append_encoded(out, item->group, strlen(item->group));
    if (*item->tenant) {
        buf_puts(out, "%02");
        buf_append_encoded(out, item->tenant, strlen(item->tenant));
    }
    buf_puts(out, "%01");
}

bool poll_stale(const struct poll *p, struct buf *out)
{
    bool any = false;
    for (size_t i = 0; i < p->count; i++)
        if (p->refs[i].stale) {
            poll_append_key(out, p->refs[i].item);
            any = true;
        }
    return any;
}

void poll_stale_headers(const struct poll *p, struct buf *old_form, struct buf *new_form)
{
    for (size_t i = 0; i < p->count; i++)
        if (p->refs[i].stale)
            buf_printf(old_form, "%s:%s;", p->refs[i].item->data_id, p->refs[i].item->group);
    poll_stale(p, new_form);
}

static void on_hold_over(void *arg)
{
    struct poll *p = arg;
    struct polls *all = p->all;
    poll_clear(all, p);
    all->ended(all->arg, p, NULL);
}

void poll_park(struct polls *all, struct poll *p, int64_t hold_ms)
{
    p->parked = true;
    p->all = all;
    all->parked++;
    timer_set(all->timers, &p->timer, hold_ms, on_hold_over, p);
}

void polls_changed(struct polls *all, struct item *item)
{
    item->pins++; /* the last poller may be all that holds an absent item */
    for (struct poll_ref *ref, *next = item->polls; (ref = next);) {
        next = ref->after;
        struct poll *p = ref->poll;
        if (!p->parked)
            continue;
        poll_clear(all, p);
        all->ended(all->arg, p, item);
    }
    item->pins--;
}
