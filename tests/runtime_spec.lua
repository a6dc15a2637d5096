--- The runtime thread and the scheduler: waiting, embedding, closing, forking, descriptors, deadlines, connections that end.

local lab = require "lab"
local nacos = require "nacos"
local posix = require "test_posix"
local support = require "support"
local uv = require "luv"

local pid = math.floor(uv.os_getpid())

---The runtime threads of this process, with the signals that they block.
local function runtime_threads()
  local found = {}
  local folder = "/proc/" .. pid .. "/task"
  for name in uv.fs_scandir_next, uv.fs_scandir(folder) do
    local text = support.read(folder .. "/" .. name .. "/status") or ""
    if text:match("Name:%s*nacos\n") then
      found[#found + 1] = { blocked = text:match("SigBlk:%s*(%x+)") }
    end
  end
  return found
end

describe("the runtime", function()
  local server

  setup(function()
    server = support.start_server()
    assert(lab.client(server):publish_config("there", nil, "value"))
  end)
  teardown(function()
    server:stop()
  end)
  after_each(function()
    lab.close_all()
    server:clear_faults()
    server:clear_requests()
  end)

  local function hang(path)
    server:faults { path = path or "/nacos/*", hang = true }
  end

  -- ---- the scheduler -------------------------------------------------------------------------------------------------------

  describe("run", function()
    it("returns what its function returned, after waiting", function()
      local a, b, c = nacos.run(function()
        nacos.sleep(0.01)
        return 1, nil, 3
      end)
      assert.same({ 1, nil, 3 }, { a, b, c })
    end)

    it("raises the function's error, with a traceback when it is text", function()
      local ok, err = pcall(nacos.run, function()
        nacos.sleep(0.001)
        error("deliberate")
      end)
      assert.is_false(ok)
      assert.matches("runtime_spec.lua:%d+: deliberate", err)
      assert.matches("stack traceback", err)
      local object = {}
      ok, err = pcall(nacos.run, function() error(object) end)
      assert.is_false(ok)
      assert.equal(object, err)
    end)

    it("goes on until every task has ended", function()
      local ended = 0
      for i = 1, 5 do
        nacos.spawn(function()
          nacos.sleep(i * 0.01)
          ended = ended + 1
        end)
      end
      nacos.run()
      assert.equal(5, ended)
    end)

    it("returns at once when there is nothing to wait for", function()
      assert.is_true(lab.timed(nacos.run) < 1)
    end)

    it("ends with stop(), which leaves the tasks as they are", function()
      local ended
      nacos.spawn(function()
        nacos.sleep(0.2)
        ended = true
      end)
      local value = nacos.run(function()
        nacos.sleep(0.01)
        nacos.stop()
        nacos.sleep(0.01)
        return "never"
      end)
      assert.is_nil(value)
      assert.is_nil(ended)
      nacos.run()
      assert.is_true(ended)
    end)

    it("is not needed for stop(), which is nothing without it", function()
      nacos.stop()
      for _ = 1, 10 do
        nacos.spawn(nacos.sleep, 0)
      end
      uv.sleep(50)
      assert.equal(10, nacos.step(0))
    end)

    it("is kept alive by a watch, until that is removed", function()
      local client, calls = lab.client(server), 0
      local function callback(change)
        calls = calls + 1
        client:remove_config_watcher("there", nil, change and callback or nil)
      end
      client:add_config_watcher("there", nil, callback)
      nacos.run()
      assert.equal(1, calls)
    end)

    it("cannot be nested, and no step() runs in it", function()
      -- in a process of its own: a broken check waits for ever
      local code, out, err = lab.lua([[
        local nacos = require "nacos"
        nacos.run(function()
          print(pcall(nacos.run, function() end))
          print(pcall(nacos.step))
          nacos.sleep(0)
          print(pcall(nacos.run, function() end))
          print(pcall(nacos.step))
        end)
        nacos.spawn(function() print(pcall(nacos.step)) end)
      ]], { timeout = 5 })
      assert.equal(0, code, err)
      local refused = 0
      for line in out:gmatch("[^\n]+") do
        assert.matches("^false\t.*nacos%.%a+: ", line)
        refused = refused + 1
      end
      assert.equal(5, refused)
    end)

    it("refuses what is no function, at the caller's line", function()
      local line = debug.getinfo(1, "l").currentline
      local _, one = pcall(function() nacos.run(1) end)
      local _, two = pcall(function() nacos.spawn("x") end)
      local _, three = pcall(function() nacos.sleep(-1) end)
      local _, four = pcall(function() nacos.sleep("soon") end)
      local _, five = pcall(function() nacos.step(-1) end)
      for i, err in ipairs { one, two, three, four, five } do
        assert.matches("runtime_spec.lua:" .. line + i .. ": bad argument #1 to '", err, 1, true)
      end
    end)
  end)

  describe("tasks", function()
    it("start at once and then take turns", function()
      local order = {}
      local function note(name)
        order[#order + 1] = name
      end
      nacos.spawn(function(...)
        note("a1" .. table.concat({ ... }))
        nacos.sleep(0)
        note("a2")
        nacos.sleep(0.03)
        note("a3")
      end, "x", "y")
      note("main")
      nacos.spawn(function()
        note("b1")
        nacos.sleep(0.01)
        note("b2")
      end)
      nacos.run()
      assert.same({ "a1xy", "main", "b1", "a2", "b2", "a3" }, order)
    end)

    it("wait for servers without holding up each other", function()
      server:faults { path = "/nacos/v1/cs/configs", delay = 0.3 }
      local client = lab.client(server)
      local ticks, done = 0, false
      local took = lab.timed(nacos.run, function()
        nacos.spawn(function()
          while not done do
            ticks = ticks + 1
            nacos.sleep(0.01)
          end
        end)
        lab.together(
          function() client:get_config("one") end,
          function() client:get_config("two") end,
          function() client:get_config("three") end,
          function() client:get_config("four") end)
        done = true
      end)
      assert.is_true(took < 0.9, "four reads of 0.3 s each took " .. took)
      assert.is_true(ticks >= 5, ticks .. " ticks meanwhile")
    end)

    it("end alone when they fail, with a traceback on standard error", function()
      local code, out, err = lab.lua [[
        local nacos = require "nacos"
        nacos.spawn(function() nacos.sleep(0.001) error("first") end)
        nacos.spawn(function() nacos.sleep(0.002) error({}) end)
        nacos.spawn(function() nacos.sleep(0.02) print("third goes on") end)
        nacos.run()
      ]]
      assert.equal(0, code)
      assert.equal("third goes on\n", out)
      assert.matches("program.lua:%d+: first\nstack traceback", err)
    end)

    it("may yield for themselves and run coroutines of their own", function()
      local seen = {}
      nacos.run(function()
        seen[#seen + 1] = coroutine.yield("not for the scheduler") == nil and "resumed" or "resumed with something"
        local client = lab.client(server)
        for content in coroutine.wrap(function()
          coroutine.yield((client:get_config("there")))
          coroutine.yield("own value")
        end) do
          seen[#seen + 1] = content
        end
      end)
      assert.same({ "value", "own value" }, { seen[2], seen[3] })
    end)
  end)

  describe("outside a task", function()
    it("a call blocks, and what else arrives stays pending until step()", function()
      local client = lab.client(server)
      local seen, callback = lab.recorder()
      client:add_config_watcher("there", nil, callback)
      server:faults { path = "/nacos/v1/cs/configs", data_id = "slow", delay = 0.3 }
      local took, content, err = lab.timed(client.get_config, client, "slow")
      assert.is_nil(content)
      assert.equal("not_found", err.code)
      assert.is_true(took >= 0.29)
      nacos.sleep(0.01)
      assert.equal(0, seen.n)
      assert.is_true(nacos.step(5) >= 1)
      assert.equal(1, seen.n)
    end)

    it("a blocking call inside a callback's own coroutine does not hurt", function()
      local client, got = lab.client(server), nil
      client:add_config_watcher("there", nil, function()
        got = coroutine.wrap(function() return (client:get_config("there")) end)()
      end)
      support.eventually(function() return got end)
      assert.equal("value", got)
    end)
  end)

  describe("step", function()
    it("never blocks with 0, whatever is in flight", function()
      hang()
      local client = lab.client(server)
      client:add_config_watcher("there", nil, print)
      nacos.spawn(function() client:get_config("there", nil, 1) end)
      local n = 10000
      local took = lab.timed(function()
        for _ = 1, n do
          nacos.step(0)
          nacos.step()
        end
      end)
      assert.is_true(took < 2, ("%d step(0) took %.3f s"):format(2 * n, took))
    end)

    it("costs next to nothing while nothing waits: no system call", function()
      nacos.step(0)
      local n = 100000
      local took = lab.timed(function()
        for _ = 1, n do
          nacos.step(0)
        end
      end)
      -- a system call alone takes longer than this on any machine of the CI; 20 us leaves room for sanitizers
      assert.is_true(took / n < 20e-6, ("%.0f ns each"):format(took / n * 1e9))
    end)

    it("waits as long as told, or until the first event", function()
      local took, n = lab.timed(nacos.step, 0.1)
      assert.equal(0, n)
      assert.is_true(took >= 0.099 and took < 1, tostring(took))
      nacos.spawn(function() nacos.sleep(0.05) end)
      took, n = lab.timed(nacos.step, 5)
      assert.equal(1, n)
      assert.is_true(took < 2)
    end)
  end)

  -- ---- the descriptor --------------------------------------------------------------------------------------------------------

  describe("fd", function()
    it("stays the same and is readable exactly while events wait", function()
      local client = lab.client(server)
      local fd = nacos.fd()
      assert.is_false(posix.readable(fd))
      local seen, callback = lab.recorder()
      client:add_config_watcher("there", nil, callback)
      assert.is_true(posix.readable(fd, 5000))
      assert.is_true(posix.readable(fd), "until somebody collects it")
      nacos.step(0)
      assert.equal(1, seen.n)
      assert.is_false(posix.readable(fd))
      assert.equal(fd, nacos.fd())
      client:publish_config("there", nil, "value 2")
      assert.is_true(posix.readable(fd, 5000))
      nacos.step(0)
      assert.equal("value 2", seen[2])
      client:publish_config("there", nil, "value")
      assert.is_true(posix.readable(fd, 5000))
      client:get_config("nothing") -- a blocking call in between must not lose it
      assert.is_true(posix.readable(fd))
      nacos.step(0)
      assert.equal("value", seen[3])
      assert.is_false(posix.readable(fd))
    end)

    it("is readable for the end of a task's wait", function()
      local fd = nacos.fd()
      nacos.spawn(function() nacos.sleep(0.02) end)
      assert.is_false(posix.readable(fd))
      assert.is_true(posix.readable(fd, 5000))
      assert.equal(1, nacos.step(0))
      assert.is_false(posix.readable(fd))
    end)

    it("does not stay readable when the event is taken back", function()
      local client, fd = lab.client(server), nacos.fd()
      local function callback() end
      client:add_config_watcher("there", nil, callback)
      assert.is_true(posix.readable(fd, 5000))
      client:remove_config_watcher("there", nil, callback)
      nacos.step(0)
      assert.is_false(posix.readable(fd), "after the watch was removed")
      client:add_config_watcher("there", nil, callback)
      assert.is_true(posix.readable(fd, 5000))
      client:close()
      nacos.step(0)
      assert.is_false(posix.readable(fd), "after the client was closed")
    end)

    it("drives a foreign loop", function()
      local client, got = lab.client(server), nil
      local poll, guard = uv.new_poll(nacos.fd()), uv.new_timer()
      poll:start("r", function() nacos.step(0) end)
      guard:start(10000, 0, uv.stop)
      nacos.spawn(function()
        nacos.sleep(0.01)
        got = client:get_config("there")
        uv.stop()
      end)
      uv.run()
      poll:close()
      guard:close()
      uv.run("nowait")
      assert.equal("value", got)
    end)
  end)

  -- ---- one thread, several states ----------------------------------------------------------------------------------------------

  describe("the thread", function()
    it("is one for all clients of a Lua state", function()
      for i = 1, 5 do
        local client = lab.client(server, { namespace = "ns" .. i })
        client:add_config_watcher("there", nil, print)
        client:get_config("there")
      end
      assert.equal(1, #runtime_threads())
    end)

    it("has every signal blocked and changes none in the process", function()
      -- all but 9 and 19, which cannot be blocked, and 32 and 33, which are glibc's own
      assert.equal("fffffffe7ffbfeff", runtime_threads()[1].blocked)
      local code, out, err = lab.lua([[
        local function signals()
          local text = io.open("/proc/self/status"):read("a")
          local masks = {}
          for name, mask in text:gmatch("(Sig%a+):%s*(%x+)") do
            if name ~= "SigQ" then -- signals 32 and 33 are those of glibc's threads
              masks[#masks + 1] = ("%s %x"):format(name, tonumber(mask, 16) & ~(3 << 31))
            end
          end
          return table.concat(masks, " ")
        end
        local before = signals()
        local nacos = require "nacos"
        local client = nacos.client { server_addresses = "]] .. server.address .. [[", log_level = "OFF", no_snapshot = true }
        assert(client:get_config("there"))
        client:add_config_watcher("there", nil, nacos.stop)
        nacos.run()
        print(before == signals(), before, signals())
      ]])
      assert.equal(0, code, err)
      assert.matches("^true", out)
    end)

    it("leaves the globals alone", function()
      local code, _, err = lab.lua [[
        local before = {}
        for name in pairs(_G) do before[name] = true end
        local nacos = require "nacos"
        nacos.run(function() nacos.sleep(0) end)
        for name in pairs(_G) do assert(before[name], name) end
      ]]
      assert.equal(0, code, err)
    end)

    it("is one for each of several Lua states in a process", function()
      local script = support.tmpdir() .. "/state.lua"
      support.write(script, lab.prelude .. [[
        local nacos = require "nacos"
        local client = nacos.client {
          server_addresses = arg[1], namespace = "state" .. arg.n, log_level = "OFF", no_snapshot = true,
        }
        local changes, last = 0
        client:add_config_watcher("mine", nil, function(change)
          changes, last = changes + 1, change.content
        end)
        for i = 1, 20 do
          assert(client:publish_config("mine", nil, arg.n .. ":" .. i, { type = "text" }))
          assert(client:get_config("mine") == arg.n .. ":" .. i)
          nacos.step(0)
        end
        nacos.run(function()
          for _ = 1, 500 do
            if last == arg.n .. ":20" then
              break
            end
            nacos.sleep(0.01)
          end
          nacos.stop()
        end)
        assert(last == arg.n .. ":20", last)
        if arg.n % 2 == 0 then -- the others leave it to lua_close
          client:close()
        end
        return true
      ]])
      local code, out, err = support.run { support.build .. "/states", "8", script, server.address }
      assert.equal(0, code, err)
      assert.equal("8 of 8 states worked\n", out)
    end)

    it("ends with the Lua state, also with requests in flight", function()
      hang()
      local took, code, _, err = lab.timed(lab.lua, [[
        local nacos = require "nacos"
        local client = nacos.client { server_addresses = "]] .. server.address .. [[", log_level = "OFF", no_snapshot = true }
        client:add_config_watcher("there", nil, print)
        nacos.spawn(function() client:get_config("there", nil, 30) end)
        nacos.spawn(function() nacos.sleep(30) end)
        nacos.sleep(0.1)
        os.exit(0, true)
      ]])
      assert.equal(0, code, err)
      assert.is_true(took < 5, tostring(took))
    end)

    it("survives clients that are dropped, and events stay whole while they are collected", function()
      local client = lab.client(server)
      local body = ("x"):rep(50000)
      client:publish_config("large", nil, body)
      local md5 = nacos.md5(body)
      local alive = setmetatable({}, { __mode = "k" })
      for i = 1, 300 do
        alive[nacos.client { server_addresses = server.address, no_snapshot = true, log_level = "OFF" }] = true
        local content, source, info = client:get_config("large")
        assert.is_true(content == body and source == "server" and info.md5 == md5, "event " .. i)
      end
      collectgarbage()
      collectgarbage()
      assert.is_nil(next(alive), "a client without watches can be collected")
    end)
  end)

  -- ---- closing ---------------------------------------------------------------------------------------------------------------

  describe("close", function()
    ---A client with a long poll held by the server and a read that hangs.
    local function busy()
      local client = lab.client(server)
      local held = server:stats().polls_held
      client:add_config_watcher("there", nil, function() end)
      support.eventually(function()
        return client:status().polls == 1 and server:stats().polls_held > held
      end)
      server:faults { path = "/nacos/v1/cs/configs", data_id = "hangs", hang = true }
      return client
    end

    it("takes less than 100 ms with a long poll and a read in flight", function()
      local fastest = math.huge
      for _ = 1, 3 do -- once is enough to show that it waits for nothing; a loaded machine may be slow in between
        local client = busy()
        nacos.spawn(function() client:get_config("hangs", nil, 30) end)
        fastest = math.min(fastest, (lab.timed(client.close, client)))
      end
      assert.is_true(fastest < 0.1, tostring(fastest))
    end)

    it("works from inside a callback, and stops the callbacks", function()
      local client, took, after = busy(), nil, 0
      client:add_config_watcher("there", nil, function()
        if took then
          after = after + 1
        end
        took = lab.timed(client.close, client)
        nacos.sleep(0.01) -- the callback itself goes on
        after = after + 1
      end)
      client:add_config_watcher("there", nil, function()
        after = after + 10 -- not called any more
      end)
      support.eventually(function() return took and after == 1 end)
      nacos.step(0.05)
      assert.equal(1, after)
      assert.is_true(took < 0.3, tostring(took))
    end)

    it("answers what is in flight with `closed`, and later calls too", function()
      local client, err = busy(), nil
      nacos.spawn(function()
        local _
        _, err = client:get_config("hangs", nil, 30)
      end)
      nacos.step(0)
      client:close()
      support.eventually(function() return err end)
      assert.equal("closed", err.code)
      assert.matches("hangs", err.message)
      for _, call in ipairs {
        function() return client:get_config("a") end, function() return client:publish_config("a", nil, "b") end,
        function() return client:remove_config("a") end, function() return client:get_configs {} end,
        function() return client:add_config_watcher("a", nil, print) end, function() return client:status() end,
        function() return client:set_options { default_timeout = 1 } end,
      } do
        local result, why = call()
        assert.is_nil(result)
        assert.equal("closed", why.code)
      end
      assert.is_nil(client:peek("there"))
      client:remove_config_watcher("there", nil, print)
      client:close()
    end)

    it("is what <close> does", function()
      local kept
      do
        local client <close> = nacos.client { server_addresses = server.address, log_level = "OFF", no_snapshot = true }
        kept = client
      end
      local _, err = kept:get_config("there")
      assert.equal("closed", err.code)
    end)

    it("gives back every descriptor but the kept connections", function()
      local before = lab.fd_count()
      for _ = 1, 10 do
        busy()
        lab.close_all()
      end
      support.eventually(function()
        local now = lab.fd_count()
        return now <= before + 4, now - before .. " descriptors more"
      end)
    end)
  end)

  -- ---- forks and children ------------------------------------------------------------------------------------------------------

  describe("a forked child", function()
    it("gets a clear error from every call, and the parent goes on", function()
      local client = lab.client(server)
      local seen, callback = lab.recorder()
      client:add_config_watcher("there", nil, callback)
      support.eventually(function() return seen.n == 1 end)
      local text, code = posix.in_child(function()
        local codes = {}
        local function note(_, err)
          codes[#codes + 1] = err and err.code or "no error"
        end
        note(client:get_config("there"))
        note(client:publish_config("there", nil, "from the child"))
        note(client:remove_config("there"))
        note(client:get_configs {})
        note(client:add_config_watcher("other", nil, print))
        note(client:set_options { default_timeout = 1 })
        note(client:status())
        client:remove_config_watcher("there", nil, callback)
        client:close()
        local ok, err = pcall(nacos.run, function() nacos.sleep(0.01) end)
        codes[#codes + 1] = not ok and tostring(err):match("fork") or "no error"
        ok, err = pcall(nacos.client, { server_addresses = server.address })
        codes[#codes + 1] = not ok and tostring(err):match("fork") or "no error"
        return table.concat(codes, " ")
      end)
      assert.equal("forked forked forked forked forked forked forked fork fork", text)
      assert.equal(0, code)
      assert.equal("value", (client:get_config("there")))
      client:publish_config("there", nil, "value 3")
      support.eventually(function() return seen[2] == "value 3" end)
      client:publish_config("there", nil, "value")
      support.eventually(function() return seen[3] == "value" end)
    end)

    it("never hangs, whatever the runtime was doing at that moment", function()
      local client, stop = lab.client(server), false
      nacos.spawn(function()
        while not stop do
          client:get_config("there")
        end
      end)
      for i = 1, 30 do
        nacos.step(0.002)
        local text, code = posix.in_child(function()
          pcall(nacos.sleep, 0)
          pcall(nacos.step, 0)
          pcall(nacos.step, 0.01)
          client:get_config("there")
          client:close()
          return "lived"
        end)
        assert.equal("lived", text, "fork " .. i)
        assert.equal(0, code)
      end
      stop = true
      support.eventually(function() return nacos.step(0.01) == 0 end)
    end)

    it("may close its copy of the Lua state", function()
      local code, out, err = lab.lua([[
        local nacos, posix = require "nacos", require "test_posix"
        local client = nacos.client { server_addresses = "]] .. server.address .. [[", log_level = "OFF", no_snapshot = true }
        client:add_config_watcher("there", nil, nacos.stop)
        nacos.run()
        print(select(2, posix.in_child(function() os.exit(7, true) end)))
        print(client:get_config("there"))
      ]], { env = { ASAN_OPTIONS = (os.getenv("ASAN_OPTIONS") or "") .. ":detect_leaks=0" } }) -- the child frees nothing, on purpose
      assert.equal(0, code, err)
      assert.matches("^7\nvalue\tserver", out)
    end)
  end)

  it("opens every descriptor close-on-exec", function()
    local code, _, err = lab.lua([[
      local uv = require "luv"
      local function open()
        local found = {}
        for fd in uv.fs_scandir_next, uv.fs_scandir("/proc/self/fd") do
          local file = io.open("/proc/self/fdinfo/" .. fd)
          if file then
            local flags = tonumber(file:read("a"):match("flags:%s*(%d+)"), 8)
            file:close()
            found[fd] = { closed = flags & tonumber("2000000", 8) ~= 0, what = uv.fs_readlink("/proc/self/fd/" .. fd) }
          end
        end
        return found
      end
      local before = open()
      local nacos = require "nacos"
      local client = nacos.client { server_addresses = "localhost:]] .. server.port .. [[", log_level = "INFO", log_dir = "log" }
      client:add_config_watcher("there", nil, nacos.stop)
      nacos.run()
      local n = 0
      for fd, is in pairs(open()) do
        if before[fd] == nil then
          n = n + 1
          assert(is.closed, "descriptor " .. fd .. " is inherited by children: " .. is.what)
        end
      end
      assert(n >= 5, n)
    ]], { cwd = support.tmpdir() })
    assert.equal(0, code, err)
  end)

  -- ---- limits -----------------------------------------------------------------------------------------------------------------

  it("never gets SIGPIPE", function()
    local rogue = lab.rogue("deaf")
    local code, out, err = lab.lua([[
      local nacos = require "nacos"
      local client = nacos.client { server_addresses = "]] .. rogue.address .. [[", log_level = "OFF", no_snapshot = true }
      for _ = 1, 5 do
        local ok, err = client:publish_config("large", nil, ("x"):rep(2000000), { type = "text" })
        assert(not ok)
        assert(err.code == "unavailable", err.code)
      end
      print("alive")
    ]])
    assert.equal(0, code, err)
    assert.equal("alive\n", out)
    rogue:stop()
  end)

  it("refuses answers above max_response_size, and takes those up to it", function()
    local client = lab.client(server, { max_response_size = 100000 })
    client:publish_config("fits", nil, ("x"):rep(100000))
    client:publish_config("too-large", nil, ("x"):rep(100001))
    assert.equal(100000, #client:get_config("fits"))
    local content, err = client:get_config("too-large")
    assert.is_nil(content)
    assert.equal("protocol", err.code)
    assert.matches("too-large", err.message, 1, true)
    assert.matches("max_response_size", err.message, 1, true)
    assert.matches(server.address, err.message, 1, true)
    client:set_options { max_response_size = 200000 }
    assert.equal(100001, #client:get_config("too-large"))
  end)

  describe("the deadline holds", function()
    local function calls(client, timeout)
      return {
        get_config = function() return client:get_config("there", nil, timeout, true) end,
        publish_config = function() return client:publish_config("victim", nil, "x", timeout) end,
        publish_with_type = function() return client:publish_config("victim", nil, "x", { type = "text", timeout = timeout }) end,
        publish_cas = function()
          return client:publish_config("victim", nil, "x", { cas_md5 = nacos.md5("x"), timeout = timeout })
        end,
        remove_config = function() return client:remove_config("victim", nil, timeout) end,
        get_configs = function() return client:get_configs { timeout = timeout } end,
      }
    end

    local function each_ends(opts, address)
      local client = lab.client(address or server, opts)
      local checks = {}
      for name, call in pairs(calls(client, 0.3)) do
        checks[#checks + 1] = function()
          local took, result, err = lab.timed(call)
          assert.is_nil(result, name)
          assert.equal("unavailable", err.code, name .. ": " .. err.message)
          assert.is_true(took >= 0.25, ("%s after %.3f s"):format(name, took))
          assert.is_true(took < 1.3, ("%s took %.3f s"):format(name, took))
        end
      end
      lab.together(table.unpack(checks))
    end

    it("for every request to a server that never answers", function()
      hang()
      each_ends()
    end)

    it("for requests that wait for a login", function()
      hang("/nacos/v1/auth/*")
      each_ends { username = "u", password = "p" }
    end)

    it("for a body that comes drop by drop", function()
      local path = support.tmpdir() .. "/answer"
      support.write(path, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" .. ("x"):rep(100000))
      local rogue = lab.rogue("drip", path, "20")
      each_ends(nil, rogue.base)
      rogue:stop()
    end)

    it("for a server whose process stands still", function()
      server:pause()
      local ok, err = pcall(each_ends)
      server:resume()
      assert(ok, err)
    end)

    it("for a call that waits for its turn behind many others", function()
      hang("/nacos/v1/cs/configs")
      local client = lab.client(server)
      local checks = {}
      for i = 1, 60 do
        checks[i] = function()
          local took, content, err = lab.timed(client.get_config, client, "key" .. i, nil, 0.5)
          assert.is_nil(content)
          assert.equal("unavailable", err.code)
          assert.is_true(took < 2, tostring(took))
        end
      end
      lab.together(table.unpack(checks))
    end)

    it("as default_timeout says when the call says nothing", function()
      hang()
      local client = lab.client(server, { default_timeout = 0.2 })
      local took, _, err = lab.timed(client.get_config, client, "there")
      assert.equal("unavailable", err.code)
      assert.is_true(took >= 0.15 and took < 1.5, tostring(took))
      client:set_options { default_timeout = 0.6 }
      took = lab.timed(client.get_config, client, "there")
      assert.is_true(took >= 0.55 and took < 2, tostring(took))
    end)
  end)

  -- ---- connections that end ------------------------------------------------------------------------------------------------------

  describe("a connection that the server closes", function()
    ---Connections that carried these requests.
    local function connections(requests)
      local count, seen = 0, {}
      for _, request in ipairs(requests) do
        if not seen[request.connection] then
          seen[request.connection] = true
          count = count + 1
        end
      end
      return count
    end

    it("after its 100th response is not noticed", function()
      local client = lab.client(server)
      for i = 1, 250 do
        assert.equal("value", (client:get_config("there")), "read " .. i)
      end
      local used = connections(lab.requests(server, lab.CONFIGS))
      assert.is_true(used >= 3 and used <= 5, used .. " connections for 250 reads")
      assert.equal(0, client:status().failures)
    end)

    it("after its 100th response is not noticed by many at once", function()
      local client, tasks = lab.client(server), {}
      for i = 1, 40 do
        tasks[i] = function()
          for n = 1, 30 do
            local id = "k" .. i .. "." .. n
            assert(client:publish_config(id, nil, id, { type = "text" }))
            assert.equal(id, (client:get_config(id)))
          end
        end
      end
      lab.together(table.unpack(tasks))
      assert.equal(0, client:status().failures)
    end)

    it("while it was idle is not noticed", function()
      local rogue = lab.rogue("relay", "127.0.0.1", server.port, "30")
      local client = lab.client(rogue.base)
      for i = 1, 8 do
        assert.equal("value", (client:get_config("there")))
        assert.is_true(client:publish_config("idle", nil, "v" .. i, { type = "text" }))
        assert.is_true(client:remove_config("idle"))
        support.eventually(function() return #rogue:lines("idle") >= i end)
      end
      assert.equal(0, client:status().failures)
      rogue:stop()
    end)

    it("after a 500 is not noticed by the next request", function()
      local client = lab.client(server)
      for i = 1, 5 do
        server:faults {
          path = "/nacos/v1/cs/configs", status = 500, body = "caused: x;", times = 1, headers = { Connection = "close" },
        }
        local _, err = client:get_config("there", nil, nil, true)
        assert.equal("unavailable", err.code)
        assert.equal(500, err.status)
        assert.equal("value", (client:get_config("there")), "after the failure " .. i)
      end
      assert.equal(5, client:status().failures)
    end)

    it("is kept alive between requests otherwise", function()
      local client = lab.client(server)
      for _ = 1, 20 do
        client:get_config("there")
      end
      -- two when one of them had carried nearly 100 answers of earlier tests
      assert.is_true(connections(lab.requests(server, lab.CONFIGS)) <= 2)
    end)

    it("is not one of hundreds: at most 16 requests run against one server", function()
      server:faults { path = "/nacos/v1/cs/configs", delay = 0.02 }
      local client, tasks = lab.client(server), {}
      for i = 1, 100 do
        tasks[i] = function() client:get_config("k" .. i, nil, 10) end
      end
      lab.together(table.unpack(tasks))
      local used = connections(lab.requests(server, lab.CONFIGS))
      -- one more when one of them had carried nearly 100 answers of earlier tests
      assert.is_true(used <= 17 and used > 1, used .. " connections")
    end)
  end)
end)
