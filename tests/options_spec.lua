--- Option checking: messages, defaults, copies, and whom an error blames.

local options = require("nacos.options")

describe("options.check", function()
  local SPEC = {
    namespace = { type = "string", default = "" },
    timeout = { type = "number", above = 0, max = 60 },
    retries = { type = "number", integer = true, min = 0 },
    level = { type = "string", one_of = { "debug", "info" } },
    proxies = { type = "table", fields = { http = "string", https = "string" } },
    handlers = { type = "table", of = "function" },
    value = { type = { "string", "number" } },
    name = { check = function(v)
      return v == "" and "is empty" or nil
    end },
    anything = {},
  }

  local function check(given)
    local line = debug.getinfo(1, "l").currentline + 1
    local ok, result = pcall(function() options.check(SPEC, given, "nacos.client", 1) end)
    if ok then
      return options.check(SPEC, given, "nacos.client")
    end
    -- the message begins with the line that called check()
    local prefix = "tests/options_spec.lua:" .. line .. ": "
    local at = result:find(prefix, 1, true)
    assert(at, "wrong line: " .. result)
    return nil, result:sub(at + #prefix)
  end

  it("fills in defaults and leaves the rest nil", function()
    assert.same({ namespace = "" }, check(nil))
    assert.same({ namespace = "x", timeout = 0.5 }, check({ namespace = "x", timeout = 0.5 }))
  end)

  it("returns a copy", function()
    local given = { proxies = { http = "a" }, anything = { 1 }, handlers = { print } }
    local result = check(given)
    given.proxies.http, given.anything[1], given.handlers[1] = "b", 2, nil
    assert.equal("a", result.proxies.http)
    assert.equal(1, result.anything[1])
    assert.equal(print, result.handlers[1])
  end)

  it("does not share a default table between calls", function()
    local spec = { list = { type = "table", default = {} } }
    options.check(spec, {}, "f").list[1] = "mine"
    assert.same({}, options.check(spec, {}, "f").list)
  end)

  local messages = {
    { { namspace = "x" }, "bad option 'namspace' to 'nacos.client' (did you mean 'namespace'?)" },
    { { NameSpace = "x" }, "bad option 'NameSpace' to 'nacos.client' (did you mean 'namespace'?)" },
    { { ["time-out"] = 1 }, "bad option 'time-out' to 'nacos.client' (did you mean 'timeout'?)" },
    { { itmeout = 1 }, "bad option 'itmeout' to 'nacos.client' (did you mean 'timeout'?)" },
    { { "127.0.0.1" }, "bad option [1] to 'nacos.client' (options are given by name)" },
    { { namespace = 5 }, "bad option 'namespace' to 'nacos.client' (string expected, got number)" },
    { { timeout = "5" }, "bad option 'timeout' to 'nacos.client' (number expected, got string)" },
    { { timeout = 0 }, "bad option 'timeout' to 'nacos.client' (must be greater than 0, got 0)" },
    { { timeout = 61 }, "bad option 'timeout' to 'nacos.client' (must be at most 60, got 61)" },
    { { timeout = 0 / 0 }, "bad option 'timeout' to 'nacos.client' (finite number expected)" },
    { { timeout = math.huge }, "bad option 'timeout' to 'nacos.client' (finite number expected)" },
    { { retries = 1.5 }, "bad option 'retries' to 'nacos.client' (whole number expected, got 1.5)" },
    { { retries = -1 }, "bad option 'retries' to 'nacos.client' (must be at least 0, got -1)" },
    { { level = "loud" }, "bad option 'level' to 'nacos.client' (one of 'debug', 'info' expected, got 'loud')" },
    { { level = "DEBUG" },
      "bad option 'level' to 'nacos.client' (one of 'debug', 'info' expected, got 'DEBUG'; did you mean 'debug'?)" },
    { { proxies = { htpp = "x" } }, "bad option 'htpp' to 'nacos.client.proxies' (did you mean 'http'?)" },
    { { proxies = { http = 1 } }, "bad option 'http' to 'nacos.client.proxies' (string expected, got number)" },
    { { handlers = { print, 1 } }, "bad option 'handlers' to 'nacos.client' (element 2: function expected, got number)" },
    { { handlers = { print, nil, print } }, "bad option 'handlers' to 'nacos.client' (element 2 is nil)" },
    { { handlers = { first = print } }, "bad option 'handlers' to 'nacos.client' (a list expected, it has the key 'first')" },
    { { value = true }, "bad option 'value' to 'nacos.client' (string or number expected, got boolean)" },
    { { name = "" }, "bad option 'name' to 'nacos.client' (is empty)" },
    { "text", "bad options to 'nacos.client' (table expected, got string)" },
  }
  for _, case in ipairs(messages) do
    it(case[2], function()
      local result, message = check(case[1])
      assert.is_nil(result)
      assert.equal(case[2], message)
    end)
  end

  it("lists the names when none is near", function()
    local _, message = check({ zzzzzz = 1 })
    assert.matches("known: anything, handlers, level, name,", message, 1, true)
  end)

  it("turns a whole float into an integer where one is asked for", function()
    assert.equal("integer", math.type(check({ retries = 3.0 }).retries))
  end)

  it("takes callable tables as functions", function()
    local callable = setmetatable({}, { __call = print })
    assert.equal(callable, check({ handlers = { callable } }).handlers[1])
  end)

  it("keeps false", function()
    assert.is_false(check({ anything = false }).anything)
  end)

  it("never shows a value", function()
    local _, message = check({ timeout = "secret" })
    assert.not_matches("secret", message)
  end)
end)

describe("options.named", function()
  local SPEC = {
    "data_id", "group", "callbacks",
    data_id = { type = "string", required = true },
    group = { type = "string", default = "DEFAULT_GROUP" },
    callbacks = { type = "table" },
    timeout = { type = "number" },
  }
  local function f(...)
    return (options.named(SPEC, "f", 2, ...))
  end
  local function message(...)
    local ok, result = pcall(f, ...)
    assert.is_false(ok)
    return (result:gsub("^.-:%d+: ", ""))
  end

  it("takes positions, names, and both", function()
    local list = { 1 }
    assert.same({ data_id = "a", group = "DEFAULT_GROUP" }, f("a"))
    assert.same({ data_id = "a", group = "g", callbacks = list }, f("a", "g", list))
    assert.same({ data_id = "a", group = "g", timeout = 1 }, f({ data_id = "a", group = "g", timeout = 1 }))
    assert.same({ data_id = "a", group = "DEFAULT_GROUP", timeout = 1 }, f("a", { timeout = 1 }))
    assert.same({ data_id = "a", group = "DEFAULT_GROUP", callbacks = list }, f("a", nil, list))
    assert.same({ data_id = "a", group = "DEFAULT_GROUP", callbacks = list, timeout = 2 }, f("a", nil, list, { timeout = 2 }))
    assert.same({ data_id = "a", group = "DEFAULT_GROUP" }, f("a", nil, nil))
  end)

  it("explains what is wrong", function()
    assert.equal("missing argument 'data_id' to 'f'", message())
    assert.equal("bad argument 'group' to 'f' (string expected, got number)", message("a", 5))
    assert.equal("bad argument 'dataId' to 'f' (did you mean 'data_id'?)", message({ dataId = "a" }))
    assert.equal("argument 'data_id' to 'f' is given twice", message("a", { data_id = "b" }))
    assert.equal("too many arguments to 'f' (3 expected, got 4)", message("a", "g", {}, 3))
  end)

  it("blames the line that called the function", function()
    local line = debug.getinfo(1, "l").currentline + 1
    local _, result = pcall(function() f("a", 5) end)
    assert.matches("options_spec.lua:" .. line .. ":", result, 1, true)
  end)
end)

describe("options.nearest", function()
  it("finds misspellings and refuses what is far", function()
    local names = { "namespace", "username", "password", "password_file", "ak", "sk" }
    assert.equal("namespace", options.nearest("namepsace", names))
    assert.equal("username", options.nearest("user", names))
    assert.equal("password_file", options.nearest("passwordFile", names))
    assert.is_nil(options.nearest("banana", names))
    assert.is_nil(options.nearest("x", {}))
  end)
end)

describe("the protocol's options", function()
  local nacos = require("nacos")
  local function client(given)
    given.server_addresses, given.no_snapshot, given.log_level = "127.0.0.1:1", true, "OFF"
    return nacos.client(given)
  end

  for given, problem in pairs {
    [{ protocol = "GRPC" }] =
      "'protocol' to 'nacos.client' (one of 'auto', 'grpc', 'v3', 'v1' expected, got 'GRPC'; did you mean 'grpc'?)",
    [{ protocol = "v2" }] = "'protocol' to 'nacos.client' (one of 'auto', 'grpc', 'v3', 'v1' expected, got 'v2')",
    [{ protocl = "v1" }] = "'protocl' to 'nacos.client' (did you mean 'protocol'?)",
    [{ grpc_port_offset = 0 }] = "'grpc_port_offset' to 'nacos.client' (must not be 0: gRPC has a port of its own)",
    [{ grpc_port_offset = 70000 }] = "'grpc_port_offset' to 'nacos.client' (must be at most 65534, got 70000)",
    [{ grpc_port_offset = 0.5 }] = "'grpc_port_offset' to 'nacos.client' (whole number expected, got 0.5)",
    [{ poll_interval = 0 }] = "'poll_interval' to 'nacos.client' (must be at least 0.1, got 0)",
  } do
    it("refuse " .. problem, function()
      local _, message = pcall(client, given)
      assert.equal("bad option " .. problem, (message:gsub("^%S+: ", "")))
    end)
  end

  it("have defaults, and some may change later", function()
    local c <close> = client {}
    assert.same({ "auto", 1000, 5 }, { c.options.protocol, c.options.grpc_port_offset, c.options.poll_interval })
    assert(c:set_options { poll_interval = 0.5 })
    assert.equal(0.5, c.options.poll_interval)
    assert.error_matches(function() c:set_options { protocol = "v1" } end, "bad option 'protocol' to 'set_options'")
    for _, protocol in ipairs { "grpc", "v3", "v1" } do
      client({ protocol = protocol, grpc_port_offset = -1000 }):close()
    end
  end)
end)
