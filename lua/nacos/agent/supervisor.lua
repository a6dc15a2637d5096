--- supervisor: one child process each: started when its files are complete, told of their changes, started again when it fails.
--
-- Each child has one task, in which everything about it happens; the methods only leave a note and ring its bell. So a start, a
-- reload and a stop cannot meet, and notes that come while it is busy are one note when it looks.

local bell = require "nacos.agent.bell"
local check = require "nacos.agent.check"
local command = require "nacos.agent.command"
local core = require "nacos.core"
local formats = require "nacos.formats"
local guard = require "nacos.agent.guard"
local options = require "nacos.options"
local process = require "nacos.process"
local scheduler = require "nacos.scheduler"
local uv = require "luv"

local monotonic = core.monotonic

local GROUP_POLL = 0.05 -- seconds between two looks whether the rest of a process group is gone: nobody tells its end
local GIVE_UP = 5       -- seconds after KILL
local CHECK_TIMEOUT = 5
local UNKNOWN_PAUSE = 1
local ENV_TIMEOUT = 10

-- ---- the definition ----------------------------------------------------------------------------------------------------------

local function bad_line(line)
  return line == "" and "is empty" or line:find("\0", 1, true) and "holds a NUL byte" or nil
end

local function bad_signal(name)
  return not process.signal_name(name) and "unknown signal '" .. name .. "'" or nil
end

local function bad_variables(add)
  for name, value in pairs(add) do
    if type(name) ~= "string" or name == "" or name:find("[=%z]") then
      return "names of variables expected"
    elseif type(value) ~= "string" and type(value) ~= "function" then
      return name .. ": string or function expected, got " .. type(value)
    end
  end
end

local function seconds(default)
  return { type = "number", min = 0, max = 86400, default = default }
end
local STRINGS = { type = "table", of = "string" }
local OWNER = { type = { "string", "number" }, integer = true, min = 0, max = 2 ^ 32 - 2 }

local SPEC = {
  name = { type = "string", required = true, check = bad_line },
  command = { type = command.PROGRAM.type, check = command.PROGRAM.check, required = true },
  after = STRINGS,
  reload_signal = { type = "string", check = function(name) return name ~= "none" and bad_signal(name) or nil end },
  kill_signal = { type = "string", check = bad_signal, default = "TERM" },
  kill_timeout = seconds(10),
  restart = { type = "string", one_of = { "no", "on-failure", "always" }, default = "on-failure" },
  restart_delay = { type = "number", above = 0, max = 86400, default = 1 },
  restart_delay_max = { type = "number", above = 0, max = 86400, default = 60 },
  restart_reset = seconds(60),
  limit = {
    type = { "table", "boolean" }, default = { starts = 10, within = 300 },
    fields = {
      starts = { type = "number", integer = true, min = 1, required = true },
      within = { type = "number", above = 0, required = true },
    },
    check = function(limit)
      return limit == true and "a table or false expected" or nil
    end,
  },
  env = {
    type = "table", default = {},
    fields = { pristine = "boolean", allow = STRINGS, deny = STRINGS, add = { type = "table", check = bad_variables } },
  },
  cwd = "string", user = OWNER, group = OWNER,
  output = { type = "string", one_of = { "log", "inherit" }, default = "log" },
  ready = command.RULE, ready_interval = { type = "number", above = 0, default = 1 }, ready_timeout = seconds(60),
  settle = seconds(1),
}

---@class nacos.ProcessSpec
---@field name string
---@field command string[]|string         # words, or a line for sh
---@field after string[]|nil              # the targets that have to be complete before it starts: for the caller of allow()
---@field reload_signal string|nil        # what a change of its files sends; default: it is restarted; "none": nothing
---@field kill_signal string|nil          # "TERM"
---@field kill_timeout number|nil         # seconds from it to KILL, 10
---@field restart "no"|"on-failure"|"always"|nil # on-failure: ended with another exit code than 0 or by a signal, or never ready
---@field restart_delay number|nil        # seconds before the first restart, 1; doubles with each …
---@field restart_delay_max number|nil    # … up to 60 …
---@field restart_reset number|nil        # … and is the first again after a run of 60
---@field limit { starts: integer, within: number }|false|nil # so many ends in so many seconds: not started again; { 10, 300 }; false: none
---@field env { pristine: boolean|nil, allow: string[]|nil, deny: string[]|nil, add: table<string, string|fun(read: table): string>|nil }|nil
---A function in `add` gets what templates have (read.config, read.env …); when what it read changes and gives another value, the process
---is restarted.
---@field cwd string|nil
---@field user string|integer|nil
---@field group string|integer|nil        # default: that of the user
---@field output "log"|"inherit"|nil      # "log"
---@field ready string|string[]|function|nil # asked until it says yes; default: ready at once. See nacos.agent.command
---@field ready_interval number|nil       # seconds, 1
---@field ready_timeout number|nil        # seconds to become ready in, else it is ended as failed; 60
---@field settle number|nil               # seconds after a start in which changes wait: it may not listen to signals yet; 1

