--- runner: keeps what the scripts of an agent declare.

local agent = require "nacos.agent"
local bell = require "nacos.agent.bell"
local control = require "nacos.agent.control"
local core = require "nacos.core"
local files = require "nacos.agent.files"
local formats = require "nacos.formats"
local guard = require "nacos.agent.guard"
local log = require "nacos.agent.log"
local nacos = require "nacos"
local notify = require "nacos.agent.notify"
local process = require "nacos.process"
local push = require "nacos.agent.push"
local scheduler = require "nacos.scheduler"
local scripts = require "nacos.agent.scripts"
local service = require "nacos.agent.service"
local sources = require "nacos.agent.sources"
local state = require "nacos.agent.state"
local supervisor = require "nacos.agent.supervisor"
local target = require "nacos.agent.target"
local uv = require "luv"

local runner = {}

local now = core.monotonic

-- ---- the running agent -------------------------------------------------------------------------------------------------------

---@class nacos.agent.Agent
---@field targets table<string, nacos.agent.Target>
local Agent = {}
Agent.__index = Agent

---@return nacos.Options
local function connection_of(self, definitions)
  local all = {}
  for name, value in pairs(self.connection) do
    all[name] = value
  end
  for name, value in pairs(definitions.connection or {}) do
    all[name] = value
    if name == "password" or name == "password_env" then
      all.password_file = nil
    elseif name == "password_file" then
      all.password, all.password_env = nil, nil
    elseif name == "snapshot_base" then
      all.no_snapshot = nil
    end
  end
  if all.no_snapshot == nil and all.snapshot_base == nil then
    all.snapshot_base = self.state.folder and self.state.folder .. "/snapshots" -- a cold start without a server
    if all.snapshot_base then
      uv.fs_mkdir(all.snapshot_base, tonumber("700", 8))
    end
    all.no_snapshot = not self.state.folder or nil
  end
  return all
end

local function connect(self, definitions)
  local wanted, limits = connection_of(self, definitions), definitions.limits
  local held = { limits.max_drop, limits.hold }
  if self.client and formats.same(wanted, self.wanted_connection) and formats.same(held, self.held) then
    return
  end
  self.held = held
  local ok, client = pcall(nacos.client, wanted)
  if not ok then
    error((definitions.connected_at or "") .. (tostring(client):gsub("^%S+:%d+: ", "")), 0)
  end
  if self.debugging then
    client:set_options { log_level = "DEBUG" }
  end
  local old_client, old_sources = self.client, self.sources
  self.client, self.wanted_connection = client, wanted
  self.sources = sources.new {
    client = client, max_drop = limits.max_drop, hold = limits.hold,
    changed = function(user)
      user:changed()
    end,
  }
  if old_client then
    for _, t in pairs(self.targets) do
      t:changed()
    end
    self.reconnected = true
    old_sources:close()
    return old_client
  end
end

---Stop something in a task of its own; the end of the agent waits for it.
---@param after nil|fun() # then
local function let_go(self, item, after)
  self.leaving[item] = true
  nacos.spawn(function()
    item:stop()
    if after then
      after()
    end
    self.leaving[item] = nil
  end)
end

---Everything of a list that is not in the other, by name, is stopped and taken out.
---@param leave nil|fun(self, item) # default let_go()
local function drop(self, running, wanted, leave)
  local names = {}
  for _, def in ipairs(wanted) do
    names[def.name] = true
  end
  for name, item in pairs(running) do
    if not names[name] then
      running[name] = nil
      log.info(name, "no longer declared");
      (leave or let_go)(self, item)
    end
  end
end

---Stop all of a list, and wait for it.
local function together(list)
  local n, left = 0, bell.new()
  for _, item in pairs(list) do
    n = n + 1
    nacos.spawn(function()
      item:stop()
      n = n - 1
      left:ring()
    end)
  end
  while n > 0 do
    left:wait()
  end
end

