/** core: the Lua module "nacos.core": userdata, argument conversion, one event into one table. Nothing else.
 *
 *  Lua never runs inside the engine and the engine never calls Lua, so there is no reference to keep and no error to carry across.
 *  Every check that can raise comes before anything is acquired. Durations are seconds here, milliseconds below. What users see is
 * made of this in lua/nacos/: these functions take positional arguments and trust their callers with the rest. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <lauxlib.h>
#include <lua.h>
#include <math.h>
#include <pwd.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "nacos.h"

#define ENGINE "nacos.engine"
#define CLIENT "nacos.client"
#define WATCH "nacos.watch"
#define SUBSCRIPTION "nacos.subscription"
#define ERROR "nacos.error"

#define EXPORT __attribute__((visibility("default")))

static const char FORKED_TEXT[] =
    "this process is a fork of the one that loaded nacos: make a new Lua state here and load it there";

/* NULL inside: closed */
struct engine_ud {
    nacos_engine *e;
};

struct client_ud {
    nacos_client *c;
    struct engine_ud *engine; /* kept alive by user value 1 */
};

struct watch_ud {
    nacos_watch *w;
    struct client_ud *client; /* likewise */
};

struct subscription_ud {
    nacos_subscription *s;
    struct client_ud *client; /* likewise */
};

static void push_error(lua_State *L, const nacos_error *err)
{
    lua_createtable(L, 0, 4);
    lua_pushstring(L, nacos_code_name(err->code));
    lua_setfield(L, -2, "code");
    lua_pushstring(L, err->message);
    lua_setfield(L, -2, "message");
    if (err->http_status) {
        lua_pushinteger(L, err->http_status);
        lua_setfield(L, -2, "status");
    }
    if (err->server[0]) {
        lua_pushstring(L, err->server);
        lua_setfield(L, -2, "server");
    }
    luaL_setmetatable(L, ERROR);
}

/** nil, error */
static int fail(lua_State *L, nacos_code code, const char *message)
{
    nacos_error err = {.code = code};
    snprintf(err.message, sizeof err.message, "%s", message);
    lua_pushnil(L);
    push_error(L, &err);
    return 2;
}

static int error_tostring(lua_State *L)
{
    lua_getfield(L, 1, "message");
    return 1;
}

/** core.error(code, message [, status [, server]]) -> error: for failures found in Lua. */
static int core_error(lua_State *L)
{
    static const char *const fields[] = {"code", "message", "status", "server"};
    luaL_checkstring(L, 1);
    luaL_checkstring(L, 2);
    lua_settop(L, 4);
    lua_createtable(L, 0, 4);
    for (int i = 0; i < 4; i++) {
        lua_pushvalue(L, i + 1);
        lua_setfield(L, -2, fields[i]);
    }
    luaL_setmetatable(L, ERROR);
    return 1;
}

static int to_ms(lua_State *L, int arg)
{
    lua_Number s = luaL_checknumber(L, arg);
    luaL_argcheck(L, s >= 0, arg, "seconds cannot be negative");
    return s > 2e6 ? 2000000000 : (int)ceil(s * 1000);
}

/* ---- values -------------------------------------------------------------------------------------------------------------- */

static void set_source(lua_State *L, nacos_source source)
{
    static const char *const names[] = {NULL, "server", "failover", "snapshot"};
    if (source) {
        lua_pushstring(L, names[source]);
        lua_setfield(L, -2, "source");
    }
}

static void set_via(lua_State *L, nacos_via via)
{
    static const char *const names[] = {NULL, "read", "poll", "compare", "push", "udp"};
    if (via) {
        lua_pushstring(L, names[via]);
        lua_setfield(L, -2, "via");
    }
}

static void set_value(lua_State *L, const nacos_value *v)
{
    if (v->data) {
        lua_pushlstring(L, v->data, v->len);
        lua_setfield(L, -2, "content");
    }
    if (v->md5[0]) {
        lua_pushstring(L, v->md5);
        lua_setfield(L, -2, "md5");
    }
    if (v->type[0]) {
        lua_pushstring(L, v->type);
        lua_setfield(L, -2, "type");
    }
    set_source(L, v->source);
    set_via(L, v->via);
    if (v->confirmed > 0) {
        lua_pushnumber(L, v->confirmed);
        lua_setfield(L, -2, "confirmed");
    }
    if (v->server[0]) {
        lua_pushstring(L, v->server);
        lua_setfield(L, -2, "server");
    }
    lua_pushinteger(L, (lua_Integer)v->version);
    lua_setfield(L, -2, "version");
}

static void push_instance(lua_State *L, const nacos_instance *i)
{
    lua_createtable(L, 0, 11); /* with the two that Lua adds */
    lua_pushstring(L, i->ip);
    lua_setfield(L, -2, "ip");
    lua_pushinteger(L, i->port);
    lua_setfield(L, -2, "port");
    lua_pushstring(L, i->cluster);
    lua_setfield(L, -2, "cluster_name");
    lua_pushnumber(L, i->weight);
    lua_setfield(L, -2, "weight");
    lua_pushboolean(L, i->healthy);
    lua_setfield(L, -2, "healthy");
    lua_pushboolean(L, i->enabled);
    lua_setfield(L, -2, "enabled");
    lua_pushboolean(L, i->ephemeral);
    lua_setfield(L, -2, "ephemeral");
    if (i->id) {
        lua_pushstring(L, i->id);
        lua_setfield(L, -2, "instance_id");
    }
    lua_createtable(L, 0, (int)i->metadata_count);
    for (size_t k = 0; k < i->metadata_count; k++) {
        lua_pushstring(L, i->metadata[k].value);
        lua_setfield(L, -2, i->metadata[k].name);
    }
    lua_setfield(L, -2, "metadata");
}

