--- The client over gRPC: configurations, the set-up, pushes, a login. The ends of connections are in grpc_link_spec.lua, watches in
-- grpc_watch_spec.lua, what is registered and followed in other grpc_*_spec.lua.

local lab = require "lab"
local grpc_lab = require "grpc_lab"
local support = require "support"

local client_of, hurt, connections, watched = grpc_lab.client, grpc_lab.hurt, grpc_lab.connections, grpc_lab.watched
local eventually, until_last = support.eventually, grpc_lab.until_last

describe("over gRPC", function()
  local server

  before_each(function()
    server = support.start_server { "--claim", "3.1.0" }
  end)

  after_each(function()
    lab.close_all()
    server:stop()
  end)

  it("reads, publishes, removes and compares on one connection", function()
    local client = client_of(server)
    local _, err = client:get_config("a", "G")
    assert.equal("not_found", err.code)
    assert.is_true(client:publish_config("a", "G", "one \u{1F600}\0\u{e4}", { type = "json" }))
    local content, source, value = client:get_config("a", "G")
    assert.equal("one \u{1F600}\0\u{e4}", content)
    assert.equal("server", source)
    assert.equal("json", value.type)
    _, err = client:publish_config("a", "G", "two", { cas_md5 = ("0"):rep(32) })
    assert.equal("conflict", err.code)
    assert.is_true(client:publish_config("a", "G", "two", { cas_md5 = value.md5 }))
    assert.is_true(client:remove_config("a", "G"))
    assert.is_nil((client:get_config("a", "G")))
    assert.equal(1, connections(server))
    assert.equal(0, #lab.requests(server, lab.CONFIGS))
  end)

  it("carries a large content, and refuses one that no server reads before it is sent", function()
    local client = client_of(server)
    local large = ("0123456789abcdef"):rep(300000)
    assert.is_true(client:publish_config("large", "G", large))
    assert.is_true(client:get_config("large", "G") == large)
    local _, err = client:publish_config("larger", "G", ("x"):rep(11 << 20))
    assert.equal("invalid", err.code)
    assert.matches("larger than", err.message)
  end)

  it("waits for a server that starts or has not noted the connection yet", function()
    server:faults {
      { method = "GRPC", path = "HealthCheckRequest", code = 300, times = 2 },
      { method = "GRPC", path = "HealthCheckRequest", code = 301, times = 2 },
    }
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    server:faults { method = "GRPC", path = "ConfigPublishRequest", code = 300, times = 2 }
    assert.is_true(client:publish_config("a", "G", "y"))
  end)

  it("drops pushes that mean nothing", function()
    local client = client_of(server)
    local seen = watched(client, server, "a")
    for _, push in ipairs {
      { type = "ConfigChangeNotifyRequest", json = '{"requestId":"x1","dataId":"nobody","group":"G"}' },
      { type = "ConfigChangeNotifyRequest", json = '{"requestId":7,"dataId":5}' },
      { type = "ConfigChangeNotifyRequest", json = "[" },
      { type = "NotifySubscriberRequest", json = '{"requestId":"x2","serviceInfo":[]}' },
      { type = "Nonsense", json = "{}" },
    } do
      hurt(server, { push = push })
    end
    eventually(function()
      return client:status().pushes_dropped == 5
    end)
    hurt(server, { push = { type = "UnheardOfRequest", json = '{"requestId":"x3"}' } })
    assert(lab.client(server):publish_config("a", "G", "x"))
    until_last(seen, "x")
    assert.equal(0, client:status().reconnects)
  end)

  it("takes a lost answer for what it is", function()
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    server:faults { method = "GRPC", path = "ConfigQueryRequest", reset = true, times = 1 }
    assert.equal("x", client:get_config("a", "G"))
    server:faults { method = "GRPC", path = "ConfigQueryRequest", garbage = true, times = 1 }
    assert.equal("x", client:get_config("a", "G"))
    server:faults { method = "GRPC", path = "ConfigQueryRequest", hang = true, times = 1 }
    local _, err = client:get_config { data_id = "a", group = "G", timeout = 0.5 }
    assert.equal("unavailable", err.code)
    server:clear_faults()
    assert.equal("x", client:get_config("a", "G"))
  end)
end)

describe("over gRPC, with a login,", function()
  it("a token is sent with each message, and a 403 leads to one login", function()
    local folder = support.tmpdir()
    support.write(folder .. "/password", "secret")
    local server = support.start_server { "--username", "u", "--password-file", folder .. "/password" }
    local client = client_of(server, { username = "u", password = "secret" })
    assert.is_true(client:publish_config("a", "G", "x"))
    assert.equal("x", client:get_config("a", "G"))
    server:faults { method = "GRPC", path = "ConfigQueryRequest", code = 403, times = 1 }
    assert.equal("x", client:get_config("a", "G"))
    assert.equal(2, client:status().logins)
    local stranger = client_of(server)
    local _, err = stranger:get_config("a", "G")
    assert.equal("forbidden", err.code)
    lab.close_all()
    server:stop()
  end)
end)

it("a client that may speak only gRPC says why it cannot", function()
  local server = support.start_server { "--api", "v1" }
  local client = client_of(server)
  local _, err = client:get_config("a", "G")
  assert.equal("unavailable", err.code)
  assert.matches(("no gRPC at 127.0.0.1:%d"):format(server.port + 1000), err.message, 1, true)
  assert.equal("grpc", client:status().protocol)
  lab.close_all()
  server:stop()
end)
