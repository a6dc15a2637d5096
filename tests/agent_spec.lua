--- The agent as its user meets it: a script, `lunacos run`, files on a disk, signals.

local agent_lab = require "agent_lab"
local core = require "nacos.core"
local json = require "cjson.safe"
local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local server

local function cases()
  return agent_lab.cases(it, 8, function()
    server = server or support.start_server()
    return server
  end)
end

teardown(function()
  if server then
    server:stop()
  end
end)

local function mode(path)
  local stat = uv.fs_stat(path)
  return stat and ("%04o"):format(stat.mode & 4095)
end

describe("agent.file", function()
  local case = cases()

  case("writes what its template says, follows what that reads, and nothing else", function(box)
    box:set("shop.yaml", "name: shop\nport: 80\n")
    box:set("extra.txt", "more")
    box:write("shop.tmpl", "name {{ config('shop.yaml').name }}{% if config('shop.yaml').port == 80 then %} {{ text('extra.txt') }}"
      .. "{% end %} {{ colour }}\n")
    box:start [[ agent.file { path = "out", source = "shop.tmpl", vars = { colour = "red" } } ]]
    box:has("out", "name shop more red\n")
    box:set("extra.txt", "less")
    box:has("out", "name shop less red\n")
    assert.same({ "config", "config" }, { box:entry("out").sources[1].kind, box:entry("out").sources[2].kind })
    box:set("shop.yaml", "name: shop\nport: 81\n")
    box:has("out", "name shop red\n")
    box:eventually(function() -- extra.txt is read no more
      return #box:entry("out").sources == 1 and #box:status().sources == 1
    end)
  end)

  case("does nothing for equal bytes", function(box)
    box:set("shop.yaml", "name: shop\n")
    box:start [[ agent.file { path = "out", template = "{{ config('shop.yaml').name }}\n", mode = "0640",
      reload = function() io.open("reloads", "a"):write("x\n"):close() end } ]]
    box:is "ok"
    local before = uv.fs_stat(box:path "out")
    box:set("shop.yaml", "name: shop # renamed\n")
    box:saw("shop.yaml", "name: shop # renamed\n")
    box:is "ok"
    local after = uv.fs_stat(box:path "out")
    assert.same({ before.ino, before.mtime }, { after.ino, after.mtime })
    assert.equal(1, box:count "reloads")
    assert.equal(1, box:entry().generation)
    -- nor at the next start
    assert.equal(0, box.process:stop())
    box:start()
    box:is "ok"
    assert.equal(before.ino, uv.fs_stat(box:path "out").ino)
    assert.equal(1, box:count "reloads")
  end)

  case("takes a file that is already right as it is", function(box)
    box:write("out", "same\n")
    box:start [[ agent.file { path = "out", template = "same\n", reload = { "touch", "reloaded" } } ]]
    box:is "ok"
    assert.is_nil(box:read "reloaded")
    assert.equal(1, box:entry().generation)
    assert.matches("found on disk", (select(2, box:cli("history", "out"))))
  end)

  local root_case = uv.getuid() == 0 and case or function(name)
    pending(name .. " (needs root)")
  end

  root_case("gives mode and owner, by name or number, and mends them alone", function(box)
    box:write("kept", "old")
    uv.fs_chmod(box:path "kept", tonumber("604", 8))
    box:start [[
      agent.file { path = "plain", template = "x" }
      agent.file { path = "kept", template = "x" }
      agent.file { path = "named", template = "x", mode = "0600", owner = "daemon", group = "daemon",
        reload = { "sh", "-c", "echo x >>reloads" } }
      agent.file { path = "numbered", template = "x", mode = "4755", owner = 4321, group = 4322 }
    ]]
    for _, name in ipairs { "plain", "kept", "named", "numbered" } do
      box:is("ok", name)
    end
    assert.same({ "0644", "0604", "0600", "4755" },
      { mode(box:path "plain"), mode(box:path "kept"), mode(box:path "named"), mode(box:path "numbered") })
    local uid, gid = core.user("daemon"), core.group("daemon")
    local named, numbered = uv.fs_stat(box:path "named"), uv.fs_stat(box:path "numbered")
    assert.same({ uid, gid, 4321, 4322 }, { named.uid, named.gid, numbered.uid, numbered.gid })
    uv.fs_chmod(box:path "named", tonumber("666", 8))
    uv.fs_chown(box:path "named", 0, 0)
    assert(box:ask { command = "retry", target = box:path "named" } or box:ask { command = "retry", target = "named" })
    box:eventually(function()
      return mode(box:path "named") == "0600" and uv.fs_stat(box:path "named").uid == uid
    end)
    box:is("ok", "named")
  end)

  case("names an owner that does not exist", function(box)
    box:start [[ agent.file { path = "out", template = "x", owner = "no-such-user" } ]]
    assert.matches("the user 'no%-such%-user' does not exist", box:is("failed").error)
    assert.is_nil(box:read "out")
  end)

  case("makes folders when asked, and replaces or follows links", function(box)
    box:write("real", "old")
    assert(uv.fs_symlink(box:path "real", box:path "followed"))
    assert(uv.fs_symlink(box:path "real", box:path "replaced"))
    box:start [[
      agent.file { path = "a/b/out", template = "x", mkdir = true }
      agent.file { path = "followed", template = "new", symlink = "follow" }
      agent.file { path = "replaced", template = "own" }
    ]]
    box:has("a/b/out", "x")
    box:has("real", "new")
    box:has("replaced", "own")
    assert.equal("link", uv.fs_lstat(box:path "followed").type)
    assert.equal("file", uv.fs_lstat(box:path "replaced").type)
  end)

  case("takes content from a function that reads", function(box)
    box:set("a.json", '{"n": 3}')
    box:write("local.txt", "beside")
    box:start([[ agent.file { path = "out", content = function(ctx)
      return ("%s %d %s %s %s\n"):format(ctx.name, ctx.config("a.json").n, ctx.env("COLOUR"), ctx.env("NONE", "none"),
        ctx.file("local.txt"))
    end } ]], { env = { COLOUR = "blue" } })
    box:has("out", "out 3 blue none beside\n")
    box:write("local.txt", "changed")
    box:has("out", "out 3 blue none changed\n")
  end)

  case("tells a content function that returns no text, and one that raises", function(box)
    box:start [[
      agent.file { path = "none", content = function() end }
      agent.file { path = "why", content = function() return nil, "not today" end }
      agent.file { path = "raises", content = function() error("broken") end }
      agent.file { path = "fine", content = function() return "fine" end }
    ]]
    box:is("ok", "fine")
    assert.matches("a string is needed, not nil", box:is("failed", "none").error)
    assert.matches("not today", box:is("failed", "why").error)
    assert.matches("agent.lua:3: broken", box:is("failed", "raises").error)
  end)

  case("waits for what is unknown, fails for what is absent, unless there is a default", function(box)
    box:start [[
      agent.file { path = "needs", template = "{{ text('late') }}" }
      agent.file { path = "default", template = "{{ text('late', { default = 'none yet' }) }}" }
      agent.file { path = "caught", template = "{{ pcall(text, 'late') and 'yes' or 'no' }}" }
    ]]
    box:has("default", "none yet")
    box:has("caught", "no")
    assert.matches("'late'.* does not exist", box:is("failed", "needs").error)
    assert.is_nil(box:read "needs")
    box:set("late", "here")
    box:has("needs", "here")
    box:has("default", "here")
    box:has("caught", "yes")
    box:is("ok", "needs")
    box:remove("late")
    box:is("failed", "needs") -- the file stays
    box:has("default", "none yet")
    assert.equal("here", box:read "needs")
  end)

  case("writes nothing while no server has answered", function(box)
    box:write("needs", "as it was")
    box:start [[
      agent.connect { server_addresses = "127.0.0.1:1" }
      agent.file { path = "needs", template = "{{ text('a', { default = 'default' }) }}" }
      agent.file { path = "caught", template = "{{ pcall(text, 'a') and 1 or 2 }}" }
      agent.file { path = "apart", template = "x" }
    ]]
    box:is("ok", "apart")
    assert.matches("not known", box:is("waiting", "needs").error)
    box:is("waiting", "caught")
    assert.equal("as it was", box:read "needs")
    assert.is_nil(box:read "caught")
  end)

  case("starts without a server from what it knew", function(box)
    box:set("a", "value")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}" } ]]
    box:has("out", "value")
    box:is "ok"
    assert.equal(0, box.process:stop())
    assert(uv.fs_unlink(box:path "out"))
    box:start [[
      agent.connect { server_addresses = "127.0.0.1:1" }
      agent.file { path = "out", template = "{{ text('a') }}" }
    ]]
    box:has("out", "value")
    assert.equal("snapshot", box:is("ok").sources[1].source)
  end)
