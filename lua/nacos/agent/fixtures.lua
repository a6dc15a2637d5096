--- fixtures: what a server would say, for tests of templates and scripts without one. See `lunacos test --help`.
--
--   local f = fixtures.new(folder)
--   f.config("shop.yaml", "port: 80")   f.service("web", { { ip = "10.0.0.1", port = 80 } })   f.env("HOME", "/root")
--   f.file("/etc/hostname", "web1")     f.render("shop.conf.tmpl") -> text
--
-- The functions that templates call are those of the agent (nacos.agent.sources); only its client is another.

local core = require "nacos.core"
local formats = require "nacos.formats"
local functions = require "nacos.template_functions"
local guard = require "nacos.agent.guard"
local options = require "nacos.options"
local scripts = require "nacos.agent.scripts"
local sources = require "nacos.agent.sources"
local target = require "nacos.agent.target"
local template = require "nacos.template"

local fixtures = {}

local DEFAULT_GROUP = "DEFAULT_GROUP"

local TEXT = { type = "string", required = true }
local CONFIG = { "data_id", "content"; data_id = TEXT, content = "string", group = "string", namespace = "string", type = "string" }
local SERVICE = {
  "name", "instances"; name = TEXT, group = "string", namespace = "string", instances = { type = "table", required = true, of = {
    type = "table", fields = {
      ip = TEXT, port = { type = "number", integer = true, min = 0, max = 65535, required = true },
      weight = { type = "number", min = 0, default = 1 }, healthy = { type = "boolean", default = true },
      enabled = { type = "boolean", default = true }, ephemeral = { type = "boolean", default = true },
      cluster_name = { type = "string", default = "DEFAULT" }, metadata = { type = "table", default = {} },
    },
  } },
}
local ENV = { "name", "value"; name = TEXT, value = "string" }
local FILE = { "path", "content"; path = TEXT, content = "string" }
local RENDER = { "source", "vars"; source = TEXT, vars = "table" }

local function key(namespace, group, name)
  return table.concat({ namespace or "", group or DEFAULT_GROUP, name }, "\0")
end

-- ---- the client of nacos.agent.sources ---------------------------------------------------------------------------------------

local Client = {}
Client.__index = Client

local function client(held, namespace)
  return setmetatable({ held = held, namespace = namespace, options = {} }, Client)
end

function Client:observe_config(data_id, group, fn)
  local held = self.held.configs[key(self.namespace, group, data_id)]
  local value = { version = 1, source = "server", server = "fixture" }
  if held then
    value.content, value.type, value.md5 = held.content, held.type, core.md5(held.content)
  end
  fn(value)
  return { stop = function() end, origin = function() end }
end

local function in_clusters(instance, clusters)
  return clusters == "" or ("," .. clusters .. ","):find("," .. instance.cluster_name .. ",", 1, true) ~= nil
end

