--- Waiting: turns the engine's events into resumed coroutines and handler calls.
--
-- One engine (one runtime thread) per Lua state, made by the first client or sleep and shared by all of them.
-- A call that needs an answer asks `await(id)`. In a coroutine that this scheduler runs it yields and others go on; anywhere else
-- it blocks, which is safe because the engine answers every request within its deadline; other events stay pending meanwhile.

local core = require "nacos.core"

local scheduler = {}

local MAX_EVENTS_PER_STEP = 1000
local SIGNALS = { TERM = true, INT = true, HUP = true, QUIT = true, USR1 = true, USR2 = true, CHLD = true, WINCH = true }

local engine
local waiting = {}                                  -- request or timer id -> coroutine
local handlers = {}                                 -- watch, subscription or signal id -> function(event)
local handler_count = 0                             -- of watches and subscriptions
local kept = 0                                      -- what else keeps run() going, see keep()
local tasks = setmetatable({}, { __mode = "k" })    -- our coroutines -> true
local task_count = 0                                -- of those not ended
local parked = {}                                   -- task in park() -> the id of its timer, or true
local active = false                                -- inside step(), run() or a task
local running = false                               -- inside run()
local stopping = false
local slow_limit, on_slow                           -- see on_slow()
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
  local began = on_slow and core.monotonic()
  local ok, value = coroutine.resume(co, ...)
  active = was
  if began and on_slow and core.monotonic() - began > slow_limit then
    on_slow(co, core.monotonic() - began)
  end
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

---As handle(), but this does not keep run() going.
---@param id integer
---@param fn fun(event: table)|nil # nil: no more
function scheduler.listen(id, fn)
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

---Be told of tasks that hold up all others.
---@param seconds number|nil # for longer than this at a stretch
---@param fn fun(task: thread, seconds: number)|nil # nil: no more
function scheduler.on_slow(seconds, fn)
  slow_limit, on_slow = seconds, fn
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

---@return thread|nil # the task that runs now; nil outside of tasks
function scheduler.task()
  return scheduled()
end

---Let others go on until wake(). Only in a task.
---@param seconds number|nil # at most; nil: without limit
---@return boolean # true: woken
function scheduler.park(seconds)
  local task = assert(scheduled(), "park() outside of a task")
  if seconds then
    local id, err = scheduler.engine():timer(seconds)
    if not id then
      error(err.message, 3) -- in a forked child: returning at once would make a loop spin
    end
    waiting[id], parked[task] = task, id
  else
    parked[task] = true
  end
  coroutine.yield(YIELDED)
  local woken = not parked[task]
  parked[task] = nil
  return woken
end

---End the park() or sleep() of a task early. When a task calls this, the other goes on in the next turn, else at once.
---@param task thread
---@return boolean # false: it is in neither
function scheduler.wake(task)
  local id = parked[task]
  if not id then
    return false
  end
  parked[task] = nil
  if id ~= true then
    waiting[id] = nil
    engine:forget(id)
  end
  if scheduled() then
    waiting[scheduler.engine():timer(0)] = task
  else
    resume(task)
  end
  return true
end

---Wait without keeping others from going on (blocks outside a task).
---@param seconds number
function scheduler.sleep(seconds)
  if type(seconds) ~= "number" or seconds < 0 or seconds ~= seconds then
    error("bad argument #1 to 'sleep' (seconds expected)", 2)
  end
  if scheduled() then
    scheduler.park(seconds)
    return
  end
  local event = scheduler.await(scheduler.engine():timer(seconds))
  if event.error then
    error(event.error.message, 2)
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

---Call fn at the next delivery of a signal, a further one has its default effect (so a second ^C kills); or at every delivery.
---This changes the process's signal disposition: for programs that own the process, not for libraries.
---@param name "TERM"|"INT"|"HUP"|"QUIT"|"USR1"|"USR2"|"CHLD"|"WINCH"
---@param fn fun()
---@param every boolean|nil
function scheduler.on_signal(name, fn, every)
  if type(name) ~= "string" or not SIGNALS[name] or type(fn) ~= "function" then
    error("bad argument to 'nacos.on_signal' (TERM, INT, HUP, QUIT, USR1, USR2, CHLD or WINCH and a function expected)", 2)
  end
  local id, err = scheduler.engine():signal(name, every)
  if not id then
    error(err.message, 2)
  end
  scheduler.listen(id, function()
    if not every then
      scheduler.listen(id, nil)
    end
    fn()
  end)
end

local luv = {} -- its loop: { followed=, kick=, timer= } are ids of events that are waited for

local turn_luv

---The id of an event that gives luv's loop a turn.
local function turn_at(id)
  if id then
    scheduler.listen(id, turn_luv)
  end
  return id
end

local function drop(name)
  if luv[name] then
    scheduler.listen(luv[name], nil)
    engine:forget(luv[name])
    luv[name] = nil
  end
end

function turn_luv(event)
  scheduler.listen(event.id, nil)
  for _, name in ipairs { "followed", "kick", "timer" } do
    if luv[name] == event.id then
      luv[name] = nil
    end
  end
  local uv = require "luv"
  uv.run("nowait")
  drop("timer")
  if not uv.loop_alive() then
    return drop("followed")
  end
  luv.followed = luv.followed or turn_at(not event.error and engine:readable(uv.backend_fd()) or engine:timer(0.1))
  local pause = uv.backend_timeout()
  if pause >= 0 then
    luv.timer = turn_at(engine:timer(pause / 1000))
  end
end

---luv, its loop driven by ours. Call it again after making or changing handles: they come to life in the next turn. A callback of luv
---must neither wait nor raise (luv ends the program then): it starts or wakes a task. Its handles do not keep run() going.
---@return table # the module
function scheduler.luv()
  local uv = require "luv"
  luv.kick = luv.kick or turn_at(scheduler.engine():timer(0))
  return uv
end

return scheduler