end)

describe("check", function()
  local case = cases()

  case("sees the staged file before it replaces the good one; what it refuses is kept", function(box)
    box:set("a", "good")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}\n",
      check = { "sh", "-c", "echo x >>checks; cat out; grep -q good $1 || { echo it smells; exit 7; }", "sh", "{staged}" },
      reload = "echo x >>reloads" } ]]
    box:has("out", "good\n")
    box:is "ok"
    box:set("a", "bad")
    local entry = box:is "rejected"
    assert.matches("exit code 7", entry.error)
    assert.equal("good\n", box:read "out")
    assert.same({ out = true }, (function()
      local names = box:names()
      return { out = names.out, staged = names[".out.lunacos-staged"] }
    end)())
    box:says "out: check: it smells"
    local record = require("nacos.agent.state").read(box:path "state"):target("out")
    local rejected = assert(record:rejected())
    assert.equal("bad\n", rejected.files[1].content)
    assert.matches("it smells", rejected.output)
    -- not again until the input changes, or somebody asks
    assert.equal(2, box:count "checks")
    box:set("b", "x")
    assert.equal(2, box:count "checks")
    assert(box:ask { command = "retry" })
    box:eventually(function() return box:count "checks" == 3 end)
    box:is "rejected"
    box:set("a", "good again")
    box:has("out", "good again\n")
    assert.is_nil(box:is("ok").rejected)
    assert.equal(2, box:count "reloads")
  end)

  case("stays refused after a restart", function(box)
    box:set("a", "good")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", check = { "grep", "-q", "good", "{staged}" } } ]]
    box:has("out", "good")
    box:is "ok"
    box:set("a", "bad")
    box:is "rejected"
    assert.equal(0, box.process:stop())
    box:start()
    assert.matches("grep", box:is("rejected").error)
    assert.equal("good", box:read "out")
  end)

  case("may be a line for sh or a function", function(box)
    box:set("a", "1")
    box:start [[
      agent.file { path = "line", template = "{{ text('a') }}", check = "grep -q 1 {staged} && test {path} = line" }
      agent.file { path = "fn", template = "{{ text('a') }}", check = function(ctx)
        nacos.sleep(0.01)
        local text = io.open(ctx.staged[ctx.path]):read("a")
        return text == "1", "the text is " .. text
      end }
      agent.file { path = "nothing", template = "{{ text('a') }}", check = function() end }
      agent.file { path = "raises", template = "{{ text('a') }}", check = function() error("oh") end }
    ]]
    box:is("ok", "fn")
    assert.matches("the function returned nil", box:is("rejected", "nothing").error)
    assert.matches("agent.lua:8: oh", box:is("rejected", "raises").error)
    box:is("ok", "line")
    box:set("a", "2")
    assert.matches("the text is 2", box:is("rejected", "fn").error)
    box:is("rejected", "line")
    assert.same({ "1", "1" }, { box:read "fn", box:read "line" })
    assert.is_nil(box:read "nothing")
  end)
end)

