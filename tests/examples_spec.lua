--- The scripts in scripts/ do what they say.

local support = require("support")
local uv = require("luv")

local scripts = support.root .. "/scripts/"
local server

setup(function()
  server = support.start_server()
end)

teardown(function()
  assert.equal(0, server:stop())
end)

local function publish(data_id, content, namespace)
  local words = { support.lunacos, "set", data_id, "-s", server.address, "--type", "text", "-n", namespace or "" }
  assert.same({ 0, "", "" }, { support.run(words, { stdin = content }) })
end

local function remove(data_id)
  assert.equal(0, (support.run({ support.lunacos, "rm", data_id, "-s", server.address })))
end

---Run an example with the executable.
local function agent(words)
  return support.start({ support.lunacos, "run", "-s", server.address, scripts .. words[1], table.unpack(words, 2) })
end

---Run an example with plain Lua, as an embedding host would.
local function plain(words)
  return support.start({ "lua5.4", scripts .. words[1], table.unpack(words, 2) }, {
    env = { LUA_PATH = package.path, LUA_CPATH = package.cpath },
  })
end

local function eventually(process, what, fn)
  return support.eventually(function()
    return fn(), ("%s\nstdout: %s\nstderr: %s"):format(what, process:stdout(), process:stderr())
  end, 8)
end

local function eventually_prints(process, text)
  return eventually(process, "not printed: " .. text, function()
    return process:stdout():find(text, 1, true)
  end)
end

describe("render-agent.lua", function()
  local folder, output

  before_each(function()
    folder = support.tmpdir()
    output = folder .. "/out.conf"
  end)

  local function eventually_file(process, text)
    return eventually(process, "the file is not: " .. text, function()
      return support.read(output) == text
    end)
  end

  it("renders, renders again after a change, and runs the command only then", function()
    publish("ra.json", '{"port": 8080}')
    publish("ra.hosts", "a b")
    support.write(folder .. "/t", "port {{ config('ra.json').port }}\nhosts {{ text('ra.hosts') }}\n")
    local process = agent({ "render-agent.lua", folder .. "/t", output, "cat", output, ">>", folder .. "/applied" })
    local first = "port 8080\nhosts a b\n"
    eventually_file(process, first)
    publish("ra.json", '{"port":8080}') -- other bytes, the same rendering
    publish("ra.hosts", "c")
    local second = "port 8080\nhosts c\n"
    eventually_file(process, second)
    publish("ra.json", '{"port": 9090}')
    local third = "port 9090\nhosts c\n"
    eventually_file(process, third)
    eventually(process, "the command did not run", function()
      return support.read(folder .. "/applied") == first .. second .. third
    end)
    process:signal("TERM")
    assert.equal(0, process:wait(3))
    assert.equal("", process:stderr())
    assert.equal(3, select(2, process:stdout():gsub("rendered", "")))
  end)

  it("leaves the file alone when it has nothing new, and when it cannot be rendered", function()
    publish("rb", "1")
    support.write(folder .. "/t", "{{ text('rb') }}{{ text('rb2') }}")
    support.write(output, "12")
    local process = agent({ "render-agent.lua", folder .. "/t", output, "echo applied" })
    eventually(process, "no complaint", function()
      return process:stderr():find("render%-agent: .-:1: configuration 'rb2'.- does not exist")
    end)
    publish("rb2", "2") -- what was missing appears
    publish("rb", "3")
    eventually_file(process, "32")
    eventually_prints(process, "applied")
    remove("rb")
    eventually(process, "no complaint", function()
      return process:stderr():find("configuration 'rb'.- does not exist")
    end)
    assert.equal("32", support.read(output))
    assert.equal(0, process:stop())
    assert.equal(1, select(2, process:stdout():gsub("applied", "")))
  end)

  it("goes on after a command that fails", function()
    publish("rc", "1")
    support.write(folder .. "/t", "{{ text('rc') }}")
    local process = agent({ "render-agent.lua", folder .. "/t", output, "false" })
    eventually(process, "no complaint", function()
      return process:stderr():find("render-agent: command failed: false", 1, true)
    end)
    publish("rc", "2")
    eventually_file(process, "2")
    assert.equal(0, process:stop())
  end)

  it("ends with an error for a template that does not compile, and without arguments", function()
    support.write(folder .. "/t", "\n{% if %}")
    local words = { support.lunacos, "run", scripts .. "render-agent.lua", folder .. "/t", output }
    local code, _, err = support.run(words)
    assert.equal(1, code)
    assert.matches("/t:2: unexpected symbol", err)
    code, _, err = support.run({ support.lunacos, "run", scripts .. "render-agent.lua" })
    assert.equal(1, code)
    assert.matches("lunacos: usage: render%-agent.lua TEMPLATE OUTPUT", err)
  end)
end)

