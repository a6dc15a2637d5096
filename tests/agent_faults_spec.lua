--- What goes wrong around an agent, and what becomes of it. The table is the one in the README; each row has a test of its name.

local agent_lab = require "agent_lab"
local lab = require "lab"
local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local FAULTS = {
  {
    fault = "Nacos server killed while it is listened to",
    kept = "all files and what runs",
    retried = "the other servers at once; with none left, for ever, with a pause",
    seen = "a warning in the log; `status --json`: the age of each value grows",
  },
  {
    fault = "Nacos server comes back empty",
    kept = "the files (a template with a default follows: absent is not unknown)",
    retried = "at the next publish",
    seen = "`status`: failed, the key does not exist",
  },
  {
    fault = "half a body",
    kept = "the old file: half a value is no value",
    retried = "the request, after a pause",
    seen = "a warning in the log",
  },
  {
    fault = "token expired",
    kept = "the old file",
    retried = "a new login, then the request",
    seen = "nothing",
  },
  {
    fault = "wrong password",
    kept = "the old file: what may not be read is not known",
    retried = "with a pause",
    seen = "`status`: waiting, the key and why",
  },
  {
    fault = "disk full",
    kept = "the old file, whole",
    retried = "after 1 s, 2 s … 60 s",
    seen = "`status`: failed, the file and `no space left on device`",
  },
  {
    fault = "disk of the state folder full",
    kept = "the old file: nothing is written that could not be remembered",
    retried = "after 1 s, 2 s … 60 s",
    seen = "`status`: failed, the file and `no space left on device`",
  },
  {
    fault = "target folder missing",
    kept = "nothing is there; mkdir = true makes it",
    retried = "after 1 s, 2 s … 60 s",
    seen = "`status`: failed, which folder and what to do",
  },
  {
    fault = "target folder read-only",
    kept = "the old file",
    retried = "after 1 s, 2 s … 60 s",
    seen = "`status`: failed, the file and `read-only file system`",
  },
  {
    fault = "target is a bind mount (no rename)",
    kept = "the inode: the file is written in place",
    retried = "nothing",
    seen = "a line in the log",
  },
  {
    fault = "kill -9 with files staged",
    kept = "the old files",
    retried = "everything; staged leftovers are removed",
    seen = "nothing",
  },
  {
    fault = "kill -9 after the check",
    kept = "the old files",
    retried = "everything; staged leftovers are removed",
    seen = "nothing",
  },
  {
    fault = "kill -9 with the generation recorded",
    kept = "the old files",
    retried = "the swap, at the start, also without a server; then the reload",
    seen = "a line in the log",
  },
  {
    fault = "kill -9 between two files of a group",
    kept = "one new file, one old, each whole",
    retried = "the swap of all, at the start, also without a server; then the reload",
    seen = "a line in the log",
  },
  {
    fault = "kill -9 after the write",
    kept = "the new files",
    retried = "the reload",
    seen = "nothing",
  },
  {
    fault = "kill -9 before the reload",
    kept = "the new files",
    retried = "the reload",
    seen = "nothing",
  },
  {
    fault = "kill -9 after the reload",
    kept = "the new files",
    retried = "the reload, once too often: nobody knows that it has worked",
    seen = "nothing",
  },
  {
    fault = "kill -9 of the agent, and the value goes back",
    kept = "the new file until the start",
    retried = "the write of the old value, and a reload: the new one may have been loaded",
    seen = "nothing",
  },
  {
    fault = "kill -9 of the agent with a supervised child",
    kept = "the child goes on until the agent is started again",
    retried = "the start of the child, once the left-over one is ended: there are never two",
    seen = "a warning in the log",
  },
  {
    fault = "a file of the state folder is damaged",
    kept = "the files; what is owed and older generations may be forgotten",
    retried = "nothing",
    seen = "a warning in the log",
  },
  {
    fault = "somebody else changes or removes a file",
    kept = "his file, until a source changes, a restart, HUP or `lunacos retry`",
    retried = "then it is written again, and reloaded",
    seen = "`why`: changed since by somebody else",
  },
  {
    fault = "kill -9 at any moment",
    kept = "each file whole, old or new",
    retried = "what is missing, at the next start",
    seen = "at most a line in the log",
  },
  {
    fault = "a hundred random events",
    kept = "what is loaded is what is on the disk, and that is the last value that passed its check",
    retried = "until it is so",
    seen = "`status`: what is not so yet, and why",
  },
  {
    fault = "check hangs",
    kept = "the old file; the check and its children are killed after check_timeout",
    retried = "when the input changes or on request",
    seen = "`status`: rejected, did not end within 30 s",
  },
  {
    fault = "reload fails three times",
    kept = "the new file (on_failure = \"restore\": the old one)",
    retried = "after 1 s, 2 s, 4 s … 60 s, and after a restart of the agent",
    seen = "`status`: owed, why, how often it was tried",
  },
  {
    fault = "reload fails and the value goes back",
    kept = "the old value is written",
    retried = "the reload: nobody knows what is loaded",
    seen = "`status`: owed until it has worked",
  },
  {
    fault = "reload forks a child and hangs",
    kept = "the new file; the whole process group is killed after reload_timeout",
    retried = "after 1 s, 2 s … 60 s",
    seen = "`status`: owed, did not end within 30 s",
  },
  {
    fault = "reload leaves a child behind",
    kept = "the child; the reload is over when its program is",
    retried = "nothing",
    seen = "nothing",
  },
  {
    fault = "supervised child ignores TERM",
    kept = "nothing: KILL for its process group after kill_timeout",
    retried = "nothing",
    seen = "a warning in the log",
  },
  {
    fault = "supervised child crash-loops",
    kept = "the files; it is not started again after `limit`",
    retried = "restart_delay doubles; at HUP or a change of its files it gets another chance",
    seen = "`status`: failed, exit code, how many starts",
  },
  {
    fault = "1,000 templates on one key",
    kept = "one watch for all",
    retried = "nothing",
    seen = "nothing",
  },
  {
    fault = "100 changes in a second",
    kept = "every version that was written is whole; the last one is there at the end, and loaded",
    retried = "nothing",
    seen = "fewer reloads than changes",
  },
  {
    fault = "template loops for ever",
    kept = "the old file; other targets go on",
    retried = "when the input changes",
    seen = "`status`: failed, ran for more than N instructions",
  },
  {
    fault = "syntax error in the script at HUP",
    kept = "what ran goes on as it was, and follows changes",
    retried = "at the next HUP",
    seen = "an error in the log; `status`: the scripts are not taken over, why",
  },
  {
    fault = "HUP again and again",
    kept = "what did not change is not touched; nothing is left open",
    retried = "nothing",
    seen = "a line in the log each",
  },
  {
    fault = "the reader of the log goes away",
    kept = "everything goes on",
    retried = "nothing",
    seen = "`status`, as before",
  },
  {
    fault = "program of a check or reload is missing",
    kept = "check: the old file; reload: the new one",
    retried = "check: when the input changes or on request; reload: after 1 s, 2 s … 60 s",
    seen = "`status`: rejected or owed, cannot start it",
  },
  {
    fault = "one target fails or hangs",
    kept = "the others go on",
    retried = "each for itself",
    seen = "`status`: each for itself",
  },
  {
    fault = "a second agent with the same state folder",
    kept = "the first one",
    retried = "nothing",
    seen = "exit code 1, the pid of the first",
  },
}

