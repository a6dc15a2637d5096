--- What the specs of the running agent share: cases that run beside each other, each with a real `lunacos run` in a folder and a
-- namespace of its own.

local control = require "nacos.agent.control"
local lab = require "lab"
local nacos = require "nacos"
local process = require "nacos.process"
local support = require "support"
local uv = require "luv"

local agent_lab = {}

---@class AgentBox # one case
---@field folder string    # of the script; what the script names is relative to it
---@field server table     # of support.start_server
---@field client nacos.Client
---@field process table|nil # the agent, of support.start
local Box = {}
Box.__index = Box

local boxes = 0

---@return AgentBox
function agent_lab.box(server)
  boxes = boxes + 1
  local namespace = "box" .. boxes
  return setmetatable({
    folder = support.tmpdir(), server = server, namespace = namespace, client = lab.client(server, { namespace = namespace }),
  }, Box)
end

---A server for this case alone; called again, another one. What the box does is done there from now on.
---@param args string[]|nil
---@param opts table|nil # for the box' client
function Box:own_server(args, opts)
  local server = support.start_server(args)
  self.servers = self.servers or {}
  table.insert(self.servers, server)
  self.client:close()
  local all = { namespace = self.namespace }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  self.server, self.client = server, lab.client(server, all)
  return server
end

---Like support.eventually; a failure shows what the agent said.
function Box:eventually(fn, seconds)
  local ok, result, more = pcall(support.eventually, function()
    local result, why = fn()
    if not result then
      nacos.sleep(0.02)
    end
    return result, why
  end, seconds or 15)
  if not ok then
    local ended = self.process and self.process:ended() and "\nthe agent has ended: " .. self.process:wait() or ""
    error(tostring(result) .. ended .. "\nthe agent said:\n" .. self:log(), 2)
  end
  return result, more
end

-- ---- files -----------------------------------------------------------------------------------------------------------------

function Box:path(name)
  return name:sub(1, 1) == "/" and name or self.folder .. "/" .. name
end

function Box:write(name, text)
  support.write(self:path(name), text)
end

function Box:read(name)
  return support.read(self:path(name))
end

---The last line of a file, without its end.
function Box:last(name)
  return ("\n" .. (self:read(name) or "")):match("^.*\n([^\n]*)\n$")
end

---Lines of a file: how often something has run.
function Box:count(name)
  return select(2, (self:read(name) or ""):gsub("\n", ""))
end

---Wait until a file has this content.
function Box:has(name, content)
  self:eventually(function()
    local now = self:read(name)
    return now == content, ("%s is %q, wanted %q"):format(name, tostring(now), content)
  end)
end

---Everything in a folder below, as "path" -> true, without the state.
function Box:names(folder)
  local names = {}
  for name in uv.fs_scandir_next, assert(uv.fs_scandir(self:path(folder or "."))) do
    names[name] = true
  end
  return names
end

-- ---- configurations --------------------------------------------------------------------------------------------------------

function Box:set(data_id, content)
  assert(self.client:publish_config { data_id = data_id, content = content })
end

function Box:remove(data_id)
  assert(self.client:remove_config { data_id = data_id })
end

-- ---- the agent ---------------------------------------------------------------------------------------------------------------

---Write agent.lua.
function Box:script(text)
  self:write("agent.lua", 'local agent = require "nacos.agent" ' .. text)
end

---`lunacos` with these words. @return integer code, string output # of both streams
function Box:cli(...)
  local words = { ... }
  if type(words[1]) == "table" then
    words = words[1]
  end
  table.insert(words, 1, support.lunacos)
  local done = assert(process.run(words, {
    cwd = self.folder, timeout = 40, env = {
      LUNACOS_STATE = self:path("state"), NACOS_SERVER = self.server.base, NACOS_NAMESPACE = self.namespace },
  }))
  return done.code, done.output
end

