--- Everything at once, by a seeded dice: changes, removals, watches that come and go, broken answers, a server that dies and comes
--- back empty. In the end every watch must hold what the server holds.

local nacos = require "nacos"
local support = require "support"

local KEYS, ROUNDS = 60, 120

local function seed()
  return tonumber(os.getenv("LUNACOS_SEED")) or os.time()
end

describe("chaos", function()
  it("ends in agreement with the server", function()
    local number = seed()
    math.randomseed(number)
    local dice = math.random
    local server = support.start_server {}
    local client = nacos.client {
      server_addresses = server.address, log_level = "OFF", pulling_config_size = 20, default_timeout = 1,
      snapshot_base = support.tmpdir() .. "/snapshot", failover_base = "/dev/null",
    }
    local watched, seen, running = {}, {}, {}

    local function id(i)
      return "key-" .. i
    end
    local function add(i)
      watched[i] = function(change)
        assert.is_nil(running[i])
        running[i] = true
        if dice(4) == 1 then
          nacos.sleep(dice() * 0.02)
        end
        running[i] = nil
        seen[i] = change.content or "deleted"
      end
      assert(client:add_config_watcher(id(i), nil, watched[i]))
    end
    local function remove(i)
      client:remove_config_watcher(id(i), nil, watched[i])
      watched[i], seen[i], running[i] = nil, nil, nil
    end
    local faults = {
      function() return { status = 500, body = "caused: x;" } end,
      function() return { status = 503 } end,
      function() return { garbage = true } end,
      function() return { drop_at = dice(0, 300) } end,
      function() return { status = 200, body = "<html>hello</html>" } end,
      function() return { delay = dice() * 0.2 } end,
      function() return { status = 403, body = '{"message":"token expired!"}' } end,
      function() return { status = 404, body = "nothing here" } end,
    }
    local acts = {
      function(i) client:publish_config { data_id = id(i), content = "v" .. dice(1000000), type = "text", timeout = 0.3 } end,
      function(i) client:remove_config { data_id = id(i), timeout = 0.3 } end,
      function(i) if not watched[i] then add(i) end end,
      function(i) if watched[i] then remove(i) end end,
      function()
        local fault = faults[dice(#faults)]()
        fault.path = dice(2) == 1 and "/nacos/v1/cs/configs" or "/nacos/v1/cs/configs/listener"
        fault.times = dice(6)
        server:faults(fault)
      end,
      function() client:get_config { data_id = id(dice(KEYS)), timeout = 0.3 } end,
      function() nacos.sleep(dice() * 0.05) end,
    }

    nacos.run(function()
      for i = 1, KEYS, 2 do
        add(i)
      end
      for round = 1, ROUNDS do
        if round % 40 == 0 then
          server:kill9()
          nacos.sleep(0.3)
          server = support.start_server { "--port", server.port }
        end
        for _ = 1, dice(4) do
          nacos.spawn(acts[dice(#acts)], dice(KEYS))
        end
        nacos.sleep(dice() * 0.04)
      end
      server:clear_faults()
      for i = 1, KEYS do
        local content = i % 3 > 0 and "final " .. i or nil
        if content then
          assert(client:publish_config { data_id = id(i), content = content, type = "text", timeout = 3 })
        else
          assert(client:remove_config(id(i)))
        end
        if not watched[i] then
          add(i)
        end
      end
      for i = 1, KEYS do
        support.eventually(function()
          local value = client:peek(id(i))
          local final = i % 3 > 0 and "final " .. i or nil
          return value and value.content == final and (seen[i] or "deleted") == (final or "deleted"),
            ("seed %d: %s is %s, seen %s"):format(number, id(i), value and value.content or "unknown", tostring(seen[i]))
        end, 40)
      end
      client:close()
      nacos.stop()
    end)
    server:stop()
  end)
end)
