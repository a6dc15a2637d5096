--- log: what the agent says on standard error, a line each, as text or as JSON.
--
-- Never contents of configurations: only names, checksums, sizes, servers and times.

local formats = require "nacos.formats"
local uv = require "luv"

local log = { format = "text", level = "info" }

local RANKS = { debug = 1, info = 2, warn = 3, error = 4, off = 5 }
local FIELDS = { "data_id", "key", "server", "md5", "code", "duration", "generation", "pid" } -- in this order in a text line

---@param level "debug"|"info"|"warn"|"error"
---@param target string|nil # the file, process or service it is about
---@param message string
---@param fields table<string, string|number>|nil # data_id, key, server, md5, code, duration (seconds), generation, pid
function log.write(level, target, message, fields)
  if RANKS[level] >= RANKS[log.level] then
    log.always(level, target, message, fields)
  end
end

---A line whatever the level of the log is: what a child or a command has printed.
function log.always(level, target, message, fields)
  local seconds, microseconds = uv.gettimeofday()
  local time = ("%s.%03d%s"):format(os.date("%Y-%m-%dT%H:%M:%S", seconds), microseconds // 1000, os.date("%z", seconds))
  if log.format == "json" then
    local line = { time = time, level = level, target = target, message = message }
    for name, value in pairs(fields or {}) do
      line[name] = value
    end
    io.stderr:write(formats.json(line), "\n")
    return
  end
  local more = {}
  for _, name in ipairs(FIELDS) do
    local value = fields and fields[name]
    if value ~= nil then
      more[#more + 1] = ("%s=%s"):format(name, math.type(value) == "float" and ("%.3g"):format(value) or value)
    end
  end
  local text = message:gsub("[\0-\9\11-\31\127]", "?"):gsub("\n", "\n    ")
  io.stderr:write(("%s %-5s %s%s%s\n"):format(time, level:upper(), target and target .. ": " or "", text,
    #more > 0 and " (" .. table.concat(more, " ") .. ")" or ""))
end

for level in pairs(RANKS) do
  log[level] = level ~= "off" and function(...)
    log.write(level, ...)
  end or nil
end

return log
