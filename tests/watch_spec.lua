--- Watches: what callbacks see and may do, how changes are found, what survives a server that is down, and peek.

local lab = require "lab"
local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local function nothing()
end

describe("a watch", function()
  local server, writer, unique

  setup(function()
    server = support.start_server()
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

  ---A dataId nobody used before, with this content if any.
  local function item(content)
    unique = unique + 1
    local id = "item" .. unique
    if content then
      assert(writer:publish_config(id, nil, content, { type = "text" }))
    end
    return id
  end

  local function publish(id, content, kind)
    assert(writer:publish_config(id, nil, content, { type = kind or "text" }))
  end

  local function until_seen(seen, n)
    support.eventually(function() return seen.n >= n, "only " .. seen.n .. " calls" end, 10)
  end

  ---Wait until the newest value of an item is this, without delivering anything.
  local function until_known(client, id, content)
    local deadline = lab.now() + 5
    repeat
      local known = client:peek(id)
      if known and known.content == content then
        return
      end
      uv.sleep(2)
    until lab.now() > deadline
    error("not known in 5 s: " .. content, 2)
  end

  ---Wait until the client's watches are part of a poll that the server holds.
  local function until_armed(client, id)
    support.eventually(function()
      for _, request in ipairs(lab.requests(server, lab.LISTENER)) do
        if not request.status and lab.form(request.body)["Listening-Configs"]:find(id .. "\2", 1, true) then
          return client:status().polls > 0
        end
      end
    end)
  end

  -- ---- what callbacks see --------------------------------------------------------------------------------------------------------

  it("tells the present value once, every change, and the removal", function()
    local client, seen, callback = lab.client(server), lab.recorder()
    local id = item("1")
    assert.is_true(client:add_config_watcher(id, nil, callback))
    assert.equal(0, seen.n, "not from inside the call")
    until_seen(seen, 1)
    for i = 2, 5 do
      publish(id, tostring(i))
      until_seen(seen, i)
    end
    writer:remove_config(id)
    until_seen(seen, 6)
    publish(id, "again")
    until_seen(seen, 7)
    nacos.step(0.1)
    assert.same({ "1", "2", "3", "4", "5", false, "again" }, { table.unpack(seen) })
    assert.equal(7, seen.n)
  end)

  it("polls briefly at first and after a change, for others that a server may have forgotten between two polls", function()
    local client, changing, other = lab.client(server), item("1"), item("1")
    server:faults { path = "/nacos" .. lab.LISTENER, status = 200, body = "", delay = 1.05 } -- quiet, but in a hurry
    for _, id in ipairs { changing, other } do
      client:add_config_watcher(id, nil, nothing)
    end
    ---The polls that name the other one, in order: how long the server may hold each, in ms.
    local function holds()
      local found = {}
      for _, request in ipairs(lab.requests(server, lab.LISTENER)) do
        if lab.form(request.body)["Listening-Configs"]:find(other .. "\2", 1, true) then
          found[#found + 1] = lab.header(request, "Long-Pulling-Timeout")
        end
      end
      return table.concat(found, " ")
    end
    support.eventually(function() return holds():find(" 30000$"), holds() end, 10)
    assert.matches("^10000 ", holds())
    server:clear_faults()
    publish(changing, "2")
    support.eventually(function() return holds():find(" 30000 10000$"), holds() end)
  end)

  it("says nothing of an item that does not exist until it does", function()
    local client, seen, callback = lab.client(server), lab.recorder()
    local id = item()
    client:add_config_watcher(id, nil, callback)
    until_armed(client, id)
    assert.equal(0, seen.n)
    publish(id, "born")
    until_seen(seen, 1)
    assert.equal("born", seen[1])
  end)

  it("describes the change", function()
    local client, seen, callback = lab.client(server, { namespace = "ns" }), lab.recorder()
    local other = lab.client(server, { namespace = "ns" })
    other:publish_config("described", "g", "{}", { type = "json" })
    client:add_config_watcher("described", "g", callback)
    until_seen(seen, 1)
    assert.same({
      data_id = "described", group = "g", namespace = "ns", content = "{}", raw_content = "{}",
      md5 = nacos.md5("{}"), type = "json", source = "server", via = "read",
    }, seen.last)
    other:remove_config("described", "g")
    until_seen(seen, 2)
    assert.same({ data_id = "described", group = "g", namespace = "ns", via = "poll" }, seen.last)
  end)

  it("does not wake callbacks for the same content published again", function()
    local client, seen, callback = lab.client(server), lab.recorder()
    local id = item("same")
    client:add_config_watcher(id, nil, callback)
    until_seen(seen, 1)
    until_armed(client, id)
    publish(id, "same")
    publish(id, "same", "json")
    publish(id, "other")
    until_seen(seen, 2)
    assert.same({ "same", "other" }, { table.unpack(seen) })
  end)

  it("can be named by named arguments, and watches DEFAULT_GROUP unless told", function()
    local client, seen, callback = lab.client(server), lab.recorder()
    local id = item("v")
    client:add_config_watcher { data_id = id, cb = callback }
    client:add_config_watchers { data_id = id, group = "DEFAULT_GROUP", cb_list = { callback } }
    until_seen(seen, 2)
    client:remove_config_watcher { data_id = id, cb = callback, remove_all = true }
    assert.equal(0, client:status().watches)
  end)

  it("gives a later callback the present value, and nobody anything twice", function()
    local client, first, one = lab.client(server), lab.recorder()
    local second, two = lab.recorder()
    local id = item("1")
    client:add_config_watcher(id, nil, one)
    until_seen(first, 1)
    client:add_config_watcher(id, nil, two)
    assert.equal(0, second.n)
    until_seen(second, 1)
    publish(id, "2")
    until_seen(first, 2)
    until_seen(second, 2)
    nacos.step(0.1)
    assert.same({ "1", "2" }, { table.unpack(first) })
    assert.same({ "1", "2" }, { table.unpack(second) })
  end)

  it("tells a later callback a change that waits already only once", function()
    local client, first, one = lab.client(server), lab.recorder()
    local second, two = lab.recorder()
    local id = item("1")
    client:add_config_watcher(id, nil, one)
    until_seen(first, 1)
    until_armed(client, id)
    publish(id, "2")
    until_known(client, id, "2")
    client:add_config_watcher(id, nil, two)
    until_seen(first, 2)
    until_seen(second, 1)
    nacos.step(0.1)
    nacos.step(0.1)
    assert.same({ "1", "2" }, { table.unpack(first) })
    assert.equal("2", second[second.n])
    for i = 2, second.n do
      assert.not_equal(second[i - 1], second[i], "the same value twice")
    end
  end)

  -- ---- how callbacks run -----------------------------------------------------------------------------------------------------------

  it("runs its callbacks at the same time, as coroutines", function()
    local client, running, most, done = lab.client(server), 0, 0, 0
    local function slow()
      running = running + 1
      most = math.max(most, running)
      nacos.sleep(0.1)
      running = running - 1
      done = done + 1
    end
    client:add_config_watchers(item("v"), nil, { slow, slow, slow, slow })
    support.eventually(function() return done == 4 end)
    assert.equal(4, most)
  end)

  it("never runs a callback twice at once; the newest value wins", function()
    local client = lab.client(server)
    local id, running, got = item("1"), 0, {}
    client:add_config_watcher(id, nil, function(change)
      running = running + 1
      assert.equal(1, running)
      got[#got + 1] = change.content
      nacos.sleep(0.4)
      running = running - 1
    end)
    support.eventually(function() return #got == 1 end)
    until_armed(client, id)
    for i = 2, 6 do
      publish(id, tostring(i))
    end
    support.eventually(function() return got[#got] == "6" and running == 0 end)
    assert.equal("1", got[1])
    assert.is_true(#got <= 3, "values that came meanwhile are merged: " .. table.concat(got, " "))
  end)

  it("does not hold up other items while a callback waits", function()
    local client, seen, callback = lab.client(server), lab.recorder()
    local ended
    client:add_config_watcher(item("v"), nil, function()
      nacos.sleep(0.5)
      ended = true
    end)
    client:add_config_watcher(item("w"), nil, callback)
    until_seen(seen, 1)
    assert.is_nil(ended)
  end)

  it("runs at most callback_thread_num callbacks at once, and all in the end", function()
    local client = lab.client(server, { callback_thread_num = 2 })
    local running, most, done = 0, 0, 0
    local function slow()
      running = running + 1
      most = math.max(most, running)
      nacos.sleep(0.03)
      running = running - 1
      done = done + 1
    end
    for _ = 1, 4 do
      client:add_config_watchers(item("v"), nil, { slow, slow })
    end
    support.eventually(function() return done == 8 end)
    assert.equal(2, most)
    assert.equal(0, client:status().callbacks_running)
    client:set_options { callback_thread_num = 8 }
    most = 0
    for _ = 1, 8 do
      client:add_config_watcher(item("v"), nil, slow)
    end
    support.eventually(function() return done == 16 end)
    assert.is_true(most > 2 and most <= 8, most .. " at once")
  end)

  it("runs callbacks that wait for their turn with the newest value, and removed ones not at all", function()
    local client = lab.client(server, { callback_thread_num = 1 })
    local blocked, seen, callback = item("v"), lab.recorder()
    local waiting, removed = item("1"), item("v")
    local go, called = false, false
    local function never()
      called = true
    end
    client:add_config_watcher(blocked, nil, function()
      while not go do
        nacos.sleep(0.005)
      end
    end)
    support.eventually(function() return client:status().callbacks_running == 1 end)
    client:add_config_watcher(waiting, nil, callback)
    client:add_config_watcher(removed, nil, never)
    support.eventually(function() return client:peek(waiting) and client:peek(removed) end)
    until_armed(client, waiting)
    nacos.step(0.02)
    assert.equal(0, seen.n)
    publish(waiting, "2")
    support.eventually(function() return client:peek(waiting).content == "2" end)
    nacos.step(0.02)
    client:remove_config_watcher(removed, nil, never)
    go = true
    until_seen(seen, 1)
    nacos.step(0.05)
    assert.same({ "2" }, { table.unpack(seen) })
    assert.is_false(called)
  end)

  it("logs, counts and reports the error of a callback, and delivers the next change all the same", function()
    local reported = {}
    local folder = support.tmpdir()
    local client = lab.client(server, {
      log_level = "ERROR", log_dir = folder,
      on_error = function(err, about)
        reported[#reported + 1] = { err, about }
        error("and on_error fails, too")
      end,
    })
    local id, seen, callback = item("1"), lab.recorder()
    client:add_config_watcher(id, nil, function(change)
      nacos.sleep(0)
      callback(change)
      error("deliberate " .. change.content)
    end)
    local other, fine = lab.recorder()
    client:add_config_watcher(id, nil, fine)
    support.eventually(function() return #reported == 1 and other.n == 1 end)
    publish(id, "2")
    support.eventually(function() return #reported == 2 and other.n == 2 end)
    assert.same({ "1", "2" }, { table.unpack(seen) })
    assert.equal(2, client:status().callback_errors)
    local err, about = table.unpack(reported[2])
    assert.matches("watch_spec.lua:%d+: deliberate 2", err)
    assert.matches("stack traceback", err)
    assert.same({ "callback", id, "DEFAULT_GROUP" }, { about.kind, about.data_id, about.group })
    local log = support.read(folder .. "/lunacos.log")
    assert.matches("ERROR [^\n]*" .. id .. "[^\n]*deliberate 1[^\n]*stack traceback", log)
    assert.matches("ERROR [^\n]*deliberate 2", log)
    assert.matches("and on_error fails, too", log)
  end)

  it("survives callbacks that raise what is no text", function()
    local client, errors = lab.client(server, { on_error = function() end }), 0
    local id = item("1")
    client:add_config_watchers(id, nil, {
      function() error() end,
      function() error({}) end,
      function() error(setmetatable({}, { __tostring = function() error("no") end })) end,
    })
    support.eventually(function()
      errors = client:status().callback_errors
      return errors == 3, errors
    end)
    assert.equal(0, client:status().callbacks_running)
  end)

  -- ---- what callbacks may do -------------------------------------------------------------------------------------------------------

  describe("lets a callback", function()
    it("remove itself", function()
      local client, calls, id = lab.client(server), 0, item("1")
      local function callback()
        calls = calls + 1
        client:remove_config_watcher(id, nil, callback)
      end
      client:add_config_watcher(id, nil, callback)
      support.eventually(function() return calls == 1 end)
      assert.equal(0, client:status().watches)
      publish(id, "2")
      nacos.step(0.1)
      assert.equal(1, calls)
    end)

    it("remove another that would run next", function()
      local client, id, called = lab.client(server), item("1"), {}
      local function second()
        called[#called + 1] = "second"
      end
      local function first()
        called[#called + 1] = "first"
        client:remove_config_watcher(id, nil, second)
      end
      client:add_config_watchers(id, nil, { first, second })
      support.eventually(function() return #called > 0 end)
      nacos.step(0.05)
      assert.same({ "first" }, called)
    end)

    it("add more, on the same item and on others", function()
      local client, id, other = lab.client(server), item("1"), item("2")
      local seen, callback = lab.recorder()
      local function adding()
        client:add_config_watcher(id, nil, callback)
        client:add_config_watcher(other, nil, callback)
        client:remove_config_watcher(id, nil, adding)
      end
      client:add_config_watcher(id, nil, adding)
      until_seen(seen, 2)
      nacos.step(0.05)
      local got = { table.unpack(seen) }
      table.sort(got)
      assert.same({ "1", "2" }, got)
    end)

    it("add itself again after removing itself", function()
      local client, id, calls = lab.client(server), item("1"), 0
      local function callback()
        calls = calls + 1
        if calls < 20 then
          client:remove_config_watcher(id, nil, callback)
          client:add_config_watcher(id, nil, callback)
        end
      end
      client:add_config_watcher(id, nil, callback)
      support.eventually(function() return calls == 20 end)
      publish(id, "2")
      support.eventually(function() return calls == 21 end)
    end)

    it("read, publish and remove", function()
      local client, id, derived = lab.client(server), item("1"), item()
      local seen, callback = lab.recorder()
      client:add_config_watcher(derived, nil, callback)
      client:add_config_watcher(id, nil, function(change)
        assert.equal(change.content, (client:get_config(id)))
        if change.content == "3" then
          assert(client:remove_config(derived))
        else
          assert(client:publish_config(derived, nil, "from " .. change.content))
        end
      end)
      until_seen(seen, 1)
      publish(id, "2")
      until_seen(seen, 2)
      publish(id, "3")
      until_seen(seen, 3)
      assert.same({ "from 1", "from 2", false }, { table.unpack(seen) })
    end)

    it("publish to its own item until it is content", function()
      local client, id, seen = lab.client(server), item("0"), {}
      client:add_config_watcher(id, nil, function(change)
        seen[#seen + 1] = change.content
        if tonumber(change.content) < 5 then
          assert(client:publish_config(id, nil, tostring(tonumber(change.content) + 1)))
        end
      end)
      support.eventually(function() return seen[#seen] == "5" end)
      assert.equal("0 1 2 3 4 5", table.concat(seen, " "))
    end)

    it("close the client while others run", function()
      local client, id, state = lab.client(server), item("1"), {}
      client:add_config_watchers(id, nil, {
        function()
          local _, err = client:get_config("anything-else", nil, 5)
          nacos.sleep(0.05)
          state.waiting = err and err.code
        end,
        function()
          client:close()
          state.closed = true
          state.again = select(2, client:add_config_watcher(id, nil, nothing)).code
        end,
      })
      support.eventually(function() return state.waiting and state.closed end)
      assert.equal("closed", state.again)
    end)
  end)

  describe("remove_config_watcher", function()
    it("removes one occurrence, or all", function()
      local client, id = lab.client(server), item("1")
      local seen, callback = lab.recorder()
      local kept, other = lab.recorder()
      client:add_config_watchers(id, nil, { callback, callback, callback, other })
      until_seen(seen, 3)
      client:remove_config_watcher(id, nil, callback)
      publish(id, "2")
      until_seen(seen, 5)
      until_seen(kept, 2)
      client:remove_config_watcher(id, nil, callback, true)
      publish(id, "3")
      until_seen(kept, 3)
      nacos.step(0.05)
      assert.equal(5, seen.n)
    end)

    it("ignores what is not there", function()
      local client, id = lab.client(server), item("1")
      client:remove_config_watcher(id, nil, nothing)
      client:add_config_watcher(id, nil, print)
      client:remove_config_watcher(id, nil, nothing)
      client:remove_config_watcher(id, "other", print)
      assert.equal(1, client:status().watches)
      client:remove_config_watcher(id, nil, print)
      assert.equal(0, client:status().watches)
    end)

    it("takes back what waits", function()
      local client, id = lab.client(server), item("1")
      local seen, callback = lab.recorder()
      client:add_config_watcher(id, nil, callback)
      until_known(client, id, "1")
      client:remove_config_watcher(id, nil, callback)
      nacos.step(0.05)
      assert.equal(0, seen.n)
    end)
  end)

  -- ---- how changes are found -----------------------------------------------------------------------------------------------------

  describe("is served by polls that", function()
    it("carry what the options say", function()
      local client = lab.client(server, { pulling_timeout = 9.5, pulling_config_size = 3 })
      local wanted = {}
      server:faults { path = "/nacos/v1/cs/configs", method = "GET", delay = 0.1 } -- so that all are known at once
      for _ = 1, 10 do
        local id = item("v")
        wanted[id] = true
        client:add_config_watcher(id, nil, nothing)
      end
      support.eventually(function()
        local left = next(wanted)
        for _, request in ipairs(lab.requests(server, lab.LISTENER)) do
          assert.equal("9500", lab.header(request, "Long-Pulling-Timeout"))
          local keys = 0
          for id, md5 in lab.form(request.body)["Listening-Configs"]:gmatch("([^\1\2]+)\2DEFAULT_GROUP\2(%x*)\1") do
            keys = keys + 1
            if md5 == nacos.md5("v") then
              wanted[id] = nil
            end
          end
          assert.is_true(keys >= 1 and keys <= 3, keys .. " keys in one poll")
        end
        return not left
      end)
    end)

    it("are few, and nothing is asked while nothing changes", function()
      local client, n = lab.client(server), 400
      local tasks, seen = {}, 0
      for i = 1, n do
        tasks[i] = function() assert(writer:publish_config("few" .. i, nil, "v", { type = "text", timeout = 10 })) end
      end
      lab.together(table.unpack(tasks))
      for i = 1, n do
        client:add_config_watcher("few" .. i, nil, function() seen = seen + 1 end)
      end
      support.eventually(function() return seen == n, seen end, 10)
      support.eventually(function()
        local status = client:status()
        return status.polls > 0 and status.polls <= 16
      end)
      local before = client:status().requests
      nacos.step(0.5)
      local asked = client:status().requests - before
      assert.is_true(asked <= 16, asked .. " requests in half a second of silence")
      -- and all that change at once are told
      seen = 0
      for i = 1, n do
        tasks[i] = function() assert(writer:publish_config("few" .. i, nil, "w", { type = "text", timeout = 10 })) end
      end
      lab.together(table.unpack(tasks))
      support.eventually(function() return seen == n, seen end, 10)
    end)

    it("take a new watch in at once, not when the one that hangs returns", function()
      local client, id = lab.client(server), item("1")
      client:add_config_watcher(id, nil, nothing)
      until_armed(client, id)
      for _ = 1, 5 do
        local late = item("1")
        local seen, callback = lab.recorder()
        client:add_config_watcher(late, nil, callback)
        until_seen(seen, 1)
        publish(late, "2")
        until_seen(seen, 2)
      end
    end)

    it("drop a removed watch", function()
      local client, kept, removed = lab.client(server), item("1"), item("1")
      local seen, callback = lab.recorder()
      client:add_config_watcher(removed, nil, callback)
      client:add_config_watcher(kept, nil, nothing)
      until_seen(seen, 1)
      until_armed(client, removed)
      client:remove_config_watcher(removed, nil, callback)
      publish(kept, "2")
      support.eventually(function() return client:peek(kept).content == "2" end)
      until_armed(client, kept)
      server:clear_requests()
      publish(removed, "2")
      publish(kept, "3")
      support.eventually(function() return client:peek(kept).content == "3" end)
      nacos.step(0.1)
      assert.equal(1, seen.n)
      for _, request in ipairs(server:requests().requests) do
        local fields = lab.form(request.method == "GET" and request.query or request.body)
        assert.is_false(request.method == "GET" and fields.dataId == removed)
        assert.is_nil((fields["Listening-Configs"] or ""):find(removed .. "\2", 1, true))
      end
    end)

    it("end when nobody watches any more", function()
      local client, id = lab.client(server), item("1")
      client:add_config_watcher(id, nil, nothing)
      until_armed(client, id)
      client:remove_config_watcher(id, nil, nothing)
      support.eventually(function() return client:status().polls == 0 end)
      server:clear_requests()
      nacos.step(0.3)
      assert.equal(0, #lab.requests(server, lab.LISTENER))
    end)
  end)

  it("minds the md5, not the notification", function()
    local client, id = lab.client(server), item("1")
    local seen, callback = lab.recorder()
    client:add_config_watcher(id, nil, callback)
    until_seen(seen, 1)
    server:faults { path = "/nacos/v1/cs/configs/listener", status = 200, body = id .. "%02DEFAULT_GROUP%01\n" }
    client:add_config_watcher(item("x"), nil, nothing) -- a new poll, to meet the fault
    publish(id, "1", "json") -- wakes nobody; the held poll stays
    nacos.step(0.5)
    assert.equal(1, seen.n)
    server:clear_faults()
    publish(id, "2")
    until_seen(seen, 2)
    assert.same({ "1", "2" }, { table.unpack(seen) })
  end)

  it("understands every shape of an answer and ignores keys that it does not watch", function()
    local ns = "shape"
    local other = lab.client(server, { namespace = ns })
    for _, body in ipairs {
      "shaped%02DEFAULT_GROUP%02shape%01\n", "nobody%02DEFAULT_GROUP%02shape%01shaped%02DEFAULT_GROUP%02shape%01\n",
      "shaped%02DEFAULT_GROUP%02shape%01", "shaped%02DEFAULT_GROUP%01\nshaped%02DEFAULT_GROUP%02shape%01\n",
    } do
      local client = lab.client(server, { namespace = ns })
      local seen, callback = lab.recorder()
      other:publish_config("shaped", nil, "1", { type = "text" })
      server:faults { path = "/nacos/v1/cs/configs/listener", status = 200, body = body, times = 1, delay = 0.2 }
      client:add_config_watcher("shaped", nil, callback)
      until_seen(seen, 1)
      other:publish_config("shaped", nil, "2", { type = "text" })
      until_seen(seen, 2)
      assert.equal("2", seen[2], body)
      server:clear_faults()
      client:close()
    end
  end)

  -- ---- servers that are down ---------------------------------------------------------------------------------------------------------

  describe("of a server that dies", function()
    local own, client, port

    before_each(function()
      own = support.start_server()
      port = tostring(own.port)
      client = lab.client(own)
    end)
    after_each(function()
      own:stop()
    end)

    local function put(id, content)
      local status = support.http("POST", own.url .. lab.CONFIGS, ("dataId=%s&group=DEFAULT_GROUP&content=%s"):format(id, content))
      assert.equal(200, status)
    end

    local function reborn(values)
      own:kill9()
      nacos.step(0.3)
      own = support.start_server { "--port", port }
      for id, content in pairs(values) do
        put(id, content)
      end
    end

    it("tells everything that is different when it is back", function()
      local seen, callbacks = {}, {}
      for _, id in ipairs { "same", "changed", "removed", "created" } do
        seen[id], callbacks[id] = lab.recorder()
        if id ~= "created" then
          put(id, "1")
        end
        client:add_config_watcher(id, nil, callbacks[id])
      end
      until_seen(seen.same, 1)
      until_seen(seen.changed, 1)
      until_seen(seen.removed, 1)
      support.eventually(function() return client:status().polls > 0 end)
      -- everything is in place before the client can reach it again
      own:kill9()
      support.eventually(function() return not client:status().connected end)
      assert.equal("1", client:peek("same").content, "the old value is kept")
      assert.equal("snapshot", select(2, client:get_config("same")))
      reborn { same = "1", changed = "2", created = "1" }
      support.eventually(function() return seen.changed.n >= 2 and seen.removed.n >= 2 and seen.created.n >= 1 end, 15)
      nacos.step(0.1)
      assert.equal("1", seen.changed[1])
      assert.equal("2", seen.changed[seen.changed.n])
      assert.is_false(seen.removed[2])
      assert.equal("1", seen.created[seen.created.n])
      assert.equal("1", seen.same[seen.same.n])
      put("same", "2") -- and goes on
      support.eventually(function() return seen.same[seen.same.n] == "2" end, 15)
    end)

    it("is picked up again under a hundred watches", function()
      local got, count, n = {}, 0, 100
      for i = 1, n do
        client:add_config_watcher("key" .. i, nil, function(change)
          count = count + (got[i] and 0 or 1)
          got[i] = change.content
        end)
      end
      support.eventually(function() return client:status().polls > 0 end)
      reborn {}
      local other, tasks = lab.client(own), {}
      for i = 1, n do
        tasks[i] = function() assert(other:publish_config("key" .. i, nil, "v" .. i, { type = "text", timeout = 10 })) end
      end
      lab.together(table.unpack(tasks))
      support.eventually(function() return count == n, count end, 15)
      for i = 1, n do
        assert.equal("v" .. i, got[i])
      end
    end)

    it("takes watches in the meantime", function()
      own:kill9()
      local seen, callback = lab.recorder()
      assert.is_true(client:add_config_watcher("meanwhile", nil, callback))
      nacos.step(0.2)
      assert.equal(0, seen.n)
      assert.is_nil(client:peek("meanwhile"))
      own = support.start_server { "--port", port }
      put("meanwhile", "v")
      support.eventually(function() return seen.n == 1 end, 15)
      assert.equal("v", seen[1])
      assert.equal("server", seen.last.source)
    end)

    it("gives the snapshot until it is back, and tells only what is different then", function()
      for _, case in ipairs { { "same", "same" }, { "old", "new" }, { "old", nil } } do
        put("kept", case[1])
        local first = lab.client(own)
        first:get_config("kept")
        first:close()
        own:kill9()
        local second = lab.client(own.base, { snapshot_base = first.folder .. "/snapshot" })
        local seen, callback = lab.recorder()
        second:add_config_watcher("kept", nil, callback)
        until_seen(seen, 1)
        assert.same({ case[1], "snapshot" }, { seen[1], seen.last.source })
        assert.same({ case[1], "snapshot" }, { second:peek("kept").content, second:peek("kept").source })
        assert.is_nil(second:peek("kept").confirmed, "no server said so")
        own = support.start_server { "--port", port }
        if case[2] then
          put("kept", case[2])
        end
        support.eventually(function()
          local known = second:peek("kept")
          return known.confirmed and known.content == case[2]
        end, 15)
        nacos.step(0.1)
        if case[1] == case[2] then
          assert.equal("server", second:peek("kept").source)
        else
          assert.equal(case[2] or false, seen[seen.n])
        end
        second:close()
      end
    end)
  end)

  it("is overruled by a failover file", function()
    local client, id = lab.client(server), item("from-server")
    os.execute("mkdir -p " .. client.folder .. "/data")
    support.write(lab.failover(client, id), "from-file")
    local seen, callback = lab.recorder()
    client:add_config_watcher(id, nil, callback)
    until_seen(seen, 1)
    assert.same({ "from-file", "failover" }, { seen[1], seen.last.source })
    assert.equal("failover", client:peek(id).source)
    publish(id, "news")
    nacos.step(0.3)
    assert.same({ "from-file" }, { table.unpack(seen) })
  end)

  it("finds failover files that come, change and go, at the next answer to a poll", function()
    local client, id, other = lab.client(server), item("from-server"), item("1")
    local seen, callback = lab.recorder()
    client:add_config_watcher(id, nil, callback)
    client:add_config_watcher(other, nil, nothing)
    until_seen(seen, 1)
    local n = 1
    local function poke()
      n = n + 1
      until_armed(client, other)
      publish(other, tostring(n))
    end
    os.execute("mkdir -p " .. client.folder .. "/data")
    support.write(lab.failover(client, id), "from-file")
    poke()
    until_seen(seen, 2)
    support.write(lab.failover(client, id), "from-file, changed")
    poke()
    until_seen(seen, 3)
    os.remove(lab.failover(client, id))
    poke()
    until_seen(seen, 4)
    assert.same({ "from-server", "from-file", "from-file, changed", "from-server" }, { table.unpack(seen) })
    assert.equal("server", seen.last.source)
  end)

  it("tells on_error once what keeps it from being served, and recovers", function()
    local told = {}
    local client = lab.client(server, { on_error = function(err, about) told[#told + 1] = { err, about } end })
    local id, seen, callback = item("1"), lab.recorder()
    server:faults {
      path = "/nacos/v1/cs/configs", data_id = id, method = "GET", status = 403, body = '{"message":"authorization failed!"}',
    }
    client:add_config_watcher(id, nil, callback)
    support.eventually(function() return #told == 1 end)
    local err, about = table.unpack(told[1])
    assert.same({ "forbidden", "watch", id }, { err.code, about.kind, about.data_id })
    assert.equal(0, client:status().callback_errors)
    nacos.step(1.2)
    assert.equal(1, #told, "once, not at each try")
    server:clear_faults()
    support.eventually(function() return seen.n == 1 end, 10)
    assert.equal("1", seen[1])
  end)

  it("writes snapshots after its callbacks, the newest only", function()
    local client, id = lab.client(server), item("1")
    local at_callback = "not called"
    client:add_config_watcher(id, nil, function()
      at_callback = support.read(lab.snapshot(client, id))
    end)
    until_known(client, id, "1")
    nacos.step(0)
    assert.is_nil(at_callback)
    support.eventually(function() return support.read(lab.snapshot(client, id)) == "1" end)
    publish(id, "2")
    support.eventually(function() return support.read(lab.snapshot(client, id)) == "2" end)
    writer:remove_config(id)
    support.eventually(function() return support.read(lab.snapshot(client, id)) == nil end)
  end)

  -- ---- peek ----------------------------------------------------------------------------------------------------------------------------

  describe("can be peeked at", function()
    it("for the newest value, without asking or waiting", function()
      local client, id = lab.client(server), item("1")
      assert.is_nil(client:peek(id), "not watched")
      client:add_config_watcher(id, nil, nothing)
      support.eventually(function() return client:peek(id) end)
      local known = client:peek(id)
      assert.same({ "1", nacos.md5("1"), "text", "server" }, { known.content, known.md5, known.type, known.source })
      assert.is_true(math.abs(known.confirmed - os.time()) < 5)
      until_armed(client, id)
      local before = client:status().requests
      local took = lab.timed(function()
        for _ = 1, 10000 do
          client:peek(id)
          client:peek(id, "DEFAULT_GROUP")
        end
      end)
      assert.is_true(took < 1, tostring(took))
      assert.equal(before, client:status().requests)
      publish(id, "2", "json")
      support.eventually(function() return client:peek(id).content == "2" end)
      assert.equal("json", client:peek(id).type)
      client:remove_config_watcher(id, nil, nothing)
      assert.is_nil(client:peek(id))
    end)

    it("before step() has delivered it", function()
      local client, id = lab.client(server), item("1")
      local seen, callback = lab.recorder()
      client:add_config_watcher(id, nil, callback)
      until_known(client, id, "1")
      assert.equal(0, seen.n)
    end)

    it("without making garbage", function()
      local client, id = lab.client(server), item(("x"):rep(10000))
      client:add_config_watcher(id, nil, nothing)
      support.eventually(function() return client:peek(id) end)
      local peek = client.peek
      peek(client, id)
      collectgarbage()
      collectgarbage("stop")
      local before = collectgarbage("count")
      for _ = 1, 1000 do
        peek(client, id)
      end
      local grown = collectgarbage("count") - before
      collectgarbage("restart")
      -- the key that is looked up is one short-lived string
      assert.is_true(grown < 200, grown .. " KiB for 1000 looks at 10 KB")
    end)

    it("to know that an item is absent, which is not the same as unknown", function()
      local client, id = lab.client(server), item()
      client:add_config_watcher(id, nil, nothing)
      support.eventually(function() return client:peek(id) end)
      local known = client:peek(id)
      assert.is_nil(known.content)
      assert.is_nil(known.md5)
      assert.is_true(known.confirmed > 0)
      publish(id, "1")
      support.eventually(function() return client:peek(id).content == "1" end)
      writer:remove_config(id)
      support.eventually(function() return client:peek(id).content == nil end)
      assert.is_nil(client:peek(id).type)
    end)

    it("and refuses what can be no item, at the caller's line", function()
      local client = lab.client(server)
      local line = debug.getinfo(1, "l").currentline + 1
      local ok, err = pcall(function() client:peek("a b") end)
      assert.is_false(ok)
      assert.matches("watch_spec.lua:" .. line .. ": .*data_id", err)
    end)
  end)
end)