local CONFIGS = "/nacos/v1/cs/configs"

local server
local tested = {}

local function alive(pid)
  local stat = support.read("/proc/" .. pid .. "/stat")
  return stat ~= nil and stat:match("%) (%a)") ~= "Z"
end

---A mount namespace for the agent, prepared by a line for sh; what it sees is in /proc/PID/root.
local function mounts(setup)
  return { "unshare", "-m", "sh", "-ec", setup .. '; exec "$@"', "sh" }
end

local can_mount = uv.getuid() == 0 and support.run { "unshare", "-m", "true" } == 0

---What the agent sees there.
local function seen(box, name)
  return ("/proc/%d/root%s"):format(box.process.pid, box:path(name))
end

describe("fault:", function()
  local beside = agent_lab.cases(it, 8, function()
    server = server or support.start_server()
    return server
  end)

  local function case(fault, fn)
    tested[fault] = true
    beside(fault, fn)
  end

  local function root_case(fault, fn)
    if can_mount then
      return case(fault, fn)
    end
    tested[fault] = true
    pending(fault .. " (needs root)")
  end

  teardown(function()
    if server then
      server:stop()
    end
  end)

  -- First, as it takes longest.
  case("1,000 templates on one key", function(box)
    local own = box:own_server()
    box:set("a", "1")
    box:start [[ for i = 1, 1000 do agent.file { path = ("many/%d"):format(i), template = "{{ text('a') }}", mkdir = true } end ]]
    local function all(content)
      box:eventually(function()
        for i = 1000, 1, -1 do
          if box:read("many/" .. i) ~= content then
            return nil, ("many/%d is %s"):format(i, tostring(box:read("many/" .. i)))
          end
        end
        return true
      end, 60)
    end
    all "1"
    own:clear_requests()
    box:set("a", "2")
    all "2"
    local reads = #lab.requests(own, "ConfigQueryRequest")
    assert.truthy(reads >= 1 and reads <= 3, reads)
    assert.equal(1, #box:eventually(function()
      return box:status()
    end, 60).sources)
  end)

  -- ---- servers ---------------------------------------------------------------------------------------------------------------

  -- how a change is waited for, and read
  local spoken = {
    v1 = { listen = lab.LISTENER, read = { path = CONFIGS, method = "GET" } },
    grpc = { listen = "ConfigBatchListenRequest", read = { path = "ConfigQueryRequest", method = "GRPC" } },
  }

  local function each(name, run)
    tested[name] = true
    for protocol, words in pairs(spoken) do
      beside(name .. ", " .. protocol, function(box)
        run(box, protocol, words)
      end)
    end
  end

  each("Nacos server killed while it is listened to", function(box, protocol, words)
    local first, second = box:own_server(), box:own_server()
    local clients = { lab.client(first, { namespace = box.namespace }), box.client }
    for _, client in ipairs(clients) do
      assert(client:publish_config { data_id = "a", content = "1" })
    end
    box:start(([[ agent.connect { server_addresses = "%s,%s", protocol = "%s" }
      agent.file { path = "out", template = "{{ text('a') }}", reload = "cat out >>log; echo >>log" }
        ]]):format(first.base, second.base, protocol))
    box:is "ok"
    local listening = box:eventually(function()
      return #lab.requests(first, words.listen) > 0 and first or #lab.requests(second, words.listen) > 0 and second
    end)
    listening:kill9()
    local other = listening == first and second or first
    assert(clients[other == first and 1 or 2]:publish_config { data_id = "a", content = "2" })
    box:has("out", "2")
    box:is "ok"
    other:kill9()
    box:says(other.address)
    box:eventually(function()
      return (box:status().sources[1].age or 0) >= 1
    end)
    assert.same({ "ok", "2", "1\n2\n" }, { box:is("ok").state, box:read "out", box:read "log" })
    local back = box:own_server { "--port", tostring(other.port) }
    box:set("a", "3")
    box:has("out", "3")
    assert.equal(back.base, box:is("ok").sources[1].server)
    clients[1]:close()
  end)

  case("Nacos server comes back empty", function(box)
    local own = box:own_server()
    box:set("a", "1")
    box:start [[
      agent.file { path = "out", template = "{{ text('a') }}" }
      agent.file { path = "default", template = "{{ text('a', { default = 'none' }) }}" }
    ]]
    box:has("out", "1")
    box:has("default", "1")
    own:kill9()
    box:own_server { "--port", tostring(own.port) }
    assert.matches("'a'.* does not exist", box:is("failed", "out").error)
    box:has("default", "none")
    assert.equal("1", box:read "out")
    box:set("a", "2")
    box:has("out", "2")
    box:has("default", "2")
    box:is("ok", "out")
  end)

  each("half a body", function(box, protocol, words)
    local own = box:own_server()
    local whole = "2" .. ("x"):rep(3000) .. "END"
    box:set("a", "1END")
    box:start(([[ agent.connect { protocol = "%s" }
      agent.file { path = "out", template = "{{ text('a') }}",
      check = "grep -q 'END$' {staged} || echo half >>halves" } ]]):format(protocol))
    box:has("out", "1END")
    own:faults { path = words.read.path, method = words.read.method, drop_at = 2000, times = 2 }
    box:set("a", whole)
    box:has("out", whole)
    assert.is_nil(box:read "halves")
    assert.truthy(#lab.requests(own, words.read.path, words.read.method) >= 4)
  end)

  case("token expired", function(box)
    box:write("password", "secret")
    local own = box:own_server({ "--username", "me", "--password-file", box:path "password" }, { username = "me",
      password = "secret" })
    box:set("a", "1")
    box:start [[ agent.connect { username = "me", password_file = "password" }
      agent.file { path = "out", template = "{{ text('a') }}" } ]]
    box:has("out", "1")
    local logins = #lab.requests(own, "/auth/login")
    own:expire()
    box:set("a", "2")
    box:has("out", "2")
    box:is "ok"
    assert.truthy(#lab.requests(own, "/auth/login") > logins)
    assert.is_nil(box:log():find("ERROR", 1, true))
  end)

  case("wrong password", function(box)
    box:write("password", "secret")
    box:write("wrong", "guess")
    box:own_server({ "--username", "me", "--password-file", box:path "password" }, { username = "me", password = "secret" })
    box:set("a", "1")
    box:write("out", "0")
    local script = [[ agent.connect { username = "me", password_file = "%s" }
      agent.file { path = "out", template = "{{ text('a', { default = 'default' }) }}" } ]]
    box:start(script:format("wrong"))
    box:eventually(function()
      local entry, err = box:entry()
      return entry and entry.state == "waiting" and (entry.error or ""):find("password is wrong", 1, true),
        entry and entry.error or err
    end)
    assert.equal("0", box:read "out")
    box:script(script:format("password"))
    box:signal "HUP"
    box:has("out", "1")
    assert.is_nil(box:log():find("guess", 1, true))
  end)

  -- ---- disks -----------------------------------------------------------------------------------------------------------------

  root_case("disk full", function(box)
    assert(uv.fs_mkdir(box:path "disk", 448))
    box:set("a", "1")
    box:start([[ agent.file { path = "disk/out", template = "{{ text('a') }}", reload = "echo x >>reloads" } ]],
      { behind = mounts "mount -t tmpfs -o size=128k none disk; head -c 90000 /dev/zero >disk/ballast" })
    box:is "ok"
    local big = ("2"):rep(60000)
    box:set("a", big)
    assert.matches("disk/out: no space left on device", box:is("failed").error)
    assert.equal("1", support.read(seen(box, "disk/out")))
    assert.equal(1, box:count "reloads")
    assert(os.remove(seen(box, "disk/ballast")))
    box:is "ok"
    assert.equal(big, support.read(seen(box, "disk/out")))
    assert.equal(2, box:count "reloads")
  end)

  root_case("disk of the state folder full", function(box)
    assert(uv.fs_mkdir(box:path "state", 448))
    box:set("a", "1")
    box:start([[ agent.connect { no_snapshot = true }
      agent.file { path = "out", template = "{{ text('a') }}", reload = "echo x >>reloads" } ]],
      { behind = mounts "mount -t tmpfs -o size=256k,mode=700 none state" })
    box:eventually(function() return box:count "reloads" == 1 end)
    support.write(seen(box, "state/ballast"), "")
    os.execute("head -c 400000 /dev/zero >" .. seen(box, "state/ballast") .. " 2>/dev/null")
    box:set("a", ("2"):rep(9000))
    box:says "no space left on device"
    nacos.sleep(0.1)
    assert.equal("1", box:read "out")
    assert(os.remove(seen(box, "state/ballast")))
    box:has("out", ("2"):rep(9000))
    box:eventually(function() return box:count "reloads" == 2 end)
  end)

  case("target folder missing", function(box)
    box:set("a", "1")
    box:start [[
      agent.file { path = "gone/out", template = "{{ text('a') }}" }
      agent.file { path = "made/out", template = "{{ text('a') }}", mkdir = true }
    ]]
    box:has("made/out", "1")
    assert.matches("gone does not exist: make it, or set mkdir = true", box:is("failed", "gone/out").error)
    assert(uv.fs_mkdir(box:path "gone", 448))
    box:has("gone/out", "1")
    box:is("ok", "gone/out")
    os.execute("rm -r " .. box:path "gone") -- while it runs
    box:set("a", "2")
    box:has("made/out", "2")
    box:is("failed", "gone/out")
    assert(uv.fs_mkdir(box:path "gone", 448))
    box:has("gone/out", "2")
  end)

  root_case("target folder read-only", function(box)
    assert(uv.fs_mkdir(box:path "etc", 448))
    box:write("etc/out", "0")
    box:set("a", "1")
    box:start([[ agent.file { path = "etc/out", template = "{{ text('a') }}" } ]],
      { behind = mounts "mount --bind etc etc; mount -o remount,bind,ro etc" })
    assert.matches("etc/out.*read%-only file system", box:is("failed").error)
    assert.equal("0", box:read "etc/out")
    assert.same({ out = true }, box:names "etc")
    assert.equal(0, support.run { "nsenter", "-t", tostring(box.process.pid), "-m",
      "mount", "-o", "remount,bind,rw", box:path "etc" })
    box:has("etc/out", "1")
    box:is "ok"
  end)

  root_case("target is a bind mount (no rename)", function(box)
    box:write("source", "0")
    box:write("out", "")
    local inode = uv.fs_stat(box:path "source").ino
    box:set("a", "1")
    box:start([[ agent.file { path = "out", template = "{{ text('a') }}", check = "grep -q {staged} -e . && ! grep -q bad {staged}",
      reload = "echo x >>reloads" } ]], { behind = mounts "mount --bind source out" })
    box:has("source", "1")
    box:says "written in place"
    box:set("a", "bad")
    box:is "rejected"
    assert.equal("1", box:read "source")
    box:set("a", "22")
    box:has("source", "22")
    box:is "ok"
    assert.same({ inode, 2 }, { uv.fs_stat(box:path "source").ino, box:count "reloads" })
    assert.same({}, { box:names()[".out.lunacos-staged"] })
  end)

  -- ---- kill -9 ---------------------------------------------------------------------------------------------------------------

  local PAIR = [[ agent.group { name = "pair", files = {
      { path = "one", template = "{{ text('a') }}" }, { path = "two", template = "{{ text('a') }}" } },
    check = "cmp {staged:one} {staged:two}", reload = "cat one two >>log; echo >>log" } ]]

  ---The agent has loaded 1, then dies at a step towards 2. @return the files then
  local function die(box, step, script)
    local function set(value)
      box:write("a", value)
      box:set("a", value)
    end
    set "1"
    box:start(script or PAIR)
    box:is("ok", "pair")
    assert.equal(0, box.process:stop())
    set "2"
    assert.equal(137, box:run(nil, { env = { LUNACOS_STOP_AT = step } }), box:log())
    return box:read "one", box:read "two"
  end

  ---The agent is started again: both files say so, and this was loaded.
  local function recovered(box, content, log)
    box:is("ok", "pair")
    assert.same({ content, content, log }, { box:read "one", box:read "two", box:read "log" })
    local entry = box:entry "pair"
    assert.same({ entry.wanted, entry.wanted }, { entry.written, entry.applied })
    assert.is_nil(entry.owed)
    local names = box:names()
    assert.same({}, { names[".one.lunacos-staged"], names[".two.lunacos-staged"] })
  end

  for step, row in pairs {
    staged = { "kill -9 with files staged", "1", "1", "11\n22\n" },
    checked = { "kill -9 after the check", "1", "1", "11\n22\n" },
    recorded = { "kill -9 with the generation recorded", "1", "1", "11\n22\n" },
    ["swapped:1"] = { "kill -9 between two files of a group", "2", "1", "11\n22\n" },
    written = { "kill -9 after the write", "2", "2", "11\n22\n" },
    reloading = { "kill -9 before the reload", "2", "2", "11\n22\n" },
    reloaded = { "kill -9 after the reload", "2", "2", "11\n22\n22\n" },
  } do
    local fault, one, two, log = table.unpack(row)
    case(fault, function(box)
      assert.same({ one, two }, { die(box, step) })
      local before = box:names()
      box:start()
      recovered(box, "2", log)
      if step == "staged" or step == "checked" then
        assert.truthy(before[".one.lunacos-staged"])
      end
      assert.equal(0, box.process:stop())
      box:start() -- nothing is left to do
      recovered(box, "2", log)
    end)
  end

  case("kill -9 with the generation recorded, and no server at the start", function(box)
    die(box, "recorded")
    box:start('agent.connect { server_addresses = "127.0.0.1:1", no_snapshot = true } ' .. PAIR)
    box:has("log", "11\n22\n")
    box:is("waiting", "pair")
    assert.same({ "2", "2" }, { box:read "one", box:read "two" })
  end)

  case("kill -9 between two files of a group, and no server at the start", function(box)
    die(box, "swapped:1")
    box:start('agent.connect { server_addresses = "127.0.0.1:1", no_snapshot = true } ' .. PAIR)
    box:has("log", "11\n22\n")
    box:is("waiting", "pair")
    assert.same({ "2", "2" }, { box:read "one", box:read "two" })
  end)

  case("kill -9 between two files of a group, and a newer value at the start", function(box)
    die(box, "swapped:1")
    box:set("a", "3")
    box:start()
    box:has("two", "3")
    box:is("ok", "pair")
    assert.equal("33", box:last("log"))
  end)

  case("kill -9 of the agent, and the value goes back", function(box)
    for _, step in ipairs { "staged", "recorded", "swapped:1", "written", "reloaded" } do
      os.execute(("cd %s && rm -rf state log one two"):format(box.folder))
      die(box, step, (PAIR:gsub("text%('a'%)", "file('a')"))) -- known at once when it starts
      box:write("a", "1")
      box:start()
      box:has("two", "1")
      box:is("ok", "pair")
      recovered(box, "1", box:read "log")
      assert.equal("11", box:last("log"), step) -- whatever was loaded before
      assert.equal(0, box.process:stop())
    end
  end)

  case("kill -9 at any moment", function(box)
    local written = {}
    for i = 1, 25 do
      local value = ("%d "):format(i):rep(math.random(20000))
      written[value] = true
      box:set("a", value)
      box:start(PAIR)
      nacos.sleep(math.random() * 0.12)
      box.process:kill9()
      for _, name in ipairs { "one", "two" } do
        local content = box:read(name)
        assert.truthy(content == nil or written[content], name .. " is mixed")
      end
    end
    box:set("a", "last")
    box:start()
    box:has("two", "last")
    box:is("ok", "pair")
    recovered(box, "last", box:read "log")
    assert.equal("lastlast", box:last("log"))
  end)

  case("a hundred random events", function(box)
    local seed = os.time() * 1000 + uv.hrtime() % 1000
    math.randomseed(seed)
    local reload = "if test -e fail; then echo broken >%s.loaded; exit 1; fi; cat %s >%s.loaded"
    box:set("a", "good 0")
    box:start(([[ for _, name in ipairs { "keep", "restore" } do
        agent.file { path = name, template = "{{ text('a') }}\n", check = "! grep -q bad {staged}", on_failure = name,
          reload = (%q):gsub("%%%%s", name) }
      end ]]):format(reload))
    box:is("ok", "keep")
    local told = {}
    local events = {
      function() box:set("a", "good " .. math.random(4)) end,
      function() box:set("a", "bad " .. math.random(4)) end,
      function() box:write("fail", "") end,
      function() os.remove(box:path "fail") end,
      function() nacos.sleep(math.random() * 0.1) end,
      function() box:ask { command = "retry" } end,
      function() box:write(math.random(2) == 1 and "keep" or "restore", "by hand\n") end,
      function()
        if box:status() then -- it listens to signals
          box:signal "HUP"
        end
      end,
      function()
        box.process:kill9()
        box:start()
      end,
      function()
        if box:status() then
          assert.equal(0, box.process:stop())
        end
        box.process:kill9()
        box:start()
      end,
    }
    for i = 1, 100 do
      told[i] = math.random(#events)
      events[told[i]]()
    end
    os.remove(box:path "fail")
    for _, last in ipairs { "good last", "bad last" } do
      box:set("a", last)
      box:saw("a", last, "keep")
      box:saw("a", last, "restore")
      for _, name in ipairs { "keep", "restore" } do
        local ok, problem = pcall(function()
          local entry = box:is(last == "good last" and "ok" or "rejected", name)
          assert.same({ "good last\n", "good last\n", entry.written },
            { box:read(name), box:read(name .. ".loaded"), entry.applied })
          assert.is_nil(entry.owed)
        end)
        assert(ok, ("%s, seed %d, events %s: %s"):format(name, seed, table.concat(told, " "), tostring(problem)))
      end
    end
  end)

  case("kill -9 of the agent with a supervised child", function(box)
    box:start [[ agent.process { name = "child", command = "echo $$ >>pids; exec sleep 1000" } ]]
    box:is("running", "child", "processes")
    box:eventually(function() return box:count "pids" == 1 end)
    box:eventually(function() -- it is noted just after the start
      return (box:read "state/targets/process%3Achild/record.json" or ""):find(box:read("pids"):match("%d+"), 1, true)
    end)
    box.process:kill9()
    box:start()
    box:is("running", "child", "processes")
    box:eventually(function() return box:count "pids" == 2 end)
    local first, second = box:read("pids"):match("(%d+)\n(%d+)")
    assert.same({ false, true }, { alive(first), alive(second) })
    assert.equal(0, box.process:stop())
    assert.is_false(alive(second))
  end)

  case("a file of the state folder is damaged", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", reload = "cat out >>log; echo >>log" } ]]
    box:is "ok"
    local inode = uv.fs_stat(box:path "out").ino
    assert.equal(0, box.process:stop())
    box:write("state/targets/out/record.json", '{"written": "')
    box:write("state/targets/out/generations/1/meta.json", "")
    box:start()
    box:is "ok"
    box:says "WARN"
    assert.same({ inode, "1\n" }, { uv.fs_stat(box:path "out").ino, box:read "log" })
    box:set("a", "2")
    box:has("log", "1\n2\n")
    box:is "ok"
  end)

  case("somebody else changes or removes a file", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", reload = "cat out >>log; echo >>log" } ]]
    box:is "ok"
    box:write("out", "by hand")
    assert.matches("changed since by somebody else", (select(2, box:cli("why", "out"))))
    assert.equal(0, (box:cli("retry", "out")))
    box:is "ok"
    assert.same({ "1", "1\n1\n" }, { box:read "out", box:read "log" })
    assert(os.remove(box:path "out"))
    assert.equal(0, box.process:stop())
    box:start()
    box:has("log", "1\n1\n1\n")
    box:is "ok"
    assert.equal("1", box:read "out")
  end)

  -- ---- checks and reloads ----------------------------------------------------------------------------------------------------

  case("check hangs", function(box)
    box:set("a", "1")
    box:start [[
      agent.file { path = "out", template = "{{ text('a') }}", check_timeout = 0.5,
        check = "grep -q 1 {staged} && exit; sleep 1000 & echo $! >pid; wait" }
      agent.file { path = "other", template = "{{ text('a') }}" }
    ]]
    box:has("out", "1")
    box:is("ok", "out")
    box:set("a", "2")
    box:has("other", "2")
    assert.matches("did not end within 0.5 s", box:is("rejected", "out").error)
    assert.equal("1", box:read "out")
    box:eventually(function()
      return not alive(box:read("pid"):match("%d+"))
    end)
    box:set("a", "11")
    box:has("out", "11")
  end)

  case("reload fails three times", function(box)
    box:start [[ agent.file { path = "out", template = "x", reload = "echo x >>log; test $(wc -l <log) -gt 3" } ]]
    local entry = box:is "owed"
    assert.matches("exit code 1", entry.owed.reason)
    box:eventually(function()
      entry = box:entry()
      return entry.owed and entry.owed.tries == 3
    end)
    local code, out = box:cli("status")
    assert.equal(1, code)
    assert.matches("owed.*exit code 1.*3 tries", out)
    entry = box:is "ok"
    assert.same({ 4, entry.written }, { box:count "log", entry.applied })
  end)

  case("reload fails and the value goes back", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", reload = "cat out >>log; echo >>log; ! grep -q 2 out" } ]]
    box:is "ok"
    box:set("a", "2")
    box:is "owed"
    box:set("a", "1")
    box:has("out", "1")
    local entry = box:is "ok"
    assert.is_nil(entry.owed)
    assert.equal("1\n", box:read("log"):match("2\n([^\n]*\n)$"))
  end)

  case("reload forks a child and hangs", function(box)
    box:start [[ agent.file { path = "out", template = "x", reload_timeout = 0.5,
      reload = "echo x >>log; test -e allowed && exit; sleep 1000 & echo $! >pid; wait" } ]]
    assert.matches("did not end within 0.5 s", box:is("owed").error)
    local pid = box:read("pid"):match("%d+")
    box:eventually(function() return not alive(pid) end)
    box:write("allowed", "")
    box:is "ok"
  end)

  case("reload leaves a child behind", function(box)
    box:start [[ agent.file { path = "out", template = "x", reload = "sleep 1000 & echo $! >pid" } ]]
    box:is "ok"
    local pid = box:read("pid"):match("%d+")
    assert.truthy(alive(pid))
    assert.equal(0, box.process:stop())
    assert.truthy(alive(pid))
    os.execute("kill " .. pid)
  end)

  -- ---- children --------------------------------------------------------------------------------------------------------------

  case("supervised child ignores TERM", function(box)
    box:start [[ agent.process { name = "stubborn", kill_timeout = 0.5,
      command = [=[trap 'echo asked >>asked' TERM
        sh -c "trap '' TERM; while :; do sleep 0.1; done" &
        echo $! $$ >pids
        while :; do sleep 0.1; done]=] } ]]
    box:eventually(function() return box:count "pids" == 1 end)
    box:is("running", "stubborn", "processes")
    local one, two = box:read("pids"):match("(%d+) (%d+)")
    box:signal "TERM"
    assert.equal(0, box.process:wait(10))
    assert.same({ 1, false, false }, { box:count "asked", alive(one), alive(two) })
    assert.matches("stubborn: .*KILL", box:log())
  end)

  case("supervised child crash-loops", function(box)
    box:set("a", "1")
    box:start [[
      agent.file { path = "out", template = "{{ text('a') }}" }
      agent.process { name = "broken", command = "echo x >>starts; grep 2 out || exit 7", after = { "out" }, restart_delay = 0.05,
        limit = { starts = 3, within = 100 } }
    ]]
    local entry = box:is("failed", "broken", "processes")
    assert.same({ 7, 3, 3 }, { entry.code, entry.starts, box:count "starts" })
    box:is("ok", "out")
    local code, out = box:cli("status")
    assert.equal(1, code)
    assert.matches("broken +failed.*exit code 7, 3 starts", out)
    box:set("a", "2") -- its files change: it may do better
    box:eventually(function() return box:count "starts" == 4 end)
  end)

  -- ---- many ------------------------------------------------------------------------------------------------------------------

  case("100 changes in a second", function(box)
    box:set("a", "0-0")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}", reload = "cat out >>log; echo >>log" } ]]
    box:has("out", "0-0")
    for i = 1, 100 do
      box:set("a", ("%d-%d"):format(i, i))
    end
    box:has("out", "100-100")
    box:is "ok"
    local last = -1
    for one, two in box:read("log"):gmatch("(%d+)-(%d+)\n") do
      assert.equal(one, two)
      assert.truthy(tonumber(one) > last)
      last = tonumber(one)
    end
    assert.equal(100, last)
    assert.truthy(box:count "log" < 101)
  end)

  case("template loops for ever", function(box)
    box:set("a", "1")
    box:start [[ agent.limits { budget = 2e7 }
      agent.file { path = "out", template = "{% while text('a') == '2' do end %}{{ text('a') }}" }
      agent.file { path = "caught", content = function(ctx)
        while true do
          pcall(function() while ctx.text("a") == "2" do end end)
          if ctx.text("a") ~= "2" then return "x" end
        end
      end }
      agent.file { path = "other", template = "{{ text('a') }}" }
    ]]
    box:has("out", "1")
    box:is("ok", "out")
    box:set("a", "2")
    assert.matches("template of out ran for more than 20000000 instructions", box:is("failed", "out").error)
    box:has("other", "2")
    assert.equal("1", box:read "out")
    box:set("a", "3")
    box:has("out", "3")
    box:is("ok", "out")
    box:is("ok", "caught")
  end)

  case("syntax error in the script at HUP", function(box)
    box:set("a", "1")
    box:start [[ agent.file { path = "out", template = "{{ text('a') }}" }
      agent.process { name = "child", command = "echo $$ >>pids; exec sleep 1000", after = { "out" } } ]]
    box:is("running", "child", "processes")
    box:script "this is no Lua"
    box:signal "HUP"
    box:says "the scripts are not taken over"
    local code, out = box:cli("status")
    assert.equal(1, code)
    assert.matches("agent.lua:1: ", out)
    box:script [[ agent.file { path = "out", tmplate = "x" } ]]
    box:signal "HUP"
    box:says("the scripts are not taken over", 2)
    box:set("a", "2")
    box:has("out", "2")
    box:script [[ agent.file { path = "out", template = "now {{ text('a') }}" }
      agent.process { name = "child", command = "echo $$ >>pids; exec sleep 1000", reload_signal = "none", after = { "out" } } ]]
    box:signal "HUP"
    box:has("out", "now 2")
    assert.is_nil(box:status().reread_error)
  end)

  case("HUP again and again", function(box)
    box:set("a", "1")
    box:start [[ agent.connect { default_timeout = 2 + (io.open("bump") and 1 or 0) }
      agent.file { path = "out", template = "{{ text('a') }}", reload = "echo x >>log" }
      agent.file { path = "local", template = "{{ file('agent.lua') and 1 }}" }
      agent.process { name = "child", command = "echo $$ >>pids; exec sleep 1000", after = { "out" } }
      agent.watch("a", function(change) io.open("watch", "a"):write(change.content, "\n"):close() end)
      agent.push { data_id = "pushed", file = "agent.lua", interval = 0.1 } ]]
    box:is("running", "child", "processes")
    box:is("ok", "pushed", "pushes")
    local before
    for i = 1, 30 do
      if i == 10 or i == 20 then -- a new client
        os.execute((i == 10 and "touch " or "rm ") .. box:path "bump")
      end
      box:signal "HUP"
      box:says("the scripts were read again", i)
      if i == 5 then
        before = #box:fds()
      end
    end
    box:eventually(function()
      local open = box:fds()
      return #open <= before + 4, ("%d descriptors were open, now %d: %s"):format(before, #open, table.concat(open, " "))
    end)
    box:set("a", "2")
    box:has("out", "2")
    box:is("ok", "out")
    box:eventually(function() return (box:read("watch") or ""):find("2\n$") end)
    assert.equal(1, select(2, box:read("watch"):gsub("2\n", "")))
    assert.equal(2, box:count "log")
  end)

  case("the reader of the log goes away", function(box)
    box:set("a", "1")
    box:start([[ agent.file { path = "out", template = "{{ text('a') }}", reload = "echo loading; echo x >>log" } ]],
      { behind = { "bash", "-c", 'exec "$@" 2> >(head -n 1 >first; touch gone)', "bash" } })
    box:has("out", "1")
    box:eventually(function() return box:read "gone" end)
    for i = 2, 4 do
      box:set("a", tostring(i))
      box:has("out", tostring(i))
      box:is "ok"
    end
    assert.equal(4, box:count "log")
    assert.equal(0, box.process:stop())
  end)

  case("program of a check or reload is missing", function(box)
    box:start [[
      agent.file { path = "checked", template = "x", check = { "no-such-program", "{staged}" } }
      agent.file { path = "loaded", template = "x", reload = { "./not-yet" } }
    ]]
    assert.matches("no%-such%-program", box:is("rejected", "checked").error)
    assert.matches("not%-yet", box:is("owed", "loaded").error)
    assert.same({ "x" }, { box:read "loaded", box:read "checked" })
    box:write("not-yet", "#!/bin/sh\n")
    assert(uv.fs_chmod(box:path "not-yet", 448))
    box:is("ok", "loaded")
  end)

  case("one target fails or hangs", function(box)
    box:set("a", "1")
    box:start [[
      agent.file { path = "hung", template = "{{ text('a') }}", check = "sleep 1000" }
      agent.file { path = "slow", template = "{{ text('a') }}", reload = function() nacos.sleep(1000) end }
      agent.file { path = "missing", template = "{{ text('none') }}" }
      agent.file { path = "raises", template = "{% error('oh') %}" }
      agent.file { path = "fine", template = "{{ text('a') }}", reload = "echo x >>log" }
    ]]
    for i = 1, 3 do
      box:set("a", tostring(i))
      box:has("fine", tostring(i))
      box:is("ok", "fine")
    end
    box:has("slow", "1")
    box:is("failed", "missing")
    box:is("failed", "raises")
    box:is("checking", "hung")
    assert.equal(3, box:count "log")
  end)

  case("a second agent with the same state folder", function(box)
    box:start [[ agent.file { path = "out", template = "x" } ]]
    box:is "ok"
    local pid = box.process.pid
    local code, out = box:cli("run", "--state", "state", "agent.lua")
    assert.equal(1, code)
    assert.matches("pid " .. pid, out)
    box:is "ok"
  end)

  it("each row of the table has a test", function()
    for _, row in ipairs(FAULTS) do
      assert.truthy(tested[row.fault], row.fault)
      for _, column in ipairs { "fault", "kept", "retried", "seen" } do
        assert.equal("string", type(row[column]), row.fault .. ": " .. column)
      end
    end
  end)
end)
