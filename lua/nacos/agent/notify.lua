--- notify: tells systemd how we are (sd_notify). Without NOTIFY_SOCKET in the environment every function does nothing.

local core = require "nacos.core"
local scheduler = require "nacos.scheduler"
local uv = require "luv"

local notify = {}

local watching = false

---Nothing depends on being heard, so a failure is only returned.
---@return true|nil
---@return nacos.Error|nil
local function send(text)
  local address = os.getenv("NOTIFY_SOCKET")
  if not address or address == "" then
    return true
  end
  return core.sd_notify(address, text)
end

---A task that pings twice as often as systemd wants it, to the end of the program: a loop that hangs is what the watchdog is for.
local function watch()
  local period = tonumber(os.getenv("WATCHDOG_USEC") or "")
  local pid = os.getenv("WATCHDOG_PID")
  if watching or not os.getenv("NOTIFY_SOCKET") or not period or period <= 0 or (pid and tonumber(pid) ~= uv.os_getpid()) then
    return
  end
  watching = true
  scheduler.spawn(function()
    while true do
      send("WATCHDOG=1")
      scheduler.sleep(period / 2e6)
    end
  end)
end

---Started, or done with reloading. The first call starts the watchdog's pings, in a task that never ends.
---@return true|nil
---@return nacos.Error|nil
function notify.ready()
  watch()
  return send("READY=1")
end

---The scripts are read again; ready() says the end of it.
---@return true|nil
---@return nacos.Error|nil
function notify.reloading()
  return send(("RELOADING=1\nMONOTONIC_USEC=%d"):format(math.floor(core.monotonic() * 1e6)))
end

---@return true|nil
---@return nacos.Error|nil
function notify.stopping()
  return send("STOPPING=1")
end

---@param text string # one line for `systemctl status`
---@return true|nil
---@return nacos.Error|nil
function notify.status(text)
  return send("STATUS=" .. text:gsub("%c", " "))
end

return notify
