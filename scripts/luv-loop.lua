-- Nacos in the loop of somebody else, here luv:  lua5.4 scripts/luv-loop.lua SERVERS DATA_ID
-- nacos.fd() is readable while something waits to be delivered; that is all another loop needs to know.

local nacos = require("nacos")
local uv = require("luv")

io.stdout:setvbuf("line")
local servers, data_id = arg[1] or "127.0.0.1:8848", arg[2] or "app.yaml"
local client = nacos.client({ server_addresses = servers, no_snapshot = true })

client:add_config_watcher(data_id, "DEFAULT_GROUP", function(change)
  print("changed: " .. tostring(change.content))
  nacos.sleep(0.1) -- a callback may wait; the loop goes on
  print("and 0.1 s later")
end)

local poll = uv.new_poll(nacos.fd())
poll:start("r", function()
  nacos.step(0)
end)

local ticks = 0
local timer = uv.new_timer()
timer:start(50, 50, function()
  ticks = ticks + 1
end)

uv.new_signal():start("sigterm", function()
  print(ticks > 0 and "luv's own timer ran, too" or "luv's timer did not run")
  poll:stop()
  client:close()
  uv.stop()
end)

nacos.step(0) -- what had arrived before the loop
uv.run()
