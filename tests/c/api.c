/** The C API used as nacos.h shows it, without Lua: api SERVER publishes, reads, watches, changes and removes one configuration and
 * prints what it saw, one line each. */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "nacos.h"

static void show(const char *what, const nacos_event *ev)
{
    if (!ev)
        printf("%s: nothing came\n", what);
    else if (ev->error.code != NACOS_OK)
        printf("%s: %s\n", what, nacos_code_name(ev->error.code));
    else
        printf("%s: %.*s\n", what, (int)ev->value.len, ev->value.data ? ev->value.data : "");
}

int main(int argc, char **argv)
{
    nacos_error err;
    nacos_engine *e = nacos_engine_new(&err);
    nacos_options bad = {.server_addresses = "ftp://x", .log_level = NACOS_LOG_OFF};
    nacos_options o = {.server_addresses = argc > 1 ? argv[1] : "", .no_snapshot = true, .log_level = NACOS_LOG_OFF};
    if (!e || nacos_client_new(e, &bad, &err) || err.code != NACOS_INVALID)
        return 1;
    nacos_client *c = nacos_client_new(e, &o, &err);
    if (!c)
        return 1;

    show("absent", nacos_wait(e, nacos_get_config(c, "c.txt", "G", 3000, 0), -1));
    nacos_watch *w = nacos_watch_config(c, "c.txt", "G");
    printf("same watch: %d\n", nacos_watch_config(c, "c.txt", "G") == w);
    const nacos_event *ev = nacos_wait(e, nacos_watch_id(w), 5000);
    printf("known to be absent: %d\n", ev && !ev->value.data && strstr(ev->value.server, argv[1]) != NULL);
    nacos_publish p = {.data_id = "c.txt", .group = "G", .content = "one", .len = 3, .type = "text"};
    show("publish", nacos_wait(e, nacos_publish_config(c, &p, 3000), -1));

    struct pollfd fd = {.fd = nacos_engine_fd(e), .events = POLLIN};
    poll(&fd, 1, 5000);
    ev = nacos_wait(e, 0, 0);
    printf("from the watch: %d\n", ev && ev->id == nacos_watch_id(w) && ev->kind == NACOS_EVENT_CONFIG);
    show("watched", ev);
    printf("nothing else: %d, descriptor %d\n", nacos_wait(e, 0, 0) == NULL, poll(&fd, 1, 0));

    nacos_value v;
    uint64_t version = nacos_peek(w, 0, &v) ? v.version : 0;
    printf("peek: %.*s\n", (int)v.len, v.data);
    printf("unchanged: %d\n", nacos_peek(w, version, &v) && !v.data && v.version == version);

    nacos_unwatch(w);
    show("remove", nacos_wait(e, nacos_remove_config(c, "c.txt", "G", 3000), -1));
    show("deleted", nacos_wait(e, nacos_watch_id(w), 5000));
    nacos_unwatch(w);
    uint64_t id = nacos_timer(e, 1);
    ev = nacos_wait(e, id, 5000);
    printf("timer: %d\n", ev && ev->kind == NACOS_EVENT_TIMER);
    nacos_client_close(c, true);
    nacos_engine_free(e);
    return 0;
}
