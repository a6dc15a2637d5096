--- figures: what is measured, and how. Each function takes the run (server, peers, how thorough) and adds rows to the table.
--
-- Who is compared runs in the same minute against the same server, turn by turn; times are medians, CPU is the least of the rounds.

local contest = require "contest"
local process = require "process"
local uv = require "luv"

local median, quantile = contest.median, contest.quantile
local lunacos, limit = contest.lunacos, contest.limit

local figures = {}

-- ---- formats -----------------------------------------------------------------------------------------------------------------

local function ns(value)
  if value < 1e3 then
    return ("%.0f ns"):format(value)
  elseif value < 1e6 then
    return ("%.0f µs"):format(value / 1e3)
  elseif value < 1e9 then
    return ("%.3g ms"):format(value / 1e6)
  end
  return ("%.3g s"):format(value / 1e9)
end

local function bytes(value)
  return value < 1e4 and ("%.0f B"):format(value) or ("%.1f kB"):format(value / 1e3)
end

local function mib(value)
  return ("%.1f MiB"):format(value / 2 ^ 20)
end

local function count(value)
  return ("%.0f"):format(value)
end

local function per_second(value)
  return ("%.0f /s"):format(value)
end

---The medians of several lists, one for each contestant, as cells of one row.
local function row(run, figure, format, values, goal, met)
  local cells = { figure = figure, goal = goal, met = met }
  for name, value in pairs(values) do
    cells[name] = format(value)
  end
  if values.lunacos and values.curl and values.curl > 0 then
    cells.ratio = ("%.2f"):format(values.lunacos / values.curl)
  end
  run.add(cells)
end

-- ---- latency, memory ---------------------------------------------------------------------------------------------------------

