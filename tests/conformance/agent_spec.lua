--- An agent at work: a real nginx, whose configuration scripts/nginx-agent.lua renders from a service and a configuration of this
--- server, under a load that never ends and in which no request may fail, whatever is changed, refused, killed or restarted.
-- @alone
-- @on embedded
-- @on 2.3.2-auth
-- @on 3.1.0-auth
-- luacheck: std lua54+busted

local json = require "cjson.safe"
local support = require "support"
local target = require "conformance.target"
local uv = require "luv"

local NGINX = "/usr/sbin/nginx" -- not in everybody's PATH
local PATH = os.getenv("PATH") .. ":/usr/sbin"

local folder = support.tmpdir()

---A port that nobody listens on.
local function free_port()
  local socket = uv.new_tcp()
  assert(socket:bind("127.0.0.1", 0))
  local port = socket:getsockname().port
  socket:close()
  uv.run("nowait") -- luv ends badly with a handle that is only half closed
  return port
end

-- ---- what answers in the end -------------------------------------------------------------------------------------------------

local BACKEND = [[
daemon off; master_process off; pid PORT.pid;
events {}
http {
  access_log off;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  server { listen 127.0.0.1:PORT; location / { return 200 "PORT\n"; } }
}
]]

---Start a server that tells its port to whoever asks.
local function backend()
  local port = free_port()
  local path = ("%s/%d.conf"):format(folder, port)
  support.write(path, (BACKEND:gsub("PORT", tostring(port))))
  local process = support.start { NGINX, "-p", folder, "-e", "stderr", "-c", path }
  process.port = port
  support.eventually(function()
    return support.http("GET", "http://127.0.0.1:" .. port) == 200, process:stderr()
  end)
  return process
end

-- ---- who asks ----------------------------------------------------------------------------------------------------------------

-- A connection for each request: on one that is kept a request may meet its end, when nginx reloads, and that is nobody's fault here.
local LOAD = [[
wrk.headers["Connection"] = "close"
function delay() return 3 end
function done(summary)
  local e = summary.errors
  io.write(("%d requests, connect %d read %d write %d status %d timeout %d\n"):format(
    summary.requests, e.connect, e.read, e.write, e.status, e.timeout))
end
]]

local function load_on(url)
  support.write(folder .. "/load.lua", LOAD)
  return support.start { "wrk", "-t", "1", "-c", "8", "-d", "10m", "--timeout", "5s", "-s", folder .. "/load.lua", url }
end

---End it. @return what failed, as text; number of requests
local function load_off(load)
  load:signal("INT")
  assert.are.equal(0, load:wait())
  local requests, errors = load:stdout():match("(%d+) requests, ([^\n]+)")
  return errors, tonumber(requests)
end

-- ---- the test ----------------------------------------------------------------------------------------------------------------

