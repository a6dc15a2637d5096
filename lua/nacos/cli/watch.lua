--- lunacos watch: tell every change of some configurations.

local commands = require("nacos.cli.commands")
local common = require("nacos.cli.common")
local formats = require("nacos.formats")

local watch = {
  summary = "Tell every change of configurations, as it happens.",
  usage = "watch DATA_ID… [-g GROUP] [--json] [--exec CMD…]",
  rest = "--exec",
  help = [[
Examples:
  lunacos watch app.yaml flags.json
  lunacos watch app.yaml --json | while read -r change; do …; done
  lunacos watch nginx.conf --exec sh -c 'cat > /etc/nginx/nginx.conf && nginx -s reload'
  lunacos watch nginx.conf --exec './apply.sh --fast | tee -a apply.log'

The present value comes first, then every change. A line has the data id, the group, the event
(changed or deleted) and the md5 (- when deleted), separated by tabs. --json writes one object
per change instead, with the content. --verbose tells on stderr how each change came (gRPC push,
long poll …) and which protocol is used, and why.

--exec must come last. The command gets the content on stdin and NACOS_DATA_ID, NACOS_GROUP,
NACOS_NAMESPACE, NACOS_MD5 and NACOS_EVENT in its environment; one word is a line for sh,
several are a program and its arguments. Commands for one data id follow each other, changes
that come meanwhile are merged; those for others run beside it, at most 16 at once. When one
fails, a line on stderr says so and the watch goes on.

TERM and INT end the watch, exit code 0. A command that runs then gets TERM, too, and KILL
when it has not ended after 3 seconds.]],
}

function watch.setup(parser)
  parser:argument("data_ids"):args("+"):argname("DATA_ID"):description("Data ids of configurations")
  return {
    parser:flag("--json"):description("One JSON object per change"),
    parser:flag("--exec"):description("Run CMD… at every change; all words after this one belong to it"),
  }
end

local function tell(change, event, as_json)
  if as_json then
    common.write(formats.json({
      data_id = change.data_id, group = change.group, namespace = change.namespace or "", event = event,
      content = change.content, md5 = change.md5, type = change.type, source = change.source, time = os.time(),
    }), "\n")
  else
    common.write(table.concat({ change.data_id, change.group, event, event == "deleted" and "-" or change.md5 }, "\t"), "\n")
  end
end

function watch.run(args, settings)
  return commands.follow(args, settings, function(client, told, runner)
    local function on_change(change)
      local event = change.content == nil and "deleted" or "changed"
      if told(change.data_id, change, tell, event, args.json) then
        runner:run(change.data_id, {
          env = {
            NACOS_DATA_ID = change.data_id, NACOS_GROUP = change.group, NACOS_NAMESPACE = change.namespace or "",
            NACOS_MD5 = change.md5 or "", NACOS_EVENT = event,
          },
          input = change.content or "",
        })
      end
    end
    for _, data_id in ipairs(args.data_ids) do
      common.call(client, "add_config_watcher", data_id, settings.group, on_change)
    end
  end)
end

return watch
