--- The embedded server's login, other paths, TLS, start and end, against what real 2.3–2.5 servers answer.

local support = require "support"
local json = require "cjson.safe"
local embedded = require "embedded"
local grpc = require "grpc"

local CONFIGS, LISTENER, call, call_later = embedded.CONFIGS, embedded.LISTENER, embedded.call, embedded.call_later
local publish, read, line, poll = embedded.publish, embedded.read, embedded.line, embedded.poll
local parked_poll, missing = embedded.parked_poll, embedded.missing
local assert_error_page, assert_caused = embedded.assert_error_page, embedded.assert_caused

describe("the embedded server: paths and users", function()
  local server

  setup(function()
    server = support.start_server()
  end)

  teardown(function()
    if server then
      server:stop()
    end
  end)

  describe("other paths", function()
    it("tell the state of the server", function()
      local got = call(server, { "GET", "/nacos/v1/console/server/state" })
      local state = json.decode(got.body)
      assert.same({ "3.1.0", "standalone", json.null, "false", tostring(server.port) },
        { state.version, state.standalone_mode, state.function_mode, state.auth_enabled, state.server_port })
      assert.same({ status = "UP" }, json.decode(call(server, { "GET", "/nacos/v1/ns/operator/metrics" }).body))
      assert.equal("UP", call(server, { "GET", "/nacos/v1/cs/health" }).body)
      local list = json.decode(call(server, { "GET", "/nacos/v1/console/namespaces" }).body)
      assert.same({ 200, "public" }, { list.code, list.data[1].namespaceShowName })
    end)

    it("give an address server's answer: this server", function()
      assert.equal(server.address .. "\n", call(server, { "GET", "/nacos/serverlist" }).body)
    end)

    it("that do not exist get Spring's 404, or 501 under /v1/ns", function()
      assert_error_page(call(server, { "GET", "/nacos/v1/cs/nope" }), 404, "Not Found", "No message available", "/nacos/v1/cs/nope")
      assert_error_page(call(server, { "GET", "/nacos/v2/core/cluster/nodes" }), 404, "Not Found", "No message available",
        "/nacos/v2/core/cluster/nodes")
      assert_error_page(call(server, { "GET", "/nacos/v1/ns/nope" }), 501, "Not Implemented", "no such api:GET:/nacos/v1/ns/nope",
        "/nacos/v1/ns/nope")
      assert.equal(501, call(server, { "POST", "/nacos/v1/ns/operator/metrics" }).status)
      local got = call(server, { "GET", "/elsewhere" })
      assert.equal(404, got.status)
      assert.matches("^text/html", got.headers["content-type"])
    end)

    it("stand below the context path", function()
      local own = support.start_server { "--context-path", "/registry" }
      assert.matches("/registry$", own.url)
      assert.equal("UP", call(own, { "GET", "/registry/v1/cs/health" }).body)
      assert.equal(404, call(own, { "GET", "/nacos/v1/cs/health" }).status)
      assert.equal(own.address .. "\n", call(own, { "GET", "/nacos/serverlist" }).body)
      own:stop()
    end)
  end)

  describe("with a user", function()
    local own

    local function password_file(password)
      local path = support.tmpdir() .. "/password"
      support.write(path, password .. "\n")
      return path
    end

    local function login(fields, path, method)
      return call(own, { method or "POST", path or "/nacos/v1/auth/login", form = fields })
    end

    local function token()
      return json.decode(login({ username = "ann", password = "s3cret &" }).body).accessToken
    end

    local function get(request)
      request[1], request[2] = "GET", CONFIGS
      request.query = request.query or {}
      request.query.dataId, request.query.group = "a", "G"
      return call(own, request)
    end

    setup(function()
      own = support.start_server { "--username", "ann", "--password-file", password_file("s3cret &"), "--token-ttl", "3" }
    end)

    teardown(function()
      if own then
        own:stop()
      end
    end)

    it("logs in on both paths", function()
      for _, path in ipairs { "/nacos/v1/auth/login", "/nacos/v1/auth/users/login" } do
        local got = login({ username = "ann", password = "s3cret &" }, path)
        assert.equal(200, got.status)
        local data = json.decode(got.body)
        assert.matches("^eyJ[%w_-]+%.[%w_-]+%.[%w_-]+$", data.accessToken)
        assert.equal("Bearer " .. data.accessToken, got.headers.authorization)
        data.accessToken = nil
        assert.same({ tokenTtl = 3, globalAdmin = true, username = "ann" }, data)
      end
      assert.equal(200, call(own, { "POST", "/nacos/v1/auth/login", query = { username = "ann", password = "s3cret &" } }).status)
    end)

    it("refuses wrong passwords and unknown users as real servers do", function()
      local got = login({ username = "ann", password = "wrong" })
      assert.same({ 403, "user not found!" }, { got.status, got.body })
      assert.matches("^text/plain", got.headers["content-type"])
      assert_caused(login({ username = "bob", password = "x" }), 500, "User bob not found")
      assert_caused(login({ username = "ann" }), 500, missing("password"))
      assert.equal(500, login(nil, nil, "GET").status)
      assert.same({ 403, "token invalid!" }, { login({ username = "ann", password = "s3cret &", accessToken = "x" }).status,
        login({ username = "ann", password = "s3cret &", accessToken = "x" }).body })
    end)

    it("takes a token in every place", function()
      local t = token()
      for _, request in ipairs {
        { headers = { accessToken = t } }, { headers = { Authorization = "Bearer " .. t } }, { query = { accessToken = t } },
        { query = { username = "ann", password = "s3cret &" } }, { headers = { username = "ann", password = "s3cret &" } },
        { query = { accessToken = t }, headers = { accessToken = "garbage" } }, -- the parameter counts
      } do
        assert.equal(404, get(request).status)
      end
      local got = call(own, { "POST", CONFIGS, form = { dataId = "f", group = "G", content = "x", accessToken = t } })
      assert.equal("true", got.body)
    end)

    it("answers 403 in JSON, on a connection that stays", function()
      local genuine = token()
      local cases = {
        { "user not found!", {} }, { "user not found!", { headers = { accessToken = " " } } },
        { "user not found!", { query = { username = "ann", password = "wrong" } } },
        { "token invalid!", { headers = { accessToken = "garbage" } } },
        { "token invalid!", { headers = { accessToken = genuine }, query = { accessToken = "garbage" } } },
        { "unsupported signature algorithm", { headers = { accessToken = "a.b.c" } } },
        { "Invalid signature", { headers = { accessToken = genuine:gsub("%.[^.]+$", ".AAAA") } } },
        { "Invalid signature", { headers = { Authorization = "Bearer " .. genuine:gsub("%.[%w_-]+%.", ".eyJzdWIiOiJhbm4ifQ.") } } },
      }
      for _, case in ipairs(cases) do
        local got = get(case[2])
        assert_error_page(got, 403, "Forbidden", case[1], CONFIGS)
        assert.is_nil(got.headers.connection)
      end
      for _, request in ipairs {
        { "POST", CONFIGS, form = { dataId = "a", group = "G", content = "x" } },
        { "DELETE", CONFIGS, query = { dataId = "a", group = "G" } },
        { "GET", CONFIGS, query = { search = "blur", dataId = "", group = "", pageNo = "1", pageSize = "1" } },
        { "GET", CONFIGS },
      } do
        assert_error_page(call(own, request), 403, "Forbidden", "user not found!", CONFIGS)
      end
      assert_error_page(poll(own, line("a", ""), 30000), 403, "Forbidden", "user not found!", LISTENER)
      assert_error_page(get { query = { username = "bob", password = "x" } }, 500, "Internal Server Error",
        "Server failed, User bob not found", CONFIGS)
      assert_caused(call(own, { "PATCH", CONFIGS }), 500, "Request method &#39;PATCH&#39; not supported")
      assert_error_page(poll(own, "a\1", 30000, { accessToken = genuine }), 400, "Bad Request", "caused: invalid probeModify;",
        LISTENER)
    end)

    it("lets tokens expire", function()
      local t = token()
      assert.equal(404, get { headers = { accessToken = t } }.status)
      support.eventually(function() return get { headers = { accessToken = t } }.status == 403 end, 5)
      assert_error_page(get { headers = { accessToken = t } }, 403, "Forbidden", "token expired!", CONFIGS)
      assert.equal(404, get { headers = { accessToken = token() } }.status)
    end)

    it("lets a test expire them all", function()
      local t = token()
      own:expire()
      assert_error_page(get { headers = { accessToken = t } }, 403, "Forbidden", "token expired!", CONFIGS)
      assert.equal(404, get { headers = { accessToken = token() } }.status)
    end)

    it("leaves the state open, which says that there is a user", function()
      assert.equal("true", json.decode(call(own, { "GET", "/nacos/v1/console/server/state" }).body).auth_enabled)
      for _, path in ipairs { "v1/cs/health", "v1/ns/operator/metrics", "v1/console/namespaces", "serverlist" } do
        assert.equal(200, call(own, { "GET", "/nacos/" .. path }).status)
      end
    end)

    it("gives anybody a dummy token when there is no user", function()
      local data = json.decode(call(server, { "POST", "/nacos/v1/auth/login", form = { username = "x", password = "y" } }).body)
      assert.same({ "AUTH_DISABLED", 18000 }, { data.accessToken, data.tokenTtl })
      local query = { dataId = "absent", group = "G", accessToken = "whatever" }
      assert.equal(404, call(server, { "GET", CONFIGS, query = query }).status)
    end)
  end)

  describe("over TLS", function()
    local folder

    setup(function()
      folder = support.tmpdir()
      local code, _, err = support.run([[set -e
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
        printf 'subjectAltName=IP:127.0.0.1' > ext
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=client -keyout client.key -out client.csr
        openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out client.pem
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=stranger -keyout stranger.key -out stranger.pem
      ]], { cwd = folder })
      assert(code == 0, err)
    end)

    local function health(own, words)
      local url = own.base .. "/nacos/v1/cs/health"
      local code, out = support.run { "curl", "-sS", "--cacert", folder .. "/ca.pem", url, table.unpack(words) }
      return code == 0 and out or nil
    end

    it("serves with its certificate, long polls included", function()
      local own = support.start_server { "--tls-cert", folder .. "/server.pem", "--tls-key", folder .. "/server.key" }
      assert.matches("^https://127", own.url)
      assert.equal("UP", health(own, {}))
      local waiting = parked_poll(own, line("tls", ""))
      publish(own, "tls", ("x"):rep(1000000))
      assert.equal("tls%02G%01\n", waiting().body)
      assert.equal(1000000, #read(own, "tls").body)
      local client = grpc.client(own, nil, { ca = folder .. "/ca.pem" })
      assert.equal(1000000, #client:call("ConfigQueryRequest", { dataId = "tls", group = "G" }).content)
      client:close()
      assert.equal(0, own:stop())
    end)

    it("lets in only clients with a certificate of the CA, if one is named", function()
      local own = support.start_server({ "--tls-cert", folder .. "/server.pem", "--tls-key", folder .. "/server.key", "--tls-ca",
        folder .. "/ca.pem" })
      assert.is_nil(health(own, {}))
      assert.is_nil(health(own, { "--cert", folder .. "/stranger.pem", "--key", folder .. "/stranger.key" }))
      assert.equal("UP", health(own, { "--cert", folder .. "/client.pem", "--key", folder .. "/client.key" }))
      for _, name in ipairs { "stranger", "client" } do
        local opts = { ca = folder .. "/ca.pem", cert = folder .. "/" .. name .. ".pem", key = folder .. "/" .. name .. ".key" }
        local client = grpc.connect(own, opts)
        local answer = client and client:call("ServerCheckRequest", {})
        assert.equal(name == "client", answer ~= nil)
        if client then
          client:close()
        end
      end
      assert.equal(0, own:stop())
    end)

    it("says what is wrong with the files", function()
      local code, _, err = support.run { support.lunacos, "server", "--port", "0", "--tls-cert", folder .. "/no.pem",
        "--tls-key", folder .. "/server.key" }
      assert.not_equal(0, code)
      assert.matches("no%.pem", err)
    end)
  end)

  describe("start and end", function()
    it("prints one line, and says why it cannot listen", function()
      local line_wanted = "lunacos server listening on http://%s/nacos and, for gRPC, port %d "
        .. "(in memory, for development and tests)\n"
      assert.equal(line_wanted:format(server.address, server.port + 1000), server:stdout())
      local code, out, err = support.run { support.lunacos, "server", "--port", tostring(server.port) }
      assert.not_equal(0, code)
      assert.equal("", out)
      assert.matches("127%.0%.0%.1 port " .. server.port .. ": Address already in use", err)
    end)

    it("ends at TERM and INT at once, closing the polls it holds without an answer", function()
      for _, signal in ipairs { "TERM", "INT" } do
        local own = support.start_server()
        local waiting = parked_poll(own, line("end", ""))
        own:faults { path = "/nacos/hang", hang = true }
        local hanging = call_later(own, { "GET", "/nacos/hang" })
        own:faults { path = "/nacos/late", delay = 30 }
        local late = call_later(own, { "GET", "/nacos/late" })
        support.eventually(function() return own:requests().total == 3 end)
        own:signal(signal)
        assert.equal(0, own:wait(5))
        for _, wait in ipairs { waiting, hanging, late } do
          local got = wait(5)
          assert.same({ 0, 52 }, { got.status, got.code })
        end
        assert.equal("", own:stderr())
      end
    end)
  end)
end)
