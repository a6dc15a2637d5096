#include "nacos.h"

const char *nacos_check_service(const char *name)
{
    (void)name;
    return NULL;
}

const char *nacos_check_instance(const nacos_instance *i, const char **field)
{
    (void)i;
    (void)field;
    return NULL;
}

const char *nacos_check_clusters(const char *clusters)
{
    (void)clusters;
    return NULL;
}