describe("frame-loop.lua", function()
  it("draws frames with the newest value and prints what an idle step costs", function()
    publish("speed", "5")
    local process = plain({ "frame-loop.lua", server.address, "speed", "240" })
    eventually_prints(process, "event: speed = 5")
    eventually_prints(process, "frame 60: speed 5")
    publish("speed", "6")
    eventually_prints(process, ": speed 6")
    assert.equal(0, process:wait(30))
    local cost = tonumber(process:stdout():match("an idle step%(0%) costs (%d+) ns"))
    assert(cost and cost < 20000, process:stdout())
    assert.equal("", process:stderr())
  end)
end)

describe("luv-loop.lua", function()
  it("delivers changes from luv's loop, and its own timer runs, too", function()
    publish("luv", "1")
    local process = plain({ "luv-loop.lua", server.address, "luv" })
    eventually_prints(process, "changed: 1\nand 0.1 s later\n")
    publish("luv", "2")
    eventually_prints(process, "changed: 2\nand 0.1 s later\n")
    process:signal("TERM")
    assert.equal(0, process:wait(3))
    assert.matches("luv's own timer ran, too\n$", process:stdout())
    assert.equal("", process:stderr())
  end)
end)

describe("namespaces.lua", function()
  it("reads and follows one configuration in several namespaces", function()
    publish("shared", "in public")
    publish("shared", "in dev", "dev")
    local process = agent({ "namespaces.lua", "shared", "public", "dev", "empty" })
    eventually_prints(process, "public: in public\n")
    eventually_prints(process, "dev: in dev\n")
    eventually(process, "no word on the third", function()
      return process:stdout():find("empty: cannot read shared .- it does not exist\n")
    end)
    publish("shared", "new", "empty")
    eventually_prints(process, "empty: now new\n")
    process:signal("INT")
    assert.equal(0, process:wait(3))
    assert.equal("", process:stderr())
  end)
end)

---Register an instance; it stays until the process is stopped.
local function register(service, port, ip)
  local process = support.start({ support.lunacos, "register", service, "--ip", ip or "10.0.0.1", "--port", tostring(port),
    "--weight", "2", "-s", server.address })
  eventually(process, "not registered", function()
    return process:stderr():find("registered " .. service, 1, true)
  end)
  return process
end

describe("nginx-upstream.lua", function()
  it("renders the healthy instances, and reloads when the text differs", function()
    local folder = support.tmpdir()
    local output, applied = folder .. "/up.conf", folder .. "/applied"
    local process = agent({ "nginx-upstream.lua", "shop", output, "cat", output, ">>", applied })
    local none = "upstream shop {\n    server 127.0.0.1:1 down;\n}\n"
    eventually(process, "no file", function()
      return support.read(output) == none
    end)
    local instance = register("shop", 8080)
    local one = "upstream shop {\n    server 10.0.0.1:8080 weight=2;\n}\n"
    eventually(process, "the file is not: " .. one, function()
      return support.read(output) == one and support.read(applied) == none .. one
    end)
    local second = register("shop", 8081)
    local two = one:gsub("}\n", "    server 10.0.0.1:8081 weight=2;\n}\n")
    eventually(process, "the file is not: " .. two, function()
      return support.read(output) == two
    end)
    assert.equal(0, second:stop())
    eventually(process, "not reloaded", function()
      return support.read(applied) == none .. one .. two .. one
    end)
    process:signal("TERM")
    assert.equal(0, process:wait(3))
    assert.equal("", process:stderr())
    assert.equal(0, instance:stop())
  end)

  it("says how it is used", function()
    local code, _, err = support.run({ support.lunacos, "run", scripts .. "nginx-upstream.lua", "shop" })
    assert.equal(1, code)
    assert.matches("usage: nginx%-upstream.lua SERVICE OUTPUT", err)
  end)
end)

---Run an example that declares something: it has a state.
local function keeper(...)
  return support.start({ support.lunacos, "run", "-s", server.address, ... }, {
    env = { LUNACOS_STATE = support.tmpdir(), PATH = os.getenv("PATH") .. ":/usr/sbin" }, -- nginx is not in everybody's PATH
  })
end

