/** ask: one request of the host on its way: the event that will answer it, and what it is about.
 *
 *  Made on the host's thread and posted to the loop, where `run` puts its question; ask_reply() ends it. Rooms that need more put a
 * struct ask first in a struct of their own. All questions of one ask share its time. */
#ifndef LUNACOS_ASK_H
#define LUNACOS_ASK_H

#include "engine/engine.h"
#include "engine/protocol.h"
#include "engine/request.h"

struct ask {
    struct job job;
    struct nacos_client *client;
    struct event *event;
    int64_t timeout_ms, deadline; /* the deadline counts from its arrival on the loop */
    request_word word;            /* what is asked; it gets the ask */
    bool second;                  /* it asks in another way: this server does not offer the first */
    bool lasting;                 /* goes on while the client leaves */
    struct key key;               /* its strings are the ask's */
    void (*forget)(struct ask *); /* frees what the room added; NULL: nothing */
};

extern const nacos_error no_memory;

/** A zeroed ask of `size` bytes. Strings of `k` are copied, NULL becomes "". NULL: out of memory. */
void *ask_new(struct nacos_client *c, size_t size, void (*run)(struct job *), const struct key *k, int timeout_ms);
/** Hands it to the loop. Returns the id of its event. */
uint64_t ask_post(struct ask *a);
/** Gives up one that was not posted. */
void ask_drop(struct ask *a);
/** Puts what a->word says to the servers; `done` gets the ask. */
void ask_put(struct ask *a, request_done done);
/** In whose words: `p`, or once ask_second() was true what 3.x has in place of what it dropped. */
const struct protocol *ask_words(const struct ask *a, const struct protocol *p);
/** True: the servers do not offer what was asked, and it is asked in the other way, once. */
bool ask_second(struct ask *a, const nacos_error *err, request_done done);
/** Answers and ends it. The value may be NULL. */
void ask_reply(struct ask *a, struct value *v, nacos_source source, const nacos_error *err);
/** A request_done: answers with what question_value() finds in the answer. */
void ask_answered(void *arg, const struct question *q, const struct http_response *r, const nacos_error *err);

#endif
