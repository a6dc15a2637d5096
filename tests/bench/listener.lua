-- listener: the least that tells of a change over gRPC: a stream that listens, one read when it is told, no cache, no files. What it
-- takes is the server's own time and the way there and back. Started as client.lua is: listener.lua watch ADDRESS GROUP KEYS

local core = require "nacos.core" -- for its clock only
local grpc = require "grpc"

io.stdout:setvbuf("line")
local address, group, keys = arg[2], arg[3], tonumber(arg[4])
local client = grpc.client { port = tonumber(address:match(":(%d+)$")) }

local function now()
  return math.floor(core.monotonic() * 1e9)
end

local contexts = {}
for i = 0, keys - 1 do
  contexts[i + 1] = { dataId = "cfg-" .. i, group = group, tenant = "", md5 = "" }
end
assert(client:call("ConfigBatchListenRequest", { listen = true, configListenContexts = contexts }).resultCode == 200)
print("ready " .. now())
while true do
  local push = client:next("ConfigChangeNotifyRequest", 4) -- it answers its health to be kept
  if push then
    local answer = client:call("ConfigQueryRequest", { dataId = push.dataId, group = group, tenant = "" })
    local seen = now()
    local sent, tag = answer.content:match("^(%d+)%.([^.]*)")
    print(("change %s %s %d"):format(tag, sent, seen))
  else
    client:call("HealthCheckRequest", {})
  end
end
