/** ids: which identifiers a 2.3+ server takes. */
#ifndef LUNACOS_EMBEDDED_IDS_H
#define LUNACOS_EMBEDDED_IDS_H

#include <stdbool.h>
#include <stddef.h>

/** The text of the refusal (static), or NULL when the three are legal. Absent and blank ones are: other checks see to them. */
const char *ids_refusal(const char *tenant, size_t tenant_len, const char *data_id, size_t data_id_len, const char *group,
                        size_t group_len);

#endif
