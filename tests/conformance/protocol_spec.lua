--- The server itself, asked by curl: that the embedded one answers what real ones answer, in all that the client depends on.
-- luacheck: std lua54+busted

local json = require "cjson.safe"
local support = require "support"
local target = require "conformance.target"

local v3 = target.v3_only
local CONFIGS, LISTENER = "/v1/cs/configs", "/v1/cs/configs/listener"

---Publish and wait until a read shows it.
local function put(data_id, group, content, params)
  params = params or {}
  params.dataId, params.group, params.content = data_id, group, content
  local status, body = target.request("POST", CONFIGS, params)
  assert.are.equal("200 true", status .. " " .. body)
  support.eventually(function()
    return target.content(data_id, group, params.tenant) == content
  end)
end

---lines: { {data_id, group, md5 [, namespace]}, … }
local function listening(lines)
  local parts = {}
  for i, line in ipairs(lines) do
    parts[i] = table.concat(line, "\2") .. "\1"
  end
  return table.concat(parts)
end

local function poll(lines, headers, tenant)
  headers = headers or { ["Long-Pulling-Timeout"] = "30000" }
  return target.request("POST", LISTENER, { ["Listening-Configs"] = listening(lines), tenant = tenant }, headers)
end

local AT_ONCE = { ["Long-Pulling-Timeout"] = "30000", ["Long-Pulling-Timeout-No-Hangup"] = "true" }
local MD5_X = "9dd4e461268c8034f5c8564e155c67a6"

