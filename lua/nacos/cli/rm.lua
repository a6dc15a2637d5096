--- lunacos rm: remove a configuration.

local common = require("nacos.cli.common")

local rm = {
  summary = "Remove a configuration.",
  usage = "rm DATA_ID [-g GROUP]",
  help = [[
Example:
  lunacos rm app.yaml -g prod

Removing what does not exist is not an error: a server does not tell the difference.]],
}

function rm.setup(parser)
  parser:argument("data_id"):description("The configuration's data id")
  return {}
end

function rm.run(args, settings)
  local client = common.client(settings)
  common.call(client, "remove_config", args.data_id, settings.group)
  client:close()
  return common.DONE
end

return rm
