--- What the commands share: the connection options, the client they make, output, and how a failure becomes an exit code.

local common = {}

--- Exit codes; `lunacos --help` and the README list them.
common.DONE, common.NOT_FOUND, common.USAGE, common.UNAVAILABLE, common.FORBIDDEN, common.CONFLICT, common.REFUSED =
  0, 1, 2, 3, 4, 5, 6

common.EXIT_CODES = [[
Exit codes: 0 done, 1 not found, 2 usage, 3 unavailable (no server answered), 4 forbidden,
5 conflict (--cas), 6 refused for another reason]]

local CODE_OF = {
  not_found = common.NOT_FOUND, invalid = common.USAGE, unavailable = common.UNAVAILABLE, forbidden = common.FORBIDDEN,
  conflict = common.CONFLICT,
}

---Leave the command: main() prints the message on stderr and exits with the code.
---@param code integer
---@param message string|nil # nil: exit without a word
function common.fail(code, message)
  error({ exit = code, message = message }, 0)
end

---Pass a result on, or leave the command with the exit code for its error.
function common.check(value, err, ...)
  if value == nil then
    common.fail(CODE_OF[type(err) == "table" and err.code] or common.REFUSED, tostring(err))
  end
  return value, err, ...
end

-- What the client calls an argument, on the command line.
local WORDS = {
  data_id = "data id", cas_md5 = "--cas", app_name = "--app-name", service_name = "service", group_name = "--group",
  cluster_name = "--cluster", clusters = "--cluster", ip = "--ip", port = "--port", weight = "--weight", metadata = "--meta",
  heartbeat_interval = "--interval", interval = "--interval", hold = "--hold", max_drop = "--max-drop",
}

local told_why = setmetatable({}, { __mode = "k" }) -- clients of which that is wanted -> what was told last

---With --verbose: tell which protocol a client uses and why, unless that was told before.
---@param client nacos.Client
function common.tell_protocol(client)
  local status = told_why[client] and client:status()
  local why = status and status.protocol and status.protocol_why
  if why and why ~= told_why[client] then
    told_why[client] = why
    common.note(why)
  end
end

---Call a method of the client. What the client's own checks refuse is a wrong command line: leave the command.
---@return any ... # what the method returned
function common.try(client, method, ...)
  local results = table.pack(pcall(client[method], client, ...))
  common.tell_protocol(client)
  if results[1] then
    return table.unpack(results, 2, results.n)
  end
  local argument, reason = tostring(results[2]):match("^.-bad argument '(.-)' to '.-' %((.*)%)$")
  if not argument then
    error(results[2], 0)
  end
  local first = ...
  local named = argument == "data_id" and first
    or argument == "service_name" and (type(first) == "table" and first.service_name or first)
  local subject = named and (" '%s'"):format(tostring(named)) or ""
  reason = reason:gsub("; remove_config deletes the item", "; `lunacos rm` deletes the configuration")
  common.fail(common.USAGE, ("bad %s%s: %s"):format(WORDS[argument] or argument, subject, reason))
end

---The same; leave the command when it fails, too.
function common.call(client, method, ...)
  return common.check(common.try(client, method, ...))
end

---Write to stdout, at once. A reader that has gone ends the command quietly.
function common.write(...)
  local ok, problem, number = io.stdout:write(...)
  if ok then
    ok, problem, number = io.stdout:flush()
  end
  if not ok then
    local broken_pipe = number == 32
    common.fail(broken_pipe and common.DONE or common.REFUSED, not broken_pipe and "cannot write the output: " .. problem or nil)
  end
end

---Call fn(name) at every TERM and INT, and HUP unless it is ignored (nohup). Some supervisors send each twice.
function common.on_end(fn)
  local nacos = require("nacos")
  for _, name in ipairs { "TERM", "INT", not common.ignores_hangup() and "HUP" or nil } do
    nacos.on_signal(name, function() fn(name) end, true)
  end
end

---True when the program was started to outlive its terminal.
function common.ignores_hangup()
  local status <close> = io.open("/proc/self/status", "r")
  local ignored = status and status:read("a"):match("SigIgn:%s*(%x+)")
  return ignored ~= nil and tonumber(ignored:sub(-1), 16) % 2 == 1 -- HUP is signal 1
end

---What the words after --exec or -- are: a program and its arguments, one word alone a line for sh.
---@param words string[]
---@return string[]|string # as nacos.process takes it
function common.command(words)
  return #words == 1 and words[1] or words
end

---A line on stderr.
function common.note(message)
  io.stderr:write("lunacos: ", message, "\n")
end

---An error with the traceback of the user's code, without what lies below it. For xpcall.
function common.traceback(err)
  if type(err) ~= "string" and not (getmetatable(err) or {}).__tostring then
    err = "(error object is a " .. type(err) .. " value)"
  end
  return (debug.traceback(tostring(err), 2):gsub("\n\t%[C%]: in function 'xpcall'\n\t[^\n]*nacos/%a+/.*$", ""))
