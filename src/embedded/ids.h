/** ids: which identifiers a 2.3+ server takes. */
#ifndef LUNACOS_EMBEDDED_IDS_H
#define LUNACOS_EMBEDDED_IDS_H

#include <stdbool.h>
#include <stddef.h>

/** The text of the refusal (static), or NULL when the three are legal. Absent and blank ones are: other checks see to them. */
const char *ids_refusal(const char *tenant, size_t tenant_len, const char *data_id, size_t data_id_len, const char *group,
                        size_t group_len);

enum naming_id { NAMING_NAMESPACE, NAMING_GROUP, NAMING_SERVICE, NAMING_CLUSTER, NAMING_IP, NAMING_PORT, NAMING_METADATA };

/** The same for one name of the naming half; absent and blank ones are legal. A grouped service name must be split before. */
const char *ids_naming_refusal(enum naming_id which, const char *text, size_t len);

#endif
