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
is no error. Servers answer the same to the removal of a persistent instance that was called
ephemeral, and keep it: when the list has the instance, what the list says of it counts, else
--persistent.]],
}

deregister.setup = instance.options

---True, false: as the list says; nil: it does not know.
local function is_persistent(client, args, settings)
  local list = common.call(client, "list_naming_instance", {
    service_name = args.service, clusters = args.cluster, group_name = settings.group, no_snapshot = true,
  })
  for _, item in ipairs(list) do
    if item.ip == args.ip and item.port == args.port and item.cluster_name == (args.cluster or "DEFAULT") then
      return not item.ephemeral
    end
  end
end

function deregister.run(args, settings)
  local client = common.client(settings)
  local persistent = is_persistent(client, args, settings)
  if persistent == nil then
    persistent = args.persistent or false
  end
  common.call(client, "remove_naming_instance", {
    service_name = args.service, ip = args.ip, port = args.port, cluster_name = args.cluster, group_name = settings.group,
    ephemeral = not persistent,
  })
  client:close()
  return common.DONE
end

return deregister
