/*
 * lunacos - the executable: a Lua state that knows the nacos modules, and nacos.cli run in it.
 *
 *   lunacos [--lua-dir DIR] COMMAND …
 *
 * The Lua files are part of the program. --lua-dir, or the environment variable LUNACOS_LUA_DIR, takes them from a folder
 * instead, so that Lua can be worked on without building. Everything else on the command line belongs to nacos.cli.
 */
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "embed.h"

enum { EXIT_INTERNAL = 70 }; /* a bug of ours; the codes of the commands are nacos.cli's */

int luaopen_nacos_core(lua_State *L);
int luaopen_nacos_embedded_core(lua_State *L);

/* Runs at a raised error; leaves its message with a traceback. */
static int message_handler(lua_State *L)
{
    luaL_traceback(L, L, luaL_tolstring(L, 1, NULL), 1);
    return 1;
}

/* Loader of an embedded file: upvalue 1 is its entry. Passes on what require() gives loaders. */
static int load_embedded(lua_State *L)
{
    const struct embed_file *file = lua_touserdata(L, lua_upvalueindex(1));
    if (luaL_loadbufferx(L, file->text, file->size, file->chunk, "t") != LUA_OK)
        return lua_error(L);
    lua_insert(L, 1);
    lua_call(L, lua_gettop(L) - 1, 1);
    return 1;
}

/*
 * Rewrite package[field] without its relative entries: an agent started in some folder must not run what lies there.
 * `first`, when given, goes before the rest. The table `package` is on top of the stack.
 */
static void set_search_path(lua_State *L, const char *field, const char *first)
{
    luaL_Buffer b;
    lua_getfield(L, -1, field);
    const char *path = lua_tostring(L, -1);
    luaL_buffinit(L, &b);
    if (first)
        luaL_addstring(&b, first);
    bool empty = !first;
    while (path && *path) {
        size_t n = strcspn(path, ";");
        if (path[0] == '/') {
            if (!empty)
                luaL_addchar(&b, ';');
            luaL_addlstring(&b, path, n);
            empty = false;
        }
        path += n + (path[n] == ';');
    }
    luaL_pushresult(&b);
    lua_setfield(L, -3, field);
    lua_pop(L, 1);
}

static void set_up_modules(lua_State *L, const char *lua_dir)
{
    lua_getglobal(L, "package");
    if (lua_dir)
        lua_pushfstring(L, "%s/?.lua;%s/?/init.lua", lua_dir, lua_dir);
    else
        lua_pushnil(L);
    lua_insert(L, -2); /* first entries of the path, package */
    set_search_path(L, "path", lua_tostring(L, -2));
    set_search_path(L, "cpath", NULL);
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, luaopen_nacos_core);
    lua_setfield(L, -2, "nacos.core");
    lua_pushcfunction(L, luaopen_nacos_embedded_core);
    lua_setfield(L, -2, "nacos.embedded_core");
    for (const struct embed_file *file = embed_files; !lua_dir && file->module; file++) {
        lua_pushlightuserdata(L, (void *)file);
        lua_pushcclosure(L, load_embedded, 1);
        lua_setfield(L, -2, file->module);
    }
    lua_pop(L, 3);
}

/* Upvalue-free entry, called protected: argv as a light userdata of {argc, argv, lua_dir}. Returns the exit code. */
struct start {
    int argc;
    char **argv;
    const char *lua_dir;
};

static int run(lua_State *L)
{
    const struct start *start = lua_touserdata(L, 1);
    luaL_checkversion(L);
    luaL_openlibs(L);
    set_up_modules(L, start->lua_dir);
    lua_createtable(L, start->argc, 1);
    for (int i = 0; i < start->argc; i++) {
        lua_pushstring(L, start->argv[i]);
        lua_rawseti(L, -2, i);
    }
    lua_getglobal(L, "require");
    lua_pushliteral(L, "nacos.cli");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "main");
    lua_pushvalue(L, -3);
    lua_call(L, 1, 1);
    luaL_checkinteger(L, -1);
    return 1;
}

static void ignore_signal(int number)
{
    (void)number;
}

/* What ends now takes its instances out of their services first, and is not to be ended twice: some supervisors send each signal to
 * the program and to its group. */
static void let_be(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

int main(int argc, char **argv)
{
    struct start start = {argc, argv, getenv("LUNACOS_LUA_DIR")};
    if (argc > 1 && strncmp(argv[1], "--lua-dir", 9) == 0 && (argv[1][9] == '=' || argv[1][9] == '\0')) {
        int used = argv[1][9] == '=' ? 1 : 2;
        if (argc <= used || (used == 1 && argv[1][10] == '\0')) {
            fprintf(stderr, "lunacos: --lua-dir needs a folder\n");
            return 2;
        }
        start.lua_dir = used == 1 ? argv[1] + 10 : argv[2];
        argv[used] = argv[0];
        start.argv = argv + used;
        start.argc = argc - used;
    }
    if (start.lua_dir && !start.lua_dir[0])
        start.lua_dir = NULL;

    /* A reader that has gone is an error of write(). A handler rather than SIG_IGN, which child processes would inherit. */
    struct sigaction action = {.sa_handler = ignore_signal, .sa_flags = SA_RESTART};
    sigaction(SIGPIPE, &action, NULL);

    lua_State *L = luaL_newstate();
    if (!L) {
        fprintf(stderr, "lunacos: not enough memory\n");
        return EXIT_INTERNAL;
    }
    lua_pushcfunction(L, message_handler);
    lua_pushcfunction(L, run);
    lua_pushlightuserdata(L, &start);
    int code = EXIT_INTERNAL;
    if (lua_pcall(L, 1, 1, 1) == LUA_OK)
        code = (int)lua_tointeger(L, -1);
    else
        fprintf(stderr, "lunacos: internal error: %s\n", lua_tostring(L, -1));
    let_be();
    lua_close(L);
    return code;
}
