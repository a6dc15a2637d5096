--- What the specs of the choice between protocols share.

local json = require "cjson.safe"
local grpc_lab = require "grpc_lab"
local lab = require "lab"
local support = require "support"

local dialect_lab, servers = {}, {}

---A server that lives until close().
function dialect_lab.serve(...)
  local server = support.start_server { ... }
  servers[#servers + 1] = server
  return server
end

---A client that finds out what to speak.
function dialect_lab.client(server, opts)
  local all = { protocol = "auto", no_snapshot = true, poll_interval = 0.2 }
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  return lab.client(server, all)
end

---Its status, when it speaks this.
function dialect_lab.speaks(client, protocol, seconds)
  return support.eventually(function()
    local status = client:status()
    return status.protocol == protocol and status, json.encode(status)
  end, seconds)
end

function dialect_lab.until_last(seen, content)
  grpc_lab.until_last(seen, content, 10)
end

function dialect_lab.close()
  lab.close_all()
  for _, server in ipairs(servers) do
    server:stop()
  end
  servers = {}
end

return dialect_lab
