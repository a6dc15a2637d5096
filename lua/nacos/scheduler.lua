--- Waiting: turns the engine's events into resumed coroutines and handler calls.
--
-- One engine (one runtime thread) per Lua state, made by the first client or sleep and shared by all of them.
-- A call that needs an answer asks `await(id)`. In a coroutine that this scheduler runs it yields and others go on; anywhere else
-- it blocks, which is safe because the engine answers every request within its deadline; other events stay pending meanwhile.

local core = require "nacos.core"

local scheduler = {}

local MAX_EVENTS_PER_STEP = 1000
local SIGNALS = { TERM = true, INT = true, HUP = true, USR1 = true, USR2 = true, CHLD = true, WINCH = true }

local engine
local waiting = {}                                  -- request or timer id -> coroutine
local handlers = {}                                 -- watch, subscription or signal id -> function(event)
local handler_count = 0                             -- of watches and subscriptions
local kept = 0                                      -- what else keeps run() going, see keep()
local tasks = setmetatable({}, { __mode = "k" })    -- our coroutines -> true
local task_count = 0                                -- of those not ended
local active = false                                -- inside step(), run() or a task
local running = false                               -- inside run()
local stopping = false
local YIELDED = {}                                  -- what await() yields, to tell it from a user's own yield

---@return table # the engine of this Lua state
function scheduler.engine()
  if not engine then
    local made, err = core.engine()
    if not made then
      error(err.message, 0)
    end
    engine = made
  end
  return engine
end

local function report(co, err)
  io.stderr:write("nacos: error in a task: ", debug.traceback(co, tostring(err)), "\n")
end

local function resume(co, ...)
  local was = active
  active = true -- also for the first stretch of a task, which spawn() runs
  local ok, value = coroutine.resume(co, ...)
  active = was
  if coroutine.status(co) == "dead" then
    tasks[co] = nil
    task_count = task_count - 1
    if not ok then
      report(co, value)
    end
  elseif value ~= YIELDED then
    waiting[scheduler.engine():timer(0)] = co -- a plain coroutine.yield(): others first
  end
end

---True in a coroutine that waits by yielding.
local function scheduled()
  local co = coroutine.running()
  return co and tasks[co] and co or nil
end

---Wait for the event with this id.
---@param id integer|nil
---@param err table|nil   # what came with a nil id: passed on
---@return table event    # its `error` says what failed
function scheduler.await(id, err)
  if not id then
    return { error = err }
  end
  local co = scheduled()
  if co then
    waiting[id] = co
    return coroutine.yield(YIELDED)
  end
  while true do
    local event = engine:wait(nil, id)
    if event then
      return event
    end
    if engine:forked() then
      return { error = core.error("forked", "this process is a fork of the one that asked") }
    end
  end
end

---@param id integer
---@param fn fun(event: table)|nil # nil: no more
function scheduler.handle(id, fn)
  if (handlers[id] == nil) ~= (fn == nil) then
    handler_count = handler_count + (fn and 1 or -1)
  end
  handlers[id] = fn
end

---Wait for several events.
---@param ids integer[]
---@return table<integer, table> # id -> event
function scheduler.await_all(ids)
  local events, co = {}, scheduled()
  for _, id in ipairs(ids) do
    if co then
      waiting[id] = co
    else
      events[id] = scheduler.await(id)
    end
  end
  for _ = 1, co and #ids or 0 do
    local event = coroutine.yield(YIELDED)
    events[event.id] = event
  end
  return events
end

---Keep run() going for something that lives in the engine and is neither a task nor a watch: a registered instance.
---@param more integer # so many more; negative: fewer
function scheduler.keep(more)
  kept = kept + more
end

local function dispatch(event)
  local co = waiting[event.id]
  if co then
    waiting[event.id] = nil
    resume(co, event)
    return
  end
  local handler = handlers[event.id]
  if handler then
    handler(event)
  end
end

---Run a function as a coroutine that may wait: in it, every call of this module lets others go on.
---It starts at once. An error in it is written to standard error with a traceback and ends only that task.
---@param fn function
---@param ... any # its arguments
---@return thread
function scheduler.spawn(fn, ...)
  if type(fn) ~= "function" then
    error("bad argument #1 to 'spawn' (function expected, got " .. type(fn) .. ")", 2)
  end
  local co = coroutine.create(fn)
  tasks[co] = true
  task_count = task_count + 1
  resume(co, ...)
  return co
