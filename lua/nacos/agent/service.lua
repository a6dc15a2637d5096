--- service: one instance in the registry, for as long as its check says that it is well.
--
-- Each has one task that registers, changes and takes out; what the check and the methods want is compared with what the server was
-- last told, so a failure is only tried again. What is registered is kept alive by the client.

local bell = require "nacos.agent.bell"
local check = require "nacos.agent.check"
local command = require "nacos.agent.command"
local core = require "nacos.core"
local guard = require "nacos.agent.guard"
local formats = require "nacos.formats"
local options = require "nacos.options"
local scheduler = require "nacos.scheduler"

local IP_TIMEOUT = 10
local FIRST_PAUSE, LONGEST_PAUSE = 1, 30 -- seconds from a failure to the next try: doubles

local PLACE = { "service_name", "ip", "port", "cluster_name", "ephemeral", "group_name", "namespace_id" } -- what makes an instance
local TOLD = { "name", "ip", "port", "cluster", "ephemeral", "group", "namespace", "weight", "heartbeat_interval" } -- and metadata

local function seconds(default)
  return { type = "number", above = 0, max = 86400, default = default }
end

local function times(default)
  return { type = "number", integer = true, min = 1, default = default }
end

local function bad_metadata(metadata)
  for name, value in pairs(metadata) do
    if type(name) ~= "string" or type(value) ~= "string" then
      return "names and strings expected"
    end
  end
end

local SPEC = {
  name = { type = "string", required = true, check = core.check_service },
  port = { type = "number", required = true, integer = true, min = 1, max = 65535 },
  ip = { type = { "string", "function" }, check = function(ip) return ip == "" and "is empty" or nil end },
  group = { type = "string", check = core.check_id }, namespace = { type = "string", check = core.check_namespace },
  cluster = { type = "string", check = core.check_clusters }, weight = { type = "number", min = 0, max = 10000 },
  metadata = { type = "table", check = bad_metadata }, ephemeral = "boolean",
  heartbeat_interval = { type = "number", min = 0.5, max = 3600 },
  check = command.RULE, interval = seconds(5), check_timeout = seconds(5), rise = times(2), fall = times(3),
  drain = { type = "number", min = 0, max = 86400, default = 0 },
}

---@class nacos.ServiceSpec
---@field name string                     # of the service
---@field port integer
---@field ip string|(fun(): string)|nil   # default: the address from which this host reaches the Nacos server
---@field group string|nil                # "DEFAULT_GROUP"
---@field namespace string|nil            # that of the connection
---@field cluster string|nil              # "DEFAULT"
---@field weight number|nil               # 1
---@field metadata table<string, string>|nil
---@field ephemeral boolean|nil           # true
---@field heartbeat_interval number|nil   # seconds
---@field check string|string[]|function|nil # see nacos.agent.command; nil: always well
---@field interval number|nil             # seconds from one check to the next, 5
---@field check_timeout number|nil        # seconds, 5
---@field rise integer|nil                # so many good ones in a row after a bad time: well again; 2. At the start one is enough
---@field fall integer|nil                # so many bad ones in a row: not well; 3
---@field drain number|nil                # seconds from its end in the registry to the return of drain(), 0

---@class nacos.ServiceStatus
---@field name string
---@field state "waiting"|"registered"|"unhealthy"|"drained" # waiting: for the first answer of its check, or for a server
---@field since integer      # unix seconds: of the state
---@field healthy boolean
---@field ip string|nil
---@field port integer
---@field group string|nil
---@field weight number|nil
---@field error string|nil   # of the last check, or of the server
---@field next_try number|nil # seconds

---@class nacos.agent.Service
---@field name string
local Service = {}
Service.__index = Service

-- ---- addresses ---------------------------------------------------------------------------------------------------------------

---The first address of a host. Waits.
local function resolve(host)
  local uv, task = scheduler.luv(), scheduler.task()
  local done, problem, list
  uv.getaddrinfo(host, nil, { socktype = "dgram" }, function(err, found)
    done, problem, list = true, err, found
    scheduler.wake(task)
  end)
  scheduler.luv()
  while not done do
    scheduler.park()
  end
  return list and list[1] and list[1].addr, problem
