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

struct run {
    pthread_t thread;
    int number, argc;
    char **argv;
    int ok;
};

static pthread_barrier_t all_ran;

static void *run(void *arg)
{
    struct run *r = arg;
    lua_State *L = luaL_newstate();
    if (!L)
        exit(2);
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
#ifdef __SANITIZE_THREAD__
    /* libuv closes descriptors by bare system calls, which tsan does not see: two threads that get the same number in turn would
     * look like a race. So nobody closes before everybody has opened. */
    pthread_barrier_wait(&all_ran);
#endif
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
    pthread_barrier_init(&all_ran, NULL, (unsigned)n);
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
