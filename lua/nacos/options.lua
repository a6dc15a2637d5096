--- Option tables: one declarative spec says what a function takes, and everything is checked against it.
--
-- A spec is a table  name -> rule.  A rule is a type name ("string") or a table:
--   type     = "string" | "number" | "boolean" | "table" | "function", or a list of these.
--              "function" also accepts a callable table. No rule type: anything.
--   default  = value used when nothing is given (a table is copied).
--   required = true: nil is refused.
--   integer  = true; min = n; max = n; above = n (greater than, not equal). Numbers are always finite.
--   one_of   = { "a", "b" }      the only strings allowed.
--   fields   = spec              for tables: checked as options in their turn.
--   of       = rule              for tables: every element of a list obeys this rule.
--   as_is    = true: a table is not copied (an object of the caller's).
--   check    = function(value)   returns nil, or what is wrong as text ("is empty").
--   doc      = text for people.
-- Array entries of a spec name the positional arguments for `named`, in order:
--   local GET = { "data_id", "group"; data_id = { type = "string", required = true }, group = "string", timeout = "number" }
--
--   options.check(spec, given, what [, level]) -> table
--       Validated copy of `given` (nil: empty) with defaults filled in. Raises
--       "bad option 'namspace' to 'nacos.client' (did you mean 'namespace'?)".
--   options.named(spec, what, level, ...) -> table
--       The same for a function's arguments: given by position, or by name in a table that stands last: with GET above
--       f("a"), f("a", "g", {timeout = 1}), f{data_id = "a", group = "g"} are all good.
--       Raises "bad argument 'timeout' to 'get_config' (number expected, got string)".
--   options.nearest(name, names) -> name | nil
--       The entry of the list `names` that `name` was probably meant to be.
--   options.bad_list(list) -> text | nil
--       What is wrong with a table as a list.
--
-- `level` counts as in error(), seen from the function that calls us: 1 blames that function, 2 (the default)
-- the line that called it. Values never appear in messages except numbers out of range and names outside `one_of`.

local floor, min, huge = math.floor, math.min, math.huge

local options = {}

---Case, `_` and `-` do not count: dataId, data-id and data_id are one name.
local function plain(name)
  return (name:lower():gsub("[_%-]", ""))
end

---Number of insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
local function distance(a, b)
  local before, last, row = {}, {}, {}
  for j = 0, #b do
    last[j] = j
  end
  for i = 1, #a do
    row[0] = i
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      row[j] = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (same and 0 or 1))
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        row[j] = min(row[j], before[j - 2] + 1)
      end
    end
    before, last, row = last, row, before
  end
  return last[#b]
end

---@param name string
---@param names string[]
---@return string|nil # the nearest of `names`, nil when none is near
function options.nearest(name, names)
  local wanted, best, best_distance = plain(name), nil, huge
  for _, candidate in ipairs(names) do
    local other = plain(candidate)
    local d = distance(wanted, other)
    -- A third of the letters may be wrong; a word that is part of the other counts as near, too.
    local inside = min(#wanted, #other) > 3 and (other:find(wanted, 1, true) or wanted:find(other, 1, true))
    local near = inside or d <= floor(#other / 3)
    if near and (d < best_distance or (d == best_distance and candidate < best)) then
      best, best_distance = candidate, d
    end
  end
  return best
end

---True for anything that can be called.
local function callable(value)
  if type(value) == "function" then
    return true
  end
  local meta = getmetatable(value)
  return type(meta) == "table" and type(meta.__call) == "function"
end

local function is_a(value, name)
  return type(value) == name or (name == "function" and callable(value))
end

---True if `value` has (one of) the type(s) that the rule names.
local function accepts(rule, value)
  local wanted = type(rule) == "table" and rule.type or rule
  if type(wanted) == "string" then
    return is_a(value, wanted)
  elseif type(wanted) == "table" and wanted[1] then
    for _, name in ipairs(wanted) do
      if is_a(value, name) then
        return true
      end
    end
    return false
  end
  return true
end

local function type_names(rule)
  local wanted = type(rule) == "table" and rule.type or rule
  return type(wanted) == "table" and table.concat(wanted, " or ") or tostring(wanted)
end

local function copy(value)
  if type(value) ~= "table" or getmetatable(value) then
    return value
  end
  local result = {}
  for k, v in pairs(value) do
    result[k] = v
  end
  return result
end

---What is wrong with a table as a list: nil when its keys are 1, 2, 3 … A nil in the middle would hide what follows.
---@param list table
---@return string|nil
function options.bad_list(list)
  local n = 0
  for key in pairs(list) do
    if math.type(key) ~= "integer" then
      return ("a list expected, it has the key '%s'"):format(tostring(key))
    end
    n = n + 1
  end
  for i = 1, n do
    if list[i] == nil then
      return ("element %d is nil"):format(i)
    end
  end
end

local fill -- fill(spec, given, what, kind) -> table | nil, message

local function number_problem(rule, value)
  if value ~= value or value == huge or value == -huge then
    return "finite number expected"
  elseif rule.integer and value ~= floor(value) then
    return "whole number expected, got " .. value
  elseif rule.above and value <= rule.above then
    return "must be greater than " .. rule.above .. ", got " .. value
  elseif rule.min and value < rule.min then
    return "must be at least " .. rule.min .. ", got " .. value
  elseif rule.max and value > rule.max then
    return "must be at most " .. rule.max .. ", got " .. value
  end
end

---@return any value the (copied) value, or nil when there is a problem
---@return string|nil problem text for the brackets of the message, or a whole message when `whole`
---@return boolean|nil whole
local function checked(rule, value, what)
  if not accepts(rule, value) then
    return nil, type_names(rule) .. " expected, got " .. type(value)
  end
  if type(rule) ~= "table" then
    return copy(value)
  end
  local problem
  if type(value) == "number" then
    problem = number_problem(rule, value)
    if rule.integer and not problem then
      value = floor(value)
    end
  elseif type(value) == "string" and rule.one_of then
    local nearest = options.nearest(value, rule.one_of)
    problem = "one of '" .. table.concat(rule.one_of, "', '") .. "' expected, got '" .. value .. "'"
      .. (nearest and "; did you mean '" .. nearest .. "'?" or "")
    for _, allowed in ipairs(rule.one_of) do
      if allowed == value then
        problem = nil
      end
    end
  elseif type(value) == "table" and rule.fields then
    local filled, message = fill(rule.fields, value, what, "option")
    if not filled then
      return nil, message, true
    end
    value = filled
  elseif type(value) == "table" and rule.of then
    local list = {}
    problem = options.bad_list(value)
    if problem then
      return nil, problem
    end
    for i, element in ipairs(value) do
      local good, wrong = checked(rule.of, element, what)
      if wrong then
        return nil, "element " .. i .. ": " .. wrong
      end
      list[i] = good
    end
    value = list
  elseif not rule.as_is then
    value = copy(value)
  end
  if not problem and rule.check then
    problem = rule.check(value)
  end
  if problem then
    return nil, problem
  end
  return value
end

local ordered = setmetatable({}, { __mode = "k" }) -- spec -> its names

---Names of a spec: those with a position first, then the others sorted, so that of several mistakes always the same one is told.
local function names_of(spec)
  if ordered[spec] then
    return ordered[spec]
  end
  local names, positions = {}, {}
  for i, name in ipairs(spec) do
    positions[name] = i
  end
  for name in pairs(spec) do
    if type(name) == "string" then
      names[#names + 1] = name
    end
  end
  table.sort(names, function(a, b)
    local i, k = positions[a] or math.huge, positions[b] or math.huge
    return i < k or (i == k and a < b)
  end)
  ordered[spec] = names
  return names
end

---The first name in `given` that the spec does not know, as a message; nil when all are known.
local function unknown_name(spec, given, what, kind)
  local bad
  for name in pairs(given) do
    if type(name) ~= "string" then
      return ("bad %s [%s] to '%s' (%ss are given by name)"):format(kind, tostring(name), what, kind)
    elseif spec[name] == nil and (bad == nil or name < bad) then
      bad = name -- the smallest, so that the message does not depend on the order of pairs()
    end
  end
  if bad == nil then
    return nil
  end
  local names = names_of(spec)
  local nearest = options.nearest(bad, names)
  local hint = nearest and "did you mean '" .. nearest .. "'?" or "known: " .. table.concat(names, ", ")
  return ("bad %s '%s' to '%s' (%s)"):format(kind, bad, what, hint)
end

function fill(spec, given, what, kind)
  local message = unknown_name(spec, given, what, kind)
  if message then
    return nil, message
  end
  local result = {}
  for _, name in ipairs(names_of(spec)) do
    local rule, value = spec[name], given[name]
    if value == nil then
      if type(rule) == "table" then
        if rule.required then
          return nil, ("missing %s '%s' to '%s'"):format(kind, name, what)
        end
        result[name] = copy(rule.default)
      end
    else
      local good, problem, whole = checked(rule, value, what .. "." .. name)
      if problem then
        return nil, whole and problem or ("bad %s '%s' to '%s' (%s)"):format(kind, name, what, problem)
      end
      result[name] = good
    end
  end
  return result
end

---Validate a table of options.
---@param spec table        # see the top of this file
---@param given table|nil   # what the caller gave; nil counts as empty
---@param what string       # the function's name, for messages
---@param level integer|nil # whom to blame, as in error(); default 2
---@return table            # a checked copy with the defaults filled in
function options.check(spec, given, what, level)
  level = (level or 2) + 1
  if given ~= nil and type(given) ~= "table" then
    error(("bad options to '%s' (table expected, got %s)"):format(what, type(given)), level)
  end
  local result, message = fill(spec, given or {}, what, "option")
  if not result then
    error(message, level)
  end
  return result
end

---Validate a function's arguments, given by position, by name in one table, or by position with a table of names last.
---@param spec table    # its array part lists the names of the positions
---@param what string   # the function's name, for messages
---@param level integer # whom to blame: 2 is the caller of the function that calls named()
---@param ... any       # the arguments as they came
---@return table
function options.named(spec, what, level, ...)
  local given, count = {}, select("#", ...)
  while count > 0 and (select(count, ...)) == nil do
    count = count - 1
  end
  for i = 1, count do
    local name, value = spec[i], (select(i, ...))
    if i == count and type(value) == "table" and (name == nil or not accepts(spec[name], value)) then
      for key, named in pairs(value) do
        if given[key] ~= nil then
          error(("argument '%s' to '%s' is given twice"):format(tostring(key), what), level + 1)
        end
        given[key] = named
      end
    elseif name == nil then
      error(("too many arguments to '%s' (%d expected, got %d)"):format(what, #spec, count), level + 1)
    else
      given[name] = value
    end
  end
  local result, message = fill(spec, given, what, "argument")
  if not result then
    error(message, level + 1)
  end
  return result
end

return options