local function start(self, item)
  item.settled = function()
    local ok, problem = pcall(self.progress, self)
    if not ok then
      log.error(item.name, tostring(problem))
    end
  end
  nacos.spawn(item.run, item)
end

local function log_as(name)
  return function(level, text)
    log.write(level, name, text)
  end
end

---Remove the files of a target that is no longer declared, but for those that another one has now.
local function prune(self, record)
  for _, path in ipairs(record.data.paths or {}) do
    if not self.definitions.places[files.place(path)] then
      local ok, err = files.remove(path)
      local text = ok and "removed " .. path .. ", which is no longer declared" or tostring(err)
      log.write(ok and "info" or "error", record.name, text)
    end
  end
  record:remove()
end

---A target that is declared no more: its files go if it said so, unless another one has them now.
local function leave_target(self, old)
  let_go(self, old, function()
    while not old.ended do -- a check or a reload under way
      nacos.sleep(0.02)
    end
    for _, t in pairs(self.targets) do -- a computed group may want its files
      while old.def.prune and not t.turns and not t.stopped do
        nacos.sleep(0.02)
      end
    end
    if old.def.prune and not self.targets[old.name] then
      prune(self, old.record)
    end
  end)
end

---When a process was started, in ticks since the machine was: with its pid this names it for ever. nil: there is no such process.
local function began(pid)
  local file = io.open(("/proc/%d/stat"):format(pid), "r")
  local stat = file and file:read("a")
  if file then
    file:close()
  end
  return stat and stat:match("^.*%)" .. (" %S+"):rep(19) .. " (%d+)")
end

---End what a killed agent has left running: started twice, it would fight with itself for its port.
local function end_left_over(record, spec)
  local pid = record.data.pid
  if not pid or not record.data.began or began(pid) ~= record.data.began then
    return
  end
  log.warn(spec.name, "runs from before the agent was killed: it is ended", { pid = pid })
  local deadline = now() + spec.kill_timeout
  uv.kill(-pid, "sig" .. spec.kill_signal:lower())
  while uv.kill(-pid, 0) == 0 and began(pid) == record.data.began do
    if now() > deadline then
      uv.kill(-pid, "sigkill")
    end
    nacos.sleep(0.05)
  end
end

---What was declared when an agent ran last, and is not any more: files that said so go, and what a killed agent left running is ended.
local function leave_forgotten(self)
  for _, name in ipairs(self.state:names()) do
    local process_name = name:match("^process:(.*)")
    local record = not self.targets[name] and self.state:target(name)
    if record and process_name and not self.processes[process_name] then
      end_left_over(record, { name = process_name, kill_signal = "TERM", kill_timeout = 10 })
      record:remove()
    elseif record and record.data.prune then
      prune(self, record)
    end
  end
end

---Wait until a target of this name that was let go has ended: the two have one record.
local function until_gone(self, name)
  for gone in pairs(self.leaving) do
    while gone.record and gone.name == name and not gone.ended do
      nacos.sleep(0.02)
    end
  end
end

local function keep_targets(self, definitions)
  drop(self, self.targets, definitions.targets, leave_target)
  for _, def in ipairs(definitions.targets) do
    local present = self.targets[def.name]
    if present then
      present:redefine(def)
    else
      until_gone(self, def.name)
      present = target.new(def, self)
      self.targets[def.name] = present
      start(self, present)
    end
  end
end

local function keep_processes(self, definitions)
  drop(self, self.processes, definitions.processes)
  if #definitions.processes > 0 then
    process.reap()
  end
  for _, spec in ipairs(definitions.processes) do
    local child = self.processes[spec.name]
    if child then
      child:update(spec)
    else
      local record = self.state:target("process:" .. spec.name)
      end_left_over(record, spec)
      child = supervisor.new(spec, { log = log_as(spec.name), agent = self, on_start = function(pid)
        record.data = { pid = pid, began = began(pid) }
        record:save()
      end, on_exit = function(code)
        self:child_ended(code)
      end })
      self.processes[spec.name] = child
    end
  end
  self.after = {}
  for _, spec in ipairs(definitions.processes) do
    self.after[spec.name] = { names = spec.after or {} }
  end
