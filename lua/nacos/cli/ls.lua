--- lunacos ls: list configurations.

local common = require("nacos.cli.common")

local ls = {
  summary = "List configurations, all pages of them.",
  usage = "ls [PATTERN] [-g GROUP] [--json]",
  help = [[
Examples:
  lunacos ls
  lunacos ls 'app*' -g prod
  lunacos ls -g '*' --json | jq -r 'select(.type == "yaml") | .data_id'

A line has the data id, the group, the type and the md5 of the content, separated by tabs.
Exit code 1: a PATTERN was given and nothing matches. A group of * means all groups.]],
}

function ls.setup(parser)
  parser:argument("pattern"):args("?"):description("Data id, with * for any characters (default: all)")
  return { parser:flag("--json"):description("One JSON object per configuration") }
end

function ls.run(args, settings)
  local client = common.client(settings)
  local json = require("nacos.formats").json
  local found, page, pages = 0, 1
  repeat
    local answer = common.call(client, "get_configs", {
      group = settings.group ~= "*" and settings.group or nil, data_id = args.pattern, page = page, page_size = 100,
    })
    local lines = {}
    for i, item in ipairs(answer.items) do
      local md5 = item.md5 or (item.content and require("nacos").md5(item.content))
      if args.json then
        lines[i] = json({
          data_id = item.data_id, group = item.group, namespace = item.namespace, type = item.type, md5 = md5,
          app_name = item.app_name, size = item.content and #item.content,
        })
      else
        lines[i] = table.concat({ item.data_id, item.group, item.type or "", md5 or "" }, "\t")
      end
    end
    if #lines > 0 then
      common.write(table.concat(lines, "\n"), "\n")
    end
    found, page, pages = found + #lines, page + 1, answer.pages
  until page > pages or #answer.items == 0
  client:close()
  return (found == 0 and args.pattern) and common.NOT_FOUND or common.DONE
end

return ls
