/** posix: for specs, the few system calls that Lua and luv lack. Lua module "test_posix". */
#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/** poll(fd, ms) -> is it readable? */
static int readable(lua_State *L)
{
    struct pollfd p = {.fd = (int)luaL_checkinteger(L, 1), .events = POLLIN};
    int n = poll(&p, 1, (int)luaL_optinteger(L, 2, 0));
    lua_pushboolean(L, n == 1 && p.revents & POLLIN);
    return 1;
}

static void write_all(int fd, const char *p, size_t n)
{
    for (ssize_t done; n && (done = write(fd, p, n)) > 0; n -= (size_t)done)
        p += done;
}

/** in_child(fn) -> text, code: what fn returned (or its error) in a forked child that then exits; code as of sh. The child has ten
 * seconds. */
static int in_child(lua_State *L)
{
    int ends[2];
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    if (pipe(ends) != 0)
        return luaL_error(L, "pipe");
    pid_t pid = fork();
    if (pid < 0)
        return luaL_error(L, "fork");
    if (pid == 0) {
        alarm(10);
        close(ends[0]);
        int bad = lua_pcall(L, 0, 1, 0);
        size_t n;
        const char *text = luaL_tolstring(L, -1, &n);
        write_all(ends[1], text, n);
        _exit(bad ? 1 : 0);
    }
    close(ends[1]);
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    char *p = luaL_prepbuffer(&b);
    for (ssize_t n; (n = read(ends[0], p, LUAL_BUFFERSIZE)) > 0; p = luaL_prepbuffer(&b))
        luaL_addsize(&b, (size_t)n);
    close(ends[0]);
    luaL_pushresult(&b);
    int status;
    waitpid(pid, &status, 0);
    lua_pushinteger(L, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 2;
}

static void unix_address(lua_State *L, int arg, struct sockaddr_un *at, socklen_t *len)
{
    size_t n;
    const char *path = luaL_checklstring(L, arg, &n);
    luaL_argcheck(L, n > 0 && n < sizeof at->sun_path, arg, "too long");
    *at = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(at->sun_path, path, n);
    if (path[0] == '@')
        at->sun_path[0] = '\0';
    *len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n);
}

/** datagrams(path) -> fd: a Unix datagram socket; "@name" is an abstract one. */
static int datagrams(lua_State *L)
{
    struct sockaddr_un at;
    socklen_t len;
    unix_address(L, 1, &at, &len);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, len) != 0)
        return luaL_error(L, "bind: %s", strerror(errno));
    lua_pushinteger(L, fd);
    return 1;
}

/** receive(fd) -> the next datagram, nil when there is none */
static int receive(lua_State *L)
{
    char text[4096];
    ssize_t n = recv((int)luaL_checkinteger(L, 1), text, sizeof text, 0);
    if (n < 0)
        return 0;
    lua_pushlstring(L, text, (size_t)n);
    return 1;
}

static int close_fd(lua_State *L)
{
    close((int)luaL_checkinteger(L, 1));
    return 0;
}

__attribute__((visibility("default"))) int luaopen_test_posix(lua_State *L);

int luaopen_test_posix(lua_State *L)
{
    static const luaL_Reg functions[] = {{"readable", readable}, {"in_child", in_child}, {"datagrams", datagrams},
                                         {"receive", receive},   {"close", close_fd},    {NULL, NULL}};
    luaL_newlib(L, functions);
    return 1;
}
