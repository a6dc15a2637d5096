--- command: runs what a script gives as a check, a reload or a predicate — words, a line for sh, or a Lua function — within a time.

local core = require "nacos.core"
local formats = require "nacos.formats"
local functions = require "nacos.template_functions"
local guard = require "nacos.agent.guard"
local log = require "nacos.agent.log"
local options = require "nacos.options"
local process = require "nacos.process"
local scheduler = require "nacos.scheduler"
local uv = require "luv"

local TIMEOUT = 30
local KINDS = { "path", "staged" } -- of placeholders
local MAX_LINES = 500              -- of a run's output that are logged
local LAST_LINE, TAIL = 200, 2000  -- bytes of an output that are told

-- What is only for this program, not for those that it starts.
local OURS = {
  NOTIFY_SOCKET = true, WATCHDOG_USEC = true, WATCHDOG_PID = true, LISTEN_FDS = true, LISTEN_PID = true, LISTEN_FDNAMES = true,
  NACOS_PASSWORD = true, NACOS_SK = true, LUNACOS_STOP_AT = true,
}

local command = {}

local function is_program(action)
  local meta = getmetatable(action)
  return type(action) == "string" or type(action) == "table" and not (type(meta) == "table" and meta.__call)
end

local function bad_word(word)
  return type(word) ~= "string" and "string expected, got " .. type(word) or word:find("\0", 1, true) and "holds a NUL byte" or nil
end

---What is wrong with words or a line; nil: they can be run.
---@return string|nil
local function bad_program(words)
  if type(words) == "string" then
    return not words:find("%S") and "is empty" or bad_word(words)
  elseif #words == 0 and next(words) == nil or words[1] == "" then
    return "a program is needed"
  end
  local problem = options.bad_list(words)
  for i = 1, problem and 0 or #words do
    problem = problem or bad_word(words[i]) and ("element %d: %s"):format(i, bad_word(words[i]))
  end
  return problem
end

---Rules for nacos.options: of what run() takes, and of a program only.
command.RULE = {
  type = { "string", "table", "function" },
  check = function(action)
    return is_program(action) and bad_program(action) or nil
  end,
}
command.PROGRAM = { type = { "string", "table" }, check = bad_program }

-- ---- programs ----------------------------------------------------------------------------------------------------------------

---@return table<string, string> # of what this program starts
function command.environment()
  local result = {}
  for name, value in pairs(uv.os_environ()) do
    if name ~= "" and not OURS[name] then
      result[name] = value
    end
  end
  return result
end

