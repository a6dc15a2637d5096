--- Child processes for the command line: started by the engine, so that waiting for one lets everything else go on.

local scheduler = require "nacos.scheduler"

---@class nacos.Process
---@field id integer|nil
local Process = {}
Process.__index = Process

---Start a program in a session of its own; its output is ours. That it cannot be started is what wait() says.
---@param words string[] # the program, looked up in PATH, and its arguments; one word alone is a line for sh
---@param opts { env: table<string, string>|nil, input: string|nil }|nil # added environment; standard input (nil: ours)
---@return nacos.Process
local function start(words, opts)
  if #words == 1 then
    words = { "sh", "-c", words[1] }
  end
  local id, err = scheduler.engine():spawn(words, opts and opts.env, opts and opts.input)
  return setmetatable({ id = id, failed = err }, Process)
end

---Wait for the end: once, in one task.
---@return integer|nil code   # as sh has it: 128 + the signal that ended it
---@return nacos.Error|integer|nil # why it could not be started, or that signal
function Process:wait()
  local event = scheduler.await(self.id, self.failed)
  self.id = nil
  if event.error then
    return nil, event.error
  end
  return event.code or 128 + event.signal, event.signal
end

---Send a signal to the program and what it has started. After its end nothing happens.
---@param signal "TERM"|"INT"|"HUP"|"QUIT"|"KILL"|"USR1"|"USR2"
function Process:kill(signal)
  if self.id then
    scheduler.engine():kill(self.id, signal)
  end
end

return { start = start }
