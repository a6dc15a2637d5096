/** store: see store.h. */
#include "embedded/store.h"

#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "embedded/form.h"

enum { FIRST_BUCKETS = 256 };
#define FIRST_ID UINT64_C(1099173171048747008) /* real ids are snowflakes of this size: more than a double holds */

/** A change on its way to the readers. All wait equally long, so a queue keeps them in order. */
struct change {
    struct change *next;
    struct item *item;
    struct record *record; /* NULL: removed */
    int64_t due;
};

static int64_t wall_ms(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000;
}

static void record_release(struct record *r)
{
    if (!r || --r->refs > 0)
        return;
    free(r->content);
    free(r->app_name);
    free(r->tags);
    free(r->desc);
    free(r->use);
    free(r->effect);
    free(r->schema);
    free(r->user);
    free(r);
}

bool store_init(struct store *s, struct timers *timers, double lag_seconds, void (*changed)(void *arg, struct item *item),
                void *arg)
{
    *s =
        (struct store){.timers = timers, .changed = changed, .arg = arg, .next_id = FIRST_ID, .lag = (int64_t)(lag_seconds * 1000)};
    s->buckets = calloc(FIRST_BUCKETS, sizeof *s->buckets);
    s->bucket_count = s->buckets ? FIRST_BUCKETS : 0;
    return s->buckets != NULL;
}

void store_free(struct store *s)
{
    timer_clear(s->timers, &s->timer);
    for (struct change *c; (c = s->pending);) {
        s->pending = c->next;
        record_release(c->record);
        free(c);
    }
    for (size_t i = 0; i < s->bucket_count; i++)
        for (struct item *item; (item = s->buckets[i]);) {
            s->buckets[i] = item->chain;
            record_release(item->record);
            record_release(item->visible);
            free(item);
        }
    free(s->buckets);
    *s = (struct store){0};
}

static uint32_t hash_text(uint32_t h, const char *text)
{
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 16777619u;
    return (h ^ 0xff) * 16777619u; /* the border between two texts */
}

static uint32_t hash_key(const char *data_id, const char *group, const char *tenant)
{
    return hash_text(hash_text(hash_text(2166136261u, data_id), group), tenant);
}

static struct item *find(struct store *s, uint32_t hash, const char *data_id, const char *group, const char *tenant)
{
    for (struct item *i = s->buckets[hash & (s->bucket_count - 1)]; i; i = i->chain)
        if (i->hash == hash && strcmp(i->data_id, data_id) == 0 && strcmp(i->group, group) == 0 && strcmp(i->tenant, tenant) == 0)
            return i;
    return NULL;
}

struct item *store_find(struct store *s, const char *data_id, const char *group, const char *tenant)
{
    return find(s, hash_key(data_id, group, tenant), data_id, group, tenant);
}

/** Twice the buckets; the old ones do as well if memory is short. */
static void grow(struct store *s)
{
    size_t count = s->bucket_count * 2;
    struct item **buckets = calloc(count, sizeof *buckets);
    if (!buckets)
        return;
    for (size_t i = 0; i < s->bucket_count; i++)
        for (struct item *item; (item = s->buckets[i]);) {
            s->buckets[i] = item->chain;
            item->chain = buckets[item->hash & (count - 1)];
            buckets[item->hash & (count - 1)] = item;
        }
    free(s->buckets);
    s->buckets = buckets;
    s->bucket_count = count;
}

struct item *store_item(struct store *s, const char *data_id, const char *group, const char *tenant)
{
    uint32_t hash = hash_key(data_id, group, tenant);
    struct item *item = find(s, hash, data_id, group, tenant);
    if (item)
        return item;
    size_t n1 = strlen(data_id) + 1, n2 = strlen(group) + 1, n3 = strlen(tenant) + 1;
    item = calloc(1, sizeof *item + n1 + n2 + n3);
    if (!item)
        return NULL;
    memcpy(item->data_id, data_id, n1);
    item->group = memcpy(item->data_id + n1, group, n2);
    item->tenant = memcpy(item->data_id + n1 + n2, tenant, n3);
    item->hash = hash;
    if (s->item_count >= s->bucket_count)
        grow(s);
    item->chain = s->buckets[hash & (s->bucket_count - 1)];
    s->buckets[hash & (s->bucket_count - 1)] = item;
    s->item_count++;
    return item;
}

void store_settle(struct store *s, struct item *item)
{
    if (item->record || item->visible || item->polls || item->listeners || item->pins)
        return;
    struct item **at = &s->buckets[item->hash & (s->bucket_count - 1)];
    while (*at != item)
        at = &(*at)->chain;
    *at = item->chain;
    s->item_count--;
    free(item);
}

const char *item_md5(const struct item *item)
{
    return item->visible ? item->visible->md5 : "";
}

/** Readers see `record` (whose reference it takes) from now on. A change of nothing but the type wakes nobody. */
static void show(struct store *s, struct item *item, struct record *record)
{
    struct record *old = item->visible;
    item->visible = record;
    item->pins++;
    if (strcmp(old ? old->md5 : "", item_md5(item)) != 0)
        s->changed(s->arg, item);
    item->pins--;
    record_release(old);
    store_settle(s, item);
}

static void on_due(void *arg)
{
    struct store *s = arg;
    while (s->pending && s->pending->due <= now_ms()) {
        struct change *c = s->pending;
        s->pending = c->next;
        c->item->pins--;
        show(s, c->item, c->record);
        free(c);
    }
    if (s->pending)
        timer_set(s->timers, &s->timer, s->pending->due - now_ms(), on_due, s);
}

