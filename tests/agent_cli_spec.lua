--- The status socket, and the commands that look at agents, steer them and test scripts.

local control = require "nacos.agent.control"
local json = require "cjson.safe"
local lab = require "lab"
local nacos = require "nacos"
local state = require "nacos.agent.state"
local support = require "support"
local uv = require "luv"

local DONE, NOT_FOUND, USAGE, UNAVAILABLE, REFUSED = 0, 1, 2, 3, 6

---A text as a Lua pattern.
local function plain(text)
  return (text:gsub("%p", "%%%0"))
end

---Run fn as a task and wait for its end.
local function in_task(fn)
  local results, failure
  nacos.spawn(function()
    local ok, err = pcall(function()
      results = table.pack(fn())
    end)
    failure = not ok and err
  end)
  support.eventually(function()
    return results or failure, "the task has not ended"
  end, 8)
  if failure then
    error(failure, 0)
  end
  return table.unpack(results, 1, results.n)
end

describe("control", function()
  local folder = support.tmpdir()
  local server

  local function serve(handler, path)
    server = assert(control.serve(path or folder .. "/agent.sock", handler))
    return server.path
  end

  after_each(function()
    if server then
      server:close()
      server = nil
    end
  end)

  ---Write raw text to the socket. @return function -> all that has come back, and whether the other side has closed
  local function raw(path, text)
    local answer, closed = "", false
    local pipe = require("nacos.scheduler").luv().new_pipe(false)
    pipe:connect(path, function(err)
      assert(not err, err)
      if text then
        pipe:write(text)
      end
      pipe:read_start(function(_, chunk)
        answer, closed = answer .. (chunk or ""), closed or chunk == nil
        if closed and not pipe:is_closing() then
          pipe:close()
        end
      end)
    end)
    require("nacos.scheduler").luv()
    return function()
      return answer, closed
    end
  end

  it("carries a request to the handler and its answer back", function()
    local path = serve(function(request)
      nacos.sleep(0.01) -- it may wait
      return { got = request, list = { 1, 2 } }
    end)
    assert.same({ got = { command = "pin", target = "a b", generation = 3 }, list = { 1, 2 } },
      in_task(function()
        return assert(control.ask(path, { command = "pin", target = "a b", generation = 3 }))
      end))
    assert.equal("integer", math.type(in_task(function()
      return control.ask(path, { n = 7 }).got.n
    end)))
  end)

  it("answers several at once, and large answers whole", function()
    local waiting = 0
    local path = serve(function(request)
      waiting = waiting + 1
      while waiting < 3 do -- each waits for the others
        nacos.sleep(0.005)
      end
      return { n = request.n, text = ("x"):rep(3000000) }
    end)
    local got = {}
    for n = 1, 3 do
      nacos.spawn(function()
        local answer = assert(control.ask(path, { n = n }))
        got[answer.n] = #answer.text
      end)
    end
    support.eventually(function()
      return #got == 3
    end)
    assert.same({ 3000000, 3000000, 3000000 }, got)
  end)

  it("lets only its own user in, and replaces what an earlier agent left", function()
    support.write(folder .. "/agent.sock", "")
    local path = serve(function() return {} end)
    assert.equal(tonumber("600", 8), uv.fs_stat(path).mode & 511)
    assert.equal("socket", uv.fs_stat(path).type)
    server:close()
    assert.is_nil(uv.fs_stat(path))
  end)

  it("works in a folder whose path is longer than an address may be", function()
    local long = folder .. "/" .. ("d"):rep(120)
    assert(uv.fs_mkdir(long, 448))
    local before = lab.fd_count()
    local path = serve(function() return { here = true } end, long .. "/agent.sock")
    assert.equal("socket", uv.fs_stat(path).type)
    assert.same({ here = true }, in_task(function()
      return assert(control.ask(path, {}))
    end))
    server:close()
    assert.is_nil(uv.fs_stat(path))
    support.eventually(function()
      return lab.fd_count() <= before, "descriptors are left open"
    end)
  end)

  it("tells what is the matter", function()
    local function failure(path, timeout)
      local answer, err = in_task(function()
        return control.ask(path, { command = "status" }, timeout)
      end)
      assert.is_nil(answer)
      return err
    end
    assert.equal("absent", failure(folder .. "/none.sock").code)
    assert.equal("absent", failure(folder .. "/no/folder/" .. ("d"):rep(120) .. "/none.sock").code)
    local refuse, hang = true, false
    local path = serve(function()
      if hang then
        nacos.sleep(1)
        return {}
      elseif refuse then
        return { error = "no target is named x" }
      end
      error("a bug")
    end)
    assert.same({ "refused", "no target is named x" }, { failure(path).code, failure(path).message })
    hang = true
    assert.equal("timeout", failure(path, 0.05).code)
    hang, refuse = false, false
    local log = require "nacos.agent.log"
    log.level = "off"
    assert.matches("internal error", failure(path).message)
    log.level = "info"
  end)

  it("refuses what is no request", function()
    local path = serve(function() return {} end)
    local cases = { [("x"):rep(70000) .. "\n"] = "too long", [("x"):rep(70000)] = "too long", ["hello\n"] = "not a JSON object",
      ["3\n"] = "not a JSON object" }
    for text, expected in pairs(cases) do
      local answer = raw(path, text)
      support.eventually(function()
        return select(2, answer())
      end)
      assert.matches(expected, json.decode((answer())).error)
    end
  end)

  it("bears clients that say nothing, and at most 16 at once", function()
    finally(function() control.deadline = 5 end)
    local path = serve(function() return {} end)
    control.deadline = 0.5
    local clients = {}
    for i = 1, 17 do
      clients[i] = raw(path, nil)
    end
    support.eventually(function()
      return select(2, clients[17]()) and server.count == 16
    end)
    support.eventually(function() -- until their time is over
      return server.count == 0
    end)
    assert.same({}, in_task(function()
      return assert(control.ask(path, {}))
    end))
  end)

  it("ends what is under way when it closes", function()
    local path = serve(function()
      nacos.sleep(0.05)
      return {}
    end)
    local err
    nacos.spawn(function()
      err = select(2, control.ask(path, {}))
    end)
    support.eventually(function()
      return server.count == 1
    end)
    server:close()
    support.eventually(function()
      return err
    end)
    assert.equal(0, server.count)
  end)
end)

