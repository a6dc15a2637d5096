--- The command line as its users see it: what is printed, and every exit code.

local json = require("cjson.safe")
local support = require("support")

local DONE, NOT_FOUND, USAGE, UNAVAILABLE, FORBIDDEN, CONFLICT, REFUSED = 0, 1, 2, 3, 4, 5, 6

local server
local folder = support.tmpdir()

---Run lunacos. @param opts {stdin=, env=, cwd=}|nil  the default server is ours
---@return integer code, string stdout, string stderr
local function lunacos(words, opts)
  opts = opts or {}
  opts.env = setmetatable(opts.env or {}, nil)
  opts.env.NACOS_SERVER = opts.env.NACOS_SERVER or server.address
  opts.cwd = opts.cwd or folder
  return support.run({ support.lunacos, table.unpack(words) }, opts)
end

---The same, expected to work without a word on stderr. @return string stdout
local function good(words, opts)
  local code, out, err = lunacos(words, opts)
  assert.same({ DONE, "" }, { code, err }, table.concat(words, " "))
  return out
end

---The same, expected to fail. @return string stderr
local function bad(expected, words, opts)
  local code, out, err = lunacos(words, opts)
  assert.same({ expected, "" }, { code, out }, table.concat(words, " ") .. ": " .. err)
  assert.matches("^lunacos: ", err)
  return err
end

---lunacos beside the test.
local function start(words, opts)
  opts = opts or {}
  opts.env = opts.env or {}
  opts.env.NACOS_SERVER = opts.env.NACOS_SERVER or server.address
  opts.cwd = opts.cwd or folder
  return support.start({ support.lunacos, table.unpack(words) }, opts)
end

local function publish(data_id, content, group)
  good({ "set", data_id, "-g", group or "DEFAULT_GROUP", "--type", "text" }, { stdin = content })
end

local function eventually_prints(process, text)
  support.eventually(function()
    return process:stdout():find(text, 1, true), "not printed: " .. text .. "\nstdout: " .. process:stdout() .. process:stderr()
  end, 8)
end

setup(function()
  server = support.start_server()
end)

teardown(function()
  assert.equal(0, server:stop())
end)

before_each(function()
  server:clear_faults()
end)

describe("lunacos", function()
  it("prints its version and its help", function()
    assert.matches("^lunacos %d+%.%d+%.%d+ %(Lua 5%.4%)\n$", good({ "--version" }))
    local help = good({ "--help" })
    for _, name in ipairs({ "get", "set", "rm", "ls", "watch", "run", "repl", "server" }) do
      assert.matches("\n   " .. name .. " ", help)
    end
    assert.matches("NACOS_SERVER", help)
    assert.matches("Exit codes: 0 done, 1 not found, 2 usage", help)
    assert.equal(help, good({ "-h" }))
  end)

  for _, name in ipairs({ "get", "set", "rm", "ls", "watch", "run", "repl", "server" }) do
    it("explains " .. name, function()
      local help = good({ name, "--help" })
      assert.matches("^Usage: lunacos " .. name, help)
      assert.matches("Examples?:\n  [^\n]*lunacos " .. name, help)
      assert.matches("Exit codes: 0 done", help)
      for line in help:gmatch("[^\n]+") do
        assert(utf8.len(line) <= 100, line)
      end
    end)
  end

  it("says what is wrong with a command line", function()
    local code, out, err = lunacos({})
    assert.same({ USAGE, "" }, { code, out })
    assert.matches("Usage: lunacos", err)
    assert.matches("unknown command 'gte' %(did you mean 'get'%?%)\nSee `lunacos %-%-help`", bad(USAGE, { "gte", "x" }))
    assert.matches("unknown option '%-%-jsno' %(did you mean '%-%-json'%?%)\nSee `lunacos get %-%-help`",
      bad(USAGE, { "get", "x", "--jsno" }))
    assert.matches("missing argument 'data_id'", bad(USAGE, { "get" }))
    assert.matches("too many arguments", bad(USAGE, { "rm", "x", "y" }))
    assert.matches("'%-s' requires an argument", bad(USAGE, { "get", "x", "-s" }))
    assert.matches("a number of seconds is needed, not 'soon'", bad(USAGE, { "get", "x", "--timeout", "soon" }))
    assert.matches("NACOS_TIMEOUT: a number of seconds is needed", bad(USAGE, { "get", "x" }, { env = { NACOS_TIMEOUT = "0" } }))
    assert.matches("bad server address", bad(USAGE, { "get", "x", "-s", "a b" }))
    assert.matches("namespace: may hold only", bad(USAGE, { "get", "x", "-n", "a b" }))
    assert.matches("protocol: one of 'auto', 'grpc', 'v3', 'v1' expected, got 'http2'",
      bad(USAGE, { "get", "x", "--protocol", "http2" }))
    assert.matches("did you mean 'grpc'%?", bad(USAGE, { "get", "x" }, { env = { NACOS_PROTOCOL = "gprc" } }))
    assert.matches("a whole number is needed, not '1.5'", bad(USAGE, { "get", "x", "--grpc-port-offset", "1.5" }))
    assert.matches("NACOS_GRPC_PORT_OFFSET: a whole number", bad(USAGE, { "get", "x" }, { env = { NACOS_GRPC_PORT_OFFSET = "x" } }))
    assert.matches("NACOS_POLL_INTERVAL: a number of seconds", bad(USAGE, { "get", "x" }, { env = { NACOS_POLL_INTERVAL = "x" } }))
    assert.matches("log_level: DEBUG", bad(USAGE, { "get", "x", "--log-level", "loud" }))
    assert.matches("bad data id 'x y': may hold only", bad(USAGE, { "get", "x y" }))
    assert.matches("group: may hold only", bad(USAGE, { "get", "x", "-g", "a/b" }))
  end)

  it("takes the options of the connection before the command, after it, or from the environment", function()
    publish("where", "here", "G1")
    local nowhere = { NACOS_SERVER = "127.0.0.1:1" }
    assert.equal("here", good({ "-s", server.address, "-g", "G1", "get", "where" }, { env = nowhere }))
    assert.equal("here", good({ "get", "where", "-s", server.address, "--group=G1" }, { env = nowhere }))
    assert.equal("here", good({ "get", "-gG1", "where" }))
    local env = { NACOS_GROUP = "G1", NACOS_TIMEOUT = "2", NACOS_NAMESPACE = "public" }
    assert.equal("here", good({ "get", "where" }, { env = env }))
    assert.equal("here", good({ "-g", "G2", "get", "where", "-g", "G1" }))
    bad(NOT_FOUND, { "get", "where", "-g", "G1", "-n", "other" })
    bad(NOT_FOUND, { "get", "where" }, { env = { NACOS_GROUP = "G1", NACOS_NAMESPACE = "other" } })
    bad(NOT_FOUND, { "get", "where", "-g", "G1", "--context-path", "/nacos", "-n", "other" })
  end)

  it("takes its Lua files from a folder when told", function()
    local code, out = support.run({ support.lunacos, "--lua-dir", support.root .. "/lua", "--version" })
    assert.same({ DONE, good({ "--version" }) }, { code, out })
    local lua_dir = support.tmpdir()
    os.execute("mkdir -p " .. lua_dir .. "/nacos/cli")
    support.write(lua_dir .. "/nacos/cli/init.lua",
      "return { main = function(arg) print(arg[0] ~= nil, arg[1], #arg) return 9 end }")
    code, out = support.run({ support.lunacos, "--lua-dir=" .. lua_dir, "x" })
    assert.same({ 9, "true\tx\t1\n" }, { code, out })
    code, out = support.run({ support.lunacos, "x", "y" }, { env = { LUNACOS_LUA_DIR = lua_dir } })
    assert.same({ 9, "true\tx\t2\n" }, { code, out })
    assert.equal(USAGE, (support.run({ support.lunacos, "--lua-dir" })))
  end)

  it("does not run Lua files that lie in the current folder", function()
    local cwd = support.tmpdir()
    support.write(cwd .. "/argparse.lua", "error('hijacked')")
    good({ "--version" }, { cwd = cwd })
  end)

  it("reports a bug of its own with a traceback", function()
    local lua_dir = support.tmpdir()
    os.execute("mkdir -p " .. lua_dir .. "/nacos/cli")
    support.write(lua_dir .. "/nacos/cli/init.lua", "return { main = function() local x = nil; return x.y end }")
    local code, _, err = support.run({ support.lunacos, "--lua-dir", lua_dir })
    assert.equal(70, code)
    assert.matches("internal error: .*init.lua:1: attempt to index a nil value.*\nstack traceback:", err)
  end)
end)

