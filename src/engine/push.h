/** push: the UDP port on which servers tell of changes, one per client that follows services.
 *
 *  The sender of a datagram cannot be verified. One from an address at which a server of the list has answered is believed if it
 * tells of a service that is followed and is newer than what is known. One from elsewhere (a server behind a load balancer, or a
 * forgery) only makes us ask the servers ourselves. */
#ifndef LUNACOS_PUSH_H
#define LUNACOS_PUSH_H

#include <stdint.h>

#include "engine/protocol.h"

struct nacos_client;
struct push_socket;

struct push {
    struct nacos_client *client;
    int wanted_port; /* 0: any; -1: no pushes */
    char *wanted_ip; /* NULL: ours towards the server in use */
    bool tried;      /* to open it */
    int port;        /* 0: not open */
    struct push_socket *socket;
    int64_t window; /* start of the second in which they are counted: */
    int strangers, friends;
};

/** Where servers shall push to; port 0: nowhere, or it is not known yet. Opens the port when called first. */
struct push_address push_address(struct push *p);
void push_shut(struct push *p);

#endif
