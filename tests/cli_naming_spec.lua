--- The commands about services, as their users see them: what is printed, exit codes, signals, and what the server has then.

local json = require("cjson.safe")
local support = require("support")

local DONE, NOT_FOUND, USAGE, UNAVAILABLE, FORBIDDEN, REFUSED = 0, 1, 2, 3, 4, 6
local NOWHERE = "127.0.0.1:1"

local server
local folder = support.tmpdir()

local function with_server(opts)
  opts = opts or {}
  opts.env = opts.env or {}
  opts.env.NACOS_SERVER = opts.env.NACOS_SERVER or server.address
  opts.cwd = opts.cwd or folder
  return opts
end

---@return integer code, string stdout, string stderr
local function lunacos(words, opts)
  return support.run({ support.lunacos, table.unpack(words) }, with_server(opts))
end

---Expected to work without a word on stderr. @return string stdout
local function good(words, opts)
  local code, out, err = lunacos(words, opts)
  assert.same({ DONE, "" }, { code, err }, table.concat(words, " "))
  return out
end

---Expected to fail. @return string stderr
local function bad(expected, words, opts)
  local code, out, err = lunacos(words, opts)
  assert.same({ expected, "" }, { code, out }, table.concat(words, " ") .. ": " .. err)
  assert.matches("^lunacos: ", err)
  return err
end

local function start(words, opts)
  return support.start({ support.lunacos, table.unpack(words) }, with_server(opts))
end

local function eventually(process, what, fn, seconds)
  return support.eventually(function()
    return fn(), ("%s\nstdout: %s\nstderr: %s"):format(what, process:stdout(), process:stderr())
  end, seconds or 8)
end

local function eventually_prints(process, text)
  return eventually(process, "not printed: " .. text, function()
    return process:stdout():find(text, 1, true)
  end)
end

local function instances(service, ...)
  local code, out, err = lunacos({ "instances", service, ... })
  assert.equal("", err)
  assert.equal(out == "" and NOT_FOUND or DONE, code)
  return out
end

local function eventually_instances(expected, service, ...)
  local more = { ... }
  support.eventually(function()
    local out = instances(service, table.unpack(more))
    return out == expected, out
  end)
end

---A registered instance, kept alive by a process.
local function register(service, port, ...)
  local process = start({ "register", service, "--ip", "10.0.0.1", "--port", tostring(port), ... })
  eventually(process, "not registered", function()
    return process:stderr():find(("registered %s 10.0.0.1:%d\n"):format(service, port), 1, true)
  end)
  return process
end

---Order that an instance is refused, whichever way it is asked for.
local function refuse(http_path, message_type, status)
  server:faults({ { path = http_path, status = status, body = "no right" },
    { path = message_type, method = "GRPC", code = status } })
end

local WHY = { v1 = "no right", grpc = "code 40%d" } -- what is said then

setup(function()
  server = support.start_server()
end)

teardown(function()
  assert.equal(0, server:stop())
end)

after_each(function()
  server:clear_faults()
end)

