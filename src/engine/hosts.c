#include "engine/hosts.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/protocol.h"

/** Bytes that live elsewhere; p NULL: none. */
struct text {
    const char *p;
    size_t len;
};

/** What a record begins with; then come ip, cluster and the metadata's names and values, each with its NUL. No padding: records are
 * compared as bytes. */
struct facts {
    double weight;
    uint32_t metadata_count;
    uint16_t port;
    uint8_t flags, zero;
};
_Static_assert(sizeof(struct facts) == 16, "facts have padding");

enum { HEALTHY = 1, ENABLED = 2, EPHEMERAL = 4 };

/* ---- drafts: entries in the order in which they come ---- */

struct entry {
    uint64_t key;
    struct text ip, cluster, id; /* id.p NULL: none */
    struct facts facts;
    size_t first_pair;
};

struct pair {
    struct text name, value;
};

/** The strings live elsewhere: in the text that is read, or in other lists. */
struct draft {
    struct entry *entries;
    size_t count, cap;
    struct pair *pairs;
    size_t pair_count, pair_cap;
    nacos_hosts view; /* all but the list */
    struct text name, group, clusters;
    bool failed; /* out of memory */
};

static void draft_free(struct draft *d)
{
    free(d->entries);
    free(d->pairs);
}

/** `items`, or a copy that has room for one more of `size`. NULL: out of memory, and nothing has changed. */
static void *grow(void *items, size_t count, size_t *cap, size_t size)
{
    if (count < *cap)
        return items;
    size_t more = *cap ? *cap * 2 : 16;
    void *bigger = realloc(items, more * size);
    if (bigger)
        *cap = more;
    return bigger;
}

/** IPv4 address and port as one number, or NOT_IPV4 (larger than all of them) for everything else, leading zeros included. */
#define NOT_IPV4 UINT64_MAX
static uint64_t key_of(struct text ip, int port)
{
    const char *p = ip.p, *end = ip.p + ip.len;
    uint64_t address = 0;

    for (int part = 0; part < 4; part++) {
        unsigned int n = 0;
        const char *start = p;
        while (p < end && *p >= '0' && *p <= '9' && p - start < 3)
            n = n * 10 + (unsigned int)(*p++ - '0');
        if (p == start || n > 255 || (*start == '0' && p - start > 1))
            return NOT_IPV4;
        if (part < 3 && (p == end || *p++ != '.'))
            return NOT_IPV4;
        address = address << 8 | n;
    }
    return p == end ? address << 16 | (uint16_t)port : NOT_IPV4;
}

static struct text text_of(const char *s)
{
    return (struct text){s, s ? strlen(s) : 0};
}

/** As strcmp(). */
static int compare_text(const struct text *a, const struct text *b)
{
    int c = memcmp(a->p, b->p, a->len < b->len ? a->len : b->len);
    return c ? c : (a->len > b->len) - (a->len < b->len);
}

/** By name; pairs of the same name keep their order. */
static int compare_pairs(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    return compare_text(&x->name, &y->name);
}

static void sort_pairs(struct pair *p, size_t n)
{
    if (n > 32) { /* glibc's qsort() is stable unless memory is short; then of a name that comes twice any may win */
        qsort(p, n, sizeof(*p), compare_pairs);
        return;
    }
    for (size_t i = 1; i < n; i++) {
        struct pair x = p[i];
        size_t k = i;
        for (; k > 0 && compare_text(&p[k - 1].name, &x.name) > 0; k--)
            p[k] = p[k - 1];
        p[k] = x;
    }
}

/** The pairs behind `first` become the metadata of the entry: sorted, the last of each name. */
static void draft_metadata(struct draft *d, struct entry *e, size_t first)
{
    size_t n = d->pair_count - first, kept = 0;

    if (n > 1) {
        struct pair *p = d->pairs + first;
        sort_pairs(p, n);
        for (size_t i = 0; i < n; i++)
            if (i + 1 == n || compare_text(&p[i].name, &p[i + 1].name) != 0)
                p[kept++] = p[i];
        d->pair_count = first + kept;
    } else {
        kept = n;
    }
    e->first_pair = first;
    e->facts.metadata_count = (uint32_t)kept;
}

static void draft_entry(struct draft *d, const struct entry *e)
{
    struct entry *entries = grow(d->entries, d->count, &d->cap, sizeof(*e));

    if (!entries) {
        d->failed = true;
        return;
    }
    d->entries = entries;
    entries[d->count] = *e;
    entries[d->count++].key = key_of(e->ip, e->facts.port);
}

