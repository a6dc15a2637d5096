--- Supervised processes: when they start, what a change does to them, how they come back, and that nothing of them is left.

local core = require "nacos.core"
local nacos = require "nacos"
local process = require "nacos.process"
local support = require "support"
local supervisor = require "nacos.agent.supervisor"
local template_functions = require "nacos.template_functions"
local uv = require "luv"

local eventually = support.eventually
local folder, children, lines

---A test in a task, whose children are gone after it.
local function test(name, fn)
  it(name, function()
    nacos.run(function()
      local ok, err = xpcall(fn, function(e) return type(e) == "string" and debug.traceback(e, 2) or e end)
      for _, child in ipairs(children) do
        child.spec.kill_signal, child.spec.kill_timeout = "KILL", 1
        child:stop()
      end
      if not ok then
        error(err, 0)
      end
    end)
  end)
end

setup(process.reap) -- as the agent does: else what a child leaves behind stays as a zombie until PID 1 looks

before_each(function()
  folder, children, lines = support.tmpdir(), {}, {}
end)

---What a definition with quick times says.
local function spec(more)
  local given = { name = "app", restart_delay = 0.02, restart_delay_max = 0.1, settle = 0.03, kill_timeout = 5 }
  for name, value in pairs(more) do
    given[name] = value
  end
  return supervisor.check(given)
end

