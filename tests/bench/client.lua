-- client: lunacos at work, as scripts/bench wants to see it, under plain lua5.4. See limit.c for keys, contents and lines.
--
--   client.lua watch ADDRESS GROUP KEYS [PULLING_TIMEOUT]   prints also "all TAG NS" when every key has arrived with that tag
--   client.lua add ADDRESS GROUP KEYS        watches cfg-0, then one more a second after the last one arrived: "added INDEX"
--   client.lua read ADDRESS GROUP KEYS WAYS                 reads lines "COUNT"; answers "done WALL_NS CPU_NS"
--   client.lua render ADDRESS GROUP KEYS FOLDER [nosync]    file i is rendered from a template that shows cfg-i
--   client.lua step ADDRESS GROUP KEYS                      "done EMPTY_NS STEP_NS": an empty function, an idle nacos.step(0)
--   client.lua beats ADDRESS SERVICE COUNT   registers so many instances: "ready NS"
--   client.lua stay ADDRESS GROUP KEYS SECONDS              as watch; that long after "ready": "stayed RECONNECTS PROTOCOL"
--   client.lua follow ADDRESS SERVICE INTERVAL push|poll    "ready NS", then "change TAG NS_SENT NS_SEEN"
--
-- The current folder gets the snapshots.

local core = require "nacos.core"
local nacos = require "nacos"

io.stdout:setvbuf("line")
local mode, address, group, keys, extra = arg[1], arg[2], arg[3], tonumber(arg[4]), arg[5]
local protocol = os.getenv("PROTOCOL") or "v1" -- what the bare contestants speak, too
local client = nacos.client {
  server_addresses = address, protocol = protocol, pulling_timeout = mode == "watch" and tonumber(extra) or nil,
}

local function now()
  return math.floor(core.monotonic() * 1e9)
end

---Watch every key: `on_change(i, content)`, and what limit.c says is printed.
local function watch_all(on_change)
  local present, counts = 0, {}
  for i = 0, keys - 1 do
    local before
    client:add_config_watcher("cfg-" .. i, group, function(change)
      if on_change then
        on_change(i, change)
      end
      local seen = now()
      local sent, tag = change.content:match("^(%d+)%.([^.]*)")
      if not before then
        present = present + 1
        if present == keys then
          print("ready " .. seen)
        end
      elseif tag:sub(1, 3) ~= "all" then
        print(("change %s %s %d"):format(tag, sent, seen))
      elseif before ~= tag then
        counts[tag] = (counts[tag] or 0) + 1
        if counts[tag] == keys then
          print(("all %s %d"):format(tag, seen))
        end
      end
      before = tag
    end)
  end
  if keys == 0 then
    assert(client:get_config("cfg-0", group))
    print("ready " .. now())
    nacos.spawn(function()
      nacos.sleep(3600)
    end)
  end
  nacos.run()
end

local function add()
  nacos.run(function()
    for i = 0, keys do
      local arrived = 0
      client:add_config_watcher("cfg-" .. i, group, function(change)
        local sent, tag = change.content:match("^(%d+)%.([^.]*)")
        arrived = arrived + 1
        if arrived > 1 then
          print(("change %s %s %d"):format(tag, sent, now()))
        end
      end)
      print("added " .. i)
      while i > 0 and arrived < 2 do
        nacos.sleep(0.01)
      end
      nacos.sleep(1)
    end
  end)
end

local function read(ways)
  local count, next_key
  local function reader()
    while next_key < count do
      local i = next_key % keys
      next_key = next_key + 1
      assert(client:get_config("cfg-" .. i, group))
    end
  end
  for line in io.lines() do
    count, next_key = tonumber(line), 0
    local wall, cpu = core.monotonic(), os.clock()
    if ways == 1 then
      reader()
    else
      nacos.run(function()
        for _ = 1, ways do
          nacos.spawn(reader)
        end
      end)
    end
    print(("done %.0f %.0f"):format((core.monotonic() - wall) * 1e9, (os.clock() - cpu) * 1e9))
  end
end

local function render(folder)
  local template = require "nacos.template"
  local body = ("line of the file that is not a variable\n"):rep(20)
  local compiled = assert(template.compile(body .. "{{ text(data_id, group) }}\n" .. body, "bench"))
  local old = {}
  watch_all(function(i)
    local text = assert(compiled:render({ data_id = "cfg-" .. i, group = group }, { client = client }))
    if text ~= old[i] then
      old[i] = text
      assert(nacos.write_file(folder .. "/file-" .. i, text, { sync = arg[6] ~= "nosync" }))
    end
  end)
end

local function step()
  local function nothing() end
  local function cost(fn)
    local n, best = 1e6, math.huge
    for _ = 1, 7 do
      local began = os.clock()
      for _ = 1, n do
        fn(0)
      end
      best = math.min(best, (os.clock() - began) / n * 1e9)
    end
    return best
  end
  for i = 0, keys - 1 do
    client:add_config_watcher("cfg-" .. i, group, nothing)
  end
  nacos.sleep(1)
  nacos.step(0)
  print(("done %.1f %.1f"):format(cost(nothing), cost(nacos.step)))
end

local function beats()
  local batch = { service_name = group, timeout = 60 }
  for i = 0, keys - 1 do
    batch[i + 1] = { ip = ("10.%d.%d.%d"):format(i // 62500, i // 250 % 250, i % 250 + 1), port = 80 }
  end
  assert(client:add_naming_instances(batch))
  print("ready " .. now())
  nacos.run()
end

local function follow(how)
  local follower = nacos.client { server_addresses = address, protocol = protocol, push = how == "push" }
  follower:watch_service(group, { interval = keys }, function(change)
    local seen = now()
    if change.first then
      nacos.sleep(0.5) -- until pushes are asked for
      print("ready " .. seen)
    else
      for _, instance in ipairs(change.added[1] and change.added or change.modified) do
        if instance.metadata.sent then
          print(("change %s %s %d"):format(instance.metadata.tag, instance.metadata.sent, seen))
        end
      end
    end
  end)
  nacos.run()
end

local function stay(seconds)
  nacos.spawn(function()
    nacos.sleep(tonumber(seconds))
    local status = client:status()
    print(("stayed %d %s"):format(status.reconnects, status.protocol))
  end)
  watch_all()
end

local modes = {
  beats = beats, follow = follow, watch = watch_all, add = add, read = read, render = render, stay = stay, step = step,
}
if mode == "watch" then
  modes.watch()
elseif mode == "read" then
  read(tonumber(extra))
else
  modes[mode](extra)
end
