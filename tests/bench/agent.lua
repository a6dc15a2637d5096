--- agent: so many files in a folder, each from a template that shows cfg-0, which they share, and a key of its own.
--
--   lunacos run … agent.lua FOLDER FILES [PULLING_TIMEOUT]
-- luacheck: read globals group

local agent = require "nacos.agent"

local folder, count, pulling_timeout = arg[1], tonumber(arg[2]), tonumber(arg[3])
agent.connect { pulling_timeout = pulling_timeout }
local body = ("line of the file that is not a variable\n"):rep(20)
for i = 1, count do
  agent.file {
    path = folder .. "/file-" .. i, vars = { own = "cfg-" .. i, group = group },
    template = body .. "{{ text('cfg-0', group) }}\n{{ text(own, group) }}\n" .. body,
  }
end
