--- lunacos subscribe: tell every change of the instances of some services.

local commands = require("nacos.cli.commands")
local common = require("nacos.cli.common")
local formats = require("nacos.formats")
local instance = require("nacos.cli.instance")

local subscribe = {
  summary = "Tell every change of the instances of services, as it happens.",
  usage = "subscribe SERVICE… [OPTIONS] [--json] [--exec CMD…]",
  rest = "--exec",
  help = [[
Examples:
  lunacos subscribe web db
  lunacos subscribe web --json | while read -r change; do …; done
  lunacos subscribe web --exec sh -c 'jq -r ".[].ip" > web.hosts && nginx -s reload'

The present instances come first, as ADDED, then every change. A line has the event (ADDED,
MODIFIED or DELETED), the service, ip:port, the cluster, the weight and healthy or unhealthy,
separated by tabs. --json writes one object per change instead. --verbose tells on stderr how each
change came (gRPC push, UDP push …) and which protocol is used. An answer that lacks more than
--max-drop of the instances is believed when it has stood for --hold seconds; a warning on stderr
says so.

--exec must come last. The command runs once at the start, also for a service without instances,
and at every change. It gets the list of healthy instances as a JSON array on stdin, and
NACOS_SERVICE, NACOS_GROUP, NACOS_NAMESPACE and NACOS_EVENT in its environment: ADDED, MODIFIED
or DELETED when nothing else happened, else changed. One word is a line for sh, several are a
program and its arguments. Commands for one service follow each other, changes that come
meanwhile are merged; those for others run beside it, at most 16 at once. When one fails, a line
on stderr says so and the subscription goes on.

TERM and INT end it, exit code 0. A command that runs then gets TERM, too, and KILL when it has
not ended after 3 seconds.]],
}

function subscribe.setup(parser)
  parser:argument("services"):args("+"):argname("SERVICE"):description("Names of services")
  return {
    parser:option("--cluster"):argname("NAME[,NAME…]"):description("Only instances of these clusters"),
    parser:option("--interval"):argname("SECONDS"):convert(instance.number):description(
      "Longest time between two questions beside the server's pushes (default 7)"),
    parser:option("--max-drop"):argname("SHARE"):convert(instance.number):description(
      "More than this share of the instances gone at once is not believed yet (0 to 1; default: all of them)"),
    parser:option("--hold"):argname("SECONDS"):convert(instance.number):description(
      "How long the missing instances are kept then (default 10; 0: not at all)"),
    parser:flag("--json"):description("One JSON object per change"),
    parser:flag("--exec"):description("Run CMD… at every change; all words after this one belong to it"),
  }
end

local EVENTS = { { "ADDED", "added" }, { "MODIFIED", "modified" }, { "DELETED", "removed" } }

local function tell(change, as_json)
  local lines = {}
  for _, event in ipairs(EVENTS) do
    for _, item in ipairs(change[event[2]]) do
      lines[#lines + 1] = as_json
        and formats.json(instance.object(item, change.namespace, { event = event[1], source = change.source, time = os.time() }))
        or table.concat({ event[1], instance.fields(item) }, "\t")
    end
  end
  if #lines > 0 then
    common.write(table.concat(lines, "\n"), "\n")
  end
end

---What happened, in a word; nil: nothing that the command gets to see.
local function event_of(change)
  local name
  for _, event in ipairs(EVENTS) do
    if #change[event[2]] > 0 then
      name = name and "changed" or event[1]
    end
  end
  return name or (change.first and "changed" or nil)
end

local function healthy(change)
  local list = {}
  for _, item in ipairs(change.instances) do
    if item.healthy and item.enabled then
      list[#list + 1] = instance.object(item, change.namespace)
    end
  end
  return formats.json(list) .. "\n"
end

local function merge(old, new)
  if old.env.NACOS_EVENT ~= new.env.NACOS_EVENT then
    new.env.NACOS_EVENT = "changed"
  end
end

function subscribe.run(args, settings)
  return commands.follow(args, settings, function(client, told, runner)
    local function on_change(change)
      local event = event_of(change)
      if told(change.service_name, change, tell, args.json) and args.exec and event then
        runner:run(change.service_name, {
          env = {
            NACOS_SERVICE = change.service_name, NACOS_GROUP = change.group_name, NACOS_NAMESPACE = change.namespace,
            NACOS_EVENT = event,
          },
          input = healthy(change),
        }, merge)
      end
    end
    for _, service in ipairs(args.services) do
      common.call(client, "watch_service", service, {
        group_name = settings.group, clusters = args.cluster, healthy_only = false, interval = args.interval,
        max_drop = args.max_drop, hold = args.hold,
      }, on_change)
    end
  end)
end

return subscribe
