--- Services: registering, finding and following instances; beats and what happens without them.
-- What takes half a minute (silence, protection) is begun before the first test and looked at by the last ones.
-- @each-protocol
-- luacheck: std lua54+busted

local json = require "cjson.safe"
local nacos = require "nacos"
local support = require "support"
local target = require "conformance.target"
local uv = require "luv"

local SOON = 3 -- seconds. A real server tells of a change after 0.6 s
local FAST = { -- the server need not wait long until it gives up an instance
  metadata = json.encode {
    ["preserved.heart.beat.interval"] = "1000", ["preserved.heart.beat.timeout"] = "1000",
    ["preserved.ip.delete.timeout"] = "600000",
  },
}
local V3, GRPC = target.protocol == "v3", target.protocol == "grpc"

local function now()
  return uv.hrtime() / 1e9
end

---`ip:port` of each, sorted.
local function addresses(list)
  local found = {}
  for i, instance in ipairs(list) do
    found[i] = instance.ip .. ":" .. instance.port
  end
  table.sort(found)
  return table.concat(found, " ")
end

---Wait until the list has these addresses. @return the list
local function lists(client, wanted, service, how)
  how = how or {}
  how.service_name = service
  local list, err, info
  support.eventually(function()
    list, err, info = client:list_naming_instance(how)
    return list and addresses(list) == wanted, "listed is " .. (list and addresses(list) or tostring(err))
  end, SOON)
  return list, info
end

---Wait until the one listed instance has this value. @return it
local function shows(client, service, name, value)
  local one
  support.eventually(function()
    local list = client:list_naming_instance(service)
    one = list and list[1]
    return one and one[name] == value, name .. " is " .. tostring(one and one[name])
  end, SOON)
  return one
end