describe("lunacos get and set", function()
  it("carry contents byte for byte", function()
    for i, content in ipairs({ "x", "a\r\nb\n\n", "  x=1&y=%20+ ü 中 😀\t", ("0123456789"):rep(20000), "\1\2\127" }) do
      good({ "set", "bytes" .. i }, { stdin = content })
      assert.equal(content, good({ "get", "bytes" .. i }))
    end
  end)

  it("read the content from a file, stdin or -", function()
    support.write(folder .. "/content", "from a file\n")
    good({ "set", "input", "content" })
    assert.equal("from a file\n", good({ "get", "input" }))
    good({ "set", "input", "-" }, { stdin = "from -" })
    assert.equal("from -", good({ "get", "input" }))
    assert.matches("cannot read /nonexistent: No such file", bad(USAGE, { "set", "input", "/nonexistent" }))
    assert.matches("cannot read", bad(USAGE, { "set", "input", "." }))
    assert.matches("content: ", bad(USAGE, { "set", "input" }, { stdin = "" }))
    assert.equal("from -", good({ "get", "input" }))
  end)

  it("print one JSON object", function()
    good({ "set", "j.json", "--type", "json" }, { stdin = '{"a": "ü"}\n' })
    local out = good({ "get", "j.json", "--json" })
    assert.equal(1, select(2, out:gsub("\n", "")))
    assert.same({
      data_id = "j.json", group = "DEFAULT_GROUP", namespace = "", content = '{"a": "ü"}\n', source = "server", type = "json",
      md5 = "1fe37731966b78eae3a04d4c763c355e",
    }, json.decode(out))
  end)

  it("keep the type, and set the other fields", function()
    good({ "set", "typed", "--type", "yaml", "--desc", "what it is", "--tags", "a,b", "--app-name", "shop", "--protocol", "v1" },
      { stdin = "a: 1" })
    local body = ""
    for _, request in ipairs(server:requests().requests) do
      body = request.method == "POST" and request.body:find("typed", 1, true) and request.body or body
    end
    for _, field in ipairs({ "type=yaml", "desc=what[+%%]2?0?it", "config_tags=a%%2Cb", "appName=shop" }) do
      assert.matches(field, body)
    end
    good({ "set", "typed" }, { stdin = "a: 2" })
    assert.equal("yaml", json.decode(good({ "get", "typed", "--json" })).type)
    assert.matches("type: one of 'text', 'json'", bad(USAGE, { "set", "typed", "--type", "jpeg" }, { stdin = "x" }))
  end)

  it("compare and set", function()
    publish("cas", "one")
    good({ "set", "cas", "--cas", "F97C5D29941BFB1B2FDAB0874906AB82" }, { stdin = "two" })
    assert.matches("the content is no longer", bad(CONFLICT, { "set", "cas", "--cas", "f97c5d29941bfb1b2fdab0874906ab82" },
      { stdin = "three" }))
    assert.equal("two", good({ "get", "cas" }))
    assert.matches("bad %-%-cas: ", bad(USAGE, { "set", "cas", "--cas", "12" }, { stdin = "x" }))
  end)

  it("wait until a read shows the new content", function()
    local slow <close> = setmetatable({ server = support.start_server({ "--lag", "0.4" }) }, { __close = function(s)
      s.server:stop()
    end })
    local address = slow.server.address
    good({ "set", "late", "-s", address, "--wait" }, { stdin = "1" })
    assert.equal("1", good({ "get", "late", "-s", address }))
    good({ "set", "late2", "-s", address }, { stdin = "1" })
    bad(NOT_FOUND, { "get", "late2", "-s", address })
  end)

  it("fail with the right code", function()
    assert.matches("it does not exist", bad(NOT_FOUND, { "get", "nothing" }))
    assert.matches("127.0.0.1:1", bad(UNAVAILABLE, { "get", "x", "-s", "127.0.0.1:1" }))
    bad(UNAVAILABLE, { "set", "x", "-s", "127.0.0.1:1" }, { stdin = "x" })
    local v1 = { NACOS_PROTOCOL = "v1" }
    server:faults({ path = "/nacos/v1/cs/configs", status = 403, body = "no" })
    bad(FORBIDDEN, { "get", "x" }, { env = v1 })
    bad(FORBIDDEN, { "set", "x", "--type", "text" }, { stdin = "x", env = v1 })
    server:clear_faults()
    server:faults({ path = "/nacos/v1/cs/configs", method = "POST", status = 400, body = "caused: no" })
    bad(REFUSED, { "set", "x", "--type", "text" }, { stdin = "x", env = v1 })
    server:clear_faults()
    server:faults({ path = "/nacos/v1/cs/configs", hang = true })
    local before = os.time()
    bad(UNAVAILABLE, { "get", "x", "--timeout", "0.5" }, { env = v1 })
    assert(os.time() - before <= 2)
  end)

  it("fail with the right code over gRPC", function()
    local grpc = { NACOS_PROTOCOL = "grpc" }
    assert.matches("it does not exist", bad(NOT_FOUND, { "get", "nothing" }, { env = grpc }))
    bad(UNAVAILABLE, { "get", "x", "--timeout", "0.5", "--grpc-port-offset", "1" }, { env = grpc })
    server:faults({ path = "ConfigQueryRequest", method = "GRPC", code = 403 })
    bad(FORBIDDEN, { "get", "x" }, { env = grpc })
    server:clear_faults()
    server:faults({ path = "ConfigPublishRequest", method = "GRPC", code = 400 })
    bad(REFUSED, { "set", "x", "--type", "text" }, { stdin = "x", env = grpc })
  end)

  it("end quietly when the reader has gone, and loudly when the disk is full", function()
    good({ "set", "big" }, { stdin = ("0123456789"):rep(100000) })
    local line = "{ %s get big -s %s; echo code=$? >&2; } | head -c 5"
    local _, out, err = support.run(line:format(support.lunacos, server.address))
    assert.same({ "01234", "code=0\n" }, { out, err })
    local code
    code, _, err = support.run(("%s get big -s %s >/dev/full"):format(support.lunacos, server.address))
    assert.same({ REFUSED, "lunacos: cannot write the output: No space left on device\n" }, { code, err })
  end)
end)

