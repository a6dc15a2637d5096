--- lunacos set: publish a configuration.

local common = require("nacos.cli.common")

local set = {
  summary = "Publish a configuration from a file or from stdin.",
  usage = "set DATA_ID [FILE|-] [-g GROUP] [--type TYPE] [--cas MD5] [--wait]",
  help = [[
Examples:
  lunacos set app.yaml app.yaml --type yaml
  echo '{"on": true}' | lunacos set flags.json --wait
  lunacos set app.yaml new.yaml --cas "$(lunacos get app.yaml | md5sum | cut -c1-32)"

The content is published as it is, a newline at its end included. A server answers before
readers see the new content; --wait returns when a read shows it.]],
}

function set.setup(parser)
  parser:argument("data_id"):description("The configuration's data id")
  parser:argument("file"):args("?"):description("File with the content; - or nothing: stdin")
  return {
    parser:option("--type"):argname("TYPE"):description(
      "text, json, xml, yaml, html, properties or toml (default: the type it has)"),
    parser:option("--cas"):argname("MD5"):description("Only if the present content has this md5; else exit code 5"),
    parser:flag("--wait"):description("Return when a read shows the new content"),
    parser:option("--desc"):argname("TEXT"):description("Description"),
    parser:option("--tags"):argname("TAGS"):description("Tags, comma separated"),
    parser:option("--app-name"):argname("NAME"):description("Application the configuration belongs to"),
  }
end

function set.run(args, settings)
  local content = common.read_input(args.file)
  local client = common.client(settings)
  common.call(client, "publish_config", args.data_id, settings.group, content, {
    type = args.type, cas_md5 = args.cas, wait = args.wait, desc = args.desc, tags = args.tags, app_name = args.app_name,
  })
  client:close()
  return common.DONE
end

return set
