--- Which protocol a client speaks with which server of its list, and why: the option `protocol`, servers of several kinds, servers that
-- refuse. How that changes while a client runs: dialect_change_spec.lua.

local json = require "cjson.safe"
local dialect_lab = require "dialect_lab"
local lab = require "lab"
local support = require "support"

local serve, client_of, speaks, until_last = dialect_lab.serve, dialect_lab.client, dialect_lab.speaks, dialect_lab.until_last
local eventually = support.eventually

after_each(dialect_lab.close)

describe("a client asks", function()
  it("by gRPC where its port answers", function()
    local server = serve("--claim", "3.1.0")
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    local status = eventually(function()
      local s = client:status()
      return s.server_version and s
    end)
    assert.equal("grpc", status.protocol)
    assert.equal(("grpc: 127.0.0.1:%d answers (Nacos 3.1.0)"):format(server.port + 1000), status.protocol_why)
    assert.is_true(status.link)
  end)

  for _, case in ipairs {
    { "v1", "2.5.1" }, { "v1", "1.4.8" }, { "v1,v3", "3.1.0" }, { "v3", "3.2.1-2026.03.30" }, { "v3", "3.1.0" },
  } do
    it("by HTTP without that: " .. case[1] .. " of " .. case[2], function()
      local server = serve("--api", case[1], "--claim", case[2])
      local client = client_of(server)
      assert.is_true(client:publish_config("a", "G", "x"))
      local status = speaks(client, case[1]:match("v%d"))
      assert.matches(("no gRPC at 127.0.0.1:%d"):format(server.port + 1000), status.protocol_why, 1, true)
      assert.matches("the server is Nacos " .. case[2], status.protocol_why, 1, true)
      assert.is_false(status.link)
    end)
  end

  it("by HTTP where the gRPC port takes the stream, but answers no call as Nacos does", function()
    local tasks = {}
    for _, version in ipairs { "2.0.4", "3.1.0" } do -- the first acknowledges no set-up
      for what, value in pairs { hang = true, grpc_status = 12, garbage = true, reset = true } do
        tasks[#tasks + 1] = function()
          local server = serve("--claim", version)
          server:faults { method = "GRPC", path = "*", [what] = value }
          local client = client_of(server)
          assert.is_true(client:publish_config("a", "G", "x"))
          local status = client:status()
          assert.equal("v1", status.protocol)
          assert.matches(("no gRPC at 127.0.0.1:%d: %%w+"):format(server.port + 1000), status.protocol_why)
        end
      end
    end
    lab.together(table.unpack(tasks))
  end)

  it("by gRPC and nothing else, if so told, and says where and why that failed", function()
    local server = serve("--claim", "3.1.0")
    server:faults { method = "GRPC", path = "HealthCheckRequest", delay = 1.5, times = 1 }
    local client = client_of(server, { protocol = "grpc" })
    local _, err = client:get_config { data_id = "a", group = "G", timeout = 0.5 }
    assert.matches(("no gRPC at 127.0.0.1:%d yet: it has not answered"):format(server.port + 1000), err.message, 1, true)
    eventually(function()
      return client:status().link
    end)
    server:faults { method = "GRPC", path = "ConfigQueryRequest", hang = true }
    _, err = client:get_config { data_id = "a", group = "G", timeout = 0.5 }
    assert.matches(("at 127.0.0.1:%d: "):format(server.port + 1000), err.message, 1, true)
    assert.equal(server.base, err.server)
  end)

  it("in the way that the option names, and in no other", function()
    local server = serve("--claim", "3.1.0")
    for _, protocol in ipairs { "v1", "v3", "grpc" } do
      local client = client_of(server, { protocol = protocol })
      assert.is_true(client:publish_config("a", "G", protocol))
      assert.equal(protocol, client:status().protocol)
      client:close()
    end
    local connections = server:call("GET", "grpc").connections
    assert.is_true(#connections <= 1)
  end)

  it("at the port that the option names", function()
    local other = serve("--api", "v1")
    local port = other.port
    other:stop() -- its port is a free one now
    local server = serve("--claim", "3.1.0", "--grpc-port", tostring(port))
    local client = client_of(server, { grpc_port_offset = port - server.port })
    assert.is_true(client:publish_config("a", "G", "x"))
    assert.equal("grpc", client:status().protocol)
  end)

  it("not by gRPC through a proxy", function()
    local server = serve("--claim", "3.1.0")
    local client = client_of(server, { proxies = { http = server.base } })
    client:publish_config("a", "G", "x")
    local status = client:status()
    assert.not_equal("grpc", status.protocol)
    assert.matches("a proxy is set", status.protocol_why, 1, true)
    assert.equal(0, #server:call("GET", "grpc").connections)
  end)
end)


describe("servers of a list", function()
  it("servers of a list may speak differently", function()
    local old, new = serve("--api", "v1", "--claim", "2.5.1"), serve("--api", "v3", "--claim", "3.2.1")
    local client = client_of(old.address .. "," .. new.address)
    assert(client:remove_config("a", "G"))
    local first = client:status().server
    local rest = first == old.base and new or old
    local gone = first == old.base and old or new
    gone:stop()
    assert.is_true(client:publish_config { data_id = "a", group = "G", content = "x", timeout = 5 })
    assert.equal(rest.base, client:status().server)
    speaks(client, rest == old and "v1" or "v3")
  end)

  it("take over from each other: a lost connection is followed by one to another of them", function()
    local one, two = serve("--claim", "3.1.0"), serve("--claim", "3.1.0")
    local client = client_of(one.address .. "," .. two.address)
    local at = speaks(client, "grpc").server
    local first, other = one, two
    if at == two.base then
      first, other = two, one
    end
    first:call("POST", "grpc", '{"close":true}')
    eventually(function()
      local status = client:status()
      return status.link and status.server == other.base, json.encode(status)
    end)
    assert.equal(0, #first:call("GET", "grpc").connections)
    assert.matches(("grpc: 127.0.0.1:%d answers"):format(other.port + 1000), client:status().protocol_why, 1, true)
  end)

  it("may send a client to one that is not among them, which is named then", function()
    local one, two = serve("--claim", "3.1.0"), serve("--claim", "3.1.0")
    local client = client_of(one)
    speaks(client, "grpc")
    one:call("POST", "grpc", ('{"connect_reset":"127.0.0.1:%d"}'):format(two.port))
    eventually(function()
      local status = client:status()
      return status.link and status.protocol_why:find(("grpc: 127.0.0.1:%d answers"):format(two.port + 1000), 1, true),
        json.encode(status)
    end)
    assert.equal(1, #two:call("GET", "grpc").connections)
  end)

  it("take no time from a call of the connection, which goes to one of them only", function()
    local server = serve("--claim", "3.1.0")
    local client = client_of("127.0.0.1:1,127.0.0.1:2," .. server.address)
    assert.is_true(client:publish_config("a", "G", "x"))
    speaks(client, "grpc")
    server:faults({ path = "ConfigQueryRequest", method = "GRPC", delay = 1, times = 1 })
    assert.equal("x", (client:get_config { data_id = "a", group = "G", timeout = 1.5 }))
  end)

  it("are all asked over HTTP for what gRPC has no words for", function()
    local one, two = serve("--claim", "3.1.0"), serve("--claim", "3.1.0")
    for _, server in ipairs { one, two } do
      assert(lab.client(server):publish_config("in-both", "G", server.base))
    end
    local client = client_of(one.address .. "," .. two.address)
    local at = speaks(client, "grpc").server
    local first, other = one, two
    if at == two.base then
      first, other = two, one
    end
    first:faults({ path = "/nacos/v1/*", status = 500 })
    local page = assert(client:get_configs { data_id = "in-both", group = "G" })
    assert.equal(other.base, page.items[1].content)
    assert.equal("grpc", client:status().protocol)
  end)
end)

describe("a server", function()
  it("that offers nothing does not make its client run from one protocol to the other", function()
    local server = serve("--api", "v1", "--claim", "2.5.1")
    local client = client_of(server)
    local seen, note = lab.recorder()
    assert.is_true(client:publish_config("a", "G", "before"))
    client:add_config_watcher("a", "G", note)
    until_last(seen, "before")
    for i = 1, 20 do
      client:subscribe { listener_fn = function() end, service_name = "s" .. i, listener_interval = 1 }
    end
    speaks(client, "v1")
    eventually(function()
      return #lab.requests(server, "/v1/ns/instance/list") >= 20
    end)
    server:faults({ path = "*", status = 404, body = "no such path" })
    server:clear_requests()
    local err = select(2, client:get_config("a", "G"))
    assert.equal("unsupported", err.code)
    local changes, before = 0, client:status().protocol
    local stop = lab.now() + 2.5
    eventually(function()
      local now = client:status().protocol
      changes = changes + (now == before and 0 or 1)
      before = now
      return lab.now() > stop
    end)
    assert.is_true(changes <= 1, changes .. " changes")
    local total = server:requests().total
    assert.is_true(total < 150, total .. " requests")
    server:clear_faults()
    assert(lab.client(server):publish_config("a", "G", "x"))
    eventually(function()
      return client:get_config("a", "G") == "x"
    end)
    until_last(seen, "x")
    speaks(client, "v1")
  end)

  it("whose gateway lets one call not pass speaks on as it did", function()
    local server = serve("--api", "v1,v3", "--claim", "3.1.0")
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    speaks(client, "v1")
    server:faults({ path = "*", method = "DELETE", status = 405 })
    server:clear_requests()
    local removed, err = client:remove_config("a", "G")
    assert.same({ nil, "unsupported" }, { removed, err.code })
    assert.equal("x", (client:get_config("a", "G")))
    for _, request in ipairs(server:requests().requests) do
      assert.matches("^/nacos/v1/", request.path)
    end
    assert.equal("v1", client:status().protocol)
  end)

  it("of which gRPC lacks a message, as that of the first 2.x does, is asked over HTTP", function()
    local server = serve("--claim", "2.0.4")
    server:faults({ path = "BatchInstanceRequest", method = "GRPC", code = 302 })
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    speaks(client, "grpc")
    for port = 1, 3 do
      assert.is_true(client:add_naming_instance { service_name = "s", ip = "10.0.0.1", port = port })
    end
    local status = speaks(client, "v1")
    assert.matches("does not offer all by gRPC", status.protocol_why, 1, true)
    eventually(function()
      local list = client:list_naming_instance { service_name = "s" }
      return list and #list == 3, json.encode(list)
    end)
  end)

  it("may name any version, but not write with it on terminals", function()
    local server = serve("--claim", "3.1.0\27[31m\nlunacos: fake")
    local client = client_of(server)
    assert.is_true(client:publish_config("a", "G", "x"))
    eventually(function()
      return #lab.requests(server, "/v1/console/server/state") > 0
    end)
    local status = client:status()
    assert.is_nil(status.server_version)
    assert.is_nil(status.protocol_why:find("%c"))
  end)

  it("of which only the gRPC port can be reached is one that is connected", function()
    local server = serve("--claim", "3.1.0")
    server:faults({ path = "/nacos/v*", drop_at = 0 })
    local client = client_of(server)
    speaks(client, "grpc")
    eventually(function() -- the version is asked for while the connection is there
      return #lab.requests(server, "/core/state") >= 2
    end)
    local stop = lab.now() + 0.3
    eventually(function()
      local status = client:status()
      assert.is_true(not status.link or status.connected, json.encode(status))
      return lab.now() > stop
    end)
    assert.is_true(client:publish_config("a", "G", "x"))
  end)
end)
