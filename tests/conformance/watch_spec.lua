--- Watches: what callbacks are told and how soon, with few and with thousands of keys.
-- @each-protocol
-- luacheck: std lua54+busted

local nacos = require "nacos"
local support = require "support"
local target = require "conformance.target"

local SOON = target.soon()
-- A change that falls between a server's look at a poll and its note of it is told by the next poll only, after 10 s at least. Among
-- thousands of keys and hundreds of changes that happens.
local AT_LAST = 45

---Publish without waiting for readers: the watch is what tells when it can be read.
local function put(client, data_id, group, content, opts)
  assert(target.publish(client, data_id, group, content, opts))
end

---Run fn(i) for 1 … n, at most 16 at a time, each in a task.
local function many(n, fn)
  nacos.run(function()
    local next_one, running = 0, 0
    local function work()
      while next_one < n do
        next_one = next_one + 1
        fn(next_one)
      end
      running = running - 1
      if running == 0 then
        nacos.stop() -- watches would keep run() going
      end
    end
    for _ = 1, 16 do
      running = running + 1
      nacos.spawn(function()
        nacos.sleep(0)
        work()
      end)
    end
  end)
end

---Wait until the client's long polls hang at the server. A stream or the next look finds out what has changed meanwhile.
local function polling(client, polls)
  if target.protocol ~= "v1" then
    return
  end
  support.eventually(function()
    local status = client:status()
    return status.polls >= (polls or 1), "polls: " .. status.polls
  end)
end

