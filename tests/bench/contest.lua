--- contest: servers, the publisher, the contestants, and numbers made of many.

local process = require "process"
local uv = require "luv"

local contest = {}

local root = assert(uv.fs_realpath(debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$") .. "/../.."))
local build = os.getenv("LUNACOS_BUILD") or root .. "/build/release"
local work
local folders = 0

contest.root, contest.build = root, build

function contest.open()
  work = assert(uv.fs_mkdtemp("/tmp/lunacos-bench.XXXXXX"))
end

function contest.close()
  process.stop_all()
  if work then
    os.execute("rm -rf '" .. work .. "'")
  end
end

local function folder()
  folders = folders + 1
  local path = ("%s/%d"):format(work, folders)
  assert(uv.fs_mkdir(path, 448))
  return path
end
contest.folder = folder

-- ---- servers -----------------------------------------------------------------------------------------------------------------

local Server = {}
Server.__index = Server

---The embedded server. One that counts also answers stats(), which costs it a little time. It pushes at once: what is measured is
---ours, not the half second that a real server waits.
function contest.server(counts)
  local args = { build .. "/lunacos", "server", "--port", "0", "--push-delay", "0", counts and "--faults" or nil }
  local p = process.start(args, { cwd = folder() })
  local url, address = p:expect("(http://([%d.]+:%d+)/%S+)", 10)
  local self = setmetatable({ process = p, url = url, address = address, pending = 0 }, Server)
  self.publisher = process.start({ build .. "/bench_limit", "publish", url })
  return self
end

---A real Nacos 3.1.0 (scripts/real-nacos), with the same publisher.
function contest.real_server()
  local pipe = assert(io.popen(("bash -c '. %s/scripts/lib/common.bash; free_port'"):format(root)))
  local port = pipe:read("l")
  pipe:close()
  local command = { root .. "/scripts/real-nacos", "3.1.0", port, folder(), "--foreground" }
  local p = process.start(command)
  local url, address = p:expect("(http://([%d.]+:%d+)/%S+)", 150)
  local self = setmetatable({ process = p, command = command, url = url, address = address, pending = 0 }, Server)
  self.publisher = process.start({ build .. "/bench_limit", "publish", url })
  return self
end

---Kill a real server, and start it again in its folder. Returns when it can be used.
function Server:restart()
  self.process:signal("sigkill")
  process.wait(function()
    return self.process.ended
  end, 10)
  self.process = process.start(self.command)
  self.process:expect("(http://([%d.]+:%d+)/%S+)", 150)
end

function Server:publish(group, index, tag)
  self.publisher:send(("one %s %d %s"):format(group, index, tag))
  self.pending = self.pending + 1
end

local function ask(self, method, what)
  local pipe = assert(io.popen(("curl -sS -X %s http://%s/__lunacos/%s"):format(method, self.address, what)))
  local text = pipe:read("a")
  pipe:close()
  return text
end

---Change the metadata of an instance, with a tag.
function Server:instance(service, tag)
  self.publisher:send(("instance %s %s"):format(service, tag))
  self.pending = self.pending + 1
end

---@param name string # a number of the server's statistics
function Server:stat(name)
  return tonumber(ask(self, "GET", "stats"):match('"' .. name .. '":%s*(%d+)'))
end

---Wait until what was published is answered.
function Server:published()
  while self.pending > 0 do
    self.publisher:expect("^done", 60)
    self.pending = self.pending - 1
  end
end

function Server:publish_all(group, count, tag)
  self.publisher:send(("all %s %d %s"):format(group, count, tag))
  self.pending = self.pending + 1
  self:published()
end

---Count from now on.
function Server:count()
  ask(self, "DELETE", "requests")
  self.bytes_before = tonumber(ask(self, "GET", "stats"):match('"bytes_in":%s*(%d+)'))
end

---@return integer bytes    # received since count()
---@return integer requests
function Server:counted()
  local bytes = tonumber(ask(self, "GET", "stats"):match('"bytes_in":%s*(%d+)')) - self.bytes_before
  return bytes, tonumber(ask(self, "GET", "requests"):match('"total":%s*(%d+)'))
end

function Server:stop()
  self.publisher:stop()
  self.process:stop()
end

-- ---- contestants -------------------------------------------------------------------------------------------------------------

local lua_path = ("%s/lua/?.lua;%s/lua/?/init.lua;;"):format(root, root)

---`start(mode, server, group, …)` gives the process. `settle(keys)`: seconds it goes on working after a change.
contest.lunacos = {
  name = "lunacos",
  start = function(mode, server, group, ...)
    return process.start({ "lua5.4", root .. "/tests/bench/client.lua", mode, server.address, group, ... },
      { cwd = folder(), env = { LUA_PATH = lua_path, LUA_CPATH = build .. "/?.so;;" } })
  end,
  settle = function()
    return 0.012
  end,
}

---The same over gRPC.
function contest.with_grpc(who)
  return {
    name = who.name,
    start = function(...)
      uv.os_setenv("PROTOCOL", "grpc")
      local p = who.start(...)
      uv.os_unsetenv("PROTOCOL")
      return p
    end,
  }
end

---A stream and nothing else, see listener.lua.
contest.listener = {
  name = "curl", -- the column of the limit
  start = function(mode, server, group, ...)
    return process.start({ "lua5.4", root .. "/tests/bench/listener.lua", mode, server.address, group, ... },
      { cwd = folder(), env = { LUA_PATH = root .. "/tests/?.lua;" .. lua_path, LUA_CPATH = build .. "/?.so;;" } })
  end,
}

---The Python SDK that speaks gRPC; it cannot share a Python with the older one.
function contest.grpc_peer()
  local cache = (os.getenv("XDG_CACHE_HOME") or os.getenv("HOME") .. "/.cache") .. "/lunacos-bench"
  local python = cache .. "/py3/bin/python"
  if os.execute(python .. " -c 'import v2.nacos' 2>/dev/null") ~= true then
    io.stderr:write("bench: installing nacos-sdk-python 3.2.0 into " .. cache .. "\n")
    assert(os.execute(("mkdir -p '%s' && python3 -m venv '%s/py3' && '%s' -m pip install -q nacos-sdk-python==3.2.0 >&2"):format(
      cache, cache, python)))
  end
  return {
    name = "nacos-sdk-python 3.2.0",
    start = function(mode, server, group, ...)
      return process.start({ python, root .. "/tests/bench/peer_grpc.py", mode, server.address, group, ... }, { cwd = folder() })
    end,
  }
end

---The Go SDK, built into the same cache; nil without a `go`.
function contest.go_peer()
  local cache = (os.getenv("XDG_CACHE_HOME") or os.getenv("HOME") .. "/.cache") .. "/lunacos-bench/go"
  if os.execute("go version >/dev/null 2>&1") ~= true then
    io.stderr:write("bench: there is no `go`: without nacos-sdk-go\n")
    return nil
  end
  local go = ("cd '%s' && cp '%s/tests/bench/peer_grpc.go' main.go && "):format(cache, root)
  if not uv.fs_stat(cache .. "/go.sum") then
    io.stderr:write("bench: fetching nacos-sdk-go/v2 2.3.2 into " .. cache .. "\n")
    go = go .. "{ [ -e go.mod ] || go mod init peer; } && go get github.com/nacos-group/nacos-sdk-go/v2@v2.3.2 && go mod tidy && "
  end
  assert(os.execute(("mkdir -p '%s' && %s go build -o peer . >&2"):format(cache, go)))
  return {
    name = "nacos-sdk-go 2.3.2",
    start = function(mode, server, group, ...)
      return process.start({ cache .. "/peer", mode, server.address, group, ... }, { cwd = folder() })
    end,
  }
end

---An agent that keeps `count` files in a folder, see agent.lua. Its log goes to a file, as systemd would have it.
---@param pulling_timeout string|nil
function contest.agent(server, group, files, count, pulling_timeout)
  return process.start({ "sh", "-c", 'exec "$@" 2>agent.log', "sh", build .. "/lunacos", "run", "-s", server.address, "-g", group,
    "--state", "state", root .. "/tests/bench/agent.lua", files, tostring(count), pulling_timeout }, { cwd = folder() })
end

contest.limit = {
  name = "curl",
  start = function(mode, server, group, ...)
    return process.start({ build .. "/bench_limit", mode, server.url, group, ... }, { cwd = folder() })
  end,
  settle = contest.lunacos.settle,
}

---The peers, installed into a cache folder when they are not there yet.
function contest.peers()
  local cache = (os.getenv("XDG_CACHE_HOME") or os.getenv("HOME") .. "/.cache") .. "/lunacos-bench"
  local function sh(command)
    io.stderr:write("bench: ", command, "\n")
    assert(os.execute(command .. " >&2"), command)
  end
  os.execute("mkdir -p '" .. cache .. "'")
  local python, modules = cache .. "/py/bin/python", cache .. "/node/node_modules"
  if not uv.fs_stat(cache .. "/py/bin/python") then
    sh("python3 -m venv '" .. cache .. "/py'")
  end
  if os.execute(python .. " -c 'import nacos' 2>/dev/null") ~= true then
    sh(python .. " -m pip install -q nacos-sdk-python==1.0.0")
  end
  if not uv.fs_stat(modules .. "/nacos") then
    sh("npm install --silent --no-fund --no-audit --prefix '" .. cache .. "/node' nacos@2.6.3")
  end
  local function peer(name, settle, env, ...)
    local words = { ... }
    return {
      name = name,
      settle = settle,
      start = function(mode, server, group, ...)
        local args = { table.unpack(words) }
        for _, word in ipairs { mode, server.address, group, ... } do
          args[#args + 1] = word
        end
        return process.start(args, { cwd = folder(), env = env })
      end,
    }
  end
  return peer("nacos-sdk-python 1.0.0", function(keys)
    return 0.05 + keys * 0.00012
  end, {}, python, root .. "/tests/bench/peer.py"),
    peer("npm nacos 2.6.3", function(keys)
      return 0.03 + keys * 0.00001
    end, { NODE_PATH = modules, HOME = work }, "node", root .. "/tests/bench/peer.js")
end

-- ---- numbers -----------------------------------------------------------------------------------------------------------------

---@param p number # 0.5: the median
function contest.quantile(list, p)
  local sorted = { table.unpack(list) }
  table.sort(sorted)
  return sorted[math.max(1, math.ceil(#sorted * p))]
end

function contest.median(list)
  return contest.quantile(list, 0.5)
end

return contest
