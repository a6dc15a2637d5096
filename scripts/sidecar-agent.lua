-- Run a program beside its configuration:  lunacos run --exec scripts/sidecar-agent.lua DATA_ID FILE COMMAND…
-- FILE holds the configuration DATA_ID; COMMAND starts when it is there, gets HUP when it has changed, and is started again when it
-- fails. With --exec this ends when COMMAND has ended well; TERM ends both.

local agent = require "nacos.agent"

local data_id, path, command = arg[1], arg[2], table.move(arg, 3, #arg, 1, {})
if #command == 0 then error("usage: sidecar-agent.lua DATA_ID FILE COMMAND…", 0) end

agent.file {
  path = path, mode = "0600",
  content = function(ctx) return ctx.text(data_id, group) end,
}

agent.process {
  name = command[1], command = command,
  after = { path },
  reload_signal = "HUP",
  kill_signal = "TERM", kill_timeout = 10, -- then KILL
  restart = "on-failure",
}
