--- The embedded server over gRPC, seen by a client made by hand (tests/grpc.lua). What real servers answered is in the comments' words.

local support = require "support"
local embedded = require "embedded"
local grpc = require "grpc"
local json = require "cjson.safe"

local eventually = support.eventually

local function key(data_id, more)
  local fields = { dataId = data_id, group = "G" }
  for name, value in pairs(more or {}) do
    fields[name] = value
  end
  return fields
end

local function publish(client, data_id, content, more)
  local fields = key(data_id, more)
  fields.content = content
  return client:call("ConfigPublishRequest", fields)
end

local function listen(client, contexts, on)
  return client:call("ConfigBatchListenRequest", { listen = on ~= false, configListenContexts = contexts })
end

local function service(name, more)
  local fields = { namespace = "public", groupName = "G", serviceName = name }
  for field, value in pairs(more or {}) do
    fields[field] = value
  end
  return fields
end

local function instance(port)
  return { ip = "10.0.0.1", port = port, clusterName = "DEFAULT" }
end

local function register(client, name, port)
  return client:call("InstanceRequest", service(name, { type = "registerInstance", instance = instance(port) }))
end

local function subscribe(client, name, on)
  return client:call("SubscribeServiceRequest", service(name, { subscribe = on ~= false, clusters = "" }))
end