end

local function keep_services(self, definitions, old_client)
  if old_client then -- out by the old connection before they come back by the new one
    together(self.services)
    self.services = {}
  end
  drop(self, self.services, definitions.services)
  for _, spec in ipairs(definitions.services) do
    if self.services[spec.name] then
      self.services[spec.name]:update(spec)
    else
      self.services[spec.name] = service.new(self.client, spec, { log = log_as(spec.name) })
    end
  end
end

local function keep_pushes(self, definitions)
  for name, item in pairs(self.pushes) do
    item:stop()
    self.pushes[name] = nil
  end
  for _, def in ipairs(definitions.pushes) do
    local item = push.new(def, self)
    self.pushes[def.name .. "@" .. (def.group or "")] = item
    start(self, item)
  end
end

local function keep_watches(self, definitions, old_client)
  for _, watch in ipairs(self.watches) do
    if not old_client then
      self.client:remove_config_watcher(watch.data_id, watch.group, watch.called)
    end
  end
  self.watches = definitions.watches
  for _, watch in ipairs(self.watches) do
    watch.called = function(change)
      local ok, err = guard.call("watch of " .. watch.data_id, watch.fn, change)
      if not ok then
        log.error(watch.data_id, "error in its callback: " .. tostring(err))
      end
    end
    self.client:add_config_watcher(watch.data_id, watch.group, watch.called)
  end
end

local WARN, BUDGET = guard.warn, guard.budget

local function set_limits(limits)
  guard.warn, guard.budget = limits.warn or WARN, limits.budget or BUDGET
  scheduler.on_slow(guard.warn, guard.warn > 0 and guard.slow or nil)
end

---Make what runs what is declared.
---@param definitions nacos.agent.Definitions
function Agent:keep(definitions)
  local old_client = connect(self, definitions)
  self.definitions = definitions
  set_limits(definitions.limits)
  keep_targets(self, definitions)
  if not self.once then
    keep_processes(self, definitions)
    keep_services(self, definitions, old_client)
    keep_watches(self, definitions, old_client)
  end
  keep_pushes(self, definitions)
  if old_client then
    old_client:close()
  end
  self:progress()
end

---@return nacos.agent.Target|nil
function Agent:find(name)
  local def = agent.find(self.definitions.targets, name)
  return def and self.targets[def.name]
end

---Something has made a step: processes may start, or have to hear of changes; --once may be over.
function Agent:progress()
  for name, entry in pairs(self.after or {}) do
    local stamps, complete = {}, true
    for i, after in ipairs(entry.names) do
      local t = self:find(after)
      complete = complete and t and t:usable()
      stamps[i] = t and t.record.data.applied or ""
    end
    local stamp = table.concat(stamps, " ")
    if complete and not entry.stamp then
      self.processes[name]:allow()
    elseif complete and entry.stamp ~= stamp then
      self.processes[name]:changed()
    end
    entry.stamp = complete and stamp or entry.stamp
  end
  self.bell:ring()
end

local PAUSE = 0.005 -- seconds

