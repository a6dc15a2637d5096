/** states: several Lua states in one process, each with a client of its own, in threads that run at once.
 *
 *  usage: states N SCRIPT.lua [ARGS…]: runs the script N times, with `arg[0]` the script, `arg[1]` … the arguments and `arg.n` the
 * number of the state. Exit code 0 when every run returned true; a state that does not says why on standard error. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* libuv closes descriptors by bare system calls, which tsan does not see: to it two threads that get the same number in turn race.
 */
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);

const char *__tsan_default_suppressions(void)
{
    return "race:^epoll_create1$\nrace:^eventfd$\nrace:^pipe2$\n";
}

struct run {
    pthread_t thread;
    int number, argc;
    char **argv;
    int ok;
};

static void *run(void *arg)
{
    struct run *r = arg;
    lua_State *L = luaL_newstate();
    if (!L)
        return NULL;
    luaL_openlibs(L);
    lua_newtable(L);
    for (int i = 0; i < r->argc; i++) {
        lua_pushstring(L, r->argv[i]);
        lua_rawseti(L, -2, i);
    }
    lua_pushinteger(L, r->number);
    lua_setfield(L, -2, "n");
    lua_setglobal(L, "arg");
    if (luaL_loadfile(L, r->argv[0]) != LUA_OK || lua_pcall(L, 0, 1, 0) != LUA_OK)
        fprintf(stderr, "state %d: %s\n", r->number, lua_tostring(L, -1));
    else
        r->ok = lua_toboolean(L, -1);
    lua_close(L);
    return NULL;
}

int main(int argc, char **argv)
{
    int n = argc > 2 ? atoi(argv[1]) : 0, bad = 0;
    if (n < 1 || n > 100) {
        fprintf(stderr, "usage: states N SCRIPT.lua [ARGS...]\n");
        return 2;
    }
    struct run *runs = calloc((size_t)n, sizeof *runs);
    if (!runs)
        return 2;
    for (int i = 0; i < n; i++) {
        runs[i] = (struct run){.number = i + 1, .argc = argc - 2, .argv = argv + 2};
        if (pthread_create(&runs[i].thread, NULL, run, &runs[i]) != 0)
            return 2;
    }
    for (int i = 0; i < n; i++) {
        pthread_join(runs[i].thread, NULL);
        bad += !runs[i].ok;
    }
    free(runs);
    printf("%d of %d states worked\n", n - bad, n);
    return bad ? 1 : 0;
}
