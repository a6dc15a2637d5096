--- lunacos retry: try now what was rejected or is owed.

local look = require("nacos.cli.look")
local steer = require("nacos.cli.steer")

local retry = {
  summary = "Try now what was rejected, has failed or is owed.",
  usage = "retry TARGET [--state FOLDER]",
  own_options = true,
  help = [[
Example:
  lunacos retry shop.conf

What a check refused is tried again only when the input changes, or by this. The name of a process
that was given up starts it again; that of a push looks at its file again.

]] .. steer.HELP,
}

function retry.setup(parser)
  look.target_argument(parser)
  return { require("nacos.cli.agent").state_option(parser) }
end

function retry.run(args)
  return steer.run(args, { command = "retry" })
end

return retry