local function known_names(places)
  local names = {}
  for _, name in ipairs(formats.sorted_keys(places)) do
    if not name:find("/", 1, true) then
      names[#names + 1] = "{" .. name .. "}"
    end
  end
  return table.concat(names, ", ")
end

local SHELLS = { sh = true, dash = true, bash = true, ash = true, ksh = true, zsh = true }

---@return boolean # is this one of the words code for a shell?
local function is_code(words, i)
  return i == 3 and SHELLS[words[1]:match("[^/]*$")] and words[2]:find("^%-%a*c$") ~= nil
end

---Put what they stand for in the place of {staged}, {path}, {staged:NAME} … Other braces, and ${…}, are left to the program. A value
---must not become code for sh: there, what is more than a plain word goes into a variable.
---@param words string[]|string
---@param places table<string, string>|nil # name -> text
---@return string[]|string|nil # to run
---@return string|nil problem
---@return string # for people
---@return table<string, string> variables
local function fill(words, places)
  local line, variables, count, problem = type(words) == "string", {}, 0, nil

  local function put(before, kind, name, after, code)
    local place = before ~= "$" and places[kind .. name]
    if place then
      if not code or not place:find("[^%w_%-+,./:=@%%]") then
        return before .. place .. after
      end
      count = count + 1
      local variable = "LUNACOS_PLACE_" .. count
      variables[variable] = place
      local quoted = before == after and before ~= ""
      return ("%s\"${%s}\"%s"):format(quoted and "" or before, variable, quoted and "" or after)
    elseif before ~= "$" and (name == "" or name:sub(1, 1) == ":") and options.nearest(kind, KINDS) then
      problem = problem or ("{%s%s} stands for nothing here; known: %s"):format(kind, name, known_names(places))
    end
  end

  local function filled(word, code)
    return (word:gsub("([\"'$]?){([%w_]+)(:?[^{}]*)}([\"']?)", function(before, kind, name, after)
      return put(before, kind, name, after, code)
    end))
  end

  if not places then
    return words, nil, line and words or table.concat(words, " "), variables
  end
  local result, shown = {}, {}
  for i, word in ipairs(line and { words } or words) do
    result[i], shown[i] = filled(word, line or is_code(words, i)), filled(word)
  end
  return not problem and (line and result[1] or result) or nil, problem, table.concat(shown, " "), variables
end

---The end of an output, and its last line.
local function ends_of(output)
  local text = output:match("^(.*%S)") or ""
  local last = text:match("^.*\n(.*)$") or text
  if #text > TAIL then
    text = "…" .. text:sub(-TAIL):gsub("^[\x80-\xBF]+", "")
  end
  if #last > LAST_LINE then
    last = last:sub(1, LAST_LINE):gsub("[\xC0-\xFF][\x80-\xBF]*$", "") .. "…"
  end
  return text, last
end

---@return true|nil
---@return string|nil why not
---@return string output
---@return number seconds
local function ask_program(words, opts)
  local filled, problem, shown, env = fill(words, opts.places)
  if not filled then
    return nil, problem, "", 0
  end
  for name, value in pairs(command.environment()) do
    env[name] = env[name] or value
  end
  local done, err = process.run(filled, {
    env = env, env_clear = true, input = "", timeout = opts.timeout or TIMEOUT, on_line = opts.on_line, started = opts.started,
  })
  if not done then
    return nil, tostring(err), "", 0
  end
  local text, last = ends_of(done.output)
  local why
  if done.timed_out then
    why = (" did not end within %g s"):format(opts.timeout or TIMEOUT)
  elseif done.code ~= 0 then
    why = done.signal and " was ended by signal " .. done.signal or ": exit code " .. done.code
  end
  why = why and ("`%s`%s%s"):format(shown, why, last ~= "" and ": " .. last or "")
  return not why or nil, why, text, done.seconds
end

-- ---- functions ---------------------------------------------------------------------------------------------------------------

local under_way = {} -- function -> what for -> when it was called, of those that have not returned

---Call a function, which may wait for so long. One that waits longer goes on, but nobody waits for it, and it is not called again before
---it has returned.
---@return table|nil # what guard.call() returned
---@return string|nil why not
local function call_within(what, timeout, fn, ...)
  local asking, began = scheduler.task(), core.monotonic()
  if not asking then
    return table.pack(guard.call(what, fn, ...)) -- it waits by blocking, and nobody else goes on
  end
  local calls = under_way[fn] or {}
  if calls[what] then
    return nil, ("the call before this one still runs, for %.0f s now"):format(began - calls[what])
  end
  under_way[fn], calls[what] = calls, began
  local results, waits, given_up
  scheduler.spawn(function(...)
    results = table.pack(guard.call(what, fn, ...))
    calls[what] = nil
    if next(calls) == nil then
      under_way[fn] = nil
    end
    if waits then
      scheduler.wake(asking)
    elseif given_up then
      log.info(nil, ("%s: it has ended now, after %.1f s; it was given up after %g s"):format(
        what, core.monotonic() - began, timeout))
    end
  end, ...)
  while not results do
    local left = began + timeout - core.monotonic()
    if left <= 0 then
      given_up = true
      return nil, ("no answer within %g s"):format(timeout)
    end
    waits = true
    scheduler.park(left)
    waits = false
  end
  return results
end

---guard.call() within a time. Outside of a task there is none.
---@param what string # for messages: "content of nginx.conf"
---@param timeout number|nil # seconds, 30
---@param fn function
---@param ... any # its arguments
---@return boolean ok
---@return any ... # its results; or the error, as from guard.call(); code "timeout": it has not returned in time, or since the call before
function command.call(what, timeout, fn, ...)
  local results, why = call_within(what, timeout or TIMEOUT, fn, ...)
  if not results then
    return false, functions.failure("timeout", what .. ": " .. why)
  end
  return table.unpack(results, 1, results.n)
end

local function ask_function(what, fn, opts)
  local began = core.monotonic()
  local results, why = call_within(what, opts.timeout or TIMEOUT, fn, opts.context)
  local ok, result, reason = table.unpack(results or {})
  local took = core.monotonic() - began
  if not results then
    return nil, why, "", took
  elseif not ok then
    local text = tostring(result)
    return nil, text:match("^[^\n]*"), text, took
  elseif not result and (result == false or opts.strict or reason ~= nil) then
    return nil, reason ~= nil and tostring(reason) or "the function returned " .. tostring(result), "", took
  end
  return true, nil, "", took
end

-- ---- both --------------------------------------------------------------------------------------------------------------------

---@class nacos.agent.CommandOptions
---@field timeout number|nil               # seconds, 30
---@field places table<string, string>|nil # what {NAME} in a program stands for; nil: braces are nothing special
---@field context any                      # what a function gets
---@field strict boolean|nil               # a function has to return a true value; else it fails by false, or nil and a reason
---@field on_line nil|fun(line: string)    # gets what a program prints
---@field started nil|fun(child: nacos.Process) # gets the program that was started

---Run it, in a task. It says no when it fails.
---@param what string # for messages: "check of api"
---@param action string|string[]|function
---@param opts nacos.agent.CommandOptions
---@return true|nil
---@return string|nil why not # of a program with its last line
---@return string output # the end of a program's, or a function's traceback
---@return number seconds
function command.ask(what, action, opts)
  if is_program(action) then
    return ask_program(action, opts)
  end
  return ask_function(what, action, opts)
end

---ask(), of which the log tells under the target's name, line by line.
---@param action string|string[]|function
---@param opts { target: string, what: string, timeout: number|nil, places: table|nil, context: any, strict: boolean|nil }
---@return true|nil
---@return string|nil problem
---@return string output
function command.run(action, opts)
  local what, lines = opts.what, 0
  local ok, why, output, seconds = command.ask(what .. " of " .. opts.target, action, {
    timeout = opts.timeout, places = opts.places, context = opts.context, strict = opts.strict,
    started = opts.started,
    on_line = function(line)
      lines = lines + 1
      if lines <= MAX_LINES then
        log.always("info", opts.target, what .. ": " .. line)
      elseif lines == MAX_LINES + 1 then
        log.always("info", opts.target, what .. ": … (further lines are not logged)")
      end
    end,
  })
  if not ok then
    return nil, what .. ": " .. why, output
  end
  log.write(what == "reload" and "info" or "debug", opts.target, what .. " done", { duration = seconds })
  return true, nil, output
end

return command
