--- nacos.agent: what a script declares and `lunacos run` keeps true.
--
--   local agent = require "nacos.agent"
--   agent.connect { server_addresses = "10.0.0.1:8848", namespace = "prod" }
--   agent.file { path = "/etc/nginx/conf.d/shop.conf", source = "shop.conf.tmpl", check = { "nginx", "-t" }, reload = { "nginx", "-s", "reload" } }
--
-- A declaration only says what should be; nothing happens before the whole script has run without an error. A script is run again at
-- HUP: what it declares then replaces what it declared before.
--
-- Commands are a list (a program and its arguments), a text (a line for sh), or a Lua function, which may wait.

local client = require "nacos.client"
local command = require "nacos.agent.command"
local files = require "nacos.agent.files"
local options = require "nacos.options"
local service = require "nacos.agent.service"
local supervisor = require "nacos.agent.supervisor"
local template = require "nacos.template"

local agent = {}

---What the scripts that are being run declare.
---@class nacos.agent.Definitions
---@field connection nacos.Options|nil
---@field connected_at string|nil  # where the script says it: "agent.lua:3: "
---@field limits table             # see agent.limits; only what was given
---@field targets table[]          # in the order of their declaration
---@field processes table[]
---@field services table[]
---@field watches table[]
---@field pushes table[]
---@field names table<string, boolean>
---@field places table<string, table> # real path -> the target that it belongs to
---@field after { names: string[], process: string, at: string }[] # what has to be declared when the scripts have ended
---@field folder string            # of the script: where templates are
local current -- nil: no script is being run

local SECONDS = { type = "number", min = 0 }
local SOME_SECONDS = { type = "number", above = 0 }

local function not_empty(text)
  return text == "" and "is empty" or nil
end

local function merged(...)
  local all = {}
  for _, spec in ipairs { ... } do
    for name, rule in pairs(spec) do
      all[name] = rule
    end
  end
  return all
end

local FILE = merged(files.OPTIONS, {
  source = { type = "string", check = files.bad_path, doc = "path of the template, from the folder of the script" },
  template = { type = "string", doc = "text of the template" },
  content = { type = "function", doc = "content(ctx) -> text" },
  vars = { type = "table", doc = "variables of the template" },
})

local TARGET = {
  name = { type = "string", check = not_empty },
  check = command.RULE, check_timeout = { type = "number", above = 0, default = 30 },
  reload = command.RULE, reload_timeout = { type = "number", above = 0, default = 30 },
  reload_interval = SOME_SECONDS, -- at most one reload in so many seconds
  wait = { type = { "table", "number" } },
  splay = SECONDS,                -- a reload waits for a random part of so many seconds
  on_failure = { type = "string", one_of = { "keep", "restore" }, default = "keep" },
  keep = { type = "number", integer = true, min = 1, default = 10 },  -- generations
  min_instances = { type = "number", integer = true, min = 0 },       -- of every service that the templates read
  max_shrink = { type = "number", min = 0, max = 1 },                 -- as a part of the bytes
  reject_empty = { type = "boolean", default = true },
  guard = "function",             -- guard{ name, files = { {path, content, old} … } } -> true, or false and a reason
  prune = { type = "boolean", default = false }, -- files that drop out of the set are removed
}

local WAIT = { min = { type = "number", min = 0, required = true }, max = SECONDS }

local ONE_FILE = merged(FILE, TARGET)
local GROUP = merged(TARGET, {
  name = { type = "string", required = true, check = not_empty },
  files = { type = { "table", "function" }, required = true }, -- a list, or files(ctx) -> list, from what it reads
  vars = { type = "table" },
})

-- `level` counts as in error(), seen from the caller of a function that takes it.
local NOBODY = -100 -- a level: the message begins with no line

local function fail(level, ...)
  error(("bad option '%s' to '%s' (%s)"):format(...), level + 1)
end

---The line that error() would name. @return string # "agent.lua:3: ", or empty
local function line_of(level)
  local info = debug.getinfo(level + 1, "Sl")
  return info and info.currentline > 0 and ("%s:%d: "):format(info.short_src, info.currentline) or ""
