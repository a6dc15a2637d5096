--- guard: calls a function of the user so that it can neither stop nor stall the agent.

local log = require "nacos.agent.log"
local monotonic = require("nacos.core").monotonic

local guard = {
  warn = 1,        -- seconds for which a call may hold up everything else before a warning; 0: none
  budget = 5e8,    -- Lua instructions after which a call is ended by an error (a second or two); 0: no limit
}

local calls = setmetatable({}, { __mode = "k" }) -- task -> what it calls, or called last: { what=, began=, ended=|nil }
local names = setmetatable({}, { __mode = "k" }) -- task -> what it is for
local told = 0                                   -- when slow() has warned last

local STEP = 1000000 -- instructions between two looks

local function traceback(err)
  debug.sethook()
  if type(err) == "table" then
    return err
  end
  return (debug.traceback(tostring(err), 2):gsub("\n\t%[C%]: in function 'xpcall'.*$", ""))
end

---What the running task is called in warnings when it does not call something of the user.
---@param what string # "target nginx.conf"
function guard.name(what)
  names[coroutine.running()] = what
end

---What a task was doing for the last so many seconds.
---@return string
local function name_of(task, seconds)
  local call, now = calls[task], monotonic()
  if call and (call.ended or now) - math.max(call.began, now - seconds) >= seconds / 2 then
    return call.what
  end
  return names[task] or "a task"
end

---Warn of a task that held up all others. For scheduler.on_slow().
---@param task thread
---@param seconds number
function guard.slow(task, seconds)
  local now = monotonic()
  if now - told >= seconds / 2 then -- else it was in a task that this one has started
    told = now
    log.warn(nil, ("%s held up everything else for %.1f s"):format(name_of(task, seconds), seconds))
  end
end

---Call fn in this task.
---@param what string # for messages: "check of nginx.conf"
---@return boolean ok
---@return any ...    # its results, or the error: text with a traceback, or the table that it raised
function guard.call(what, fn, ...)
  local task, used = coroutine.running(), 0
  local call, outer = { what = what, began = monotonic() }, calls[task]
  calls[task] = call
  if guard.budget > 0 then
    local function count()
      used = used + STEP
      if used > guard.budget then
        debug.sethook(count, "", 1) -- a pcall of its own does not help it: what follows fails, too
        error(("%s ran for more than %.0f instructions: a loop without end? (agent.limits{ budget = … } allows more)"):format(
          what, guard.budget), 0)
      end
    end
    debug.sethook(count, "", STEP)
  end
  local results = table.pack(xpcall(fn, traceback, ...))
  debug.sethook()
  call.ended = monotonic()
  if outer and not outer.ended then
    calls[task] = outer
  end
  return table.unpack(results, 1, results.n)
end

return guard
