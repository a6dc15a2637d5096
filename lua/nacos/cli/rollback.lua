--- lunacos rollback: put an earlier generation of a target back.

local look = require("nacos.cli.look")
local steer = require("nacos.cli.steer")

local rollback = {
  summary = "Put an earlier generation of a file or group back, and stay there.",
  usage = "rollback TARGET [GENERATION] [--state FOLDER]",
  own_options = true,
  help = [[
Examples:
  lunacos history shop.conf
  lunacos rollback shop.conf
  lunacos rollback shop.conf 7

Without a number it is the generation before the present one. The target is pinned to it (it is
written and its reload runs, its check does not) until `lunacos unpin TARGET` lets it follow its
sources again; a restart of the agent does not change that.

]] .. steer.HELP,
}

function rollback.setup(parser)
  look.target_argument(parser)
  parser:argument("generation"):args("?"):convert(look.generation):description("Its number in `lunacos history`")
  return { require("nacos.cli.agent").state_option(parser) }
end

function rollback.run(args)
  return steer.run(args, { command = "rollback", generation = args.generation })
end

return rollback
