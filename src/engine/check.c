#include <arpa/inet.h>
#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/buf.h"
#include "engine/hosts.h"
#include "engine/protocol.h"

#define SERVICE_MAX 512
#define IP_MAX 128
#define CLUSTER_MAX 64
#define METADATA_MAX 6000 /* bytes of its encoded form: it travels in the query, of which a server reads about 7 KB */

/** White space that servers refuse or trim: ASCII's, and the no-break and ideographic spaces, which nobody sees. */
static bool has_space(const char *text)
{
    for (const char *p = text; *p; p++)
        if (isspace((unsigned char)*p) || iscntrl((unsigned char)*p))
            return true;
    return strstr(text, "\xC2\xA0") || strstr(text, "\xE3\x80\x80");
}

static bool is_utf8(const char *text)
{
    json_t *j = json_string(text); /* it knows */
    json_decref(j);
    return j != NULL;
}

const char *nacos_check_service(const char *name)
{
    if (!*name)
        return "is empty";
    if (strlen(name) > SERVICE_MAX)
        return "is longer than 512 bytes";
    if (strstr(name, "@@") || *name == '@')
        return "may not begin with '@' or hold '@@' (the group is an argument of its own)";
    if (has_space(name))
        return "may hold no white space and no control characters";
    return is_utf8(name) ? NULL : "is not UTF-8";
}

static const char *check_cluster(const char *cluster, size_t n)
{
    if (n == 0)
        return "is empty";
    if (n > CLUSTER_MAX)
        return "is longer than 64 bytes";
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)cluster[i]) && cluster[i] != '-')
            return "may hold only letters, digits and '-'";
    return NULL;
}

const char *nacos_check_clusters(const char *clusters)
{
    for (const char *p = clusters; *p;) {
        size_t n = strcspn(p, ",");
        const char *why = check_cluster(p, n);
        if (why)
            return why;
        p += n;
        if (*p == ',' && !*++p)
            return "ends with a comma";
    }
    return NULL;
}

/** Labels of letters, digits, '-' and '_', the last one not a number: "1.2.3" and "256.1.1.1" are mistaken addresses. */
static bool is_host_name(const char *name)
{
    bool number = true;
    for (const char *p = name;; p++) {
        size_t n = strcspn(p, ".");
        if (n == 0 || *p == '-' || p[n - 1] == '-')
            return false;
        for (size_t i = 0; i < n; i++)
            if (!isalnum((unsigned char)p[i]) && p[i] != '-' && p[i] != '_')
                return false;
        number = strspn(p, "0123456789") == n;
        p += n;
        if (!*p)
            return !number;
    }
}

const char *check_ip(const char *ip)
{
    struct in6_addr address;
    if (!ip || !*ip)
        return "is empty";
    if (strlen(ip) > IP_MAX)
        return "is longer than 128 bytes";
    if (inet_pton(AF_INET, ip, &address) == 1 || inet_pton(AF_INET6, ip, &address) == 1 || is_host_name(ip))
        return NULL;
    return "is neither an address nor a host name";
}

static const char *check_metadata(const nacos_instance *i)
{
    for (size_t k = 0; k < i->metadata_count; k++) {
        const nacos_pair *p = &i->metadata[k];
        if (!is_utf8(p->name) || !is_utf8(p->value))
            return "holds text that is not UTF-8";
    }
    json_t *j = pairs_json(i->metadata, i->metadata_count);
    char *text = json_dumps(j, JSON_COMPACT);
    struct buf b;
    buf_init(&b, METADATA_MAX);
    bool fits = text && buf_append_encoded(&b, text, strlen(text));
    buf_free(&b);
    free(text);
    json_decref(j);
    return fits ? NULL : "takes more than 6000 bytes in the encoded form; servers read no longer queries";
}

const char *nacos_check_instance(const nacos_instance *i, const char **field)
{
    const char *ignored = NULL, **name = field ? field : &ignored, *why;
    *name = "ip";
    if ((why = check_ip(i->ip)))
        return why;
    *name = "port";
    if (i->port < 1 || i->port > 65535)
        return "is not between 1 and 65535";
    *name = "cluster";
    if (i->cluster && (why = check_cluster(i->cluster, strlen(i->cluster))))
        return why;
    *name = "weight";
    if (!isfinite(i->weight) || i->weight < 0 || i->weight > 10000)
        return "is not between 0 and 10000";
    *name = "metadata";
    return check_metadata(i);
}
