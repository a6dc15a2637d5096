--- A server that is frozen, and one that is killed and comes back, under a thousand watches and a hundred instances. Clients of every
--- protocol that it speaks go through that together, and must not notice each other.
-- @alone
-- luacheck: std lua54+busted

local nacos = require "nacos"
local support = require "support"
local target = require "conformance.target"

local COUNT = 100 -- items that exist
local WATCHES = 1000 -- of one client, most of them of items that do not
local TOGETHER, APART = 60, 40 -- instances of one service, and of services of their own

---What the server says now, by the client's own read; nil when it does not exist.
local function read(client, data_id, group)
  local content, err = client:get_config(data_id, group, 30, true)
  assert(content or err.code == "not_found", tostring(err))
  return content
end

---A client of each protocol, with its own snapshots and its own services.
local function make_sides(group)
  local sides = {}
  for i, protocol in ipairs(target.protocols) do
    local side = { protocol = protocol, errors = 0, seen = {}, snapshots = support.tmpdir() }
    side.service = ("of-%s-%s"):format(protocol, group)
    -- where each key is read in its turn, a thousand take their time
    side.watches = protocol == "v3" and COUNT or WATCHES
    side.client = target.client { protocol = protocol, snapshot_base = side.snapshots, on_error = function()
      side.errors = side.errors + 1
    end }
    sides[i] = side
  end
  return sides
end