static bool draft_pair(struct draft *d, struct text name, struct text value)
{
    struct pair *pairs = grow(d->pairs, d->pair_count, &d->pair_cap, sizeof(*pairs));

    if (!pairs) {
        d->failed = true;
        return false;
    }
    d->pairs = pairs;
    pairs[d->pair_count++] = (struct pair){name, value};
    return true;
}

static void draft_instance(struct draft *d, const nacos_instance *i)
{
    struct entry e = {.ip = text_of(i->ip),
                      .cluster = text_of(i->cluster && *i->cluster ? i->cluster : "DEFAULT"),
                      .id = text_of(i->id),
                      .facts = {.weight = i->weight, .port = (uint16_t)i->port}};
    size_t first = d->pair_count;

    e.facts.flags = (uint8_t)((i->healthy ? HEALTHY : 0) | (i->enabled ? ENABLED : 0) | (i->ephemeral ? EPHEMERAL : 0));
    for (size_t k = 0; k < i->metadata_count; k++)
        draft_pair(d, text_of(i->metadata[k].name), text_of(i->metadata[k].value));
    draft_metadata(d, &e, first);
    draft_entry(d, &e);
}

/* ---- from a draft to a list ---- */

struct place {
    uint64_t key;
    const struct entry *entry;
};

static int compare_identity(const struct place *a, const struct place *b)
{
    if (a->key != b->key)
        return a->key < b->key ? -1 : 1;
    if (a->key == NOT_IPV4) {
        int c = compare_text(&a->entry->ip, &b->entry->ip);
        if (c == 0)
            c = a->entry->facts.port - b->entry->facts.port;
        if (c != 0)
            return c;
    }
    return compare_text(&a->entry->cluster, &b->entry->cluster);
}

/** The first to come is the first of its identity. */
static int compare_places(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    int c = compare_identity(x, y);
    return c ? c : (x->entry > y->entry) - (x->entry < y->entry);
}

/** The entries in order, without those that come again; view.count and view.skipped say so. NULL: out of memory. */
static struct place *sorted(struct draft *d)
{
    struct place *places = malloc((d->count ? d->count : 1) * sizeof(*places));
    bool in_order = true;
    size_t kept = 0;

    if (!places)
        return NULL;
    for (size_t i = 0; i < d->count; i++) {
        places[i] = (struct place){d->entries[i].key, &d->entries[i]};
        in_order = in_order && (i == 0 || compare_identity(&places[i - 1], &places[i]) < 0);
    }
    if (!in_order)
        qsort(places, d->count, sizeof(*places), compare_places);
    for (size_t i = 0; i < d->count; i++)
        if (kept == 0 || compare_identity(&places[kept - 1], &places[i]) != 0)
            places[kept++] = places[i];
    d->view.skipped += d->count - kept;
    d->view.count = kept;
    return places;
}

static const char *put_text(char **o, const struct text *t)
{
    char *start = *o;

    if (!t->p)
        return NULL;
    memcpy(start, t->p, t->len);
    start[t->len] = '\0';
    *o += t->len + 1;
    return start;
}

/** Makes the list and ends the draft. */
static struct hosts *build(struct draft *d)
{
    struct place *places = d->failed ? NULL : sorted(d);
    size_t n = d->view.count, records = 0, pairs = 0;
    size_t rest = d->name.len + d->group.len + d->clusters.len + 3;
    struct hosts *h = NULL;

