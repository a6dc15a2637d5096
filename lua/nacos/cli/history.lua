--- lunacos history: the kept generations of a target.

local common = require("nacos.cli.common")
local look = require("nacos.cli.look")

local history = {
  summary = "List the kept generations of a file or group.",
  usage = "history TARGET [GENERATION] [--state FOLDER] [--json]",
  own_options = true,
  help = [[
Examples:
  lunacos history shop.conf
  lunacos history shop.conf 7

The newest comes first: number, time, why it was written, size and md5 of its files, what it was
made of; * is the one on the disk. With a number: a unified diff from the files on the disk to
that generation, which is what `lunacos rollback` would change. Exit code 1: no such target or
generation.]],
}

function history.setup(parser)
  look.target_argument(parser)
  parser:argument("generation"):args("?"):convert(look.generation):description("Show how this one differs from the disk")
  return {
    require("nacos.cli.agent").state_option(parser),
    parser:flag("--json"):description("One JSON object per generation"),
  }
end

local function sources_of(generation)
  local names = {}
  for i, source in ipairs(generation.sources or {}) do
    names[i] = look.source_name(source):gsub("^config ", "")
  end
  return table.concat(names, ", ")
end

local function list(generations, target)
  local rows = { { "", "N", "TIME", "BECAUSE", "SIZE", "MD5", "MADE OF" } }
  for _, generation in ipairs(generations) do
    local one = #generation.files == 1 and generation.files[1]
    rows[#rows + 1] = {
      generation.n == target.generation and "*" or "", tostring(generation.n), look.time(generation.time), generation.reason or "",
      one and tostring(one.size) or "", one and one.md5 or "", sources_of(generation),
    }
    for _, file in ipairs(one and {} or generation.files) do
      rows[#rows + 1] = { "", "", "", "", tostring(file.size), file.md5, file.path }
    end
  end
  look.write_table(rows)
end

local function list_json(generations, target)
  for _, generation in ipairs(generations) do
    generation.here = generation.n == target.generation
    common.write(require("nacos.formats").json(generation), "\n")
  end
end

---From the disk to a generation.
local function show(record, n)
  local generation, err = record:generation(n)
  if not generation then
    common.fail(common.NOT_FOUND, tostring(err))
  end
  for _, file in ipairs(generation.files) do
    local is_there = require("luv").fs_stat(file.path) ~= nil
    look.diff(is_there and file.path or nil, file.content, file.path, ("%s (generation %d)"):format(file.path, n))
  end
end

function history.run(args)
  return look.in_task(function()
    local state = look.open(args)
    local status = look.status(state)
    local target = look.target(status, args.target)
    local record = state:target(target.name)
    if args.generation then
      show(record, args.generation)
    else
      local generations = record:generations();
      (args.json and list_json or list)(generations, target)
    end
    return common.DONE
  end)
end

return history
