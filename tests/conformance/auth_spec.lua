--- Users, their rights, and tokens that live 5 s.
-- @each-protocol
-- luacheck: std lua54+busted

local nacos = require "nacos"
local support = require "support"
local target = require "conformance.target"

local LIMITED = "limited-" .. target.protocol

---A user with rights to one namespace. Made first and used last: it takes the server up to 15 s to know of it.
local function make_limited_user()
  local v1 = { "/v1/auth/users", "/v1/auth/roles", "/v1/auth/permissions" }
  local v3 = { "/v3/auth/user", "/v3/auth/role", "/v3/auth/permission" }
  for i, params in ipairs {
    { username = LIMITED, password = "limited-password" },
    { username = LIMITED, role = LIMITED .. "-role" },
    { role = LIMITED .. "-role", resource = "ns-limited:*:*", action = "rw" },
  } do
    local path = (target.v3_only and v3 or v1)[i]
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

    it("expire every 5 s without anybody noticing", function()
      local group = target.group()
      local errors = {}
      local client = target.client { on_error = function(err) errors[#errors + 1] = tostring(err) end }
      local seen = target.watch(client, "w", group)
      local done = 0
      nacos.run(function()
        for caller = 1, 4 do
          nacos.spawn(function()
            for i = 1, 50 do
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
      assert.is_true(logins >= 3, "logins in 12.5 s: " .. logins)
      assert.is_true(logins <= 12, "one login for all that wait: " .. logins)
      assert(client:publish_config("w", group, "still told"))
      target.arrives(seen, "still told", 2)
      assert.are.same({}, errors)
    end)

    it("are fetched again after an idle time in which they expired", function()
      local group = target.group()
      local client = target.client()
      assert(client:publish_config("a", group, "x", { wait = true }))
      nacos.sleep(6)
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
        local status, token = target.login(LIMITED, "limited-password")
        if status ~= 200 then
          return false, status .. " " .. token
        end
        local query = { dataId = "x", group = "G", groupName = "G", tenant = "ns-limited", namespaceId = "ns-limited" }
        status = target.raw("GET", target.serves_v1 and "/v1/cs/configs" or "/v3/client/cs/config", query, { accessToken = token })
        return status ~= 403, "no right yet"
      end, 40)
    end)
    after_each(target.close_all)

    it("reads, writes and watches there", function()
      local group = target.group()
      local client = target.client { namespace = "ns-limited", username = LIMITED, password = "limited-password" }
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
      local client = target.client { username = LIMITED, password = "limited-password", on_error = function(err, about)
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
