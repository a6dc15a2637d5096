--- sources: what templates read is what they depend on.
--
--   local s = sources.new{ client = client, changed = function(user) … end }
--   local reader = s:read(user)                  a pass begins; `user` is any table (a target)
--   local text, err = t:render(vars, { functions = reader.functions })
--   local used = reader:done(not text)           what was read; what is no longer read is un-watched
--   if reader.unknown then … end                 something is not known yet, even if the template caught that error: write nothing
--
-- A pass does not wait: it sees what has been delivered, so all that is rendered in one go sees one set of values, and what is read
-- twice in a pass is the same even if its code waits. What is not known yet raises a failure with code "unknown" (`default` or not),
-- and `changed` follows when it becomes known; what does not exist raises "not_found" unless there is a default. `changed(user)` is
-- called soon after anything has changed that `user` read: once for all that came together, and not if a later pass has read it
-- already. Tables that a template gets are its own.
--
--   config(data_id [, group [, {default =, namespace =}]])   text(…) likewise; see nacos.template_functions
--   service(name [, {group =, clusters =, namespace =, all = true}])   sorted list of the healthy and enabled instances, or of all
--   services([pattern [, {group =, namespace =}]])   sorted names; "*" in the pattern is the wildcard; asked for every 5 s
--   env(name [, default])    file(path [, {default =}])   its content; looked at every second
--
-- How: an *entry* is one thing that is read, by any number of users. Its `value` is a table that is never changed but replaced, so a
-- pass holds on to the one that it saw.

local core = require "nacos.core"
local formats = require "nacos.formats"
local functions = require "nacos.template_functions"
local options = require "nacos.options"
local scheduler = require "nacos.scheduler"
local uv = require "luv"

local sources = {}

local UNCONFIRMED = 90 -- seconds: a held poll takes 30
local DEFAULT_GROUP = "DEFAULT_GROUP"
local SERVICES_EVERY = 5       -- intervals of files
local EMPTY_LISTS = 3          -- so many in a row make it true that there are no services any more
local PAGE = 500               -- names in one answer
local FILE_MAX = 16 * 1024 * 1024
local YOUNG = 2                -- seconds in which a file may change again without a change of its times

---@class nacos.agent.Used
---@field kind "config"|"service"|"services"|"file"|"env"
---@field state "known"|"absent"|"unknown"|nil      # not of env
---@field data_id string|nil      # config
---@field name string|nil         # service, env
---@field path string|nil         # file
---@field group string|nil        # config, service, services
---@field namespace string|nil    # likewise; "" is the public one
---@field clusters string|nil     # service; "" all
---@field md5 string|nil          # config, file
---@field source "server"|"snapshot"|"failover"|nil # config, service, services
---@field server string|nil       # config: that told the value
---@field time integer|nil        # unix seconds: when the value came here
---@field instances integer|nil   # service: so many, healthy or not
---@field healthy integer|nil     # service: so many of them are healthy and enabled
---@field services integer|nil    # services: so many names

-- ---- entries and users -----------------------------------------------------------------------------------------------------

---@class nacos.agent.Sources
local Sources = {}
Sources.__index = Sources

---Call `changed` for everybody marked, when all that has come by now is delivered.
local function flush(self)
  scheduler.sleep(0)
  local marked = self.marked
  self.marked = {}
  for _, user in ipairs(marked) do
    if self.pending[user] then
      self.pending[user] = nil
      scheduler.spawn(self.changed, user) -- an error of one is reported and does not keep the news from the others
    end
  end
end