---Called by a target before it works for some milliseconds without waiting. A thousand of them that have to, one key changed, go one
---after the other, and everything else has its say in between.
function Agent:take_turn()
  if not self.line[1] and now() - self.last_turn > PAUSE then
    self.last_turn = now()
    return
  end
  self.line[#self.line + 1] = scheduler.task()
  if not self.pacing then
    self.pacing = true
    nacos.spawn(function()
      while self.line[1] do
        nacos.sleep(0) -- what has happened meanwhile comes first
        scheduler.wake(table.remove(self.line, 1))
      end
      self.last_turn, self.pacing = now(), false
    end)
  end
  scheduler.park()
end

function Agent:child_ended(code)
  if self.exec and not self.stopping then
    self.code = code
    self:stop()
  end
end

function Agent:status()
  local result = {
    pid = math.tointeger(uv.os_getpid()), script = self.script, since = self.since,
    targets = {}, processes = {}, services = {}, pushes = {},
    sources = self.sources:status(), servers = self.sources:servers(), ready = self.said_ready or false,
    reread_error = self.reread_error,
  }
  for _, kind in ipairs { "targets", "processes", "services", "pushes" } do
    for _, item in pairs(self[kind]) do
      table.insert(result[kind], item:status())
    end
    table.sort(result[kind], function(a, b)
      return a.name < b.name
    end)
  end
  return result
end

local REQUESTS = {}

function REQUESTS.status(self)
  return self:status()
end

function REQUESTS.retry(self, request)
  local n, turn = 0, nil
  for name, item in pairs(self.targets) do
    if request.target == nil or item == self:find(request.target) or name == request.target then
      turn = item:retry()
      n = n + 1
    end
  end
  for name, child in pairs(self.processes) do
    if name == request.target and child:retry() then
      n = n + 1
    end
  end
  for _, item in pairs(self.pushes) do
    if request.target == nil or item.name == request.target then
      item:retry()
      n = n + 1
    end
  end
  return n > 0 and { retried = n, turn = turn } or nil, "nothing is named " .. tostring(request.target)
end

for _, what in ipairs { "pin", "rollback", "unpin" } do
  REQUESTS[what] = function(self, request)
    local t = type(request.target) == "string" and self:find(request.target)
    if not t then
      return nil, "no target is named " .. tostring(request.target)
    end
    local n, problem = t[what](t, math.tointeger(request.generation))
    return n and { target = t.name, generation = n ~= true and n or nil, turn = t.asked }, problem
  end
end

---Answer a command on the status socket.
---@param request table
---@return table
function Agent:answer(request)
  local fn = REQUESTS[request.command]
  if not fn then
    return { error = "unknown command " .. tostring(request.command) }
  end
  local answer, problem = fn(self, request)
  return answer or { error = problem }
end

-- ---- signals -----------------------------------------------------------------------------------------------------------------

---The scripts again. What is broken is told, and nothing changes.
function Agent:reread()
  if self.rereading or self.stopping then
    self.reread_again = true
    return
  end
  self.rereading = true
  repeat
    self.reread_again = false
    notify.reloading()
    local list, definitions, problem = self.scripts, nil, nil
    if self.script_path then
      list, problem = scripts.list(self.script_path)
    end
    if list then
      definitions, problem = scripts.load(list, self.args, self.traceback, true)
    end
    if definitions and not scripts.declare(definitions) then -- half written, or another script by mistake
      definitions, problem = nil, "they declare nothing"
    end
    if definitions and not self.stopping then
      local ok, err = pcall(self.keep, self, definitions)
      problem = not ok and err or nil
    end
    self.reread_error = problem and tostring(problem) or nil
    if problem then
      log.error(nil, "the scripts are not taken over, what ran goes on: " .. tostring(problem))
    else
      log.info(nil, "the scripts were read again")
    end
    notify.ready()
  until not self.reread_again
  self.rereading = false
end

local function toggle_debug(self)
  self.debugging = not self.debugging
  log.level = self.debugging and "debug" or self.log_level
  self.client:set_options { log_level = self.debugging and "DEBUG" or self.wanted_connection.log_level }
  log.info(nil, self.debugging and "debug on" or "debug off")
end

local PATIENCE = 10 -- seconds; a function that waits for ever ends no earlier

---Services first, so that nobody is sent to a child that goes; then the children, then everything else.
function Agent:stop()
  self.stopping = true
  nacos.spawn(function()
    notify.stopping()
    together(self.services)
    together(self.processes)
    if self.exec then
      for _, child in pairs(self.processes) do
        self.code = child:status().code or self.code
      end
    end
    for _, t in pairs(self.targets) do
      t:stop()
    end
    for _, p in pairs(self.pushes) do
      p:stop()
    end
    local deadline = now() + PATIENCE
    while now() < deadline and (next(self.leaving) or #self:busy_targets() > 0) do -- a reload under way ends, or its time does
      nacos.sleep(0.02)
    end
    nacos.stop()
  end)
end

function Agent:busy_targets()
  local list = {}
  for _, t in pairs(self.targets) do
    if not t.ended then
      list[#list + 1] = t
    end
  end
  return list
end

local function on_signals(self)
  local function on(name, fn)
    scheduler.on_signal(name, function()
      local ok, problem = pcall(fn)
      if not ok then
        log.error(nil, ("at %s: %s"):format(name, tostring(problem)))
      end
    end, true)
  end
  local function on_end()
    self.told = (self.told or 0) + 1
    if not self.stopping then
      self:stop()
    elseif self.told > 2 then -- some supervisors send each twice
      for _, child in pairs(self.processes) do
        child:signal("KILL")
      end
      nacos.stop()
    end
  end
  on("TERM", on_end)
  on("INT", on_end)
  if not self.ignores_hangup then
    on("HUP", function() nacos.spawn(self.reread, self) end)
  end
  if self.exec then -- what else is sent to the agent is meant for the one process
    for _, name in ipairs { "QUIT", "WINCH" } do
      on(name, function()
        for _, child in pairs(self.processes) do
          child:signal(name)
        end
      end)
    end
  end
  on("USR1", function() io.stderr:write(formats.json(self:status()), "\n") end)
  on("USR2", function() toggle_debug(self) end)
end

-- ---- ways to run ---------------------------------------------------------------------------------------------------------------

---@class nacos.agent.RunOptions
---@field scripts string[]
---@field args string[]
---@field script string          # as the user named it
---@field connection nacos.Options
---@field state string           # folder
---@field log_level string
---@field once boolean|nil       # until everything has settled, or `deadline` seconds are over
---@field deadline number|nil
---@field exec boolean|nil       # the exit code of the one child is the agent's
---@field traceback function

local function new(opts, folder)
  local self = setmetatable({
    connection = opts.connection, scripts = opts.scripts, args = opts.args, script = opts.script, traceback = opts.traceback,
    log_level = opts.log_level, once = opts.once, deadline = opts.deadline, exec = opts.exec, state = folder,
    script_path = opts.script_path, ignores_hangup = opts.ignores_hangup, leaving = {},
    since = os.time(), bell = bell.new(),
    targets = {}, processes = {}, services = {}, pushes = {}, watches = {}, line = {}, last_turn = 0, code = 0,
  }, Agent)
  return self
end

local ON_ITS_WAY = { waiting = true, checking = true, due = true, reloading = true }

---Has everything come as far as it can for now?
local function settled(self)
  for _, list in ipairs { self.targets, self.pushes } do
    for _, item in pairs(list) do
      if ON_ITS_WAY[item.state] then
        return false
      end
    end
  end
  return true
end

local function all_well(self)
  for _, list in ipairs { self.targets, self.pushes } do
    for _, item in pairs(list) do
      if item.state ~= "ok" and item.state ~= "pinned" then
        return false
      end
    end
  end
  return true
end

---What of an agent is not well, a line each.
local function troubles(self)
  local lines = {}
  for _, list in ipairs { self.targets, self.pushes } do
    for _, item in pairs(list) do
      if item.state ~= "ok" and item.state ~= "pinned" then
        lines[#lines + 1] = ("%s: %s: %s"):format(item.name, item.state, item.error or "not done in time")
      end
    end
  end
  table.sort(lines)
  return lines
end

---Begin to keep what the scripts declare. In a task of nacos.run().
---@param definitions nacos.agent.Definitions
---@param opts nacos.agent.RunOptions
---@return nacos.agent.Agent|nil
---@return any problem
function runner.start(definitions, opts)
  log.level = opts.log_level
  local folder, err = state.open(opts.state)
  if not folder then
    return nil, tostring(err)
  end
  local self = new(opts, folder)
  local ok, problem = pcall(function()
    if opts.exec and #definitions.processes ~= 1 then
      error(("--exec needs exactly one process, the script declares %d"):format(#definitions.processes), 0)
    end
    if not opts.once then
      self.server = assert(control.serve(folder:socket(), function(request)
        return self:answer(request)
      end))
    end
    on_signals(self)
    self.rereading = true
    self:keep(definitions)
    self.rereading = false
    if not self.once then
      leave_forgotten(self)
    end
  end)
  if not ok then
    runner.finish(self)
    return nil, problem
  elseif self.reread_again then -- a HUP came meanwhile
    nacos.spawn(self.reread, self)
  end
  return self
end

---The state of everything in a line, for systemd.
local function summary(self)
  local counts, total = {}, 0
  for _, list in ipairs { self.targets, self.pushes } do
    for _, item in pairs(list) do
      total = total + 1
      if item.state ~= "ok" then
        counts[item.state] = (counts[item.state] or 0) + 1
      end
    end
  end
  local parts = { total .. " targets" }
  for _, state_name in ipairs(formats.sorted_keys(counts)) do
    parts[#parts + 1] = counts[state_name] .. " " .. state_name
  end
  return table.concat(parts, ", ")
end

---Go on until TERM or INT, or until --once is done; then everything has been stopped, and nacos.run() ends.
---@param self nacos.agent.Agent
function runner.keep(self)
  local deadline = self.once and now() + self.deadline
  while not self.stopping do
    local text = summary(self)
    if text ~= self.said then
      self.said = text
      notify.status(text)
    end
    if settled(self) and not self.said_ready then
      self.said_ready = true
      notify.ready()
    end
    if deadline and (settled(self) or now() >= deadline) then
      for _, line in ipairs(troubles(self)) do
        log.error(nil, line)
      end
      self.code = all_well(self) and 0 or settled(self) and 6 or 3
      return self:stop()
    end
    self.bell:wait(deadline and deadline - now())
  end
end

---After nacos.run(): close what is open. @return integer code
function runner.finish(self)
  if self.server then
    self.server:close()
  end
  if self.client then
    self.sources:close()
    self.client:close()
  end
  self.state:close()
  return self.code
end

-- ---- without writing -----------------------------------------------------------------------------------------------------------

---A state folder for those who only look: what is there can be read, what is written stays in memory.
local function memory(path)
  local seen = state.read(path)
  return { target = function(_, name)
    local record = seen and seen:target(name)
    return {
      data = record and record.data or {},
      save = function() return true end,
      generation = function(_, n) return record and record:generation(n) end,
      generations = function() return record and record:generations() or {} end,
    }
  end }
end

---What every target would become, without writing anything. In a task.
---@param definitions nacos.agent.Definitions
---@param opts nacos.agent.RunOptions
---@param each fun(target: nacos.agent.Target): any, string|nil, string|nil # asked until the third result is not "waiting"
---@return { name: string, result: any, problem: string|nil, state: string|nil }[]
function runner.look(definitions, opts, each)
  log.level = opts.log_level
  local self = new(opts, memory(opts.state))
  self.dry = true
  self.definitions = definitions
  set_limits(definitions.limits)
  connect(self, definitions)
  local deadline = now() + opts.deadline
  local results, left = {}, #definitions.targets
  for i, def in ipairs(definitions.targets) do
    local t = target.new(def, self)
    self.targets[def.name] = t
    nacos.spawn(function()
      local result, problem, how
      repeat
        t.bell.rung = false
        result, problem, how = each(t)
      until how ~= "waiting" or not t.bell:wait(deadline - now())
      results[i] = { name = def.name, result = result, problem = problem, state = how }
      left = left - 1
      self.bell:ring()
    end)
  end
  while left > 0 do
    self.bell:wait()
  end
  self.sources:close()
  self.client:close()
  return results
end

return runner
