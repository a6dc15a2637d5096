--- control: the socket by which commands talk to a running agent. One JSON line asks, one answers.
--
--   local server = control.serve(path, function(request) return { … } end)     server:close()
--   local answer, err = control.ask(path, { command = "status" })
--
-- Only the agent's user (and root) can connect: the socket is 0600, and lies in a folder that is 0700.

local core = require "nacos.core"
local formats = require "nacos.formats"
local log = require "nacos.agent.log"
local scheduler = require "nacos.scheduler"

local control = {
  deadline = 5,                 -- seconds for a connection, from its beginning to the end of the answer
}

local MAX_CONNECTIONS = 16
local MAX_REQUEST = 64 * 1024
local MAX_ANSWER = 64 * 1024 * 1024
local MAX_NAME = 107            -- of a socket's path in the kernel; libuv cuts longer ones off without a word

---Call fn with a path of the socket that is short enough.
---@return any ... # what fn returned; nil, message, code when the folder cannot be opened
local function with_short(path, fn)
  if #path <= MAX_NAME then
    return fn(path)
  end
  local uv = require "luv"
  local folder, name = path:match("^(.*/)([^/]*)$")
  local fd, message, code = uv.fs_open(folder or ".", "r", 0)
  if not fd then
    return nil, message, code
  end
  local results = table.pack(fn(("/proc/self/fd/%d/%s"):format(fd, name or path)))
  uv.fs_close(fd)
  return table.unpack(results, 1, results.n)
end

local function close(handle)
  local there, closing = pcall(handle.is_closing, handle) -- not any more when the Lua state ends before a time is up
  if there and not closing then
    handle:close()
    scheduler.luv()
  end
end

---Let luv finish what was closed outside of its turns: at the end of the Lua state it would free that twice.
local function let_close()
  if scheduler.task() then
    scheduler.luv()
    scheduler.sleep(0)
  else
    require("luv").run("nowait")
  end
end

---Close a connection when the time is up. The timer is one of luv's, as nothing of it must keep nacos.run() going.
local function limit(pipe, seconds, on_end)
  local timer = require("luv").new_timer()
  timer:start(math.ceil(seconds * 1000), 0, on_end)
  return function()
    close(timer)
    close(pipe)
  end
end

