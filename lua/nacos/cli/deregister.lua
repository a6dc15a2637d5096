--- lunacos deregister: take an instance out of a service.

local common = require("nacos.cli.common")
local instance = require("nacos.cli.instance")

local deregister = {
  summary = "Take an instance out of a service.",
  usage = "deregister SERVICE --ip IP --port PORT [--cluster NAME] [--persistent]",
  help = [[
Examples:
  lunacos deregister web --ip 10.0.0.1 --port 8080
  lunacos deregister db --ip 10.0.0.9 --port 5432 --persistent

An instance that somebody still beats for comes back with its next beat. One that is not there
is no error: a server does not tell the difference.]],
}

deregister.setup = instance.options

function deregister.run(args, settings)
  local client = common.client(settings)
  common.call(client, "remove_naming_instance", {
    service_name = args.service, ip = args.ip, port = args.port, cluster_name = args.cluster, group_name = settings.group,
    ephemeral = not args.persistent,
  })
  client:close()
  return common.DONE
end

return deregister