if target.serves_v1 then
  describe("v1 of " .. target.name, function()
    local group, held

    setup(function()
      group = target.group()
      -- polls that nothing wakes, while the other tests run: the server must answer them by itself after 10 s
      held = {}
      local token = target.auth and select(2, target.login(target.username, target.password))
      for _, header in ipairs { "10000", "1000" } do
        local words = { "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{time_total}",
          "--max-time", "20", "-H", "Long-Pulling-Timeout: " .. header,
          "-d", "Listening-Configs=nobody%02" .. group .. "%02%01", target.url .. LISTENER }
        if token then
          table.insert(words, 2, "-HaccessToken: " .. token)
        end
        held[#held + 1] = support.start(words)
      end
    end)

    it("reads", function()
      put("r", group, "x", { type = "json" })
      local headers = support.tmpdir() .. "/headers"
      local words = { "curl", "-sS", "-D", headers, "-o", "/dev/null", target.url .. CONFIGS .. "?dataId=r&group=" .. group }
      if target.auth then
        table.insert(words, 2, "-HaccessToken: " .. select(2, target.login(target.username, target.password)))
      end
      assert.are.equal(0, (support.run(words)))
      local text = support.read(headers):lower()
      assert.matches("^http/1%.1 200", text)
      assert.matches("content%-md5: " .. MD5_X, text)
      assert.matches("config%-type: json", text)
      assert.matches("last%-modified: ", text)
      assert.matches("transfer%-encoding: chunked", text)
    end)

    it("says what it refuses", function()
      put("one", group, "x")
      local cas = { casMd5 = "0123456789abcdef0123456789abcdef" }
      local illegal, conflict = "^Param 'dataId' is illegal, ", v3 and "^false$" or "Cas publish fail, server md5 may have changed"
      -- method, parameters, headers, status and a pattern of the body
      local cases = {
        { "GET", { dataId = "absent", group = group }, nil, 404, "^config data not exist\n$" },
        { "GET", { group = group }, nil, v3 and 400 or 500, "dataId" },
        { "GET", { dataId = "a b", group = group }, nil, 400, illegal .. "illegal characters should not appear in the param" },
        { "GET", { dataId = ("i"):rep(257), group = group }, nil, 400, illegal .. "the param length should not exceed 256%.\r\n$" },
        { "POST", { dataId = "one", group = group, content = "y" }, cas, 500, conflict },
        { "POST", { dataId = "one", group = group, content = "  " }, nil, { 400, 500 }, "content is blank" },
        { "POST", { dataId = "one", group = group }, nil, v3 and 400 or 500, "content" },
        { "POST", { dataId = "one", group = group, content = ("x"):rep(2097152) }, nil, v3 and 400 or 500, "dataId" },
        { "DELETE", { dataId = "absent", group = group }, nil, 200, "^true$" },
      }
      for i, case in ipairs(cases) do
        local method, params, headers, wanted, pattern = table.unpack(case, 1, 5)
        local status, body = target.request(method, CONFIGS, params, headers)
        local what = ("case %d: %d %s"):format(i, status, body)
        if type(wanted) == "table" then -- 2.3.2 says 500, 2.5 and 3.x say 400
          assert.is_true(status == wanted[1] or status == wanted[2], what)
        else
          assert.are.equal(wanted, status, what)
        end
        assert.is_truthy(body:match(pattern), what)
      end
      assert.are.equal("x", target.content("one", group))
      assert.are.equal(404, (target.request("GET", "/v1/cs/nothing-here")))
      assert.are.equal(target.serves_v3 and 200 or 404, (target.request("GET", "/v3/admin/core/state")))
    end)

    it("stores a missing type as text, and a right md5 lets a publish pass", function()
      put("t", group, "x", { type = "json" })
      local status, body = target.request("POST", CONFIGS, { dataId = "t", group = group, content = "y" }, { casMd5 = MD5_X })
      assert.are.equal("200 true", status .. " " .. body)
      support.eventually(function()
        return target.content("t", group) == "y"
      end)
      if not v3 then
        status, body = target.request("GET", CONFIGS, { dataId = "t", group = group, show = "all" })
        assert.are.equal(200, status)
        assert.are.equal("text", json.decode(body).type)
      end
    end)

    it("lists", function()
      for i = 1, 3 do
        put("list-" .. i, group, "x" .. i, { config_tags = "t" })
      end
      local params = { search = "blur", dataId = "list-*", group = group, pageNo = 1, pageSize = 2 }
      local status, body = target.request("GET", CONFIGS, params)
      if v3 then
        assert.are.equal(410, status)
        params.groupName, params.group, params.namespaceId = params.group, nil, "public"
        status, body = target.request("GET", "/v3/admin/cs/config/list", params)
      end
      assert.are.equal(200, status, body)
      local page = json.decode(body)
      page = page.data or page
      assert.are.same({ 3, 1, 2, 2 }, { page.totalCount, page.pageNumber, page.pagesAvailable, #page.pageItems })
      assert.are.equal("string", type(page.pageItems[1].id))
      assert.is_truthy(page.pageItems[1].dataId:match("^list%-%d$"))
    end)

    it("answers a poll at once when a line is stale, and names exactly those", function()
      put("p1", group, "x")
      put("p2", group, "x")
      put("p3", group, "x", { tenant = "ns-p" })
      local lines = { { "p1", group, MD5_X }, { "p2", group, "" }, { "p-absent", group, "" } }
      assert.are.equal("200 p2%02" .. group .. "%01\n", ("%d %s"):format(poll(lines)))
      lines = { { "p1", group, MD5_X }, { "p-absent", group, MD5_X } }
      assert.are.equal("200 p-absent%02" .. group .. "%01\n", ("%d %s"):format(poll(lines)))
      lines = { { "p3", group, "", "ns-p" } }
      assert.are.equal("200 p3%02" .. group .. "%02ns-p%01\n", ("%d %s"):format(poll(lines, nil, "ns-p")))
      lines = { { "p1", group, MD5_X }, { "p-absent", group, "" } }
      assert.are.equal("200 ", ("%d %s"):format(poll(lines, AT_ONCE)))
      assert.are.equal("200 ", ("%d %s"):format(poll({ { "p3", group, MD5_X, "ns-p" } }, AT_ONCE, "ns-p")))
      lines = { { "p1", group, MD5_X:upper() } }
      assert.are.equal("200 p1%02" .. group .. "%01\n", ("%d %s"):format(poll(lines)))
    end)

    it("takes 10,000 keys in a poll and no more, and refuses what is no poll", function()
      local lines = {}
      for i = 1, 10000 do
        lines[i] = { "key-" .. i, group, "" }
      end
      assert.are.equal("200 ", ("%d %s"):format(poll(lines, AT_ONCE)))
      lines[#lines + 1] = { "one-more", group, "" }
      local status, body = poll(lines, AT_ONCE)
      assert.are.equal(400, status)
      assert.matches("invalid probeModify", body)
      status, body = target.request("POST", LISTENER, {}, AT_ONCE)
      assert.are.equal(400, status)
      assert.matches("invalid probeModify", body)
    end)

    if target.auth then
      it("refuses who has no right, in words that tell why", function()
        local query = { dataId = "x", group = group }
        local status, body = target.raw("GET", CONFIGS, query)
        assert.are.equal(403, status)
        assert.are.equal(403, json.decode(body).status)
        assert.matches("[Uu]ser not found!", json.decode(body).message)
        status, body = target.raw("GET", CONFIGS, query, { accessToken = "garbage" })
        assert.are.equal(403, status)
        assert.matches("token invalid!", json.decode(body).message)
        status = target.login("nacos", "wrong")
        assert.are.equal(v3 and 500 or 403, status)
        status = target.login("nobody", "x")
        assert.are.equal(500, status)
        local token
        status, token = target.login("nacos", "nacos")
        assert.are.equal(200, status)
        assert.are.equal(404, (target.raw("GET", CONFIGS, query, { accessToken = token })))
        assert.are.equal(404, (target.raw("GET", CONFIGS, query, { Authorization = "Bearer " .. token })))
        query.accessToken = token
        assert.are.equal(404, (target.raw("GET", CONFIGS, query)))
        query.accessToken = nil
        support.eventually(function()
          status, body = target.raw("GET", CONFIGS, query, { accessToken = token })
          return status ~= 404
        end, 9)
        assert.are.equal(403, status)
        assert.matches("token expired!", json.decode(body).message)
      end)
    end

    it("holds a poll for 10 s at least", function()
      for _, process in ipairs(held) do
        assert.are.equal(0, process:wait(20))
        local status, size, seconds = process:stdout():match("^(%d+) (%d+) ([%d.]+)")
        assert.are.same({ "200", "0" }, { status, size })
        assert.is_true(tonumber(seconds) > 9.9 and tonumber(seconds) < 10.9, "answered after " .. seconds .. " s")
      end
    end)
  end)
end

if target.serves_v3 then
  describe("v3 of " .. target.name, function()
    local CLIENT, ADMIN, INSTANCE, LIST =
      "/v3/client/cs/config", "/v3/admin/cs/config", "/v3/client/ns/instance", "/v3/client/ns/instance/list"

    local function ask(method, path, params, headers)
      local status, body = target.request(method, path, params, headers)
      return status, json.decode(body) or {}, body
    end
    ---Each case: method, path, parameters, status, code (nil: not of that form), pattern of the body, headers
    local function refuses(cases)
      for i, case in ipairs(cases) do
        local method, path, params, wanted, code, pattern, headers = table.unpack(case, 1, 7)
        local status, answer, body = ask(method, path, params, headers)
        local what = ("case %d: %d %s"):format(i, status, body)
        assert.are.equal(wanted, status, what)
        assert.are.equal(code, answer.code, what)
        assert.is_truthy(body:match(pattern), what)
      end
    end

    it("reads, publishes, removes and lists", function()
      local group = target.group()
      local function publish(content, headers)
        return ask("POST", ADMIN, { dataId = "a", groupName = group, content = content, type = "json" }, headers)
      end
      local status, answer, body = publish("x")
      assert.are.equal(200, status, body)
      assert.are.same({ code = 0, message = "success", data = true }, answer)
      local data
      support.eventually(function()
        status, answer, body = ask("GET", CLIENT, { dataId = "a", groupName = group, namespaceId = "public" })
        data = answer.data
        return status == 200 and answer.code == 0, body
      end)
      assert.are.same({ "x", MD5_X, "json" }, { data.content, data.md5, data.contentType })
      local one = { dataId = "absent", groupName = group }
      refuses {
        { "GET", CLIENT, one, 200, 20004, "resource not found" },
        { "GET", ADMIN, one, 404, 20004, "resource not found" },
        { "DELETE", ADMIN, one, 200, 0, "true" },
        { "GET", CLIENT, { groupName = group }, 400, nil, "^caused: Required parameter 'dataId'" },
        { "GET", CLIENT, { dataId = "a b", groupName = group }, 400, nil, "^Param 'dataId' is illegal" },
        { "POST", CLIENT, one, 405, nil, "is not supported" },
        { "GET", "/v3/client/cs/nothing-here", {}, 404, nil, "No endpoint" },
        { "POST", ADMIN, { dataId = "a", groupName = group, content = "y" }, 500, 20005, "md5 may have changed",
          { casMd5 = "0123456789abcdef0123456789abcdef" } },
      }
      local params = { dataId = "*", groupName = group, search = "blur", pageNo = 1, pageSize = 9 }
      answer = select(2, ask("GET", ADMIN .. "/list", params))
      local item = answer.data.pageItems[1]
      assert.are.same({ 1, "a", group }, { answer.data.totalCount, item.dataId, item.groupName })
    end)

    it("registers, takes beats and lists", function()
      local service = "v3-" .. target.group()
      local one = { serviceName = service, ip = "10.0.0.1", port = 80 }
      local beat = { serviceName = service, ip = "10.0.0.1", port = 80, heartBeat = "true" }
      refuses {
        { "GET", LIST, { serviceName = service }, 200, 0, '"data":%[%]' },
        { "POST", INSTANCE, beat, 200, 21003, "instance not found" },
        { "POST", INSTANCE, { serviceName = service, port = 80 }, 400, 10000, "parameter missing" },
        { "POST", INSTANCE, { serviceName = service, ip = "10.0.0.1", port = 80, weight = -1 }, 400, 21001, "" },
        { "DELETE", INSTANCE, one, 200, 0, '"ok"' },
        { "POST", INSTANCE, one, 200, 0, '"ok"' },
        { "POST", INSTANCE, beat, 200, 0, '"ok"' },
      }
      local host
      support.eventually(function()
        local _, answer, body = ask("GET", LIST, { serviceName = service })
        host = answer.data[1]
        return host, body
      end)
      assert.are.same({ "10.0.0.1", 80, true, true, "DEFAULT_GROUP@@" .. service },
        { host.ip, host.port, host.healthy, host.ephemeral, host.serviceName })
    end)

    it("tells its state to everybody, and refuses who has no right", function()
      local status, body = target.raw("GET", "/v3/admin/core/state")
      assert.are.equal(200, status)
      assert.matches("^3%.", json.decode(body).data.version)
      if target.auth then
        for _, path in ipairs { CLIENT, ADMIN } do
          status, body = target.raw("GET", path, { dataId = "a", groupName = "G" })
          assert.are.equal(403, status)
          assert.matches("User not found!", json.decode(body).message, 1, true)
        end
        status, body = target.raw("POST", "/v3/auth/user/login", { username = "nacos", password = "nacos" })
        assert.are.equal(200, status)
        assert.is_string(json.decode(body).accessToken)
      end
    end)

    if not target.serves_v1 then
      it("answers the old paths as 3.2 does", function()
        refuses {
          { "GET", CONFIGS, { dataId = "a", group = "G" }, 404, nil, "No endpoint" },
          { "POST", LISTENER, {}, 404, nil, "No endpoint" },
          { "GET", "/v2/cs/config", {}, 404, nil, "No endpoint" },
          { "GET", "/v1/ns/instance/list", { serviceName = "s" }, 501, nil, "no such api" },
          { "PUT", "/v1/ns/instance/beat", { serviceName = "s" }, 501, nil, "no such api" },
        }
        assert.are.equal(200, (target.raw("GET", "/v1/ns/operator/metrics")))
      end)
    end
  end)
end

teardown(target.stop)