end

---Quote for sh.
function common.quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

---A number of seconds on the command line.
function common.seconds(text)
  local number = tonumber(text)
  if not number or number ~= number or number <= 0 or number == math.huge then
    return nil, "a number of seconds is needed, not '" .. text .. "'"
  end
  return number
end

local function offset(text)
  local number = math.tointeger(tonumber(text))
  if not number then
    return nil, "a whole number is needed, not '" .. text .. "'"
  end
  return number
end

local function yes_or_no(text)
  local words = { yes = true, ["true"] = true, on = true, ["1"] = true, no = false, ["false"] = false, off = false, ["0"] = false }
  local value = words[text:lower()]
  if value == nil then
    return nil, "yes or no is needed, not '" .. text .. "'"
  end
  return value
end

-- flags, argument's name (nil: a flag without one), field of the settings, environment variable, help
local OPTIONS = {
  { "-s --server", "SERVERS", "server_addresses", "NACOS_SERVER",
    "Servers, comma separated, each [http[s]://]host[:port] (default 127.0.0.1:8848)" },
  { "--endpoint", "HOST", "endpoint", "NACOS_ENDPOINT", "Address server to ask for the list of servers instead" },
  { "-n --namespace", "ID", "namespace", "NACOS_NAMESPACE", "Namespace id (default: public)" },
  { "-g --group", "GROUP", "group", "NACOS_GROUP", "Group (default DEFAULT_GROUP)" },
  { "-u --username", "NAME", "username", "NACOS_USERNAME",
    "User; the password comes from --password-file, NACOS_PASSWORD_FILE, NACOS_PASSWORD, or is asked for" },
  { "--password-file", "FILE", "password_file", "NACOS_PASSWORD_FILE", "File that holds the password" },
  { "--ak", "KEY", "ak", "NACOS_AK", "Access key; its secret key comes from NACOS_SK" },
  { "--timeout", "SECONDS", "timeout", "NACOS_TIMEOUT", "Give up after so long (default 3)", common.seconds },
  { "--context-path", "PATH", "context_path", "NACOS_CONTEXT_PATH", "Path of the API on the server (default /nacos)" },
  { "--verify", nil, "verify", "NACOS_VERIFY", "Verify the server's certificate; --ca-file turns this on", yes_or_no },
  { "--ca-file", "FILE", "ca_file", "NACOS_CA_FILE", "Certificates to trust (PEM)" },
  { "--cert-file", "FILE", "cert_file", "NACOS_CERT_FILE", "Client certificate (PEM)" },
  { "--key-file", "FILE", "key_file", "NACOS_KEY_FILE", "Key of the client certificate" },
  { "--server-name", "NAME", "server_name", "NACOS_SERVER_NAME", "Name to expect in the server's certificate" },
  { "--snapshot-dir", "DIR", "snapshot_base", "NACOS_SNAPSHOT_DIR",
    "Keep snapshots there and use them when no server answers (default: none are written or read)" },
  { "--no-snapshot", nil, "no_snapshot", nil, "No snapshots, whatever NACOS_SNAPSHOT_DIR says" },
  { "--failover-dir", "DIR", "failover_base", "NACOS_FAILOVER_DIR", "A file there comes before the server (default: none)" },
  { "--protocol", "NAME", "protocol", "NACOS_PROTOCOL",
    "auto, grpc, v3 or v1 (default auto: gRPC where its port can be reached, else HTTP as the server has it)" },
  { "--grpc-port-offset", "N", "grpc_port_offset", "NACOS_GRPC_PORT_OFFSET",
    "The gRPC port is the server's port plus this (default 1000)", offset },
  { "--poll-interval", "SECONDS", "poll_interval", "NACOS_POLL_INTERVAL",
    "How often to look at a watched configuration where servers tell of no changes: v3 (default 5)", common.seconds },
  { "--verbose", nil, "verbose", nil, "Tell on stderr which protocol is used and why, and how each change came" },
  { "--log-level", "LEVEL", "log_level", "NACOS_LOG_LEVEL", "debug, info, warn, error or off" },
  { "--log-dir", "DIR", "log_dir", "NACOS_LOG_DIR", "Write the log there instead of stderr" },
}

