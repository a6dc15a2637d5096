--- Options, reads, writes and lists of the client.

local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

describe("the client", function()
  local server

  setup(function()
    server = support.start_server()
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

  ---Put something on the server, not by what is under test.
  local function put(data_id, content, fields)
    local form = { "dataId=" .. data_id, "group=" .. (fields and fields.group or "DEFAULT_GROUP"), "content=" .. content }
    for _, name in ipairs { "type", "tenant" } do
      if fields and fields[name] then
        form[#form + 1] = name .. "=" .. fields[name]
      end
    end
    local status = support.http("POST", server.url .. lab.CONFIGS, table.concat(form, "&"))
    assert.equal(200, status)
  end

  local function delete(data_id)
    support.http("DELETE", server.url .. lab.CONFIGS .. "?group=DEFAULT_GROUP&dataId=" .. data_id)
  end

  local function reads(data_id)
    local found = {}
    for _, request in ipairs(lab.requests(server, lab.CONFIGS, "GET")) do
      if lab.form(request.query).dataId == data_id then
        found[#found + 1] = request
      end
    end
    return found
  end

  local function last_publish()
    local all = lab.requests(server, lab.CONFIGS, "POST")
    return lab.form(all[#all].body), all[#all]
  end

  -- ---- options -----------------------------------------------------------------------------------------------------------------

  describe("options", function()
    -- every name of the manual and of the Python client, and what else the project says it takes
    local values = {
      server_addresses = "127.0.0.1:1", endpoint = "127.0.0.1:1", namespace = "n", ak = "a", sk = "s", username = "u",
      password = "p", password_file = "/f", password_env = "E", log_level = "DEBUG", log_dir = "/tmp/lunacos-never-made",
      log_rotation_backup_count = 7,
      context_path = "/x", verify = true, ca_file = "/etc/passwd", cert_file = "/etc/passwd", key_file = "/etc/passwd",
      server_name = "name",
      on_error = print, default_timeout = 3, pulling_timeout = 30, pulling_config_size = 3000, callback_thread_num = 10,
      failover_base = "a", snapshot_base = "b", no_snapshot = true, proxies = { http = "h:1", https = "h:2" },
      max_response_size = 1e6,
    }
    local settable = {
      default_timeout = true, pulling_timeout = true, pulling_config_size = true, callback_thread_num = true, failover_base = true,
      snapshot_base = true, no_snapshot = true, proxies = true,
    }

    for name, value in pairs(values) do
      it("take " .. name, function()
        local opts = { server_addresses = "127.0.0.1:1", log_level = "OFF" }
        if name == "endpoint" then
          opts.server_addresses = nil
        end
        opts[name] = value
        nacos.client(opts):close()
      end)
    end

    it("take all of them at once", function()
      local opts = {}
      for name, value in pairs(values) do
        opts[name] = value
      end
      opts.log_level = "OFF"
      nacos.client(opts):close()
    end)

    it("are also taken in the manual's form", function()
      local client = nacos.NacosClient(server.address, {
        namespace = "manual", log_level = "OFF", no_snapshot = true, protocol = "v1",
      })
      client:get_config("a", "g")
      client:close()
      client = nacos.NacosClient { server_addresses = server.address, log_level = "OFF", no_snapshot = true, protocol = "v1" }
      client:get_config("b", "g")
      client:close()
      client = nacos.NacosClient(server.address)
      client:close()
      assert.equal("manual", lab.form(reads("a")[1].query).tenant)
      assert.equal(1, #reads("b"))
    end)

    it("that the manual sets later can be set later, one by one", function()
      local client = lab.client(server)
      for name in pairs(settable) do
        assert.is_true(client:set_options { [name] = values[name] })
      end
    end)

    it("that cannot change later are refused then", function()
      local client = lab.client(server)
      for name, value in pairs(values) do
        if not settable[name] and name ~= "max_response_size" and name ~= "log_level" then
          local ok, err = pcall(client.set_options, client, { [name] = value })
          assert.is_false(ok, name)
          assert.matches("bad option '" .. name .. "' to 'set_options'", err, 1, true)
        end
      end
    end)

    it("set later leave the others alone", function()
      local client = lab.client(server, { default_timeout = 0.2 })
      client:set_options { pulling_timeout = 20 }
      client:set_options { no_snapshot = true }
      server:faults { path = "/nacos/*", hang = true }
      assert.is_true(lab.timed(client.get_config, client, "a") < 1.5)
      client:set_options {}
    end)
  end)

  describe("server_addresses", function()
    ---The server that a client with this address talks to.
    local function origin(addresses)
      local client = lab.client(addresses, { default_timeout = 1 })
      local _, err = client:get_config("some")
      return err.server
    end

    it("takes every form", function()
      local port = server.port
      for given, expected in pairs {
        ["127.0.0.1:" .. port] = "http://127.0.0.1:" .. port,
        ["http://127.0.0.1:" .. port] = "http://127.0.0.1:" .. port,
        ["HTTP://127.0.0.1:" .. port .. "/"] = "http://127.0.0.1:" .. port,
        [" 127.0.0.1:" .. port .. " "] = "http://127.0.0.1:" .. port,
        ["localhost:" .. port] = "http://localhost:" .. port,
        [",127.0.0.1:" .. port .. ",,"] = "http://127.0.0.1:" .. port,
        ["127.0.0.1"] = "http://127.0.0.1:8848",
        ["https://127.0.0.1"] = "https://127.0.0.1:8848",
        ["https://127.0.0.1:1"] = "https://127.0.0.1:1",
        ["[::1]"] = "http://[::1]:8848",
        ["[::1]:1"] = "http://[::1]:1",
        ["https://[::1]:1"] = "https://[::1]:1",
      } do
        assert.equal(expected, origin(given), given)
      end
    end)

    it("takes a list with blanks", function()
      local list = " 127.0.0.1:PORT ,\n\thttp://127.0.0.1:PORT , localhost:PORT"
      local client = lab.client((list:gsub("PORT", server.port)))
      local _, err = client:get_config("some")
      assert.equal("not_found", err.code)
    end)

    it("refuses what is no address, naming it", function()
      for given, part in pairs {
        [""] = "no server", [","] = "no server", ["ftp://a:1"] = "ftp://a:1", ["a:0"] = "port", ["a:65536"] = "port",
        ["a:b"] = "port",
        ["a:"] = "port", ["::1"] = "brackets", ["[::1"] = "]", [":80"] = "host", ["http://"] = "host", ["a b:1"] = "a b:1",
        ["user:secret@host:1"] = "options for them", ["host:1/nacos"] = "host:1/nacos", ["good:1,bad:x"] = "bad:x",
        ["http://a/b"] = "a/b",
      } do
        local ok, err = pcall(function()
          local client = nacos.client { server_addresses = given }
          return client
        end)
        assert.is_false(ok, given .. " was taken")
        assert.matches("config_spec.lua:%d+: ", err)
        assert.matches(part, err, 1, true)
        assert.is_nil(err:find("secret", 1, true))
      end
    end)
  end)

  describe("namespace", function()
    it("goes as tenant with every request, and public is none", function()
      for _, case in ipairs { { nil, nil }, { "", nil }, { "public", nil }, { "team-1_x", "team-1_x" } } do
        server:clear_requests()
        local client = lab.client(server, { namespace = case[1] })
        client:publish_config("a", nil, "b", { type = "text" })
        client:get_config("a")
        client:get_configs {}
        client:add_config_watcher("a", nil, type)
        support.eventually(function() return #lab.requests(server, lab.LISTENER) > 0 end)
        client:remove_config("a")
        client:close()
        for _, request in ipairs(server:requests().requests) do
          local fields = lab.form(request.method == "POST" and request.body or request.query)
          assert.equal(case[2], fields.tenant ~= "" and fields.tenant or nil, request.method .. " " .. request.path)
          if request.path:match("listener$") then
            local words = {}
            for word in fields["Listening-Configs"]:gsub("\1$", ""):gmatch("[^\2]*") do
              words[#words + 1] = word
            end
            assert.equal(case[2] and 4 or 3, #words)
            assert.equal(case[2], words[4])
          end
        end
      end
    end)

    it("keeps values apart", function()
      local one, two = lab.client(server, { namespace = "one" }), lab.client(server, { namespace = "two" })
      one:publish_config("same", nil, "1")
      two:publish_config("same", nil, "2")
      assert.equal("1", (one:get_config("same")))
      assert.equal("2", (two:get_config("same")))
      assert.equal("not_found", select(2, lab.client(server):get_config("same")).code)
    end)
  end)

  it("speaks below its context path", function()
    local other = support.start_server { "--context-path", "/deep/er" }
    for _, path in ipairs { "/deep/er", "deep/er", "/deep/er/" } do
      local client = lab.client(other, { context_path = path })
      assert.is_true(client:publish_config("a", nil, path))
      assert.equal(path, (client:get_config("a")))
    end
    other:stop()
  end)

  describe("the log", function()
    local function log_of(opts, act)
      local folder = support.tmpdir() .. "/deep/log"
      opts.log_dir = folder
      local client = lab.client(opts.address or server, opts)
      act(client)
      client:close()
      return support.read(folder .. "/lunacos.log"), folder
    end

    local function fail(client)
      client:get_config("a", nil, 0.5)
      client:add_config_watcher("a", nil, error)
      client:publish_config("a", nil, "secret-value", 0.5)
      nacos.step(0.1)
    end

    it("is at WARN unless told, in lunacos.log", function()
      server:faults { path = "/nacos/*", status = 503, body = "down" }
      local text = log_of({ log_level = nil }, function(client)
        client:set_options { log_level = "WARN" }
        fail(client)
      end)
      assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%d[+-]%d%d%d%d WARN ", text)
      assert.matches(server.base, text, 1, true)
      assert.not_matches(" INFO ", text)
      assert.not_matches(" DEBUG ", text)
    end)

    it("says more with INFO and DEBUG, less with ERROR, nothing with OFF", function()
      local info = log_of({ log_level = "info" }, function(client) client:get_config("a") end)
      assert.matches(" INFO  using http://127", info)
      server:faults { path = "/nacos/*", status = 503, body = "down" }
      local debug_text = log_of({ log_level = "Debug" }, function(client) client:get_config("a") end)
      assert.matches(" DEBUG ", debug_text)
      assert.is_nil(log_of({ log_level = "ERROR" }, fail))
      assert.is_nil(log_of({ log_level = "OFF" }, fail))
    end)

    it("refuses an unknown level", function()
      local ok, err = pcall(nacos.client, { server_addresses = "a", log_level = "LOUD" })
      assert.is_false(ok)
      assert.matches("log_level", err)
    end)

    it("never holds a value or a password", function()
      local text = log_of({ log_level = "DEBUG", username = "user", password = "secret-password" }, function(client)
        client:publish_config("a", nil, "secret-value")
        client:get_config("a")
        server:faults { path = "/nacos/v1/auth/*", status = 500, body = "x" }
        server:faults { path = "/nacos/v1/cs/*", status = 500, body = "secret-value" }
        client:get_config("a", nil, 0.2)
      end)
      assert.not_matches("secret%-password", text)
      delete("a")
    end)

    it("is rotated at midnight to a name with the day, and log_rotation_backup_count old ones are kept", function()
      local _, folder = log_of({ log_level = "INFO" }, function(client) client:get_config("a") end)
      local function files()
        local names = {}
        for name in support.run({ "ls", folder }) and select(2, support.run({ "ls", folder })):gmatch("%S+") do
          names[#names + 1] = name
        end
        return names
      end
      for day = 10, 18 do
        support.write(("%s/lunacos.log.2026-01-%d"):format(folder, day), "old\n")
      end
      support.write(folder .. "/other.txt", "not ours\n")
      support.run { "touch", "-d", "2026-02-01 12:00", folder .. "/lunacos.log" }
      local client = lab.client(server, { log_dir = folder, log_level = "INFO", log_rotation_backup_count = 3 })
      client:get_config("a")
      client:close()
      assert.same({
        "lunacos.log", "lunacos.log.2026-01-17", "lunacos.log.2026-01-18", "lunacos.log.2026-02-01", "other.txt",
      }, files())
      assert.matches(" INFO ", support.read(folder .. "/lunacos.log"))
    end)
  end)

  -- ---- reads -------------------------------------------------------------------------------------------------------------------

  describe("get_config", function()
    it("gives content, source and what else is known", function()
      put("known", "%7B%7D", { type = "json" })
      local client = lab.client(server)
      local before = os.time()
      local content, source, info = client:get_config("known", "DEFAULT_GROUP")
      assert.equal("{}", content)
      assert.equal("server", source)
      assert.equal(nacos.md5("{}"), info.md5)
      assert.equal("json", info.type)
      assert.equal("server", info.source)
      assert.is_true(info.confirmed >= before - 1 and info.confirmed <= os.time() + 1)
    end)

    it("takes positions, names, and both, and DEFAULT_GROUP by itself", function()
      put("known", "x")
      put("known", "y", { group = "g" })
      local client = lab.client(server)
      assert.equal("x", (client:get_config("known")))
      assert.equal("y", (client:get_config("known", "g", 1, true)))
      assert.equal("y", (client:get_config { data_id = "known", group = "g", timeout = 1 }))
      assert.equal("y", (client:get_config("known", { group = "g", no_snapshot = true })))
    end)

    it("gives every byte back", function()
      local client = lab.client(server)
      local bytes = {}
      for i = 1, 127 do
        bytes[i] = string.char(i)
      end
      local text = table.concat(bytes) .. "é漢字🎲\r\n+%20&=;#" .. ("x"):rep(300000) .. "\n"
      assert.is_true(client:publish_config("bytes", nil, text))
      assert.is_true(client:get_config("bytes") == text)
    end)

    it("asks failover file, then server, then snapshot", function()
      put("order", "from-server")
      local client = lab.client(server)
      assert.equal("from-server", (client:get_config("order")))
      support.eventually(function() return support.read(lab.snapshot(client, "order")) end)
      os.execute("mkdir -p " .. client.folder .. "/data")
      support.write(lab.failover(client, "order"), "from-file")
      local content, source, info = client:get_config("order")
      assert.same({ "from-file", "failover" }, { content, source })
      assert.equal(nacos.md5("from-file"), info.md5)
      server:clear_requests()
      client:get_config("order")
      assert.equal(0, #reads("order"))
      os.remove(lab.failover(client, "order"))
      assert.equal("server", select(2, client:get_config("order")))
      server:faults { path = "/nacos/*", status = 503, body = "down" }
      content, source, info = client:get_config("order")
      assert.same({ "from-server", "snapshot" }, { content, source })
      assert.is_nil(info.confirmed)
      support.write(lab.snapshot(client, "order"), "from-snapshot")
      assert.equal("from-snapshot", (client:get_config("order")))
    end)

    it("without a snapshot tells that no server answered", function()
      server:faults { path = "/nacos/*", status = 503, body = "down" }
      local client = lab.client(server)
      local content, err = client:get_config("none")
      assert.is_nil(content)
      assert.equal("unavailable", err.code)
      assert.equal(503, err.status)
      assert.equal(server.base, err.server)
      assert.equal(err.message, tostring(err))
      for _, part in ipairs { "none", "DEFAULT_GROUP", server.base, "503" } do
        assert.matches(part, err.message, 1, true)
      end
    end)

    it("leaves the snapshot out when told, in the call or for the client, the call's word counting", function()
      put("kept", "v")
      local client = lab.client(server)
      client:get_config("kept")
      local path = lab.snapshot(client, "kept")
      support.eventually(function() return support.read(path) == "v" end)
      server:faults { path = "/nacos/*", status = 503, body = "down" }
      assert.equal("snapshot", select(2, client:get_config("kept")))
      assert.equal("unavailable", select(2, client:get_config("kept", nil, nil, true)).code)
      client:set_options { no_snapshot = true }
      assert.equal("unavailable", select(2, client:get_config("kept")).code)
      assert.equal("snapshot", select(2, client:get_config("kept", nil, nil, false)))
      client:set_options { no_snapshot = false }
      assert.equal("snapshot", select(2, client:get_config("kept")))
    end)

    it("writes no snapshot when told so", function()
      put("unsaved", "v")
      local client = lab.client(server, { no_snapshot = true })
      client:get_config("unsaved")
      client:close() -- writes what is due
      assert.is_nil(support.read(lab.snapshot(client, "unsaved")))
    end)

    it("counts a snapshot that is still to be written", function()
      put("late", "v")
      server:faults { { path = "/nacos/v1/cs/configs", delay = 0, times = 1 }, { path = "/nacos/v1/cs/configs", status = 503 } }
      local client = lab.client(server)
      assert.equal("server", select(2, client:get_config("late")))
      local content, source = client:get_config("late")
      assert.same({ "v", "snapshot" }, { content, source })
    end)

    it("drops a snapshot that is still to be written with its item, and writes the next one", function()
      put("short-lived", "v")
      put("other", "w")
      local client = lab.client(server)
      assert.equal("v", (client:get_config("short-lived")))
      delete("short-lived")
      assert.equal("not_found", select(2, client:get_config("short-lived")).code)
      nacos.sleep(0.1) -- the writer's turn comes 50 ms after the first of the two
      assert.equal("w", (client:get_config("other")))
      support.eventually(function() return support.read(lab.snapshot(client, "other")) == "w" end)
      assert.is_nil(support.read(lab.snapshot(client, "short-lived")))
    end)

    it("names snapshots as the Python SDK does, so that they can be copied to the failover folder", function()
      put("app.yaml", "v", { tenant = "ns-1", group = "G:1" })
      local client = lab.client(server, { namespace = "ns-1" })
      client:get_config("app.yaml", "G:1")
      local path = client.folder .. "/snapshot/app.yaml+G:1+ns-1"
      support.eventually(function() return support.read(path) == "v" end)
      os.execute("cp -r " .. client.folder .. "/snapshot " .. client.folder .. "/data")
      assert.equal("failover", select(2, client:get_config("app.yaml", "G:1")))
    end)

    it("keeps files where the SDK does unless told", function()
      local folder = support.tmpdir()
      put("def", "v")
      local code, out, err = lab.lua([[
        local nacos = require "nacos"
        local client = nacos.client { server_addresses = "]] .. server.address .. [[", log_level = "OFF" }
        client:get_config("def")
        client:close()
        io.open("nacos-data/snapshot/def+DEFAULT_GROUP+"):close()
        os.execute("mv nacos-data/snapshot nacos-data/data")
        client = nacos.client { server_addresses = "127.0.0.1:1", log_level = "OFF" }
        print(client:get_config("def"))
      ]], { cwd = folder })
      assert.equal(0, code, err)
      assert.matches("^v\tfailover", out)
    end)

    it("writes snapshots to a new snapshot_base, too", function()
      put("moved", "v")
      local client = lab.client(server)
      client:get_config("moved")
      support.eventually(function() return support.read(lab.snapshot(client, "moved")) == "v" end)
      client:set_options { snapshot_base = client.folder .. "/other" }
      client:get_config("moved")
      support.eventually(function() return support.read(client.folder .. "/other/moved+DEFAULT_GROUP+") == "v" end)
    end)

    it("does not write a snapshot that is the same", function()
      put("quiet", "v")
      local client = lab.client(server)
      client:get_config("quiet")
      local path = lab.snapshot(client, "quiet")
      support.eventually(function() return support.read(path) == "v" end)
      local _, before = support.run { "stat", "-c", "%i %Y %Z", path }
      for _ = 1, 3 do
        client:get_config("quiet")
      end
      client:close()
      client = lab.client(server, { snapshot_base = client.folder .. "/snapshot" })
      client:get_config("quiet")
      client:close()
      local _, after = support.run { "stat", "-c", "%i %Y %Z", path }
      assert.equal(before, after)
    end)

    it("takes a 404 with the words of a server for absence: the snapshot goes", function()
      put("gone", "v")
      local client = lab.client(server)
      client:get_config("gone")
      support.eventually(function() return support.read(lab.snapshot(client, "gone")) end)
      delete("gone")
      local content, err = client:get_config("gone")
      assert.is_nil(content)
      assert.equal("not_found", err.code)
      assert.equal(404, err.status)
      assert.matches("gone", err.message)
      assert.is_nil(support.read(lab.snapshot(client, "gone")))
      server:faults { path = "/nacos/*", status = 503, body = "down" }
      assert.equal("unavailable", select(2, client:get_config("gone")).code)
    end)

    it("takes any other 404 for a server that does not offer the call: nothing goes", function()
      put("stays", "v")
      local client = lab.client(server)
      client:get_config("stays")
      support.eventually(function() return support.read(lab.snapshot(client, "stays")) end)
      for _, body in ipairs {
        "<html>404 Not Found</html>", "", '{"status":404,"error":"Not Found"}', "config data not exist here",
      } do
        server:clear_faults()
        server:faults { path = "/nacos/*", status = 404, body = body }
        local content, err = client:get_config("stays")
        assert.is_nil(content)
        assert.equal("unsupported", err.code, body)
        assert.equal(404, err.status)
      end
      for _, body in ipairs { "config data not exist", "config data not exist\n", "config data not exist\r\n" } do
        server:clear_faults()
        server:faults { path = "/nacos/*", status = 404, body = body }
        assert.equal("v", support.read(lab.snapshot(client, "stays")))
        assert.equal("not_found", select(2, client:get_config("stays")).code, body)
        support.write(lab.snapshot(client, "stays"), "v")
      end
    end)

    it("raises 403 to the caller, never a snapshot", function()
      put("secret", "v")
      local client = lab.client(server)
      client:get_config("secret")
      support.eventually(function() return support.read(lab.snapshot(client, "secret")) end)
      server:faults { path = "/nacos/*", status = 403, body = '{"status":403,"message":"authorization failed!"}' }
      local content, err = client:get_config("secret")
      assert.is_nil(content)
      assert.equal("forbidden", err.code)
      assert.equal(403, err.status)
      assert.matches("authorization failed!", err.message, 1, true)
      assert.equal("v", support.read(lab.snapshot(client, "secret")))
    end)

    it("asks again while the server says that the value is being modified", function()
      put("busy", "v")
      server:faults {
        path = "/nacos/v1/cs/configs", status = 409, times = 3, body = "requested file is being modified, please try later.",
      }
      assert.equal("v", (lab.client(server):get_config("busy")))
      assert.equal(4, #reads("busy"))
    end)

    it("is answered together with others that ask for the same at the same time", function()
      put("shared", "v")
      server:faults { path = "/nacos/v1/cs/configs", delay = 0.2 }
      local client, tasks = lab.client(server), {}
      for i = 1, 50 do
        tasks[i] = function() return client:get_config("shared") end
      end
      tasks[51] = function() return client:get_config("shared", "other-group") end
      local results = lab.together(table.unpack(tasks))
      for i = 1, 50 do
        assert.same({ "v", "server" }, { results[i][1], results[i][2] })
      end
      assert.equal("not_found", results[51][2].code)
      assert.equal(2, #reads("shared"))
    end)

    it("is not answered by what was asked before a publish of this client", function()
      put("own", "old")
      server:faults { path = "/nacos/v1/cs/configs", method = "GET", delay = 0.3, times = 1 }
      local client, after = lab.client(server), nil
      lab.together(
        function() client:get_config("own") end,
        function()
          nacos.sleep(0.05) -- the answer with the old value is on its way now
          assert(client:publish_config("own", nil, "new", { type = "text" }))
          after = client:get_config("own")
        end)
      assert.equal("new", after)
    end)

    it("with a short timeout is not held up by one with a long", function()
      server:faults { path = "/nacos/v1/cs/configs", hang = true }
      local client = lab.client(server)
      nacos.spawn(function() client:get_config("both", nil, 3) end)
      local took, _, err = lab.timed(client.get_config, client, "both", nil, 0.2)
      assert.equal("unavailable", err.code)
      assert.is_true(took < 1.5, tostring(took))
    end)
  end)

  -- ---- writes ------------------------------------------------------------------------------------------------------------------

  describe("publish_config", function()
    it("sends everything in the body", function()
      local client = lab.client(server)
      assert.is_true(client:publish_config("all.fields", "g:1", "a&b=c+d%é", {
        app_name = "app 1", type = "properties", tags = "x,y", desc = "für alle & jeden", timeout = 2,
      }))
      local fields, request = last_publish()
      assert.equal("", request.query or "")
      assert.same({
        dataId = "all.fields", group = "g:1", content = "a&b=c+d%é", type = "properties", appName = "app 1", config_tags = "x,y",
        desc = "für alle & jeden",
      }, fields)
      assert.matches("^application/x%-www%-form%-urlencoded", lab.header(request, "Content-Type"))
      assert.equal("a&b=c+d%é", (client:get_config("all.fields", "g:1")))
    end)

    it("takes positions and names", function()
      local client = lab.client(server)
      assert.is_true(client:publish_config("forms", "g", "1", 2))
      assert.is_true(client:publish_config("forms", "g", "2"))
      assert.is_true(client:publish_config { data_id = "forms", group = "g", content = "3", type = "json" })
      assert.equal("json", last_publish().type)
      assert.is_true(client:publish_config("forms", nil, "4"))
      assert.equal("DEFAULT_GROUP", last_publish().group)
    end)

    it("refuses nil and empty content before anything is sent", function()
      local client = lab.client(server)
      for _, case in ipairs { { nil, "content" }, { "", "empty" } } do
        local ok, err = pcall(client.publish_config, client, "a", "g", case[1])
        assert.is_false(ok)
        assert.matches(case[2], err)
      end
      assert.equal(0, server:requests().total)
    end)

    it("refuses what is not UTF-8: a server would store something else", function()
      local client = lab.client(server)
      for _, content in ipairs { "a\255b", "\xC3", "\xED\xA0\x80", "\xC0\x80", "\xF5\x80\x80\x80" } do
        local ok, result, err = pcall(client.publish_config, client, "bytes", nil, content, { type = "text" })
        assert.is_true(not ok or (result == nil and err.code == "invalid"), ("%q was taken"):format(content))
        assert.matches("UTF%-8", ok and err.message or result)
      end
      for _, name in ipairs { "app_name", "tags", "desc" } do
        local result, err = client:publish_config("bytes", nil, "good", { type = "text", [name] = "a\255b" })
        assert.is_nil(result)
        assert.equal("invalid", err.code)
        assert.matches("UTF%-8", err.message)
      end
      assert.equal(0, server:requests().total)
    end)

    it("keeps the type that the item has when none is given", function()
      local client = lab.client(server)
      put("typed", "1", { type = "json" })
      assert.is_true(client:publish_config("typed", nil, "2"))
      assert.equal("json", last_publish().type)
      assert.is_true(client:publish_config("typed", nil, "3"))
      assert.equal("json", select(3, client:get_config("typed")).type)
      assert.is_true(client:publish_config("typed", nil, "4", { type = "yaml" }))
      assert.is_true(client:publish_config("typed", nil, "5"))
      assert.equal("yaml", select(3, client:get_config("typed")).type)
      client:remove_config("typed")
      assert.is_true(client:publish_config("typed", nil, "6"))
      assert.equal("text", select(3, client:get_config("typed")).type, "a new item is a text")
    end)

    it("keeps the type also while the server does not show its last publish yet", function()
      local slow = support.start_server { "--lag", "0.3" }
      local client = lab.client(slow)
      assert.is_true(client:publish_config("typed", nil, "1", { type = "json" }))
      assert.is_true(client:publish_config("typed", nil, "2"))
      support.eventually(function() return client:get_config("typed") == "2" end)
      assert.equal("json", select(3, client:get_config("typed")).type)
      slow:stop()
    end)

    it("does not publish when the type cannot be found out", function()
      server:faults { path = "/nacos/v1/cs/configs", method = "GET", status = 500, body = "caused: x;" }
      local ok, err = lab.client(server):publish_config("untyped", nil, "v")
      assert.is_nil(ok)
      assert.equal("unavailable", err.code)
      assert.equal(0, #lab.requests(server, lab.CONFIGS, "POST"))
    end)

    it("takes exactly what a server reads and refuses more, with both sizes, before sending", function()
      local client = lab.client(server)
      local rest = #"dataId=size&group=DEFAULT_GROUP&type=text&content="
      local fits = ("x"):rep(2097152 - rest)
      assert.is_true(client:publish_config("size", nil, fits, { type = "text", timeout = 10 }))
      assert.is_true(client:get_config("size", nil, 10) == fits)
      server:clear_requests()
      for _, content in ipairs { fits .. "x", ("é"):rep(400000) .. "x" } do
        local ok, err = client:publish_config("size", nil, content, { type = "text" })
        assert.is_nil(ok)
        assert.equal("invalid", err.code)
        assert.matches("size", err.message)
        assert.matches("2097152", err.message)
        assert.matches(tostring(rest + #content:gsub("[^%w]", "%%%%%%")), err.message)
        assert.matches(tostring(#content), err.message)
      end
      local ok, err = client:publish_config("size", nil, ("%"):rep(20000000), { type = "text" })
      assert.is_nil(ok)
      assert.equal("invalid", err.code)
      assert.equal(0, server:requests().total)
      assert.is_true(client:get_config("size", nil, 10) == fits, "the old value is untouched")
    end)

    it("with wait returns when a read shows the new content", function()
      local slow = support.start_server { "--lag", "0.25" }
      local client = lab.client(slow)
      for i = 1, 3 do
        local took = lab.timed(function()
          assert(client:publish_config("waited", nil, "v" .. i, { type = "text", wait = true, timeout = 5 }))
        end)
        assert.equal("v" .. i, (client:get_config("waited")))
        assert.is_true(took >= 0.2, tostring(took))
      end
      assert.is_true(client:publish_config("waited", nil, "v9", { type = "text" }))
      assert.equal("v3", (client:get_config("waited")), "without wait the server may still show the old one")
      local ok, err = client:publish_config("waited", nil, "v10", { type = "text", wait = true, timeout = 0.1 })
      assert.is_nil(ok)
      assert.equal("unavailable", err.code)
      assert.matches("waited", err.message)
      slow:stop()
    end)

    it("reports the server's no", function()
      local client = lab.client(server)
      for status, code in pairs {
        [400] = "refused", [403] = "forbidden", [404] = "unsupported", [410] = "unsupported", [500] = "unavailable",
        [503] = "unavailable",
      } do
        server:clear_faults()
        server:faults { path = "/nacos/v1/cs/configs", method = "POST", status = status, body = "because of this" }
        local ok, err = client:publish_config("no", nil, "v", { type = "text", timeout = 1 })
        assert.is_nil(ok)
        assert.equal(code, err.code, status)
        assert.equal(status, err.status)
        assert.matches("because of this", err.message)
        assert.matches("no", err.message)
        assert.matches(server.base, err.message, 1, true)
      end
      server:clear_faults()
      server:faults { path = "/nacos/v1/cs/configs", method = "POST", status = 200, body = "false" }
      local ok, err = client:publish_config("no", nil, "v", { type = "text" })
      assert.is_nil(ok)
      assert.equal("refused", err.code)
    end)

    describe("with cas_md5", function()
      it("publishes only over what the caller expects", function()
        local client = lab.client(server)
        client:publish_config("cas", nil, "1", { type = "json" })
        assert.is_true(client:publish_config("cas", nil, "2", { cas_md5 = nacos.md5("1") }))
        local ok, err = client:publish_config("cas", nil, "3", { cas_md5 = nacos.md5("1") })
        assert.is_nil(ok)
        assert.equal("conflict", err.code)
        assert.matches("cas", err.message)
        assert.equal("2", (client:get_config("cas")))
        assert.equal("json", select(3, client:get_config("cas")).type)
        assert.is_true(client:publish_config("cas", nil, "4", { cas_md5 = nacos.md5("2"):upper() }))
      end)

      it("is sent at most once: its own first copy must not make it a conflict", function()
        local client = lab.client(server)
        client:publish_config("cas", nil, "1", { type = "text" })
        server:clear_requests()
        server:faults { path = "/nacos/v1/cs/configs", method = "POST", drop_at = 0, times = 1 }
        local ok, err = client:publish_config("cas", nil, "2", { cas_md5 = nacos.md5("1"), type = "text" })
        assert.is_nil(ok)
        assert.equal("unavailable", err.code)
        assert.equal(1, #lab.requests(server, lab.CONFIGS, "POST"))
      end)

      it("is refused by what is no md5", function()
        local client = lab.client(server)
        local ok, err = pcall(client.publish_config, client, "cas", nil, "1", { cas_md5 = "xyz" })
        assert.is_false(ok)
        assert.matches("cas_md5", err)
      end)

      it("is not sent to a server that would ignore it", function()
        for _, version in ipairs { "2.2.4", "1.4.8", "0.8.0" } do
          local old = support.start_server { "--claim", version }
          local client = lab.client(old)
          client:publish_config("cas", nil, "1", { type = "text" })
          local ok, err = client:publish_config("cas", nil, "2", { type = "text", cas_md5 = nacos.md5("1") })
          assert.is_nil(ok)
          assert.equal("unsupported", err.code)
          assert.matches(version, err.message, 1, true)
          assert.equal("1", (client:get_config("cas")))
          old:stop()
        end
        local new = support.start_server { "--claim", "2.3.0" }
        local client = lab.client(new)
        client:publish_config("cas", nil, "1", { type = "text" })
        assert.is_true(client:publish_config("cas", nil, "2", { type = "text", cas_md5 = nacos.md5("1") }))
        new:stop()
      end)

      it("is sent to any server that speaks gRPC, also when its version cannot be asked over HTTP", function()
        local own = support.start_server { "--api", "grpc", "--claim", "2.0.4" }
        assert(lab.client(own, { protocol = "grpc" }):publish_config("cas", nil, "1", { type = "text" }))
        for _, protocol in ipairs { "auto", "grpc" } do
          local client = lab.client(own, { protocol = protocol })
          local _, err = client:publish_config("cas", nil, "2", { type = "text", cas_md5 = nacos.md5("x") })
          assert.equal("conflict", err.code)
        end
        local client = lab.client(own, { protocol = "auto" })
        assert.is_true(client:publish_config("cas", nil, "2", { type = "text", cas_md5 = nacos.md5("1") }))
        own:stop()
      end)
    end)
  end)

  describe("remove_config", function()
    it("removes, and is content with what is absent", function()
      put("doomed", "v")
      put("doomed", "v", { group = "g" })
      local client = lab.client(server)
      assert.is_true(client:remove_config("doomed"))
      assert.equal("not_found", select(2, client:get_config("doomed")).code)
      assert.equal("v", (client:get_config("doomed", "g")))
      assert.is_true(client:remove_config { data_id = "doomed", group = "g", timeout = 1 })
      assert.is_true(client:remove_config("doomed"))
    end)

    it("reports failures", function()
      server:faults { path = "/nacos/v1/cs/configs", method = "DELETE", status = 403, body = '{"message":"authorization failed!"}' }
      local ok, err = lab.client(server):remove_config("doomed")
      assert.is_nil(ok)
      assert.equal("forbidden", err.code)
      assert.matches("doomed", err.message)
    end)
  end)

  describe("lists", function()
    local client
    before_each(function()
      client = lab.client(server, { namespace = "lists" })
      if not (client:get_config("item-01", "G")) then
        for i = 1, 25 do
          local id, group = ("item-%02d"):format(i), i % 2 == 0 and "even" or "G"
          assert(client:publish_config(id, group, "content " .. i, { type = "text", app_name = "app" }))
        end
      end
    end)

    it("come in pages", function()
      local page = client:get_configs { page = 2, page_size = 10 }
      assert.same({ 25, 2, 3, 10 }, { page.total, page.page, page.pages, #page.items })
      assert.equal("integer", math.type(page.total))
      local item = page.items[1]
      assert.matches("^item%-%d%d$", item.data_id)
      assert.matches("^content %d+$", item.content)
      assert.equal("lists", item.namespace)
      assert.equal(5, #client:get_configs { page = 3, page_size = 10 }.items)
      assert.equal(25, #client:get_configs {}.items)
      assert.equal(0, #client:get_configs { page = 9, page_size = 10 }.items)
    end)

    it("can be narrowed by patterns", function()
      assert.equal(12, client:get_configs { group = "even" }.total)
      assert.equal(9, client:get_configs { data_id = "item-0*" }.total)
      assert.equal(4, client:get_configs { data_id = "item-0*", group = "even" }.total)
      assert.equal(1, client:get_configs { data_id = "item-07", group = "G" }.total)
      assert.equal(1, client:get_configs { data_id = "item-07" }.total)
      assert.equal(0, client:get_configs { data_id = "nothing*" }.total)
      assert.equal(12, client:get_configs("even").total)
    end)

    it("can be walked over all pages", function()
      local seen, n = {}, 0
      for item in client:each_config { page_size = 4 } do
        assert.is_nil(seen[item.data_id])
        seen[item.data_id] = true
        n = n + 1
      end
      assert.equal(25, n)
      n = 0
      for _ in client:each_config { data_id = "nothing*" } do
        n = n + 1
      end
      assert.equal(0, n)
      nacos.run(function()
        for _ in client:each_config { group = "even", page_size = 5 } do
          n = n + 1
        end
      end)
      assert.equal(12, n)
    end)

    it("report failures: a page as nil and error, the walk by raising it", function()
      server:faults { path = "/nacos/v1/cs/configs", status = 500, body = "caused: x;" }
      local page, err = client:get_configs { timeout = 0.5 }
      assert.is_nil(page)
      assert.equal("unavailable", err.code)
      local ok, raised = pcall(function()
        for _ in client:each_config { timeout = 0.5 } do -- luacheck: ignore 542
        end
      end)
      assert.is_false(ok)
      assert.equal("unavailable", raised.code)
      server:clear_faults()
      for _, body in ipairs { "[]", "{}", "null", '{"pageItems":3}', "<html>" } do
        server:faults { path = "/nacos/v1/cs/configs", status = 200, body = body, times = 1 }
        page, err = client:get_configs { timeout = 0.5 }
        assert.is_nil(page, body)
        assert.equal("protocol", err.code)
      end
    end)
  end)

  it("tells its status", function()
    local client = lab.client(server)
    local status = client:status()
    assert.same({ false, 0, 0, 0 }, { status.connected, status.requests, status.failures, status.watches })
    client:get_config("a")
    status = client:status()
    assert.same({ server.base, true, 1, 0 }, { status.server, status.connected, status.requests, status.failures })
    assert.is_nil(status.last_error)
    server:faults { path = "/nacos/*", status = 500, body = "caused: x;" }
    client:get_config("a")
    status = client:status()
    assert.same({ false, 2, 1, "unavailable" }, { status.connected, status.requests, status.failures, status.last_error.code })
    server:clear_faults()
    client:add_config_watcher("a", nil, type)
    support.eventually(function() return client:status().polls == 1 end)
    assert.same({ 1, true }, { client:status().watches, client:status().connected })
    client:remove_config_watcher("a", nil, type)
    support.eventually(function() return client:status().polls == 0 end)
    assert.equal(0, client:status().watches)
  end)
end)
