--- lunacos status: what a running agent keeps, and what is owed.

local common = require("nacos.cli.common")
local formats = require("nacos.formats")
local look = require("nacos.cli.look")

local status = {
  summary = "Show what a running agent keeps, what is owed, and why.",
  usage = "status [--state FOLDER] [--json]",
  own_options = true,
  help = [[
Examples:
  lunacos status
  lunacos status --json | jq '.targets[] | select(.state != "ok")'
  until lunacos status >/dev/null; do sleep 1; done

A line has the kind (server, file, group, process, service, push; config … for a key that cannot
be had now), the name, the state, since when, and more; that of a server which protocol is used
with it, and why. Targets (files and groups) are

  ok        as wanted, and loaded by who reads it
  pinned    kept at one generation, see `lunacos pin`
  waiting   not everything that is read is known yet: nothing is written
  checking  the check runs
  rejected  the check or a guard refused: the old file stays
  owed      written, but the reload has not worked yet: it is tried again
  failed    cannot be rendered or written: it is tried again

`lunacos why NAME` says more about one. Exit code: 0 all is well, 1 something is not, 3 no agent
runs (what it has left is shown).]],
}

function status.setup(parser)
  return {
    require("nacos.cli.agent").state_option(parser),
    parser:flag("--json"):description("All of it, as one JSON object"),
  }
end

local WELL = { ok = true, pinned = true, running = true, registered = true }

local function is_well(item)
  return WELL[item.state] or item.state == "stopped" and item.code == 0
end

---Add "text" with the value in it, if there is one.
local function add(parts, text, value)
  if value then
    parts[#parts + 1] = text:format(value)
  end
end

---What else there is to say about a target.
local function about_target(item)
  local parts = {}
  add(parts, "generation %d", item.generation)
  if item.kind ~= "file" and #(item.files or {}) ~= 1 then
    add(parts, "%d files", item.files and #item.files)
  end
  add(parts, "%s", item.state ~= "pinned" and item.error and look.line(item.error))
  if item.owed then
    add(parts, "reload owed: %s", item.state ~= "owed" and look.line(item.owed.reason))
    add(parts, item.owed.tries == 1 and "%d try" or "%d tries", item.owed.tries)
  end
  add(parts, "next in %s", item.next_try and look.duration(item.next_try))
  return table.concat(parts, ", ")
end

local function about_process(item)
  local parts = {}
  add(parts, "pid %d", item.pid)
  if item.state ~= "running" then
    add(parts, "exit code %d", item.code)
  end
  add(parts, "%d starts", (item.starts or 0) > 1 and item.starts or nil)
  add(parts, "next start in %s", item.next_start and look.duration(item.next_start))
  add(parts, "%s", item.error and look.line(item.error))
  return table.concat(parts, ", ")
end

local function about_service(item)
  local parts = {}
  add(parts, "%s", item.ip and item.port and item.ip .. ":" .. item.port)
  add(parts, "%s", item.error and look.line(item.error))
  return table.concat(parts, ", ")
end

local function about_push(item)
  local parts = {}
  add(parts, "%s", item.file)
  add(parts, "md5 %s", item.pushed)
  add(parts, "%s", item.error and look.line(item.error))
  return table.concat(parts, ", ")
end

---Keys that cannot be had as they are now, or were not told by a server.
local function troubled(sources)
  local list = {}
  for _, source in ipairs(sources or {}) do
    if source.trouble or source.state == "unknown" or source.source and source.source ~= "server" then
      list[#list + 1] = {
        source.kind, source.data_id or source.name or source.path or "*",
        source.state == "unknown" and "unknown" or source.source or "known",
        look.duration(source.age), source.trouble and look.line(source.trouble) or "",
      }
    end
  end
  return list
end

---The servers in use; one line for all clients that use one in the same way.
local function servers(answer)
  local rows, seen = {}, {}
  for _, item in ipairs(answer.servers or {}) do
    local why, version = look.line(item.why or ""), look.line(item.version or "")
    if not why:find(version, 1, true) then
      why = ("%s (Nacos %s)"):format(why, version)
    end
    local row = { "server", item.server or "-", item.connected and "connected" or "away", "-", why }
    local key = table.concat(row, "\t")
    if not seen[key] then
      seen[key], rows[#rows + 1] = true, row
    end
  end
  return rows
end

local function show(answer)
  if answer.pid then
    common.write(("%s: pid %d, up %s\n"):format(answer.script or "agent", answer.pid, look.age(answer.since)))
  end
  if answer.reread_error then
    common.write("the scripts on disk are not taken over: ", look.line(answer.reread_error), "\n")
  end
  local rows = { { "KIND", "NAME", "STATE", "SINCE", "" }, table.unpack(servers(answer)) }
  for _, target in ipairs(answer.targets) do
    rows[#rows + 1] = { target.kind, target.name, target.state, look.age(target.since), about_target(target) }
  end
  local function add_rows(list, kind, about)
    for _, item in ipairs(list or {}) do
      rows[#rows + 1] = { kind, item.name, item.state, look.age(item.since or item.changed), about(item) }
    end
  end
  add_rows(answer.processes, "process", about_process)
  add_rows(answer.services, "service", about_service)
  add_rows(answer.pushes, "push", about_push)
  for _, row in ipairs(troubled(answer.sources)) do
    rows[#rows + 1] = row
  end
  look.write_table(rows)
end

local function all_well(answer)
  for _, kind in ipairs { "targets", "processes", "services", "pushes" } do
    for _, item in ipairs(answer[kind] or {}) do
      if not is_well(item) then
        return false
      end
    end
  end
  return not answer.reread_error
end

function status.run(args)
  return look.in_task(function()
    local answer = look.status(look.open(args))
    if args.json then
      common.write(formats.json(answer), "\n")
    else
      show(answer)
    end
    look.note_absence(answer)
    return answer.running == false and common.UNAVAILABLE or all_well(answer) and common.DONE or common.NOT_FOUND
  end)
end

return status
