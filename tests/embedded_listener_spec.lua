--- The embedded server's long polls and connections, against what real 2.3–2.5 servers do.
-- @patient

local support = require "support"
local json = require "cjson.safe"
local embedded = require "embedded"

local CONFIGS, LISTENER, call, publish = embedded.CONFIGS, embedded.LISTENER, embedded.call, embedded.publish
local remove, md5, line, poll = embedded.remove, embedded.md5, embedded.line, embedded.poll
local poll_request, parked_poll = embedded.poll_request, embedded.parked_poll
local assert_error_page, assert_caused = embedded.assert_error_page, embedded.assert_caused

describe("the embedded server: polls", function()
  local server
  local idle, holds -- they last ten seconds and more, so they run beside everything else

  setup(function()
    server = support.start_server()
    idle = support.start { "bash", "-c", ([[
      exec 3<>/dev/tcp/127.0.0.1/%d; printf 'GET /nacos/v1/cs/health HTTP/1.1\r\nHost: x\r\n\r\n' >&3
      start=$(date +%%s%%N); cat <&3; echo; echo $((($(date +%%s%%N) - start) / 1000000))]]):format(server.port) }
    holds = {}
    for timeout, seconds in pairs { [0] = 10, [1000] = 10, [10400] = 10, [12500] = 12 } do
      holds[parked_poll(server, line("hold" .. timeout, ""), timeout)] = seconds
    end
  end)

  teardown(function()
    if server then
      server:stop()
    end
  end)

  describe("the listener", function()
    it("answers at once with every stale key, encoded, and one newline", function()
      publish(server, "l1", "x")
      publish(server, "l:2", "y", { tenant = "t-3" })
      local lines = line("l1", "") .. line("l:2", "wrong", "t-3") .. line("l1x", md5("x")) .. line("l1y", "")
      local got = poll(server, lines, 30000)
      assert.equal(200, got.status)
      local keys = {}
      for key in got.body:match("^(.*)\n$"):gmatch("(.-%%01)") do
        keys[key] = true
      end
      assert.same({ ["l1%02G%01"] = true, ["l%3A2%02G%02t-3%01"] = true, ["l1x%02G%01"] = true }, keys)
      assert.equal("no-cache,no-store", got.headers["cache-control"])
      assert.equal("application/json;charset=UTF-8", got.headers["content-type"])
      assert.equal(tostring(#got.body), got.headers["content-length"])
    end)

    it("compares md5 letter by letter, and treats an empty tenant as none", function()
      publish(server, "l2", "x")
      assert.equal("l2%02G%01\n", poll(server, line("l2", md5("x"):upper()), 30000).body)
      assert.equal("l2%02G%01\n", poll(server, line("l2", "", ""), 30000).body)
      -- of a key named twice the last line counts
      assert.equal("l2%02G%01\n", poll(server, line("l2", md5("x")) .. line("l2", "wrong"), 30000).body)
    end)

    it("takes the lines from the query too, and decodes them twice", function()
      publish(server, "l3", "x")
      local got = call(server, { "POST", LISTENER, query = { ["Listening-Configs"] = "l3%02G%02%01" },
        headers = { ["Long-Pulling-Timeout"] = "30000" } })
      assert.equal("l3%02G%01\n", got.body)
    end)

    it("wakes a parked poll for a creation, a change and a removal, with the one key that changed", function()
      local lines = line("w1", "") .. line("w2", "", "t4")
      local waiting = parked_poll(server, lines)
      publish(server, "w1", "x")
      assert.equal("w1%02G%01\n", waiting().body)
      waiting = parked_poll(server, line("w1", md5("x")) .. line("w2", "", "t4"))
      publish(server, "w2", "y", { tenant = "t4" })
      assert.equal("w2%02G%02t4%01\n", waiting().body)
      waiting = parked_poll(server, line("w1", md5("x")))
      remove(server, "w1")
      local got = waiting()
      assert.equal("w1%02G%01\n", got.body)
      assert.truthy(got.seconds < 5)
    end)

    it("wakes only the pollers of the changed key, and tells of the other changes in the next poll", function()
      local both, other = line("m1", "") .. line("m2", ""), line("m3", "")
      local first, second = parked_poll(server, both), (parked_poll(server, both))
      local third, held = parked_poll(server, other)
      publish(server, "m2", "x")
      publish(server, "m1", "y")
      assert.equal("m2%02G%01\n", first().body)
      assert.equal("m2%02G%01\n", second().body)
      assert.truthy(held())
      assert.equal("m1%02G%01\n", poll(server, line("m1", "") .. line("m2", md5("x")), 30000).body)
      publish(server, "m3", "z")
      assert.equal("m3%02G%01\n", third().body)
    end)

    it("sleeps through an identical publish and a new type", function()
      publish(server, "s1", "x")
      local waiting, held = parked_poll(server, line("s1", md5("x")))
      publish(server, "s1", "x")
      publish(server, "s1", "x", { type = "json" })
      assert.truthy(held())
      publish(server, "s1", "y")
      assert.equal("s1%02G%01\n", waiting().body)
    end)

    it("holds max(10 s, timeout - 0.5 s) and then answers nothing", function()
      for wait, seconds in pairs(holds) do
        local got = wait(15)
        assert.same({ 200, "", "0" }, { got.status, got.body, got.headers["content-length"] })
        assert.truthy(got.seconds >= seconds - 0.01 and got.seconds < seconds + 0.5, got.seconds)
      end
    end)

    it("tells who listens", function()
      publish(server, "who", "x")
      local query = { dataId = "who", group = "G" }
      local function ask()
        return json.decode(call(server, { "GET", LISTENER, query = query }).body)
      end
      assert.same({ collectStatus = 200, lisentersGroupkeyStatus = {} }, ask())
      local waiting = parked_poll(server, line("who", md5("x")))
      assert.same({ ["127.0.0.1"] = md5("x") }, ask().lisentersGroupkeyStatus)
      publish(server, "who", "y")
      assert.equal("who%02G%01\n", waiting().body)
    end)

    it("does not wait with No-Hangup", function()
      local got = poll(server, line("n1", ""), 30000, { ["Long-Pulling-Timeout-No-Hangup"] = "true" })
      assert.same({ 200, "", "0" }, { got.status, got.body, got.headers["content-length"] })
      assert.truthy(got.seconds < 1)
    end)

    it("answers in headers when there is no timeout", function()
      publish(server, "old", "x")
      publish(server, "old", "x", { tenant = "t5" })
      for _, version in ipairs { "Client-Version;", "Client-Version: 2.0.3" } do
        local request = poll_request(line("old", "") .. line("old", "", "t5") .. line("old2", ""), nil)
        request.curl = { "-H", version }
        local got = call(server, request)
        assert.same({ 200, "", "old:G;old:G;", "old%02G%01old%02G%02t5%01" },
          { got.status, got.body, got.headers["probe-modify-response"], got.headers["probe-modify-response-new"] })
      end
      local newer = poll(server, line("old", ""), nil, { ["Client-Version"] = "3.0.0" })
      assert.same({ 200, "" }, { newer.status, newer.body })
      assert.is_nil(newer.headers["probe-modify-response"])
      local got = poll(server, line("old2", ""), nil)
      assert.same({ 200, "", "" }, { got.status, got.headers["probe-modify-response"], got.headers["probe-modify-response-new"] })
    end)

    it("refuses malformed lines", function()
      assert_caused(poll(server, "a\2G\1", 30000), 400, "invalid probeModify") -- two words
      assert_caused(poll(server, "", 30000), 400, "invalid probeModify")
      assert_caused(poll(server, "\1", 30000), 400, "invalid probeModify")
      assert_caused(call(server, { "POST", LISTENER, form = {} }), 400, "invalid probeModify")
      for _, lines in ipairs { "a\1", "a\2G\2\2t\2more\1", line("a", "") .. "\1" .. line("b", "") } do
        assert_error_page(poll(server, lines, 30000), 500, "Internal Server Error", "invalid probeModify", LISTENER)
      end
      assert.equal("Param 'dataId' is illegal, illegal characters should not appear in the param.\r\n",
        poll(server, line("a b", ""), 30000).body)
      assert.equal("Param 'namespaceId/tenant' is illegal, the param length should not exceed 64.\r\n",
        poll(server, line("a", "", ("t"):rep(200)), 30000).body)
      local twice = poll(server, "a%4\2G\2\1", 30000)
      assert.same({ 500, "close" }, { twice.status, twice.headers.connection })
      assert_caused(call(server, { "PUT", LISTENER }), 500, "Request method &#39;PUT&#39; not supported")
    end)

    it("ignores a last line without its end mark", function()
      local waiting = parked_poll(server, line("u1", "") .. "u2\2G\2wrong", 10000)
      publish(server, "u1", "x")
      assert.equal("u1%02G%01\n", waiting().body)
    end)

    it("minds a timeout that is no number only when it would wait", function()
      publish(server, "abc", "x")
      assert.equal("abc%02G%01\n", poll(server, line("abc", ""), "abc").body)
      assert_caused(poll(server, line("abc", md5("x")), "abc"), 400, 'For input string: "abc"')
    end)

    it("takes 10,000 keys and answers them in one body, but not 10,001", function()
      local lines = {}
      for i = 1, 10000 do
        lines[i] = line(("many-%05d-"):format(i) .. ("x"):rep(70), "stale")
      end
      local got = poll(server, table.concat(lines), 30000)
      assert.equal(200, got.status)
      assert.equal("chunked", got.headers["transfer-encoding"])
      local _, count = got.body:gsub("many%-%d%d%d%d%d%-x+%%02G%%01", "")
      assert.equal(10000, count)
      assert.truthy(#got.body > 850000)
      assert_caused(poll(server, table.concat(lines) .. line("one-more", ""), 30000), 400, "invalid probeModify")
    end)

    it("keeps a poll whose client hung up until its time is up, as real servers do", function()
      local own = support.start_server() -- one where nothing else comes and goes
      local gone = call(own, { "POST", LISTENER, form = { ["Listening-Configs"] = line("gone", "") },
        headers = { ["Long-Pulling-Timeout"] = "30000" }, curl = { "--max-time", "0.3" } })
      assert.equal(0, gone.status)
      assert.equal(1, own:stats().polls_held)
      publish(own, "gone", "x")
      assert.equal(0, own:stats().polls_held)
      own:stop()
    end)
  end)

  describe("10,000 polls", function()
    it("are held at once, and a change finds its own", function()
      local own = support.start_server()
      local code, out, err = support.run({ support.build .. "/hold_polls", tostring(own.port) })
      assert.equal("", err)
      assert.equal(0, code)
      assert.matches("^10000 polls held", out)
      local kilobytes = tonumber(support.read("/proc/" .. own.pid .. "/status"):match("VmRSS:%s*(%d+)"))
      local limit = support.build:find("[at]san") and 1000000 or 150000 -- about 60,000 without a sanitizer
      assert.truthy(kilobytes < limit, kilobytes .. " kB")
      assert.equal(0, own:stop())
    end)
  end)

  describe("connections", function()
    it("carry 100 answers", function()
      local _, out = support.run({ "curl", "-sS", "-o", "/dev/null", "-D", "-", server.base .. "/nacos/v1/cs/health?[1-101]" })
      local closes, count = {}, 0
      for head in out:gmatch("HTTP/1%.1 200.-\r\n\r\n") do
        count = count + 1
        closes[#closes + 1] = head:find("Connection: close", 1, true) and count or nil
      end
      assert.same({ 101, { 100 } }, { count, closes })
    end)

    it("end with 400, 500 and 501 and go on after 403 and 404", function()
      assert.equal("close", call(server, { "GET", "/nacos/v1/ns/nope" }).headers.connection)
      for path, connects in pairs { [CONFIGS .. "?dataId=absent&group=G"] = 1, [CONFIGS .. "?dataId=absent"] = 2 } do
        local _, out = support.run({ "curl", "-sS", "-o", "/dev/null", "-w", "%{num_connects} ", server.base .. path,
          "-o", "/dev/null", server.base .. path })
        local n = 0
        for connected in out:gmatch("%d") do
          n = n + tonumber(connected)
        end
        assert.equal(connects, n)
      end
    end)

    it("are closed after 60 s without a request", function()
      idle:wait(70)
      local out = idle:stdout()
      assert.matches("\r\n\r\nUP\n%d+\n$", out)
      local ms = tonumber(out:match("(%d+)\n$"))
      assert.truthy(ms >= 59500 and ms < 62500, ms)
    end)
  end)
end)