describe("nginx-agent.lua", function()
  local nginx

  after_each(function()
    if nginx then -- its workers would outlive it if it were killed
      nginx:stop()
    end
  end)

  it("keeps nginx in step with a service, and what nginx refuses away from it", function()
    local folder, port = support.tmpdir(), {}
    for i = 1, 2 do
      local socket = uv.new_tcp()
      socket:bind("127.0.0.1", 0)
      port[i] = socket:getsockname().port
      socket:close()
      uv.run("nowait")
    end
    local function settings(listen, timeout)
      publish("store.json", ('{"listen": "127.0.0.1:%d", "timeout": "%s"}'):format(listen, timeout))
    end
    local function answers(listen) -- what is behind nginx is the server of this spec
      return support.http("GET", ("http://127.0.0.1:%d/nacos/v1/ns/operator/metrics"):format(listen)) == 200
    end
    settings(port[1], "5s")
    local process = keeper(scripts .. "nginx-agent.lua", "store", folder)
    eventually(process, "nothing is missed", function()
      return process:stderr():find("min_instances is 1", 1, true)
    end)
    local instance = register("store", server.port, "127.0.0.1")
    eventually(process, "no file", function()
      return support.read(folder .. "/nginx.conf")
    end)
    nginx = support.start { "/usr/sbin/nginx", "-p", folder, "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off;" }
    eventually(process, "nginx does not answer", function()
      return answers(port[1])
    end)
    settings(port[2], "5s")
    eventually(process, "nginx was not reloaded", function()
      return answers(port[2])
    end)
    local good = support.read(folder .. "/nginx.conf")
    settings(port[2], "soon")
    eventually(process, "not refused", function()
      return process:stderr():find('"proxy_read_timeout" directive invalid value', 1, true)
        and process:stderr():find("rejected, the old file stays", 1, true)
    end)
    assert.equal(good, support.read(folder .. "/nginx.conf"))
    assert.is_true(answers(port[2]))
    process:signal("TERM")
    assert.equal(0, process:wait(3))
    assert.equal(0, instance:stop())
  end)
end)

describe("sidecar-agent.lua", function()
  -- What it runs: notes what is in the file, at its start and at HUP.
  local PROGRAM = [[
note() { cat "$1" >>"$2"; }
trap 'note "$@"' HUP
trap 'echo " ended" >>"$2"; exit 0' TERM
echo $$ >"$2.pid"
note "$@"
until grep -q enough "$1"; do sleep 0.05; done
]]

  it("starts the program, tells it of changes, starts it again, and ends with it", function()
    local file, notes = support.tmpdir() .. "/app.conf", support.tmpdir() .. "/notes"
    publish("sidecar", "one")
    local words = { "--exec", scripts .. "sidecar-agent.lua", "sidecar", file, "sh", "-c", PROGRAM, "sh", file, notes }
    local process = keeper(table.unpack(words))
    local function eventually_noted(text)
      eventually(process, "not noted: " .. text, function()
        return support.read(notes) == text
      end)
    end
    eventually_noted("one")
    assert.equal("600\n", select(2, support.run { "stat", "-c", "%a", file }))
    publish("sidecar", "two")
    eventually_noted("onetwo")
    os.execute("kill -9 " .. support.read(notes .. ".pid"))
    eventually_noted("onetwotwo")
    process:signal("TERM")
    assert.equal(0, process:wait(5))
    assert.equal("onetwotwo ended\n", support.read(notes))

    process = keeper(table.unpack(words))
    eventually_noted("onetwotwo ended\ntwo")
    publish("sidecar", "enough")
    assert.equal(0, process:wait(5))
  end)
end)

describe("game-server.lua", function()
  local function instances()
    return select(2, support.run({ support.lunacos, "instances", "arena", "-s", server.address }))
  end

  it("registers itself from its frame loop, and takes itself out at the end", function()
    local process = plain({ "game-server.lua", server.address, "arena", "7777", "240" })
    eventually_prints(process, ": open for players\n")
    eventually(process, "not listed", function()
      return instances() == "arena\t127.0.0.1:7777\tDEFAULT\t1\thealthy\n"
    end)
    assert.equal(0, process:wait(30))
    assert.matches("closed\n$", process:stdout())
    assert.equal("", process:stderr())
    eventually(process, "still listed", function()
      return instances() == ""
    end)
  end)

  it("loses no frame when no server answers", function()
    local process = plain({ "game-server.lua", "127.0.0.1:1", "arena", "7777", "60" })
    assert.equal(0, process:wait(10))
    assert.matches("frame 60: not registered: cannot register arena", process:stdout())
  end)
end)

describe("every example", function()
  it("is short", function()
    local _, list = support.run("ls " .. scripts .. "*.lua")
    local count = 0
    for path in list:gmatch("%S+") do
      local lines = select(2, support.read(path):gsub("\n", ""))
      assert(lines <= 40, path .. " has " .. lines .. " lines")
      count = count + 1
    end
    assert(count >= 8)
  end)
end)
