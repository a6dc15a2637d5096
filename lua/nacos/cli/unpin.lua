--- lunacos unpin: let a target follow its sources again.

local look = require("nacos.cli.look")
local steer = require("nacos.cli.steer")

local unpin = {
  summary = "Let a pinned file or group follow its sources again.",
  usage = "unpin TARGET [--state FOLDER]",
  own_options = true,
  help = [[
Example:
  lunacos unpin shop.conf

]] .. steer.HELP,
}

function unpin.setup(parser)
  look.target_argument(parser)
  return { require("nacos.cli.agent").state_option(parser) }
end

function unpin.run(args)
  return steer.run(args, { command = "unpin" })
end

return unpin
