--- naming: what a client does with services: register instances, find them, follow them. These methods are part of nacos.Client.
--
-- The engine keeps registered instances alive and asks for followed services; nothing here runs on a timer.

local core = require "nacos.core"
local options = require "nacos.options"
local scheduler = require "nacos.scheduler"

local json -- lua-cjson, loaded when JSON is first met

local await = scheduler.await
local monotonic = core.monotonic

local DEFAULT_GROUP = "DEFAULT_GROUP"
local SETTLED = 3       -- seconds after which lists surely show a change
local LIST_LAG = 1      -- seconds by which a server's list is behind a change, at most
local AT_ONCE = 64      -- registrations of a batch in flight
local FEW = 32          -- changes that are put into a sorted list one by one

---@class nacos.Instance
---@field ip string
---@field port integer
---@field cluster_name string
---@field weight number
---@field healthy boolean
---@field enabled boolean
---@field ephemeral boolean                 # false: persistent, the server checks it and never drops it
---@field metadata table<string, string>
---@field instance_id string|nil            # when the server gives one
---@field service_name string
---@field group_name string

---@class nacos.InstanceArgs
---@field service_name string
---@field ip string
---@field port integer
---@field cluster_name string|nil           # default "DEFAULT"
---@field weight number|nil                 # 1; 0 is never selected
---@field metadata table<string, string>|string|nil # strings only; or the text of such a JSON object
---@field enable boolean|nil                # true
---@field healthy boolean|nil               # true
---@field ephemeral boolean|nil             # true
---@field group_name string|nil             # "DEFAULT_GROUP"
---@field heartbeat_interval number|nil     # seconds, 5, at least 0.5; what the server says wins. Over gRPC there are no heartbeats
---@field namespace_id string|nil           # default: the client's; "public" is the public one
---@field timeout number|nil                # seconds; default the option default_timeout

---@class nacos.InstanceKey
---@field service_name string
---@field ip string
---@field port integer
---@field cluster_name string|nil
---@field ephemeral boolean|nil
---@field group_name string|nil
---@field namespace_id string|nil
---@field timeout number|nil

---@class nacos.ListInstancesArgs
---@field service_name string
---@field clusters string|nil               # comma separated; default all
---@field namespace_id string|nil
---@field group_name string|nil
---@field healthy_only boolean|nil          # false
---@field no_snapshot boolean|nil           # true: an error rather than an old list when no server answers
---@field timeout number|nil

---@class nacos.ListInfo
---@field skipped integer       # entries of the answer that were no instances, or came twice
---@field protection boolean    # too few are healthy: the server shows all of them as such
---@field cache_seconds number  # how long the server lets the answer be kept
---@field ref_time integer      # the server's lastRefTime

---@class nacos.SubscribeArgs
---@field listener_fn fun(event: "ADDED"|"MODIFIED"|"DELETED", instance: nacos.Instance)
---@field service_name string
---@field listener_interval number|nil      # seconds between two questions, 7
---@field clusters string|nil               # comma separated; default all
---@field namespace_id string|nil
---@field group_name string|nil
---@field healthy_only boolean|nil          # false
---@field listener_name string|nil          # default: one is made
---@field max_drop number|nil               # 0 … 1: see nacos.WatchServiceOptions
---@field hold number|nil

---@class nacos.WatchServiceOptions
---@field clusters string|nil               # comma separated; default all
---@field namespace_id string|nil
---@field group_name string|nil
---@field interval number|nil               # seconds between two questions, 7
---@field max_drop number|nil               # an answer that lacks more than this part of the list is held; default 1: only one that lacks all
---@field hold number|nil                   # seconds until it is believed, 10; 0: at once. Of several listeners of a service the most careful
---one decides for all: the smallest max_drop, the longest hold
---@field listener_name string|nil          # default: one is made
---@field healthy_only boolean|nil          # true

---@class nacos.ServiceChange
---@field service_name string
---@field group_name string
---@field namespace string                  # "" is the public one
---@field instances nacos.Instance[]        # all (healthy) ones, sorted by ip and port
---@field added nacos.Instance[]            # against what this callback was told before
---@field modified nacos.Instance[]
---@field removed nacos.Instance[]
---@field first boolean
---@field held integer                      # so many of `instances` the server no longer lists; see max_drop
---@field source "server"|"failover"|"snapshot"|nil
---@field via nacos.Via|nil                 # how the client learned of it
---@field protection boolean                # too few are healthy: the server shows all of them as such

---@class nacos.SelectOptions
---@field clusters string|nil
---@field namespace_id string|nil
---@field group_name string|nil
---@field timeout number|nil

---@class nacos.Heartbeat
---@field client_beat_interval number|nil   # seconds
---@field light_beat_enabled boolean|nil
---@field code integer|nil                  # 10200: taken; 20404: the server does not know the instance

---@class nacos.ServiceArgs
---@field service_name string
---@field group_name string|nil
---@field namespace_id string|nil
---@field protect_threshold number|nil      # 0 … 1
---@field metadata table<string, string>|string|nil
---@field selector table|string|nil         # the server's JSON
---@field timeout number|nil

---@class nacos.Service
---@field service_name string
---@field group_name string
---@field namespace string
---@field protect_threshold number
---@field metadata table<string, string>
---@field selector table|nil
---@field clusters table[]                  # as the server gives them

---@class nacos.Client
local Client = {}

-- ---- arguments -------------------------------------------------------------------------------------------------------------

local function load_json()
  json = json or require "cjson.safe"
  return json
end

---@return table|nil metadata
---@return string|nil why it is none
local function read_metadata(given)
  local metadata = given
  if type(given) == "string" then
    metadata = given:match("^%s*{") and load_json().decode(given)
    if type(metadata) ~= "table" then
      return nil, "a JSON object expected"
    end
  end
  for name, value in pairs(metadata) do
    if type(name) ~= "string" then
      return nil, "the names are strings, got a " .. type(name)
    elseif type(value) ~= "string" then
      return nil, ("the values are strings, '%s' is a %s"):format(name, value == load_json().null and "null" or type(value))
    elseif name:find("\0", 1, true) or value:find("\0", 1, true) then
      return nil, "holds a NUL byte"
    end
  end
  return metadata
end

