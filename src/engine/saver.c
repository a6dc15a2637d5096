#include "engine/saver.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "engine/client.h"
#include "engine/snapshot.h"

#define DELAY_MS 50      /* so that callbacks come first */
#define PATIENCE_MS 1000 /* most that reads under way may put it off */
#define SHUT_MS 60
#define SNAPS_MAX 20000
#define NAME_MAX_BYTES 2600 /* a service of 512 bytes, percent-encoded, and its clusters are the longest */

struct snap {
    UT_hash_handle hh;
    struct snap *dirty_next;
    struct value *pending; /* to be written; NULL: clean */
    char md5[33];          /* of the file, as far as we wrote it */
    struct key key;        /* points into the name */
    char name[];           /* as name_of() makes it */
};

bool saver_wanted(const struct nacos_client *c, int flags)
{
    return flags & NACOS_USE_SNAPSHOT || (flags == 0 && !c->no_snapshot);
}

void saver_init(struct saver *s, struct nacos_client *c, const char *folder)
{
    s->client = c;
    s->folder = folder;
    s->dirty_end = &s->dirty;
}

static void forget_clean(struct saver *s)
{
    struct snap *p, *tmp;
    HASH_ITER (hh, s->snaps, p, tmp) {
        if (!p->pending) {
            HASH_DEL(s->snaps, p);
            free(p);
        }
    }
}

/** dataId NUL group NUL namespace NUL. Returns its length; 0: longer than `size`. */
static size_t name_of(char *out, size_t size, const struct key *k)
{
    size_t n = key_name(out, size, k), ns = strlen(k->ns) + 1;
    if (!n || n + ns > size)
        return 0;
    memcpy(out + n, k->ns, ns);
    return n + ns;
}

static struct snap *find(struct saver *s, const struct key *k, bool make)
{
    char name[NAME_MAX_BYTES];
    size_t n = name_of(name, sizeof name, k);
    struct snap *p = NULL;
    if (n)
        HASH_FIND(hh, s->snaps, name, n, p);
    if (p || !make || !n)
        return p;
    if (HASH_COUNT(s->snaps) >= SNAPS_MAX)
        forget_clean(s);
    p = calloc(1, sizeof *p + n);
    if (p) {
        memcpy(p->name, name, n);
        p->key.data_id = p->name;
        p->key.group = p->name + strlen(p->name) + 1;
        p->key.ns = p->key.group + strlen(p->key.group) + 1;
        HASH_ADD_KEYPTR(hh, s->snaps, p->name, n, p);
    }
    return p;
}

static const char *base_of(const struct saver *s, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s%s", s->client->snapshot_base, s->folder);
    return out;
}

static void write_one(struct saver *s)
{
    struct nacos_client *c = s->client;
    struct snap *p = s->dirty;
    char base[PATH_MAX];
    s->dirty = p->dirty_next;
    if (!s->dirty)
        s->dirty_end = &s->dirty;
    struct value *v = p->pending;
    p->pending = NULL;
    bool ok = snapshot_write(base_of(s, base), p->key.data_id, p->key.group, p->key.ns, v->data, v->len, c->log);
    snprintf(p->md5, sizeof p->md5, "%s", ok ? v->md5 : "");
    value_unref(v);
}

static void slice(void *arg)
{
    struct saver *s = arg;
    bool busy = s->client->config.reading > 0 && now_ms() - s->dirty_since < PATIENCE_MS;
    if (!busy && s->dirty)
        write_one(s); /* one file per turn of the loop: more would hold up what arrives meanwhile */
    if (s->dirty)
        timer_set(&s->client->engine->timers, &s->timer, busy ? DELAY_MS : 1, slice, s);
}

void saver_note(struct saver *s, const struct key *k, struct value *v)
{
    struct snap *p = find(s, k, true);
    if (!p || strcmp(p->pending ? p->pending->md5 : p->md5, v->md5) == 0)
        return;
    if (p->pending) {
        value_unref(p->pending);
    } else {
        if (!s->dirty)
            s->dirty_since = now_ms();
        p->dirty_next = NULL;
        *s->dirty_end = p;
        s->dirty_end = &p->dirty_next;
        if (!s->timer.slot)
            timer_set(&s->client->engine->timers, &s->timer, DELAY_MS, slice, s);
    }
    p->pending = value_ref(v);
}

void saver_remove(struct saver *s, const struct key *k)
{
    struct nacos_client *c = s->client;
    char base[PATH_MAX];
    struct snap *p = find(s, k, false);
    if (p && p->pending) {
        struct snap **at = &s->dirty;
        while (*at != p)
            at = &(*at)->dirty_next;
        *at = p->dirty_next;
        if (s->dirty_end == &p->dirty_next)
            s->dirty_end = at;
        value_unref(p->pending);
        p->pending = NULL;
    }
    if (p)
        p->md5[0] = 0;
    snapshot_remove(base_of(s, base), k->data_id, k->group, k->ns, c->log);
}

struct value *saver_read(struct saver *s, const struct key *k)
{
    struct snap *p = find(s, k, false);
    char base[PATH_MAX];
    return p && p->pending ? value_ref(p->pending) : config_file(s->client, base_of(s, base), k);
}

void saver_forget(struct saver *s)
{
    struct snap *p, *tmp;
    HASH_ITER (hh, s->snaps, p, tmp) {
        p->md5[0] = 0;
    }
}

void saver_shut(struct saver *s)
{
    timer_clear(&s->client->engine->timers, &s->timer);
    for (int64_t end = now_ms() + SHUT_MS; s->dirty && now_ms() < end;)
        write_one(s);
    struct snap *p, *tmp;
    HASH_ITER (hh, s->snaps, p, tmp) {
        HASH_DEL(s->snaps, p);
        value_unref(p->pending);
        free(p);
    }
}
