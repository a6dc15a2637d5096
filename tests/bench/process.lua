--- process: the contestants as child processes: their lines, what they cost, their end.

local uv = require "luv"

local process = {}

local Process = {}
Process.__index = Process

local living = {}

---Run the event loop until fn() gives something true; nil when `seconds` were not enough.
function process.wait(fn, seconds)
  local late = false
  local timer = uv.new_timer()
  timer:start(math.ceil(seconds * 1000), 0, function()
    late = true
  end)
  local result = fn()
  while not result and not late do
    uv.run("once")
    result = fn()
  end
  timer:close()
  return result
end

function process.sleep(seconds)
  process.wait(function() end, seconds)
end

---@param args string[]                 # program and arguments
---@param opts { cwd: string|nil, env: table|nil }|nil # env is added to ours
function process.start(args, opts)
  opts = opts or {}
  local env = {}
  for name, value in pairs(uv.os_environ()) do
    if not (opts.env and opts.env[name]) then
      env[#env + 1] = name .. "=" .. value
    end
  end
  for name, value in pairs(opts.env or {}) do
    env[#env + 1] = name .. "=" .. value
  end
  local self = setmetatable({ lines = {}, first = 1, last = 0, name = args[1] }, Process)
  self.stdin, self.stdout = uv.new_pipe(), uv.new_pipe()
  self.started = uv.hrtime()
  local words = table.pack(table.unpack(args, 2))
  self.handle, self.pid = uv.spawn(args[1], {
    args = words, cwd = opts.cwd, env = env, detached = true, -- a process group of its own, see signal()
    stdio = { self.stdin, self.stdout, 2 },
  }, function()
    self.ended = true
    living[self.pid] = nil
  end)
  if not self.handle then
    error("cannot start " .. args[1] .. ": " .. tostring(self.pid), 2)
  end
  living[self.pid] = self
  local rest = ""
  self.stdout:read_start(function(_, chunk)
    if chunk then
      rest = (rest .. chunk):gsub("([^\n]*)\n", function(line)
        self.last = self.last + 1
        self.lines[self.last] = line
        return ""
      end)
    end
  end)
  return self
end

---The next line that matches; what comes before it is dropped. Captures, or nil when it did not come in time.
function Process:try(pattern, seconds)
  local found
  process.wait(function()
    while self.first <= self.last do
      local line = self.lines[self.first]
      self.lines[self.first] = nil
      self.first = self.first + 1
      found = table.pack(line:match(pattern))
      if found[1] then
        return true
      end
    end
    found = nil
    return self.ended
  end, seconds)
  if found then
    return table.unpack(found, 1, found.n)
  end
end

---The same of what it has said until now.
function Process:heard(pattern)
  while self.first <= self.last do
    local found = table.pack(self.lines[self.first]:match(pattern))
    self.lines[self.first] = nil
    self.first = self.first + 1
    if found[1] then
      return table.unpack(found, 1, found.n)
    end
  end
end

function Process:expect(pattern, seconds)
  local found = table.pack(self:try(pattern, seconds or 30))
  if not found[1] then
    error(("%s (pid %d) did not say '%s'"):format(self.name, self.pid, pattern), 2)
  end
  return table.unpack(found, 1, found.n)
end

function Process:send(text)
  self.stdin:write(text .. "\n")
end

---To the process and those it started: "sigstop", "sigcont", "sigkill", …
function Process:signal(name)
  uv.kill(-self.pid, name)
end

function Process:stop()
  if not self.ended then
    self:signal("sigkill")
    process.wait(function()
      return self.ended
    end, 5)
  end
end

function process.stop_all()
  for _, p in pairs(living) do
    pcall(p.signal, p, "sigkill")
  end
end

local function slurp(path)
  local file = io.open(path, "rb")
  local text = file and file:read("a") or ""
  if file then
    file:close()
  end
  return text
end
process.slurp = slurp

local function names(folder)
  local list, req = {}, uv.fs_scandir(folder)
  while req do
    local name = uv.fs_scandir_next(req)
    if not name then
      break
    end
    list[#list + 1] = name
  end
  return list
end

---A process and all below it.
local function family(pid, list)
  list = list or {}
  list[#list + 1] = pid
  for _, task in ipairs(names("/proc/" .. pid .. "/task")) do
    for child in slurp(("/proc/%d/task/%s/children"):format(pid, task)):gmatch("%d+") do
      family(tonumber(child), list)
    end
  end
  return list
end

---What it uses now, children included.
---@return table # rss (bytes), threads, sockets (TCP), cpu (ns), wakeups (voluntary switches)
function Process:usage()
  local sum = { rss = 0, threads = 0, sockets = 0, cpu = 0, wakeups = 0 }
  for _, pid in ipairs(family(self.pid)) do
    local status = slurp("/proc/" .. pid .. "/status")
    sum.rss = sum.rss + (tonumber(status:match("VmRSS:%s*(%d+)")) or 0) * 1024
    for _, task in ipairs(names("/proc/" .. pid .. "/task")) do
      local folder = ("/proc/%d/task/%s/"):format(pid, task)
      sum.threads = sum.threads + 1
      sum.cpu = sum.cpu + (tonumber(slurp(folder .. "schedstat"):match("^%d+")) or 0)
      sum.wakeups = sum.wakeups + (tonumber(slurp(folder .. "status"):match("\nvoluntary_ctxt_switches:%s*(%d+)")) or 0)
    end
    local tcp = {}
    for line in (slurp("/proc/net/tcp") .. slurp("/proc/net/tcp6")):gmatch("[^\n]+") do
      local inode = line:match("^%s*%d+: %S+ %S+ %x+ %S+ %S+ %S+%s+%d+%s+%d+ (%d+)")
      if inode then
        tcp["socket:[" .. inode .. "]"] = true
      end
    end
    for _, fd in ipairs(names("/proc/" .. pid .. "/fd")) do
      local link = uv.fs_readlink(("/proc/%d/fd/%s"):format(pid, fd))
      sum.sockets = sum.sockets + (tcp[link] and 1 or 0)
    end
  end
  return sum
end

---TCP connections refused so far, on this machine.
function process.refused()
  local head, row = slurp("/proc/net/snmp"):match("Tcp: (RtoAlgorithm[^\n]*)\nTcp: ([^\n]*)")
  local values = {}
  for value in row:gmatch("%S+") do
    values[#values + 1] = tonumber(value)
  end
  local i = 0
  for name in head:gmatch("%S+") do
    i = i + 1
    if name == "AttemptFails" then
      return values[i]
    end
  end
end

return process