/** Sets what an event says about a list as a whole. */
static void set_hosts(lua_State *L, const nacos_hosts *h)
{
    lua_pushinteger(L, (lua_Integer)h->skipped);
    lua_setfield(L, -2, "skipped");
    lua_pushboolean(L, h->protection);
    lua_setfield(L, -2, "protection");
    lua_pushinteger(L, (lua_Integer)h->ref_time);
    lua_setfield(L, -2, "ref_time");
    lua_pushnumber(L, (lua_Number)h->cache_ms / 1000);
    lua_setfield(L, -2, "cache_seconds");
}

/** A reply carries the list, a followed service its changes only: the host keeps the tables it got. */
static void set_changes(lua_State *L, const nacos_event *ev)
{
    static const char *const kinds[] = {"ADDED", "MODIFIED", "DELETED"};
    lua_createtable(L, (int)ev->change_count, 0);
    for (size_t k = 0; k < ev->change_count; k++) {
        const nacos_change *c = &ev->changes[k];
        lua_createtable(L, 0, 2);
        lua_pushstring(L, kinds[c->kind]);
        lua_setfield(L, -2, "kind");
        push_instance(L, c->now ? c->now : c->before);
        lua_setfield(L, -2, "instance");
        lua_rawseti(L, -2, (lua_Integer)k + 1);
    }
    lua_setfield(L, -2, "changes");
    lua_pushboolean(L, ev->first);
    lua_setfield(L, -2, "first");
    lua_pushinteger(L, (lua_Integer)ev->held);
    lua_setfield(L, -2, "held");
}

static int push_event(lua_State *L, const nacos_event *ev)
{
    static const char *const kinds[] = {"reply", "config", "service", "timer", "signal", "exit", "trouble", "readable"};
    lua_createtable(L, 0, 8);
    lua_pushinteger(L, (lua_Integer)ev->id);
    lua_setfield(L, -2, "id");
    lua_pushstring(L, kinds[ev->kind]);
    lua_setfield(L, -2, "kind");
    if (ev->error.code != NACOS_OK) {
        push_error(L, &ev->error);
        lua_setfield(L, -2, "error");
    }
    if (ev->kind == NACOS_EVENT_REPLY || ev->kind == NACOS_EVENT_CONFIG)
        set_value(L, &ev->value);
    if (ev->hosts)
        set_hosts(L, ev->hosts);
    if (ev->hosts && ev->kind == NACOS_EVENT_REPLY) {
        lua_createtable(L, (int)ev->hosts->count, 0);
        for (size_t k = 0; k < ev->hosts->count; k++) {
            push_instance(L, &ev->hosts->list[k]);
            lua_rawseti(L, -2, (lua_Integer)k + 1);
        }
        lua_setfield(L, -2, "hosts");
    }
    if (ev->kind == NACOS_EVENT_SERVICE) {
        set_source(L, ev->value.source);
        set_via(L, ev->value.via);
        set_changes(L, ev);
    }
    if (ev->kind == NACOS_EVENT_EXIT && ev->error.code == NACOS_OK) {
        lua_pushinteger(L, ev->exit_signal ? ev->exit_signal : ev->exit_code);
        lua_setfield(L, -2, ev->exit_signal ? "signal" : "code");
        lua_pushinteger(L, ev->exit_pid);
        lua_setfield(L, -2, "pid");
    }
    return 1;
}

static const char *text_field(lua_State *L, int t, const char *name)
{
    lua_getfield(L, t, name);
    const char *s = lua_isnil(L, -1) ? NULL : luaL_checkstring(L, -1);
    lua_pop(L, 1); /* the table keeps the string */
    return s;
}

static lua_Number number_field(lua_State *L, int t, const char *name)
{
    lua_getfield(L, t, name);
    lua_Number n = luaL_optnumber(L, -1, 0);
    lua_pop(L, 1);
    return n;
}

static int bool_field(lua_State *L, int t, const char *name, int absent)
{
    lua_getfield(L, t, name);
    int b = lua_isnil(L, -1) ? absent : lua_toboolean(L, -1);
    lua_pop(L, 1);
    return b;
}

/* ---- engine -------------------------------------------------------------------------------------------------------------- */

static struct engine_ud *check_engine(lua_State *L)
{
    struct engine_ud *u = luaL_checkudata(L, 1, ENGINE);
    luaL_argcheck(L, u->e, 1, "the engine is closed");
    return u;
}

static int core_engine(lua_State *L)
{
    nacos_error err;
    struct engine_ud *u = lua_newuserdatauv(L, sizeof *u, 0);
    u->e = NULL;
    luaL_setmetatable(L, ENGINE);
    u->e = nacos_engine_new(&err);
    if (u->e)
        return 1;
    lua_pushnil(L);
    push_error(L, &err);
    return 2;
}

static int engine_close(lua_State *L)
{
    struct engine_ud *u = luaL_checkudata(L, 1, ENGINE);
    nacos_engine *e = u->e;
    u->e = NULL;
    nacos_engine_free(e);
    return 0;
}

/** engine:wait([seconds [, id]]) -> event | nil; without seconds as long as it takes. */
static int engine_wait(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    int ms = lua_isnoneornil(L, 2) ? -1 : to_ms(L, 2);
    uint64_t id = (uint64_t)luaL_optinteger(L, 3, 0);
    const nacos_event *ev = nacos_wait(u->e, id, ms);
    return ev ? push_event(L, ev) : 0;
}

static int engine_fd(lua_State *L)
{
    lua_pushinteger(L, nacos_engine_fd(check_engine(L)->e));
    return 1;
}

static int engine_forked(lua_State *L)
{
    lua_pushboolean(L, nacos_engine_forked(check_engine(L)->e));
    return 1;
}

