--- scripts: the Lua files of an agent: found, run, and run again at HUP.

local agent = require "nacos.agent"
local guard = require "nacos.agent.guard"
local uv = require "luv"

local scripts = {}

---The scripts of a path: itself, or the *.lua of a folder in the order of their names.
---@return string[]|nil
---@return string|nil problem
function scripts.list(path)
  local stat = path ~= "-" and uv.fs_stat(path)
  if not stat or stat.type ~= "directory" then
    return { path }
  end
  local list = {}
  local handle, problem = uv.fs_scandir(path)
  if not handle then
    return nil, problem
  end
  for name in uv.fs_scandir_next, handle do
    if name:find("%.lua$") and name:sub(1, 1) ~= "." then
      list[#list + 1] = path .. "/" .. name
    end
  end
  table.sort(list)
  if #list == 0 then
    return nil, "no *.lua in " .. path
  end
  return list
end

local original_path
local standard_input -- the script that was read there
local loaded_before -- modules that were there before the first script: a script's own are read again at HUP

local function forget_modules()
  if not loaded_before then
    loaded_before = {}
    for name in pairs(package.loaded) do
      loaded_before[name] = true
    end
    return
  end
  for name in pairs(package.loaded) do
    if not loaded_before[name] and not name:find("^nacos%f[.\0]") then
      package.loaded[name] = nil
    end
  end
end

local function folder_of(script)
  return script:match("^(.*)/[^/]*$") or (script:sub(1, 1) == "/" and "/" or ".")
end

---Run scripts and collect what they declare. In a task.
---@param list (string|function)[] # paths, "-" for standard input; a function is called as a script is
---@param args string[] # of the scripts: `...`
---@param traceback fun(err: any): string
---@param bounded boolean|nil # a loop without end is an error: an agent has other things to do
---@return nacos.agent.Definitions|nil
---@return any problem # what a script raised, or why it cannot be read
---@return any result  # what the last script returned
function scripts.load(list, args, traceback, bounded)
  forget_modules()
  original_path = original_path or package.path
  package.path = original_path
  local result
  local definitions, problem = agent.collect(function(enter)
    for _, script in ipairs(list) do
      local chunk, err = script, nil
      if script == "-" then
        standard_input = standard_input or io.read("a") -- at HUP once more
        chunk, err = load((standard_input:gsub("^#[^\n]*", "", 1)), "=stdin")
      elseif type(script) == "string" then
        local folder = folder_of(script)
        package.path = ("%s/?.lua;%s/?/init.lua;%s"):format(folder, folder, original_path)
        enter(folder)
        chunk, err = loadfile(script)
      end
      if not chunk then
        error(err, 0)
      end
      local ok, value
      if bounded then
        ok, value = guard.call("the script", chunk, table.unpack(args))
      else
        ok, value = xpcall(chunk, traceback, table.unpack(args))
      end
      if not ok then
        error(value, 0)
      end
      result = value
    end
  end)
  return definitions, problem, result
end

---Do they declare anything?
function scripts.declare(definitions)
  for _, kind in ipairs { "targets", "processes", "services", "watches", "pushes" } do
    if #definitions[kind] > 0 then
      return true
    end
  end
  return false
end

return scripts