    for (size_t i = 0; places && i < n; i++) {
        const struct entry *e = places[i].entry;
        records += sizeof(e->facts) + e->ip.len + e->cluster.len + 2;
        for (size_t k = 0; k < e->facts.metadata_count; k++)
            records += d->pairs[e->first_pair + k].name.len + d->pairs[e->first_pair + k].value.len + 2;
        pairs += e->facts.metadata_count;
        rest += e->id.p ? e->id.len + 1 : 0;
    }
    if (places) /* keys, instances, pairs, records, all other text */
        h = malloc(sizeof(*h) + n * (sizeof(uint64_t) + sizeof(nacos_instance)) + pairs * sizeof(nacos_pair) + records + rest);
    if (h) {
        uint64_t *key = (uint64_t *)(h + 1);
        nacos_instance *instance = (nacos_instance *)(key + n);
        nacos_pair *pair = (nacos_pair *)(instance + n);
        char *record = (char *)(pair + pairs), *text = record + records;

        atomic_init(&h->refs, 1);
        h->view = d->view;
        h->view.list = instance;
        h->keys = key;
        h->records = record;
        h->records_len = records;
        h->name = put_text(&text, &d->name);
        h->group = put_text(&text, &d->group);
        h->clusters = put_text(&text, &d->clusters);
        for (size_t i = 0; i < n; i++, instance++) {
            const struct entry *e = places[i].entry;
            *key++ = e->key;
            memcpy(record, &e->facts, sizeof(e->facts));
            record += sizeof(e->facts);
            *instance = (nacos_instance){.ip = put_text(&record, &e->ip),
                                         .port = e->facts.port,
                                         .cluster = put_text(&record, &e->cluster),
                                         .weight = e->facts.weight,
                                         .healthy = e->facts.flags & HEALTHY,
                                         .enabled = e->facts.flags & ENABLED,
                                         .ephemeral = e->facts.flags & EPHEMERAL,
                                         .metadata = pair,
                                         .metadata_count = e->facts.metadata_count,
                                         .id = put_text(&text, &e->id)};
            for (size_t k = 0; k < e->facts.metadata_count; k++, pair++) {
                pair->name = put_text(&record, &d->pairs[e->first_pair + k].name);
                pair->value = put_text(&record, &d->pairs[e->first_pair + k].value);
            }
        }
    }
    free(places);
    draft_free(d);
    return h;
}

/* ---- reading ---- */

/** Neither empty nor with characters that would break a line or a column of output. */
static bool is_word(const struct text *t)
{
    for (size_t i = 0; i < t->len; i++)
        if ((unsigned char)t->p[i] <= ' ' || t->p[i] == 0x7F)
            return false;
    return t->len > 0;
}

/** The member is there and not null. */
static json_t *member(json_t *object, const char *name)
{
    json_t *v = json_object_get(object, name);
    return json_is_null(v) ? NULL : v;
}

/* Each takes the member, if there is one; false: it is of a wrong kind. */

static bool read_text(json_t *v, struct text *t)
{
    if (v)
        *t = (struct text){json_string_value(v), json_string_length(v)};
    return !v || (json_is_string(v) && !memchr(t->p, 0, t->len));
}

static bool read_flag(json_t *v, bool *flag)
{
    if (v)
        *flag = json_is_true(v);
    return !v || json_is_boolean(v);
}

static bool read_metadata(json_t *v, struct draft *d)
{
    const char *name;
    json_t *value;
    if (v && !json_is_object(v))
        return false;
    json_object_foreach(v, name, value)
    {
        struct text t;
        if (json_is_null(value))
            continue;
        if (!read_text(value, &t) || !draft_pair(d, text_of(name), t))
            return false;
    }
    return true;
}

/** Reads an entry into the draft, or counts it as skipped. */
static void read_entry(json_t *j, struct draft *d)
{
    struct entry e = {.ip = {"", 0}, .cluster = {"DEFAULT", 7}, .facts = {.weight = 1}};
    bool healthy = true, enabled = true, ephemeral = true;
    json_t *port = member(j, "port"), *weight = member(j, "weight"), *health = member(j, "healthy");
    size_t first_pair = d->pair_count;
    bool fine = json_is_object(j) && read_text(member(j, "ip"), &e.ip) && !check_ip(e.ip.p) && json_is_integer(port) &&
                json_integer_value(port) >= 0 && json_integer_value(port) <= 65535 && (!weight || json_is_number(weight)) &&
                read_flag(health ? health : member(j, "valid"), &healthy) && read_flag(member(j, "enabled"), &enabled) &&
                read_flag(member(j, "ephemeral"), &ephemeral) && read_text(member(j, "clusterName"), &e.cluster) &&
                read_text(member(j, "instanceId"), &e.id) && read_metadata(member(j, "metadata"), d);
    if (weight)
        e.facts.weight = json_number_value(weight) + 0.0; /* -0 is 0 */
    if (e.cluster.len == 0)
        e.cluster = text_of("DEFAULT");
    if (!fine || !is_word(&e.cluster) || !(e.facts.weight >= 0) || !isfinite(e.facts.weight)) {
        d->pair_count = first_pair;
        d->view.skipped++;
        return;
    }
    e.facts.port = (uint16_t)json_integer_value(port);
    e.facts.flags = (uint8_t)((healthy ? HEALTHY : 0) | (enabled ? ENABLED : 0) | (ephemeral ? EPHEMERAL : 0));
    draft_metadata(d, &e, first_pair);
    draft_entry(d, &e);
}

