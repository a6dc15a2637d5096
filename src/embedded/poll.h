/** poll: long polls: what they listen to, which of it is stale, who waits.
 *
 *  A poll hangs on its items (store.h) by one reference per line, so a change finds its pollers without a look at the others. */
#ifndef LUNACOS_EMBEDDED_POLL_H
#define LUNACOS_EMBEDDED_POLL_H

#include "embedded/store.h"
#include "engine/buf.h"

struct poll;

struct poll_ref {
    struct item *item;
    struct poll *poll;
    struct poll_ref *before, *after; /* the item's other refs */
    bool stale;                      /* the client's md5 is not ours */
};

struct poll {
    struct poll_ref *refs;
    size_t count;
    bool parked;
    struct timer timer;
    struct polls *all; /* set while parked */
};

struct polls {
    struct store *store;
    struct timers *timers;
    size_t parked;
    uint64_t reads;
    /* the poll is over and no longer parked: `item` changed, or NULL: its time is up */
    void (*ended)(void *arg, struct poll *p, const struct item *item);
    void *arg;
};

enum poll_status {
    POLL_READ,
    POLL_INVALID, /* the 400 `invalid probeModify` */
    POLL_BROKEN,  /* the real server answers these malformed lines with 500 */
    POLL_ILLEGAL, /* an identifier that may not be: `why` is the text */
    POLL_NO_MEMORY
};

/** Reads the (once decoded) value of Listening-Configs, which it overwrites. On POLL_READ `p` holds its items until poll_clear().
 */
enum poll_status poll_read(struct polls *all, struct poll *p, char *text, size_t len, const char **why);
/** Appends the answer naming the stale keys, URL-encoded, without the final newline; false: there are none. */
bool poll_stale(const struct poll *p, struct buf *out);
/** The same in the two forms that go into headers. */
void poll_stale_headers(const struct poll *p, struct buf *old_form, struct buf *new_form);
void poll_append_key(struct buf *out, const struct item *item);

void poll_park(struct polls *all, struct poll *p, int64_t hold_ms);
/** Lets go of the items; a parked poll is no longer one. */
void poll_clear(struct polls *all, struct poll *p);
/** For the store: the item's md5 changed, its pollers are answered. */
void polls_changed(struct polls *all, struct item *item);

#endif