---A child that may start, its folder in $D of its environment.
local function start(more, on_exit, agent)
  more.env = more.env or { add = {} }
  more.env.add = more.env.add or {}
  more.env.add.D = folder
  local child = supervisor.new(spec(more), {
    log = function(level, text) lines[#lines + 1] = level .. ": " .. text end,
    on_exit = on_exit, agent = agent,
  })
  children[#children + 1] = child
  child:allow()
  return child
end

local function in_state(child, state, seconds)
  eventually(function()
    local status = child:status()
    return status.state == state, status.state .. " " .. tostring(status.error)
  end, seconds)
end

---Count the lines of a file that a child writes.
local function count(name)
  return select(2, (support.read(folder .. "/" .. name) or ""):gsub("\n", ""))
end

local function has(name, n)
  return eventually(function()
    return count(name) >= (n or 1), name .. ": " .. count(name)
  end)
end

local function logged(pattern)
  local n = 0
  for _, line in ipairs(lines) do
    n = n + (line:find(pattern) and 1 or 0)
  end
  return n
end

local function there(pid)
  return uv.kill(pid, 0) == 0
end

local SLEEP = "while :; do sleep 0.02; done" -- so that sh stays and its traps run

describe("a process", function()
  test("starts when it may, says what it says in the log, and stops", function()
    local child = supervisor.new(spec { command = { "sh", "-c", "echo one; echo two >&2; exec sleep 60" } }, {
      log = function(level, text) lines[#lines + 1] = level .. ": " .. text end,
    })
    children[1] = child
    nacos.sleep(0.05)
    assert.same({ "waiting", 0 }, { child:status().state, child:status().starts })
    child:allow()
    in_state(child, "running")
    eventually(function() return #lines == 3 end)
    assert.same({ "info: start 1", "info: one", "info: two" }, lines)
    local pid = eventually(function() return child:status().pid end)
    assert.is_true(there(pid))
    assert.equal(143, child:stop())
    assert.is_false(there(pid))
    assert.equal("stopped", child:status().state)
    assert.equal("info: ended by signal 15", lines[4])
    assert.equal(143, child:stop())
  end)

  test("stops before it may start, while it is not ready, and while it waits to be started again", function()
    local waiting = supervisor.new(spec { command = "exit 0" }, { log = function() end })
    waiting:stop()
    waiting:allow()
    local unready = start { command = "echo >>$D/up; exec sleep 60", ready = "false" }
    local failing = start { command = "exit 1", restart_delay = 60, restart_delay_max = 60 }
    in_state(failing, "backoff")
    has("up")
    local begin = core.monotonic()
    unready:stop()
    failing:stop()
    assert.is_true(core.monotonic() - begin < 4)
    for _, child in ipairs { waiting, unready, failing } do
      assert.equal("stopped", child:status().state)
    end
    assert.equal(0, waiting:status().starts)
  end)

  test("that ignores the kill signal gets KILL after its time", function()
    local child = start { command = "trap '' TERM; echo >>$D/up; " .. SLEEP, kill_timeout = 0.2 }
    has("up")
    local pid = child:status().pid
    assert.equal(137, child:stop())
    assert.is_false(there(pid))
    assert.equal(1, logged("warn: sent KILL"))
  end)

  test("is stopped once by many", function()
    local child = start { command = "trap 'echo >>$D/term; sleep 0.1; exit 4' TERM; echo >>$D/up; " .. SLEEP }
    has("up")
    local codes = {}
    for i = 1, 3 do
      nacos.spawn(function() codes[i] = child:stop() end)
    end
    assert.equal(4, child:stop())
    eventually(function() return #codes == 3 end)
    assert.same({ 4, 4, 4 }, codes)
    assert.equal(1, count("term"))
  end)

  test("gets the kill signal of its definition", function()
    local child = start { command = "trap 'exit 9' QUIT; echo >>$D/up; " .. SLEEP, kill_signal = "SIGQUIT" }
    has("up")
    assert.equal(9, child:stop())
  end)

  test("gives what it has started the time to end, and no more", function()
    local worker = "(trap 'sleep 0.2; echo >>$D/drained; exit' TERM; echo >>$D/up; " .. SLEEP .. ") & "
    local child = start { command = worker .. "wait" }
    has("up")
    child:stop()
    assert.equal(1, count("drained"))

    local deaf = start { command = "(trap '' TERM; echo $$ >>$D/deaf; exec sleep 60) & exec sleep 61", kill_timeout = 0.2 }
    has("deaf")
    local pid = deaf:status().pid
    deaf:stop()
    eventually(function() return uv.kill(-pid, 0) ~= 0 end)
    assert.equal(1, logged("warn: sent KILL"))
  end)

  test("leaves nothing behind for its successor when it fails", function()
    start { command = "if [ -e $D/pid ]; then kill -0 -$(cat $D/pid) && echo >>$D/rest; echo >>$D/second; exec sleep 60; fi; "
      .. "echo $$ >$D/pid; sleep 60 & exit 1" }
    has("second")
    assert.equal(0, count("rest"))
  end)
end)

describe("a process that ends", function()
  test("by its policy stays so, and its exit code is told once", function()
    local codes = {}
    local function on_exit(code, child) codes[#codes + 1] = child.name .. code end
    local a = start({ name = "a", command = "exit 0" }, on_exit)
    local b = start({ name = "b", command = "exit 7", restart = "no" }, on_exit)
    local c = start({ name = "c", command = "kill -9 $$", restart = "no" }, on_exit)
    eventually(function() return #codes == 3 end)
    table.sort(codes)
    assert.same({ "a0", "b7", "c137" }, codes)
    assert.same({ "ended", 0 }, { a:status().state, a:status().code })
    assert.same({ "ended", "ended with exit code 7" }, { b:status().state, b:status().error })
    assert.same({ "ended", 9 }, { c:status().state, c:status().signal })
    a:changed()
    nacos.sleep(0.05)
    assert.same({ "ended", 1 }, { a:status().state, a:status().starts })
  end)

  test("is started again, always or when it failed", function()
    start { name = "a", command = "echo >>$D/always", restart = "always", limit = false }
    start { name = "b", command = "echo >>$D/failure; exit 1", limit = false }
    has("always", 3)
    has("failure", 3)
  end)

  test("too often is given up, after pauses that double; a change is a new chance", function()
    local code
    local child = start({
      command = "echo >>$D/starts; test -e $D/good && exec sleep 60; exit 3", limit = { starts = 5, within = 60 },
    }, function(c) code = c end)
    in_state(child, "failed")
    eventually(function() return code end)
    assert.same({ 3, 5 }, { code, count("starts") })
    for _, pause in ipairs { "0.02", "0.04", "0.08", "0.1" } do
      assert.equal(1, logged("started again in " .. pause:gsub("%.", "%%.") .. " s$"))
    end
    assert.match("exit code 3; has ended 5 times within 60 s", child:status().error)
    child:changed()
    has("starts", 10)
    in_state(child, "failed")
    support.write(folder .. "/good", "")
    assert.is_true(child:retry())
    in_state(child, "running")
    assert.is_nil(child:status().error)
    assert.is_false(child:retry())
    nacos.sleep(0.05)
    assert.same({ "running", 11 }, { child:status().state, count("starts") })
  end)

  test("that could not even be tried is one that failed", function()
    local begin, code = process.start, nil
    process.start = function() error("no process today") end -- luacheck: ignore 122
    local child = start({ command = "true", restart_delay = 60 }, function(c) code = c end)
    local failed, problem = pcall(in_state, child, "backoff")
    process.start = begin -- luacheck: ignore 122
    assert(failed, problem)
    assert.match("no process today$", child:status().error)
    assert.is_true(child:retry())
    in_state(child, "ended")
    assert.equal(2, child:status().starts + 1)
    eventually(function() return code == 0 end)
    assert.is_true(child:retry())
    eventually(function() return child:status().starts == 2 end)
  end)

  test("after a long run is started again after the first pause", function()
    start { command = "echo >>$D/starts; sleep 0.1; exit 1", restart_reset = 0.05, limit = false }
    has("starts", 4)
    assert.equal(0, logged("started again in 0%.04"))
    assert.is_true(logged("started again in 0%.02") >= 3)
  end)

  test("is started at once when its files change", function()
    local child = start { command = "echo >>$D/starts; exit 1", restart_delay = 60, restart_delay_max = 60 }
    in_state(child, "backoff")
    assert.is_true(child:status().next_start > 30)
    child:changed()
    has("starts", 2)
  end)

  test("because it cannot be started is treated like the others", function()
    local code
    local child = start({ command = { "/nonexistent/program" }, limit = { starts = 2, within = 60 } }, function(c) code = c end)
    in_state(child, "failed")
    eventually(function() return code end)
    assert.equal(127, code)
    assert.match("cannot start /nonexistent/program", child:status().error)
    local nobody = start { command = "true", user = "no-such-user", restart = "no" }
    in_state(nobody, "ended")
    assert.equal("there is no user 'no-such-user'", nobody:status().error)
  end)
end)

describe("a change", function()
  local RELOADS = "trap 'cat $D/file >>$D/reloads' HUP; cat $D/file >>$D/starts; " .. SLEEP

  test("sends the reload signal, not before the child has settled; the last one is never lost", function()
    support.write(folder .. "/file", "0\n")
    local child = start { command = "echo >>$D/up; sleep 0.1; " .. RELOADS, reload_signal = "HUP", settle = 0.5 }
    has("up")
    for i = 1, 50 do
      support.write(folder .. "/file", i .. "\n")
      child:changed()
    end
    has("reloads")
    nacos.sleep(0.1)
    assert.equal("50\n", support.read(folder .. "/reloads"))
    for i = 51, 60 do
      support.write(folder .. "/file", i .. "\n")
      child:changed()
      nacos.sleep(0.01)
    end
    eventually(function() return support.read(folder .. "/reloads"):match("60\n$") end)
    assert.equal(1, child:status().starts)
  end)

  test("restarts a child without a reload signal, once for many", function()
    local child = start { command = "trap 'sleep 0.2; exit' TERM; cat $D/file >>$D/starts; " .. SLEEP }
    support.write(folder .. "/file", "0\n")
    has("starts")
    nacos.sleep(0.1)
    child:changed()
    in_state(child, "stopping")
    for i = 1, 20 do
      support.write(folder .. "/file", i .. "\n")
      child:changed()
    end
    has("starts", 2)
    assert.match("\n20\n$", "\n" .. support.read(folder .. "/starts"))
    nacos.sleep(0.2)
    assert.equal(2, child:status().starts)
    assert.equal(0, logged("started again"))
  end)

  test("waits for a child that is not ready, and none is sent where none is wanted", function()
    support.write(folder .. "/file", "0\n")
    local child = start {
      command = RELOADS, reload_signal = "HUP", ready = { "test", "-e", folder .. "/ready" }, ready_interval = 0.05,
    }
    has("starts")
    child:changed()
    nacos.sleep(0.2)
    assert.same({ "starting", 0 }, { child:status().state, count("reloads") })
    support.write(folder .. "/ready", "")
    has("reloads")
    local quiet = start { name = "quiet", command = "exec sleep 60", reload_signal = "none" }
    in_state(quiet, "running")
    local pid = eventually(function() return quiet:status().pid end)
    quiet:changed()
    nacos.sleep(0.2)
    assert.equal(pid, quiet:status().pid)
  end)

  test("during a stop starts nothing", function()
    local child = start { command = "trap 'sleep 0.1; exit' TERM; echo >>$D/up; " .. SLEEP }
    has("up")
    nacos.spawn(child.stop, child)
    in_state(child, "stopping")
    child:changed()
    child:stop()
    child:changed()
    nacos.sleep(0.05)
    assert.same({ "stopped", 1 }, { child:status().state, child:status().starts })
  end)
end)

describe("readiness", function()
  test("is asked of a function until it says yes", function()
    local asked = 0
    local child = start {
      command = "exec sleep 60", ready_interval = 0.02,
      ready = function()
        asked = asked + 1
        if asked == 1 then
          error("not yet")
        end
        nacos.sleep(0.01)
        return asked > 3
      end,
    }
    in_state(child, "starting")
    in_state(child, "running")
    assert.equal(4, asked)
    nacos.sleep(0.1)
    assert.equal(4, asked)
  end)

  test("has to come in time, also from a function that hangs", function()
    local child = start {
      command = "echo >>$D/starts; exec sleep 60", ready_timeout = 0.1, limit = { starts = 2, within = 60 },
      ready = function() nacos.sleep(0.4) end,
    }
    in_state(child, "failed")
    assert.equal(2, count("starts"))
    assert.match("^not ready within 0%.1 s: no answer", child:status().error)
    local other = start {
      name = "b", command = "exec sleep 60", ready_timeout = 0.3, restart = "no", ready = "echo out of order; exit 3",
    }
    in_state(other, "ended")
    assert.equal("not ready within 0.3 s: `echo out of order; exit 3`: exit code 3: out of order", other:status().error)
  end)

  test("does not outlive the child", function()
    local child = start { command = "echo >>$D/starts; exit 1", restart = "no", ready = "echo >>" .. folder .. "/asked; false",
      ready_interval = 0.02 }
    in_state(child, "ended")
    local asked = count("asked")
    nacos.sleep(0.2)
    assert.is_true(count("asked") <= asked + 1)
  end)
end)

describe("a new definition", function()
  test("that starts the same keeps the child; everything else of it counts", function()
    local given = { command = { "sleep", "60" }, env = { add = { D = folder, A = function() return "1" end } } }
    local child = start(given)
    in_state(child, "running")
    local pid = eventually(function() return child:status().pid end)
    given.env.add.A = function() return "1" end
    given.kill_signal = "INT"
    child:update(spec(given))
    nacos.sleep(0.2)
    assert.equal(pid, child:status().pid)
    assert.equal(130, child:stop())
  end)

  test("that starts something else restarts it", function()
    local child = start { command = { "sleep", "60" } }
    in_state(child, "running")
    for starts, more in ipairs {
      { command = "exec sleep 60" }, { command = { "sleep", "60" } }, { command = { "sleep", "60" }, cwd = folder },
      { command = { "sleep", "60" }, env = { add = { A = "1" } } }, { command = { "sleep", "60" }, output = "inherit" },
    } do
      child:update(spec(more))
      eventually(function()
        local status = child:status()
        return status.state == "running" and status.starts == starts + 1, status.state .. " " .. status.starts
      end)
    end
  end)

  test("starts one that was given up, or has ended and is another now", function()
    local child = start { command = "exit 1", limit = { starts = 1, within = 60 } }
    in_state(child, "failed")
    child:update(spec { command = "exec sleep 60" })
    in_state(child, "running")
    local done = start { command = "exit 0" }
    in_state(done, "ended")
    done:update(spec { command = "exit 0", env = { add = { D = folder } } })
    nacos.sleep(0.05)
    assert.equal(1, done:status().starts)
    done:update(spec { command = "exec sleep 60" })
    in_state(done, "running")
  end)
end)

describe("the environment", function()
  local function variables(rules)
    local child = start { command = "env >$D/env.new; mv $D/env.new $D/env; exec sleep 60", env = rules }
    local text = eventually(function() return support.read(folder .. "/env") end)
    os.remove(folder .. "/env")
    child:stop()
    local found = {}
    for name, value in text:gmatch("([%w_]+)=([^\n]*)\n") do
      found[name] = value
    end
    found.D, found.PWD, found.SHLVL, found._, found.OLDPWD = nil, nil, nil, nil, nil
    return found
  end

  test("is ours without what is only for us, or what its rules say", function()
    for name, value in pairs { AGENT_A = "1", AGENT_B = "2", NOTIFY_SOCKET = "/nowhere", NACOS_PASSWORD = "s3cret" } do
      uv.os_setenv(name, value)
    end
    local all = variables {}
    local denied = variables { deny = { "AGENT_?" }, add = { NACOS_PASSWORD = "given" } }
    local allowed = variables { allow = { "AGENT_*" }, deny = { "*_B" } }
    local pristine = variables { pristine = true, add = { PATH = os.getenv("PATH") } }
    local both = variables { pristine = true, allow = { "PATH", "AGENT_A" } }
    for _, name in ipairs { "AGENT_A", "AGENT_B", "NOTIFY_SOCKET", "NACOS_PASSWORD" } do
      uv.os_unsetenv(name)
    end
    assert.same({ "1", "2", os.getenv("PATH") }, { all.AGENT_A, all.AGENT_B, all.PATH })
    assert.same({}, { all.NOTIFY_SOCKET, all.NACOS_PASSWORD })
    assert.same({ nil, nil, "given" }, { denied.AGENT_A, denied.AGENT_B, denied.NACOS_PASSWORD })
    assert.same({ AGENT_A = "1" }, allowed)
    assert.same({ PATH = os.getenv("PATH") }, pristine)
    assert.same({ PATH = os.getenv("PATH"), AGENT_A = "1" }, both)
  end)

  ---Sources with one configuration; agent.set(value) changes it for who has read it. nil: it is not known.
  local function sources(value)
    local agent = { sources = {}, users = {} }
    function agent.set(new)
      value = new
      for user in pairs(agent.users) do
        user.changed()
      end
    end
    function agent.sources:read(user) -- luacheck: ignore 212
      local reader = { done = function() return { { kind = "config", data_id = "secret" } } end }
      agent.users[user] = true
      reader.functions = { config = function(name)
        reader.unknown = value == nil and template_functions.failure("unknown", name .. ": no server has answered yet") or nil
        return value or error(reader.unknown, 0)
      end }
      return reader
    end
    function agent.sources:forget(user) -- luacheck: ignore 212
      agent.users[user] = nil
    end
    return agent
  end

  local function secret(read)
    return read.config("secret")
  end

  test("has values of configurations; another value is a restart also where files only send a signal", function()
    local agent = sources("pl4nted-one")
    local child = start({
      command = "trap 'echo >>$D/hup' HUP; echo \"$SECRET\" >>$D/values; " .. SLEEP, reload_signal = "HUP",
      env = { add = { SECRET = secret } },
    }, nil, agent)
    has("values")
    in_state(child, "running")
    child:changed()
    has("hup")
    agent.set("pl4nted-one") -- anew, but the same
    nacos.sleep(0.1)
    assert.same({ 1, 1 }, { count("values"), count("hup") })
    agent.set("pl4nted-two")
    has("values", 2)
    assert.equal("pl4nted-one\npl4nted-two\n", support.read(folder .. "/values"))
    local pid = eventually(function() return child:status().pid end)
    local shown = { support.read("/proc/" .. pid .. "/cmdline") }
    for _, line in ipairs(lines) do
      shown[#shown + 1] = line
    end
    for name, field in pairs(child:status()) do
      shown[#shown + 1] = name .. "=" .. tostring(field)
    end
    assert.is_nil(table.concat(shown, "\n"):find("pl4nted", 1, true))
    assert.equal("secret", child:status().sources[1].data_id)
    agent.set(nil) -- cannot be had now
    nacos.sleep(0.1)
    assert.same({ "running", 2 }, { child:status().state, child:status().starts })
    child:stop()
    assert.is_nil(next(agent.users))
  end)

  test("that is not known yet is waited for, one that fails is a failed start", function()
    local agent = sources(nil)
    local child = start({
      command = "exec sleep 60", limit = { starts = 1, within = 60 }, env = { add = { A = secret } },
    }, nil, agent)
    eventually(function() return child:status().error end)
    assert.same({ "waiting", 0, "the environment waits: secret: no server has answered yet" },
      { child:status().state, child:status().starts, child:status().error })
    agent.set("1")
    in_state(child, "running")
    assert.is_nil(child:status().error)
    for _, fn in ipairs { function() error("no such key", 0) end, function() return 1 end } do
      local bad = start { command = "exec sleep 60", restart = "no", env = { add = { B = fn } } }
      in_state(bad, "ended")
      assert.match("^environment variable B: ", bad:status().error)
    end
  end)
end)

describe("a process has", function()
  test("its folder, user and group", function()
    local root = uv.getuid() == 0
    local user = root and "nobody" or uv.getuid()
    uv.fs_chmod(folder, tonumber("777", 8))
    uv.fs_chmod(folder:match("^(.*)/"), tonumber("755", 8))
    start { command = "{ pwd; id -u; id -g; id -G; } >out.new; mv out.new out; exec sleep 60", cwd = folder, user = user }
    local text = eventually(function() return support.read(folder .. "/out") end)
    local uid, gid = core.user(user)
    assert.match(("^%s\n%d\n%d\n"):format(folder:gsub("%p", "%%%0"), uid, gid), text)
    if root then
      assert.match(("\n%d\n$"):format(gid), text)
    end
  end)

  test("the name and the home of its user, unless something else is added", function()
    local _, _, name, home = core.user(uv.getuid())
    start {
      command = 'echo "$HOME $USER $LOGNAME" >$D/out.new; mv $D/out.new $D/out; exec sleep 60', user = uv.getuid(),
      env = { pristine = true, add = { LOGNAME = "another", PATH = os.getenv("PATH") } },
    }
    assert.equal(("%s %s another\n"):format(home, name), eventually(function() return support.read(folder .. "/out") end))
  end)

  test("an input that is empty", function()
    start { command = "cat >$D/in.new; mv $D/in.new $D/in; exec sleep 60" }
    assert.equal("", eventually(function() return support.read(folder .. "/in") end))
  end)

  test("a signal forwarded to it", function()
    local child = start { command = "trap 'echo >>$D/usr1' USR1; echo >>$D/up; " .. SLEEP }
    has("up")
    child:signal("USR1")
    has("usr1")
  end)
end)

describe("agent.process", function()
  it("refuses what it cannot mean, at the caller's line", function()
    local function declare(given)
      return (supervisor.check(given, 1))
    end
    for message, given in pairs {
      ["missing option 'command'"] = { name = "a" },
      ["missing option 'name'"] = { command = "x" },
      ["bad option 'kil_signal' to 'agent.process' %(did you mean 'kill_signal'%?%)"] = {
        name = "a", command = "x", kil_signal = "INT",
      },
      ["unknown signal 'HIP'"] = { name = "a", command = "x", reload_signal = "HIP" },
      ["one of 'no', 'on%-failure', 'always' expected"] = { name = "a", command = "x", restart = "never" },
      ["a program is needed"] = { name = "a", command = {} },
      ["element 2: string expected, got number"] = { name = "a", command = { "x", 1 } },
      ["element 2: holds a NUL byte"] = { name = "a", command = { "x", "a\0" } },
      ["element 2 is nil"] = { name = "a", command = { "x", nil, "b" } },
      ["bad option 'ready'.*holds a NUL byte"] = { name = "a", command = "x", ready = "a\0" },
      ["bad option 'user'"] = { name = "a", command = "x", user = 2 ^ 32 - 1 },
      ["a table or false expected"] = { name = "a", command = "x", limit = true },
      ["A: string or function expected, got number"] = { name = "a", command = "x", env = { add = { A = 1 } } },
      ["bad option 'denny'"] = { name = "a", command = "x", env = { denny = {} } },
    } do
      local ok, err = pcall(declare, given)
      assert.is_false(ok)
      assert.match(message, err)
      assert.match("^[^:]*agent_supervisor_spec%.lua:%d+: ", err)
    end
  end)
end)