static int push_id(lua_State *L, uint64_t id)
{
    if (!id)
        return fail(L, NACOS_NOMEM, "out of memory");
    lua_pushinteger(L, (lua_Integer)id);
    return 1;
}

static int engine_timer(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    if (nacos_engine_forked(u->e))
        return fail(L, NACOS_FORKED, FORKED_TEXT);
    return push_id(L, nacos_timer(u->e, to_ms(L, 2)));
}

static const char *const signal_names[] = {"HUP",  "INT",  "QUIT", "ABRT", "KILL", "USR1", "USR2",  "ALRM", "TERM",
                                           "CHLD", "CONT", "STOP", "TTIN", "TTOU", "URG",  "WINCH", "IO",   NULL};
static const int signal_numbers[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGABRT, SIGKILL, SIGUSR1, SIGUSR2,  SIGALRM, SIGTERM,
                                     SIGCHLD, SIGCONT, SIGSTOP, SIGTTIN, SIGTTOU, SIGURG,  SIGWINCH, SIGIO};

/** engine:signal(name [, every]) -> id */
static int engine_signal(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    if (nacos_engine_forked(u->e))
        return fail(L, NACOS_FORKED, FORKED_TEXT);
    return push_id(L, nacos_signal(u->e, signal_numbers[luaL_checkoption(L, 2, NULL, signal_names)], lua_toboolean(L, 3)));
}

/** engine:readable(fd) -> id */
static int engine_readable(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    int fd = (int)luaL_checkinteger(L, 2);
    if (nacos_engine_forked(u->e))
        return fail(L, NACOS_FORKED, FORKED_TEXT);
    uint64_t id = nacos_readable(u->e, fd);
    return id ? push_id(L, id) : fail(L, NACOS_NOMEM, "out of memory or descriptors");
}

/** engine:forget(id): no timer, signal or readable any more */
static int engine_forget(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    uint64_t id = (uint64_t)luaL_checkinteger(L, 2);
    if (!nacos_engine_forked(u->e))
        nacos_forget(u->e, id);
    return 0;
}

/** Pushes the list of strings at `t` as an array of C strings with a NULL at its end; the list keeps the strings. */
static const char *const *push_words(lua_State *L, int t)
{
    luaL_checktype(L, t, LUA_TTABLE);
    lua_Unsigned n = lua_rawlen(L, t);
    const char **words = lua_newuserdatauv(L, (n + 1) * sizeof *words, 0);
    for (lua_Unsigned i = 0; i < n; i++) {
        luaL_argcheck(L, lua_rawgeti(L, t, (lua_Integer)i + 1) == LUA_TSTRING, t, "a list of strings expected");
        words[i] = lua_tostring(L, -1);
        lua_pop(L, 1);
    }
    words[n] = NULL;
    return words;
}

/** Pushes { NAME = value } as "NAME=value" strings. */
static const char *const *push_variables(lua_State *L, int t)
{
    lua_newtable(L);
    int list = lua_gettop(L);
    for (lua_pushnil(L); lua_next(L, t); lua_pop(L, 1)) {
        luaL_argcheck(L, lua_type(L, -2) == LUA_TSTRING && lua_type(L, -1) == LUA_TSTRING, 3, "env: strings expected");
        lua_pushfstring(L, "%s=%s", lua_tostring(L, -2), lua_tostring(L, -1));
        lua_rawseti(L, list, (lua_Integer)lua_rawlen(L, list) + 1);
    }
    return push_words(L, list);
}

/** engine:spawn(words [, { env={ NAME = value }, clear_env=, cwd=, uid=, gid=, input=, output=a descriptor (-1: none) }]) -> id.
 * The tables keep the strings. */
static int engine_spawn(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    lua_settop(L, 3);
    nacos_command c = {.argv = push_words(L, 2)};
    nacos_user user;
    luaL_argcheck(L, c.argv[0], 2, "no program");
    if (!lua_isnil(L, 3)) {
        luaL_checktype(L, 3, LUA_TTABLE);
        c.clear_env = bool_field(L, 3, "clear_env", 0);
        c.cwd = text_field(L, 3, "cwd");
        c.output = (int)number_field(L, 3, "output");
        if (lua_getfield(L, 3, "gid") != LUA_TNIL) {
            lua_getfield(L, 3, "uid");
            user = (nacos_user){(uint32_t)luaL_optinteger(L, -1, geteuid()), (uint32_t)luaL_checkinteger(L, -2)};
            c.user = &user;
        }
        lua_getfield(L, 3, "input");
        c.input = luaL_optlstring(L, -1, NULL, &c.input_len);
        if (lua_getfield(L, 3, "env") != LUA_TNIL) {
            luaL_checktype(L, -1, LUA_TTABLE);
            c.env = push_variables(L, lua_gettop(L));
        }
    }
    if (nacos_engine_forked(u->e))
        return fail(L, NACOS_FORKED, FORKED_TEXT);
    uint64_t id = nacos_spawn(u->e, &c);
    return id ? push_id(L, id) : fail(L, NACOS_NOMEM, "out of memory or descriptors");
}

/** engine:kill(id, signal [, all]): to the process group of what spawn() started */
static int engine_kill(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    uint64_t id = (uint64_t)luaL_checkinteger(L, 2);
    int number = signal_numbers[luaL_checkoption(L, 3, NULL, signal_names)];
    if (!nacos_engine_forked(u->e))
        nacos_kill(u->e, id, number, lua_toboolean(L, 4));
    return 0;
}

/** engine:pid(id) -> number | nil */
static int engine_pid(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    uint64_t id = (uint64_t)luaL_checkinteger(L, 2);
    int pid = nacos_engine_forked(u->e) ? 0 : nacos_pid(u->e, id);
    if (!pid)
        return 0;
    lua_pushinteger(L, pid);
    return 1;
}

