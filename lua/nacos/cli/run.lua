--- lunacos run: run a Lua script with everything ready.

local common = require("nacos.cli.common")

local run = {
  summary = "Run a Lua script.",
  usage = "run [OPTIONS] SCRIPT.lua [ARGS…]",
  help = [[
Examples:
  lunacos run scripts/render-agent.lua nginx.conf.tmpl /etc/nginx/nginx.conf nginx -s reload
  lunacos run -s 10.0.0.1:8848 -n prod agent.lua

Options go before the script; everything after it is the script's, in `arg` and as `...`.

The script finds these globals: nacos, json (cjson.safe), yaml (lyaml), template
(nacos.template), connection (the options for nacos.client() that -s, -n, -u … and the
environment variables say), group (what -g says). require() looks beside the script, too.

It runs inside nacos.run(): it may sleep, wait and spawn, and the program goes on while it
watches, follows or registers something. However it ends, its instances are taken out of
their services. TERM and INT stop it cleanly, exit code 0 (a script that
computes without ever waiting needs a second one). A whole number that the script
returns is the exit code. An error ends it with a traceback and exit code 1.]],
}

function run.setup(parser)
  parser:argument("script"):description("The script; - reads it from stdin")
  return {}
end

---Look beside the script before anywhere else.
local function add_to_path(script)
  local folder = script:match("^(.*)/[^/]*$") or "."
  package.path = ("%s/?.lua;%s/?/init.lua;%s"):format(folder, folder, package.path)
end

---os.exit() closes the Lua state here unless told otherwise, as the end of the script does: instances are taken out of their services.
local function close_at_exit()
  local exit = os.exit
  os.exit = function(code, close) -- luacheck: ignore 122
    exit(code, close == nil or close)
  end
end

---@return function chunk
local function load_script(script)
  if script ~= "-" then
    local file, problem = io.open(script, "r")
    if not file then
      common.fail(common.USAGE, "cannot read " .. problem)
    end
    file:close()
    add_to_path(script)
  end
  local chunk, problem = loadfile(script ~= "-" and script or nil)
  if not chunk then
    common.fail(common.NOT_FOUND, problem)
  end
  return chunk
end

function run.run(args, settings)
  local nacos = require("nacos")
  local chunk = load_script(args.script)
  _G.nacos, _G.json, _G.yaml, _G.template = nacos, require("cjson.safe"), require("lyaml"), require("nacos.template")
  _G.connection, _G.group = common.connection(settings, "warn"), settings.group
  _G.arg = table.move(args.rest, 1, #args.rest, 1, { [0] = args.script })
  close_at_exit()
  nacos.on_signal("TERM", nacos.stop)
  nacos.on_signal("INT", nacos.stop)
  io.stdout:setvbuf("line") -- who reads the output of an agent wants to see each line when it is written
  local code = common.DONE
  nacos.run(function()
    local ok, result = xpcall(chunk, common.traceback, table.unpack(args.rest))
    if not ok then
      common.note(result)
      code = common.NOT_FOUND
      nacos.stop()
    elseif math.type(result) == "integer" then
      code = result
      nacos.stop()
    end
  end)
  return code
end

return run
