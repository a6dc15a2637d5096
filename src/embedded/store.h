/** store: the configurations, in memory.
 *
 *  An item is one (dataId, group, tenant), whether a configuration exists there or pollers merely wait for one. As in a real server
 * it has two sides: the `record` that a publish writes (the database: search, casMd5 and the console's view read it) and the
 * `visible` record that readers and pollers get (the dump). The second follows the first after `lag` seconds, in order. */
#ifndef LUNACOS_EMBEDDED_STORE_H
#define LUNACOS_EMBEDDED_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/digest.h"
#include "engine/timer.h"

struct poll_ref;
struct listener;

/** One published state; never changed once it is stored, so several holders share it. */
struct record {
    unsigned refs;
    uint64_t id; /* of the item's first publish */
    char *content;
    size_t len;
    char md5[MD5_HEX];
    char type[16];
    int64_t created, modified; /* unix ms */
    char *app_name, *tags;     /* kept by a publish that does not name them */
    char *desc, *use, *effect, *schema, *user;
};

struct item {
    struct item *chain;          /* in its hash bucket */
    struct item *before, *after; /* in order of first publish; only while there is a record */
    struct record *record, *visible;
    struct poll_ref *polls;     /* parked or just read lines that name this item */
    struct listener *listeners; /* connections that want to hear of it */
    unsigned pins;              /* pending changes and callers that need it to stay */
    uint32_t hash;
    uint64_t seen; /* poll's mark against one key twice in one request */
    struct poll_ref *seen_as;
    const char *group, *tenant; /* into data_id's memory */
    char data_id[];
};

struct change;

struct store {
    struct item **buckets;
    size_t bucket_count, item_count;
    struct item *first, *last; /* items with a record */
    size_t record_count;
    uint64_t next_id;
    int64_t lag; /* ms */
    struct change *pending, *pending_last;
    struct timers *timers;
    struct timer timer;
    void (*changed)(void *arg, struct item *item); /* the visible md5 is another one now */
    void *arg;
};

bool store_init(struct store *s, struct timers *timers, double lag_seconds, void (*changed)(void *arg, struct item *item),
                void *arg);
void store_free(struct store *s);

/** The item or NULL. */
struct item *store_find(struct store *s, const char *data_id, const char *group, const char *tenant);
/** Finds or makes it; NULL: out of memory. A made item with nothing on it must go through store_settle() sooner or later. */
struct item *store_item(struct store *s, const char *data_id, const char *group, const char *tenant);
/** Frees the item if nothing needs it any more. */
void store_settle(struct store *s, struct item *item);
/** md5 that readers see, "" while there is none. */
const char *item_md5(const struct item *item);

struct publish {
    const char *data_id, *group, *tenant, *content;
    size_t len;
    const char *type;    /* one of the known types; anything else is stored as text */
    const char *cas_md5; /* NULL or blank: unconditional */
    const char *app_name, *tags, *desc, *use, *effect, *schema, *user;
};

enum store_status { STORE_DONE, STORE_CONFLICT, STORE_NO_MEMORY };

enum store_status store_publish(struct store *s, const struct publish *p);
/** Removing what is absent is fine. */
enum store_status store_remove(struct store *s, const char *data_id, const char *group, const char *tenant);

struct query {
    bool like;                            /* data_id, group: `*` matches anything, as in SQL `_` one character */
    const char *data_id, *group, *tenant; /* blank data_id, group: any. The tenant must be equal */
    const char *app_name, *tags, *types;  /* blank: any; else lists with commas, one hit is enough */
};

bool store_matches(const struct query *q, const struct item *item);

#endif
