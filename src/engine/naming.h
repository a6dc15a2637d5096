/** naming: what the host asks about services once and gets answered once; and the lists of instances on disk. */
#ifndef LUNACOS_NAMING_H
#define LUNACOS_NAMING_H

#include "engine/hosts.h"
#include "engine/protocol.h"

struct nacos_client;

/** The key of a service in this client: defaults filled in. Points to what `s` points to. */
struct key naming_key(const struct nacos_client *c, const nacos_service *s);

/* Files are named `service[@@clusters]+group+namespace`, the first part percent-encoded, in `naming` below the folders of the
 * configurations. The caller has the reference; NULL: there is none. */
struct hosts *naming_failover(struct nacos_client *c, const struct key *service, const char *clusters);
struct hosts *naming_snapshot(struct nacos_client *c, const struct key *service, const char *clusters);
void naming_save(struct nacos_client *c, const struct key *service, const char *clusters, const struct hosts *h);

#endif