/** engine:reap() */
static int engine_reap(lua_State *L)
{
    struct engine_ud *u = check_engine(L);
    if (!nacos_engine_forked(u->e))
        nacos_reap(u->e);
    return 0;
}

/* ---- client -------------------------------------------------------------------------------------------------------------- */

/** The client of argument 1, or NULL after pushing nil, error: closed and forked are the world's doing, not misuse. */
static nacos_client *to_client(lua_State *L)
{
    struct client_ud *u = luaL_checkudata(L, 1, CLIENT);
    if (!u->c || !u->engine->e) {
        fail(L, NACOS_CLOSED, "the client is closed");
        return NULL;
    }
    if (nacos_engine_forked(u->engine->e)) {
        fail(L, NACOS_FORKED, FORKED_TEXT);
        return NULL;
    }
    return u->c;
}

static nacos_options check_options(lua_State *L, int t)
{
    static const char *const levels[] = {"debug", "info", "warn", "error", "off", NULL};
    luaL_checktype(L, t, LUA_TTABLE);
    lua_getfield(L, t, "log_level");
    int level = luaL_checkoption(L, -1, "warn", levels);
    lua_pop(L, 1);
    int verify = bool_field(L, t, "verify", -1);
    return (nacos_options){
        .server_addresses = text_field(L, t, "server_addresses"),
        .endpoint = text_field(L, t, "endpoint"),
        .ns = text_field(L, t, "namespace"),
        .context_path = text_field(L, t, "context_path"),
        .username = text_field(L, t, "username"),
        .password = text_field(L, t, "password"),
        .password_file = text_field(L, t, "password_file"),
        .password_env = text_field(L, t, "password_env"),
        .ak = text_field(L, t, "ak"),
        .sk = text_field(L, t, "sk"),
        .ca_file = text_field(L, t, "ca_file"),
        .cert_file = text_field(L, t, "cert_file"),
        .key_file = text_field(L, t, "key_file"),
        .server_name = text_field(L, t, "server_name"),
        .verify = verify < 0 ? 0
                  : verify   ? 1
                             : -1,
        .proxy_http = text_field(L, t, "proxy_http"),
        .proxy_https = text_field(L, t, "proxy_https"),
        .failover_base = text_field(L, t, "failover_base"),
        .snapshot_base = text_field(L, t, "snapshot_base"),
        .no_snapshot = bool_field(L, t, "no_snapshot", 0),
        .log_dir = text_field(L, t, "log_dir"),
        .log_level = (nacos_log_level)level,
        .log_backups = (int)number_field(L, t, "log_rotation_backup_count"),
        .log_json = bool_field(L, t, "log_json", 0),
        .poll_timeout_ms = (int)(number_field(L, t, "pulling_timeout") * 1000),
        .poll_batch = (int)number_field(L, t, "pulling_config_size"),
        .max_response = (size_t)number_field(L, t, "max_response_size"),
        .push_port = bool_field(L, t, "push", 1) ? (int)number_field(L, t, "push_port") : -1,
        .push_ip = text_field(L, t, "push_ip"),
        .protocol = text_field(L, t, "protocol"),
        .grpc_port_offset = (int)number_field(L, t, "grpc_port_offset"),
        .poll_interval_ms = (int)(number_field(L, t, "poll_interval") * 1000),
    };
}

static int engine_client(lua_State *L)
{
    struct engine_ud *e = check_engine(L);
    nacos_options o = check_options(L, 2);
    nacos_error err;
    struct client_ud *u = lua_newuserdatauv(L, sizeof *u, 1);
    *u = (struct client_ud){NULL, e};
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, 1);
    luaL_setmetatable(L, CLIENT);
    if (nacos_engine_forked(e->e))
        return fail(L, NACOS_FORKED, FORKED_TEXT);
    u->c = nacos_client_new(e->e, &o, &err);
    if (u->c)
        return 1;
    lua_pushnil(L);
    push_error(L, &err);
    return 2;
}

/** client:close([deregister = true]); as __close it is given an error, or nil. */
static int client_close(lua_State *L)
{
    struct client_ud *u = luaL_checkudata(L, 1, CLIENT);
    bool stay = lua_isboolean(L, 2) && !lua_toboolean(L, 2);
    if (u->c && u->engine->e)
        nacos_client_close(u->c, !stay);
    u->c = NULL;
    return 0;
}

static int client_configure(lua_State *L)
{
    nacos_client *c = to_client(L);
    if (!c)
        return 2;
    nacos_options o = check_options(L, 2);
    nacos_client_configure(c, &o);
    lua_pushboolean(L, 1);
    return 1;
}

/** How to read: the last argument of client:get() and client:instances(). */
static int check_how(lua_State *L, int arg)
{
    static const char *const hows[] = {"", "no_snapshot", "server_only", "use_snapshot", NULL};
    static const int flags[] = {0, NACOS_NO_SNAPSHOT, NACOS_SERVER_ONLY, NACOS_USE_SNAPSHOT};
    return flags[luaL_checkoption(L, arg, "", hows)];
}

/** client:get(data_id, group, timeout [, how]) */
static int client_get(lua_State *L)
{
    const char *data_id = luaL_checkstring(L, 2), *group = luaL_checkstring(L, 3);
    int ms = to_ms(L, 4), flags = check_how(L, 5);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_get_config(c, data_id, group, ms, flags)) : 2;
}

/** client:publish(data_id, group, content, timeout, fields) */
static int client_publish(lua_State *L)
{
    luaL_checktype(L, 6, LUA_TTABLE);
    nacos_publish p = {
        .data_id = luaL_checkstring(L, 2),
        .group = luaL_checkstring(L, 3),
        .type = text_field(L, 6, "type"),
        .app_name = text_field(L, 6, "app_name"),
        .tags = text_field(L, 6, "tags"),
        .desc = text_field(L, 6, "desc"),
        .cas_md5 = text_field(L, 6, "cas_md5"),
    };
    p.content = luaL_checklstring(L, 4, &p.len);
    int ms = to_ms(L, 5);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_publish_config(c, &p, ms)) : 2;
}

