-- A game server that registers itself:  lua5.4 scripts/game-server.lua SERVERS SERVICE PORT [FRAMES]
-- No frame waits for the network: registering goes on in a task that step(0) moves on, beats are the runtime thread's.

local nacos = require("nacos")

io.stdout:setvbuf("line")
local servers, service = arg[1] or "127.0.0.1:8848", arg[2] or "game"
local port, frames = tonumber(arg[3]) or 7777, tonumber(arg[4]) or 600
local client = nacos.client({ server_addresses = servers, no_snapshot = true })
local state = "registering"

nacos.spawn(function()
  local ok, err
  repeat
    ok, err = client:add_naming_instance({ service_name = service, ip = "127.0.0.1", port = port, metadata = { map = "de_lua" } })
    state = ok and "open for players" or "not registered: " .. tostring(err)
    if not ok then nacos.sleep(1) end
  until ok
end)

for frame = 1, frames do
  nacos.step(0)
  if frame % 30 == 0 then print(("frame %d: %s"):format(frame, state)) end
  nacos.sleep(1 / 60) -- stands for the game and the wait for the display
end

client:close() -- takes the instance out of the service
print("closed")
