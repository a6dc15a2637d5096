/** ids: see ids.h. */
#include "embedded/ids.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "embedded/form.h"

static bool legal(const char *text, size_t len, const char *extra)
{
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!word && (c == '\0' || !strchr(extra, c)))
            return false;
    }
    return true;
}

/** 0 fine, 1 too long, 2 illegal characters. */
static int check(const char *text, size_t len, size_t max, const char *extra)
{
    if (text_blank(text) && (!text || strlen(text) == len))
        return 0;
    return text_units(text, len) > max ? 1 : !legal(text, len, extra) ? 2 : 0;
}

#define TOO_LONG(name, max) "Param '" name "' is illegal, the param length should not exceed " max ".\r\n"
#define ILLEGAL(name) "Param '" name "' is illegal, illegal characters should not appear in the param.\r\n"

const char *ids_refusal(const char *tenant, size_t tenant_len, const char *data_id, size_t data_id_len, const char *group,
                        size_t group_len)
{
    static const char *const texts[][3] = {{NULL, TOO_LONG("namespaceId/tenant", "64"), ILLEGAL("namespaceId/tenant")},
                                           {NULL, TOO_LONG("dataId", "256"), ILLEGAL("dataId")},
                                           {NULL, TOO_LONG("group", "128"), ILLEGAL("group")}};
    const char *why = texts[0][check(tenant, tenant_len, 64, "_-")];
    if (!why)
        why = texts[1][check(data_id, data_id_len, 256, "-_:.")];
    if (!why)
        why = texts[2][check(group, group_len, 128, "-_:.")];
    return why;
}

static bool has_space(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (isspace((unsigned char)text[i]) || text[i] == '\0')
            return true;
    return false;
}

static bool legal_service(const char *text, size_t len)
{
    return !has_space(text, len) && text[0] != '@' && !strstr(text, "@@");
}

static bool legal_port(const char *text, size_t len)
{
    long n = len <= 6 ? strtol(text, NULL, 10) : -1;
    return strspn(text, "0123456789") == len && n >= 0 && n <= 65535;
}

const char *ids_naming_refusal(enum naming_id which, const char *text, size_t len)
{
    if (text_blank(text) && (!text || strlen(text) == len))
        return NULL;
    size_t units = text_units(text, len);
    switch (which) {
    case NAMING_NAMESPACE:
        return units > 64 ? TOO_LONG("namespaceId/tenant", "64") : !legal(text, len, "_-") ? ILLEGAL("namespaceId/tenant") : NULL;
    case NAMING_GROUP:
        return units > 128 ? TOO_LONG("group", "128") : !legal(text, len, "-_:.") ? ILLEGAL("group") : NULL;
    case NAMING_SERVICE:
        return units > 512 ? TOO_LONG("serviceName", "512") : !legal_service(text, len) ? ILLEGAL("serviceName") : NULL;
    case NAMING_CLUSTER:
        return units > 64 ? TOO_LONG("cluster", "64") : !legal(text, len, "-_") ? ILLEGAL("cluster") : NULL;
    case NAMING_IP:
        return units > 128 ? TOO_LONG("ip", "128") : has_space(text, len) ? ILLEGAL("ip") : NULL;
    case NAMING_PORT:
        return legal_port(text, len) ? NULL : "Param 'port' is illegal, the value should be between 0 and 65535.\r\n";
    case NAMING_METADATA:
        return units > 1024 ? TOO_LONG("Metadata", "1024") : NULL;
    }
    return NULL;
}
