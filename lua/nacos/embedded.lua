--- The embedded server: a Nacos of the 2.5 kind for configurations, services and login, in memory, for development, demos and tests.
-- Not a production server: one process, nothing on disk, no cluster. It is part of the `lunacos` executable only.

local core = require "nacos.embedded_core"

local embedded = {}

---@class nacos.EmbeddedOptions
---@field host string|nil         # address or name to listen on; default "127.0.0.1"
---@field port integer|nil        # 0: any free port; default 8848
---@field context_path string|nil # default "/nacos"
---@field username string|nil     # with a user every call needs a valid token; default: open to everybody
---@field password string|nil     # of that user
---@field password_file string|nil # instead of password: a file whose first line it is
---@field token_ttl integer|nil   # seconds a token is good for; default 18000
---@field lag number|nil          # seconds until readers and pollers see a publish or removal, as on a real server (0.1); default 0
---@field push_delay number|nil   # seconds until lists and pushes show a change of instances; default 0.5, as on a real server
---@field tls_cert string|nil     # PEM file: serve HTTPS
---@field tls_key string|nil      # PEM file, the key of tls_cert
---@field tls_ca string|nil       # PEM file: only clients with a certificate of this CA get in
---@field faults boolean|nil      # serve /__lunacos/ too, by which tests inject faults and see the requests; default false
---@field version string|nil      # the version it claims to be; default "3.1.0", or "2.5.1" when it does not speak v3
---@field api string|nil          # what it speaks, comma separated; default "v1,v3,grpc"
---@field grpc_port integer|nil   # for gRPC; default: port + 1000, as clients expect it

local KINDS = {
  host = "string", port = "integer", context_path = "string", faults = "boolean", lag = "number", push_delay = "number",
  version = "string", username = "string", password = "string", password_file = "string", token_ttl = "integer",
  tls_cert = "string", tls_key = "string", tls_ca = "string", api = "string", grpc_port = "integer",
}

local APIS = { v1 = true, v3 = true, grpc = true }

---What is wrong with the option `api`.
local function api_problem(api)
  for name in (api .. ","):gmatch("([^,]*),") do
    if not APIS[name] then
      return ("option 'api' must be some of v1, v3, grpc, comma separated, got '%s'"):format(name)
    end
  end
end

local function is_a(kind, value)
  if kind == "integer" then
    return type(value) == "number" and value % 1 == 0
  end
  return type(value) == kind
end

---What is wrong with the options, in words; nil when they are fine.
local function complaint(options)
  if type(options) ~= "table" then
    return "options must be a table, got " .. type(options)
  end
  for name, value in pairs(options) do
    local kind = KINDS[name]
    if not kind then
      return "unknown option '" .. tostring(name) .. "'"
    elseif not is_a(kind, value) then
      return ("option '%s' must be %s %s, got %s"):format(name, kind:find("^[aeiou]") and "an" or "a", kind, tostring(value))
    end
  end
  local port, ttl, lag, path = options.port or 0, options.token_ttl or 1, options.lag or 0, options.context_path or "/"
  local delay, bad_api = options.push_delay or 0, options.api and api_problem(options.api)
  if port < 0 or port > 65535 then
    return "option 'port' must be 0 to 65535, got " .. port
  elseif options.grpc_port and (options.grpc_port < 1 or options.grpc_port > 65535) then
    return "option 'grpc_port' must be 1 to 65535, got " .. options.grpc_port
  elseif bad_api then
    return bad_api
  elseif ttl < 1 then
    return "option 'token_ttl' must be at least 1 second, got " .. ttl
  elseif not (lag >= 0 and lag <= 3600) then
    return "option 'lag' must be 0 to 3600 seconds, got " .. lag
  elseif not (delay >= 0 and delay <= 3600) then
    return "option 'push_delay' must be 0 to 3600 seconds, got " .. delay
  elseif path ~= "" and (path:sub(1, 1) ~= "/" or path:find("[?#%s]")) then
    return "option 'context_path' must start with '/', got " .. path
  elseif options.username == "" or (options.username and not (options.password or options.password_file)) then
    return "a username needs a password or password_file, and may not be empty"
  elseif (options.tls_cert == nil) ~= (options.tls_key == nil) then
    return "options 'tls_cert' and 'tls_key' belong together"
  elseif options.tls_ca and not options.tls_cert then
    return "option 'tls_ca' needs 'tls_cert' and 'tls_key'"
  end
end

---First line of a file.
---@return string|nil text
---@return string|nil message
local function first_line(path)
  local file, why = io.open(path, "r")
  if not file then
    return nil, "cannot read the password file: " .. why
  end
  local line = file:read("l")
  file:close()
  if not line or line == "" then
    return nil, "the password file " .. path .. " is empty"
  end
  return (line:gsub("\r$", ""))
end

---Serve until SIGTERM or SIGINT. Prints one line with the address on standard output when it listens.
---Raises on wrong options.
---@param options nacos.EmbeddedOptions|nil
---@return true|nil ok
---@return string|nil message # why it could not start
function embedded.serve(options)
  options = options or {}
  local wrong = complaint(options)
  if wrong then
    error("nacos.embedded.serve: " .. wrong, 2)
  end
  local copy = { port = 8848, push_delay = 0.5 }
  for name, value in pairs(options) do
    copy[name] = value
  end
  copy.context_path = copy.context_path and copy.context_path:gsub("/+$", "") or nil
  for _, name in ipairs { "port", "grpc_port", "token_ttl" } do
    copy[name] = copy[name] and math.floor(copy[name])
  end
  if copy.password_file then
    local password, why = first_line(copy.password_file)
    if not password then
      return nil, why
    end
    copy.password, copy.password_file = password, nil
  end
  return core.serve(copy)
end

return embedded