describe("lunacos --help", function()
  for _, name in ipairs { "register", "deregister", "instances", "services", "subscribe" } do
    it("explains " .. name, function()
      assert.matches("\n   " .. name .. " +%u", good({ "--help" }))
      local help = good({ name, "--help" })
      assert.matches("^Usage: lunacos " .. name .. " ", help)
      assert.matches("\nExamples:\n  lunacos " .. name, help)
      assert.matches("\nExit codes: ", help)
      for line in help:gmatch("[^\n]+") do
        assert(#line <= 110, line)
      end
    end)
  end
end)

describe("lunacos register", function()
  it("registers an instance and takes it out at TERM, INT and HUP", function()
    for _, signal in ipairs { "TERM", "INT", "HUP" } do
      local process = register("ra", 8080)
      eventually_instances("ra\t10.0.0.1:8080\tDEFAULT\t1\thealthy\n", "ra")
      process:signal(signal)
      assert.equal(DONE, process:wait(3))
      eventually_instances("", "ra")
      assert.equal("lunacos: registered ra 10.0.0.1:8080\n", process:stderr())
      assert.equal("", process:stdout())
    end
  end)

  it("says everything about it", function()
    local process = register("rb", 80, "--cluster", "C1", "--weight", "2.5", "--meta", "a=b", "--meta", "c=d=e", "--meta", "f=",
      "-g", "G", "-n", "space")
    support.eventually(function()
      return instances("rb", "-g", "G", "-n", "space") ~= ""
    end)
    local instance = json.decode(good({ "instances", "rb", "-g", "G", "-n", "space", "--json" }))
    instance.instance_id = nil
    assert.same({
      service_name = "rb", group_name = "G", namespace = "space", ip = "10.0.0.1", port = 80, cluster_name = "C1", weight = 2.5,
      healthy = true, enabled = true, ephemeral = true, metadata = { a = "b", c = "d=e", f = "" },
    }, instance)
    assert.equal("", instances("rb"))
    assert.equal(DONE, process:stop())
  end)

  it("beats as often as it is told", function()
    local process = register("rc", 80, "--interval", "0.5", "--protocol", "v1")
    server:clear_requests()
    support.eventually(function()
      local beats = 0
      for _, request in ipairs(server:requests().requests) do
        beats = beats + (request.path:find("/instance/beat", 1, true) and 1 or 0)
      end
      return beats >= 3, beats
    end)
    assert.equal(DONE, process:stop())
  end)

  it("takes its instance out though it is told to end twice", function()
    for _ = 1, 5 do
      local process = register("rt", 80)
      support.eventually(function()
        return instances("rt") ~= ""
      end)
      for _ = 1, 3 do
        process:signal("TERM")
      end
      assert.equal(DONE, process:wait(5))
      eventually_instances("", "rt")
    end
  end)

  it("registers a persistent instance and leaves it", function()
    assert.equal("lunacos: registered rp 10.0.0.9:5432\n",
      select(3, lunacos({ "register", "rp", "--ip", "10.0.0.9", "--port", "5432", "--persistent" })))
    support.eventually(function()
      local instance = json.decode((instances("rp", "--json")))
      return instance and instance.ephemeral == false
    end)
    good({ "deregister", "rp", "--ip", "10.0.0.9", "--port", "5432", "--persistent" })
    eventually_instances("", "rp")
  end)

  it("goes on trying until a server answers, and ends at once when told meanwhile", function()
    local own = support.start_server()
    local port = tostring(own.port)
    own:stop()
    local process = start({ "register", "rd", "--ip", "10.0.0.1", "--port", "80", "-s", "127.0.0.1:" .. port })
    eventually(process, "no word", function()
      return process:stderr():find("lunacos: cannot register rd .*; go on trying\n")
    end)
    own = support.start_server({ "--port", port })
    eventually(process, "not registered", function()
      return process:stderr():find("registered rd", 1, true)
    end, 15)
    assert.equal(DONE, process:stop())
    assert.equal(1, select(2, process:stderr():gsub("go on trying", "")))
    own:stop()

    process = start({ "register", "rd", "--ip", "10.0.0.1", "--port", "80", "-s", NOWHERE })
    eventually(process, "no word", function()
      return process:stderr():find("go on trying", 1, true)
    end)
    process:signal("TERM")
    assert.equal(DONE, process:wait(2))
  end)

  it("ends when it is refused", function()
    for status, code in pairs { [403] = FORBIDDEN, [400] = REFUSED } do
      refuse("/nacos/v1/ns/instance", "InstanceRequest", status)
      for protocol, why in pairs(WHY) do
        assert.matches("cannot register re .*" .. why,
          bad(code, { "register", "re", "--ip", "10.0.0.1", "--port", "80", "--protocol", protocol }))
      end
      server:clear_faults()
    end
  end)

  it("refuses a wrong command line", function()
    local function refused(pattern, ...)
      assert.matches(pattern, bad(USAGE, { "register", ... }))
    end
    local instance = { "--ip", "10.0.0.1", "--port", "80" }
    local function with(...)
      return "x", instance[1], instance[2], instance[3], instance[4], ...
    end
    refused("missing argument 'service'")
    refused("missing option '%-%-ip'", "x", "--port", "80")
    refused("missing option '%-%-port'", "x", "--ip", "10.0.0.1")
    refused("bad %-%-ip: ", "x", "--ip", "a b", "--port", "80")
    refused("a whole number is needed, not 'http'", "x", "--ip", "10.0.0.1", "--port", "http")
    refused("a whole number is needed, not '1.5'", "x", "--ip", "10.0.0.1", "--port", "1.5")
    refused("bad %-%-port: ", "x", "--ip", "10.0.0.1", "--port", "65536")
    refused("bad service 'a@@b': ", "a@@b", "--ip", "10.0.0.1", "--port", "80")
    refused("bad service 'a b': ", "a b", "--ip", "10.0.0.1", "--port", "80")
    refused("bad %-%-cluster: ", with("--cluster", "a_b"))
    refused("bad %-%-weight: ", with("--weight=-1"))
    refused("a number is needed, not 'nan'", with("--weight", "nan"))
    refused("bad %-%-weight: ", with("--weight", "1e9"))
    refused("NAME=VALUE is needed, not 'x'", with("--meta", "x"))
    refused("bad %-%-interval: ", with("--interval", "0"))
    refused("bad %-%-group: ", with("-g", "a@b"))
    refused("a command is needed after %-%-", with("--"))
  end)
end)

describe("lunacos register -- COMMAND", function()
  local function child(port, ...)
    return { "register", "rx", "--ip", "10.0.0.1", "--port", tostring(port), "--", ... }
  end

  it("ties the instance to the command, whose exit code and output are its own", function()
    local process = start(child(1, "sh", "-c", "echo \"$1\"; while [ ! -e go ]; do sleep 0.01; done; cat; exit 7", "sh", "a  b"),
      { stdin = "from stdin\n" })
    eventually_prints(process, "a  b\n")
    eventually_instances("rx\t10.0.0.1:1\tDEFAULT\t1\thealthy\n", "rx")
    support.write(folder .. "/go", "")
    assert.equal(7, process:wait(3))
    assert.equal("a  b\nfrom stdin\n", process:stdout())
    assert.equal("lunacos: registered rx 10.0.0.1:1\n", process:stderr())
    eventually_instances("", "rx")
  end)

  it("passes signals on, all of them", function()
    local process = start(child(2, "for s in HUP INT TERM; do trap \"echo got $s\" $s; done; trap 'exit 9' TERM; echo ready; "
      .. "while :; do sleep 0.01; done"))
    eventually_prints(process, "ready\n")
    process:signal("HUP")
    eventually_prints(process, "got HUP\n")
    process:signal("INT")
    eventually_prints(process, "got INT\n")
    process:signal("HUP")
    eventually_prints(process, "got HUP\ngot INT\ngot HUP\n")
    process:signal("TERM")
    assert.equal(9, process:wait(3))
    eventually_instances("", "rx")
  end)

  it("exits with 128 + the signal that ended the command", function()
    local code, _, err = lunacos(child(3, "kill -9 $$"))
    assert.equal(137, code)
    assert.matches("kill %-9 %$%$ was ended by signal 9\n$", err)
    local process = start(child(3, "sleep", "60"))
    eventually(process, "not registered", function()
      return process:stderr():find("registered", 1, true)
    end)
    process:signal("TERM")
    assert.equal(143, process:wait(3))
    assert.equal("lunacos: registered rx 10.0.0.1:3\n", process:stderr())
    eventually_instances("", "rx")
  end)

  it("says that the command cannot be started, and registers nothing", function()
    server:clear_requests()
    assert.equal("lunacos: cannot start /nonexistent/program: No such file or directory\n",
      bad(127, child(4, "/nonexistent/program", "x")))
    for _, request in ipairs(server:requests().requests) do -- others may have come: which version, which protocol
      assert.is_nil(request.path:find("[Ii]nstance"), request.path)
    end
  end)

  it("runs the command while no server answers", function()
    local code, out, err = lunacos(child(5, "sleep 0.3; echo ran; exit 3"), { env = { NACOS_SERVER = NOWHERE } })
    assert.same({ 3, "ran\n" }, { code, out })
    assert.matches("^lunacos: cannot register rx [^\n]*; go on trying\n$", err)
  end)

  it("ends the command when the instance is refused", function()
    refuse("/nacos/v1/ns/instance", "InstanceRequest", 403)
    for protocol, why in pairs(WHY) do
      local code, out, err = lunacos(child(6, "trap 'echo told; exit 0' TERM; while :; do sleep 0.01; done"),
        { env = { NACOS_PROTOCOL = protocol } })
      assert.equal(FORBIDDEN, code)
      assert(out == "told\n" or out == "", out) -- the trap may not have been set yet
      assert.matches(why, err)
    end
  end)

  it("takes a persistent instance out, too", function()
    local process = start({ "register", "ry", "--ip", "10.0.0.1", "--port", "80", "--persistent", "--", "cat; sleep 60" })
    support.eventually(function()
      return instances("ry") ~= ""
    end)
    process:signal("INT")
    assert.equal(130, process:wait(3))
    eventually_instances("", "ry")
  end)
end)

describe("lunacos deregister", function()
  it("takes an instance out, and does not mind one that is not there", function()
    assert.equal("", good({ "deregister", "da", "--ip", "10.0.0.1", "--port", "80" }))
    local process = register("da", 80, "--cluster", "C1")
    support.eventually(function()
      return instances("da") ~= ""
    end)
    process:kill9()
    good({ "deregister", "da", "--ip", "10.0.0.1", "--port", "80", "--cluster", "C1" })
    eventually_instances("", "da")
  end)

  it("takes a persistent instance out without being told that it is one", function()
    assert.equal(DONE, (lunacos({ "register", "dp", "--ip", "10.0.0.1", "--port", "80", "--persistent" })))
    support.eventually(function()
      return instances("dp") ~= ""
    end)
    good({ "deregister", "dp", "--ip", "10.0.0.1", "--port", "80" })
    eventually_instances("", "dp")
  end)

  it("fails with the right code", function()
    bad(UNAVAILABLE, { "deregister", "da", "--ip", "10.0.0.1", "--port", "80", "-s", NOWHERE })
    assert.matches("bad %-%-ip", bad(USAGE, { "deregister", "da", "--ip", "", "--port", "80" }))
    assert.matches("missing option '%-%-port'", bad(USAGE, { "deregister", "da", "--ip", "10.0.0.1" }))
  end)
end)

describe("lunacos instances", function()
  it("lists them sorted, filtered by health and cluster", function()
    local a, b = register("la", 82, "--cluster", "C2", "--weight", "0.5"), register("la", 81, "--cluster", "C1")
    local first, second = "la\t10.0.0.1:81\tC1\t1\thealthy\n", "la\t10.0.0.1:82\tC2\t0.5\thealthy\n"
    eventually_instances(first .. second, "la")
    assert.equal(second, instances("la", "--cluster", "C2"))
    assert.equal(first .. second, instances("la", "--cluster", "C2,C1", "--healthy"))
    assert.equal(2, select(2, instances("la", "--json"):gsub("\n", "")))
    assert.equal(DONE, a:stop())
    assert.equal(DONE, b:stop())
  end)

  it("fails with the right code", function()
    assert.same({ NOT_FOUND, "", "" }, { lunacos({ "instances", "nothing-here" }) })
    bad(UNAVAILABLE, { "instances", "x", "-s", NOWHERE })
    assert.matches("bad service 'a b'", bad(USAGE, { "instances", "a b" }))
    assert.matches("bad %-%-cluster", bad(USAGE, { "instances", "x", "--cluster", "a_b" }))
  end)

  it("says when the list is the last one on disk", function()
    local process = register("lb", 80)
    eventually_instances("lb\t10.0.0.1:80\tDEFAULT\t1\thealthy\n", "lb")
    good({ "instances", "lb", "--snapshot-dir", "snap" })
    local code, out, err = lunacos({ "instances", "lb", "--snapshot-dir", "snap", "-s", NOWHERE })
    assert.same({ DONE, "lb\t10.0.0.1:80\tDEFAULT\t1\thealthy\n", "lunacos: no server answers: this is the snapshot of 'lb'\n" },
      { code, out, err })
    assert.equal(DONE, process:stop())
  end)
end)

describe("lunacos services", function()
  it("lists the services of a group, with a pattern, in JSON, and all pages", function()
    local process = register("sa.one", 80, "-g", "GS")
    local other = register("sb-two", 80, "-g", "GS")
    support.eventually(function()
      local names = {}
      for name in good({ "services", "-g", "GS" }):gmatch("[^\n]+") do
        names[#names + 1] = name
      end
      table.sort(names)
      return table.concat(names, " ") == "sa.one sb-two", table.concat(names, " ")
    end)
    assert.equal("sa.one\n", good({ "services", "sa*", "-g", "GS" }))
    assert.equal("sb-two\n", good({ "services", "*-t*", "-g", "GS" }))
    assert.same({ service_name = "sa.one", group_name = "GS", namespace = "" },
      json.decode(good({ "services", "sa.one", "-g", "GS", "--json" })))
    assert.same({ NOT_FOUND, "", "" }, { lunacos({ "services", "sa_one", "-g", "GS" }) })
    assert.same({ DONE, "", "" }, { lunacos({ "services", "-g", "nothing" }) })
    assert.equal(DONE, process:stop())
    assert.equal(DONE, other:stop())
  end)

  it("reads more than one page", function()
    local script = folder .. "/many.lua"
    support.write(script, [[
      local client, list = nacos.client(connection), { group_name = "GM", ip = "10.0.0.1", port = 80 }
      for i = 1, 620 do list[i] = { service_name = "many" .. i } end
      assert(client:add_naming_instances(list))
      client:close { deregister = false }
      return 0
    ]])
    good({ "run", script })
    support.eventually(function()
      local n = select(2, good({ "services", "-g", "GM" }):gsub("\n", ""))
      return n == 620, n
    end, 10)
  end)

  it("fails with the right code", function()
    bad(UNAVAILABLE, { "services", "-s", NOWHERE })
    assert.matches("bad %-%-group", bad(USAGE, { "services", "-g", "a@b" }))
  end)
end)

describe("lunacos subscribe", function()
  it("prints the present instances and each change", function()
    local first = register("ua", 81)
    local process = start({ "subscribe", "ua", "ub", "--hold", "0" })
    eventually_prints(process, "ADDED\tua\t10.0.0.1:81\tDEFAULT\t1\thealthy\n")
    local second = register("ub", 82, "--cluster", "C2", "--weight", "3")
    eventually_prints(process, "ADDED\tub\t10.0.0.1:82\tC2\t3\thealthy\n")
    local again = register("ua", 81, "--weight", "7")
    eventually_prints(process, "MODIFIED\tua\t10.0.0.1:81\tDEFAULT\t7\thealthy\n")
    assert.equal(DONE, second:stop())
    eventually_prints(process, "DELETED\tub\t10.0.0.1:82\tC2\t3\thealthy\n")
    process:signal("TERM")
    assert.equal(DONE, process:wait(3))
    first:kill9()
    assert.equal(DONE, again:stop())
  end)

  for protocol, how in pairs { v1 = "UDP push from", v3 = "asked for at", grpc = "gRPC push from" } do
    it("tells with --verbose how a change came: " .. protocol, function()
      local name = "uv-" .. protocol
      local interval = protocol == "v3" and "0.2" or "60"
      local process = start({ "subscribe", name, "--verbose", "--protocol", protocol, "--interval", interval })
      support.eventually(function()
        return process:stderr():find(name .. ": read from " .. server.base, 1, true), process:stderr()
      end, 10)
      local instance = register(name, 81)
      eventually_prints(process, "ADDED\t" .. name)
      process:signal("TERM")
      assert.equal(DONE, process:wait(3))
      assert.matches(name .. ": " .. how .. " " .. server.base, process:stderr(), 1, true)
      assert.equal(DONE, instance:stop())
    end)
  end

  it("follows some clusters, and holds what is missing beyond a share", function()
    local other = register("uc", 81, "--cluster", "C2")
    local a, b = register("uc", 82, "--cluster", "C1"), register("uc", 83, "--cluster", "C1")
    support.eventually(function()
      return select(2, instances("uc"):gsub("C%d", "")) == 3
    end)
    local process = start({ "subscribe", "uc", "--cluster", "C1", "--max-drop", "0.4", "--hold", "60", "--interval", "1" })
    eventually_prints(process, "ADDED\tuc\t10.0.0.1:83\tC1")
    assert.is_nil(process:stdout():find("C2", 1, true))
    assert.equal(DONE, a:stop())
    eventually(process, "no warning", function()
      return process:stderr():find("uc", 1, true)
    end)
    assert.is_nil(process:stdout():find("DELETED", 1, true))
    assert.equal(DONE, process:stop())
    assert.equal(DONE, b:stop())
    assert.equal(DONE, other:stop())
    assert.matches("bad %-%-max%-drop: must be at most 1, got 2", bad(USAGE, { "subscribe", "uc", "--max-drop", "2" }))
  end)

  it("prints JSON, one object a line, and ends at INT", function()
    local instance = register("uj", 81, "--meta", "a=b", "-g", "GU")
    local process = start({ "subscribe", "uj", "-g", "GU", "--json" })
    eventually_prints(process, "\n")
    local change = json.decode(process:stdout())
    assert(math.abs(os.time() - change.time) < 60)
    change.time, change.instance_id = nil, nil
    assert.same({
      event = "ADDED", service_name = "uj", group_name = "GU", namespace = "", ip = "10.0.0.1", port = 81, cluster_name = "DEFAULT",
      weight = 1, healthy = true, enabled = true, ephemeral = true, metadata = { a = "b" }, source = "server",
    }, change)
    process:signal("INT")
    assert.equal(DONE, process:wait(3))
    assert.equal(DONE, instance:stop())
  end)

  it("runs a command at the start and per change, with the healthy list", function()
    local process = start({ "subscribe", "ux", "--hold", "0", "--exec", "sh", "-c",
      'echo "$NACOS_SERVICE|$NACOS_GROUP|$NACOS_NAMESPACE|$NACOS_EVENT|$1 $(cat)"', "sh", "a b" })
    eventually_prints(process, "ux|DEFAULT_GROUP||changed|a b []\n")
    local instance = register("ux", 81)
    eventually_prints(process, "ux|DEFAULT_GROUP||ADDED|a b [{")
    local list = json.decode(process:stdout():match("ADDED|a b (%b[])"))
    assert.same({ 1, "10.0.0.1", 81 }, { #list, list[1].ip, list[1].port })
    assert.equal(DONE, instance:stop())
    eventually_prints(process, "ux|DEFAULT_GROUP||DELETED|a b []\n")
    assert.equal(DONE, process:stop())
    assert.equal(3, select(2, process:stdout():gsub("ux|", "")))
  end)

  it("merges changes while a command runs, and never runs two for one service", function()
    local cwd = support.tmpdir()
    local script = "mkdir lock || echo overlap; echo \"run $NACOS_EVENT\"; while [ ! -e go ]; do sleep 0.01; done; rmdir lock"
    local process = start({ "subscribe", "um", "--hold", "0", "--exec", script }, { cwd = cwd })
    eventually_prints(process, "run changed\n")
    local a, b = register("um", 81), register("um", 82)
    eventually_prints(process, "ADDED\tum\t10.0.0.1:82")
    assert.equal(DONE, b:stop())
    eventually_prints(process, "DELETED\tum\t10.0.0.1:82")
    support.write(cwd .. "/go", "")
    eventually(process, "no second run", function()
      return select(2, process:stdout():gsub("run changed\n", "")) == 2
    end)
    assert.equal(DONE, process:stop())
    assert.is_nil(process:stdout():find("overlap", 1, true))
    assert.equal(2, select(2, process:stdout():gsub("run ", "")))
    assert.equal(DONE, a:stop())
  end)

  it("goes on while the server is down, and ends when it may not", function()
    local own = support.start_server()
    local process = start({ "subscribe", "ud", "-s", own.address, "--exec", "echo started" })
    eventually_prints(process, "started\n")
    own:kill9()
    eventually(process, "nothing on stderr", function()
      return process:stderr():find(("the connection to 127.0.0.1:%d was lost"):format(own.port + 1000), 1, true)
    end, 20)
    own = support.start_server({ "--port", tostring(own.port) })
    local instance = start({ "register", "ud", "--ip", "10.0.0.1", "--port", "80", "-s", own.address })
    eventually(process, "no change", function()
      return process:stdout():find("ADDED\tud\t10.0.0.1:80", 1, true)
    end, 20)
    assert.equal(DONE, process:stop())
    assert.equal(DONE, instance:stop())
    own:stop()
    refuse("/nacos/v1/ns/instance/list", "SubscribeServiceRequest", 403)
    for protocol, why in pairs(WHY) do
      process = start({ "subscribe", "un", "--protocol", protocol })
      assert.equal(FORBIDDEN, process:wait(10))
      assert.matches("lunacos: cannot list .*" .. why, process:stderr())
    end
  end)

  it("ends quietly when its reader has gone", function()
    local a = register("up", 81)
    local pipeline = support.start(("sh -c '{ %s subscribe up -s %s; echo code=$? >&2; } | head -1'"):format(
      support.lunacos, server.address))
    eventually_prints(pipeline, "ADDED\tup\t10.0.0.1:81")
    local b = register("up", 82)
    pipeline:wait(5)
    assert.equal("code=0\n", pipeline:stderr())
    assert.equal(DONE, a:stop())
    assert.equal(DONE, b:stop())
  end)

  it("refuses a wrong command line", function()
    assert.matches("missing argument 'SERVICE'", (bad(USAGE, { "subscribe" }):gsub("services", "SERVICE")))
    assert.matches("%-%-exec needs a command", bad(USAGE, { "subscribe", "x", "--exec" }))
    assert.matches("bad service 'a b'", bad(USAGE, { "subscribe", "a b" }))
    assert.matches("bad %-%-hold", bad(USAGE, { "subscribe", "x", "--hold=-1" }))
  end)
end)

describe("lunacos run, however its script ends,", function()
  local ways = {
    ["by its end"] = { "nacos.stop()", DONE }, ["by os.exit"] = { "os.exit(7)", 7 },
    ["by an error"] = { "error('boom')", NOT_FOUND }, ["by TERM"] = { "print('ready')", DONE, "TERM" },
  }
  for name, way in pairs(ways) do
    it("takes its instances out of their services: " .. name, function()
      local ending, code, signal = table.unpack(way, 1, 3)
      local service = "run-" .. name:gsub("%W", "-")
      support.write(folder .. "/ends.lua", ([[
        local client = nacos.client(connection)
        assert(client:add_naming_instance("%s", "10.0.0.1", 80))
        assert(#assert(client:list_naming_instance("%s")) == 1)
        %s]]):format(service, service, ending))
      local process = start { "run", "ends.lua" }
      if signal then
        eventually_prints(process, "ready")
        process:signal(signal)
      end
      assert.equal(code, process:wait(8), process:stderr())
      eventually(process, "still listed", function()
        return instances(service) == ""
      end)
    end)
  end
end)
