--- What the commands about agents share: where the state is, and how scripts are loaded.

local common = require("nacos.cli.common")

local agent = {}

agent.seconds = common.seconds

---Where agents keep their state: a folder each, named after the script.
local function base()
  if require("luv").getuid() == 0 then
    return "/var/lib/lunacos"
  end
  local home = os.getenv("XDG_STATE_HOME")
  return (home and home ~= "" and home or (os.getenv("HOME") or ".") .. "/.local/state") .. "/lunacos"
end

---@param given string|nil  # --state
---@param script string     # the agent's script or folder of scripts
---@return string
function agent.state_folder(given, script)
  if given then
    return given
  end
  local name = script:gsub("/+$", ""):match("[^/]*$"):gsub("%.lua$", "")
  if name == "." or name == ".." then
    name = (require("luv").fs_realpath(script) or ""):match("[^/]*$")
  end
  return base() .. "/" .. (name ~= "" and name ~= "-" and name or "agent")
end

---The state folders that are there without being named.
local function known_states()
  local uv = require("luv")
  local all, found = { base() }, {}
  local handle = uv.fs_scandir(base())
  for name in handle and uv.fs_scandir_next or function() end, handle do
    all[#all + 1] = base() .. "/" .. name
  end
  for _, folder in ipairs(all) do
    found[#found + 1] = uv.fs_stat(folder .. "/version") and folder or nil
  end
  table.sort(found)
  return found
end

local function runs(folder)
  local seen = require("nacos.agent.state").read(folder)
  return seen and seen:running() ~= nil
end

---The folder of the agent that a command is about: the one that was named, or the only one there is, or the only one that runs.
---@param given string|nil # --state
---@return string
function agent.existing_state(given)
  if given then
    return given
  end
  local found = known_states()
  if #found > 1 then
    local running = {}
    for _, folder in ipairs(found) do
      running[#running + 1] = runs(folder) and folder or nil
    end
    found = #running == 1 and running or found
  end
  if #found == 0 then
    common.fail(common.UNAVAILABLE, "no agent has run here (nothing is in " .. base() .. "); --state names another folder")
  elseif #found > 1 then
    common.fail(common.USAGE, "several agents have run here; say which one: --state " .. table.concat(found, " or --state "))
  end
  return found[1]
end

---The option --state of a command.
function agent.state_option(parser)
  local default = os.getenv("LUNACOS_STATE")
  return parser:option("--state"):argname("FOLDER"):default(default ~= "" and default or nil):convert(function(folder)
    return folder ~= "" and folder or nil, "--state: a folder is needed (the name given is empty)"
  end):description(
    "Where the agent keeps its state (default: LUNACOS_STATE; as root /var/lib/lunacos/NAME, else in ~/.local/state)")
end

---The globals a script finds.
function agent.set_globals(args, settings)
  _G.nacos, _G.json, _G.yaml, _G.template = require("nacos"), require("cjson.safe"), require("lyaml"), require("nacos.template")
  _G.connection, _G.group = common.connection(settings, settings.verbose and "info" or "warn"), settings.group
  _G.arg = table.move(args.rest or {}, 1, #(args.rest or {}), 1, { [0] = args.script })
end

---The scripts on the command line; leaves the command when one cannot be read.
local function scripts_of(path)
  local scripts, problem = require("nacos.agent.scripts").list(path)
  if not scripts then
    common.fail(common.USAGE, problem)
  end
  for _, script in ipairs(scripts) do
    if script ~= "-" then
      local file, why = io.open(script, "r")
      if not file then
        common.fail(common.USAGE, "cannot read " .. tostring(why))
      end
      file:close()
    end
  end
  return scripts
end

---What nacos.agent.runner needs to know of the command line.
---@param scripts function[]|nil # default: those of args.script, which else only gives the agent its name
---@return nacos.agent.RunOptions
function agent.run_options(args, settings, scripts)
  scripts = scripts or scripts_of(args.script)
  local connection = {}
  for name, value in pairs(_G.connection) do
    connection[name] = value
  end
  if not settings.no_snapshot and not settings.snapshot_base then
    connection.no_snapshot = nil -- not said: the agent keeps snapshots in its state folder
  end
  return {
    scripts = scripts, script = args.script, args = args.rest or {}, connection = connection, traceback = common.traceback,
    state = agent.state_folder(args.state, args.script),
    log_level = (settings.log_level or "info"):lower():gsub("^warning$", "warn"),
    once = args.once, deadline = args.deadline or 60, exec = args.exec,
  }
end

---Run fn as a task and pass on what it returns or raises.
---@param fn fun(): integer # the exit code
---@param handler nil|fun(err: any): any # of xpcall
---@return integer code
function agent.in_task(fn, handler)
  local nacos = require("nacos")
  local code, failure
  nacos.run(function()
    local ok, result = xpcall(fn, handler or function(err) return err end)
    if ok then
      code = result
    else
      failure = result
    end
    nacos.stop()
  end)
  if failure then
    error(failure, 0)
  end
  return code
end

---Load the scripts and do something with what they declare, without running an agent; in nacos.run().
---@param fn fun(runner: table, definitions: nacos.agent.Definitions, opts: nacos.agent.RunOptions): integer # the exit code
---@return integer code
function agent.with_definitions(args, settings, fn)
  local runner, scripts = require("nacos.agent.runner"), require("nacos.agent.scripts")
  agent.set_globals(args, settings)
  local opts = agent.run_options(args, settings)
  return agent.in_task(function()
    local definitions, problem = scripts.load(opts.scripts, opts.args, opts.traceback)
    if definitions then
      return fn(runner, definitions, opts)
    end
    common.note(tostring(problem))
    return common.NOT_FOUND
  end)
end

---What the scripts want of the disk, file by file; a target of which it cannot be said is told.
---@param tell fun(file: table): integer # see nacos.agent.Target.plan; an exit code
---@return integer code # the largest
function agent.each_planned(args, settings, tell)
  return agent.with_definitions(args, settings, function(runner, definitions, opts)
    local code = common.DONE
    for _, entry in ipairs(runner.look(definitions, opts, function(target)
      return target:plan()
    end)) do
      if not entry.result then
        common.note(("%s: %s"):format(entry.name, entry.problem))
        code = math.max(code, entry.state == "waiting" and common.UNAVAILABLE or common.REFUSED)
      end
      for _, file in ipairs(entry.result or {}) do
        code = math.max(code, tell(file))
      end
    end
    return code
  end)
end

return agent