describe("reload", function()
  local case = cases()

  case("runs after the write, its output in the log under the target's name", function(box)
    box:set("a", "1")
    box:start [[ agent.file { name = "web", path = "out", template = "{{ text('a') }}",
      reload = { "sh", "-c", "echo loading $(cat $1); echo twice >&2", "sh", "{path}" } } ]]
    box:says "web: reload: loading 1"
    box:says "web: reload: twice"
    box:set("a", "2")
    box:says "web: reload: loading 2"
    assert.equal(2, box:is("ok", "web").reloads)
  end)

  case("is owed when it fails, tried again, and done at last", function(box)
    box:start [[ agent.file { path = "out", template = "x",
      reload = "echo x >>reloads; test -e allowed || { echo not yet; exit 3; }" } ]]
    local entry = box:is "owed"
    assert.matches("exit code 3", entry.owed.reason)
    assert.is_nil(entry.applied)
    assert.truthy(entry.next_try and entry.next_try <= 60)
    box:eventually(function() return (box:entry().owed or {}).tries == 2 end)
    box:write("allowed", "")
    entry = box:is "ok"
    assert.same({ entry.wanted, entry.wanted }, { entry.written, entry.applied })
    assert.is_nil(entry.owed)
    assert.equal(entry.reloads, box:count "reloads")
  end)

  case("is still owed after a restart, and done though the file is right", function(box)
    box:start [[ agent.file { path = "out", template = "x", reload = "echo x >>reloads; test -e allowed" } ]]
    box:is "owed"
    assert.equal(0, box.process:stop())
    local code, out = box:cli("status")
    assert.equal(3, code)
    assert.matches("owed", out)
    box:write("allowed", "")
    box:start()
    box:is "ok"
    assert.equal(2, box:count "reloads")
    assert.equal(0, box.process:stop())
    box:start() -- and now nothing is
    box:is "ok"
    assert.equal(2, box:count "reloads")
  end)

  case("is owed also when a newer value is refused or cannot be had", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", check = { "grep", "-qv", "bad", "{staged}" },
      reload = "echo x >>reloads; test -e allowed" } ]]
    box:is "owed"
    box:set("a", "bad")
    box:saw("a", "bad")
    assert.equal("owed", box:entry().state)
    assert.truthy(box:entry().rejected)
    box:write("allowed", "")
    box:is "rejected"
    local entry = box:entry()
    assert.equal(entry.written, entry.applied)
    assert.equal("1", box:read "out")
  end)

  case("may be a function, which fails by false, a reason or an error", function(box)
    box:start [[
      local function note(ctx) io.open("notes", "a"):write(ctx.name, " ", ctx.paths[1], " ", ctx.generation, "\n"):close() end
      agent.file { path = "fine", template = "x", reload = function(ctx) nacos.sleep(0.01) note(ctx) end }
      agent.file { path = "says", template = "x", reload = function() return nil, "no room" end }
      agent.file { path = "false", template = "x", reload = function() return false end }
      agent.file { path = "raises", template = "x", reload = function() error("oh") end }
    ]]
    box:is("ok", "fine")
    assert.equal("fine fine 1\n", box:read "notes")
    assert.matches("reload: no room", box:is("owed", "says").error)
    assert.matches("returned false", box:is("owed", "false").error)
    assert.matches("agent.lua:5: oh", box:is("owed", "raises").error)
  end)

  case("waits until changes have been quiet, but not for ever", function(box)
    box:set("a", "0")
    box:start [[
      agent.file { path = "quiet", template = "{{ text('a') }}", wait = 0.6, reload = "cat quiet >>quiet.log; echo >>quiet.log" }
      agent.file { path = "soon", template = "{{ text('a') }}", wait = { min = 0.6, max = 0.7 }, reload = "echo x >>soon.log" }
    ]]
    box:has("quiet", "0")
    box:is("ok", "quiet")
    box:is("ok", "soon")
    for i = 1, 20 do
      box:set("a", tostring(i))
      nacos.sleep(0.1)
    end
    box:has("quiet", "20")
    box:has("soon", "20")
    box:is("ok", "quiet")
    box:is("ok", "soon")
    assert.equal("0\n", box:read("quiet.log"):sub(1, 2))
    assert.equal("20\n", box:read("quiet.log"):sub(-3))
    assert.truthy(box:count "quiet.log" < 15, box:count "quiet.log")
    assert.truthy(box:count "soon.log" > 2, box:count "soon.log")
    assert.truthy(box:count "quiet.log" <= box:count "soon.log")
  end)

  case("comes at most once in reload_interval, the last change included", function(box)
    box:set("a", "0")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", reload_interval = 2,
      reload = "cat out >>log; echo >>log" } ]]
    box:is "ok"
    for i = 1, 5 do
      box:set("a", tostring(i))
      box:has("out", tostring(i)) -- the file is not held back
    end
    assert.matches("at most one in 2 s", box:is("due").error)
    box:is "ok"
    assert.equal("0\n5\n", box:read "log")
  end)

  case("waits for its splay", function(box)
    box:start [[ math.random = function() return 0.5 end
      agent.file { path = "out", template = "x", splay = 2, reload = "echo x >>log" } ]]
    assert.matches("splay", box:is("due").error)
    assert.equal("x", box:read "out")
    assert.is_nil(box:read "log")
    box:is "ok"
    assert.equal(1, box:count "log")
  end)

  case("that fails brings the last good generation back with on_failure = restore", function(box)
    box:set("a", "good")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", on_failure = "restore",
      reload = "cat out >>log; echo >>log; ! grep bad out" } ]]
    box:is "ok"
    box:set("a", "bad")
    local entry = box:is "rejected"
    assert.matches("generation 1 is restored", entry.rejected.reason)
    assert.equal("good", box:read "out")
    assert.equal("good\nbad\ngood\n", box:read "log")
    assert.same({ entry.written, 1 }, { entry.applied, entry.generation })
    box:set("a", "better")
    box:has("out", "better")
    box:is "ok"
    assert.equal(0, box.process:stop())
    box:set("a", "bad too")
    box:start() -- it is known after a restart, too, what was loaded last
    box:is "rejected"
    assert.equal("better", box:read "out")
  end)

  case("of what was brought back is owed, too", function(box)
    box:set("a", "good")
    box:write("up", "")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", on_failure = "restore",
      reload = "cat out >>log; echo >>log; test -e up && ! grep bad out" } ]]
    box:is "ok"
    assert(os.remove(box:path "up"))
    box:set("a", "bad")
    box:is "owed"
    assert.equal("good", box:read "out")
    box:write("up", "")
    assert.truthy(box:is("rejected").rejected)
    assert.equal("good", box:last("log"))
    assert.equal("good", box:read "out")
  end)

  case("comes again for what changes while it runs", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}",
      reload = "cat out >>log; echo >>log; touch began; while ! test -e go; do sleep 0.02; done" } ]]
    box:eventually(function() return box:read "began" end)
    box:set("a", "2")
    box:set("a", "3")
    box:eventually(function() return box:status().sources[1].md5 == core.md5("3") end)
    assert.equal("1", box:read "out")
    box:write("go", "")
    box:has("log", "1\n3\n")
    box:is "ok"
  end)

  case("that fails brings back what was found on the disk", function(box)
    box:write("out", "by hand")
    box:set("a", "bad")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", on_failure = "restore", reload = "! grep bad out" } ]]
    box:is "rejected"
    assert.equal("by hand", box:read "out")
  end)

  case("that fails again and again does not lose what worked", function(box)
    box:set("a", "good")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", on_failure = "restore", reload = "! grep bad out",
      keep = 2 } ]]
    box:is "ok"
    for i = 1, 4 do
      box:set("a", "bad " .. i)
      box:saw("a", "bad " .. i)
      box:eventually(function()
        local entry = box:entry()
        return entry.state == "rejected" and entry.wanted == entry.rejected.hash or entry.state == "owed"
      end)
      assert.same({ i, "good", "rejected" }, { i, box:read "out", box:entry().state })
    end
  end)
end)

describe("guards", function()
  local case = cases()

  case("refuse what is empty, unless it is allowed", function(box)
    box:set("a.json", '["full"]')
    box:start [[
      local template = "{% for _, word in ipairs(config('a.json')) do %}{{ word }}{% end %}"
      agent.file { path = "out", template = template }
      agent.file { path = "may", template = template, reject_empty = false }
    ]]
    box:has("out", "full")
    box:has("may", "full")
    box:is("ok", "out")
    box:set("a.json", "[]")
    box:has("may", "")
    assert.matches("would become empty", box:is("rejected", "out").error)
    assert.equal("full", box:read "out")
  end)

  case("refuse what shrinks, has too few instances, or what a function does not like", function(box)
    for port = 1, 3 do
      assert(box.client:add_naming_instance("web", "127.0.0.1", port))
    end
    box:set("a", ("x"):rep(100))
    box:start [[
      agent.file { path = "shrinks", template = "{{ text('a') }}", max_shrink = 0.5 }
      agent.file { path = "web", template = "{% for _, i in ipairs(service('web')) do %}{{ i.port }} {% end %}", min_instances = 2 }
      agent.file { path = "asked", template = "{{ text('a') }}", guard = function(g)
        local file = g.files[1]
        return #file.content >= #(file.old or ""), ("%s shrinks from %d to %d"):format(file.path, #(file.old or ""), #file.content)
      end }
    ]]
    box:has("web", "1 2 3 ")
    box:is("ok", "shrinks")
    box:is("ok", "asked")
    box:set("a", ("x"):rep(49))
    assert.matches("shrink from 100 to 49 bytes", box:is("rejected", "shrinks").error)
    assert.matches("asked shrinks from 100 to 49", box:is("rejected", "asked").error)
    assert(box.client:remove_naming_instance("web", "127.0.0.1", 1))
    box:has("web", "2 3 ")
    assert(box.client:remove_naming_instance("web", "127.0.0.1", 2))
    assert.matches("web has 1 healthy instances, min_instances is 2", box:is("rejected", "web").error)
    assert.equal("2 3 ", box:read "web")
    -- who knows better says so
    local code = box:cli("status")
    assert.equal(1, code)
    box:set("a", ("x"):rep(60))
    box:has("shrinks", ("x"):rep(60))
    box:is("ok", "shrinks")
  end)
end)

