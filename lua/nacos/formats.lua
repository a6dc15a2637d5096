--- Formats: text to values and back, for templates and scripts. Equal values always give equal bytes.
--
--   formats.kind(type, data_id) -> "json" | "yaml" | "properties" | "text"
--   formats.decode(kind, text)  -> value | nil, message
--   formats.json(value)         -> text; keys sorted; raises for what JSON cannot say
--   formats.yaml(value)         -> text, block style, keys sorted, no document markers
--   formats.properties(text)    -> table | nil, message     (Java's format; all values are strings)
--   formats.number(n)           -> the shortest text that reads back as the same number
--   formats.sorted_keys(t)      -> list: numbers first, then strings, then the rest
--   formats.null                what a null inside a list becomes; a null member of an object is simply absent

local formats = {}

formats.null = setmetatable({}, {
  __tostring = function()
    return "null"
  end,
})

---@param kind_name string|nil # the type the server has noted for the configuration
---@param data_id string       # its name; the extension decides when the type says nothing
---@return "json"|"yaml"|"properties"|"text"
function formats.kind(kind_name, data_id)
  local known = { json = "json", yaml = "yaml", yml = "yaml", properties = "properties" }
  return known[(kind_name or ""):lower()] or known[(data_id:match("%.(%a+)$") or ""):lower()] or "text"
end

---@param n number
---@return string
function formats.number(n)
  local text = tostring(n)
  if n ~= n or n == math.huge or n == -math.huge then
    return text
  end
  local digits = 15
  while tonumber(text) ~= n and digits <= 17 do
    text = ("%." .. digits .. "g"):format(n)
    digits = digits + 1
  end
  return text
end

local rank = { number = 1, string = 2 }

---@param t table
---@return any[]
function formats.sorted_keys(t)
  local keys = {}
  for key in pairs(t) do
    keys[#keys + 1] = key
  end
  table.sort(keys, function(a, b)
    local rank_a, rank_b = rank[type(a)] or 3, rank[type(b)] or 3
    if rank_a ~= rank_b then
      return rank_a < rank_b
    elseif rank_a == 3 then
      return tostring(a) < tostring(b)
    end
    return a < b
  end)
  return keys
end

---True for a list without holes. An empty table counts as one unless the JSON it came from wrote {}.
local function is_list(t)
  local meta = getmetatable(t)
  local count = 0
  for _ in pairs(t) do
    count = count + 1
  end
  if count == 0 then
    return not (type(meta) == "table" and meta.__jsontype == "object")
  end
  return #t == count
end

---Replace a decoder's null: absent in objects, formats.null in lists (where a hole would shift the rest).
local function without_null(value, null, seen)
  if value == null then
    return nil
  elseif type(value) ~= "table" or seen[value] then
    return value
  end
  seen[value] = true
  local list = is_list(value)
  for _, key in ipairs(formats.sorted_keys(value)) do
    local element = value[key]
    if element == null then
      value[key] = list and formats.null or nil
    else
      without_null(element, null, seen)
    end
  end
  return value
end

-- cjson is strict but turns 8080 into 8080.0 and [] into {}; dkjson keeps both but reads over mistakes. So: one checks, one reads.
local function decode_json(text)
  local strict = require("cjson.safe").new()
  strict.decode_invalid_numbers(false)
  local checked, problem = strict.decode(text)
  if checked == nil then
    return nil, problem
  end
  local null = {}
  return (without_null(require("dkjson").decode(text, 1, null), null, {}))
end

local function decode_yaml(text)
  local yaml = require("lyaml")
  local ok, value = pcall(yaml.load, text)
  if not ok then
    return nil, (tostring(value):gsub("^(%d+):(%d+): ", "line %1, column %2: "))
  end
  return without_null(value, yaml.null, {})
end

local function utf8_char(code)
  local char, floor = string.char, math.floor
  if code < 0x80 then
    return char(code)
  elseif code < 0x800 then
    return char(0xC0 + floor(code / 64), 0x80 + code % 64)
  elseif code < 0x10000 then
    return char(0xE0 + floor(code / 4096), 0x80 + floor(code / 64) % 64, 0x80 + code % 64)
  end
  return char(0xF0 + floor(code / 262144), 0x80 + floor(code / 4096) % 64, 0x80 + floor(code / 64) % 64, 0x80 + code % 64)
end

local ESCAPES = { t = "\t", n = "\n", r = "\r", f = "\f" }

---Resolve the backslashes of one key or value. \uD83D\uDE00 is one character in two halves.
local function unescape(text)
  local out, pos = {}, 1
  while true do
    local back = text:find("\\", pos, true)
    out[#out + 1] = text:sub(pos, (back or 0) - 1)
    if not back then
      return table.concat(out)
    end
    local char = text:sub(back + 1, back + 1)
    if char == "u" then
      local code = tonumber(text:match("^%x%x%x%x", back + 2) or "", 16)
      if not code then
        return nil, "\\u needs four hexadecimal digits"
      end
      pos = back + 6
      local low = code >= 0xD800 and code < 0xDC00 and tonumber(text:match("^\\u(%x%x%x%x)", pos) or "", 16)
      if low and low >= 0xDC00 and low < 0xE000 then
        code, pos = 0x10000 + (code - 0xD800) * 1024 + (low - 0xDC00), pos + 6
      end
      out[#out + 1] = utf8_char(code)
    else
      out[#out + 1] = ESCAPES[char] or char
      pos = back + 2
    end
  end
end

---Where the key of a logical line ends: the first = : or blank without a backslash before it.
local function key_end(line)
  local pos = 1
  while pos <= #line do
    local char = line:sub(pos, pos)
    if char == "\\" then
      pos = pos + 1
    elseif char:find("[=:%s]") then
      return pos
    end
    pos = pos + 1
  end
  return #line + 1
end

---Parse Java properties: # and ! comments, `=` `:` or blank between key and value, \ at a line's end goes on, \uXXXX.
---@param text string
---@return table<string, string>|nil
---@return string|nil message # with the line
function formats.properties(text)
  local result, number, logical, first = {}, 0, nil, 1
  for raw in (text:gsub("\r\n?", "\n") .. "\n"):gmatch("(.-)\n") do
    number = number + 1
    local line = raw:gsub("^[ \t\f]+", "")
    local continues = #line:match("\\*$") % 2 == 1
    if logical or not (line == "" or line:find("^[#!]")) then
      first = logical and first or number
      logical = (logical or "") .. (continues and line:sub(1, -2) or line)
      if not continues then
        local stop = key_end(logical)
        local key, key_problem = unescape(logical:sub(1, stop - 1))
        local value, value_problem = unescape((logical:sub(stop):gsub("^[ \t\f]*[=:]?[ \t\f]*", "")))
        if not (key and value) then
          return nil, ("line %d: %s"):format(first, key_problem or value_problem)
        end
        result[key] = value
        logical = nil
      end
    end
  end
  if logical and logical ~= "" then -- the text ends in the middle of a continued line
    return formats.properties(text:gsub("\\%s*$", ""))
  end
  return result
end

---@param kind "json"|"yaml"|"properties"|"text"
---@param text string
---@return any|nil value
---@return string|nil message # what is wrong with the text, without quoting it
function formats.decode(kind, text)
  if kind == "json" then
    return decode_json(text)
  elseif kind == "yaml" then
    return decode_yaml(text)
  elseif kind == "properties" then
    return formats.properties(text)
  end
  return text
end

local function json_scalar(value)
  local kind = type(value)
  if value == nil or value == formats.null then
    return "null"
  elseif kind == "string" then
    return (require("dkjson").quotestring(value))
  elseif kind == "boolean" then
    return tostring(value)
  elseif kind == "number" then
    if value ~= value or value == math.huge or value == -math.huge then
      error("JSON has no number " .. tostring(value), 0)
    end
    return formats.number(value)
  end
  error("JSON cannot hold a " .. kind, 0)
end

local function json_node(value, parents)
  if type(value) ~= "table" or value == formats.null then
    return json_scalar(value)
  elseif parents[value] then
    error("JSON cannot hold a table that contains itself", 0)
  end
  parents[value] = true
  local parts, open, close = {}, "[", "]"
  if is_list(value) then
    for i, element in ipairs(value) do
      parts[i] = json_node(element, parents)
    end
  else
    open, close = "{", "}"
    for i, key in ipairs(formats.sorted_keys(value)) do
      if type(key) ~= "string" and type(key) ~= "number" then
        error("JSON cannot have a key of type " .. type(key), 0)
      end
      parts[i] = json_scalar(tostring(key)) .. ":" .. json_node(value[key], parents)
    end
  end
  parents[value] = nil
  return open .. table.concat(parts, ",") .. close
end

---@param value any
---@return string
function formats.json(value)
  return json_node(value, {})
end

---Emit one scalar. A string that would read back as something else ("yes", "1", "~") is quoted.
local function yaml_scalar(emit, value)
  local style, text = "PLAIN", value
  if value == nil or value == formats.null then
    text = "~"
  elseif type(value) == "number" then
    text = value ~= value and ".nan" or value == math.huge and ".inf" or value == -math.huge and "-.inf" or formats.number(value)
  elseif type(value) == "boolean" then
    text = tostring(value)
  elseif type(value) ~= "string" then
    error("YAML cannot hold a " .. type(value), 0)
  elseif value:find("\n", 1, true) then
    style = "LITERAL"
  else
    local ok, back = pcall(require("lyaml").load, value)
    style = (not ok or back ~= value or value == "<<") and "SINGLE_QUOTED" or "PLAIN"
  end
  emit({ type = "SCALAR", value = text, plain_implicit = true, quoted_implicit = true, style = style })
end

local function yaml_node(emit, value, parents)
  if type(value) ~= "table" or value == formats.null then
    return yaml_scalar(emit, value)
  elseif parents[value] then
    error("YAML cannot hold a table that contains itself", 0)
  end
  parents[value] = true
  local kind = is_list(value) and "SEQUENCE" or "MAPPING"
  emit({ type = kind .. "_START", style = "BLOCK" })
  for _, key in ipairs(formats.sorted_keys(value)) do
    if kind == "MAPPING" then
      yaml_scalar(emit, key)
    end
    yaml_node(emit, value[key], parents)
  end
  emit({ type = kind .. "_END" })
  parents[value] = nil
end

---@param value any
---@return string # ends with a newline
function formats.yaml(value)
  local emitter = require("yaml").emitter()
  local function emit(event)
    local ok, result = emitter.emit(event)
    if not ok then
      error("YAML: " .. tostring(result), 0)
    end
    return result
  end
  emit({ type = "STREAM_START", encoding = "UTF8" })
  emit({ type = "DOCUMENT_START", implicit = true })
  yaml_node(emit, value, {})
  emit({ type = "DOCUMENT_END", implicit = true })
  return (emit({ type = "STREAM_END" }):gsub("\n%.%.%.\n$", "\n"))
end

---Are two values the same, tables in all their depth?
function formats.same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then
    return a == b
  end
  for name, value in pairs(a) do
    if not formats.same(value, b[name]) then
      return false
    end
  end
  for name in pairs(b) do
    if a[name] == nil then
      return false
    end
  end
  return true
end

return formats
