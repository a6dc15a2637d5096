--- The server that this suite runs against: the embedded one, or a real Nacos that scripts/test started, and the protocol to speak to it.
--
-- environment (scripts/test --real sets it; without any, the embedded server without a user):
--   LUNACOS_TARGET        embedded, 2.3.2, 3.1.0 or 3.1.0-no-v1, with "-auth" behind it when the server wants a token
--   LUNACOS_PROTOCOL      what clients speak: v1, v3, grpc or auto (the default)
--   LUNACOS_PROTOCOLS     all that the server is tested with, for tests that let several clients go through the same
--   LUNACOS_SERVER        URL of a server that runs already (the embedded one is started here)
--   LUNACOS_SERVER_HOME   its folder: holds nacos.pid and password
--   LUNACOS_RESTART       command that starts it again there, and ends when it can be used
--
--   target.name .version .auth .real .url .port .home     .username .password (of the administrator, nil without auth)
--   target.protocol .protocols     .serves_v1 .serves_v3 .v3_only (a part of v1 or all of it has gone)
--   target.client(opts) -> client     as the administrator; target.close_all() after the test closes it
--   target.request(method, path, params) -> status, body      one raw HTTP request, with the administrator's token
--   target.content(data_id, group, namespace) -> what the server's read path shows right now, or nil
--   target.kill9() .pause() .resume()    target.restart() -> process that ends when the server can be used again; pass it to target.back()
--   target.publish(client, …)         publish_config that bears with the database of a real server
--   target.soon([protocol]) -> seconds in which a change has reached a watch
--   target.group() -> a group name that no other test uses
--   target.instance(service, ip, port, more)      registers an instance by hand: nobody beats for it
--   target.threshold(service, value)              sets the protectThreshold of a service that exists
--   target.watch(client, data_id, group) -> list of changes, growing; .cb is the callback

