--- What systemd is told, through a socket with a path and through an abstract one.

local nacos = require "nacos"
local notify = require "nacos.agent.notify"
local posix = require "test_posix"
local support = require "support"
local uv = require "luv"

local socket

local function listen(address)
  socket = posix.datagrams(address)
  uv.os_setenv("NOTIFY_SOCKET", address)
end

local function next_text()
  return support.eventually(function()
    return posix.receive(socket)
  end)
end

after_each(function()
  for _, name in ipairs { "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID" } do
    uv.os_unsetenv(name)
  end
  if socket then
    posix.close(socket)
    socket = nil
  end
end)

describe("systemd", function()
  it("is told the states of the program", function()
    for _, address in ipairs { support.tmpdir() .. "/notify", "@lunacos-test-" .. uv.os_getpid() } do
      listen(address)
      assert.is_true(notify.ready())
      assert.equal("READY=1", next_text())
      assert.is_true(notify.reloading())
      local at = next_text():match("^RELOADING=1\nMONOTONIC_USEC=(%d+)$")
      assert.is_true(math.abs(at / 1e6 - uv.hrtime() / 1e9) < 5)
      assert.is_true(notify.status("2 targets,\none owed"))
      assert.equal("STATUS=2 targets, one owed", next_text())
      assert.is_true(notify.stopping())
      assert.equal("STOPPING=1", next_text())
      posix.close(socket)
      socket = nil
    end
  end)

  it("that does not listen is no obstacle", function()
    assert.is_true(notify.ready())
    uv.os_setenv("NOTIFY_SOCKET", "/nonexistent/notify")
    local ok, err = notify.ready()
    assert.is_nil(ok)
    assert.same({ "unavailable", "No such file or directory" }, { err.code, err.message })
    for _, address in ipairs { "relative", "@", "/" .. ("x"):rep(200) } do
      uv.os_setenv("NOTIFY_SOCKET", address)
      assert.equal("invalid", select(2, notify.ready()).code)
    end
  end)

  it("gets the pings of its watchdog, from the first ready on and only if they are asked of this process", function()
    listen(support.tmpdir() .. "/notify")
    uv.os_setenv("WATCHDOG_USEC", "100000")
    uv.os_setenv("WATCHDOG_PID", "1")
    notify.ready()
    assert.equal("READY=1", next_text())
    nacos.step(0.2)
    assert.is_nil(posix.receive(socket))
    uv.os_setenv("WATCHDOG_PID", tostring(uv.os_getpid()))
    local begin = uv.hrtime()
    notify.ready()
    notify.ready()
    local seen = { READY = 0, WATCHDOG = 0 }
    support.eventually(function()
      local name = (posix.receive(socket) or ""):match("^(%u+)=1$")
      if name then
        seen[name] = seen[name] + 1
      end
      return seen.WATCHDOG == 5
    end)
    assert.equal(2, seen.READY)
    assert.is_true(uv.hrtime() - begin > 0.1e9) -- one task, not two
  end)
end)
