--- What the specs share: paths, processes, servers, waiting.
--
-- busted loads this file as its helper (see .busted), so in a spec `require "support"`, `require "nacos"` and
-- `require "nacos.core"` find this project's files. LUNACOS_BUILD names the build folder (default build/dev).
--
--   support.root, support.build, support.lunacos     absolute paths: project, build folder, executable
--   support.run(cmd [, {stdin=, env={}, cwd=, timeout=60}]) -> code, stdout, stderr
--   support.start(cmd [, {stdin=, env={}, cwd=}]) -> process    runs beside us and dies with us; see Process below
--   support.start_server{args} -> server             the embedded server with --port 0 --faults and these arguments
--       .port .url .address ("127.0.0.1:PORT") .pid
--       :faults(fault|list) :clear_faults() :requests() -> {total=, requests=} :clear_requests() :stats() :expire()
--       :stop() (TERM, waits) :kill9() :pause() :resume() (STOP, CONT)
--   support.http(method, url [, body [, headers]]) -> status, body
--   support.eventually(fn [, seconds=5]) -> what fn returned; fails with fn's last answer when it never came true
--   support.tmpdir() -> path, removed when the run ends     support.write(path, text)  support.read(path) -> text|nil
--   support.q(text) -> text quoted for sh
-- `cmd` is a string for sh, or a list of arguments.

local json = require "cjson.safe"
local uv = require "luv"

local support = {}