---Follow a service; the newest state is .last, every one is kept.
local function follow(client, service, opts)
  local seen = {}
  assert(client:watch_service(service, opts, function(change)
    seen[#seen + 1] = change
    seen.last = change
  end))
  return seen
end

local function follows(seen, wanted, seconds)
  support.eventually(function()
    return seen.last and addresses(seen.last.instances) == wanted,
      ("the newest of %d is %s"):format(#seen, seen.last and addresses(seen.last.instances))
  end, seconds or SOON)
end

-- ---- the slow ones: begun here ------------------------------------------------------------------------------------------------

local slow = { silent = "silent-" .. target.group(), protected = "protected-" .. target.group(), heard = {} }

---Note when an instance became healthy, unhealthy and gone, in seconds since the beginning.
local function listen_slowly()
  slow.client = target.client()
  slow.began = now()
  assert(slow.client:subscribe {
    service_name = slow.silent, listener_interval = 1, hold = 0,
    listener_fn = function(event, instance)
      local heard = slow.heard[instance.ip] or {}
      slow.heard[instance.ip] = heard
      heard[event == "DELETED" and "gone" or instance.healthy and "healthy" or "unhealthy"] = now() - slow.began
    end,
  })
  target.instance(slow.silent, "10.0.0.1", 80)
  assert(slow.client:add_naming_instance(slow.silent, "10.0.0.2", 80))
  -- its interval is the server's to say: 1 s
  assert(slow.client:add_naming_instance {
    service_name = slow.silent, ip = "10.0.0.3", port = 80,
    metadata = {
      ["preserved.heart.beat.interval"] = "1000", ["preserved.heart.beat.timeout"] = "3000",
      ["preserved.ip.delete.timeout"] = "6000",
    },
  })
  slow.began = now()

  assert(slow.client:add_naming_instance(slow.protected, "10.0.1.1", 80))
  target.instance(slow.protected, "10.0.1.2", 80, FAST)
  target.instance(slow.protected, "10.0.1.3", 80, FAST)
  target.threshold(slow.protected, 0.7)
  slow.protection = follow(slow.client, slow.protected, { interval = 1 })
end

describe(("services of %s by %s"):format(target.name, target.protocol), function()
  local client

  setup(function()
    client = target.client { no_snapshot = true }
    listen_slowly()
  end)
  teardown(function()
    target.close_all()
    target.stop()
  end)

  if target.protocol == "v1" then it("answer as the client expects", function()
    local service = "raw-" .. target.group()
    local INSTANCE, BEAT, LIST = "/v1/ns/instance", "/v1/ns/instance/beat", "/v1/ns/instance/list"
    local function ask(method, path, params)
      params.serviceName = params.serviceName or service
      return target.request(method, path, params)
    end
    local function answer(method, path, params)
      local status, body = ask(method, path, params)
      assert.are.equal(200, status, body)
      return assert(json.decode(body), body)
    end
    local function says(wanted, method, path, params)
      local status, body = ask(method, path, params)
      assert.are.equal(wanted, status .. " " .. body)
    end
    -- one that nobody knows
    local list = answer("GET", LIST, { groupName = "G9", clusters = "A,B" })
    assert.are.equal("G9@@" .. service, list.name)
    assert.are.equal("A,B", list.clusters)
    assert.are.same({}, list.hosts)
    assert.is_false(list.reachProtectionThreshold)
    assert.are.equal(20404, answer("PUT", BEAT, { ip = "10.0.0.1", port = 80 }).code)
    says("200 ok", "DELETE", INSTANCE, { ip = "10.0.0.1", port = 80 })
    -- a known one
    says("200 ok", "POST", INSTANCE, { ip = "10.0.0.1", port = 80, clusterName = "A", weight = 2, metadata = '{"a":"b"}' })
    local beat = answer("PUT", BEAT, { ip = "10.0.0.1", port = 80 })
    assert.are.same({ clientBeatInterval = 5000, code = 10200, lightBeatEnabled = true }, beat)
    support.eventually(function()
      list = answer("GET", LIST, {})
      return #list.hosts == 1
    end)
    assert.are.equal("DEFAULT_GROUP@@" .. service, list.name)
    assert.are.equal(10000, list.cacheMillis)
    assert.are.equal("integer", math.type(math.tointeger(list.lastRefTime)))
    local host = list.hosts[1]
    for name, value in pairs {
      ip = "10.0.0.1", port = 80, weight = 2, healthy = true, enabled = true, ephemeral = true, clusterName = "A",
      serviceName = "DEFAULT_GROUP@@" .. service, instanceId = "10.0.0.1#80#A#DEFAULT_GROUP@@" .. service,
    } do
      assert.are.equal(value, host[name], name)
    end
    assert.are.same({ a = "b" }, host.metadata)
    -- whole beats register, and change nothing of what is known
    for _, weight in ipairs { 3, 4 } do
      assert.are.equal(10200, answer("PUT", BEAT, { ip = "10.0.0.2", port = 80, beat = json.encode {
        serviceName = "DEFAULT_GROUP@@" .. service, ip = "10.0.0.2", port = 80, cluster = "DEFAULT", weight = weight,
        metadata = { ["preserved.heart.beat.interval"] = "2000" }, ephemeral = true,
      } }).code)
    end
    assert.are.equal(2000, answer("PUT", BEAT, { ip = "10.0.0.2", port = 80 }).clientBeatInterval)
    support.eventually(function()
      list = answer("GET", LIST, { clusters = "DEFAULT,X" })
      return #list.hosts == 1
    end)
    assert.are.equal(3, list.hosts[1].weight)
    -- what is refused
    local status, body = ask("POST", INSTANCE, { ip = "10.0.0.3", port = 80, ephemeral = "false" })
    assert.are.equal(400, status)
    assert.matches("is ephemeral service, can't register persistent instance", body, 1, true)
    status, body = ask("POST", INSTANCE, { ip = "10.0.0.3", port = 80, weight = -1 })
    assert.is_true(status == 400 or status == 500)
    assert.matches("The weights range from 0.0 to 10000.0", body, 1, true)
    status, body = ask("POST", INSTANCE, { ip = "10.0.0.3", port = 80, metadata = '{"preserved.heart.beat.interval":"30000"}' })
    assert.is_true(status == 400 or status == 500)
    assert.matches("heart beat interval", body, 1, true)
    status, body = ask("POST", INSTANCE, { port = 80 })
    assert.are.equal(400, status)
    assert.matches("Param 'ip' is required.", body, 1, true)
    -- what 3.1.0 no longer offers
    status, body = ask("GET", INSTANCE, { ip = "10.0.0.9", port = 80, clusterName = "A" })
    if target.v3_only then
      assert.are.equal(410, status)
      assert.are.equal(410, (ask("PUT", INSTANCE, { ip = "10.0.0.1", port = 80 })))
      assert.are.equal(410, (ask("GET", "/v1/ns/service", {})))
      return
    end
    assert.is_true(status == 404 or status == 500)
    assert.matches("no matched ip found!", body, 1, true)
    status, body = ask("GET", INSTANCE, { ip = "10.0.0.1", port = 80, serviceName = "none-" .. service })
    assert.is_true(status == 404 or status == 500)
    assert.matches("no ips found for cluster DEFAULT in service DEFAULT_GROUP@@none-" .. service, body, 1, true)
    says("200 ok", "PUT", INSTANCE, { ip = "10.0.0.99", port = 80 }) -- also when there is no such instance
    status, body = ask("POST", "/v1/ns/service", {})
    assert.is_true(status == 400 or status == 500)
    assert.matches("already exists", body, 1, true)
    status, body = ask("DELETE", "/v1/ns/service", {})
    assert.is_true(status == 400 or status == 500)
    assert.matches("is not empty", body, 1, true)
  end) end

  it("have no instances until one is registered, and none after it is removed", function()
    local service = "life-" .. target.group()
    assert.are.same({}, assert(client:list_naming_instance(service)))
    local one, err = client:select_instance(service)
    assert.is_nil(one)
    assert.are.equal("not_found", err.code)

    assert(client:add_naming_instance(service, "10.0.0.1", 8080, nil, 2.5, { zone = "a" }))
    local list, info = lists(client, "10.0.0.1:8080", service)
    one = list[1]
    assert.are.equal("DEFAULT", one.cluster_name)
    assert.are.equal(2.5, one.weight)
    assert.are.same({ zone = "a" }, one.metadata)
    assert.is_true(one.healthy and one.enabled and one.ephemeral)
    assert.are.equal(service, one.service_name)
    assert.are.equal("DEFAULT_GROUP", one.group_name)
    assert.is_false(info.protection)
    assert.are.equal(0, info.skipped)
    if not V3 then -- its list tells nothing of itself
      assert.is_true(info.cache_seconds > 0)
      assert.is_true(info.ref_time > 0)
    end
    assert.are.equal("10.0.0.1", assert(client:select_instance(service)).ip)

    local other = target.client { no_snapshot = true }
    local got = assert(other:get_naming_instance(service, "10.0.0.1", 8080))
    assert.are.equal(2.5, got.weight)
    assert.are.same({ zone = "a" }, got.metadata)
    got, err = other:get_naming_instance(service, "10.0.0.1", 8081)
    assert.is_nil(got)
    assert.are.equal("not_found", err.code)
    got, err = other:get_naming_instance("none-" .. service, "10.0.0.1", 8080)
    assert.is_nil(got)
    assert.are.equal("not_found", err.code)
    other:close()

    assert(client:remove_naming_instance(service, "10.0.0.1", 8080))
    lists(client, "", service)
    assert(client:remove_naming_instance(service, "10.0.0.1", 8080), "removing what is not there is fine")
    assert(client:remove_naming_instance("none-" .. service, "10.0.0.1", 8080))
  end)

  it("keep groups, clusters and namespaces apart", function()
    local service, group = "apart", target.group()
    assert(client:add_naming_instances {
      service_name = service, port = 80, group_name = group,
      { ip = "10.0.0.1", cluster_name = "A" },
      { ip = "10.0.0.2", cluster_name = "B" },
      { ip = "10.0.0.3", cluster_name = "C" },
      { ip = "10.0.0.4", cluster_name = "A", group_name = group .. "-2" },
      { ip = "10.0.0.5", cluster_name = "A", namespace_id = "ns-naming" },
    })
    lists(client, "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", service, { group_name = group })
    lists(client, "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", service, { group_name = group, namespace_id = "public" })
    lists(client, "10.0.0.1:80 10.0.0.2:80", service, { group_name = group, clusters = "B,A" })
    lists(client, "10.0.0.3:80", service, { group_name = group, clusters = "C,X" })
    lists(client, "", service, { group_name = group, clusters = "X" })
    local list = lists(client, "10.0.0.4:80", service, { group_name = group .. "-2" })
    assert.are.equal(group .. "-2", list[1].group_name)
    assert.are.equal(service, list[1].service_name)
    lists(client, "10.0.0.5:80", service, { group_name = group, namespace_id = "ns-naming" })
    assert.are.equal("10.0.0.4", assert(client:get_naming_instance(service, "10.0.0.4", 80, "A", group .. "-2")).ip)

    assert.are.same({ total = 1, items = { service } }, assert(client:list_services { group_name = group }))
    local named = assert(client:list_services { group_name = group, namespace_id = "ns-naming" })
    assert.are.same({ total = 1, items = { service } }, named)
    assert.are.equal(0, assert(client:list_services { group_name = "none-" .. group }).total)

    -- one ip and port is one instance of a service, whatever its cluster
    assert(client:add_naming_instance {
      service_name = service, ip = "10.0.0.3", port = 80, cluster_name = "A", group_name = group,
    })
    lists(client, "10.0.0.1:80 10.0.0.3:80", service, { group_name = group, clusters = "A" })
    lists(client, "", service, { group_name = group, clusters = "C" })
    slow.apart = { service, group } -- their beats name them rightly, too: looked at later
  end)

  it("keep metadata as it is", function()
    local service = "metadata-" .. target.group()
    local metadata = {
      ["a=b&c"] = "d=e+f%20g", ["ü 你好"] = "😀\n\t\"quoted\" \\ 'x'", empty = "", ["x.y-z_1"] = "{\"json\":[1,2]}", ["1"] = "1.0",
    }
    assert(client:add_naming_instance(service, "10.0.0.1", 80, nil, nil, metadata))
    assert.are.same(metadata, lists(client, "10.0.0.1:80", service)[1].metadata)
    assert(client:add_naming_instance(service, "10.0.0.2", 80, nil, nil, '{"long":"' .. ("é"):rep(900) .. '"}'))
    assert.are.equal(("é"):rep(900), lists(client, "10.0.0.1:80 10.0.0.2:80", service)[2].metadata.long)
    assert.has_error(function()
      client:add_naming_instance(service, "10.0.0.3", 80, nil, nil, { number = 1 })
    end)
  end)

  it("change an instance, by its owner and by another client", function()
    local service = "modify-" .. target.group()
    assert(client:add_naming_instance(service, "10.0.0.1", 80, "C1", 2, { v = "1" }))
    shows(client, service, "weight", 2)
    assert(client:modify_naming_instance(service, "10.0.0.1", 80, "C1", 7))
    assert.are.same({ v = "1" }, shows(client, service, "weight", 7).metadata)
    assert(client:modify_naming_instance {
      service_name = service, ip = "10.0.0.1", port = 80, cluster_name = "C1", metadata = { v = "2" },
    })
    support.eventually(function()
      local one = assert(client:list_naming_instance(service))[1]
      return one and one.metadata.v == "2" and one.weight == 7, one and one.metadata.v
    end, SOON)

    local other = target.client { no_snapshot = true }
    assert(other:modify_naming_instance(service, "10.0.0.1", 80, "C1", 9))
    local one = shows(client, service, "weight", 9)
    assert.are.same({ v = "2" }, one.metadata)
    assert.is_true(one.ephemeral)
    local ok, err = other:modify_naming_instance(service, "10.0.0.9", 80, "C1", 9)
    assert.is_nil(ok)
    assert.are.equal("not_found", err.code)
    lists(client, "10.0.0.1:80", service)

    -- a disabled one is not listed
    assert(client:modify_naming_instance {
      service_name = service, ip = "10.0.0.1", port = 80, cluster_name = "C1", enable = false,
    })
    lists(client, "", service)
    assert(client:modify_naming_instance {
      service_name = service, ip = "10.0.0.1", port = 80, cluster_name = "C1", weight = 4, enable = true,
    })
    shows(client, service, "weight", 4)
    other:close()
    slow.modified = service -- later beats do not undo it
  end)

  it("take persistent instances, which outlive their client", function()
    local service = "persistent-" .. target.group()
    local other = target.client { no_snapshot = true }
    assert(other:add_naming_instance { service_name = service, ip = "10.0.0.1", port = 80, ephemeral = false, weight = 3 })
    local one = lists(other, "10.0.0.1:80", service)[1]
    assert.is_false(one.ephemeral)
    assert.are.equal(3, one.weight)
    local ok, err = other:add_naming_instance(service, "10.0.0.2", 80)
    assert.is_nil(ok, "a service is either")
    assert.are.equal("refused", err.code)
    assert.are.equal(not GRPC and 400 or nil, err.status)
    ok, err = other:add_naming_instance { service_name = slow.silent, ip = "10.0.0.9", port = 80, ephemeral = false }
    assert.is_nil(ok)
    assert.are.equal("refused", err.code)
    assert.are.equal(0, other:status().instances, "no beats for those")
    other:close { deregister = false }
    lists(client, "10.0.0.1:80", service)
    assert(client:remove_naming_instance { service_name = service, ip = "10.0.0.1", port = 80, ephemeral = false })
    lists(client, "", service)
  end)

  if not GRPC then it("answer a beat by hand", function()
    local service = "beat-" .. target.group()
    local beat = assert(client:send_heartbeat(service, "10.0.0.1", 80, nil, 5, { a = "b" }))
    if V3 then -- there a beat never registers
      assert.are.equal(20404, beat.code)
      assert(client:add_naming_instance(service, "10.0.0.1", 80))
      assert.are.equal(10200, assert(client:send_heartbeat(service, "10.0.0.1", 80)).code)
      return
    end
    assert.are.equal(10200, beat.code)
    assert.are.equal(5, beat.client_beat_interval)
    assert.is_true(beat.light_beat_enabled)
    local one = lists(client, "10.0.0.1:80", service)[1] -- a whole beat registers
    assert.are.equal(5, one.weight)
    assert.are.same({ a = "b" }, one.metadata)
    -- one of another group arrives where it belongs, and heals
    local group = target.group()
    target.instance(service, "10.0.0.3", 80, { groupName = group, healthy = "false" })
    lists(client, "10.0.0.3:80", service, { group_name = group })
    lists(client, "", service, { group_name = group, healthy_only = true })
    assert(client:send_heartbeat { service_name = service, ip = "10.0.0.3", port = 80, group_name = group })
    lists(client, "10.0.0.3:80", service, { group_name = group, healthy_only = true })
    assert(client:add_naming_instance { service_name = service, ip = "10.0.0.2", port = 80, heartbeat_interval = 2 })
    assert.are.equal(2, assert(client:send_heartbeat(service, "10.0.0.2", 80)).client_beat_interval)
  end) end

  it("are created, changed and removed", function()
    local service, group = "made", target.group()
    local ok, err = client:create_service {
      service_name = service, group_name = group, protect_threshold = 0.5, metadata = { a = "b" },
    }
    assert(ok, tostring(err))
    local got = assert(client:get_service(service, group))
    assert.are.equal(0.5, got.protect_threshold)
    assert.are.same({ a = "b" }, got.metadata)
    assert.are.equal(1, assert(client:list_services { group_name = group }).total)
    ok, err = client:create_service { service_name = service, group_name = group }
    assert.is_nil(ok)
    assert.are.equal("refused", err.code)
    assert(client:update_service { service_name = service, group_name = group, protect_threshold = 0.25 })
    got = assert(client:get_service(service, group))
    assert.are.equal(0.25, got.protect_threshold)
    assert.are.same({ a = "b" }, got.metadata)

    -- one made so takes persistent instances; with one it stays
    assert(client:add_naming_instance { service_name = service, group_name = group, ip = "10.0.0.1", port = 80, ephemeral = false })
    lists(client, "10.0.0.1:80", service, { group_name = group })
    ok, err = client:remove_service(service, group)
    assert.is_nil(ok)
    assert.are.equal("refused", err.code)
    assert(client:remove_naming_instance {
      service_name = service, group_name = group, ip = "10.0.0.1", port = 80, ephemeral = false,
    })
    lists(client, "", service, { group_name = group })
    assert(client:remove_service(service, group))
    for _, what in ipairs { "get_service", "remove_service" } do
      ok, err = client[what](client, service, group)
      assert.is_nil(ok)
      assert.are.equal("not_found", err.code, what)
    end
  end)

  it("tell listeners what was added, modified and deleted", function()
    local service = "events-" .. target.group()
    local mine = target.client { no_snapshot = true }
    local told, late = {}, {}
    local function into(list)
      return function(event, instance)
        list[#list + 1] = ("%s %s:%d %g"):format(event, instance.ip, instance.port, instance.weight)
      end
    end
    assert(client:add_naming_instance(service, "10.0.0.1", 80))
    lists(client, "10.0.0.1:80", service)
    local name = assert(mine:subscribe { listener_fn = into(told), service_name = service, listener_interval = 1, hold = 0 })
    local function tells(list, ...)
      local wanted = table.concat({ ... }, ", ")
      support.eventually(function()
        return table.concat(list, ", ") == wanted, table.concat(list, ", ")
      end, SOON)
    end
    tells(told, "ADDED 10.0.0.1:80 1")
    assert(client:add_naming_instance(service, "10.0.0.2", 80))
    tells(told, "ADDED 10.0.0.1:80 1", "ADDED 10.0.0.2:80 1")
    assert(client:modify_naming_instance(service, "10.0.0.2", 80, nil, 3))
    tells(told, "ADDED 10.0.0.1:80 1", "ADDED 10.0.0.2:80 1", "MODIFIED 10.0.0.2:80 3")
    assert(mine:subscribe {
      listener_fn = into(late), service_name = service, listener_name = "late", listener_interval = V3 and 1 or nil, hold = 0,
    })
    tells(late, "ADDED 10.0.0.1:80 1", "ADDED 10.0.0.2:80 3")
    assert.are.equal(1, mine:unsubscribe(service, name))
    for _, ip in ipairs { "10.0.0.2", "10.0.0.1" } do
      assert(client:remove_naming_instance(service, ip, 80))
      local last = ip == "10.0.0.1" and "DELETED 10.0.0.1:80 1" or nil
      tells(late, "ADDED 10.0.0.1:80 1", "ADDED 10.0.0.2:80 3", "DELETED 10.0.0.2:80 3", last)
    end
    assert.are.equal(3, #told, "no more after it was removed")
    mine:close()
  end)

  if not V3 then it("push changes long before the next question", function()
    local service = "push-" .. target.group()
    local mine = target.client { no_snapshot = true }
    local seen = follow(mine, service, { interval = 60, hold = 0 })
    follows(seen, "")
    assert.is_true(seen[1].first)
    for round = 1, 3 do -- a question comes every 8 s: they cannot all be told by one
      assert(client:add_naming_instance(service, "10.0.0.1", 80, nil, round))
      follows(seen, "10.0.0.1:80")
      assert.are.equal(round, seen.last.added[1].weight)
      assert(client:remove_naming_instance(service, "10.0.0.1", 80))
      follows(seen, "")
    end
    local status = mine:status()
    assert.are.equal(1, status.subscriptions)
    assert.is_true(status.pushes >= 5, "pushes: " .. status.pushes)
    mine:close()
  end) end

  it("tell of changes as soon when a client follows a service in several clusters and namespaces", function()
    local service, group = "place", target.group()
    local mine = target.client { no_snapshot = true }
    local interval = V3 and 1 or 60 -- nobody pushes there
    local places = {
      { seen = follow(mine, service, { group_name = group, interval = interval }), want = "10.0.0.1:80 10.0.0.2:80" },
      { seen = follow(mine, service, { group_name = group, clusters = "B", interval = interval }), want = "10.0.0.2:80" },
      { seen = follow(mine, service, { group_name = group, namespace_id = "ns-push", interval = interval }), want = "10.0.0.3:80" },
    }
    for _, place in ipairs(places) do
      follows(place.seen, "")
    end
    assert(client:add_naming_instances {
      service_name = service, group_name = group, port = 80,
      { ip = "10.0.0.1", cluster_name = "A" },
      { ip = "10.0.0.2", cluster_name = "B" },
      { ip = "10.0.0.3", namespace_id = "ns-push" },
    })
    for _, place in ipairs(places) do
      follows(place.seen, place.want)
    end
    assert.are.equal(3, mine:status().subscriptions)
    assert.are.equal("ns-push", places[3].seen.last.namespace)
    assert.are.equal(group, places[3].seen.last.group_name)
    assert(client:remove_naming_instance { service_name = service, group_name = group, ip = "10.0.0.1", port = 80 })
    follows(places[1].seen, "10.0.0.2:80")
    follows(places[2].seen, "10.0.0.2:80")
    mine:close()
  end)

  it("are asked when pushes are switched off", function()
    local service = "poll-" .. target.group()
    local mine = target.client { no_snapshot = true, push = false }
    local seen = follow(mine, service, { interval = 1, hold = 0 })
    follows(seen, "")
    assert(client:add_naming_instance(service, "10.0.0.1", 80))
    follows(seen, "10.0.0.1:80")
    assert.are.equal("10.0.0.1", seen.last.added[1].ip)
    assert(client:remove_naming_instance(service, "10.0.0.1", 80))
    follows(seen, "")
    assert.are.equal("10.0.0.1", seen.last.removed[1].ip)
    if not GRPC then -- what comes by the stream is no datagram
      assert.are.equal(0, mine:status().pushes)
    end
    mine:close()
  end)

  if not GRPC then it("get an instance back that the server has lost", function()
    local service = "lost-" .. target.group()
    local mine = target.client { no_snapshot = true }
    assert(mine:add_naming_instance {
      service_name = service, ip = "10.0.0.1", port = 80, weight = 3, metadata = { a = "b" }, heartbeat_interval = 1,
    })
    support.eventually(function()
      return mine:status().beats >= 2, "no beats"
    end)
    assert.are.equal(0, mine:status().reregistrations)
    local path = target.serves_v1 and "/v1/ns/instance" or "/v3/client/ns/instance"
    assert.are.equal(200, (target.request("DELETE", path, { serviceName = service, ip = "10.0.0.1", port = 80 })))
    support.eventually(function()
      return mine:status().reregistrations == 1, "reregistrations: " .. mine:status().reregistrations
    end)
    local one = lists(client, "10.0.0.1:80", service)[1]
    assert.are.equal(3, one.weight)
    assert.are.equal("b", one.metadata.a)
    mine:close()
  end) end

  it("hold a thousand instances of one client, and none when it is closed", function()
    local service = "thousand-" .. target.group()
    local mine = target.client { no_snapshot = true }
    local seen = follow(client, service, { hold = 0 })
    local batch = { service_name = service, timeout = 30 }
    for i = 1, 1000 do
      batch[i] = { ip = ("10.1.%d.%d"):format(i // 250, i % 250), port = 8000 + i, metadata = { number = tostring(i) } }
    end
    local ok, err, results
    nacos.run(function() -- the slow ones hear of their changes meanwhile
      ok, err, results = mine:add_naming_instances(batch)
      nacos.stop()
    end)
    assert(ok, tostring(err))
    assert.are.equal(1000, #results)
    assert.are.equal(1000, mine:status().instances)
    local list
    support.eventually(function()
      list = assert(client:list_naming_instance { service_name = service, healthy_only = true })
      return #list == 1000, #list .. " listed"
    end, 30)
    local numbers = {}
    for _, instance in ipairs(list) do
      numbers[tonumber(instance.metadata.number)] = instance.port
    end
    for i = 1, 1000 do
      assert.are.equal(8000 + i, numbers[i])
    end
    support.eventually(function()
      return seen.last and #seen.last.instances == 1000, "not followed"
    end, 10)
    mine:close()
    support.eventually(function()
      list = assert(client:list_naming_instance(service))
      return #list == 0, #list .. " left"
    end, 45) -- a client leaves within 3 s; what a server with much to do has not taken by then misses its beats
    follows(seen, "", 10)
    client:unsubscribe(service)
  end)

  -- ---- the slow ones, looked at ------------------------------------------------------------------------------------------------

  if not V3 then it("show all as healthy when too few are", function()
    support.eventually(function()
      return slow.protection.last and slow.protection.last.protection, "no protection yet"
    end, 30)
    assert.are.equal("10.0.1.1:80 10.0.1.2:80 10.0.1.3:80", addresses(slow.protection.last.instances))
    local list, _, info = client:list_naming_instance(slow.protected)
    assert.is_true(info.protection)
    assert.are.equal("10.0.1.1:80 10.0.1.2:80 10.0.1.3:80", addresses(list))
    for _, instance in ipairs(list) do
      assert.is_true(instance.healthy)
    end
    list, _, info = client:list_naming_instance { service_name = slow.protected, healthy_only = true }
    assert.is_false(info.protection)
    assert.are.equal("10.0.1.1:80", addresses(list))
  end) end

  it("give up a silent instance after 15 and 30 seconds, and keep those that beat", function()
    local silent
    support.eventually(function()
      silent = slow.heard["10.0.0.1"]
      return silent and silent.gone, ("still there after %.1f s"):format(now() - slow.began)
    end, 45)
    -- not sooner; a server with much to do looks a little later
    assert.is_true(silent.unhealthy > 14 and silent.unhealthy < silent.gone, "unhealthy after " .. silent.unhealthy)
    assert.is_true(silent.gone > 29, "gone after " .. silent.gone)
    for _, ip in ipairs { "10.0.0.2", "10.0.0.3" } do
      assert.is_nil(slow.heard[ip].unhealthy, ip)
      assert.is_nil(slow.heard[ip].gone, ip)
    end
    local status = slow.client:status()
    assert.are.equal(3, status.instances)
    assert.are.equal(0, status.reregistrations)
    if GRPC then
      assert.are.equal(0, status.beats)
    else -- one beat a second and twice one every 5 s
      local expected = 1.4 * (now() - slow.began)
      local ratio = status.beats / expected
      assert.is_true(ratio > 0.7 and ratio < 1.3, ("beats: %d of %.0f"):format(status.beats, expected))
    end
    lists(client, "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80", slow.apart[1], { group_name = slow.apart[2], healthy_only = true })
    assert.are.equal(4, lists(client, "10.0.0.1:80", slow.modified)[1].weight)
    assert.are.equal(0, client:status().reregistrations)
  end)
end)