describe("commands about an agent", function()
  local folder = support.tmpdir()
  local agent_state = folder .. "/state"

  ---Run lunacos in the folder. @return integer code, string stdout, string stderr
  local function lunacos(words, opts)
    opts = opts or {}
    opts.cwd = opts.cwd or folder
    opts.env = opts.env or {}
    opts.env.LUNACOS_STATE = opts.env.LUNACOS_STATE or agent_state
    return support.run({ support.lunacos, table.unpack(words) }, opts)
  end

  local function expect(code, words, opts)
    local got, out, err = lunacos(words, opts)
    assert.equal(code, got, table.concat(words, " ") .. ": " .. out .. err)
    return out, err
  end

  -- A state folder as an agent leaves it: one file with two generations, one that was rejected, a group.
  setup(function()
    local s = assert(state.open(agent_state))
    for _, name in ipairs { "shop.conf", "a.conf", "b.conf" } do
      support.write(folder .. "/" .. name, name == "shop.conf" and "port 81;\n" or name .. "\n")
    end
    local shop = s:target(folder .. "/shop.conf")
    local function generation(content, md5, reason)
      local source = {
        kind = "config", data_id = "shop.yaml", group = "DEFAULT_GROUP", namespace = "", md5 = md5, source = "server",
        server = "http://10.0.0.1:8848", time = os.time() - 7200, state = "known",
      }
      shop:add_generation {
        files = { { path = folder .. "/shop.conf", content = content, mode = 420 } }, reason = reason, time = os.time() - 7200,
        sources = { source },
      }
    end
    generation("port 80;\n", "11111111111111111111111111111111", "start")
    generation("port 81;\n", "22222222222222222222222222222222", "change")
    assert(shop:reject { files = { { path = folder .. "/shop.conf", content = "port x;\n" } }, output = "unexpected x\nline two",
      reason = "check: exit code 1" })
    shop.data = { written = "w2", applied = "w2", generation = 2, time = os.time() - 7200, paths = { folder .. "/shop.conf" },
      rejected = { hash = "w3", reason = "check: exit code 1", time = os.time() - 60 } }
    assert(shop:save())
    local pair = s:target("pair")
    pair:add_generation { reason = "start", files = {
      { path = folder .. "/a.conf", content = "a.conf\n" }, { path = folder .. "/b.conf", content = "b.conf\n" } } }
    pair.data = { written = "p2", applied = "p1", generation = 1, paths = { folder .. "/a.conf", folder .. "/b.conf" },
      owed = { since = os.time() - 60, reason = "reload: exit code 3", tries = 4 } }
    assert(pair:save())
    s:close()
  end)

  ---Something that answers as the agent does, and does what it is asked.
  local function start_agent(status)
    support.write(folder .. "/status.json", json.encode(status))
    support.write(folder .. "/agent.lua", [[
      local control, state = require "nacos.agent.control", require "nacos.agent.state"
      local s = assert(state.open(os.getenv "LUNACOS_STATE"))
      local status = require "nacos.formats".decode("json", io.open("status.json"):read "a")
      local server = assert(control.serve(s:socket(), function(request)
        if request.command ~= "status" then
          print(request.command, request.target, request.generation)
          for _, target in ipairs(status.targets) do
            if target.name == request.target then
              nacos.spawn(function()
                nacos.sleep(0.1)
                target.turns = (target.turns or 0) + 1
                target.state = request.command == "retry" and "rejected" or request.command == "unpin" and "ok" or "pinned"
                target.generation = request.generation or target.generation
              end)
              return request.generation == 99 and { error = "it has no generation 99" } or { target = target.name }
            end
          end
        end
        return status
      end))
      print "ready"
      nacos.sleep(60)
    ]])
    local process = support.start({ support.lunacos, "run", "agent.lua" }, { cwd = folder, env = { LUNACOS_STATE = agent_state } })
    finally(function() process:kill9() end)
    support.eventually(function()
      return process:stdout():find("ready"), process:stderr()
    end)
    return process
  end

  local function shop(more)
    local target = {
      name = folder .. "/shop.conf", kind = "file", state = "ok", since = os.time() - 600, generation = 2, wanted = "w2",
      written = "w2", applied = "w2", files = { folder .. "/shop.conf" }, reloads = 1, turns = 1, sources = { {
        kind = "config", data_id = "shop.yaml", group = "DEFAULT_GROUP", namespace = "", md5 = ("3"):rep(32), source = "server",
        server = "http://10.0.0.2:8848", time = os.time() - 30, state = "known" } },
    }
    for name, value in pairs(more or {}) do
      target[name] = value
    end
    return target
  end

  local function status_of(targets, more)
    local status = { pid = 4711, script = "agent.lua", since = os.time() - 7200, targets = targets, processes = {}, services = {},
      pushes = {}, sources = {} }
    for name, value in pairs(more or {}) do
      status[name] = value
    end
    return status
  end

  it("status says that all is well", function()
    start_agent(status_of({ shop(), shop { name = "pair", kind = "group", state = "pinned", pinned = 1 } }, {
      processes = { { name = "api", state = "running", pid = 99, starts = 1, since = os.time() - 3000 },
        { name = "once", state = "stopped", code = 0, starts = 1 } },
      services = { { name = "web", state = "registered", healthy = true, ip = "10.0.0.9", port = 80, since = os.time() - 180 } },
      pushes = { { name = "topology.json", file = "/var/lib/t.json", state = "ok" } },
      servers = { { namespace = "", server = "http://10.0.0.1:8848", connected = true, protocol = "grpc", version = "3.1.0",
        why = "grpc: 10.0.0.1:9848 answers (Nacos 3.1.0)" },
        { namespace = "prod", server = "http://10.0.0.1:8848", connected = true, protocol = "grpc", version = "3.1.0",
          why = "grpc: 10.0.0.1:9848 answers (Nacos 3.1.0)" },
        { namespace = "qa", server = "http://10.0.0.2:8848", connected = false, protocol = "v1", version = "2.3.2",
          why = "v1: asked\27for\nmore" } },
    }))
    local out, err = expect(DONE, { "status" })
    assert.equal("", err)
    assert.matches("agent.lua: pid 4711, up 2h\n", out, 1, true)
    assert.matches("\nfile +" .. plain(folder) .. "/shop.conf +ok +10m +generation 2\n", out)
    assert.matches("\ngroup +pair +pinned ", out)
    assert.matches("\nprocess +api +running +50m +pid 99\n", out)
    assert.matches("\nservice +web +registered +3m +10.0.0.9:80\n", out)
    assert.matches("\npush +topology.json +ok +%- +/var/lib/t.json\n", out)
    assert.equal(2, select(2, out:gsub("\nserver ", "")))
    assert.matches("\nserver +http://10.0.0.1:8848 +connected +%- +grpc: 10.0.0.1:9848 answers %(Nacos 3.1.0%)\n", out)
    assert.matches("\nserver +http://10.0.0.2:8848 +away +%- +v1: asked for %(Nacos 2.3.2%)\n", out)
    local answer = json.decode((expect(DONE, { "status", "--json" })))
    assert.equal(4711, answer.pid)
    assert.equal(2, #answer.targets)
  end)

  it("status tells what is not well, why, and since when", function()
    start_agent(status_of({
      shop { state = "owed", since = os.time() - 300, applied = "w1", error = "reload: `nginx -s reload`: exit code 1\ntraceback",
        owed = { since = os.time() - 300, reason = "reload: `nginx -s reload`: exit code 1", tries = 4 }, next_try = 8 } }, {
      processes = { { name = "api", state = "backoff", starts = 3, code = 1, next_start = 4 } },
      services = { { name = "web", state = "unhealthy", error = "connection refused" } },
      sources = { { kind = "config", data_id = "shop.yaml", source = "snapshot", state = "known", age = 90, trouble = "no server" },
        { kind = "config", data_id = "fine", source = "server", state = "known", age = 9 } },
      reread_error = "agent.lua:3: broken\ntraceback",
    }))
    local out = expect(NOT_FOUND, { "status" })
    assert.matches("\nfile +%S+ +owed +5m +generation 2, reload: `nginx %-s reload`: exit code 1, 4 tries, next in 8s\n", out)
    assert.matches("\nprocess +api +backoff +%- +exit code 1, 3 starts, next start in 4s\n", out)
    assert.matches("\nservice +web +unhealthy +%- +connection refused\n", out)
    assert.matches("\nconfig +shop.yaml +snapshot +90s +no server\n", out)
    assert.matches("\nthe scripts on disk are not taken over: agent.lua:3: broken\n", out)
    assert.is_nil(out:find("fine"))
    assert.is_nil(out:find("traceback"))
  end)

  it("status is not well while the scripts on disk are broken", function()
    start_agent(status_of({ shop() }, { reread_error = "agent.lua:3: broken" }))
    expect(NOT_FOUND, { "status" })
  end)

  it("status without an agent shows what it has left, exit code 3", function()
    local out, err = expect(UNAVAILABLE, { "status" })
    assert.matches("the agent does not run", err)
    assert.matches("\ntarget +%S+/shop.conf +rejected +2h +generation 2, check: exit code 1\n", out)
    assert.matches("\ntarget +pair +owed ", out)
    assert.matches("generation 1, 2 files, reload: exit code 3, 4 tries\n", out)
    local answer = json.decode((expect(UNAVAILABLE, { "status", "--json" })))
    assert.is_false(answer.running)
    assert.matches("no agent has run here", (select(2, expect(UNAVAILABLE, { "status", "--state", folder .. "/none" }))))
    expect(UNAVAILABLE, { "status" }, { env = { LUNACOS_STATE = "", HOME = folder, XDG_STATE_HOME = folder .. "/nothing" } })
  end)

  it("find the state of the only agent, or of the only one that runs", function()
    local cli_agent = require "nacos.cli.agent"
    local home, getuid, before = support.tmpdir(), uv.getuid, os.getenv "XDG_STATE_HOME"
    local function found()
      uv.getuid = function() return 1000 end -- root's are in /var
      uv.os_setenv("XDG_STATE_HOME", home)
      local _, result = pcall(cli_agent.existing_state)
      uv.getuid = getuid
      uv.os_setenv("XDG_STATE_HOME", before or "")
      return result
    end
    assert.equal(UNAVAILABLE, found().exit)
    assert(state.open(home .. "/lunacos")):close()
    assert.equal(home .. "/lunacos", found()) -- and not what is in it
    local one = assert(state.open(home .. "/lunacos/one"))
    assert.equal(home .. "/lunacos/one", found())
    local two = assert(state.open(home .. "/lunacos/two"))
    assert.equal(USAGE, found().exit)
    one:close()
    assert.equal(home .. "/lunacos/two", found())
    two:close()
    assert.matches(plain(home .. "/lunacos/one or --state " .. home .. "/lunacos/two"), found().message)
    local here = uv.cwd():match("[^/]*$")
    for script, name in pairs {
      ["."] = here, ["tests/.."] = here, ["/"] = "agent", ["-"] = "agent", ["/a/b.lua"] = "b", ["a/"] = "a",
    } do
      assert.equal(name, cli_agent.state_folder(nil, script):match("[^/]*$"))
    end
    for _, words in ipairs { { "status" }, { "history", "x" }, { "run", "agent.lua" }, { "check", "agent.lua" } } do
      table.insert(words, 2, "--state")
      table.insert(words, 3, "")
      assert.matches("a folder is needed", (select(2, expect(USAGE, words))))
    end
  end)

  it("why tells which keys made a file, and what was refused", function()
    local out = expect(DONE, { "why", "shop.conf" })
    assert.matches("rejected", out)
    assert.matches("generation +2 of %d+%-%d+%-%d+ %S+ %(2h ago%), because of change\n", out)
    assert.matches("files +" .. plain(folder) .. "/shop.conf: md5 %x+, 9 bytes, as written\n", out)
    assert.matches("made of +config shop.yaml: md5 2+, from server http://10.0.0.1:8848, at %d", out)
    assert.matches("check: exit code 1\n", out, 1, true)
    assert.matches("output +unexpected x\n +line two\n", out)
    assert.matches("kept +what was rejected is in " .. plain(agent_state) .. "/%S+\n", out)
    assert.is_nil(out:find("port", 1, true)) -- no contents
    support.write(folder .. "/a.conf", "edited by hand\n")
    out = expect(DONE, { "why", "pair" })
    assert.matches("a.conf: md5 %x+, 7 bytes, changed since by somebody else\n", out)
    assert.matches("b.conf: md5 %x+, 7 bytes, as written\n", out)
    assert.matches("owed +the reload, since .*, 4 tries\n", out)
    support.write(folder .. "/a.conf", "a.conf\n")
  end)

  it("why tells what has not arrived in the file yet", function()
    start_agent(status_of { shop { state = "waiting", error = "waits: no server has answered yet", tried = {
      { kind = "config", data_id = "new.yaml", group = "web", namespace = "n", state = "unknown" } } } })
    local out = expect(DONE, { "why", folder .. "/shop.conf" })
    assert.matches("state +waiting, for 10m\n", out)
    assert.matches("made of +config shop.yaml: md5 2+", out)
    assert.matches("reads now +config new.yaml %(group web, namespace n%): unknown\n", out)
    assert.matches("why +waits: no server has answered yet\n", out)
    local about = json.decode((expect(DONE, { "why", "shop.conf", "--json" })))
    assert.equal("waiting", about.target.state)
    assert.equal(2, about.generation.n)
    assert.equal("as written", about.files[1].disk)
  end)

  it("why tells the newer values of what was refused", function()
    local rejected = { reason = "check: exit code 1", time = os.time() }
    start_agent(status_of { shop { state = "rejected", wanted = "w9", rejected = rejected } })
    local out = expect(DONE, { "why", folder .. "/shop.conf" })
    assert.matches("made of +config shop.yaml: md5 2+", out)
    assert.matches("reads now +config shop.yaml: md5 3+, from server http://10.0.0.2:8848", out)
  end)

  it("why names what there is when the name is wrong", function()
    assert.equal("lunacos: no target is named 'pairs' (did you mean 'pair'?)\n", (select(2, expect(NOT_FOUND, { "why", "pairs" }))))
    expect(USAGE, { "why" })
  end)

  it("history lists generations and shows what one would change", function()
    local out = expect(DONE, { "history", "shop.conf" })
    assert.matches("\n%* +2 +%d+%-%d+%-%d+ %S+ +change +9 +%x+ +shop.yaml\n +1 +%S+ %S+ +start +9 +%x+ +shop.yaml\n$", out)
    out = expect(DONE, { "history", "shop.conf", "1" })
    assert.matches("^%-%-%- " .. plain(folder) .. "/shop.conf\n%+%+%+ " .. plain(folder) .. "/shop.conf %(generation 1%)\n", out)
    assert.matches("\n-port 81;\n+port 80;\n", out, 1, true)
    out = expect(DONE, { "history", "pair" })
    assert.matches("7 +%x+ +" .. plain(folder) .. "/a.conf\n", out)
    local newest = json.decode((expect(DONE, { "history", "shop.conf", "--json" }):match("^[^\n]*")))
    assert.same({ 2, true, "change" }, { newest.n, newest.here, newest.reason })
    expect(NOT_FOUND, { "history", "shop.conf", "9" })
    expect(USAGE, { "history", "shop.conf", "last" })
  end)

  it("rollback, pin, unpin and retry ask the agent and wait for what comes of it", function()
    local process = start_agent(status_of { shop() })
    local name = folder .. "/shop.conf"
    assert.equal(name .. "\tpinned\tgeneration 1\n", (expect(DONE, { "rollback", "shop.conf", "1" })))
    assert.equal(name .. "\tpinned\tgeneration 1\n", (expect(DONE, { "pin", "shop.conf" })))
    assert.equal(name .. "\tok\tgeneration 1\n", (expect(DONE, { "unpin", "shop.conf" })))
    assert.equal(name .. "\trejected\tgeneration 1\n", (expect(REFUSED, { "retry", "shop.conf" })))
    local _, err = expect(NOT_FOUND, { "pin", "shop.conf", "99" })
    assert.equal("lunacos: it has no generation 99\n", err)
    expect(NOT_FOUND, { "pin", "other.conf" })
    assert.equal(table.concat({ "ready", "rollback\t%s\t1", "pin\t%s\tnil", "unpin\t%s\tnil", "retry\t%s\tnil", "pin\t%s\t99", "" },
      "\n"):gsub("%%s", name), process:stdout())
  end)

  it("without an agent, rollback, pin and unpin are noted for the next one", function()
    local function pinned()
      return state.read(agent_state):target(folder .. "/shop.conf").data.pinned
    end
    assert.matches("the agent does not run", (select(2, expect(DONE, { "rollback", "shop.conf" }))))
    assert.equal(1, pinned())
    expect(DONE, { "pin", "shop.conf", "2" })
    assert.equal(2, pinned())
    expect(NOT_FOUND, { "pin", "shop.conf", "7" })
    assert.equal(2, pinned())
    expect(DONE, { "unpin", "shop.conf" })
    assert.is_nil(pinned())
    expect(UNAVAILABLE, { "retry", "shop.conf" })
  end)
end)

describe("commands that need a server", function()
  local server
  local folder = support.tmpdir()

  local function lunacos(words)
    return support.run({ support.lunacos, table.unpack(words) }, { cwd = folder, env = {
      NACOS_SERVER = server.address, LUNACOS_STATE = folder .. "/state", TMPDIR = folder .. "/tmp" } })
  end

  local function expect(code, words)
    local got, out, err = lunacos(words)
    assert.equal(code, got, table.concat(words, " ") .. ": " .. out .. err)
    return out, err
  end

  local function publish(data_id, content)
    local form = ("dataId=%s&group=DEFAULT_GROUP&content=%s"):format(data_id, content)
    assert.equal(200, (support.http("POST", server.base .. "/nacos/v1/cs/configs", form)))
  end

  setup(function()
    server = support.start_server()
    assert(uv.fs_mkdir(folder .. "/tmp", 448))
    publish("port", "80")
    support.write(folder .. "/shop.tmpl", "port {{ text('port') }};\n")
    support.write(folder .. "/agent.lua", ([[
      local agent = require "nacos.agent"
      agent.file { path = "%s/shop.conf", source = "shop.tmpl", check = { "grep", "-q", "port 8", "{staged}" } }
    ]]):format(folder))
  end)

  teardown(function()
    server:stop()
  end)

  it("diff shows what would change, and exits with 2", function()
    os.remove(folder .. "/shop.conf")
    local out = expect(2, { "diff", "--deadline", "20", "agent.lua" })
    assert.matches("\n+port 80;\n", out, 1, true)
    assert.is_nil(support.read(folder .. "/shop.conf"))
    support.write(folder .. "/shop.conf", "port 79;\n")
    out = expect(2, { "diff", "agent.lua" })
    assert.matches("\n-port 79;\n+port 80;\n", out, 1, true)
    support.write(folder .. "/shop.conf", "port 80;\n")
    assert.equal("", (expect(DONE, { "diff", "agent.lua" })))
  end)

  it("check runs the checks on copies and leaves everything alone", function()
    assert.equal("ok\t" .. folder .. "/shop.conf\n", (expect(DONE, { "check", "agent.lua" })))
    publish("port", "90")
    local out = expect(REFUSED, { "check", "agent.lua" })
    assert.matches("^refused\t" .. plain(folder) .. "/shop.conf\tcheck: `grep ", out)
    assert.equal("port 80;\n", support.read(folder .. "/shop.conf"))
    publish("port", "80")
    assert.equal("", (select(2, support.run { "ls", folder .. "/tmp" }))) -- nothing is left of the copies
    assert.is_nil(uv.fs_stat(folder .. "/state"))
    assert.equal("ok\tagent.lua\tdeclares targets: 1\n", (expect(DONE, { "check", "--offline", "agent.lua" })))
    support.write(folder .. "/broken.lua", "require 'nacos.agent'.file { pat = 'x' }\n")
    local _, err = expect(NOT_FOUND, { "check", "--offline", "broken.lua" })
    assert.matches("broken.lua:1: bad option 'pat' to 'agent.file' (did you mean 'path'?)", err, 1, true)
  end)

  it("diff and check say what is not known", function()
    local address = server.address
    finally(function() server.address = address end)
    server.address = "127.0.0.1:1"
    local _, err = expect(UNAVAILABLE, { "diff", "--deadline", "0.3", "agent.lua" })
    assert.matches("configuration 'port' is not known", err)
    local out = expect(UNAVAILABLE, { "check", "--deadline", "0.3", "agent.lua" })
    assert.matches("^unknown\t", out)
  end)

  it("render keeps files without a script", function()
    local reloading = "shop.tmpl:out.conf:echo done >>reloads"
    expect(DONE, { "render", "--once", "--state", "r", "-t", reloading, "-t", "shop.tmpl:out2.conf" })
    assert.equal("port 80;\n", support.read(folder .. "/out.conf"))
    assert.equal("port 80;\n", support.read(folder .. "/out2.conf"))
    assert.equal("done\n", support.read(folder .. "/reloads"))
    expect(DONE, { "render", "--once", "--state", "r", "-t", reloading })
    assert.equal("done\n", support.read(folder .. "/reloads")) -- nothing was owed
    local _, err = expect(REFUSED, {
      "render", "--once", "--state", "r", "--check", "! grep -q 80 {staged}", "-t", "shop.tmpl:new.conf" })
    assert.matches("check: ", err)
    assert.is_nil(support.read(folder .. "/new.conf"))
    assert(uv.fs_stat(folder .. "/r/snapshots")) -- for a cold start without a server
    expect(DONE, { "render", "--once", "--state", "r2", "--no-snapshot", "-t", "shop.tmpl:out3.conf" })
    assert.is_nil((uv.fs_stat(folder .. "/r2/snapshots")))
    _, err = expect(NOT_FOUND, { "render", "--once", "--state", "r", "-t", "shop.tmpl:a.conf", "-t", "shop.tmpl:./a.conf" })
    assert.matches("^lunacos: 'agent.file': %S+/a.conf belongs to the target %S+/a.conf already\n$", err)
    expect(USAGE, { "render", "--once", "-t", "shop.tmpl" })
    expect(USAGE, { "render" })
  end)

  it("an agent that runs is seen, rolled back and let go again", function()
    local agent = support.start({ support.lunacos, "run", "agent.lua" }, { cwd = folder, env = {
      NACOS_SERVER = server.address, LUNACOS_STATE = folder .. "/state" } })
    support.eventually(function()
      return lunacos { "status" } == DONE, agent:stderr()
    end)
    publish("port", "81")
    support.eventually(function()
      return support.read(folder .. "/shop.conf") == "port 81;\n"
    end)
    expect(DONE, { "rollback", "shop.conf" })
    assert.equal("port 80;\n", support.read(folder .. "/shop.conf"))
    local status = expect(DONE, { "status" })
    assert.matches(" pinned ", status)
    assert.matches("\nserver +" .. plain(server.base) .. " +connected +%- +%S", status)
    expect(DONE, { "unpin", "shop.conf" })
    assert.equal("port 81;\n", support.read(folder .. "/shop.conf"))
    assert.matches("config port: md5 43ec517d68b6edd3015b3edc9a11367b, from server " .. server.base,
      (expect(DONE, { "why", "shop.conf" })), 1, true)
    for _, words in ipairs { { "status" }, { "status", "--json" }, { "why", "shop.conf" }, { "why", "shop.conf", "--json" },
      { "history", "shop.conf" }, { "history", "shop.conf", "--json" } } do
      assert.is_nil((expect(DONE, words)):find("port 8", 1, true), table.concat(words, " ") .. " shows contents")
    end
    assert.equal(DONE, agent:stop())
    expect(UNAVAILABLE, { "status" })
  end)

  it("status follows the protocol of a server that goes and comes back as another", function()
    local own = support.start_server()
    local agent = support.start({ support.lunacos, "run", "agent.lua" }, { cwd = folder, env = {
      NACOS_SERVER = own.address, LUNACOS_STATE = folder .. "/other" } })
    local function shows(how, why)
      local wanted = ("\nserver +%s +%s +%%- +%s"):format(plain(own.base), how, plain(why:format(own.port + 1000)))
      support.eventually(function()
        local _, out = lunacos { "status", "--state", folder .. "/other" }
        return out:find(wanted), out
      end, 15)
    end
    shows("connected", "grpc: 127.0.0.1:%d answers (Nacos 3.1.0)\n")
    own:kill9()
    shows("away", "grpc: no gRPC at 127.0.0.1:%d: cannot connect: connection refused\n")
    own = support.start_server { "--port", tostring(own.port), "--api", "v1" }
    shows("connected", "v1: no gRPC at 127.0.0.1:%d: cannot connect: connection refused; the server is Nacos 2.5.1\n")
    assert.equal(DONE, agent:stop())
    own:stop()
  end)
end)

describe("lunacos test", function()
  local folder = support.tmpdir()

  local function run(words)
    return support.run({ support.lunacos, "test", table.unpack(words) }, { cwd = folder, env = { NACOS_SERVER = "127.0.0.1:1" } })
  end

  local function spec(text)
    support.write(folder .. "/spec.lua", text)
  end

  setup(function()
    support.write(folder .. "/shop.tmpl", [[
# {{ env("REGION", "nowhere") }} {{ trim(file("/etc/nowhere/name")) }}
port {{ config("shop.yaml").port }};
{%- for _, i in ipairs(service("web")) do %}
server {{ i.ip }}:{{ i.port }} weight={{ i.weight }};
{%- end %}
all {{ #service("web", { all = true }) }} of {{ join(services("w*"), " ") }}, {{ text("x", { namespace = "other" }) }}
]])
    support.write(folder .. "/agent.lua", [[
local agent = require "nacos.agent"
agent.file { path = "/etc/nowhere/shop.conf", source = "shop.tmpl", owner = "nobody-like-this" }
agent.group { name = "computed", files = function(ctx)
  local files = {}
  for _, i in ipairs(ctx.service("web")) do
    files[#files + 1] = { path = "/etc/nowhere/" .. i.ip, content = function() return ctx.env("REGION") .. i.port end }
  end
  return files
end }
flags = {}
agent.watch("flags.json", function(change) flags[#flags + 1] = change.content and json.decode(change.content) or "gone" end)
]])
  end)

  local FIXTURES = [[
local function fixtures(t)
  t.config("shop.yaml", "port: 8080")
  t.config("x", "seen", { namespace = "other" })
  t.service("web", { { ip = "10.0.0.2", port = 82, weight = 2 }, { ip = "10.0.0.1", port = 81 },
    { ip = "10.0.0.3", port = 83, healthy = false } })
  t.service("wine", {})
  t.env("REGION", "eu")
  t.file("/etc/nowhere/name", "web1\n")
end
]]

  local GOLDEN = [[
# eu web1
port 8080;
server 10.0.0.1:81 weight=1;
server 10.0.0.2:82 weight=2;
all 3 of web wine, seen
]]

  it("compares what templates and scripts make of fixtures with golden files", function()
    support.write(folder .. "/golden.conf", GOLDEN)
    spec(FIXTURES .. [[
case("template", function(t)
  fixtures(t)
  t.renders("shop.tmpl", "golden.conf")
end)
case("script", function(t)
  fixtures(t)
  local s = t.agent("agent.lua")
  t.golden(s.file("shop.conf"), "golden.conf")
  t.equal(s.files("computed"), { ["/etc/nowhere/10.0.0.1"] = "eu81", ["/etc/nowhere/10.0.0.2"] = "eu82" })
  s.change("flags.json", '{"a":1}')
  s.change("flags.json", nil)
  t.equal(flags, { { a = 1 }, "gone" })
end)
case("functions", function(t)
  t.config("a.json", '{"n":[1,2]}')
  t.equal(t.content(function(ctx) return ctx.join(ctx.config("a.json").n, "+") end), "1+2")
  local change = t.change("flags.json", "{}")
  t.equal({ change.data_id, change.md5, change.type }, { "flags.json", "99914b932bd37a50b983c5e7c90ae93b", "json" })
  t.fails("shop.tmpl", "does not exist")
  assert(t.content(function(ctx) return ctx.text("none", { default = "d" }) end) == "d")
end)
]])
    assert.same({ DONE, "ok    template\nok    script\nok    functions\n3 cases, 0 failed\n", "" }, { run { "spec.lua" } })
  end)

  it("shows a diff for what differs, goes on, and exits with 1", function()
    support.write(folder .. "/golden.conf", (GOLDEN:gsub("8080", "9090")))
    spec(FIXTURES .. [[
case("template", function(t)
  fixtures(t)
  t.renders("shop.tmpl", "golden.conf")
  t.equal("a\nb\n", "a\nc\n")
  t.equal({ 1 }, { 2 })
  t.fails(function() end)
  t.fails(function() error("one thing") end, "another")
end)
case("a mistake", function(t) t.cofig("x", "y") end)
case("a bad fixture", function(t) t.service("web", { { ip = "1.2.3.4" } }) end)
case("no such key", function(t) t.render("shop.tmpl") end)
case("no such watch", function(t) t.agent("agent.lua").change("other.json", "") end)
case("good", function(t) t.equal(1, 1) end)
]])
    local code, out, err = run { "spec.lua" }
    assert.same({ NOT_FOUND, "" }, { code, err })
    assert.equal("FAIL  template\n      golden.conf differs; --update makes it so:\n--- golden.conf\n+++ template\n@@",
      out:match("^.-@@"))
    assert.matches("\n-port 9090;\n+port 8080;\n", out, 1, true)
    assert.matches("\n-c\n+b\n", out, 1, true)
    assert.matches("got table [1], wanted table [2]\n", out, 1, true)
    assert.matches("it does not fail\n", out, 1, true)
    assert.matches("it fails with another message: spec.lua:16: one thing\n", out, 1, true)
    assert.matches("FAIL  a mistake\n      spec.lua:18: no function t.cofig (did you mean t.config?)\n", out, 1, true)
    assert.matches("FAIL  a bad fixture\n      spec.lua:19: bad argument 'instances' to 'service'", out, 1, true)
    assert.matches("FAIL  no such key\n      shop.tmpl:1: file '/etc/nowhere/name' does not exist", out, 1, true)
    assert.matches("the script does not watch 'other.json' in group DEFAULT_GROUP (it watches: flags.json)", out, 1, true)
    assert.matches("\nok    good\n6 cases, 5 failed\n$", out)
    assert.is_nil(out:find("nacos/cli", 1, true)) -- our own files are nobody's business
    code, out = run { "--only", "goo", "spec.lua" }
    assert.same({ DONE, "ok    good\n1 case, 0 failed\n" }, { code, out })
  end)

  it("--update writes the golden files", function()
    spec(FIXTURES .. [[case("template", function(t) fixtures(t) t.renders("shop.tmpl", "new/folder/golden.conf") end)]])
    local code, out = run { "spec.lua" }
    assert.equal(NOT_FOUND, code)
    assert.matches("new/folder/golden.conf does not exist; --update writes it\n", out, 1, true)
    code, out = run { "--update", "spec.lua" }
    assert.same({ DONE, "wrote new/folder/golden.conf\nok    template\n1 case, 0 failed, 1 golden files written\n" }, { code, out })
    assert.equal(GOLDEN, support.read(folder .. "/new/folder/golden.conf"))
    code, out = run { "--update", "spec.lua" }
    assert.same({ DONE, "ok    template\n1 case, 0 failed\n" }, { code, out })
  end)

  it("a broken spec is a failure, too", function()
    spec("case('a', function() end)\nerror('stop')\n")
    local code, out, err = run { "spec.lua" }
    assert.same({ NOT_FOUND, "ok    a\n1 case, 0 failed\n" }, { code, out })
    assert.matches("^lunacos: spec.lua:2: stop\n", err)
    spec("x =\n")
    code, out, err = run { "spec.lua" }
    assert.same({ NOT_FOUND, "0 cases, 0 failed\n" }, { code, out })
    assert.matches("spec.lua:", err, 1, true)
    spec("case('a', function() end)")
    assert.equal(NOT_FOUND, (run { "--only", "b", "spec.lua" }))
    assert.equal(NOT_FOUND, (run { "none.lua" }))
    assert.equal(USAGE, (run {}))
  end)
end)
