--- What the specs of the runtime and of the client share beyond support.lua: clients that clean up after themselves, plain Lua programs,
-- forms, and programs that misbehave on the network.

local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local lab = {}

---Seconds on the monotonic clock.
function lab.now()
  return uv.hrtime() / 1e9
end

---What fn took, in seconds, and its results.
function lab.timed(fn, ...)
  local begin = lab.now()
  local results = table.pack(fn(...))
  return lab.now() - begin, table.unpack(results, 1, results.n)
end

---Descriptors that this process holds open.
function lab.fd_count()
  local count = -1 -- that of the folder itself
  for _ in uv.fs_scandir_next, uv.fs_scandir("/proc/self/fd") do
    count = count + 1
  end
  return count
end

-- ---- clients -----------------------------------------------------------------------------------------------------------------

local clients = {}

---A client for a server of support.start_server (or an address list), silent, with folders of its own (client.folder); lab.close_all()
---closes it.
function lab.client(server, opts)
  local all = { log_level = "OFF", protocol = "v1" } -- most specs count requests and order faults of v1; others name their protocol
  local folder = support.tmpdir()
  all.failover_base, all.snapshot_base = folder .. "/data", folder .. "/snapshot"
  all.server_addresses = type(server) == "table" and server.base or server
  for name, value in pairs(opts or {}) do
    all[name] = value
  end
  local client = nacos.client(all)
  client.folder = folder
  clients[#clients + 1] = client
  return client
end

function lab.close_all()
  for _, client in ipairs(clients) do
    client:close()
  end
  clients = {}
end

---The path of a snapshot file of a client made here.
function lab.snapshot(client, data_id, group, namespace)
  return ("%s/snapshot/%s+%s+%s"):format(client.folder, data_id, group or "DEFAULT_GROUP", namespace or "")
end

function lab.failover(client, data_id, group, namespace)
  return ("%s/data/%s+%s+%s"):format(client.folder, data_id, group or "DEFAULT_GROUP", namespace or "")
end

---Run functions as tasks until all have ended; their results in order (each a packed table). An error of one is raised.
function lab.together(...)
  local functions, results, failure, left = { ... }, {}, nil, select("#", ...)
  for i, fn in ipairs(functions) do
    nacos.spawn(function()
      local packed = table.pack(xpcall(fn, debug.traceback))
      if packed[1] then
        results[i] = table.pack(table.unpack(packed, 2, packed.n))
      else
        failure = failure or packed[2]
      end
      left = left - 1
    end)
  end
  support.eventually(function()
    return left == 0, left .. " tasks still run"
  end, 30)
  if failure then
    error(failure, 0)
  end
  return results
end

---A watcher that notes what it is told: `seen.n`, `seen[i]` (content or false), `seen.last` (the change).
function lab.recorder()
  local seen = { n = 0 }
  return seen, function(change)
    seen.n = seen.n + 1
    seen[seen.n] = change.content or false
    seen.last = change
  end
end

-- ---- requests ----------------------------------------------------------------------------------------------------------------

local function unescape(text)
  return (text:gsub("+", " "):gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

---A form or query as a table.
function lab.form(text)
  local fields = {}
  for name, value in (text or ""):gmatch("([^&=]+)=([^&]*)") do
    fields[unescape(name)] = unescape(value)
  end
  return fields
end

function lab.header(request, wanted)
  for name, value in pairs(request.headers) do
    if name:lower() == wanted:lower() then
      return value
    end
  end
end

---The requests a server saw whose path ends in `path`, of this method if given.
function lab.requests(server, path, method)
  local found = {}
  for _, request in ipairs(server:requests().requests) do
    if request.path:sub(-#path) == path and (not method or request.method == method) then
      found[#found + 1] = request
    end
  end
  return found
end

lab.CONFIGS = "/v1/cs/configs"
lab.LISTENER = "/v1/cs/configs/listener"

-- ---- programs ----------------------------------------------------------------------------------------------------------------

lab.prelude = ("package.path = %q package.cpath = %q "):format(package.path, package.cpath)

---Run a Lua program in a process of its own. @return code, stdout, stderr
function lab.lua(program, opts)
  local path = support.tmpdir() .. "/program.lua"
  support.write(path, lab.prelude .. program)
  return support.run((opts and opts.before or "") .. " exec lua5.4 " .. support.q(path), opts)
end

---Start tests/rogue.lua. @return process, its `.port`, `.address`, :lines() so far
function lab.rogue(...)
  local process = support.start({ "lua5.4", support.root .. "/tests/rogue.lua", ... })
  process.port = tonumber(support.eventually(function()
    if process:ended() then
      error("the rogue ended at once: " .. process:stderr(), 0)
    end
    return process:stdout():match("^listening (%d+)\n")
  end))
  process.address = "127.0.0.1:" .. process.port
  process.base = "http://" .. process.address
  function process:lines(pattern)
    local lines = {}
    for line in self:stdout():gmatch("([^\n]*)\n") do
      if line:match(pattern or "") and not line:match("^listening ") then
        lines[#lines + 1] = line
      end
    end
    return lines
  end
  return process
end

return lab
