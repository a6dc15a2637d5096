--- Registered instances over gRPC: they live by the connection, and several of one service are one publication.

local grpc_lab = require "grpc_lab"
local lab = require "lab"
local nacos = require "nacos"
local support = require "support"

local eventually = support.eventually

describe("services over grpc", function()
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
    return "live" .. unique
  end

  local function becomes(name, wanted, seconds)
    grpc_lab.until_ports(other, name, wanted, seconds)
  end

  local function add(name, port, more)
    local args = { service_name = name, ip = "10.0.0.1", port = port }
    for key, value in pairs(more or {}) do
      args[key] = value
    end
    return client:add_naming_instance(args)
  end

  local function remove(name, port)
    return client:remove_naming_instance { service_name = name, ip = "10.0.0.1", port = port }
  end

  local function messages(type)
    return grpc_lab.messages(server, type)
  end

  describe("instances", function()
    it("live by the connection: no beats", function()
      local name = service()
      assert(add(name, 1))
      becomes(name, "1")
      assert.equal("grpc", client:status().protocol)
      assert.equal(0, #lab.requests(server, "/beat"))
      assert(remove(name, 1))
      becomes(name, "")
    end)

    it("of one service are published together", function()
      local name = service()
      local all = {}
      for port = 1, 8 do
        all[port] = function()
          assert(add(name, port))
        end
      end
      lab.together(table.unpack(all))
      becomes(name, "1 2 3 4 5 6 7 8")
      assert(remove(name, 3))
      becomes(name, "1 2 4 5 6 7 8")
      lab.together(function()
        assert(remove(name, 1))
      end, function()
        assert(add(name, 9))
      end, function()
        assert(remove(name, 2))
      end)
      becomes(name, "4 5 6 7 8 9")
      for port = 4, 9 do
        assert(remove(name, port))
      end
      becomes(name, "")
    end)

    it("are modified", function()
      local name = service()
      assert(add(name, 1))
      assert(add(name, 2))
      assert(client:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 1, weight = 7 })
      eventually(function()
        local hosts = other:list_naming_instance(name)
        return #hosts == 2 and hosts[1].weight == 7, "the weight is another"
      end)
      -- by the call for it: what another has changed by that wins over what the owner registers
      assert.equal(1, #lab.requests(server, "/v1/ns/instance", "PUT"))
      assert(other:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 1, weight = 3 })
      assert(client:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 1, weight = 5 })
      assert.equal(5, other:list_naming_instance(name)[1].weight)
      -- where there is no call for it, or no right to it: by registering
      server:faults {
        { path = "/nacos/v1/ns/instance", method = "PUT", status = 501 },
        {
          path = "/nacos/v3/admin/ns/instance", method = "PUT", status = 403, body = '{"message":"authorization failed!"}',
        },
      }
      name = service()
      assert(add(name, 1))
      assert(add(name, 2))
      assert(client:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 2, weight = 9 })
      eventually(function()
        local hosts = other:list_naming_instance(name)
        return #hosts == 2 and hosts[2].weight == 9, "the weight is another"
      end)
      assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 3 }) -- not ours
      local _, err = client:modify_naming_instance { service_name = name, ip = "10.0.0.1", port = 3, weight = 9 }
      assert.equal("forbidden", err.code)
    end)

    it("that others registered stay when this client takes its own away", function()
      local name = service()
      assert(other:add_naming_instance { service_name = name, ip = "10.0.0.1", port = 5 })
      assert(add(name, 1))
      becomes(name, "1 5")
      assert(remove(name, 5)) -- another's
      becomes(name, "1")
      assert(remove(name, 1))
      becomes(name, "")
    end)

    it("come back with the next connection, those of one service in one message", function()
      local one, many = service(), service()
      assert(add(one, 1))
      for port = 1, 5 do
        assert(add(many, port))
      end
      server:clear_requests()
      server:call("POST", "grpc", '{"close":true}')
      eventually(function()
        return #messages("InstanceRequest") >= 1 and #messages("BatchInstanceRequest") >= 1, "not registered again"
      end)
      becomes(one, "1")
      becomes(many, "1 2 3 4 5")
      nacos.sleep(0.3)
      assert.is_true(#messages("BatchInstanceRequest") <= 2, #messages("BatchInstanceRequest") .. " messages")
    end)

    it("go with their client", function()
      local one, many = service(), service()
      assert(add(one, 1))
      assert(add(many, 1))
      assert(add(many, 2))
      becomes(many, "1 2")
      client:close()
      becomes(one, "", 2)
      becomes(many, "", 2)
    end)
  end)
end)
