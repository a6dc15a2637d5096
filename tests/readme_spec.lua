--- The README is true: every command and every piece of Lua in it is run, every public function is in it and annotated, the
--- invariants it names hold.

local support = require "support"

local readme = assert(support.read(support.root .. "/README.md"))

---The fenced blocks of one language, in order.
local function blocks(language)
  local list = {}
  for block in readme:gmatch("\n```" .. language .. "\n(.-)\n```") do
    list[#list + 1] = block
  end
  return list
end

-- .ci/run runs these; here only that it does so is checked.
local BY_CI = {
  ["scripts/demo"] = "scripts/demo",
  ["scripts/test"] = "README.md",
  ["scripts/setup"] = "scripts/setup",
  ["cmake --preset release"] = "cmake --preset release",
  ["cmake --build --preset release"] = "cmake --build --preset release",
  ["cmake --install build/release"] = "cmake --install build/release",
}

---Commands that go on until they are told to stop.
local function runs_on(line)
  return line:match("^lunacos watch ") or line:match("^lunacos run ") or line:match("^lunacos server ")
    or line:match("^lunacos subscribe ")
end

---One that stays in the foreground and that what follows needs.
local function stays(line)
  return line:match("^lunacos register ") and not line:match(" %-%- ") and not line:match("%-%-persistent")
end

describe("the README", function()
  local server, folder, env

  setup(function()
    server = support.start_server {}
    folder = support.tmpdir()
    env = { NACOS_SERVER = server.address, PATH = support.build .. ":" .. os.getenv("PATH") }
    for _, block in ipairs(blocks("lua")) do
      local name = block:match("^%-%- ([%w_]+%.lua)\n")
      if name then
        support.write(folder .. "/" .. name, block)
      end
    end
  end)

  teardown(function()
    server:stop()
  end)

  it("shows commands that work, in their order", function()
    local ci = assert(support.read(support.root .. "/.ci/run"))
    local count, running = 0, {}
    for _, block in ipairs(blocks("sh")) do
      for line in block:gmatch("[^\n]+") do
        count = count + 1
        local command = line:gsub("/usr/local/share/lunacos/", support.root .. "/scripts/")
        if BY_CI[line] then
          assert.is_truthy(ci:find(BY_CI[line], 1, true), ".ci/run does not run " .. line)
        elseif stays(line) then
          local process = support.start(command, { cwd = folder, env = env })
          running[#running + 1] = process
          support.eventually(function()
            return process:stderr():match("registered"), line .. ": " .. process:stderr()
          end, 20)
        elseif runs_on(line) then
          local process = support.start(command, { cwd = folder, env = env })
          support.eventually(function()
            return process:stdout() ~= "" or support.read(folder .. "/app.copy") or support.read(folder .. "/web.json")
              or process:stderr():find("reload: app.conf is new", 1, true),
              line .. ": " .. process:stderr()
          end, 20)
          process:signal("TERM")
          assert.equal(0, process:wait(), line .. "\n" .. process:stderr())
          os.remove(folder .. "/web.json")
          os.remove(folder .. "/app.copy") -- not before the end: a line is printed before the command runs
        else
          local code, _, err = support.run(command, { cwd = folder, env = env })
          assert.equal(0, code, line .. "\n" .. err)
        end
      end
    end
    for _, process in ipairs(running) do
      process:signal("TERM")
      assert.equal(0, process:wait())
    end
    assert.is_true(count > 20)
    assert.equal("# written by lunacos, do not edit\nworkers 4\n", support.read(folder .. "/app.conf"))
    assert.equal("workers 4\n", support.read(folder .. "/other.conf"))
  end)

  it("shows failures as they are", function()
    support.write(folder .. "/password", "secret\n")
    local old = support.start_server { "--api", "v1,v3" }
    local new = support.start_server { "--api", "v3", "--claim", "3.2.0" }
    local closed = support.start_server { "--api", "v3", "--username", "ann", "--password-file", folder .. "/password" }
    assert.equal(200, (support.http("POST", old.url .. "/v1/cs/configs", "dataId=app.yaml&group=DEFAULT_GROUP&content=x")))
    local of = { old, old, new, closed } -- the server for each command
    local block = readme:match("```text\n(%$ lunacos get app.yaml %-%-verbose.-\n)```")
    local count = 0
    for command, note, expected in block:gmatch("%$ (lunacos [^#\n]-) +# ([^\n]*)\n([^\n]*\n)") do
      count = count + 1
      local own = of[count]
      local code, _, err = support.run(command, { env = { NACOS_SERVER = own.address, PATH = env.PATH } })
      assert.equal(expected, (err:gsub(tostring(own.port + 1000), "9848"):gsub(tostring(own.port), "8848")))
      assert.equal(tonumber(note:match("exit code (%d)") or 0), code)
    end
    assert.equal(4, count)
    old:stop()
    new:stop()
    closed:stop()
  end)

  it("shows Lua that works", function()
    local prelude = [[
      nacos = require "nacos"
      template = require "nacos.template"
      client = nacos.client { server_addresses = os.getenv("NACOS_SERVER"), no_snapshot = true, log_level = "ERROR" }
    ]]
    local path = { LUA_PATH = package.path, LUA_CPATH = package.cpath, NACOS_SERVER = server.address }
    local count = 0
    for i, block in ipairs(blocks("lua")) do
      if not block:find('require "nacos.agent"', 1, true) and not block:find("^%-%- [%w_]+_spec%.lua\n") then
        count = count + 1
        local file = ("%s/block%d.lua"):format(folder, i)
        support.write(file, prelude .. block)
        local code, _, err = support.run({ "lua5.4", file }, { cwd = folder, env = path })
        assert.equal(0, code, block .. "\n" .. err)
      end
    end
    assert.is_true(count > 7)
  end)

  it("names every public function, and the source annotates it", function()
    for file, of in pairs {
      ["client.lua"] = "Client:", ["naming.lua"] = "Client:", ["scheduler.lua"] = "scheduler.", ["init.lua"] = "nacos.",
    } do
      local source = support.read(support.root .. "/lua/nacos/" .. file)
      local internal = { engine = true, await = true, await_all = true, handle = true, keep = true, listen = true, on_slow = true,
        task = true, park = true, wake = true, luv = true, observe_config = true, observe_service = true }
      local before = ""
      for line in source:gmatch("[^\n]*") do
        local name = line:match("^function " .. of:gsub("%p", "%%%0") .. "([%w_]+)")
        if name and not internal[name] then
          assert.is_truthy(before:match("^%-%-%-"), file .. ": " .. name .. " has no annotation")
          assert.is_truthy(readme:find(name, 1, true), "the README does not name " .. name)
        end
        before = line
      end
    end
  end)

  it("names every option", function()
    local source = support.read(support.root .. "/lua/nacos/client.lua")
    local count = 0
    for name in source:gmatch("%-%-%-@field ([%w_]+) [^\n]*") do
      if name == "data_id" then
        break -- the next class
      end
      count = count + 1
      assert.is_truthy(readme:find("`" .. name .. "`", 1, true), "the README does not name the option " .. name)
    end
    assert.is_true(count >= 25)
  end)
end)

describe("the table of faults", function()
  it("is the one whose rows are tested", function()
    local spec = support.read(support.root .. "/tests/agent_faults_spec.lua")
    local rows = assert(load("return " .. spec:match("local FAULTS = (%b{})")))()
    for _, row in ipairs(rows) do
      local line = ("| %s | %s | %s | %s |"):format(row.fault, row.kept, row.retried, row.seen)
      assert.is_truthy(readme:find(line, 1, true), "not in the README: " .. line)
    end
    assert.is_true(#rows > 25)
  end)
end)

describe("the source", function()
  local function files_with(header)
    local _, out = support.run({ "grep", "-rlE", "#include <(" .. header .. ")>", "src" }, { cwd = support.root })
    local list = {}
    for file in out:gmatch("[^\n]+") do
      list[#list + 1] = file
    end
    table.sort(list)
    return list
  end

  it("keeps Lua out of the engine, and curl and nghttp2 in one file of it each", function()
    assert.same({ "src/engine/http.c" }, files_with("curl/curl.h"))
    assert.same({ "src/embedded/grpc.h", "src/engine/h2.c" }, files_with("nghttp2/nghttp2.h"))
    assert.same({ "src/embedded/lua_embedded.c", "src/lua/core.c", "src/lunacos/main.c" }, files_with("lua.h|lauxlib.h"))
  end)
end)
