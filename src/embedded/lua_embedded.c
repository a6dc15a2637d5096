/** lua_embedded: the Lua module `nacos.embedded_core`, one function. lua/nacos/embedded.lua describes the options and checks them.
 */
#include <lauxlib.h>
#include <lua.h>

#include "embedded/server.h"

int luaopen_nacos_embedded_core(lua_State *L);

/** A text option; the string lives as long as the table, which stays on the stack. */
static const char *text_option(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name); /* value */
    luaL_argcheck(L, lua_isnil(L, -1) || lua_type(L, -1) == LUA_TSTRING, 1, name);
    const char *text = lua_tostring(L, -1);
    lua_pop(L, 1);
    return text;
}

static double number_option(lua_State *L, const char *name)
{
    lua_getfield(L, 1, name); /* value */
    luaL_argcheck(L, lua_isnil(L, -1) || lua_type(L, -1) == LUA_TNUMBER, 1, name);
    double n = lua_tonumber(L, -1);
    lua_pop(L, 1);
    return n;
}

/** serve(options) -> true | nil, message. Blocks until SIGTERM or SIGINT. */
static int serve(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    struct embedded_options o = {.host = text_option(L, "host"),
                                 .port = (int)number_option(L, "port"),
                                 .context_path = text_option(L, "context_path"),
                                 .username = text_option(L, "username"),
                                 .password = text_option(L, "password"),
                                 .token_ttl = (long)number_option(L, "token_ttl"),
                                 .lag = number_option(L, "lag"),
                                 .push_delay = number_option(L, "push_delay"),
                                 .tls_cert = text_option(L, "tls_cert"),
                                 .tls_key = text_option(L, "tls_key"),
                                 .tls_ca = text_option(L, "tls_ca"),
                                 .version = text_option(L, "version"),
                                 .api = text_option(L, "api"),
                                 .grpc_port = (int)number_option(L, "grpc_port")};
    lua_getfield(L, 1, "faults"); /* value */
    o.faults = lua_toboolean(L, -1);
    char why[512];
    if (embedded_serve(&o, why, sizeof why)) {
        lua_pushboolean(L, 1);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, why);
    return 2;
}

int luaopen_nacos_embedded_core(lua_State *L)
{
    static const luaL_Reg functions[] = {{"serve", serve}, {NULL, NULL}};
    luaL_newlib(L, functions);
    return 1;
}