---Everybody who watches: the limit, lunacos and the peers with 1, 1,000 and 3,000 keys, each in a group of its own.
local function start_watchers(run)
  local all = { { who = limit, keys = 1, group = "LIMIT" } }
  for _, who in ipairs(run.contestants) do
    for _, keys in ipairs { 1, 1000, 3000 } do
      all[#all + 1] = { who = who, keys = keys, group = ("W%d-%d"):format(#all, keys) }
    end
  end
  for _, w in ipairs(all) do
    run.server:publish_all(w.group, w.keys, "init")
    if w.who == limit then
      w.process = limit.start("watch", run.server, w.group, "0")
    else
      w.process = w.who.start("watch", run.server, w.group, tostring(w.keys))
    end
    w.process:expect("^ready", 60)
    w.latencies = {}
  end
  return all
end

local function one_change(run, w, tag, seconds)
  run.server:publish(w.group, math.random(0, w.keys - 1), tag)
  local sent, seen = w.process:expect("^change " .. tag .. " (%d+) (%d+)", seconds)
  return seen - sent
end

function figures.latency(run)
  local all = start_watchers(run)
  process.sleep(3) -- until the first snapshots are written
  for _, w in ipairs(all) do -- peers see a change only when the poll that they hold is over
    one_change(run, w, "warm", 45)
    process.sleep(0.3)
  end
  for round = 1, run.rounds * 20 do
    for i = #all, 2, -1 do
      local j = math.random(i)
      all[i], all[j] = all[j], all[i]
    end
    for _, w in ipairs(all) do
      if w.who == limit or w.who == lunacos or round % 4 == 0 then
        w.latencies[#w.latencies + 1] = one_change(run, w, "c" .. round, 30)
        process.sleep(w.who.settle(w.keys))
      end
    end
  end
  local by = {}
  for _, w in ipairs(all) do
    by[w.who.name .. w.keys] = w
  end
  run.latency_limit = median(by.curl1.latencies)
  for _, keys in ipairs { 1, 1000, 3000 } do
    local values = { curl = run.latency_limit }
    for _, who in ipairs(run.contestants) do
      values[who.name] = median(by[who.name .. keys].latencies)
    end
    row(run, ("publish → callback, %d watch%s"):format(keys, keys == 1 and "" or "es"), ns, values, "≤ 1.3 × limit",
      values.lunacos <= 1.3 * values.curl)
    if keys == 3000 then
      local one = median(by.lunacos1.latencies)
      run.add { figure = "… 3,000 watches beside 1", lunacos = ("× %.2f"):format(values.lunacos / one), goal = "flat (≤ 1.15)",
        met = values.lunacos <= 1.15 * one }
    end
  end
  local p90 = { curl = quantile(by.curl1.latencies, 0.9) }
  for _, who in ipairs(run.contestants) do
    p90[who.name] = quantile(by[who.name .. 3000].latencies, 0.9)
  end
  row(run, "… 3,000 watches, 90th percentile", ns, p90)
  figures.memory(run, by)
  for _, w in ipairs(all) do
    w.process:stop()
  end
end

function figures.memory(run, by)
  local floor = by.curl1.process:usage()
  for _, keys in ipairs { 0, 1000, 3000 } do
    local cells = {
      figure = ("memory, threads, sockets, %d watches"):format(keys),
      curl = ("%s, %d, %d"):format(mib(floor.rss), floor.threads, floor.sockets),
    }
    for _, who in ipairs(run.contestants) do
      local w = by[who.name .. keys]
      local p = w and w.process or who.start("watch", run.server, "LIMIT", "0")
      if not w then
        p:expect("^ready", 30)
        process.sleep(0.5)
      end
      local u = p:usage()
      cells[who.name] = ("%s, %d, %d"):format(mib(u.rss), u.threads, u.sockets)
      if who == lunacos then
        cells.ratio = ("%.2f"):format(u.rss / floor.rss)
        if keys == 0 then
          cells.goal, cells.met = "≤ 11 MiB, 2 threads", u.rss <= 11 * 2 ^ 20 and u.threads == 2
        end
      end
      if not w then
        p:stop()
      end
    end
    run.add(cells)
  end
end

-- ---- a key more --------------------------------------------------------------------------------------------------------------

function figures.added(run)
  local values, keys = {}, run.rounds
  run.server:publish_all("ADD", keys + 1, "init")
  local others = {}
  for _, who in ipairs(run.contestants) do
    local p = who.start("add", run.server, "ADD", tostring(who == lunacos and keys or 1))
    others[#others + 1] = { who = who, process = p, list = {} }
    if who == lunacos then
      local it = others[#others]
      it.process:expect("^added 0")
      for i = 1, keys do
        it.process:expect("^added " .. i)
        process.sleep(1)
        run.server:publish("ADD", i, "a" .. i)
        local sent, seen = it.process:expect("^change a" .. i .. " (%d+) (%d+)")
        it.list[i] = seen - sent
      end
      it.process:stop()
    end
  end
  for _, it in ipairs(others) do
    if it.who ~= lunacos then
      it.process:expect("^added 1", 60)
      process.sleep(1)
      run.server:publish("ADD", 1, "late")
      local sent, seen = it.process:expect("^change late (%d+) (%d+)", 60)
      it.list[1] = seen - sent
      it.process:stop()
    end
    values[it.who.name] = median(it.list)
  end
  values.curl = run.latency_limit -- nil without the figure latency
  row(run, "a key added while a poll is held, changed 1 s later", ns, values, "≤ 5 ms", values.lunacos <= 5e6)
end

-- ---- a thousand at once ------------------------------------------------------------------------------------------------------

function figures.cold_start(run)
  local times, first = {}, {}
  run.server:publish_all("COLD", 1000, "init")
  local function note(name, list, value)
    list[name] = list[name] or {}
    list[name][#list[name] + 1] = value
  end
  for round = 1, run.rounds do
    local p = limit.start("once", run.server, "COLD", "1000", "16")
    note("curl", times, p:expect("^ready (%d+)") - p.started)
    p:stop()
    for _, who in ipairs(run.contestants) do
      if who == lunacos or round <= 2 then
        p = who.start("watch", run.server, "COLD", "1000")
        note(who.name, times, p:expect("^ready (%d+)", 60) - p.started)
        run.server:publish("COLD", math.random(0, 999), "n" .. round)
        local sent, seen = p:expect("^change n" .. round .. " (%d+) (%d+)", 60)
        note(who.name, first, seen - sent)
        p:stop()
        process.sleep(0.05)
      end
    end
  end
  local values = {}
  for name, list in pairs(times) do
    values[name] = median(list)
  end
  row(run, "start of the process → 1,000 items cached and watched", ns, values, "≤ 70 ms", values.lunacos <= 70e6)
  values = { curl = run.latency_limit }
  for name, list in pairs(first) do
    values[name] = median(list)
  end
  row(run, "… and the first change after that → callback", ns, values, "≤ 5 ms", values.lunacos <= 5e6)
end

---All change while the contestant is stopped; the time counts from the moment when it may go on.
local function all_at_once(run, p, group, keys, tag)
  p:signal("sigstop")
  run.server:publish_all(group, keys, tag)
  process.sleep(0.02)
  local began = uv.hrtime()
  p:signal("sigcont")
  return p:expect("^all " .. tag .. " (%d+)", 90) - began
end

function figures.burst(run)
  local values = {}
  local runners = {}
  for i, who in ipairs(run.contestants) do
    local group = "BURST" .. i
    run.server:publish_all(group, 1000, "init")
    local p = who.start("watch", run.server, group, "1000")
    p:expect("^ready", 60)
    runners[i] = { who = who, process = p, group = group, list = {} }
  end
  local reader = limit.start("read", run.server, "BURST1", "1000", "16")
  if run.peers then
    process.sleep(32) -- until their first poll is over
  end
  local list = {}
  for round = 1, run.rounds do
    reader:send("1000")
    list[round] = tonumber((reader:expect("^done (%d+)")))
    for _, it in ipairs(runners) do
      if it.who == lunacos or round <= 2 then
        it.list[#it.list + 1] = all_at_once(run, it.process, it.group, 1000, "all" .. round)
        process.sleep(0.6) -- until the snapshots are written
      end
    end
  end
  values.curl = median(list)
  for _, it in ipairs(runners) do
    values[it.who.name] = median(it.list)
    it.process:stop()
  end
  reader:stop()
  row(run, "1,000 items changed at once → last callback", ns, values, "≤ 60 ms", values.lunacos <= 60e6)
end

-- ---- reads -------------------------------------------------------------------------------------------------------------------

function figures.reads(run)
  run.server:publish_all("READ", 100, "init")
  for _, ways in ipairs { 1, 64 } do
    local all, values, cpu = {}, {}, {}
    for _, who in ipairs { limit, table.unpack(run.contestants) } do
      local it = { who = who, process = who.start("read", run.server, "READ", "100", tostring(ways)), walls = {}, cpus = {} }
      it.reads = (who == limit or who == lunacos) and 2000 * (ways > 1 and 2 or 1) or 300
      it.process:send("200") -- warm: connections, snapshots
      it.process:expect("^done", 30)
      all[#all + 1] = it
    end
    process.sleep(0.3) -- snapshots are written after a moment
    for _ = 1, run.rounds do
      for _, it in ipairs(all) do
        it.process:send(tostring(it.reads))
        local wall, used = it.process:expect("^done (%d+) (%d+)", 60)
        it.walls[#it.walls + 1] = it.reads / wall * 1e9
        it.cpus[#it.cpus + 1] = used / it.reads
      end
    end
    for _, it in ipairs(all) do
      values[it.who.name] = median(it.walls)
      cpu[it.who.name] = quantile(it.cpus, 0)
      it.process:stop()
    end
    local how = ways == 1 and "one after the other" or ways .. " at a time"
    row(run, ("get_config, %s, snapshots on"):format(how), per_second, values, "≥ 0.9 × limit", values.lunacos >= 0.9 * values.curl)
    row(run, "… CPU for each", ns, cpu)
  end
end

-- ---- bytes -------------------------------------------------------------------------------------------------------------------

function figures.bytes(run)
  local values, changes = {}, run.rounds * 6
  local function measure(who, keys)
    local s = contest.server(true)
    s:publish_all("BYTES", keys, "init")
    local p = who == limit and who.start("watch", s, "BYTES", "0") or who.start("watch", s, "BYTES", tostring(keys))
    p:expect("^ready", 60)
    local place = { server = s }
    local w = { who = who, keys = keys, group = "BYTES", process = p }
    for i = 1, 2 do
      one_change(place, w, "w" .. i, 60)
      process.sleep(0.3)
    end
    local function publish_only()
      s:count()
      s:publish("OTHER", 0, "x")
      s:published()
      return (s:counted())
    end
    publish_only()
    local own = publish_only() -- the publish; the questions are few
    s:published()
    s:count()
    local n = who == lunacos and changes or 10
    for i = 1, n do
      one_change(place, w, "c" .. i, 30)
      process.sleep(who.settle(keys) + 0.02)
    end
    s:published()
    local sum = s:counted()
    p:stop()
    s:stop()
    return sum / n - own
  end
  values.curl = measure(limit, 1)
  for _, who in ipairs(run.contestants) do
    values[who.name] = measure(who, 3000)
  end
  row(run, "bytes sent for a change, 3,000 watches", bytes, values, "≤ 6.2 kB", values.lunacos <= 6200)
end

-- ---- idle --------------------------------------------------------------------------------------------------------------------

function figures.step(run)
  run.server:publish_all("READ", 100, "init")
  local p = lunacos.start("step", run.server, "READ", "100")
  local empty, step = p:expect("^done ([%d.]+) ([%d.]+)", 30)
  p:stop()
  local values = { lunacos = tonumber(step), curl = tonumber(empty) }
  row(run, "idle step(0); the limit is a call of an empty Lua function", ns, values)
end

---Idle with a server and without one, at the same time: a watcher for each, and its own server that counts.
function figures.idle(run)
  local window, minute = run.window, 60 / run.window
  local all = {}
  for _, who in ipairs { limit, table.unpack(run.contestants) } do
    local it = { who = who, server = contest.server(true) }
    it.server:publish_all("IDLE", 1000, "init")
    local keys = who == limit and { "0" } or { "1000", run.pulling_timeout }
    it.process = who.start("watch", it.server, "IDLE", table.unpack(keys))
    it.process:expect("^ready", 60)
    all[#all + 1] = it
  end
  process.sleep(run.peers and 32 or 1)
  for _, it in ipairs(all) do
    it.server:count()
    it.before = it.process:usage()
  end
  process.sleep(window)
  local wakeups, requests, cpu = {}, {}, {}
  for _, it in ipairs(all) do
    local after = it.process:usage()
    local _, n = it.server:counted()
    wakeups[it.who.name] = (after.wakeups - it.before.wakeups) * minute
    cpu[it.who.name] = (after.cpu - it.before.cpu) * minute
    requests[it.who.name] = n * minute
  end
  row(run, "idle, 1,000 watches (limit: 1), a minute: wake-ups", count, wakeups)
  row(run, "… requests", count, requests)
  row(run, "… CPU", ns, cpu, "≤ 7 ms", cpu.lunacos <= 7e6)

  wakeups, requests, cpu = {}, {}, {}
  for _, it in ipairs(all) do
    it.server:stop()
    if it.who ~= limit then
      process.sleep(2)
      local refused = process.refused()
      local before = it.process:usage()
      process.sleep(run.down_window)
      local after = it.process:usage()
      local scale = 60 / run.down_window
      wakeups[it.who.name] = (after.wakeups - before.wakeups) * scale
      cpu[it.who.name] = (after.cpu - before.cpu) * scale
      requests[it.who.name] = (process.refused() - refused) * scale
    end
    it.process:stop()
  end
  row(run, "server down, 1,000 watches, a minute: wake-ups", count, wakeups)
  row(run, "… attempts to connect", count, requests)
  row(run, "… CPU", ns, cpu, "≤ 300 ms", cpu.lunacos <= 300e6)
end

-- ---- services -----------------------------------------------------------------------------------------------------------

function figures.beats(run)
  local plain = limit.start("beat", run.server, "LIMIT-BEAT")
  local costs = {}
  for i = 1, run.rounds do
    plain:send("2000")
    local _, cpu = plain:expect("^done (%d+) (%d+)", 60)
    costs[i] = cpu / 2000 * 1000
  end
  plain:stop()
  for _, instances in ipairs { 1000, 10000 } do
    local s = contest.server(true)
    local p = lunacos.start("beats", s, "BEATS", tostring(instances))
    local registered = p:expect("^ready (%d+)", 90) - p.started
    process.sleep(6) -- the first beat of each is a whole one
    local before, beats = p:usage(), s:stat("beats")
    process.sleep(run.window / 2)
    local after, done = p:usage(), s:stat("beats") - beats
    local goal = instances == 1000 and 20e6 or 5e6
    local values = { lunacos = (after.cpu - before.cpu) / done * 1000, curl = quantile(costs, 0) }
    row(run, ("CPU for 1,000 beats, %d instances"):format(instances), ns, values, "≤ " .. ns(goal), values.lunacos <= goal)
    run.add { figure = "… share of one core", lunacos = ("%.1f %%"):format((after.cpu - before.cpu) / (run.window / 2 * 1e9) * 100) }
    run.add { figure = "… memory, threads, sockets", lunacos = ("%s, %d, %d"):format(mib(after.rss), after.threads, after.sockets),
      goal = "2 threads, ≤ 4 sockets", met = after.threads == 2 and after.sockets <= 4 }
    run.add { figure = "… start of the process → all registered", lunacos = ns(registered) }
    p:stop()
    s:stop()
  end
end

function figures.services(run)
  for _, how in ipairs { "push", "poll" } do
    local service, list = "FOLLOW-" .. how, {}
    local p = lunacos.start("follow", run.server, service, how == "push" and "7" or "1", how)
    p:expect("^ready", 30)
    for i = 1, how == "push" and run.rounds * 20 or run.rounds do
      run.server:instance(service, "t" .. i)
      local sent, seen = p:expect("^change t" .. i .. " (%d+) (%d+)", 30)
      list[i] = seen - sent
      process.sleep(0.02)
    end
    p:stop()
    if how == "push" then
      row(run, "change of an instance → callback, by push", ns, { lunacos = median(list) }, "≤ 600 µs", median(list) <= 600e3)
    else
      row(run, "… by asking every second", ns, { lunacos = median(list) })
    end
  end
end

---Lists without a network: the limit is jansson's bare parsing of the same text.
function figures.lists(run)
  local p = process.start({ contest.build .. "/bench_lists" })
  local times = {}
  process.wait(function()
    return p.ended
  end, 60)
  for i = 1, p.last do
    local name, seconds = (p.lines[i] or ""):match("^(%S+) (%S+)")
    if name then
      times[name] = tonumber(seconds) * 1e9
    end
  end
  for _, n in ipairs { "1000", "10000" } do
    row(run, ("a list of %s instances: parse"):format(n), ns, { lunacos = times["parse_" .. n], curl = times["jansson_" .. n] })
    row(run, "… what changed, against the list before", ns, { lunacos = times["diff_" .. n] })
    row(run, "… that nothing changed", ns, { lunacos = times["equal_" .. n] })
  end
end

-- ---- templates ---------------------------------------------------------------------------------------------------------------

function figures.templates(run)
  run.server:publish_all("FILE", 1, "init")
  local plain = { who = limit, keys = 1, group = "FILE", list = {} }
  plain.process = limit.start("watch", run.server, "FILE", "0", contest.folder() .. "/file")
  local all = { plain }
  for _, keys in ipairs { 1, 100, 1000 } do
    local group = "T" .. keys
    run.server:publish_all(group, keys, "init")
    all[#all + 1] = { who = lunacos, keys = keys, group = group, list = {},
      process = lunacos.start("render", run.server, group, tostring(keys), contest.folder()) }
  end
  for _, w in ipairs(all) do
    w.process:expect("^ready", 60)
  end
  process.sleep(0.5)
  for i = 1, run.rounds * 6 do
    for _, w in ipairs(all) do
      w.list[i] = one_change(run, w, "r" .. i, 30)
      process.sleep(0.02)
    end
  end
  local floor = median(plain.list)
  for _, w in ipairs(all) do
    if w ~= plain then
      row(run, ("publish → file rendered, %d template%s"):format(w.keys, w.keys == 1 and "" or "s"), ns,
        { lunacos = median(w.list), curl = floor }, "≤ 1.3 × limit", median(w.list) <= 1.3 * floor)
    end
  end
  run.server:publish_all("HASTY", 1000, "init")
  local hasty = lunacos.start("render", run.server, "HASTY", "1000", contest.folder(), "nosync")
  hasty:expect("^ready", 60)
  local synced, unsynced = {}, {}
  for i = 1, math.min(5, run.rounds) do
    process.sleep(1) -- until the snapshots are written
    unsynced[i] = all_at_once(run, hasty, "HASTY", 1000, "all" .. i)
    process.sleep(1)
    synced[i] = all_at_once(run, all[4].process, "T1000", 1000, "all" .. i)
  end
  row(run, "1,000 items changed at once → 1,000 files rendered", ns, { lunacos = median(synced) })
  row(run, "… without fsync", ns, { lunacos = median(unsynced) }, "≤ 120 ms", median(unsynced) <= 120e6)
  hasty:stop()
  for _, w in ipairs(all) do
    w.process:stop()
  end
end

-- ---- agents ------------------------------------------------------------------------------------------------------------------

---Note when files appear in a folder under their names.
local function follow_files(folder)
  local seen, handle = {}, uv.new_fs_event()
  function seen.again()
    seen.names, seen.n = {}, 0
  end
  seen.again()
  handle:start(folder, {}, function(_, name)
    if name and name:find("^file%-") and not seen.names[name] then
      seen.names[name], seen.n, seen.last = true, seen.n + 1, uv.hrtime()
    end
  end)
  return seen
end

local function until_renamed(it)
  assert(process.wait(function()
    return it.seen.n == it.files
  end, 60), "an agent has not written its files")
end

function figures.agent(run)
  run.server:publish_all("FILE", 1, "init")
  local plain = { keys = 1, group = "FILE", process = limit.start("watch", run.server, "FILE", "0", contest.folder() .. "/file") }
  plain.process:expect("^ready", 30)
  local floor, all = {}, {}
  for i, files in ipairs { 1, 100, 1000 } do
    local it = { files = files, folder = contest.folder(), server = contest.server(true), list = {} }
    it.server:publish_all("AGENT", files + 1, "init")
    it.seen = follow_files(it.folder)
    it.process = contest.agent(it.server, "AGENT", it.folder, files, run.pulling_timeout)
    until_renamed(it)
    it.started = it.seen.last - it.process.started
    all[i] = it
  end
  process.sleep(1) -- until the snapshots are written
  for round = 1, run.rounds do
    floor[round] = one_change(run, plain, "f" .. round, 30)
    for _, it in ipairs(all) do
      it.seen.again()
      it.server:publish("AGENT", 0, "a" .. round)
      until_renamed(it)
      local file = process.slurp(it.folder .. "/file-1")
      local sent, tag = file:match("\n(%d+)%.([^.]*)")
      assert(tag == "a" .. round, "a file is not of the last change")
      it.list[round] = it.seen.last - sent
      it.server:published()
      process.sleep(0.3)
    end
  end
  for _, it in ipairs(all) do
    row(run, ("agent: 1 change → %d file%s recorded and renamed"):format(it.files, it.files == 1 and "" or "s"), ns,
      { lunacos = median(it.list), curl = it.files == 1 and median(floor) or nil })
  end
  process.sleep(2)
  for _, it in ipairs(all) do
    it.server:count()
  end
  process.sleep(run.window)
  for _, it in ipairs(all) do
    if it.files > 1 then
      local _, requests = it.server:counted()
      local u = it.process:usage()
      run.add { figure = ("agent, %d templates: memory, threads, sockets"):format(it.files),
        lunacos = ("%s, %d, %d"):format(mib(u.rss), u.threads, u.sockets) }
      run.add { figure = "… requests in an idle minute", lunacos = count(requests * 60 / run.window) }
      run.add { figure = "… start of the process → all files on disk", lunacos = ns(it.started) }
    end
    it.process:stop()
    it.server:stop()
  end
  plain.process:stop()
end

-- ---- gRPC, with a real server ------------------------------------------------------------------------------------------------

---One change, and everybody hears of it in the same second from the same server: a bare listener, lunacos, the SDKs. A watcher is ready
---when every key's value is there; the listener, which reads none, when the server has answered.
function figures.grpc(run)
  local server = contest.real_server()
  local grpc, go = contest.with_grpc(lunacos), contest.go_peer()
  local everybody = { contest.listener, grpc, contest.grpc_peer(), go }
  local group, most, patience = "GRPC", 10000, 180
  server:publish_all(group, most, "init")
  for _, keys in ipairs { 1, 1000, most } do
    local title = ("gRPC, Nacos 3.1.0, %d watches: "):format(keys)
    local ready, all = {}, {}
    for _, who in ipairs(everybody) do
      local w = { who = who, process = who.start("watch", server, group, tostring(keys)), latencies = {} }
      local at = w.process:try("^ready (%d+)", patience)
      ready[who.name] = at and at - w.process.started or math.huge
      if at then
        all[#all + 1] = w
      else -- it takes no part in the rest
        w.process:stop()
      end
    end
    process.sleep(5) -- the SDKs look once more
    local cpu = {}
    for _, w in ipairs(all) do
      cpu[w.who.name] = w.process:usage().cpu
    end
    process.sleep(run.window)
    for _, w in ipairs(all) do
      cpu[w.who.name] = (w.process:usage().cpu - cpu[w.who.name]) * 60 / run.window
    end
    for round = 1, run.rounds * 6 do
      local tag = ("c%dx%d"):format(keys, round)
      server:publish(group, 0, tag)
      for _, w in ipairs(all) do
        local sent, seen = w.process:expect("^change " .. tag .. " (%d+) (%d+)", 40)
        w.latencies[#w.latencies + 1] = seen - sent
      end
      server:published()
      process.sleep(0.2 + math.random() * 0.1) -- a server looks for changes every 100 ms
    end
    local middle, slow, memory, threads, sockets = {}, {}, {}, {}, {}
    for _, w in ipairs(all) do
      local usage, name = w.process:usage(), w.who.name
      middle[name], slow[name] = median(w.latencies), quantile(w.latencies, 0.9)
      memory[name], threads[name], sockets[name] = usage.rss, usage.threads, usage.sockets
      w.process:stop()
    end
    row(run, title .. "publish → callback, median", ns, middle)
    row(run, "… 90 % are faster than", ns, slow)
    row(run, "… from the program's start to all values", function(value)
      return value == math.huge and "never" or ns(value)
    end, ready)
    row(run, "… memory", mib, memory)
    row(run, "… threads", count, threads)
    row(run, "… sockets", count, sockets)
    row(run, "… idle, CPU a minute", ns, cpu)
  end
  server:stop()
end

---The server dies and comes back under 1,000 watches of each: how long after it can be used does everybody hear of a change again?
function figures.grpc_restart(run)
  local server = contest.real_server()
  local group, all = "RESTART", {}
  server:publish_all(group, 1000, "init")
  for i, who in ipairs { contest.with_grpc(lunacos), contest.grpc_peer(), contest.go_peer() } do
    all[i] = { who = who, process = who.start("watch", server, group, "1000") }
    all[i].process:expect("^ready", 180)
  end
  process.sleep(5)
  server:restart()
  local back, heard, left = uv.hrtime(), {}, #all
  for round = 1, 240 do
    server:publish(group, 0, "r" .. round)
    server:published()
    process.sleep(0.25)
    for _, w in ipairs(all) do
      local seen = not heard[w.who.name] and w.process:heard("^change r%d+ %d+ (%d+)")
      if seen then
        heard[w.who.name], left = seen - back, left - 1
      end
    end
    if left == 0 then
      break
    end
  end
  row(run, "gRPC, Nacos 3.1.0 killed and started again, 1,000 watches: first change told after", ns, heard)
  for _, w in ipairs(all) do
    w.process:stop()
  end
  server:stop()
end

---Half an hour with nothing to do. The stream must hold, and still tell of a change after it.
function figures.grpc_idle(run)
  local server = contest.real_server()
  server:publish_all("STAY", 1000, "init")
  local w = contest.with_grpc(lunacos).start("stay", server, "STAY", "1000", tostring(run.stay))
  w:expect("^ready", 60)
  process.sleep(2)
  local before = w:usage()
  local reconnects, protocol = w:expect("^stayed (%d+) (%S+)", run.stay + 30)
  local after = w:usage()
  server:publish("STAY", 0, "end")
  local sent, seen = w:expect("^change end (%d+) (%d+)", 10)
  local minute = 60 / run.stay
  row(run, ("%s, Nacos 3.1.0, 1,000 watches, %d s idle: reconnects"):format(protocol, run.stay), count,
    { lunacos = tonumber(reconnects) }, "0", reconnects == "0")
  row(run, "… CPU a minute", ns, { lunacos = (after.cpu - before.cpu) * minute })
  row(run, "… wake-ups a minute", count, { lunacos = (after.wakeups - before.wakeups) * minute })
  row(run, "… publish → callback of the change after it", ns, { lunacos = seen - sent })
  row(run, "… memory", mib, { lunacos = after.rss })
  w:stop()
  server:stop()
end

figures.order = { "latency", "added", "cold_start", "burst", "reads", "bytes", "step", "templates", "agent", "idle", "services", "beats", "lists" }

return figures
