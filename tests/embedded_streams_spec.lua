--- How much one embedded server holds over gRPC.

local support = require "support"
local core = require "grpc_client"

---A server that may have few descriptors.
local function start_poor_server()
  local lunacos, script = support.lunacos, support.tmpdir() .. "/lunacos"
  support.write(script, ("#!/bin/sh\nulimit -n 200\nexec '%s' \"$@\"\n"):format(lunacos))
  support.run { "chmod", "+x", script }
  support.lunacos = script
  local ok, server = pcall(support.start_server)
  support.lunacos = lunacos
  return assert(ok and server, server)
end

describe("the embedded server over gRPC:", function()
  it("holds 10,000 streams and 100,000 keys, and tells the right ones", function()
    local own = support.start_server { "--push-delay", "0" }
    local code, out, err = support.run({ support.build .. "/hold_streams", tostring(own.port) })
    assert.same({ 0, "" }, { code, err })
    assert.matches("^10000 streams and 100000 keys held", out)
    local kilobytes = tonumber(support.read("/proc/" .. own.pid .. "/status"):match("VmHWM:%s*(%d+)"))
    if not support.build:find("[at]san") then -- they need several times as much
      assert.truthy(kilobytes < 350000, kilobytes .. " kB") -- about 240,000
    end
    assert.equal(0, own:stop())
  end)

  it("leaves descriptors to HTTP, which survives that they run out", function()
    local own, open = start_poor_server(), {}
    local function connect(port, count)
      for _ = 1, count do
        open[#open + 1] = core.connect("127.0.0.1", tostring(port), {})
      end
    end
    connect(own.port + 1000, 150)
    support.eventually(function() return own:stats().grpc_connections == 102 end) -- three quarters of 200 - 64
    connect(own.port, 100) -- more than there are left
    own:pause() -- so that it sees all of them end at once
    for _, connection in ipairs(open) do
      connection:close()
    end
    own:resume()
    support.eventually(function() return own:stats().grpc_connections == 0 end)
    assert.equal(0, own:stop())
  end)
end)
