--- lunacos services: list services.

local common = require("nacos.cli.common")

local services = {
  summary = "List the services of a group, all pages of them.",
  usage = "services [PATTERN] [-g GROUP] [--json]",
  help = [[
Examples:
  lunacos services
  lunacos services 'web*' -g prod --json

A line has the service's name. Exit code 1: a PATTERN was given and nothing matches.]],
}

function services.setup(parser)
  parser:argument("pattern"):args("?"):description("Name, with * for any characters (default: all)")
  return { parser:flag("--json"):description("One JSON object per service") }
end

---What a pattern with * is in Lua.
local function lua_pattern(pattern)
  return "^" .. pattern:gsub("%p", "%%%0"):gsub("%%%*", ".*") .. "$"
end

function services.run(args, settings)
  local client = common.client(settings)
  local json = require("nacos.formats").json
  local wanted = args.pattern and lua_pattern(args.pattern) or ""
  local found, seen, page, answer = 0, 0, 1
  repeat
    answer = common.call(client, "list_services", { group_name = settings.group, page = page, page_size = 500 })
    for _, name in ipairs(answer.items) do
      if name:find(wanted) then
        found = found + 1
        common.write(args.json and json({
          service_name = name, group_name = settings.group, namespace = settings.namespace or "",
        }) or name, "\n")
      end
    end
    seen, page = seen + #answer.items, page + 1
  until #answer.items == 0 or seen >= answer.total
  client:close()
  return (found == 0 and args.pattern) and common.NOT_FOUND or common.DONE
end

return services
