/*
 * embed - the Lua files that the executable carries; the table is written by embed.cmake at build time.
 */
#ifndef LUNACOS_EMBED_H
#define LUNACOS_EMBED_H

#include <stddef.h>

struct embed_file {
    const char *module; /* as require() names it: "nacos.cli"; NULL ends the table */
    const char *chunk;  /* what tracebacks show: "@nacos/cli/init.lua" */
    const char *text;
    size_t size;
};

extern const struct embed_file embed_files[];

#endif
