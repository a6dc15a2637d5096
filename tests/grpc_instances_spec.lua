--- Registered instances where they live by the connection, when things go wrong: before it is known what is spoken, and when a server
-- does not take what it is told.

local grpc_lab = require "grpc_lab"
local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

local eventually = support.eventually

local INSTANCE = "/nacos/v1/ns/instance"

describe("instances over grpc", function()
  local server, client, other, name, unique

  setup(function()
    server = support.start_server { "--push-delay", "0", "--claim", "3.1.0" }
    unique = 0
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    unique = unique + 1
    name = "unlucky" .. unique
    other = lab.client(server) -- over HTTP
    server:clear_requests()
  end)
  after_each(function()
    server:clear_faults()
    lab.close_all()
  end)

  local function becomes(wanted, seconds)
    grpc_lab.until_ports(other, name, wanted, seconds)
  end

  local function speaks(protocol)
    client = lab.client(server, { protocol = protocol })
  end

  local function args(port, more)
    local all = { service_name = name, ip = "10.0.0.1", port = port }
    for key, value in pairs(more or {}) do
      all[key] = value
    end
    return all
  end

  local function add(port, more)
    return client:add_naming_instance(args(port, more))
  end

  local function remove(port, more)
    return client:remove_naming_instance(args(port, more))
  end

  local function messages(type)
    return grpc_lab.messages(server, type)
  end

  it("of one service, registered together before it is known what is spoken, are all there", function()
    speaks "auto"
    local all = {}
    for port = 1, 8 do
      all[port] = function()
        assert(add(port))
      end
    end
    lab.together(table.unpack(all))
    assert.equal("grpc", client:status().protocol)
    becomes "1 2 3 4 5 6 7 8"
  end)

  local function all_at_once(first, last, call)
    local results, all = {}, {}
    for port = first, last do
      all[#all + 1] = function()
        local result = table.pack(call(port, { timeout = 20 }))
        results[#results + 1] = result
      end
    end
    lab.together(table.unpack(all))
    assert.equal(last - first + 1, #results)
    return results
  end

  local function range(first, last)
    local ports = {}
    for port = first, last do
      ports[#ports + 1] = port
    end
    return table.concat(ports, " ")
  end

  it("of one service are told in few messages, however many are registered or deregistered at once", function()
    speaks "grpc"
    for _, result in ipairs(all_at_once(1, 300, add)) do
      assert.is_true(result[1], tostring(result[2]))
    end
    becomes(range(1, 300))
    local told = #messages "BatchInstanceRequest" + #messages "InstanceRequest"
    assert.is_true(told < 30, told .. " messages")

    server:clear_requests()
    for _, result in ipairs(all_at_once(11, 300, remove)) do
      assert.is_true(result[1], tostring(result[2]))
    end
    becomes(range(1, 10))
    told = #messages "BatchInstanceRequest" + #messages "InstanceRequest"
    assert.is_true(told < 30, told .. " messages")
    assert.equal(10, client:status().instances)
  end)

  it("that share a message share its failure", function()
    speaks "grpc"
    assert(add(1))
    assert(add(2))
    server:faults { path = "BatchInstanceRequest", code = 403 }
    for _, result in ipairs(all_at_once(3, 20, add)) do
      assert.is_nil(result[1])
      assert.equal("forbidden", result[2].code)
    end
    server:clear_faults()
    assert.equal(2, client:status().instances)
    becomes "1 2"
    all_at_once(3, 20, add)
    becomes(range(1, 20))
  end)

  it("that share a message have their own time", function()
    speaks "grpc"
    assert(add(1))
    server:faults { path = "BatchInstanceRequest", hang = true, times = 2 }
    local short, err, long
    nacos.spawn(function()
      add(2, { timeout = 0.4 }) -- the others wait for it
    end)
    eventually(function()
      return #messages "BatchInstanceRequest" == 1, "not asked"
    end)
    nacos.spawn(function()
      short, err = add(3, { timeout = 0.8 })
    end)
    nacos.spawn(function()
      long = add(4, { timeout = 1.4 })
    end)
    eventually(function()
      return err, "not answered"
    end)
    assert.is_nil(short)
    assert.equal("unavailable", err.code)
    assert.is_nil(long)
    assert.equal(2, #messages "BatchInstanceRequest")
    server:clear_faults()
    assert(add(5, { timeout = 10 }))
    becomes "1 5"
  end)

  it("of one service are refused from where they no longer fit into a message", function()
    speaks "grpc"
    local most, pad = 1800, ("x"):rep(5800) -- more than 10 MiB
    local fitted = 0
    assert(add(9999))
    local results = all_at_once(1, most, function(port)
      return add(port, { metadata = { pad = pad }, timeout = 30 })
    end)
    for _, result in ipairs(results) do
      if result[1] then
        fitted = fitted + 1
      else
        assert.equal("invalid", result[2].code)
        assert.matches("larger than a server reads", result[2].message)
      end
    end
    assert.is_true(fitted > 1700 and fitted < most, fitted .. " fitted")
    assert.equal(fitted + 1, client:status().instances)
    local ok, err = add(most + 1, { metadata = { pad = pad } })
    assert.is_nil(ok)
    assert.matches("larger than a server reads", err.message)
  end)

  it("whose deregistration fails go later", function()
    speaks "grpc"
    assert(add(1))
    server:faults { path = "InstanceRequest", grpc_status = 13 }
    assert.is_nil(remove(1))
    becomes "1"
    assert.is_nil(remove(1)) -- nobody says that another's was meant, and is gone
    assert.equal(0, #lab.requests(server, INSTANCE, "DELETE"))
    server:clear_faults()
    becomes("", 8)

    assert(add(1))
    assert(add(2))
    server:faults { path = "BatchInstanceRequest", code = 403, times = 1 }
    assert.is_nil(remove(2))
    assert(add(2)) -- the host wants it after all
    server:clear_requests()
    nacos.sleep(1.3)
    becomes "1 2"
    assert.equal(0, #messages "BatchInstanceRequest")

    server:faults { path = "BatchInstanceRequest", code = 403, times = 1 }
    assert.is_nil(remove(2))
    server:call("POST", "grpc", '{"close":true}') -- it goes with the connection
    becomes "1"
  end)

  it("wait for each other within their own time", function()
    speaks "grpc"
    assert(add(1))
    assert(add(2))
    server:faults { path = "BatchInstanceRequest", hang = true, times = 1 }
    local first
    nacos.spawn(function()
      first = table.pack(add(3, { timeout = 1.5 }))
    end)
    eventually(function()
      return #messages "BatchInstanceRequest" == 2, "not asked"
    end)
    local ok, err = add(4, { timeout = 0.2 })
    assert.is_nil(ok)
    assert.equal("unavailable", err.code)
    assert.is_nil(remove(2, { timeout = 0.2 }))
    assert.is_nil(first) -- which is still under way
    becomes("1", 5) -- the deregistration was tried again
  end)

  it("are registered, however long a server that answers is still starting", function()
    speaks "grpc"
    server:faults { path = "InstanceRequest", code = 300, times = 2 }
    assert(add(1))
    becomes "1"
    assert.equal(3, #messages "InstanceRequest")
    server:faults { path = "InstanceRequest", code = 300 }
    local took, ok, err = lab.timed(remove, 1, { timeout = 0.5 })
    assert.is_nil(ok)
    assert.matches("Server is starting", err.message)
    assert.is_true(took < 1.5, took .. " s")
    assert.is_true(#messages "InstanceRequest" < 12, #messages "InstanceRequest" .. " messages")
  end)

  it("that are persistent are registered by the call of v1 where there is no message for them", function()
    speaks "grpc"
    server:faults { path = "PersistentInstanceRequest", code = 302 }
    assert(add(1, { ephemeral = false }))
    becomes "1"
    assert(remove(1, { ephemeral = false }))
    becomes ""
    assert.equal("grpc", client:status().protocol)
  end)

  it("of one service are registered over HTTP where there is no message for several", function()
    speaks "auto"
    assert(add(1))
    assert.equal("grpc", client:status().protocol)
    server:faults { path = "BatchInstanceRequest", code = 302 }
    assert(add(2))
    assert(add(3))
    becomes "1 2 3"
    assert.equal("v1", client:status().protocol)
    assert(remove(2))
    becomes "1 3"
  end)

  it("get single beats by the call of v1, else by that of v3", function()
    speaks "grpc"
    local beat = { service_name = name, ip = "10.0.0.1", port = 80 }
    server:faults { path = "/nacos/v3/client/ns/instance", status = 404 }
    assert(client:send_heartbeat(beat))
    becomes "80"
    server:clear_faults()
    server:faults { path = INSTANCE .. "/beat", status = 501 }
    server:clear_requests()
    assert(client:send_heartbeat(beat))
    assert.equal(1, #lab.requests(server, "/nacos/v3/client/ns/instance"))
  end)
end)
