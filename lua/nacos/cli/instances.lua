--- lunacos instances: list the instances of a service.

local common = require("nacos.cli.common")
local instance = require("nacos.cli.instance")

local instances = {
  summary = "List the instances of a service.",
  usage = "instances SERVICE [-g GROUP] [--cluster NAMES] [--healthy] [--json]",
  help = [[
Examples:
  lunacos instances web
  lunacos instances web --healthy --json | jq -r '"\(.ip):\(.port)"'

A line has the service, ip:port, the cluster, the weight and healthy or unhealthy, separated by
tabs. Exit code 1: there are none (a service that nobody registered is one without instances).
With --snapshot-dir, the list that was read last is printed when no server answers, and a line
on stderr says so.]],
}

function instances.setup(parser)
  parser:argument("service"):description("The service's name")
  return {
    parser:option("--cluster"):argname("NAMES"):description("Only these clusters, comma separated"),
    parser:flag("--healthy"):description("Only healthy ones"),
    parser:flag("--json"):description("One JSON object per instance"),
  }
end

function instances.run(args, settings)
  local client = common.client(settings)
  local list, source = common.call(client, "list_naming_instance", {
    service_name = args.service, group_name = settings.group, clusters = args.cluster, healthy_only = args.healthy,
  })
  if source == "snapshot" then
    common.note("no server answers: this is the snapshot of '" .. args.service .. "'")
  end
  local lines = {}
  for i, item in ipairs(list) do
    lines[i] = args.json and require("nacos.formats").json(instance.object(item, settings.namespace))
      or table.concat({ instance.fields(item) }, "\t")
  end
  client:close()
  if #lines == 0 then
    return common.NOT_FOUND
  end
  common.write(table.concat(lines, "\n"), "\n")
  return common.DONE
end

return instances
