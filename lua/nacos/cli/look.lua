--- What the commands share that look at an agent: its state folder, its status, targets by name, texts.

local agent = require("nacos.cli.agent")
local common = require("nacos.cli.common")

local look = {}

---Run fn as a task and pass on what it returns or raises, with a traceback.
---@param fn fun(): integer # the exit code
---@return integer code
function look.in_task(fn)
  return agent.in_task(fn, function(err)
    return type(err) == "string" and debug.traceback(err, 2) or err
  end)
end

---The state folder of the agent that the command is about, for looking.
---@return nacos.agent.State
function look.open(args)
  local folder = agent.existing_state(args.state)
  local state, err = require("nacos.agent.state").read(folder)
  if not state and err.code == "absent" then
    common.fail(common.UNAVAILABLE, "no agent has run here: there is no folder " .. folder)
  elseif not state then
    common.fail(err.code == "EACCES" and common.FORBIDDEN or common.REFUSED, tostring(err))
  end
  return state
end

---Ask the running agent; leave the command when it does not answer or says no.
---@param state nacos.agent.State
---@param request table
---@return table
function look.ask(state, request)
  local answer, err = require("nacos.agent.control").ask(state:socket(), request)
  if not answer then
    common.fail(err.code == "refused" and common.NOT_FOUND or common.UNAVAILABLE,
      err.code == "refused" and err.message or ("the agent (pid %d) runs, but: %s"):format(state:running() or 0, err.message))
  end
  return answer
end

-- The record of a push has this before its name, see nacos.agent.push.
local PUSH = "^push:(.*)@(.*)$"

---What the state folder says of a target without its agent.
local function left_behind(record)
  local data = record.data
  local state, why = "waiting", nil
  if data.pinned then
    state, why = "pinned", "pinned to generation " .. data.pinned
  elseif data.rejected then
    state, why = "rejected", data.rejected.reason
  elseif data.swapping then
    state, why = "owed", "writing generation " .. data.swapping .. " was interrupted"
  elseif data.applied ~= data.written then
    state, why = "owed", data.owed and data.owed.reason or "the reload has not been done"
  elseif data.written then
    state = "ok"
  end
  return {
    name = record.name, kind = "target", state = state, error = why, since = data.time, wanted = data.written,
    written = data.written, applied = data.applied, generation = data.generation, changed = data.time, owed = data.owed,
    rejected = data.rejected, pinned = data.pinned, files = data.paths or {},
  }
end

---The status of the agent; when none runs what it has left, with running = false.
---@param state nacos.agent.State
---@return table
function look.status(state)
  if state:running() then
    return look.ask(state, { command = "status" })
  end
  local status = { running = false, targets = {}, processes = {}, services = {}, pushes = {}, sources = {} }
  for _, name in ipairs(state:names()) do
    local record = state:target(name)
    local data_id, group = name:match(PUSH)
    if record and data_id then
      table.insert(status.pushes, { name = data_id, group = group ~= "" and group or nil, state = "unknown",
        pushed = record.data.pushed, changed = record.data.time, since = record.data.time })
    elseif record and not name:find("^process:") then
      table.insert(status.targets, left_behind(record))
    end
  end
  return status
end

---A line that nothing of this is kept up at the moment.
function look.note_absence(status)
  if status.running == false then
    common.note("the agent does not run; this is what it has left")
  end
end

local function last_part(path)
  return path:match("[^/]*$")
end