/** Takes "group@@name" apart; a name without a group may have it in a member of its own. */
static void read_name(struct draft *d, json_t *j)
{
    struct text name = {NULL, 0}, group = {"", 0};
    json_t *given = member(j, "name");
    if (!read_text(given ? given : member(j, "dom"), &name) || !name.len)
        name.p = NULL;
    if (!read_text(member(j, "groupName"), &group))
        group = text_of("");
    const char *at = name.p ? memmem(name.p, name.len, "@@", 2) : NULL;
    d->name = name;
    d->group = group;
    if (at) {
        d->group = (struct text){name.p, (size_t)(at - name.p)};
        d->name = (struct text){at + 2, name.len - d->group.len - 2};
    }
    if (d->name.len == 0)
        d->name.p = NULL;
}

static int64_t read_number(json_t *v)
{
    return json_is_integer(v) && json_integer_value(v) > 0 ? json_integer_value(v) : 0;
}

bool hosts_dense(const char *json, size_t len)
{
    size_t brackets = 0, commas = 0;
    bool quoted = false;
    for (size_t i = 0; i < len; i++) {
        char c = json[i];
        if (c == '"')
            quoted = !quoted;
        else if (quoted)
            i += c == '\\';
        else if (c == '{' || c == '[')
            brackets++;
        else if (c == ',')
            commas++;
    }
    return brackets > 1024 + len / 16 || commas > 1024 + len / 6;
}

/** How many bytes the UTF-8 character at `p` has; 0: it is none. */
static size_t utf8_len(const unsigned char *p, size_t left)
{
    size_t n = *p < 0x80 ? 1 : *p >= 0xC2 && *p < 0xE0 ? 2 : *p >= 0xE0 && *p < 0xF0 ? 3 : *p >= 0xF0 && *p < 0xF5 ? 4 : 0;
    if (n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xC0) != 0x80)
            return 0;
    bool overlong = (*p == 0xE0 && p[1] < 0xA0) || (*p == 0xF0 && p[1] < 0x90);
    bool beyond = (*p == 0xED && p[1] > 0x9F) || (*p == 0xF4 && p[1] > 0x8F);
    return overlong || beyond ? 0 : n;
}

/** The value of the \uXXXX at `p`; -1: there is none. */
static int escaped_unit(const char *p, size_t left)
{
    char digits[5] = {0}, *end;
    if (left < 6 || p[0] != '\\' || p[1] != 'u')
        return -1;
    memcpy(digits, p + 2, 4);
    long unit = strtol(digits, &end, 16);
    return *end || !isxdigit((unsigned char)digits[0]) ? -1 : (int)unit;
}

/** Replaces, in place, what jansson takes in no string: bytes that are not UTF-8, control characters, NUL and half characters as
 * escapes. Servers pass on what was registered. */
static void mend(char *text, size_t len)
{
    bool quoted = false;
    for (size_t i = 0, n; i < len; i += n) {
        n = utf8_len((unsigned char *)text + i, len - i);
        if (n == 0 || (quoted && (unsigned char)text[i] < ' ')) {
            text[i] = '?';
            n = 1;
        } else if (quoted && text[i] == '\\') {
            int unit = escaped_unit(text + i, len - i), next = escaped_unit(text + i + 6, len - i >= 6 ? len - i - 6 : 0);
            bool pair = unit >= 0xD800 && unit < 0xDC00 && next >= 0xDC00 && next < 0xE000;
            if (unit == 0 || (unit >= 0xD800 && unit < 0xE000 && !pair))
                memcpy(text + i + 2, "fffd", 4);
            n = pair ? 12 : unit >= 0 ? 6 : 2;
        } else if (text[i] == '"') {
            quoted = !quoted;
        }
    }
}

json_t *hosts_load_json(const char *text, size_t len)
{
    if (hosts_dense(text, len))
        return NULL;
    json_t *j = json_loadb(text, len, 0, NULL);
    char *copy = j || !len ? NULL : malloc(len);
    if (copy) {
        memcpy(copy, text, len);
        mend(copy, len);
        j = json_loadb(copy, len, 0, NULL);
        free(copy);
    }
    return j;
}

