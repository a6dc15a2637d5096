--- The names a template can use besides its variables: Lua's harmless libraries, text helpers, and configurations.

local formats = require("nacos.formats")
local options = require("nacos.options")

local functions = {}

local Failure = {}
Failure.__index = Failure

function Failure:__tostring()
  return self.message
end

---An error value of the same shape as the client's: tostring() gives the message, `code` can be switched on.
---@param code string
---@param message string
---@param more table|nil # further fields
function functions.failure(code, message, more)
  local failure = setmetatable({ code = code, message = message }, Failure)
  for key, value in pairs(more or {}) do
    failure[key] = value
  end
  return failure
end

local function raise(code, message, more)
  error(functions.failure(code, message, more), 0)
end

---pairs() with the keys sorted, so that equal data renders to equal bytes.
local function spairs(t)
  local keys, i = formats.sorted_keys(t), 0
  return function()
    i = i + 1
    if keys[i] ~= nil then
      return keys[i], t[keys[i]]
    end
  end
end

---The value of an environment variable; an error when it is unset and no default is given.
local function env(name, default)
  local value = os.getenv(name)
  if value == nil then
    value = default
  end
  if value == nil then
    raise("template", "environment variable '" .. tostring(name) .. "' is not set")
  end
  return value
end

---The pieces of `text` between occurrences of the plain text `separator`.
local function split(text, separator)
  local pieces, from = {}, 1
  repeat
    local first, last = text:find(separator, from, true)
    pieces[#pieces + 1] = text:sub(from, (first or 0) - 1)
    from = last and last + 1
  until not from
  return pieces
end

local function join(list, separator)
  local texts = {}
  for i, value in ipairs(list) do
    texts[i] = type(value) == "number" and formats.number(value) or tostring(value)
  end
  return table.concat(texts, separator or "")
end

local function trim(text)
  return (text:gsub("^%s+", ""):gsub("%s+$", ""))
end

local function decoder(kind)
  return function(text)
    local value, problem = formats.decode(kind, text)
    if problem then
      raise("template", "not valid " .. kind .. ": " .. problem)
    end
    return value
  end
end

---Read a whole file; raises when it cannot be read.
function functions.read_file(path)
  local handle, problem = io.open(path, "rb")
  local text
  if handle then
    text, problem = handle:read("*a")
    handle:close()
  end
  if not text then
    raise("template", "cannot read file: " .. path .. ": " .. tostring(problem):gsub("^.*: ", ""))
  end
  return text
end

-- pairs is spairs: the order of Lua's own differs from run to run, and a file must not be rewritten for that.
functions.base = {
  assert = assert, error = error, ipairs = ipairs, next = next, pairs = spairs, pcall = pcall, require = require,
  select = select, tonumber = tonumber, tostring = tostring, type = type, unpack = table.unpack or unpack, -- luacheck: ignore
  math = math, string = string, table = table, utf8 = utf8, -- luacheck: ignore
  os = { date = os.date, time = os.time, clock = os.clock },
  json = formats.json, yaml = formats.yaml, null = formats.null, spairs = spairs, env = env, split = split, join = join,
  trim = trim, from_json = decoder("json"), from_yaml = decoder("yaml"), from_properties = decoder("properties"),
}

functions.ARGUMENTS = {
  "data_id", "group",
  data_id = { type = "string", required = true },
  group = { type = "string" },
  default = {},
}

---`config` and `text` over any place that holds configurations.
---
---    config(data_id [, group [, {default = v}]])  parsed by its type (json, yaml, properties; else by the data id's
---                                                 extension), or the text itself
---    text(data_id [, group [, {default = v}]])    the content as it is
---
---The default is for a configuration that does not exist (without one: an error with code "not_found"). When nothing is
---known, because no server answers and there is no snapshot, that is another error (code "unavailable"), default or not.
---@param fetch fun(arguments: table): table # { content =, type =, problem = why there is no content }; what is parsed is kept in it
---@param spec table|nil                     # the arguments, as functions.ARGUMENTS
---@param copy nil|fun(value: any): any      # what a template gets of a parsed value
---@return {config: function, text: function}
function functions.over(fetch, spec, copy)
  spec = spec or functions.ARGUMENTS

  ---@return table|nil item # nil: absent, and there is a default
  local function known(arguments)
    local data_id, group = arguments.data_id, arguments.group
    local item = fetch(arguments)
    if item.content then
      return item
    end
    local code = type(item.problem) == "table" and item.problem.code or "unavailable"
    if code ~= "not_found" then
      raise(code, functions.named(data_id, group) .. " is not known: " .. tostring(item.problem), {
        data_id = data_id, group = group,
      })
    elseif arguments.default == nil then
      raise(code, functions.named(data_id, group) .. " does not exist", { data_id = data_id, group = group })
    end
  end

  local function config(...)
    local arguments = options.named(spec, "config", 2, ...)
    local item = known(arguments)
    if not item then
      return arguments.default
    end
    if not item.parsed then
      local kind = formats.kind(item.type, arguments.data_id)
      local value, problem = formats.decode(kind, item.content)
      item.parsed = { value = value, problem = problem and ("not valid %s: %s"):format(kind, problem) }
    end
    if item.parsed.problem then
      raise("template", functions.named(arguments.data_id, arguments.group) .. " is " .. item.parsed.problem)
    end
    if copy then
      return copy(item.parsed.value)
    end
    return item.parsed.value
  end

  local function text(...)
    local arguments = options.named(spec, "text", 2, ...)
    local item = known(arguments)
    if not item then
      return arguments.default
    end
    return item.content
  end

  return { config = config, text = text }
end

---How messages call a configuration.
function functions.named(data_id, group)
  return "configuration '" .. data_id .. "'" .. (group and " (group '" .. group .. "')" or "")
end

---`config` and `text` for one client: what the newest known value of a configuration is. Each is fetched and parsed once per table of
---functions. @see functions.over
---@param client table      # nacos.Client, or anything with get_config(self, data_id, group) and perhaps peek
---@param used table|nil    # a list that receives {data_id=, group=} for each configuration asked for, once
---@param default_group string|nil # when a template names none; default the client's, DEFAULT_GROUP
---@return {config: function, text: function}
function functions.of_client(client, used, default_group)
  local fetched = {}
  return functions.over(function(arguments)
    arguments.group = arguments.group or default_group
    local data_id, group = arguments.data_id, arguments.group
    local key = data_id .. "\0" .. (group or "")
    local item = fetched[key]
    if not item then
      if used then
        used[#used + 1] = { data_id = data_id, group = group }
      end
      local value = client.peek and client:peek(data_id, group) -- a watched item's value needs no request
      if value then
        item = { content = value.content, type = value.type, problem = value.content == nil and { code = "not_found" } }
      else
        local content, source, info = client:get_config(data_id, group)
        item = { content = content, type = type(info) == "table" and info.type or nil, problem = content == nil and source }
      end
      fetched[key] = item
    end
    return item
  end)
end

return functions