local function check_metadata(given)
  local _, why = read_metadata(given)
  return why
end

local function check_ip(ip)
  if ip:find("\0", 1, true) then
    return "holds a NUL byte"
  end
end

local function check_clusters(clusters)
  return clusters ~= "" and core.check_clusters(clusters) or nil
end

local function check_cluster(cluster)
  return cluster:find(",", 1, true) and "one cluster expected" or core.check_clusters(cluster)
end

local SERVICE = { type = "string", required = true, check = core.check_service }
local GROUP = { type = "string", default = DEFAULT_GROUP, check = core.check_id }
local NAMESPACE = { type = "string", check = core.check_namespace }
local TIMEOUT = { type = "number", above = 0 }
local IP = { type = "string", required = true, check = check_ip }
local PORT = { type = "number", required = true, integer = true, min = 1, max = 65535 }
local CLUSTER = { type = "string", check = check_cluster }
local CLUSTERS = { type = "string", default = "", check = check_clusters }
local METADATA = { type = { "string", "table" }, check = check_metadata }
local WEIGHT = { type = "number", min = 0, max = 10000 }
local FUNCTION = { type = "function", required = true }
local INTERVAL = { type = "number", min = 0.1, max = 3600, default = 7 }
local MAX_DROP = { type = "number", min = 0, max = 1, default = 1 }
local HOLD = { type = "number", min = 0, max = 3600, default = 10 }
local FALSE = { type = "boolean", default = false }

local ADD = {
  "service_name", "ip", "port", "cluster_name", "weight", "metadata", "enable", "healthy", "ephemeral", "group_name",
  "heartbeat_interval";
  service_name = SERVICE, ip = IP, port = PORT, cluster_name = CLUSTER, weight = WEIGHT, metadata = METADATA, enable = "boolean",
  healthy = "boolean", ephemeral = "boolean", group_name = GROUP, namespace_id = NAMESPACE, timeout = TIMEOUT,
  heartbeat_interval = { type = "number", min = 0.5, max = 3600 },
}
local REMOVE = {
  "service_name", "ip", "port", "cluster_name", "ephemeral", "group_name";
  service_name = SERVICE, ip = IP, port = PORT, cluster_name = CLUSTER, ephemeral = "boolean", group_name = GROUP,
  namespace_id = NAMESPACE, timeout = TIMEOUT,
}
local MODIFY = {
  "service_name", "ip", "port", "cluster_name", "weight", "metadata", "enable", "ephemeral", "group_name";
  service_name = SERVICE, ip = IP, port = PORT, cluster_name = CLUSTER, weight = WEIGHT, metadata = METADATA, enable = "boolean",
  ephemeral = "boolean", group_name = GROUP, namespace_id = NAMESPACE, timeout = TIMEOUT,
}
local LIST = {
  "service_name", "clusters", "namespace_id", "group_name", "healthy_only";
  service_name = SERVICE, clusters = CLUSTERS, namespace_id = NAMESPACE, group_name = GROUP, healthy_only = FALSE,
  no_snapshot = "boolean", timeout = TIMEOUT,
}
local GET = {
  "service_name", "ip", "port", "cluster_name", "group_name";
  service_name = SERVICE, ip = IP, port = PORT, cluster_name = CLUSTER, group_name = GROUP, namespace_id = NAMESPACE,
  timeout = TIMEOUT,
}
local BEAT = {
  "service_name", "ip", "port", "cluster_name", "weight", "metadata", "ephemeral", "group_name";
  service_name = SERVICE, ip = IP, port = PORT, cluster_name = CLUSTER, weight = WEIGHT, metadata = METADATA,
  ephemeral = "boolean", group_name = GROUP, namespace_id = NAMESPACE, timeout = TIMEOUT,
}
local SUBSCRIBE = {
  "listener_fn", "listener_interval", "service_name", "clusters", "namespace_id", "group_name", "healthy_only";
  listener_fn = FUNCTION, listener_interval = INTERVAL, service_name = SERVICE, clusters = CLUSTERS, namespace_id = NAMESPACE,
  group_name = GROUP, healthy_only = FALSE, listener_name = "string", max_drop = MAX_DROP, hold = HOLD,
}
local UNSUBSCRIBE = {
  "service_name", "listener_name";
  service_name = SERVICE, listener_name = "string", namespace_id = NAMESPACE, group_name = GROUP,
  clusters = { type = "string", check = check_clusters },
}
local WATCH = {
  "service_name", "fn";
  service_name = SERVICE, fn = FUNCTION, interval = INTERVAL, clusters = CLUSTERS, namespace_id = NAMESPACE, group_name = GROUP,
  healthy_only = { type = "boolean", default = true }, listener_name = "string", max_drop = MAX_DROP, hold = HOLD,
}
local SELECT = {
  "service_name";
  service_name = SERVICE, clusters = CLUSTERS, namespace_id = NAMESPACE, group_name = GROUP, timeout = TIMEOUT,
}
local LIST_SERVICES = {
  group_name = GROUP, namespace_id = NAMESPACE, timeout = TIMEOUT,
  page = { type = "number", integer = true, min = 1, default = 1 },
  page_size = { type = "number", integer = true, min = 1, max = 1000, default = 100 },
}
local SERVICE_ONLY = {
  "service_name", "group_name";
  service_name = SERVICE, group_name = GROUP, namespace_id = NAMESPACE, timeout = TIMEOUT,
}
local PUT_SERVICE = {
  "service_name", "group_name";
  service_name = SERVICE, group_name = GROUP, namespace_id = NAMESPACE, timeout = TIMEOUT,
  protect_threshold = { type = "number", min = 0, max = 1 }, metadata = METADATA, selector = { type = { "string", "table" } },
}

---Arguments as the core takes a service. A blank namespace is the client's, as in the Python SDK.
local function service_of(a)
  local ns = a.namespace_id ~= "" and a.namespace_id or nil
  if ns == "public" then
    ns = ""
  end
  return { name = a.service_name, group = a.group_name, ns = ns }
end