---A target by its name, by a path, or by the last part of a path if only one has it; leave the command when there is none.
---@param status table # see look.status
---@param wanted string
---@return table # its entry in status.targets
function look.target(status, wanted)
  local near, names = {}, {}
  local whole = require("luv").cwd() .. "/" .. wanted
  for _, target in ipairs(status.targets) do
    names[#names + 1] = target.name
    if target.name == wanted or target.name == whole then
      return target
    end
    local is_near = last_part(target.name) == wanted
    for _, path in ipairs(target.files or {}) do
      if path == wanted or path == whole then
        return target
      end
      is_near = is_near or last_part(path) == wanted
    end
    near[#near + 1] = is_near and target or nil
  end
  if #near == 1 then
    return near[1]
  end
  local hint = #names == 0 and "the agent keeps no files"
  if #near > 1 then
    for i, target in ipairs(near) do
      near[i] = target.name
    end
    hint = "it may be " .. table.concat(near, " or ")
  elseif not hint then
    local nearest = require("nacos.options").nearest(wanted, names)
    hint = nearest and ("did you mean '%s'?"):format(nearest) or "`lunacos status` lists them"
  end
  common.fail(common.NOT_FOUND, ("no target is named '%s' (%s)"):format(wanted, hint))
end

---The argument TARGET of a command.
function look.target_argument(parser)
  return parser:argument("target"):description("A target's name, the path of one of its files, or the last part of that")
end

---A number of a generation on the command line.
function look.generation(text)
  local n = math.tointeger(tonumber(text))
  if not n or n < 1 then
    return nil, "the number of a generation is needed, not '" .. text .. "'"
  end
  return n
end

-- ---- texts -------------------------------------------------------------------------------------------------------------------

---@param seconds number|nil
---@return string # "12s", "3m", "5h", "2d"; "-" for nil
function look.duration(seconds)
  if not seconds then
    return "-"
  end
  seconds = math.max(0, seconds)
  if seconds < 100 then
    return ("%.0fs"):format(seconds)
  elseif seconds < 100 * 60 then
    return ("%.0fm"):format(seconds / 60)
  elseif seconds < 48 * 3600 then
    return ("%.0fh"):format(seconds / 3600)
  end
  return ("%.0fd"):format(seconds / 86400)
end

---@param time number|nil # Unix time
---@return string # how long ago that was
function look.age(time)
  return look.duration(time and os.time() - time)
end

---@return string
function look.time(time)
  return time and os.date("%Y-%m-%d %H:%M:%S", math.floor(time)) or "-"
end

---@return string # one line, without what would drive a terminal
function look.line(text)
  return (tostring(text):match("^[^\n]*"):gsub("%c", " "))
end

---Write rows as a table: columns as wide as needed, the last one as it is.
---@param rows string[][]
function look.write_table(rows)
  local widths = {}
  for _, row in ipairs(rows) do
    for i = 1, #row - 1 do
      widths[i] = math.max(widths[i] or 0, utf8.len(row[i]) or #row[i])
    end
  end
  local lines = {}
  for n, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      cells[i] = i < #row and cell .. (" "):rep(widths[i] - (utf8.len(cell) or #cell)) or cell
    end
    lines[n] = table.concat(cells, "  "):gsub("%s+$", "") .. "\n"
  end
  common.write(table.concat(lines))
end

---@param source nacos.agent.Used
---@return string # what it is called
function look.source_name(source)
  local name = source.data_id or source.name or source.path or "*"
  local parts = {}
  if source.group and source.group ~= "DEFAULT_GROUP" then
    parts[1] = "group " .. source.group
  end
  if source.namespace and source.namespace ~= "" then
    parts[#parts + 1] = "namespace " .. source.namespace
  end
  return ("%s %s%s"):format(source.kind, name, #parts > 0 and " (" .. table.concat(parts, ", ") .. ")" or "")
end

---@param source nacos.agent.Used
---@return string # in which state it is, and who said so when
function look.source_state(source)
  local parts = {}
  if source.state and source.state ~= "known" then
    parts[1] = source.state
  end
  if source.md5 then
    parts[#parts + 1] = "md5 " .. source.md5
  end
  if source.instances then
    parts[#parts + 1] = source.instances .. (source.instances == 1 and " instance" or " instances")
  end
  if source.services then
    parts[#parts + 1] = source.services .. (source.services == 1 and " service" or " services")
  end
  if source.source then
    parts[#parts + 1] = "from " .. (source.source == "server" and source.server and "server " .. source.server
      or "the " .. source.source)
  end
  if source.time then
    parts[#parts + 1] = "at " .. look.time(source.time)
  end
  if source.trouble then
    parts[#parts + 1] = "but now: " .. look.line(source.trouble)
  end
  return table.concat(parts, ", ")
end

---Write a unified diff to standard output, by the diff program.
---@param old_path string|nil # nil: there is no old file
---@param new string          # the new content
---@param old_label string
---@param new_label string|nil # default: old_label
---@return boolean same
function look.diff(old_path, new, old_label, new_label)
  io.stdout:flush()
  local child = require("nacos.process").start({
    "diff", "-u", "--label", old_label, "--label", new_label or old_label, "--", old_path or "/dev/null", "-",
  }, { input = new })
  local code, err = child:wait()
  if code == 141 then -- SIGPIPE: who reads the output has seen enough
    common.fail(common.DONE)
  elseif code ~= 0 and code ~= 1 then
    common.fail(common.REFUSED, "diff does not work: " .. (code and "exit code " .. code or tostring(err)))
  end
  return code == 0
end

return look
