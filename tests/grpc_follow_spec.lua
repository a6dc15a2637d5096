--- Followed services over gRPC: pushed, on one connection and on the next.

local json = require "cjson.safe"
local grpc_lab = require "grpc_lab"
local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

local eventually = support.eventually

describe("a service followed over grpc", function()
  local server, client, other, unique

  setup(function()
    server = support.start_server { "--push-delay", "0", "--claim", "3.1.0" }
    unique = 0
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    client = lab.client(server, { protocol = "grpc" })
    other = lab.client(server) -- over HTTP
    server:clear_requests()
  end)
  after_each(function()
    server:clear_faults()
    server:call("POST", "grpc", '{"port":true}')
    lab.close_all()
  end)

  local function service()
    unique = unique + 1
    return "followed" .. unique
  end

  local function messages()
    return grpc_lab.messages(server, "SubscribeServiceRequest")
  end

  local function follow(name, more)
    local seen = { n = 0 }
    client:watch_service(name, more or {}, function(change)
      seen.n = seen.n + 1
      local list = {}
      for _, host in ipairs(change.instances) do
        list[#list + 1] = math.tointeger(host.port)
      end
      table.sort(list)
      seen.ports = table.concat(list, " ")
      seen.via = change.via
    end)
    return seen
  end

  local function told(seen, wanted)
    eventually(function()
      return seen.ports == wanted, ("%s instead of %s"):format(seen.ports, wanted)
    end)
  end

  ---Pushes a list of these ports with a time that lies so many seconds before now.
  local function push(name, ports, age)
    local hosts = {}
    for i, port in ipairs(ports) do
      hosts[i] = { ip = "10.0.0.1", port = port, weight = 1, healthy = true, enabled = true, ephemeral = true }
    end
    local info = json.encode {
      name = name, groupName = "DEFAULT_GROUP", clusters = "", cacheMillis = 10000, lastRefTime = (os.time() - age) * 1000,
      hosts = hosts,
    }
    local text = '{"requestId":"1","module":"naming","namespace":"public","serviceInfo":' .. info .. "}"
    server:call("POST", "grpc", json.encode { push = { type = "NotifySubscriberRequest", json = text } })
  end

  it("is pushed, to all that follow it", function()
    local name = service()
    local one, two = follow(name), follow(name)
    told(one, "")
    told(two, "")
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 5 })
    told(one, "5")
    told(two, "5")
    assert.equal("push", one.via)
  end)

  it("is followed by cluster without asking in circles", function()
    local name = service()
    local a, b = follow(name, { clusters = "a" }), follow(name, { clusters = "b" })
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 1, cluster_name = "a" })
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 2, cluster_name = "b" })
    told(a, "1")
    told(b, "2")
    server:clear_requests()
    nacos.sleep(1.5)
    assert.equal(0, #messages())
  end)

  it("is followed again on the next connection, and no more when nobody does", function()
    local name = service()
    local seen = follow(name)
    told(seen, "")
    server:call("POST", "grpc", '{"close":true}')
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 5 })
    told(seen, "5")
    server:clear_requests()
    client:unsubscribe(name)
    eventually(function()
      local said = messages()
      return #said > 0 and said[#said].subscribe == false, "the server was not told"
    end)
  end)

  it("is what the server of the next connection says, though its clock be behind", function()
    local name = service()
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 5 })
    local seen = follow(name)
    told(seen, "5")
    push(name, { 5, 6 }, -3600)
    told(seen, "5 6")
    push(name, { 5, 7 }, 0) -- the same connection: that is old
    server:call("POST", "grpc", '{"close":true}')
    told(seen, "5")
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 8 })
    told(seen, "5 8")
  end)

  it("is followed last, when it is given up and followed again", function()
    local name = service()
    told(follow(name), "")
    server:clear_requests()
    server:faults { path = "SubscribeServiceRequest", delay = 0.4, times = 1 }
    client:unsubscribe(name)
    eventually(function()
      return #messages() == 1, "not given up"
    end)
    follow(name)
    eventually(function() -- it did not wait for the answer to the other; so once more, after it
      local said = messages()
      return #said == 3 and not said[1].subscribe and said[2].subscribe and said[3].subscribe, #said .. " messages"
    end)

    -- what could not be said before the connection was lost need not be said on the next
    server:call("POST", "grpc", '{"port":false}')
    server:call("POST", "grpc", '{"close":true}')
    eventually(function()
      return not client:status().link, "still connected"
    end)
    client:unsubscribe(name)
    nacos.sleep(0.05)
    local seen = follow(name)
    server:clear_requests()
    server:call("POST", "grpc", '{"port":true}')
    assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 5 })
    told(seen, "5")
    for _, said in ipairs(messages()) do
      assert.is_true(said.subscribe)
    end
  end)
end)
