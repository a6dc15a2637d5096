--- lunacos pin: keep a target at one generation.

local look = require("nacos.cli.look")
local steer = require("nacos.cli.steer")

local pin = {
  summary = "Keep a file or group at one generation, whatever its sources say.",
  usage = "pin TARGET [GENERATION] [--state FOLDER]",
  own_options = true,
  help = [[
Examples:
  lunacos pin shop.conf
  lunacos pin shop.conf 7

Without a number it is the present generation. `lunacos unpin TARGET` ends it; a restart of the
agent does not.

]] .. steer.HELP,
}

function pin.setup(parser)
  look.target_argument(parser)
  parser:argument("generation"):args("?"):convert(look.generation):description("Its number in `lunacos history`")
  return { require("nacos.cli.agent").state_option(parser) }
end

function pin.run(args)
  return steer.run(args, { command = "pin", generation = args.generation })
end

return pin