describe("an agent that keeps an nginx, with " .. target.name, function()
  local nginx
  after_each(function()
    target.close_all()
    if nginx then -- its workers would outlive a master that is killed
      nginx:stop()
    end
  end)
  teardown(target.stop)

  it("lets no request fail while instances come and go and servers and agents are killed", function()
    local group, port = target.group(), free_port()
    local site, state = support.tmpdir(), support.tmpdir()
    local conf, client = site .. "/nginx.conf", target.client()
    local url = "http://127.0.0.1:" .. port

    local function publish(timeout)
      local content = json.encode { listen = "127.0.0.1:" .. port, timeout = timeout }
      assert(target.publish(client, "shop.json", group, content, { type = "json" }))
    end
    local function add(process)
      assert(client:add_naming_instance { service_name = "shop", ip = "127.0.0.1", port = process.port, group_name = group })
    end
    local function remove(process)
      assert(client:remove_naming_instance { service_name = "shop", ip = "127.0.0.1", port = process.port, group_name = group })
    end
    local function start_agent(stop_at)
      local words = { support.lunacos, "run", "-s", target.url:match("^http://([^/]+)"), "-g", group, "--state", state }
      if target.auth then
        table.move({ "-u", target.username, "--password-file", target.password_file }, 1, 4, #words + 1, words)
      end
      table.move({ support.root .. "/scripts/nginx-agent.lua", "shop", site }, 1, 3, #words + 1, words)
      return support.start(words, { env = { PATH = PATH, LUNACOS_STOP_AT = stop_at } })
    end
    local agent
    local function eventually(what, fn, seconds)
      return support.eventually(function()
        local result, why = fn()
        return result, ("%s: %s\nagent: %s"):format(what, tostring(why), agent:stderr())
      end, seconds or 8)
    end

    ---The one target of the agent; {} while none answers.
    local function status()
      local _, text = support.run { support.lunacos, "status", "--json", "--state", state }
      local answer = json.decode(text)
      return answer and answer.pid == agent.pid and answer.targets and answer.targets[1] or {}
    end
    local function becomes(wanted, seconds)
      return eventually("not " .. wanted, function()
        local one = status()
        return one.state == wanted and one, json.encode(one)
      end, seconds)
    end

    local a, b, c, d = backend(), backend(), backend(), backend()
    publish("5s")
    add(a)
    add(b)
    agent = start_agent()
    eventually("no nginx.conf", function() return support.read(conf) end)
    nginx = support.start { NGINX, "-p", site, "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off;" }
    becomes("ok") -- the reload was owed until nginx ran

    ---The process of nginx that answers: a reload brings a new one, and the old one ends when it has answered everything.
    local function worker()
      return support.eventually(function()
        local list = support.read(("/proc/%d/task/%d/children"):format(nginx.pid, nginx.pid)) or ""
        return list:match("^(%d+) *$"), "nginx has the workers " .. list
      end)
    end
    ---Do something, and wait until nginx works with these servers, and nothing of it with those before.
    local function serves(what, ...)
      local old = worker()
      if what then
        what()
      end
      local wanted = {}
      for _, process in ipairs { ... } do
        wanted[#wanted + 1] = tostring(process.port)
      end
      table.sort(wanted)
      wanted = table.concat(wanted, " ")
      eventually("not served by " .. wanted, function()
        local listed = {}
        for server in (support.read(conf) or ""):gmatch("server 127%.0%.0%.1:(%d+)") do
          listed[#listed + 1] = server
        end
        table.sort(listed)
        listed = table.concat(listed, " ")
        return listed == wanted and worker() ~= old, listed
      end)
      local seen, names = {}, {}
      local _, answers = support.run { "curl", "-sS", "--max-time", "10", url .. "/[1-12]" }
      for name in answers:gmatch("%d+") do
        if not seen[name] then
          seen[name], names[#names + 1] = true, name
        end
      end
      table.sort(names)
      assert.are.equal(wanted, table.concat(names, " "))
    end

    serves(function() add(c) end, a, b, c) -- also: everything before has settled
    local load = load_on(url)

    -- instances come and go; one that has gone may end as soon as nobody is sent there any more
    serves(function() remove(a) end, b, c)
    a:kill9()
    serves(function() add(d) end, b, c, d)

    -- a value that nginx does not take
    local good, running = support.read(conf), worker()
    publish("soon")
    local refused = becomes("rejected")
    assert.matches("check", refused.error)
    eventually("the log does not say why", function()
      return agent:stderr():find('"proxy_read_timeout" directive invalid value', 1, true)
    end)
    assert.are.equal(good, support.read(conf))
    assert.are.equal(running, worker())
    serves(function() publish("7s") end, b, c, d)
    assert.matches("proxy_read_timeout 7s;", support.read(conf), 1, true)

    -- no server, and then no agent either; a new one has only what is on disk
    good, running = support.read(conf), worker()
    target.kill9()
    agent:kill9()
    agent = start_agent()
    becomes("ok")
    assert.are.equal(good, support.read(conf))
    assert.are.equal(running, worker())
    local back = target.restart()
    if back then
      eventually("the server is not back", function() return back:ended() end, 120)
    end
    target.back(back)
    if not target.real then -- the embedded one has forgotten everything
      publish("7s")
    end
    eventually("not every instance is back", function() -- the server finds them one by one, and so does nginx
      local list, err = client:list_naming_instance { service_name = "shop", group_name = group }
      return list and #list == 3 and support.read(conf) == good, tostring(err)
    end, 20)
    becomes("ok")

    -- things change while no agent runs; the one that finds it out is killed between the file and the reload
    agent:kill9()
    remove(b)
    running = worker()
    agent = start_agent("written")
    eventually("it was not killed", function() return agent:ended() end)
    assert.are.equal(137, agent:wait())
    assert.are_not.equal(good, support.read(conf))
    assert.are.equal(running, worker())
    serves(function() agent = start_agent() end, c, d)
    b:kill9()
    becomes("ok")

    local errors, requests = load_off(load)
    assert.are.equal("connect 0 read 0 write 0 status 0 timeout 0", errors)
    assert.is_nil(nginx:stderr():match("[^\n]*%[error%][^\n]*"), "nginx had to ask another server instead")
    assert.is_true(requests > 1000, requests .. " requests")
    assert.are.equal(0, agent:stop())
    assert.are.equal(0, nginx:stop())
  end)
end)
