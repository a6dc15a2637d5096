--- A client whose way changes, from HTTP to gRPC and back: instances, subscriptions and watches go over without a gap.

local grpc_lab = require "grpc_lab"
local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

local eventually = support.eventually

describe("a change of the way", function()
  local server, client, other

  before_each(function()
    server = support.start_server { "--push-delay", "0", "--claim", "2.5.1" } -- which sends no SetupAck: it is asked for its health
    other = lab.client(server) -- over HTTP
  end)
  after_each(function()
    lab.close_all()
    server:stop()
  end)

  local function becomes(name, wanted)
    grpc_lab.until_ports(other, name, wanted)
  end

  local function add(name, port, more)
    local args = { service_name = name, ip = "10.0.0.1", port = port }
    for key, value in pairs(more or {}) do
      args[key] = value
    end
    return client:add_naming_instance(args)
  end

  it("keeps instances, subscriptions and watches", function()
    local name = "moved"
    server:call("POST", "grpc", '{"port":false}')
    client = lab.client(server, { protocol = "auto" })
    assert(add(name, 1, { heartbeat_interval = 0.5 }))
    assert(add(name, 2, { heartbeat_interval = 0.5 }))
    assert.equal("v1", client:status().protocol)
    local seen = {}
    client:watch_service(name, {}, function(change)
      seen.count = #change.instances
    end)
    local notes, note = lab.recorder()
    assert(other:publish_config(name, "G", "old"))
    client:add_config_watcher(name, "G", note)
    eventually(function()
      return seen.count == 2 and notes.n == 1, ("%s instances, %d values"):format(seen.count, notes.n)
    end)
    eventually(function()
      return #lab.requests(server, "/instance/beat") > 0, "no beat"
    end)

    server:faults {
      { path = "/nacos/v1/ns/instance/beat", status = 503, times = 3 }, -- after an outage it looks for gRPC,
      { path = "HealthCheckRequest", code = 300 }, -- which is not ready yet
    }
    server:call("POST", "grpc", '{"port":true}')
    eventually(function()
      return #lab.requests(server, "HealthCheckRequest") > 0, "it does not look"
    end, 10)
    server:clear_requests()
    server:faults { path = "/nacos/v1/ns/instance", method = "POST", delay = 2.5 }
    local added
    nacos.spawn(function() -- over HTTP, and answered when there is gRPC
      added = assert(add(name, 4, { timeout = 10 }))
    end)
    eventually(function()
      return #lab.requests(server, "/v1/ns/instance", "POST") == 1, "not registered"
    end)
    server:clear_faults()
    eventually(function()
      return client:status().protocol == "grpc", "still " .. client:status().protocol
    end)
    assert.is_nil(added)
    eventually(function()
      return #lab.requests(server, "/v1/ns/instance", "DELETE") == 3, "not deregistered over HTTP"
    end)
    becomes(name, "1 2 4")
    server:clear_requests()
    eventually(function()
      return server:call("GET", "grpc").listened > 0
    end)
    assert(other:publish_config(name, "G", "new"))
    eventually(function()
      return notes.n == 2 and notes[2] == "new", "the watch was told nothing"
    end)
    assert.equal("push", notes.last.via)
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 3 })
    eventually(function()
      return seen.count == 4, seen.count .. " instances"
    end)
    assert.equal(0, #lab.requests(server, "/instance/beat"))

    server:call("POST", "grpc", '{"port":false}')
    server:call("POST", "grpc", '{"close":true}')
    eventually(function()
      return client:status().protocol == "v1", "still " .. client:status().protocol
    end, 10)
    becomes(name, "1 2 3 4")
    eventually(function()
      return #lab.requests(server, "/instance/beat") > 1, "no beats"
    end)
    assert(other:publish_config(name, "G", "newer"))
    eventually(function()
      return notes[notes.n] == "newer", "the watch was told nothing"
    end)
    assert.equal("poll", notes.last.via)
    assert.equal(4, seen.count)
  end)
end)