end

local function declaring(what, level)
  if not current then
    error(("'%s': only a script that `lunacos run` runs can declare something, and only while it runs"):format(what), level + 1)
  end
  return current
end

---Checked copy of one file, with its template compiled.
---@param folder string # that a source is in
local function file_of(given, what, level, folder, spec)
  local file = options.check(spec or FILE, given, what, level + 1)
  local kinds = (file.source and 1 or 0) + (file.template and 1 or 0) + (file.content and 1 or 0)
  if kinds ~= 1 then
    error(("'%s' needs exactly one of source, template and content for %s"):format(what, file.path), level + 1)
  end
  local compiled, err
  if file.source then
    compiled, err = template.compile_file(file.source:sub(1, 1) == "/" and file.source or folder .. "/" .. file.source)
  elseif file.template then
    compiled, err = template.compile(file.template, file.path, folder)
  end
  if err then
    error(("%s (in '%s')"):format(tostring(err), what), level + 1)
  end
  file.template, file.source = compiled, nil
  return file
end

local function unique(definitions, kind, name, what, level)
  local key = kind .. "\0" .. name
  if definitions.names[key] then
    error(("'%s': there is already a %s named %s"):format(what, kind, name), level + 1)
  end
  definitions.names[key] = true
end

---Every file belongs to one target. What the target had claimed before is free again.
local function claim(definitions, def, list, what, level)
  local claimed = {}
  for _, file in ipairs(list) do
    local place = files.place(file.path)
    local owner = definitions.places[place]
    if claimed[place] then
      error(("'%s': %s is there twice"):format(what, file.path), level + 1)
    elseif owner and owner ~= def then
      error(("'%s': %s belongs to the target %s already"):format(what, file.path, owner.name), level + 1)
    end
    claimed[place] = true
  end
  for place in pairs(def.claimed or {}) do
    definitions.places[place] = nil
  end
  for place in pairs(claimed) do
    definitions.places[place] = def
  end
  def.claimed = claimed
end

---A computed path is made of values from elsewhere, which must not lead it to another folder.
local function bad_computed(path)
  return ("/" .. path .. "/"):find("/../", 1, true) and "a computed path may not hold .."
    or path:find("%c") and "a computed path may not hold control characters" or nil
end

local function wait_of(def, what, level)
  local wait = def.wait
  if type(wait) == "number" then
    wait = { min = wait }
  end
  if wait then
    wait = options.check(WAIT, wait, what .. ".wait", level + 1)
    wait.max = wait.max or wait.min * 4
    if wait.max < wait.min then
      fail(level + 1, "wait", what, "max is less than min")
    end
  end
  def.wait = wait
end

---What stands in braces in a command and will not be filled in, though it was meant to be. Other braces are left to the command.
---@param words string[]|string|function
---@param kinds string[]                     # what it may be
---@param names table<string, boolean>|nil # files for {KIND:FILE}; nil: not known yet
---@return string|nil problem
local function bad_place(words, kinds, names)
  for _, word in ipairs(type(words) == "string" and { words } or type(words) == "table" and words or {}) do
    for at, kind, colon, name in word:gmatch("(){([%w_]+)(:?)([^{}]*)}") do
      local known = kind == kinds[1] or kind == kinds[2]
      if word:sub(at - 1, at - 1) == "$" or (colon == "" and name ~= "") then
        known = true -- of the shell
      elseif known and colon ~= "" and names and not names[name] then
        return ("{%s:%s} names none of its files"):format(kind, name)
      elseif kind == "staged" and not known then
        return "{staged} is gone when it runs; {path} is the file"
      end
      local nearest = not known and options.nearest(kind, kinds)
      if nearest then
        return ("{%s} is not known, did you mean {%s}?"):format(kind, nearest)
      end
    end
  end
end

