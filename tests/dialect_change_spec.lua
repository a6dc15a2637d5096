-- @patient
--- Which protocol a client speaks changes while it runs: servers that become others, ports that are closed and opened, a proxy that comes,
-- servers that go and come back.

local dialect_lab = require "dialect_lab"
local lab = require "lab"
local support = require "support"

local serve, client_of, speaks, until_last = dialect_lab.serve, dialect_lab.client, dialect_lab.speaks, dialect_lab.until_last
local eventually = support.eventually

after_each(dialect_lab.close)

describe("while a client runs", function()
  -- It takes 3 s each time until a client believes that gRPC is gone: they wait together.

  ---A gRPC port that is closed, and opened again.
  local function closed_port()
    local server = serve("--claim", "3.1.0")
    local client, other = client_of(server), lab.client(server)
    local seen, note = lab.recorder()
    assert(other:publish_config("a", "G", "1"))
    client:add_config_watcher("a", "G", note)
    until_last(seen, "1")
    speaks(client, "grpc")
    server:call("POST", "grpc", '{"port":false}')
    server:call("POST", "grpc", '{"close":true}')
    speaks(client, "v1", 15)
    assert(other:publish_config("a", "G", "2"))
    until_last(seen, "2")
    server:call("POST", "grpc", '{"port":true}')
    speaks(client, "grpc", 15)
    assert(other:publish_config("a", "G", "3"))
    until_last(seen, "3")
    assert.equal(3, seen.n)
  end

  ---A proxy that is set while the connection is there: the next connection cannot be.
  local function proxy()
    local server = serve("--claim", "3.1.0")
    local client, other = client_of(server), lab.client(server)
    local relay = lab.rogue("proxy", "127.0.0.1", server.port)
    local seen, note = lab.recorder()
    assert(other:publish_config("a", "G", "0"))
    client:add_config_watcher("a", "G", note)
    until_last(seen, "0")
    speaks(client, "grpc")
    client:set_options { proxies = { http = relay.address } }
    server:call("POST", "grpc", '{"close":true}')
    local status = speaks(client, "v1", 15)
    assert.matches("a proxy is set", status.protocol_why, 1, true)
    assert(other:publish_config("a", "G", "1"))
    until_last(seen, "1")
    relay:stop()
  end

  ---The only server of the list that has gRPC goes, and comes back.
  local function one_of_two()
    local plain, better = serve("--api", "v1", "--claim", "2.5.1"), serve("--claim", "3.1.0")
    local client = client_of(plain.address .. "," .. better.address)
    eventually(function() -- at the start either of them may be found first
      if client:status().protocol == "v1" then
        client:close()
        client = client_of(plain.address .. "," .. better.address)
      end
      return client:status().protocol == "grpc"
    end)
    assert(client:publish_config { data_id = "a", group = "G", content = "x", timeout = 5 })
    better:stop()
    local status = speaks(client, "v1", 15)
    assert.matches("the server is Nacos 2.5.1", status.protocol_why, 1, true)
    assert.is_true(client:publish_config("a", "G", "y"))
    assert.equal(plain.base, client:status().server)
    serve("--claim", "3.1.0", "--port", tostring(better.port))
    assert.equal(better.base, speaks(client, "grpc", 15).server)
  end

  ---Somebody asks all the time while nothing can be reached: that is no reason to try all the time.
  local function busy_host()
    local rogue, gone = lab.rogue("deaf"), serve()
    gone:stop()
    local client = client_of(gone, { protocol = "grpc", grpc_port_offset = rogue.port - gone.port })
    local stop = lab.now() + 3
    eventually(function()
      client:get_config { data_id = "a", group = "G", timeout = 0.5 }
      return lab.now() > stop
    end)
    assert.is_true(#rogue:lines() <= 7, #rogue:lines() .. " connections")
    rogue:stop()
  end

  ---While nothing listens it is looked for all the time, at first: that costs nothing.
  local function restart()
    local folder, server = support.tmpdir(), serve("--claim", "3.1.0")
    local client = client_of(server, { log_level = "DEBUG", log_dir = folder })
    speaks(client, "grpc")
    server:stop()
    eventually(function()
      local _, n = support.read(folder .. "/lunacos.log"):gsub("no gRPC at [^\n]*refused", "")
      return n >= 9, n .. " tries"
    end, 20)
    serve("--claim", "3.1.0", "--port", tostring(server.port))
    eventually(function()
      return client:status().link
    end)
  end

  it("what it needs is closed, opened, hidden, moved, restarted or asked for all the time, and nothing is lost", function()
    lab.together(closed_port, proxy, one_of_two, busy_host, restart)
  end)

  local ways = {
    { api = "v1", version = "2.3.2", protocol = "v1" },
    { api = "v1,v3,grpc", version = "3.1.0", protocol = "grpc" },
    { api = "v3", version = "3.2.1", protocol = "v3" },
  }
  local function becomes(from, to)
    local old = serve("--api", from.api, "--claim", from.version)
    local client = client_of(old)
    local seen, note = lab.recorder()
    assert.is_true(client:publish_config("a", "G", "before"))
    client:add_config_watcher("a", "G", note)
    until_last(seen, "before")
    speaks(client, from.protocol)
    old:stop()
    local new = serve("--api", to.api, "--claim", to.version, "--port", tostring(old.port))
    until_last(seen, false) -- it forgot everything
    local publisher = lab.client(new, { protocol = to.protocol })
    assert.is_true(publisher:publish_config { data_id = "a", group = "G", content = "after" })
    until_last(seen, "after")
    speaks(client, to.protocol, 15)
  end

  it("a server becomes another: v1 to gRPC, gRPC to v3, v3 to v1, v1 to v3", function()
    local tasks = {}
    for i, change in ipairs { { 1, 2 }, { 2, 3 }, { 3, 1 }, { 1, 3 } } do
      tasks[i] = function()
        becomes(ways[change[1]], ways[change[2]])
      end
    end
    lab.together(table.unpack(tasks))
  end)
end)

it("with no server at all a request fails at once, and is answered when one is there", function()
  local server = serve("--claim", "3.1.0")
  server:stop()
  local client = client_of(server)
  local took, _, err = lab.timed(client.get_config, client, { data_id = "a", group = "G", timeout = 8 })
  assert.equal("unavailable", err.code)
  assert.is_true(took < 4)
  serve("--claim", "3.1.0", "--port", tostring(server.port))
  eventually(function()
    local _, later = client:get_config("a", "G")
    return later and later.code == "not_found"
  end)
  speaks(client, "grpc", 10)
end)