describe("agent.group", function()
  local case = cases()

  case("writes all or none, from one set of values", function(box)
    box:set("a", "1")
    box:start [[ agent.group { name = "pair", vars = { tail = "!" },
      files = { { path = "one.conf", template = "{{ text('a') }}{{ tail }}" }, { path = "two.conf",
        template = "{{ text('a') }}{{ tail }}" } },
      check = function(ctx)
        local one = io.open(ctx.staged["one.conf"]):read("a")
        return one == io.open(ctx.staged["two.conf"]):read("a") and not one:find("bad"), "the two do not fit"
      end,
      reload = { "sh", "-c", "paste -d= $1 $2 >>log", "sh", "{path:one.conf}", "{path:two.conf}" } } ]]
    box:is("ok", "pair")
    for i = 2, 4 do
      box:set("a", tostring(i))
      box:has("two.conf", i .. "!")
    end
    box:is("ok", "pair")
    box:set("a", "bad")
    box:is("rejected", "pair")
    assert.same({ "4!", "4!" }, { box:read "one.conf", box:read "two.conf" })
    for line in box:read("log"):gmatch("[^\n]+") do
      assert.matches("^(.+)=%1$", line)
    end
    assert.equal("4!=4!", box:read("log"):match("([^\n]+)\n$"))
  end)

  case("writes none when one of its files cannot be rendered or written", function(box)
    box:set("a", "1")
    box:write("file", "")
    box:start [[
      agent.group { name = "absent", files = { { path = "a1", template = "x" }, { path = "a2", template = "{{ text('none') }}" } } }
      agent.group { name = "unwritable", files = { { path = "u1", template = "x" }, { path = "file/u2", template = "x" } } }
      agent.file { path = "fine", template = "x" }
    ]]
    box:is("failed", "absent")
    box:is("failed", "unwritable")
    box:is("ok", "fine")
    local names = box:names()
    assert.same({}, { names.a1, names.a2, names.u1 })
  end)

  case("computes its files, and removes those that drop out when asked", function(box)
    box:set("sites.json", '["a", "b", "c"]')
    box:start [[
      for _, prune in ipairs { true, false } do
        agent.group { name = "sites " .. tostring(prune), prune = prune, files = function(ctx)
          local list = {}
          for _, site in ipairs(ctx.config("sites.json")) do
            list[#list + 1] = { path = tostring(prune) .. "/" .. site, template = "site {{ name }}", vars = { name = site },
              mkdir = true }
          end
          return list
        end, reload = "ls " .. tostring(prune) .. " >" .. tostring(prune) .. ".log" }
      end
    ]]
    box:has("true.log", "a\nb\nc\n")
    box:has("false/c", "site c")
    box:is("ok", "sites true")
    box:is("ok", "sites false")
    box:set("sites.json", '["b", "d"]')
    box:has("true.log", "b\nd\n")
    box:has("false/d", "site d")
    assert.same({ b = true, d = true }, box:names "true")
    assert.same({ a = true, b = true, c = true, d = true }, box:names "false")
    box:set("sites.json", '["d"]') -- nothing is written, only removed
    box:has("true.log", "d\n")
    assert.same({ d = true }, box:names "true")
    assert.equal(0, box.process:stop())
    box:set("sites.json", '["e"]')
    box:start()
    box:has("true.log", "e\n")
    assert.same({ e = true }, box:names "true")
    box:set("sites.json", '["e", {"x": 1}]')
    assert.matches("attempt to concatenate a table", box:is("failed", "sites true").error)
  end)

  case("does not vanish because its list is empty, unless it is allowed", function(box)
    box:set("sites.json", '["a"]')
    box:start [[
      local function files(ctx)
        local list = {}
        for i, site in ipairs(ctx.config("sites.json")) do
          list[i] = { path = ctx.name .. "/" .. site, template = "x", mkdir = true }
        end
        return list
      end
      agent.group { name = "kept", prune = true, files = files }
      agent.group { name = "gone", prune = true, files = files, reject_empty = false }
    ]]
    box:has("kept/a", "x")
    box:has("gone/a", "x")
    box:is("ok", "kept")
    box:set("sites.json", "[]")
    box:eventually(function()
      return not box:read "gone/a"
    end)
    assert.matches("would become empty", box:is("rejected", "kept").error)
    assert.equal("x", box:read "kept/a")
  end)

  case("goes back as a whole", function(box)
    box:set("a", "1")
    box:start [[ agent.group { name = "pair", files = { { path = "one", template = "{{ text('a') }}" }, { path = "two",
      template = "{{ text('a') }}" } },
      reload = "cat one two >>log; echo >>log" } ]]
    box:is("ok", "pair")
    box:set("a", "2")
    box:has("two", "2")
    box:is("ok", "pair")
    local code, out = box:cli("rollback", "pair")
    assert.equal(0, code, out)
    box:is("pinned", "pair")
    assert.same({ "1", "1", "11\n22\n11\n" }, { box:read "one", box:read "two", box:read "log" })
  end)
end)

