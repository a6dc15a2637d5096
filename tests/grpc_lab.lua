--- What the specs of the client over gRPC share.

local json = require "cjson.safe"
local lab = require "lab"
local support = require "support"

local grpc_lab = {}

---A client that speaks nothing else.
function grpc_lab.client(server, opts)
  local all = { protocol = "grpc", no_snapshot = true }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return lab.client(server, all)
end

---Hurt the connections of a server.
function grpc_lab.hurt(server, how)
  return server:call("POST", "grpc", json.encode(how))
end

function grpc_lab.connections(server)
  return #server:call("GET", "grpc").connections
end

---How many keys clients have named to a server.
function grpc_lab.listened(server)
  return server:call("GET", "grpc").listened
end

---The messages of this type that a server saw.
function grpc_lab.messages(server, kind)
  local found = {}
  for _, request in ipairs(server:requests().requests) do
    if request.method == "GRPC" and request.path == kind then
      found[#found + 1] = json.decode(request.body)
    end
  end
  return found
end

---A watched item whose value is known and which the server knows of.
function grpc_lab.watched(client, server, data_id)
  local seen, note = lab.recorder()
  local before = grpc_lab.listened(server)
  assert(client:add_config_watcher(data_id, "G", note))
  support.eventually(function()
    return grpc_lab.listened(server) > before
  end)
  return seen, note
end

function grpc_lab.until_last(seen, content, seconds)
  support.eventually(function()
    return seen[seen.n] == content, ("the last of %d is %s"):format(seen.n, tostring(seen[seen.n]))
  end, seconds)
end

---Until these are the ports of a service's instances, as this client is told them.
function grpc_lab.until_ports(client, name, wanted, seconds)
  local seen
  support.eventually(function()
    local list = {}
    for _, host in ipairs(assert(client:list_naming_instance(name))) do
      list[#list + 1] = math.tointeger(host.port)
    end
    table.sort(list)
    seen = table.concat(list, " ")
    return seen == wanted, ("%s: %s instead of %s"):format(name, seen, wanted)
  end, seconds)
end

return grpc_lab
