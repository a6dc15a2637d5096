--- The v3 HTTP API of the embedded server, against what a real 3.1.0 answers.

local embedded = require "embedded"
local json = require "cjson.safe"
local support = require "support"

local call = embedded.call

describe("the embedded server: v3", function()
  local server, locked -- the second asks for a login

  local function decode(got)
    return assert(json.decode(got.body), got.body)
  end

  ---A call below /nacos/v3/. @return integer, table # status, answer
  local function v3(method, path, query, more)
    local request = { method, "/nacos/v3/" .. path, query = query }
    for name, value in pairs(more or {}) do
      request[name] = value
    end
    local got = call(request.server or server, request)
    return got.status, decode(got), got
  end

  local function success(data)
    return { code = 0, message = "success", data = data }
  end

  local function key(id, more)
    local query = { dataId = id, groupName = "G", namespaceId = "public" }
    for name, value in pairs(more or {}) do
      query[name] = value
    end
    return query
  end

  local function at(service, more)
    local query = { serviceName = service, groupName = "G", namespaceId = "public", ip = "10.0.0.1", port = "80" }
    for name, value in pairs(more or {}) do
      query[name] = value
    end
    return query
  end

  ---One call answers this.
  local function says(status, answer, ...)
    local got_status, got = v3(...)
    assert.same({ status, answer }, { got_status, got })
  end

  local function publish(id, content, more)
    says(200, success(true), "POST", "admin/cs/config", nil, { form = key(id, { content = content, type = more }) })
  end

  setup(function()
    server = support.start_server { "--push-delay", "0" }
    local password = support.tmpdir() .. "/password"
    support.write(password, "secret\n")
    locked = support.start_server { "--username", "dev", "--password-file", password }
  end)
  teardown(function()
    server:stop()
    locked:stop()
  end)

  it("publishes, reads, lists and removes", function()
    publish("d1", "a: 1 \u{1F600}", "yaml")
    local status, answer = v3("GET", "client/cs/config", key "d1")
    local data = answer.data
    assert.same({ 200, 0, "a: 1 \u{1F600}", "yaml", embedded.md5("a: 1 \u{1F600}"), true, 200 },
      { status, answer.code, data.content, data.contentType, data.md5, data.success, data.resultCode })
    data = select(2, v3("GET", "admin/cs/config", key "d1")).data
    assert.same({ "public", "G", "d1", "a: 1 \u{1F600}" }, { data.namespaceId, data.groupName, data.dataId, data.content })
    data = select(2, v3("GET", "admin/cs/config/list", { search = "blur", dataId = "d*", groupName = "", pageNo = "1" })).data
    assert.same({ 1, 1, 1, "d1", "G" },
      { data.totalCount, data.pageNumber, data.pagesAvailable, data.pageItems[1].dataId, data.pageItems[1].groupName })
    says(200, success(true), "DELETE", "admin/cs/config", key "d1")
    says(200, success(true), "DELETE", "admin/cs/config", key "d1")
  end)

  it("shares its configurations with v1, whatever public is called", function()
    publish("d2", "x")
    assert.equal("x", embedded.read(server, "d2", { group = "G" }).body)
    for _, namespace in ipairs { "", "public" } do
      local _, answer = v3("GET", "client/cs/config", key("d2", { namespaceId = namespace }))
      assert.equal("x", answer.data.content)
    end
  end)

  it("says what is absent with a code, with and without an HTTP status", function()
    says(200, { code = 20004, message = "resource not found", data = json.null }, "GET", "client/cs/config", key "none")
    says(404, { code = 20004, message = "resource not found", data = "Config not exist, please publish Config first." },
      "GET", "admin/cs/config", key "none")
  end)

  it("publishes only over the expected content", function()
    publish("d3", "one")
    local form = key("d3", { content = "two" })
    says(500, { code = 20005, message = "resource conflict", data = "Cas publish fail, server md5 may have changed." },
      "POST", "admin/cs/config", nil, { form = form, headers = { casMd5 = ("0"):rep(32) } })
    says(200, success(true), "POST", "admin/cs/config", nil, { form = form, headers = { casMd5 = embedded.md5("one") } })
  end)

  it("names parameters that are missing or wrong, to clients in the old words", function()
    says(400, { code = 10000, message = "parameter missing", data = "Required parameter 'content' type String is not present" },
      "POST", "admin/cs/config", nil, { form = key "d4" })
    local got = call(server, { "GET", "/nacos/v3/client/cs/config", query = { groupName = "G" } })
    assert.same({ 400, "caused: Required parameter 'dataId' type String is not present;" }, { got.status, got.body })
    got = call(server, { "GET", "/nacos/v3/client/cs/config", query = key "d!" })
    assert.same({ 400, "Param 'dataId' is illegal, illegal characters should not appear in the param.\r\n" },
      { got.status, got.body })
    says(400, { code = 20002, message = "parameter validate error",
      data = "Required parameter 'pageNo' should be positive integer, current is 0" },
      "GET", "admin/cs/config/list", { pageNo = "0" })
  end)

  it("registers, lists and deregisters", function()
    says(200, success("ok"), "POST", "client/ns/instance", nil, { form = at("s1", { weight = "2.5", metadata = '{"a":"b"}' }) })
    local list = select(2, v3("GET", "client/ns/instance/list", at "s1")).data
    assert.same({ 1, "10.0.0.1", 80, 2.5, "b", "G@@s1", "DEFAULT" },
      { #list, list[1].ip, list[1].port, list[1].weight, list[1].metadata.a, list[1].serviceName, list[1].clusterName })
    assert.is_nil(list[1].instanceId)
    local one = select(2, v3("GET", "admin/ns/instance", at "s1")).data
    assert.same({ 2.5, true, "DEFAULT" }, { one.weight, one.healthy, one.clusterName })
    says(200, success("ok"), "DELETE", "client/ns/instance", at "s1")
    says(200, success("ok"), "DELETE", "client/ns/instance", at "s1")
    says(200, success(json.empty_array or {}), "GET", "client/ns/instance/list", at "s1")
  end)

  it("lists the cluster DEFAULT when none is named, and all for a comma", function()
    for i, cluster in ipairs { "DEFAULT", "c1", "c2" } do
      v3("POST", "client/ns/instance", at("s2", { port = tostring(i), clusterName = cluster }))
    end
    for clusters, count in pairs { [""] = 1, ["c1"] = 1, ["c1,c2"] = 2, [","] = 3 } do
      local _, answer = v3("GET", "client/ns/instance/list", { serviceName = "s2", groupName = "G", clusterName = clusters })
      assert.equal(count, #answer.data, clusters)
    end
  end)

  it("takes beats of the instances it knows, and of no others", function()
    local unknown = { code = 21003, message = "instance not found", data = json.null }
    says(200, unknown, "POST", "client/ns/instance", at("s3", { heartBeat = "true" }))
    says(200, success("ok"), "POST", "client/ns/instance", at "s3")
    says(200, success("ok"), "POST", "client/ns/instance", at("s3", { heartBeat = "true" }))
    says(200, unknown, "POST", "client/ns/instance", at("s3", { heartBeat = "true", port = "81" }))
  end)

  it("modifies an instance", function()
    v3("POST", "client/ns/instance", at("s4", { metadata = '{"a":"b"}' }))
    says(200, success("ok"), "PUT", "admin/ns/instance", at("s4", { weight = "7", metadata = '{"x":"y"}' }))
    local one = select(2, v3("GET", "admin/ns/instance", at "s4")).data
    assert.same({ 7, { a = "b", x = "y" } }, { one.weight, one.metadata })
    says(404, { code = 20004, message = "resource not found", data = "no matched ip found!" },
      "GET", "admin/ns/instance", at("s4", { port = "81" }))
  end)

  it("refuses instances with the codes of 3.1.0", function()
    for field, answer in pairs {
      weight = { "-1", 21001, "weight error", "instance format invalid: The weights range from 0.0 to 10000.0" },
      metadata = { '{"preserved.heart.beat.interval":"9000","preserved.heart.beat.timeout":"2000"}', 21004, "instance error",
        "Instance 'heart beat interval' must less than 'heart beat timeout' and 'ip delete timeout'." },
      port = { "", 10000, "parameter missing", "Required parameter 'port' type Integer is not present" },
    } do
      says(400, { code = answer[2], message = answer[3], data = answer[4] },
        "POST", "client/ns/instance", at("s5", { [field] = answer[1] }))
    end
  end)

  it("finds no instance by a group in the name of its service", function()
    v3("POST", "client/ns/instance", at "s7")
    says(404, { code = 20004, message = "resource not found", data = "no matched ip found!" },
      "GET", "admin/ns/instance", at "G@@s7")
  end)

  it("refuses what fits no service with the codes of 3.1.0", function()
    local function named(name)
      return { serviceName = name, groupName = "G" }
    end
    v3("POST", "client/ns/instance", at "s8")
    local status, answer = v3("DELETE", "admin/ns/service", named "s8")
    assert.same({ 400, 21009, "service delete failure" }, { status, answer.code, answer.message })
    status, answer = v3("PUT", "admin/ns/instance", at "none")
    assert.same({ 400, 21004, "instance error" }, { status, answer.code, answer.message })
    status, answer = v3("GET", "admin/ns/instance", at "none")
    assert.same({ 404, 20004, "resource not found" }, { status, answer.code, answer.message })
    assert.matches("^no ips found", answer.data)
    status, answer = v3("POST", "client/ns/instance", at("s8", { ephemeral = "false" }))
    assert.same({ 400, 30000, "server error" }, { status, answer.code, answer.message })
    assert.matches("can't register persistent instance", answer.data, 1, true)
  end)

  it("creates, shows, changes, lists and removes services", function()
    local service = { serviceName = "s6", groupName = "G6", protectThreshold = "0.5", metadata = '{"k":"v"}' }
    says(200, success("ok"), "POST", "admin/ns/service", nil, { form = service })
    says(400, { code = 21007, message = "service already exist", data = "specified service G6@@s6 already exists!" },
      "POST", "admin/ns/service", nil, { form = service })
    service.protectThreshold = "0.25"
    says(200, success("ok"), "PUT", "admin/ns/service", nil, { form = service })
    local data = select(2, v3("GET", "admin/ns/service", { serviceName = "s6", groupName = "G6" })).data
    assert.same({ "s6", "G6", 0.25, "v", false },
      { data.serviceName, data.groupName, data.protectThreshold, data.metadata.k, data.ephemeral })
    data = select(2, v3("GET", "admin/ns/service/list", { pageNo = "1", pageSize = "10", groupNameParam = "G6" })).data
    assert.same({ 1, "s6", 0 }, { data.totalCount, data.pageItems[1].name, data.pageItems[1].ipCount })
    says(200, success("ok"), "DELETE", "admin/ns/service", { serviceName = "s6", groupName = "G6" })
    says(400, { code = 21008, message = "service not exist", data = "service G6@@s6 not found!" },
      "DELETE", "admin/ns/service", { serviceName = "s6", groupName = "G6" })
  end)

  it("tells its state to everybody", function()
    for _, path in ipairs { "liveness", "readiness" } do
      says(200, success("ok"), "GET", "admin/core/state/" .. path, nil, { server = locked })
    end
    local _, answer = v3("GET", "admin/core/state", nil, { server = locked })
    assert.same({ "true", "standalone" }, { answer.data.auth_enabled, answer.data.startup_mode })
  end)

  it("lets in who has logged in", function()
    local function login(form)
      return v3("POST", "auth/user/login", nil, { server = locked, form = form })
    end
    assert.equal(500, (login { username = "dev", password = "wrong" }))
    assert.equal(403, (login { username = "nobody", password = "secret" }))
    local status, answer, got = login { username = "dev", password = "secret" }
    assert.same({ 200, "dev", true }, { status, answer.username, answer.globalAdmin })
    assert.equal("Bearer " .. answer.accessToken, got.headers.authorization)

    local token = { server = locked, headers = { accessToken = answer.accessToken } }
    says(200, { code = 20004, message = "resource not found", data = json.null }, "GET", "client/cs/config", key "d", token)
    for name, message in pairs {
      none = "Code: 401, Message: User not found! Please check user exist or password is right!.",
      bad = "Code: 401, Message: token invalid!.",
    } do
      local refused, page = v3("GET", "admin/cs/config", key "d",
        { server = locked, headers = name == "bad" and { accessToken = "bad" } or nil })
      assert.same({ 403, message }, { refused, page.message })
    end
  end)

  it("knows its paths and their methods", function()
    for path, message in pairs {
      ["client/cs/config"] = "Method 'POST' is not supported.",
      ["client/ns/nosuch"] = "No endpoint POST /nacos/v3/client/ns/nosuch.",
    } do
      local status, page = v3("POST", path, key "d")
      assert.same({ path:find("nosuch") and 404 or 405, message }, { status, page.message })
    end
  end)

  it("is not there when it is not to be served", function()
    local old = support.start_server { "--api", "v1" }
    assert.equal(404, (v3("GET", "admin/core/state", nil, { server = old })))
    old:stop()
  end)
end)