---Add the connection options to a parser of argparse. What is given ends up in `given`, whichever parser saw it.
---@param hidden boolean # not in this parser's help
function common.add_options(parser, given, hidden)
  local elements = {}
  for _, option in ipairs(OPTIONS) do
    local flags, argument, field, variable, help, convert = table.unpack(option, 1, 6)
    help = help .. (variable and " [" .. variable .. "]" or "")
    local element = argument and parser:option(flags):argname(argument) or parser:flag(flags)
    element:description(help):target("given_" .. field):hidden(hidden):action(function(_, _, value)
      given[field] = argument and value or true
    end)
    if argument and convert then
      element:convert(convert)
    end
    elements[#elements + 1] = element
  end
  parser:group(hidden and "" or "Connection, before or after the command, or by the environment variable in brackets",
    table.unpack(elements))
end

---True for an option of ours that takes the following word as its value. For finding the command in a raw command line.
function common.takes_value(word)
  for _, option in ipairs(OPTIONS) do
    for flag in option[1]:gmatch("%S+") do
      if flag == word then
        return option[2] ~= nil
      end
    end
  end
  return false
end

---The settings: what was given on the command line, else in the environment, else the default.
function common.settings(given)
  local settings = {}
  for _, option in ipairs(OPTIONS) do
    local field, variable, convert = option[3], option[4], option[6]
    local value = given[field]
    if value == nil and variable then
      value = os.getenv(variable)
      if value == "" then
        value = nil
      elseif value and convert then
        local problem
        value, problem = convert(value)
        if problem then
          common.fail(common.USAGE, variable .. ": " .. problem)
        end
      end
    end
    settings[field] = value
  end
  settings.group = settings.group or "DEFAULT_GROUP"
  if not settings.server_addresses and not settings.endpoint then
    settings.server_addresses = "127.0.0.1:8848"
  end
  return settings
end

---Ask for a password on the terminal, without showing it. nil when there is no terminal.
---The shell does it all, so that its trap switches the echo on again also after ctrl-C.
local function ask_password(username)
  local terminal = io.open("/dev/tty", "r")
  if not terminal then
    return nil
  end
  terminal:close()
  local pipe = io.popen("exec </dev/tty; trap 'stty echo; echo >/dev/tty' EXIT; trap 'exit 130' INT TERM HUP; stty -echo && "
    .. "printf 'Password of %s: ' " .. common.quote(username) .. " >/dev/tty && IFS= read -r line && printf %s \"$line\"", "r")
  local password = pipe and pipe:read("a")
  if not pipe or not pipe:close() then
    common.fail(common.USAGE, "no password given")
  end
  return password
end

---The options for nacos.client(): what the settings say about the connection.
---@param settings table
---@param log_level string # when the user did not choose one
---@return nacos.Options
function common.connection(settings, log_level)
  local connection = {
    server_addresses = settings.server_addresses, endpoint = settings.endpoint, namespace = settings.namespace,
    ak = settings.ak, username = settings.username, default_timeout = settings.timeout,
    context_path = settings.context_path, verify = settings.verify, ca_file = settings.ca_file, cert_file = settings.cert_file,
    key_file = settings.key_file, server_name = settings.server_name, log_dir = settings.log_dir,
    log_level = settings.log_level or log_level,
    snapshot_base = settings.snapshot_base, no_snapshot = settings.no_snapshot or settings.snapshot_base == nil,
    protocol = settings.protocol, grpc_port_offset = settings.grpc_port_offset, poll_interval = settings.poll_interval,
    failover_base = settings.failover_base or "/dev/null", -- nothing can be below it: a file in ./nacos-data must not surprise
  }
  if settings.ak then
    connection.sk = os.getenv("NACOS_SK")
    if not connection.sk then
      common.fail(common.USAGE, "--ak needs the secret key in the environment variable NACOS_SK")
    end
  end
  if settings.username then
    if settings.password_file then
      connection.password_file = settings.password_file
    elseif os.getenv("NACOS_PASSWORD") then
      connection.password_env = "NACOS_PASSWORD"
    else
      connection.password = ask_password(settings.username)
      if not connection.password then
        common.fail(common.USAGE, "a password is needed for user '" .. settings.username
          .. "': give --password-file FILE or set NACOS_PASSWORD")
      end
    end
  end
  return connection
end

---A client, or the end of the command when the options are no good.
---@param connection nacos.Options # as common.connection() made them
---@param on_error fun(err: any, about: table)|nil
---@param verbose boolean|nil      # tell about the protocol, see common.tell_protocol
---@return nacos.Client
function common.open(connection, on_error, verbose)
  local options = { on_error = on_error }
  for name, value in pairs(connection) do
    options[name] = value
  end
  local ok, client = pcall(require("nacos").client, options)
  if not ok then
    local option, reason = tostring(client):match("bad option '(.-)' to '.-' %((.*)%)$")
    common.fail(common.USAGE, option and option .. ": " .. reason
      or (tostring(client):gsub("^[^%s:]+:%d+: ", ""):gsub(" %(in '.-'%)$", "")))
  end
  told_why[client] = verbose and "" or nil
  return client
end

---The client of a command that tells its failures itself.
function common.client(settings, on_error)
  return common.open(common.connection(settings, "off"), on_error, settings.verbose)
end

---@return string content
function common.read_input(path)
  local file, problem = io.stdin, nil
  if path and path ~= "-" then
    file, problem = io.open(path, "rb")
  end
  local content
  if file then
    content, problem = file:read("a")
  end
  if not content then
    local name = path and path ~= "-" and path or "standard input"
    common.fail(common.USAGE, "cannot read " .. name .. ": " .. tostring(problem):gsub("^" .. name:gsub("%p", "%%%0") .. ": ", ""))
  end
  return content
end

return common
