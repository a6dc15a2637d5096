--- What a script gives as a check, a reload or a predicate: how it is run, for how long, and what is said about it.

local command = require "nacos.agent.command"
local guard = require "nacos.agent.guard"
local log = require "nacos.agent.log"
local nacos = require "nacos"
local options = require "nacos.options"
local scheduler = require "nacos.scheduler"
local support = require "support"
local uv = require "luv"

local eventually = support.eventually
local lines

---A test in a task.
local function test(name, fn)
  it(name, function()
    nacos.run(fn)
  end)
end

local always = log.always
before_each(function()
  lines = {}
  log.always = function(level, target, message, fields) -- luacheck: ignore 122
    lines[#lines + 1] = { text = ("%s %s: %s"):format(level, tostring(target), message), fields = fields }
  end
end)
after_each(function()
  log.always = always -- luacheck: ignore 122
end)

local function logged(text)
  for _, line in ipairs(lines) do
    if line.text:find(text, 1, true) then
      return line
    end
  end
end

---command.run() of a check, with some placeholders.
local function run(action, more)
  local opts = {
    target = "t.conf", what = "check", strict = true, context = { name = "t" },
    places = {
      path = "/etc/t.conf", staged = "/etc/.t.conf", ["path:t.conf"] = "/etc/t.conf", ["staged:t.conf"] = "/etc/.t.conf",
      ["path:/etc/t.conf"] = "/etc/t.conf", ["staged:/etc/t.conf"] = "/etc/.t.conf",
    },
  }
  for name, value in pairs(more or {}) do
    opts[name] = value
  end
  return command.run(action, opts)
end

describe("a program", function()
  test("is well with exit code 0; its lines are in the log", function()
    assert.same({ true, nil, "a\nb" }, { run { "printf", "a\\nb\\n" } })
    assert.truthy(logged("info t.conf: check: a"))
    assert.truthy(logged("info t.conf: check: b"))
    assert.is_nil(logged("done"))
    assert.is_true(run("true", { what = "reload" }))
    assert.equal("number", type(logged("info t.conf: reload done").fields.duration))
  end)

  test("says by its last line why it fails, and is told with its words filled in", function()
    local ok, problem, output = run { "sh", "-c", "echo looks bad; echo in line 3 of $1; echo; exit 4", "sh", "{staged}" }
    assert.is_nil(ok)
    assert.equal("check: `sh -c echo looks bad; echo in line 3 of $1; echo; exit 4 sh /etc/.t.conf`: exit code 4: "
      .. "in line 3 of /etc/.t.conf", problem)
    assert.equal("looks bad\nin line 3 of /etc/.t.conf", output)
    assert.equal("check: `exit 2`: exit code 2", select(2, run "exit 2"))
    assert.equal("check: `kill -9 $$` was ended by signal 9", select(2, run "kill -9 $$"))
    assert.match("^check: .*no%-such%-program", (select(2, run { "no-such-program" })))
    ok, problem, output = run("printf x; i=0; while [ $i -lt 900 ]; do printf äöü; i=$((i+1)); done; exit 1")
    assert.is_nil(ok)
    assert.is_true(#problem < 400 and #output < 2100)
    assert.truthy(utf8.len(problem) and utf8.len(output))
  end)

  test("has a time, after which it is ended with all it has started", function()
    local folder = support.tmpdir()
    local ok, problem, output = run(("echo waits; sleep 60 & echo $! >%s/pid; wait"):format(folder), { timeout = 0.3 })
    assert.is_nil(ok)
    assert.match("^check: `.*` did not end within 0.3 s: waits$", problem)
    assert.equal("waits", output)
    local pid = tonumber(support.read(folder .. "/pid"))
    eventually(function() return uv.kill(pid, 0) ~= 0 end)
  end)

  test("does not get what is only for the agent", function()
    uv.os_setenv("NACOS_PASSWORD", "geheim")
    uv.os_setenv("NOTIFY_SOCKET", "/nowhere")
    uv.os_setenv("ORDINARY", "yes")
    local _, _, output = run "env; cat"
    for _, name in ipairs { "NACOS_PASSWORD", "NOTIFY_SOCKET", "ORDINARY" } do
      uv.os_unsetenv(name)
    end
    assert.falsy(output:find("geheim", 1, true) or output:find("NOTIFY_SOCKET", 1, true))
    assert.truthy(output:find("ORDINARY=yes", 1, true))
  end)
end)

describe("a placeholder", function()
  local function printed(action, places)
    return (select(3, run(action, places and { places = places })))
  end

  test("is filled in, wherever it stands", function()
    assert.equal("--in=/etc/.t.conf /etc/t.conf", printed { "echo", "--in={staged}", "{path:t.conf}" })
    assert.equal("/etc/t.conf,/etc/.t.conf", printed "echo {path},{staged:/etc/t.conf}")
  end)

  test("leaves other braces to the program", function()
    for _, word in ipairs { "{print}", "{ path }", "%{http_code}", "{}", "{a,b}", "{x:y}", "${path}", "{print $1}" } do
      assert.equal(word, printed { "echo", word })
    end
    assert.equal("of sh", printed "path='of sh'; echo ${path}")
    assert.equal("{staged}", (select(3, command.ask("check", { "echo", "{staged}" }, {}))))
  end)

  test("that nobody knows is an error that names the known ones", function()
    for word, name in pairs { ["{stagd}"] = "{stagd}", ["-c{paths}"] = "{paths}", ["{staged:other}"] = "{staged:other}" } do
      for _, action in ipairs { { "echo", word }, "echo " .. word } do
        local known = "{path}, {path:t.conf}, {staged}, {staged:t.conf}"
        assert.same({ nil, ("check: %s stands for nothing here; known: %s"):format(name, known), "" }, { run(action) })
      end
    end
    assert.equal("check: {staged} stands for nothing here; known: {path}",
      (select(2, run({ "echo", "{staged}" }, { places = { path = "/p" } }))))
  end)

  test("is never code for sh", function()
    local folder = support.tmpdir()
    local name = "a b'\"; echo >" .. folder .. "/harm; $(echo >" .. folder .. "/harm)`echo >" .. folder .. "/harm`"
    local places = { path = name, staged = "plain", ["path:a-b"] = "a b", ["path:a.b"] = "a  b" }
    assert.equal("a b,a  b", printed("echo {path:a-b},{path:a.b}", places))
    for _, line in ipairs {
      "printf %s {path}", 'printf %s "{path}"', "printf %s '{path}'", "printf %s {staged} >&2; printf %s {path}",
    } do
      assert.equal(name, (printed(line, places):gsub("^plain", "")), line)
    end
    assert.equal(name, printed({ "/bin/sh", "-ec", "printf %s {path}" }, places))
    for _, line in ipairs { 'echo "in {path} it"', "echo 'in {path} it'", "sh -c 'echo {path}'" } do
      run(line, { places = places })
    end
    assert.is_nil(support.read(folder .. "/harm"))
    local _, problem = run("exit 1; : {path}", { places = { path = "a b" } })
    assert.equal("check: `exit 1; : a b`: exit code 1", problem)
  end)
end)

describe("a function", function()
  test("gets the context, and fails as it says", function()
    local got
    assert.same({ true, nil, "" }, { run(function(context) got = context.name return true end) })
    assert.equal("t", got)
    assert.same({ nil, "check: too few", "" }, { run(function() return false, "too few" end) })
    assert.same({ nil, "check: the function returned nil", "" }, { run(function() end) })
    assert.is_true(run(function() end, { strict = false }))
    assert.same({ nil, "check: why not", "" }, { run(function() return nil, "why not" end, { strict = false }) })
    local ok, problem, output = run(function() error("boom") end)
    assert.is_nil(ok)
    assert.match("^check: [^\n]*boom$", problem)
    assert.match("stack traceback", output)
    assert.is_true(run(setmetatable({}, { __call = function() return true end })))
  end)

  test("that does not wait is answered in the same turn", function()
    local others
    nacos.spawn(function()
      nacos.sleep(0)
      others = true
    end)
    assert.is_true(run(function() return true end))
    assert.is_nil(others)
  end)

  test("may wait for so long, is given up then, and not called again before it has returned", function()
    local calls, go = 0, false
    local function slow()
      calls = calls + 1
      while not go do
        nacos.sleep(0.01)
      end
      return true
    end
    assert.same({ nil, "check: no answer within 0.05 s", "" }, { run(slow, { timeout = 0.05 }) })
    local _, problem = run(slow, { timeout = 0.05 })
    assert.match("^check: the call before this one still runs, for %d+ s now$", problem)
    assert.equal(1, calls)
    run(slow, { timeout = 0.05, target = "another" })
    assert.equal(2, calls)
    go = true
    eventually(function() return logged("check of t.conf: it has ended now") and logged("check of another: it has ended now") end)
    assert.is_true(run(slow, { timeout = 5 }))
    assert.is_true(run(function() nacos.sleep(0.02) return true end, { timeout = 5 }))
    assert.equal(2, #lines)
  end)

  test("of any kind has such a time", function()
    assert.same({ true, 1, nil, 3 }, { command.call("content of x", 5, function(...) nacos.sleep(0.01) return ... end, 1, nil, 3) })
    local ok, err = command.call("content of x", 0.05, nacos.sleep, 0.3)
    assert.is_false(ok)
    assert.same({ "timeout", "content of x: no answer within 0.05 s" }, { err.code, tostring(err) })
    ok, err = command.call("content of x", 0.05, error, { code = "unknown" })
    assert.same({ false, "unknown" }, { ok, err.code })
  end)

  it("is only called where nobody can wait", function()
    assert.same({ true, 1 }, { command.call("content of x", 0.01, function() nacos.sleep(0.03) return 1 end) })
  end)

  test("that holds up all others is told by its name, and only that one", function()
    local warn = guard.warn
    guard.warn = 0.03
    scheduler.on_slow(guard.warn, guard.slow)
    local function burn(seconds)
      local stop = uv.hrtime() + seconds * 1e9
      repeat until uv.hrtime() > stop
    end
    nacos.spawn(function()
      guard.name("target t.conf")
      nacos.sleep(0)
      run(function() burn(0.1) return true end)
      nacos.sleep(0)
      guard.call("template of t.conf", burn, 0.1)
      nacos.sleep(0)
      guard.call("template of t.conf", burn, 0)
      burn(0.1)
    end)
    eventually(function() return #lines >= 3 end)
    scheduler.on_slow(nil, nil)
    guard.warn = warn
    assert.equal(3, #lines)
    for i, name in ipairs { "check of t.conf", "template of t.conf", "target t.conf" } do
      assert.match("^warn nil: " .. name:gsub("%p", "%%%0") .. " held up everything else for 0%.%d s$", lines[i].text)
    end
  end)
end)

describe("the rule", function()
  it("refuses what cannot be run", function()
    for problem, given in pairs {
      ["a program is needed"] = { {}, { "" } },
      ["element 2: string expected, got number"] = { { "a", 1 } },
      ["element 2: holds a NUL byte"] = { { "a", "b\0c" } },
      ["element 2 is nil"] = { { "a", nil, "c" } },
      ["element 1 is nil"] = { { nil, "c" } },
      ["a list expected, it has the key 'timeout'"] = { { "a", timeout = 3 }, { timeout = 3 } },
      ["is empty"] = { "", " \n" },
      ["holds a NUL byte"] = { "a\0" },
      ["string or table or function expected, got number"] = { 5 },
    } do
      for _, action in ipairs(given) do
        local ok, err = pcall(options.check, { check = command.RULE }, { check = action }, "agent.file")
        assert.is_false(ok)
        assert.truthy(err:find(("bad option 'check' to 'agent.file' (%s)"):format(problem), 1, true), err)
      end
    end
    for _, action in ipairs { { "a", "" }, "exit 1", print, setmetatable({}, { __call = print }) } do
      assert.truthy(options.check({ check = command.RULE }, { check = action }, "agent.file").check)
    end
    assert.is_false((pcall(options.check, { command = command.PROGRAM }, { command = print }, "agent.process")))
  end)
end)