---@return table<string, boolean>|nil # what {path:NAME} may name; nil: that is only known later
local function names_of(list)
  local names = {}
  for _, file in ipairs(type(list) == "table" and list or {}) do
    if file.symlink == "follow" then
      return nil
    end
    names[file.path], names[file.path:match("[^/]*$")] = true, true
  end
  return type(list) == "table" and names or nil
end

local function add_target(def, what, level)
  local definitions = declaring(what, level + 1)
  unique(definitions, "target", def.name, what, level + 1)
  wait_of(def, what, level + 1)
  local names = names_of(def.files)
  for name, kinds in pairs { check = { "path", "staged" }, reload = { "path" } } do
    local problem = bad_place(def[name], kinds, names)
    if problem then
      fail(level + 1, name, what, problem)
    end
  end
  if type(def.files) == "table" then
    claim(definitions, def, def.files, what, level + 1)
  end
  definitions.targets[#definitions.targets + 1] = def
end

---Options for nacos.client(), above those of the command line. Once per agent.
---@param opts nacos.Options
function agent.connect(opts)
  local definitions = declaring("agent.connect", 2)
  if type(opts) ~= "table" then
    error("bad argument to 'agent.connect' (table expected, got " .. type(opts) .. ")", 2)
  elseif definitions.connection then
    error("'agent.connect' was called already", 2)
  end
  definitions.connection = client.check_options(opts, "agent.connect", 2)
  definitions.connected_at = line_of(2)
end

local LIMITS = {
  warn = SECONDS, budget = { type = "number", min = 0 },    -- of functions: see nacos.agent.guard
  max_drop = { type = "number", min = 0, max = 1 }, hold = SECONDS, -- of services that templates read
}

---Limits for the functions of the script and for the services that templates read.
---@param opts { warn: number|nil, budget: number|nil, max_drop: number|nil, hold: number|nil }
function agent.limits(opts)
  local definitions = declaring("agent.limits", 2)
  for name, value in pairs(options.check(LIMITS, opts, "agent.limits", 2)) do
    definitions.limits[name] = value
  end
end

---Keep a file.
---@param opts table # path and exactly one of source, template, content; see README "Agent" for all
function agent.file(opts)
  local definitions = declaring("agent.file", 2)
  local def = file_of(opts, "agent.file", 2, definitions.folder, ONE_FILE)
  local file = {}
  for name in pairs(FILE) do
    file[name], def[name] = def[name], nil
  end
  def.kind, def.files, def.name = "file", { file }, def.name or file.path
  add_target(def, "agent.file", 2)
end

---Keep files that change together: all or none.
---@param opts table # name, files and what agent.file knows about check, reload …
function agent.group(opts)
  local definitions = declaring("agent.group", 2)
  local def, folder = options.check(GROUP, opts, "agent.group", 2), definitions.folder
  local function checked(list, level)
    local problem = type(list) ~= "table" and "a list is needed, not " .. type(list) or options.bad_list(list)
    if problem then
      fail(level + 1, "files", "agent.group", problem)
    end
    local copy = {}
    for i, file in ipairs(list) do
      copy[i] = file_of(file, ("agent.group.files[%d]"):format(i), level + 1, folder)
    end
    return copy
  end

  ---What a function for `files` has given, checked; raises.
  function def.check_files(list)
    list = checked(list, NOBODY)
    for i, file in ipairs(list) do
      local problem = bad_computed(file.path)
      if problem then
        fail(NOBODY, "path", ("agent.group.files[%d]"):format(i), problem)
      end
    end
    claim(definitions, def, list, "agent.group.files", NOBODY)
    return list
  end
  def.kind = "group"
  if type(def.files) == "table" then
    def.files = checked(def.files, 2)
    if #def.files == 0 then
      fail(2, "files", "agent.group", "is empty")
    end
  end
  add_target(def, "agent.group", 2)
end

---Supervise a program.
---@param opts nacos.ProcessSpec # `after`: names or paths of the targets whose files must be complete first
function agent.process(opts)
  local definitions = declaring("agent.process", 2)
  local spec = supervisor.check(opts, 2)
  unique(definitions, "process", spec.name, "agent.process", 2)
  definitions.processes[#definitions.processes + 1] = spec
  table.insert(definitions.after, { names = spec.after or {}, process = spec.name, at = line_of(2) })
end

---Register an instance while it is well.
---@param opts table # see nacos.agent.service
function agent.service(opts)
  local definitions = declaring("agent.service", 2)
  local spec = service.check(opts, 2)
  unique(definitions, "service", spec.name, "agent.service", 2)
  definitions.services[#definitions.services + 1] = spec
end

local RULES = client.RULES

local WATCH = { "data_id", "fn"; data_id = RULES.data_id, fn = { type = "function", required = true }, group = RULES.group }

---Call fn(change) with the present value of a configuration and at every change. @see nacos.Client.add_config_watcher
---@param data_id string
---@param fn fun(change: nacos.Change)
---@param opts { group: string|nil }|nil
function agent.watch(...)
  local watch = options.named(WATCH, "agent.watch", 2, ...)
  local definitions = declaring("agent.watch", 2)
  definitions.watches[#definitions.watches + 1] = watch
end

local PUSH = {
  data_id = RULES.data_id, group = RULES.group, type = RULES.type,
  file = { type = "string", required = true, check = files.bad_path },
  interval = { type = "number", above = 0, default = 1 }, -- seconds between two looks at the file
  check = command.RULE, check_timeout = { type = "number", above = 0, default = 30 },
}

---Publish a local file whenever it changes, by compare-and-set: what somebody else has published meanwhile is never overwritten.
---@param opts { data_id: string, file: string, group: string|nil, type: string|nil, interval: number|nil, check: any, check_timeout: number|nil }
function agent.push(opts)
  local definitions = declaring("agent.push", 2)
  local def = options.check(PUSH, opts, "agent.push", 2)
  def.name = def.data_id
  unique(definitions, "push", ("%s in group %s"):format(def.data_id, def.group), "agent.push", 2)
  local problem = bad_place(def.check, { "path", "staged" }, {})
  if problem then
    fail(2, "check", "agent.push", problem)
  end
  definitions.pushes[#definitions.pushes + 1] = def
end

---A target by its name, its path, or the last part of its path when only one has it.
---@param targets table[] # of the definitions
---@param name string
---@return table|nil
function agent.find(targets, name)
  local found
  for _, def in ipairs(targets) do
    if def.name == name then
      return def
    end
    for _, file in ipairs(type(def.files) == "table" and def.files or {}) do
      if file.path == name then
        return def
      elseif file.path:match("[^/]*$") == name then
        found = found == nil and def or false
      end
    end
  end
  return found or nil
end

---A process that is to start after what nobody declares would never start.
---@return string|nil
local function bad_after(definitions)
  for _, after in ipairs(definitions.after) do
    for _, name in ipairs(after.names) do
      if not agent.find(definitions.targets, name) then
        local names = {}
        for i, def in ipairs(definitions.targets) do
          names[i] = def.name
        end
        local nearest = options.nearest(name, names)
        return ("%sthe process %s is to start after %s, which no file or group is named%s"):format(after.at, after.process, name,
          nearest and (" (did you mean '%s'?)"):format(nearest) or "")
      end
    end
  end
end

---Collect what fn declares. For nacos.agent.runner.
---@param fn fun(enter: fun(folder: string)) # enter(folder): what follows is of a script in that folder
---@return nacos.agent.Definitions|nil
---@return any problem # that fn raised
function agent.collect(fn)
  local before = current
  local definitions = {
    targets = {}, processes = {}, services = {}, watches = {}, pushes = {}, names = {}, places = {}, after = {}, limits = {},
    folder = ".",
  }
  current = definitions
  local ok, problem = pcall(fn, function(folder)
    definitions.folder = folder
  end)
  current = before
  if ok then
    problem = bad_after(definitions)
  end
  if problem or not ok then
    return nil, problem
  end
  return definitions
end

return agent