describe("generations", function()
  local case = cases()

  case("are kept with their reasons, and can be gone back to, held and let go", function(box)
    box:write("out", "0") -- found
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", keep = 4, reload = "cat out >>log; echo >>log" } ]]
    for i = 1, 4 do
      box:set("a", tostring(i))
      box:has("out", tostring(i))
      box:is "ok"
    end
    local code, out = box:cli("history", "out", "--json")
    assert.equal(0, code, out)
    local list = {}
    for line in out:gmatch("[^\n]+") do
      local generation = assert(json.decode(line), line)
      list[#list + 1] = ("%d %s"):format(generation.n, generation.reason)
    end
    assert.same({ "5 change", "4 change", "3 change", "2 change" }, list)
    assert.equal(0, (box:cli("rollback", "out")))
    local entry = box:is "pinned"
    assert.same({ "3", 4 }, { box:read "out", entry.pinned })
    box:set("a", "9")
    box:set("b", "x")
    assert.equal("3", box:read "out")
    assert.equal(0, (box:cli("rollback", "out", "2")))
    box:has("out", "1")
    box:is "pinned"
    assert.equal(0, box.process:stop())
    box:start()
    box:is "pinned" -- still
    assert.equal("1", box:read "out")
    code, out = box:cli("pin", "out", "1")
    assert.not_equal(0, code)
    assert.matches("no generation 1", out)
    assert.equal(0, (box:cli("unpin", "out")))
    box:has("out", "9")
    box:is "ok"
    assert.equal("9", box:last("log"))
  end)

  case("can be held where they are", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}" } ]]
    box:is "ok"
    assert.equal(0, (box:cli("pin", "out")))
    box:is "pinned"
    box:set("a", "2")
    box:write("out", "by hand") -- what is pinned is kept, too
    assert(box:ask { command = "retry" })
    box:has("out", "1")
    assert.equal(0, (box:cli("unpin", "out")))
    box:has("out", "2")
  end)

  case("are what is on the disk, also when somebody else put it there", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}" } ]]
    box:is "ok"
    assert.equal(0, box.process:stop())
    box:write("out", "2")
    box:set("a", "2")
    box:start()
    box:is "ok"
    assert.equal(0, (box:cli("pin", "out")))
    box:is "pinned"
    assert.equal("2", box:read "out")
  end)
end)

describe("agent.process", function()
  local case = cases()

  case("starts when its files are complete, and hears of changes", function(box)
    box:start [[
      agent.file { path = "api.conf", template = "{{ text('a') }}" }
      agent.process { name = "api", after = { "api.conf" }, reload_signal = "HUP", settle = 0,
        command = [=[trap 'cat api.conf >>log; echo >>log' HUP; echo started with $(cat api.conf) >>log
          while :; do sleep 0.05; done]=] }
      agent.process { name = "again", after = { "api.conf" }, settle = 0,
        command = "cat api.conf >>again; echo >>again; exec sleep 1000" }
      agent.process { name = "deaf", after = { "api.conf" }, reload_signal = "none", command = "echo x >>deaf; exec sleep 1000" }
    ]]
    box:is("waiting", "api", "processes")
    assert.is_nil(box:read "log")
    box:set("a", "1")
    box:has("log", "started with 1\n")
    box:is("running", "api", "processes")
    box:has("again", "1\n")
    box:is("running", "again", "processes")
    box:set("a", "2")
    box:has("log", "started with 1\n2\n")
    box:has("again", "1\n2\n")
    assert.equal(1, box:count "deaf")
    box:says "api.conf: written"
  end)

  case("gets values of configurations in its environment, and nothing of ours", function(box)
    box:set("db.json", '{"password": "one"}')
    box:start([[
      agent.process { name = "api", settle = 0, command = "env | sort >env.new; mv env.new env; exec sleep 1000", env = {
        pristine = true, allow = { "PATH" },
        add = { DB_PASSWORD = function(read) return read.config("db.json").password end, FIXED = "x" } } }
    ]], { env = { SECRET = "planted", NACOS_PASSWORD = "planted" } })
    box:eventually(function()
      return (box:read "env" or ""):find("DB_PASSWORD=one", 1, true)
    end)
    assert.is_nil(box:read("env"):find("planted", 1, true))
    assert.truthy(box:read("env"):find("FIXED=x", 1, true))
    box:set("db.json", '{"password": "two"}')
    box:eventually(function()
      return (box:read "env" or ""):find("DB_PASSWORD=two", 1, true)
    end)
    assert.is_nil(box:log():find("one", 1, true))
  end)

  case("logs its output under its name, and is started again when it fails", function(box)
    box:start [[ agent.process { name = "api", command = "echo hello; echo x >>starts; test -e enough && exit 0; exit 3",
      restart_delay = 0.05 } ]]
    box:says("api: hello", 3)
    box:write("enough", "")
    local entry = box:is("ended", "api", "processes")
    assert.equal(0, entry.code)
    assert.equal(entry.starts, box:count "starts")
  end)

  case("starts with the files of an earlier time when the new ones are refused", function(box)
    box:set("a", "1")
    box:start [[
      agent.file { path = "conf", template = "{{ text('a') }}", check = { "grep", "-vq", "bad", "{staged}" } }
      agent.process { name = "api", after = { "conf" }, command = "cat conf >>log; echo >>log; exec sleep 1000" } ]]
    box:has("log", "1\n")
    assert.equal(0, box.process:stop())
    box:set("a", "bad")
    box:start()
    box:is("rejected", "conf")
    box:has("log", "1\n1\n")
  end)

  case("has to be after something that there is", function(box)
    assert.equal(1, box:run [[ agent.process { name = "api", command = { "true" }, after = { "none" } } ]])
    assert.matches("process api is to start after none, which no file or group is named", box:log())
  end)

  case("decides with --exec how the agent ends", function(box)
    assert.equal(7, box:run([[
      agent.file { path = "out", template = "x" }
      agent.process { name = "api", after = { "out" }, restart = "no", command = "cat out >seen; exit 7" }
        ]], { args = { "--exec" } }))
    assert.equal("x", box:read "seen")
    assert.equal(0, box:run([[ agent.process { name = "api", command = { "true" } } ]], { args = { "--exec" } }))
    assert.equal(1, box:run([[ agent.file { path = "out", template = "x" } ]], { args = { "--exec" } }))
    assert.matches("%-%-exec needs exactly one process, the script declares 0", box:log())
  end)

  case("gets QUIT with --exec, and its exit code for that is the agent's", function(box)
    box:start([[ agent.process { name = "api", restart = "no",
      command = "trap 'exit 3' QUIT; touch up; while :; do sleep 0.05; done" } ]], { args = { "--exec" } })
    box:eventually(function() return box:read "up" end)
    box:signal "QUIT"
    assert.equal(3, box.process:wait(10))
  end)
end)

describe("agent.service", function()
  local case = cases()

  local function instances(box)
    local list = box.client:list_naming_instance("api") or {}
    return #list == 1 and list[1].port or #list
  end

  case("registers while healthy, and leaves before the process is stopped", function(box)
    box:own_server { "--push-delay", "0" }
    box:start([[
      agent.process { name = "api",
        command = "trap 'sleep 0.2; echo stopped >>log; exit 0' TERM; touch up; while :; do sleep 0.05; done" }
      agent.service { name = "api", ip = "127.0.0.1", port = 8080, interval = 0.05, rise = 1, fall = 1, drain = 0.8,
        check = function() return io.open("up") ~= nil, "not up" end }
    ]])
    box:is("registered", "api", "services")
    box:eventually(function() return instances(box) == 8080 end)
    assert(os.remove(box:path "up"))
    assert.matches("not up", box:is("unhealthy", "api", "services").error)
    box:eventually(function() return instances(box) == 0 end)
    box:write("up", "")
    box:eventually(function() return instances(box) == 8080 end)
    box:signal "TERM"
    box:eventually(function() return instances(box) == 0 end)
    assert.is_nil(box:read "log") -- it drains
    assert.equal(0, box.process:wait())
    assert.equal("stopped\n", box:read "log")
  end)
end)