/** Takes the reference. False: out of memory, nothing happened (the reference is released). */
static bool show_later(struct store *s, struct item *item, struct record *record)
{
    if (s->lag <= 0) {
        show(s, item, record);
        return true;
    }
    struct change *c = calloc(1, sizeof *c);
    if (!c) {
        record_release(record);
        return false;
    }
    *c = (struct change){.item = item, .record = record, .due = now_ms() + s->lag};
    item->pins++;
    if (s->pending)
        s->pending_last->next = c;
    else
        s->pending = c;
    s->pending_last = c;
    if (s->pending == c)
        timer_set(s->timers, &s->timer, s->lag, on_due, s);
    return true;
}

static bool known_type(const char *type)
{
    static const char *const types[] = {"properties", "xml", "json", "text", "html", "yaml", "toml", "unset"};
    for (size_t i = 0; type && i < sizeof types / sizeof *types; i++)
        if (strcmp(type, types[i]) == 0)
            return true;
    return false;
}

/** Copies a text that may be absent. */
static bool copy(char **to, const char *from)
{
    return !from || (*to = strdup(from));
}

static struct record *record_new(struct store *s, const struct publish *p, const struct record *old)
{
    struct record *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->refs = 1;
    r->len = p->len;
    r->content = malloc(p->len + 1);
    if (!r->content || !md5_hex(p->content, p->len, r->md5))
        goto fail;
    memcpy(r->content, p->content, p->len + 1);
    strcpy(r->type, known_type(p->type) ? p->type : "text");
    r->modified = wall_ms();
    r->created = old ? old->created : r->modified;
    r->id = old ? old->id : s->next_id++;
    if (copy(&r->app_name, p->app_name ? p->app_name
                           : old       ? old->app_name
                                       : "") &&
        copy(&r->tags, p->tags ? p->tags
                       : old   ? old->tags
                               : NULL) &&
        copy(&r->desc, p->desc) && copy(&r->use, p->use) && copy(&r->effect, p->effect) && copy(&r->schema, p->schema) &&
        copy(&r->user, p->user))
        return r;
fail:
    record_release(r);
    return NULL;
}

static void link_item(struct store *s, struct item *item)
{
    item->before = s->last;
    item->after = NULL;
    if (s->last)
        s->last->after = item;
    else
        s->first = item;
    s->last = item;
    s->record_count++;
}

static void unlink_item(struct store *s, struct item *item)
{
    if (item->before)
        item->before->after = item->after;
    else
        s->first = item->after;
    if (item->after)
        item->after->before = item->before;
    else
        s->last = item->before;
    s->record_count--;
}

enum store_status store_publish(struct store *s, const struct publish *p)
{
    struct item *item = store_item(s, p->data_id, p->group, p->tenant);
    if (!item)
        return STORE_NO_MEMORY;
    struct record *old = item->record;
    /* On an absent configuration casMd5 inserts, whatever it says. */
    if (old && !text_blank(p->cas_md5) && strcmp(old->md5, p->cas_md5) != 0)
        return STORE_CONFLICT;
    struct record *record = record_new(s, p, old);
    if (!record) {
        store_settle(s, item);
        return STORE_NO_MEMORY;
    }
    if (!old)
        link_item(s, item);
    item->record = record;
    record_release(old);
    record->refs++;
    return show_later(s, item, record) ? STORE_DONE : STORE_NO_MEMORY;
}

enum store_status store_remove(struct store *s, const char *data_id, const char *group, const char *tenant)
{
    struct item *item = store_find(s, data_id, group, tenant);
    if (!item || !item->record)
        return STORE_DONE;
    unlink_item(s, item);
    record_release(item->record);
    item->record = NULL;
    return show_later(s, item, NULL) ? STORE_DONE : STORE_NO_MEMORY;
}

/** SQL's LIKE with `*` for `%`. */
static bool like(const char *pattern, const char *text)
{
    const char *star = NULL, *retry = NULL;
    while (*text) {
        if (*pattern == '*' || *pattern == '%') {
            star = ++pattern;
            retry = text;
        } else if (*pattern && (*pattern == '_' || *pattern == *text)) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star;
            text = ++retry;
        } else {
            return false;
        }
    }
    while (*pattern == '*' || *pattern == '%')
        pattern++;
    return !*pattern;
}

/** Does one word of the comma list `words` stand in the comma list `list`? */
static bool one_of(const char *words, const char *list)
{
    for (const char *w = words; *w;) {
        size_t n = strcspn(w, ",");
        for (const char *l = list; *l;) {
            size_t m = strcspn(l, ",");
            if (n > 0 && n == m && memcmp(w, l, n) == 0)
                return true;
            l += m + (l[m] == ',');
        }
        w += n + (w[n] == ',');
    }
    return false;
}

static bool text_matches(bool pattern, const char *wanted, const char *text)
{
    return text_blank(wanted) || (pattern ? like(wanted, text) : strcmp(wanted, text) == 0);
}

bool store_matches(const struct query *q, const struct item *item)
{
    const struct record *r = item->record;
    return strcmp(q->tenant, item->tenant) == 0 && text_matches(q->like, q->data_id, item->data_id) &&
           text_matches(q->like, q->group, item->group) && text_matches(false, q->app_name, r->app_name) &&
           (text_blank(q->types) || one_of(q->types, r->type)) && (text_blank(q->tags) || one_of(q->tags, r->tags ? r->tags : ""));
}
