--- Logins with user and password, where the password comes from, and signatures with ak and sk.

local lab = require "lab"
local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local LOGIN = "/v1/auth/login"

describe("a login", function()
  local server, folder

  ---The embedded server with a user.
  local function start(password, ...)
    support.write(folder .. "/server-password", password)
    return support.start_server { "--username", "user", "--password-file", folder .. "/server-password", ... }
  end

  local function client_of(to, opts)
    local all = { username = "user", password = "p&ss=wörd" }
    for name, value in pairs(opts or {}) do
      all[name] = value
    end
    return lab.client(to, all)
  end

  local function logins()
    return lab.requests(server, LOGIN)
  end

  setup(function()
    folder = support.tmpdir()
    server = start("p&ss=wörd")
    assert(client_of(server):publish_config("there", nil, "value"))
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    server:clear_requests()
  end)
  after_each(function()
    lab.close_all()
    server:clear_faults()
  end)

  it("happens once, however many calls begin with it", function()
    local client, tasks = client_of(server), {}
    for i = 1, 20 do
      tasks[i] = function() return client:get_config("there", i % 2 == 0 and "g" or nil) end
    end
    local results = lab.together(table.unpack(tasks))
    assert.equal("value", results[1][1])
    client:add_config_watcher("there", nil, function() end)
    support.eventually(function() return #lab.requests(server, lab.LISTENER) > 0 end)
    assert.equal(1, #logins())
    assert.equal(1, client:status().logins)
    local request = logins()[1]
    assert.equal("POST", request.method)
    assert.equal("", request.query or "")
    assert.same({ username = "user", password = "p&ss=wörd" }, lab.form(request.body))
  end)

  it("gives a token that goes as a header with every call, never in the address", function()
    local client = client_of(server, { namespace = "ns" })
    client:publish_config("a", nil, "v", { type = "text" })
    client:get_config("a")
    client:get_configs {}
    client:add_config_watcher("a", nil, function() end)
    support.eventually(function() return #lab.requests(server, lab.LISTENER) > 0 end)
    client:remove_config("a")
    local token
    for _, request in ipairs(server:requests().requests) do
      if request.path:sub(-#LOGIN) ~= LOGIN then
        local value = lab.header(request, "accessToken")
        assert.is_string(value, request.path)
        token = token or value
        assert.equal(token, value)
        assert.is_nil(((request.query or "") .. (request.body or "")):find(token, 1, true))
        if request.path:match("listener$") then
          assert.equal("ns", lab.form(request.body).tenant, "or users with rights to one namespace get 403")
        end
      end
    end
    assert.is_string(token)
  end)

  it("does not happen without a username", function()
    local client = lab.client(server)
    local content, err = client:get_config("there")
    assert.is_nil(content)
    assert.equal("forbidden", err.code)
    assert.equal(0, #logins())
  end)

  it("is no obstacle on a server without users", function()
    local open = support.start_server()
    local client = client_of(open)
    assert.is_true(client:publish_config("a", nil, "v"))
    assert.equal("v", (client:get_config("a")))
    open:stop()
  end)

  it("takes the old shape of an answer for a server that needs no token", function()
    local open = support.start_server()
    open:faults { path = "/nacos" .. LOGIN, status = 200, body = '{"code":200,"message":null,"data":"Bearer x"}' }
    local client = client_of(open)
    assert.is_true(client:publish_config("a", nil, "v"))
    assert.is_true(client:publish_config("a", nil, "w"))
    assert.equal(1, #lab.requests(open, LOGIN))
    open:stop()
  end)

  it("tries the paths of other versions", function()
    local token = '{"accessToken":"abc","tokenTtl":18000}'
    local open = support.start_server()
    for _, status in ipairs { 404, 410, 501 } do
      open:clear_faults()
      open:faults {
        { path = "/nacos/v1/auth/login", status = status, body = "no such api" },
        { path = "/nacos/v1/auth/users/login", status = status, body = "no such api" },
        { path = "/nacos/v3/auth/user/login", status = 200, body = token },
      }
      open:clear_requests()
      client_of(open):get_config("a")
      local read = lab.requests(open, lab.CONFIGS)[1]
      assert.equal("abc", lab.header(read, "accessToken"), status)
      assert.equal(1, #lab.requests(open, "/v3/auth/user/login"))
    end
    open:stop()
  end)

  -- ---- wrong or late ------------------------------------------------------------------------------------------------------------

  it("with a wrong password is reported at once, without the password, and not repeated for every call", function()
    local client = client_of(server, { password = "wrong-secret" })
    for _ = 1, 20 do
      local took, content, err = lab.timed(client.get_config, client, "there")
      assert.is_nil(content)
      assert.equal("forbidden", err.code)
      assert.matches("user", err.message)
      assert.matches(server.base, err.message, 1, true)
      assert.not_matches("wrong%-secret", err.message)
      assert.is_true(took < 1.5, tostring(took))
    end
    assert.is_true(#logins() <= 3, #logins() .. " logins")
    assert.equal(0, #lab.requests(server, lab.CONFIGS))
  end)

  it("answered 500 is repeated: the server may not have loaded its users yet", function()
    server:faults { path = "/nacos" .. LOGIN, status = 500, body = "caused: User user not found;", times = 2 }
    local client = client_of(server)
    local took, content = lab.timed(client.get_config, client, "there", nil, 10)
    assert.equal("value", content)
    assert.is_true(took < 8, tostring(took))
    assert.equal(3, #logins())
  end)

  it("answered 500 for ever is reported in time, and with a bounded number of tries", function()
    server:faults { path = "/nacos" .. LOGIN, status = 500, body = "caused: User user not found;" }
    local client = client_of(server)
    local begin = lab.now()
    local took, content, err = lab.timed(client.get_config, client, "there", nil, 1)
    assert.is_nil(content)
    assert.is_true(took < 2, tostring(took))
    assert.is_true(err.code == "unavailable" or err.code == "forbidden", err.code)
    assert.matches("log ?in", err.message)
    for _ = 1, 5 do
      client:get_config("there", nil, 0.1)
    end
    assert.is_true(#logins() <= 3 + 3 * (lab.now() - begin), #logins() .. " logins")
  end)

  it("that cannot reach a server leaves the snapshot in use", function()
    local client = client_of(server)
    client:get_config("there")
    support.eventually(function() return support.read(lab.snapshot(client, "there")) end)
    local dead = client_of("127.0.0.1:1", { snapshot_base = client.folder .. "/snapshot" })
    assert.equal("snapshot", select(2, dead:get_config("there")))
  end)

  it("that a gateway answers for a dead server (502, 503, 504) leaves the snapshot in use, however long", function()
    local client = client_of(server)
    client:get_config("there")
    support.eventually(function() return support.read(lab.snapshot(client, "there")) end)
    local tries = {}
    for i, status in ipairs { 502, 503, 504 } do
      tries[i] = function()
        local gateway = support.start_server()
        gateway:faults { path = "/nacos/*", status = status, body = "<html>Bad Gateway</html>" }
        local behind = client_of(gateway, { snapshot_base = client.folder .. "/snapshot" })
        for _ = 1, 3 do -- longer than the client's patience with a server that is starting
          local content, source = behind:get_config("there", nil, 2.1)
          assert.equal("value", content, status .. ": " .. tostring(source))
          assert.equal("snapshot", source)
        end
        gateway:stop()
      end
    end
    lab.together(table.unpack(tries))
  end)

  it("is tried again by the first call after an outage", function()
    local down = start("p&ss=wörd")
    local client = client_of(down, { no_snapshot = true })
    down:kill9()
    for _ = 1, 4 do -- each fails, and so the next login by itself is 2 s away
      local content, err = client:get_config("there")
      assert.is_nil(content)
      assert.equal("unavailable", err.code)
    end
    local up = start("p&ss=wörd", "--port", tostring(down.port))
    local content, err = client:get_config("there")
    up:stop()
    assert.is_nil(content)
    assert.equal("not_found", err.code)
  end)

  it("goes to the next server when one is down", function()
    local client = client_of("127.0.0.1:1," .. server.address)
    for _ = 1, 4 do
      assert.equal("value", (client:get_config("there")))
    end
    assert.equal(1, #logins())
  end)

  it("whose answer is no token is reported", function()
    for _, body in ipairs {
      "{}", "<html>", "", '{"accessToken":7}', '{"accessToken":""}', '{"accessToken":"a\\r\\nX: y"}', "[]", "null",
    } do
      server:clear_faults()
      server:faults { path = "/nacos" .. LOGIN, status = 200, body = body }
      local content, err = client_of(server):get_config("there", nil, 1)
      assert.is_nil(content)
      assert.equal("protocol", err.code, body)
      assert.matches(server.base, err.message, 1, true)
      assert.equal(0, #lab.requests(server, lab.CONFIGS))
    end
  end)

  -- ---- tokens that end ------------------------------------------------------------------------------------------------------------

  it("is renewed when 90 % of its time are over, and the new token is used", function()
    local open = support.start_server()
    local logins_of_2_s = {}
    for i = 1, 5 do
      logins_of_2_s[i] = {
        path = "/nacos" .. LOGIN, status = 200, body = ('{"accessToken":"t%d","tokenTtl":2}'):format(i), times = 1,
      }
    end
    open:faults(logins_of_2_s)
    local client = client_of(open)
    client:get_config("a")
    support.eventually(function() return #lab.requests(open, LOGIN) >= 3 end, 15)
    client:get_config("a")
    local all = lab.requests(open, LOGIN)
    for i = 2, 3 do
      local pause = all[i].time - all[i - 1].time
      assert.is_true(pause >= 1.75 and pause < 2.5, tostring(pause))
    end
    assert.equal(2, #lab.requests(open, lab.CONFIGS), "nobody was refused")
    assert.matches("t[3-4]", lab.header(lab.requests(open, lab.CONFIGS)[2], "accessToken"))
    open:stop()
  end)

  it("is renewed once for many calls that are refused at the same time, and each is repeated once", function()
    local client, tasks = client_of(server), {}
    assert.equal("value", (client:get_config("there")))
    nacos.sleep(1.1) -- a token that is refused at once would be another matter
    for round = 1, 1 do
      server:expire()
      server:clear_requests()
      for i = 1, 40 do
        tasks[i] = function()
          local id = "k" .. round .. i
          assert(client:publish_config(id, nil, id, { type = "text" }))
          return client:get_config(id)
        end
      end
      for i, result in ipairs(lab.together(table.unpack(tasks))) do
        assert.equal("k" .. round .. i, result[1])
      end
      assert.equal(1, #logins())
    end
  end)

  it("that is refused right after it was given is repeated, too", function()
    local client = client_of(server)
    assert.equal("value", (client:get_config("there")))
    server:expire() -- say, a restart with a new secret
    assert.equal("value", (client:get_config("there")))
    assert.equal(2, #logins())
  end)

  it("is not repeated again and again when the new token is refused as well", function()
    server:faults { path = "/nacos/v1/cs/*", status = 403, body = '{"status":403,"message":"token expired!"}' }
    local client = client_of(server)
    local begin = lab.now()
    for _ = 1, 30 do
      local content, err = client:get_config("there")
      assert.is_nil(content)
      assert.equal("forbidden", err.code)
      assert.equal(403, err.status)
    end
    assert.is_true(#logins() <= 3 + (lab.now() - begin), #logins() .. " logins")
    assert.is_true(#lab.requests(server, lab.CONFIGS) <= 60)
  end)

  it("is not repeated for a right that the user does not have", function()
    local client = client_of(server)
    client:get_config("there")
    nacos.sleep(1.1)
    server:clear_requests()
    server:faults { path = "/nacos/v1/cs/*", status = 403, body = '{"status":403,"message":"authorization failed!"}' }
    local _, err = client:get_config("there")
    assert.equal("forbidden", err.code)
    assert.equal(0, #logins())
    assert.equal(1, #lab.requests(server, lab.CONFIGS))
  end)

  it("that ends while a watch is held up does not lose a change", function()
    local client = client_of(server)
    local seen, callback = lab.recorder()
    client:add_config_watcher("there", nil, callback)
    support.eventually(function() return seen.n == 1 and client:status().polls == 1 end)
    server:expire()
    nacos.sleep(1.1)
    local other = client_of(server)
    other:publish_config("there", nil, "value 2", { type = "text" })
    support.eventually(function() return seen[2] == "value 2" end, 10)
    other:publish_config("there", nil, "value", { type = "text" })
    support.eventually(function() return seen[3] == "value" end, 10)
  end)

  -- ---- where the password comes from -----------------------------------------------------------------------------------------------

  it("reads its password from a file, without the newline", function()
    for _, text in ipairs { "p&ss=wörd", "p&ss=wörd\n", "p&ss=wörd\r\n" } do
      support.write(folder .. "/password", text)
      local client = client_of(server, { password = false or nil, password_file = folder .. "/password" })
      assert.equal("value", (client:get_config("there")))
    end
  end)

  it("reads a rotated password file after a refusal", function()
    local port
    support.write(folder .. "/password", "first\n")
    local old = start("first")
    port = tostring(old.port)
    local client = lab.client(old, { username = "user", password_file = folder .. "/password" })
    assert(client:publish_config("a", nil, "v"))
    old:stop()
    support.write(folder .. "/password", "second\n")
    local new = start("second", "--port", port)
    local result
    support.eventually(function() -- tokens of the old process are unknown to the new one
      result = client:publish_config("a", nil, "w", 1)
      return result
    end, 10)
    assert.equal("w", (client:get_config("a")))
    new:stop()
  end)

  it("finds a password that was corrected after it was refused", function()
    support.write(folder .. "/password", "wrong\n")
    local client = lab.client(server, { username = "user", password_file = folder .. "/password" })
    assert.equal("forbidden", select(2, client:get_config("there")).code)
    support.write(folder .. "/password", "p&ss=wörd\n")
    support.eventually(function() return client:get_config("there") == "value" end, 10)
  end)

  it("reads its password from the environment, anew at each login", function()
    uv.os_setenv("LUNACOS_TEST_PASSWORD", "wrong")
    local client = lab.client(server, { username = "user", password_env = "LUNACOS_TEST_PASSWORD" })
    assert.equal("forbidden", select(2, client:get_config("there")).code)
    uv.os_setenv("LUNACOS_TEST_PASSWORD", "p&ss=wörd")
    support.eventually(function() return client:get_config("there") == "value" end, 10)
    uv.os_unsetenv("LUNACOS_TEST_PASSWORD")
  end)

  it("says which file or variable is missing", function()
    local client = lab.client(server, { username = "user", password_file = folder .. "/no-such-file" })
    local _, err = client:get_config("there", nil, 1)
    assert.equal("invalid", err.code)
    assert.matches("no-such-file", err.message, 1, true)
    client = lab.client(server, { username = "user", password_env = "LUNACOS_TEST_UNSET" })
    _, err = client:get_config("there", nil, 1)
    assert.equal("invalid", err.code)
    assert.matches("LUNACOS_TEST_UNSET", err.message, 1, true)
    assert.equal(0, #logins())
  end)
end)

describe("ak and sk", function()
  local server, secret = nil, "s3cret key/+"

  setup(function()
    server = support.start_server()
  end)
  teardown(function()
    server:stop()
  end)
  after_each(lab.close_all)

  ---base64(HMAC-SHA1(secret, text)) by the openssl program.
  local function signed(text)
    local path = support.tmpdir() .. "/text"
    support.write(path, text)
    local code, out, err = support.run(("openssl dgst -sha1 -mac HMAC -macopt hexkey:%s -binary %s | base64"):format(
      (secret:gsub(".", function(c) return ("%02x"):format(c:byte()) end)), path))
    assert.equal(0, code, err)
    return (out:gsub("%s", ""))
  end

  it("sign every request as an MSE server expects", function()
    for _, namespace in ipairs { "", "ns-1" } do
      server:clear_requests()
      local client = lab.client(server, { ak = "the-key", sk = secret, namespace = namespace })
      assert(client:publish_config("a", "grp:1", "v", { type = "text" }))
      assert.equal("v", (client:get_config("a", "grp:1")))
      client:add_config_watcher("a", "grp:1", function() end)
      support.eventually(function() return #lab.requests(server, lab.LISTENER) > 0 end)
      assert(client:remove_config("a", "grp:1"))
      client:close()
      local tenant = namespace ~= "" and namespace .. "+" or ""
      local kinds = {}
      for _, request in ipairs(server:requests().requests) do
        local stamp = lab.header(request, "Timestamp")
        assert.equal("the-key", lab.header(request, "Spas-AccessKey"))
        assert.is_true(math.abs(tonumber(stamp) / 1000 - os.time()) < 30, stamp)
        local listener = request.path:match("listener$")
        local resource = listener and tenant or tenant .. "grp:1+"
        assert.equal(signed(resource .. stamp), lab.header(request, "Spas-Signature"), request.method .. " " .. request.path)
        kinds[(listener or request.method)] = true
      end
      assert.same({ GET = true, POST = true, DELETE = true, listener = true }, kinds)
    end
  end)

  it("sign nothing when they are not given", function()
    server:clear_requests()
    lab.client(server):get_config("a")
    local request = server:requests().requests[1]
    assert.is_nil(lab.header(request, "Spas-AccessKey"))
    assert.is_nil(lab.header(request, "Spas-Signature"))
  end)
end)
