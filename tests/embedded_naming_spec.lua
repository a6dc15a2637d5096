--- Services on the embedded server, against what real 2.3–2.5 servers answer.
-- @patient

local support = require "support"
local json = require "cjson.safe"
local uv = require "luv"
local embedded = require "embedded"

local call, assert_error_page = embedded.call, embedded.assert_error_page
local AGENT = "Nacos-C-Client:v1.1.0"

describe("the embedded server: services", function()
  local server -- shows every change at once, unlike a real one

  ---A call below /v1/ns. @return table # as of embedded.call()
  local function ns(method, path, query, more)
    local request = { method, "/nacos/v1/ns/" .. path, query = query }
    for name, value in pairs(more or {}) do
      request[name] = value
    end
    return call(request.server or server, request)
  end

  ---Fields of an instance of `service`.
  local function at(service, more)
    local query = { serviceName = service, ip = "10.0.0.1", port = "80" }
    for name, value in pairs(more or {}) do
      query[name] = value
    end
    return query
  end

  local function register(service, more, opts)
    local got = ns("POST", "instance", at(service, more), opts)
    assert.same({ 200, "ok" }, { got.status, got.body })
    return got
  end

  local function list(service, more, opts)
    local query = { serviceName = service }
    for name, value in pairs(more or {}) do
      query[name] = value
    end
    local got = ns("GET", "instance/list", query, opts)
    assert.equal(200, got.status)
    return json.decode(got.body)
  end

  local function beat(query, opts)
    return json.decode(ns("PUT", "instance/beat", query, opts).body)
  end

  local function says(got, status, body)
    assert.same({ status, body }, { got.status, got.body })
  end

  setup(function()
    server = support.start_server { "--push-delay", "0" }
  end)

  teardown(function()
    if server then
      server:stop()
    end
  end)

  describe("instances", function()
    it("are listed as a real server lists them", function()
      local got = register("s1", { metadata = '{"a":"1","n":5}', weight = "2.5" })
      assert.equal("text/plain;charset=UTF-8", got.headers["content-type"])
      local info = list("s1")
      assert.truthy(info.lastRefTime >= os.time() * 1000 - 60000)
      info.lastRefTime = nil
      assert.same({ name = "DEFAULT_GROUP@@s1", groupName = "DEFAULT_GROUP", clusters = "", cacheMillis = 10000, checksum = "",
        allIPs = false, reachProtectionThreshold = false, valid = true, hosts = { {
          instanceId = "10.0.0.1#80#DEFAULT#DEFAULT_GROUP@@s1", ip = "10.0.0.1", port = 80, weight = 2.5, healthy = true,
          enabled = true, ephemeral = true, clusterName = "DEFAULT", serviceName = "DEFAULT_GROUP@@s1",
          metadata = { a = "1", n = "5" }, instanceHeartBeatInterval = 5000, instanceHeartBeatTimeOut = 15000,
          ipDeleteTimeout = 30000, instanceIdGenerator = "simple" } } }, info)
    end)

    it("can be read, and removed even when absent", function()
      register("s2", { cluster = "c1" })
      local got = ns("GET", "instance", at("s2", { clusterName = "c1" }))
      assert.same({ service = "DEFAULT_GROUP@@s2", ip = "10.0.0.1", port = 80, clusterName = "c1", weight = 1, healthy = true,
        instanceId = "10.0.0.1#80#c1#DEFAULT_GROUP@@s2", metadata = {} }, json.decode(got.body))
      says(ns("GET", "instance", at("s2")), 404, "no matched ip found!")
      says(ns("DELETE", "instance", at("s2", { ephemeral = "false" })), 200, "ok")
      assert.equal(1, #list("s2").hosts)
      for _ = 1, 2 do
        says(ns("DELETE", "instance", at("s2")), 200, "ok")
      end
      says(ns("GET", "instance", at("s2")), 404, "no ips found for cluster DEFAULT in service DEFAULT_GROUP@@s2")
      assert.same({}, list("s2").hosts)
      says(ns("DELETE", "instance", at("nosuch")), 200, "ok")
    end)

    it("take parameters in query and form, and live in one cluster", function()
      says(ns("POST", "instance", nil, { form = at("s3", { clusterName = "A" }) }), 200, "ok")
      register("s3", { clusterName = "B" })
      local hosts = list("s3").hosts
      assert.same({ 1, "B" }, { #hosts, hosts[1].clusterName })
    end)

    it("are kept apart by namespace and group", function()
      register("s4", { port = "1" })
      register("s4", { port = "2", groupName = "G" })
      register("G@@s4", { port = "3", groupName = "ignored" })
      register("s4", { port = "4", namespaceId = "n1" })
      assert.equal(1, list("DEFAULT_GROUP@@s4").hosts[1].port)
      assert.equal(2, #list("s4", { groupName = "G" }).hosts)
      assert.equal("G@@s4", list("G@@s4").name)
      assert.equal(4, list("s4", { namespaceId = "n1" }).hosts[1].port)
      assert.equal(1, #list("s4", { namespaceId = "public" }).hosts)
    end)

    it("are filtered by cluster, health and being enabled", function()
      register("s5", { port = "1", clusterName = "A" })
      register("s5", { port = "2", clusterName = "B", healthy = "false" })
      register("s5", { port = "3", clusterName = "C", enabled = "false" })
      assert.equal(2, #list("s5").hosts)
      assert.equal(1, #list("s5", { healthyOnly = "true" }).hosts)
      local info = list("s5", { clusters = "B,C" })
      assert.same({ 1, 2, false, "B,C" }, { #info.hosts, info.hosts[1].port, info.hosts[1].healthy, info.clusters })
    end)

    it("are protected when too few are healthy", function()
      for port = 1, 3 do
        register("s6", { port = tostring(port), healthy = tostring(port == 1) })
      end
      says(ns("PUT", "service", { serviceName = "s6", protectThreshold = "0.7" }), 200, "ok")
      local info = list("s6")
      assert.is_true(info.reachProtectionThreshold)
      for _, host in ipairs(info.hosts) do
        assert.is_true(host.healthy)
      end
      info = list("s6", { healthyOnly = "true" })
      assert.same({ 1, false }, { #info.hosts, info.reachProtectionThreshold })
    end)

    it("keep what a modification said, over registrations too", function()
      register("s7", { metadata = "a=1,b=2" })
      says(ns("PUT", "instance", at("s7", { weight = "5", enabled = "true", metadata = "b=3" })), 200, "ok")
      local function host()
        local h = list("s7").hosts[1]
        return h and { h.weight, h.metadata }
      end
      assert.same({ 5, { a = "1", b = "3" } }, host())
      says(ns("PATCH", "instance", at("s7", { metadata = "c=4" })), 200, "ok")
      register("s7", { weight = "2", metadata = "z=1" })
      assert.same({ 5, { z = "1", b = "3", c = "4" } }, host())
      ns("DELETE", "instance", at("s7"))
      register("s7")
      assert.same({ 5, { b = "3", c = "4" } }, host())
      says(ns("PUT", "instance", at("s7", { enabled = "false" })), 200, "ok")
      assert.is_nil(host())
      says(ns("PUT", "instance", at("s7", { port = "81" })), 200, "ok") -- nothing is there
      says(ns("PATCH", "instance", at("s7", { port = "81" })), 404, "no matched ip found!")
      says(ns("PUT", "instance", at("s7x")), 400, "service not found, namespace: public, service: Service{namespace='public', "
        .. "group='DEFAULT_GROUP', name='s7x', ephemeral=true, revision=0}")
    end)

    it("change their metadata in batches", function()
      register("s8", { port = "1", metadata = "a=1" })
      register("s8", { port = "2" })
      local function batch(method, more)
        return json.decode(ns(method, "instance/metadata/batch", at("s8", more)).body).updated
      end
      assert.equal(2, #batch("PUT", { metadata = '{"q":"1"}' }))
      assert.same({ "10.0.0.1:2:unknown:DEFAULT:ephemeral" },
        batch("DELETE", { metadata = '{"q":"1"}', instances = '[{"ip":"10.0.0.1","port":2}]' }))
      for _, host in ipairs(list("s8").hosts) do
        assert.same(host.port == 1 and { a = "1", q = "1" } or {}, host.metadata)
      end
      assert.equal(500, ns("PUT", "instance/metadata/batch", at("s8", { metadata = "a=1", instances = "nope" })).status)
    end)

    it("are of one kind in a service", function()
      register("s9")
      says(ns("POST", "instance", at("s9", { ephemeral = "false" })), 400,
        "errCode: 400, errMsg: Current service DEFAULT_GROUP@@s9 is ephemeral service, can't register persistent instance. ")
      says(ns("POST", "service", { serviceName = "s9p" }), 200, "ok")
      local refused = "errCode: 400, errMsg: Current service DEFAULT_GROUP@@s9p is persistent service, "
        .. "can't register ephemeral instance. "
      says(ns("POST", "instance", at("s9p")), 400, refused)
      local full = '{"serviceName":"DEFAULT_GROUP@@s9p","ip":"1","port":1}'
      says(ns("PUT", "instance/beat", { serviceName = "s9p", beat = full }), 400, refused)
      register("s9p", { ephemeral = "false" })
      assert.is_false(list("s9p").hosts[1].ephemeral)
      assert.equal(20404, beat(at("s9p")).code)
    end)

    it("answer bad parameters as Nacos does", function()
      says(ns("POST", "instance", { ip = "1", port = "1" }), 400, "Param 'serviceName' is required.")
      says(ns("POST", "instance", { serviceName = "x", port = "1" }), 400, "Param 'ip' is required.")
      says(ns("POST", "instance", { serviceName = "x", ip = "1" }), 400, "Param 'port' is required.")
      local illegal = "Param '%s' is illegal, illegal characters should not appear in the param.\r\n"
      for name, field in pairs { serviceName = "serviceName", clusterName = "cluster", groupName = "group", ip = "ip",
        namespaceId = "namespaceId/tenant" } do
        says(ns("POST", "instance", at("x", { [name] = "a b" })), 400, illegal:format(field))
      end
      says(ns("GET", "instance/list", { serviceName = "a@@b@@c" }), 400, illegal:format("serviceName"))
      says(ns("GET", "instance/list", { serviceName = "a", clusters = "ok,n%o" }), 400, illegal:format("cluster"))
      for _, port in ipairs { "x", "-1", "65536", "1.5", "99999999999999999999" } do
        says(ns("POST", "instance", at("x", { port = port })), 400,
          "Param 'port' is illegal, the value should be between 0 and 65535.\r\n")
      end
      says(ns("POST", "instance", at("x", { metadata = "a=" .. ("x"):rep(1100) })), 400,
        "Param 'Metadata' is illegal, the param length should not exceed 1024.\r\n")
      for _, weight in ipairs { "-1", "10001", "Infinity" } do
        says(ns("POST", "instance", at("x", { weight = weight })), 400,
          "instance format invalid: The weights range from 0.0 to 10000.0")
      end
      for _, weight in ipairs { "abc", "0x10", "nan", "1 2" } do
        says(ns("POST", "instance", at("x", { weight = weight })), 400, 'For input string: "' .. weight .. '"')
      end
      says(ns("POST", "instance", at("x", { metadata = '{"preserved.heart.beat.timeout":"1000"}' })), 400,
        "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'.")
      for _, metadata in ipairs { "nope", "{nope", "[]", '{"a":{}}', "a=b=c" } do
        assert_error_page(ns("POST", "instance", at("x", { metadata = metadata })), 500, "Internal Server Error",
          ("Server failed, caused: ErrCode:400, ErrMsg:metadata format incorrect:%s;caused: metadata format incorrect:%s;")
            :format(metadata, metadata), "/nacos/v1/ns/instance")
      end
      assert_error_page(ns("GET", "instance/list", { serviceName = "@@x" }), 400, "Bad Request",
        "Service name filter error,caused: Param 'serviceName' is illegal, groupName can't be empty;", "/nacos/v1/ns/instance/list")
      says(ns("GET", "instance/list", { serviceName = "x", udpPort = "abc" }), 400, 'For input string: "abc"')
      assert.equal(501, ns("POST", "instance/list").status)
      assert.equal(501, ns("GET", "instance/beat").status)
      assert.same({}, list("x").hosts)
    end)

    it("survive whatever is in a request", function()
      local huge = ("x"):rep(100000)
      for _, value in ipairs {
        "", "\0", "a\0b", "\u{1F600}", "\xff\xfe", huge, "%s%n", "@@", "@@@@", "{", "[[[[", "null", "1e999" } do
        for _, name in ipairs { "serviceName", "groupName", "namespaceId", "ip", "port", "clusterName",
          "weight", "metadata", "beat",
          "clusters", "udpPort", "clientIP", "instances", "protectThreshold", "selector" } do
          local fields = at("odd", { [name] = value })
          ns("POST", "instance", nil, { form = fields })
          ns("PUT", "instance/beat", nil, { form = fields })
          ns("PUT", "instance", nil, { form = fields })
        end
      end
      assert.equal(200, ns("GET", "operator/metrics").status)
    end)
  end)

  describe("services", function()
    it("are made, read, changed, listed and removed", function()
      says(ns("POST", "service", { serviceName = "v1", protectThreshold = "0.5", metadata = "a=b", namespaceId = "v" }), 200, "ok")
      says(ns("POST", "service", { serviceName = "v1", namespaceId = "v" }), 400,
        "specified service DEFAULT_GROUP@@v1 already exists!")
      local got = json.decode(ns("GET", "service", { serviceName = "v1", namespaceId = "v" }).body)
      assert.same({ namespaceId = "v", groupName = "DEFAULT_GROUP", name = "v1", protectThreshold = 0.5, metadata = { a = "b" },
        selector = { type = "none", contextType = "NONE" }, clusters = {} }, got)
      says(ns("PUT", "service", { serviceName = "v1", namespaceId = "v" }), 400, "Param 'protectThreshold' is required.")
      says(ns("PUT", "service", { serviceName = "v1", namespaceId = "v", protectThreshold = "0" }), 200, "ok")
      register("v1", { namespaceId = "v", clusterName = "c", ephemeral = "false" })
      got = json.decode(ns("GET", "service", { serviceName = "v1", namespaceId = "v" }).body)
      assert.same({ 0, {}, "c" }, { got.protectThreshold, got.metadata, got.clusters[1].name })
      says(ns("DELETE", "service", { serviceName = "v1", namespaceId = "v" }), 400,
        "Service DEFAULT_GROUP@@v1 is not empty, can't be delete. Please unregister instance first")
      register("v2", { namespaceId = "v" })
      register("v3", { namespaceId = "v", groupName = "G" })
      local function names(more)
        local query = { pageNo = "1", pageSize = "10", namespaceId = "v" }
        for name, value in pairs(more or {}) do
          query[name] = value
        end
        local answer = json.decode(ns("GET", "service/list", query).body)
        table.sort(answer.doms)
        return { answer.count, table.concat(answer.doms, ",") }
      end
      assert.same({ 2, "v1,v2" }, names())
      assert.same({ 1, "v3" }, names { groupName = "G" })
      assert.same({ 0, "" }, names { namespaceId = "none" })
      assert.same({ 2, "" }, names { pageNo = "2" })
      assert.same({ 2, "v1,v2" }, names { pageNo = "x" })
      assert.truthy(({ v1 = true, v2 = true })[names({ pageSize = "1", pageNo = "2" })[2]])
      says(ns("GET", "service/list", { pageNo = "1", pageSize = "-1" }), 400, "fromIndex(0) > toIndex(-1)")
      says(ns("GET", "service/list", { pageSize = "1" }), 400, "Param 'pageNo' is required.")
      ns("DELETE", "instance", at("v1", { namespaceId = "v", ephemeral = "false" }))
      says(ns("DELETE", "service", { serviceName = "v1", namespaceId = "v" }), 200, "ok")
      says(ns("DELETE", "service", { serviceName = "v1", namespaceId = "v" }), 400, "service DEFAULT_GROUP@@v1 not found!")
      says(ns("GET", "service", { serviceName = "v1", namespaceId = "v" }), 400,
        "service not found, namespace: v, serviceName: DEFAULT_GROUP@@v1")
    end)

    it("refuse settings that are none", function()
      assert.equal(500, ns("POST", "service", { serviceName = "v4", protectThreshold = "abc" }).status)
      assert.equal(500, ns("POST", "service", { serviceName = "v4", metadata = "nope" }).status)
      says(ns("POST", "service", { serviceName = "v4", selector = '{"type":"nope"}' }), 400, "not match any type of selector!")
      says(ns("POST", "service", { serviceName = "v4", selector = '{"type":"none"}' }), 200, "ok")
    end)
  end)

  describe("beats", function()
    it("are answered, full and light", function()
      assert.same({ code = 20404, clientBeatInterval = 5000, lightBeatEnabled = true }, beat(at("b1")))
      assert.equal(20404, beat { serviceName = "b1" }.code)
      local full = json.encode { serviceName = "DEFAULT_GROUP@@b1", ip = "10.0.0.1", port = 80, cluster = "c", weight = 3,
        metadata = { ["preserved.heart.beat.interval"] = "1000", a = "1" }, unknown = true }
      assert.same({ code = 10200, clientBeatInterval = 1000, lightBeatEnabled = true }, beat { serviceName = "b1", beat = full })
      local host = list("b1").hosts[1]
      assert.same({ "c", 3, "1", 1000 }, { host.clusterName, host.weight, host.metadata.a, host.instanceHeartBeatInterval })
      assert.equal(1000, beat(at("b1")).clientBeatInterval)
      beat { serviceName = "b2", beat = '{"serviceName":"b2","ip":"1.1.1.1","port":1}' }
      assert.equal(0, list("b2").hosts[1].weight) -- the trap of a beat without it
    end)

    it("make an instance healthy again", function()
      register("b3", { healthy = "false" })
      assert.is_false(list("b3").hosts[1].healthy)
      assert.equal(10200, json.decode(ns("PUT", "instance/beat", nil, { form = at("b3") }).body).code)
      assert.is_true(list("b3").hosts[1].healthy)
    end)

    it("may be bad", function()
      says(ns("PUT", "instance/beat", { ip = "1", port = "1" }), 400, "Param 'serviceName' is required.")
      for _, text in ipairs { "nope", "[]", '{"ip":"1","port":"x"}', '{"ip":5}',
        '{"metadata":5}', '{"metadata":{"a":[]}}', '{"weight":"x"}' } do
        assert.equal(500, ns("PUT", "instance/beat", { serviceName = "b4", beat = text }).status, text)
      end
      for _, text in ipairs { '{"ip":"a b","port":1}', '{"ip":"1","port":99999}', '{"ip":"1","port":1,"cluster":"a b"}' } do
        assert.equal(400, ns("PUT", "instance/beat", { serviceName = "b4", beat = text }).status, text)
      end
      assert.same({}, list("b4").hosts)
    end)
  end)

  describe("the operator's calls", function()
    it("count", function()
      register("m1", { namespaceId = "m" })
      assert.same({ status = "UP" }, json.decode(ns("GET", "operator/metrics").body))
      local full = json.decode(ns("GET", "operator/metrics", { onlyStatus = "false" }).body)
      local stats = server:stats()
      assert.same({ "UP", stats.services, stats.instances }, { full.status, full.serviceCount, full.instanceCount })
      assert.truthy(full.persistentIpPortClientCount < full.instanceCount)
    end)

    it("tell the switches", function()
      local switches = json.decode(ns("GET", "operator/switches").body)
      assert.same({ true, true, 5000 }, { switches.pushEnabled, switches.lightBeatEnabled, switches.clientBeatInterval })
    end)

    it("let tests make it forget", function()
      register("f1")
      register("f2", { ephemeral = "false" })
      server:call("POST", "naming/forget", "")
      assert.equal(20404, beat(at("f1")).code)
      assert.same({}, list("f1").hosts)
      assert.equal(1, #list("f2").hosts)
    end)
  end)

  it("asks for a token", function()
    local folder = support.tmpdir()
    support.write(folder .. "/password", "pw\n")
    local locked = support.start_server { "--username", "u", "--password-file", folder .. "/password" }
    finally(function() locked:stop() end)
    local opts = { server = locked }
    assert.equal(403, ns("POST", "instance", at("a1"), opts).status)
    assert.equal(403, ns("PUT", "instance/beat", at("a1"), opts).status)
    assert.equal(403, ns("GET", "instance/list", { serviceName = "a1" }, opts).status)
    assert.equal(200, ns("GET", "operator/metrics", nil, opts).status)
    local login = call(locked, { "POST", "/nacos/v1/auth/login", form = { username = "u", password = "pw" } })
    register("a1", { accessToken = json.decode(login.body).accessToken }, opts)
  end)

  it("takes a thousand instances", function()
    local urls = {}
    for i = 1, 1000 do
      urls[i] = ('url = "%s/nacos/v1/ns/instance?serviceName=many&ip=10.1.%d.%d&port=80"'):format(server.base, i // 250, i % 250)
    end
    local config = support.tmpdir() .. "/urls"
    support.write(config, table.concat(urls, "\n"))
    assert.equal(0, (support.run { "curl", "-sS", "-X", "POST", "-o", "/dev/null", "-K", config }))
    assert.equal(1000, #list("many").hosts)
  end)

  describe("pushes", function()
    local real, socket, port, received

    ---What a datagram says, and whether it was compressed.
    local function read(bytes)
      local packed = bytes:sub(1, 2) == "\x1f\x8b"
      if packed then
        bytes = select(2, support.run({ "gzip", "-dc" }, { stdin = bytes }))
      end
      local packet = assert(json.decode(bytes))
      assert.equal("dom", packet.type)
      return json.decode(packet.data), bytes:match('"lastRefTime":(%d+)}?'), packed
    end

    local function arrived(count)
      uv.run("nowait")
      return #received >= count, #received .. " datagrams"
    end

    local function ack(number, to)
      uv.udp_try_send(socket, json.encode { type = "push-ack", lastRefTime = number, data = "" }, "127.0.0.1", to)
    end

    local function follow(service, more)
      local query = { udpPort = tostring(port), clientIP = "127.0.0.1" }
      for name, value in pairs(more or {}) do
        query[name] = value
      end
      return list(service, query, { server = real, headers = { ["User-Agent"] = query.agent or AGENT } })
    end

    setup(function()
      real = support.start_server()
    end)

    teardown(function()
      if real then
        real:stop()
      end
    end)

    before_each(function()
      received = {}
      socket = uv.new_udp()
      assert(uv.udp_bind(socket, "127.0.0.1", 0))
      port = uv.udp_getsockname(socket).port
      uv.udp_recv_start(socket, function(_, bytes, from)
        if bytes then
          received[#received + 1] = { bytes = bytes, port = from.port, time = uv.hrtime() / 1e9 }
        end
      end)
    end)

    after_each(function()
      uv.close(socket)
      uv.run("nowait")
    end)

    it("come half a second after a change, to lists as well", function()
      register("p1", nil, { server = real })
      assert.equal(1, #follow("p1").hosts)
      support.eventually(function() return arrived(1) end)
      local first, number = read(received[1].bytes)
      assert.same({ "DEFAULT_GROUP@@p1", 1 }, { first.name, #first.hosts })
      ack(number, received[1].port)
      support.eventually(function() return real:stats().pushes_acked == 1 end)
      follow("p1") -- nothing new for it
      local started = uv.hrtime() / 1e9
      register("p1", { port = "81", metadata = "long=" .. ("x"):rep(900) }, { server = real })
      assert.equal(1, #follow("p1").hosts)
      support.eventually(function() return arrived(2) end)
      local took = received[2].time - started
      assert.truthy(took > 0.4 and took < 1.5, "pushed after " .. took)
      local second, _, packed = read(received[2].bytes)
      assert.is_true(packed)
      assert.equal(2, #second.hosts)
      assert.truthy(second.lastRefTime > first.lastRefTime)
      assert.equal(2, #follow("p1").hosts)
      local stats = real:stats()
      assert.same({ 1, 2 }, { stats.subscribers, stats.pushes_sent })
      local subscribers = json.decode(ns("GET", "service/subscribers", { serviceName = "p" }, { server = real }).body)
      assert.same({ count = 1, subscribers = { { addrStr = "127.0.0.1:" .. port, agent = AGENT, app = "",
        ip = "127.0.0.1", port = port,
        namespaceId = "public", serviceName = "DEFAULT_GROUP@@p1", cluster = "" } } }, subscribers)
    end)

    it("name the clusters that were asked for, of a service that comes later too", function()
      assert.same({}, follow("p2", { clusters = "A" }).hosts)
      register("p2", { clusterName = "A" }, { server = real })
      register("p2", { clusterName = "B", port = "81" }, { server = real })
      support.eventually(function() return arrived(1) end)
      local info = read(received[1].bytes)
      assert.same({ "A", 1, "A" }, { info.clusters, #info.hosts, info.hosts[1].clusterName })
    end)

    it("go to known programs only", function()
      for _, agent in ipairs { "Nacos-C-Client:v1.0.0", "Nacos-C-Client:1.1.0", "Nacos-SDK-CPP:v1.0.0", "curl/7" } do
        follow("p3", { agent = agent })
      end
      assert.equal(0, json.decode(ns("GET", "service/subscribers", { serviceName = "p3" }, { server = real }).body).count)
      for _, agent in ipairs { AGENT .. " extra", "Nacos-Java-Client:v1.4.2", "Nacos-Go-Client:v1.1.4",
        "Nacos-CSharp-Client:v1.0.0",
        "Nacos-DNS:v1.0.0", "vip-client4cpp:v1.2.0" } do
        follow("p3" .. #agent, { agent = agent })
        local subscribers = ns("GET", "service/subscribers", { serviceName = "p3" .. #agent }, { server = real })
        assert.equal(1, json.decode(subscribers.body).count, agent)
      end
      for _, ip in ipairs { "not an address", "999.1.1.1", "" } do
        follow("p4", { clientIP = ip })
      end
      assert.equal(0, json.decode(ns("GET", "service/subscribers", { serviceName = "p4" }, { server = real }).body).count)
    end)

    it("are repeated once when nobody acknowledges; beside it, what silence does to instances", function()
      local SHORT = json.encode { ["preserved.heart.beat.interval"] = "1000", ["preserved.heart.beat.timeout"] = "3000",
        ["preserved.ip.delete.timeout"] = "6000" }
      register("h-short", { metadata = SHORT })
      register("h-alive", { metadata = SHORT })
      register("h-long")
      register("h-lasting", { ephemeral = "false" })
      register("h-astray", { groupName = "G", metadata = SHORT })
      local started = uv.hrtime() / 1e9
      follow("p5") -- whose push is never acknowledged
      local seen = {}
      local function look(service, more)
        local host = list(service, more).hosts[1]
        local what = not host and "gone" or host.healthy and "healthy" or "unhealthy"
        seen[service] = seen[service] or {}
        what = what == "healthy" and seen[service].unhealthy and "back" or what
        seen[service][what] = seen[service][what] or uv.hrtime() / 1e9 - started
      end
      repeat
        uv.run("nowait")
        beat(at("h-alive"))
        beat { serviceName = "G@@h-astray",
          beat = '{"serviceName":"h-astray","ip":"10.0.0.1","port":80,"metadata":' .. SHORT .. "}" }
        look("h-astray", { groupName = "G" })
        look("h-short")
        look("h-alive")
        look("h-long")
        look("h-lasting")
        uv.sleep(200)
      until uv.hrtime() / 1e9 - started > 31.5
      local function about(seconds, service, what)
        local took = seen[service][what]
        assert.truthy(took and took > seconds - 0.3 and took < seconds + 1.5, ("%s %s after %s"):format(service, what, took))
      end
      about(5, "h-short", "unhealthy")
      about(10, "h-short", "gone")
      about(15, "h-long", "unhealthy")
      about(30, "h-long", "gone")
      about(5, "h-astray", "unhealthy")
      about(10, "h-astray", "back") -- it was removed, and the next beat registered it
      assert.same({}, { seen["h-alive"].unhealthy, seen["h-alive"].gone, seen["h-lasting"].unhealthy, seen["h-lasting"].gone })
      -- the push and, ten seconds later, the same bytes once more
      assert.equal(2, #received)
      assert.equal(received[1].bytes, received[2].bytes)
      local pause = received[2].time - received[1].time
      assert.truthy(pause > 9.5 and pause < 11.5, "again after " .. pause)
      -- and thirty seconds after the last list nobody is pushed to
      register("p5", nil, { server = real })
      uv.sleep(800)
      uv.run("nowait")
      assert.equal(2, #received)
    end)

    it("are not confused by what arrives at their port", function()
      follow("p6")
      support.eventually(function() return arrived(1) end)
      local to = received[1].port
      for _, text in ipairs { "", "nope", "{}", "[]", '{"type":"push-ack"}', '{"type":"push-ack","lastRefTime":"x"}',
        '{"type":5,"lastRefTime":5}', '{"type":"push-ack","lastRefTime":[]}', ("x"):rep(60000) } do
        uv.udp_try_send(socket, text, "127.0.0.1", to)
      end
      local acked = real:stats().pushes_acked
      local _, number = read(received[1].bytes)
      ack(number, to)
      support.eventually(function() return real:stats().pushes_acked == acked + 1 end)
    end)
  end)
end)
