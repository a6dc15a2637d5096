--- What rollback, pin, unpin and retry share: they ask the agent for something and tell what has come of it.

local common = require("nacos.cli.common")
local look = require("nacos.cli.look")

local steer = {}

local PATIENCE = 35 -- seconds: a reload may take 30
local BUSY = { checking = true, reloading = true }

steer.HELP = [[
The command waits (at most 35 s) until the agent has done it, and tells the state of the target.
Exit code: 0 all is well, 1 no such target or generation, 3 no agent runs, 6 it did not work: a
reload that failed, say. `lunacos why` tells more.]]

---What a target has become, and the exit code for that.
local function outcome(target)
  local well = target.state == "ok" or target.state == "pinned"
  common.write(("%s\t%s%s\n"):format(target.name, target.state, target.generation and "\tgeneration " .. target.generation or ""))
  if not well and target.error then
    common.note(("%s: %s"):format(target.name, look.line(target.error)))
  end
  return well and common.DONE or common.REFUSED
end

---Wait until a target has made the turn that does what was asked. What it waits for may just not have come yet after a start.
---@param turn integer
---@return table target
local function after_turn(state, name, turn)
  local nacos, core = require("nacos"), require("nacos.core")
  local deadline = core.monotonic() + PATIENCE
  while true do
    local target, left = look.target(look.ask(state, { command = "status" }), name), deadline - core.monotonic()
    local waits = target.state == "waiting" and left > PATIENCE - 5
    if (target.turns or 0) >= turn and not BUSY[target.state] and not waits then
      return target
    elseif left < 0 then
      common.fail(common.REFUSED, name .. ": the agent is still busy with it, see `lunacos status`")
    end
    nacos.sleep(0.05)
  end
end

---Without an agent: note it in the state folder, for the next one.
local function note_down(state, request)
  local name = look.target(look.status(state), request.target).name
  local folder, err = require("nacos.agent.state").open(state.folder)
  if not folder then
    common.fail(common.REFUSED, tostring(err))
  end
  local target = require("nacos.agent.target").new({ name = name }, { state = folder })
  local n, problem = target[request.command](target, request.generation)
  folder:close()
  if not n then
    common.fail(common.NOT_FOUND, problem)
  end
  common.write(("%s\t%s\n"):format(name, request.command == "unpin" and "unpinned" or "pinned\tgeneration " .. n))
  common.note("the agent does not run: this happens when it starts")
  return common.DONE
end

---Is it a process or a push? What comes of its retry, `lunacos status` tells.
local function is_other(status, name)
  for _, kind in ipairs { "processes", "pushes" } do
    for _, item in ipairs(status[kind] or {}) do
      if item.name == name then
        return true
      end
    end
  end
  return false
end

---Ask for something that concerns one target.
---@param args table # state, target
---@param request table # command, generation
---@return integer code
function steer.run(args, request)
  return look.in_task(function()
    local state = look.open(args)
    if not state:running() then
      if request.command == "retry" then
        common.fail(common.UNAVAILABLE, "the agent does not run")
      end
      request.target = args.target
      return note_down(state, request)
    end
    local status = look.ask(state, { command = "status" })
    if request.command == "retry" and is_other(status, args.target) then
      request.target = args.target
      look.ask(state, request)
      return common.DONE
    end
    local before = look.target(status, args.target)
    request.target = before.name
    local answer = look.ask(state, request)
    return outcome(after_turn(state, before.name, answer.turn or (before.turns or 0) + 1))
  end)
end

return steer