static int client_remove(lua_State *L)
{
    const char *data_id = luaL_checkstring(L, 2), *group = luaL_checkstring(L, 3);
    int ms = to_ms(L, 4);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_remove_config(c, data_id, group, ms)) : 2;
}

static int client_list(lua_State *L)
{
    const char *pattern = luaL_checkstring(L, 2), *group = luaL_checkstring(L, 3);
    int page = (int)luaL_checkinteger(L, 4), size = (int)luaL_checkinteger(L, 5), ms = to_ms(L, 6);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_list_configs(c, pattern, group, page, size, ms)) : 2;
}

static int client_version(lua_State *L)
{
    int ms = to_ms(L, 2);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_server_version(c, ms)) : 2;
}

static int client_log(lua_State *L)
{
    static const char *const levels[] = {"debug", "info", "warn", "error", NULL};
    int level = luaL_checkoption(L, 2, NULL, levels);
    const char *message = luaL_checkstring(L, 3);
    nacos_client *c = to_client(L);
    if (c)
        nacos_client_log(c, (nacos_log_level)level, message);
    return 0;
}

static int client_status(lua_State *L)
{
    nacos_client *c = to_client(L);
    if (!c)
        return 2;
    nacos_status s;
    nacos_client_status(c, &s);
    lua_createtable(L, 0, 24);
    const struct {
        const char *name, *text;
    } texts[] = {
        {"server", s.server}, {"protocol", s.protocol}, {"protocol_why", s.protocol_why}, {"server_version", s.server_version}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (texts[i].text[0]) {
            lua_pushstring(L, texts[i].text);
            lua_setfield(L, -2, texts[i].name);
        }
    }
    lua_pushboolean(L, s.connected);
    lua_setfield(L, -2, "connected");
    lua_pushboolean(L, s.link);
    lua_setfield(L, -2, "link");
    const struct {
        const char *name;
        uint64_t n;
    } numbers[] = {{"watches", (uint64_t)s.watches},
                   {"polls", (uint64_t)s.polls},
                   {"reconnects", s.reconnects},
                   {"requests", s.requests},
                   {"failures", s.failures},
                   {"logins", s.logins},
                   {"instances", (uint64_t)s.instances},
                   {"subscriptions", (uint64_t)s.subscriptions},
                   {"beats", s.beats},
                   {"reregistrations", s.reregistrations},
                   {"pushes", s.pushes},
                   {"pushes_dropped", s.pushes_dropped},
                   {"entries_skipped", s.entries_skipped}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        lua_pushinteger(L, (lua_Integer)numbers[i].n);
        lua_setfield(L, -2, numbers[i].name);
    }
    if (s.last_error.code != NACOS_OK) {
        push_error(L, &s.last_error);
        lua_setfield(L, -2, "last_error");
    }
    return 1;
}

/* ---- watches ------------------------------------------------------------------------------------------------------------- */

/** client:watch(data_id, group) -> watch, id */
static int client_watch(lua_State *L)
{
    const char *data_id = luaL_checkstring(L, 2), *group = luaL_checkstring(L, 3);
    nacos_client *c = to_client(L);
    if (!c)
        return 2;
    struct watch_ud *u = lua_newuserdatauv(L, sizeof *u, 1);
    *u = (struct watch_ud){NULL, lua_touserdata(L, 1)};
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, 1);
    luaL_setmetatable(L, WATCH);
    u->w = nacos_watch_config(c, data_id, group);
    if (!u->w)
        return fail(L, NACOS_NOMEM, "out of memory");
    lua_pushinteger(L, (lua_Integer)nacos_watch_id(u->w));
    return 2;
}

static nacos_watch *live_watch(const struct watch_ud *u)
{
    return u->w && u->client->c && u->client->engine->e && !nacos_engine_forked(u->client->engine->e) ? u->w : NULL;
}

static int watch_close(lua_State *L)
{
    struct watch_ud *u = luaL_checkudata(L, 1, WATCH);
    nacos_watch *w = live_watch(u);
    u->w = NULL;
    if (w)
        nacos_unwatch(w);
    return 0;
}

/** watch:peek(table): brings the fields of `table` (an earlier answer, or {}) up to date and returns it; nil while nothing is
 * known. Allocates nothing when the value is the one that the table holds. */
static int watch_peek(lua_State *L)
{
    struct watch_ud *u = luaL_checkudata(L, 1, WATCH);
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_settop(L, 2);
    nacos_watch *w = live_watch(u);
    lua_getfield(L, 2, "version");
    uint64_t known = (uint64_t)lua_tointeger(L, -1);
    lua_pop(L, 1);
    nacos_value v;
    if (!w || !nacos_peek(w, known, &v))
        return 0;
    static const char *const all[] = {"source", "via", "confirmed", "server", "content", "md5", "type"};
    for (size_t i = 0; i < (v.version == known ? 4 : sizeof all / sizeof *all); i++) {
        lua_pushnil(L);
        lua_setfield(L, 2, all[i]);
    }
    set_value(L, &v);
    return 1;
}

/* ---- services ------------------------------------------------------------------------------------------------------------ */

/** The service { name=, group=, ns= }. */
static nacos_service check_service(lua_State *L, int t)
{
    luaL_checktype(L, t, LUA_TTABLE);
    return (nacos_service){.name = text_field(L, t, "name"), .group = text_field(L, t, "group"), .ns = text_field(L, t, "ns")};
}