---Arguments as the core takes an instance. Raises what is wrong with them.
---@param level integer # as in error(), seen from our caller
local function instance_of(a, what, level)
  local instance = {
    ip = a.ip, port = a.port, cluster = a.cluster_name, weight = a.weight, healthy = a.healthy, enabled = a.enable,
    ephemeral = a.ephemeral, metadata = a.metadata and read_metadata(a.metadata),
  }
  local field, why = core.check_instance(instance)
  if field then
    error(("bad argument '%s' to '%s' (%s)"):format(field == "cluster" and "cluster_name" or field, what, why), level + 1)
  end
  return instance
end

---@return fun(): number # seconds left of a call's timeout
local function countdown(self, timeout)
  local deadline = monotonic() + (timeout or self.options.default_timeout)
  return function()
    return math.max(deadline - monotonic(), 0.001)
  end
end

---The object in an answer's JSON.
local function decode(event, doing)
  local answer = load_json().decode(event.content or "")
  if type(answer) ~= "table" then
    return nil, core.error("protocol", ("cannot %s: the server's answer is not a JSON object"):format(doing))
  end
  return answer
end

local function of_type(kind, value, default)
  if type(value) == kind then -- JSON's null is a userdata
    return value
  end
  return default
end

local function whole(n)
  return type(n) == "number" and math.floor(n) or nil -- 25, not 25.0
end

-- ---- own instances ---------------------------------------------------------------------------------------------------------
--
-- client.registered holds what this client has registered and not removed: it is what a modification starts from.

local alive = {} -- clients with instances that the engine keeps alive -> how many: not to be collected

local function key_of(self, service, ip, port)
  return table.concat({ service.ns or self.namespace, service.group, service.name, ip, port }, "\2")
end

local function is_kept(record)
  return record and record.instance.ephemeral ~= false and 1 or 0
end

---Set, or with nil forget, what is registered under a key.
local function note(self, key, record)
  local more = is_kept(record) - is_kept(self.registered[key])
  self.registered[key] = record
  if more ~= 0 then
    local count = (alive[self] or 0) + more
    alive[self] = count > 0 and count or nil
    scheduler.keep(more)
  end
end

---A number that is larger for later calls: replies may come in another order.
local function next_call(self)
  self.calls = self.calls + 1
  return self.calls
end

---Begin to register. @return table registration # .id is nil when it failed at once, with .err
local function begin_registration(self, a, service, instance)
  local r = { key = key_of(self, service, a.ip, a.port), call = next_call(self), service = service, instance = instance }
  r.id, r.err = self.core:register(service, instance, a.heartbeat_interval or 0, a.timeout or self.options.default_timeout)
  return r
end

---@return true|nil
---@return nacos.Error|nil
local function end_registration(self, r, event)
  if event.error then
    return nil, event.error
  end
  local present = self.registered[r.key]
  if not self.closed and not (present and present.call > r.call) then
    note(self, r.key, { instance = r.instance, call = r.call, at = monotonic() })
  end
  return true
end

---Register an instance. An ephemeral one is kept alive by the runtime until it is removed or the client is closed, whatever Lua does
---meanwhile, and nacos.run() goes on as long. Registering the same ip and port in the same service again replaces what was.
---@param service_name string
---@param ip string
---@param port integer
---@param cluster_name string|nil           # default "DEFAULT"
---@param weight number|nil                 # 1; 0 … 10000
---@param metadata table<string, string>|string|nil # or the text of a JSON object of strings
---@param enable boolean|nil                # true
---@param healthy boolean|nil               # true
---@param ephemeral boolean|nil             # true; false: persistent
---@param group_name string|nil             # default "DEFAULT_GROUP"
---@param heartbeat_interval number|nil     # seconds, 5, at least 0.5; what the server says wins
---@return true|nil
---@return nacos.Error|nil
---@overload fun(self, args: nacos.InstanceArgs): true|nil, nacos.Error|nil
function Client:add_naming_instance(...)
  local a = options.named(ADD, "add_naming_instance", 2, ...)
  local r = begin_registration(self, a, service_of(a), instance_of(a, "add_naming_instance", 2))
  return end_registration(self, r, await(r.id, r.err))
end

