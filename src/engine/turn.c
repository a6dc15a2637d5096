#include "engine/turn.h"

struct turn *turn_holder(struct turn *all, const char *name, size_t len)
{
    struct turn *t = NULL;
    HASH_FIND(hh, all, name, len, t);
    return t;
}

static void hold(struct turn **all, struct turn *t)
{
    struct turn *table = *all;
    HASH_ADD_KEYPTR(hh, table, t->name, t->len, t);
    *all = table;
    t->waits = false;
    t->held = true;
}

void turn_take(struct turn **all, struct turn *t, const char *name, size_t len, void (*go)(void *arg), void *arg)
{
    struct turn *first = turn_holder(*all, name, len);
    t->name = name;
    t->len = len;
    t->go = go;
    t->arg = arg;
    t->next = NULL;
    if (!first) {
        hold(all, t);
        go(arg);
        return;
    }
    while (first->next)
        first = first->next;
    first->next = t;
    t->waits = true;
}

void turn_end(struct turn **all, struct turn *t)
{
    struct turn *next = t->next, *table = *all;
    if (t->waits) {
        struct turn *before = turn_holder(*all, t->name, t->len);
        while (before->next != t)
            before = before->next;
        before->next = next;
        t->waits = false;
    } else if (t->held) {
        t->held = false;
        t->next = NULL;
        HASH_DELETE(hh, table, t);
        *all = table;
        if (next) {
            hold(all, next);
            next->go(next->arg);
        }
    }
}