struct hosts *hosts_of_json(json_t *j)
{
    struct draft d = {.clusters = {"", 0}};
    json_t *hosts = json_object_get(j, "hosts"), *entry;
    struct hosts *h = NULL;
    size_t i;
    if (json_is_array(hosts)) {
        read_name(&d, j);
        if (!read_text(member(j, "clusters"), &d.clusters))
            d.clusters = text_of("");
        d.view.ref_time = read_number(json_object_get(j, "lastRefTime"));
        d.view.cache_ms = read_number(json_object_get(j, "cacheMillis"));
        d.view.protection = json_is_true(json_object_get(j, "reachProtectionThreshold"));
        json_array_foreach(hosts, i, entry)
        {
            read_entry(entry, &d);
        }
        h = build(&d);
    }
    return h;
}

struct hosts *hosts_parse(const char *json, size_t len)
{
    json_t *j = hosts_load_json(json, len);
    struct hosts *h = hosts_of_json(j);
    json_decref(j);
    return h;
}

/* ---- lists from lists ---- */

struct hosts *hosts_of(const nacos_instance *i)
{
    struct draft d = {.group = {"", 0}, .clusters = {"", 0}};

    draft_instance(&d, i);
    return build(&d);
}

struct hosts *hosts_ref(struct hosts *h)
{
    if (h)
        atomic_fetch_add_explicit(&h->refs, 1, memory_order_relaxed);
    return h;
}

void hosts_unref(struct hosts *h)
{
    if (h && atomic_fetch_sub_explicit(&h->refs, 1, memory_order_acq_rel) == 1)
        free(h);
}

/** A draft that says of the service what `h` says. */
static struct draft draft_like(const struct hosts *h)
{
    struct draft d = {.view = h->view, .name = text_of(h->name), .group = text_of(h->group), .clusters = text_of(h->clusters)};
    d.view.list = NULL;
    d.view.count = 0;
    return d;
}

struct hosts *hosts_healthy(struct hosts *h)
{
    struct draft d = draft_like(h);

    for (size_t i = 0; i < h->view.count; i++)
        if (h->view.list[i].healthy)
            draft_instance(&d, &h->view.list[i]);
    if (!d.failed && d.count == h->view.count) { /* as nearly always */
        draft_free(&d);
        return hosts_ref(h);
    }
    return build(&d);
}

static bool names(const char *clusters, const char *cluster)
{
    size_t n = strlen(cluster);
    for (const char *p = clusters; *p;) {
        p += strspn(p, " ,");
        size_t len = strcspn(p, ","), word = len;
        while (word && p[word - 1] == ' ')
            word--;
        if (word == n && memcmp(p, cluster, n) == 0)
            return true;
        p += len;
    }
    return false;
}

struct hosts *hosts_in_clusters(struct hosts *h, const char *clusters)
{
    size_t i = 0;
    while (clusters && *clusters && i < h->view.count && names(clusters, h->view.list[i].cluster))
        i++;
    if (!clusters || !*clusters || i == h->view.count)
        return hosts_ref(h);
    struct draft d = draft_like(h);
    for (i = 0; i < h->view.count; i++)
        if (names(clusters, h->view.list[i].cluster))
            draft_instance(&d, &h->view.list[i]);
    return build(&d);
}

/** Orders instance i of `a` and instance k of `b` by identity. */
static int compare_instances(const struct hosts *a, size_t i, const struct hosts *b, size_t k)
{
    const nacos_instance *x = &a->view.list[i], *y = &b->view.list[k];

    if (a->keys[i] != b->keys[k])
        return a->keys[i] < b->keys[k] ? -1 : 1;
    if (a->keys[i] == NOT_IPV4) {
        int c = strcmp(x->ip, y->ip);
        if (c == 0)
            c = x->port - y->port;
        if (c != 0)
            return c;
    }
    return strcmp(x->cluster, y->cluster);
}

static const char *record_start(const struct hosts *h, size_t i)
{
    return i < h->view.count ? h->view.list[i].ip - sizeof(struct facts) : h->records + h->records_len;
}

static bool same_record(const struct hosts *a, size_t i, const struct hosts *b, size_t k)
{
    const char *x = record_start(a, i), *y = record_start(b, k);
    size_t len = (size_t)(record_start(a, i + 1) - x);
    return len == (size_t)(record_start(b, k + 1) - y) && memcmp(x, y, len) == 0;
}

bool hosts_equal(const struct hosts *a, const struct hosts *b)
{
    if (a == b)
        return true;
    return a && b && a->view.count == b->view.count && a->records_len == b->records_len &&
           memcmp(a->records, b->records, a->records_len) == 0;
}

/** Walks through two lists at once, in order of identity; each step is in one of them or in both. */
struct walk {
    const struct hosts *before, *now; /* NULL: empty */
    size_t i, k;
};

