--- push: publishes a local file whenever it changes, by compare-and-set.
--
-- The first time the file wins. What was published last is remembered in the state folder: when the server has neither that nor what the
-- file says, somebody else has published. That is a conflict, which stays visible and is not overwritten while it lasts.

local bell = require "nacos.agent.bell"
local command = require "nacos.agent.command"
local core = require "nacos.core"
local files = require "nacos.agent.files"
local guard = require "nacos.agent.guard"
local log = require "nacos.agent.log"
local uv = require "luv"

local FIRST_PAUSE, LONGEST_PAUSE = 1, 60 -- seconds between two tries after a failure

---@class nacos.agent.Push
local Push = {}
Push.__index = Push

---@param def table  # see nacos.agent.push
---@param agent table # client, state
local function new(def, agent)
  return setmetatable({
    def = def, agent = agent, name = def.name, state = "waiting", bell = bell.new(), pause = FIRST_PAUSE,
    record = agent.state:target("push:" .. def.data_id .. "@" .. (def.group or "")),
  }, Push)
end

local function become(self, state, problem)
  if problem and (self.state ~= state or self.error ~= problem) then
    log.write(state == "conflict" and "warn" or "error", self.name, problem)
  end
  self.state, self.error = state, problem
end

---@return true|nil
---@return string|nil problem
---@return string|nil state
local function publish(self, content)
  local def, data, md5 = self.def, self.record.data, core.md5(content)
  local present, source = self.agent.client:get_config { data_id = def.data_id, group = def.group, no_snapshot = true }
  local remote = present and core.md5(present)
  if not present and source.code ~= "not_found" then
    return nil, tostring(source), "failed"
  elseif present and source ~= "server" then
    return nil, ("the present value of %s comes from the %s: nothing is published over it"):format(def.data_id, source), "failed"
  elseif remote ~= md5 then
    if remote and data.pushed and remote ~= data.pushed then
      return nil, ("%s was changed by somebody else (md5 %s, we had published %s): not overwritten"):format(
        def.data_id, remote, data.pushed), "conflict"
    end
    local asked = { data_id = def.data_id, group = def.group, content = content, type = def.type, cas_md5 = remote or nil }
    local ok, err = self.agent.client:publish_config(asked)
    if not ok and err.code == "unsupported" then -- an old server: the read before is all there is
      asked.cas_md5 = nil
      ok, err = self.agent.client:publish_config(asked)
    end
    if not ok then
      return nil, tostring(err), err.code == "conflict" and "conflict" or "failed"
    end
    log.info(self.name, "published " .. def.file, { data_id = def.data_id, md5 = md5 })
  end
  data.pushed, data.time = md5, os.time()
  local ok, err = self.record:save()
  return ok, ok and nil or tostring(err), "failed"
end

---A cheap look: equal stamps are equal files.
local function stamp_of(path)
  local stat = uv.fs_stat(path)
  return stat and ("%d.%d %d %d"):format(stat.mtime.sec, stat.mtime.nsec, stat.size, stat.ino)
end

---@return true|nil
local function look(self)
  local def = self.def
  local content, err = files.read(def.file)
  if not content then
    become(self, "failed", tostring(err))
    return nil
  elseif content == "" then
    become(self, "failed", def.file .. " is empty: not published")
    return nil
  end
  if def.check then
    local ok, problem = command.run(def.check, {
      target = self.name, what = "check", strict = true, timeout = def.check_timeout,
      places = { path = def.file, staged = def.file }, context = { name = self.name, path = def.file, content = content },
    })
    if not ok then
      become(self, "rejected", "not published: " .. problem)
      return true -- until the file changes
    end
  end
  local ok, problem, state = publish(self, content)
  if not ok then
    become(self, state, problem)
    return nil
  end
  become(self, "ok")
  return true
end

function Push:run()
  guard.name("push " .. self.name)
  local seen
  local observation = self.agent.client:observe_config(self.def.data_id, self.def.group, function()
    self.insist = true -- a change on the server is worth a look, too
    self.bell:ring()
  end)
  while not self.stopped do
    local stamp = stamp_of(self.def.file)
    local wait = self.def.interval
    if stamp ~= seen or self.insist or stamp == nil then
      self.insist = nil
      local ok, done = pcall(look, self)
      if not ok then
        become(self, "failed", tostring(done))
      end
      if ok and done then
        seen, self.pause = stamp, FIRST_PAUSE
      else
        seen = nil
        wait = math.max(wait, self.pause)
        self.pause = math.min(self.pause * 2, LONGEST_PAUSE)
      end
      if self.settled then
        self.settled()
      end
    end
    self.bell:wait(wait)
  end
  if observation then
    observation:stop()
  end
end

function Push:retry()
  self.insist = true
  self.bell:ring()
end

function Push:stop()
  self.stopped = true
  self.bell:ring()
end

function Push:status()
  return {
    name = self.name, file = self.def.file, group = self.def.group, state = self.state, error = self.error,
    pushed = self.record.data.pushed, changed = self.record.data.time,
  }
end

return { new = new }