---Write agent.lua if a text is given, and start the agent.
---@param opts { args: string[]|nil, env: table|nil, behind: string[]|nil, script: string|nil }|nil
function Box:start(text, opts)
  opts = opts or {}
  if text then
    self:script(text)
  end
  local words = { table.unpack(opts.behind or {}) }
  for _, word in ipairs { support.lunacos, "-s", self.server.base, "-n", self.namespace, "run", "--state", "state" } do
    words[#words + 1] = word
  end
  for _, word in ipairs(opts.args or {}) do
    words[#words + 1] = word
  end
  words[#words + 1] = opts.script or "agent.lua"
  self.said = (self.said or "") .. (self.process and self.process:stderr() or "")
  self.process = support.start(words, { cwd = self.folder, env = opts.env })
  return self.process
end

---Start it for one run and wait for its end. @return integer code
function Box:run(text, opts)
  return self:start(text, opts):wait(40)
end

---All that agents of this case have said.
function Box:log()
  return (self.said or "") .. (self.process and self.process:stderr() or "")
end

---Wait until the log has it. @param n integer|nil # so often
function Box:says(text, n)
  self:eventually(function()
    local found, at = 0, 1
    local log = self:log()
    while true do
      local _, last = log:find(text, at, true)
      if not last then
        break
      end
      found, at = found + 1, last + 1
    end
    return found >= (n or 1), ("it does not say %q"):format(text)
  end)
end

---@return table|nil status
function Box:status()
  return control.ask(self:path("state/agent.sock"), { command = "status" }, 10)
end

function Box:ask(request)
  return control.ask(self:path("state/agent.sock"), request, 10)
end

---One thing of the status: a target by its name or file, a process, a service, a push. Without a name: the only target.
function Box:entry(name, kind)
  local status, err = self:status()
  for _, entry in ipairs(status and status[kind or "targets"] or {}) do
    if not name or entry.name == name or entry.name == self:path(name) then
      return entry
    end
  end
  return nil, tostring(err or "it is not in the status")
end

---Wait until a target (…) is in this state. @return table entry
function Box:is(state, name, kind)
  return self:eventually(function()
    local entry, err = self:entry(name, kind)
    return entry and entry.state == state and entry,
      ("%s is %s (%s), wanted %s"):format(name or "the target", entry and entry.state or "?", entry and entry.error or err, state)
  end)
end

---Wait until a target has seen this content of a configuration, whatever it made of it, and rests.
function Box:saw(data_id, content, name)
  local md5 = require("nacos.core").md5(content)
  return self:eventually(function()
    local entry, err = self:entry(name)
    for _, source in ipairs(entry and entry.tried or {}) do
      if source.data_id == data_id and source.md5 == md5 and entry.state ~= "checking" then
        return entry
      end
    end
    return nil, err or data_id .. " was not seen in this version"
  end)
end

---What its descriptors are.
function Box:fds()
  local list, folder = {}, ("/proc/%d/fd"):format(self.process.pid)
  for name in uv.fs_scandir_next, assert(uv.fs_scandir(folder)) do
    list[#list + 1] = uv.fs_readlink(folder .. "/" .. name)
  end
  return list
end

function Box:signal(name)
  self.process:signal(name)
end

---End whatever runs, also what the agent has started: it runs in the same folder.
function Box:close()
  if self.process then
    self.process:kill9()
  end
  for pid in uv.fs_scandir_next, assert(uv.fs_scandir("/proc")) do
    if pid:find("^%d+$") and uv.fs_readlink("/proc/" .. pid .. "/cwd") == self.folder then
      uv.kill(math.tointeger(pid), "sigkill")
    end
  end
  self.client:close()
  for _, server in ipairs(self.servers or {}) do
    server:kill9()
  end
end

-- ---- cases -------------------------------------------------------------------------------------------------------------------

---Cases that run beside each other, the next ones already while the first is asked for.
---@param it function       # of busted
---@param at_once integer
---@param server_of fun(): table # the server, once the cases begin
---@return fun(name: string, fn: fun(box: AgentBox)) case # an it() whose function runs in a task
function agent_lab.cases(it, at_once, server_of)
  local list, active, following, asked = {}, 0, 1, nil
  for _, word in ipairs(arg or {}) do
    if word:find("^%-%-filter") then
      at_once = 1 -- only what is asked for
    end
  end

  local function work(case)
    local box = agent_lab.box(server_of())
    case.result = table.pack(xpcall(case.fn, function(err)
      return type(err) == "table" and err or debug.traceback(err, 2)
    end, box))
    box:close()
    case.done = true
  end

  local function fill()
    while active < at_once and following <= #list and (at_once > 1 or following == asked) do
      local case = list[following]
      following, active = following + 1, active + 1
      nacos.spawn(function()
        work(case)
        active = active - 1
        fill()
      end)
    end
  end

  return function(name, fn)
    local case, index = { fn = fn }, #list + 1
    list[index] = case
    it(name, function()
      asked = index
      following = math.max(following, index) -- those before were filtered out
      fill()
      support.eventually(function()
        return case.done
      end, 120)
      if not case.result[1] then
        error(case.result[2], 0)
      end
    end)
  end
end

return agent_lab
