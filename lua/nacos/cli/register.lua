--- lunacos register: register an instance and keep it alive, for as long as this runs or as a command does.

local common = require("nacos.cli.common")
local instance = require("nacos.cli.instance")
local process = require("nacos.process")

local PATIENCE = 5 -- seconds from TERM to KILL for a command whose instance is refused
local FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5

local register = {
  summary = "Register an instance of a service and keep it alive.",
  usage = "register SERVICE --ip IP --port PORT [OPTIONS] [-- COMMAND…]",
  rest = "--",
  help = [[
Examples:
  lunacos register web --ip 10.0.0.1 --port 8080 --meta version=1.4 --meta zone=a
  lunacos register web --ip 10.0.0.1 --port 8080 -- ./web --listen 8080
  lunacos register db --ip 10.0.0.9 --port 5432 --persistent

Names: a service's has no white space and no "@@", at most 512 bytes; a cluster's has letters,
digits and "-", at most 64 bytes.

It stays in the foreground, beats (over gRPC: keeps its connection), and takes the instance out of
the service at TERM, INT or HUP, exit code 0. While no server answers it goes on trying. A line on
stderr says when the instance is registered.

With a COMMAND the instance lives as long as the command does: the command starts at once, gets
every TERM, INT and HUP that lunacos gets, and its exit code (128 + the signal that ended it)
becomes that of lunacos; 127: it could not be started. One word is a line for sh, several are a
program and its arguments. It runs in a session of its own. When the server refuses the instance,
the command gets TERM (and KILL after 5 seconds) and the exit code says why.

A persistent instance needs no beats: without a COMMAND it is registered and stays, until
`lunacos deregister … --persistent`.]],
}

local function pair(text)
  local name, value = text:match("^([^=]+)=(.*)$")
  if not name then
    return nil, "NAME=VALUE is needed, not '" .. text .. "'"
  end
  return { name, value }
end

function register.setup(parser)
  local options = instance.options(parser)
  options[#options + 1] = parser:option("--weight"):argname("WEIGHT"):convert(instance.number):description(
    "Its share of the requests, 0 to 10000 (default 1)")
  options[#options + 1] = parser:option("--meta"):argname("NAME=VALUE"):count("*"):convert(pair):description(
    "An entry of its metadata; may be given again")
  options[#options + 1] = parser:option("--interval"):argname("SECONDS"):convert(instance.number):description(
    "Time between two beats (default 5; the server may say another; over gRPC there are none)")
  return options
end

---@return table # the arguments of add_naming_instance
local function wanted(args, settings)
  local metadata = {}
  for _, entry in ipairs(args.meta) do
    metadata[entry[1]] = entry[2]
  end
  return {
    service_name = args.service, ip = args.ip, port = args.port, cluster_name = args.cluster, weight = args.weight,
    metadata = metadata, ephemeral = not args.persistent, group_name = settings.group, heartbeat_interval = args.interval,
  }
end

---Register until it works, telling a trouble once. nil, error: refused.
---@param state { ending: boolean|nil, busy: boolean|nil } # ending: somebody else wants the end
local function insist(client, instance_wanted, state)
  local pause, told = FIRST_PAUSE, nil
  while not state.ending do
    state.busy = true
    local ok, err = common.try(client, "add_naming_instance", instance_wanted)
    state.busy = false
    if ok then
      return true
    elseif err.code ~= "unavailable" then
      return nil, err
    elseif told ~= err.message then
      told = err.message
      common.note(told .. "; go on trying")
    end
    if not state.ending then
      require("nacos").sleep(pause)
    end
    pause = math.min(pause * 2, LONGEST_PAUSE)
  end
  return false
end

---Wait for the command. @return integer code
local function wait_for(child, words)
  local code, why = child:wait()
  if not code then
    common.note(tostring(why))
    return 127
  elseif why and not child.signalled then
    common.note(("%s was ended by signal %d"):format(words[1], why))
  end
  return code
end

local function end_child(child)
  local nacos = require("nacos")
  child.signalled = true
  child:kill("TERM")
  nacos.spawn(function()
    nacos.sleep(PATIENCE)
    child:kill("KILL")
  end)
end

function register.run(args, settings)
  if args.rest and #args.rest == 0 then
    common.fail(common.USAGE, "a command is needed after --")
  end
  local nacos = require("nacos")
  local client = common.client(settings)
  local instance_wanted = wanted(args, settings)
  local state = {}
  local registered, failure
  local code = common.DONE

  local function finish()
    state.ending = true
    if not state.busy then -- else its answer is worth waiting for: it tells whether there is something to take out
      nacos.stop()
    end
  end

  local child
  if args.rest then
    common.on_end(function(name) -- before the start: no signal may come in between
      child.signalled = true
      child:kill(name)
    end)
    child = process.start(common.command(args.rest))
    nacos.spawn(function()
      code = wait_for(child, args.rest)
      finish()
    end)
  else
    common.on_end(finish)
  end

  nacos.run(function()
    if child then
      nacos.sleep(0) -- a command that cannot be started has told so then: nothing to register
    end
    local ok, result, err = pcall(insist, client, instance_wanted, state)
    if ok and result then
      registered = true
      if not state.ending then
        common.note(("registered %s %s"):format(args.service, instance.address(args.ip, args.port)))
      end
    elseif ok and result == nil then
      failure = select(2, pcall(common.check, nil, err))
    elseif not ok then
      failure = result
    end
    if state.ending or (registered and args.persistent and not child) or (failure and not child) then
      nacos.stop()
    elseif failure then
      end_child(child)
    end
  end)

  if registered and (child or not args.persistent) then
    local ok, err = client:remove_naming_instance {
      service_name = args.service, ip = args.ip, port = args.port, cluster_name = args.cluster, group_name = settings.group,
      ephemeral = not args.persistent,
    }
    if not ok then
      common.note("not deregistered: " .. tostring(err))
    end
  end
  client:close()
  if failure then
    error(failure, 0)
  end
  return code
end

return register
