--- A server that is replaced by another version on the same port, and back again, under a client that was told no protocol: it finds
--- the new way by itself, and its watches, instances and subscriptions go on.
-- @alone
-- @on 2.3.2
-- luacheck: std lua54+busted

local support = require "support"
local target = require "conformance.target"

local VERSIONS = { "3.1.0", "2.3.2" } -- what the server, which is a 2.3.2, becomes
local WATCHES, INSTANCES = 100, 10

describe("a server that becomes another", function()
  local home -- of what runs now, when it is not what scripts/test started
  local function script(words)
    table.insert(words, 1, support.root .. "/scripts/real-nacos")
    local code, out, err = support.run(words, { timeout = 150 })
    assert(code == 0, err)
    return out
  end
  ---Stop what runs and start this version in its place, with an empty database.
  local function becomes(version)
    script { "stop", home or target.home }
    home = support.tmpdir()
    assert.matches("nacos " .. version, script { version, tostring(target.port), home })
  end
  after_each(function()
    target.close_all()
    if home then
      script { "stop", home }
    end
  end)
  teardown(target.stop)

  it("keeps every watch, instance and subscription", function()
    local group, service = target.group(), "upgraded"
    local client = target.client { protocol = "auto" }
    local publisher = target.client { protocol = "auto", no_snapshot = true }
    local seen, followed = {}, {}
    local function publish(what)
      for i = 1, WATCHES, 10 do
        support.eventually(function() -- right after an outage the first may find no connection yet
          return target.publish(publisher, "key-" .. i, group, what .. i, { type = "text", timeout = 10 })
        end, 20)
      end
    end
    ---What was published is told, everybody sees the instances, and the client knows whom it speaks to.
    local function all_well(what, version)
      publish(what)
      for i = 1, WATCHES, 10 do
        target.arrives(seen[i], what .. i, 30)
      end
      support.eventually(function()
        local list, err = publisher:list_naming_instance { service_name = service, group_name = group, timeout = 5 }
        return list and #list == INSTANCES and #(followed.last or {}) == INSTANCES,
          ("%s listed, %d followed; %s"):format(list and #list, #(followed.last or {}), tostring(err))
      end, 30)
      support.eventually(function() -- the version is asked beside the rest
        local status = client:status()
        return status.protocol == "grpc" and status.link and (status.server_version or ""):find(version, 1, true) == 1,
          ("%s %s, %s"):format(status.protocol, status.server_version, status.protocol_why)
      end, 10)
    end

    publish("first ")
    for i = 1, WATCHES do
      seen[i] = target.watch(client, "key-" .. i, group)
    end
    local some = { service_name = service, group_name = group, port = 80 }
    for i = 1, INSTANCES do
      some[i] = { ip = "10.0.0." .. i }
    end
    assert(client:add_naming_instances(some))
    assert(client:watch_service(service, { group_name = group, interval = 1 }, function(change)
      followed.last = change.instances
    end))
    all_well("again ", "2.3.2")
    for _, version in ipairs(VERSIONS) do
      becomes(version)
      all_well("on " .. version .. " ", version)
    end
    for i = 1, WATCHES do -- "first", "again", and twice gone with its database and published anew
      assert.is_true(#seen[i] <= 6, #seen[i] .. " changes of key " .. i)
    end
  end)
end)