/** The field `metadata` of a table as pairs. They live in a userdata that stays on the stack, the strings in the table. */
static const nacos_pair *check_metadata(lua_State *L, int t, size_t *count)
{
    *count = 0;
    lua_getfield(L, t, "metadata");
    if (lua_isnil(L, -1))
        return NULL;
    luaL_checktype(L, -1, LUA_TTABLE);
    int m = lua_gettop(L);
    size_t n = 0;
    for (lua_pushnil(L); lua_next(L, m); lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TSTRING)
            luaL_argerror(L, t, "metadata is not a table of strings");
        n++;
    }
    nacos_pair *pairs = lua_newuserdatauv(L, n * sizeof *pairs, 0);
    for (lua_pushnil(L); lua_next(L, m); lua_pop(L, 1))
        pairs[(*count)++] = (nacos_pair){lua_tostring(L, -2), lua_tostring(L, -1)};
    return pairs;
}

/** The instance { ip=, port=, cluster=, weight=, … }; what is missing is as the server has it. Leaves values on the stack. */
static nacos_instance check_instance(lua_State *L, int t)
{
    luaL_checktype(L, t, LUA_TTABLE);
    lua_getfield(L, t, "weight");
    nacos_instance i = {
        .ip = text_field(L, t, "ip"),
        .port = (int)number_field(L, t, "port"),
        .cluster = text_field(L, t, "cluster"),
        .weight = luaL_optnumber(L, -1, 1),
        .healthy = bool_field(L, t, "healthy", 1),
        .enabled = bool_field(L, t, "enabled", 1),
        .ephemeral = bool_field(L, t, "ephemeral", 1),
    };
    lua_pop(L, 1);
    luaL_argcheck(L, i.ip, t, "it has no ip");
    i.metadata = check_metadata(L, t, &i.metadata_count);
    return i;
}

/** client:register(service, instance, beat_seconds (0: the usual), timeout) */
static int client_register(lua_State *L)
{
    int beat_ms = to_ms(L, 4), ms = to_ms(L, 5);
    nacos_service s = check_service(L, 2);
    nacos_instance i = check_instance(L, 3);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_register_instance(c, &s, &i, beat_ms, ms)) : 2;
}

/** client:NAME(service, instance, timeout) */
#define INSTANCE_CALL(function, call)                                                                                              \
    static int function(lua_State *L)                                                                                              \
    {                                                                                                                              \
        int ms = to_ms(L, 4);                                                                                                      \
        nacos_service s = check_service(L, 2);                                                                                     \
        nacos_instance i = check_instance(L, 3);                                                                                   \
        nacos_client *c = to_client(L);                                                                                            \
        return c ? push_id(L, call(c, &s, &i, ms)) : 2;                                                                            \
    }

INSTANCE_CALL(client_deregister, nacos_deregister_instance)
INSTANCE_CALL(client_modify, nacos_modify_instance)
INSTANCE_CALL(client_instance, nacos_get_instance)
INSTANCE_CALL(client_beat, nacos_send_beat)

/** client:instances(service, clusters | nil, healthy_only, timeout [, how]) */
static int client_instances(lua_State *L)
{
    nacos_service s = check_service(L, 2);
    const char *clusters = luaL_optstring(L, 3, NULL);
    int healthy_only = lua_toboolean(L, 4), ms = to_ms(L, 5), flags = check_how(L, 6);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_list_instances(c, &s, clusters, healthy_only, flags, ms)) : 2;
}

/** client:put_service(service, { protect_threshold=, metadata=, selector= }, update, timeout) */
static int client_put_service(lua_State *L)
{
    nacos_service s = check_service(L, 2);
    luaL_checktype(L, 3, LUA_TTABLE);
    nacos_service_settings o = {.protect_threshold = number_field(L, 3, "protect_threshold"),
                                .selector = text_field(L, 3, "selector")};
    int update = lua_toboolean(L, 4), ms = to_ms(L, 5);
    o.metadata = check_metadata(L, 3, &o.metadata_count);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_put_service(c, &s, &o, update, ms)) : 2;
}

static int client_service(lua_State *L)
{
    nacos_service s = check_service(L, 2);
    int ms = to_ms(L, 3);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_get_service(c, &s, ms)) : 2;
}

static int client_remove_service(lua_State *L)
{
    nacos_service s = check_service(L, 2);
    int ms = to_ms(L, 3);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_remove_service(c, &s, ms)) : 2;
}

/** client:services(service (of which the name does not count), page, page_size, timeout) */
static int client_services(lua_State *L)
{
    nacos_service s = check_service(L, 2);
    int page = (int)luaL_checkinteger(L, 3), size = (int)luaL_checkinteger(L, 4), ms = to_ms(L, 5);
    nacos_client *c = to_client(L);
    return c ? push_id(L, nacos_list_services(c, &s, page, size, ms)) : 2;
}

/** { interval=, max_drop=, hold=, clusters= }: zero means zero here, the default below. */
static nacos_follow check_follow(lua_State *L, int t)
{
    luaL_checktype(L, t, LUA_TTABLE);
    lua_getfield(L, t, "max_drop");
    lua_getfield(L, t, "hold");
    lua_Number max_drop = luaL_optnumber(L, -2, 0), hold = luaL_optnumber(L, -1, 0);
    nacos_follow f = {
        .clusters = text_field(L, t, "clusters"),
        .interval_ms = (int)(number_field(L, t, "interval") * 1000),
        .max_drop = lua_isnil(L, -2) || max_drop > 0 ? max_drop : -1,
        .hold_ms = lua_isnil(L, -1) || hold > 0 ? (int)ceil(hold * 1000) : -1,
    };
    lua_pop(L, 2);
    return f;
}

