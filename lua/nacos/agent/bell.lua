--- bell: one task sleeps, others wake it.

local scheduler = require "nacos.scheduler"

---@class nacos.agent.Bell
---@field rung boolean
local Bell = {}
Bell.__index = Bell

---@return nacos.agent.Bell
local function new()
  return setmetatable({ rung = false }, Bell)
end

---Sleep until it is rung, or was since the last wait.
---@param seconds number|nil # at most; nil: no limit
---@return boolean rang
function Bell:wait(seconds)
  if not self.rung and not (seconds and seconds <= 0) then
    self.task = scheduler.task()
    scheduler.park(seconds)
    self.task = nil
  end
  local rang = self.rung
  self.rung = false
  return rang
end

function Bell:ring()
  self.rung = true
  if self.task then
    scheduler.wake(self.task)
  end
end

return { new = new }
