--- lunacos check: would what a script wants pass its checks?

local agent = require("nacos.cli.agent")
local common = require("nacos.cli.common")

local check = {
  summary = "Run a script's templates, guards and checks, and write nothing.",
  usage = "check [OPTIONS] SCRIPT.lua [ARGS…]",
  help = [[
Examples:
  lunacos check -n prod agent.lua
  lunacos check --offline agent.lua

Every target is rendered from the present values and checked on copies in a folder that is
removed again; the files themselves are not touched and no reload runs. A line has ok, refused,
failed or unknown, the name, and what is wrong, separated by tabs. With --offline the script is
only run and its templates compiled. Exit code: 0 all is well, 1 the script has a mistake,
3 something is not known at the deadline, 6 something was refused or cannot be rendered.]],
}

function check.setup(parser)
  parser:argument("script"):description("The script, or a folder of scripts")
  return {
    agent.state_option(parser),
    parser:option("--deadline"):argname("SECONDS"):convert(agent.seconds):description(
      "Give up on what is not known after so long (default 60)"),
    parser:flag("--offline"):description("Ask no server: only the script and its templates are looked at"),
  }
end

local function remove(folder)
  local uv = require("luv")
  local names = uv.fs_scandir(folder)
  for name in names and uv.fs_scandir_next or function() end, names do
    uv.fs_unlink(folder .. "/" .. name)
  end
  uv.fs_rmdir(folder)
end

---Check one target on copies.
local function try(target)
  local plan, problem, state = target:plan()
  if not plan then
    return nil, problem, state
  end
  local uv = require("luv")
  local folder, why = uv.fs_mkdtemp((os.getenv("TMPDIR") or "/tmp") .. "/lunacos-check.XXXXXX")
  if not folder then
    return nil, why, "failed"
  end
  local ok, refusal = target:check_in(folder)
  remove(folder)
  return ok, refusal, not ok and "refused" or nil
end

local function count(definitions)
  local parts = {}
  for kind in ("targets processes services watches pushes"):gmatch("%a+") do
    parts[#parts + 1] = #definitions[kind] > 0 and kind .. ": " .. #definitions[kind] or nil
  end
  return #parts > 0 and table.concat(parts, ", ") or "nothing"
end

function check.run(args, settings)
  return agent.with_definitions(args, settings, function(runner, definitions, opts)
    if args.offline then
      common.write("ok\t", args.script, "\tdeclares ", count(definitions), "\n")
      return common.DONE
    end
    local code = common.DONE
    for _, entry in ipairs(runner.look(definitions, opts, try)) do
      if entry.result then
        common.write("ok\t", entry.name, "\n")
      else
        local unknown = entry.state == "waiting"
        code = math.max(code, unknown and common.UNAVAILABLE or common.REFUSED)
        common.write(("%s\t%s\t%s\n"):format(unknown and "unknown" or entry.state or "failed", entry.name,
          (tostring(entry.problem):gsub("\n.*", ""))))
      end
    end
    return code
  end)
end

return check
