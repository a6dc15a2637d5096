--- lunacos run: run a Lua script with everything ready.

local agent = require("nacos.cli.agent")
local common = require("nacos.cli.common")

local run = {
  summary = "Run an agent: a Lua script, or a folder of them.",
  usage = "run [OPTIONS] SCRIPT.lua [ARGS…]",
  help = [[
Examples:
  lunacos run /etc/lunacos/agent.lua
  lunacos run -s 10.0.0.1:8848 -n prod agent.lua
  lunacos run --once --deadline 30 agent.lua && systemctl start shop
  lunacos run scripts/render-agent.lua nginx.conf.tmpl /etc/nginx/nginx.conf nginx -s reload

Options go before the script; everything after it is the script's, in `arg` and as `...`. Of a
folder all *.lua run, in the order of their names, and are one agent.

The script finds these globals: nacos, json (cjson.safe), yaml (lyaml), template
(nacos.template), connection (the options for nacos.client() that -s, -n, -u … and the
environment variables say), group (what -g says). require() looks beside the script, too.

What the script declares by require "nacos.agent" (files, processes, services …) is kept from
then on: TERM and INT stop it, exit code 0; HUP runs the scripts again; USR1 writes the status to
stderr; USR2 switches debugging on and off. `lunacos status`, `why`, `history` and others talk to
it. With --once it ends when everything has been done, exit code 0, or cannot be: 6 something was
refused or failed, 3 something is still not known at the deadline; no process is started then.

A script that declares nothing runs inside nacos.run(): it may sleep, wait and spawn, and the
program goes on while it watches, follows or registers something. However it ends, its instances
are taken out of their services. TERM and INT stop it cleanly, exit code 0 (a script that
computes without ever waiting needs a second one). A whole number that the script returns is the
exit code. An error ends it with a traceback and exit code 1.]],
}

function run.setup(parser)
  parser:argument("script"):description("The script, or a folder of scripts; - reads it from stdin")
  return {
    agent.state_option(parser),
    parser:flag("--once"):description("Bring everything up to date once, then end"),
    parser:option("--deadline"):argname("SECONDS"):convert(agent.seconds):description(
      "With --once and --dry-run: give up after so long (default 60)"),
    parser:flag("--dry-run"):description("Only tell what --once would write"),
    parser:flag("--exec"):description("The agent ends when its one process does, with its exit code; QUIT and WINCH go to it"),
    parser:option("--log-format"):argname("text|json"):choices({ "text", "json" }):description("Lines of the log (default text)"),
  }
end

---os.exit() closes the Lua state here unless told otherwise, as the end of the script does: instances are taken out of their services.
local function close_at_exit()
  local exit = os.exit
  os.exit = function(code, close) -- luacheck: ignore 122
    exit(code, close == nil or close)
  end
end

---Tell what would be written. @return integer code
local function tell_planned(file)
  common.write(("%s\t%s\n"):format(file.same and "same" or file.old and "change" or "new", file.path))
  return common.DONE
end

---Run the scripts and keep what they declare. @return integer code
---@param args table # once, log_format
---@param opts nacos.agent.RunOptions
function run.serve(args, opts)
  local nacos = require("nacos")
  local runner, scripts = require("nacos.agent.runner"), require("nacos.agent.scripts")
  require("nacos.agent.log").format = args.log_format or "text"
  opts.connection.log_format = args.log_format
  opts.ignores_hangup = common.ignores_hangup()
  close_at_exit()
  io.stdout:setvbuf("line") -- who reads the output of an agent wants to see each line when it is written
  local code, running = common.DONE, nil
  for _, name in ipairs { "TERM", "INT" } do
    nacos.on_signal(name, function()
      if not running then -- else the agent's own handlers stop it
        nacos.stop()
      end
    end)
  end
  nacos.run(function()
    local definitions, problem, result = scripts.load(opts.scripts, opts.args, opts.traceback)
    if definitions and scripts.declare(definitions) then
      running, problem = runner.start(definitions, opts)
      definitions = running
    elseif args.once and definitions then
      definitions, problem = nil, opts.script .. " declares nothing: --once has nothing to do"
    end
    if not definitions then
      common.note(tostring(problem))
      code = common.NOT_FOUND
      nacos.stop()
    elseif running then
      runner.keep(running)
    elseif math.type(result) == "integer" then
      code = result
      nacos.stop()
    end
  end)
  return running and runner.finish(running) or code
end

function run.run(args, settings)
  if args.dry_run then
    return agent.each_planned(args, settings, tell_planned)
  end
  agent.set_globals(args, settings)
  local opts = agent.run_options(args, settings)
  opts.script_path = args.script
  return run.serve(args, opts)
end

return run
