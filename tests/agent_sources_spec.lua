--- What templates read is what they depend on: nacos.agent.sources.

local lab = require "lab"
local nacos = require "nacos"
local scheduler = require "nacos.scheduler"
local sources = require "nacos.agent.sources"
local support = require "support"
local template = require "nacos.template"
local uv = require "luv"

local function nothing()
end

describe("sources", function()
  local server, writer, client, all, unique

  setup(function()
    server = support.start_server()
    unique = 0
  end)
  teardown(function()
    server:stop()
  end)
  before_each(function()
    writer, client = lab.client(server), lab.client(server)
    all = {}
  end)
  after_each(function()
    for _, s in ipairs(all) do
      s:close()
    end
    lab.close_all()
    server:clear_faults()
  end)

  ---Sources whose users count how often they were told: user.told.
  local function new(opts)
    local o = { client = client, changed = function(user) user.told = user.told + 1 end }
    for name, value in pairs(opts or {}) do
      o[name] = value
    end
    local s = sources.new(o)
    all[#all + 1] = s
    return s
  end

  local function name(prefix)
    unique = unique + 1
    return (prefix or "item") .. unique
  end

  ---A dataId nobody used before, with this content if any.
  local function item(content, kind)
    local id = name()
    if content then
      assert(writer:publish_config(id, nil, content, { type = kind or "text" }))
    end
    return id
  end

  local function publish(id, content, kind)
    assert(writer:publish_config(id, nil, content, { type = kind or "text" }))
  end

  ---One pass: what fn(functions) returns; or nil and its error. @return any, table|nil err, table used, table reader
  local function pass(s, user, fn)
    user.told = user.told or 0
    local reader = s:read(user)
    local ok, result = pcall(fn, reader.functions)
    local used = reader:done(not ok)
    if ok then
      return result, nil, used, reader
    end
    return nil, result, used, reader
  end

  ---Passes until one gets to its end without anything unknown; waits to be told in between.
  local function until_known(s, user, fn)
    return support.eventually(function()
      user.told = 0
      local result, err, used, reader = pass(s, user, fn)
      if not err and not reader.unknown then
        return { result = result, used = used }
      elseif err and err.code ~= "unknown" then
        error(err, 0)
      end
      support.eventually(function() return user.told > 0, "not told" end)
    end)
  end

  local function until_told(user, n)
    support.eventually(function() return user.told >= n, "told " .. user.told .. " times" end, 10)
  end

  ---The functions of one pass that was made after all was known.
  local function value(s, user, fn)
    return until_known(s, user, fn).result
  end

  it("has a pass wait for what is not known, and tells when it is", function()
    local s, user, id = new(), {}, item("hello")
    local _, err, used, reader = pass(s, user, function(f) return f.text(id) end)
    assert.equal("unknown", err.code)
    assert.equal(("configuration '%s' is not known: no server has answered yet"):format(id), tostring(err))
    assert.equal("unknown", reader.unknown.code)
    assert.same({ { kind = "config", state = "unknown", data_id = id, group = "DEFAULT_GROUP", namespace = "" } }, used)
    assert.equal(0, user.told, "not from inside the call")
    until_told(user, 1)
    local text
    text, err, used, reader = pass(s, user, function(f) return f.text(id) end)
    assert.equal("hello", text)
    assert.is_nil(err)
    assert.is_nil(reader.unknown)
    assert.equal(1, #used)
    local now = used[1].time
    assert.is_true(math.abs(os.time() - now) < 10)
    assert.same({
      kind = "config", state = "known", data_id = id, group = "DEFAULT_GROUP", namespace = "", md5 = nacos.md5("hello"),
      source = "server", server = server.base, time = now,
    }, used[1])
    assert.equal(1, user.told)
    publish(id, "changed")
    until_told(user, 2)
    assert.equal("changed", (pass(s, user, function(f) return f.text(id) end)))
  end)

  -- ---- configurations ----------------------------------------------------------------------------------------------------------

  it("knows absent from unknown", function()
    local s, user, id = new(), {}, item()
    local _, err = pass(s, user, function(f) return f.text(id, { default = "d" }) end)
    assert.equal("unknown", err.code, "a default is for what does not exist")
    until_told(user, 1)
    local text, _, used = pass(s, user, function(f) return f.text(id, { default = "d" }) end)
    assert.equal("d", text)
    assert.equal("absent", used[1].state)
    assert.equal(server.base, used[1].server, "that said so")
    _, err = pass(s, user, function(f) return f.config(id) end)
    assert.equal("not_found", err.code)
    assert.equal(id, err.data_id)
    publish(id, "born")
    until_told(user, 2)
    assert.equal("born", (pass(s, user, function(f) return f.text(id, { default = "d" }) end)))
    writer:remove_config(id)
    until_told(user, 3)
    assert.equal("d", (pass(s, user, function(f) return f.text(id, { default = "d" }) end)))
  end)

  it("goes on with the snapshot while no server answers, and says so", function()
    local own = support.start_server()
    local first = lab.client(own)
    assert(first:publish_config("kept", nil, "old"))
    assert(first:publish_config("same", nil, "same"))
    client = lab.client(own, { snapshot_base = first.folder .. "/snapshot" })
    local user = {}
    local function both(f)
      return f.text("kept") .. " " .. f.text("same")
    end
    local before = new()
    assert.equal("old same", value(before, user, both))
    support.eventually(function()
      return support.read(lab.snapshot(first, "kept")) and support.read(lab.snapshot(first, "same"))
    end)
    before:close()
    local port = own.port
    own:kill9()
    client = lab.client("127.0.0.1:" .. port, { snapshot_base = first.folder .. "/snapshot" })
    local s = new()
    local found = until_known(s, user, both)
    assert.equal("old same", found.result)
    assert.equal("snapshot", found.used[1].source)
    assert.is_nil(found.used[1].server)
    local _, err = pass(s, {}, function(f) return f.text("never-seen", { default = "" }) end)
    assert.equal("unknown", err.code)

    own = support.start_server { "--port", tostring(port) }
    local back = lab.client(own)
    assert(back:publish_config("same", nil, "same"))
    assert(back:publish_config("kept", nil, "new"))
    support.eventually(function()
      local text, _, used = pass(s, user, both)
      return text == "new same" and used[1].source == "server" and used[2].source == "server" and used[2].server == own.base
    end, 10)
    own:stop()
  end)

  it("keeps what it knows while the server is down, and takes what is new when it is back", function()
    local own = support.start_server()
    client = lab.client(own)
    assert(client:publish_config("kept", nil, "old"))
    local s, user = new(), {}
    local function kept(f)
      return f.text("kept")
    end
    assert.equal("old", value(s, user, kept))
    user.told = 0
    local port = own.port
    own:kill9()
    support.eventually(function() return not client:status().connected end)
    local text, _, used = pass(s, user, kept)
    assert.equal("old", text)
    assert.equal("server", used[1].source)
    assert.equal(0, user.told)
    own = support.start_server { "--port", tostring(port) }
    assert(lab.client(own):publish_config("kept", nil, "new"))
    support.eventually(function() return pass(s, user, kept) == "new" end, 10)
    own:stop()
  end)

  it("says why when a server refuses", function()
    server:faults { path = "/nacos/v1/cs/*", status = 403, body = '{"status":403,"message":"authorization failed!"}' }
    local s, user, id = new(), {}, item()
    pass(s, user, function(f) return f.text(id) end)
    until_told(user, 1)
    local _, err = pass(s, user, function(f) return f.text(id) end)
    assert.equal("unknown", err.code)
    assert.matches("is not known: .*authorization failed", tostring(err))
    assert.matches("authorization failed", s:status()[1].trouble)
    server:clear_faults()
    publish(id, "allowed")
    until_told(user, 2)
    assert.equal("allowed", (pass(s, user, function(f) return f.text(id) end)))
    assert.is_nil(s:status()[1].trouble)
    user.told = 0
    support.eventually(function() return client:status().polls == 1 end)
    server:faults {
      path = "/nacos/v1/cs/configs/listener", status = 403, body = '{"status":403,"message":"authorization failed!"}',
    }
    publish(id, "changed") -- ends the poll under way, the next one is refused
    support.eventually(function() return s:status()[1].trouble end, 10)
    assert.equal("changed", (pass(s, user, function(f) return f.text(id) end)))
    nacos.step(0.05)
    assert.is_true(user.told <= 1, "what is known has changed once; none is told what its own pass has seen")
    local observation = select(2, next(s.entries)).observation
    function observation.origin() -- a poll that a server answers, some seconds later
      return { source = "server", server = server.base, confirmed = os.time() + 10 }
    end
    assert.is_nil(s:status()[1].trouble)
  end)

  it("takes failover files, and names them as the source", function()
    local s, user, id = new(), {}, item("from the server")
    uv.fs_mkdir(client.folder .. "/data", tonumber("700", 8))
    support.write(lab.failover(client, id), "from the operator")
    local found = until_known(s, user, function(f) return f.text(id) end)
    assert.equal("from the operator", found.result)
    assert.equal("failover", found.used[1].source)
  end)

  it("parses by the type or the name, and gives every caller tables of its own", function()
    local s, users = new(), { {}, {} }
    local id = name() .. ".json"
    publish(id, '{"list":[1,null,2],"empty":{},"deep":{"port":8080}}', "json")
    local function change(f)
      local first, second = f.config(id), f.config(id)
      assert.not_equal(first, second)
      assert.equal('{"deep":{"port":8080},"empty":{},"list":[1,null,2]}', template.render("{{ json(v) }}", { v = first }))
      first.deep.port, first.list[1], first.more = 1, 9, true
      assert.equal(8080, second.deep.port)
      assert.equal(1, second.list[1])
      return true
    end
    for _ = 1, 2 do
      for _, user in ipairs(users) do
        assert.is_true(value(s, user, change))
      end
    end
  end)

  it("parses once for all, and again when the content has changed", function()
    local formats = require "nacos.formats"
    local decode, count = formats.decode, 0
    formats.decode = function(...)
      count = count + 1
      return decode(...)
    end
    finally(function() formats.decode = decode end)
    local s, users, id = new(), {}, item("a: 1", "yaml")
    for i = 1, 20 do
      users[i] = {}
      assert.equal(1, value(s, users[i], function(f) return f.config(id).a end))
    end
    assert.equal(1, count)
    publish(id, "a: 2", "yaml")
    for i = 1, 20 do
      until_told(users[i], 1)
      assert.equal(2, value(s, users[i], function(f) return f.config(id).a end))
    end
    assert.equal(2, count)
  end)

  it("says what is wrong with a content, and recovers with the next one", function()
    local s, user, id = new(), {}, item('{"a":', "json")
    value(s, user, function(f) return f.text(id) end)
    local _, err = pass(s, user, function(f) return f.config(id) end)
    assert.equal("template", err.code)
    assert.matches("^configuration '" .. id .. "' is not valid json: ", tostring(err))
    user.told = 0
    publish(id, '{"a":1}', "json")
    until_told(user, 1)
    assert.equal(1, (pass(s, user, function(f) return f.config(id).a end)))
  end)

  it("reads other namespaces", function()
    local there = lab.client(server, { namespace = "elsewhere" })
    local id = item("here")
    assert(there:publish_config(id, nil, "there"))
    local s, user = new(), {}
    local found = until_known(s, user, function(f)
      return f.text(id) .. " " .. f.text(id, { namespace = "elsewhere" }) .. " " .. f.text(id, { namespace = "public" })
    end)
    assert.equal("here there here", found.result)
    assert.equal(2, #found.used)
    assert.equal("elsewhere", found.used[2].namespace)
    user.told = 0
    assert(there:publish_config(id, nil, "changed there"))
    until_told(user, 1)
  end)

  -- ---- watches -----------------------------------------------------------------------------------------------------------------

  it("watches a key once for all, and no longer than somebody reads it", function()
    local s, users, a, b = new(), {}, item("a"), item("b")
    local function one(f)
      return f.text(a)
    end
    local function both(f)
      return f.text(a) .. f.text(b)
    end
    for i = 1, 10 do
      users[i] = {}
      assert.equal("ab", value(s, users[i], both))
    end
    assert.equal(2, client:status().watches)
    assert.equal(10, s:status()[1].users)
    for i = 1, 9 do
      pass(s, users[i], one)
    end
    assert.equal(2, client:status().watches)
    pass(s, users[10], one)
    assert.equal(1, client:status().watches)
    for i = 1, 9 do
      s:forget(users[i])
    end
    assert.equal(1, client:status().watches)
    s:forget(users[10])
    s:forget(users[10])
    assert.equal(0, client:status().watches)
    assert.same({}, s:status())
  end)

  it("keeps, after a pass that failed, what the last whole one read", function()
    local s, user, a, b = new(), {}, item("a"), item("b")
    value(s, user, function(f) return f.text(a) .. f.text(b) end)
    pass(s, user, function(f) return f.text(a) .. nil end)
    assert.equal(2, client:status().watches)
    pass(s, user, function(f) return f.text(name()) end) -- unknown
    assert.equal(3, client:status().watches)
    pass(s, user, function(f) return pcall(f.text, name()) end) -- also if that is caught; the unknown one before is dropped
    assert.equal(3, client:status().watches)
    assert.equal("ab", (pass(s, user, function(f) return f.text(a) .. f.text(b) end)))
    assert.equal(2, client:status().watches)
  end)

  it("tells what was not known although the template caught the error", function()
    local s, user, id = new(), {}, item("x")
    local text, err, _, reader = pass(s, user, function(f)
      return pcall(f.config, id) and "known" or "caught"
    end)
    assert.equal("caught", text)
    assert.is_nil(err)
    assert.equal("unknown", reader.unknown.code)
    assert.matches(id, reader.unknown.message)
    until_told(user, 1)
  end)

  it("shares watches with callbacks, and does not wait for them", function()
    client = lab.client(server, { callback_thread_num = 1 })
    local s, user, id, other = new(), {}, item("1"), item("slow")
    local seen, callback = lab.recorder()
    local released
    local function slow()
      repeat
        nacos.sleep(0.01)
      until released
    end
    client:add_config_watcher(id, nil, callback)
    support.eventually(function() return seen.n == 1 end)
    assert.equal("1", (pass(s, user, function(f) return f.text(id) end)), "it is known here already")
    client:add_config_watcher(other, nil, slow)
    support.eventually(function() return client:status().callbacks_running == 1 end)
    publish(id, "2")
    until_told(user, 1)
    assert.equal(1, seen.n, "the one thread is busy")
    client:remove_config_watcher(id, nil, callback, true)
    publish(id, "3")
    until_told(user, 2)
    assert.equal("3", (pass(s, user, function(f) return f.text(id) end)))
    s:forget(user)
    assert.equal(1, client:status().watches)
    released = true
    support.eventually(function() return client:status().callbacks_running == 0 end)
  end)

  it("is served by observers: told in the turn, once, and gone without a trace", function()
    client = lab.client(server, { callback_thread_num = 1 })
    local id, service, released = item("1"), name("service"), false
    local seen, callback = lab.recorder()
    client:add_config_watcher(id, nil, callback)
    support.eventually(function() return seen.n == 1 end)
    local told, errors = {}, 0
    local observation = client:observe_config(id, nil, function(change, err)
      told[#told + 1] = change and change.content or err
    end)
    assert.same({ "1" }, told)
    publish(id, "2")
    while client:peek(id).content ~= "2" do
      uv.sleep(2)
    end
    local late = {}
    local second = client:observe_config(id, nil, function(change) late[#late + 1] = change.content end)
    assert.same({ "2" }, late, "it is known, but not delivered")
    support.eventually(function() return seen.n == 2 end)
    assert.same({ "1", "2" }, told)
    assert.same({ "2" }, late)
    second:stop()
    observation:stop()
    observation:stop()
    publish(id, "3")
    support.eventually(function() return seen.n == 3 end)
    assert.same({ "1", "2" }, told)
    client:remove_config_watcher(id, nil, callback)
    observation = client:observe_config(id, nil, nothing)
    second:stop() -- once more, which is nothing to the new one
    assert.equal(1, client:status().watches)
    observation:stop()
    assert.equal(0, client:status().watches)

    client:watch_service(service, function()
      repeat
        nacos.sleep(0.01)
      until released
    end)
    support.eventually(function() return client:status().callbacks_running == 1 end)
    local lists = {}
    local stop = client:observe_service(service, { healthy_only = false }, function(change, err)
      lists[#lists + 1] = change and #change.instances
      errors = errors + (err and 1 or 0)
    end)
    assert.same({ 0 }, lists)
    assert(writer:add_naming_instance(service, "10.0.0.1", 80))
    support.eventually(function() return lists[2] == 1 end, 10)
    stop()
    stop()
    assert.equal(1, client:status().subscriptions)
    assert.equal(0, errors)
    released = true
    support.eventually(function() return client:status().callbacks_running == 0 end)
  end)

  it("shows one set of values to a pass, even if its code waits, and tells of what came meanwhile", function()
    local s, user, id = new(), {}, item("old")
    value(s, user, function(f) return f.text(id) end)
    user.told = 0
    local result, used
    scheduler.spawn(function()
      local reader = s:read(user)
      result = reader.functions.text(id)
      support.eventually(function() return user.told == 1 end)
      result = result .. " " .. reader.functions.text(id)
      used = reader:done()
    end)
    publish(id, "new")
    support.eventually(function() return used end)
    assert.equal("old old", result)
    assert.equal(nacos.md5("old"), used[1].md5)
    assert.equal("new", (pass(s, user, function(f) return f.text(id) end)))
  end)

  it("tells once of all that came together, and not of what a pass has read since", function()
    local s, user, ids = new(), {}, {}
    for i = 1, 20 do
      ids[i] = item("1")
    end
    local function join(f)
      local texts = {}
      for i, id in ipairs(ids) do
        texts[i] = f.text(id, { default = "" })
      end
      return table.concat(texts)
    end
    assert.equal(("1"):rep(20), value(s, user, join))
    user.told = 0
    for _, id in ipairs(ids) do
      publish(id, "2")
    end
    local deadline = lab.now() + 5 -- the engine knows them all, nothing is delivered
    for _, id in ipairs(ids) do
      while client:peek(id).content ~= "2" and lab.now() < deadline do
        uv.sleep(2)
      end
    end
    until_told(user, 1)
    nacos.step(0.05)
    assert.equal(1, user.told)
    assert.equal(("2"):rep(20), (pass(s, user, join)))

    local seen
    client:observe_config(ids[1], nil, function() -- after the sources' own
      seen = pass(s, user, join)
    end)
    user.told = 0
    publish(ids[1], "3")
    support.eventually(function() return seen:sub(1, 1) == "3" end)
    nacos.step(0.05)
    assert.equal(0, user.told)
  end)

  it("is cheap: a change reaches its readers and nobody else", function()
    local s, common, own = new(), item("1"), {}
    local users = {}
    for i = 1, 1000 do
      own[i] = "absent-" .. name()
      users[i] = { told = 0 }
    end
    local function read(i)
      return function(f)
        return f.text(common) .. f.text(own[i], { default = "" })
      end
    end
    local function all_pass()
      local missing = 0
      for i = 1, 1000 do
        if not users[i].result then
          users[i].result = pass(s, users[i], read(i))
          missing = missing + (users[i].result and 0 or 1)
        end
      end
      return missing == 0, missing .. " are missing"
    end
    support.eventually(all_pass, 20)
    nacos.step(0.05)
    for i = 1, 1000 do
      users[i].told = 0
    end
    assert.equal(1001, client:status().watches)
    publish(own[500], "x")
    until_told(users[500], 1)
    local told = 0
    for i = 1, 1000 do
      told = told + users[i].told
    end
    assert.equal(1, told)
    publish(common, "2")
    support.eventually(function()
      for i = 1, 1000 do
        if users[i].told == 0 then
          return false, i .. " was not told"
        end
      end
      return true
    end)
    assert.equal("2", (pass(s, users[1], read(1))))
    s:close()
    assert.equal(0, client:status().watches)
  end)

  it("calls the others when `changed` fails for one", function()
    local told = {}
    local s = new { changed = function(user)
      if user.bad then
        told.bad = true
        local stderr = io.stderr -- where the scheduler reports it
        io.stderr = { -- luacheck: ignore 122
          write = function()
            io.stderr = stderr -- luacheck: ignore 122
          end,
        }
        error("bad")
      end
      told[#told + 1] = user
    end }
    local id = item("1")
    for _, user in ipairs { {}, { bad = true }, {} } do
      pass(s, user, function(f) return f.text(id) end)
    end
    support.eventually(function() return told.bad and #told == 2 end)
  end)

  it("says nothing after close and lets run() end at once", function()
    local s, user, id = new { files_interval = 5 }, {}, item("1")
    local path = support.tmpdir() .. "/f"
    support.write(path, "x")
    value(s, user, function(f) return f.text(id) .. f.file(path) .. #f.services() .. #f.service("none") end)
    publish(id, "2")
    support.eventually(function() return client:peek(id).content == "2" end)
    user.told = 0
    local reader = s:read(user)
    s:close()
    s:close()
    assert.has_error(function() reader.functions.text(id) end)
    assert.same({}, reader:done())
    local _, err = pass(s, {}, function(f) return f.text(id) end)
    assert.equal("closed", err.code)
    assert.is_true(lab.timed(nacos.run) < 1)
    assert.equal(0, user.told)
    assert.same({}, s:status())
  end)

  it("tells what it watches", function()
    local s, id, gone = new(), item("secret-content"), item()
    value(s, {}, function(f) return f.text(id) .. f.text(gone, { default = "" }) end)
    value(s, {}, function(f) return f.text(id) end)
    local list = s:status()
    table.sort(list, function(a, b) return a.state > b.state end)
    assert.equal(2, #list)
    assert.is_true(list[1].age <= 5 and list[1].time > 0)
    list[1].age, list[1].time = nil, nil
    assert.same({
      kind = "config", state = "known", data_id = id, group = "DEFAULT_GROUP", namespace = "", md5 = nacos.md5("secret-content"),
      source = "server", server = server.base, users = 2,
    }, list[1])
    assert.equal("absent", list[2].state)
    assert.equal(1, list[2].users)
  end)

  -- ---- services ----------------------------------------------------------------------------------------------------------------

  local function register(service, ip, more)
    local args = { service_name = service, ip = ip, port = 80 }
    for key, part in pairs(more or {}) do
      args[key] = part
    end
    assert(writer:add_naming_instance(args))
  end

  it("lists the instances of a service", function()
    local s, user, service = new(), {}, name("service")
    register(service, "10.0.0.2", { weight = 2, metadata = { zone = "b" }, ephemeral = false })
    register(service, "10.0.0.1", { ephemeral = false })
    register(service, "10.0.0.3", { healthy = false, ephemeral = false })
    register(service, "10.0.0.4", { cluster_name = "C2", weight = 0.5, ephemeral = false })
    local _, err = pass(s, user, function(f) return f.service(service) end)
    assert.equal("unknown", err.code)
    assert.matches("^service '" .. service .. "' is not known: ", tostring(err))
    until_told(user, 1)
    local list, _, used = pass(s, user, function(f) return f.service(service) end)
    assert.equal("10.0.0.1 10.0.0.2 10.0.0.4", ("%s %s %s"):format(list[1].ip, list[2].ip, list[3].ip))
    assert.equal("1 2 0.5", ("%s %s %s"):format(list[1].weight, list[2].weight, list[3].weight))
    assert.same({ zone = "b" }, list[2].metadata)
    assert.equal("known", used[1].state)
    assert.equal("server", used[1].source)
    assert.equal(service, used[1].name)
    assert.equal(4, used[1].instances)
    assert.equal(3, #list)
    list[2].metadata.zone, list[1].ip = "changed", "changed"
    list = pass(s, user, function(f) return f.service(service, { all = true }) end)
    assert.equal("10.0.0.1", list[1].ip)
    assert.equal("b", list[2].metadata.zone)
    assert.equal(4, #list)
    list = value(s, user, function(f) return f.service(service, { clusters = "C2" }) end)
    assert.equal(1, #list)
    assert.equal(1, client:status().subscriptions)
  end)

  it("follows a service, one that has no instances yet, too", function()
    local s, user, service = new(), {}, name("service")
    assert.same({}, value(s, user, function(f) return f.service(service) end))
    user.told = 0
    register(service, "10.0.0.1")
    until_told(user, 1)
    assert.equal(1, #pass(s, user, function(f) return f.service(service) end))
    client:stop_subscribe() -- for listeners of scripts
    client:unsubscribe(service)
    register(service, "10.0.0.2")
    until_told(user, 2)
    assert.equal(2, #pass(s, user, function(f) return f.service(service) end))
    s:forget(user)
    assert.equal(0, client:status().subscriptions)
  end)

  it("keeps the instances while the server is down", function()
    local own = support.start_server()
    client = lab.client(own)
    local s, user = new(), {}
    assert(client:add_naming_instance("web", "10.0.0.1", 80))
    support.eventually(function() return #value(s, user, function(f) return f.service("web") end) == 1 end)
    own:kill9()
    support.eventually(function() return not client:status().connected end, 10)
    assert.equal(1, #pass(s, user, function(f) return f.service("web") end))
  end)

  it("lists the names of services that match", function()
    local s, user, group = new { files_interval = 0.02 }, {}, name("group")
    for _, service in ipairs { "web-b", "web-a", "web", "db.x" } do
      register(service, "10.0.0.1", { group_name = group })
    end
    local function names(pattern)
      return function(f)
        return table.concat(f.services(pattern, { group = group }), " ")
      end
    end
    local found = until_known(s, user, names("web-*"))
    assert.equal("web-a web-b", found.result)
    assert.equal(4, found.used[1].services)
    assert.equal("db.x web web-a web-b", (pass(s, user, names())))
    assert.equal("web web-a web-b", (pass(s, user, names("web*"))))
    assert.equal("db.x", (pass(s, user, names("*.x"))))
    assert.equal("", (pass(s, user, names("w.b"))))
    user.told = 0
    register("web-c", "10.0.0.1", { group_name = group })
    until_told(user, 1)
    assert.equal("web-a web-b web-c", (pass(s, user, names("web-*"))))
  end)

  it("does not believe at once that there are no services any more, nor a server that is down", function()
    local s, user = new { files_interval = 0.02 }, {}
    local group, answers = name("group"), 0
    register("web", "10.0.0.1", { group_name = group })
    local function names(f)
      return table.concat(f.services("*", { group = group }), " ")
    end
    assert.equal("web", value(s, user, names))
    local list = client.list_services
    client.list_services = function(...)
      answers = answers + 1
      return list(...)
    end
    server:faults { path = "/nacos/v1/ns/service/list", status = 503, body = "down" }
    support.eventually(function() return s:status()[1].trouble end)
    assert.equal("web", (pass(s, user, names)))
    server:clear_faults()
    server:faults { path = "/nacos/v1/ns/service/list", status = 200, body = '{"count":0,"doms":[]}' }
    answers = 0
    support.eventually(function()
      if answers < 3 then
        assert.equal("web", (pass(s, user, names)))
      end
      return answers >= 3 and pass(s, user, names) == ""
    end)
  end)

  it("reads many services by pages, and not half a list", function()
    local s, user = new { files_interval = 0.02 }, {}
    local total, pages = 1200, 0
    client.list_services = function(_, a)
      pages = pages + 1
      local items = {}
      for i = (a.page - 1) * a.page_size + 1, math.min(a.page * a.page_size, total) do
        items[#items + 1] = ("s%04d"):format(i)
      end
      nacos.sleep(0)
      if pages == 2 then
        total = total - 1 -- one went meanwhile
      end
      return { total = total, items = items }
    end
    local list = value(s, user, function(f) return f.services() end)
    assert.equal(1199, #list)
    assert.equal("s1199", list[1199])
    assert.is_true(pages >= 5)
  end)

  -- ---- files and the environment -----------------------------------------------------------------------------------------------

  it("follows files", function()
    local s, user = new { files_interval = 0.02, client = false or nil }, {}
    local path = support.tmpdir() .. "/list"
    local function read(f)
      return f.file(path, { default = "none" })
    end
    assert.equal("none", (pass(s, user, read)))
    local _, err = pass(s, user, function(f) return f.file(path) end)
    assert.equal("not_found", err.code)
    assert.matches(path, tostring(err), 1, true)
    support.write(path, "one")
    until_told(user, 1)
    local text, _, used = pass(s, user, read)
    assert.equal("one", text)
    assert.is_true(used[1].time > 0)
    used[1].time = nil
    assert.same({ { kind = "file", state = "known", path = path, md5 = nacos.md5("one") } }, used)
    support.write(path, "two") -- as long, and perhaps in the same moment
    until_told(user, 2)
    assert.equal("two", (pass(s, user, read)))
    uv.fs_utime(path, 1, 1) -- the same content
    support.write(path .. ".new", "three")
    uv.fs_rename(path .. ".new", path)
    until_told(user, 3)
    assert.equal("three", (pass(s, user, read)))
    os.remove(path)
    until_told(user, 4)
    assert.equal("none", (pass(s, user, read)))
    assert.equal(4, user.told)
    s:forget(user)
    assert.is_true(lab.timed(nacos.run) < 1)
  end)

  it("sees a file that changed within the moment of its last change, and tries again what could not be read", function()
    local s, user = new { files_interval = 0.02 }, {}
    local path, stat, open = support.tmpdir() .. "/list", uv.fs_stat, io.open
    local function read(f)
      return f.file(path)
    end
    finally(function()
      uv.fs_stat, io.open = stat, open -- luacheck: ignore 122
    end)
    support.write(path, "one")
    local frozen = stat(path)
    frozen.ctime.sec = 1 -- nothing of it tells of a change
    uv.fs_stat = function()
      return frozen
    end
    io.open = function(name_of_file) -- luacheck: ignore 122
      return nil, name_of_file .. ": Too many open files", 24
    end
    local _, err = pass(s, user, read)
    io.open = open -- luacheck: ignore 122
    assert.equal("unknown", err.code)
    assert.equal(("file '%s' is not known: cannot read it: Too many open files"):format(path), tostring(err))
    until_told(user, 1)
    assert.equal("one", (pass(s, user, read)))
    frozen.ctime.sec = os.time()
    nacos.step(0.1)
    support.write(path, "two")
    until_told(user, 2)
    assert.equal("two", (pass(s, user, read)))
  end)

  it("does not wait for what is no file, and keeps what it read before", function()
    local s, user = new { files_interval = 0.02 }, {}
    local folder = support.tmpdir()
    support.run({ "mkfifo", folder .. "/pipe" })
    for path, why in pairs { [folder] = "not a file but a directory", [folder .. "/pipe"] = "not a file but a fifo" } do
      local _, err, used = pass(s, user, function(f) return f.file(path, { default = "" }) end)
      assert.equal("unknown", err.code)
      assert.matches(why, tostring(err))
      assert.equal("unknown", used[1].state)
    end
    local path = folder .. "/list"
    support.write(path, "good")
    assert.equal("good", value(s, user, function(f) return f.file(path) end))
    user.told = 0
    os.remove(path)
    uv.fs_mkdir(path, tonumber("700", 8))
    support.eventually(function() return s:status()[1].trouble end)
    assert.equal("good", (pass(s, user, function(f) return f.file(path) end)))
  end)

  it("reads the environment", function()
    local s, user = new(), {}
    local text, _, used = pass(s, user, function(f)
      return f.env("PATH") .. f.env("LUNACOS_NOT_SET", "default") .. f.env("PATH")
    end)
    assert.equal(os.getenv("PATH") .. "default" .. os.getenv("PATH"), text)
    assert.same({ { kind = "env", name = "PATH" }, { kind = "env", name = "LUNACOS_NOT_SET" } }, used)
    local _, err = pass(s, user, function(f) return f.env("LUNACOS_NOT_SET") end)
    assert.matches("LUNACOS_NOT_SET' is not set", tostring(err))
  end)

  -- ---- templates ---------------------------------------------------------------------------------------------------------------

  it("serves templates, their files from their own folder", function()
    local s, user, id = new(), {}, item('{"port":8080}', "json")
    local folder = support.tmpdir()
    support.write(folder .. "/part", "part")
    local text = '{{ config("' .. id .. '").port }} {{ file("part") }} {{ file("no", {default = "-"}) }}'
    local t = assert(template.compile(text, "t", folder))
    local reader = s:read(user)
    local out, err = t:render({}, { functions = reader.functions })
    reader:done(not out)
    assert.is_nil(out)
    assert.equal("unknown", err.code)
    assert.equal(1, err.line)
    user.told = 0
    until_told(user, 1)
    reader = s:read(user)
    assert.equal("8080 part -", (t:render({}, { functions = reader.functions })))
    local used = reader:done()
    assert.equal(folder .. "/part", used[2].path)
    assert.equal("absent", used[3].state)
  end)

  it("blames the caller for misuse", function()
    local s, user = new(), {}
    for call, wrong in pairs {
      ['config("x", { namspace = "n" })'] = "bad argument 'namspace' to 'config' (did you mean 'namespace'?)",
      ["text()"] = "missing argument 'data_id' to 'text'",
      ["service(1)"] = "bad argument 'name' to 'service'",
      ['service("x", { cluster = "n" })'] = "bad argument 'cluster' to 'service' (did you mean 'clusters'?)",
      ['services("x", "y")'] = "too many arguments to 'services'",
      ["file()"] = "missing argument 'path' to 'file'",
    } do
      local _, err = pass(s, user, function(f)
        load("local value = " .. call, "=script", "t", f)()
      end)
      assert.equal("script:1: " .. wrong, err:sub(1, 10 + #wrong))
    end
    assert.equal(0, client:status().watches)
    assert.has_error(function() sources.new { client = client } end)
    local none = sources.new { changed = function() end }
    local _, err = pass(none, user, function(f) return f.config("x") end)
    assert.matches("agent.connect", tostring(err))
  end)
end)