end

---The address from which packets to the server go. Nothing is sent for this.
---@return string|nil ip
---@return string|nil why
local function local_address(client)
  local server = client:status().server or client.options.server_addresses or ""
  local authority = server:gsub("^%s*%a+://", ""):match("^[^/,%s]*")
  local host = authority:match("^%[(.-)%]") or authority:match("^[^:]*")
  if host == "" then
    return nil, "no server is known yet"
  end
  local address, why = resolve(host)
  if not address then
    return nil, ("%s: %s"):format(host, why)
  end
  local uv = scheduler.luv()
  local socket = uv.new_udp()
  local ok, problem = socket:connect(address, 9)
  local name = ok and socket:getsockname()
  socket:close()
  return name and name.ip, problem
end

-- ---- its task ----------------------------------------------------------------------------------------------------------------

local function enter(self, state)
  if self.state ~= state then
    self.state, self.since = state, os.time()
  end
end

---What add_naming_instance() takes.
---@return table|nil
---@return string|nil why
local function wanted(self)
  local spec, ip = self.spec, self.spec.ip
  if type(ip) ~= "string" then
    local ok, why
    ok, ip, why = command.call("ip of " .. self.name, IP_TIMEOUT, ip or local_address, self.client)
    if not ok or type(ip) ~= "string" then
      return nil, "its own address is not known, give it as `ip`: " .. tostring(ok and why or ip)
    end
  end
  return {
    service_name = spec.name, ip = ip, port = spec.port, cluster_name = spec.cluster, ephemeral = spec.ephemeral,
    group_name = spec.group, namespace_id = spec.namespace, weight = spec.weight, metadata = spec.metadata,
    heartbeat_interval = spec.heartbeat_interval,
  }
end

---Are these the same instance, perhaps with other properties?
local function same_place(a, b)
  for _, name in ipairs(PLACE) do
    if a[name] ~= b[name] then
      return false
    end
  end
  return true
end

---@return true|nil
---@return any err
local function call(self, method, args)
  local ok, result, err = pcall(self.client[method], self.client, args)
  if not ok then
    return nil, result -- an argument that the client refuses
  end
  return result, err
end

local function take_out(self)
  local args = {}
  for _, name in ipairs(PLACE) do
    args[name] = self.present[name]
  end
  local ok, err = call(self, "remove_naming_instance", args)
  if ok then
    self.present = nil
    self.log("info", ("taken out: %s:%d"):format(args.ip, args.port))
  end
  return ok, err
end

---Tell the server what there is. @return true|nil, any err
local function put_in(self)
  local args, err = wanted(self)
  if not args then
    return nil, err
  end
  local ok = true
  if self.present and not same_place(self.present, args) then
    ok, err = take_out(self)
  end
  if ok then
    ok, err = call(self, "add_naming_instance", args)
  end
  if ok then
    self.present = args
    self.log("info", ("registered: %s:%d"):format(args.ip, args.port))
  end
  return ok, err
end

---One step towards what is wanted. @return true|nil, any err
local function step(self)
  if self.healthy and (self.stale or not self.present) then
    self.stale = false -- before: update() may come meanwhile
    local ok, err = put_in(self)
    self.stale = self.stale or not ok
    return ok, err
  elseif not self.healthy and self.present then
    return take_out(self)
  end
  return true
end

local function failed(self, err)
  local text = tostring(err)
  if self.error ~= text then
    self.log("warn", text .. "; go on trying")
  end
  self.error = text
  self.delay = math.min((self.delay or FIRST_PAUSE / 2) * 2, LONGEST_PAUSE)
  local pause = self.delay * (0.5 + math.random() / 2) -- so that not all hosts come at once
  self.next_try = core.monotonic() + pause
  return pause
end

local function leave(self)
  if self.present then
    local ok, err = take_out(self)
    if not ok then
      self.error = tostring(err)
      self.log("warn", "not taken out, the server drops it when its beats stay away: " .. self.error)
    end
    scheduler.sleep(self.spec.drain)
  end
  enter(self, "drained")
  for task in pairs(self.waiting) do
    scheduler.wake(task)
  end
