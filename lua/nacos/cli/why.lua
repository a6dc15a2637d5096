--- lunacos why: which keys produced a file, and what is owed.

local common = require("nacos.cli.common")
local look = require("nacos.cli.look")

local why = {
  summary = "Tell what produced a file, what is owed, and why.",
  usage = "why FILE [--state FOLDER] [--json]",
  own_options = true,
  help = [[
Examples:
  lunacos why /etc/nginx/conf.d/shop.conf
  lunacos why shop.conf

Tells the state of the file's target, the generation on the disk with every key, service, file
and variable that it was made of (md5, server, time), and, when the newest values have not
arrived in the file, those and the reason: the check's output, a reload that fails, a key that
is not known. Without a running agent, what it has left is told. Exit code 1: no such target.]],
}

function why.setup(parser)
  parser:argument("target"):argname("FILE"):description("A path, the last part of it, or a target's name")
  return {
    require("nacos.cli.agent").state_option(parser),
    parser:flag("--json"):description("One JSON object"),
  }
end

---How a file on the disk compares with what was written.
local function on_disk(file)
  local content, err = require("nacos.agent.files").read(file.path)
  if not content then
    return err.code == "absent" and "missing" or tostring(err)
  end
  return require("nacos.core").md5(content) == file.md5 and "as written" or "changed since by somebody else"
end

---@return table|nil # of the generation n, without contents
local function generation_of(record, n)
  for _, generation in ipairs(record and record:generations() or {}) do
    if generation.n == n then
      return generation
    end
  end
end

---What there is to know, for both kinds of output.
local function gather(state, status, target)
  local record = state:target(target.name)
  local generation = record and target.generation and generation_of(record, target.generation)
  local about = { target = target, running = status.running ~= false, generation = generation }
  for i, file in ipairs(generation and generation.files or {}) do
    about.files = about.files or {}
    about.files[i] = { path = file.path, md5 = file.md5, size = file.size, disk = on_disk(file) }
  end
  if target.rejected then
    local rejected = record and record:rejected()
    about.rejected = {
      reason = target.rejected.reason, time = target.rejected.time, output = rejected and rejected.output,
      kept = rejected and ("%s/rejected/%d"):format(record.folder, rejected.n),
    }
  end
  return about
end

local function show(about)
  local target, rows = about.target, {}
  local function row(name, text, ...)
    rows[#rows + 1] = { "  " .. name, select("#", ...) > 0 and text:format(...) or text }
  end
  local function sources(name, list)
    for i, source in ipairs(list or {}) do
      local text = look.source_state(source)
      row(i == 1 and name or "", look.source_name(source) .. (text ~= "" and ": " .. text or ""))
    end
  end
  local function lines(name, text)
    for line in (tostring(text):gsub("%s+$", "") .. "\n"):gmatch("([^\n]*)\n") do
      row(name, look.line(line))
      name = ""
    end
  end
  common.write(target.name, "\n")
  row("state", "%s%s", target.state, target.since and ", for " .. look.age(target.since) or "")
  local generation = about.generation
  if generation then
    row("generation", "%d of %s (%s ago), because of %s", generation.n, look.time(generation.time), look.age(generation.time),
      generation.reason or "?")
    for i, file in ipairs(about.files or {}) do
      row(i == 1 and "files" or "", "%s: md5 %s, %d bytes, %s", file.path, file.md5, file.size, file.disk)
    end
    sources("made of", generation.sources)
  elseif target.generation then
    row("generation", "%d, which is no longer kept", target.generation)
  else
    row("generation", "none was written by an agent")
  end
  if not generation or target.wanted ~= target.written or target.state == "waiting" or target.state == "failed" then
    sources("reads now", target.tried or target.sources)
  end
  if target.error and target.state ~= "pinned" and not about.rejected then
    lines("why", target.error)
  end
  if target.owed then
    row("owed", "the reload, since %s, %d %s%s", look.time(target.owed.since), target.owed.tries or 0,
      target.owed.tries == 1 and "try" or "tries", target.next_try and ", next in " .. look.duration(target.next_try) or "")
    if target.owed.reason ~= target.error then
      lines("", target.owed.reason)
    end
  elseif target.written and target.applied ~= target.written then
    row("owed", "the reload")
  end
  if about.rejected then
    row("rejected", "at %s", look.time(about.rejected.time))
    lines("", about.rejected.reason)
    if about.rejected.output and about.rejected.output ~= "" then
      lines("output", about.rejected.output)
    end
    if about.rejected.kept then
      row("kept", "what was rejected is in %s", about.rejected.kept)
    end
  end
  if target.pinned then
    row("pinned", "to generation %d; `lunacos unpin %s` lets it follow its sources again", target.pinned, target.name)
  end
  look.write_table(rows)
end

function why.run(args)
  return look.in_task(function()
    local state = look.open(args)
    local status = look.status(state)
    local about = gather(state, status, look.target(status, args.target))
    if args.json then
      common.write(require("nacos.formats").json(about), "\n")
    else
      show(about)
    end
    look.note_absence(status)
    return common.DONE
  end)
end

return why