---@class nacos.ProcessStatus
---@field name string
---@field state "waiting"|"starting"|"running"|"stopping"|"backoff"|"ended"|"failed"|"stopped"
---@field since integer        # unix seconds: of the state
---@field pid integer|nil
---@field starts integer
---@field code integer|nil     # of the last end
---@field signal integer|nil
---@field error string|nil     # why it does not run
---@field next_start number|nil # seconds until it is started again
---@field sources nacos.agent.Used[]|nil # what its environment is made of

---@class nacos.Child
---@field name string
---@field on_exit fun(code: integer, child: nacos.Child)|nil # it has ended and will not be started again; not called after stop()
local Child = {}
Child.__index = Child

-- ---- its environment ---------------------------------------------------------------------------------------------------------

---Does the name match one of these patterns, in which * and ? are wildcards?
local function matches(name, patterns)
  for _, pattern in ipairs(patterns) do
    local lua = pattern:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".")
    if name:find("^" .. lua .. "$") then
      return true
    end
  end
  return false
end

---What the functions among the added variables say. What they read is watched until the next time.
---@return table<string, string>|nil
---@return string|nil why
---@return boolean|nil unknown # a value is not known yet
local function added(self, add)
  local reader = self.agent and self.agent.sources:read(self.reads)
  local values, problem = {}, nil
  for name, value in pairs(add) do
    if type(value) == "function" then
      local what = ("environment of %s, %s"):format(self.name, name)
      local ok, got = command.call(what, ENV_TIMEOUT, value, reader and reader.functions)
      if not ok then
        problem = ("environment variable %s: %s"):format(name, tostring(got):match("^[^\n]*"))
      elseif type(got) ~= "string" or got:find("\0", 1, true) then
        problem = ("environment variable %s: its function gave no string without NUL bytes"):format(name)
      end
      value = got
    end
    values[name] = value
  end
  if reader then
    self.used = reader:done(problem ~= nil)
    if reader.unknown then
      return nil, "the environment waits: " .. tostring(reader.unknown), true
    end
  end
  return not problem and values or nil, problem
end

---@param inherited table<string, string>
---@return table<string, string>|nil
---@return string|nil why
---@return boolean|nil unknown
local function environment(self, inherited)
  local rules = self.spec.env
  local result, err, unknown = added(self, rules.add or {})
  if not result then
    return nil, err, unknown
  end
  for name, value in pairs(inherited) do
    if (not rules.allow or matches(name, rules.allow)) and not (rules.deny and matches(name, rules.deny)) then
      result[name] = result[name] or value
    end
  end
  return result
end

