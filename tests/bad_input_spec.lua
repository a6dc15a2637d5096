--- What must happen when the caller, the server or the disk is wrong: an error that says what and where, the old value kept, nothing
-- that hangs and nothing that spins.

local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

local function nothing()
end

describe("the caller's mistakes", function()
  local client

  before_each(function()
    client = lab.client("127.0.0.1:1", { default_timeout = 1 })
  end)
  after_each(lab.close_all)

  ---Each function of the list stands on a line of its own, the first on `line`: its error must name that line and hold the text beside it.
  local function blame(line, cases)
    for i, case in ipairs(cases) do
      local ok, err = pcall(case[1])
      assert.is_false(ok, "no error for case " .. i .. " (" .. case[2] .. ")")
      assert.is_string(err)
      assert.matches("bad_input_spec.lua:" .. line + i - 1 .. ": ", err, 1, true)
      assert.matches(case[2], err, 1, true)
    end
  end

  it("in options raise at the caller's line and name the nearest option", function()
    local here = debug.getinfo(1, "l").currentline
    blame(here + 2, {
      { function() local c = nacos.client { server_addresses = "a", namespce = "x" } return c end, "did you mean 'namespace'?" },
      { function() local c = nacos.client { server_addreses = "a" } return c end, "did you mean 'server_addresses'?" },
      { function() local c = nacos.client {} return c end, "server_addresses" },
      { function() local c = nacos.client() return c end, "nacos.client" },
      { function() local c = nacos.client "127.0.0.1" return c end, "table expected, got string" },
      { function() local c = nacos.client { server_addresses = 1 } return c end, "string expected, got number" },
      { function() local c = nacos.client { server_addresses = "" } return c end, "no server" },
      { function() local c = nacos.client { server_addresses = "a", namespace = "a b" } return c end, "namespace" },
      { function() local c = nacos.client { server_addresses = "a", namespace = ("n"):rep(129) } return c end, "128" },
      { function() local c = nacos.client { server_addresses = "a", namespace = "a\0b" } return c end, "NUL" },
      { function() local c = nacos.client { server_addresses = "a", verify = "yes" } return c end, "boolean expected, got string" },
      { function() local c = nacos.client { server_addresses = "a", on_error = 1 } return c end, "function expected, got number" },
      { function() local c = nacos.client { server_addresses = "a", default_timeout = 0 } return c end, "greater than 0" },
      { function() local c = nacos.client { server_addresses = "a", default_timeout = 0 / 0 } return c end, "finite" },
      { function() local c = nacos.client { server_addresses = "a", pulling_config_size = 1.5 } return c end, "whole number" },
      { function() local c = nacos.client { server_addresses = "a", pulling_config_size = 0 } return c end, "at least 1" },
      { function() local c = nacos.client { server_addresses = "a", callback_thread_num = 0 } return c end, "at least 1" },
      { function() local c = nacos.client { server_addresses = "a", proxies = "h:1" } return c end, "table expected" },
      { function() local c = nacos.client { server_addresses = "a", proxies = { htp = "h:1" } } return c end, "did you mean 'http'?" },
      { function() local c = nacos.client { server_addresses = "a", log_level = "LOUD" } return c end, "WARN" },
      { function() local c = nacos.client { server_addresses = "a", log_rotation_backup_count = -1 } return c end, "at least 0" },
      { function() local c = nacos.client { "a" } return c end, "by name" },
      { function() local c = nacos.NacosClient("a", { namespce = "x" }) return c end, "did you mean 'namespace'?" },
      { function() local c = nacos.NacosClient("a", 3) return c end, "table expected, got number" },
      { function() local c = nacos.NacosClient(3) return c end, "string expected, got number" },
      { function() local c = nacos.NacosClient() return c end, "server_addresses" },
      { function() client:set_options { pulling_timout = 1 } end, "did you mean 'pulling_timeout'?" },
      { function() client:set_options { pulling_timeout = "long" } end, "number expected, got string" },
      { function() client:set_options { pulling_timeout = 0 } end, "at least 1" },
      { function() client:set_options { namespace = "x" } end, "namespace" },
      { function() client:set_options(3) end, "table expected, got number" },
    })
  end)

  it("in arguments raise at the caller's line", function()
    local here = debug.getinfo(1, "l").currentline
    blame(here + 2, {
      { function() client:get_config() end, "data_id" },
      { function() client:get_config(1) end, "string expected, got number" },
      { function() client:get_config("a", 1) end, "group" },
      { function() client:get_config("a", "g", "soon") end, "timeout" },
      { function() client:get_config("a", "g", -1) end, "greater than 0" },
      { function() client:get_config("a", "g", 0 / 0) end, "finite" },
      { function() client:get_config("a", "g", 1, "yes") end, "no_snapshot" },
      { function() client:get_config("a", "g", 1, true, 5) end, "too many" },
      { function() client:get_config { data_id = "a", grp = "g" } end, "did you mean 'group'?" },
      { function() client:get_config("a", { data_id = "a" }) end, "twice" },
      { function() client:publish_config("a", "g") end, "content" },
      { function() client:publish_config("a", "g", nil) end, "content" },
      { function() client:publish_config("a", "g", "") end, "remove_config" },
      { function() client:publish_config("a", "g", 42) end, "string expected, got number" },
      { function() client:publish_config("a", "g", {}) end, "content" },
      { function() client:publish_config("a", "g", "v", { type = "jsn" }) end, "'json'" },
      { function() client:publish_config("a", "g", "v", { typ = "json" }) end, "did you mean 'type'?" },
      { function() client:publish_config("a", "g", "v", { cas_md5 = "abc" }) end, "md5" },
      { function() client:publish_config("a", "g", "v", { wait = 1 }) end, "boolean expected, got number" },
      { function() client:publish_config("a", "g", "v", { tags = {} }) end, "string expected, got table" },
      { function() client:remove_config() end, "data_id" },
      { function() client:remove_config("a", "g", {}, 1) end, "timeout" },
      { function() client:get_configs { page = 0 } end, "at least 1" },
      { function() client:get_configs { page_size = 501 } end, "at most 500" },
      { function() client:get_configs { pagesize = 5 } end, "did you mean 'page_size'?" },
      { function() client:each_config { page = "x" } end, "number expected, got string" },
      { function() client:add_config_watcher("a", "g") end, "cb" },
      { function() client:add_config_watcher("a", "g", "print") end, "function expected, got string" },
      { function() client:add_config_watcher("a", print) end, "group" },
      { function() client:add_config_watchers("a", "g", print) end, "table expected, got function" },
      { function() client:add_config_watchers("a", "g", { print, 1 }) end, "element 2" },
      { function() client:remove_config_watcher("a", "g") end, "cb" },
      { function() client:remove_config_watcher("a", "g", print, "all") end, "boolean expected, got string" },
      { function() client:peek() end, "data_id" },
      { function() client:peek("a", 1) end, "group" },
      { function() nacos.write_file("/tmp/x", "y", { mode = "rw" }) end, "mode" },
    })
  end)

  it("never show a value in the message", function()
    for _, call in ipairs {
      function() nacos.client { server_addresses = "a", password = { "top-secret" } } end,
      function() nacos.client { server_addresses = "a", default_timeout = "top-secret" } end,
      function() client:publish_config("a", "g", "v", { cas_md5 = "top-secret" }) end,
    } do
      local ok, err = pcall(call)
      assert.is_false(ok)
      assert.not_matches("top%-secret", err)
    end
  end)

  it("in names are refused before any request", function()
    local server = support.start_server()
    local live = lab.client(server)
    local bad = { "", "a b", "a/b", "../x", "a%b", "a+b", "a\nb", "ä", "a\0b", "a@b", "a,b", "a?b", "a&b", ("x"):rep(257), "*" }
    for _, name in ipairs(bad) do
      for _, call in ipairs {
        function() live:get_config(name) end, function() live:get_config("a", name) end,
        function() live:publish_config(name, nil, "v") end, function() live:publish_config("a", name, "v") end,
        function() live:remove_config(name) end, function() live:remove_config("a", name) end,
        function() live:add_config_watcher(name, nil, nothing) end, function() live:add_config_watchers("a", name, { nothing }) end,
        function() live:remove_config_watcher(name, nil, nothing) end, function() live:peek(name) end,
      } do
        local ok, err = pcall(call)
        assert.is_false(ok, ("%q was taken"):format(name))
        assert.matches("bad_input_spec.lua:%d+: ", err)
      end
    end
    for _, name in ipairs { "a", "A-1_b.c:d", ("x"):rep(256) } do
      assert.equal("not_found", select(2, live:get_config(name)).code)
    end
    nacos.step(0.1)
    assert.equal(3, server:requests().total)
    server:stop()
  end)

  it("take no request in hand: nothing leaks into the next call", function()
    for _ = 1, 100 do
      pcall(client.get_config, client, "a b")
      pcall(client.publish_config, client, "a", nil, "")
    end
    assert.equal(0, client:status().requests)
  end)
end)