describe("agent.watch", function()
  local case = cases()

  case("calls with each value, and survives an error of the callback", function(box)
    box:set("flags", "1")
    box:start [[ agent.watch("flags", function(change)
        io.open("log", "a"):write(change.content or "gone", "\n"):close()
        if change.content == "2" then error("oh") end
      end) ]]
    box:has("log", "1\n")
    box:set("flags", "2")
    box:says "error in its callback"
    box:set("flags", "3")
    box:has("log", "1\n2\n3\n")
    box:remove "flags"
    box:has("log", "1\n2\n3\ngone\n")
  end)
end)

describe("agent.push", function()
  local case = cases()

  local function published(box, data_id)
    return (box.client:get_config { data_id = data_id, no_snapshot = true })
  end

  case("publishes a file and its changes, and overwrites nobody", function(box)
    box:write("topology", "1")
    box:start [[ agent.push { data_id = "topology.json", file = "topology", interval = 0.05, type = "json" } ]]
    box:is("ok", "topology.json", "pushes")
    assert.equal("1", published(box, "topology.json"))
    box:write("topology", "22")
    box:eventually(function() return published(box, "topology.json") == "22" end)
    box:is("ok", "topology.json", "pushes")
    box:set("topology.json", "somebody else")
    box:write("topology", "333")
    assert.matches("changed by somebody else", box:is("conflict", "topology.json", "pushes").error)
    assert.equal("somebody else", published(box, "topology.json"))
    box:set("topology.json", "333") -- agreed
    assert(box:ask { command = "retry", target = "topology.json" })
    box:is("ok", "topology.json", "pushes")
    box:write("topology", "4444")
    box:eventually(function() return published(box, "topology.json") == "4444" end)
    assert.equal(0, box.process:stop())
    box:write("topology", "5")
    box:start()
    box:eventually(function() return published(box, "topology.json") == "5" end)
  end)

  case("asks its check, and publishes neither an empty nor a missing file", function(box)
    box:start [[ agent.push { data_id = "t", file = "topology", interval = 0.05, check = { "grep", "-q", "good", "{path}" } } ]]
    assert.matches("topology", box:is("failed", "t", "pushes").error)
    box:write("topology", "bad")
    box:is("rejected", "t", "pushes")
    assert.is_nil(published(box, "t"))
    box:write("topology", "good")
    box:is("ok", "t", "pushes")
    box:write("topology", "")
    assert.matches("is empty", box:is("failed", "t", "pushes").error)
    assert.equal("good", published(box, "t"))
  end)

  case("takes over what was there before its first time", function(box)
    box:set("t", "theirs")
    box:write("topology", "ours")
    box:start [[ agent.push { data_id = "t", file = "topology", interval = 0.05 } ]]
    box:is("ok", "t", "pushes")
    assert.equal("ours", published(box, "t"))
  end)
end)

describe("a script", function()
  local case = cases()

  ---What the agent says of a script that it does not take; nothing was written.
  local function refused(box, script)
    assert.equal(1, box:run(script .. ' agent.file { path = "never", template = "x" }'), script)
    assert.is_nil(box:read "never")
    return box.process:stderr()
  end

  for name, cases_of in pairs {
    ["names unknown keys, with what was meant"] = {
      ['agent.file { path = "a", template = "x", relaod = "true" }'] = { "'relaod'", "did you mean 'reload'" },
      ['agent.group { name = "g", files = { { path = "a", tmplate = "x" } } }'] = { "'tmplate'", "did you mean 'template'" },
      ['agent.group { name = "g", file = {} }'] = { "'file'", "did you mean 'files'" },
      ['agent.process { name = "p", comand = "true" }'] = { "'comand'", "did you mean 'command'" },
      ['agent.service { name = "s", prot = 80 }'] = { "'prot'", "did you mean 'port'" },
      ['agent.push { dataid = "x", file = "y" }'] = { "'dataid'", "did you mean 'data_id'" },
      ['agent.limits { budgt = 1 }'] = { "'budgt'", "did you mean 'budget'" },
      ['agent.connect { server_address = "x" }'] = { "'server_address'", "did you mean 'server_addresses'" },
      ['agent.watch { data_id = "x", fun = print }'] = { "'fun'", "known: data_id, fn, group" },
      ['agent.file { path = "a", template = "x", wait = { mn = 1 } }'] = { "'mn'", "did you mean 'min'" },
    },
    ["names what is missing or wrong, at its line"] = {
      ['agent.file { template = "x" }'] = { "agent.lua:1:", "path" },
      ['agent.file { path = "a" }'] = { "agent.lua:1:", "exactly one of source, template and content" },
      ['agent.file { path = "a", template = "x", content = print }'] = { "agent.lua:1:", "exactly one of" },
      ['agent.file { path = "a/", template = "x" }'] = { "agent.lua:1:", "path of a file" },
      ['agent.file { path = "a", template = "x", mode = "rw" }'] = { "agent.lua:1:", "octal" },
      ['agent.file { path = "a", template = "x", symlink = "keep" }'] = { "agent.lua:1:", "symlink" },
      ['agent.file { path = "a", template = "x", check = {} }'] = { "agent.lua:1:", "a program is needed" },
      ['agent.file { path = "a", template = "x", reload = { "a", 1 } }'] = { "agent.lua:1:", "element 2: string" },
      ['agent.file { path = "a", template = "x", wait = { min = 2, max = 1 } }'] = { "agent.lua:1:", "max is less than min" },
      ['agent.file { path = "a", template = "x", max_shrink = 2 }'] = { "agent.lua:1:", "max_shrink" },
      ['agent.file { path = "a", template = "{{ x" }'] = { "a" },
      ['agent.file { path = "a", source = "none.tmpl" }'] = { "none.tmpl" },
      ['agent.file { path = "a", template = "x" } agent.file { path = "a", template = "x" }'] = { "already a target named a" },
      ['agent.group { name = "g", files = {} }'] = { "agent.lua:1:", "is empty" },
      [ [[agent.group { name = "g", files = {
        { path = "a", template = "x" }, { path = "a", template = "y" } } }]] ] = { "a is there twice" },
      ['agent.process { name = "p", command = "a" } agent.process { name = "p", command = "a" }'] = { "agent.lua:1:", "named p" },
      ['agent.connect { server_addresses = "x" } agent.connect { server_addresses = "x" }'] = { "called already" },
      ['agent.connect "x"'] = { "table expected" },
      ['error "own trouble"'] = { "own trouble" },
      ['require "no.such.module"'] = { "no.such.module" },
    },
  } do
    case(name, function(box)
      for script, texts in pairs(cases_of) do
        local said = refused(box, script)
        for _, text in ipairs(texts) do
          assert.truthy(said:find(text, 1, true), script .. "\n" .. said)
        end
      end
    end)
  end

  case("declares only while it runs", function(box)
    box:start [[ agent.file { path = "out", content = function()
      return tostring(select(2, pcall(agent.file, { path = "later", template = "x" }))) end } ]]
    box:eventually(function()
      return (box:read "out" or ""):find("only a script that `lunacos run` runs can declare something", 1, true)
    end)
  end)

  case("may be a folder of them, with modules and arguments", function(box)
    assert(uv.fs_mkdir(box:path "conf", 448))
    box:write("conf/shared.lua", 'return { word = "one" }')
    assert(os.rename(box:path "conf/shared.lua", box:path "conf/shared.inc"))
    assert(uv.fs_mkdir(box:path "conf/lib", 448))
    box:write("conf/lib/init.lua", 'return { word = "one" }')
    box:write("conf/20.lua", 'require("nacos.agent").file { path = "b", template = "{{ x }}", vars = { x = require("lib").word } }')
    box:write("conf/10.lua", 'first = true require("nacos.agent").file { path = "a", source = "a.tmpl" }')
    box:write("conf/a.tmpl", "a")
    box:write("conf/.hidden.lua", "error('never')")
    box:start(nil, { script = "conf" })
    box:has("a", "a")
    box:has("b", "one")
    box:write("conf/lib/init.lua", 'return { word = "two" }') -- read again at HUP, as the scripts are
    box:signal "HUP"
    box:has("b", "two")
  end)
end)

