--- lunacos watch: tell every change of some configurations.

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
per change instead, with the content.

--exec must come last. The command gets the content on stdin and NACOS_DATA_ID, NACOS_GROUP,
NACOS_NAMESPACE, NACOS_MD5 and NACOS_EVENT in its environment; one word is a line for sh,
several are a program and its arguments. Changes that come while it runs are merged. When it
fails, a line on stderr says so and the watch goes on.

TERM and INT end the watch, exit code 0, as soon as a command that runs has ended.]],
}

function watch.setup(parser)
  parser:argument("data_ids"):args("+"):argname("DATA_ID"):description("Data ids of configurations")
  return {
    parser:flag("--json"):description("One JSON object per change"),
    parser:flag("--exec"):description("Run CMD… at every change; all words after this one belong to it"),
  }
end

---The shell line that runs `words` with what is known about the change in its environment.
local function command_line(words, change, event)
  local line = {}
  local environment = {
    NACOS_DATA_ID = change.data_id, NACOS_GROUP = change.group, NACOS_NAMESPACE = change.namespace or "",
    NACOS_MD5 = change.md5 or "", NACOS_EVENT = event,
  }
  for _, name in ipairs(formats.sorted_keys(environment)) do
    line[#line + 1] = name .. "=" .. common.quote(environment[name])
  end
  line = { "export " .. table.concat(line, " ") .. ";" }
  if #words == 1 then
    line[2] = words[1]
  else
    line[2] = "exec"
    for _, word in ipairs(words) do
      line[#line + 1] = common.quote(word)
    end
  end
  return table.concat(line, " ")
end

local function execute(words, change, event)
  local pipe, problem = io.popen(command_line(words, change, event), "w")
  if not pipe then
    return common.note("cannot run the command for '" .. change.data_id .. "': " .. problem)
  end
  pipe:setvbuf("no") -- so that close() has nothing left to write, and its result is the command's
  pipe:write(change.content or "") -- a command that does not read all of it has its reasons
  local _, how, code = pipe:close()
  if how == "signal" then
    common.note(("the command for '%s' was ended by signal %d"):format(change.data_id, code))
  elseif how == "exit" and code ~= 0 then
    common.note(("the command for '%s' failed: exit code %d"):format(change.data_id, code))
  end
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
  if args.exec and #args.rest == 0 then
    common.fail(common.USAGE, "--exec needs a command after it")
  end
  local nacos = require("nacos")
  local failure
  local client = common.open(common.connection(settings, "warn"), function(err)
    if type(err) == "table" and err.code == "forbidden" then -- anything else is in the log, and it goes on trying
      failure = failure or select(2, pcall(common.check, nil, err))
      nacos.stop()
    end
  end)
  local function on_change(change)
    local event = change.content == nil and "deleted" or "changed"
    local ok, problem = pcall(tell, change, event, args.json)
    if not ok then -- stdout is gone
      failure = failure or problem
      nacos.stop()
    elseif args.exec then
      execute(args.rest, change, event)
    end
  end
  nacos.on_signal("TERM", nacos.stop)
  nacos.on_signal("INT", nacos.stop)
  nacos.run(function()
    for _, data_id in ipairs(args.data_ids) do
      common.call(client, "add_config_watcher", data_id, settings.group, on_change)
    end
  end)
  client:close()
  if failure then
    error(failure, 0)
  end
  return common.DONE
end

return watch
