--- Followed services: what listeners are told, how soon, how often; what is not believed; what survives a server that is down.

local json = require "cjson.safe"
local lab = require "lab"
local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local LIST = "/v1/ns/instance/list"

local function nothing()
end

describe("a followed service", function()
  local server, writer, unique

  setup(function()
    server = support.start_server { "--push-delay", "0" }
    unique = 0
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    writer = lab.client(server)
    server:clear_requests()
  end)
  after_each(function()
    lab.close_all()
    server:clear_faults()
  end)

  ---A service name nobody used before, with instances "ip-end" or { "ip-end", more… } in it.
  local function service(...)
    unique = unique + 1
    local name = "followed" .. unique
    for _, last in ipairs { ... } do
      assert(writer:add_naming_instance(name, "10.0.0." .. last, 80))
    end
    return name
  end

  local function add(name, last, more)
    local args = { service_name = name, ip = "10.0.0." .. last, port = 80 }
    for key, value in pairs(more or {}) do
      args[key] = value
    end
    assert(writer:add_naming_instance(args))
  end

  local function remove(name, last, more)
    local args = { service_name = name, ip = "10.0.0." .. last, port = 80 }
    for key, value in pairs(more or {}) do
      args[key] = value
    end
    assert(writer:remove_naming_instance(args))
  end

  ---A listener that notes "EVENT last-number-of-the-ip".
  local function recorder()
    local seen = { n = 0 }
    return seen, function(event, instance)
      seen.n = seen.n + 1
      seen[seen.n] = event .. " " .. instance.ip:match("%d+$")
      seen.last = instance
    end
  end

  ---The same for watch_service: "all +added ~modified -removed", each the ends of the ips.
  local function ends(list)
    local texts = {}
    for i, instance in ipairs(list) do
      texts[i] = instance.ip:match("%d+$")
    end
    return table.concat(texts, ",")
  end

  local function summary(change)
    return ("%s +%s ~%s -%s"):format(ends(change.instances), ends(change.added), ends(change.modified), ends(change.removed))
  end

  local function watcher()
    local seen = { n = 0 }
    return seen, function(change)
      seen.n = seen.n + 1
      seen[seen.n] = summary(change)
      seen.last = change
    end
  end

  local function until_seen(seen, n, seconds)
    support.eventually(function()
      return seen.n >= n, "only " .. seen.n .. " calls: " .. table.concat(seen, "; ")
    end, seconds or 10)
  end

  local function seen_is(expected, seen)
    assert.same(expected, { table.unpack(seen) })
  end

  ---Lists asked for, by the query.
  local function questions(name)
    local list = {}
    for _, request in ipairs(lab.requests(server, LIST)) do
      local query = lab.form(request.query)
      if query.serviceName:match("[^@]*$") == name then
        list[#list + 1] = query
      end
    end
    return list
  end

  ---Wait until the server knows where to push changes of the service.
  local function until_pushed(name)
    return support.eventually(function()
      for _, query in ipairs(questions(name)) do
        if tonumber(query.udpPort or 0) > 0 then
          return query
        end
      end
    end)
  end

  -- ---- what listeners are told ---------------------------------------------------------------------------------------------------

  it("tells its instances, every change, and nothing twice", function()
    local client, seen, listener = lab.client(server), recorder()
    local name = service(1, 2)
    assert.equal("listener-1", client:subscribe(listener, 60, name))
    assert.equal(0, seen.n, "not from inside the call")
    until_seen(seen, 2)
    until_pushed(name)
    add(name, 3)
    until_seen(seen, 3)
    assert(writer:modify_naming_instance(name, "10.0.0.2", 80, nil, 5, { a = "1" }))
    until_seen(seen, 4)
    assert.same({ 5, { a = "1" }, name, "DEFAULT_GROUP" },
      { seen.last.weight, seen.last.metadata, seen.last.service_name, seen.last.group_name })
    remove(name, 1)
    until_seen(seen, 5)
    assert.equal("10.0.0.1", seen.last.ip)
    add(name, 1)
    until_seen(seen, 6)
    nacos.step(0.2)
    seen_is({ "ADDED 1", "ADDED 2", "ADDED 3", "MODIFIED 2", "DELETED 1", "ADDED 1" }, seen)
  end)

  it("comes as the whole list and the difference, first also when it is empty", function()
    local client, seen, callback = lab.client(server), watcher()
    local name = service()
    client:watch_service(name, { interval = 60 }, callback)
    until_seen(seen, 1)
    assert.is_true(seen.last.first)
    assert.same({ name, "DEFAULT_GROUP", "", 0, "server", false }, {
      seen.last.service_name, seen.last.group_name, seen.last.namespace, seen.last.held, seen.last.source, seen.last.protection,
    })
    until_pushed(name)
    for n, last in ipairs { 2, 3, 1 } do
      add(name, last)
      until_seen(seen, n + 1)
    end
    assert.is_false(seen.last.first)
    writer:modify_naming_instance(name, "10.0.0.3", 80, nil, 3)
    until_seen(seen, 5)
    remove(name, 2)
    until_seen(seen, 6)
    seen_is({ " + ~ -", "2 +2 ~ -", "2,3 +3 ~ -", "1,2,3 +1 ~ -", "1,2,3 + ~3 -", "1,3 + ~ -2" }, seen)
  end)

  it("can be named by named arguments", function()
    local client, seen, listener = lab.client(server), recorder()
    local name, other, watch = service(1), watcher()
    client:subscribe { listener_fn = listener, service_name = name, group_name = "DEFAULT_GROUP", listener_name = "mine" }
    client:subscribe(listener, 60, { service_name = name })
    client:watch_service { service_name = name, fn = watch, healthy_only = false }
    client:watch_service(name, watch)
    client:watch_service(name, nil, watch)
    until_seen(seen, 2)
    until_seen(other, 3)
    assert.equal(1, client:status().subscriptions)
  end)

  it("shows a listener of healthy instances an unhealthy one as deleted, and a recovered one as added", function()
    local client, all, every = lab.client(server), recorder()
    local seen, listener = recorder()
    local list, callback = watcher()
    local name = service(1)
    add(name, 2, { healthy = false })
    client:subscribe(every, 60, name)
    client:subscribe(listener, 60, name, nil, nil, nil, true)
    client:watch_service(name, callback)
    until_seen(seen, 1)
    until_seen(all, 2)
    until_seen(list, 1)
    until_pushed(name)
    assert(writer:send_heartbeat(name, "10.0.0.2", 80)) -- a beat heals it
    until_seen(seen, 2)
    add(name, 1, { healthy = false })
    until_seen(seen, 3)
    assert.is_false(seen.last.healthy)
    until_seen(list, 3)
    until_seen(all, 4)
    seen_is({ "ADDED 1", "ADDED 2", "DELETED 1" }, seen)
    seen_is({ "ADDED 1", "ADDED 2", "MODIFIED 2", "MODIFIED 1" }, all)
    seen_is({ "1 +1 ~ -", "1,2 +2 ~ -", "2 + ~ -1" }, list)
  end)

  it("gives a late listener the present instances at once, and nobody anything twice", function()
    local client, first, one = lab.client(server), recorder()
    local second, two = recorder()
    local third, three = watcher()
    local name = service(1, 2)
    client:subscribe(one, 60, name)
    until_seen(first, 2)
    server:faults { path = "/nacos" .. LIST, status = 500 } -- no question helps
    client:subscribe(two, 60, name)
    client:watch_service(name, three)
    assert.same({ 0, 0 }, { second.n, third.n })
    until_seen(second, 2)
    until_seen(third, 1)
    assert.is_true(third.last.first)
    server:clear_faults()
    until_pushed(name)
    add(name, 3)
    until_seen(first, 3)
    until_seen(second, 3)
    until_seen(third, 2)
    seen_is({ "ADDED 1", "ADDED 2", "ADDED 3" }, first)
    seen_is({ "ADDED 1", "ADDED 2", "ADDED 3" }, second)
    seen_is({ "1,2 +1,2 ~ -", "1,2,3 +3 ~ -" }, third)
  end)

  it("is one subscription, and one stream of questions, for all its listeners", function()
    local client, calls = lab.client(server, { push = false }), 0
    local name = service(1)
    for _ = 1, 20 do
      client:subscribe(function() calls = calls + 1 end, 0.3, name, "B,A")
      client:watch_service(name, { clusters = "A,B", interval = 1 }, function() calls = calls + 1 end)
    end
    support.eventually(function() return calls == 20 end) -- the list is empty: there is nothing in these clusters
    assert.equal(1, client:status().subscriptions)
    server:clear_requests()
    nacos.step(0.1)
    nacos.sleep(1.2)
    local asked = #questions(name)
    assert.is_true(asked >= 2 and asked <= 6, asked .. " questions in 1.3 s at an interval of 0.3 s")
  end)

  it("keeps clusters, groups and namespaces apart", function()
    local client, name = lab.client(server), service()
    local seen, listeners = {}, {}
    for _, which in ipairs { "all", "A", "G", "ns" } do
      seen[which], listeners[which] = recorder()
    end
    client:subscribe(listeners.all, 60, name)
    client:subscribe(listeners.A, 60, name, "A")
    client:subscribe(listeners.G, 60, name, nil, nil, "G")
    client:subscribe(listeners.ns, 60, name, nil, "ns")
    assert.equal(4, client:status().subscriptions)
    support.eventually(function() return #questions(name) >= 4 end)
    add(name, 1)
    add(name, 2, { cluster_name = "A" })
    add(name, 3, { group_name = "G" })
    add(name, 4, { namespace_id = "ns" })
    until_seen(seen.all, 2)
    until_seen(seen.A, 1, 12)
    until_seen(seen.G, 1)
    until_seen(seen.ns, 1, 12)
    nacos.step(0.2)
    assert.same({ 2, "ADDED 2", "ADDED 3", "ADDED 4" }, { seen.all.n, seen.A[1], seen.G[1], seen.ns[1] })
    assert.same({ 1, 1, 1 }, { seen.A.n, seen.G.n, seen.ns.n })
    assert.equal("G", seen.G.last.group_name)
  end)

  -- ---- how listeners run -----------------------------------------------------------------------------------------------------------

  it("merges what comes while a listener waits; its calls never overlap", function()
    local client, name, running, seen, go = lab.client(server), service(1, 2), 0, {}, false
    local other, listener = recorder()
    client:subscribe(listener, 60, name)
    client:subscribe(function(event, instance)
      running = running + 1
      assert.equal(1, running)
      seen[#seen + 1] = ("%s %s %g"):format(event, instance.ip:match("%d+$"), instance.weight)
      while not go do
        nacos.sleep(0.01)
      end
      running = running - 1
    end, 60, name)
    support.eventually(function() return #seen == 1 and other.n == 2 end)
    until_pushed(name)
    add(name, 3)                                                    -- stays
    add(name, 4)                                                    -- comes and goes
    until_seen(other, 4)
    remove(name, 4)
    writer:modify_naming_instance(name, "10.0.0.1", 80, nil, 5)
    until_seen(other, 6)
    writer:modify_naming_instance(name, "10.0.0.1", 80, nil, 6)
    remove(name, 2)                                                 -- never told to the one that waits
    until_seen(other, 8)
    assert.same({ "ADDED 1 1" }, seen)
    go = true
    support.eventually(function() return #seen >= 3 and running == 0 end)
    nacos.step(0.1)
    assert.same({ "ADDED 1 1", "MODIFIED 1 6", "ADDED 3 1" }, seen)
  end)

  it("tells a waiting callback of the whole list the difference to what it saw", function()
    local client, name, seen, go = lab.client(server), service(1, 2), {}, false
    local other, listener = recorder()
    client:subscribe(listener, 60, name)
    client:watch_service(name, function(change)
      seen[#seen + 1] = summary(change)
      while not go do
        nacos.sleep(0.01)
      end
    end)
    support.eventually(function() return #seen == 1 and other.n == 2 end)
    until_pushed(name)
    for last = 3, 40 do
      add(name, last)
    end
    until_seen(other, 40)
    remove(name, 1)
    until_seen(other, 41)
    remove(name, 40)
    until_seen(other, 42)
    for n, weight in ipairs { 5, 1 } do -- and back: no difference
      writer:modify_naming_instance(name, "10.0.0.2", 80, nil, weight)
      until_seen(other, 42 + n)
    end
    local kept = 0
    for _, item in pairs(client.services) do
      for _, one in ipairs(item.listeners) do
        for _ in pairs(one.pending) do
          kept = kept + 1
        end
      end
    end
    assert.equal(39, kept, "what came and went is not remembered") -- 3 to 39, 1 and 2
    go = true
    support.eventually(function() return #seen == 2 end)
    local all = {}
    for last = 3, 39 do
      all[#all + 1] = tostring(last)
    end
    local function by_text(list)
      table.sort(list)
      return table.concat(list, ",")
    end
    local added = by_text(all)
    assert.same({ "1,2 +1,2 ~ -" }, { seen[1] })
    all[#all + 1] = "2"
    assert.equal(("%s +%s ~ -1"):format(by_text(all), added), seen[2])
  end)

  it("goes on after errors, which are logged, counted and reported", function()
    local reported, folder, name = {}, support.tmpdir(), service(1)
    local client = lab.client(server, {
      log_level = "ERROR", log_dir = folder, on_error = function(err, about) reported[#reported + 1] = { err, about } end,
    })
    local seen, listener = recorder()
    client:subscribe(function(event, instance)
      error("deliberate " .. event .. " " .. instance.ip)
    end, 60, name, { listener_name = "broken" })
    client:subscribe(listener, 60, name)
    until_seen(seen, 1)
    until_pushed(name)
    add(name, 2)
    until_seen(seen, 2)
    support.eventually(function() return #reported == 2 end)
    assert.equal(2, client:status().callback_errors)
    local err, about = table.unpack(reported[2])
    assert.matches("subscribe_spec.lua:%d+: deliberate ADDED 10.0.0.2", err)
    assert.matches("stack traceback", err)
    assert.same({
      kind = "callback", service_name = name, group_name = "DEFAULT_GROUP", namespace = "", listener_name = "broken",
    }, about)
    assert.matches("ERROR [^\n]*" .. name .. "[^\n]*deliberate ADDED 10.0.0.1", support.read(folder .. "/lunacos.log"))
  end)

  it("lets listeners be removed by name, all together, and from inside", function()
    local client, name, other = lab.client(server), service(1), service(1)
    local seen, listeners = {}, {}
    for i = 1, 5 do
      seen[i], listeners[i] = recorder()
    end
    assert.equal("one", client:subscribe(listeners[1], 60, name, { listener_name = "one" }))
    assert.equal("two", client:subscribe(listeners[2], 60, name, { listener_name = "two" }))
    local third = client:subscribe(listeners[3], 60, name)
    client:subscribe(function(...)
      listeners[4](...)
      client:unsubscribe(name, "inside")
    end, 60, name, { listener_name = "inside" })
    client:subscribe(listeners[5], 60, other)
    local none, err = client:subscribe(nothing, 60, name, { listener_name = "two" })
    assert.is_nil(none)
    assert.equal("invalid", err.code)
    for i = 1, 5 do
      until_seen(seen[i], 1)
    end
    until_pushed(name)
    assert.equal(1, client:unsubscribe(name, "one"))
    assert.equal(0, client:unsubscribe(name, "one"))
    assert.equal(0, client:unsubscribe(name, "inside"), "it has removed itself")
    add(name, 2)
    until_seen(seen[2], 2)
    until_seen(seen[3], 2)
    assert.equal(1, client:unsubscribe { service_name = name, listener_name = third })
    assert.equal(1, client:unsubscribe(name), "the rest")
    assert.equal(1, client:status().subscriptions)
    client:stop_subscribe()
    assert.equal(0, client:status().subscriptions)
    server:clear_requests()
    add(name, 3)
    add(other, 3)
    nacos.step(0.3)
    assert.same({ 1, 2, 2, 1, 1 }, { seen[1].n, seen[2].n, seen[3].n, seen[4].n, seen[5].n })
    client:subscribe(listeners[5], 60, other, { listener_name = "again" })
    until_seen(seen[5], 3)
  end)

  it("keeps nacos.run() going, and ends with its client", function()
    local name, client = service(1), lab.client(server)
    local calls = 0
    writer:close { deregister = false } -- what it registered would keep run() going, too
    client:watch_service(name, function()
      calls = calls + 1
      client:close()
    end)
    nacos.run()
    assert.equal(1, calls)
  end)

  -- ---- how changes arrive ------------------------------------------------------------------------------------------------------------

  it("is pushed within milliseconds, and the push is acknowledged", function()
    local client, name = lab.client(server), service(1)
    local seen, listener = recorder()
    client:subscribe(listener, 60, name)
    until_seen(seen, 1)
    local query = until_pushed(name)
    assert.equal("127.0.0.1", query.clientIP)
    local best = math.huge
    for last = 2, 6 do
      local took = lab.timed(function()
        add(name, last)
        until_seen(seen, last)
      end)
      best = math.min(best, took)
    end
    assert.is_true(best < 0.1, tostring(best))
    assert.is_true(client:status().pushes >= 5)
    local stats = server:stats()
    assert.is_true(stats.pushes_acked > 0)
    assert.equal(0, stats.pushes_retried)
  end)

  it("is asked for at the interval when pushes are off", function()
    local client, name = lab.client(server, { push = false }), service(1)
    local seen, listener = recorder()
    client:subscribe(listener, 0.2, name)
    until_seen(seen, 1)
    add(name, 2)
    until_seen(seen, 2)
    for _, query in ipairs(questions(name)) do
      assert.is_true(query.udpPort == nil or query.udpPort == "0")
    end
    assert.equal(0, client:status().pushes)
  end)

  it("is pushed to the port and address of the options", function()
    local socket = uv.new_udp()
    socket:bind("127.0.0.1", 0)
    local port = socket:getsockname().port
    socket:close()
    uv.run()
    local client, name = lab.client(server, { push_port = port, push_ip = "127.0.0.1" }), service(1)
    local seen, listener = recorder()
    client:subscribe(listener, 60, name)
    assert.equal(tostring(port), until_pushed(name).udpPort)
    until_seen(seen, 1)
    add(name, 2)
    until_seen(seen, 2)
  end)

  it("is asked for as often as its most eager listener wants", function()
    local client, name = lab.client(server, { push = false }), service(1)
    local seen, listener = recorder()
    client:subscribe(listener, 60, name)
    until_seen(seen, 1)
    local eager = client:subscribe(nothing, 0.2, name)
    add(name, 2)
    until_seen(seen, 2, 3)
    client:unsubscribe(name, eager)
    nacos.sleep(0.3)
    server:clear_requests()
    nacos.sleep(0.8)
    assert.is_true(#questions(name) <= 1)
  end)

  -- ---- what is not believed ------------------------------------------------------------------------------------------------------------

  local function answer_list(fault)
    fault.path = "/nacos" .. LIST
    server:clear_faults()
    server:faults(fault)
  end

  it("loses nothing by questions that fail", function()
    local client, name = lab.client(server, { push = false }), service(1, 2)
    local seen, listener = recorder()
    client:subscribe(listener, 0.2, name)
    until_seen(seen, 2)
    for _, fault in ipairs {
      { status = 500 }, { status = 200, body = "<html>" }, { status = 200, body = "{}" }, { status = 404, body = "" },
      { status = 200, body = '{"hosts":null}' }, { drop_at = 0 }, { status = 403, body = '{"message":"token expired!"}' },
    } do
      server:clear_requests()
      answer_list(fault)
      support.eventually(function() return #questions(name) >= 2 end, 10)
    end
    assert.equal(2, seen.n)
    server:clear_faults()
    add(name, 3)
    until_seen(seen, 3)
    seen_is({ "ADDED 1", "ADDED 2", "ADDED 3" }, seen)
  end)

  it("is held when it is suddenly empty, and believed when it stays so", function()
    local folder = support.tmpdir()
    local client, name = lab.client(server, { push = false, log_level = "WARN", log_dir = folder }), service(1, 2)
    local seen, callback = watcher()
    client:watch_service(name, { interval = 0.2, hold = 1 }, callback)
    until_seen(seen, 1)
    answer_list { status = 200, body = '{"hosts":[]}' }
    local took = lab.timed(function()
      until_seen(seen, 2)
      assert.same({ 2, "1,2 + ~ -" }, { seen.last.held, seen[2] })
      until_seen(seen, 3)
    end)
    assert.is_true(took > 0.9 and took < 3, tostring(took))
    assert.same({ 0, " + ~ -1,2" }, { seen.last.held, seen[3] })
    assert.matches("WARN [^\n]*" .. name .. "[^\n]*2 of 2 instances", support.read(folder .. "/lunacos.log"))
  end)

  it("is not held longer because a push told of it", function()
    local client, name = lab.client(server), service(1)
    local seen, callback = watcher()
    client:watch_service(name, { interval = 60, hold = 0.5 }, callback)
    until_seen(seen, 1)
    until_pushed(name)
    remove(name, 1)
    local took = lab.timed(until_seen, seen, 3)
    assert.same({ " + ~ -1", true }, { seen[3], took < 4 }, "not at the next question, some 8 s later, but after " .. took)
  end)

  it("belongs to each listener, which may change what it was given", function()
    local client, name = lab.client(server), service(1)
    local seen, callback = watcher()
    local function spoil(instance)
      instance.ip, instance.metadata.zone = "evil", "evil"
    end
    client:subscribe(function(_, instance) spoil(instance) end, 7, name)
    client:watch_service(name, function(change) spoil(change.instances[1] or { metadata = {} }) end)
    client:watch_service(name, callback)
    until_seen(seen, 1)
    spoil(client:select_instance(name))
    assert.equal("10.0.0.1", client:select_instance(name).ip)
    local late = watcher()
    client:watch_service(name, function(change)
      late.n, late.last = late.n + 1, change.instances[1]
    end)
    until_seen(late, 1)
    assert.same({ "1", "10.0.0.1" }, { ends(seen.last.instances), late.last.ip })
    assert.is_nil(late.last.metadata.zone)
  end)

  it("comes back from a hold as if nothing had been", function()
    local client, name = lab.client(server, { push = false }), service(1, 2)
    local seen, callback = watcher()
    local calls, listener = recorder()
    client:watch_service(name, { interval = 0.2, hold = 30 }, callback)
    client:subscribe(listener, 0.2, name)
    until_seen(calls, 2)
    answer_list { status = 200, body = '{"hosts":[]}' }
    until_seen(seen, 2)
    server:clear_faults()
    until_seen(seen, 3)
    seen_is({ "1,2 +1,2 ~ -", "1,2 + ~ -", "1,2 + ~ -" }, seen)
    assert.equal(0, seen.last.held)
    assert.equal(2, calls.n)
  end)

  it("is held when it drops by more than max_drop, of the most careful listener", function()
    local client, name = lab.client(server, { push = false }), service(1, 2, 3, 4)
    local seen, callback = watcher()
    client:watch_service(name, { interval = 0.2, hold = 1, max_drop = 0.5 }, callback)
    until_seen(seen, 1)
    remove(name, 1)
    until_seen(seen, 2)
    assert.same({ 0, "2,3,4 + ~ -1" }, { seen.last.held, seen[2] })
    local careful = client:subscribe(nothing, 0.2, name, { max_drop = 0, hold = 30 })
    nacos.step(0.3)
    remove(name, 2)
    until_seen(seen, 3)
    assert.same({ 1, "2,3,4 + ~ -" }, { seen.last.held, seen[3] })
    add(name, 5)
    until_seen(seen, 4)
    assert.same({ 1, "2,3,4,5 +5 ~ -" }, { seen.last.held, seen[4] })
    client:unsubscribe(name, careful)
    until_seen(seen, 5)
    assert.same({ 0, "3,4,5 + ~ -2" }, { seen.last.held, seen[5] })
  end)

  it("is believed at once with hold = 0", function()
    local client, name = lab.client(server, { push = false }), service(1, 2)
    local seen, callback = watcher()
    client:watch_service(name, { interval = 0.2, hold = 0 }, callback)
    until_seen(seen, 1)
    remove(name, 1)
    remove(name, 2)
    until_seen(seen, 2)
    assert.equal(0, seen.last.held)
  end)

  -- ---- the disk ------------------------------------------------------------------------------------------------------------------------

  it("starts without any server from the last list on disk, marked as such", function()
    local own = support.start_server { "--push-delay", "0" }
    local mine, name = lab.client(own, { no_snapshot = false }), "disk"
    assert(mine:add_naming_instance(name, "10.0.0.1", 80, nil, 2, { a = "1" }))
    local seen, callback = watcher()
    mine:watch_service(name, callback)
    until_seen(seen, 1)
    local folder = mine.folder .. "/snapshot"
    support.eventually(function() return support.read(folder .. "/naming/disk+DEFAULT_GROUP+") end)
    local address = own.base
    mine:close { deregister = false }
    own:kill9()
    local cold = lab.client(address, { snapshot_base = folder })
    seen, callback = watcher()
    cold:watch_service(name, { interval = 0.3 }, callback)
    until_seen(seen, 1)
    assert.same({ "snapshot", true, 2, { a = "1" } },
      { seen.last.source, seen.last.first, seen.last.instances[1].weight, seen.last.instances[1].metadata })
    local list, source = cold:list_naming_instance { service_name = name, timeout = 0.5 }
    assert.same({ 1, "snapshot" }, { #list, source })
    local _, err = cold:list_naming_instance { service_name = name, timeout = 0.5, no_snapshot = true }
    assert.equal("unavailable", err.code)
    own = support.start_server { "--push-delay", "0", "--port", tostring(own.port) }
    local again = lab.client(own)
    assert(again:add_naming_instance(name, "10.0.0.1", 80, nil, 2, { a = "1" }))
    support.eventually(function() return seen.last.source == "server" end, 15)
    assert.equal("1", ends(seen.last.instances))
    again:close()
    cold:close()
    own:stop()
  end)

  it("follows a failover file before any server", function()
    local client, name = lab.client(server, { push = false }), service(1)
    local seen, callback = watcher()
    local path = client.folder .. "/data/naming"
    os.execute("mkdir -p " .. path)
    support.write(path .. "/" .. name .. "+DEFAULT_GROUP+", '{"hosts":[{"ip":"10.0.0.9","port":80}]}')
    client:watch_service(name, { interval = 0.2 }, callback)
    until_seen(seen, 1)
    assert.same({ "9 +9 ~ -", "failover" }, { seen[1], seen.last.source })
    local list, source = client:list_naming_instance(name)
    assert.same({ "9", "failover" }, { ends(list), source })
    os.remove(path .. "/" .. name .. "+DEFAULT_GROUP+")
    support.eventually(function() return ends(seen.last.instances) == "1" end, 20)
    assert.equal("server", seen.last.source)
  end)

  it("needs an address to push to that is one", function()
    assert.has_error(function() lab.client(server, { push_ip = "x y" }) end)
    local ok, err = pcall(lab.client, server, { push_ip = "256.0.0.1" })
    assert.is_false(ok)
    assert.matches("push_ip.*neither an address nor a host name", err)
  end)

  it("says that a failover file is damaged", function()
    local folder = support.tmpdir()
    local client, name = lab.client(server, { log_level = "WARN", log_dir = folder }), service(1)
    local path = client.folder .. "/data/naming"
    os.execute("mkdir -p " .. path)
    support.write(path .. "/" .. name .. "+DEFAULT_GROUP+", '{"ho')
    assert.equal("1", ends(client:list_naming_instance(name)))
    assert.matches("WARN [^\n]*file ignored: naming/" .. name .. "%+DEFAULT_GROUP%+ is no list of instances",
      support.read(folder .. "/lunacos.log"))
  end)

  -- ---- trouble -------------------------------------------------------------------------------------------------------------------------

  it("tells on_error once what keeps it from being served, and recovers", function()
    local told = {}
    local client = lab.client(server, { on_error = function(err, about) told[#told + 1] = { err, about } end })
    local name, seen, listener = service(1), recorder()
    answer_list { status = 403, body = '{"message":"authorization failed!"}' }
    client:subscribe(listener, 0.2, name)
    support.eventually(function() return #told == 1 end)
    assert.same({ "forbidden", "watch", name, "DEFAULT_GROUP" },
      { told[1][1].code, told[1][2].kind, told[1][2].service_name, told[1][2].group_name })
    nacos.step(1)
    assert.equal(1, #told)
    server:clear_faults()
    until_seen(seen, 1, 15)
  end)

  it("skips and counts what is no instance", function()
    local client, name = lab.client(server, { push = false }), service()
    local seen, callback = watcher()
    answer_list {
      status = 200, body = '{"hosts":[{"ip":"10.0.0.1","port":80},5,{"ip":[]},{"ip":"10.0.0.1","port":80},'
        .. '{"ip":"10.0.0.2","port":80,"x":1}]}',
    }
    client:watch_service(name, callback)
    until_seen(seen, 1)
    assert.equal("1,2 +1,2 ~ -", seen[1])
    assert.is_true(client:status().entries_skipped >= 3)
  end)

  it("may have 100,000 instances", function()
    local entries = {}
    for i = 1, 100000 do
      entries[i] = ('{"ip":"10.%d.%d.%d","port":80}'):format(i // 65536, i // 256 % 256, i % 256)
    end
    local body = '{"hosts":[' .. table.concat(entries, ",") .. "]}"
    local file = support.tmpdir() .. "/answer"
    support.write(file, ("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"):format(#body, body))
    local rogue = lab.rogue("once", file)
    local client, calls, count = lab.client(rogue, { push = false }), 0, 0
    client:subscribe(function() calls = calls + 1 end, 60, "large")
    client:watch_service("large", function(change) count = #change.instances end)
    support.eventually(function() return calls == 100000 and count == 100000 end, 30)
    client:close()
    rogue:stop()
  end)

  -- ---- datagrams -------------------------------------------------------------------------------------------------------------------------

  describe("is not impressed by a datagram", function()
    local client, name, seen, socket, port, acks, newest

    ---The list of the service with these ends of ips, as servers push it.
    local function push_of(time, ...)
      local hosts = {}
      for i, last in ipairs { ... } do
        hosts[i] = ('{"ip":"10.0.0.%d","port":80,"healthy":true,"ephemeral":true,"clusterName":"DEFAULT"}'):format(last)
      end
      return ('{"name":"DEFAULT_GROUP@@%s","clusters":"","lastRefTime":%d,"cacheMillis":10000,"hosts":[%s]}')
        :format(name, time, table.concat(hosts, ","))
    end

    local function datagram(data, kind)
      return json.encode { type = kind or "dom", data = data, lastRefTime = 862358008663 }
    end

    local function send(bytes)
      socket:send(bytes, "127.0.0.1", port)
      uv.run("nowait")
    end

    ---Send, and wait until the client has counted it.
    local function dropped(bytes)
      local before = client:status()
      send(bytes)
      support.eventually(function()
        local now = client:status()
        return now.pushes_dropped + now.pushes > before.pushes_dropped + before.pushes
      end)
      assert.equal(before.pushes, client:status().pushes, "it was taken")
    end

    local function gzip(text)
      local folder = support.tmpdir()
      support.write(folder .. "/plain", text)
      support.run("gzip -c " .. folder .. "/plain > " .. folder .. "/gz")
      return support.read(folder .. "/gz")
    end

    before_each(function()
      client, name = lab.client(server), service(1, 2)
      seen, acks = recorder(), {}
      local listener
      seen, listener = recorder()
      client:subscribe(listener, 60, name)
      until_seen(seen, 2)
      port = tonumber(until_pushed(name).udpPort)
      support.eventually(function() return #questions(name) >= 2 and client:status().pushes > 0 end, 3)
      newest = select(3, client:list_naming_instance(name)).ref_time + 1000
      socket = uv.new_udp()
      socket:bind("127.0.0.1", 0)
      socket:recv_start(function(_, bytes)
        acks[#acks + 1] = bytes
      end)
    end)
    after_each(function()
      socket:close()
      uv.run("nowait")
    end)

    it("unless it is a newer list of the service, plain or zipped", function()
      send(datagram(push_of(newest, 1, 2, 3)))
      until_seen(seen, 3)
      send(gzip(datagram(push_of(newest + 1, 1, 2, 3, 4))))
      until_seen(seen, 4)
      seen_is({ "ADDED 1", "ADDED 2", "ADDED 3", "ADDED 4" }, seen)
      support.eventually(function()
        uv.run("nowait")
        return #acks == 2
      end)
      assert.same({ type = "push-ack", lastRefTime = "862358008663", data = "" }, json.decode(acks[1]))
    end)

    it("that is old, or comes again", function()
      send(datagram(push_of(newest, 1, 2, 3)))
      until_seen(seen, 3)
      dropped(datagram(push_of(newest, 1, 2, 3)))
      dropped(datagram(push_of(newest - 1, 5, 6)))
      dropped(datagram(push_of(0, 5, 6)))
      nacos.step(0.1)
      assert.equal(3, seen.n)
    end)

    it("from an address at which no server is: the servers are asked instead", function()
      socket:close()
      socket = uv.new_udp()
      socket:bind("127.0.0.2", 0)
      local before = #questions(name)
      dropped(datagram(push_of(newest, 5)))
      support.eventually(function() return #questions(name) > before end, 4)
      nacos.step(0.1)
      assert.equal(2, seen.n)
    end)

    it("of another service, group or kind", function()
      dropped(datagram((push_of(newest, 5):gsub("@@" .. name, "@@other"))))
      dropped(datagram((push_of(newest, 5):gsub("DEFAULT_GROUP@@", "G@@"))))
      dropped(datagram(push_of(newest, 5), "dump"))
      dropped(datagram(push_of(newest, 5), "nonsense"))
      nacos.step(0.1)
      assert.equal(2, seen.n)
    end)

    it("that is truncated, of wrong types, or noise", function()
      local whole, zipped = datagram(push_of(newest, 5)), gzip(datagram(push_of(newest, 5)))
      for n = 1, #whole - 1, 17 do
        dropped(whole:sub(1, n))
      end
      for n = 1, #zipped - 1, 13 do
        dropped(zipped:sub(1, n))
      end
      for _, bytes in ipairs {
        "x", "{}", "[]", "null", '{"type":5}', '{"type":"dom"}', '{"type":"dom","data":5}', '{"type":"dom","data":"x"}',
        '{"type":"dom","data":"{}"}', '{"type":"dom","data":"{\\"hosts\\":[]}"}', '{"type":"dom","data":{"hosts":[]}}',
        ("["):rep(60000), ("\0"):rep(1000), "\x1f\x8b", "\x1f\x8b" .. ("x"):rep(500), ('{"type":"%s"}'):format(("x"):rep(1000)),
      } do
        dropped(bytes)
      end
      nacos.step(0.1)
      assert.equal(2, seen.n)
      send(datagram(push_of(newest, 1, 2, 3)))
      until_seen(seen, 3)
    end)

    it("that is a bomb", function()
      local function kib()
        return tonumber(support.read("/proc/self/status"):match("VmHWM:%s*(%d+)"))
      end
      local bomb = gzip(("\0"):rep(50 * 1024 * 1024))
      assert.is_true(#bomb < 60000)
      collectgarbage()
      support.write("/proc/self/clear_refs", "5") -- the high-water mark begins anew
      local before = kib()
      for _ = 1, 20 do
        dropped(bomb)
      end
      local more = kib() - before
      -- a sanitizer keeps what is freed for a while
      assert.is_true(more < (support.build:find("[at]san") and 500000 or 20000), more .. " KiB more")
      nacos.step(0.1)
      assert.equal(2, seen.n)
    end)

    it("that empties the list: it is held like any answer", function()
      send(datagram(push_of(newest)))
      support.eventually(function() return client:status().pushes >= 2 end)
      nacos.step(0.2)
      assert.equal(2, seen.n)
    end)
  end)
end)