function Client:observe_service(name, o, fn)
  local namespace = o.namespace_id == nil and self.namespace or o.namespace_id == "public" and "" or o.namespace_id
  local found = self.held.services[key(namespace, o.group_name, name)]
  local list = {}
  for _, instance in ipairs(found and found.instances or {}) do
    list[#list + 1] = in_clusters(instance, o.clusters) and instance or nil
  end
  fn({ instances = list, source = "server" })
  return function() end
end

function Client:list_services(o)
  local namespace = o.namespace_id == "public" and "" or o.namespace_id or ""
  local names = {}
  for _, service in pairs(o.page == 1 and self.held.services or {}) do
    if key(service.namespace, service.group, "") == key(namespace, o.group_name, "") then
      names[#names + 1] = service.name
    end
  end
  return { items = names, total = #names }
end

function Client.close() end

-- ---- what a case of a test gets ----------------------------------------------------------------------------------------------

---Read in one pass, as a target does.
---@return any # what fn returned; raises what it raised
local function pass(held, fn)
  local source = sources.new { client = client(held, ""), changed = function() end }
  setmetatable(source.clients, { __index = function(_, namespace)
    return client(held, namespace)
  end })
  local reader = source:read {}
  local given = reader.functions
  local read_file, read_env = given.file, given.env
  given.file = function(path, ...)
    local content = held.files[path]
    if content == nil then
      return read_file(path, ...)
    end
    return content
  end
  given.env = function(name, ...)
    local value = held.env[name]
    if value == nil then
      return read_env(name, ...)
    end
    return value
  end
  local results = table.pack(xpcall(fn, function(err)
    return type(err) == "string" and debug.traceback(err, 2) or err
  end, reader))
  reader:done()
  source:close()
  if not results[1] then
    error(results[2], 0)
  elseif reader.unknown then
    error(reader.unknown, 0)
  end
  return results[2]
end

local function context(reader, name)
  return setmetatable({ name = name }, { __index = function(_, field)
    return reader.functions[field] or functions.base[field]
  end })
end

local function render(reader, compiled, vars)
  local text, err = compiled:render(vars or {}, { functions = reader.functions })
  if not text then
    error(err, 0)
  end
  return text
end

---What agent.watch calls its functions with.
---@return nacos.Change
local function change_of(a)
  return {
    data_id = a.data_id, group = a.group or DEFAULT_GROUP, namespace = a.namespace or "",
    content = a.content, raw_content = a.content, md5 = a.content and core.md5(a.content),
    type = a.type or formats.kind(nil, a.data_id), source = "server",
  }
end

---A declared target by its name, a path, or the last part of a path.
local function find(definitions, name)
  local near
  for _, def in ipairs(definitions.targets) do
    if def.name == name or def.name:match("[^/]*$") == name then
      return def
    end
    for _, file in ipairs(type(def.files) == "table" and def.files or {}) do
      if file.path == name then
        return def
      end
      near = near or file.path:match("[^/]*$") == name and def
    end
  end
  return near
end

-- In place of a running agent: nothing is remembered.
local NOBODY = { state = { target = function() return { data = {} } end } }

---What the files of a target become.
---@return table<string, string> # path -> content
local function contents_of(def, reader)
  local contents = {}
  for _, file in ipairs(target.new(def, NOBODY):contents(reader)) do
    contents[file.path] = file.content
  end
  return contents
end

local function known_names(list, field)
  local names = {}
  for i, item in ipairs(list) do
    names[i] = item[field]
  end
  return table.concat(names, ", ")
end

---A script, as far as it can be tested: what its files become, and its handlers.
local function script_of(held, definitions)
  local script = {}

  ---The contents of a target.
  ---@return table<string, string> # path -> content
  function script.files(name)
    local def = find(definitions, name)
    if not def then
      error(("the script declares no file or group '%s' (it declares: %s)"):format(name,
        known_names(definitions.targets, "name")), 2)
    end
    return pass(held, function(reader)
      return contents_of(def, reader)
    end)
  end

  ---The content of one file, by its path or the last part of that.
  function script.file(path)
    local contents = script.files(path)
    if contents[path] then
      return contents[path]
    end
    for other, content in pairs(contents) do
      if other:match("[^/]*$") == path or next(contents, other) == nil and next(contents) == other then -- or the only one
        return content
      end
    end
    error(("'%s' is a group of several files: name one of them, or use files()"):format(path), 2)
  end

  ---Call the handlers of agent.watch for a configuration.
  function script.change(...)
    local change = change_of(options.named(CONFIG, "change", 2, ...))
    local called = 0
    for _, watch in ipairs(definitions.watches) do
      if watch.data_id == change.data_id and (watch.group or DEFAULT_GROUP) == change.group then
        called = called + 1
        local ok, err = guard.call("watch of " .. watch.data_id, watch.fn, change)
        if not ok then
          error(err, 0)
        end
      end
    end
    if called == 0 then
      error(("the script does not watch '%s' in group %s (it watches: %s)"):format(change.data_id, change.group,
        known_names(definitions.watches, "data_id")), 2)
    end
  end

  return script
end

---@param folder string # what paths start from
---@return table # functions: see the help of lua/nacos/cli/test.lua
function fixtures.new(folder)
  local held = { configs = {}, services = {}, files = {}, env = {} }
  local f = {}

  local function path_of(path)
    return (path:sub(1, 1) == "/" or folder == ".") and path or folder .. "/" .. path
  end

  ---A configuration. Without content: it does not exist.
  function f.config(...)
    local a = options.named(CONFIG, "config", 2, ...)
    held.configs[key(a.namespace, a.group, a.data_id)] = a.content and a or nil
  end

  ---All instances of a service.
  function f.service(...)
    local a = options.named(SERVICE, "service", 2, ...)
    table.sort(a.instances, function(x, y)
      if x.ip ~= y.ip then
        return x.ip < y.ip
      end
      return x.port < y.port
    end)
    held.services[key(a.namespace, a.group, a.name)] = a
  end

  ---A variable of the environment.
  function f.env(...)
    local a = options.named(ENV, "env", 2, ...)
    held.env[a.name] = a.value
  end

  ---What file(path) reads, in place of a real one.
  function f.file(...)
    local a = options.named(FILE, "file", 2, ...)
    held.files[a.path] = a.content
    held.files[path_of(a.path)] = a.content
  end

  ---@return string # what a template makes of the fixtures
  function f.render(...)
    local a = options.named(RENDER, "render", 2, ...)
    local compiled, err = template.compile_file(path_of(a.source))
    if not compiled then
      error(err, 0)
    end
    return pass(held, function(reader)
      return render(reader, compiled, a.vars)
    end)
  end

  ---@return string # what a content function makes of them
  function f.content(fn)
    if type(fn) ~= "function" then
      error("bad argument 'fn' to 'content' (function expected, got " .. type(fn) .. ")", 2)
    end
    return pass(held, function(reader)
      return fn(context(reader, "test"))
    end)
  end

  ---@return nacos.Change # for a handler that is called by hand
  function f.change(...)
    return change_of(options.named(CONFIG, "change", 2, ...))
  end

  ---A script with what it declares.
  function f.agent(path, ...)
    local definitions, problem = scripts.load({ path_of(path) }, { ... }, debug.traceback)
    if not definitions then
      error(problem, 0)
    end
    return script_of(held, definitions)
  end

  return f
end

return fixtures