local json = require "cjson.safe"
local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local target = {}
target.name = os.getenv("LUNACOS_TARGET") or "embedded"
target.version = target.name:gsub("%-auth$", "")
target.serves_v1 = target.version ~= "3.1.0-no-v1"
target.serves_v3 = target.version ~= "2.3.2"
target.v3_only = target.version:match("^3") ~= nil -- what administrators do has moved there
target.protocol = os.getenv("LUNACOS_PROTOCOL") or "auto"
target.protocols = {}
for word in (os.getenv("LUNACOS_PROTOCOLS") or target.protocol):gmatch("%w+") do
  target.protocols[#target.protocols + 1] = word
end
target.auth = target.name:match("%-auth$") ~= nil
target.real = target.version ~= "embedded"
target.username = target.auth and "nacos" or nil
target.password = target.auth and "nacos" or nil

local folder = support.tmpdir()
local home = os.getenv("LUNACOS_SERVER_HOME") or folder
target.home = home
target.password_file = home .. "/password"
support.write(target.password_file, "nacos")

-- ---- the server ----------------------------------------------------------------------------------------------------------

local embedded

local function start_embedded(port)
  local args = { "--lag", "0.05" } -- a real server answers a publish before its readers see it, too
  if target.auth then
    for _, word in ipairs { "--username", "nacos", "--password-file", target.password_file, "--token-ttl", "5" } do
      args[#args + 1] = word
    end
  end
  if port then
    args[#args + 1], args[#args + 2] = "--port", tostring(port)
  end
  embedded = support.start_server(args)
  return embedded
end

if target.real then
  target.url = assert(os.getenv("LUNACOS_SERVER"), "LUNACOS_SERVER must name the running " .. target.name)
else
  target.url = start_embedded().url
end
target.port = tonumber(target.url:match(":(%d+)"))

---Send the server a signal. @return its pid
local function signal(name)
  local pid = target.real and support.read(home .. "/nacos.pid"):match("%d+") or embedded.pid
  os.execute(("kill -%s %s"):format(name, pid))
  return pid
end

function target.pause()
  support.await_stop(signal("STOP"))
end

function target.resume()
  signal("CONT")
end

function target.kill9()
  if not target.real then
    embedded:kill9()
    return
  end
  local pid = signal("KILL")
  support.eventually(function() -- until nothing of it listens any more
    return support.http("GET", target.url) == 0, "pid " .. pid .. " still answers"
  end)
end

---@return table|nil process
function target.restart()
  if target.real then
    return support.start(os.getenv("LUNACOS_RESTART"), { cwd = support.root })
  end
  start_embedded(target.port)
end

function target.back(process)
  if process then
    local code = process:wait(120)
    assert(code == 0, "the server did not come back: " .. process:stderr())
  end
end

---To be called when the last test is over.
function target.stop()
  if embedded then
    embedded:stop()
  end
end

-- ---- raw HTTP, by the curl program ---------------------------------------------------------------------------------------

local function encode(params)
  local parts = {}
  for name, value in pairs(params) do
    parts[#parts + 1] = name .. "=" .. tostring(value):gsub("[^%w%-_%.~]", function(c)
      return ("%%%02X"):format(c:byte())
    end)
  end
  return table.concat(parts, "&")
end

---One request without a token. GET, DELETE and all of naming carry the parameters in the query, other POST and PUT in the body.
---@return integer status
---@return string body
function target.raw(method, path, params, headers)
  local url, body = target.url .. path, nil
  if method == "GET" or method == "DELETE" or path:find("/ns/", 1, true) then
    url = url .. "?" .. encode(params or {})
  else
    body = encode(params or {})
  end
  return support.http(method, url, body, headers)
end

---@return integer status
---@return string token or what the server said
function target.login(username, password)
  local status, body = target.raw("POST", "/v1/auth/login", { username = username, password = password })
  local answer = json.decode(body)
  return status, type(answer) == "table" and answer.accessToken or body
end

function target.request(method, path, params, headers)
  headers = headers or {}
  if target.auth then
    local status, token = target.login(target.username, target.password)
    assert(status == 200, "login as administrator: " .. status .. " " .. token)
    headers.accessToken = token
  end
  return target.raw(method, path, params, headers)
end

function target.content(data_id, group, namespace)
  if target.serves_v1 then
    local status, body = target.request("GET", "/v1/cs/configs", { dataId = data_id, group = group, tenant = namespace })
    assert(status == 200 or (status == 404 and body:match("^config data not exist")), status .. " " .. body)
    return status == 200 and body or nil
  end
  local params = { dataId = data_id, groupName = group, namespaceId = namespace }
  local status, body = target.request("GET", "/v3/client/cs/config", params)
  local answer = json.decode(body)
  assert(status == 200 and (answer.code == 0 or answer.code == 20004), status .. " " .. body)
  return answer.code == 0 and answer.data.content or nil
end

target.snapshot_base = folder .. "/snapshot"

---The database in a real server now and then cannot do two inserts at once, and says 500: that is no matter of the client.
local function busy(err)
  return target.real and err and tostring(err):find("PreparedStatementCallback", 1, true)
end

---client:publish_config, for tests that publish from several tasks.
---@return true|nil
---@return nacos.Error|nil
function target.publish(client, ...)
  local ok, err
  for _ = 1, 5 do
    ok, err = client:publish_config(...)
    if not busy(err) then
      break
    end
  end
  return ok, err
end

-- ---- clients -------------------------------------------------------------------------------------------------------------

local clients = {}

---@param opts table|nil # on top of the usual; `false` takes one of those away
function target.client(opts)
  local all = {
    server_addresses = target.url:match("^(.*)/nacos$"),
    username = target.username, password = target.password,
    snapshot_base = target.snapshot_base, failover_base = folder .. "/failover",
    log_level = "OFF",
    protocol = target.protocol,
    poll_interval = 1, -- where watches work by looking
    default_timeout = 15, -- a machine at work; the tests of time-outs say their own
  }
  for name, value in pairs(opts or {}) do
    if value == false and all[name] ~= nil then
      all[name] = nil
    else
      all[name] = value
    end
  end
  local client = nacos.client(all)
  clients[#clients + 1] = client
  return client
end

function target.close_all()
  for i = #clients, 1, -1 do
    clients[i]:close()
    clients[i] = nil
  end
end

---A real server tells of a change after 0.1 s; a poll that went unnoticed would take 29. Over v3 a key is looked at every second (see
---client()).
function target.soon(protocol)
  return (protocol or target.protocol) == "v3" and 4 or 2
end

local groups = 0

function target.group()
  groups = groups + 1
  return ("g%d-%d-%d"):format(groups, os.time(), uv.os_getpid()) -- files, and one file in several protocols, run beside each other
end

---@param more table|nil # further parameters, as the server names them
function target.instance(service, ip, port, more)
  local params = { serviceName = service, ip = ip, port = port }
  for name, value in pairs(more or {}) do
    params[name] = value
  end
  local path = target.serves_v1 and "/v1/ns/instance" or "/v3/client/ns/instance"
  local status, body = target.request("POST", path, params)
  assert(status == 200 and (body == "ok" or body:match('"code":0')), "register by hand: " .. status .. " " .. body)
end

function target.threshold(service, value)
  local path = target.v3_only and "/v3/admin/ns/service" or "/v1/ns/service"
  local status, body = target.request("PUT", path, { serviceName = service, protectThreshold = value })
  assert(status == 200, "set the threshold: " .. status .. " " .. body)
end

---Watch an item; what comes is appended to the result.
function target.watch(client, data_id, group)
  local changes = {}
  changes.cb = function(change)
    changes[#changes + 1] = change
  end
  assert(client:add_config_watcher(data_id, group, changes.cb))
  return changes
end

---Wait until the newest change has this content (nil: deleted).
function target.arrives(changes, content, seconds)
  return support.eventually(function()
    local last = changes[#changes]
    return last ~= nil and last.content == content,
      ("the newest of %d changes is %s"):format(#changes, last and last.content)
  end, seconds or 5)
end

return target