describe(("watches on %s by %s"):format(target.name, target.protocol), function()
  local client, errors

  before_each(function()
    errors = {}
    client = target.client { on_error = function(err) errors[#errors + 1] = tostring(err) end }
  end)
  after_each(function()
    target.close_all()
    assert.are.same({}, errors)
  end)
  teardown(target.stop)

  it("tell the present value, changes, deletion and a new beginning", function()
    local group = target.group()
    assert(target.publish(client, "a", group, "one", { type = "json", wait = true }))
    local seen = target.watch(client, "a", group)
    target.arrives(seen, "one", SOON)
    assert.are.equal(1, #seen)
    assert.are.equal("a", seen[1].data_id)
    assert.are.equal(group, seen[1].group)
    assert.are.equal("", seen[1].namespace)
    assert.are.equal("one", seen[1].raw_content)
    assert.are.equal(nacos.md5("one"), seen[1].md5)
    assert.are.equal("json", seen[1].type)
    assert.are.equal("server", seen[1].source)

    for _, content in ipairs { "two", "three", "two" } do
      put(client, "a", group, content)
      target.arrives(seen, content, SOON)
      assert.are.equal(nacos.md5(content), seen[#seen].md5)
    end
    assert(client:remove_config("a", group))
    target.arrives(seen, nil, SOON)
    put(client, "a", group, "again")
    target.arrives(seen, "again", SOON)
    assert.are.equal(6, #seen, "once for each value")
    assert.are.equal("again", client:peek("a", group).content)
  end)

  it("say nothing of an item that does not exist, until it does", function()
    local group = target.group()
    local seen = target.watch(client, "later", group)
    support.eventually(function()
      local known = client:peek("later", group)
      return known and known.content == nil and known.confirmed
    end, SOON)
    polling(client)
    assert.are.equal(0, #seen)
    put(client, "later", group, "born")
    target.arrives(seen, "born", SOON)
    assert.are.equal(1, #seen)
  end)

  it("run every callback of an item, and no more when it is removed", function()
    local group = target.group()
    assert(target.publish(client, "a", group, "one", { wait = true }))
    local first, second, third = {}, {}, {}
    local function into(list)
      return function(change)
        list[#list + 1] = change
      end
    end
    local cbs = { into(first), into(second) }
    assert(client:add_config_watchers("a", group, cbs))
    assert(client:add_config_watcher { data_id = "a", group = group, cb = into(third) })
    for _, list in ipairs { first, second, third } do
      target.arrives(list, "one", SOON)
      assert.are.equal(1, #list)
    end
    client:remove_config_watcher("a", group, cbs[1], true)
    put(client, "a", group, "two")
    target.arrives(second, "two", SOON)
    target.arrives(third, "two", SOON)
    assert.are.equal(1, #first)
    -- one that is added late gets the present value too
    local fourth = target.watch(client, "a", group)
    target.arrives(fourth, "two", SOON)
    assert.are.equal(2, #second)
  end)

  it("hear at once of a key that is added while a poll is held", function()
    local group = target.group()
    local before = target.watch(client, "before", group)
    polling(client)
    nacos.step(0.3)
    local added = target.watch(client, "added", group)
    put(client, "added", group, "x")
    target.arrives(added, "x", SOON)
    put(client, "before", group, "y")
    target.arrives(before, "y", SOON)
    put(client, "added", group, "z")
    target.arrives(added, "z", SOON)
    -- and of one that stays when another goes
    client:remove_config_watcher("before", group, before.cb)
    put(client, "before", group, "not for us")
    put(client, "added", group, "last")
    target.arrives(added, "last", SOON)
    assert.are.equal(1, #before)
  end)

  it("hear of a change after polls that ended without one", function()
    local group = target.group()
    assert(client:set_options { pulling_timeout = 10 }) -- the shortest that servers keep: they answer after 10 s
    local seen = target.watch(client, "quiet", group)
    polling(client)
    local before = client:status().requests
    nacos.run(function()
      nacos.sleep(11) -- the time itself is what is tested
      nacos.stop()
    end)
    local asked = client:status().requests - before
    -- with a token that lives 5 s some of them are logins; over v3 it looks every second
    assert.is_true(asked >= 1 and asked <= (target.protocol == "v3" and 22 or 12), "requests in 11 quiet seconds: " .. asked)
    put(client, "quiet", group, "x")
    target.arrives(seen, "x", SOON)
    assert.are.equal(1, #seen)
  end)

  it("work in a namespace, and public is the empty one", function()
    local group = target.group()
    local public, named = target.client { namespace = "public" }, target.client { namespace = "ns-watch" }
    local lists = { target.watch(client, "x", group), target.watch(public, "x", group), target.watch(named, "x", group) }
    polling(client)
    polling(public)
    polling(named)
    put(client, "x", group, "public")
    target.arrives(lists[1], "public", SOON)
    target.arrives(lists[2], "public", SOON)
    put(named, "x", group, "named")
    target.arrives(lists[3], "named", SOON)
    assert.are.equal("ns-watch", lists[3][1].namespace)
    put(public, "x", group, "public again")
    target.arrives(lists[1], "public again", SOON)
    target.arrives(lists[2], "public again", SOON)
    assert.are.same({ 2, 2, 1 }, { #lists[1], #lists[2], #lists[3] })
    -- a trap of `public` is a poll that is answered at once, for ever
    local before = public:status().requests
    nacos.run(function()
      nacos.sleep(1)
      nacos.stop()
    end)
    assert.is_true(public:status().requests - before <= 3, "no requests while nothing changes")
  end)

  it("deliver the newest value when changes come faster than they can be told", function()
    local group = target.group()
    local seen = target.watch(client, "fast", group)
    polling(client)
    for i = 1, 30 do
      put(client, "fast", group, "value " .. i, { type = "text" })
    end
    target.arrives(seen, "value 30", AT_LAST)
    assert.is_true(#seen <= 30)
    local last = 0
    for _, change in ipairs(seen) do
      local i = tonumber(change.content:match("%d+"))
      assert.is_true(i > last, "never back to an older value")
      last = i
    end
  end)

  it("follow thousands of keys", function()
    local group = target.group()
    -- over v3 each is read in its turn, at most 100 a second
    local some = target.protocol == "v3" and 10 or 100
    local all = some * 30
    local publisher = target.client { no_snapshot = true }
    local function id(i)
      return ("key.of.a.usual.length-%04d"):format(i)
    end
    many(some, function(i)
      put(publisher, id(i * 30), group, "first " .. i, { type = "text" })
    end)
    support.eventually(function()
      return target.content(id(all), group)
    end)

    local values, calls = {}, 0
    for i = 1, all do
      assert(client:add_config_watcher(id(i), group, function(change)
        values[i], calls = change.content, calls + 1
      end))
    end
    support.eventually(function()
      return calls >= some, calls .. " initial values"
    end, AT_LAST)
    assert.are.equal(some, calls)
    assert.are.equal("first " .. some, values[all])
    polling(client)

    -- those that exist change, as many more are born
    many(2 * some, function(i)
      if i <= some then
        put(publisher, id(i * 30), group, "second " .. i, { type = "text" })
      else
        put(publisher, id((i - some) * 30 - 7), group, "born " .. i - some, { type = "text" })
      end
    end)
    support.eventually(function()
      for i = 1, some do
        local old, new = values[i * 30], values[i * 30 - 7]
        if old ~= "second " .. i or new ~= "born " .. i then
          return false, ("key %d is %s, key %d is %s"):format(i * 30, old, i * 30 - 7, new)
        end
      end
      return true
    end, AT_LAST)
    -- some go
    many(some // 5, function(i)
      assert(publisher:remove_config(id(i * 30), group))
    end)
    support.eventually(function()
      for i = 1, some // 5 do
        if values[i * 30] ~= nil then
          return false, "key " .. i * 30 .. " is " .. tostring(values[i * 30])
        end
      end
      return true
    end, 10)
    -- nothing more comes, and one single change arrives as quickly as with one watch
    put(publisher, id(all - 50), group, "late", { type = "text" })
    support.eventually(function()
      return values[all - 50] == "late"
    end, 2 * SOON)
  end)
end)
