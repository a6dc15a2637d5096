--- Templates: text with Lua in it.
--
--   {{ expr }}     the value of a Lua expression: text, number or boolean; nil is an error
--   {% lua %}      any Lua:  {% for _, host in ipairs(hosts) do %} … {% end %}
--   {# comment #}
--   {{-  -}}  {%-  -%}  {#-  -#}     a dash swallows the blanks and newlines on that side of the tag
--
--   local t = assert(template.compile(text, "web.conf"))      once; nil, err for a mistake in the template
--   local out, used = t:render(vars, { client = client })     nil, err when it fails; never half a text
--
-- Errors are tables with `message` (what tostring() gives: "web.conf:12: …"), `code`, `template` and `line`. Code "syntax":
-- the template does not compile; "template": it failed while rendering; anything else is the reason of a configuration
-- that cannot be had, as the client gave it: "not_found" (it does not exist), "unavailable" (no one knows), "forbidden", …
--
-- A name that is neither a variable nor a function is an error with the line, never an empty string. To allow it to be
-- missing say so: default(name, "value"), or look into the table of variables itself: {% if vars.name then %}.
-- Functions: ipairs, pairs (sorted keys, also as spairs), string, table, math, utf8, tostring, tonumber, type, select,
-- next, assert, error, pcall, require, os.date/time/clock, json(v), yaml(v), from_json(s), from_yaml(s),
-- from_properties(s), split(s, sep), join(list, sep), trim(s), env(name [, default]), default(x, y), file(path),
-- include(path [, vars]), and with a client config(data_id [, group [, {default = v}]]) and text(…), see
-- nacos.template_functions. Paths are relative to the folder of the template's own file.
--
-- How: the template becomes one Lua chunk that has the same line numbers, so Lua's own messages point to the template.

local formats = require("nacos.formats")
local functions = require("nacos.template_functions")
local options = require("nacos.options")

local template = {}

---@class nacos.Template
---@field name string
local Template = {}
Template.__index = Template

local MAX_INCLUDES = 50

local load_text = loadstring or load -- luacheck: ignore

local function count_newlines(text)
  return (select(2, text:gsub("\n", "")))
end

local function newlines(text)
  return ("\n"):rep(count_newlines(text))
end

---Where the string or long bracket that begins at `pos` ends; nil when it does not.
local function string_end(source, pos)
  local quote = source:sub(pos, pos)
  if quote == "[" then
    local level = source:match("^%[(=*)%[", pos)
    return select(2, source:find("]" .. level .. "]", pos, true))
  end
  local at = pos + 1
  while true do
    at = source:find("[\\\n" .. quote .. "]", at)
    local char = at and source:sub(at, at)
    if char == quote then
      return at
    elseif char ~= "\\" then
      return nil
    end
    at = at + 2
  end
end

---Where the comment that begins at `pos` ends: a long bracket's end, or before the end of the line or of the tag.
local function comment_end(source, pos, close)
  if source:find("^%-%-%[=*%[", pos) then
    return string_end(source, pos + 2) or #source
  end
  local line_end = (source:find("\n", pos, true) or #source + 1) - 1
  local tag_end = source:find(close, pos + 2, true)
  if not tag_end or tag_end > line_end then
    return line_end
  end
  return tag_end - (source:sub(tag_end - 1, tag_end - 1) == "-" and tag_end - 1 >= pos + 2 and 2 or 1)
end

---Read Lua code up to the end of its tag, knowing strings, comments and braces: {{ "}}" }} and {{ f{a={}} }} are whole.
---Comments are left out of the code; `default(x, …)` becomes a call in which unknown names are nil.
---@return string|nil code
---@return integer|string next_pos # the position after the tag, or what is wrong
---@return boolean|nil trim        # the tag ended with a dash
local function scan_code(source, pos, close)
  local parts, from, depth = {}, pos, 0
  local function keep(last, replacement, continue_at)
    parts[#parts + 1] = source:sub(from, last)
    parts[#parts + 1] = replacement
    from = continue_at
  end
  while true do
    pos = source:find("[%w_\"'%[%-{}%%]", pos)
    if not pos then
      return nil, "the tag is not closed by " .. close
    end
    local char = source:sub(pos, pos)
    local dash = char == "-" and 1 or 0
    if depth == 0 and source:sub(pos + dash, pos + dash + 1) == close then
      keep(pos - 1)
      return table.concat(parts), pos + dash + 2, dash == 1
    elseif source:find("^[%w_]", pos) then
      local last = select(2, source:find("^[%w_]+", pos))
      local call = source:match("^default%s*%(()", pos)
      local before = source:sub(from, pos - 1)
      if call and last == pos + 6 and not before:find("[.:]%s*$") and not before:find("function%s+$") then
        keep(pos - 1, "__default(__lenient(), ", call)
        last = call - 1
      end
      pos = last + 1
    elseif char == '"' or char == "'" or source:find("^%[=*%[", pos) then
      local last = string_end(source, pos)
      if not last then
        return nil, "unfinished string"
      end
      pos = last + 1
    elseif source:sub(pos, pos + 1) == "--" then
      local last = comment_end(source, pos, close)
      keep(pos - 1, " " .. newlines(source:sub(pos, last)), last + 1)
      pos = last + 1
    else
      if close == "}}" then
        depth = char == "{" and depth + 1 or char == "}" and math.max(depth - 1, 0) or depth
      end
      pos = pos + 1
    end
  end
end

---@return table|nil tag       # {kind, code, source, first, last}: the tag's second character, its Lua, all of it, its lines
---@return integer|string next_pos
---@return boolean|nil trim
local function scan_tag(source, pos, line)
  local kind = source:sub(pos + 1, pos + 1)
  local code_at = pos + 2 + (source:sub(pos + 2, pos + 2) == "-" and 1 or 0)
  local code, next_pos, trim
  if kind == "#" then
    local stop = source:find("#}", code_at, true)
    if not stop then
      return nil, "the comment is not closed by #}"
    end
    code, next_pos, trim = "", stop + 2, stop > code_at and source:sub(stop - 1, stop - 1) == "-"
  else
    code, next_pos, trim = scan_code(source, code_at, kind == "{" and "}}" or "%}")
    if not code then
      return nil, next_pos
    end
  end
  local whole = source:sub(pos, next_pos - 1)
  return { kind = kind, code = code, source = whole, first = line, last = line + count_newlines(whole) }, next_pos, trim
end

---A Lua message "name:3: text" in parts.
local function split_message(message)
  local line, text = message:match("^.-:(%d+): (.*)$")
  return tonumber(line), text or message
end

---@return string|nil problem
---@return integer|nil line
local function expression_problem(tag, chunk_name)
  if not tag.code:find("%S") then
    return "empty expression", tag.first
  end
  local chunk, message = load_text("return (" .. tag.code .. ")", chunk_name)
  if not chunk then
    local line, text = split_message(message)
    text = text:gsub(" near '%)'$", ""):gsub("^'%)' expected near", "unexpected")
    return text .. " in " .. tag.source, tag.first + (line or 1) - 1
  end
end

---Turn a template into Lua source with the same lines.
---@return string|nil lua
---@return table|string texts_or_problem # the texts between tags; or the problem
---@return table|integer tags_or_line    # the {{ }} tags; or the line of the problem
local function translate(source, chunk_name)
  local lua = { "local _ENV, __text, __value, __at, __lenient, __default = ... " }
  local texts, tags, pos, line, trim_next = {}, {}, 1, 1, false
  local function add(code)
    lua[#lua + 1] = code
  end
  while pos <= #source do
    local open = source:find("{[{%%#]", pos) or #source + 1
    local text = source:sub(pos, open - 1)
    local kept = trim_next and text:gsub("^%s+", "") or text
    if source:sub(open + 2, open + 2) == "-" then
      kept = kept:gsub("%s+$", "")
    end
    if kept ~= "" then
      texts[#texts + 1] = kept
      add(("__text(%d) "):format(#texts))
    end
    add(newlines(text))
    line = line + count_newlines(text)
    if open > #source then
      break
    end
    local tag, next_pos, trim = scan_tag(source, open, line)
    if not tag then
      return nil, next_pos, line
    elseif tag.kind == "{" then
      local problem, problem_line = expression_problem(tag, chunk_name)
      if problem then
        return nil, problem, problem_line
      end
      tags[#tags + 1] = tag
      add(("__at[1] = %d __value(%d, %s) "):format(#tags, #tags, tag.code))
    elseif tag.kind == "%" then
      add(tag.code .. " ")
    else
      add(newlines(tag.source))
    end
    pos, line, trim_next = next_pos, tag.last, trim
  end
  return table.concat(lua), texts, tags
end

local COMPILE = {
  "text", "name", "folder",
  text = { type = "string", required = true },
  name = { type = "string", default = "template" },
  folder = { type = "string" },
}

---Compile a template.
---@param text string
---@param name string|nil   # for messages; default "template"
---@param folder string|nil # what file() and include() start from; default the current folder
---@return nacos.Template|nil
---@return table|nil err    # code "syntax"
function template.compile(...)
  local a = options.named(COMPILE, "template.compile", 2, ...)
  local chunk_name = "@" .. a.name
  local lua, texts, tags = translate(a.text, chunk_name)
  local problem, line = texts, tags
  if lua then
    local chunk, message = load_text(lua, chunk_name)
    if chunk then
      return setmetatable({
        name = a.name, folder = a.folder, chunk = chunk, chunk_name = chunk_name, texts = texts, tags = tags, included = {},
      }, Template)
    end
    line, problem = split_message(message)
    problem = problem:gsub("near '__%w+'$", "at the end of the tag")
  end
  return nil, functions.failure("syntax", ("%s:%s: %s"):format(a.name, line or "?", problem), { template = a.name, line = line })
end

local FILE = { "path", path = { type = "string", required = true } }

---Compile a template file; its name in messages is the path.
---@param path string
---@return nacos.Template|nil
---@return table|nil err # code "syntax", or "template" when the file cannot be read
function template.compile_file(path)
  options.named(FILE, "template.compile_file", 2, path)
  local ok, text = pcall(functions.read_file, path)
  if not ok then
    return nil, text
  end
  return template.compile(text, path, path:match("^(.*/)[^/]*$"))
end

---The text that a value of {{ }} stands for; raises for what has none.
local function as_text(tag, value, reason)
  local kind = type(value)
  if kind == "string" then
    return value
  elseif kind == "number" then
    return formats.number(value)
  elseif kind == "boolean" then
    return tostring(value)
  elseif value == nil or value == formats.null then
    local code = type(reason) == "table" and reason.code or "template"
    local why = reason ~= nil and ": " .. tostring(reason) or ""
    error(functions.failure(code, "the value is " .. tostring(value) .. why .. " in " .. tag.source, { shown = true }), 0)
  end
  local meta = getmetatable(value)
  if type(meta) == "table" and meta.__tostring then
    return tostring(value)
  end
  local hint = kind == "table" and " (json(v) and yaml(v) write tables)" or ""
  error(functions.failure("template", "cannot write a " .. kind .. " in " .. tag.source .. hint, { shown = true }), 0)
end

---xpcall's handler: an error of any kind becomes one with the template's name, line and, when known, the expression.
local function located(self, at, err)
  local line, message, prefix = nil, tostring(err), nil
  local level = 2
  while true do
    local info = debug.getinfo(level, "Sl")
    if not info then
      break
    elseif info.source == self.chunk_name then
      line, prefix = info.currentline, info.short_src .. ":" .. info.currentline .. ": "
      break
    end
    level = level + 1
  end
  if prefix and message:sub(1, #prefix) == prefix then
    message = message:sub(#prefix + 1)
  end
  local tag = self.tags[at[1]]
  local ours = type(err) == "table"
  line = line or (tag and tag.first) -- a coroutine of the template's own: its stack does not show the template
  if tag and line and line >= tag.first and line <= tag.last and not (ours and err.shown) then
    message = message .. " in " .. tag.source
  end
  return functions.failure(ours and err.code or "template", ("%s:%s: %s"):format(self.name, line or "?", message), {
    template = self.name, line = line, data_id = ours and err.data_id or nil, group = ours and err.group or nil,
  })
end

local function path_from(folder, path)
  if folder and path:sub(1, 1) ~= "/" then
    return folder:gsub("/*$", "/") .. path
  end
  return path
end

local render -- render(self, vars, state)

---@param state table # shared by a render and its includes: client functions, depth
local function environment(self, vars, state, lenient)
  local scope = { vars = vars }
  for name, value in pairs(vars) do
    scope[name] = value
  end
  local own = {}
  function own.file(path, ...)
    return (state.functions.file or functions.read_file)(path_from(self.folder, path), ...)
  end
  function own.include(path, given)
    path = path_from(self.folder, path)
    if state.depth >= MAX_INCLUDES then
      error(functions.failure("template", "include: more than " .. MAX_INCLUDES .. " deep"), 0)
    end
    local problem
    if not self.included[path] then
      self.included[path], problem = template.compile_file(path)
    end
    local text
    if self.included[path] then
      state.depth = state.depth + 1
      text, problem = render(self.included[path], given or vars, state)
      state.depth = state.depth - 1
    end
    if not text then
      error(problem, 0)
    end
    return text
  end
  return setmetatable(scope, { __index = function(_, name)
    local value = own[name] or state.functions[name]
    if value == nil then
      value = functions.base[name]
    end
    if value == nil and lenient.depth == 0 then
      local known = {}
      for _, names in ipairs({ vars, own, state.functions, functions.base }) do
        for key in pairs(names) do
          known[#known + 1] = type(key) == "string" and key or nil
        end
      end
      local nearest = options.nearest(tostring(name), known)
      error("unknown name '" .. tostring(name) .. "'" .. (nearest and " (did you mean '" .. nearest .. "'?)" or ""), 0)
    end
    return value
  end })
end

function render(self, vars, state)
  local out, at, lenient = {}, {}, { depth = 0 }
  local function write_text(i)
    out[#out + 1] = self.texts[i]
  end
  local function write_value(i, value, reason)
    out[#out + 1] = as_text(self.tags[i], value, reason)
  end
  local function enter_lenient()
    lenient.depth = lenient.depth + 1
  end
  local function default(_, value, otherwise)
    lenient.depth = lenient.depth - 1
    if value == nil or value == formats.null then
      return otherwise
    end
    return value
  end
  local env = environment(self, vars, state, lenient)
  local ok, err = xpcall(self.chunk, function(problem)
    return located(self, at, problem)
  end, env, write_text, write_value, at, enter_lenient, default)
  if not ok then
    return nil, err
  end
  return table.concat(out)
end

local RENDER = {
  client = { type = { "table", "userdata" }, as_is = true, doc = "config() and text() ask it" },
  group = { type = "string", doc = "the group of a config() or text() that names none" },
  functions = { type = "table", doc = "further functions" },
}

---Check the arguments, then render. `level` blames the caller of the public function.
local function checked_render(self, vars, opts, what, level)
  if vars ~= nil and type(vars) ~= "table" then
    error(("bad argument 'vars' to '%s' (table expected, got %s)"):format(what, type(vars)), level + 1)
  end
  opts = options.check(RENDER, opts, what, level + 1)
  local used, names = {}, {}
  for name, fn in pairs(opts.client and functions.of_client(opts.client, used, opts.group) or {}) do
    names[name] = fn
  end
  for name, fn in pairs(opts.functions or {}) do
    names[name] = fn
  end
  local text, err = render(self, vars or {}, { functions = names, depth = 0 })
  if not text then
    return nil, err, used
  end
  return text, used
end

---Render. Every call has its own environment: what the template assigns is gone afterwards, `vars` is never changed, and a
---template may be rendered inside another or by several coroutines at once.
---@param vars table|nil # the variables
---@param opts {client: nacos.Client|nil, group: string|nil, functions: table|nil}|nil # config() and text() ask the client, in
---this group unless they name one (default DEFAULT_GROUP); further functions
---@return string|nil text
---@return table used_or_err # the configurations asked for, as a list of {data_id=, group=}; or the error
---@return table|nil used    # after an error
function Template:render(vars, opts)
  local text, used_or_err, used = checked_render(self, vars, opts, "render", 2)
  return text, used_or_err, used
end

---Compile and render in one go. @see Template.render
---@param text string
---@param vars table|nil
---@param opts table|nil
function template.render(text, vars, opts)
  options.named(COMPILE, "template.render", 2, text)
  local compiled, err = template.compile(text)
  if not compiled then
    return nil, err
  end
  local out, used_or_err, used = checked_render(compiled, vars, opts, "template.render", 2)
  return out, used_or_err, used
end

---Compile and render a file in one go. @see Template.render
---@param path string
---@param vars table|nil
---@param opts table|nil
function template.render_file(path, vars, opts)
  options.named(FILE, "template.render_file", 2, path)
  local compiled, err = template.compile_file(path)
  if not compiled then
    return nil, err
  end
  local out, used_or_err, used = checked_render(compiled, vars, opts, "template.render_file", 2)
  return out, used_or_err, used
end

---`config` and `text` bound to a client, for use outside render's `client` option. Values are fetched and parsed once per
---call of this function, so call it again for newer ones. @see nacos.template_functions
---@param client nacos.Client
---@return {config: function, text: function}
function template.functions(client)
  return functions.of_client(client)
end

return template
