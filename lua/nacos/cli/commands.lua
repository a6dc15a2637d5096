--- What `watch` and `subscribe` share. --exec: a command per change of an item, never two at once for one item, while all else goes on.

local common = require("nacos.cli.common")
local nacos = require("nacos")
local process = require("nacos.process")

local AT_ONCE = 16          -- commands running; the others wait for their turn
local PATIENCE = 3          -- seconds from TERM to KILL at the end
local LOOK = 0.5            -- seconds between two looks at the protocol, for --verbose

local HOW = { read = "read from", poll = "long poll at", compare = "asked for at", push = "gRPC push from", udp = "UDP push from" }

---@class nacos.cli.Commands
local Commands = {}
Commands.__index = Commands

---@param words string[] # of the command; empty: there is nothing to run
local function new(words)
  return setmetatable({ words = words, items = {}, queue = {}, running = 0, ending = false }, Commands)
end

local function report(self, key, code, why)
  if not code then
    common.note(("the command for '%s' failed: %s"):format(key, tostring(why)))
  elseif self.ending then -- by us
    return
  elseif why then
    common.note(("the command for '%s' was ended by signal %d"):format(key, why))
  elseif code ~= 0 then
    common.note(("the command for '%s' failed: exit code %d"):format(key, code))
  end
end

local function start_waiting(self)
  while self.queue[1] and self.running < AT_ONCE and not self.ending do
    local item = table.remove(self.queue, 1)
    self.running = self.running + 1
    nacos.spawn(function()
      item.process, item.job = process.start(common.command(self.words), item.job), nil
      report(self, item.key, item.process:wait())
      item.process = nil
      self.running = self.running - 1
      if item.job then -- came meanwhile: after those that have waited longer
        self.queue[#self.queue + 1] = item
      else
        self.items[item.key] = nil
      end
      if self.ending and self.running == 0 then
        nacos.stop()
      end
      start_waiting(self)
    end)
  end
end

---Run the command for a change. While it runs for the same item, or waits for its turn, only the last job is kept.
---@param key string # the item
---@param job { env: table<string, string>, input: string }
---@param merge fun(old: table, new: table)|nil # puts what the new job must say of one that was not run into it
function Commands:run(key, job, merge)
  if #self.words == 0 or self.ending then
    return
  end
  local item = self.items[key]
  if item then
    if item.job and merge then
      merge(item.job, job)
    end
    item.job = job
    return
  end
  self.items[key] = { key = key, job = job }
  self.queue[#self.queue + 1] = self.items[key]
  start_waiting(self)
end

local function kill(self, signal)
  for _, item in pairs(self.items) do
    if item.process then
      item.process:kill(signal)
    end
  end
end

---End nacos.run(): at once, or when the commands that run have ended. They get TERM, and KILL when that does not help.
function Commands:finish()
  if self.ending then
    return
  end
  self.ending = true
  if self.running == 0 then
    return nacos.stop()
  end
  kill(self, "TERM")
  nacos.spawn(function()
    nacos.sleep(PATIENCE)
    kill(self, "KILL")
    nacos.sleep(1)
    nacos.stop()
  end)
end

---With --verbose: how a change came.
---@param name string # of the item
---@param change { via: nacos.Via|nil, source: string|nil }
local function tell_via(client, name, change)
  common.tell_protocol(client)
  local how = HOW[change.via]
  common.note(("%s: %s"):format(name, how and ("%s %s"):format(how, client:status().server or "a server")
    or ("from a %s file"):format(change.source)))
end

---What `watch` and `subscribe` do around their changes: until TERM, INT or HUP, or until it makes no sense any more.
---@param args table # of the command: exec, rest
---@param begin fun(client: nacos.Client, told: fun(name: string, change: table, tell: function, ...): boolean, runner: nacos.cli.Commands)
---  begins to follow. told(name, change, tell, …) calls tell(change, …), which writes the change; false: nobody reads it any more, and
---  the end is near.
---@return integer code
local function follow(args, settings, begin)
  if args.exec and #args.rest == 0 then
    common.fail(common.USAGE, "--exec needs a command after it")
  end
  local runner = new(args.rest or {})
  local failure
  local function fail(why)
    failure = failure or why
    runner:finish()
  end
  local client = common.open(common.connection(settings, "warn"), function(err)
    if type(err) == "table" and err.code == "forbidden" then -- anything else is in the log, and it goes on trying
      fail(select(2, pcall(common.check, nil, err)))
    end
  end, settings.verbose)
  local function told(name, change, tell, ...)
    if settings.verbose then
      tell_via(client, name, change)
    end
    local ok, problem = pcall(tell, change, ...)
    if not ok then -- stdout is gone
      fail(problem)
    end
    return ok
  end
  common.on_end(function()
    runner:finish()
  end)
  nacos.run(function()
    begin(client, told, runner)
    while settings.verbose do
      common.tell_protocol(client)
      nacos.sleep(LOOK)
    end
  end)
  common.tell_protocol(client) -- a refusal may have come before the first look
  client:close()
  if failure then
    error(failure, 0)
  end
  return common.DONE
end

return { follow = follow }