/** client:follow(service, how) -> subscription, id */
static int client_follow(lua_State *L)
{
    nacos_service s = check_service(L, 2);
    nacos_follow f = check_follow(L, 3);
    nacos_client *c = to_client(L);
    if (!c)
        return 2;
    struct subscription_ud *u = lua_newuserdatauv(L, sizeof *u, 1);
    *u = (struct subscription_ud){NULL, lua_touserdata(L, 1)};
    lua_pushvalue(L, 1);
    lua_setiuservalue(L, -2, 1);
    luaL_setmetatable(L, SUBSCRIPTION);
    u->s = nacos_follow_service(c, &s, &f);
    if (!u->s)
        return fail(L, NACOS_NOMEM, "out of memory");
    lua_pushinteger(L, (lua_Integer)nacos_subscription_id(u->s));
    return 2;
}

static nacos_subscription *live_subscription(const struct subscription_ud *u)
{
    return u->s && u->client->c && u->client->engine->e && !nacos_engine_forked(u->client->engine->e) ? u->s : NULL;
}

static int subscription_configure(lua_State *L)
{
    struct subscription_ud *u = luaL_checkudata(L, 1, SUBSCRIPTION);
    nacos_follow f = check_follow(L, 2);
    nacos_subscription *s = live_subscription(u);
    if (s)
        nacos_refollow(s, &f);
    return 0;
}

static int subscription_close(lua_State *L)
{
    struct subscription_ud *u = luaL_checkudata(L, 1, SUBSCRIPTION);
    nacos_subscription *s = live_subscription(u);
    u->s = NULL;
    if (s)
        nacos_unfollow(s);
    return 0;
}

/* ---- helpers ------------------------------------------------------------------------------------------------------------- */

static int core_md5(lua_State *L)
{
    size_t len;
    const char *s = luaL_checklstring(L, 1, &len);
    char hex[33];
    if (!nacos_md5(s, len, hex))
        return luaL_error(L, "this system's OpenSSL refuses md5");
    lua_pushstring(L, hex);
    return 1;
}

/** core.check_…(text) -> nil, or what is wrong */
static int check_text(lua_State *L, const char *(*check)(const char *))
{
    size_t len;
    const char *s = luaL_checklstring(L, 1, &len);
    lua_pushstring(L, strlen(s) != len ? "holds a NUL byte" : check(s)); /* NULL becomes nil */
    return 1;
}

static int core_check_id(lua_State *L)
{
    return check_text(L, nacos_check_id);
}

static int check_addresses(lua_State *L, bool (*check)(const char *, nacos_error *))
{
    size_t len;
    nacos_error err;
    const char *s = luaL_checklstring(L, 1, &len);
    if (strlen(s) != len)
        lua_pushliteral(L, "holds a NUL byte");
    else if (check(s, &err))
        lua_pushnil(L);
    else
        lua_pushstring(L, err.message);
    return 1;
}

static int core_check_servers(lua_State *L)
{
    return check_addresses(L, nacos_check_servers);
}

static int core_check_endpoint(lua_State *L)
{
    return check_addresses(L, nacos_check_endpoint);
}

static int core_check_namespace(lua_State *L)
{
    return check_text(L, nacos_check_namespace);
}

static int core_check_service(lua_State *L)
{
    return check_text(L, nacos_check_service);
}

static int core_check_clusters(lua_State *L)
{
    return check_text(L, nacos_check_clusters);
}

/** core.check_instance(instance) -> nil, or the name of a field and what is wrong with it */
static int core_check_instance(lua_State *L)
{
    nacos_instance i = check_instance(L, 1);
    const char *field = "instance", *why = nacos_check_instance(&i, &field);
    if (!why)
        return 0;
    lua_pushstring(L, field);
    lua_pushstring(L, why);
    return 2;
}

/** core.write_file(path, content, mode (0: kept), sync) -> true | nil, error */
static int core_write_file(lua_State *L)
{
    size_t len;
    const char *path = luaL_checkstring(L, 1), *data = luaL_checklstring(L, 2, &len);
    unsigned mode = (unsigned)luaL_checkinteger(L, 3);
    nacos_error err;
    if (nacos_write_file(path, data, len, mode, lua_toboolean(L, 4), &err)) {
        lua_pushboolean(L, 1);
        return 1;
    }
    lua_pushnil(L);
    push_error(L, &err);
    return 2;
}

/** core.lock(fd [, test]) -> true | false: somebody else has it | nil, error. Locks an open file until its descriptor is closed;
 * `test` only asks. */
static int core_lock(lua_State *L)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = (int)luaL_checkinteger(L, 1), test = lua_toboolean(L, 2);
    /* of the open file, not of the process: closing another descriptor of the same file does not end it */
    int bad = fcntl(fd, test ? F_OFD_GETLK : F_OFD_SETLK, &lock) != 0;
    if (bad && errno != EAGAIN && errno != EACCES)
        return fail(L, NACOS_INVALID, strerror(errno));
    lua_pushboolean(L, !bad && (!test || lock.l_type == F_UNLCK));
    return 1;
}

/** Pushes room for an entry of the user database: `size` bytes, more in each round; NULL: it is too large to be true. */
static char *push_room(lua_State *L, size_t *size)
{
    *size = *size ? *size * 4 : 4096;
    return *size <= 4 << 20 ? lua_newuserdatauv(L, *size, 0) : NULL;
}

/** core.user(name or number) -> uid, gid, name, home | nil: there is none */
static int core_user(lua_State *L)
{
    struct passwd entry, *found = NULL;
    size_t size = 0;
    int is_number = lua_type(L, 1) == LUA_TNUMBER, rc = ERANGE;
    lua_Integer number = is_number ? luaL_checkinteger(L, 1) : 0;
    const char *name = is_number ? NULL : luaL_checkstring(L, 1);
    for (char *room; rc == ERANGE && (room = push_room(L, &size));)
        rc = is_number ? getpwuid_r((uid_t)number, &entry, room, size, &found) : getpwnam_r(name, &entry, room, size, &found);
    if (!found)
        return 0;
    lua_pushinteger(L, entry.pw_uid);
    lua_pushinteger(L, entry.pw_gid);
    lua_pushstring(L, entry.pw_name);
    lua_pushstring(L, entry.pw_dir);
    return 4;
}