---Do it for all of them at the same time.
local function together(sides, fn)
  local failed = {}
  nacos.run(function()
    local open = #sides
    for _, side in ipairs(sides) do
      nacos.spawn(function()
        local ok, err = pcall(fn, side)
        if not ok then
          failed[#failed + 1] = ("%s: %s"):format(side.protocol, err)
        end
        open = open - 1
        if open == 0 then
          nacos.stop() -- watches would keep run() going
        end
      end)
    end
  end)
  assert.are.same({}, failed)
end

---Every instance of this side that the server does not list (yet), as one says it in a message; nil: it lists all.
local function missing(side, client)
  for i = side.known or 1, APART do -- what is back stays
    local list, err = client:list_naming_instance(("%s-%d"):format(side.service, i))
    if not list or #list ~= 1 then
      return ("%s: instance %d of its own is missing (%s)"):format(side.protocol, i, tostring(err))
    end
    side.known = i + 1
  end
  local list, err = client:list_naming_instance(side.service)
  if not list or #list ~= TOGETHER then
    return ("%s: %s of %d instances (%s)"):format(side.protocol, list and #list, TOGETHER, tostring(err))
  end
end

local function all_there(sides, client, seconds)
  support.eventually(function()
    for _, side in ipairs(sides) do
      local what = missing(side, client)
      if what then
        return false, what
      end
    end
    return true
  end, seconds)
end

describe("an outage of " .. target.name, function()
  after_each(target.close_all)
  teardown(target.stop)

  it("by frost: what is known is told meanwhile, and everything goes on after it", function()
    local group = target.group()
    local sides, publisher = make_sides(group), target.client { no_snapshot = true }
    assert(target.publish(publisher, "frozen", group, "before", { type = "text", wait = true }))
    for _, side in ipairs(sides) do
      side.changes = target.watch(side.client, "frozen", group)
      assert(side.client:add_naming_instance(side.service, "10.0.0.1", 80))
      assert(side.client:watch_service(side.service, { interval = 1 }, function(change)
        side.list = change.instances
      end))
    end
    for _, side in ipairs(sides) do
      target.arrives(side.changes, "before")
      support.eventually(function()
        return side.list and #side.list == 1 and support.read(("%s/frozen+%s+"):format(side.snapshots, group))
      end)
    end

    target.pause()
    together(sides, function(side)
      local content, source = side.client:get_config("frozen", group, 3)
      assert(content == "before" and source == "snapshot", ("%s from %s"):format(content, source))
      local _, err = side.client:get_config("frozen", group, 3, true)
      assert(err.code == "unavailable" or err.code == "timeout", tostring(err))
    end)
    support.eventually(function() -- the stream is given up before the server could be taken for alive
      for _, side in ipairs(sides) do
        if side.client:status().link then
          return false, "the stream is still up"
        end
      end
      return true
    end, 20)
    target.resume()

    support.eventually(function()
      return target.publish(publisher, "frozen", group, "after", { type = "text", timeout = 5 })
    end, 20)
    for _, side in ipairs(sides) do
      target.arrives(side.changes, "after", 30)
      support.eventually(function()
        local list = publisher:list_naming_instance(side.service)
        return list and #list == 1 and #side.list == 1, side.protocol .. ": its instance is not listed"
      end, 20)
    end
  end)

  -- The last one: should it fail, the server may be down.
  it("by death: it leaves the known values, and ends with everything reconciled", function()
    local group = target.group()
    local sides, publisher = make_sides(group), target.client { no_snapshot = true }
    for i = 1, COUNT do
      assert(target.publish(publisher, "key-" .. i, group, "old " .. i, { type = "text" }))
    end
    for _, side in ipairs(sides) do
      for i = 1, side.watches do
        side.seen[i] = target.watch(side.client, "key-" .. i, group)
      end
    end
    for _, side in ipairs(sides) do
      for i = 1, COUNT do
        target.arrives(side.seen[i], "old " .. i, 20)
      end
      -- snapshots are written a little later, when nothing more urgent is to be done
      support.eventually(function()
        for i = 1, COUNT do
          if support.read(("%s/key-%d+%s+"):format(side.snapshots, i, group)) ~= "old " .. i then
            return false, "no snapshot of key-" .. i
          end
        end
        return true
      end)
    end

    -- instances that are kept alive, and somebody who follows one of them
    together(sides, function(side)
      local some = { service_name = side.service, port = 80 }
      for i = 1, TOGETHER do
        some[i] = { ip = "10.0.1." .. i, weight = 2, metadata = { a = "b" } }
      end
      assert(side.client:add_naming_instances(some))
      for i = 1, APART do
        assert(side.client:add_naming_instance(("%s-%d"):format(side.service, i), "10.0.0.1", 80, nil, 2, { a = "b" }))
      end
      side.followed, side.ends = side.service .. "-1", 0
      assert(side.client:watch_service(side.followed, { interval = 1 }, function(change)
        side.ends = side.ends + #change.removed
      end))
    end)
    all_there(sides, publisher, 10)
    for _, side in ipairs(sides) do
      support.eventually(function()
        return side.client:select_instance(side.followed) and #side.client:list_naming_instance(side.followed) == 1
      end)
    end

    target.kill9()
    -- what was known stays known, and says where it comes from
    together(sides, function(side)
      local client = side.client
      local content, source = client:get_config("key-7", group, 3)
      assert(content == "old 7" and source == "snapshot", ("%s from %s"):format(content, source))
      assert.are.equal("old 9", client:peek("key-9", group).content)
      local value, err = client:get_config("key-7", group, 3, true)
      assert.is_nil(value)
      assert.are.equal("unavailable", err.code)
      support.eventually(function() -- lists are written to disk a little later, too
        local list, from = client:list_naming_instance { service_name = side.followed, timeout = 3 }
        return list and from == "snapshot" and #list == 1, tostring(from)
      end)
      assert.are.equal("10.0.0.1", assert(client:select_instance(side.followed)).ip)
    end)
    together(sides, function(side)
      local other = target.client { protocol = side.protocol, no_snapshot = true }
      local ok, err = other:publish_config("key-7", group, "lost", { type = "text", timeout = 3 })
      assert.is_nil(ok)
      assert.are.equal("unavailable", err.code)
      ok, err = other:add_naming_instance { service_name = side.followed, ip = "10.0.0.2", port = 80, timeout = 3 }
      assert.is_nil(ok)
      assert.are.equal("unavailable", err.code)
      local _, why = other:list_naming_instance { service_name = side.followed, timeout = 3 }
      assert.are.equal("unavailable", why.code)
      other:close()
    end)

    -- It takes seconds: the watches go on trying meanwhile. A real server answers logins with 500 until it has loaded its users; a
    -- client that is born at that time must not take this for a wrong password.
    local early
    local process = target.restart()
    if process then
      support.eventually(function()
        if target.auth and not early and target.login(target.username, target.password) == 500 then
          early = read(target.client { protocol = sides[#sides].protocol }, "key-70", group)
        end
        return process:ended()
      end, 120)
      assert.are.equal(target.auth and "old 70" or nil, early)
    end
    target.back(process)

    -- The server has forgotten the instances: they come back, as they were. Nobody was told that one had gone.
    for _, side in ipairs(sides) do
      side.known = nil
    end
    all_there(sides, publisher, 30)
    for _, side in ipairs(sides) do
      for _, instance in ipairs(assert(publisher:list_naming_instance(side.service))) do
        assert.are.same({ 2, { a = "b" } }, { instance.weight, instance.metadata })
      end
      assert.are.equal(0, side.ends, side.protocol)
    end

    -- others may have changed anything by then
    for i = 1, COUNT do
      if i <= 50 then
        assert(target.publish(publisher, "key-" .. i, group, "new " .. i, { type = "text" }))
      elseif i <= 60 then
        assert(publisher:remove_config("key-" .. i, group))
      end
    end
    local kept = read(publisher, "key-61", group) -- the embedded server forgets everything, a real one nothing
    assert.are.equal(target.real and "old 61" or nil, kept)
    for _, side in ipairs(sides) do
      local seen = side.seen
      for i = 1, COUNT do
        local wanted = i <= 50 and "new " .. i or i > 60 and kept and "old " .. i or nil
        target.arrives(seen[i], wanted, 40)
        assert.is_true(#seen[i] <= 3, ("%s: no flood of changes: key %d had %d"):format(side.protocol, i, #seen[i]))
      end
    end
    -- and changes are told as quickly as before, also of what did not exist
    assert(target.publish(publisher, "key-70", group, "after all", { type = "text" }))
    assert(target.publish(publisher, "key-777", group, "born", { type = "text" }))
    for _, side in ipairs(sides) do
      target.arrives(side.seen[70], "after all", target.soon(side.protocol))
      if side.seen[777] then
        target.arrives(side.seen[777], "born", target.soon(side.protocol))
        assert.are.equal(1, #side.seen[777])
      end
      assert.is_true(side.errors <= side.watches, "told at most once for each watch: " .. side.errors)
    end
  end)
end)
