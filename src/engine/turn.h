/** turn: registrations and deregistrations of one place, or of one service where a connection publishes a service as a whole, reach
 * the servers one after the other. */
#ifndef LUNACOS_TURN_H
#define LUNACOS_TURN_H

#include <stdbool.h>
#include <uthash.h>

struct turn {
    UT_hash_handle hh;
    struct turn *next; /* waiting */
    const char *name;  /* not owned */
    size_t len;
    bool waits, held;
    void (*go)(void *arg);
    void *arg;
};

/** Who has it; those that wait follow by `next`. NULL: nobody. */
struct turn *turn_holder(struct turn *all, const char *name, size_t len);
/** Calls `go` when it is its turn, perhaps at once. */
void turn_take(struct turn **all, struct turn *t, const char *name, size_t len, void (*go)(void *arg), void *arg);
/** The next one goes. One that still waits leaves; nothing happens when it does neither. */
void turn_end(struct turn **all, struct turn *t);

#endif
