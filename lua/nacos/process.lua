--- Child processes, started by the engine, so that waiting for one lets everything else go on.
--
-- Each has a session, and so a process group, of its own: a signal reaches what it has started, too, unless that went away into a group
-- of its own. Its output comes through a pipe that is read only as fast as it is taken.

local core = require "nacos.core"
local options = require "nacos.options"
local scheduler = require "nacos.scheduler"

local LINE = 8 * 1024       -- longer lines come in pieces
local CHUNK = 64 * 1024     -- of one read
local KEPT = 64 * 1024      -- of the output, by run()
local LEFT = 1024 * 1024    -- a pipe of the largest usual size: after a program's end there is no more of it
local GIVE_UP = 5           -- seconds after KILL

local SIGNALS = {}
for name in ("HUP INT QUIT ABRT KILL USR1 USR2 ALRM TERM CONT STOP TTIN TTOU URG WINCH IO"):gmatch("%S+") do
  SIGNALS[name] = true
end

local process = {}

---@class nacos.process.Options
---@field env table<string, string>|nil   # variables, added to ours
---@field env_clear boolean|nil           # nothing of our environment: `env` is all
---@field cwd string|nil                  # the folder it starts in
---@field uid integer|nil                 # who it is, with the groups of that user
---@field gid integer|nil                 # default: the user's own group
---@field input string|nil                # its standard input; nil: ours
---@field output nil|"null"|fun(line: string) # nil: ours. Called for each line, without its end; must not wait. Needs a task that waits

---@class nacos.process.RunOptions: nacos.process.Options # all but `output`
---@field timeout number|nil              # seconds, default 30: then TERM to the group …
---@field kill_timeout number|nil         # … and so much later KILL, default 2
---@field on_line nil|fun(line: string)   # gets each line of the output, too
---@field started nil|fun(child: nacos.Process) # gets the process, to kill it before its time

local function variables(env)
  for name, value in pairs(env) do
    if type(name) ~= "string" or name == "" or name:find("[=\0]") then
      return "variables have names without '='"
    elseif type(value) ~= "string" then
      return ("the variable %s must be a string"):format(name)
    end
  end
end

local function output(how)
  if type(how) == "string" and how ~= "null" then
    return 'a function or "null" expected'
  end
end

local NUMBER = { type = "number", integer = true, min = 0, max = 2 ^ 32 - 2 } -- the one after is none to the kernel
local START = {
  env = { type = "table", check = variables }, env_clear = "boolean", cwd = "string", uid = NUMBER, gid = NUMBER,
  input = "string", output = { type = { "function", "string" }, check = output },
}
local RUN = {
  timeout = { type = "number", min = 0, default = 30 }, kill_timeout = { type = "number", min = 0, default = 2 },
  on_line = "function", started = "function",
}
for name, rule in pairs(START) do
  RUN[name] = name ~= "output" and rule or nil
end

-- ---- output ------------------------------------------------------------------------------------------------------------------

---The reading end of a pipe: `take` gets its lines, `kept` (if it is a string) its last bytes.
---@class nacos.process.Output
local Output = {}
Output.__index = Output

local function tell(self, line)
  if not self.take then
    return
  end
  local ok, problem = xpcall(self.take, debug.traceback, line)
  if not ok then
    self.take = nil -- it would fail for each line
    io.stderr:write("nacos: error in the output function of a process: ", tostring(problem), "\n")
  end
end

