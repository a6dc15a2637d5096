--- The agent's state folder. Runs as root.

local support = require "support"
local lab = require "lab"
local posix = require "test_posix"
local uv = require "luv"
local log = require "nacos.agent.log"
local state = require "nacos.agent.state"

local BINARY = "\0\255\r\n\128" .. ("0123456789abcdef"):rep(16) .. "\0"
local SECRET = "s3cret-pa55"

---Every path below a folder with its mode, as "0700 targets".
local function modes(folder)
  local _, out = support.run { "find", folder, "-mindepth", "1", "-printf", "%04m %P\\n" }
  local list = {}
  for line in out:gmatch("[^\n]+") do
    list[#list + 1] = line
  end
  table.sort(list)
  return list
end

local function names_in(folder)
  local names, found = {}, assert(uv.fs_scandir(folder))
  for name in uv.fs_scandir_next, found do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

local function mode(path)
  return ("%o"):format(uv.fs_stat(path).mode & 4095)
end

describe("state", function()
  local folder, told, warn, descriptors

  setup(function()
    require "nacos".step(0) -- its descriptors do not count
  end)

  before_each(function()
    folder, told, warn = support.tmpdir() .. "/state", {}, log.warn
    log.warn = function(target, message)
      told[#told + 1] = target .. ": " .. message:gsub(folder:gsub("%p", "%%%0"), "F")
    end
    descriptors = lab.fd_count()
  end)

  after_each(function()
    log.warn = warn
    collectgarbage() -- what processes were started with
    assert.are.equal(descriptors, lab.fd_count())
  end)

  ---Opens the folder, gives the state to `fn`, closes it. @return what fn returned
  local function with(fn)
    local s = assert(state.open(folder))
    local results = table.pack(pcall(fn, s))
    s:close()
    assert(results[1], results[2])
    return table.unpack(results, 2, results.n)
  end

  describe("the folder", function()
    it("is 0700 and its files 0600, whatever the umask", function()
      for _, umask in ipairs { "000", "277" } do
        local code, _, err = lab.lua(([[
          local s = assert(require "nacos.agent.state".open(%q))
          local r = assert(s:target "/etc/a.conf")
          assert(r:save()) assert(r:save())
          assert(r:add_generation { files = { { path = "/etc/a.conf", content = "x" } } })
          assert(r:reject { files = { { path = "/etc/a.conf", content = "x" } } })
        ]]):format(folder .. umask), { before = "umask " .. umask .. ";" })
        assert.are.equal(0, code, err)
        assert.are.equal("700", mode(folder .. umask))
        assert.are.same({
          "0600 lock",
          "0600 targets/%2Fetc%2Fa.conf/generations/1/1",
          "0600 targets/%2Fetc%2Fa.conf/generations/1/meta.json",
          "0600 targets/%2Fetc%2Fa.conf/record.json",
          "0600 targets/%2Fetc%2Fa.conf/rejected/1/1",
          "0600 targets/%2Fetc%2Fa.conf/rejected/1/meta.json",
          "0600 version",
          "0700 targets",
          "0700 targets/%2Fetc%2Fa.conf",
          "0700 targets/%2Fetc%2Fa.conf/generations",
          "0700 targets/%2Fetc%2Fa.conf/generations/1",
          "0700 targets/%2Fetc%2Fa.conf/rejected",
          "0700 targets/%2Fetc%2Fa.conf/rejected/1",
        }, modes(folder .. umask))
      end
    end)

    it("is made with its parents, and closed to others when it is empty", function()
      folder = folder .. "/a/b"
      with(function(s)
        assert.are.equal(folder, s.folder)
        assert.are.equal(folder .. "/agent.sock", s:socket())
      end)
      assert.are.same({ "755", "700" }, { mode(folder:match("^(.*)/")), mode(folder) })
      uv.fs_chmod(folder, tonumber("755", 8))
      with(function() end) -- one of ours
      assert.are.equal("700", mode(folder))
      folder = folder .. "/c"
      uv.fs_mkdir(folder, tonumber("777", 8))
      with(function() end)
      assert.are.equal("700", mode(folder))
    end)

    it("is refused when it holds other people's things, belongs to somebody else, or is none", function()
      uv.fs_mkdir(folder, tonumber("755", 8))
      support.write(folder .. "/thing", "")
      local function refused()
        local s, err = state.open(folder)
        assert.is_nil(s)
        return err.message:gsub(folder:gsub("%p", "%%%0"), "F") .. ""
      end
      assert.are.equal("cannot use the state folder F: others may enter it (mode 755) and other things are in it; "
        .. "give an empty folder, or chmod 700 it", refused())
      assert.are.equal("755", mode(folder))
      uv.fs_chown(folder, 1234, 0)
      assert.are.equal("cannot use the state folder F: it belongs to user 1234 and the agent runs as 0; chown it, or give another",
        refused())
      folder = folder .. "/thing"
      assert.are.equal("cannot use the state folder F: it is a file", refused())
      assert.are.equal("cannot read the state folder F: it is a file",
        (select(2, state.read(folder)).message:gsub(folder:gsub("%p", "%%%0"), "F")))
    end)

    it("of a newer lunacos is refused, and not locked then", function()
      with(function() end)
      support.write(folder .. "/version", "2\n")
      for _, open in ipairs { state.open, state.read } do
        local s, err = open(folder)
        assert.is_nil(s)
        assert.are.equal("version", err.code)
        assert.matches("written by a newer lunacos %(version 2, this one knows 1%)", err.message)
      end
      support.write(folder .. "/version", "1\n")
      with(function() end)
    end)
  end)

  describe("the lock", function()
    it("refuses a second agent by the pid of the first, which -9 frees", function()
      local path = support.tmpdir() .. "/holder.lua"
      support.write(path, lab.prelude .. ([[
        local s = assert(require "nacos.agent.state".open(%q))
        print("open") io.stdout:flush()
        require "luv".sleep(60000)
      ]]):format(folder))
      local holder = support.start { "lua5.4", path }
      support.eventually(function()
        return holder:stdout() == "open\n"
      end)
      local s, err = state.open(folder)
      assert.is_nil(s)
      assert.are.equal("locked", err.code)
      local pid = math.tointeger(tonumber(support.read(folder .. "/lock")))
      assert.are.equal(("the state folder %s is used by another agent (pid %d): stop that, or give this one a folder of its own")
        :format(folder, pid), err.message)
      assert.are.equal(pid, assert(state.read(folder)):running())
      assert.are.equal(0, uv.kill(pid, "sigkill"))
      support.eventually(function()
        return holder:ended()
      end)
      assert.is_nil(assert(state.read(folder)):running())
      with(function(again)
        assert.are.equal(math.tointeger(uv.os_getpid()), again:running())
      end)
    end)

    it("holds in one process too, and is not lost by looking", function()
      with(function()
        local looking = assert(state.read(folder))
        assert.are.equal(math.tointeger(uv.os_getpid()), looking:running())
        looking:close()
        assert.are.equal("locked", select(2, state.open(folder)).code)
      end)
      with(function() end)
    end)

    it("is not handed to programs that are started", function()
      with(function()
        local code = support.run("ls -l /proc/self/fd | grep -q " .. folder)
        assert.are.equal(1, code)
      end)
    end)
  end)

  describe("a record", function()
    it("is there again, with integers as such and any bytes", function()
      local data = { state = "owed", n = 3, seconds = 1.5, list = { 1, 2, { "x" } }, empty = {}, text = BINARY, yes = true,
        no = false }
      with(function(s)
        local record = assert(s:target "a")
        assert.are.same({}, record.data)
        record.data = data
        assert(record:save())
        assert.are.equal(record, s:target "a")
      end)
      with(function(s)
        local record = assert(s:target "a")
        assert.are.same(data, record.data)
        assert.are.equal("integer", math.type(record.data.n))
        assert.are.equal("integer", math.type(record.data.list[3] and record.data.list[1]))
      end)
      assert.are.same(data, assert(state.read(folder)):target("a").data)
    end)

    it("may have any name that a folder can carry", function()
      local names = { "/etc/nginx/conf.d/shop.conf", "..", ".", ".hidden", "50%", "%2F", "a b\n", "größe", "nul\0", "a/b", "a%2Fb",
        "~", ("x"):rep(200), ("x"):rep(201), ("/deep"):rep(800), ("/deep"):rep(800) .. "er", "push:" .. ("ö"):rep(128) .. "@g" }
      table.sort(names)
      with(function(s)
        for _, name in ipairs(names) do
          local record = assert(s:target(name))
          record.data.name = name
          assert(record:save())
        end
        assert.are.same(names, s:names())
        local record, err = s:target ""
        assert.is_nil(record)
        assert.are.equal("invalid", err.code)
      end)
      local looking = assert(state.read(folder))
      for _, name in ipairs(names) do
        assert.are.equal(name, looking:target(name).data.name)
      end
    end)

    it("of a long name lies in a folder that begins like it; a damaged one is told", function()
      with(function(s)
        assert(assert(s:target(("/deep"):rep(100))):save())
        local list = names_in(folder .. "/targets")
        assert.are.equal(1, #list)
        assert.matches("^%%2Fdeep%%2Fdeep", list[1])
        assert.is_true(#list[1] <= 200)
        support.write(("%s/targets/%s/record.json"):format(folder, list[1]), "{")
        assert.are.same({}, s:names())
        assert.matches("is damaged", told[1])
      end)
    end)

    it("that cannot be said in JSON raises at the caller's line", function()
      with(function(s)
        local record = assert(s:target "a")
        record.data.bad = print
        local ok, message = pcall(function()
          record:save()
        end)
        assert.is_false(ok)
        assert.matches("^tests/agent_state_spec.lua:%d+: record.data of a: ", message)
      end)
    end)

    it("can be forgotten", function()
      with(function(s)
        local record = assert(s:target "a")
        record.data.x = 1
        assert(record:save())
        assert(record:add_generation { files = { { path = "/a", content = "x" } } })
        assert(record:reject { files = {} })
        assert(record:remove())
        assert(record:remove())
        assert.are.same({}, s:names())
        assert.are.same({}, s:target("a").data)
        assert.are.same({}, s:target("a"):generations())
      end)
      assert.are.same({ "0600 lock", "0600 version", "0700 targets" }, modes(folder))
    end)

    it("and all else is only looked at when no agent runs it", function()
      with(function(s)
        assert(s:target("a"):save())
      end)
      local before = modes(folder)
      local record = assert(state.read(folder):target "a")
      for _, name in ipairs { "save", "remove", "add_generation", "reject", "clear_rejected" } do
        local ok, message = pcall(function()
          record[name](record, { files = {} })
        end)
        assert.is_false(ok)
        assert.matches("^tests/agent_state_spec.lua:%d+: " .. name .. ": the state folder .* is open for looking only", message)
      end
      assert.are.same(before, modes(folder))
      local none, err = state.read(folder .. "/none")
      assert.is_nil(none)
      assert.are.equal("absent", err.code)
    end)
  end)

  describe("generations", function()
    local function files_of(...)
      local list = {}
      for i, content in ipairs { ... } do
        list[i] = { path = "/etc/" .. i, content = content, mode = 420, uid = i, gid = 0 }
      end
      return list
    end

    it("keep contents, reason, time and sources; the oldest go", function()
      local big = BINARY:rep((10 << 20) // #BINARY)
      with(function(s)
        local record = assert(s:target "a")
        for i = 1, 12 do
          assert.are.equal(i, record:add_generation { files = files_of("v" .. i, BINARY), reason = "r" .. i, time = i + 0.5,
            sources = { { kind = "config", data_id = "shop", md5 = "abc" } } })
        end
        local list = record:generations()
        assert.are.equal(10, #list)
        assert.are.same({ 12, 3 }, { list[1].n, list[10].n })
        local sources = { { kind = "config", data_id = "shop", md5 = "abc" } }
        assert.are.same({ n = 12, time = 12.5, reason = "r12", sources = sources, files = {
          { path = "/etc/1", mode = 420, uid = 1, gid = 0, size = 3, md5 = "18db97631c1cc5e4fee9f5e108b11b86" },
          { path = "/etc/2", mode = 420, uid = 2, gid = 0, size = #BINARY, md5 = require "nacos.core".md5(BINARY) } } }, list[1])
        local third = assert(record:generation(3))
        assert.are.same({ "v3", BINARY, "r3" }, { third.files[1].content, third.files[2].content, third.reason })
        local gone, err = record:generation(2)
        assert.is_nil(gone)
        assert.are.same({ "absent", "a has no generation 2" }, { err.code, err.message })

        assert.are.equal(13, record:add_generation({ files = files_of(big) }, 1))
        assert.are.equal(1, #record:generations())
        assert.is_true(record:generation(13).files[1].content == big)
        assert.is_true(math.abs(record:generations()[1].time - os.time()) < 10)
      end)
      with(function(s)
        assert.are.equal(14, s:target("a"):add_generation({ files = files_of("x") }, 2))
      end)
      local looking = assert(state.read(folder)):target("a")
      assert.are.same({ 14, 13 }, { looking:generations()[1].n, looking:generations()[2].n })
    end)

    it("leave nothing in memory", function()
      local function held()
        local n = 0
        for _, value in pairs(debug.getregistry()) do
          n = n + (type(value) == "userdata" and 1 or 0)
        end
        return n
      end
      with(function(s)
        local record, before = assert(s:target "a"), nil
        for i = 1, 30 do
          before = i == 10 and held() or before
          assert(record:add_generation { files = { { path = "/a", content = tostring(i) } } })
        end
        assert.are.equal(before, held())
      end)
    end)

    it("of which one was refused: only the last is kept, until cleared", function()
      with(function(s)
        local record = assert(s:target "a")
        assert.is_nil(record:rejected())
        for i = 1, 3 do
          assert.is_true(record:reject { files = files_of("bad" .. i), reason = "nginx -t: 1", output = "line " .. i .. "\0" })
        end
        local rejected = record:rejected()
        assert.are.same({ "bad3", "line 3\0", "nginx -t: 1" }, { rejected.files[1].content, rejected.output, rejected.reason })
        assert.are.same({}, record:generations())
        assert(record:clear_rejected())
        assert(record:clear_rejected())
        assert.is_nil(record:rejected())
      end)
    end)
  end)

  it("damage is told, without contents, and counts as absent", function()
    with(function(s)
      for _, name in ipairs { "a", "b", "c", "d" } do
        local record = assert(s:target(name))
        record.data.x = name
        assert(record:save())
        for i = 1, 4 do
          assert(record:add_generation { files = { { path = "/a", content = SECRET .. i } } })
        end
        assert(record:reject { files = { { path = "/a", content = SECRET } } })
      end
    end)
    local at = folder .. "/targets/"
    support.write(at .. "a/record.json", "{\"data\": {\"x\": \"" .. SECRET)
    support.write(at .. "b/record.json", "")
    support.write(at .. "c/record.json", "[1]")
    support.write(at .. "d/generations/1/meta.json", SECRET)
    support.write(at .. "d/generations/2/1", SECRET .. "!")
    uv.fs_unlink(at .. "d/generations/3/1")
    support.write(at .. "d/generations/stray", "")
    support.write(at .. "d/rejected/1/1", "")
    support.write(folder .. "/version", "one")
    local looking = assert(state.read(folder))
    assert.are.same({}, looking:target("a").data)
    told = {}
    with(function(s)
      assert.are.same({ {}, {}, {}, { x = "d" } },
        { s:target("a").data, s:target("b").data, s:target("c").data, s:target("d").data })
      local record = s:target "d"
      assert.are.equal(3, #record:generations())
      local function error_of(n)
        local _, err = record:generation(n)
        return err and err.code .. ": " .. err.message:gsub(folder:gsub("%p", "%%%0"), "F")
      end
      assert.are.equal("damaged: F/targets/d/generations/1/meta.json is damaged (11 bytes that are not JSON)", error_of(1))
      assert.are.equal("damaged: F/targets/d/generations/2/1 is damaged (it has another checksum)", error_of(2))
      assert.are.equal("damaged: F/targets/d/generations/3/1 is damaged (it is missing)", error_of(3))
      assert.are.equal(SECRET .. 4, record:generation(4).files[1].content)
      assert.is_nil(record:rejected())
      assert.are.equal(5, record:add_generation({ files = { { path = "/a", content = "x" } } }, 2))
      assert.are.same({ 5, 4 }, { record:generations()[1].n, record:generations()[2].n })
      assert(s:target("a"):save())
    end)
    assert.are.same({
      "state: F/version is damaged: the folder is taken for one of version 1",
      "a: F/targets/a/record.json is damaged (27 bytes that are not JSON): the target counts as new; kept as record.json.damaged",
      "b: F/targets/b/record.json is damaged (0 bytes that are not JSON): the target counts as new; kept as record.json.damaged",
      "c: F/targets/c/record.json is damaged (it has no data): the target counts as new; kept as record.json.damaged",
      "d: F/targets/d/generations/1/meta.json is damaged (11 bytes that are not JSON)",
      "d: F/targets/d/rejected/1/1 is damaged (it has another checksum)",
    }, told)
    assert.are.equal("1\n", support.read(folder .. "/version"))
    assert.is_nil(uv.fs_stat(at .. "d/generations/stray"))
    assert.matches(SECRET, support.read(at .. "a/record.json.damaged"), 1, true)
    told = {}
    with(function(s)
      assert.are.same({}, s:target("a").data)
    end)
    assert.are.same({}, told)
  end)

  it("a full disk is an error; what was there stands", function()
    local path = support.tmpdir() .. "/program.lua"
    support.write(path, lab.prelude .. ([[
      local s = assert(require "nacos.agent.state".open(%q))
      local record = s:target "a"
      record.data.x = "old"
      assert(record:save())
      assert(record:add_generation { files = { { path = "/a", content = "kept" } } })
      record.data.x = (%q):rep(20000)
      print(record:save())
      print(record:add_generation { files = { { path = "/a", content = "small" }, { path = "/b", content = (%q):rep(20000) } } })
      print(record:reject { files = { { path = "/b", content = (%q):rep(20000) } } })
      s:close()
      s = assert(require "nacos.agent.state".open(%q))
      record = s:target "a"
      print(record.data.x, #record:generations(), record:generation(1).files[1].content, record:rejected())
      record.data.x = "new"
      assert(record:save())
    ]]):format(folder, SECRET, SECRET, SECRET, folder))
    uv.fs_mkdir(folder, 448)
    local code, out, err = support.run { "unshare", "-m", "sh", "-ec", ([[
      mount -t tmpfs -o size=128k,mode=700 none %s
      lua5.4 %s
      find %s/targets -mindepth 2 | sort
    ]]):format(folder, path, folder) }
    assert.are.equal("", err)
    assert.are.equal(0, code)
    assert.are.equal([[
nil	cannot write F/targets/a/record.json: no space left on device
nil	cannot write F/targets/a/generations/2/2: no space left on device
nil	cannot write F/targets/a/rejected/1/1: no space left on device
old	1	kept	nil
F/targets/a/generations
F/targets/a/generations/1
F/targets/a/generations/1/1
F/targets/a/generations/1/meta.json
F/targets/a/record.json
F/targets/a/rejected
]], (out:gsub(folder:gsub("%p", "%%%0"), "F")))
  end)

  it("a kill at any step leaves a folder that opens, with the old or the new record and whole generations", function()
    local function change(s, to)
      local record = assert(s:target "a")
      record.data.x = to
      assert(record:save())
      assert(record:add_generation({ files = { { path = "/a", content = to }, { path = "/b", content = to .. to } } }, 2))
      assert(record:reject { files = { { path = "/a", content = to } } })
    end
    local seen, steps, killed = {}, 0
    repeat
      steps = steps + 1
      folder = support.tmpdir() .. "/state"
      with(function(s)
        change(s, "1")
        change(s, "2")
      end)
      local text, code = posix.in_child(function()
        local step = 0
        for name, fn in pairs(uv) do
          if name:find("^fs_") then
            uv[name] = function(...)
              step = step + 1
              if step == steps then
                uv.kill(uv.os_getpid(), "sigkill")
              end
              return fn(...)
            end
          end
        end
        with(function(s)
          change(s, "3")
        end)
        return "done"
      end)
      killed = code == 137
      assert.is_true(killed or text == "done", text)
      with(function(s)
        local record = assert(s:target "a")
        seen[record.data.x] = true
        local list = record:generations()
        assert.is_true(#list == 2 or #list == 3)
        for _, generation in ipairs(list) do
          local content = tostring(generation.n)
          local whole = assert(record:generation(generation.n))
          assert.are.same({ content, content .. content }, { whole.files[1].content, whole.files[2].content })
        end
        assert.is_not_nil(record:rejected())
        change(s, "4")
        assert.are.equal("4", record:rejected().files[1].content)
      end)
      local at = folder .. "/targets/a"
      assert.are.same({ "generations", "record.json", "rejected" }, names_in(at)) -- nothing is left over
      assert.are.same({ 2, 1 }, { #names_in(at .. "/generations"), #names_in(at .. "/rejected") })
    until not killed
    assert.are.same({}, told)
    assert.is_true(steps > 50)
    assert.are.same({ ["2"] = true, ["3"] = true }, seen)
  end)
end)
