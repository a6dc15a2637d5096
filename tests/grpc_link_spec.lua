--- The connection of a client over gRPC: how it ends, and what comes after. Against the embedded server, whose stream can be hurt.

local lab = require "lab"
local grpc_lab = require "grpc_lab"
local nacos = require "nacos"
local support = require "support"

local client_of, hurt, connections, watched = grpc_lab.client, grpc_lab.hurt, grpc_lab.connections, grpc_lab.watched
local eventually, until_last = support.eventually, grpc_lab.until_last

describe("the connection for gRPC", function()
  local server

  before_each(function()
    server = support.start_server { "--claim", "3.1.0" }
  end)

  after_each(function()
    lab.close_all()
    server:stop()
  end)

  for _, how in ipairs { "goaway", "reset_stream", "end_stream", "close", "garbage" } do
    it("connects anew after " .. how .. ", and finds what changed meanwhile", function()
      local client, other = client_of(server), lab.client(server)
      local quiet, seen = watched(client, server, "quiet"), watched(client, server, "a")
      hurt(server, { port = false })
      hurt(server, { [how] = true })
      eventually(function()
        return not client:status().link
      end)
      assert(other:publish_config("a", "G", "meanwhile"))
      hurt(server, { port = true })
      until_last(seen, "meanwhile")
      eventually(function()
        return server:call("GET", "grpc").listened == 2
      end)
      assert(other:publish_config("a", "G", "later"))
      until_last(seen, "later")
      assert.equal(2, seen.n)
      assert.equal(0, quiet.n)
      assert.equal(1, client:status().reconnects)
    end)
  end

  it("makes a new connection when the server has forgotten this one, and asks again", function()
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    server:faults { method = "GRPC", path = "ConfigQueryRequest", code = 301, times = 1 }
    assert.equal("x", client:get_config("a", "G"))
    assert.equal(1, client:status().reconnects)
  end)

  it("goes where the server sends it", function()
    local second = support.start_server { "--claim", "3.1.0" }
    local client = client_of(server.address .. "," .. second.address)
    assert(client:remove_config("a", "G"))
    local first = connections(server) == 1 and server or second
    local other = first == server and second or server
    local seen = watched(client, first, "a")
    hurt(first, { connect_reset = other.address })
    eventually(function()
      return connections(other) == 1 and connections(first) == 0
    end)
    assert(lab.client(other):publish_config("a", "G", "there"))
    until_last(seen, "there")
    assert.equal(other.base, client:status().server)
    second:stop()
  end)

  it("does not run in circles when every connection is reset at once", function()
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    local n = 0
    eventually(function()
      if connections(server) > 0 then
        hurt(server, { connect_reset = true })
      end
      n = n + 1
      return n == 25
    end, 20)
    assert.is_true(client:status().reconnects < 15)
    assert.equal("x", client:get_config { data_id = "a", group = "G", timeout = 10 })
  end)

  it("gives a connection up that only the part for services does not know", function()
    local client, begin = client_of(server), lab.now()
    assert.is_true(client:publish_config("a", "G", "x"))
    eventually(function()
      return lab.now() - begin > 2.1 -- it cannot be that the connection is too new
    end)
    server:faults { method = "GRPC", path = "InstanceRequest", code = -401, times = 3 }
    assert(client:add_naming_instance { service_name = "s", group_name = "G", ip = "10.0.0.1", port = 1, timeout = 10 })
    assert.equal(1, client:status().reconnects)
  end)

  it("asks nothing more of a connection that is going away, and asks again on the next one", function()
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    server:faults { method = "GRPC", path = "ConfigQueryRequest", data_id = "slow", hang = true }
    nacos.spawn(function()
      client:get_config { data_id = "slow", group = "G", timeout = 4 }
    end)
    eventually(function()
      local asked = grpc_lab.messages(server, "ConfigQueryRequest")
      return asked[#asked].dataId == "slow"
    end)
    hurt(server, { goaway = true })
    local content
    eventually(function() -- it is read until an answer comes from the next connection, or none
      content = client:get_config { data_id = "a", group = "G", timeout = 5 }
      return client:status().reconnects == 1 or not content
    end)
    assert.equal("x", content)
  end)

  it("asks again what waited for its turn when the connection ended: it was never sent", function()
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    server:faults {
      { method = "GRPC", path = "ConfigQueryRequest", hang = true },
      { method = "GRPC", path = "HealthCheckRequest", hang = true },
    }
    local function checks()
      return #grpc_lab.messages(server, "HealthCheckRequest")
    end
    local before, ended, ok, err = checks(), false, nil, nil
    for i = 1, 64 do -- as many as there may be at a server; one of them ends, but for it its health is being asked for
      nacos.spawn(function()
        client:get_config { data_id = "slow" .. i, group = "G", timeout = i == 64 and 1 or 9 }
        ended = true
      end)
    end
    eventually(function()
      return ended and checks() > before
    end, 10)
    nacos.spawn(function()
      ok, err = client:publish_config("a", "G", "y", { type = "text", cas_md5 = nacos.md5("x"), timeout = 5 })
    end)
    nacos.step(0.1)
    server:clear_faults()
    hurt(server, { reset_stream = true })
    eventually(function()
      return ok or err
    end)
    assert.is_true(ok, err and err.message)
  end)

  it("goes on with the certificates that it has read, while their files are being replaced", function()
    local folder = support.tmpdir()
    assert.equal(0, (support.run(([[cd %s && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
      -keyout key -out cert -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1]]):format(folder))))
    local own = support.start_server { "--tls-cert", folder .. "/cert", "--tls-key", folder .. "/key" }
    local client = client_of(own, { ca_file = folder .. "/cert" })
    assert.is_true(client:publish_config("a", "G", "x"))
    support.write(folder .. "/cert", "half a certifi")
    hurt(own, { close = true })
    eventually(function()
      return client:status().reconnects == 1
    end)
    assert.equal("x", client:get_config("a", "G"))
    own:stop()
  end)
end)
