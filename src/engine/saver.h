/** saver: which snapshots are to be written, and when: after the callbacks, only the newest of each, nothing that the file holds
 * already.
 *
 *  It writes from the loop, a few milliseconds at a time, when no read is under way (or has been for too long). A value that waits
 * here is as good as one in its file: saver_read() finds it. */
#ifndef LUNACOS_SAVER_H
#define LUNACOS_SAVER_H

#include <uthash.h>

#include "engine/engine.h"
#include "engine/protocol.h"

struct nacos_client;
struct snap;

struct saver {
    struct nacos_client *client;
    const char *folder; /* below the snapshot folder; "" or "/naming" */
    struct snap *snaps; /* what the files hold, by name */
    struct snap *dirty; /* those to be written, oldest first */
    struct snap **dirty_end;
    int64_t dirty_since;
    struct timer timer;
};

void saver_init(struct saver *s, struct nacos_client *c, const char *folder);
/** May a request with these bits (see nacos_get_config()) fall back to the snapshot, and renew it? */
bool saver_wanted(const struct nacos_client *c, int flags);
/** A server gave this value. */
void saver_note(struct saver *s, const struct key *k, struct value *v);
/** A server said that it does not exist: the file goes at once. */
void saver_remove(struct saver *s, const struct key *k);
/** The last value known from a server, or NULL. The caller has the reference. */
struct value *saver_read(struct saver *s, const struct key *k);
/** The files are others now: nothing is known of them. */
void saver_forget(struct saver *s);
/** Writes what waits, within the time that closing has, and frees everything. */
void saver_shut(struct saver *s);

#endif
