--- Registered instances are kept alive whatever Lua does, come back whatever the server does, and go when they are told to.
-- @patient

local json = require "cjson.safe"
local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

local BEAT = "/v1/ns/instance/beat"

describe("a registered instance", function()
  local server, client, unique

  setup(function()
    server = support.start_server { "--push-delay", "0" }
    unique = 0
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    client = lab.client(server)
    server:clear_requests()
  end)
  after_each(function()
    server:clear_faults()
    lab.close_all()
  end)

  local function service()
    unique = unique + 1
    return "beat" .. unique
  end

  ---The instances of a service as curl gets them: { "ip:port" = host }.
  local function listed(name, at)
    local status, body = support.http("GET", ("%s/v1/ns/instance/list?serviceName=%s"):format((at or server).url, name))
    local hosts, found = status == 200 and json.decode(body).hosts or {}, {}
    for _, host in ipairs(hosts) do
      found[("%s:%d"):format(host.ip, host.port)] = host
    end
    return found, #hosts
  end

  local function add(name, more)
    local args = { service_name = name, ip = "10.0.0.1", port = 80, heartbeat_interval = 0.5 }
    for key, value in pairs(more or {}) do
      args[key] = value
    end
    assert(client:add_naming_instance(args))
  end

  ---The beats that the server saw of a service.
  local function beats(name)
    local list = {}
    for _, request in ipairs(lab.requests(server, BEAT)) do
      local query = lab.form(request.query)
      if query.serviceName:match("[^@]*$") == name then
        list[#list + 1] = query
      end
    end
    return list
  end

  local function until_beats(name, n)
    return support.eventually(function()
      local list = beats(name)
      return #list >= n and list, #list .. " beats"
    end, 10)
  end

  it("beats: first whole, then light", function()
    local name = service()
    add(name, { group_name = "G", cluster_name = "C", metadata = { a = "1" }, weight = 2 })
    local list = until_beats(name, 3)
    local whole = json.decode(list[1].beat)
    assert.same({ "G@@" .. name, "10.0.0.1", 80, "C", 2, "1" },
      { whole.serviceName, whole.ip, whole.port, whole.cluster, whole.weight, whole.metadata.a })
    assert.is_nil(list[2].beat)
    assert.same({ "10.0.0.1", "80" }, { list[3].ip, list[3].port })
    assert.is_true(client:status().beats >= 2)
  end)

  it("sends whole beats to a server that allows no light ones, at the interval that the server says", function()
    local name = service()
    add(name, { heartbeat_interval = 2 })
    server:faults {
      path = "/nacos" .. BEAT, status = 200, body = '{"clientBeatInterval":500,"code":10200,"lightBeatEnabled":false}',
    }
    until_beats(name, 2)
    local took = lab.timed(until_beats, name, 6)
    assert.is_true(took < 4, "four beats every 500 ms, not every 2 s: " .. took)
    for _, beat in ipairs { table.unpack(beats(name), 3) } do
      assert.is_string(beat.beat)
    end
  end)

  it("says what a modification changed in later beats", function()
    local name = service()
    add(name, { weight = 2 })
    until_beats(name, 2)
    assert(client:modify_naming_instance(name, "10.0.0.1", 80, nil, 7, { b = "2" }))
    server:call("POST", "naming/forget", "")
    support.eventually(function() return listed(name)["10.0.0.1:80"] end)
    local host = listed(name)["10.0.0.1:80"]
    assert.same({ 7, "2" }, { host.weight, host.metadata.b })
  end)

  it("comes back within an interval when the server has forgotten it", function()
    local name = service()
    add(name, { heartbeat_interval = 1, metadata = { a = "1" }, cluster_name = "C" })
    until_beats(name, 2)
    server:call("POST", "naming/forget", "")
    local took = lab.timed(support.eventually, function() return listed(name)["10.0.0.1:80"] end)
    assert.is_true(took < 1.6, tostring(took))
    local host = listed(name)["10.0.0.1:80"]
    assert.same({ "C", "1" }, { host.clusterName, host.metadata.a })
    assert.equal(1, client:status().reregistrations)
  end)

  it("is not held up by a server that fails, hangs or talks nonsense, and does not spin", function()
    local name = service()
    add(name, { heartbeat_interval = 0.5 })
    until_beats(name, 1)
    for _, fault in ipairs {
      { status = 500 }, { status = 400, body = "caused: something;" }, { status = 200, body = "<html>" }, { status = 404 },
      { status = 200, body = "[]" }, { drop_at = 0 }, { status = 403, body = '{"message":"authorization failed!"}' },
    } do
      fault.path = "/nacos" .. BEAT
      server:clear_faults()
      server:faults(fault)
      local before = #beats(name)
      until_beats(name, before + 1)
    end
    server:clear_requests()
    nacos.step(1)
    nacos.step(0.5)
    assert.is_true(#beats(name) <= 8, #beats(name) .. " tries in about 1.5 s")
    server:clear_faults()
    local before = client:status().beats
    support.eventually(function() return client:status().beats > before + 1 end, 15)
  end)

  it("goes when it is removed, and its beats with it", function()
    local name = service()
    add(name)
    until_beats(name, 1)
    assert(client:remove_naming_instance(name, "10.0.0.1", 80))
    assert.equal(0, select(2, listed(name)))
    server:clear_requests()
    nacos.sleep(0.8)
    assert.equal(0, #beats(name))
    assert.equal(0, client:status().instances)
  end)

  it("is replaced by the same address registered again", function()
    local name = service()
    add(name, { weight = 2 })
    add(name, { weight = 3, metadata = { a = "1" } })
    assert.equal(1, client:status().instances)
    assert.same({ 3, "1" }, { listed(name)["10.0.0.1:80"].weight, listed(name)["10.0.0.1:80"].metadata.a })
  end)

  it("goes with its client, unless told to stay", function()
    local name, other = service(), lab.client(server)
    add(name)
    add(name, { port = 81, ephemeral = true })
    assert(other:add_naming_instance(name, "10.0.0.2", 80))
    local took = lab.timed(client.close, client)
    assert.is_true(took < 0.2, tostring(took))
    support.eventually(function() return select(2, listed(name)) == 1 end)
    other:close { deregister = false }
    nacos.sleep(0.3)
    assert.is_table(listed(name)["10.0.0.2:80"])
  end)

  it("keeps nacos.run() going until it is removed, and its client alive", function()
    local name = service()
    local program = ([[
      local nacos = require "nacos"
      do
        local client = nacos.client { server_addresses = "%s", no_snapshot = true, protocol = "v1" }
        assert(client:add_naming_instance { service_name = "%s", ip = "10.0.0.1", port = 80, heartbeat_interval = 0.5 })
        local weak = setmetatable({ client }, { __mode = "v" })
        client = nil
        nacos.spawn(function()
          for _ = 1, 15 do
            collectgarbage()
            nacos.sleep(0.1)
          end
          assert(weak[1], "collected")
          print(weak[1]:status().beats >= 2)
          nacos.sleep(0.2)
          assert(weak[1]:remove_naming_instance("%s", "10.0.0.1", 80))
          print("removed")
        end)
      end
      nacos.run()
      print("ended")
      collectgarbage()
    ]]):format(server.base, name, name)
    local code, out, err = lab.lua(program, { timeout = 20 })
    assert.equal("", err)
    assert.same({ 0, "true\nremoved\nended\n" }, { code, out })
  end)

  it("goes when the Lua state ends", function()
    local name = service()
    local code, out = lab.lua(([[
      local nacos = require "nacos"
      local client = nacos.client { server_addresses = "%s", no_snapshot = true, protocol = "v1" }
      assert(client:add_naming_instance("%s", "10.0.0.1", 80))
      print "registered"
    ]]):format(server.base, name))
    assert.same({ 0, "registered\n" }, { code, out })
    assert.equal(0, select(2, listed(name)))
    code = lab.lua(([[
      local nacos = require "nacos"
      local client = nacos.client { server_addresses = "%s", no_snapshot = true, protocol = "v1" }
      assert(client:add_naming_instance("%s", "10.0.0.1", 80))
      os.exit(0, false) -- as when the process is killed
    ]]):format(server.base, name))
    assert.equal(0, code)
    assert.equal(1, select(2, listed(name)))
  end)

  it("spreads the beats of many over the interval, on few connections", function()
    local name, list = service(), { heartbeat_interval = 1 }
    for i = 1, 200 do
      list[i] = { ip = "10.0.0.1", port = i }
    end
    list.service_name = name
    assert(client:add_naming_instances(list))
    local before = client:status().beats
    support.eventually(function() return client:status().beats >= before + 400 end, 10)
    local counts, most, first = {}, 0, client:status().beats
    for i = 1, 10 do
      nacos.sleep(0.1)
      local now = client:status().beats
      counts[i], first = now - first, now
      most = math.max(most, counts[i])
    end
    assert.is_true(most <= 80, "in tenths of a second: " .. table.concat(counts, " "))
    assert.equal(200, select(2, listed(name)))
  end)

  it("survives a server that is down, and one that comes back empty", function()
    local own = support.start_server { "--push-delay", "0" }
    local name, mine = service(), lab.client(own)
    assert(mine:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, heartbeat_interval = 0.5 })
    own:kill9()
    support.eventually(function() return not mine:status().connected end, 10)
    nacos.sleep(1)
    local failures = mine:status().failures
    assert.is_true(failures < 30, failures .. " failures in a second")
    own = support.start_server { "--push-delay", "0", "--port", tostring(own.port) }
    support.eventually(function() return listed(name, own)["10.0.0.1:80"] end, 15)
    mine:close()
    support.eventually(function() return select(2, listed(name, own)) == 0 end)
    own:stop()
  end)

  -- The rules of 15 and 30 seconds, with the real clock: everything that takes long, at once.
  it("stays healthy while Lua blocks for longer than a server waits, and after an error; without beats it would not", function()
    local name = service()
    local folder = support.tmpdir()
    local program = folder .. "/program.lua"
    support.write(program, lab.prelude .. ([[
      local nacos = require "nacos"
      local function add(port)
        local client = nacos.client { server_addresses = "%s", no_snapshot = true, log_level = "OFF" }
        assert(client:add_naming_instance("%s", "10.0.0.1", port))
        return client
      end
      add(1)                                          -- nobody keeps this client
      local client = add(2)
      client:watch_service("%s", function() error("a mistake in a callback") end)
      nacos.spawn(function() add(3) error("a mistake in a task") end)
      collectgarbage()
      client:subscribe(function()
        io.stdout:write("blocked\n")
        io.stdout:flush()
        os.execute("sleep 36")
        io.stdout:write("awake\n")
        io.stdout:flush()
      end, 7, "%s", { listener_name = "blocks" })
      nacos.run()
    ]]):format(server.base, name, name, name))
    local process = support.start({ "lua5.4", program })
    support.eventually(function() return process:stdout():match("blocked") end, 10)
    local status = support.http("POST", ("%s/v1/ns/instance?serviceName=%s&ip=10.0.0.1&port=9"):format(server.url, name))
    assert.equal(200, status)
    local sick, gone
    support.eventually(function()
      local hosts = listed(name)
      for port = 1, 3 do
        assert.is_true(hosts["10.0.0.1:" .. port] and hosts["10.0.0.1:" .. port].healthy, "instance " .. port)
      end
      sick = sick or hosts["10.0.0.1:9"] and not hosts["10.0.0.1:9"].healthy
      gone = not hosts["10.0.0.1:9"]
      if not gone then
        nacos.sleep(0.5)
      end
      return gone
    end, 45)
    assert.is_true(sick, "one without beats was unhealthy first")
    assert.is_nil(process:stdout():match("awake"), "it blocks all the time")
    process:kill9()
  end)
end)