/** The next step: -1: `before` alone has it, 1: `now` alone, 0: both, 2: nothing is left. Its instances are i - 1 and k - 1. */
static int step(struct walk *w)
{
    size_t left_before = w->before ? w->before->view.count - w->i : 0, left_now = w->now ? w->now->view.count - w->k : 0;
    int c;

    if (left_before && left_now)
        c = compare_instances(w->before, w->i, w->now, w->k);
    else if (left_before)
        c = -1;
    else if (left_now)
        c = 1;
    else
        return 2;
    w->i += c <= 0;
    w->k += c >= 0;
    return c < 0 ? -1 : c > 0;
}

size_t hosts_missing(const struct hosts *before, const struct hosts *now)
{
    struct walk w = {.before = before, .now = now};
    size_t n = 0;

    for (int c; (c = step(&w)) != 2;)
        n += c < 0;
    return n;
}

struct hosts *hosts_union(struct hosts *before, struct hosts *now)
{
    struct walk w = {.before = before, .now = now};

    if (hosts_missing(before, now) == 0)
        return hosts_ref(now);
    struct draft d = draft_like(now);
    for (int c; (c = step(&w)) != 2;)
        draft_instance(&d, c < 0 ? &before->view.list[w.i - 1] : &now->view.list[w.k - 1]);
    return build(&d);
}

nacos_change *hosts_diff(const struct hosts *before, const struct hosts *now, size_t *count, bool *failed)
{
    struct walk w = {.before = before, .now = now};
    nacos_change *changes = NULL;
    size_t cap = 0;

    *count = 0;
    *failed = false;
    if (hosts_equal(before, now))
        return NULL;
    for (int c; (c = step(&w)) != 2;) {
        if (c == 0 && same_record(before, w.i - 1, now, w.k - 1))
            continue;
        nacos_change *more = grow(changes, *count, &cap, sizeof(*changes));
        if (!more) {
            free(changes);
            *count = 0;
            *failed = true;
            return NULL;
        }
        changes = more;
        changes[(*count)++] = (nacos_change){.kind = c < 0   ? NACOS_DELETED
                                                     : c > 0 ? NACOS_ADDED
                                                             : NACOS_MODIFIED,
                                             .now = c < 0 ? NULL : &now->view.list[w.k - 1],
                                             .before = c > 0 ? NULL : &before->view.list[w.i - 1]};
    }
    return changes;
}

const nacos_instance *hosts_find(const struct hosts *h, const char *ip, int port, const char *cluster)
{
    size_t low = 0, high = h->view.count;
    uint64_t key = key_of(text_of(ip), port);

    if (!cluster)
        cluster = ""; /* before all others */
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const nacos_instance *x = &h->view.list[mid];
        int c = h->keys[mid] < key ? -1 : h->keys[mid] > key;
        if (c == 0 && key == NOT_IPV4) {
            c = strcmp(x->ip, ip);
            if (c == 0)
                c = x->port - port;
        }
        if (c == 0)
            c = strcmp(x->cluster, cluster);
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    const nacos_instance *x = &h->view.list[low];
    bool found =
        low < h->view.count && x->port == port && strcmp(x->ip, ip) == 0 && (!*cluster || strcmp(x->cluster, cluster) == 0);
    return found ? x : NULL;
}

/* ---- writing ---- */

static json_t *entry_json(const nacos_instance *x)
{
    return json_pack("{s:s, s:i, s:s, s:f, s:b, s:b, s:b, s:s*, s:o}", "ip", x->ip, "port", x->port, "clusterName", x->cluster,
                     "weight", x->weight, "healthy", x->healthy, "enabled", x->enabled, "ephemeral", x->ephemeral, "instanceId",
                     x->id, "metadata", pairs_json(x->metadata, x->metadata_count));
}

char *hosts_json(const struct hosts *h, const char *name, size_t *len)
{
    json_t *list = json_array();
    for (size_t i = 0; i < h->view.count; i++)
        json_array_append_new(list, entry_json(&h->view.list[i]));
    bool whole = json_array_size(list) == h->view.count;
    json_t *j = json_pack("{s:s, s:s, s:I, s:I, s:b, s:o}", "name", name, "clusters", h->clusters, "cacheMillis",
                          (json_int_t)h->view.cache_ms, "lastRefTime", (json_int_t)h->view.ref_time, "reachProtectionThreshold",
                          h->view.protection, "hosts", list);
    char *text = j && whole ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    *len = text ? strlen(text) : 0;
    return text;
}