end

---Wait without keeping others from going on (blocks outside a task).
---@param seconds number
function scheduler.sleep(seconds)
  if type(seconds) ~= "number" or seconds < 0 or seconds ~= seconds then
    error("bad argument #1 to 'sleep' (seconds expected)", 2)
  end
  local event = scheduler.await(scheduler.engine():timer(seconds))
  if event.error then
    error(event.error.message, 2) -- in a forked child: returning at once would make a loop spin
  end
end

local function turn(timeout)
  local event = engine:wait(timeout)
  local n = 0
  while event do
    dispatch(event)
    n = n + 1
    if n == MAX_EVENTS_PER_STEP or (running and stopping) then
      break
    end
    event = engine:wait(0)
  end
  return n
end

---One turn for hosts with a loop of their own: deliver what waits, at most 1000 events.
---@param timeout number|nil # seconds to wait for a first event; default 0: never waits
---@return integer           # events delivered
function scheduler.step(timeout)
  if active then
    error("nacos.step: called from inside a callback or task; wait with the client's own calls or nacos.sleep there", 2)
  end
  if timeout ~= nil and (type(timeout) ~= "number" or timeout < 0) then
    error("bad argument #1 to 'step' (seconds expected)", 2)
  end
  if not engine then
    scheduler.engine()
  end
  active = true
  local ok, n = pcall(turn, timeout or 0)
  active = false
  if not ok then
    error(n, 0)
  end
  return n
end

---A descriptor that is readable while an event waits for step(); for poll, epoll, luv … Never read from it.
---@return integer
function scheduler.fd()
  return scheduler.engine():fd()
end

---Run until stop(), or until nothing is left that could happen: no task, no watch, no followed service and no registered instance
---that is kept alive.
---@param fn function|nil # started as the first task; an error in it ends run() and is raised from it
---@return any ...        # what fn returned
function scheduler.run(fn)
  if active or running then
    error("nacos.run: already running", 2)
  end
  if fn ~= nil and type(fn) ~= "function" then
    error("bad argument #1 to 'run' (function expected, got " .. type(fn) .. ")", 2)
  end
  local e = scheduler.engine()
  local results, failure
  running, stopping = true, false
  if fn then
    scheduler.spawn(function()
      local function keep(ok, ...)
        if ok then
          results = { n = select("#", ...), ... }
        else
          failure = { ... }
          stopping = true
        end
      end
      keep(xpcall(fn, function(err)
        return type(err) == "string" and debug.traceback(err, 2) or err
      end))
    end)
  end
  while not stopping and (task_count > 0 or handler_count > 0 or kept > 0) do
    if e:forked() then
      running = false
      error("nacos.run: this process is a fork of the one that started it", 2)
    end
    active = true
    local ok, err = pcall(turn)
    active = false
    if not ok then
      running = false
      error(err, 0)
    end
  end
  running = false
  if failure then
    error(failure[1], 0)
  end
  if results then
    return (table.unpack or unpack)(results, 1, results.n) -- luacheck: ignore 143 113
  end
end

---Make run() return after the present turn. Tasks that wait stay as they are. Outside run() it does nothing.
function scheduler.stop()
  stopping = true
end

---Call fn at the next delivery of a signal; a second delivery has its default effect (so a second ^C kills).
---This changes the process's signal disposition: for programs that own the process, not for libraries.
---@param name "TERM"|"INT"|"HUP"|"USR1"|"USR2"|"CHLD"|"WINCH"
---@param fn fun()
function scheduler.on_signal(name, fn)
  if type(name) ~= "string" or not SIGNALS[name] or type(fn) ~= "function" then
    error("bad argument to 'nacos.on_signal' (TERM, INT, HUP, USR1, USR2, CHLD or WINCH and a function expected)", 2)
  end
  local id, err = scheduler.engine():signal(name)
  if not id then
    error(err.message, 2)
  end
  handlers[id] = function() -- not counted: it does not keep run() going
    handlers[id] = nil
    fn()
  end
end

return scheduler
