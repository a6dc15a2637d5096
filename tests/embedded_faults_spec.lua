--- What the embedded server does wrong when told to, and what it remembers.

local support = require "support"
local json = require "cjson.safe"
local embedded = require "embedded"

local CONFIGS, LISTENER, call, publish = embedded.CONFIGS, embedded.LISTENER, embedded.call, embedded.publish
local read, remove, line, poll = embedded.read, embedded.remove, embedded.line, embedded.poll
local parked_poll = embedded.parked_poll

describe("the embedded server: faults", function()
  local server

  setup(function()
    server = support.start_server()
  end)

  teardown(function()
    if server then
      server:stop()
    end
  end)

  describe("faults", function()
    local PATH = CONFIGS .. "?dataId=fault&group=G"
    local whole

    local function get(path)
      return call(server, { "GET", path or PATH })
    end

    before_each(function()
      server:clear_faults()
      publish(server, "fault", "content")
      whole = whole or #select(2, support.run({ "curl", "-sS", "--raw", "-i", server.base .. PATH }))
    end)

    teardown(function()
      server:clear_faults()
    end)

    it("replace the answer, so many times", function()
      server:faults { path = CONFIGS, status = 503, body = "busy", headers = { ["Retry-After"] = "1" }, times = 2 }
      for _ = 1, 2 do
        local got = get()
        assert.same({ 503, "busy", "1" }, { got.status, got.body, got.headers["retry-after"] })
      end
      assert.equal("content", get().body)
    end)

    it("apply by path, prefix, method and dataId", function()
      server:faults {
        { path = "/nacos/v1/cs/*", method = "DELETE", status = 502 },
        { path = CONFIGS, data_id = "fault2", status = 504 },
        { path = "/nacos/v1/cs/health", status = 503 },
      }
      assert.equal(200, get().status)
      assert.equal(502, remove(server, "fault").status)
      assert.equal("content", get().body) -- a replaced request does nothing
      assert.equal(504, read(server, "fault2").status)
      assert.equal(504, publish(server, "fault2", "x").status)
      assert.equal(503, call(server, { "GET", "/nacos/v1/cs/health" }).status)
      server:clear_faults()
      assert.equal(404, read(server, "fault2").status)
    end)

    it("delay the normal answer, or another one", function()
      server:faults { path = CONFIGS, delay = 0.3, times = 1 }
      local got = get()
      assert.equal("content", got.body)
      assert.truthy(got.seconds > 0.25 and got.seconds < 3, got.seconds) -- curl's clock is not the server's
      server:faults { path = CONFIGS, delay = 0.3, status = 500, times = 1 }
      got = get()
      assert.equal(500, got.status)
      assert.truthy(got.seconds > 0.25, got.seconds)
    end)

    it("cut the answer after so many bytes, at any byte", function()
      for _, n in ipairs { 0, 1, 12, 40, whole - 8, whole - 1 } do
        server:faults { path = CONFIGS, drop_at = n, times = 1 }
        local _, size = support.run { "bash", "-c", ([[
          exec 3<>/dev/tcp/127.0.0.1/%d; printf 'GET %s HTTP/1.1\r\nHost: x\r\n\r\n' >&3
          cat <&3 | wc -c]]):format(server.port, PATH) }
        assert.equal(n, tonumber(size))
      end
      assert.equal("content", get().body)
    end)

    it("do the request whose answer they cut", function()
      server:faults { path = CONFIGS, method = "POST", drop_at = 0, times = 1 }
      assert.equal(0, publish(server, "fault", "changed").status)
      assert.equal("changed", get().body)
    end)

    it("send garbage, a wrong length, a body without end", function()
      server:faults { path = CONFIGS, garbage = true, times = 1 }
      local got = get()
      assert.equal(0, got.status)
      assert.not_equal(0, got.code)
      server:faults { path = CONFIGS, length = 100, times = 1 }
      got = get()
      assert.same({ 18, "100", "content" }, { got.code, got.headers["content-length"], got.body })
      server:faults { path = CONFIGS, endless = true, times = 1 }
      local code, size = support.run({ "curl", "-sS", "--max-filesize", "100000000", "-o", "/dev/null", "-w", "%{size_download}",
        "--max-time", "0.5", server.base .. PATH })
      assert.not_equal(0, code)
      assert.truthy(tonumber(size) > 1000000, size)
    end)

    it("never answer, and let go when the client does", function()
      server:faults { path = CONFIGS, hang = true, times = 1 }
      local before = server:stats().connections
      assert.equal(28, call(server, { "GET", PATH, curl = { "--max-time", "0.4" } }).code)
      support.eventually(function() return server:stats().connections <= before end)
    end)

    it("apply to long polls too", function()
      server:faults { path = LISTENER, delay = 0.3, times = 1 }
      local got = poll(server, line("fault", ""), 30000)
      assert.equal("fault%02G%01\n", got.body)
      assert.truthy(got.seconds >= 0.3, got.seconds)
      server:faults { path = LISTENER, drop_at = 0, times = 1 }
      local waiting = parked_poll(server, line("fault-lp", ""))
      publish(server, "fault-lp", "x")
      assert.equal(52, waiting().code)
    end)

    it("are refused when they make no sense", function()
      for _, fault in ipairs { "{", "{}", '{"path":"/x","stauts":500}', '{"path":"/x","hang":true,"status":500}',
        '{"path":"/x","status":99}',
        '[{"path":"/nacos/*","hang":true},{"path":5}]', '{"path":"/x","times":0}', '{"path":"/x","headers":{"a":1}}' } do
        local got = call(server, { "POST", "/__lunacos/faults", form = fault })
        assert.equal(400, got.status)
        assert.is_string(json.decode(got.body).error)
      end
      assert.equal("content", get().body)
    end)

    it("are not served without --faults", function()
      local process = support.start({ support.lunacos, "server", "--port", "0" })
      local port = support.eventually(function() return process:stdout():match(":(%d+)/nacos ") end)
      assert.equal(404, (support.http("GET", "http://127.0.0.1:" .. port .. "/__lunacos/stats")))
      process:stop()
    end)
  end)

  describe("the request log", function()
    it("shows the requests as they came", function()
      server:clear_requests()
      call(server, { "POST", CONFIGS, query = { a = "1" }, form = "dataId=log&group=G&content=%41",
        headers = { ["X-Test"] = "yes" } })
      call(server, { "GET", "/nacos/nope" })
      local log = server:requests()
      assert.same({ 2, 2 }, { log.total, #log.requests })
      local first, second = log.requests[1], log.requests[2]
      assert.same({ 1, "POST", CONFIGS, "a=1", "dataId=log&group=G&content=%41", "yes", 200 },
        { first.n, first.method, first.path, first.query, first.body, first.headers["X-Test"], first.status })
      assert.same({ 2, "GET", "/nacos/nope", "", 404 }, { second.n, second.method, second.path, second.query, second.status })
      assert.not_equal(first.connection, second.connection)
      assert.truthy(math.abs(os.time() - first.time) < 5)
      server:clear_requests()
      assert.same({ total = 0, requests = {} }, server:requests())
    end)

    it("has no status while a poll waits, and at most 64 KiB of a body", function()
      server:clear_requests()
      local waiting = parked_poll(server, line("log2", ""))
      assert.is_nil(server:requests().requests[1].status)
      publish(server, "log2", ("x"):rep(100000))
      waiting()
      local log = server:requests().requests
      assert.equal(200, log[1].status)
      assert.equal(65536, #log[2].body)
    end)

    it("keeps the newest 10,000", function()
      server:clear_requests()
      support.run({ "curl", "-sS", "-Z", "--parallel-max", "4", "-o", "/dev/null", server.base .. "/nacos/v1/cs/health?[1-10100]" })
      local log = server:requests()
      assert.same({ 10100, 10000, 101, 10100 }, { log.total, #log.requests, log.requests[1].n, log.requests[10000].n })
    end)

    it("counts the bytes that came in", function()
      local before = server:stats()
      publish(server, "bytes", ("x"):rep(50000))
      local after = server:stats()
      assert.truthy(after.bytes_in - before.bytes_in > 50000 and after.bytes_in - before.bytes_in < 51000)
      assert.equal(before.configs + 1, after.configs)
    end)
  end)
end)