describe("lunacos rm", function()
  it("removes", function()
    publish("gone", "x")
    good({ "rm", "gone" })
    bad(NOT_FOUND, { "get", "gone" })
    good({ "rm", "gone" })
    bad(UNAVAILABLE, { "rm", "gone", "-s", "127.0.0.1:1" })
    bad(USAGE, { "rm", "a b" })
  end)
end)

describe("lunacos ls", function()
  it("lists all pages", function()
    good({ "repl" }, { stdin = [[
      for i = 1, 203 do
        assert(client:publish_config(("item-%03d"):format(i), "LS", tostring(i), { type = "json" }))
      end
    ]] })
    local names = {}
    for name, group, kind, md5 in good({ "ls", "-g", "LS" }):gmatch("(%S+)\t(%S+)\t(%S*)\t(%x+)\n") do
      names[#names + 1] = name
      assert.same({ "LS", "json", 32 }, { group, kind, #md5 })
    end
    table.sort(names)
    assert.equal(203, #names)
    assert.equal("item-001", names[1])
    assert.equal("item-203", names[203])
    assert.matches("^item%-007\tLS\tjson\t8f14e45fceea167a5a36dedd4bea2543\n$", good({ "ls", "item-007", "-g", "LS" }))
    assert.equal(10, select(2, good({ "ls", "*-00*", "-g", "LS" }):gsub("\n", "")) + 1)
  end)

  it("prints JSON, one object a line", function()
    publish("only", "x", "LSJ")
    local out = good({ "ls", "-g", "LSJ", "--json" })
    local item = json.decode(out)
    assert.same({ "only", "LSJ", 1, "9dd4e461268c8034f5c8564e155c67a6" }, { item.data_id, item.group, item.size, item.md5 })
    assert.is_nil(item.content)
    assert.matches('"data_id":"only","group":"LSJ"', good({ "ls", "on*", "-g", "*", "--json" }))
  end)

  it("tells an empty list from a pattern that matches nothing", function()
    assert.equal("", good({ "ls", "-g", "EMPTY" }))
    local code, out, err = lunacos({ "ls", "nothing*", "-g", "EMPTY" })
    assert.same({ NOT_FOUND, "", "" }, { code, out, err })
    bad(UNAVAILABLE, { "ls", "-s", "127.0.0.1:1" })
  end)
end)

describe("lunacos watch", function()
  it("tells the present value and each change, at once", function()
    publish("w1", "one")
    local watch = start({ "watch", "w1", "w2" })
    eventually_prints(watch, "w1\tDEFAULT_GROUP\tchanged\tf97c5d29941bfb1b2fdab0874906ab82\n")
    publish("w2", "two")
    eventually_prints(watch, "w2\tDEFAULT_GROUP\tchanged\tb8a9f715dbb64fd5c56e7783c6820a61\n")
    good({ "rm", "w1" })
    eventually_prints(watch, "w1\tDEFAULT_GROUP\tdeleted\t-\n")
    watch:signal("TERM")
    assert.equal(DONE, watch:wait(3))
    assert.equal("", watch:stderr())
    assert.equal(3, select(2, watch:stdout():gsub("\n", "")))
  end)

  for protocol, how in pairs { v1 = "long poll at", v3 = "asked for at", grpc = "gRPC push from" } do
    it("tells with --verbose what is used and how a change came: " .. protocol, function()
      local data_id = "wv-" .. protocol
      publish(data_id, "one")
      local watch = start({ "watch", data_id, "--verbose", "--protocol", protocol, "--poll-interval", "0.2" })
      eventually_prints(watch, "f97c5d29941bfb1b2fdab0874906ab82\n")
      support.eventually(function() -- else it is found by comparing
        return protocol ~= "grpc" or server:call("GET", "grpc").listened > 0
      end)
      publish(data_id, "two")
      eventually_prints(watch, "b8a9f715dbb64fd5c56e7783c6820a61\n")
      watch:signal("TERM")
      assert.equal(DONE, watch:wait(3))
      assert.matches("^lunacos: " .. protocol .. ": ", watch:stderr())
      local about = "lunacos: " .. data_id .. ": "
      local others = watch:stderr():gsub("lunacos: " .. protocol .. ": [^\n]*\n", "") -- again when the version is known
      assert.equal(about .. "read from " .. server.base .. "\n" .. about .. how .. " " .. server.base .. "\n", others)
    end)

    it("tells what is used, of other commands: " .. protocol, function()
      publish("v-x", "x")
      local code, out, err = lunacos { "get", "v-x", "--verbose", "--protocol", protocol }
      assert.same({ DONE, "x" }, { code, out })
      assert.matches("^lunacos: " .. protocol .. ": [^\n]+\n$", err)
    end)
  end

  it("says so when the only protocol that it may use is not to be had", function()
    local watch = start({ "watch", "wn", "--verbose", "--protocol", "grpc", "--grpc-port-offset=" .. 1 - server.port })
    support.eventually(function()
      return watch:stderr():find("WARN  no gRPC at 127.0.0.1:1: cannot connect: connection refused", 1, true), watch:stderr()
    end)
    assert.equal(DONE, watch:stop())
  end)

  it("does not pass on what a server calls its version when that is none", function()
    local own = support.start_server({ "--claim", "3.1.0\27[31m\nlunacos: forged" })
    for _, protocol in ipairs { "auto", "v3" } do
      local err = select(3, lunacos({ "get", "x", "--verbose", "--protocol", protocol, "-s", own.address }))
      assert.matches("^lunacos: %w+: [^\n\27]+\nlunacos: cannot read x [^\n\27]+\n$", err)
    end
    own:stop()
  end)

  it("tells with --verbose which file a value is from", function()
    local files = support.tmpdir()
    support.write(files .. "/wv-file+DEFAULT_GROUP+", "as it is on disk")
    for option, kind in pairs { ["--snapshot-dir"] = "snapshot", ["--failover-dir"] = "failover" } do
      local watch = start({ "watch", "wv-file", "--verbose", option, files, "-s", "127.0.0.1:1" })
      eventually_prints(watch, "wv-file\tDEFAULT_GROUP\tchanged\t")
      assert.matches("\nlunacos: wv%-file: from a " .. kind .. " file\n", "\n" .. watch:stderr())
      assert.equal(DONE, watch:stop())
    end
  end)

  it("prints JSON, one object a line, and ends at INT", function()
    publish("wj", "a\nü", "GJ")
    local watch = start({ "watch", "-g", "GJ", "wj", "--json" })
    eventually_prints(watch, "\n")
    local change = json.decode(watch:stdout())
    assert(math.abs(os.time() - change.time) < 60)
    change.time = nil
    assert.same({ data_id = "wj", group = "GJ", namespace = "", event = "changed", content = "a\nü", source = "server",
      type = "text", md5 = "5524ea6d39e9f4b05f877eb09bcaf059" }, change)
    good({ "rm", "wj", "-g", "GJ" })
    eventually_prints(watch, '"event":"deleted"')
    watch:signal("INT")
    assert.equal(DONE, watch:wait(3))
  end)

  it("runs a command with the content on its stdin and the key in its environment", function()
    publish("we", "it's\n$HOME")
    local script = "{ echo \"$NACOS_DATA_ID|$NACOS_GROUP|$NACOS_NAMESPACE|$NACOS_MD5|$NACOS_EVENT|$1\"; cat; echo .; } >> out"
    local cwd = support.tmpdir()
    local watch = start({ "watch", "we", "--exec", "sh", "-c", script, "sh", "a b'c" }, { cwd = cwd })
    local function out()
      return support.read(cwd .. "/out") or ""
    end
    local first = "we|DEFAULT_GROUP||8699694704454303ec2069f61e50ed02|changed|a b'c\nit's\n$HOME.\n"
    support.eventually(function()
      return #out() >= #first, out()
    end)
    assert.equal(first, out())
    good({ "rm", "we" })
    support.eventually(function()
      return out():find("we|DEFAULT_GROUP|||deleted|a b'c\n.\n", 1, true), out()
    end)
    assert.equal(DONE, watch:stop())
    assert.equal("", watch:stderr())
  end)

  it("goes on after a command that fails, does not read, or does not exist", function()
    publish("wf", ("x"):rep(300000))
    local watch = start({ "watch", "wf", "--exec", "echo ran; exit 3" })
    support.eventually(function()
      return watch:stderr() == "lunacos: the command for 'wf' failed: exit code 3\n", watch:stderr()
    end)
    publish("wf", "2")
    eventually_prints(watch, "c81e728d9d4c2f636f067f89cc14862c\nran\n")
    assert.equal(DONE, watch:stop())
    watch = start({ "watch", "wf", "--exec", "/nonexistent/program", "x" })
    support.eventually(function()
      return watch:stderr():find("the command for 'wf' failed: cannot start /nonexistent/program: No such file or directory\n",
        1, true), watch:stderr()
    end)
    assert.equal(DONE, watch:stop())
    watch = start({ "watch", "wf", "--exec", "kill -9 $$" })
    support.eventually(function()
      return watch:stderr():find("the command for 'wf' was ended by signal 9\n", 1, true), watch:stderr()
    end)
    assert.equal(DONE, watch:stop())
  end)

  it("is not held up by a slow command, and never runs two for one data id", function()
    publish("ws", "1")
    local cwd = support.tmpdir()
    local script = "mkdir lock.$NACOS_DATA_ID || echo overlap; read -r n; echo $NACOS_DATA_ID began $n; "
      .. "[ $NACOS_DATA_ID.$n != ws.1 ] || while [ ! -e go ]; do sleep 0.01; done; "
      .. "rmdir lock.$NACOS_DATA_ID; echo $NACOS_DATA_ID ran $n"
    local watch = start({ "watch", "ws", "wq", "--exec", script }, { cwd = cwd })
    eventually_prints(watch, "ws began 1\n")
    publish("wq", "9")
    eventually_prints(watch, "wq ran 9\n")
    for _, content in ipairs { "2", "3", "4" } do
      publish("ws", content)
      eventually_prints(watch, "ws\tDEFAULT_GROUP\tchanged\t" .. require("nacos").md5(content) .. "\n")
    end
    support.write(cwd .. "/go", "")
    eventually_prints(watch, "ws ran 4\n")
    assert.equal(DONE, watch:stop())
    local out = watch:stdout()
    assert.is_nil(out:find("overlap") or out:find("began 2") or out:find("began 3"), out)
    assert.equal("", watch:stderr())
  end)

  it("ends a running command at TERM, by force when need be", function()
    publish("wt", "1")
    local watch = start({ "watch", "wt", "--exec", "exec 2>/dev/null; trap 'echo told; exit' TERM; echo runs; "
      .. "while :; do sleep 0.01; done" })
    eventually_prints(watch, "runs\n")
    watch:signal("TERM")
    assert.equal(DONE, watch:wait(2))
    assert.matches("\nruns\ntold\n$", watch:stdout())
    assert.equal("", watch:stderr())
    watch = start({ "watch", "wt", "--exec", "trap '' TERM; echo $$ runs; while :; do sleep 0.1; done" })
    eventually_prints(watch, " runs\n")
    watch:signal("TERM")
    assert.equal(DONE, watch:wait(6))
    assert.equal(1, (support.run({ "kill", "-0", watch:stdout():match("(%d+) runs") })))
  end)

  for protocol, complaint in pairs { v1 = "go on trying", v3 = "go on trying", grpc = "was lost" } do
    it("goes on while the server is down: " .. protocol, function()
      local own = support.start_server()
      local watch = start({ "watch", "wd", "wd-other", "-s", own.address, "--protocol", protocol, "--poll-interval", "0.5" })
      good({ "set", "wd-other", "-s", own.address }, { stdin = "x" })
      eventually_prints(watch, "wd-other")
      own:kill9()
      support.eventually(function()
        return watch:stderr():find(complaint), "nothing on stderr"
      end, 10)
      own = support.start_server({ "--port", tostring(own.port) })
      good({ "set", "wd", "-s", own.address }, { stdin = "back" })
      support.eventually(function()
        return watch:stdout():find("wd\tDEFAULT_GROUP\tchanged\t", 1, true), watch:stderr()
      end, 20)
      assert.equal(DONE, watch:stop())
      own:stop()
    end)
  end

  it("ends when it may not, and when its reader has gone", function()
    server:faults({ { path = "/nacos/v1/cs/*", status = 403, body = "no right" },
      { path = "ConfigQueryRequest", method = "GRPC", code = 403 } })
    for protocol, why in pairs { v1 = "no right", grpc = "code 403" } do
      local watch = start({ "watch", "wn", "--verbose", "--protocol", protocol })
      assert.equal(FORBIDDEN, watch:wait(10))
      assert.matches("\nlunacos: " .. protocol .. ": ", "\n" .. watch:stderr())
      assert.matches("\nlunacos: cannot read wn .*" .. why, watch:stderr())
    end
    server:clear_faults()
    publish("wg", "1")
    local pipeline = support.start(("sh -c '{ %s watch wg -s %s; echo code=$? >&2; } | head -1'"):format(
      support.lunacos, server.address))
    eventually_prints(pipeline, "wg\tDEFAULT_GROUP\tchanged\t")
    publish("wg", "2")
    pipeline:wait(5)
    assert.equal("code=0\n", pipeline:stderr())
  end)

  it("refuses a wrong command line", function()
    assert.matches("missing argument 'DATA_ID'", bad(USAGE, { "watch" }):gsub("data_ids", "DATA_ID"))
    assert.matches("%-%-exec needs a command", bad(USAGE, { "watch", "x", "--exec" }))
    assert.matches("bad data id 'a b'", bad(USAGE, { "watch", "a b" }))
  end)
end)

describe("lunacos with a user", function()
  local guarded, password_file

  setup(function()
    password_file = support.tmpdir() .. "/password"
    support.write(password_file, "s3cret\n")
    guarded = support.start_server({ "--username", "ann", "--password-file", password_file })
  end)

  teardown(function()
    guarded:stop()
  end)

  it("takes the password from a file or the environment", function()
    local address = { "-s", guarded.address, "-u", "ann" }
    good({ "set", "p", "--password-file", password_file, table.unpack(address) }, { stdin = "x" })
    assert.equal("x", good({ "get", "p", table.unpack(address) }, { env = { NACOS_PASSWORD = "s3cret" } }))
    assert.equal("x", good({ "get", "p", "-s", guarded.address },
      { env = { NACOS_USERNAME = "ann", NACOS_PASSWORD_FILE = password_file } }))
    bad(FORBIDDEN, { "get", "p", table.unpack(address) }, { env = { NACOS_PASSWORD = "wrong" } })
    bad(FORBIDDEN, { "get", "p", "-s", guarded.address })
  end)

  it("never takes it from the command line", function()
    assert.matches("unknown option '%-%-password'", bad(USAGE, { "get", "p", "-u", "ann", "--password", "s3cret" }))
  end)

  it("says how to give it when there is no terminal", function()
    local code, _, err = support.run("setsid -w " .. support.lunacos .. " get p -u ann -s " .. guarded.address)
    assert.equal(USAGE, code)
    assert.matches("a password is needed for user 'ann': give %-%-password%-file FILE or set NACOS_PASSWORD", err)
  end)

  it("asks for it on a terminal without showing it", function()
    local fifo = support.tmpdir() .. "/keys"
    os.execute("mkfifo " .. fifo)
    local line = ("script -qec '%s get p -u ann -s %s' /dev/null <%s"):format(support.lunacos, guarded.address, fifo)
    local terminal = support.start("sh -c " .. support.q(line))
    local keys = assert(io.open(fifo, "w"))
    eventually_prints(terminal, "Password of ann: ")
    keys:write("s3cret\n")
    keys:flush()
    eventually_prints(terminal, "x")
    keys:close()
    assert.equal(DONE, terminal:wait())
    assert.not_matches("s3cret", terminal:stdout())
  end)

  it("needs a secret key with an access key", function()
    assert.matches("NACOS_SK", bad(USAGE, { "get", "p", "--ak", "key" }))
    assert.equal(NOT_FOUND, (lunacos({ "get", "nothing", "--ak", "key" }, { env = { NACOS_SK = "s" } })))
  end)
end)

describe("lunacos and https", function()
  local certificates, guarded, open

  setup(function()
    certificates = support.tmpdir()
    local code, _, err = support.run([[
      openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem
      echo subjectAltName=DNS:nacos.test >ext
      for name in server client; do
        openssl req -newkey rsa:2048 -nodes -subj /CN=nacos.test -keyout $name.key -out $name.csr
        openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.pem || exit
      done]], { cwd = certificates })
    assert.equal(0, code, err)
    local tls = { "--tls-cert", certificates .. "/server.pem", "--tls-key", certificates .. "/server.key" }
    open = support.start_server(tls)
    guarded = support.start_server({ "--tls-ca", certificates .. "/ca.pem", table.unpack(tls) })
  end)

  teardown(function()
    open:stop()
    guarded:stop()
  end)

  for _, protocol in ipairs { "v1", "grpc" } do
    ---The words of `lunacos get x`, and the environment.
    local function get(from, words, verify)
      return { "get", "x", "-s", from.base, "--protocol", protocol, table.unpack(words or {}) }, { env = { NACOS_VERIFY = verify } }
    end

    it("verifies the server's certificate when told, or when given a CA: " .. protocol, function()
      good({ "set", "x", "-s", open.base, "--protocol", protocol, "--log-level", "error" }, { stdin = "x" })
      assert.matches("certificate", bad(UNAVAILABLE, get(open, { "--verify" })))
      assert.matches("certificate", bad(UNAVAILABLE, get(open, nil, "yes")))
      local ca = certificates .. "/ca.pem"
      bad(UNAVAILABLE, get(open, { "--ca-file", ca })) -- the certificate is not for 127.0.0.1
      assert.equal("x", good(get(open, { "--ca-file", ca, "--server-name", "nacos.test" })))
      assert.equal("x", good(get(open, { "--ca-file", ca }, "no")))
      assert.matches("NACOS_VERIFY: yes or no is needed", bad(USAGE, get(open, nil, "maybe")))
    end)

    it("shows a certificate of its own: " .. protocol, function()
      bad(UNAVAILABLE, get(guarded))
      bad(NOT_FOUND, get(guarded, { "--cert-file", certificates .. "/client.pem", "--key-file", certificates .. "/client.key" }))
    end)
  end
end)

describe("lunacos and snapshots", function()
  it("leaves nothing in the current folder", function()
    local cwd = support.tmpdir()
    publish("snap", "x")
    good({ "get", "snap" }, { cwd = cwd })
    local watch = start({ "watch", "snap" }, { cwd = cwd })
    eventually_prints(watch, "snap")
    watch:stop()
    good({ "repl" }, { cwd = cwd, stdin = "client:get_config('snap')\n" })
    local _, out = support.run("ls -A", { cwd = cwd })
    assert.equal("", out)
  end)

  it("reads no failover file that happens to lie there", function()
    local cwd = support.tmpdir()
    os.execute("mkdir -p " .. cwd .. "/nacos-data/data")
    support.write(cwd .. "/nacos-data/data/snap+DEFAULT_GROUP", "stale")
    support.write(cwd .. "/nacos-data/data/snap+DEFAULT_GROUP+public", "stale")
    publish("snap", "x")
    assert.equal("x", good({ "get", "snap" }, { cwd = cwd }))
  end)

  it("keeps them where it is told, and says when it prints one", function()
    local dir = support.tmpdir() .. "/snapshots"
    publish("snap", "kept")
    assert.equal("kept", good({ "get", "snap", "--snapshot-dir", dir }))
    local code, out, err = lunacos({ "get", "snap", "--snapshot-dir", dir, "-s", "127.0.0.1:1" })
    assert.same({ DONE, "kept" }, { code, out })
    assert.matches("this is the snapshot of 'snap'", err)
    bad(UNAVAILABLE, { "get", "snap", "--no-snapshot", "-s", "127.0.0.1:1" }, { env = { NACOS_SNAPSHOT_DIR = dir } })
  end)
end)

describe("lunacos run", function()
  ---@return string path of a script with this text
  local function script(text, name)
    local path = support.tmpdir() .. "/" .. (name or "script.lua")
    support.write(path, text)
    return path
  end

  it("gives a script its arguments and the modules", function()
    local path = script([[
      print(#arg, arg[1], arg[2], arg[0]:match("[^/]*$"), ...)
      print(type(nacos.client), json.encode({1}), yaml.load("a: 1").a, template.render("{{ 1 + 1 }}"))
      print(connection.server_addresses, connection.namespace, group)
    ]])
    local out = good({ "run", "-s", "10.0.0.1:1", "-n", "ns", "-g", "G", path, "--json", "-s" })
    assert.equal("2\t--json\t-s\tscript.lua\t--json\t-s\nfunction\t[1]\t1\t2\t" .. "table", out:match("^(.-table)"))
    assert.matches("\n10.0.0.1:1\tns\tG\n$", out)
  end)

  it("looks for modules beside the script", function()
    local path = script("print(require('beside'))")
    support.write(path:gsub("script.lua$", "beside.lua"), "return 'found'")
    assert.matches("^found\t", good({ "run", path }))
  end)

  it("lets a script wait, spawn and ask the server", function()
    publish("r", "value")
    local path = script([[
      local client = nacos.client(connection)
      local done = false
      nacos.spawn(function()
        repeat nacos.sleep(0.01) until done
        print("second")
      end)
      nacos.sleep(0.01)
      print("first", (client:get_config("r")))
      client:close()
      done = true
    ]])
    assert.equal("first\tvalue\nsecond\n", good({ "run", path }))
  end)

  it("tells with --verbose which protocol a script's client uses, and why", function()
    for protocol, port in pairs { grpc = server.port + 1000, v1 = 1001 } do
      local code, out, err = lunacos({ "run", "--verbose", "--grpc-port-offset=" .. port - server.port, script([[
        local client = nacos.client(connection)
        client:get_config("r")
        print(client:status().protocol)
        client:close()
      ]]) })
      assert.same({ DONE, protocol .. "\n" }, { code, out })
      assert.matches((" INFO  speaking %s: [^\n]*127.0.0.1:%d"):format(protocol, port), err)
    end
    assert.matches(" INFO  speaking v3: the option says so\n",
      select(3, lunacos({ "repl", "--verbose", "--protocol", "v3" }, { stdin = 'client:get_config("r")' })))
  end)

  it("goes on while the script watches, and stops at TERM and INT", function()
    publish("rw", "1")
    for _, signal in ipairs({ "TERM", "INT" }) do
      local process = start({ "run", script([[
        local client = nacos.client(connection)
        client:add_config_watcher("rw", group, function(change) print("now " .. change.content) end)
      ]]) })
      eventually_prints(process, "now 1\n")
      process:signal(signal)
      assert.equal(DONE, process:wait(3))
      assert.equal("", process:stderr())
    end
  end)

  it("prints a traceback for an error and exits with 1", function()
    local path = script("local function deep()\n  error('boom')\nend\ndeep()\n")
    local code, out, err = lunacos({ "run", path })
    assert.same({ NOT_FOUND, "" }, { code, out })
    assert.matches("^lunacos: " .. path:gsub("%p", "%%%0") .. ":2: boom\nstack traceback:\n.*in local 'deep'", err)
    assert.not_matches("nacos/cli", err)
    assert.matches("script.lua:1: .*expected", bad(NOT_FOUND, { "run", script("x = = 1") }))
    assert.matches("a sentence", bad(NOT_FOUND, { "run", script(
      "error(setmetatable({}, { __tostring = function() return 'a sentence' end }))") }))
  end)

  it("exits with the number that the script returns", function()
    assert.equal(7, (lunacos({ "run", script("nacos.spawn(nacos.sleep, 100) return 7") })))
    assert.equal(9, (lunacos({ "run", script("os.exit(9)") })))
    good({ "run", script("return 'text'") })
  end)

  it("reads a script from stdin, and refuses one that is not there", function()
    assert.equal("hi\tx\n", good({ "run", "-", "x" }, { stdin = "print('hi', ...)" }))
    assert.matches("cannot read /nonexistent.lua: No such file", bad(USAGE, { "run", "/nonexistent.lua" }))
    assert.matches("missing argument 'script'", bad(USAGE, { "run" }))
  end)

  it("works in a script's first line", function()
    local path = script("#!" .. support.lunacos .. " run\nprint('executed', ...)\n", "agent")
    os.execute("chmod +x " .. path)
    local code, out = support.run({ path, "a", "--b" })
    assert.same({ DONE, "executed\ta\t--b\n" }, { code, out })
  end)
end)

describe("lunacos repl", function()
  it("evaluates lines from a pipe and survives errors", function()
    publish("q", "value")
    local code, out, err = lunacos({ "repl" }, { stdin = [[
1 + 1
"text", nil, { b = 1, a = { 2 } }
client:get_config("q")
for i = 1, 2 do
  print("line " .. i)
end
x = 5
x
error("boom")
)
client:get_config("nothing")
type(nacos), type(template), json.encode({})
client:get_config("a b")
"end"
]] })
    assert.equal(DONE, code)
    local lines = {}
    for line in out:gmatch("[^\n]+") do
      lines[#lines + 1] = line
    end
    assert.equal("2", lines[1])
    assert.equal('"text"\tnil\t{"a":[2],"b":1}', lines[2])
    assert.matches('^"value"\t"server"\t', lines[3])
    assert.same({ "line 1", "line 2", "5" }, { lines[4], lines[5], lines[6] })
    assert.matches("^nil\t.*it does not exist", lines[7])
    assert.same({ '"table"\t"table"\t"{}"', '"end"' }, { lines[8], lines[9] })
    assert.matches("lunacos: stdin:1: boom\nstack traceback:", err)
    assert.matches("lunacos: stdin:1: unexpected symbol near '%)'", err)
    assert.matches("lunacos: stdin:1: bad argument 'data_id' to 'get_config'", err)
  end)

  it("delivers changes between lines", function()
    publish("q2", "value")
    local out = good({ "repl" }, { stdin = [[
client:add_config_watcher("q2", nil, function(change) print("now " .. change.content) nacos.stop() end)
nacos.run()
]] })
    assert.matches("now value\n", out)
  end)

  it("reports what is not finished", function()
    local code, _, err = lunacos({ "repl" }, { stdin = "for i = 1, 2 do\n" })
    assert.equal(DONE, code)
    assert.matches("'end' expected .*near <eof>", err)
  end)

  it("prompts on a terminal", function()
    local fifo = support.tmpdir() .. "/keys"
    os.execute("mkfifo " .. fifo)
    local terminal = support.start("sh -c " .. support.q(("script -qec '%s repl' /dev/null <%s"):format(support.lunacos, fifo)))
    local keys = assert(io.open(fifo, "w"))
    eventually_prints(terminal, "> ")
    keys:write("if true then\n")
    keys:flush()
    eventually_prints(terminal, ">> ")
    keys:write("print(6 * 7) end\n")
    keys:flush()
    eventually_prints(terminal, "42")
    keys:write("\4")
    keys:close()
    assert.equal(DONE, terminal:wait())
  end)
end)

describe("lunacos server", function()
  it("prints where it listens and ends cleanly", function()
    for _, signal in ipairs({ "TERM", "INT" }) do
      local own = support.start_server()
      local line = "lunacos server listening on http://127.0.0.1:%d/nacos and, for gRPC, port %d "
        .. "(in memory, for development and tests)\n"
      assert.equal(line:format(own.port, own.port + 1000), own:stdout())
      own:signal(signal)
      assert.equal(DONE, own:wait(3))
      assert.equal("", own:stderr())
    end
  end)

  it("refuses a wrong command line", function()
    assert.matches("a number is needed, not 'x'", bad(USAGE, { "server", "--port", "x" }))
    assert.matches("option 'port' must be", bad(USAGE, { "server", "--port", "99999" }))
    assert.matches("option 'grpc_port' must be", bad(USAGE, { "server", "--grpc-port", "0" }))
    assert.matches("option 'api' must be some of v1, v3, grpc, comma separated, got 'v2'",
      bad(USAGE, { "server", "--api", "v1,v2" }))
    assert.matches("%-%-username needs %-%-password%-file", bad(USAGE, { "server", "--username", "ann" }))
    assert.matches("the connection's options are not for `lunacos server`", bad(USAGE, { "server", "-g", "x" }))
  end)

  it("says why it cannot listen", function()
    assert.matches("Address already in use", bad(REFUSED, { "server", "--port", tostring(server.port) }))
  end)

  it("is not set up by the variables of the client", function()
    local own = support.start_server(nil, { env = { NACOS_USERNAME = "ann", NACOS_PASSWORD = "x", NACOS_CONTEXT_PATH = "/other" } })
    good({ "set", "x", "-s", own.address }, { stdin = "x" })
    own:stop()
  end)
end)
