--- lunacos get: print a configuration.

local common = require("nacos.cli.common")

local get = {
  summary = "Print a configuration, byte for byte.",
  usage = "get DATA_ID [-g GROUP] [-n NAMESPACE] [-s SERVERS] [--json]",
  help = [[
Examples:
  lunacos get app.yaml -g prod > app.yaml
  lunacos get app.yaml --json | jq -r .md5

With --snapshot-dir, the content that was read last is printed when no server answers, and a
line on stderr says so.]],
}

function get.setup(parser)
  parser:argument("data_id"):description("The configuration's data id")
  return { parser:flag("--json"):description("One JSON object: content, md5, type, source and the key") }
end

function get.run(args, settings)
  local client = common.client(settings)
  local content, source, info = common.call(client, "get_config", args.data_id, settings.group)
  if source == "snapshot" then
    common.note("no server answers: this is the snapshot of '" .. args.data_id .. "'")
  end
  if args.json then
    content = require("nacos.formats").json({
      data_id = args.data_id, group = settings.group, namespace = settings.namespace or "", content = content, source = source,
      md5 = info.md5, type = info.type,
    }) .. "\n"
  end
  client:close()
  common.write(content)
  return common.DONE
end

return get
