--- Child processes of the engine: what they get, how their end and their output are told, and that they disturb nobody. And what else
-- the scheduler waits for: descriptors, signals, luv's loop.

local core = require "nacos.core"
local lab = require "lab"
local nacos = require "nacos"
local process = require "nacos.process"
local scheduler = require "nacos.scheduler"
local support = require "support"
local uv = require "luv"

local folder

---What a line for sh printed, and its end.
local function run(line, opts)
  local code, why = process.start("exec >" .. folder .. "/out; " .. line, opts):wait()
  return support.read(folder .. "/out"), code, why
end

---Start a program with its output in a list, in a task. @return process, lines
local function follow(command, opts)
  local lines = {}
  opts = opts or {}
  opts.output = function(line)
    lines[#lines + 1] = line
  end
  return process.start(command, opts), lines
end

---For sh: waits for the file "go" in our folder, no longer than there is one.
local function until_go()
  return ("while [ -d %s ] && [ ! -e %s/go ]; do sleep 0.01; done"):format(folder, folder)
end

---Descriptors that are open here, without those of garbage.
local function descriptors_open()
  collectgarbage()
  collectgarbage()
  return lab.fd_count()
end

---Is there such a process, other than as a zombie?
local function lives(pid)
  local stat = support.read(("/proc/%d/stat"):format(pid))
  return stat ~= nil and not stat:match("%) Z ")
end

---Run a Lua program behind some words (unshare, setpriv …). @return code, stdout, stderr
local function lua_behind(words, program)
  local path = support.tmpdir() .. "/program.lua"
  support.write(path, lab.prelude .. program)
  words[#words + 1], words[#words + 2] = "lua5.4", path
  return support.run(words, { timeout = 20 })
end

local function privileged(...)
  return support.run({ "unshare", ..., "true" }) == 0
end

before_each(function()
  folder = support.tmpdir()
end)

describe("a child process", function()
  it("gets its input, also where it opens it again, and ends with its exit code", function()
    assert.same({ "one\ntwo", 3 }, { run("cat; exit 3", { input = "one\ntwo" }) })
    assert.same({ "one", 0 }, { run("cat /dev/stdin", { input = "one" }) })
    assert.same({ "", 0 }, { run("cat", { input = "" }) })
    local large = ("0123456789"):rep(500000)
    assert.same({ large, 0 }, { run("cat", { input = large }) })
  end)

  it("need not read its input", function()
    assert.same({ "", 0 }, { run("true", { input = ("x"):rep(5000000) }) })
    assert.same({ "x", 0 }, { run("head -c 1", { input = ("x"):rep(5000000) }) })
  end)

  it("gets words as they are, and variables beside those of this process", function()
    local out = folder .. "/words"
    local script = 'printf "%s|" "$@" "$GREETING" "$HOME" >' .. out
    assert.equal(0, (process.start({ "sh", "-c", script, "sh", "a b", "c'd", "" }, {
      env = { GREETING = "it's = here\n", HOME = "elsewhere" },
    }):wait()))
    assert.equal("a b|c'd||it's = here\n|elsewhere|", support.read(out))
    assert.same({ os.getenv("PATH") .. "\n", 0 }, { run("echo \"$PATH\"", { env = { A = "b" } }) })
  end)

  it("that was ended by a signal says so", function()
    assert.same({ "", 137, 9 }, { run("kill -9 $$") })
  end)

  it("that cannot be started is an error, once", function()
    local code, err = process.start({ "/nonexistent/program", "x" }):wait()
    assert.is_nil(code)
    assert.equal("invalid", err.code)
    assert.equal("cannot start /nonexistent/program: No such file or directory", err.message)
    support.write(folder .. "/plain", "")
    err = select(2, process.start({ folder .. "/plain", "x" }):wait())
    assert.equal("cannot start " .. folder .. "/plain: Permission denied", err.message)
    assert.equal(0, nacos.step(0.05))
  end)

  it("has a session of its own, no blocked and no ignored signals, and none of our descriptors", function()
    local client = lab.client("127.0.0.1:1") -- for its descriptors
    local out = run("ps -o pid=,sid= -p $$; ls -l /proc/$$/fd; exec grep -E 'SigBlk|SigIgn' /proc/self/status")
    local pid, sid = out:match("(%d+)%s+(%d+)")
    assert.equal(pid, sid)
    assert.equal(2, select(2, out:gsub("Sig...:%s0+\n", "")), out)
    assert.is_nil(out:find("anon_inode", 1, true), out)
    assert.is_nil(out:find("socket:", 1, true), out)
    client:close()
  end)

  it("is told of its end while other tasks go on", function()
    local order = {}
    nacos.run(function()
      nacos.spawn(function()
        process.start("sleep 0.3"):wait()
        order[#order + 1] = "child"
      end)
      nacos.sleep(0.01)
      order[#order + 1] = "task"
    end)
    assert.same({ "task", "child" }, order)
  end)

  it("may be one of many", function()
    local ended, descriptors = 0, descriptors_open()
    nacos.run(function()
      for i = 1, 50 do
        nacos.spawn(function()
          assert(process.start("exit " .. i, { input = "x" }):wait() == i)
          ended = ended + 1
        end)
      end
    end)
    assert.equal(50, ended)
    support.eventually(function() return descriptors_open() <= descriptors end)
  end)

  it("gets signals together with what it has started", function()
    local script = "sh -c 'trap \"echo inner >>" .. folder .. "/trapped; exit\" TERM; echo ready >" .. folder
      .. "/ready; while [ -d " .. folder .. " ]; do sleep 0.01; done' & trap 'wait; exit 5' TERM; wait"
    local child = process.start(script)
    support.eventually(function()
      return support.read(folder .. "/ready")
    end)
    child:kill("TERM")
    assert.same({ 5 }, { child:wait() })
    assert.equal("inner\n", support.read(folder .. "/trapped"))
    child:kill("KILL") -- after its end: nothing
  end)

  it("goes on after the end of the engine, with all of its input", function()
    local begin = lab.now()
    local code, out, err = lab.lua([[
      local process = require "nacos.process"
      for _ = 1, 3 do
        process.start("sleep 0.5; cat >]] .. folder .. [[/$$; mv ]] .. folder .. [[/$$ ]] .. folder
        .. [[/$$.done", { input = ("x"):rep(300000) })
      end
      require "nacos".sleep(0)
    ]])
    assert.same({ 0, "", "" }, { code, out, err })
    assert(lab.now() - begin < 5)
    support.eventually(function()
      return select(2, support.run("cat " .. folder .. "/*.done | wc -c")) == "900000\n"
    end)
  end)

  it("is told of its end also where the host has SIGCHLD blocked or ignored", function()
    for _, how in ipairs { "--block-signal=CHLD", "--ignore-signal=CHLD" } do
      local path = folder .. "/wait.lua"
      support.write(path, 'print(require("nacos.process").start("exit 4"):wait())')
      local code, out, err = support.run({ "env", how, "lua5.4", path }, {
        timeout = 10, env = { LUA_PATH = package.path, LUA_CPATH = package.cpath },
      })
      assert.same({ 0, "4\tnil\n", "" }, { code, out, err }, how)
    end
  end)

  it("leaves the children of os.execute and io.popen alone", function()
    local child = process.start("sleep 0.2")
    for i = 1, 20 do
      assert.equal(i, select(3, os.execute("exit " .. i)))
      assert.equal(i, select(3, io.popen("exit " .. i):close()))
    end
    assert.equal(0, (child:wait()))
  end)
end)

describe("the options of a child process", function()
  it("are its folder, its whole environment and no output", function()
    assert.same({ folder .. "\n", 0 }, { run("pwd", { cwd = folder }) })
    assert.same({ "A=b\n", 0 }, { run("/usr/bin/env | grep -v ^PWD= | grep -v ^_=", { env_clear = true, env = { A = "b" } }) })
    assert.same({ "", 0 }, { run("/usr/bin/env | grep -v ^PWD= | grep -v ^_= || true", { env_clear = true }) })
    local out = folder .. "/streams"
    assert.equal(0, (process.start('ls -l /proc/$$/fd/1 /proc/$$/fd/2 >"$OUT"', { output = "null", env = { OUT = out } }):wait()))
    assert.equal(1, select(2, support.read(out):gsub("/2 %-> /dev/null\n", "")))
  end)

  it("tell what is wrong with them", function()
    local function why(command, opts)
      local child = process.start(command, opts)
      local code, err = child:wait()
      assert.is_nil(code)
      assert.equal("invalid", err.code)
      assert.is_true(child:ended())
      return err.message
    end
    assert.equal("cannot start true: its folder: No such file or directory", why({ "true" }, { cwd = folder .. "/none" }))
    assert.equal("cannot start none.such: No such file or directory", why({ "none.such" }, { cwd = folder }))
    assert.equal("cannot start echo: argument 1 holds a NUL byte", why({ "echo", "a\0b" }))
    assert.equal("cannot start true: the variable A holds a NUL byte", why({ "true" }, { env = { A = "\0" } }))
    assert.equal("cannot start true: no user has the number 3999999999: a group must be given, too",
      why({ "true" }, { uid = 3999999999 }))
  end)

  it("raise when they are misused", function()
    for _, command in ipairs { {}, { 1 }, { "a", {} }, "", 1, false } do
      assert.error_matches(function() process.start(command) end, "bad argument #1 to 'process.start'")
    end
    for _, call in ipairs { process.start, process.run } do
      local _, err = pcall(function() call("true", { cdw = "/" }) end)
      assert.matches("process_spec.lua:%d+: bad option 'cdw' to 'process%.%l+' %(did you mean 'cwd'%?%)", err)
    end
    assert.error_matches(function() process.start("true", { output = "file" }) end, 'a function or "null" expected')
    assert.error_matches(function() process.start("true", { env = { A = 1 } }) end, "the variable A must be a string")
    assert.error_matches(function() process.start("true", { env = { ["A=B"] = "" } }) end, "names without '='")
    assert.error_matches(function() process.start("true", { uid = -1 }) end, "bad option 'uid'")
    assert.error_matches(function() process.run("true") end, "bad call to 'process.run'")
    local child = process.start("true")
    assert.error_matches(function() child:kill("WHAT") end, "unknown signal 'WHAT'")
    child:wait()
  end)
end)

describe("a process", function()
  it("has a number from its start to its end", function()
    nacos.run(function()
      local child, lines = follow("echo $$; exec sleep 10")
      local pid = support.eventually(function() return child:pid() end)
      support.eventually(function() return lines[1] == tostring(pid) end)
      assert.is_false(child:ended())
      child:kill("SIGTERM")
      assert.same({ 143, 15 }, { child:wait() })
      assert.is_true(child:ended())
      assert.is_nil(child:pid())
      assert.equal(pid, child.last_pid)
    end)
  end)

  it("may be waited for by several tasks, and again", function()
    local ends = {}
    nacos.run(function()
      local child = process.start("sleep 0.1; exit 7")
      for i = 1, 3 do
        nacos.spawn(function()
          ends[i] = child:wait()
        end)
      end
      assert.is_false(child:ends_within(0.001))
      assert.is_true(child:ends_within(10))
      assert.equal(7, (child:wait()))
    end)
    assert.same({ 7, 7, 7 }, ends)
  end)

  it("does not keep run() going unless it is waited for", function()
    local child
    nacos.run(function()
      child = process.start("sleep 5")
    end)
    assert.is_false(child:ended())
    child:kill("kill")
    assert.equal(137, (child:wait()))
  end)

  it("whose end KILLs the rest of its group when that is asked for", function()
    nacos.run(function()
      local child, lines = follow("sh -c 'trap \"\" TERM; echo $$; exec sleep 20' & trap 'exit 3' TERM; wait; wait")
      local rest = tonumber(support.eventually(function() return lines[1] end))
      child:kill("TERM", true)
      assert.equal(3, (child:wait()))
      support.eventually(function() return not lives(rest) end)
    end)
  end)
end)

describe("the output of a process", function()
  it("comes line by line from both streams, the rest at the end", function()
    nacos.run(function()
      local child, lines = follow("echo one; echo two >&2; echo; printf 'a\\000b\\nlast'")
      assert.equal(0, (child:wait()))
      assert.same({ "one", "two", "", "a\0b", "last" }, lines)
    end)
  end)

  it("comes in pieces where a line is long", function()
    local child, lines
    nacos.run(function()
      child, lines = follow({ "cat" }, { input = ("x"):rep(20000) .. "\n" .. ("y"):rep(8192) .. "\nshort\n" .. ("z"):rep(8193) })
      child:wait()
    end)
    local sizes = {}
    for i, line in ipairs(lines) do
      sizes[i] = #line
    end
    assert.same({ 8192, 8192, 3616, 8192, 5, 8192, 1 }, sizes)
  end)

  it("waits in the pipe while nobody takes it", function()
    local bytes = 0
    nacos.run(function()
      local child = process.start("yes 0123456789 | head -c 5500000; touch " .. folder .. "/done", {
        output = function(line) bytes = bytes + #line + 1 end,
      })
      support.eventually(function() return child:pid() end)
      uv.sleep(200) -- of this whole thread
      assert.is_nil(support.read(folder .. "/done"))
      assert.equal(0, (child:wait()))
    end)
    assert.equal(5500000, bytes)
    assert.equal("", support.read(folder .. "/done"))
  end)

  it("may end before the program does", function()
    nacos.run(function()
      local descriptors = descriptors_open()
      local child, lines = follow("echo all; exec >&- 2>&-; " .. until_go() .. "; exit 4")
      support.eventually(function() return descriptors_open() <= descriptors and lines[1] end)
      assert.is_false(child:ended())
      support.write(folder .. "/go", "")
      assert.equal(4, (child:wait()))
      assert.same({ "all" }, lines)
    end)
  end)

  it("is told on while others hold the pipe, but not waited for", function()
    nacos.run(function()
      local descriptors = descriptors_open()
      local child, lines = follow("(" .. until_go() .. "; echo late; echo end) & echo early")
      assert.equal(0, (child:wait()))
      assert.same({ "early" }, lines)
      support.write(folder .. "/go", "")
      support.eventually(function() return #lines == 3 end)
      assert.same({ "early", "late", "end" }, lines)
      support.eventually(function() return descriptors_open() <= descriptors end)
    end)
  end)

  it("goes on when the function fails, which is reported once", function()
    local code, out, err = lab.lua([[
      local nacos, process = require "nacos", require "nacos.process"
      nacos.run(function()
        print(process.start("for i in $(seq 1000); do echo line; done; exit 3", {
          output = function(line) error("what is " .. line .. "?") end,
        }):wait())
      end)
    ]])
    assert.same({ 0, "3\tnil\n" }, { code, out })
    assert.equal(1, select(2, err:gsub("error in the output function of a process: [^\n]*what is line%?", "")), err)
  end)

  it("needs a task that waits", function()
    local child = process.start("echo x", { output = print })
    assert.error_matches(function() child:wait() end, "is waited for in a task")
    nacos.run(function() child:kill("KILL") child:wait() end)
  end)
end)

describe("process.run", function()
  local function result(...)
    local got, err
    local args = table.pack(...)
    nacos.run(function()
      got, err = process.run(table.unpack(args, 1, args.n))
    end)
    return got, err
  end

  it("tells all about it", function()
    local lines = {}
    local got = result("echo out; echo err >&2; exit 3", { on_line = function(line) lines[#lines + 1] = line end })
    assert.same({ code = 3, timed_out = false, output = "out\nerr\n", seconds = got.seconds }, got)
    assert(got.seconds > 0 and got.seconds < 5)
    assert.same({ "out", "err" }, lines)
    assert.equal(9, result("kill -9 $$").signal)
    assert.equal("in", result({ "cat" }, { input = "in" }).output)
    local none, err = result({ folder .. "/none" })
    assert.is_nil(none)
    assert.equal("cannot start " .. folder .. "/none: No such file or directory", tostring(err))
  end)

  it("keeps the end of a long output", function()
    local text = result("seq 1 100000; echo last").output
    assert.equal(65536, #text)
    assert.equal("99999\n100000\nlast\n", text:sub(-18))
  end)

  it("ends what takes too long, and all of its group", function()
    local got = result("trap 'echo term; exit 5' TERM; sh -c 'trap \"\" TERM; echo $$ >" .. folder
      .. "/pid; exec sleep 20' & while [ ! -s " .. folder .. "/pid ]; do sleep 0.01; done; echo up; wait; wait", { timeout = 0.5 })
    assert.same({ code = 5, timed_out = true, output = "up\nterm\n", seconds = got.seconds }, got)
    local pid = tonumber(support.read(folder .. "/pid"))
    support.eventually(function() return not lives(pid) end)
  end)

  it("KILLs what ignores TERM", function()
    local got = result("trap '' TERM; sleep 20 & for i in $(seq 1000); do sleep 0.01; done", { timeout = 0.1, kill_timeout = 0.1 })
    assert.same({ code = 137, signal = 9, timed_out = true, output = "", seconds = got.seconds }, got)
    assert(got.seconds >= 0.2 and got.seconds < 5)
  end)

  it("does not wait for what its program leaves behind, which lives on", function()
    local lines = {}
    nacos.run(function()
      local script = "(" .. until_go() .. "; echo late; echo later; touch " .. folder .. "/done) & echo early"
      local got = process.run(script, { on_line = function(line) lines[#lines + 1] = line end })
      assert.same({ 0, "early\n" }, { got.code, got.output })
      support.write(folder .. "/go", "")
      support.eventually(function() return support.read(folder .. "/done") end) -- writing to nobody would have ended it
    end)
    assert.same({ "early" }, lines)
  end)

  it("lets others go on", function()
    local order = {}
    nacos.run(function()
      nacos.spawn(function()
        process.run("sleep 0.3")
        order[#order + 1] = "child"
      end)
      nacos.sleep(0.01)
      order[#order + 1] = "task"
    end)
    assert.same({ "task", "child" }, order)
  end)
end)

describe("a process of another user", function()
  local can = privileged("--mount") and uv.getuid() == 0

  it("has its rights, and ours are as before", function()
    if not can then
      return pending("needs root")
    end
    support.write(folder .. "/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:4001:4002::/srv/web:/bin/sh\n")
    support.write(folder .. "/group", "root:x:0:\nweb:x:4002:\nlogs:x:4003:web\nssl:x:4004:root,web\nother:x:4005:\n")
    local code, out, err = lua_behind({ "unshare", "--mount", "sh", "-ec",
      "mount --bind $0/passwd /etc/passwd; mount --bind $0/group /etc/group; exec setpriv --groups 4005 \"$@\"", folder }, [[
      local core, nacos, process = require "nacos.core", require "nacos", require "nacos.process"
      local uv = require "luv"
      print(core.user("web"))
      print(core.user(4001))
      print(core.user("no.such"), (core.user(4999)))
      print(core.group("logs"))
      print(core.group(4003))
      print((core.group("no.such")))
      nacos.run(function()
        local facts = "grep -E '^(Uid|Gid|Groups|CapPrm|CapEff)' /proc/self/status | tr -s '\\t ' ' '"
        io.write(process.run(facts .. "; echo reopened >/dev/stdout; cat /dev/stdin", { uid = 4001, input = "in\n" }).output)
        io.write(process.run(facts, { uid = 4999, gid = 4005 }).output)
        io.write(process.run("id -u; id -g; id -G", { gid = 4003 }).output)
        print(select(2, process.run("true", { uid = 4001, cwd = "]] .. folder .. [[" })))
        io.write(process.run("id -u; id -g; id -G", {}).output)
      end)
      local seen = {} -- of all our threads
      for name in uv.fs_scandir_next, uv.fs_scandir("/proc/self/task") do
        local status = io.open("/proc/self/task/" .. name .. "/status"):read("a")
        seen[(status:match("Uid:[^\n]*") .. status:match("Groups:[^\n]*") .. status:match("CapEff:[^\n]*")):gsub("%s+", " ")] = true
      end
      local own = next(seen)
      print(next(seen, own), (own:gsub("CapEff.*", "")))
    ]])
    assert.equal("", err)
    assert.equal(table.concat({
      "4001\t4002\tweb\t/srv/web", "4001\t4002\tweb\t/srv/web", "nil\tnil", "4003\tlogs", "4003\tlogs", "nil",
      "Uid: 4001 4001 4001 4001", "Gid: 4002 4002 4002 4002", "Groups: 4002 4003 4004 ", "CapPrm: 0000000000000000",
      "CapEff: 0000000000000000", "reopened", "in",
      "Uid: 4999 4999 4999 4999", "Gid: 4005 4005 4005 4005", "Groups: 4005 ", "CapPrm: 0000000000000000",
      "CapEff: 0000000000000000",
      "0", "4003", "4003 4004",
      "cannot start sh: its folder: Permission denied",
      "0", "0", "0 4005",
      "nil\tUid: 0 0 0 0Groups: 4005 ", "",
    }, "\n"), out)
    assert.equal(0, code)
  end)

  it("is refused to who may not", function()
    if not can then
      return pending("needs root")
    end
    local _, out = lua_behind({ "setpriv", "--bounding-set", "-setuid,-setgid" }, [[
      local nacos, process = require "nacos", require "nacos.process"
      nacos.run(function()
        print(process.run({ "true" }, { uid = 4001, gid = 4001 }))
        print(process.run({ "true" }, { uid = 0, gid = 0 }).code)
      end)
    ]])
    assert.equal("nil\tcannot start true: cannot become its user and group: Operation not permitted\n0\n", out)
  end)
end)

describe("reaping", function()
  local function program()
    return "local folder = '" .. folder .. "'" .. [[
      local core, nacos, process = require "nacos.core", require "nacos", require "nacos.process"
      local function gone(name) -- has it started, and does not even a zombie tell of it?
        local file = io.open(folder .. "/" .. name)
        local pid = file and file:read("a"):match("^(%d+)\n")
        return pid and not io.open("/proc/" .. pid .. "/stat")
      end
      nacos.run(function()
        process.reap()
        local child = process.start("sleep 0.2; exit 7")
        for i = 1, 3 do
          process.run(("sh -c 'echo $$ >%s/%d; sleep 0.1' & "):format(folder, i))
        end
        for i = 1, 20 do
          assert(select(3, os.execute("exit " .. i)) == i)
        end
        local deadline = core.monotonic() + 10
        while not (gone(1) and gone(2) and gone(3)) do
          assert(core.monotonic() < deadline, "zombies")
          nacos.sleep(0.01)
        end
        local pipe = io.popen("exit 6")
        nacos.sleep(0.5) -- it has long ended, and nobody has waited for it
        assert(select(3, pipe:close()) == 6)
        print(child:wait())
      end)
    ]]
  end

  it("waits for orphans as a sub-reaper, and for nobody else", function()
    assert.same({ 0, "7\tnil\n", "" }, { lab.lua(program()) })
  end)

  it("waits for orphans as the first process of a container", function()
    if not privileged("--pid", "--fork", "--mount-proc") then
      return pending("needs root")
    end
    assert.same({ 0, "7\tnil\n", "" }, { lua_behind({ "unshare", "--pid", "--fork", "--mount-proc" }, program()) })
  end)
end)

describe("engine:spawn", function()
  it("refuses what is no command", function()
    local engine <close> = core.engine()
    for _, words in ipairs { {}, { 1 }, { "a", {} } } do
      assert.error_matches(function() engine:spawn(words) end, "bad argument #1")
    end
    assert.error_matches(function() engine:spawn({ "a" }, { env = { "x" } }) end, "bad argument #2")
    assert.error_matches(function() engine:spawn({ "a" }, { env = { A = 1 } }) end, "bad argument #2")
    assert.error_matches(function() engine:kill(1, "NONE") end, "invalid option 'NONE'")
  end)
end)

describe("the engine", function()
  local function pipe()
    local ends = uv.pipe({ nonblock = true }, {})
    return ends.read, ends.write
  end

  it("tells once that a descriptor can be read, or has met its end", function()
    local engine <close> = core.engine()
    local read, write = pipe()
    local id = engine:readable(read)
    assert.is_nil(engine:wait(0.05))
    uv.fs_write(write, "x")
    assert.same({ id = id, kind = "readable" }, engine:wait(5))
    assert.is_nil(engine:wait(0.05))
    id = engine:readable(read)
    assert.equal(id, engine:wait(5).id)
    uv.fs_read(read, 10)
    id = engine:readable(read)
    uv.fs_close(read) -- it has a copy
    uv.fs_close(write)
    assert.equal(id, engine:wait(5).id)
    local plain = uv.fs_open(support.lunacos, "r", 0)
    id = engine:readable(plain)
    local event = engine:wait(5)
    assert.same({ id, "this descriptor cannot be watched: operation not permitted" }, { event.id, event.error.message })
    uv.fs_close(plain)
    assert.is_nil((engine:readable(plain)))
  end)

  it("keeps no descriptor, however a watch ends", function()
    local before = descriptors_open()
    do
      local engine <close> = core.engine()
      local read, write = pipe()
      local open = descriptors_open()
      engine:forget(engine:readable(read))
      uv.fs_write(write, "x")
      engine:wait(5, engine:readable(read)) -- after which the forgotten one cannot come any more
      assert.is_nil(engine:wait(0.05))
      support.eventually(function() return descriptors_open() <= open end)
      uv.fs_read(read, 10)
      engine:readable(read)
      uv.fs_close(read)
      uv.fs_close(write)
    end
    assert(descriptors_open() <= before)
  end)

  it("forgets timers and signals", function()
    local engine <close> = core.engine()
    local long, short = engine:timer(0.2), engine:timer(0.1)
    engine:forget(short)
    engine:forget(long + 1000)
    assert.equal(long, engine:wait(5).id)
    assert.is_nil(engine:wait(0))
    local signal = engine:signal("WINCH", true) -- to which nothing happens by default
    engine:wait(5, engine:timer(0))
    for _ = 1, 3 do
      uv.kill(uv.os_getpid(), "sigwinch")
      assert.same({ id = signal, kind = "signal" }, engine:wait(5))
    end
    engine:forget(signal)
    engine:wait(5, engine:timer(0))
    uv.kill(uv.os_getpid(), "sigwinch")
    assert.is_nil(engine:wait(0.05))
  end)
end)

describe("the scheduler", function()
  it("delivers every signal where that is asked for, and none has its default effect", function()
    local code, out, err = lab.lua([[
      local nacos, uv = require "nacos", require "luv"
      nacos.run(function()
        local seen = 0
        nacos.on_signal("USR1", function() seen = seen + 1 end, true)
        nacos.sleep(0.05)
        for i = 1, 5 do
          for _ = 1, 200 do
            uv.kill(uv.os_getpid(), "sigusr1")
          end
          local before = seen
          while seen == before do
            nacos.sleep(0.001)
          end
        end
        print(seen >= 5)
      end)
    ]])
    assert.same({ 0, "true\n", "" }, { code, out, err })
  end)

  it("wakes tasks that are parked or asleep, and no others", function()
    local order = {}
    nacos.run(function()
      local me = scheduler.task()
      local parked = nacos.spawn(function()
        order[#order + 1] = "parked"
        order[#order + 1] = scheduler.park()
        order[#order + 1] = scheduler.park(0.01)
      end)
      local asleep = nacos.spawn(function()
        nacos.sleep(60)
        order[#order + 1] = "awake"
      end)
      assert.is_false(scheduler.wake(me))
      assert.is_true(scheduler.wake(parked))
      assert.is_false(scheduler.wake(parked))
      assert.same({ "parked" }, order) -- not in the middle of this one
      nacos.sleep(0.05)
      assert.same({ "parked", true, false }, order)
      assert.is_true(scheduler.wake(asleep))
      nacos.sleep(0)
      nacos.sleep(0)
      assert.equal("awake", order[4])
      assert.is_false(scheduler.wake(asleep))
    end)
    assert.is_nil(scheduler.task())
    assert.error_matches(scheduler.park, "outside of a task")
  end)

  it("does not stay for what is only listened to", function()
    local heard
    scheduler.listen(scheduler.engine():timer(0.1), function() heard = true end)
    nacos.run(function() end)
    assert.is_nil(heard)
    support.eventually(function() return heard end)
  end)

  it("drives the loop of luv", function()
    local path = folder .. "/socket"
    nacos.run(function()
      local loop, me = scheduler.luv(), scheduler.task()
      local server = loop.new_pipe(false)
      server:bind(path)
      server:listen(8, function()
        local peer = loop.new_pipe(false)
        server:accept(peer)
        peer:read_start(function(_, data)
          if data then
            peer:write(data:upper())
          else
            peer:close()
          end
          scheduler.luv()
        end)
        scheduler.luv()
      end)
      local client, got = loop.new_pipe(false), ""
      client:connect(path, function()
        client:read_start(function(_, data)
          got = got .. (data or "")
          scheduler.wake(me)
        end)
        client:write("hello")
        scheduler.luv()
      end)
      scheduler.luv()
      assert.is_true(scheduler.park(10))
      assert.equal("HELLO", got)
      local timer = loop.new_timer()
      timer:start(20, 20, function() scheduler.wake(me) end)
      scheduler.luv()
      for _ = 1, 3 do
        assert.is_true(scheduler.park(10))
      end
      timer:close()
      client:close()
      server:close()
      scheduler.luv()
      support.eventually(function() return not loop.loop_alive() end)
    end)
  end)
end)
