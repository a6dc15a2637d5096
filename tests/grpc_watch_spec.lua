--- Watches over gRPC: which keys are named to a server, how, when and how often.

local json = require "cjson.safe"
local lab = require "lab"
local nacos = require "nacos"
local grpc_lab = require "grpc_lab"
local support = require "support"

local client_of, hurt, listened, messages = grpc_lab.client, grpc_lab.hurt, grpc_lab.listened, grpc_lab.messages
local watched, until_last, eventually = grpc_lab.watched, grpc_lab.until_last, support.eventually

local LISTEN = "ConfigBatchListenRequest"

describe("a watch over gRPC", function()
  local server, client, other

  setup(function()
    server = support.start_server { "--claim", "3.1.0" }
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    client, other = client_of(server), lab.client(server)
    server:clear_requests()
  end)
  after_each(function()
    lab.close_all()
    server:clear_faults()
    eventually(function()
      return listened(server) == 0
    end)
  end)

  ---What a server was told of a key, in order: true to listen, false to forget.
  local function told(data_id)
    local orders = {}
    for _, message in ipairs(messages(server, LISTEN)) do
      for _, key in ipairs(message.configListenContexts) do
        if key.dataId == data_id then
          orders[#orders + 1] = message.listen
        end
      end
    end
    return orders
  end

  local function unwatch(data_id, note)
    client:remove_config_watcher { data_id = data_id, group = "G", cb = note, remove_all = true }
    client:get_config("any", "G") -- the engine has heard of it by now
  end

  it("learns of changes by pushes alone, and unlearns what is watched no more", function()
    local seen, note = watched(client, server, "a")
    server:clear_requests()
    for i = 1, 5 do
      assert(other:publish_config("a", "G", "v" .. i))
      until_last(seen, "v" .. i)
    end
    assert(other:remove_config("a", "G"))
    until_last(seen, false)
    assert.equal(6, seen.n)
    assert.equal(0, #lab.requests(server, lab.LISTENER))
    client:remove_config_watcher { data_id = "a", group = "G", cb = note, remove_all = true }
    eventually(function()
      return listened(server) == 0
    end)
  end)

  it("names many keys in requests of bounded size", function()
    local changed = {}
    for i = 1, 1200 do
      assert(client:add_config_watcher("k" .. i, "G", function(change)
        changed[#changed + 1] = change.data_id
      end))
    end
    eventually(function()
      return listened(server) == 1200
    end, 15)
    for _, message in ipairs(messages(server, "ConfigBatchListenRequest")) do
      assert.is_true(#message.configListenContexts <= 1000)
    end
    assert(other:publish_config("k777", "G", "x"))
    eventually(function()
      return #changed > 0
    end)
    assert.same({ "k777" }, changed)
  end)

  it("may come back at once: what the server was to forget is not forgotten", function()
    local _, note = watched(client, server, "back")
    unwatch("back", note)
    local seen
    seen, note = lab.recorder()
    assert(client:add_config_watcher("back", "G", note))
    eventually(function()
      return #told("back") >= 2
    end)
    assert(other:publish_config("back", "G", "x"))
    until_last(seen, "x")
  end)

  it("may come back while the server is being told to forget it", function()
    local _, note = watched(client, server, "late")
    server:faults { method = "GRPC", path = LISTEN, data_id = "late", delay = 0.5, times = 1 }
    unwatch("late", note)
    eventually(function()
      return #told("late") == 2
    end)
    local seen
    seen, note = lab.recorder()
    assert(client:add_config_watcher("late", "G", note))
    eventually(function()
      return #told("late") == 4
    end)
    assert.same({ true, false, true, true }, told("late"))
    assert(other:publish_config("late", "G", "x"))
    until_last(seen, "x")
  end)

  it("is named at once, also when another was just forgotten", function()
    local _, note = watched(client, server, "second0")
    local begin = lab.now()
    for i = 1, 6 do
      unwatch("second" .. i - 1, note)
      assert(client:add_config_watcher("second" .. i, "G", note))
      eventually(function()
        return #told("second" .. i) == 1
      end)
    end
    assert.is_true(lab.now() - begin < 4, "it waits for the forgetting")
  end)

  it("tells how it learned of a change: by a push, or by comparing on a new connection", function()
    local seen = watched(client, server, "how")
    assert(other:publish_config("how", "G", "1"))
    until_last(seen, "1")
    assert.equal("push", seen.last.via)
    hurt(server, { port = false })
    hurt(server, { close = true })
    assert(other:publish_config("how", "G", "2"))
    hurt(server, { port = true })
    until_last(seen, "2")
    assert.equal("compare", seen.last.via)
  end)

  it("that a server refuses does not keep others from being named", function()
    local seen, note = lab.recorder()
    server:faults { method = "GRPC", path = LISTEN, data_id = "forbidden", code = 403 }
    for _, data_id in ipairs { "good1", "forbidden", "good2" } do
      assert(client:add_config_watcher(data_id, "G", note))
    end
    eventually(function()
      return listened(server) == 2
    end, 15)
    assert(other:publish_config("good2", "G", "x"))
    until_last(seen, "x")
    server:clear_faults()
    eventually(function()
      return listened(server) == 3
    end, 15)
  end)

  it("is not deaf for long after pushes that mean nothing", function()
    local seen = watched(client, server, "twice")
    assert(other:publish_config("twice", "G", "0"))
    until_last(seen, "0")
    local function asked()
      return #messages(server, "ConfigQueryRequest")
    end
    for i = 1, 5 do
      eventually(function()
        return #told("twice") == 1 + i
      end, 10)
      local before = asked()
      hurt(server, { push = { type = "ConfigChangeNotifyRequest", json = '{"requestId":"x1","dataId":"twice","group":"G"}' } })
      eventually(function()
        return asked() > before
      end)
    end
    assert(other:publish_config("twice", "G", "1"))
    local begin = lab.now()
    until_last(seen, "1")
    assert.is_true(lab.now() - begin < 3)
  end)

  it("is read less and less often when a server always says that it has changed, and not with all others at once", function()
    local KEYS, all, n = 300, {}, 0
    for i = 1, KEYS do
      all[i] = { dataId = "same" .. i, group = "G", tenant = "" }
    end
    for i = 1, KEYS do
      assert(client:add_config_watcher("same" .. i, "G", function()
        n = n + 1
      end))
    end
    eventually(function()
      return listened(server) == KEYS
    end, 10)
    server:faults { method = "GRPC", path = LISTEN, body = json.encode { resultCode = 200, changedConfigs = all } }
    server:clear_requests()
    hurt(server, { close = true })
    eventually(function()
      return #messages(server, "ConfigQueryRequest") > KEYS -- each was read, and the first of them again
    end, 10)
    server:clear_requests()
    local begin = lab.now()
    repeat
      nacos.step(0.1)
    until lab.now() - begin > 2
    local took = lab.now() - begin
    local reads, listens = #messages(server, "ConfigQueryRequest"), #messages(server, LISTEN)
    assert.is_true(reads < 150 * (took + 1), reads .. " reads")
    assert.is_true(listens < 40 * (took + 1), listens .. " requests to listen")
    assert.equal(0, n)
    server:clear_faults()
    assert(other:publish_config("same7", "G", "x"))
    eventually(function()
      return n == 1
    end, 15)
  end)

  it("that cannot be read although the server tells of it fills no log", function()
    local log = support.tmpdir()
    local noisy = client_of(server, { log_dir = log, log_level = "INFO" })
    local body = json.encode { resultCode = 200, content = "x", md5 = ("0"):rep(32), contentType = "text" }
    assert(other:publish_config("wrong", "G", "x"))
    server:faults { method = "GRPC", path = "ConfigQueryRequest", body = body }
    for i = 1, 20 do
      assert(noisy:add_config_watcher(i == 1 and "wrong" or "wrong" .. i, "G", function() end))
    end
    eventually(function()
      return #messages(server, LISTEN) >= 5
    end, 10)
    local _, lines = support.read(log .. "/lunacos.log"):gsub("\n", "")
    assert.is_true(lines > 1 and lines <= 12, lines .. " lines")
  end)

  it("takes no answer to something else for its value", function()
    local seen = watched(client, server, "typed")
    assert(other:publish_config("typed", "G", "1"))
    until_last(seen, "1")
    local md5 = nacos.md5("zzz")
    local body = json.encode { resultCode = 200, content = "zzz", md5 = md5, contentType = "text" }
    server:faults { method = "GRPC", path = "ConfigQueryRequest", body = body, headers = { type = "FooResponse" } }
    local value, err = client:get_config("typed", "G", 1, true)
    assert.is_nil(value)
    assert.equal("protocol", err.code)
    assert.matches("typed", err.message, 1, true)
    server:clear_faults()
    assert(other:publish_config("typed", "G", "2"))
    until_last(seen, "2")
    assert.equal(2, seen.n)
  end)
end)
