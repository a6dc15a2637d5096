--- lunacos render: an agent without a script, from templates on the command line.

local agent = require("nacos.cli.agent")

local render = {
  summary = "Keep files rendered from templates, without a script.",
  usage = "render -t IN:OUT[:COMMAND]… [OPTIONS]",
  help = [[
Examples:
  lunacos render -t nginx.conf.tmpl:/etc/nginx/nginx.conf:'nginx -s reload'
  lunacos render --once -t a.tmpl:/etc/a.conf -t b.tmpl:/etc/b.conf

Each -t is one file that `lunacos run` would keep: rendered from what its template reads, written
when that changes, then COMMAND (a line for sh) is run, again until it works. --check has the
file tested before it replaces the old one: {staged} in it is the path of the new one. `lunacos
status` and the others talk to it as to any agent; exit codes are those of `lunacos run`.]],
}

---@return table|nil # source, path, reload
---@return string|nil problem
local function parse(text)
  local source, path, command = text:match("^([^:]+):([^:]+):(.+)$")
  if not source then
    source, path = text:match("^([^:]+):([^:]+)$")
  end
  if not source then
    return nil, "IN:OUT or IN:OUT:COMMAND is needed, not '" .. text .. "'"
  end
  return { source = source, path = path, reload = command }
end

function render.setup(parser)
  return {
    parser:option("-t --template"):argname("IN:OUT[:COMMAND]"):count("+"):convert(parse):description(
      "A template, the file that it becomes, and what to run then"),
    parser:option("--check"):argname("COMMAND"):description("Test each file before it replaces the old one; {staged} is its path"),
    agent.state_option(parser),
    parser:flag("--once"):description("Bring everything up to date once, then end"),
    parser:option("--deadline"):argname("SECONDS"):convert(agent.seconds):description(
      "With --once: give up after so long (default 60)"),
    parser:option("--log-format"):argname("text|json"):choices({ "text", "json" }):description("Lines of the log (default text)"),
  }
end

---What a script would declare.
local function declare(items, check)
  for _, item in ipairs(items) do
    local ok, problem = pcall(require("nacos.agent").file, {
      path = item.path, source = item.source, reload = item.reload, check = check,
    })
    if not ok then
      error(problem, 0) -- without a line: there is no script
    end
  end
end

local function absolute(path)
  return path:sub(1, 1) == "/" and path or require("luv").cwd() .. "/" .. path
end

function render.run(args, settings)
  local paths = {}
  for i, item in ipairs(args.template) do
    item.source, item.path = absolute(item.source), absolute(item.path)
    paths[i] = item.path
  end
  args.script = "render-" .. require("nacos.core").md5(table.concat(paths, "\0")):sub(1, 8)
  agent.set_globals(args, settings)
  local opts = agent.run_options(args, settings, { function()
    declare(args.template, args.check)
  end })
  opts.traceback = tostring
  return require("nacos.cli.run").serve(args, opts)
end

return render