---What a child is started with. Two that are equal need no restart: `signature` is for comparing.
---@return table|nil # { env, uid, gid, signature }
---@return string|nil why
---@return boolean|nil unknown # a value of its environment is not known yet
local function outfit(self)
  local spec, rules = self.spec, self.spec.env
  local inherited = rules.pristine and not rules.allow and {} or command.environment()
  local uid, gid
  if spec.user then
    local name, home
    uid, gid, name, home = core.user(spec.user)
    inherited.USER, inherited.LOGNAME, inherited.HOME = name, name, home
  end
  if spec.group then
    gid = core.group(spec.group)
  end
  uid, gid = uid or math.tointeger(spec.user), gid or math.tointeger(spec.group)
  for kind, missing in pairs { user = spec.user and not uid, group = spec.group and not gid } do
    if missing then
      return nil, ("there is no %s '%s'"):format(kind, spec[kind])
    end
  end
  local env, err, unknown = environment(self, inherited)
  if not env then
    return nil, err, unknown
  end
  local parts = { spec.cwd or "", uid or "", gid or "", spec.output }
  local words = type(spec.command) == "table" and spec.command or { "", spec.command } -- no program is called ""
  table.move(words, 1, #words, #parts + 1, parts)
  for _, name in ipairs(formats.sorted_keys(env)) do
    parts[#parts + 1] = name .. "=" .. env[name]
  end
  for i, part in ipairs(parts) do
    parts[i] = ("%q"):format(part)
  end
  return { env = env, uid = uid, gid = gid, signature = core.md5(table.concat(parts, ",")) }
end

-- ---- its task ----------------------------------------------------------------------------------------------------------------

local function enter(self, state)
  self.state, self.since = state, os.time()
end

local function say(self, level, text, ...)
  self.log(level, text:format(...))
end

---@return table|nil run
---@return string|nil why
---@return boolean|nil unknown
local function begin(self)
  local spec = self.spec
  self.changes, self.redefined = false, false -- it reads its files after this
  local fit, err, unknown = outfit(self)
  if not fit then
    return nil, err, unknown
  end
  self.signature = fit.signature
  local run = { began = monotonic(), ready = not spec.ready }
  local function on_line(line)
    self.log("info", line)
  end
  run.process = process.start(spec.command, {
    env = fit.env, env_clear = true, cwd = spec.cwd, uid = fit.uid, gid = fit.gid,
    input = spec.output == "log" and "" or nil, output = spec.output == "log" and on_line or nil,
  })
  self.starts = self.starts + 1
  say(self, "info", "start %d", self.starts)
  scheduler.spawn(function()
    while not run.process:pid() and not run.process:ended() do
      scheduler.sleep(0)
    end
    local pid = run.process:pid()
    if pid and self.on_start then
      self.on_start(pid)
    end
    local code, signal = run.process:wait()
    run.exit = code and { code = code, signal = signal } or { code = 127, error = tostring(signal) }
    self.bell:ring()
  end)
  return run
end

---Is it, or somebody else of its process group, there?
local function alive(run)
  return not run.exit or (run.process.last_pid and uv.kill(-run.process.last_pid, 0) == 0)
end

---To the whole group, also when the child itself has ended.
local function send(run, signal)
  if not run.exit then
    run.process:kill(signal)
  elseif run.process.last_pid then
    uv.kill(-run.process.last_pid, "sig" .. process.signal_name(signal):lower())
  end
end

---End what is left of a run: without this, what a child left behind would hold its port when it is started again.
local function clear(self, run)
  if not alive(run) then
    return
  end
  enter(self, "stopping")
  send(run, self.spec.kill_signal)
  local deadline = monotonic() + self.spec.kill_timeout
  while alive(run) and monotonic() < deadline do
    self.bell:wait(run.exit and GROUP_POLL or deadline - monotonic())
  end
  if alive(run) then
    say(self, "warn", "sent KILL, %s had not ended it within %g s", self.spec.kill_signal, self.spec.kill_timeout)
    send(run, "KILL")
    deadline = monotonic() + GIVE_UP
    while not run.exit and monotonic() < deadline do
      self.bell:wait(deadline - monotonic())
    end
    if not run.exit then -- it hangs in the kernel
      run.exit = { code = 137, signal = 9, error = "has not ended although it was sent KILL" }
      say(self, "error", "%s", run.exit.error)
    end
  end
end

---Would it be started with something else now?
local function outdated(self)
  local fit, err, unknown = outfit(self)
  if not fit then
    say(self, unknown and "debug" or "warn", "stays as it is: %s", err)
    return false
  end
  return fit.signature ~= self.signature
end

---A change of its files, its environment or its definition, not before it has settled. True: restart.
local function heed(self, run)
  local redefined = self.redefined
  self.redefined = false
  local files = self.changes and not self.spec.reload_signal
  if files or (redefined and outdated(self)) then
    say(self, "info", "is restarted: its %s changed", files and "files have" or "environment or its definition has")
    return true
  end
  if self.changes and (run.ready or self.spec.reload_signal == "none") then
    self.changes = false
    if self.spec.reload_signal ~= "none" then
      say(self, "info", "sent %s", self.spec.reload_signal)
      run.process:kill(self.spec.reload_signal)
    end
  end
  return false
end

---While it runs. @return "stop"|"change"|"unready"|nil # why it has to end
local function attend(self, run)
  while not run.exit do
    local spec, now, left = self.spec, monotonic(), nil
    if self.stopping then
      return "stop"
    end
    if run.ready and self.state == "starting" then
      enter(self, "running")
      self.error = nil
    elseif not run.ready then
      left = run.began + spec.ready_timeout - now
      if left <= 0 then
        return "unready"
      end
    end
    if self.changes or self.redefined then
      local settled = run.began + spec.settle - now
      if settled > 0 then
        left = math.min(left or settled, settled)
      elseif heed(self, run) then
        return "change"
      end
    end
    self.bell:wait(left)
  end
end

---From its start to its end. @return "stop"|"change"|"end"|"unknown" why, table exit, number seconds
local function run_once(self)
  local run, err, unknown = begin(self)
  if not run then
    return unknown and "unknown" or "end", { code = 127, error = err }, 0
  end
  enter(self, "starting")
  self.run = run
  local done = function() end
  if self.spec.ready then
    local what = ("ready of %s, start %d"):format(self.name, self.starts) -- one of an earlier start may still hang
    done = check.every(what, self.spec.ready, self.spec.ready_interval, CHECK_TIMEOUT, function(well, why)
      run.ready, run.why = well, why
      if well then
        self.bell:ring()
      end
      return well
    end)
  end
  local why = attend(self, run)
  done()
  local lasted = monotonic() - run.began
  clear(self, run)
  self.run = nil
  if why == "unready" then
    run.exit.error = ("not ready within %g s: %s"):format(self.spec.ready_timeout, run.why or "no answer")
    run.exit.code = run.exit.code == 0 and 1 or run.exit.code
  end
  return why == "unready" and "end" or why or "end", run.exit, lasted
end

local function describe(exit)
  return exit.error or exit.signal and "ended by signal " .. exit.signal or "ended with exit code " .. exit.code
end

---It does not run any more and is not started again, unless something changes.
local function rest(self, state, exit)
  enter(self, state)
  if self.on_exit then
    scheduler.spawn(self.on_exit, exit.code, self) -- it may call stop(), which waits for this task
  end
end

---It has ended by itself: what now?
local function decide(self, exit, lasted)
  local spec, failed = self.spec, exit.error or exit.code ~= 0
  self.exit, self.error = exit, failed and describe(exit) or nil
  if spec.restart == "no" or (spec.restart == "on-failure" and not failed) then
    say(self, failed and "error" or "info", "%s", describe(exit))
    return rest(self, "ended", exit)
  end
  local now = monotonic()
  if spec.limit then
    table.insert(self.ends, now)
    while now - self.ends[1] > spec.limit.within do
      table.remove(self.ends, 1)
    end
    if #self.ends >= spec.limit.starts then
      self.error = ("%s; has ended %d times within %g s and rests until its files or definition change, or a retry"):format(
        describe(exit), #self.ends, spec.limit.within)
      say(self, "error", "%s", self.error)
      return rest(self, "failed", exit)
    end
  end
  if lasted >= spec.restart_reset or not self.delay then
    self.delay = spec.restart_delay
  else
    self.delay = math.min(self.delay * 2, spec.restart_delay_max)
  end
  self.next_start = now + self.delay
  enter(self, "backoff")
  say(self, failed and "warn" or "info", "%s; started again in %g s", describe(exit), self.delay)
end

---Does a child that is not running have to start now? @return boolean, number|nil # seconds to wait at most
local function due(self)
  if not self.allowed then
    return false
  elseif self.state == "waiting" then
    return true
  end
  local redefined, changes, insist = self.redefined, self.changes, self.insist
  self.redefined, self.changes, self.insist = false, false, false
  local news = insist or (redefined and outdated(self)) or (changes and self.state ~= "ended")
  if news and (self.state ~= "backoff" or insist) then
    self.ends, self.delay = {}, nil
  end
  if news or self.state ~= "backoff" then
    return news
  end
  local left = self.next_start - monotonic()
  return left <= 0, left
end

---Wait until it has to start, and while it runs.
local function turn(self)
  local now, left = due(self)
  if not now then
    self.bell:wait(left)
    return
  end
  self.next_start = nil
  local why, exit, lasted = run_once(self)
  if why == "end" and not self.stopping then
    decide(self, exit, lasted)
    return
  end
  enter(self, "waiting")
  if why == "unknown" then
    self.error = exit.error
    self.bell:wait(UNKNOWN_PAUSE)
  else
    self.exit = exit
    say(self, "info", "%s", describe(exit))
  end
end

local function live(self)
  guard.name("process " .. self.name)
  while not self.stopping do
    local ok, problem = xpcall(turn, debug.traceback, self)
    if not ok then -- what cannot even be tried is a failed start
      say(self, "debug", "%s", problem)
      if self.run then
        pcall(clear, self, self.run)
        self.run = nil
      end
      decide(self, { code = 127, error = problem:match("^[^\n]*") }, 0)
    end
  end
  if self.agent then
    self.agent.sources:forget(self.reads)
  end
  enter(self, "stopped")
  for waiting in pairs(self.waiting) do
    scheduler.wake(waiting)
  end
end

-- ---- methods -----------------------------------------------------------------------------------------------------------------

---Its files are complete: it may start. Again: nothing.
function Child:allow()
  self.allowed = true
  self.bell:ring()
end

---Its files have changed: the reload signal or a restart, once it has settled. One that waits to be started again, or was given up, is
---started now.
function Child:changed()
  self.changes = true
  self.bell:ring()
end

---Start one now that is given up, has ended, or waits to be started again.
---@return boolean # that is so
function Child:retry()
  local rests = self.state == "failed" or self.state == "ended" or self.state == "backoff"
  self.insist = rests
  self.bell:ring()
  return rests
end

---Take over a new definition. The child goes on when what it was started with is the same.
---@param spec nacos.ProcessSpec # from supervisor.check()
function Child:update(spec)
  self.spec, self.redefined = spec, true
  self.bell:ring()
end

---Give a signal to the process group, if there is one now.
---@param name string
function Child:signal(name)
  if self.run then
    send(self.run, name)
  end
end

---End it for good; waits for the end of the whole process group. In a task.
---@return integer|nil code # of its last end
function Child:stop()
  self.stopping = true
  self.bell:ring()
  local co = scheduler.task()
  while self.state ~= "stopped" do
    self.waiting[co] = true
    scheduler.park()
    self.waiting[co] = nil
  end
  return self.exit and self.exit.code
end

---@return nacos.ProcessStatus
function Child:status()
  local exit = self.exit or {}
  return {
    name = self.name, state = self.state, since = self.since, pid = self.run and self.run.process:pid(), starts = self.starts,
    code = exit.code, signal = exit.signal, error = self.error,
    sources = self.used, next_start = self.next_start and math.max(0, self.next_start - monotonic()),
  }
end

---@class nacos.SupervisorOptions
---@field log fun(level: string, text: string)
---@field on_exit nil|fun(code: integer, child: nacos.Child)
---@field on_start nil|fun(pid: integer)
---@field agent { sources: nacos.agent.Sources }|nil # where functions of the environment read; its sources call changed() of what reads

local supervisor = {}

---@param spec nacos.ProcessSpec
---@param level integer|nil # whom to blame, as in error(), seen from the caller; default 2
---@return nacos.ProcessSpec # a checked copy with its defaults
function supervisor.check(spec, level)
  return (options.check(SPEC, spec, "agent.process", (level or 2) + 1)) -- no tail call: levels are counted
end

---@param spec nacos.ProcessSpec # from supervisor.check()
---@param opts nacos.SupervisorOptions
---@return nacos.Child # not started before allow()
function supervisor.new(spec, opts)
  local self = setmetatable({
    name = spec.name, spec = spec, log = opts.log, on_exit = opts.on_exit, on_start = opts.on_start, agent = opts.agent,
    bell = bell.new(), starts = 0, ends = {}, waiting = {},
  }, Child)
  self.reads = { -- what reads configurations for the environment: their change is no change of files
    name = spec.name,
    changed = function()
      self.redefined = true
      self.bell:ring()
    end,
  }
  enter(self, "waiting")
  scheduler.spawn(live, self)
  return self
end

return supervisor