---Register many instances, some at a time. When no server answers the rest is not tried.
---@param list nacos.InstanceArgs[] # its named fields are defaults for all: { { ip = "10.0.0.1", port = 80 }, …, service_name = "web" }
---@return true|nil                 # nil: at least one failed
---@return nacos.Error|nil          # the first
---@return (true|nacos.Error)[]     # of each instance
function Client:add_naming_instances(list)
  if type(list) ~= "table" then
    error("bad argument to 'add_naming_instances' (table expected, got " .. type(list) .. ")", 2)
  end
  local wanted, common, count = {}, {}, 0
  for name, value in pairs(list) do
    if type(name) ~= "number" then
      common[name] = value
    else
      count = math.max(count, name) -- a hole is a lookup that failed: an instance that would be missing
    end
  end
  for i = 1, count do
    local what, given = "add_naming_instances, instance " .. i, list[i]
    if type(given) ~= "table" then
      error(("bad argument to '%s' (table expected, got %s)"):format(what, type(given)), 2)
    end
    local args = {}
    for name, value in pairs(common) do
      args[name] = value
    end
    for name, value in pairs(given) do
      args[name] = value
    end
    local a = options.named(ADD, what, 2, args)
    wanted[i] = { a = a, service = service_of(a), instance = instance_of(a, what, 2) }
  end
  local results, first_error, unreachable = {}, nil, nil
  for from = 1, #wanted, AT_ONCE do
    local begun, ids = {}, {}
    for i = from, math.min(from + AT_ONCE - 1, #wanted) do
      local w = wanted[i]
      local r = unreachable and { err = unreachable } or begin_registration(self, w.a, w.service, w.instance)
      begun[i], ids[#ids + 1] = r, r.id
    end
    local events, answered = scheduler.await_all(ids), false
    for i, r in pairs(begun) do
      local ok, err = end_registration(self, r, r.id and events[r.id] or { error = r.err })
      results[i] = ok or err
      answered = answered or ok or err.code ~= "unavailable"
    end
    unreachable = not answered and results[from] or nil
  end
  for _, result in ipairs(results) do
    first_error = first_error or result ~= true and result or nil
  end
  return not first_error or nil, first_error, results
end

---Take an instance out of its service; one that is not there is fine. Its beats end first.
---@param service_name string
---@param ip string
---@param port integer
---@param cluster_name string|nil # default: as it was registered here, else "DEFAULT"
---@param ephemeral boolean|nil   # likewise, else true. A server keeps an instance of the other kind
---@param group_name string|nil   # default "DEFAULT_GROUP"
---@return true|nil
---@return nacos.Error|nil
---@overload fun(self, args: nacos.InstanceKey): true|nil, nacos.Error|nil
function Client:remove_naming_instance(...)
  local a = options.named(REMOVE, "remove_naming_instance", 2, ...)
  local service, instance = service_of(a), instance_of(a, "remove_naming_instance", 2)
  local key, call = key_of(self, service, a.ip, a.port), next_call(self)
  local own = self.registered[key]
  if own then
    instance.cluster = instance.cluster or own.instance.cluster
    if instance.ephemeral == nil then
      instance.ephemeral = own.instance.ephemeral
    end
    note(self, key, nil)
  end
  local event = await(self.core:deregister(service, instance, a.timeout or self.options.default_timeout))
  own = self.registered[key]
  if own and own.call < call then -- its reply came in between
    note(self, key, nil)
  end
  if event.error then
    return nil, event.error
  end
  return true
end

local function find_instance(list, ip, port)
  for _, instance in ipairs(list) do
    if instance.ip == ip and instance.port == port then
      return instance
    end
  end
end

---An instance as a server has it. A list tells all about an instance, but lacks disabled ones and is late.
---@param said boolean # whether it is enabled was said lately: no need to find out
local function read_instance(self, service, a, left, said)
  local found
  for try = 1, 2 do
    local event = await(self.core:instances(service, a.cluster_name, false, left(), "server_only"))
    if event.error then
      return nil, event.error
    end
    local instance = find_instance(event.hosts, a.ip, a.port)
    if instance then
      return instance
    end
    if try == 1 then
      event = await(self.core:instance(service, { ip = a.ip, port = a.port, cluster = a.cluster_name }, left()))
      found = event.hosts and event.hosts[1]
      if event.error or a.enable ~= nil or said then
        return found, event.error
      end
      scheduler.sleep(math.min(LIST_LAG, left() / 2))
    end
  end
  found.enabled = false
  return found
end

local FIELDS = { "weight", "metadata", "enabled", "ephemeral" }

---Keep what was said of an instance of somebody else, as long as lists may show what was before.
---@param given table # an instance, as far as it was given
local function remember(self, key, given)
  local now, before = monotonic(), self.said[key]
  for other, said in pairs(self.said) do
    if now >= said.till then
      self.said[other] = nil
    end
  end
  local said = { till = now + SETTLED }
  for _, name in ipairs(FIELDS) do
    said[name] = given[name]
    if said[name] == nil and before and now < before.till then
      said[name] = before[name]
    end
  end
  self.said[key] = said
end

---@return table # fields of an instance
local function recall(self, key)
  local said = self.said[key]
  return said and monotonic() < said.till and said or {}
end

local function overlay(value, default)
  if value == nil then
    return default
  end
  return value
end

---Change an instance; what is not given stays as it is. Later beats say the new state.
---@param service_name string
---@param ip string
---@param port integer
---@param cluster_name string|nil
---@param weight number|nil
---@param metadata table<string, string>|string|nil # a 2.x server keeps what was registered and is not named here
---@param enable boolean|nil
---@param ephemeral boolean|nil
---@param group_name string|nil   # default "DEFAULT_GROUP"
---@return true|nil
---@return nacos.Error|nil        # "not_found": there is no such instance
---@overload fun(self, args: nacos.InstanceArgs): true|nil, nacos.Error|nil
function Client:modify_naming_instance(...)
  local a = options.named(MODIFY, "modify_naming_instance", 2, ...)
  local service, given = service_of(a), instance_of(a, "modify_naming_instance", 2)
  local left, key = countdown(self, a.timeout), key_of(self, service, a.ip, a.port)
  local own = self.registered[key]
  if own and a.cluster_name and a.cluster_name ~= (own.instance.cluster or "DEFAULT") then
    own = nil
  end
  local said = recall(self, key)
  local before
  if own and monotonic() < own.at + SETTLED then
    before = own.instance
  else
    local err
    before, err = read_instance(self, service, a, left, said.enabled ~= nil)
    if before then
      before.cluster = before.cluster_name
    elseif own and err.code == "not_found" then -- forgotten, or the server shows no disabled ones
      before = own.instance
    else
      return nil, err
    end
    for _, name in ipairs(FIELDS) do
      before[name] = overlay(said[name], before[name])
    end
  end
  local instance = { ip = a.ip, port = a.port, cluster = before.cluster, healthy = before.healthy }
  for _, name in ipairs(FIELDS) do
    instance[name] = overlay(given[name], before[name])
  end
  local event = await(self.core:modify(service, instance, left()))
  if event.error then
    return nil, event.error
  end
  if not own then
    remember(self, key, given)
  elseif self.registered[key] == own then
    note(self, key, { instance = instance, call = own.call, at = monotonic() })
  end
  return true
end

---Send one heartbeat now, whole. Instances registered here need none: the runtime beats for them.
---@param service_name string
---@param ip string
---@param port integer
---@param cluster_name string|nil
---@param weight number|nil
---@param metadata table<string, string>|string|nil
---@param ephemeral boolean|nil
---@param group_name string|nil   # default "DEFAULT_GROUP"
---@return nacos.Heartbeat|nil
---@return nacos.Error|nil
---@overload fun(self, args: nacos.InstanceArgs): nacos.Heartbeat|nil, nacos.Error|nil
function Client:send_heartbeat(...)
  local a = options.named(BEAT, "send_heartbeat", 2, ...)
  local service, instance = service_of(a), instance_of(a, "send_heartbeat", 2)
  local event = await(self.core:beat(service, instance, a.timeout or self.options.default_timeout))
  if event.error then
    return nil, event.error
  end
  local answer, err = decode(event, "send a heartbeat")
  if not answer then
    return nil, err
  end
  local ms = of_type("number", answer.clientBeatInterval)
  return {
    client_beat_interval = ms and ms / 1000, light_beat_enabled = of_type("boolean", answer.lightBeatEnabled),
    code = whole(answer.code),
  }
end

-- ---- reading ---------------------------------------------------------------------------------------------------------------

local function belongs(instance, service)
  instance.service_name, instance.group_name = service.name, service.group
  return instance
end

---Read the instances of a service: failover file, then the servers in turn, then the last list on disk. A service that does not
---exist has none.
---@param service_name string
---@param clusters string|nil       # comma separated; default all
---@param namespace_id string|nil   # default: the client's
---@param group_name string|nil     # default "DEFAULT_GROUP"
---@param healthy_only boolean|nil  # false
---@return nacos.Instance[]|nil     # sorted by ip and port
---@return "server"|"failover"|"snapshot"|nacos.Error # where it came from, or why there is none
---@return nacos.ListInfo|nil
---@overload fun(self, args: nacos.ListInstancesArgs): nacos.Instance[]|nil, any, nacos.ListInfo|nil
function Client:list_naming_instance(...)
  local a = options.named(LIST, "list_naming_instance", 2, ...)
  local service = service_of(a)
  local how = a.no_snapshot == nil and "" or a.no_snapshot and "no_snapshot" or "use_snapshot"
  local event = await(self.core:instances(service, a.clusters ~= "" and a.clusters or nil, a.healthy_only,
    a.timeout or self.options.default_timeout, how))
  if event.error then
    return nil, event.error
  end
  for _, instance in ipairs(event.hosts) do
    belongs(instance, service)
  end
  return event.hosts, event.source, {
    skipped = event.skipped, protection = event.protection, cache_seconds = event.cache_seconds, ref_time = event.ref_time,
  }
end

---Read one instance from a server.
---@param service_name string
---@param ip string
---@param port integer
---@param cluster_name string|nil # default: in whichever cluster it is
---@param group_name string|nil   # default "DEFAULT_GROUP"
---@return nacos.Instance|nil     # enabled and ephemeral are nil when no server tells them: that of a disabled instance of others, say
---@return nacos.Error|nil        # "not_found": there is no such instance
---@overload fun(self, args: nacos.InstanceKey): nacos.Instance|nil, nacos.Error|nil
function Client:get_naming_instance(...)
  local a = options.named(GET, "get_naming_instance", 2, ...)
  local service, instance = service_of(a), instance_of(a, "get_naming_instance", 2)
  local left = countdown(self, a.timeout)
  local own = self.registered[key_of(self, service, a.ip, a.port)]
  instance.cluster = instance.cluster or own and own.instance.cluster
  local event = await(self.core:instance(service, instance, left()))
  local found, err = event.hosts and event.hosts[1], event.error
  if err and (err.code ~= "not_found" or a.cluster_name) then
    return nil, err
  end
  -- asked for one instance, a server looks in one cluster, and tells neither `enabled` nor `ephemeral`
  event = await(self.core:instances(service, a.cluster_name, false, left(), "server_only"))
  local listed = event.hosts and find_instance(event.hosts, a.ip, a.port)
  if not found then
    found = listed
  elseif listed then
    found.enabled, found.ephemeral = listed.enabled, listed.ephemeral
  elseif own then
    found.enabled, found.ephemeral = own.instance.enabled ~= false, own.instance.ephemeral ~= false
  else
    found.enabled, found.ephemeral = nil, nil
  end
  return found and belongs(found, service), not found and err or nil
end

-- ---- following -------------------------------------------------------------------------------------------------------------
--
-- An *item* is one followed service (with a choice of clusters), for any number of listeners: its instances by key, brought up to
-- date by the engine's changes. A *listener* remembers what it saw last (`seen`) and which instances may differ from that
-- (`pending`); what it is told is made of the two when it runs. Both are bounded by the instances there were and are.

---Sorts by ip, port and cluster.
local function instance_key(instance)
  return ("%s\0%05d\0%s"):format(instance.ip, instance.port, instance.cluster_name)
end

local function same(a, b)
  if a.weight ~= b.weight or a.healthy ~= b.healthy or a.enabled ~= b.enabled or a.ephemeral ~= b.ephemeral
    or a.instance_id ~= b.instance_id then
    return false
  end
  for name, value in pairs(a.metadata) do
    if b.metadata[name] ~= value then
      return false
    end
  end
  for name in pairs(b.metadata) do
    if a.metadata[name] == nil then
      return false
    end
  end
  return true
end

---What a listener gets is its own: it may change it.
local function copy(instance)
  local c = {}
  for name, value in pairs(instance) do
    c[name] = value
  end
  c.metadata = {}
  for name, value in pairs(instance.metadata) do
    c.metadata[name] = value
  end
  return c
end

---The instance as this listener may see it.
local function visible(listener, key)
  local instance = listener.item.instances[key]
  return instance and (instance.healthy or not listener.healthy_only) and instance or nil
end

local function mark(listener, key)
  listener.pending[key] = (listener.seen[key] or visible(listener, key)) and true or nil
end

local function take_pending(listener)
  local keys = {}
  for key in pairs(listener.pending) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  listener.pending = {}
  return keys
end

---What a listener has not seen yet of one instance; from now on it has.
local function news(listener, key)
  local before, now = listener.seen[key], visible(listener, key)
  listener.seen[key] = now
  if now and not before then
    return "ADDED", now
  elseif before and not now then
    return "DELETED", listener.item.instances[key] or before
  elseif before ~= now and not same(before, now) then
    return "MODIFIED", now
  end
end

---subscribe(): one call for each instance.
local Listener = {}
Listener.__index = Listener

function Listener:deliver(callbacks)
  for _, key in ipairs(take_pending(self)) do
    if self.removed then
      return
    end
    local kind, instance = news(self, key)
    if kind then
      callbacks:call(self.fn, self.about, kind, copy(instance))
    end
  end
end

---The first of the sorted `keys` that is not less than `key`.
local function lower_bound(keys, key)
  local low, high = 1, #keys + 1
  while low < high do
    local middle = (low + high) // 2
    if keys[middle] < key then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

---The sorted keys of an item's instances.
local function sorted(item)
  if not item.keys then
    item.keys = {}
    for key in pairs(item.instances) do
      item.keys[#item.keys + 1] = key
    end
    table.sort(item.keys)
  end
  return item.keys
end

---watch_service(): one call with everything.
local Watcher = {}
Watcher.__index = Watcher

function Watcher:deliver(callbacks)
  local item, lists = self.item, { ADDED = {}, MODIFIED = {}, DELETED = {} }
  local first, changed = not self.told, false
  for _, key in ipairs(take_pending(self)) do
    local kind, instance = news(self, key)
    if kind then
      changed = true
      instance = copy(instance)
      lists[kind][#lists[kind] + 1] = instance
      self.copies[key] = kind ~= "DELETED" and instance or nil
    end
  end
  if not first and not changed and self.held == item.held and self.source == item.source and self.protection == item.protection then
    return
  end
  self.told, self.held, self.source, self.protection = true, item.held, item.source, item.protection
  local instances = {}
  for _, key in ipairs(sorted(item)) do
    instances[#instances + 1] = self.copies[key]
  end
  callbacks:call(self.fn, self.about, {
    service_name = item.service.name, group_name = item.service.group, namespace = item.namespace,
    instances = instances, added = lists.ADDED, modified = lists.MODIFIED, removed = lists.DELETED,
    first = first, held = item.held, source = item.source, via = item.via, protection = item.protection,
  })
end

---What runs the listeners of observe_service(): the turn itself.
local AT_ONCE_HERE = { call = function(_, fn, _, change) fn(change) end }

---@return boolean # whether the set of instances has changed, or only one that was there
local function apply(item, change)
  local key = instance_key(change.instance)
  local was = item.instances[key]
  item.instances[key] = change.kind ~= "DELETED" and belongs(change.instance, item.service) or nil
  for _, listener in ipairs(item.listeners) do
    mark(listener, key)
  end
  if not item.keys or (was ~= nil) == (item.instances[key] ~= nil) then
    return
  end
  local at = lower_bound(item.keys, key)
  if was then
    table.remove(item.keys, at)
  else
    table.insert(item.keys, at, key)
  end
end

local function on_event(self, item, event)
  if event.kind == "trouble" then
    for _, listener in ipairs(item.listeners) do
      if listener.observes then
        listener.fn(nil, event.error)
      end
    end
    self.callbacks:report(event.error, {
      kind = "watch", service_name = item.service.name, group_name = item.service.group, namespace = item.namespace,
    })
    return
  end
  if #event.changes > FEW then
    item.keys = nil
  end
  for _, change in ipairs(event.changes) do
    apply(item, change)
  end
  item.known, item.choices = true, {}
  item.held, item.source, item.via, item.protection = event.held, event.source, event.via, event.protection
  for _, listener in ipairs({ table.unpack(item.listeners) }) do -- a callback may add and remove while we go
    if listener.observes then
      listener:deliver(AT_ONCE_HERE)
    else
      self.callbacks:notify(listener)
    end
  end
end

---"b,a" and "a,b,a" ask for the same.
local function normal_clusters(clusters)
  local names, seen = {}, {}
  for name in clusters:gmatch("[^,]+") do
    if not seen[name] then
      seen[name] = true
      names[#names + 1] = name
    end
  end
  table.sort(names)
  return table.concat(names, ",")
end

local function item_key(self, service, clusters)
  return table.concat({ service.ns or self.namespace, service.group, service.name, clusters }, "\2")
end

---What all listeners of an item want of the engine: asked as often as the most eager one wants, held as the most careful one does.
local function wishes(item)
  local w = { clusters = item.clusters ~= "" and item.clusters or nil, interval = math.huge, max_drop = 1, hold = 0 }
  for _, listener in ipairs(item.listeners) do
    w.interval = math.min(w.interval, listener.interval)
    w.max_drop = math.min(w.max_drop, listener.max_drop)
    w.hold = math.max(w.hold, listener.hold)
  end
  return w
end

local function reconfigure(item)
  local now, before = wishes(item), item.wishes
  if now.interval ~= before.interval or now.max_drop ~= before.max_drop or now.hold ~= before.hold then
    item.wishes = now
    item.subscription:configure(now)
  end
end

local function has_name(item, name)
  for _, listener in ipairs(item.listeners) do
    if listener.name == name then
      return true
    end
  end
  return false
end

---A name that no listener of the item has.
local function new_name(self, item)
  repeat
    self.names = self.names + 1
  until not has_name(item, "listener-" .. self.names)
  return "listener-" .. self.names
end

---@param a table # arguments of subscribe(), watch_service() or observe_service()
---@param observes boolean|nil
---@return table|nil listener
---@return nacos.Error|nil
local function add_listener(self, class, fn, interval, a, observes)
  local service, clusters = service_of(a), normal_clusters(a.clusters)
  local key = item_key(self, service, clusters)
  local item = self.services[key] or {
    key = key, service = service, namespace = service.ns or self.namespace, clusters = clusters, listeners = {}, instances = {},
    choices = {}, held = 0,
  }
  if a.listener_name and has_name(item, a.listener_name) then
    return nil, core.error("invalid",
      ("%s (group %s) has a listener of this name: %s"):format(service.name, service.group, a.listener_name))
  end
  local listener = setmetatable({
    fn = fn, name = a.listener_name or new_name(self, item), item = item, interval = interval, max_drop = a.max_drop, hold = a.hold,
    healthy_only = a.healthy_only, observes = observes, seen = {}, pending = {}, copies = {},
  }, class)
  listener.about = {
    service_name = service.name, group_name = service.group, namespace = item.namespace, listener_name = listener.name,
  }
  item.listeners[#item.listeners + 1] = listener
  if item.subscription then
    reconfigure(item)
  else
    item.wishes = wishes(item)
    local id
    item.subscription, id = self.core:follow(service, item.wishes)
    if not item.subscription then
      return nil, id
    end
    item.id = id
    self.services[key] = item
    scheduler.handle(id, function(event)
      on_event(self, item, event)
    end)
  end
  if item.known then
    for instance in pairs(item.instances) do
      mark(listener, instance)
    end
    if observes then
      listener:deliver(AT_ONCE_HERE)
    else
      self.callbacks:notify_soon(listener)
    end
  end
  return listener
end

---Call `listener_fn` for every instance of a service that is there ("ADDED"), and for every one that is added, modified or deleted
---from then on. The calls of one listener follow each other, each in a task (it may wait); what comes meanwhile is merged. With
---healthy_only an instance that becomes unhealthy counts as deleted, one that recovers as added.
---@param listener_fn fun(event: "ADDED"|"MODIFIED"|"DELETED", instance: nacos.Instance) # do not change the instance
---@param listener_interval number|nil  # seconds between two questions, 7; pushes come in between
---@param service_name string
---@param clusters string|nil           # comma separated; default all
---@param namespace_id string|nil       # default: the client's
---@param group_name string|nil         # default "DEFAULT_GROUP"
---@param healthy_only boolean|nil      # false
---@return string|nil listener_name     # for unsubscribe
---@return nacos.Error|nil              # "closed", "forked", "invalid" (the name is taken): a server that is down is no error here
---@overload fun(self, args: nacos.SubscribeArgs): string|nil, nacos.Error|nil
---@overload fun(self, listener_fn: function, listener_interval: number|nil, args: nacos.SubscribeArgs): string|nil, nacos.Error|nil
function Client:subscribe(...)
  local a = options.named(SUBSCRIBE, "subscribe", 2, ...)
  local listener, err = add_listener(self, Listener, a.listener_fn, a.listener_interval, a)
  return listener and listener.name, err
end

---Call `fn` with the whole (healthy) list and the difference: once at the start, also with an empty list, then after every change, also
---one of `held`, `source` or `protection` alone. Otherwise as subscribe.
---@param service_name string
---@param opts nacos.WatchServiceOptions|nil
---@param fn fun(change: nacos.ServiceChange) # do not change the instances
---@return string|nil listener_name       # for unsubscribe
---@return nacos.Error|nil
---@overload fun(self, service_name: string, fn: fun(change: nacos.ServiceChange)): string|nil, nacos.Error|nil
function Client:watch_service(service_name, opts, fn, ...)
  local a
  if fn ~= nil or (type(service_name) == "string" and type(opts) == "table") then
    if type(opts) ~= "table" and opts ~= nil then
      error(("bad argument 'opts' to 'watch_service' (table expected, got %s)"):format(type(opts)), 2)
    end
    a = options.named(WATCH, "watch_service", 2, service_name, fn, opts or {}, ...)
  else
    a = options.named(WATCH, "watch_service", 2, service_name, opts)
  end
  local listener, err = add_listener(self, Watcher, a.fn, a.interval, a)
  return listener and listener.name, err
end

local function drop_item(self, item)
  item.subscription:close()
  scheduler.handle(item.id, nil)
  self.services[item.key] = nil
end

---Remove the listeners of an item for which `wanted` is true.
local function remove_listeners(self, item, wanted)
  local kept, removed = {}, 0
  for _, listener in ipairs(item.listeners) do
    if wanted(listener) then
      listener.removed = true
      removed = removed + 1
    else
      kept[#kept + 1] = listener
    end
  end
  item.listeners = kept
  if #kept == 0 then
    drop_item(self, item)
  elseif removed > 0 then
    reconfigure(item)
  end
  return removed
end

---Remove a listener of a service, or all of them. A call under way ends by itself. An unknown one is ignored.
---@param service_name string
---@param listener_name string|nil # what subscribe or watch_service returned; default: all listeners
---@return integer                 # so many were removed
---@overload fun(self, args: { service_name: string, listener_name: string|nil, clusters: string|nil, namespace_id: string|nil, group_name: string|nil }): integer
function Client:unsubscribe(...)
  local a = options.named(UNSUBSCRIBE, "unsubscribe", 2, ...)
  local service, clusters = service_of(a), a.clusters and normal_clusters(a.clusters)
  local items = {}
  for _, item in pairs(self.services) do
    if item.service.name == service.name and item.service.group == service.group
      and item.namespace == (service.ns or self.namespace) and (not clusters or item.clusters == clusters) then
      items[#items + 1] = item
    end
  end
  local removed = 0
  for _, item in ipairs(items) do
    removed = removed + remove_listeners(self, item, function(listener)
      return not listener.observes and (not a.listener_name or listener.name == a.listener_name)
    end)
  end
  return removed
end

---As watch_service(), but `fn` is called in the very turn in which news come, and at once if the list is known: not as a task, so nothing
---can be in its way, and it must neither wait nor raise. It is told of troubles, too (nil and the error). For parts of this program such
---as the agent.
---@param service_name string
---@param opts nacos.WatchServiceOptions
---@param fn fun(change: nacos.ServiceChange|nil, err: nacos.Error|nil)
---@return fun()|nil stop
---@return nacos.Error|nil
function Client:observe_service(service_name, opts, fn)
  local a = options.named(WATCH, "observe_service", 2, service_name, fn, opts)
  local listener, err = add_listener(self, Watcher, a.fn, a.interval, a, true)
  return listener and function()
    if not listener.removed then
      remove_listeners(self, listener.item, function(other)
        return other == listener
      end)
    end
  end, err
end

local function all(listener)
  return not listener.observes
end

---Remove all listeners of all services.
function Client:stop_subscribe()
  local items = {}
  for _, item in pairs(self.services) do
    items[#items + 1] = item
  end
  for _, item in ipairs(items) do
    remove_listeners(self, item, all)
  end
end

-- ---- choosing --------------------------------------------------------------------------------------------------------------

---What can be chosen of a list: instances and the sums of their weights so far.
---@param wanted table<string, true>|nil # clusters
local function choices_of(list, wanted)
  local choices = { total = 0, sums = {} }
  for _, instance in ipairs(list) do
    if instance.healthy and instance.enabled and instance.weight > 0 and (not wanted or wanted[instance.cluster_name]) then
      choices.total = choices.total + instance.weight
      choices[#choices + 1] = instance
      choices.sums[#choices] = choices.total
    end
  end
  return choices
end

local function choose(choices, service)
  if #choices == 0 then
    return nil, core.error("not_found",
      ("cannot select an instance of %s (group %s): none is healthy, enabled and of a weight above 0")
        :format(service.name, service.group))
  end
  local at = lower_bound(choices.sums, math.random() * choices.total)
  return copy(choices[math.min(at, #choices)])
end

---@return table|nil # what can be chosen, from a followed service
local function known_choices(self, service, clusters)
  local item = self.services[item_key(self, service, clusters)] or self.services[item_key(self, service, "")]
  if not item or not item.known then
    return nil
  end
  if not item.choices[clusters] then
    local list, wanted = {}, nil
    for i, key in ipairs(sorted(item)) do
      list[i] = item.instances[key]
    end
    if clusters ~= item.clusters then
      wanted = {}
      for name in clusters:gmatch("[^,]+") do
        wanted[name] = true
      end
    end
    item.choices[clusters] = choices_of(list, wanted)
  end
  return item.choices[clusters]
end

---Choose an instance at random, as often as its weight says, among those that are healthy and enabled. From memory, without any I/O,
---when this client follows the service; else the service is read first.
---@param service_name string
---@param opts nacos.SelectOptions|nil
---@return nacos.Instance|nil
---@return nacos.Error|nil      # "not_found": there is none
---@overload fun(self, args: { service_name: string, clusters: string|nil, namespace_id: string|nil, group_name: string|nil, timeout: number|nil }): nacos.Instance|nil, nacos.Error|nil
function Client:select_instance(...)
  local a = options.named(SELECT, "select_instance", 2, ...)
  local service, clusters = service_of(a), normal_clusters(a.clusters)
  local choices = known_choices(self, service, clusters)
  if not choices then
    local list, err = self:list_naming_instance {
      service_name = a.service_name, clusters = clusters, namespace_id = a.namespace_id, group_name = a.group_name,
      timeout = a.timeout,
    }
    if not list then
      return nil, err
    end
    choices = choices_of(list)
  end
  return choose(choices, service)
end

-- ---- services --------------------------------------------------------------------------------------------------------------

---One page of the names of the services of a group.
---@param args { group_name: string|nil, namespace_id: string|nil, page: integer|nil, page_size: integer|nil, timeout: number|nil }|nil
---@return { total: integer, items: string[] }|nil
---@return nacos.Error|nil
function Client:list_services(...)
  local a = options.named(LIST_SERVICES, "list_services", 2, ...)
  local event = await(self.core:services(service_of(a), a.page, a.page_size, a.timeout or self.options.default_timeout))
  if event.error then
    return nil, event.error
  end
  local answer, err = decode(event, "list services")
  if not answer then
    return nil, err
  end
  local items = {}
  for _, name in ipairs(of_type("table", answer.doms, {})) do
    items[#items + 1] = of_type("string", name)
  end
  return { total = whole(answer.count) or #items, items = items }
end

local function read_service(self, a, timeout)
  local event = await(self.core:service(service_of(a), timeout))
  if event.error then
    return nil, event.error
  end
  local answer, err = decode(event, "read a service")
  if not answer then
    return nil, err
  end
  local metadata = {}
  for name, value in pairs(of_type("table", answer.metadata, {})) do
    if type(name) == "string" and type(value) == "string" then
      metadata[name] = value
    end
  end
  return {
    service_name = a.service_name, group_name = a.group_name, namespace = service_of(a).ns or self.namespace,
    protect_threshold = of_type("number", answer.protectThreshold, 0), metadata = metadata,
    selector = of_type("table", answer.selector), clusters = of_type("table", answer.clusters, {}),
  }
end

---Read what a service says of itself.
---@param service_name string
---@param group_name string|nil # default "DEFAULT_GROUP"
---@return nacos.Service|nil
---@return nacos.Error|nil
---@overload fun(self, args: nacos.ServiceArgs): nacos.Service|nil, nacos.Error|nil
function Client:get_service(...)
  local a = options.named(SERVICE_ONLY, "get_service", 2, ...)
  return read_service(self, a, a.timeout or self.options.default_timeout)
end

local function put_service(self, a, update, timeout)
  local selector = a.selector
  if type(selector) == "table" then
    selector = load_json().encode(selector)
  end
  local event = await(self.core:put_service(service_of(a), {
    protect_threshold = a.protect_threshold or 0, metadata = a.metadata and read_metadata(a.metadata), selector = selector,
  }, update, timeout))
  if event.error then
    return nil, event.error
  end
  return true
end

---Make a service that has no instances yet. Registering an instance makes it anyway; a 2.x server takes only persistent instances
---in one made by this call.
---@param args nacos.ServiceArgs
---@return true|nil
---@return nacos.Error|nil
function Client:create_service(...)
  local a = options.named(PUT_SERVICE, "create_service", 2, ...)
  return put_service(self, a, false, a.timeout or self.options.default_timeout)
end

---Change what a service says of itself; what is not given stays as it is.
---@param args nacos.ServiceArgs
---@return true|nil
---@return nacos.Error|nil
function Client:update_service(...)
  local a = options.named(PUT_SERVICE, "update_service", 2, ...)
  local left = countdown(self, a.timeout)
  if not (a.protect_threshold and a.metadata and a.selector) then
    local present, err = read_service(self, a, left())
    if not present then
      return nil, err
    end
    for _, name in ipairs { "protect_threshold", "metadata", "selector" } do
      a[name] = overlay(a[name], present[name])
    end
  end
  return put_service(self, a, true, left())
end

---Remove a service; a server refuses while it has instances.
---@param service_name string
---@param group_name string|nil # default "DEFAULT_GROUP"
---@return true|nil
---@return nacos.Error|nil
---@overload fun(self, args: nacos.ServiceArgs): true|nil, nacos.Error|nil
function Client:remove_service(...)
  local a = options.named(SERVICE_ONLY, "remove_service", 2, ...)
  local event = await(self.core:remove_service(service_of(a), a.timeout or self.options.default_timeout))
  if event.error then
    return nil, event.error
  end
  return true
end

Client.delete_service = Client.remove_service

-- ---- the client's life -----------------------------------------------------------------------------------------------------

local function init(client)
  client.registered = {} -- key -> { instance, call, at }: own instances
  client.said = {}       -- key -> what this client said of an instance lately
  client.services = {}   -- key -> item: what is followed
  client.calls = 0
  client.names = 0       -- listeners named so far
end

---Forget everything: the engine is about to end it.
local function close(client)
  client.closed = true
  for key in pairs(client.registered) do
    note(client, key, nil)
  end
  for _, item in pairs(client.services) do
    scheduler.handle(item.id, nil)
    for _, listener in ipairs(item.listeners) do
      listener.removed = true
    end
  end
  client.services = {}
end

return { methods = Client, init = init, close = close }
