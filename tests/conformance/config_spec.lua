--- Reading, publishing, removing and listing configurations; every field with the characters that break encoders.
-- @each-protocol
-- luacheck: std lua54+busted

local json = require "cjson.safe"
local nacos = require "nacos"
local support = require "support"
local target = require "conformance.target"

local LIMIT = 2097152 -- bytes of encoded body that a server reads

---Publish and wait until it can be read.
local function put(client, data_id, group, content, opts)
  opts = opts or {}
  opts.wait = true
  assert(target.publish(client, data_id, group, content, opts))
end

---What the administrator's view of an item says: { desc=, tags=, app_name= }.
local function details(data_id, group)
  local status, body
  if target.v3_only then
    status, body = target.request("GET", "/v3/admin/cs/config", { dataId = data_id, groupName = group })
  else
    status, body = target.request("GET", "/v1/cs/configs", { dataId = data_id, group = group, show = "all" })
  end
  assert.are.equal(200, status, body)
  local item = json.decode(body)
  item = item.data or item
  return { desc = item.desc, tags = item.configTags, app_name = item.appName, type = item.type }
end

---Every code point of a range but those that are none of a text.
local function range(first, last, step)
  local parts = {}
  for code = first, last, step or 1 do
    if code < 0xD800 or code > 0xDFFF then
      parts[#parts + 1] = utf8.char(code)
    end
  end
  return table.concat(parts)
end

describe(("configuration on %s by %s"):format(target.name, target.protocol), function()
  local client

  before_each(function()
    client = target.client()
  end)
  after_each(target.close_all)
  teardown(target.stop)

  it("is absent, published, read, replaced, removed", function()
    local group = target.group()
    local content, err = client:get_config("a", group)
    assert.is_nil(content)
    assert.are.equal("not_found", err.code)
    assert.are.equal(({ v1 = 404, v3 = 200 })[target.protocol], err.status)

    put(client, "a", group, "one")
    local source, info
    content, source, info = client:get_config("a", group)
    assert.are.equal("one", content)
    assert.are.equal("server", source)
    assert.are.equal(nacos.md5("one"), info.md5)
    assert.are.equal("text", info.type)

    put(client, "a", group, "two")
    assert.are.equal("two", (client:get_config("a", group)))
    assert.are.equal("two", target.content("a", group))

    assert.is_true(client:remove_config("a", group))
    support.eventually(function()
      local value, why = client:get_config("a", group)
      return value == nil and why.code == "not_found", value
    end)
    assert.is_nil(target.content("a", group))
    assert.is_true(client:remove_config("a", group), "removing what is not there is fine")
  end)

  it("takes DEFAULT_GROUP when no group is given", function()
    local id = "default-" .. target.group()
    assert(client:publish_config { data_id = id, content = "x", wait = true })
    assert.are.equal("x", target.content(id, "DEFAULT_GROUP"))
    assert.are.equal("x", (client:get_config(id)))
    assert(client:remove_config { data_id = id })
  end)

  it("keeps any content byte for byte", function()
    local group = target.group()
    local contents = {
      ascii = range(0x20, 0x7E),
      controls = "x" .. range(1, 0x1F) .. "\127x",
      latin = range(0x80, 0x17F),
      bmp = range(0x180, 0xFFFD, 61),
      astral = range(0x10000, 0x10FFFF, 4099),
      emoji = "👩‍👩‍👧‍👦 🏳️‍🌈 é e\u{301} 你好",
      bom = "\u{FEFF}text",
      crlf = "a\r\nb\rc\n\n\r\n",
      form = "a=b&c=d+e%20f%zz;g?h#i/j\\k",
      percent = "%25%2B%00%",
      blanks = "  \t leading and trailing \t\n ",
      quotes = [["'`<a href="x">&lt;&amp;</a>${x}#{y}]],
      separators = "a\1b\2c\u{2028}d",
      json = json.encode({ a = { 1, 2, { b = "\u{1F600}" } } }),
      one = "x",
    }
    for name, content in pairs(contents) do
      put(client, name, group, content)
      local got, source, info = client:get_config(name, group)
      assert.are.equal(content, got, name)
      assert.are.equal("server", source)
      assert.are.equal(nacos.md5(content), info.md5)
    end
    -- one poll brings all of them to a watch, as they are
    local watches = {}
    for name in pairs(contents) do
      watches[name] = target.watch(client, name, group)
    end
    for name, changes in pairs(watches) do
      target.arrives(changes, contents[name])
      assert.are.equal(1, #changes)
    end
  end)

  it("refuses an empty content at the caller's line", function()
    assert.has_error(function()
      client:publish_config("a", target.group(), "")
    end)
    assert.has_error(function()
      client:publish_config("a", target.group(), nil)
    end)
  end)

  it("keeps description, tags and application name", function()
    local group = target.group()
    local desc = "50% + 1 & 你好 😀 = \"x\" <y>"
    local tags = "one,zwei-ü,标签"
    local app = "app+1 & %41 é"
    assert(target.publish(client, "meta", group, "x", { desc = desc, tags = tags, app_name = app, type = "yaml" }))
    local has = details("meta", group)
    assert.are.equal(desc, has.desc)
    local sorted = {}
    for tag in has.tags:gmatch("[^,]+") do
      sorted[#sorted + 1] = tag
    end
    table.sort(sorted)
    assert.are.same({ "one", "zwei-ü", "标签" }, sorted)
    assert.are.equal(app, has.app_name)
    assert.are.equal("yaml", has.type)
  end)

  it("takes every character that a name may have, up to its full length", function()
    local group = "G_-.:" .. target.group()
    local ids = {
      "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", "_-.:", ":", "a..b", ".x", "-x-",
      -- a real server keeps an item in a file of that name: so not ".", and not all of the 256 that are legal
      ("i"):rep(250),
    }
    for i, id in ipairs(ids) do
      put(client, id, group, "value " .. i)
    end
    for i, id in ipairs(ids) do
      assert.are.equal("value " .. i, (client:get_config(id, group)))
      local changes = target.watch(client, id, group)
      target.arrives(changes, "value " .. i)
    end
    local long = group .. ("g"):rep(128 - #group)
    put(client, "x", long, "long group")
    assert.are.equal("long group", (client:get_config("x", long)))
  end)

  it("refuses other names at the caller's line", function()
    for _, id in ipairs { "", "a b", "a/b", "a+b", "ü", "a\1", "a%2e", "a@b", ("i"):rep(257) } do
      local ok, err = pcall(client.get_config, client, id, "G")
      assert.is_false(ok, id)
      assert.matches("get_config", err)
      assert.is_false(pcall(client.publish_config, client, "a", id, "x"), id)
    end
  end)

  it("keeps the type when none is given, and takes a new one", function()
    local group = target.group()
    put(client, "typed", group, '{"a":1}', { type = "json" })
    put(client, "typed", group, '{"a":2}')
    local _, _, info = client:get_config("typed", group)
    assert.are.equal("json", info.type)
    -- also by a client that did not publish it before
    put(target.client(), "typed", group, '{"a":3}')
    _, _, info = client:get_config("typed", group)
    assert.are.equal("json", info.type)
    put(client, "typed", group, "a: 4", { type = "yaml" })
    _, _, info = client:get_config("typed", group)
    assert.are.equal("yaml", info.type)
    for _, kind in ipairs { "text", "json", "xml", "yaml", "html", "properties", "toml" } do
      put(client, "type-" .. kind, group, kind .. "?", { type = kind })
      _, _, info = client:get_config("type-" .. kind, group)
      assert.are.equal(kind, info.type)
    end
  end)

  it("compares and sets", function()
    local group = target.group()
    put(client, "cas", group, "one")
    assert.is_true(client:publish_config("cas", group, "two", { cas_md5 = nacos.md5("one"), wait = true }))
    local ok, err = client:publish_config("cas", group, "three", { cas_md5 = nacos.md5("one") })
    assert.is_nil(ok)
    assert.are.equal("conflict", err.code)
    assert.matches("cas", tostring(err))
    assert.are.equal("two", (client:get_config("cas", group)))
    assert.is_true(client:publish_config("cas", group, "three", { cas_md5 = nacos.md5("two"):upper(), wait = true }))
    assert.are.equal("three", (client:get_config("cas", group)))
    -- a server would create what does not exist, whatever md5 was expected
    ok, err = client:publish_config("cas-absent", group, "new", { cas_md5 = nacos.md5("x"), type = "text" })
    assert.is_nil(ok)
    assert.are.equal("conflict", err.code)
    assert.are.equal("not_found", select(2, client:get_config("cas-absent", group)).code)
  end)

  it("takes 1 MB, and over HTTP everything up to the limit", function()
    local group = target.group()
    local mega = ("0123456789abcdef"):rep(65536)
    put(client, "mega", group, mega, { timeout = 30 })
    assert.are.equal(mega, (client:get_config("mega", group, 30)))
    local wide = ("你好，世界 "):rep(40000) -- 640 KB, 1.9 MB encoded
    put(client, "wide", group, wide, { timeout = 30 })
    assert.are.equal(wide, (client:get_config("wide", group, 30)))
    if target.protocol == "grpc" then
      local more = ("x"):rep(3 * LIMIT // 2)
      put(client, "more", group, more, { type = "text", timeout = 30 })
      assert.are.equal(more, (client:get_config("more", group, 30)))
      return
    end

    -- the error names the size of the whole body: so one can find what still fits
    local _, err = client:publish_config("limit", group, ("x"):rep(LIMIT), { type = "text" })
    assert.are.equal("invalid", err.code)
    assert.is_nil(err.status)
    assert.matches(tostring(LIMIT), tostring(err))
    local size = tonumber(tostring(err):match("(%d+) bytes in the encoded form"))
    local fits = LIMIT - (size - LIMIT)
    _, err = client:publish_config("limit", group, ("x"):rep(fits + 1), { type = "text" })
    assert.are.equal("invalid", err.code)
    put(client, "limit", group, ("x"):rep(fits), { type = "text", timeout = 30 })
    assert.are.equal(fits, #client:get_config("limit", group, 30))
    _, err = client:publish_config("limit", group, ("\n"):rep(LIMIT // 2), { type = "text" })
    assert.are.equal("invalid", err.code, "the encoded size counts")
  end)

  it("keeps namespaces apart, and public is the empty one", function()
    local group = target.group()
    local empty, public, named = client, target.client { namespace = "public" }, target.client { namespace = "ns-1_A" }
    put(empty, "x", group, "of the public one")
    assert.are.equal("of the public one", (public:get_config("x", group)))
    local _, err = named:get_config("x", group)
    assert.are.equal("not_found", err.code)
    put(named, "x", group, "of ns-1_A")
    assert.are.equal("of ns-1_A", (named:get_config("x", group)))
    assert.are.equal("of the public one", (empty:get_config("x", group)))
    put(public, "x", group, "written as public")
    assert.are.equal("written as public", (empty:get_config("x", group)))
    assert.are.equal(1, public:get_configs { group = group }.total)
    assert.are.equal(1, named:get_configs { group = group }.total)
    assert(public:remove_config("x", group))
    support.eventually(function()
      return empty:get_config("x", group) == nil
    end)
    assert.are.equal("of ns-1_A", (named:get_config("x", group)))
  end)

  it("lists by pattern and page", function()
    local group = target.group()
    for i = 1, 23 do
      assert(target.publish(client, ("list-%02d"):format(i), group, "value " .. i, { type = "properties", app_name = "lister" }))
    end
    assert(target.publish(client, "other", group, "value"))

    local page = assert(client:get_configs { group = group, data_id = "list-*", page = 1, page_size = 10 })
    assert.are.equal(23, page.total)
    assert.are.equal(1, page.page)
    assert.are.equal(3, page.pages)
    assert.are.equal(10, #page.items)
    assert.are.equal(3, #assert(client:get_configs { group = group, data_id = "list-*", page = 3, page_size = 10 }).items)
    assert.are.equal(0, #assert(client:get_configs { group = group, data_id = "list-*", page = 4, page_size = 10 }).items)
    local item = page.items[1]
    assert.matches("^list%-%d%d$", item.data_id)
    assert.are.equal(group, item.group)
    if not target.v3_only and target.protocol ~= "v3" then -- whose list tells no contents
      assert.are.equal("value " .. tonumber(item.data_id:match("%d+")), item.content)
    end

    local seen, n = {}, 0
    for one in client:each_config { group = group, page_size = 5 } do
      assert.is_nil(seen[one.data_id])
      seen[one.data_id], n = true, n + 1
    end
    assert.are.equal(24, n)
    assert.is_true(seen["other"] and seen["list-01"] and seen["list-23"])

    local exact = assert(client:get_configs { group = group, data_id = "list-07" })
    assert.are.equal(1, exact.total)
    assert.are.equal("list-07", exact.items[1].data_id)
    assert.are.equal(0, assert(client:get_configs { group = group, data_id = "nothing-*" }).total)
    assert.are.equal(24, assert(client:get_configs { group = group .. "*" }).total, "a group may be a pattern too")
  end)

  it("serves many callers at once", function()
    local group = target.group()
    local n, bad = 0, {}
    nacos.run(function()
      for i = 1, 64 do
        nacos.spawn(function()
          local id = "many-" .. i
          local ok, err = target.publish(client, id, group, "value " .. i, { wait = true, timeout = 30 })
          local value = client:get_config(id, group)
          if not ok or value ~= "value " .. i then
            bad[#bad + 1] = id .. ": " .. tostring(err) .. " " .. tostring(value)
          end
          n = n + 1
        end)
      end
    end)
    assert.are.equal(64, n)
    assert.are.same({}, bad)
  end)

  it("reads the failover file before the server", function()
    local group, base = target.group(), support.tmpdir()
    put(client, "f", group, "of the server")
    local other = target.client { failover_base = base }
    support.write(base .. "/f+" .. group .. "+", "of the operator")
    local content, source = other:get_config("f", group)
    assert.are.equal("of the operator", content)
    assert.are.equal("failover", source)
    os.remove(base .. "/f+" .. group .. "+")
    content, source = other:get_config("f", group)
    assert.are.equal("of the server", content)
    assert.are.equal("server", source)
  end)
end)
