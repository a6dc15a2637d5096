--- What must happen when the caller, the server or the disk is wrong: an error that says what and where, the old value kept, nothing
-- that hangs and nothing that spins.
-- @patient

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
      { function() local c = nacos.client { server_addresses = "a", proxies = { htp = "h" } } return c end, "mean 'http'?" },
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
      { function() client:get_config { data_id = "a", gruop = "g" } end, "did you mean 'group'?" },
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
      { function() client:remove_config("a", "g", "x") end, "timeout" },
      { function() client:get_configs { page = 0 } end, "at least 1" },
      { function() client:get_configs { page_size = 501 } end, "at most 500" },
      { function() client:get_configs { pagesize = 5 } end, "did you mean 'page_size'?" },
      { function() client:each_config { page = "x" } end, "number expected, got string" },
      { function() client:add_config_watcher("a", "g") end, "cb" },
      { function() client:add_config_watcher("a", "g", "print") end, "function expected, got string" },
      { function() client:add_config_watcher("a", print, print) end, "group" },
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
    { "half a head", { drop_at = 100 }, "unavailable protocol" },
    { "half a body", { status = 200, body = "old", headers = { ["Content-MD5"] = nacos.md5("old value") } }, "protocol" },
    { "a body longer than it says", { length = 3 }, "protocol" },
    { "a body shorter than it says", { length = 5000 }, "unavailable" },
    { "a web page", { status = 200, body = HTML, headers = { ["Content-Type"] = "text/html" } }, "protocol" },
    { "a redirection", { status = 302, body = "", headers = { Location = "http://127.0.0.1:1/" } }, "protocol" },
    { "an empty 200", { status = 200, body = "" }, "protocol" },
    { "204", { status = 204 }, "protocol" },
    { "another body than its md5 says",
      { status = 200, body = "half", headers = { ["Content-MD5"] = ("0"):rep(32) } }, "protocol" },
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

  it("escape codes gets them into no error", function()
    local evil = "\27]0;pwned\7\27[31m\nlunacos: forged\u{9b}31m"
    server:faults { path = "/nacos/v1/cs/configs", status = 403, body = evil }
    local _, err = client:get_config("item", nil, 1, true)
    assert.equal("forbidden", err.code)
    assert.matches("pwned", err.message, 1, true)
    assert.is_nil(err.message:find("%c"))
    assert.is_nil(err.message:find("\u{9b}", 1, true))
  end)

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

  it("no list of services gives an error, never an empty list", function()
    for _, body in ipairs { '{"code":0,"message":"success","data":null}', '{"code":0,"data":"ok"}', "{}", '"ok"' } do
      server:clear_faults()
      server:faults { path = "/nacos/v1/ns/service/list", status = 200, body = body }
      local list, err = client:list_services { timeout = 2 }
      assert.is_nil(list, body)
      assert.equal("protocol", err.code)
    end
  end)

  it("and closes at any byte never gives a wrong value", function()
    local whole = ("0123456789"):rep(3)
    assert(client:publish_config("cut", nil, whole, { type = "text" }))
    local results, n = {}, 0
    for at = 0, 420, 6 do
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
    assert.is_true(n > 40, n .. " of them were cut short")
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
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
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
      ("a%02b%01"):rep(20000), ("x"):rep(99999), "item%00%02DEFAULT_GROUP%01", '{"code":200}',
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

describe("no failure makes a client spin:", function()
  local SECONDS, WATCHES = 4, 20
  local servers = {}

  local lines = {}
  for i = 1, WATCHES do
    lines[i] = ("item%d%%02DEFAULT_GROUP%%01"):format(i)
  end
  local faults = {
    ["garbage"] = { garbage = true },
    ["endless"] = { endless = true },
    ["closed at once"] = { drop_at = 0 },
    ["half an answer"] = { drop_at = 100 },
    ["too long a length"] = { length = 5000 },
    ["too short a length"] = { length = 1 },
    ["a web page"] = { status = 200, body = "<html>x</html>" },
    ["an empty 200"] = { status = 200, body = "" },
    ["204"] = { status = 204 },
    ["302"] = { status = 302 },
    ["400"] = { status = 400, body = "no" },
    ["403"] = { status = 403, body = '{"message":"authorization failed!"}' },
    ["403 for a token"] = { status = 403, body = '{"message":"token expired!"}' },
    ["404"] = { status = 404, body = "<html>" },
    ["409"] = { status = 409, body = "requested file is being modified, please try later." },
    ["410"] = { status = 410 },
    ["429"] = { status = 429 },
    ["500"] = { status = 500, body = "caused: x;" },
    ["503"] = { status = 503 },
    ["not found"] = { status = 404, body = "config data not exist\n" },
    ["a change that is none"] = { status = 200, body = "item1%02DEFAULT_GROUP%01\n" },
    ["changes of everything"] = { status = 200, body = table.concat(lines) .. "\n" },
    ["changes of the unknown"] = { status = 200, body = "nobody%02DEFAULT_GROUP%01\n" },
    ["namespace public"] = { status = 200, body = "item1%02DEFAULT_GROUP%02public%01\n" },
  }

  -- a server for each fault, so that all are measured in the same seconds
  setup(function()
    for name in pairs(faults) do
      local server = support.start_server()
      servers[name] = server
      local writer, tasks = lab.client(server), {}
      for i = 1, WATCHES do
        tasks[i] = function() assert(writer:publish_config("item" .. i, nil, "v", { type = "text" })) end
      end
      for i, id in ipairs { "alone", "secured" } do
        tasks[WATCHES + i] = function() assert(writer:publish_config(id, nil, "v", { type = "text" })) end
      end
      lab.together(table.unpack(tasks))
      lab.close_all()
    end
  end)
  teardown(function()
    for _, server in pairs(servers) do
      server:stop()
    end
  end)
  after_each(lab.close_all)

  local function callback(change)
    assert(change.content == nil or change.content == "v")
  end

  local function wait(seconds)
    local till = lab.now() + seconds
    while lab.now() < till do
      nacos.step(0.05)
    end
  end

  ---How often a server was asked: reads of the items item1 … (of the most read one), polls that name an item, logins.
  local function count(server)
    local n = { logins = 0, reads = { most = 0 }, polls = { items = 0, alone = 0, secured = 0 } }
    for _, request in ipairs(server:requests().requests) do
      local fields = lab.form(request.method == "GET" and request.query or request.body)
      if request.path:find("/auth/", 1, true) then
        n.logins = n.logins + 1
      elseif request.method == "GET" then
        local id = fields.dataId
        n.reads[id] = (n.reads[id] or 0) + 1
        n.reads.most = math.max(n.reads.most, n.reads[id])
      else
        local keys = fields["Listening-Configs"]
        local who = keys:find("alone\2", 1, true) and "alone" or keys:find("secured\2", 1, true) and "secured" or "items"
        n.polls[who] = n.polls[who] + 1
      end
    end
    return n
  end

  -- In these four seconds a client in back-off asks some six times for the same thing. Twice that is no spin; one that does not back off,
  -- or only a little, is far above.
  local LIMIT = 20

  for _, path in ipairs { "/nacos/v1/cs/configs/listener", "/nacos/v1/cs/configs", "/nacos/*" } do
    it(path .. " may answer what it wants", function()
      for name, fault in pairs(faults) do
        local server, all = servers[name], { path = path }
        for k, v in pairs(fault) do
          all[k] = v
        end
        server:clear_faults()
        server:clear_requests()
        server:faults(all)
        local many = lab.client(server)
        for i = 1, WATCHES do
          many:add_config_watcher("item" .. i, nil, callback)
        end
        lab.client(server):add_config_watcher("alone", nil, callback)
        lab.client(server, { username = "user", password = "pw" }):add_config_watcher("secured", nil, callback)
      end
      wait(SECONDS)
      local bad = {}
      for name, server in pairs(servers) do
        local n = count(server)
        local text = ("%s: at most %d reads of an item, %d, %d and %d polls, %d logins"):format(name, n.reads.most, n.polls.items,
          n.polls.alone, n.polls.secured, n.logins)
        if os.getenv("VERBOSE") then
          print(path, text)
        end
        local most = math.max(n.reads.most, n.polls.alone, n.polls.secured, n.logins)
        if most > LIMIT or n.polls.items > LIMIT * WATCHES / 2 then
          bad[#bad + 1] = text
        end
      end
      lab.close_all()
      assert.equal("", table.concat(bad, "\n"))
    end)
  end

  it("many watches share their pauses and their lines in the log, and all go on when one read succeeds", function()
    local KEYS, running = 300, {}
    for _, name in ipairs { "an empty 200", "404", "403", "400" } do
      local fault, server = { path = "/nacos/*" }, servers[name]
      for k, v in pairs(faults[name]) do
        fault[k] = v
      end
      server:clear_faults()
      server:faults(fault)
      server:clear_requests()
      local log = support.tmpdir()
      local many, one = lab.client(server, { log_level = "WARN", log_dir = log }), { server = server, log = log, seen = 0 }
      for i = 1, KEYS do
        many:add_config_watcher("item" .. (i <= WATCHES and i or "none" .. i), nil, function() one.seen = one.seen + 1 end)
      end
      running[name] = one
    end
    wait(2)
    for _, one in pairs(running) do
      one.before = one.server:requests().total
    end
    wait(SECONDS)
    local bad = {}
    for name, one in pairs(running) do
      local n = one.server:requests().total - one.before
      local _, logged = support.read(one.log .. "/lunacos.log"):gsub("\n", "")
      if n > 40 * SECONDS or logged < 1 or logged > 20 then
        bad[#bad + 1] = ("%s: %.0f requests, %d lines"):format(name, n, logged)
      end
      one.server:clear_faults()
    end
    assert.equal("", table.concat(bad, "\n"))
    support.eventually(function()
      for name, one in pairs(running) do
        if one.seen < WATCHES then
          return false, name .. ": " .. one.seen
        end
      end
      return true
    end, 20)
  end)

  it("a read asks a few times only", function()
    local bad, tasks = {}, {}
    for name, server in pairs(servers) do
      local fault = { path = "/nacos/*" }
      for k, v in pairs(faults[name]) do
        fault[k] = v
      end
      server:clear_faults()
      server:faults(fault)
      server:clear_requests()
      tasks[#tasks + 1] = function()
        lab.client(server):get_config("item1", nil, 1, true)
        local n = server:requests().total
        if n < 1 or n > 8 then
          bad[#bad + 1] = ("%s: %.0f requests for one read of a second"):format(name, n)
        end
      end
    end
    lab.together(table.unpack(tasks))
    assert.equal("", table.concat(bad, "\n"))
  end)

  it("no server at all is asked for in growing intervals", function()
    local rogue = lab.rogue("deaf")
    local client = lab.client(rogue.base)
    for i = 1, 50 do
      client:add_config_watcher("item" .. i, nil, callback)
    end
    support.eventually(function() return #rogue:lines() > 0 end)
    local before = #rogue:lines()
    wait(2.5)
    local n = #rogue:lines() - before
    -- fifty reads at first, then one poll for all
    assert.is_true(n >= 1 and n < 200, n .. " connections in 2.5 s")
    rogue:stop()
    local cpu = os.clock()
    wait(1)
    assert.is_true(os.clock() - cpu < 0.5, "and costs no processor time")
  end)
end)

-- ---- files -------------------------------------------------------------------------------------------------------------------------

describe("a snapshot", function()
  local server

  setup(function()
    server = support.start_server()
    assert(lab.client(server):publish_config("item", nil, ("value"):rep(1000), { type = "text" }))
  end)
  teardown(function()
    server:stop()
  end)
  after_each(function()
    lab.close_all()
    server:clear_faults()
  end)

  local VALUE = ("value"):rep(1000)

  ---A client with a log, whose snapshot of "item" is written.
  local function with_snapshot()
    local log = support.tmpdir()
    local client = lab.client(server, { log_level = "WARN", log_dir = log })
    assert.equal(VALUE, (client:get_config("item")))
    local path = lab.snapshot(client, "item")
    support.eventually(function() return support.read(path) == VALUE end)
    return client, path, function() return support.read(log .. "/lunacos.log") or "" end
  end

  local function break_server()
    server:faults { path = "/nacos/*", status = 503, body = "down" }
  end

  it("that cannot be read counts as absent, is logged, and is replaced when the server answers", function()
    for what, damage in pairs {
      directory = function(path) os.execute("rm " .. path .. " && mkdir " .. path) end,
      fifo = function(path) os.execute("rm " .. path .. " && mkfifo " .. path) end,
      ["link to itself"] = function(path) os.execute("rm " .. path .. " && ln -s item+DEFAULT_GROUP+ " .. path) end,
      ["too large"] = function(path) os.execute("truncate -s 2G " .. path) end,
    } do
      local client, path, log = with_snapshot()
      damage(path)
      break_server()
      local took, content, err = lab.timed(client.get_config, client, "item", nil, 1)
      assert.is_nil(content, what)
      assert.equal("unavailable", err.code)
      assert.is_true(took < 1.5)
      assert.matches("item+DEFAULT_GROUP+", log(), 1, true)
      local seen, callback = lab.recorder()
      client:add_config_watcher("item", nil, callback)
      nacos.step(0.1)
      assert.equal(0, seen.n)
      server:clear_faults()
      support.eventually(function() return seen.n == 1 end, 10)
      assert.equal(VALUE, seen[1])
      client:close()
      os.execute("rm -rf " .. path)
    end
  end)

  it("of a folder that cannot be made or written is logged, never fatal", function()
    for what, make in pairs {
      ["a file"] = function(path) support.write(path, "not a folder") end,
      ["below a file"] = function(path) support.write(path, "x") return path .. "/below" end,
      ["a device"] = function() return "/dev/null/snapshots" end,
      ["in /proc"] = function() return "/proc/self/snapshots" end,
    } do
      local log = support.tmpdir()
      local base = support.tmpdir() .. "/snapshot"
      base = make(base) or base
      local client = lab.client(server, { log_level = "WARN", log_dir = log, snapshot_base = base })
      assert.equal(VALUE, (client:get_config("item")), what)
      local seen, callback = lab.recorder()
      client:add_config_watcher("item", nil, callback)
      support.eventually(function() return seen.n == 1 end)
      client:close()
      assert.matches("snapshot not written", support.read(log .. "/lunacos.log"), what)
    end
  end)

  it("on a full disk is logged, the old one stays whole, and the next value is written", function()
    -- a limit of the file size stands for the full disk: the write comes back short and then fails in the same way
    local folder = support.tmpdir()
    local program = [[
      local nacos = require "nacos"
      local client = nacos.client {
        server_addresses = "]] .. server.address .. [[", log_level = "WARN", log_dir = ".", snapshot_base = "s",
      }
      print(client:get_config("%s") ~= nil)
      client:close()
    ]]
    assert(lab.client(server):publish_config("grows", nil, "small", { type = "text" }))
    assert.equal(0, (lab.lua(program:format("grows"), { cwd = folder, before = "ulimit -f 8;" })))
    assert.equal("small", support.read(folder .. "/s/grows+DEFAULT_GROUP+"))
    assert(lab.client(server):publish_config("grows", nil, ("large"):rep(10000), { type = "text" }))
    local code, out, err = lab.lua(program:format("grows"), { cwd = folder, before = "ulimit -f 8;" })
    assert.equal(0, code, err)
    assert.equal("true\n", out)
    assert.equal("small", support.read(folder .. "/s/grows+DEFAULT_GROUP+"))
    local _, files = support.run { "ls", "-A", folder .. "/s" }
    assert.equal("grows+DEFAULT_GROUP+\n", files, "no temporary file is left behind")
    assert.matches("snapshot not written", support.read(folder .. "/lunacos.log"))
    assert.equal(0, (lab.lua(program:format("grows"), { cwd = folder })))
    assert.equal(("large"):rep(10000), support.read(folder .. "/s/grows+DEFAULT_GROUP+"))
  end)

  it("that somebody cut short is not taken for longer than until a server answers", function()
    local client, path = with_snapshot()
    support.write(path, "val")
    assert.same({ VALUE, "server" }, { client:get_config("item"), (select(2, client:get_config("item"))) })
    client:close()
    client = lab.client(server, { snapshot_base = client.folder .. "/snapshot" })
    client:get_config("item")
    client:close()
    assert.equal(VALUE, support.read(path))
  end)

  it("is whole, old or new, after a kill -9 at any moment", function()
    local folder = support.tmpdir()
    local program = lab.prelude .. [[
      local nacos = require "nacos"
      local client = nacos.client {
        server_addresses = "]] .. server.address .. [[", log_level = "OFF", snapshot_base = "]] .. folder .. [[/s",
      }
      nacos.run(function()
        for i = 1, 1e9 do
          local letter = string.char(97 + i % 26)
          client:publish_config("killed", nil, letter:rep(300000), { type = "text" })
          client:get_config("killed")
          if i % 10 == 0 then
            nacos.sleep(0.06) -- the snapshot is written between the calls
          end
        end
      end)
    ]]
    local script = support.tmpdir() .. "/writer.lua"
    support.write(script, program)
    local path, whole = folder .. "/s/killed+DEFAULT_GROUP+", 0
    for round = 1, 12 do
      os.remove(path)
      local process = support.start { "lua5.4", script }
      support.eventually(function() return support.read(path) end, 20)
      local first = support.read(path)
      nacos.sleep((round % 7) * 0.011)
      process:kill9()
      local text = support.read(path)
      for _, content in ipairs { first, text } do
        assert.equal(300000, #content, "round " .. round)
        assert.equal(content:sub(1, 1):rep(300000) == content, true, "round " .. round)
        whole = whole + 1
      end
    end
    assert.equal(24, whole)
    -- what a killed process left half-written must not be in anybody's way, nor be taken for a snapshot
    local client = lab.client(server, { snapshot_base = folder .. "/s" })
    assert(client:publish_config("killed", nil, "last", { type = "text" }))
    client:get_config("killed")
    client:close()
    assert.equal("last", support.read(path))
  end)
end)

describe("a failover file", function()
  after_each(lab.close_all)

  it("that cannot be read is logged and the server is asked", function()
    local server, log = support.start_server(), support.tmpdir()
    local client = lab.client(server, { log_level = "WARN", log_dir = log })
    client:publish_config("item", nil, "value")
    os.execute("mkdir -p " .. lab.failover(client, "item"))
    local content, source = client:get_config("item")
    assert.same({ "value", "server" }, { content, source })
    assert.matches("item+DEFAULT_GROUP+", support.read(log .. "/lunacos.log"), 1, true)
    server:stop()
  end)
end)

describe("nacos.write_file", function()
  it("replaces a file, keeps its mode, or says why not", function()
    local folder = support.tmpdir()
    local path = folder .. "/file"
    assert.is_true(nacos.write_file(path, "one"))
    assert.equal("one", support.read(path))
    assert.is_true(nacos.write_file(path, "two", { mode = "0600" }))
    assert.is_true(nacos.write_file(path, "three\0\n"))
    assert.equal("three\0\n", support.read(path))
    assert.equal("600\n", (select(2, support.run { "stat", "-c", "%a", path })))
    local ok, err = nacos.write_file(folder .. "/no/such/folder", "x")
    assert.is_nil(ok)
    assert.matches("no/such/folder", err.message, 1, true)
    assert.is_nil((nacos.write_file(folder, "x")))
    local _, files = support.run { "ls", "-A", folder }
    assert.equal("file\n", files)
  end)
end)