local function slurp(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read("a")
  pipe:close()
  return (text:gsub("%s+$", ""))
end

---Quote for sh.
function support.q(text)
  return "'" .. tostring(text):gsub("'", "'\\''") .. "'"
end

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") or "."
support.root = slurp("cd " .. support.q(here) .. "/.. && pwd -P")
local build = os.getenv("LUNACOS_BUILD") or "build/dev"
support.build = build:sub(1, 1) == "/" and build or support.root .. "/" .. build
support.lunacos = support.build .. "/lunacos"

package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/tests/?.lua;%s"):format(support.root, support.root, support.root, package.path)
package.cpath = support.build .. "/?.so;" .. package.cpath

function support.read(path)
  local file = io.open(path, "rb")
  if not file then
    return nil
  end
  local text = file:read("a")
  file:close()
  return text
end

function support.write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

-- The folder to remove and the processes to kill when the Lua state closes, also after a failed test.
local top, folders, living = nil, 0, {}
support.at_exit = setmetatable({}, { __gc = function()
  for pid in pairs(living) do
    os.execute("kill -9 " .. pid .. " 2>/dev/null")
  end
  if top then
    os.execute("rm -rf " .. support.q(top))
  end
end })

function support.tmpdir()
  top = top or assert(uv.fs_mkdtemp("/tmp/lunacos-test.XXXXXX"))
  folders = folders + 1
  local folder = top .. "/" .. folders
  assert(uv.fs_mkdir(folder, tonumber("700", 8)))
  return folder
end

---Wait for something that other processes or the scheduler bring about.
---@param fn fun(): any   # true-ish ends the wait
---@param seconds number|nil # default 5
function support.eventually(fn, seconds)
  local deadline = uv.hrtime() + (seconds or 5) * 1e9
  local _, is_main = coroutine.running()
  while true do
    local result, why = fn()
    if result then
      return result, why
    elseif uv.hrtime() > deadline then
      error("not within " .. (seconds or 5) .. " s: " .. tostring(why or result), 2)
    end
    local nacos = package.loaded["nacos"]
    if not nacos then
      uv.sleep(10)
    elseif is_main then
      nacos.step(0.01)
    else
      nacos.sleep(0.01)
    end
  end
end

local function command_line(cmd, opts)
  if type(cmd) == "table" then
    local words = {}
    for i, word in ipairs(cmd) do
      words[i] = support.q(word)
    end
    cmd = table.concat(words, " ")
  end
  local prefix = {}
  if opts.cwd then
    prefix[1] = "cd " .. support.q(opts.cwd) .. " &&"
  end
  for name, value in pairs(opts.env or {}) do
    prefix[#prefix + 1] = ("export %s=%s;"):format(name, support.q(value))
  end
  return table.concat(prefix, " "), cmd
end

---Run a command to its end. A signal gives 128 + its number, as in sh; 124 means that the time was up.
---@return integer code
---@return string stdout
---@return string stderr
function support.run(cmd, opts)
  opts = opts or {}
  local folder = support.tmpdir()
  support.write(folder .. "/in", opts.stdin or "")
  local prefix, line = command_line(cmd, opts)
  local shell = ("%s timeout -k 5 %s sh -c %s"):format(prefix, opts.timeout or 60, support.q(line))
  local _, how, code = os.execute(("( %s ) <%s/in >%s/out 2>%s/err"):format(shell, folder, folder, folder))
  return how == "signal" and 128 + code or code, support.read(folder .. "/out"), support.read(folder .. "/err")
end

---A command that runs beside the test. Its output goes to files, so nothing here can block for ever.
local Process = {}
Process.__index = Process

function support.start(cmd, opts, class)
  opts = opts or {}
  local folder = support.tmpdir()
  support.write(folder .. "/in", opts.stdin or "")
  local prefix, line = command_line(cmd, opts)
  -- setpriv: should busted itself be killed, the kernel kills its children.
  local shell = ("%s echo $$; exec setpriv --pdeathsig KILL -- %s <%s/in >%s/out 2>%s/err"):format(
    prefix, type(cmd) == "table" and line or "sh -c " .. support.q("exec " .. line), folder, folder, folder)
  local pipe = assert(io.popen(shell, "r"))
  local pid = tonumber(pipe:read("l"))
  living[pid] = true
  return setmetatable({ pid = pid, pipe = pipe, folder = folder }, class or Process)
end

function Process:stdout()
  return support.read(self.folder .. "/out") or ""
end

function Process:stderr()
  return support.read(self.folder .. "/err") or ""
end

---@param name string # "TERM", "INT", "KILL", "STOP", …
function Process:signal(name)
  assert(self.pipe, "the process has ended")
  os.execute(("kill -%s %d"):format(name, self.pid))
end

function Process:ended()
  local stat = support.read("/proc/" .. self.pid .. "/stat")
  return stat == nil or stat:match("^%d+ %(.*%) (%a)") == "Z"
end

---Wait for the end. @return integer code # as support.run
function Process:wait(seconds)
  if not self.pipe then
    return self.code
  end
  support.eventually(function()
    return self:ended(), "process " .. self.pid .. " still runs; stderr: " .. self:stderr()
  end, seconds or 10)
  local _, how, code = self.pipe:close()
  self.pipe, living[self.pid] = nil, nil
  self.code = how == "signal" and 128 + code or code
  return self.code
end

---End it: TERM, and after two seconds KILL. @return integer code
function Process:stop()
  if self.pipe and not self:ended() then
    self:signal("TERM")
    if not pcall(support.eventually, function() return self:ended() end, 2) then
      self:signal("KILL")
    end
  end
  return self:wait()
end

function Process:kill9()
  if self.pipe then
    self:signal("KILL")
  end
  return self:wait()
end

---Wait until a process that got SIGSTOP really stands still: on a busy machine some of its threads may go on for a moment.
function support.await_stop(pid)
  local tasks = ("/proc/%d/task"):format(pid)
  support.eventually(function()
    local going
    for id in uv.fs_scandir_next, uv.fs_scandir(tasks) do -- to its end: a list that is left earlier leaks
      local stat = support.read(("%s/%s/stat"):format(tasks, id))
      if stat and not stat:match("^%d+ %(.*%) T ") then
        going = id
      end
    end
    return not going, ("thread %s of %d goes on"):format(going, pid)
  end)
end

function Process:pause()
  self:signal("STOP")
  support.await_stop(self.pid)
end

function Process:resume()
  self:signal("CONT")
end

---A failed test forgets its processes. Without this, collecting the pipe would wait for their end.
function Process:__gc()
  if self.pipe then
    os.execute(("kill -9 %d 2>/dev/null"):format(self.pid))
    living[self.pid] = nil
  end
end

---One HTTP request, by the curl program (not by what is under test).
---@return integer status 0 when there was no answer
---@return string body
function support.http(method, url, body, headers)
  local folder = support.tmpdir()
  support.write(folder .. "/body", body or "")
  local words = { "curl", "-sSk", "--max-time", "40", "-X", method, "-o", folder .. "/answer", "-w", "%{http_code}", url }
  if body then
    words[#words + 1], words[#words + 2] = "--data-binary", "@" .. folder .. "/body"
  end
  for name, value in pairs(headers or {}) do
    words[#words + 1], words[#words + 2] = "-H", name .. ": " .. value
  end
  local _, status = support.run(words)
  return tonumber(status) or 0, support.read(folder .. "/answer") or ""
end

local Server = setmetatable({}, { __index = Process })
Server.__index, Server.__gc = Server, Process.__gc

---Start the embedded server. `args` are added to its command line ({"--username", "u", …}; "--faults" and the port are given).
function support.start_server(args, opts)
  local words = { support.lunacos, "server", "--faults" }
  local has_port = false
  for _, word in ipairs(args or {}) do
    words[#words + 1] = word
    has_port = has_port or word == "--port"
  end
  if not has_port then
    words[#words + 1], words[#words + 2] = "--port", "0"
  end
  local server = support.start(words, opts, Server)
  local line = support.eventually(function()
    if server:ended() then
      error("the server ended at once: " .. server:stderr(), 0)
    end
    return server:stdout():match("^(.-)\n"), "no line on the server's stdout"
  end, 10)
  server.scheme, server.port = line:match("(https?)://[^/]-:(%d+)")
  assert(server.port, "unexpected first line of the server: " .. line)
  server.port = tonumber(server.port)
  server.address = "127.0.0.1:" .. server.port
  server.base = server.scheme .. "://" .. server.address
  server.url = line:match("(https?://%S+)")
  return server
end

function Server:call(method, path, body)
  local status, answer = support.http(method, self.base .. "/__lunacos/" .. path, body, { ["Content-Type"] = "application/json" })
  assert(status >= 200 and status < 300, ("%s %s: status %d: %s"):format(method, path, status, answer))
  return json.decode(answer)
end

function Server:faults(faults)
  return self:call("POST", "faults", json.encode(faults[1] and faults or { faults }))
end

function Server:clear_faults()
  return self:call("DELETE", "faults")
end

function Server:requests()
  return self:call("GET", "requests")
end

function Server:clear_requests()
  return self:call("DELETE", "requests")
end

function Server:stats()
  return self:call("GET", "stats")
end

function Server:expire()
  return self:call("POST", "expire", "")
end

package.loaded["support"] = support
return support