local function mark_users(self, entry)
  for user in pairs(entry.users) do
    if not self.pending[user] then
      self.pending[user] = true
      self.marked[#self.marked + 1] = user
      if #self.marked == 1 then
        scheduler.spawn(flush, self)
      end
    end
  end
end

local function set_value(self, entry, value)
  value.time = os.time()
  entry.value, entry.trouble = value, nil
  mark_users(self, entry)
end

---It cannot be had now. What is known stays.
local function set_trouble(self, entry, err)
  local news = not entry.trouble or tostring(entry.trouble) ~= tostring(err)
  local seconds, micros = uv.gettimeofday()
  entry.trouble, entry.trouble_time = err, seconds + micros / 1e6
  if news and not entry.value then
    mark_users(self, entry) -- the reason why they wait has changed
  end
end

local function leave(self, entry, user)
  entry.users[user] = nil
  if next(entry.users) == nil then
    self.entries[entry.key] = nil
    self.polled[entry] = nil
    if entry.stop then
      entry.stop()
    end
  end
end

---The one client for a namespace.
local function client_for(self, namespace)
  if namespace == self.client.namespace then
    return self.client
  end
  if not self.clients[namespace] then
    local copy = {}
    for name, value in pairs(self.client.options) do
      copy[name] = value
    end
    copy.namespace, copy.push = namespace, false -- pushes are of services, which name their namespace themselves
    self.clients[namespace] = require("nacos.client").new(copy)
  end
  return self.clients[namespace]
end

-- ---- what is polled --------------------------------------------------------------------------------------------------------

---@return string|nil content
---@return table|nil err # code "not_found": there is no such file
local function read_file(stat, path, code)
  if not stat then
    return nil, functions.failure(code == "ENOENT" and "not_found" or "unknown", "cannot read it: " .. tostring(code))
  elseif stat.type ~= "file" then -- opening a pipe could wait for ever
    return nil, functions.failure("unknown", "it is not a file but a " .. stat.type)
  elseif stat.size > FILE_MAX then
    return nil, functions.failure("unknown", ("it has more than %d bytes"):format(FILE_MAX))
  end
  local handle, problem = io.open(path, "rb")
  local content
  if handle then
    content, problem = handle:read("a")
    handle:close()
  end
  if not content then
    return nil, functions.failure("unknown", "cannot read it: " .. tostring(problem):gsub("^.*: ", ""))
  end
  return content
end

local function look_at_file(self, entry)
  local path = entry.about.path
  local stat, _, code = uv.fs_stat(path)
  local times = stat and { stat.mtime.sec, stat.mtime.nsec, stat.ctime.sec, stat.ctime.nsec, stat.ino, stat.dev, stat.size }
  local signature = times and table.concat(times, " ") or code
  if signature == entry.signature and not entry.young then
    return
  end
  entry.signature = signature
  entry.young = stat ~= nil and math.abs(os.time() - stat.ctime.sec) < YOUNG
  local content, err = read_file(stat, path, code)
  if not content and err.code ~= "not_found" then
    entry.signature = nil -- what was in the way may go without a trace on the file
    set_trouble(self, entry, err)
    return
  end
  local value = { content = content, md5 = content and core.md5(content), problem = err }
  if entry.value and entry.value.md5 == value.md5 then
    entry.trouble = nil
  else
    set_value(self, entry, value)
  end
end

---To naming "" is the client's namespace.
local function namespace_id(about)
  return about.namespace == "" and "public" or about.namespace
end

---All names of a group, by pages.
---@return string[]|nil # sorted
---@return nacos.Error|nil
local function list_services(client, about)
  local names, seen, page, total = {}, {}, 0, nil
  repeat
    page = page + 1
    local answer, err = client:list_services {
      group_name = about.group, namespace_id = namespace_id(about), page = page, page_size = PAGE,
    }
    if not answer then
      return nil, err
    elseif total and answer.total ~= total then
      return nil, core.error("unavailable", "the list of services changed while it was read")
    end
    total = answer.total
    for _, name in ipairs(answer.items) do
      if not seen[name] then
        seen[name] = true
        names[#names + 1] = name
      end
    end
  until #answer.items == 0 or page * PAGE >= total
  table.sort(names)
  return names
end

local function took_services(self, entry, names)
  local text = table.concat(names, "\n")
  local known = entry.value
  entry.trouble = nil
  -- a server that has just started knows of no services yet
  entry.empty = #names == 0 and known and #known.names > 0 and (entry.empty or 0) + 1 or 0
  if (not known or known.text ~= text) and (entry.empty == 0 or entry.empty >= EMPTY_LISTS) then
    set_value(self, entry, { names = names, text = text, source = "server" })
  end
end

local function ask_for_services(self, entry)
  if entry.asking then
    return
  end
  entry.asking = true
  scheduler.spawn(function()
    local names, err = list_services(self.client, entry.about)
    entry.asking = false
    if not self.polled[entry] then -- nobody wants it any more
      return
    elseif names then
      took_services(self, entry, names)
    else
      set_trouble(self, entry, err)
    end
  end)
end

local function poll(self)
  self.turns = self.turns + 1
  for entry in pairs(self.polled) do
    if entry.kind == "file" then
      look_at_file(self, entry)
    elseif self.turns % SERVICES_EVERY == 0 then
      ask_for_services(self, entry)
    end
  end
end

---Set the timer if there is something to poll. It is no task, so that close() can end it at once.
local function set_timer(self)
  if self.timer or next(self.polled) == nil then
    return
  end
  local id = scheduler.engine():timer(self.files_interval)
  self.timer = id
  if id then
    scheduler.handle(id, function()
      scheduler.handle(id, nil)
      self.timer = nil
      poll(self)
      set_timer(self)
    end)
  end
end

-- ---- how each kind is watched ----------------------------------------------------------------------------------------------

---kind -> function that makes an entry live; nil and an error when that is not possible.
local open = {}

function open.config(self, entry)
  local about = entry.about
  local observation, err = client_for(self, about.namespace):observe_config(about.data_id, about.group, function(value, problem)
    if value then
      set_value(self, entry, {
        content = value.content, md5 = value.md5, type = value.type, version = value.version, source = value.source,
        server = value.server, problem = not value.content and { code = "not_found" } or nil,
      })
    else
      set_trouble(self, entry, problem)
    end
  end)
  if not observation then
    return nil, err
  end
  entry.observation = observation
  entry.stop = function()
    observation:stop()
  end
  return true
end

function open.service(self, entry)
  local about = entry.about
  local stop, err = self.client:observe_service(about.name, {
    group_name = about.group, namespace_id = namespace_id(about), clusters = about.clusters, healthy_only = false,
    max_drop = self.max_drop, hold = self.hold,
  }, function(change, problem)
    if change then
      set_value(self, entry, { instances = change.instances, source = change.source })
    elseif not entry.value then -- else nobody would tell when it is over
      set_trouble(self, entry, problem)
    end
  end)
  entry.stop = stop
  return stop, err
end

function open.services(self, entry)
  self.polled[entry] = true
  ask_for_services(self, entry)
  set_timer(self)
  return true
end

function open.file(self, entry)
  self.polled[entry] = true
  look_at_file(self, entry)
  set_timer(self)
  return true
end

-- ---- what is told of entries -----------------------------------------------------------------------------------------------

local function label(entry)
  local about = entry.about
  local group = about.group and about.group ~= DEFAULT_GROUP and about.group or nil
  if entry.kind == "config" then
    return functions.named(about.data_id, group)
  elseif entry.kind == "file" then
    return "file '" .. about.path .. "'"
  end
  local name = entry.kind == "service" and "service '" .. about.name .. "'" or "the list of services"
  return name .. (group and " (group '" .. group .. "')" or "")
end

---@param value table|false|nil # the one that was seen
---@return nacos.agent.Used
---@return table|nil origin
local function describe(entry, value)
  local used = { kind = entry.kind, state = not value and "unknown" or value.problem and "absent" or "known" }
  for name, part in pairs(entry.about) do
    used[name] = part
  end
  if not value then
    return used
  end
  used.md5, used.source, used.server, used.time = value.md5, value.source, value.server, value.time
  if value.instances then
    used.instances, used.healthy = #value.instances, 0
    for _, instance in ipairs(value.instances) do
      used.healthy = used.healthy + (instance.healthy and instance.enabled and 1 or 0)
    end
  end
  used.services = value.names and #value.names
  local origin = entry.observation and entry.value == value and entry.observation:origin(value.version)
  if origin then -- what a snapshot told may have been confirmed since
    used.source, used.server = origin.source, origin.server
  end
  return used, origin or nil
end

-- ---- passes ----------------------------------------------------------------------------------------------------------------

---@class nacos.agent.Reader
---@field functions table<string, function> # config, text, service, services, env, file: for templates and content functions
---@field unknown table|nil                 # failure: the first thing that was asked for in this pass and is not known
local Reader = {}
Reader.__index = Reader

---The value of a thing as it was when this pass first read it; false when it was not known.
---@param kind string
---@param about table # what it is called
---@param key string  # the same in one text
---@return table|false value
---@return table|nil failure # why it is not known
local function see(self, kind, about, key)
  local s = self.sources
  if self.ended then
    error(functions.failure("template", kind .. "() was called after the pass that it belongs to"), 0)
  elseif s.closed then
    error(functions.failure("closed", "nothing is read any more: the agent stops"), 0)
  end
  key = kind .. "\0" .. key
  local entry = s.entries[key]
  if not entry then
    if not s.client and kind ~= "file" then
      error(functions.failure("template", kind .. "() needs a connection, and the script makes none: agent.connect { … }"), 0)
    end
    entry = { kind = kind, about = about, key = key, users = {} }
    local ok, err = open[kind](s, entry)
    if not ok then
      error(functions.failure(err.code, err.message), 0)
    end
    s.entries[key] = entry
  end
  if self.seen[entry] == nil then
    self.seen[entry] = entry.value or false
    self.order[#self.order + 1] = entry
    entry.users[self.user] = true
    self.record.watched[entry] = true
  end
  local value = self.seen[entry]
  if value then
    return value
  end
  local why = entry.value and "it was not when this pass began"
    or entry.trouble and tostring(entry.trouble) or "no server has answered yet"
  self.unknown = self.unknown or functions.failure("unknown", label(entry) .. " is not known: " .. why, {
    data_id = about.data_id, group = about.group,
  })
  return false, functions.failure("unknown", why), entry
end

---The same, for what has no default when it is not known.
local function see_known(self, kind, about, key)
  local value, why, entry = see(self, kind, about, key)
  if not value then
    error(functions.failure("unknown", label(entry) .. " is not known: " .. why.message), 0)
  end
  return value
end

local ID = { type = "string", required = true, check = core.check_id }
local GROUP = { type = "string", check = core.check_id }
local NAMESPACE = { type = "string", check = core.check_namespace }

local CONFIG = { "data_id", "group"; data_id = ID, group = GROUP, namespace = NAMESPACE, default = {} }
local SERVICE = {
  "name";
  name = { type = "string", required = true, check = core.check_service }, group = GROUP, namespace = NAMESPACE, all = "boolean",
  clusters = {
    type = "string", default = "",
    check = function(clusters)
      return clusters ~= "" and core.check_clusters(clusters) or nil
    end,
  },
}
local SERVICES = { "pattern"; pattern = { type = "string", default = "*" }, group = GROUP, namespace = NAMESPACE }
local FILE = { "path"; path = { type = "string", required = true }, default = {} }
local ENV = { "name", "default"; name = { type = "string", required = true }, default = {} }

---@return string # as clients call it
local function namespace_of(self, given)
  if given == nil then
    return self.sources.client and self.sources.client.namespace or ""
  end
  return given == "public" and "" or given
end

local function copy_tree(value, copies)
  if type(value) ~= "table" or value == formats.null then
    return value
  elseif not copies[value] then -- YAML may name one table twice
    local copy = setmetatable({}, getmetatable(value))
    copies[value] = copy
    for key, element in pairs(value) do
      copy[copy_tree(key, copies)] = copy_tree(element, copies)
    end
  end
  return copies[value]
end

local function copy_value(value)
  return type(value) == "table" and copy_tree(value, {}) or value
end

local function copy_instance(instance)
  local copy, metadata = {}, {}
  for name, value in pairs(instance) do
    copy[name] = value
  end
  for name, value in pairs(instance.metadata) do
    metadata[name] = value
  end
  copy.metadata = metadata
  copy.weight = math.tointeger(instance.weight) or instance.weight -- in a file 1, not 1.0
  return copy
end

---"*" is the wildcard.
local function as_pattern(glob)
  return "^" .. glob:gsub("[^%w*]", "%%%0"):gsub("%*", ".*") .. "$"
end

local function make_functions(self)
  local made = functions.over(function(a)
    local group, namespace = a.group or DEFAULT_GROUP, namespace_of(self, a.namespace)
    local value, why = see(self, "config", { data_id = a.data_id, group = group, namespace = namespace },
      table.concat({ a.data_id, group, namespace }, "\0"))
    return value or { problem = why }
  end, CONFIG, copy_value)

  function made.service(...)
    local a = options.named(SERVICE, "service", 2, ...)
    local about = {
      name = a.name, group = a.group or DEFAULT_GROUP, namespace = namespace_of(self, a.namespace), clusters = a.clusters,
    }
    local value = see_known(self, "service", about, table.concat({ a.name, about.group, about.namespace, a.clusters }, "\0"))
    local list = {}
    for _, instance in ipairs(value.instances) do
      if a.all or (instance.healthy and instance.enabled) then
        list[#list + 1] = copy_instance(instance)
      end
    end
    return list
  end

  function made.services(...)
    local a = options.named(SERVICES, "services", 2, ...)
    local about = { group = a.group or DEFAULT_GROUP, namespace = namespace_of(self, a.namespace) }
    local value, pattern = see_known(self, "services", about, about.group .. "\0" .. about.namespace), as_pattern(a.pattern)
    local list = {}
    for _, name in ipairs(value.names) do
      if name:find(pattern) then
        list[#list + 1] = name
      end
    end
    return list
  end

  function made.file(...)
    local a = options.named(FILE, "file", 2, ...)
    local value = see_known(self, "file", { path = a.path }, a.path)
    if value.content then
      return value.content
    elseif a.default == nil then
      error(functions.failure("not_found", "file '" .. a.path .. "' does not exist"), 0)
    end
    return a.default
  end

  function made.env(...)
    local a = options.named(ENV, "env", 2, ...)
    if not self.seen[a.name] then
      self.seen[a.name] = true
      self.order[#self.order + 1] = { env = a.name }
    end
    return functions.base.env(a.name, a.default)
  end

  return made
end

---Begin a pass of `user`.
---@param user table
---@return nacos.agent.Reader
function Sources:read(user)
  local record = self.users[user]
  if not record then
    record = { watched = {}, complete = {} } -- entries -> true: all that are watched for it; entries of the last whole pass
    self.users[user] = record
  elseif record.reader then
    record.reader:done(true)
  end
  self.pending[user] = nil -- this pass will read it
  local reader = setmetatable({
    sources = self, user = user, record = record,
    seen = {},  -- entry -> the value that this pass sees, false: it is not known
    order = {}, -- entries, and { env = name }
  }, Reader)
  reader.functions = make_functions(reader)
  record.reader = reader
  return reader
end

---End the pass.
---@param failed boolean|nil  # it did not come to its end: what the last whole pass read stays watched, too
---@return nacos.agent.Used[] # in the order of the first reads
function Reader:done(failed)
  if self.ended then
    return self.used or {}
  end
  local record = self.record
  self.ended, record.reader = true, nil
  if not failed and not self.unknown then
    record.complete = self.seen
  end
  local used = {}
  for i, entry in ipairs(self.order) do
    used[i] = entry.env and { kind = "env", name = entry.env } or describe(entry, self.seen[entry])
  end
  self.used = used
  for entry in pairs(record.watched) do
    if self.seen[entry] == nil and record.complete[entry] == nil then
      record.watched[entry] = nil
      leave(self.sources, entry, self.user)
    end
  end
  return used
end

-- ---- the rest --------------------------------------------------------------------------------------------------------------

---Nothing is watched for `user` any more.
---@param user table
function Sources:forget(user)
  local record = self.users[user]
  if not record then
    return
  end
  self.users[user], self.pending[user] = nil, nil
  if record.reader then
    record.reader.ended = true
  end
  for entry in pairs(record.watched) do
    leave(self, entry, user)
  end
end

---End everything; the client stays open.
function Sources:close()
  self.closed = true
  for user in pairs(self.users) do -- forget() only removes the present one
    self:forget(user)
  end
  for _, client in pairs(self.clients) do
    client:close()
  end
  self.clients = {}
  if self.timer then
    scheduler.handle(self.timer, nil)
    self.timer = nil
  end
end

---How each client speaks with its server.
---@return table[]
function Sources:servers()
  local clients, list = { self.client }, {}
  for _, namespace in ipairs(formats.sorted_keys(self.clients)) do
    clients[#clients + 1] = self.clients[namespace]
  end
  for _, client in ipairs(clients) do
    local status = client:status()
    if status then
      list[#list + 1] = {
        namespace = client.namespace, server = status.server, connected = status.connected, protocol = status.protocol,
        why = status.protocol_why, version = status.server_version, link = status.link, reconnects = status.reconnects,
      }
    end
  end
  return list
end

---What is watched now: as nacos.agent.Used, and `users` (how many), `age` (seconds since a server last said that it is so, else since it
---came), `trouble` (why it cannot be had now).
---@return table[]
function Sources:status()
  local keys, list = formats.sorted_keys(self.entries), {}
  for i, key in ipairs(keys) do
    local entry = self.entries[key]
    local status, origin = describe(entry, entry.value)
    local since = origin and origin.confirmed or status.time
    status.age = since and math.max(0, math.floor(os.time() - since))
    if entry.trouble and not (origin and (origin.confirmed or 0) > entry.trouble_time) then
      status.trouble = tostring(entry.trouble)
    elseif origin and status.age and status.age > UNCONFIRMED then
      status.trouble = ("no server has confirmed it for %d s"):format(status.age)
    end
    status.users = 0
    for _ in pairs(entry.users) do
      status.users = status.users + 1
    end
    list[i] = status
  end
  return list
end

local NEW = {
  client = { type = "table", as_is = true, doc = "without one only files and the environment can be read" },
  changed = { type = "function", required = true },
  files_interval = { type = "number", min = 0.01, max = 3600, default = 1 },
  max_drop = { type = "number", min = 0, max = 1, default = 0.5 },
  hold = { type = "number", min = 0, default = 10 },
}

---@param opts { client: nacos.Client|nil, changed: fun(user: table), files_interval: number|nil, max_drop: number|nil, hold: number|nil }
---files_interval: seconds, 1; max_drop, hold: of services, see nacos.WatchServiceOptions, 0.5 and 10: a registry that comes back empty
---fills up one heartbeat at a time
---@return nacos.agent.Sources
function sources.new(opts)
  local o = options.check(NEW, opts, "sources.new", 2)
  return setmetatable({
    client = o.client, changed = o.changed, files_interval = o.files_interval, max_drop = o.max_drop, hold = o.hold,
    entries = {}, -- key -> entry
    users = {},   -- user -> record
    clients = {}, -- namespace -> client, of the other namespaces
    polled = {},  -- entry -> true: files, and lists of services
    turns = 0,
    pending = {}, -- user -> true: `changed` is to be called
    marked = {},  -- the same users in order, some more than once
  }, Sources)
end

return sources
