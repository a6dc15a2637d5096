--- callbacks: runs the callbacks of one client as tasks, at most callback_thread_num at once.
--
-- An *entry* is one callback and what it has to be told. It is run by at most one task at a time: news while it runs, or while it
-- waits for its turn, only marks it dirty. What it is told is made when it runs, so it is the newest, and nothing queues up.
--
--   entry:deliver(callbacks)   tells it all there is, by callbacks:call(); may be called again for news that came meanwhile
--   entry:rest()               optional: it has been told everything and waits for news
--   entry.removed = true       not called any more
-- The fields `dirty` and `busy` of an entry are ours.

local scheduler = require "nacos.scheduler"

---@class nacos.Callbacks
---@field errors integer   # that callbacks raised so far
---@field running integer  # tasks that run callbacks
local Callbacks = {}
Callbacks.__index = Callbacks

local function traceback(err)
  return debug.traceback(tostring(err), 2)
end

---@param core table    # of the client, for its log
---@param options table # its options: callback_thread_num and on_error
---@return nacos.Callbacks
local function new(core, options)
  return setmetatable({ core = core, options = options, errors = 0, running = 0, queue = {}, first = 1, last = 0 }, Callbacks)
end

---@param err any
---@param about table # { kind = "callback" or "watch", … }: what on_error is told
function Callbacks:report(err, about)
  if about.kind == "callback" then -- the engine has logged the others
    self.errors = self.errors + 1
    self.core:log("error", ("error in a callback of %s (group %s): %s"):format(
      about.data_id or about.service_name, about.group or about.group_name, tostring(err)))
  end
  if self.options.on_error then
    local ok, worse = pcall(self.options.on_error, err, about)
    if not ok then
      self.core:log("error", "error in on_error: " .. tostring(worse))
    end
  end
end

---Call a callback; its error is reported.
---@param fn function
---@param about table # names what the callback belongs to
---@param ... any     # its arguments
function Callbacks:call(fn, about, ...)
  local ok, err = xpcall(fn, traceback, ...)
  if not ok then
    local copy = { kind = "callback" }
    for name, value in pairs(about) do
      copy[name] = value
    end
    self:report(err, copy)
  end
end

local function run_entry(self, entry)
  while entry.dirty and not entry.removed do
    entry.dirty = false
    entry:deliver(self)
  end
  entry.busy = false
  if entry.rest then
    entry:rest()
  end
end

---@return table|nil # the entry that has waited longest, if one more may run
local function take_from_queue(self)
  local entry = self.running <= self.options.callback_thread_num and self.queue[self.first]
  if not entry then
    return nil
  end
  self.queue[self.first] = nil
  self.first = self.first + 1
  return entry
end

---A task that works off the queue.
local function start_worker(self)
  self.running = self.running + 1
  scheduler.spawn(function()
    local entry = take_from_queue(self)
    while entry do
      run_entry(self, entry)
      entry = take_from_queue(self)
    end
    self.running = self.running - 1
  end)
end

---Start as many tasks as may run and find work; also to be called when callback_thread_num has grown.
function Callbacks:start()
  while self.running < self.options.callback_thread_num and self.queue[self.first] do
    start_worker(self)
  end
end

---There is something to tell an entry.
function Callbacks:notify(entry)
  entry.dirty = true
  if not entry.busy then
    entry.busy = true
    self.last = self.last + 1
    self.queue[self.last] = entry
    self:start()
  end
end

---The same, but not from inside the call that added the entry.
function Callbacks:notify_soon(entry)
  scheduler.spawn(function()
    scheduler.sleep(0)
    if not entry.removed then
      self:notify(entry)
    end
  end)
end

return { new = new }