describe("a server that answers", function()
  local server, client

  setup(function()
    server = support.start_server()
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    client = lab.client(server, { max_response_size = 100000 })
    assert(client:publish_config("item", nil, "old value", { type = "text" }))
  end)
  after_each(function()
    lab.close_all()
    server:clear_faults()
    server:clear_requests()
  end)

  local HTML = "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Log in to the network</body></html>"

  -- name, fault, code(s) of a read
  local modes = {
    { "with garbage", { garbage = true }, "unavailable" },
    { "without end", { endless = true }, "protocol unavailable" },
    { "half a body", { drop_at = 250 }, "unavailable" },
    { "a body longer than it says", { length = 3 }, "protocol" },
    { "a body shorter than it says", { length = 5000 }, "unavailable" },
    { "a web page", { status = 200, body = HTML, headers = { ["Content-Type"] = "text/html" } }, "protocol" },
    { "a redirection", { status = 302, body = "", headers = { Location = "http://127.0.0.1:1/" } }, "protocol" },
    { "an empty 200", { status = 200, body = "" }, "protocol" },
    { "204", { status = 204 }, "protocol" },
    { "another body than its md5 says", { status = 200, body = "half", headers = { ["Content-MD5"] = ("0"):rep(32) } }, "protocol" },
    { "an md5 that is none", { status = 200, body = "half", headers = { ["Content-MD5"] = ("x"):rep(300) } }, "protocol" },
    { "and closes at once", { drop_at = 0 }, "unavailable" },
    { "never", { hang = true }, "unavailable" },
    { "500", { status = 500, body = "caused: oops;" }, "unavailable" },
    { "503 with a web page", { status = 503, body = HTML }, "unavailable" },
    { "429", { status = 429, body = "slow down" }, "unavailable" },
    { "400", { status = 400, body = "no" }, "refused" },
    { "403", { status = 403, body = "no" }, "forbidden" },
    { "a status that nobody knows", { status = 799, body = "?" }, "unavailable protocol" },
  }

  local function with_path(fault, path, more)
    local all = { path = path }
    for _, part in ipairs { fault, more or {} } do
      for name, value in pairs(part) do
        all[name] = value
      end
    end
    return all
  end

  for _, mode in ipairs(modes) do
    local name, fault, codes = table.unpack(mode)

    it(name .. " gives an error with server and key, in time, and the old value is kept", function()
      local seen, callback = lab.recorder()
      assert.equal("old value", (client:get_config("item")))
      local path = lab.snapshot(client, "item")
      support.eventually(function() return support.read(path) == "old value" end)
      client:add_config_watcher("item", nil, callback)
      support.eventually(function() return seen.n == 1 end)

      server:faults(with_path(fault, "/nacos/v1/cs/configs", { method = "GET" }))
      local took, content, err = lab.timed(client.get_config, client, "item", nil, 0.5, true)
      assert.is_nil(content)
      assert.is_true((" " .. codes .. " "):find(" " .. err.code .. " ", 1, true) ~= nil, err.code .. ": " .. err.message)
      assert.matches("item", err.message, 1, true)
      assert.matches("DEFAULT_GROUP", err.message, 1, true)
      assert.matches(server.base, err.message, 1, true)
      assert.equal(server.base, err.server)
      assert.is_true(#err.message < 512)
      assert.is_true(took < 1.5, tostring(took))

      if err.code == "unavailable" or err.code == "protocol" then
        local kept, source = client:get_config("item", nil, 0.3)
        assert.same({ "old value", "snapshot" }, { kept, source })
      end
      -- a change that cannot be read: the watch keeps what it has
      local writer = lab.client(server)
      assert(writer:publish_config("item", nil, "new value", { type = "text" }))
      nacos.step(0.1)
      nacos.step(0.1)
      assert.equal("old value", client:peek("item").content)
      assert.equal("old value", support.read(path))
      assert.equal(1, seen.n)
      server:clear_faults()
      support.eventually(function() return seen.n == 2 end, 15)
      assert.equal("new value", seen[2])
    end)
  end

  it("writes and lists with nonsense gives errors with the server, too", function()
    for _, mode in ipairs(modes) do
      local name, fault = table.unpack(mode)
      if not fault.length and not fault.drop_at then
        server:clear_faults()
        server:faults(with_path(fault, "/nacos/v1/cs/configs"))
        local calls = {
          function() return client:publish_config("item", nil, "v", { type = "text", timeout = 0.3 }) end,
          function() return client:remove_config("item", nil, 0.3) end,
          function() return client:get_configs { timeout = 0.3 } end,
        }
        for i, call in ipairs(calls) do
          calls[i] = function()
            local took, result, err = lab.timed(call)
            assert.is_nil(result, name)
            assert.is_string(err.code)
            assert.matches(server.base, err.message, 1, true)
            assert.is_true(took < 1.3, name .. " " .. took)
          end
        end
        lab.together(table.unpack(calls))
      end
    end
  end)

  it("and closes at any byte never gives a wrong value", function()
    local whole = ("0123456789"):rep(3)
    assert(client:publish_config("cut", nil, whole, { type = "text" }))
    local results, n = {}, 0
    for at = 0, 420, 4 do
      server:faults { path = "/nacos/v1/cs/configs", method = "GET", data_id = "cut", drop_at = at, times = 1 }
      local content, err = client:get_config("cut", nil, 2, true)
      if content then
        assert.equal(whole, content, "cut at byte " .. at)
      else
        assert.is_true(err.code == "unavailable" or err.code == "protocol", err.code)
        assert.matches("cut", err.message)
        n = n + 1
      end
      results[#results + 1] = content or err.code
      server:clear_faults()
    end
    assert.is_true(n > 60, n .. " of them were cut short")
    assert.equal(whole, results[#results], "the last ones are whole")
  end)

  it("and closes its long poll at any byte loses no change", function()
    local seen, callback = lab.recorder()
    client:add_config_watcher("item", nil, callback)
    support.eventually(function() return seen.n == 1 end)
    for i, at in ipairs { 0, 5, 20, 80, 150, 200 } do
      server:faults { path = "/nacos/v1/cs/configs/listener", drop_at = at, times = 2 }
      assert(client:publish_config("item", nil, "value " .. i, { type = "text" }))
      support.eventually(function() return seen[seen.n] == "value " .. i end, 10)
      server:clear_faults()
    end
  end)

  it("with headers without end costs neither time nor memory without end", function()
    local path = support.tmpdir() .. "/headers"
    support.write(path, "HTTP/1.1 200 OK\r\n" .. ("X-Header: " .. ("y"):rep(1000) .. "\r\n"):rep(64))
    local rogue = lab.rogue("for_ever", path)
    local code, out, err = lab.lua([[
      local nacos = require "nacos"
      local client = nacos.client { server_addresses = "]] .. rogue.address .. [[", log_level = "OFF", no_snapshot = true }
      local function memory()
        return tonumber(io.open("/proc/self/status"):read("a"):match("VmHWM:%s*(%d+)"))
      end
      local before = memory()
      for _ = 1, 3 do
        local content, err = client:get_config("item", nil, 1)
        assert(content == nil)
        print(err.code)
      end
      print(memory() - before < 60000, memory() - before)
    ]])
    assert.equal(0, code, err)
    for line in out:gmatch("[^\n]+") do
      assert.is_true(line == "unavailable" or line == "protocol" or line:match("^true") ~= nil, line)
    end
    rogue:stop()
  end)

  it("with other strange bytes never hangs and never crashes", function()
    local md5 = nacos.md5("x")
    local path = support.tmpdir() .. "/answer"
    local rogue = lab.rogue("once", path)
    local other = lab.client(rogue.base, { no_snapshot = true })
    for _, answer in ipairs {
      "", "\r\n\r\n", "HTTP/1.1", "HTTP/1.1 200", "HTTP/1.1 abc OK\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n", "ICY 200 OK\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-MD5: " .. md5 .. "\r\n\r\n1\r\nx\r\n",
      "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-MD5: " .. md5 .. "\r\n\r\nnot gzip",
      "HTTP/1.1 100 Continue\r\n\r\n", ("HTTP/1.1 100 Continue\r\n\r\n"):rep(1000), "HTTP/1.1 101 Switching Protocols\r\n\r\n",
      "HTTP/1.1 200 OK\r\n\0\0\0: \1\2\3\r\n\r\n\0\0\0", "HTTP/1.1 200 OK\nContent-MD5: " .. md5 .. "\n\ny",
      "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy", ("\255"):rep(5000), "HTTP/1.1 407 Auth\r\n\r\n",
      "HTTP/1.1 999999 X\r\n\r\n", "HTTP/1.1 200 OK\r\n" .. ("A"):rep(200000) .. ": x\r\n\r\n",
    } do
      support.write(path, answer)
      local took, content, err = lab.timed(other.get_config, other, "item", nil, 1)
      assert.is_nil(content, ("%q"):format(answer:sub(1, 60)))
      assert.is_string(err.code)
      assert.matches("item", err.message)
      assert.matches(rogue.base, err.message, 1, true)
      assert.is_true(took < 2.5, tostring(took))
    end
    -- and one that is right, by bare line feeds and without a length
    support.write(path, "HTTP/1.1 200 OK\nContent-MD5: " .. md5 .. "\n\nx")
    assert.equal("x", (other:get_config("item")))
    rogue:stop()
  end)

  it("strange things to a long poll is asked again, and nothing is told of it", function()
    for _, body in ipairs {
      HTML, "garbage", "%", "%0", "%zz%02%01", "\1\2\1\2", "%01%02%01", "item%02", "item%02DEFAULT_GROUP%02%02%02%01", "item",
      ("a%02b%01"):rep(20000), ("x"):rep(99999), "item\0%02DEFAULT_GROUP%01", '{"code":200}',
    } do
      server:clear_faults()
      server:faults { path = "/nacos/v1/cs/configs/listener", status = 200, body = body, times = 3 }
      local one = lab.client(server)
      local seen, callback = lab.recorder()
      one:add_config_watcher("item", nil, callback)
      support.eventually(function() return seen.n == 1 end)
      nacos.step(0.05)
      assert.equal(1, seen.n, body:sub(1, 40))
      one:close()
    end
  end)
end)

-- ---- the spin floor ----------------------------------------------------------------------------------------------------------------

describe("no failure makes a client ask faster than", function()
  local SECONDS = 3
  local server

  setup(function()
    server = support.start_server()
    local writer = lab.client(server)
    for i = 1, 20 do
      assert(writer:publish_config("item" .. i, nil, "v", { type = "text" }))
    end
  end)
  teardown(function()
    server:stop()
  end)
  after_each(function()
    lab.close_all()
    server:clear_faults()
  end)

  local faults = {
    garbage = { garbage = true }, endless = { endless = true }, ["closed at once"] = { drop_at = 0 }, ["half an answer"] = { drop_at = 100 },
    ["wrong length"] = { length = 5000 }, ["too short a length"] = { length = 1 }, ["a page"] = { status = 200, body = "<html>x</html>" },
    ["an empty 200"] = { status = 200, body = "" }, ["204"] = { status = 204 }, ["302"] = { status = 302 }, ["400"] = { status = 400, body = "no" },
    ["403"] = { status = 403, body = '{"message":"authorization failed!"}' }, ["403 of a token"] = { status = 403, body = '{"message":"token expired!"}' },
    ["404"] = { status = 404, body = "<html>" }, ["409"] = { status = 409, body = "requested file is being modified, please try later." },
    ["410"] = { status = 410 }, ["429"] = { status = 429 }, ["500"] = { status = 500, body = "caused: x;" }, ["503"] = { status = 503 },
    ["not found"] = { status = 404, body = "config data not exist\n" },
    ["a change that is none"] = { status = 200, body = "item1%02DEFAULT_GROUP%01\n" },
    ["changes of everything"] = { status = 200 }, ["changes of the unknown"] = { status = 200, body = "nobody%02DEFAULT_GROUP%01\n" },
    ["namespace public"] = { status = 200, body = "item1%02DEFAULT_GROUP%02public%01\n" },
  }
  local lines = {}
  for i = 1, 20 do
    lines[i] = ("item%d%%02DEFAULT_GROUP%%01"):format(i)
  end
  faults["changes of everything"].body = table.concat(lines) .. "\n"

  ---Twenty clients of one watch each and one client of twenty watches; requests that they send in SECONDS of this fault, after the first
  ---second (in which every one may try a few times).
  local function measure(fault)
    server:clear_faults()
    server:faults(fault)
    local clients, told = {}, 0
    local function callback(change)
      assert(change.content == nil or change.content == "v")
      told = told + 1
    end
    local many = lab.client(server, { default_timeout = 1 })
    for i = 1, 20 do
      many:add_config_watcher("item" .. i, nil, callback)
    end
    for i = 1, 5 do
      clients[i] = lab.client(server, { username = i == 5 and "user" or nil, password = "pw" })
      clients[i]:add_config_watcher("item" .. i, nil, callback)
    end
    local end_of_first = lab.now() + 1
    while lab.now() < end_of_first do
      nacos.step(0.05)
    end
    local first = server:requests().total
    local begin = lab.now()
    while lab.now() < begin + SECONDS do
      nacos.step(0.05)
    end
    local total = server:requests().total
    local per_minute = (total - first) * 60 / (lab.now() - begin)
    lab.close_all()
    server:clear_requests()
    return per_minute / 6, first, told
  end

  -- One request a second for each client and each fetch path is far from a spin, and generous: 25 items are watched by 6 clients.
  local LIMIT = 600
  for _, path in ipairs { "/nacos/v1/cs/configs/listener", "/nacos/v1/cs/configs", "/nacos/*" } do
    it(LIMIT .. " requests a minute and client, whatever " .. path .. " answers", function()
      local bad, n = {}, 0
      for name, fault in pairs(faults) do
        n = n + 1
        local all = { path = path }
        for k, v in pairs(fault) do
          all[k] = v
        end
        local per_minute, first, told = measure(all)
        if os.getenv("VERBOSE") then
          print(("%-28s %-24s %8.0f a minute, %5d in the first second, %d calls"):format(path, name, per_minute, first, told))
        end
        if per_minute > LIMIT or first > 400 then
          bad[#bad + 1] = ("%s: %.0f a minute and client, %d in the first second"):format(name, per_minute, first)
        end
      end
      assert.equal(0, #bad, table.concat(bad, "\n"))
    end)
  end
end)