---Read until the first line is there. Must be called once, and `done` is called once.
---@param done fun(line: string|nil, problem: string|nil)
local function read_line(pipe, max, done)
  local parts, size = {}, 0
  pipe:read_start(function(message, chunk)
    if message or not chunk then
      pipe:read_stop()
      return done(nil, message or "it ended before its line did")
    end
    parts[#parts + 1], size = chunk, size + #chunk
    if chunk:find("\n", 1, true) or size > max then
      pipe:read_stop()
      local line = table.concat(parts):match("^(.-)\n")
      if line and #line <= max then
        done(line)
      else
        done(nil, ("its line is longer than %d bytes"):format(max))
      end
    end
  end)
end

-- ---- the agent's side --------------------------------------------------------------------------------------------------------

---@class nacos.agent.ControlServer
local Server = {}
Server.__index = Server

---@return table # the answer
local function answer_to(handler, line)
  local request = formats.decode("json", line)
  if type(request) ~= "table" then
    return { error = "the request is not a JSON object" }
  end
  local ok, answer = xpcall(handler, debug.traceback, request)
  if not ok or type(answer) ~= "table" then
    log.error(nil, ("error while answering the command %s: %s"):format(tostring(request.command), tostring(answer)))
    return { error = "internal error, see the agent's log" }
  end
  return answer
end

local function accept(self)
  local uv = require "luv"
  local pipe = uv.new_pipe(false)
  self.listener:accept(pipe)
  if self.count >= MAX_CONNECTIONS then
    return close(pipe)
  end
  self.count = self.count + 1
  local finish
  local function ended()
    if self.connections[pipe] then
      self.connections[pipe] = nil
      self.count = self.count - 1
      finish()
    end
  end
  finish = limit(pipe, control.deadline, ended)
  self.connections[pipe] = ended
  local function send(answer)
    if not self.connections[pipe] then -- too late, or the agent stops
      return
    end
    local ok, text = pcall(formats.json, answer)
    if not ok then
      log.error(nil, "the answer to a command cannot be said in JSON: " .. tostring(text))
      text = formats.json { error = "internal error, see the agent's log" }
    end
    pipe:write(text .. "\n", ended)
    scheduler.luv()
  end
  read_line(pipe, MAX_REQUEST, function(line, problem)
    if line then
      scheduler.spawn(function()
        send(answer_to(self.handler, line))
      end)
    elseif problem:find("^its line is") then
      send { error = "the request is too long: " .. problem }
    else
      ended()
    end
  end)
end

---Answer what comes on a socket; one that an earlier agent left there is replaced, so the caller must be the only agent (it holds the
---lock of the state folder).
---@param path string
---@param handler fun(request: table): table # in a task of its own: it may wait. { error = text } alone says no
---@return nacos.agent.ControlServer|nil
---@return nacos.Error|nil
function control.serve(path, handler)
  local uv = scheduler.luv()
  uv.fs_unlink(path)
  local self = setmetatable({ path = path, handler = handler, connections = {}, count = 0, listener = uv.new_pipe(false) }, Server)
  local ok, message, code = with_short(path, function(short)
    local done, text, name = self.listener:bind(short)
    if done then -- nobody can connect before listen()
      done, text, name = uv.fs_chmod(short, 384) -- 0600
    end
    if done then
      done, text, name = self.listener:listen(MAX_CONNECTIONS, function(err)
        if not err then
          accept(self)
        end
      end)
    end
    return done, text, name
  end)
  if not ok then
    self:close()
    return nil, core.error(code or "invalid", ("cannot listen on the status socket %s: %s"):format(path, tostring(message)))
  end
  scheduler.luv()
  return self
end

---Stop listening and end what is under way; the socket is removed.
function Server:close()
  if not self.listener:is_closing() then
    require("luv").fs_unlink(self.path)
  end
  close(self.listener)
  for _, ended in pairs(self.connections) do
    ended()
  end
  let_close()
end

-- ---- the command's side ------------------------------------------------------------------------------------------------------

---Ask a running agent. In a task.
---@param path string           # of its socket
---@param request table         # { command = "status" }, …
---@param timeout number|nil    # seconds; default 5
---@return table|nil answer
---@return nacos.Error|nil      # code "absent": no agent is there; "timeout"; "refused": the agent said no; "invalid"
function control.ask(path, request, timeout)
  local uv = scheduler.luv()
  local task, result, problem, code = scheduler.task(), nil, nil, nil
  local over = false
  local pipe = uv.new_pipe(false)
  local finish
  local function ended(line, text, name)
    if not over then
      over, result, problem = true, line, text
      code = (name == "ENOENT" or name == "ECONNREFUSED") and "absent" or name
      finish()
      scheduler.wake(task)
    end
  end
  finish = limit(pipe, timeout or control.deadline, function()
    ended(nil, "no answer in time", "timeout")
  end)
  local ok, message, name = with_short(path, function(short)
    return pipe:connect(short, function(err)
      if err then
        return ended(nil, err, err)
      end
      pipe:write(formats.json(request) .. "\n")
      read_line(pipe, MAX_ANSWER, function(line, text)
        ended(line, text, line and nil or "invalid")
      end)
    end)
  end)
  if not ok then
    ended(nil, message, name)
  end
  scheduler.luv()
  while not over do
    scheduler.park()
  end
  let_close()
  local answer = result and formats.decode("json", result)
  if type(answer) == "table" then
    if answer.error ~= nil then
      return nil, core.error("refused", tostring(answer.error))
    end
    return answer
  elseif result then
    problem, code = "it is not JSON", "invalid"
  end
  return nil, core.error(code or "invalid", ("the agent at %s does not answer: %s"):format(path, tostring(problem)))
end

return control