describe("lunacos run", function()
  local case = cases()

  case("--once ends with 0 when all is done, 6 when something is refused, 3 when it is not known", function(box)
    box:set("a", "1")
    local good = [[ agent.file { path = "out", template = "{{ text('a') }}", reload = "echo x >>log" }
      agent.process { name = "never", command = "touch started" }
      agent.push { data_id = "pushed", file = "agent.lua" } ]]
    local once = { args = { "--once", "--deadline", "2" } }
    assert.equal(0, box:run(good, once), box:log())
    assert.same({ "1", 1 }, { box:read "out", box:count "log" })
    assert.is_nil(box:read "started")
    assert.truthy((box.client:get_config { data_id = "pushed" }))
    assert.equal(6, box:run(good .. [[ agent.file { path = "bad", template = "x", check = "false" } ]], once))
    assert.matches("bad: rejected: ", box:log())
    assert.equal(6, box:run(good .. [[ agent.file { path = "absent", template = "{{ text('none') }}" } ]], once))
    assert.equal(6, box:run(good .. [[ agent.file { path = "owed", template = "x", reload = "exit 3" } ]], once))
    assert.equal(3, box:run('agent.connect { server_addresses = "127.0.0.1:1", no_snapshot = true }' .. good, once))
    assert.equal(1, box:run("error 'oh'", once))
    assert.equal(1, box:run("local x = 1", once))
    assert.matches("declares nothing", box:log())
    assert.equal(1, box:count "log")
  end)

  case("--once waits for what a reload waits for", function(box)
    assert.equal(0, box:run([[ math.random = function() return 0.5 end
      agent.file { path = "out", template = "x", splay = 1, wait = { min = 1 }, reload = "echo x >>log" } ]],
      { args = { "--once", "--deadline", "20" } }))
    assert.equal(1, box:count "log")
  end)

  case("--dry-run tells what would be written, and writes nothing", function(box)
    box:set("a", "1")
    box:write("old", "0")
    box:write("same", "1")
    local script = [[
      for _, name in ipairs { "new", "old", "same" } do
        agent.file { path = name, template = "{{ text('a') }}", reload = "touch reloaded", mkdir = true }
      end
      agent.file { path = "some/where/deep", template = "x", mkdir = true } ]]
    box:run(script, { args = { "--dry-run" } })
    assert.equal(0, box.process.code, box:log())
    local out = box.process:stdout()
    assert.equal("new\tnew\nchange\told\nsame\tsame\nnew\tsome/where/deep\n", out)
    assert.equal("0", box:read "old")
    local names = box:names()
    assert.same({}, { names.new, names.state, names.reloaded, names.some, names["nacos-data"] })
    assert.equal(6, box:run([[ agent.file { path = "x", template = "{{ text('none') }}" } ]], { args = { "--dry-run" } }))
    assert.equal(3, box:run([[ agent.connect { server_addresses = "127.0.0.1:1" }
      agent.file { path = "x", template = "{{ text('none') }}" } ]], { args = { "--dry-run", "--deadline", "0.5" } }))
  end)

  case("names what is wrong with the state folder", function(box)
    box:write("state", "a file")
    assert.equal(1, box:run [[ agent.file { path = "out", template = "x" } ]])
    assert.matches("state", box:log())
    assert.is_nil(box:read "out")
  end)

  case("takes over a changed script at HUP; what did not change is left alone", function(box)
    box:set("a", "1")
    box:start [[
      agent.file { path = "stays", template = "{{ text('a') }}", reload = "echo x >>stays.log" }
      agent.file { path = "changes", template = "old", reload = "echo x >>changes.log" }
      agent.file { path = "goes", template = "x" }
      agent.file { path = "pruned", template = "x", prune = true }
      agent.process { name = "child", command = "echo $$ >>child; exec sleep 1000" }
      agent.process { name = "former", command = "echo $$ >>former; exec sleep 1000" }
      agent.service { name = "left", ip = "127.0.0.1", port = 1 }
      agent.watch("a", function(change) io.open("old.log", "a"):write(change.content, "\n"):close() end)
    ]]
    for _, name in ipairs { "stays", "changes", "goes", "pruned" } do
      box:is("ok", name)
    end
    box:is("running", "child", "processes")
    box:is("running", "former", "processes")
    box:is("registered", "left", "services")
    box:has("old.log", "1\n")
    box:script [[
      agent.file { path = "stays", template = "{{ text('a') }}", reload = "echo x >>stays.log" }
      agent.file { path = "changes", template = "new", reload = "echo x >>changes.log" }
      agent.file { path = "comes", template = "{{ text('a') }}" }
      agent.process { name = "child", command = "echo $$ >>child; exec sleep 1000" }
      agent.process { name = "latter", command = "echo $$ >>latter; exec sleep 1000" }
      agent.watch("a", function(change) io.open("new.log", "a"):write(change.content, "\n"):close() end)
    ]]
    box:signal "HUP"
    box:says "the scripts were read again"
    box:has("changes", "new")
    box:has("comes", "1")
    box:is("running", "latter", "processes")
    box:has("new.log", "1\n")
    box:eventually(function()
      return #box:status().processes == 2 and #box:status().services == 0
        and support.read("/proc/" .. box:read("former"):match("%d+") .. "/stat") == nil
    end)
    box:eventually(function()
      return #(box.client:list_naming_instance("left") or {}) == 0
    end)
    assert.equal("x", box:read "goes")
    assert.is_nil(box:read "pruned")
    box:set("a", "2")
    box:has("new.log", "1\n2\n")
    box:has("stays", "2")
    box:is("ok", "stays")
    assert.equal("1\n", box:read "old.log")
    assert.same({ 1, 2, 2 }, { box:count "child", box:count "stays.log", box:count "changes.log" })
  end)

  case("a target that is gone at HUP writes no more, though it was busy", function(box)
    box:start [[ agent.file { path = "out", template = "x", prune = true,
      check = "touch checking; while ! test -e go; do sleep 0.05; done" }
      agent.file { path = "other", template = "x" } ]]
    box:eventually(function() return box:read "checking" end)
    box:script [[ agent.file { path = "other", template = "x" } ]]
    box:signal "HUP"
    box:says "out: no longer declared"
    box:write("go", "")
    box:signal "HUP"
    box:says("the scripts were read again", 2)
    assert.equal(0, box.process:stop()) -- waits for what is busy
    assert.is_nil(box:read "out")
    assert.is_nil(box:read "state/targets/out/record.json")
  end)

  case("tries again at HUP what the check had refused", function(box)
    box:start [[ agent.file { path = "out", template = "x", check = "false" } ]]
    box:is "rejected"
    box:script [[ agent.file { path = "out", template = "x", check = "true" } ]]
    box:signal "HUP"
    box:has("out", "x")
    box:is "ok"
  end)

  case("connects anew at HUP when the connection changes", function(box)
    local other = support.start_server()
    local client = require("lab").client(other, { namespace = box.namespace })
    box:set("a", "1")
    assert(client:publish_config { data_id = "a", content = "other 1" })
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}" } ]]
    box:has("out", "1")
    box:script(([[ agent.connect { server_addresses = %q }
      agent.file { path = "out", template = "{{ text('a') }}" } ]]):format(other.base))
    box:signal "HUP"
    box:has("out", "other 1")
    assert(client:publish_config { data_id = "a", content = "other 2" })
    box:has("out", "other 2")
    box:set("a", "2")
    box:script [[ agent.connect { no_such = 1 } ]]
    box:signal "HUP"
    box:says "the scripts are not taken over"
    assert(client:publish_config { data_id = "a", content = "other 3" })
    box:has("out", "other 3")
    client:close()
    other:kill9()
  end)

  case("writes its status at USR1 and debugs at USR2", function(box)
    box:set("a", "secret-value")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}" } ]]
    box:is "ok"
    box:signal "USR1"
    local status = box:eventually(function()
      return json.decode(box:log():match("\n({[^\n]*})\n") or "")
    end)
    assert.same({ "out", "ok" }, { status.targets[1].name, status.targets[1].state })
    box:signal "USR2"
    box:says "debug on"
    box:signal "USR2"
    box:says "debug off"
    assert.is_nil(box:log():find("secret-value", 1, true))
  end)

  case("keeps secrets to itself", function(box)
    box:write("password", "PLANTED-password")
    box:own_server({ "--username", "me", "--password-file", box:path "password" }, { username = "me",
      password = "PLANTED-password" })
    box:set("db.json", '{"password": "PLANTED-1"}')
    box:start([[ agent.connect { username = "me", password_file = "password" }
      agent.file { path = "out", mode = "0600", template = "{{ config('db.json').password }}", check = "! grep -q 2 {staged}",
        reload = "exit 1" }
      agent.push { data_id = "pushed", file = "password" }
      agent.process { name = "child", command = "exec sleep 1000",
        env = { add = { PW = function(read) return read.config("db.json").password end } } } ]],
      { behind = { "sh", "-c", 'umask 000; exec "$@"', "sh" } })
    box:is("owed", "out")
    box:signal "USR2"
    box:says "debug on"
    box:set("db.json", '{"password": "PLANTED-2"}')
    box:eventually(function() return box:entry("out").rejected end)
    box:is("ok", "pushed", "pushes")
    box:signal "USR1"
    box:says '"targets"'
    local told = { box:log(), json.encode(box:status()), assert(support.read("/proc/" .. box.process.pid .. "/cmdline")) }
    for _, words in ipairs { { "status" }, { "status", "--json" }, { "why", "out" }, { "history", "out" } } do
      told[#told + 1] = select(2, box:cli(words))
    end
    told[#told + 1] = box:eventually(function() -- it is started again with the new value
      return support.read(("/proc/%d/cmdline"):format(box:is("running", "child", "processes").pid))
    end)
    for _, text in ipairs(told) do
      assert.is_nil(text:find("PLANTED", 1, true), text)
    end
    local seen = 0
    local function walk(path)
      seen = seen + 1
      local stat = uv.fs_lstat(path)
      assert.equal(0, stat.mode & (stat.type == "directory" and 18 or 63), path) -- 0022, 0077
      if stat.type == "directory" then
        for name in uv.fs_scandir_next, assert(uv.fs_scandir(path)) do
          walk(path .. "/" .. name)
        end
      end
    end
    assert.equal("0700", mode(box:path "state"))
    walk(box:path "state")
    assert.truthy(seen > 10)
  end)

  case("logs JSON lines when asked", function(box)
    box:start([[ agent.file { path = "out", template = "x", reload = "echo 'a \"word\"'" }
      ]], { args = { "--log-format", "json" } })
    box:is "ok"
    local messages = {}
    for line in box:log():gmatch("[^\n]+") do
      local entry = assert(json.decode(line), line)
      assert.matches("^%d+%-%d+%-%d+T", entry.time)
      messages[("%s %s %s"):format(entry.level, tostring(entry.target), entry.message)] = true
    end
    assert.truthy(messages["info out written"])
    assert.truthy(messages['info out reload: a "word"'])
  end)

  case("stops at TERM and INT with 0, a reload under way included", function(box)
    for i, signal in ipairs { "TERM", "INT" } do
      box:start(([[ agent.file { path = "out%d", template = "x", reload = "touch began; sleep 0.5; echo x >>log" }
        agent.process { name = "child", command = "trap 'echo stopped >>child; exit 0' TERM; while :; do sleep 0.05; done" }
          ]]):format(i))
      box:eventually(function() return box:read "began" end)
      box:is("running", "child", "processes")
      box:signal(signal)
      assert.equal(0, box.process:wait())
      assert.same({ i, i }, { box:count "log", box:count "child" })
      assert(os.remove(box:path "began"))
      assert.is_nil(uv.fs_stat(box:path "state/agent.sock"))
    end
  end)

  case("does not wait for children at a third TERM", function(box)
    box:start [[ agent.process { name = "child", kill_timeout = 1000,
      command = "trap '' TERM; touch up; while :; do sleep 0.05; done" } ]]
    box:eventually(function() return box:read "up" end)
    box:is("running", "child", "processes")
    box:signal "TERM"
    box:is("stopping", "child", "processes")
    box:signal "TERM" -- some supervisors send each twice
    box:is("stopping", "child", "processes")
    box:signal "TERM"
    assert.equal(0, box.process:wait(10))
  end)

  case("warns of a function that holds up everything", function(box)
    box:start [[ agent.limits { warn = 0.05, budget = 0 }
      agent.file { path = "slow", content = function() local t = os.clock() while os.clock() - t < 0.3 do end return "x" end } ]]
    box:has("slow", "x")
    box:says "content of slow held up everything else for"
  end)
end)
