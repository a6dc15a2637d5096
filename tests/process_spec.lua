--- Child processes of the engine: what they get, how their end is told, and that they disturb nobody.

local core = require "nacos.core"
local lab = require "lab"
local nacos = require "nacos"
local process = require "nacos.process"
local support = require "support"

local folder

---What a line for sh printed, and its end.
local function run(line, opts)
  local code, why = process.start({ "exec >" .. folder .. "/out; " .. line }, opts):wait()
  return support.read(folder .. "/out"), code, why
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
        process.start({ "sleep 0.3" }):wait()
        order[#order + 1] = "child"
      end)
      nacos.sleep(0.01)
      order[#order + 1] = "task"
    end)
    assert.same({ "task", "child" }, order)
  end)

  it("may be one of many", function()
    local ended, descriptors = 0, lab.fd_count()
    nacos.run(function()
      for i = 1, 50 do
        nacos.spawn(function()
          assert(process.start({ "exit " .. i }, { input = "x" }):wait() == i)
          ended = ended + 1
        end)
      end
    end)
    assert.equal(50, ended)
    assert.equal(descriptors, lab.fd_count())
  end)

  it("gets signals together with what it has started", function()
    local script = "sh -c 'trap \"echo inner >>" .. folder .. "/trapped; exit\" TERM; echo ready >" .. folder
      .. "/ready; while :; do sleep 0.01; done' & trap 'wait; exit 5' TERM; wait"
    local child = process.start({ script })
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
        process.start({ "sleep 0.5; cat >]] .. folder .. [[/$$; mv ]] .. folder .. [[/$$ ]] .. folder
        .. [[/$$.done" }, { input = ("x"):rep(300000) })
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
      support.write(path, 'print(require("nacos.process").start({ "exit 4" }):wait())')
      local code, out, err = support.run({ "env", how, "lua5.4", path }, {
        timeout = 10, env = { LUA_PATH = package.path, LUA_CPATH = package.cpath },
      })
      assert.same({ 0, "4\tnil\n", "" }, { code, out, err }, how)
    end
  end)

  it("leaves the children of os.execute and io.popen alone", function()
    local child = process.start({ "sleep 0.2" })
    for i = 1, 20 do
      assert.equal(i, select(3, os.execute("exit " .. i)))
      assert.equal(i, select(3, io.popen("exit " .. i):close()))
    end
    assert.equal(0, (child:wait()))
  end)
end)

describe("engine:spawn", function()
  it("refuses what is no command", function()
    local engine <close> = core.engine()
    for _, words in ipairs { {}, { 1 }, { "a", {} } } do
      assert.error_matches(function() engine:spawn(words) end, "bad argument #1")
    end
    assert.error_matches(function() engine:spawn({ "a" }, { 1 }) end, "bad argument #2")
    assert.error_matches(function() engine:spawn({ "a" }, { A = 1 }) end, "bad argument #2")
    assert.error_matches(function() engine:kill(1, "STOP") end, "invalid option 'STOP'")
  end)
end)
