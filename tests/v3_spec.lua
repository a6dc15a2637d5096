--- The client over the v3 HTTP API, where servers tell nobody of changes: it looks itself.

local json = require "cjson.safe"
local lab = require "lab"
local support = require "support"

local CONFIG, ADMIN = "/v3/client/cs/config", "/v3/admin/cs/config"
local INSTANCE, ADMIN_INSTANCE, SERVICE = "/v3/client/ns/instance", "/v3/admin/ns/instance", "/v3/admin/ns/service"
local NOBODY = '{"status":403,"message":"Code: 401, Message: User not found! Please check user exist or password is right!."}'

describe("the client by v3", function()
  local server, client, unique

  local function v3(opts)
    local all = { protocol = "v3", poll_interval = 0.1 }
    for name, value in pairs(opts or {}) do
      all[name] = value
    end
    return lab.client(server, all)
  end

  setup(function()
    server = support.start_server { "--push-delay", "0", "--api", "v3" }
    unique = 0
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    client = v3()
    server:clear_requests()
  end)
  after_each(function()
    server:clear_faults()
    lab.close_all()
  end)

  ---A name nobody used before.
  local function name()
    unique = unique + 1
    return "name" .. unique
  end

  local function publish(id, content)
    assert(client:publish_config(id, nil, content, { type = "text" }))
  end

  ---A watcher of an item, which has seen its first value.
  local function watch(id, watcher)
    local seen, callback = lab.recorder()
    assert((watcher or client):add_config_watcher(id, nil, callback))
    support.eventually(function() return seen.n == 1 end)
    return seen
  end

  local function refusal(code, value, err)
    assert.is_nil(value)
    assert.equal(code, err.code, err.message)
    return err.message
  end

  describe("reads and writes configurations:", function()
    it("any text, with its type", function()
      local id, content = name(), "a: \"\\ \u{1F600}\n\0\1 b"
      assert(client:publish_config(id, "G", content, { type = "yaml", desc = "d", tags = "t,u" }))
      local got, source, info = client:get_config(id, "G")
      assert.same({ content, "server", "yaml" }, { got, source, info.type })
      assert.equal("public", lab.form(lab.requests(server, CONFIG, "GET")[1].query).namespaceId)
      assert.is_true(client:remove_config(id, "G"))
      refusal("not_found", client:get_config(id, "G"))
      assert.is_true(client:remove_config(id, "G"))
    end)

    it("only over the expected content", function()
      local id = name()
      publish(id, "one")
      refusal("conflict", client:publish_config(id, nil, "two", { cas_md5 = ("0"):rep(32) }))
      assert(client:publish_config(id, nil, "two", { cas_md5 = require("nacos").md5("one") }))
      assert.equal("two", client:get_config(id))
    end)

    it("in lists", function()
      publish("list-a", "1")
      publish("list-b", "2")
      local page = assert(client:get_configs { data_id = "list-*" })
      assert.same({ 2, 1, "list-a", "DEFAULT_GROUP", "text" },
        { page.total, page.pages, page.items[1].data_id, page.items[1].group, page.items[1].type })
    end)

    it("but believes no answer that holds none", function()
      local id = name()
      publish(id, "x")
      for _, body in ipairs {
        "", "{}", "[]", "null", "<html>", '{"code":0}', '{"code":0,"data":null}', '{"code":0,"data":{"content":null,"md5":"x"}}',
        '{"code":0,"data":{"content":"x"}}', '{"code":0,"data":{"content":"x","md5":"9dd4e461268c8034f5c8564e155c67a7"}}',
        '{"code":"0","data":{}}', "{" .. ('"a":{'):rep(3000),
      } do
        server:faults { path = "/nacos" .. CONFIG, status = 200, body = body, times = 1 }
        refusal("protocol", client:get_config { data_id = id, no_snapshot = true })
      end
      server:faults { path = "/nacos" .. CONFIG, status = 200, body = '{"code":30000,"message":"no","data":null}', times = 1 }
      refusal("refused", client:get_config(id))
    end)

    it("and says what the admin API wants when it refuses", function()
      server:faults { path = "/nacos" .. ADMIN, status = 403, body = NOBODY }
      local why = refusal("forbidden", client:publish_config(name(), nil, "x"))
      assert.truthy(why:find("admin API", 1, true) and why:find("username", 1, true), why)
    end)
  end)

  describe("notices changes:", function()
    it("a change, a removal and a new item", function()
      local id = name()
      publish(id, "one")
      local seen = watch(id)
      publish(id, "two")
      support.eventually(function() return seen[2] == "two" end)
      assert.equal("compare", seen.last.via)
      assert(client:remove_config(id))
      support.eventually(function() return seen[3] == false end)
      publish(id, "three")
      support.eventually(function() return seen[4] == "three" end)
      assert.same({ 4, 0 }, { seen.n, #lab.requests(server, lab.LISTENER) })
    end)

    it("asks for each item once in an interval, whatever their number", function()
      local slow = v3 { poll_interval = 2 }
      local ids = {}
      for i = 1, 20 do
        ids[i] = name()
        publish(ids[i], "x")
        watch(ids[i], slow)
      end
      server:clear_requests()
      local function asked()
        local counts, kinds, most = {}, 0, 0
        for _, request in ipairs(lab.requests(server, CONFIG, "GET")) do
          local id = lab.form(request.query).dataId
          kinds = kinds + (counts[id] and 0 or 1)
          counts[id] = (counts[id] or 0) + 1
          most = math.max(most, counts[id])
        end
        return kinds == 20 and most
      end
      local begin = lab.now()
      local most = support.eventually(asked, 10)
      assert.is_true(most <= 1 + (lab.now() - begin) / 1, "one was asked for " .. most .. " times")
    end)

    it("after an outage, in which it asks seldom", function()
      local id = name()
      publish(id, "one")
      local seen = watch(id)
      server:faults { path = "/nacos" .. CONFIG, status = 503, body = "down" }
      server:clear_requests()
      support.eventually(function() return #lab.requests(server, CONFIG, "GET") >= 3 end)
      local begin, before = lab.now(), #lab.requests(server, CONFIG, "GET")
      support.eventually(function() return lab.now() - begin > 1 end)
      assert.is_true(#lab.requests(server, CONFIG, "GET") - before <= 4)
      publish(id, "two")
      server:clear_faults()
      support.eventually(function() return seen.last.content == "two" end, 10)
      assert.equal(2, seen.n)
    end)

    it("also when an outage ends while nothing is watched", function()
      local id = name()
      publish(id, "one")
      local seen, callback = lab.recorder()
      assert(client:add_config_watcher(id, nil, callback))
      support.eventually(function() return seen.n == 1 end)
      server:faults { path = "/nacos" .. CONFIG, status = 503, body = "down" }
      server:clear_requests()
      support.eventually(function() return #lab.requests(server, CONFIG, "GET") > 0 end)
      client:remove_config_watcher(id, nil, callback)
      local begin = lab.now() -- the next turn passes
      support.eventually(function() return lab.now() - begin > 0.5 end)
      server:clear_faults()
      seen = watch(id)
      publish(id, "two")
      support.eventually(function() return seen[2] == "two" end)
    end)

    it("and reports what forbids it, once, until it may again", function()
      local id, told = name(), {}
      publish(id, "one")
      local seen = watch(id, v3 { on_error = function(err) told[#told + 1] = err end })
      local body = '{"message":"Code: 403, Message: authorization failed!."}'
      server:faults { path = "/nacos" .. CONFIG, status = 403, body = body, times = 5 }
      publish(id, "two")
      support.eventually(function() return seen[2] == "two" end)
      assert.same({ 1, "forbidden" }, { #told, told[1] and told[1].code })
    end)
  end)

  describe("keeps instances:", function()
    local function listed(service)
      local status, body = support.http("GET", ("%s%s/list?serviceName=%s&clusterName=,"):format(server.url, INSTANCE, service))
      assert.equal(200, status)
      return json.decode(body).data
    end

    it("registers, modifies and deregisters", function()
      local service = name()
      assert(client:add_naming_instance { service_name = service, ip = "10.0.0.1", port = 80, weight = 2, metadata = { a = "b" } })
      local host = listed(service)[1]
      assert.same({ "10.0.0.1", 80, 2, { a = "b" } }, { host.ip, host.port, host.weight, host.metadata })
      assert(client:modify_naming_instance {
        service_name = service, ip = "10.0.0.1", port = 80, weight = 5, metadata = { a = "c" },
      })
      local one = assert(client:get_naming_instance { service_name = service, ip = "10.0.0.1", port = 80 })
      assert.same({ 5, "c" }, { one.weight, one.metadata.a })
      refusal("not_found", client:get_naming_instance { service_name = service, ip = "10.0.0.9", port = 80 })
      assert(client:remove_naming_instance { service_name = service, ip = "10.0.0.1", port = 80 })
      assert.same({}, listed(service))
    end)

    it("sends beats, and registers again what the server has forgotten", function()
      local service = name()
      assert(client:add_naming_instance {
        service_name = service, ip = "10.0.0.1", port = 80, heartbeat_interval = 0.5, metadata = { a = "b" },
      })
      support.eventually(function() return client:status().beats >= 1 end)
      assert.equal("true", lab.form(lab.requests(server, INSTANCE, "POST")[2].query).heartBeat)
      server:call("POST", "naming/forget", "")
      support.eventually(function() return #listed(service) == 1 end)
      assert.same({ "b", 1 }, { listed(service)[1].metadata.a, client:status().reregistrations })
    end)

    it("sends single beats", function()
      local service = name()
      assert.equal(20404, client:send_heartbeat(service, "10.0.0.1", 80).code)
      assert(client:add_naming_instance { service_name = service, ip = "10.0.0.1", port = 80 })
      assert.equal(10200, client:send_heartbeat(service, "10.0.0.1", 80).code)
    end)

    it("does without the admin API where it is not let in", function()
      local service = name()
      assert(client:add_naming_instance { service_name = service, ip = "10.0.0.1", port = 80 })
      server:faults { path = "/nacos" .. ADMIN_INSTANCE, status = 403, body = NOBODY }
      assert(client:modify_naming_instance { service_name = service, ip = "10.0.0.1", port = 80, weight = 5 })
      assert.equal(5, listed(service)[1].weight)
      assert.equal(5, client:get_naming_instance({ service_name = service, ip = "10.0.0.1", port = 80 }).weight)
    end)
  end)

  describe("finds services:", function()
    local function register(service, port, more)
      local instance = { service_name = service, ip = "10.0.0.1", port = port }
      for field, value in pairs(more or {}) do
        instance[field] = value
      end
      assert(client:add_naming_instance(instance))
    end

    it("lists the instances of all clusters, of some, and the healthy ones", function()
      local service = name()
      register(service, 1)
      register(service, 2, { cluster_name = "c2" })
      register(service, 3, { cluster_name = "c3", healthy = false })
      for clusters, count in pairs { [""] = 3, c2 = 1, ["c2,c3"] = 2 } do
        assert.equal(count, #client:list_naming_instance { service_name = service, clusters = clusters ~= "" and clusters or nil })
      end
      assert.equal(2, #client:list_naming_instance { service_name = service, healthy_only = true })
      assert.same({}, client:list_naming_instance { service_name = name() })
    end)

    it("follows one", function()
      local service, ports = name(), {}
      register(service, 1)
      client:subscribe {
        service_name = service, listener_interval = 1,
        listener_fn = function(event, instance)
          ports[#ports + 1] = event .. instance.port
        end,
      }
      support.eventually(function() return #ports == 1 end)
      register(service, 2)
      support.eventually(function() return #ports == 2 end, 8)
      assert.same({ "ADDED1", "ADDED2" }, ports)
    end)

    it("creates, reads, changes, lists and removes them", function()
      local group, service = name(), name()
      assert(client:create_service { service_name = service, group_name = group, protect_threshold = 0.5, metadata = { k = "v" } })
      assert(client:create_service { service_name = service, group_name = group .. "-more" })
      local got = assert(client:get_service(service, group))
      assert.same({ 0.5, { k = "v" }, "none" }, { got.protect_threshold, got.metadata, got.selector.type })
      assert(client:update_service { service_name = service, group_name = group, protect_threshold = 0.25 })
      assert.equal(0.25, client:get_service(service, group).protect_threshold)
      assert.same({ total = 1, items = { service } }, client:list_services { group_name = group })
      assert(client:remove_service(service, group))
      refusal("not_found", client:get_service(service, group))
    end)

    it("but believes no answer that holds no list", function()
      for _, data in ipairs { "null", '"ok"', "{}", "[]" } do
        server:clear_faults()
        server:faults { path = "/nacos" .. SERVICE .. "/list", status = 200, body = '{"code":0,"data":' .. data .. "}" }
        refusal("protocol", client:list_services { timeout = 2 })
      end
    end)

    it("and says what the admin API wants when it refuses", function()
      server:faults { path = "/nacos" .. SERVICE, status = 403, body = NOBODY }
      local why = refusal("forbidden", client:create_service { service_name = name() })
      assert.truthy(why:find("admin API", 1, true), why)
    end)
  end)

  it("goes on when a gateway closes the admin API", function()
    local id, auto = name(), v3 { protocol = "auto" }
    publish(id, "one")
    local seen = watch(id, auto)
    server:clear_requests()
    server:faults { path = "/nacos" .. ADMIN, status = 404, body = "<html>" }
    refusal("unsupported", auto:publish_config(id, nil, "x"))
    refusal("unsupported", auto:remove_config(id))
    server:clear_faults()
    publish(id, "two")
    support.eventually(function() return seen[2] == "two" end)
    assert.same({ "v3", 0, 0 }, { auto:status().protocol, #lab.requests(server, lab.CONFIGS), #lab.requests(server, lab.LISTENER) })
  end)

  it("tells which protocol it speaks", function()
    assert(client:publish_config(name(), nil, "x"))
    assert.equal("v3", client:status().protocol)
  end)
end)