end

local function live(self)
  guard.name("service " .. self.name)
  while not self.leaving do
    local pause
    if not self.next_try or core.monotonic() >= self.next_try then
      local called, ok, err = pcall(step, self)
      if called and ok then
        self.next_try, self.delay, self.error = nil, nil, nil
      else
        pause = failed(self, called and err or ok)
      end
    else
      pause = self.next_try - core.monotonic()
    end
    enter(self, self.present and "registered" or self.known and not self.healthy and "unhealthy" or "waiting")
    self.bell:wait(pause)
  end
  leave(self)
end

---An answer of the check.
local function count(self, well, why)
  self.streak = well == self.last and self.streak + 1 or 1
  self.last, self.why = well, why
  local enough = not self.known and 1 or well and self.spec.rise or self.spec.fall
  if (not self.known or self.healthy ~= well) and self.streak >= enough then
    self.healthy, self.known = well, true
    self.log(well and "info" or "warn", well and "is well" or "is not well: " .. tostring(why))
    self.bell:ring()
  end
end

local function begin_checks(self)
  if self.stop_checks then
    self.stop_checks()
    self.stop_checks = nil
  end
  local spec = self.spec
  if not spec.check then
    self.healthy, self.known = true, true
    return
  end
  self.stop_checks = check.every("check of " .. self.name, spec.check, spec.interval, spec.check_timeout, function(well, why)
    count(self, well, why)
  end)
end

-- ---- methods -----------------------------------------------------------------------------------------------------------------

---Take over a new definition: other weights and metadata are told to the server; another place (ip, port, group …) is left for the new
---one. What the check has found out so far counts on.
---@param spec nacos.ServiceSpec # from service.check()
function Service:update(spec)
  local old = self.spec
  self.spec = spec
  self.stale = self.stale or not formats.same(old.metadata, spec.metadata)
  for _, name in ipairs(TOLD) do
    self.stale = self.stale or old[name] ~= spec[name]
  end
  if not formats.same(old.check, spec.check) or old.interval ~= spec.interval or old.check_timeout ~= spec.check_timeout then
    begin_checks(self)
  end
  self.bell:ring()
end

---Take it out of the registry and wait `drain` seconds: for before the end of what it stands for. It does not come back. In a task.
function Service:drain()
  self.leaving = true
  self.bell:ring()
  local task = scheduler.task()
  while self.state ~= "drained" do
    self.waiting[task] = true
    scheduler.park()
    self.waiting[task] = nil
  end
end

---drain(), and no more checks. In a task.
function Service:stop()
  if self.stop_checks then
    self.stop_checks()
    self.stop_checks = nil
  end
  self:drain()
end

---@return nacos.ServiceStatus
function Service:status()
  local present = self.present or {}
  return {
    name = self.name, state = self.state, since = self.since, healthy = self.healthy, ip = present.ip, port = self.spec.port,
    group = self.spec.group, weight = present.weight, error = self.error or not self.healthy and self.why or nil,
    next_try = self.next_try and math.max(0, self.next_try - core.monotonic()),
  }
end

local service = {}

---@param spec nacos.ServiceSpec
---@param level integer|nil # whom to blame, as in error(), seen from the caller; default 2
---@return nacos.ServiceSpec # a checked copy with its defaults
function service.check(spec, level)
  return (options.check(SPEC, spec, "agent.service", (level or 2) + 1)) -- no tail call: levels are counted
end

---@param client nacos.Client
---@param spec nacos.ServiceSpec # from service.check()
---@param opts { log: fun(level: string, text: string) }
---@return nacos.agent.Service
function service.new(client, spec, opts)
  local self = setmetatable({
    name = spec.name, client = client, spec = spec, log = opts.log, bell = bell.new(), waiting = {}, healthy = false,
  }, Service)
  enter(self, "waiting")
  begin_checks(self)
  scheduler.spawn(live, self)
  return self
end

return service
