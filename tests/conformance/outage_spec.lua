--- A server that is killed and comes back under 100 watches and a registered instance, and everything about users and tokens.
-- luacheck: std lua54+busted

local nacos = require "nacos"
local support = require "support"
local target = require "conformance.target"

local COUNT = 100

---What the server says now, by the client's own read; nil when it does not exist.
local function read(client, data_id, group)
  local content, err = client:get_config(data_id, group, 30, true)
  assert(content or err.code == "not_found", tostring(err))
  return content
end

---A user with rights to one namespace. Made first and used last: it takes the server up to 15 s to know of it.
local function make_limited_user()
  local v1 = { "/v1/auth/users", "/v1/auth/roles", "/v1/auth/permissions" }
  local v3 = { "/v3/auth/user", "/v3/auth/role", "/v3/auth/permission" }
  for i, params in ipairs {
    { username = "limited", password = "limited-password" },
    { username = "limited", role = "limited-role" },
    { role = "limited-role", resource = "ns-limited:*:*", action = "rw" },
  } do
    local path = (target.version == "3.1.0" and v3 or v1)[i]
    local status, body = target.request("POST", path, params)
    assert(status == 200, path .. ": " .. status .. " " .. body)
  end
end

if target.auth then
  if target.real then
    setup(make_limited_user)
  end

  describe("tokens of " .. target.name, function()
    after_each(target.close_all)

    it("expire every 3 s without anybody noticing", function()
      local group = target.group()
      local errors = {}
      local client = target.client { on_error = function(err) errors[#errors + 1] = tostring(err) end }
      local seen = target.watch(client, "w", group)
      local done = 0
      nacos.run(function()
        for caller = 1, 4 do
          nacos.spawn(function()
            for i = 1, 30 do
              local content = caller .. "/" .. i
              local ok, err = target.publish(client, "t" .. caller, group, content, { type = "text" })
              if not ok then
                errors[#errors + 1] = tostring(err)
              end
              local value, why = client:get_config("t" .. caller, group, 10, true)
              if not value and why.code ~= "not_found" then
                errors[#errors + 1] = tostring(why)
              end
              nacos.sleep(0.25)
            end
            done = done + 1
            if done == 4 then
              nacos.stop()
            end
          end)
        end
      end)
      local logins = client:status().logins
      assert.are.same({}, errors)
      assert.is_true(logins >= 3, "logins in 7.5 s: " .. logins)
      assert.is_true(logins <= 12, "one login for all that wait: " .. logins)
      assert(client:publish_config("w", group, "still told"))
      target.arrives(seen, "still told", 2)
      assert.are.same({}, errors)
    end)

    it("are fetched again after an idle time in which they expired", function()
      local group = target.group()
      local client = target.client()
      assert(client:publish_config("a", group, "x", { wait = true }))
      nacos.sleep(4)
      assert.are.equal("x", (client:get_config("a", group)))
    end)
  end)

  describe("users of " .. target.name, function()
    after_each(target.close_all)

    -- A server that answers 500 to a login may have started just now: the client believes it after 15 s.
    local LONG = 25

    it("are refused without a token, with a wrong password, and when they do not exist; no snapshot hides it", function()
      local group, base = target.group(), support.tmpdir()
      support.write(("%s/secret+%s+"):format(base, group), "an old value")
      local cases = {
        ["no user"] = { username = false, password = false },
        ["wrong password"] = { password = "wrong-password" },
        ["unknown user"] = { username = "nobody-at-all", password = "wrong-password" },
      }
      local wrong, open = {}, 0
      nacos.run(function()
        for name, opts in pairs(cases) do
          open = open + 1
          nacos.spawn(function()
            opts.snapshot_base = base
            local client = target.client(opts)
            local function refused(what, result, err)
              if result ~= nil or err.code ~= "forbidden" or tostring(err):find("wrong%-password") then
                wrong[#wrong + 1] = ("%s, %s: %s %s"):format(name, what, result, err)
              end
            end
            refused("get_config", client:get_config("secret", group, LONG))
            refused("publish_config", client:publish_config("secret", group, "x", { type = "text", timeout = LONG }))
            refused("remove_config", client:remove_config("secret", group, LONG))
            refused("get_configs", client:get_configs { group = group, timeout = LONG })
            open = open - 1
          end)
        end
      end)
      assert.are.equal(0, open)
      assert.are.same({}, wrong)
      assert.is_nil(target.content("secret", group))
    end)

    it("may have their password in a file that changes", function()
      local file = support.tmpdir() .. "/password"
      support.write(file, "wrong-password\n")
      local client = target.client { password = false, password_file = file }
      local content, err = client:get_config("x", "G", 1.2, true)
      assert.is_nil(content)
      assert.is_true(err.code == "forbidden" or err.code == "unavailable", tostring(err))
      support.write(file, "nacos\n")
      support.eventually(function()
        content, err = client:get_config("x", "G", 5, true)
        return content or err.code == "not_found", tostring(err)
      end, 10)
    end)
  end)
end

if target.auth and target.real then
  describe("a user of " .. target.name .. " with rights to one namespace", function()
    setup(function()
      -- the server loads users, roles and rights every now and then only
      support.eventually(function()
        local status, token = target.login("limited", "limited-password")
        if status ~= 200 then
          return false, status .. " " .. token
        end
        status = target.raw("GET", "/v1/cs/configs", { dataId = "x", group = "G", tenant = "ns-limited" }, { accessToken = token })
        return status ~= 403, "no right yet"
      end, 40)
    end)
    after_each(target.close_all)

    it("reads, writes and watches there", function()
      local group = target.group()
      local client = target.client { namespace = "ns-limited", username = "limited", password = "limited-password" }
      local seen = target.watch(client, "mine", group)
      assert(client:publish_config("mine", group, "x", { wait = true }))
      target.arrives(seen, "x", 2)
      nacos.step(0.5)
      assert(client:publish_config("mine", group, "y"))
      target.arrives(seen, "y", 2)
      assert.are.equal(1, assert(client:get_configs { group = group }).total)
    end)

    it("is forbidden elsewhere, and a watch says so", function()
      local told = {}
      local client = target.client { username = "limited", password = "limited-password", on_error = function(err, about)
        told[#told + 1] = { err = err, about = about }
      end }
      local content, err = client:get_config("theirs", "G")
      assert.is_nil(content)
      assert.are.equal("forbidden", err.code)
      local ok
      ok, err = client:publish_config("theirs", "G", "x", { type = "text" })
      assert.is_nil(ok)
      assert.are.equal("forbidden", err.code)
      ok, err = client:remove_config("theirs", "G")
      assert.is_nil(ok)
      assert.are.equal("forbidden", err.code)
      target.watch(client, "theirs", "G")
      support.eventually(function()
        return told[1]
      end, 10)
      assert.are.equal("forbidden", told[1].err.code)
      assert.are.equal("theirs", told[1].about.data_id)
    end)
  end)
end

-- The last one: should it fail, the server may be down.
describe("an outage of " .. target.name, function()
  after_each(target.close_all)
  teardown(target.stop)

  it("leaves the known values, and ends with everything reconciled", function()
    local group = target.group()
    local errors = {}
    local client = target.client { on_error = function(_, about) errors[#errors + 1] = about.data_id end }
    local publisher = target.client { no_snapshot = true }
    for i = 1, COUNT do
      assert(publisher:publish_config("key-" .. i, group, "old " .. i, { type = "text" }))
    end
    local seen = {}
    for i = 1, COUNT do
      seen[i] = target.watch(client, "key-" .. i, group)
    end
    for i = 1, COUNT do
      target.arrives(seen[i], "old " .. i)
    end
    -- snapshots are written a little later, when nothing more urgent is to be done
    support.eventually(function()
      for i = 1, COUNT do
        if support.read(("%s/key-%d+%s+"):format(target.snapshot_base, i, group)) ~= "old " .. i then
          return false, "no snapshot of key-" .. i
        end
      end
      return true
    end)

    -- an instance that is kept alive, and somebody who follows its service
    local service, ends = "outage-" .. group, 0
    assert(client:add_naming_instance(service, "10.0.0.1", 80, nil, 2, { a = "b" }))
    assert(client:watch_service(service, { interval = 1 }, function(change)
      ends = ends + #change.removed
    end))
    support.eventually(function()
      return client:select_instance(service) and #client:list_naming_instance(service) == 1
    end)

    target.kill9()
    -- what was known stays known, and says where it comes from
    local content, source = client:get_config("key-7", group, 3)
    assert.are.equal("old 7", content)
    assert.are.equal("snapshot", source)
    assert.are.equal("old 9", client:peek("key-9", group).content)
    local value, err = client:get_config("key-7", group, 3, true)
    assert.is_nil(value)
    assert.are.equal("unavailable", err.code)
    local ok
    ok, err = publisher:publish_config("key-7", group, "lost", { type = "text", timeout = 3 })
    assert.is_nil(ok)
    assert.are.equal("unavailable", err.code)

    support.eventually(function() -- lists are written to disk a little later, too
      local list, from = client:list_naming_instance { service_name = service, timeout = 3 }
      return list and from == "snapshot" and #list == 1, tostring(from)
    end)
    assert.are.equal("10.0.0.1", assert(client:select_instance(service)).ip)
    ok, err = publisher:add_naming_instance { service_name = service, ip = "10.0.0.2", port = 80, timeout = 3 }
    assert.is_nil(ok)
    assert.are.equal("unavailable", err.code)
    local _, why = publisher:list_naming_instance { service_name = service, timeout = 3 }
    assert.are.equal("unavailable", why.code)

    -- It takes seconds: the watches go on trying meanwhile. A real server answers logins with 500 until it has loaded its users; a
    -- client that is born at that time must not take this for a wrong password.
    local early
    local process = target.restart()
    if process then
      support.eventually(function()
        if target.auth and not early and target.login(target.username, target.password) == 500 then
          early = read(target.client(), "key-70", group)
        end
        return process:ended()
      end, 120)
      assert.are.equal(target.auth and "old 70" or nil, early)
    end
    target.back(process)

    -- The server has forgotten the instance: the next beat brings it back, as it was. Nobody was told that it had gone.
    support.eventually(function()
      local list = publisher:list_naming_instance(service)
      return list and list[1] and list[1].weight == 2 and list[1].metadata.a == "b", "not registered again"
    end, 20)
    assert.are.equal(0, ends)

    -- others may have changed anything by then
    for i = 1, COUNT do
      if i <= 50 then
        assert(publisher:publish_config("key-" .. i, group, "new " .. i, { type = "text" }))
      elseif i <= 60 then
        assert(publisher:remove_config("key-" .. i, group))
      end
    end
    for i = 1, 50 do
      target.arrives(seen[i], "new " .. i, 40)
    end
    for i = 51, 60 do
      target.arrives(seen[i], nil, 40)
    end
    local wrong = {}
    for i = 61, COUNT do
      local now = read(publisher, "key-" .. i, group) -- the embedded server forgets everything, a real one nothing
      assert.are.equal(target.real and "old " .. i or nil, now)
      if not pcall(target.arrives, seen[i], now, 40) then
        wrong[#wrong + 1] = i
      end
    end
    assert.are.same({}, wrong)
    for i = 1, COUNT do
      assert.is_true(#seen[i] <= 3, "no flood of changes: key " .. i .. " had " .. #seen[i])
    end
    -- and changes are told as quickly as before
    assert(publisher:publish_config("key-70", group, "after all", { type = "text" }))
    target.arrives(seen[70], "after all", 2)
    assert.is_true(#errors <= COUNT, "told at most once for each watch: " .. #errors)
  end)
end)
