--- lunacos diff: what an agent would change on the disk.

local agent = require("nacos.cli.agent")
local common = require("nacos.cli.common")
local look = require("nacos.cli.look")

local diff = {
  summary = "Show how the files on the disk differ from what a script wants.",
  usage = "diff [OPTIONS] SCRIPT.lua [ARGS…]",
  help = [[
Example:
  lunacos diff -n prod agent.lua | less

Writes a unified diff for every file that would change; nothing else is written, no check and no
reload runs. Exit code: 0 nothing would change, 2 something would, 3 something is not known at
the deadline, 6 something cannot be rendered.]],
}

function diff.setup(parser)
  parser:argument("script"):description("The script, or a folder of scripts")
  return {
    agent.state_option(parser),
    parser:option("--deadline"):argname("SECONDS"):convert(agent.seconds):description(
      "Give up on what is not known after so long (default 60)"),
  }
end

local WOULD_CHANGE = 2

---@return integer code
local function show(file)
  if file.same then
    return common.DONE
  end
  if look.diff(file.old and file.to.path or nil, file.new, file.path) then
    common.write(("%s: only its mode or owner would change\n"):format(file.path))
  end
  return WOULD_CHANGE
end

function diff.run(args, settings)
  return agent.each_planned(args, settings, show)
end

return diff
