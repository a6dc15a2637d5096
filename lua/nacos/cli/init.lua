--- The command line: `lunacos [OPTIONS] COMMAND …`. Each command is a module beside this file:
--
--   command.summary, command.usage, command.help      texts (help: what follows the options: examples, notes)
--   command.setup(parser) -> options                  its own arguments and options, for argparse
--   command.run(args, settings) -> exit code          settings: the connection options, see common.settings
--   command.rest = "--exec"                           everything after this word is args.rest, and is not looked at

local argparse = require("argparse")
local common = require("nacos.cli.common")

local cli = {}

local COMMANDS = { "get", "set", "rm", "ls", "watch", "register", "deregister", "instances", "services", "subscribe",
  "run", "render", "check", "diff", "test", "status", "why", "history", "rollback", "pin", "unpin", "retry", "repl", "server" }

-- Commands of which everything after the script belongs to the script, and their own options with a value.
local OF_SCRIPTS = { run = true, check = true, diff = true }
local WITH_VALUE = { ["--state"] = true, ["--deadline"] = true, ["--log-format"] = true }

local INTERNAL = 70

local function module(name)
  return require("nacos.cli." .. name)
end

local function version()
  return "lunacos " .. require("nacos")._VERSION .. " (" .. _VERSION .. ")"
end

---A flag that prints something and ends the program.
local function final_flag(parser, names, description, text)
  return parser:flag(names):description(description):action(function()
    local ok, failure = pcall(common.write, text(), "\n") -- argparse would take its error for one of the command line
    if not ok and failure.message then
      common.note(failure.message)
    end
    os.exit(ok and common.DONE or failure.exit, true)
  end)
end

local function help_flag(parser)
  return final_flag(parser, "-h --help", "Show this help", function()
    return parser:get_help()
  end)
end

---@return table parser
local function build_parser(given)
  local parser = argparse("lunacos", "Configurations and services of a Nacos server, from the shell and in Lua scripts.")
    :command_target("command")
    :require_command(true)
    :help_max_width(100)
    :usage("Usage: lunacos [OPTIONS] COMMAND …")
    :add_help(false)
    :epilog("`lunacos COMMAND --help` shows a command's own options and examples.\n\n" .. common.EXIT_CODES
      .. "\n\nA password is never taken from the command line, where every user of the machine can read it.")
  parser:group("Options", help_flag(parser), final_flag(parser, "--version", "Print the version", version))
  common.add_options(parser, given, false)
  for _, name in ipairs(COMMANDS) do
    local command = module(name)
    local sub = parser:command(name):summary(command.summary):description(command.summary):help_max_width(100)
      :usage("Usage: lunacos " .. command.usage):add_help(false)
      :epilog((command.own_options and "" or "Connection options (-s, -n, -u …): see `lunacos --help`.\n\n")
        .. command.help .. "\n\n" .. common.EXIT_CODES)
    local own = command.setup(sub)
    own[#own + 1] = help_flag(sub)
    sub:group("Options", table.unpack(own))
    if not command.own_options then
      common.add_options(sub, given, true)
    end
  end
  return parser
end

---The command's name and where it stands, by skipping the options before it.
local function find_command(arg)
  local i = 1
  while arg[i] do
    if common.takes_value(arg[i]) then
      i = i + 1
    elseif arg[i]:sub(1, 1) ~= "-" then
      return arg[i], i
    end
    i = i + 1
  end
end

---Take off what must not be read as options: the words after `command.rest`, or after a SCRIPT.
---@return string[] words, string[]|nil rest
local function split(arg)
  local words, rest = {}, nil
  local name, at = find_command(arg)
  local known = false
  for _, command in ipairs(COMMANDS) do
    known = known or command == name
  end
  local marker = known and module(name).rest
  local i = 1
  while arg[i] and not rest do
    words[i] = arg[i]
    local is_script = OF_SCRIPTS[name] and i > at and (arg[i]:sub(1, 1) ~= "-" or arg[i] == "-")
    if i > (at or 0) and marker and arg[i] == marker or is_script then
      rest = table.move(arg, i + 1, #arg, 1, {})
    elseif i > (at or 0) and (common.takes_value(arg[i]) or OF_SCRIPTS[name] and WITH_VALUE[arg[i]]) then
      i = i + 1
      words[i] = arg[i]
    end
    i = i + 1
  end
  return words, rest
end

local function run(arg)
  if #arg == 0 then
    io.stderr:write(build_parser({}):get_help(), "\n")
    return common.USAGE
  end
  local given = {}
  local words, rest = split(arg)
  local ok, args = build_parser(given):pparse(words)
  if not ok then
    local name = find_command(arg)
    local known = false
    for _, command in ipairs(COMMANDS) do
      known = known or command == name
    end
    local problem = args:gsub("\nDid you mean (.*)%?$", " (did you mean %1?)")
    common.fail(common.USAGE, problem .. "\nSee `lunacos " .. (known and name .. " " or "") .. "--help`.")
  end
  args.rest = rest
  local command = module(args.command)
  if command.own_options then
    if next(given) then
      common.fail(common.USAGE, "the connection's options are not for `lunacos " .. args.command .. "`\nSee `lunacos "
        .. args.command .. " --help`.")
    end
    return command.run(args)
  end
  return command.run(args, common.settings(given))
end

---Keeps what common.fail() raised; anything else is a bug of ours and gets a traceback.
local function handler(err)
  if type(err) == "table" and err.exit then
    return err
  end
  return { exit = INTERNAL, message = "internal error: " .. debug.traceback(tostring(err), 2) }
end

---@param arg string[] # the command line, from arg[1]
---@return integer # the exit code
function cli.main(arg)
  local ok, result = xpcall(run, handler, arg)
  if ok then
    return result
  end
  if result.message then
    common.note(result.message)
  end
  return result.exit
end

return cli
