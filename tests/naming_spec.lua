--- Instances and services, asked for once: registering, changing, removing, reading, choosing; what goes over the wire and what
-- is refused before.

local json = require "cjson.safe"
local lab = require "lab"
local support = require "support"

local INSTANCE = "/v1/ns/instance"
local nothing = function() end

describe("services", function()
  local server, client, unique

  setup(function()
    server = support.start_server { "--push-delay", "0" } -- every change is shown at once
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

  ---A service name nobody used before.
  local function service()
    unique = unique + 1
    return "service" .. unique
  end

  ---The instances of a service as curl gets them.
  local function listed(name, query)
    local status, body = support.http("GET", ("%s/v1/ns/instance/list?serviceName=%s%s"):format(server.url, name, query or ""))
    assert.equal(200, status)
    local hosts = json.decode(body).hosts
    table.sort(hosts, function(a, b) return a.ip .. ":" .. a.port < b.ip .. ":" .. b.port end)
    return hosts
  end

  local function addresses(list)
    local texts = {}
    for i, instance in ipairs(list) do
      texts[i] = ("%s:%d"):format(instance.ip, instance.port)
    end
    return table.concat(texts, " ")
  end

  ---The parameters of the requests of a method whose path ends in `path`.
  local function queries(method, path)
    local list = {}
    for i, request in ipairs(lab.requests(server, path or INSTANCE, method)) do
      list[i] = lab.form(request.query)
    end
    return list
  end

  -- ---- register, remove, modify --------------------------------------------------------------------------------------------------

  it("registers by position, in the manual's order", function()
    local name = service()
    assert.is_true(client:add_naming_instance(name, "10.0.0.1", 8080, "C1", 2.5, { zone = "a", ["x y"] = "ü&=" }, true, false, true,
      "G", 7))
    local host = listed(name, "&groupName=G")[1]
    assert.same({ "10.0.0.1", 8080, "C1", 2.5, false, true, true },
      { host.ip, host.port, host.clusterName, host.weight, host.healthy, host.enabled, host.ephemeral })
    assert.same({ "a", "ü&=", "7000" },
      { host.metadata.zone, host.metadata["x y"], host.metadata["preserved.heart.beat.interval"] })
    local sent = lab.requests(server, INSTANCE, "POST")[1]
    assert.equal("", sent.body or "", "all parameters are in the query")
  end)

  it("registers by name, with the server's defaults for what is not given", function()
    local name = service()
    assert.is_true(client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80 })
    assert.is_true(client:add_naming_instance(name, "10.0.0.2", 80, { metadata = '{"a":"1"}', weight = 0, enable = true }))
    local hosts = listed(name)
    assert.same({ "DEFAULT", 1, true, true, true, {} }, {
      hosts[1].clusterName, hosts[1].weight, hosts[1].healthy, hosts[1].enabled, hosts[1].ephemeral, hosts[1].metadata,
    })
    assert.same({ 0, { a = "1" } }, { hosts[2].weight, hosts[2].metadata })
    assert.equal(2, client:status().instances)
  end)

  it("takes instances out again, whatever kind and cluster they were registered with", function()
    local name, other = service(), service()
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, cluster_name = "C1" }
    client:add_naming_instance { service_name = other, ip = "10.0.0.1", port = 80, ephemeral = false }
    assert.equal(1, client:status().instances) -- a persistent one needs no beats
    assert.is_true(client:remove_naming_instance(name, "10.0.0.1", 80))
    assert.is_true(client:remove_naming_instance(other, "10.0.0.1", 80))
    assert.is_true(client:remove_naming_instance(other, "10.0.0.1", 80), "one that is not there is fine")
    assert.same({ 0, 0, 0 }, { #listed(name), #listed(other), client:status().instances })
    local removed = queries("DELETE")
    assert.equal("C1", removed[1].clusterName)
    assert.equal("false", removed[2].ephemeral)
  end)

  it("removes a persistent instance of somebody else only when told that it is one", function()
    local name = service()
    lab.client(server):add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, ephemeral = false }
    client:remove_naming_instance(name, "10.0.0.1", 80)
    assert.equal(1, #listed(name))
    client:remove_naming_instance(name, "10.0.0.1", 80, nil, false)
    assert.equal(0, #listed(name))
  end)

  it("changes what is given and keeps the rest, of its own instance", function()
    local name = service()
    client:add_naming_instance {
      service_name = name, ip = "10.0.0.1", port = 80, weight = 2, cluster_name = "C", metadata = { a = "1" },
    }
    server:clear_requests()
    assert.is_true(client:modify_naming_instance(name, "10.0.0.1", 80, nil, 5))
    assert.equal(0, #queries("GET"), "what it registered itself it knows")
    local host = listed(name)[1]
    assert.same({ 5, "C", { a = "1" } }, { host.weight, host.clusterName, host.metadata })
    assert.is_true(client:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, metadata = { b = "2" } })
    host = listed(name)[1]
    assert.same({ 5, "2" }, { host.weight, host.metadata.b })
    assert.is_true(client:modify_naming_instance(name, "10.0.0.1", 80, "C", nil, nil, false))
    assert.equal(0, #listed(name), "a disabled instance is not listed")
    assert.is_true(client:modify_naming_instance(name, "10.0.0.1", 80, "C", nil, nil, true))
    host = listed(name)[1]
    assert.same({ 5, "2" }, { host.weight, host.metadata.b })
  end)

  it("changes what is given and keeps the rest, of another's instance", function()
    local name, owner = service(), lab.client(server)
    owner:add_naming_instance {
      service_name = name, ip = "10.0.0.1", port = 80, weight = 2, cluster_name = "C", metadata = { a = "1" },
    }
    assert.is_true(client:modify_naming_instance(name, "10.0.0.1", 80, nil, 5))
    local host = listed(name)[1]
    assert.same({ 5, "C", { a = "1" } }, { host.weight, host.clusterName, host.metadata })
    assert.equal(0, client:status().instances)
    owner:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, enable = false }
    assert.is_true(client:modify_naming_instance(name, "10.0.0.1", 80, "C", 7), "the list does not show a disabled one")
    assert.equal(0, #listed(name), "it stays disabled")
    assert.is_true(client:modify_naming_instance(name, "10.0.0.1", 80, "C", nil, nil, true))
    assert.equal(7, listed(name)[1].weight)
  end)

  it("keeps what others have changed of its own instance, and what it has changed itself of another's", function()
    local name, other = service(), lab.client(server)
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, metadata = { a = "1" } }
    client.registered[next(client.registered)].at = 0 -- as if some seconds had passed: lists show it as it is
    other:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, weight = 0 }
    other:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, metadata = { a = "2" } }
    assert.same({ 0, "2" }, { listed(name)[1].weight, listed(name)[1].metadata.a })
    client:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, metadata = { a = "3" } }
    assert.same({ 0, "3" }, { listed(name)[1].weight, listed(name)[1].metadata.a }, "a drained instance stays drained")
    local late = support.start_server { "--push-delay", "30" } -- lists show nothing of all this
    client, other = lab.client(late), lab.client(late)
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80 }
    other:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, weight = 5 }
    other:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, metadata = { a = "2" } }
    local last
    for _, request in ipairs(lab.requests(late, INSTANCE)) do
      last = request.method == "PUT" and lab.form(request.query) or last
    end
    assert.same({ "5", { a = "2" } }, { last.weight, json.decode(last.metadata) })
  end)

  it("cannot change an instance that is not there", function()
    local name = service()
    local ok, err = client:modify_naming_instance(name, "10.0.0.1", 80, nil, 5)
    assert.is_nil(ok)
    assert.equal("not_found", err.code)
    assert.equal(0, #queries("PUT"), "a server would say ok")
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, cluster_name = "A" }
    ok, err = client:modify_naming_instance(name, "10.0.0.1", 80, "B", 5)
    assert.is_nil(ok)
    assert.equal("not_found", err.code)
  end)

  it("registers an instance again where a server has no call to change one", function()
    local name = service()
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, metadata = { a = "1" } }
    server:faults {
      { path = "/nacos/v1/ns/instance", method = "PUT", status = 410, body = "{}" },
      { path = "/nacos/v1/ns/instance", method = "GET", status = 410, body = "{}" },
    }
    assert.is_true(client:modify_naming_instance(name, "10.0.0.1", 80, nil, 5))
    local host = listed(name)[1]
    assert.same({ 5, { a = "1" } }, { host.weight, host.metadata })
    assert.equal(5, client:get_naming_instance(name, "10.0.0.1", 80).weight, "from the list")
  end)

  it("registers many from one table", function()
    local name, list = service(), {}
    for i = 1, 300 do
      list[i] = { ip = "10.0.1." .. i % 250, port = 1000 + i }
    end
    list.service_name, list.metadata, list.weight = name, { zone = "z" }, 3
    list[7].weight = 4
    local ok, err, results = client:add_naming_instances(list)
    assert.is_nil(err)
    assert.is_true(ok)
    assert.equal(300, #results)
    local hosts = listed(name)
    assert.equal(300, #hosts)
    local sum = 0
    for _, host in ipairs(hosts) do
      assert.same({ zone = "z" }, host.metadata)
      sum = sum + host.weight
    end
    assert.equal(901, sum)
    assert.equal(300, client:status().instances)
  end)

  it("tells which of many was refused, in a task, too", function()
    local name, persistent = service(), service()
    lab.client(server):create_service { service_name = persistent }
    local ok, err, results
    lab.together(function()
      ok, err, results = client:add_naming_instances {
        { service_name = name, ip = "10.0.0.1" }, { service_name = persistent, ip = "10.0.0.1" },
        { service_name = name, ip = "10.0.0.2" },
        port = 80,
      }
    end)
    assert.is_nil(ok)
    assert.equal("refused", err.code)
    assert.matches(persistent, err.message)
    assert.same({ true, err, true }, results)
    assert.equal("10.0.0.1:80 10.0.0.2:80", addresses(listed(name)))
  end)

  it("does not try the rest of many when no server answers", function()
    local list = { service_name = service() }
    for i = 1, 1000 do
      list[i] = { ip = "10.0.0.1", port = i }
    end
    local lost = lab.client("127.0.0.1:1", { default_timeout = 0.5 })
    local took, ok, err, results = lab.timed(lost.add_naming_instances, lost, list)
    assert.is_nil(ok)
    assert.equal("unavailable", err.code)
    assert.equal(1000, #results)
    assert.equal("unavailable", results[1000].code)
    assert.is_true(took < 3, tostring(took))
    assert.is_true(client:add_naming_instances {}, "none is fine")
  end)

  -- ---- reading ---------------------------------------------------------------------------------------------------------------------

  it("lists instances, sorted, with all there is to know", function()
    local name = service()
    client:add_naming_instance { service_name = name, ip = "10.0.0.2", port = 80, cluster_name = "B", healthy = false }
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 90, weight = 0.5, metadata = { a = "1" } }
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, cluster_name = "A" }
    local list, source, info = client:list_naming_instance(name)
    assert.equal("10.0.0.1:80 10.0.0.1:90 10.0.0.2:80", addresses(list))
    assert.equal("server", source)
    assert.same({
      ip = "10.0.0.1", port = 90, weight = 0.5, cluster_name = "DEFAULT", healthy = true, enabled = true, ephemeral = true,
      metadata = { a = "1" }, service_name = name, group_name = "DEFAULT_GROUP",
      instance_id = "10.0.0.1#90#DEFAULT#DEFAULT_GROUP@@" .. name,
    }, list[2])
    assert.equal("integer", math.type(list[1].port))
    assert.same({ 0, false, 10 }, { info.skipped, info.protection, info.cache_seconds })
    assert.is_true(math.abs(info.ref_time / 1000 - os.time()) < 60)
    assert.equal("10.0.0.1:80 10.0.0.2:80", addresses(client:list_naming_instance(name, "B,A")))
    assert.equal("10.0.0.1:80 10.0.0.1:90", addresses(client:list_naming_instance(name, nil, nil, nil, true)))
    assert.equal("10.0.0.1:80",
      addresses(client:list_naming_instance { service_name = name, clusters = "A,B", healthy_only = true }))
    assert.same({}, (client:list_naming_instance(name, "C")))
    assert.same({}, (client:list_naming_instance(service())), "a service that does not exist has none")
  end)

  it("reads one instance", function()
    local name = service()
    client:add_naming_instance(name, "10.0.0.1", 80, "A", 3, { a = "1" }, { group_name = "G" })
    local instance = client:get_naming_instance(name, "10.0.0.1", 80, "A", "G")
    assert.same({ "10.0.0.1", 80, "A", 3, true, { a = "1" }, name, "G" }, {
      instance.ip, instance.port, instance.cluster_name, instance.weight, instance.healthy, instance.metadata,
      instance.service_name, instance.group_name,
    })
    assert.same({ true, true }, { instance.enabled, instance.ephemeral })
    assert.equal("A", client:get_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, group_name = "G" }.cluster_name)
    local other = lab.client(server)
    local seen = other:get_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, group_name = "G" }
    assert.equal("A", seen.cluster_name, "whose cluster nobody named")
    client:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, group_name = "G", enable = false }
    assert.is_false(client:get_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, group_name = "G" }.enabled)
    seen = other:get_naming_instance(name, "10.0.0.1", 80, "A", "G")
    assert.same({ 3 }, { seen.weight, seen.enabled, seen.ephemeral }, "nobody tells it whether it is enabled")
    client:add_naming_instance { service_name = name, ip = "10.0.0.2", port = 80, ephemeral = false, group_name = "P" }
    assert.is_false(other:get_naming_instance { service_name = name, ip = "10.0.0.2", port = 80, group_name = "P" }.ephemeral)
    for _, args in ipairs {
      { name, "10.0.0.1", 80, "A" }, { name, "10.0.0.1", 81, "A", "G" }, { name, "10.0.0.1", 80, "B", "G" },
      { "nobody", "10.0.0.1", 80 },
    } do
      local none, err = client:get_naming_instance(table.unpack(args))
      assert.is_nil(none)
      assert.equal("not_found", err.code)
    end
  end)

  it("keeps groups and namespaces apart", function()
    local name, other = service(), lab.client(server, { namespace = "ns" })
    client:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80 }
    client:add_naming_instance { service_name = name, ip = "10.0.0.2", port = 80, group_name = "G" }
    client:add_naming_instance { service_name = name, ip = "10.0.0.3", port = 80, namespace_id = "ns" }
    other:add_naming_instance { service_name = name, ip = "10.0.0.4", port = 80, group_name = "G" }
    other:add_naming_instance { service_name = name, ip = "10.0.0.5", port = 80, namespace_id = "public" }
    assert.equal("10.0.0.1:80 10.0.0.5:80", addresses(client:list_naming_instance(name)))
    assert.equal("10.0.0.1:80 10.0.0.5:80", addresses(other:list_naming_instance(name, "", "public")))
    assert.equal("10.0.0.3:80", addresses(other:list_naming_instance(name, "", "", "DEFAULT_GROUP")))
    assert.equal("10.0.0.3:80", addresses(client:list_naming_instance(name, nil, "ns")))
    assert.equal("10.0.0.2:80", addresses(client:list_naming_instance(name, nil, nil, "G")))
    assert.equal("10.0.0.4:80",
      addresses(client:list_naming_instance { service_name = name, namespace_id = "ns", group_name = "G" }))
    assert.is_true(client:remove_naming_instance { service_name = name, ip = "10.0.0.3", port = 80, namespace_id = "ns" })
    assert.same({}, (other:list_naming_instance(name)))
  end)

  it("tells when the server protects a service", function()
    local name = service()
    for i = 1, 3 do
      client:add_naming_instance { service_name = name, ip = "10.0.0." .. i, port = 80, healthy = i == 1 }
    end
    assert.is_true(client:update_service { service_name = name, protect_threshold = 0.7 })
    local list, _, info = client:list_naming_instance(name)
    assert.is_true(info.protection)
    assert.same({ true, true, true }, { list[1].healthy, list[2].healthy, list[3].healthy })
  end)

  it("sends a heartbeat, whole, with the group in its name", function()
    local name = service()
    local answer = client:send_heartbeat(name, "10.0.0.1", 80, "C", 2, { a = "1" }, nil, "G")
    assert.same({ client_beat_interval = 5, light_beat_enabled = true, code = 10200 }, answer)
    assert.equal(2, listed(name, "&groupName=G")[1].weight, "the server takes an unknown instance from it")
    local beat = json.decode(queries("PUT", "/v1/ns/instance/beat")[1].beat)
    assert.equal("G@@" .. name, beat.serviceName)
    assert.same({ "10.0.0.1", 80, "C", 2, { a = "1" } }, { beat.ip, beat.port, beat.cluster, beat.weight, beat.metadata })
  end)

  -- ---- choosing --------------------------------------------------------------------------------------------------------------------

  describe("select_instance", function()
    local name

    before_each(function()
      name = service()
      client:add_naming_instances {
        service_name = name, port = 80,
        { ip = "10.0.0.1", weight = 1 }, { ip = "10.0.0.2", weight = 3, cluster_name = "B" }, { ip = "10.0.0.3", weight = 0 },
        { ip = "10.0.0.4", weight = 50, healthy = false },
      }
    end)

    local function count(n, opts)
      local counts = {}
      for _ = 1, n do
        local ip = assert(client:select_instance(name, opts)).ip
        counts[ip] = (counts[ip] or 0) + 1
      end
      return counts
    end

    it("asks a server, and chooses by weight among those that can serve", function()
      local counts = count(200)
      assert.equal(200, (counts["10.0.0.1"] or 0) + (counts["10.0.0.2"] or 0))
      assert.is_true(counts["10.0.0.2"] > counts["10.0.0.1"])
      assert.equal("10.0.0.2", client:select_instance(name, { clusters = "B" }).ip)
      assert.equal("10.0.0.2", client:select_instance { service_name = name, clusters = "B" }.ip)
    end)

    it("needs no server when the service is followed", function()
      client:watch_service(name, nothing)
      support.eventually(function() return client:status().requests > 0 and client.services and client:select_instance(name) end)
      support.eventually(function() -- delivered
        local before = client:status().requests
        return client:select_instance(name) and client:status().requests == before
      end)
      server:clear_requests()
      local counts = count(20000)
      local share = counts["10.0.0.2"] / 20000
      assert.is_true(math.abs(share - 0.75) < 0.02, "3 of 4 expected: " .. share) -- 6 standard deviations
      assert.equal(20000, counts["10.0.0.1"] + counts["10.0.0.2"])
      assert.same({ ["10.0.0.2"] = 50 }, count(50, { clusters = "B" }))
      assert.is_true(#lab.requests(server, "/instance/list") <= 1)
      client:modify_naming_instance(name, "10.0.0.1", 80, nil, 0)
      support.eventually(function() return not count(50)["10.0.0.1"] end)
    end)

    it("tells when there is none", function()
      for _, call in ipairs { function() return client:select_instance(service()) end,
        function() return client:select_instance(name, { clusters = "C" }) end,
      } do
        local none, err = call()
        assert.is_nil(none)
        assert.equal("not_found", err.code)
      end
      local lost = lab.client("127.0.0.1:1", { default_timeout = 0.3 })
      assert.equal("unavailable", select(2, lost:select_instance(name)).code)
    end)
  end)

  -- ---- services themselves ---------------------------------------------------------------------------------------------------------

  it("makes, reads, changes, lists and removes services", function()
    local other = lab.client(server, { namespace = "listing" })
    assert.is_true(other:create_service {
      service_name = "one", group_name = "G", protect_threshold = 0.25, metadata = { a = "1" }, selector = { type = "none" },
    })
    local one = assert(other:get_service("one", "G"))
    assert.same({ "one", "G", "listing", 0.25, { a = "1" }, "none" },
      { one.service_name, one.group_name, one.namespace, one.protect_threshold, one.metadata, one.selector.type })
    assert.is_true(other:update_service { service_name = "one", group_name = "G", metadata = '{"b":"2"}' })
    one = assert(other:get_service { service_name = "one", group_name = "G" })
    assert.same({ 0.25, { b = "2" } }, { one.protect_threshold, one.metadata })
    assert.equal("refused", select(2, other:create_service { service_name = "one", group_name = "G" }).code)
    other:add_naming_instance { service_name = "two", ip = "10.0.0.1", port = 80, group_name = "G" }
    other:add_naming_instance { service_name = "three", ip = "10.0.0.1", port = 80 }
    local page = assert(other:list_services { group_name = "G" })
    table.sort(page.items)
    assert.same({ total = 2, items = { "one", "two" } }, page)
    assert.same({ 2, 1 }, { other:list_services({ group_name = "G", page = 2, page_size = 1 }).total,
      #other:list_services({ group_name = "G", page = 2, page_size = 1 }).items })
    assert.same({ "three" }, other:list_services().items)
    assert.same({}, other:list_services({ group_name = "none" }).items)
    local ok, err = other:remove_service("two", "G")
    assert.is_nil(ok)
    assert.equal("refused", err.code)
    assert.is_true(other:delete_service("one", "G"))
    assert.equal("not_found", select(2, other:get_service("one", "G")).code)
    assert.equal("not_found", select(2, other:update_service { service_name = "one", group_name = "G", metadata = {} }).code)
  end)

  -- ---- who may -----------------------------------------------------------------------------------------------------------------------

  it("log in, and again when the token is gone", function()
    local folder, name = support.tmpdir(), service()
    support.write(folder .. "/password", "p")
    local locked = support.start_server { "--username", "u", "--password-file", folder .. "/password", "--push-delay", "0" }
    local stranger = lab.client(locked)
    assert.equal("forbidden", select(2, stranger:add_naming_instance(name, "10.0.0.1", 80)).code)
    assert.equal("forbidden", select(2, stranger:list_naming_instance { service_name = name, no_snapshot = true }).code)
    local friend = lab.client(locked, { username = "u", password = "p" })
    assert.is_true(friend:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80, heartbeat_interval = 0.5 })
    assert.equal(1, #friend:list_naming_instance(name))
    local before = friend:status().logins
    locked:expire()
    support.eventually(function() return friend:status().logins > before end) -- for a beat
    assert.equal(1, #friend:list_naming_instance(name))
    locked:stop()
  end)

  it("sign their parameters with an access key", function()
    local name = service()
    local signed = lab.client(server, { ak = "access", sk = "secret" })
    signed:list_naming_instance(name, nil, nil, "G")
    signed:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 80 }
    for i, query in ipairs { queries("GET", "/instance/list")[1], queries("POST")[1] } do
      assert.equal("access", query.ak)
      local ms, rest = query.data:match("^(%d+)(@@.*)$")
      assert.equal("@@" .. (i == 1 and "G" or "DEFAULT_GROUP") .. "@@" .. name, rest)
      assert.is_true(math.abs(tonumber(ms) / 1000 - os.time()) < 60)
      local _, expected = support.run("openssl dgst -sha1 -hmac secret -binary | base64", { stdin = query.data })
      assert.equal((expected:gsub("%s", "")), query.signature)
    end
  end)

  -- ---- failures ----------------------------------------------------------------------------------------------------------------------

  it("give errors that say what, where and why", function()
    local name = service()
    server:faults { path = "/nacos/v1/ns/*", status = 403, body = '{"message":"authorization failed!"}' }
    for _, call in ipairs {
      function() return client:add_naming_instance(name, "10.0.0.1", 80) end,
      function() return client:remove_naming_instance(name, "10.0.0.1", 80) end,
      function() return client:modify_naming_instance(name, "10.0.0.1", 80) end,
      function() return client:list_naming_instance(name) end,
      function() return client:get_naming_instance(name, "10.0.0.1", 80) end,
      function() return client:send_heartbeat(name, "10.0.0.1", 80) end,
      function() return client:select_instance(name) end,
      function() return client:get_service(name) end,
      function() return client:create_service { service_name = name } end,
      function() return client:remove_service(name) end,
    } do
      local ok, err = call()
      assert.is_nil(ok)
      assert.equal("forbidden", err.code)
      assert.matches(name, err.message, 1, true)
      assert.matches(server.address, err.message, 1, true)
    end
    assert.equal("forbidden", select(2, client:list_services()).code)
    assert.equal(0, client:status().instances)
  end)

  it("are answered within the timeout, and 'closed' after close", function()
    local name = service()
    server:faults { path = "/nacos/v1/ns/*", hang = true }
    local took, ok, err = lab.timed(client.list_naming_instance, client, { service_name = name, timeout = 0.3, no_snapshot = true })
    assert.is_nil(ok)
    assert.equal("unavailable", err.code)
    assert.is_true(took < 1.5, tostring(took))
    client:close()
    for _, call in ipairs {
      function() return client:add_naming_instance(name, "10.0.0.1", 80) end,
      function() return client:list_naming_instance(name) end,
      function() return client:subscribe(nothing, 7, name) end,
      function() return client:watch_service(name, nothing) end,
      function() return client:add_naming_instances { { service_name = name, ip = "10.0.0.1", port = 80 } } end,
    } do
      local none, why = call()
      assert.is_nil(none)
      assert.equal("closed", why.code)
    end
    assert.equal(0, client:unsubscribe(name))
    client:stop_subscribe()
    client:close()
  end)

  it("are never told that garbage is a list", function()
    local name = service()
    for _, body in ipairs { "", "<html>", "[]", "{}", '{"hosts":5}', '{"hosts":{}}', "null", ("["):rep(100000) } do
      server:clear_faults()
      server:faults { path = "/nacos/v1/ns/instance/list", status = 200, body = body }
      local list, err = client:list_naming_instance { service_name = name, no_snapshot = true }
      assert.is_nil(list, body:sub(1, 20))
      assert.equal("protocol", err.code)
    end
  end)

  it("skip and count what is no instance in a list", function()
    local good = '{"ip":"10.0.0.1","port":80,"unknown":{"a":[1]},"weight":2}'
    local bad = {
      "1", "null", '"x"', "[]", "{}", '{"ip":"10.0.0.9"}', '{"port":80}', '{"ip":5,"port":80}', '{"ip":"10.0.0.9","port":"80"}',
      '{"ip":"10.0.0.9","port":-1}', '{"ip":"10.0.0.9","port":65536}', '{"ip":"10.0.0.9","port":80,"weight":"heavy"}',
      '{"ip":"10.0.0.9","port":80,"healthy":"yes"}', '{"ip":"10.0.0.9","port":80,"metadata":[1]}',
      '{"ip":"10.0.0.9","port":80,"metadata":{"a":{}}}', good,
    }
    server:faults {
      path = "/nacos/v1/ns/instance/list", status = 200, headers = { ["Content-Type"] = "application/json" },
      body = '{"name":"g@@s","hosts":[' .. table.concat(bad, ",") .. "," .. good .. "]}",
    }
    local list, _, info = client:list_naming_instance(service())
    assert.equal("10.0.0.1:80", addresses(list))
    assert.equal(#bad, info.skipped)
    assert.equal(2, list[1].weight)
  end)

  it("survive a list of 100,000 instances, and one beyond the limit", function()
    local entries = {}
    for i = 1, 100000 do
      entries[i] = ('{"ip":"10.%d.%d.%d","port":80}'):format(i // 65536, i // 256 % 256, i % 256)
    end
    local body = '{"hosts":[' .. table.concat(entries, ",") .. "]}"
    local file = support.tmpdir() .. "/answer"
    support.write(file, ("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"):format(#body, body))
    local rogue = lab.rogue("once", file)
    local list = assert(lab.client(rogue):list_naming_instance { service_name = service(), timeout = 20 })
    assert.equal(100000, #list)
    assert.equal("10.0.0.1", list[1].ip)
    local small = lab.client(rogue, { max_response_size = 1000000 })
    local none, err = small:list_naming_instance { service_name = service(), timeout = 20 }
    assert.is_nil(none)
    assert.equal("protocol", err.code)
    rogue:stop()
  end)

  -- ---- misuse ------------------------------------------------------------------------------------------------------------------------

  describe("in which order they come", function()
    local nacos = require "nacos"

    ---Wait until the server has seen a request of this method.
    local function seen(method)
      support.eventually(function()
        return #lab.requests(server, INSTANCE, method) > 0
      end)
    end

    it("does not let a removal overtake the registration before it", function()
      local name = service()
      server:faults { path = "/nacos" .. INSTANCE, method = "POST", delay = 0.4, times = 1 }
      local results = lab.together(function()
        return client:add_naming_instance(name, "10.0.0.1", 80)
      end, function()
        seen("POST")
        return client:remove_naming_instance(name, "10.0.0.1", 80)
      end)
      assert.is_true(results[1][1])
      assert.is_true(results[2][1])
      assert.equal(0, client:status().instances)
      assert.equal("", addresses(listed(name)))
    end)

    it("takes out what is being registered when the client closes", function()
      local name = service()
      server:faults { path = "/nacos" .. INSTANCE, method = "POST", delay = 0.3, times = 1 }
      nacos.spawn(function()
        client:add_naming_instance(name, "10.0.0.1", 80)
      end)
      seen("POST")
      client:close()
      seen("DELETE")
      support.eventually(function()
        return #listed(name) == 0
      end)
    end)

    it("finishes a removal when the client closes", function()
      local name = service()
      assert(client:add_naming_instance(name, "10.0.0.1", 80))
      nacos.spawn(function()
        client:remove_naming_instance(name, "10.0.0.1", 80)
      end)
      client:close()
      support.eventually(function()
        return #listed(name) == 0
      end)
    end)
  end)

  it("are not taken from a server that answers something else while another knows them", function()
    local other = support.start_server { "--push-delay", "0" }
    local name = service()
    other:faults { path = "/nacos" .. INSTANCE .. "/list", status = 200, body = '{"error":"maintenance"}' }
    assert(client:add_naming_instance(name, "10.0.0.1", 80))
    for _ = 1, 6 do -- whichever it asks first
      local both = lab.client(server.address .. "," .. other.address)
      assert.equal("10.0.0.1:80", addresses(assert(both:list_naming_instance(name))))
      both:close()
    end
    other:stop()
  end)

  it("refuse bad arguments at the caller's line, with the rule named", function()
    local self = client
    local function add(args)
      local all = { service_name = "s", ip = "10.0.0.1", port = 80 }
      for name, value in pairs(args) do
        all[name] = value
      end
      local ok, err = self:add_naming_instance(all)
      return ok, err
    end
    local here = debug.getinfo(1, "l").currentline
    for i, case in ipairs { -- each on a line of its own
      { function() self:add_naming_instance("a b", "10.0.0.1", 80) end, "white space" },
      { function() self:add_naming_instance("g@@s", "10.0.0.1", 80) end, "@@" },
      { function() self:add_naming_instance(("x"):rep(513), "10.0.0.1", 80) end, "512" },
      { function() self:add_naming_instance("", "10.0.0.1", 80) end, "empty" },
      { function() self:add_naming_instance("u\xffv", "10.0.0.1", 80) end, "UTF-8" },
      { function() self:add_naming_instance("a\u{A0}b", "10.0.0.1", 80) end, "white space" },
      { function() self:add_naming_instance() end, "missing argument 'service_name'" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, "A,B") end, "one cluster" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, "a_b") end, "letters, digits" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, -1) end, "at least 0" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, 0 / 0) end, "finite" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, 1e300) end, "at most 10000" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, { a = 1 }) end, "'a' is a number" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, { a = true }) end, "'a' is a boolean" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, { "a" }) end, "the names are strings" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, "a=b") end, "a JSON object expected" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, "[1]") end, "a JSON object expected" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, '{"a":null}') end, "'a' is a null" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, '{"a":{}}') end, "'a' is a table" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, { a = "\0" }) end, "NUL" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, { a = "\xff" }) end, "UTF-8" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, nil, nil, { a = ("x"):rep(100000) }) end, "metadata" },
      { function() self:add_naming_instance("s", "10.0.0.1 ", 80) end, "'ip'" },
      { function() self:add_naming_instance("s", "", 80) end, "'ip'" },
      { function() self:add_naming_instance("s", "256.1.1.1", 80) end, "neither an address nor a host name" },
      { function() self:add_naming_instance("s", "1.2.3.4:80", 80) end, "neither an address nor a host name" },
      { function() self:add_naming_instance("s", "1.2.3", 80) end, "neither an address nor a host name" },
      { function() self:add_naming_instance("s", "a..b", 80) end, "neither an address nor a host name" },
      { function() self:add_naming_instance("s", "-a", 80) end, "neither an address nor a host name" },
      { function() self:add_naming_instance("s", "::::", 80) end, "neither an address nor a host name" },
      { function() self:add_naming_instance("s", "%", 80) end, "neither an address nor a host name" },
      { function() self:add_naming_instances { service_name = "s", port = 80, { ip = "h" }, nil, { ip = "h" } } end, "instance 2" },
      { function() self:add_naming_instance("s", "10.0.0.1\0", 80) end, "'ip'" },
      { function() self:add_naming_instance("s", "10.0.0.1", 0) end, "at least 1" },
      { function() self:add_naming_instance("s", "10.0.0.1", 65536) end, "'port'" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80.5) end, "whole number" },
      { function() self:add_naming_instance("s", "10.0.0.1", "80") end, "number expected, got string" },
      { function() self:add_naming_instance("s", "10.0.0.1") end, "port" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, { group = "x" }) end, "did you mean 'group_name'?" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, { heartbeat_interval = 0 }) end, "at least 0.5" },
      { function() self:add_naming_instance("s", "10.0.0.1", 80, { namespace_id = "a b" }) end, "namespace_id" },
      { function() self:add_naming_instances { { service_name = "s", ip = "10.0.0.1", port = 80 }, { ip = 5 } } end, "instance 2" },
      { function() self:add_naming_instances("s") end, "table expected" },
      { function() self:remove_naming_instance("s", "10.0.0.1") end, "port" },
      { function() self:modify_naming_instance("s", "10.0.0.1", 80, nil, "heavy") end, "weight" },
      { function() self:list_naming_instance("s", "A,,B") end, "empty" },
      { function() self:list_naming_instance("s", "A B") end, "letters, digits" },
      { function() self:list_naming_instance("s", nil, nil, "a b") end, "group_name" },
      { function() self:get_naming_instance("s", nil, 80) end, "'ip'" },
      { function() self:send_heartbeat("s", "10.0.0.1", 80, nil, nil, { a = 1 }) end, "the values are strings" },
      { function() self:subscribe(print, 7) end, "service_name" },
      { function() self:subscribe("print", 7, "s") end, "listener_fn" },
      { function() self:subscribe(print, 0, "s") end, "at least 0.1" },
      { function() self:subscribe(print, 7, "s", { max_drop = 2 }) end, "at most 1" },
      { function() self:watch_service("s") end, "fn" },
      { function() self:watch_service("s", {}) end, "fn" },
      { function() self:watch_service("s", 5, print) end, "table expected, got number" },
      { function() self:watch_service("s", { intervall = 5 }, print) end, "did you mean 'interval'?" },
      { function() self:watch_service("s", {}, print, 5) end, "too many" },
      { function() self:unsubscribe() end, "service_name" },
      { function() self:select_instance("s", { cluster = "A" }) end, "did you mean 'clusters'?" },
      { function() self:create_service { service_name = "s", protect_threshold = 2 } end, "at most 1" },
      { function() self:list_services { page = 0 } end, "at least 1" },
      { function() self:close { unregister = true } end, "did you mean 'deregister'?" },
    } do
      local ok, err = pcall(case[1])
      assert.is_false(ok, "no error for case " .. i .. " (" .. case[2] .. ")")
      assert.matches("naming_spec.lua:" .. here + 1 + i .. ": ", err, 1, true)
      assert.matches(case[2], err, 1, true)
    end
    assert.equal(0, server:requests().total)
    assert.is_true(add { ip = "::1" })
    assert.is_true(add { ip = "host.name" })
    assert.is_true(add { port = 65535 })
    assert.is_true(add { service_name = "a/b,ü%c", cluster_name = ("x"):rep(64) })
    assert.equal(1, #client:list_naming_instance("a/b,ü%c"))
  end)
end)