/** core.group(name or number) -> gid, name | nil: there is none */
static int core_group(lua_State *L)
{
    struct group entry, *found = NULL;
    size_t size = 0;
    int is_number = lua_type(L, 1) == LUA_TNUMBER, rc = ERANGE;
    lua_Integer number = is_number ? luaL_checkinteger(L, 1) : 0;
    const char *name = is_number ? NULL : luaL_checkstring(L, 1);
    for (char *room; rc == ERANGE && (room = push_room(L, &size));)
        rc = is_number ? getgrgid_r((gid_t)number, &entry, room, size, &found) : getgrnam_r(name, &entry, room, size, &found);
    if (!found)
        return 0;
    lua_pushinteger(L, entry.gr_gid);
    lua_pushstring(L, entry.gr_name);
    return 2;
}

static int core_monotonic(lua_State *L)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    lua_pushnumber(L, (lua_Number)ts.tv_sec + (lua_Number)ts.tv_nsec / 1e9);
    return 1;
}

/** core.sd_notify(address, text) -> true | nil, error: one datagram to a Unix socket; "@name" is an abstract one. */
static int core_sd_notify(lua_State *L)
{
    size_t path_len, len;
    const char *path = luaL_checklstring(L, 1, &path_len), *text = luaL_checklstring(L, 2, &len);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (path_len < 2 || path_len >= sizeof to.sun_path || (path[0] != '/' && path[0] != '@'))
        return fail(L, NACOS_INVALID, "the notify socket is no absolute path and no abstract name");
    memcpy(to.sun_path, path, path_len);
    if (path[0] == '@')
        to.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct timeval patience = {.tv_sec = 1}; /* for a full queue of the receiver */
    bool sent = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0 &&
                sendto(fd, text, len, MSG_NOSIGNAL, (struct sockaddr *)&to,
                       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_len)) == (ssize_t)len;
    int problem = errno;
    if (fd >= 0)
        close(fd);
    if (!sent)
        return fail(L, NACOS_UNAVAILABLE, strerror(problem));
    lua_pushboolean(L, 1);
    return 1;
}

static void new_class(lua_State *L, const char *name, const luaL_Reg *methods, lua_CFunction close)
{
    luaL_newmetatable(L, name);
    lua_newtable(L);
    luaL_setfuncs(L, methods, 0);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, close);
    lua_setfield(L, -2, "__gc");
    lua_pushcfunction(L, close);
    lua_setfield(L, -2, "__close");
    lua_pop(L, 1);
}

EXPORT int luaopen_nacos_core(lua_State *L);

EXPORT int luaopen_nacos_core(lua_State *L)
{
    static const luaL_Reg engine_methods[] = {{"wait", engine_wait},     {"fd", engine_fd},
                                              {"forked", engine_forked}, {"timer", engine_timer},
                                              {"signal", engine_signal}, {"readable", engine_readable},
                                              {"forget", engine_forget}, {"spawn", engine_spawn},
                                              {"pid", engine_pid},       {"kill", engine_kill},
                                              {"reap", engine_reap},     {"client", engine_client},
                                              {"close", engine_close},   {NULL, NULL}};
    static const luaL_Reg client_methods[] = {{"get", client_get},
                                              {"publish", client_publish},
                                              {"remove", client_remove},
                                              {"list", client_list},
                                              {"version", client_version},
                                              {"configure", client_configure},
                                              {"log", client_log},
                                              {"status", client_status},
                                              {"watch", client_watch},
                                              {"register", client_register},
                                              {"deregister", client_deregister},
                                              {"modify", client_modify},
                                              {"instance", client_instance},
                                              {"beat", client_beat},
                                              {"instances", client_instances},
                                              {"put_service", client_put_service},
                                              {"service", client_service},
                                              {"remove_service", client_remove_service},
                                              {"services", client_services},
                                              {"follow", client_follow},
                                              {"close", client_close},
                                              {NULL, NULL}};
    static const luaL_Reg watch_methods[] = {{"peek", watch_peek}, {"close", watch_close}, {NULL, NULL}};
    static const luaL_Reg subscription_methods[] = {
        {"configure", subscription_configure}, {"close", subscription_close}, {NULL, NULL}};
    static const luaL_Reg functions[] = {{"engine", core_engine},
                                         {"error", core_error},
                                         {"md5", core_md5},
                                         {"check_id", core_check_id},
                                         {"check_servers", core_check_servers},
                                         {"check_endpoint", core_check_endpoint},
                                         {"check_namespace", core_check_namespace},
                                         {"check_service", core_check_service},
                                         {"check_clusters", core_check_clusters},
                                         {"check_instance", core_check_instance},
                                         {"write_file", core_write_file},
                                         {"lock", core_lock},
                                         {"monotonic", core_monotonic},
                                         {"user", core_user},
                                         {"group", core_group},
                                         {"sd_notify", core_sd_notify},
                                         {NULL, NULL}};
    new_class(L, ENGINE, engine_methods, engine_close);
    new_class(L, CLIENT, client_methods, client_close);
    new_class(L, WATCH, watch_methods, watch_close);
    new_class(L, SUBSCRIPTION, subscription_methods, subscription_close);
    luaL_newmetatable(L, ERROR);
    lua_pushcfunction(L, error_tostring);
    lua_setfield(L, -2, "__tostring");
    lua_pop(L, 1);
    luaL_newlib(L, functions);
    lua_pushstring(L, nacos_version());
    lua_setfield(L, -2, "version");
    return 1;
}
