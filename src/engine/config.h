/** config: reads, publishes, removals, lists: what the host asks once and gets answered once. */
#ifndef LUNACOS_CONFIG_H
#define LUNACOS_CONFIG_H

#include "engine/engine.h"
#include "engine/protocol.h"

struct nacos_client;
struct nacos_watch;
struct read;

struct config {
    struct read *reads; /* under way, that others may join; by name */
    int reading;        /* all under way */
};

/** A read of the item for this watch, which gets the answer by watch_read(). `anew`: not one that began before now. NULL: out of
 * memory. */
struct read *config_read_for(struct nacos_watch *w, bool anew);
/** The watch does not want the answer any more. */
void config_read_leave(struct read *r);
/** The value in a failover or snapshot folder, or NULL. The caller has the reference. */
struct value *config_file(struct nacos_client *c, const char *base, const struct key *k);
/** True for errors after which nothing is known about the item. */
bool config_unknown(const nacos_error *err);

#endif
