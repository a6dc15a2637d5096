--- Which server is asked: several of them, address servers, TLS, proxies.

local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

describe("several servers", function()
  local one, two

  setup(function()
    one, two = support.start_server(), support.start_server()
    for name, server in pairs { one = one, two = two } do
      assert(lab.client(server):publish_config("who", nil, name, { type = "text" }))
    end
  end)
  teardown(function()
    one:stop()
    two:stop()
  end)
  before_each(function()
    one:clear_requests()
    two:clear_requests()
  end)
  after_each(function()
    lab.close_all()
    one:clear_faults()
    two:clear_faults()
  end)

  local function both(opts)
    return lab.client(one.address .. "," .. two.address, opts)
  end

  local function on_both(fault)
    one:faults(fault)
    two:faults(fault)
  end

  local function asked()
    return one:requests().total + two:requests().total
  end

  ---The server that a client uses now, and the other one.
  local function in_use(client)
    return client:get_config("who") == "one" and one or two, client:get_config("who") == "one" and two or one
  end

  it("are used one at a time: the one that works is kept", function()
    local client = both()
    local first = client:get_config("who")
    for _ = 1, 30 do
      assert.equal(first, (client:get_config("who")))
    end
    client:publish_config("sticky", nil, "v", { type = "text" })
    assert.equal(0, (first == "one" and two or one):requests().total)
  end)

  it("are begun with at random, so that many clients spread", function()
    local seen = {}
    for _ = 1, 40 do
      local client = both()
      seen[client:get_config("who")] = true
      client:close()
    end
    assert.same({ one = true, two = true }, seen)
  end)

  it("are tried in turn when one refuses connections", function()
    for _ = 1, 6 do
      local client = lab.client("127.0.0.1:1, " .. one.address .. ",127.0.0.1:2")
      local took, content = lab.timed(client.get_config, client, "who", nil, 2)
      assert.equal("one", content)
      assert.is_true(took < 1.5, tostring(took))
      assert.is_true(client:publish_config("any", nil, "v"))
      client:close()
    end
  end)

  it("are tried in turn when one answers 500, 502 or 503", function()
    for _, status in ipairs { 500, 502, 503 } do
      local client = both()
      local current, other = in_use(client)
      current:faults { path = "/nacos/*", status = status, body = "caused: x;" }
      other:clear_requests()
      current:clear_requests()
      assert.is_true(client:get_config("who") ~= nil)
      assert.is_true(client:publish_config("any", nil, "v", { type = "text" }))
      assert.equal(2, #lab.requests(other, lab.CONFIGS))
      assert.equal(1, #lab.requests(current, lab.CONFIGS), "once it failed it is left alone")
      current:clear_faults()
      client:close()
    end
  end)

  it("are tried in turn when one does not answer, within the caller's time", function()
    local client = both()
    local current = in_use(client)
    current:faults { path = "/nacos/*", hang = true }
    local took, content = lab.timed(client.get_config, client, "who", nil, 1)
    assert.is_string(content)
    assert.is_true(took < 1, tostring(took))
    took, content = lab.timed(client.get_config, client, "who", nil, 1)
    assert.is_string(content)
    assert.is_true(took < 0.4, "the slow one is known now, but it took " .. took)
  end)

  it("are not tried longer than the caller's time when none answers", function()
    on_both { path = "/nacos/*", hang = true }
    local client = both()
    local took, content, err = lab.timed(client.get_config, client, "who", nil, 0.6)
    assert.is_nil(content)
    assert.equal("unavailable", err.code)
    assert.is_true(took >= 0.5 and took < 1.6, tostring(took))
    assert.is_true(one:requests().total > 0 and two:requests().total > 0)
  end)

  it("are each asked once when all fail", function()
    on_both { path = "/nacos/*", status = 503, body = "down" }
    local content, err = both():get_config("who")
    assert.is_nil(content)
    assert.equal("unavailable", err.code)
    assert.equal(2, asked())
  end)

  it("are not tried after a 4xx, which is an answer", function()
    for _, case in ipairs { { 400, "refused" }, { 403, "forbidden" }, { 404, "unsupported" }, { 410, "unsupported" } } do
      one:clear_requests()
      two:clear_requests()
      on_both { path = "/nacos/*", status = case[1], body = "no" }
      local client = both()
      local content, err = client:get_config("who")
      assert.is_nil(content)
      assert.equal(case[2], err.code)
      assert.equal(1, asked(), case[1])
      local ok, why = client:publish_config("who", nil, "v", { type = "text" })
      assert.is_nil(ok)
      assert.equal(case[2], why.code)
      assert.equal(2, asked())
      one:clear_faults()
      two:clear_faults()
    end
  end)

  it("are tried again when they are back", function()
    local mortal = support.start_server()
    local port = tostring(mortal.port)
    local client = lab.client(mortal.address .. "," .. one.address)
    support.eventually(function() -- until the mortal one is in use
      if select(2, client:get_config("who")).code == "not_found" then
        return true
      end
      client:close()
      client = lab.client(mortal.address .. "," .. one.address)
    end)
    mortal:kill9()
    assert.equal("one", (client:get_config("who")))
    mortal = support.start_server { "--port", port }
    assert(lab.client(mortal):publish_config("who", nil, "mortal"))
    assert.equal("one", (client:get_config("who")), "the one that works is kept")
    one:faults { path = "/nacos/*", status = 503, body = "down" }
    support.eventually(function() return client:get_config("who") == "mortal" end, 10)
    mortal:stop()
  end)

  it("do not both get a conditional publish when the first may have done it", function()
    on_both { path = "/nacos/v1/cs/configs", method = "POST", drop_at = 0 }
    local client = both()
    client:get_config("who")
    local ok, err = client:publish_config("who", nil, "v", { type = "text", cas_md5 = nacos.md5("other") })
    assert.is_nil(ok)
    assert.equal("unavailable", err.code)
    assert.equal(1, #lab.requests(one, lab.CONFIGS, "POST") + #lab.requests(two, lab.CONFIGS, "POST"))
  end)

  it("are changed under a watch when one dies", function()
    local mortal = support.start_server()
    assert(lab.client(mortal):publish_config("who", nil, "mortal"))
    local client, seen, callback
    support.eventually(function()
      client = lab.client(mortal.address .. "," .. one.address)
      return client:get_config("who") == "mortal"
    end)
    seen, callback = lab.recorder()
    client:add_config_watcher("who", nil, callback)
    support.eventually(function() return seen.n == 1 and client:status().polls == 1 end)
    mortal:kill9()
    support.eventually(function() return seen.n == 2 end, 10)
    assert.same({ "mortal", "one" }, { table.unpack(seen) })
    assert.equal(one.base, client:status().server)
  end)

  it("may be 32", function()
    local addresses = {}
    for i = 1, 31 do
      addresses[i] = "127.0.0.1:" .. i
    end
    addresses[32] = one.address
    assert.equal("one", (lab.client(table.concat(addresses, ",")):get_config("who", nil, 10)))
    addresses[33] = "127.0.0.1:99"
    assert.is_false(pcall(nacos.client, { server_addresses = table.concat(addresses, ",") }))
  end)

  describe("from an address server", function()
    it("are asked for and used", function()
      for _, endpoint in ipairs { one.address, one.base, one.base .. "/nacos/serverlist", one.address .. "/nacos/serverlist" } do
        local client = lab.client(nil, { endpoint = endpoint })
        assert.equal("one", (client:get_config("who")), endpoint)
        client:close()
      end
      assert.equal(4, #lab.requests(one, "/nacos/serverlist"))
    end)

    it("are taken from a list of lines", function()
      two:faults { path = "/nacos/serverlist", status = 200, body = "127.0.0.1:1\r\n" .. one.address .. "\n\n" }
      assert.equal("one", (lab.client(nil, { endpoint = two.address }):get_config("who")))
    end)

    it("are asked for again while there are none, and what is no list is no list", function()
      for _, fault in ipairs {
        { status = 503 }, { status = 200, body = "<html>" }, { status = 200, body = "" }, { garbage = true },
      } do
        fault.path, fault.times = "/nacos/serverlist", 1
        one:clear_faults()
        one:faults(fault)
        local client = lab.client(nil, { endpoint = one.address })
        local took, content = lab.timed(client.get_config, client, "who", nil, 8)
        assert.equal("one", content)
        assert.is_true(took >= 0.5, "it does not hammer the address server")
        client:close()
      end
    end)

    it("that cannot be had make a call fail in time, not hang", function()
      local client = lab.client(nil, { endpoint = "127.0.0.1:1" })
      local took, content, err = lab.timed(client.get_config, client, "who", nil, 0.5)
      assert.is_nil(content)
      assert.equal("unavailable", err.code)
      assert.is_true(took < 1.5, tostring(took))
    end)
  end)
end)

describe("https", function()
  local folder, server, strict

  ---A key and a certificate of the authority for these names: folder/NAME.key, folder/NAME.pem.
  local function certificate(name, names, authority)
    local code, _, err = support.run(([[
      set -e
      openssl req -newkey rsa:2048 -nodes -keyout %s.key -subj "/CN=%s" -out %s.csr
      printf 'subjectAltName=%s\n' >%s.ext
      openssl x509 -req -in %s.csr -CA %s.pem -CAkey %s.key -CAcreateserial -days 2 -extfile %s.ext -out %s.pem
    ]]):format(name, name, name, names, name, name, authority, authority, name, name), { cwd = folder })
    assert.equal(0, code, err)
  end

  local function authority(name)
    local command = 'openssl req -x509 -newkey rsa:2048 -nodes -keyout %s.key -out %s.pem -days 2 -subj "/CN=%s"'
    local code, _, err = support.run(command:format(name, name, name), { cwd = folder })
    assert.equal(0, code, err)
  end

  local function file(name)
    return folder .. "/" .. name
  end

  setup(function()
    folder = support.tmpdir()
    authority("ca")
    authority("other-ca")
    certificate("right", "DNS:localhost,IP:127.0.0.1", "ca")
    certificate("wrong", "DNS:nacos.example", "ca")
    certificate("client", "DNS:client", "ca")
    server = support.start_server { "--tls-cert", file "right.pem", "--tls-key", file "right.key" }
    strict = support.start_server { "--tls-cert", file "wrong.pem", "--tls-key", file "wrong.key", "--tls-ca", file "ca.pem" }
    assert(lab.client(server):publish_config("there", nil, "value"))
  end)
  teardown(function()
    server:stop()
    strict:stop()
  end)
  after_each(lab.close_all)

  local function refused(client, what)
    local content, err = client:get_config("there", nil, 2)
    assert.is_nil(content)
    assert.equal("unavailable", err.code)
    assert.matches(what, err.message:lower())
    assert.matches("there", err.message)
    assert.matches("https://", err.message, 1, true)
  end

  it("does everything that http does, without checking certificates, and warns of that once", function()
    local log = support.tmpdir()
    local client = lab.client(server, { log_level = "WARN", log_dir = log })
    assert.is_true(client:publish_config("a", nil, "1"))
    assert.equal("1", (client:get_config("a")))
    local seen, callback = lab.recorder()
    client:add_config_watcher("a", nil, callback)
    support.eventually(function() return seen.n == 1 end)
    client:publish_config("a", nil, "2")
    support.eventually(function() return seen.n == 2 end)
    client:close()
    local _, warnings = support.read(log .. "/lunacos.log"):gsub("not verified", "")
    assert.equal(1, warnings)
    assert.matches("ca_file", support.read(log .. "/lunacos.log"))
  end)

  it("warns of nothing when it checks, or over http", function()
    local log = support.tmpdir()
    local http = support.start_server()
    lab.client(server, { log_level = "WARN", log_dir = log, ca_file = file "ca.pem" }):get_config("there")
    lab.client(http, { log_level = "WARN", log_dir = log }):get_config("there")
    assert.is_nil(support.read(log .. "/lunacos.log"))
    http:stop()
  end)

  it("checks certificates when ca_file is given", function()
    assert.equal("value", (lab.client(server, { ca_file = file "ca.pem" }):get_config("there")))
    refused(lab.client(server, { ca_file = file "other-ca.pem" }), "certificate")
  end)

  it("checks against the system's authorities with verify = true alone", function()
    refused(lab.client(server, { verify = true }), "certificate")
  end)

  it("does not check with verify = false, whatever else is given", function()
    assert.equal("value", (lab.client(server, { verify = false, ca_file = file "other-ca.pem" }):get_config("there")))
  end)

  it("does not let a client that checks use the connection of one that does not", function()
    assert.equal("value", (lab.client(server):get_config("there")))
    refused(lab.client(server, { ca_file = file "other-ca.pem" }), "certificate")
    assert.equal("value", (lab.client(server):get_config("there")))
  end)

  it("says what is wrong with a ca_file that cannot be read", function()
    for _, option in ipairs { "ca_file", "cert_file", "key_file" } do
      local ok, err = pcall(lab.client, server, { [option] = file "no-such-file.pem" })
      assert.is_false(ok)
      assert.matches("cannot read " .. option .. " .*no%-such%-file", tostring(err))
    end
  end)

  describe("to a server with another name and with a right to its clients' certificates", function()
    local mine

    setup(function()
      mine = { cert_file = file "client.pem", key_file = file "client.key", ca_file = file "ca.pem", server_name = "nacos.example" }
    end)

    local function client(changes)
      local opts = {}
      for name, value in pairs(mine) do
        opts[name] = value
      end
      for name, value in pairs(changes or {}) do
        opts[name] = value or nil
      end
      return lab.client(strict, opts)
    end

    it("works with server_name and certificate", function()
      local it_works = client()
      assert.is_true(it_works:publish_config("there", nil, "v"))
      assert.equal("v", (it_works:get_config("there")))
    end)

    it("fails without the name", function()
      refused(client { server_name = false }, "name")
      refused(client { server_name = "third.example" }, "name")
    end)

    it("fails without the certificate, or with one of somebody else", function()
      local content, err = client { cert_file = false, key_file = false }:get_config("there", nil, 2)
      assert.is_nil(content)
      assert.equal("unavailable", err.code)
      content, err = client { cert_file = file "other-ca.pem", key_file = file "other-ca.key" }:get_config("there", nil, 2)
      assert.is_nil(content)
      assert.equal("unavailable", err.code)
    end)
  end)

  it("is not spoken by an http server, nor http by this one", function()
    local http = support.start_server()
    local content, err = lab.client("https://" .. http.address):get_config("there", nil, 2)
    assert.is_nil(content)
    assert.equal("unavailable", err.code)
    content, err = lab.client("http://" .. server.address):get_config("there", nil, 2)
    assert.is_nil(content)
    assert.is_true(err.code == "unavailable" or err.code == "protocol" or err.code == "refused", err.code)
    http:stop()
  end)
end)

describe("proxies", function()
  local server, proxy

  setup(function()
    server = support.start_server()
    proxy = lab.rogue("proxy", "127.0.0.1", server.port)
    assert(lab.client(server):publish_config("there", nil, "value"))
  end)
  teardown(function()
    proxy:stop()
    server:stop()
  end)
  after_each(lab.close_all)

  it("carry everything, names being looked up there", function()
    local client = lab.client("nacos.invalid:8848", { proxies = { http = proxy.address } })
    assert.equal("value", (client:get_config("there")))
    local seen, callback = lab.recorder()
    client:add_config_watcher("there", nil, callback)
    support.eventually(function() return seen.n == 1 and client:status().polls == 1 end)
    assert.is_true(client:publish_config("there", nil, "value 2", { type = "text" }))
    support.eventually(function() return seen.n == 2 end)
    assert.is_true(client:publish_config("there", nil, "value", { type = "text" }))
    assert.is_true(0 < #proxy:lines("^GET http://nacos%.invalid:8848/nacos/v1/cs/configs%?dataId=there&group=DEFAULT_GROUP HTTP"))
    assert.is_true(#proxy:lines("^POST http://nacos%.invalid:8848/nacos/v1/cs/configs/listener") >= 1)
  end)

  it("can be written with a scheme, and set and removed later", function()
    local client = lab.client("nacos.invalid:8848", { default_timeout = 1 })
    assert.is_nil((client:get_config("there")))
    client:set_options { proxies = { http = proxy.base } }
    assert.equal("value", (client:get_config("there")))
    client:set_options { proxies = {} }
    assert.is_nil((client:get_config("other")))
  end)

  it("are tunnels for https", function()
    local folder = support.tmpdir()
    support.run('openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -days 2 -subj "/CN=nacos.invalid" ' ..
      '-addext "subjectAltName=DNS:nacos.invalid"', { cwd = folder })
    local secure = support.start_server { "--tls-cert", folder .. "/c.pem", "--tls-key", folder .. "/k.pem" }
    assert(lab.client(secure):publish_config("there", nil, "secret value"))
    local tunnel = lab.rogue("proxy", "127.0.0.1", secure.port)
    local client = lab.client("https://nacos.invalid:443", {
      proxies = { https = tunnel.address, http = "127.0.0.1:1" }, ca_file = folder .. "/c.pem",
    })
    assert.equal("secret value", (client:get_config("there")))
    assert.same({ "CONNECT nacos.invalid:443 HTTP/1.1" }, tunnel:lines())
    tunnel:stop()
    secure:stop()
  end)

  it("are of one scheme each", function()
    local client = lab.client(server, { proxies = { https = "127.0.0.1:1" } })
    assert.equal("value", (client:get_config("there")))
  end)

  it("that are down are told apart from a missing item", function()
    local client = lab.client("nacos.invalid:8848", { proxies = { http = "127.0.0.1:1" } })
    local content, err = client:get_config("there", nil, 1)
    assert.is_nil(content)
    assert.equal("unavailable", err.code)
  end)

  it("are never taken from the environment", function()
    for _, case in ipairs {
      { env = { http_proxy = "http://127.0.0.1:1", HTTP_PROXY = "http://127.0.0.1:1", ALL_PROXY = "http://127.0.0.1:1" },
        address = server.address, proxies = "nil" },
      { env = { no_proxy = "*", NO_PROXY = "*" }, address = "nacos.invalid:8848",
        proxies = ("{ http = %q }"):format(proxy.address) },
    } do
      local code, out, err = lab.lua(([[
        local nacos = require "nacos"
        local client = nacos.client { server_addresses = %q, proxies = %s, log_level = "OFF", no_snapshot = true }
        print(client:get_config("there"))
      ]]):format(case.address, case.proxies), { env = case.env })
      assert.equal(0, code, err)
      assert.matches("^value\tserver", out)
    end
  end)
end)
