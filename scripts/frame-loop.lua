-- Nacos in a game's frame loop:  lua5.4 scripts/frame-loop.lua SERVERS DATA_ID [FRAMES]
-- step(0) delivers what has arrived and never waits; peek() reads the newest value from memory.

local nacos = require("nacos")

io.stdout:setvbuf("line")
local servers, data_id, frames = arg[1] or "127.0.0.1:8848", arg[2] or "speed", tonumber(arg[3]) or 600
local client = nacos.client({ server_addresses = servers, no_snapshot = true })

client:add_config_watcher(data_id, "DEFAULT_GROUP", function(change)
  print("event: " .. data_id .. " = " .. tostring(change.content))
end)

local function draw(frame, speed)
  if frame % 60 == 0 then
    print(("frame %d: speed %s"):format(frame, speed))
  end
end

for frame = 1, frames do
  nacos.step(0)
  local value = client:peek(data_id)
  draw(frame, value and value.content or "unknown")
  nacos.sleep(1 / 60) -- stands for the wait for the display
end

local n, begin = 1e6, os.clock()
for _ = 1, n do
  nacos.step(0)
end
print(("an idle step(0) costs %.0f ns"):format((os.clock() - begin) / n * 1e9))
client:close()
