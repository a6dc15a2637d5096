--- bench: runs the figures and prints the table. Started by scripts/bench, which says what it takes.

package.path = arg[0]:match("^(.*)/[^/]*$") .. "/?.lua;" .. package.path

local contest = require "contest"
local figures = require "figures"
local process = require "process"

local run = { rounds = 7, window = 40, down_window = 15, stay = 1800, contestants = { contest.lunacos } }
local chosen, command = {}, "scripts/bench"
for _, word in ipairs(arg) do
  command = command .. " " .. word
  if word == "--quick" then
    run.rounds, run.window, run.down_window, run.stay = 3, 12, 4, 60
    run.pulling_timeout = "10" -- the shortest that servers hold: the window must see a poll end
  elseif word == "--peers" then
    run.peers = true
  else
    chosen[#chosen + 1] = word
  end
end

local COLUMNS = { -- key in a row, title
  { "figure", "figure" }, { "lunacos", "lunacos" }, { "curl", "limit" }, { "ratio", "ratio" }, { "goal", "goal" }, { "met", "met" },
}

for _, word in ipairs(chosen) do
  if word == "grpc" or word == "grpc_restart" then
    for _, name in ipairs { "nacos-sdk-python 3.2.0", "nacos-sdk-go 2.3.2" } do
      table.insert(COLUMNS, { name, name })
    end
  end
end

local rows = {}
function run.add(cells)
  if cells.met ~= nil then
    cells.met = cells.met and "yes" or "**no**"
  end
  rows[#rows + 1] = cells
  io.stderr:write(("bench: %s: %s (limit %s)\n"):format(cells.figure, tostring(cells.lunacos), tostring(cells.curl)))
end

local function print_table()
  local function line(cell)
    local cells = {}
    for i, column in ipairs(COLUMNS) do
      cells[i] = cell(column)
    end
    print("| " .. table.concat(cells, " | ") .. " |")
  end
  line(function(column)
    return column[2]
  end)
  line(function(column)
    return column[1] == "figure" and "---" or "---:"
  end)
  for _, row in ipairs(rows) do
    line(function(column)
      return row[column[1]] or ""
    end)
  end
end

local function first_line(shell)
  local pipe = assert(io.popen(shell .. " 2>/dev/null"))
  local text = pipe:read("l")
  pipe:close()
  return text or "?"
end

local function machine()
  local cpu = process.slurp("/proc/cpuinfo"):match("model name%s*:%s*([^\n]+)") or "unknown CPU"
  local memory = tonumber(process.slurp("/proc/meminfo"):match("MemTotal:%s*(%d+)")) / 1024 / 1024
  local system = process.slurp("/etc/os-release"):match('PRETTY_NAME="([^"]*)"') or "Linux"
  return ("%s × %s, %.0f GB, %s, Linux %s, %s, libcurl %s"):format(first_line("nproc"), cpu, memory, system,
    first_line("uname -r"), first_line("lua5.4 -v"):match("^Lua %S+"), first_line("pkg-config --modversion libcurl"))
end

math.randomseed(os.time())
contest.open()
local ok, err = xpcall(function()
  if run.peers then
    run.contestants = { contest.lunacos, contest.peers() }
    for i = 2, #run.contestants do
      local name = run.contestants[i].name
      table.insert(COLUMNS, { name, name })
    end
  end
  run.server = contest.server()
  for _, name in ipairs(chosen[1] and chosen or figures.order) do
    figures[name](run)
  end
end, debug.traceback)
contest.close()
if not ok then
  io.stderr:write("bench: ", tostring(err), "\n")
  os.exit(1)
end
print_table()
print()
print("`" .. command .. "` on " .. machine() .. ".")
os.exit(true) -- without closing the state: luv does not survive handles of processes that were killed
