--- Services of the agent: in the registry while they are well, and gone before what they stand for.

local json = require "cjson.safe"
local lab = require "lab"
local nacos = require "nacos"
local service = require "nacos.agent.service"
local support = require "support"
local uv = require "luv"

local eventually = support.eventually

describe("a service", function()
  local server, client, services, lines, unique

  setup(function()
    server, unique = support.start_server { "--push-delay", "0" }, 0
  end)
  teardown(function()
    server:stop()
  end)

  ---A test in a task, whose services are gone after it.
  local function test(name, fn)
    it(name, function()
      client, services, lines = lab.client(server), {}, {}
      unique = unique + 1
      nacos.run(function()
        local ok, err = xpcall(fn, function(e) return type(e) == "string" and debug.traceback(e, 2) or e end)
        if server:ended() then
          server = support.start_server { "--push-delay", "0" }
        end
        server:clear_faults()
        for _, s in ipairs(services) do
          s:stop()
        end
        lab.close_all()
        if not ok then
          error(err, 0)
        end
      end)
    end)
  end

  local function spec(more)
    local given = { name = "web" .. unique, port = 80, ip = "10.0.0.1", interval = 0.02 }
    for name, value in pairs(more) do
      given[name] = value ~= "" and value or nil
    end
    return service.check(given)
  end

  local function start(more)
    local s = service.new(client, spec(more), { log = function(level, text) lines[#lines + 1] = level .. ": " .. text end })
    services[#services + 1] = s
    return s
  end

  ---What the registry has under a name: { "ip:port" = host }, number.
  local function listed(query)
    local _, body = support.http("GET", ("%s/v1/ns/instance/list?serviceName=%s"):format(server.url, query or "web" .. unique))
    local found, hosts = {}, (json.decode(body) or {}).hosts or {}
    for _, host in ipairs(hosts) do
      found[("%s:%d"):format(host.ip, host.port)] = host
    end
    return found, #hosts
  end

  local function in_state(s, state)
    eventually(function()
      local status = s:status()
      return status.state == state, status.state .. " " .. tostring(status.error)
    end)
  end

  test("without a check is registered as it says, and taken out", function()
    local s = start { group = "G", cluster = "C", weight = 3, metadata = { version = "1" } }
    in_state(s, "registered")
    local host = listed("G@@web" .. unique)["10.0.0.1:80"]
    assert.same({ "C", 3, "1" }, { host.clusterName, host.weight, host.metadata.version })
    assert.same({ true, "10.0.0.1", 80, "G", 3 },
      { s:status().healthy, s:status().ip, s:status().port, s:status().group, s:status().weight })
    s:stop()
    assert.equal("drained", s:status().state)
    assert.equal(0, select(2, listed("G@@web" .. unique)))
    s:stop()
    assert.same({ "info: registered: 10.0.0.1:80", "info: taken out: 10.0.0.1:80" }, lines)
  end)

  test("has the address from which this host reaches the server, or what a function says", function()
    in_state(start { ip = "" }, "registered")
    in_state(start { port = 81, ip = function() nacos.sleep(0.01) return "10.0.0.9" end }, "registered")
    local found = listed()
    assert.truthy(found["127.0.0.1:80"])
    assert.truthy(found["10.0.0.9:81"])
    local bad = start { port = 82, ip = function() error("no such interface", 0) end }
    eventually(function() return bad:status().error end)
    assert.equal("its own address is not known, give it as `ip`: no such interface", bad:status().error:match("^[^\n]*"))
  end)

  test("is there while its check says that it is well, which must say so some times in a row", function()
    local well, asked = false, 0
    local s = start {
      rise = 3, fall = 4,
      check = function()
        asked = asked + 1
        return well, "out of order"
      end,
    }
    in_state(s, "unhealthy")
    assert.equal("out of order", s:status().error)
    assert.equal(0, select(2, listed()))
    local before = asked
    well = true
    in_state(s, "registered")
    assert.is_true(asked - before >= 3)
    assert.is_nil(s:status().error)
    assert.truthy(listed()["10.0.0.1:80"])
    before, well = asked, false
    in_state(s, "unhealthy")
    assert.is_true(asked - before >= 4)
    assert.equal(0, select(2, listed()))
  end)

  test("stays where it is while its check is undecided", function()
    local asked = 0
    local s = start {
      rise = 2, fall = 2,
      check = function()
        asked = asked + 1
        return asked % 2 == 1
      end,
    }
    in_state(s, "registered")
    local seen = asked
    eventually(function() return asked > seen + 10 end)
    assert.same({ "info: is well", "info: registered: 10.0.0.1:80" }, lines)
    assert.equal("registered", s:status().state)
  end)

  test("may be checked by a program, and a check that hangs is a bad one", function()
    local folder = support.tmpdir()
    local s = start { check = { "test", "-e", folder .. "/well" }, check_timeout = 2, fall = 1 }
    in_state(s, "unhealthy")
    support.write(folder .. "/well", "")
    in_state(s, "registered")
    local hangs = start { port = 81, check = "exec sleep 60", check_timeout = 0.1 }
    in_state(hangs, "unhealthy")
    assert.equal("`exec sleep 60` did not end within 0.1 s", hangs:status().error)
    local calls = 0
    local stuck = start { port = 82, check_timeout = 0.05, check = function()
      calls = calls + 1
      nacos.sleep(0.5)
      return true
    end }
    in_state(stuck, "unhealthy")
    eventually(function() return stuck:status().error:find("the call before this one still runs", 1, true) end)
    assert.equal(1, calls)
    local raises = start { port = 83, check = function() error("boom") end }
    in_state(raises, "unhealthy")
    assert.match("boom$", raises:status().error)
  end)

  test("leaves no check behind that hangs", function()
    local folder = support.tmpdir()
    local s = start {
      check_timeout = 60, check = ("cd %s; echo $$ >pid.new; mv pid.new pid; exec sleep 60"):format(folder),
    }
    local pid = eventually(function() return support.read(folder .. "/pid") end)
    s:stop()
    eventually(function() return uv.kill(tonumber(pid), 0) ~= 0 end)
  end)

  test("is checked on when a new definition leaves the check as it is", function()
    local folder = support.tmpdir()
    local with = {
      check_timeout = 60, check = { "sh", "-c", ("cd %s; echo $$ >>pids; exec sleep 60"):format(folder) }, weight = 1,
    }
    local s = start(with)
    local pids = eventually(function() return support.read(folder .. "/pids") end)
    with.weight = 2
    s:update(spec(with))
    nacos.sleep(0.05)
    assert.equal(pids, support.read(folder .. "/pids"))
    with.check_timeout = 50
    s:update(spec(with))
    eventually(function() return #support.read(folder .. "/pids") > #pids end)
  end)

  test("is drained: gone from the registry some time before drain() returns", function()
    local s = start { drain = 0.3 }
    in_state(s, "registered")
    local begin, gone = lab.now(), nil
    nacos.spawn(function()
      eventually(function()
        return select(2, listed()) == 0
      end)
      gone = lab.now() - begin
    end)
    s:drain()
    assert.is_true(lab.now() - begin >= 0.3)
    assert.is_true(gone ~= nil and gone <= lab.now() - begin)
    s:update(spec { weight = 5 })
    nacos.sleep(0.05)
    assert.equal(0, select(2, listed()))
  end)

  test("takes over a new definition", function()
    local s = start { metadata = { a = "1" } }
    in_state(s, "registered")
    server:clear_requests()
    s:update(spec { metadata = { a = "1" }, drain = 0.01, check = function() return true end })
    eventually(function() return s:status().healthy end)
    nacos.sleep(0.1)
    assert.equal(0, #lab.requests(server, "/v1/ns/instance", "POST"))
    for _, more in ipairs { { metadata = { a = "2" } }, { metadata = { a = "2" }, weight = 7 } } do
      s:update(spec(more))
      eventually(function()
        local host = listed()["10.0.0.1:80"]
        return host and host.weight == (more.weight or 1) and host.metadata.a == "2"
      end)
    end
    s:update(spec { ip = "10.0.0.2" })
    eventually(function()
      local found, n = listed()
      return n == 1 and found["10.0.0.2:80"]
    end)
  end)

  test("is registered when a server answers again, and only the newest definition", function()
    server:faults { path = "/nacos/v1/ns/instance", method = "POST", status = 500 }
    local s = start {}
    eventually(function() return s:status().error end)
    assert.equal("waiting", s:status().state)
    assert.is_true(s:status().next_try <= 1)
    s:update(spec { weight = 9 })
    server:clear_faults()
    in_state(s, "registered")
    assert.equal(9, listed()["10.0.0.1:80"].weight)
    assert.is_nil(s:status().error)
    assert.equal(1, #lines - 1, table.concat(lines, "\n"))
  end)

  test("is left to the server when none answers at its end", function()
    local s = start {}
    in_state(s, "registered")
    server:stop()
    local begin = lab.now()
    s:stop()
    assert.is_true(lab.now() - begin < 8)
    assert.equal("drained", s:status().state)
    assert.match("^warn: not taken out, the server drops it", lines[#lines])
  end)

  it("refuses what it cannot mean, at the caller's line", function()
    for message, given in pairs {
      ["missing option 'port'"] = { name = "a" },
      ["must be at most 65535"] = { name = "a", port = 70000 },
      ["did you mean 'weight'"] = { name = "a", port = 1, wieght = 1 },
      ["names and strings expected"] = { name = "a", port = 1, metadata = { a = 1 } },
      ["bad option 'name'"] = { name = "a b/", port = 1 },
    } do
      local ok, err = pcall(function() return (service.check(given, 1)) end)
      assert.is_false(ok)
      assert.match(message, err)
      assert.match("^[^:]*agent_service_spec%.lua:%d+: ", err)
    end
  end)
end)