---Tell the lines of a text, in pieces where they are long.
---@return string # what follows the last of them
local function tell_lines(self, text)
  local at = 1
  while true do
    local stop = text:find("\n", at, true)
    while (stop or #text + 1) - at > LINE do
      tell(self, text:sub(at, at + LINE - 1))
      at = at + LINE
    end
    if not stop then
      return text:sub(at)
    end
    tell(self, text:sub(at, stop - 1))
    at = stop + 1
  end
end

function Output:close()
  local uv = require "luv"
  uv.fs_close(self.fd)
  self.fd = nil
  if self.event then
    scheduler.listen(self.event, nil)
    scheduler.engine():forget(self.event)
  end
  if self.rest ~= "" then
    tell(self, self.rest)
  end
end

---Read once.
---@return integer|nil # bytes, 0: there are none now. nil: that was the end
function Output:read()
  local data, _, problem = require "luv".fs_read(self.fd, CHUNK)
  if problem == "EAGAIN" or problem == "EINTR" then
    return 0
  elseif not data or data == "" then
    self:close()
    return nil
  end
  if self.kept then
    self.kept = (self.kept .. data):sub(-KEPT)
  end
  self.rest = self.take and tell_lines(self, self.rest .. data) or ""
  return #data
end

---Read whenever there is something.
---@param blind boolean|nil # the system is short of what it takes to be told of that
function Output:follow(blind)
  local engine = scheduler.engine()
  local id = not blind and engine:readable(self.fd) or engine:timer(0.1)
  self.event = id
  scheduler.listen(id, function(event)
    scheduler.listen(id, nil)
    self.event = nil
    if self:read() then
      self:follow(event.error ~= nil)
    end
  end)
end

---Read what is there now.
function Output:drain()
  local total = 0
  while self.fd and total < LEFT do
    local n = self:read()
    if n == 0 then
      return
    end
    total = total + (n or 0)
  end
end

-- ---- processes ---------------------------------------------------------------------------------------------------------------

---@class nacos.Process
---@field last_pid integer|nil    # after its end: what its number was, still that of its group if others are left in it
---@field private id integer|nil  # until it has ended
---@field private out table|nil
local Process = {}
Process.__index = Process

local function finish(self, event)
  scheduler.listen(self.id, nil)
  self.id = nil
  self.last_pid = event.pid
  self.err, self.signal, self.code = event.error, event.signal, event.code or event.signal and 128 + event.signal
  if self.out and self.out.fd then
    self.out:drain() -- others may hold the pipe open: they are read on, but nobody waits for them
  end
  local waiters = self.waiters
  self.waiters = {}
  for task in pairs(waiters) do
    scheduler.wake(task)
  end
end

local function argv_of(command, what, level)
  if type(command) == "string" and command ~= "" then
    return { "sh", "-c", command }
  end
  local good = type(command) == "table" and #command > 0
  for i = 1, good and #command or 0 do
    good = good and type(command[i]) == "string"
  end
  if not good then
    error(("bad argument #1 to '%s' (a list of strings, or a line for sh expected)"):format(what), level + 1)
  end
  return command
end

---The system ends texts at a NUL byte: what holds one would arrive cut.
local function holds_nul(words, opts)
  for i, word in ipairs(words) do
    if word:find("\0", 1, true) then
      return ("argument %d holds a NUL byte"):format(i - 1)
    end
  end
  for name, value in pairs(opts.env or {}) do
    if value:find("\0", 1, true) then
      return ("the variable %s holds a NUL byte"):format(name)
    end
  end
  return opts.cwd and opts.cwd:find("\0", 1, true) and "cwd holds a NUL byte"
end

---@return integer|nil id
---@return nacos.Error|nil
local function spawn(self, words, opts)
  local problem = holds_nul(words, opts)
  if opts.uid and not opts.gid then
    local _, gid = core.user(opts.uid)
    opts.gid = gid
    problem = problem or not gid and ("no user has the number %d: a group must be given, too"):format(opts.uid)
  end
  if problem then
    return nil, core.error("invalid", ("cannot start %s: %s"):format(words[1], problem))
  end
  local theirs = opts.output == "null" and -1 or nil
  if type(opts.output) == "function" then
    local uv = require "luv"
    local ends, why = uv.pipe({ nonblock = true }, {})
    if not ends then
      return nil, core.error("invalid", ("cannot start %s: no pipe for its output: %s"):format(words[1], why))
    end
    if opts.uid or opts.gid then
      uv.fs_fchown(ends.write, opts.uid or -1, opts.gid or -1) -- so that it may also open /dev/stdout
    end
    self.out = setmetatable({ fd = ends.read, rest = "", take = opts.output }, Output)
    theirs = ends.write
  end
  local id, err = scheduler.engine():spawn(words, {
    env = opts.env, clear_env = opts.env_clear, cwd = opts.cwd, uid = opts.uid, gid = opts.gid, input = opts.input, output = theirs,
  })
  if self.out then
    require "luv".fs_close(theirs)
    self.out:follow()
  end
  return id, err
end

---@return nacos.Process
local function start(words, opts)
  local self = setmetatable({ waiters = {} }, Process)
  local id, err = spawn(self, words, opts)
  if id then
    self.id = id
    scheduler.listen(id, function(event)
      finish(self, event)
    end)
  else
    self.err = err
  end
  return self
end

---Start a program. That it cannot be started is what wait() says.
---@param command string[]|string # the program, looked up in PATH, and its arguments; a string is a line for `sh -c`
---@param opts nacos.process.Options|nil
---@return nacos.Process
function process.start(command, opts)
  return start(argv_of(command, "process.start", 2), options.check(START, opts, "process.start", 2))
end

---Wait for the end, and for all that it wrote until then. Any number of tasks may.
---@return integer|nil code   # as sh has it: 128 + the signal that ended it
---@return nacos.Error|integer|nil # why it could not be started, or that signal
function Process:wait()
  if self.id and not scheduler.task() then
    if self.out then
      error("bad call to 'wait': a process with an output function is waited for in a task (nacos.run, nacos.spawn)", 2)
    end
    finish(self, scheduler.await(self.id))
  end
  self:ends_within(nil)
  if self.err then
    return nil, self.err
  end
  return self.code, self.signal
end

---Wait for the end, in a task.
---@param seconds number|nil # at most; nil: without limit
---@return boolean # has it ended?
function Process:ends_within(seconds)
  local task, deadline = scheduler.task(), seconds and core.monotonic() + seconds
  while self.id do
    local left = deadline and deadline - core.monotonic()
    if left and left <= 0 then
      return false
    end
    self.waiters[task] = true
    scheduler.park(left)
    self.waiters[task] = nil
  end
  return true
end

---@return boolean # it has ended, or could not be started
function Process:ended()
  return self.id == nil
end

---@return integer|nil # its number, from the moment in which it has been started to its end
function Process:pid()
  return self.id and scheduler.engine():pid(self.id)
end

---Send a signal to the program and what it has started. After its end nothing happens.
---@param signal string # as process.signal_name() takes it
---@param all boolean|nil # true: and when the program has ended, KILL to what is left of its group
function Process:kill(signal, all)
  local name = process.signal_name(signal)
  if not name then
    error(("bad argument #1 to 'kill' (unknown signal '%s')"):format(tostring(signal)), 2)
  end
  if self.id then
    scheduler.engine():kill(self.id, name, all)
  end
end

---@param text any # "HUP", "SIGHUP", "hup"
---@return string|nil # "HUP"; nil: no signal that a process can be sent
function process.signal_name(text)
  local name = type(text) == "string" and text:upper():gsub("^SIG", "")
  return SIGNALS[name] and name or nil
end

---@class nacos.process.Result
---@field code integer        # as sh has it: 128 + the signal that ended it
---@field signal integer|nil
---@field timed_out boolean
---@field output string       # the last 64 KiB of what it wrote to its standard output and error
---@field seconds number

---Run a program to its end, in a task. When the program has ended, what it has started and left behind is not waited for.
---@param command string[]|string
---@param opts nacos.process.RunOptions|nil
---@return nacos.process.Result|nil
---@return nacos.Error|nil # why it could not be started
function process.run(command, opts)
  local words, o = argv_of(command, "process.run", 2), options.check(RUN, opts, "process.run", 2)
  if not scheduler.task() then
    error("bad call to 'process.run': only a task can wait so (nacos.run, nacos.spawn)", 2)
  end
  o.output = o.on_line or function() end
  local began = core.monotonic()
  local child = start(words, o)
  if child.out then
    child.out.take, child.out.kept = o.on_line, ""
  end
  if o.started then
    o.started(child)
  end
  local timed_out = not child:ends_within(o.timeout)
  if timed_out then
    child:kill("TERM", true)
    if not child:ends_within(o.kill_timeout) then
      child:kill("KILL")
      child:ends_within(GIVE_UP) -- what hangs in the kernel is left to itself
    end
  end
  if child.err then
    return nil, child.err
  end
  local text = child.out.kept
  child.out.take, child.out.kept = nil, nil
  return {
    code = child.code or 137, signal = child.signal or not child.code and 9 or nil, timed_out = timed_out, output = text,
    seconds = core.monotonic() - began,
  }
end

---From now on wait for processes whose parents have gone, so that none stays a zombie: those that the kernel gives to us as PID 1, else
---(we ask for it) what our children leave behind. For programs that own the process. Children of os.execute and io.popen are left
---alone for 30 s after their end; who else starts processes in this process must not give them a session of their own.
function process.reap()
  scheduler.engine():reap()
end

return process