---Ports of the hosts in a serviceInfo, as text.
local function ports(info)
  local list = {}
  for _, host in ipairs(info.hosts) do
    list[#list + 1] = math.tointeger(host.port)
  end
  table.sort(list)
  return table.concat(list, " ")
end

---Ports that a client sees.
local function seen(client, name)
  local body = client:call("ServiceQueryRequest", service(name, { cluster = "", healthyOnly = false }))
  return body and ports(body.serviceInfo)
end

---Waits for a push with these ports.
local function pushed(client, wanted)
  repeat
    local body = client:next("NotifySubscriberRequest", 5)
    if body and ports(body.serviceInfo) == wanted then
      return body
    end
  until not body
end

---The server's word on its connections.
local function connections(server)
  return server:call("GET", "grpc").connections
end

local function order(server, what)
  return server:call("POST", "grpc", json.encode(what))
end

describe("the embedded server over gRPC:", function()
  local server

  setup(function()
    server = support.start_server { "--claim", "3.1.0", "--push-delay", "0" }
  end)

  teardown(function()
    server:stop()
  end)

  after_each(function()
    grpc.close_all()
    server:clear_faults()
    order(server, { ignore_acks = false, duplicate = false, again_ms = 0, window = 0, freeze_new = false, port = true,
      idle_ms = 20000, patience_ms = 5000, most = 1 << 30 })
    eventually(function() return #connections(server) == 0 end)
  end)

  describe("connections", function()
    it("begin with the settings of a real server", function()
      local client = grpc.client(server)
      local settings = client:state().settings
      assert.same({ 2147483647, 1048576, 8192 }, { settings[3], settings[4], settings[6] })
      assert.equal(1, client:state().pings) -- and with a PING of it, once data came
    end)

    it("are checked and set up; before that a call is from nobody", function()
      local client = grpc.connect(server)
      local check, answer = client:call("ServerCheckRequest", {})
      assert.equal("ServerCheckResponse", answer.type)
      assert.same({ 200, true, true }, { check.resultCode, check.success, check.supportAbilityNegotiation })
      assert.matches("^%d+_127%.0%.0%.1_%d+$", check.connectionId)
      local body, error_answer = client:call("ConfigQueryRequest", key "d")
      assert.equal("ErrorResponse", error_answer.type)
      assert.same({ resultCode = 500, errorCode = 301, message = "Connection is unregistered.", success = false }, body)
      client:open()
      client:send("ConnectionSetupRequest", "{bad") -- ignored, as is every other first message
      client:send("HealthCheckRequest", {})
      assert.equal(301, client:call("HealthCheckRequest", {}).errorCode)
      client:send("ConnectionSetupRequest", { clientVersion = "x", abilityTable = { lock = true } })
      local ack = client:next("SetupAckRequest")
      assert.is_true(ack.abilityTable.supportPersistentInstanceByGrpc)
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
      assert.equal(check.connectionId, client:call("ServerCheckRequest", {}).connectionId)
    end)

    it("of a server that says it is a 2.x get no word of abilities", function()
      local old = support.start_server { "--claim", "2.3.2" }
      local client = grpc.client(old)
      assert.is_nil(client:call("ServerCheckRequest", {}).supportAbilityNegotiation)
      assert.equal("", client.inbox)
      subscribe(client, "s")
      local push = client:next("NotifySubscriberRequest")
      assert.same({ "public", "s", "G" }, { push.namespace, push.serviceName, push.groupName })
      client:close()
      old:stop()
    end)

    it("may not publish or follow unless their module is naming", function()
      local client = grpc.client(server, { module = "config" })
      local id = client:call("ServerCheckRequest", {}).connectionId
      for _, body in ipairs { (register(client, "s", 1)), (subscribe(client, "s")) } do
        assert.equal(-401, body.errorCode)
        local why = "errCode: -401, errMsg: Client [%s] connection already disconnect, can't register ephemeral instance. "
        assert.equal(why:format(id), body.message)
      end
      assert.equal(200, publish(client, "module", "x").resultCode)
    end)

    it("are asked after silence and thrown out without an answer; TCP stays", function()
      local client = grpc.client(server)
      register(client, "silent", 1)
      order(server, { idle_ms = 150, patience_ms = 60000 })
      client:next("SetupAckRequest")
      assert.is_truthy(client:next("ClientDetectionRequest")) -- and acknowledged
      client.no_acks = true
      assert.is_truthy(client:next("ClientDetectionRequest"))
      order(server, { patience_ms = 100 })
      assert.is_nil(client:next("ClientConfigMetricRequest")) -- until the stream is over
      assert.same({ true, 0 }, { client.last.closed, client.last.status })
      assert.equal(301, client:call("HealthCheckRequest", {}).errorCode)
      assert.equal("", seen(grpc.client(server), "silent"))
    end)

    it("whose stream is gone get answers but no pushes", function()
      local client = grpc.client(server)
      listen(client, { key("gone", { md5 = "" }) })
      client.core:reset(client.stream)
      eventually(function() return client:call("HealthCheckRequest", {}) and not connections(server)[1].stream end)
      assert.equal(200, publish(client, "gone", "1").resultCode)
      client:open()
      client:send("ConnectionSetupRequest", { abilityTable = {}, labels = { module = "naming" } })
      assert.is_truthy(client:next("SetupAckRequest"))
      publish(client, "gone", "2")
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
      assert.equal("", client.inbox)
    end)

    it("are told too_many_pings after the third, and end", function()
      local client = grpc.client(server)
      for _ = 1, 3 do
        client.core:ping()
      end
      client:wait(function() return false end)
      assert.same({ 11, true }, { client:state().goaway, client:state().closed })
    end)

    it("end when they make the server hold too much, whether they send it or do not take it", function()
      order(server, { most = 1000000 })
      local client = grpc.client(server)
      publish(client, "most", ("x"):rep(400000))
      local id = client.core:start("POST", "/Request/request", "application/grpc")
      client.core:write(id, string.pack(">BI4", 0, 9000000) .. ("x"):rep(2000000), false)
      client:wait(function() return false end)
      assert.is_true(client:state().closed)
      client = grpc.client(server)
      for _ = 1, 5 do -- nothing is read in between
        id = client.core:start("POST", "/Request/request", "application/grpc")
        client.core:write(id, grpc.frame(grpc.envelope("ConfigQueryRequest", json.encode(key "most"))), true)
      end
      client:wait(function() return false end)
      assert.is_true(client:state().closed)
    end)

    it("have 10,000 calls at a time, and no more", function()
      local client = grpc.client(server)
      local first, last
      for i = 1, 10000 do -- with the bi-stream it is one too many
        last = client.core:start("POST", "/Request/request", "application/grpc")
        first = i == 1 and last or first
      end
      assert.is_true(client:wait(function() return client.core:look(last).closed end))
      assert.equal(7, client.core:look(last).error)
      client.core:reset(first)
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
    end)

    it("of another protocol end", function()
      local client = grpc.connect(server)
      client.core:raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
      client:wait(function() return false end)
      assert.is_true(client:state().closed)
    end)
  end)

  describe("calls that are not right", function()
    it("get the status of a real server, and the connection lives", function()
      local client = grpc.client(server)
      local message = grpc.frame(grpc.envelope("HealthCheckRequest", "{}"))
      local function status(request)
        local answer = client:exchange(request)
        return { answer.http, answer.status, answer.message }
      end
      assert.same({ 415, 13, "" }, status { type = "", bytes = message })
      assert.same({ 415, 13, "" }, status { type = "text/plain", bytes = message })
      assert.same({ 405, 13, "" }, status { method = "GET" })
      assert.same({ 200, 12, "Method not found: Request/nope" }, status { path = "/Request/nope", bytes = message })
      assert.same({ 200, 2, "Application error processing RPC" }, status { bytes = grpc.frame("\x12\x7f") })
      assert.same({ 200, 13, "Can't decode compressed gRPC message as compression not configured" },
        status { bytes = "\1" .. message:sub(2) })
      assert.same({ 200, 13, "Half-closed without a request" }, status {})
      assert.same({ 200, 13, "Half-closed without a request" }, status { bytes = message:sub(1, -2) })
      assert.same({ 200, 13, "Too many requests" }, status { bytes = message .. message })
      assert.same({ 200, 8, "gRPC message exceeds maximum size 10485760: 10485761" },
        status { bytes = string.pack(">BI4", 0, 10485761) .. ("x"):rep(100000) })
      assert.same({ 200, 0, "" }, status { bytes = message })
    end)

    it("may be of a type that nobody knows, or no JSON", function()
      local client = grpc.client(server)
      for _, kind in ipairs { "NoSuchRequest", "" } do
        local body, answer = client:call(kind, {})
        assert.same({ "ErrorResponse", 302, "RequestHandler Not Found" }, { answer.type, body.errorCode, body.message })
      end
      for _, text in ipairs { "{bad", "[]", "1" } do
        assert.equal(502, client:call("ConfigQueryRequest", text).errorCode)
      end
    end)
  end)

  describe("configurations", function()
    it("are published, read, compared, and removed", function()
      local client = grpc.client(server)
      local absent, answer = client:call("ConfigQueryRequest", key "c")
      assert.equal("ConfigQueryResponse", answer.type)
      assert.same({ 500, 300, "config data not exist" }, { absent.resultCode, absent.errorCode, absent.message })
      assert.same({ resultCode = 200, errorCode = 0, success = true },
        (publish(client, "c", "hé你😀 \"q\"\n\0", { additionMap = { type = "json" } })))
      local body, read = client:call("ConfigQueryRequest", key("c", { tenant = "public" }))
      assert.same({ "hé你😀 \"q\"\n\0", "json", "" }, { body.content, body.contentType, body.encryptedDataKey })
      assert.matches([[\uD83D\uDE00]], read.text, 1, true) -- as real servers write it
      assert.equal("Cas publish fail, server md5 may have changed.", publish(client, "c", "x", { casMd5 = ("0"):rep(32) }).message)
      assert.equal(200, publish(client, "c", "x", { casMd5 = body.md5 }).resultCode)
      assert.equal("x", embedded.read(server, "c").body) -- and over HTTP it is the same one
      assert.equal(400, publish(client, "c", "").errorCode)
      assert.equal(400, client:call("ConfigQueryRequest", key "a b").errorCode)
      assert.equal(500, client:call("ConfigQueryRequest", { group = "G" }).errorCode)
      assert.equal(200, client:call("ConfigRemoveRequest", key "c").resultCode)
      assert.equal(300, client:call("ConfigQueryRequest", key "c").errorCode)
    end)

    it("of ten megabytes go both ways", function()
      local client, text = grpc.client(server), ("0123456789abcdef"):rep(640 * 1024)
      local content = text:sub(1, 10485760 - 300)
      assert.equal(200, publish(client, "large", content).resultCode)
      assert.equal(content, client:call("ConfigQueryRequest", key "large").content)
    end)

    it("that differ from what a listener knows are named, with its own words for the namespace", function()
      local client = grpc.client(server)
      publish(client, "l", "1")
      local md5 = client:call("ConfigQueryRequest", key "l").md5
      local body, answer = listen(client, { key("l", { md5 = md5 }), key("none", { md5 = "" }) })
      assert.equal("ConfigChangeBatchListenResponse", answer.type)
      assert.same({}, body.changedConfigs)
      body = listen(client, { key("l", { md5 = "", tenant = "public" }), key("none", { md5 = "x" }) })
      assert.same({ { dataId = "l", group = "G", tenant = "public" }, { dataId = "none", group = "G" } }, body.changedConfigs)
    end)

    it("are notified on every change from one listen, until the listener has enough", function()
      local client, other = grpc.client(server), grpc.client(server)
      listen(client, { key("n", { md5 = "" }), key("p", { md5 = "", tenant = "public" }) })
      listen(client, { key("n", { md5 = "", tenant = "other" }) })
      for i = 1, 3 do
        publish(other, "n", tostring(i))
        local push = client:next("ConfigChangeNotifyRequest")
        assert.same({ "n", "G", nil, "config" }, { push.dataId, push.group, push.tenant, push.module })
      end
      other:call("ConfigRemoveRequest", key "n")
      assert.equal("n", client:next("ConfigChangeNotifyRequest").dataId)
      embedded.publish(server, "p", "over HTTP")
      assert.equal("public", client:next("ConfigChangeNotifyRequest").tenant)
      publish(other, "n", "x", { tenant = "other" })
      assert.equal("other", client:next("ConfigChangeNotifyRequest").tenant)
      listen(client, { key("n", { md5 = "" }) }, false)
      publish(other, "n", "nobody listens")
      publish(other, "p", "the next")
      assert.equal("p", client:next("ConfigChangeNotifyRequest").dataId)
      eventually(function() return server:call("GET", "grpc").waiting == 0 end)
    end)

    it("are not notified to those who left", function()
      local client = grpc.client(server)
      listen(client, { key("left", { md5 = "" }) })
      assert.equal(1, server:call("GET", "grpc").listened)
      client:close()
      eventually(function() return server:call("GET", "grpc").listened == 0 end)
    end)
  end)

  describe("instances", function()
    it("live as long as their connection, one publisher per service", function()
      local client, other = grpc.client(server), grpc.client(server)
      local list, listed = subscribe(other, "s")
      assert.equal("SubscribeServiceResponse", listed.type)
      assert.same({ "success", "s", "G", "" },
        { list.message, list.serviceInfo.name, list.serviceInfo.groupName, ports(list.serviceInfo) })
      assert.is_truthy(pushed(other, "")) -- the first push comes unasked
      local body, answer = register(client, "s", 80)
      assert.same({ "InstanceResponse", 200, "registerInstance" }, { answer.type, body.resultCode, body.type })
      local info = pushed(other, "80").serviceInfo
      local host = info.hosts[1]
      assert.same({ "10.0.0.1#80#DEFAULT#G@@s", "G@@s", true, true, 1 },
        { host.instanceId, host.serviceName, host.ephemeral, host.healthy, host.weight })
      register(client, "s", 81) -- in place of the first
      assert.is_truthy(pushed(other, "81"))
      client:call("InstanceRequest", service("s", { type = "deregisterInstance", instance = instance(9) })) -- whatever the port
      assert.is_truthy(pushed(other, ""))
      register(client, "s", 82)
      assert.is_truthy(pushed(other, "82"))
      client:close()
      assert.is_truthy(pushed(other, ""))
    end)

    it("come in batches, which replace what was there", function()
      local client = grpc.client(server)
      local function batch(...)
        local list = {}
        for i, port in ipairs { ... } do
          list[i] = instance(port)
        end
        return client:call("BatchInstanceRequest", service("b", { type = "batchRegisterInstance", instances = list }))
      end
      register(client, "b", 1)
      local body = batch(2, 3, 4)
      assert.same({ 200, "batchRegisterInstance" }, { body.resultCode, body.type })
      assert.equal("2 3 4", seen(client, "b"))
      batch(2, 4)
      assert.equal("2 4", seen(client, "b"))
      client:call("InstanceRequest", service("b", { type = "deregisterInstance", instance = instance(2) }))
      assert.equal("", seen(client, "b"))
    end)

    it("may be persistent: they outlive the connection", function()
      local client, other = grpc.client(server), grpc.client(server)
      local what = service("lasting", { type = "registerInstance", instance = instance(7) })
      assert.equal(200, client:call("PersistentInstanceRequest", what).resultCode)
      local body = register(other, "lasting", 8)
      assert.equal("errCode: 400, errMsg: Current service G@@lasting is persistent service, can't register ephemeral instance. ",
        body.message)
      client:close()
      eventually(function() return #connections(server) == 1 end)
      assert.equal("7", seen(other, "lasting"))
      what.type = "deregisterInstance"
      assert.equal(200, other:call("PersistentInstanceRequest", what).resultCode)
      assert.equal("", seen(other, "lasting"))
    end)

    it("of both ways at one address stay until both are gone", function()
      local client = grpc.client(server)
      local query = { serviceName = "both", groupName = "G", ip = "10.0.0.1", port = "5" }
      assert.equal("ok", embedded.call(server, { "POST", "/nacos/v1/ns/instance", form = query }).body)
      register(client, "both", 5)
      embedded.call(server, { "DELETE", "/nacos/v1/ns/instance", query = query })
      assert.equal("5", seen(client, "both"))
      embedded.call(server, { "POST", "/nacos/v1/ns/instance", form = query })
      client:close()
      client = grpc.client(server)
      eventually(function() return #connections(server) == 1 end)
      assert.equal("5", seen(client, "both"))
      embedded.call(server, { "DELETE", "/nacos/v1/ns/instance", query = query })
      assert.equal("", seen(client, "both"))
    end)

    it("need a namespace and a group", function()
      local client = grpc.client(server)
      local body = client:call("ServiceQueryRequest", { namespace = "public", serviceName = "s" })
      assert.same({ 500, "Param 'groupName' is illegal, groupName is blank" }, { body.resultCode, body.message })
      assert.equal(500, client:call("ServiceQueryRequest", { groupName = "G", serviceName = "s" }).resultCode)
      assert.equal(400, register(client, "G@@s", 1).errorCode)
      assert.equal(400, register(client, "s", 70000).errorCode)
      body = client:call("InstanceRequest", service("s", { type = "zzz", instance = instance(1) }))
      assert.same({ 400, "Unsupported request type zzz" }, { body.resultCode, body.message })
    end)

    it("may be of either kind where a service has only followers yet", function()
      local client = grpc.client(server)
      local function listed()
        return client:call("ServiceListRequest", { namespace = "public", groupName = "K", pageNo = 1, pageSize = 9 }).count
      end
      subscribe(client, "kind")
      client:call("SubscribeServiceRequest", service("kind", { subscribe = true, groupName = "K" }))
      assert.equal(0, listed())
      local what = service("kind", { type = "registerInstance", instance = instance(7), groupName = "K" })
      assert.equal(200, client:call("PersistentInstanceRequest", what).resultCode)
      assert.equal(1, listed())
      what.type = "deregisterInstance"
      client:call("PersistentInstanceRequest", what)
      what.type = "registerInstance"
      assert.equal(400, client:call("InstanceRequest", what).errorCode) -- now its kind is known
    end)

    it("stand in the list of services", function()
      local client = grpc.client(server)
      for i = 1, 3 do
        client:call("InstanceRequest", service("list" .. i, { type = "registerInstance", instance = instance(i), groupName = "L" }))
      end
      local body = client:call("ServiceListRequest", { namespace = "public", groupName = "L", pageNo = 2, pageSize = 2 })
      assert.same({ 3, 1 }, { body.count, #body.serviceNames })
    end)

    it("are not pushed after the end of a subscription", function()
      local client = grpc.client(server)
      subscribe(client, "u")
      assert.is_truthy(pushed(client, ""))
      assert.equal("success", subscribe(client, "u", false).message)
      assert.equal(0, server:call("GET", "grpc").followed)
    end)
  end)

  describe("pushes", function()
    it("come again without an acknowledgement that fits", function()
      local client = grpc.client(server)
      client.no_acks = true
      order(server, { again_ms = 50 })
      listen(client, { key("again", { md5 = "" }) })
      publish(client, "again", "1")
      local first = client:next("ConfigChangeNotifyRequest")
      client:ack(first, "ConfigChangeNotifyRequest", 500) -- it could not be used
      local second = client:next("ConfigChangeNotifyRequest")
      assert.not_equal(first.requestId, second.requestId)
      client:ack(second, "NoSuchRequest")
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
      assert.equal(1, server:call("GET", "grpc").waiting)
      client:ack(client:next("ConfigChangeNotifyRequest"), "NotifySubscriberRequest") -- any answer will do that is one
      eventually(function() return server:call("GET", "grpc").waiting == 0 end)
      publish(client, "again", "2")
      first, second = client:next("ConfigChangeNotifyRequest"), client:next("ConfigChangeNotifyRequest")
      assert.same({ "again", "again" }, { first.dataId, second.dataId })
      subscribe(client, "again")
      assert.equal(client:next("NotifySubscriberRequest").serviceInfo.name, client:next("NotifySubscriberRequest").serviceInfo.name)
    end)
  end)

  it("writes lists as real servers do, in answers and pushes", function()
    local client = grpc.client(server)
    local what = instance(1)
    what.metadata = { smile = "你😀" }
    client:call("InstanceRequest", service("utf", { type = "registerInstance", instance = what }))
    local _, answer = subscribe(client, "utf")
    assert.matches([["smile":"你\uD83D\uDE00"]], answer.text, 1, true)
    local kind, _, text
    repeat
      kind, _, text = client:push()
    until kind ~= "SetupAckRequest"
    assert.equal("NotifySubscriberRequest", kind)
    assert.matches([["smile":"你\uD83D\uDE00"]], text, 1, true)
  end)

  it("does not try again and again to push a list that is too large for a message", function()
    local client, other, follower = grpc.client(server), grpc.client(server), grpc.client(server)
    subscribe(follower, "vast")
    assert.is_truthy(pushed(follower, ""))
    for i, publisher in ipairs { client, other } do
      local what = instance(i)
      what.metadata = { big = ("x"):rep(6000000) }
      publisher:call("InstanceRequest", service("vast", { type = "registerInstance", instance = what }))
    end
    eventually(function()
      return client:call("ServiceQueryRequest", service("vast", {})).message == "the answer is too large"
    end)
    eventually(function() -- the list of one may have been pushed
      follower:next("NotifySubscriberRequest", 0.02)
      return server:call("GET", "grpc").waiting == 0
    end)
    assert.equal(200, follower:call("HealthCheckRequest", {}).resultCode)
  end)

  it("survives whatever is in a message", function()
    local client = grpc.client(server)
    local odd = { "", "\0", "a\0b", "😀", ("x"):rep(5000), -1, 1e300, true, json.null, {}, { {} }, { a = { b = "c" } } }
    local members = { "dataId", "group", "tenant", "content", "casMd5", "additionMap", "listen", "configListenContexts",
      "namespace", "serviceName", "groupName", "clusters", "cluster", "subscribe", "type", "instance", "instances", "pageNo",
      "pageSize", "headers" }
    for _, kind in ipairs { "ConfigQueryRequest", "ConfigPublishRequest", "ConfigRemoveRequest", "ConfigBatchListenRequest",
      "InstanceRequest", "PersistentInstanceRequest", "BatchInstanceRequest", "SubscribeServiceRequest", "ServiceQueryRequest",
      "ServiceListRequest", "ServerCheckRequest", "HealthCheckRequest" } do
      local whole = service("odd", { dataId = "odd", group = "G", content = "x", subscribe = true, pageNo = 1, pageSize = 9,
        type = kind == "BatchInstanceRequest" and "batchRegisterInstance" or "registerInstance", instance = instance(1),
        instances = { instance(1) }, configListenContexts = { key "odd" } })
      for _, member in ipairs(members) do
        for _, value in ipairs(odd) do
          local usual = whole[member]
          whole[member] = value
          local id = client.core:start("POST", "/Request/request", "application/grpc")
          client.core:write(id, grpc.frame(grpc.envelope(kind, json.encode(whole))), true)
          whole[member] = usual
        end
      end
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
    end
  end)

  it("asks for the token of a login when there is a user", function()
    local folder = support.tmpdir()
    support.write(folder .. "/password", "secret\n")
    local closed = support.start_server { "--username", "u", "--password-file", folder .. "/password" }
    local login = embedded.call(closed, { "POST", "/nacos/v1/auth/login", form = { username = "u", password = "secret" } })
    local token = json.decode(login.body).accessToken
    local client = grpc.client(closed)
    local function query(headers, more)
      return client:call("ConfigQueryRequest", key("d", more), headers)
    end
    local body, answer = query()
    assert.same({ "ConfigQueryResponse", 500, 403 }, { answer.type, body.resultCode, body.errorCode })
    assert.equal("Code: 401, Message: User not found! Please check user exist or password is right!.", body.message)
    assert.equal("Code: 401, Message: token invalid!.", query({ accessToken = "junk" }).message)
    assert.equal(403, query({ accesstoken = token }).errorCode)
    assert.equal(300, query({ accessToken = token }).errorCode) -- it is absent, but one may know that
    assert.equal(300, query({ Authorization = "Bearer " .. token }).errorCode)
    assert.equal(300, query({ username = "u", password = "secret" }).errorCode)
    assert.equal(300, query(nil, { headers = { accessToken = token } }).errorCode)
    for _, headers in ipairs { { username = "u", password = "no" }, { username = "v", password = "secret" }, { username = "u" },
      { accessToken = token .. "x" }, { Authorization = token }, { accessToken = ("x"):rep(100000) } } do
      assert.equal(403, query(headers).errorCode)
    end
    for _, kind in ipairs { "ConfigPublish", "ConfigRemove", "ConfigBatchListen", "Instance", "PersistentInstance", "BatchInstance",
      "SubscribeService", "ServiceQuery", "ServiceList" } do
      assert.equal(403, client:call(kind .. "Request", service("s")).errorCode, kind)
    end
    assert.equal(200, client:call("ServerCheckRequest", {}).resultCode)
    closed:call("POST", "expire")
    assert.equal("Code: 401, Message: token invalid!.", query({ accessToken = token }).message)
    client:close()
    closed:stop()
  end)

  describe("faults", function()
    it("answer, delay, reset, and break calls", function()
      local client = grpc.client(server)
      local function fault(what)
        what.path, what.times = "ConfigQueryRequest", 1
        server:faults(what)
        return client:call("ConfigQueryRequest", key "f")
      end
      for _, code in ipairs { 300, 301, 302, 403, -401 } do
        assert.equal(code, fault { code = code }.errorCode)
      end
      assert.equal(300, fault { delay = 0.05 }.errorCode)
      local _, answer = fault { reset = true }
      assert.same({ true, 8 }, { answer.closed, answer.error })
      assert.equal(14, select(2, fault { grpc_status = 14 }).status)
      assert.equal(503, select(2, fault { status = 503 }).http)
      _, answer = fault { garbage = true }
      assert.same({ 0, nil }, { answer.status, answer.type })
      _, answer = fault { length = 1000 }
      assert.equal(1000, (string.unpack(">I4", answer.data, 2)))
      server:faults { path = "ConfigQueryRequest", times = 1, hang = true }
      answer = client:exchange { bytes = grpc.frame(grpc.envelope("ConfigQueryRequest", "{}")), seconds = 0.1 }
      assert.is_false(answer.closed)
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
      fault { drop_at = 10 }
      assert.is_true(client:state().closed)
    end)

    it("hurt connections: GOAWAY, RST, an end, nonsense, silence", function()
      local client = grpc.client(server)
      order(server, { goaway = true })
      client:wait(function() return client.core:state().goaway == 0 end)
      assert.equal(0, client:state().goaway)
      client:close()

      client = grpc.client(server)
      client:next("SetupAckRequest")
      order(server, { reset_stream = true })
      assert.is_nil(client:push())
      assert.same({ true, 8 }, { client.last.closed, client.last.error })
      client:close()

      client = grpc.client(server)
      client:next("SetupAckRequest")
      order(server, { end_stream = true })
      assert.is_nil(client:push())
      assert.same({ true, 0 }, { client.last.closed, client.last.status })
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
      client:close()

      for _, what in ipairs { { garbage = true }, { close = true }, { drop_at = 0, detect = true } } do
        client = grpc.client(server)
        order(server, what)
        client:wait(function() return false end)
        assert.is_true(client:state().closed)
        client:close()
      end

      client = grpc.client(server)
      order(server, { freeze = true })
      local bytes = grpc.frame(grpc.envelope("HealthCheckRequest", "{}"))
      assert.is_false(client:exchange { bytes = bytes, seconds = 0.1 }.closed)
      order(server, { freeze = false })
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
    end)

    it("repeat pushes, ignore acknowledgements, invent pushes, and send clients away", function()
      local client = grpc.client(server)
      listen(client, { key("x", { md5 = "" }) })
      order(server, { duplicate = true })
      publish(client, "x", "1")
      assert.equal(client:next("ConfigChangeNotifyRequest").requestId, client:next("ConfigChangeNotifyRequest").requestId)
      order(server, { duplicate = false, ignore_acks = true })
      publish(client, "x", "2")
      assert.is_truthy(client:next("ConfigChangeNotifyRequest"))
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
      assert.equal(1, server:call("GET", "grpc").waiting)
      order(server, { connect_reset = "10.0.0.2:8848" })
      local reset = client:next("ConnectResetRequest")
      assert.same({ "10.0.0.2", "8848" }, { reset.serverIp, reset.serverPort })
      order(server, { push = { type = "ConfigChangeNotifyRequest", json = '{"requestId":"77","dataId":"never"}' } })
      assert.equal("never", client:next("ConfigChangeNotifyRequest").dataId)
    end)

    it("narrow windows and close the port", function()
      order(server, { window = 1 })
      local client = grpc.client(server)
      assert.equal(1, client:state().settings[4])
      assert.equal(200, publish(client, "narrow", "x").resultCode)
      order(server, { port = false })
      assert.is_nil(grpc.connect(server))
      assert.equal(200, client:call("HealthCheckRequest", {}).resultCode)
      order(server, { port = true, freeze_new = true })
      local frozen = grpc.connect(server)
      local bytes = grpc.frame(grpc.envelope("ServerCheckRequest", "{}"))
      assert.is_false(frozen:exchange { bytes = bytes, seconds = 0.1 }.closed)
      order(server, { freeze = false })
    end)

    it("show what was said", function()
      local client = grpc.client(server)
      server:clear_requests()
      client:call("ConfigQueryRequest", key "shown", { name = "value" })
      local request = server:requests().requests[1]
      assert.same({ "GRPC", "ConfigQueryRequest", "value" }, { request.method, request.path, request.headers.name })
      assert.equal("shown", json.decode(request.body).dataId)
    end)
  end)

  it("says goodbye at its end", function()
    local own = support.start_server()
    local client = grpc.client(own)
    own:stop()
    client:wait(function() return false end)
    assert.same({ true, 0 }, { client:state().closed, client:state().goaway })
    assert.same({ true, 8 }, { client.core:look(client.stream).closed, client.core:look(client.stream).error })
  end)

  it("is one of three APIs to choose", function()
    local old = support.start_server { "--api", "v1" }
    assert.is_nil(grpc.connect(old))
    old:stop()
    local new = support.start_server { "--api", "v3,grpc" }
    local page = embedded.read(new, "d")
    embedded.assert_error_page(page, 404, "Not Found", "No endpoint GET /nacos/v1/cs/configs.", "/nacos/v1/cs/configs")
    page = embedded.call(new, { "PUT", "/nacos/v1/ns/instance/beat" })
    local beat = "/nacos/v1/ns/instance/beat"
    embedded.assert_error_page(page, 501, "Not Implemented", "no such api:PUT:" .. beat, beat)
    assert.equal(200, embedded.call(new, { "GET", "/nacos/v1/ns/operator/metrics" }).status)
    grpc.client(new):close()
    new:stop()
  end)
end)
