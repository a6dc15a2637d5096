--- check: asks again and again whether something is well.

local command = require "nacos.agent.command"
local scheduler = require "nacos.scheduler"

local check = {}

---Ask, the first time at once, in a task of its own.
---@param what string     # for messages: "check of api"
---@param action string|string[]|fun(): boolean, string|nil # a line for sh, words, or a function, which may wait: true, or false and why
---@param interval number # seconds from an answer to the next question
---@param timeout number
---@param tell fun(well: boolean, why: string|nil): boolean|nil # true: enough
---@return fun() stop # tell() is not called after it, and a program that runs is ended
function check.every(what, action, interval, timeout, tell)
  local over, rests, child = false, false, nil
  local opts = { timeout = timeout, strict = true, started = function(program) child = program end }
  local task = scheduler.spawn(function()
    while true do
      local well, why = command.ask(what, action, opts)
      child = nil
      if over or tell(well == true, why) or over then
        return
      end
      rests = true
      scheduler.park(interval)
      rests = false
    end
  end)
  return function()
    over = true
    if child then
      child:kill("KILL", true) -- nobody is left to do it when the program of the check hangs
    elseif rests then
      scheduler.wake(task)
    end
  end
end

return check
