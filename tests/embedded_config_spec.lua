--- Configurations on the embedded server, against what real 2.3–2.5 servers answer.

local support = require "support"
local json = require "cjson.safe"
local embedded = require "embedded"

local CONFIGS, call, publish, read = embedded.CONFIGS, embedded.call, embedded.publish, embedded.read
local remove, md5, line, poll = embedded.remove, embedded.md5, embedded.line, embedded.poll
local parked_poll, missing, assert_caused = embedded.parked_poll, embedded.missing, embedded.assert_caused

describe("the embedded server", function()
  local server

  setup(function()
    server = support.start_server()
  end)

  teardown(function()
    if server then
      server:stop()
    end
  end)

  describe("read, publish, remove", function()
    it("gives back every byte, with the headers of a real server", function()
      local content = "h\u{e9}llo \u{1F600}\r\n\ttab & = % + ;\n"
      local published = publish(server, "r1", content, { type = "json" })
      assert.equal("true", published.body)
      assert.equal(200, published.status)
      local got = read(server, "r1")
      assert.equal(200, got.status)
      assert.equal(content, got.body)
      local h = got.headers
      assert.equal(md5(content), h["content-md5"])
      assert.equal("json", h["config-type"])
      assert.equal("text/plain;charset=UTF-8", h["content-type"])
      assert.equal("no-cache,no-store", h["cache-control"])
      assert.equal("no-cache", h.pragma)
      assert.equal("Thu, 01 Jan 1970 00:00:00 GMT", h.expires)
      assert.matches("^%a%a%a, %d%d %a%a%a %d%d%d%d %d%d:%d%d:%d%d GMT$", h["last-modified"])
      assert.equal("", h["encrypted-data-key"])
      assert.equal("chunked", h["transfer-encoding"])
      assert.is_nil(h["content-length"])
      assert.is_nil(h["set-cookie"])
      assert.is_nil(h.connection)
    end)

    it("answers 404 for what is absent, and true to its removal", function()
      local got = read(server, "absent")
      assert.equal(404, got.status)
      assert.equal("config data not exist\n", got.body)
      assert.equal("22", got.headers["content-length"])
      assert.equal("application/json;charset=UTF-8", got.headers["content-type"])
      assert.is_nil(got.headers.connection)
      assert.equal("true", remove(server, "absent").body)
    end)

    it("removes, by query or by form", function()
      publish(server, "r2", "x")
      assert.equal("true", remove(server, "r2").body)
      assert.equal(404, read(server, "r2").status)
      publish(server, "r2", "x")
      assert.equal("true", call(server, { "DELETE", CONFIGS, form = { dataId = "r2", group = "G" } }).body)
      assert.equal(404, read(server, "r2").status)
    end)

    it("takes a publish in the query as well, and joins what is given twice, the query first", function()
      local query = { dataId = "r3", group = "G", content = "q" }
      assert.equal("true", call(server, { "POST", CONFIGS, query = query, form = "content=f" }).body)
      assert.equal("q,f", read(server, "r3").body)
    end)

    it("replaces what is not UTF-8 as Tomcat does", function()
      local bytes = "dataId=r4&group=G&content=a%FFb%E2%82c%ED%A0%80%E0%80%80%F0%9F%98%80"
      assert.equal("true", call(server, { "POST", CONFIGS, form = bytes }).body)
      local clean = "a\u{FFFD}b\u{FFFD}c\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{1F600}"
      local got = read(server, "r4")
      assert.equal(clean, got.body)
      assert.equal(md5(clean), got.headers["content-md5"])
    end)

    it("leaves out a parameter with a broken escape", function()
      assert_caused(call(server, { "POST", CONFIGS, form = "dataId=r5&group=G&content=%4" }), 500, missing("content"))
    end)

    it("keeps namespaces apart", function()
      publish(server, "ns", "a")
      publish(server, "ns", "b", { tenant = "t1" })
      assert.equal("a", read(server, "ns").body)
      assert.equal("a", read(server, "ns", { tenant = "" }).body)
      assert.equal("b", read(server, "ns", { tenant = "t1" }).body)
      remove(server, "ns", { tenant = "t1" })
      assert.equal("a", read(server, "ns").body)
      assert.equal(404, read(server, "ns", { tenant = "t1" }).status)
    end)

    it("answers HEAD and HTTP/1.0", function()
      publish(server, "r6", "x")
      local head = call(server, { "HEAD", CONFIGS, query = { dataId = "r6", group = "G" }, curl = { "-I" } })
      assert.equal(200, head.status)
      assert.equal(md5("x"), head.headers["content-md5"])
      assert.equal("1", head.headers["content-length"])
      local old = call(server, { "GET", CONFIGS, query = { dataId = "r6", group = "G" }, curl = { "--http1.0" } })
      assert.equal("x", old.body)
      assert.is_nil(old.headers["transfer-encoding"])
    end)

    it("refuses other methods", function()
      assert_caused(call(server, { "PATCH", CONFIGS }), 500, "Request method &#39;PATCH&#39; not supported")
    end)

    it("answers Expect: 100-continue", function()
      local got = call(server, { "POST", CONFIGS, form = { dataId = "r7", group = "G", content = ("x"):rep(5000) },
        headers = { Expect = "100-continue" } })
      assert.equal("true", got.body)
      assert.truthy(got.seconds < 0.9) -- curl waits 1 s for the 100
    end)
  end)

  describe("parameter checks", function()
    it("miss a parameter with 500, in the order of the real handler", function()
      assert_caused(call(server, { "GET", CONFIGS, query = { group = "G" } }), 500, missing("dataId"))
      assert_caused(call(server, { "GET", CONFIGS, query = { dataId = "x" } }), 500, missing("group"))
      assert_caused(call(server, { "POST", CONFIGS, form = { dataId = "x", group = "G" } }), 500, missing("content"))
      assert_caused(call(server, { "POST", CONFIGS, form = {} }), 500, missing("dataId"))
      assert_caused(call(server, { "DELETE", CONFIGS, query = { dataId = "x" } }), 500, missing("group"))
    end)

    it("refuse blank ones with 400", function()
      assert_caused(read(server, ""), 400, "invalid dataId : ")
      assert_caused(call(server, { "GET", CONFIGS, query = { dataId = "x", group = " " } }), 400, "invalid group :  ")
      assert_caused(publish(server, "x", ""), 400, "content is blank : ")
      assert_caused(publish(server, "x", " \n"), 400, "content is blank :  \n")
    end)

    it("refuse illegal and long identifiers with 400", function()
      local function illegal(name)
        return "Param '" .. name .. "' is illegal, illegal characters should not appear in the param.\r\n"
      end
      local function long(name, max)
        return "Param '" .. name .. "' is illegal, the param length should not exceed " .. max .. ".\r\n"
      end
      for _, case in ipairs {
        { illegal("dataId"), { dataId = "a b" } }, { illegal("dataId"), { dataId = "\u{e4}" } },
        { illegal("dataId"), { dataId = "a\0b" } }, { illegal("group"), { group = "a/b" } },
        { illegal("namespaceId/tenant"), { tenant = "a.b" } }, { illegal("namespaceId/tenant"), { namespaceId = "a.b" } },
        { long("dataId", 256), { dataId = ("d"):rep(257) } }, { long("group", 128), { group = ("g"):rep(129) } },
        { long("namespaceId/tenant", 64), { tenant = ("t"):rep(65) } },
      } do
        local got = read(server, "x", case[2])
        assert.equal(case[1], got.body)
        assert.equal(400, got.status)
        assert.equal("close", got.headers.connection)
        assert.equal("no-cache", got.headers.pragma)
        assert.equal(case[1], publish(server, "x", "y", case[2]).body)
        assert.equal(case[1], remove(server, "x", case[2]).body)
      end
      assert.equal(404, read(server, ("d"):rep(256), { group = ("g"):rep(128), tenant = ("t"):rep(64) }).status)
      assert.equal(404, read(server, "aZ09-_:.").status)
    end)

    it("refuse long descriptions", function()
      assert_caused(publish(server, "x", "y", { desc = ("d"):rep(129) }), 400, "too long desc, over 128")
      assert_caused(publish(server, "x", "y", { config_tags = "a,b,c,d,e,f" }), 400, "too much config_tags, over 5")
      assert.equal("true", publish(server, "x", "y", { desc = ("\u{e4}"):rep(128), config_tags = "a,b,c,d,e" }).body)
    end)
  end)

  describe("the form limit", function()
    local function padded(data_id, size)
      local start = "dataId=" .. data_id .. "&group=G&content="
      return start .. ("x"):rep(size - #start)
    end

    it("takes 2,097,152 bytes and not one more", function()
      local body = padded("big", 2097152)
      assert.equal("true", call(server, { "POST", CONFIGS, form = body }).body)
      assert.equal(#body - #"dataId=big&group=G&content=", #read(server, "big").body)
      assert_caused(call(server, { "POST", CONFIGS, form = padded("big2", 2097153) }), 500, missing("dataId"))
      assert.equal(404, read(server, "big2").status)
    end)

    it("answers much larger bodies too, with and without Expect", function()
      for _, expect in ipairs { "Expect:", "Expect: 100-continue" } do
        local got = call(server, { "POST", CONFIGS, form = padded("big3", 5 * 1048576), curl = { "-H", expect } })
        assert_caused(got, 500, missing("dataId"))
      end
    end)

    it("holds for a body without a length", function()
      local got = call(server, { "POST", CONFIGS, form = padded("big4", 2097153), curl = { "-H", "Transfer-Encoding: chunked" } })
      assert_caused(got, 500, missing("dataId"))
      got = call(server, { "POST", CONFIGS, form = padded("big4", 2097152), curl = { "-H", "Transfer-Encoding: chunked" } })
      assert.equal("true", got.body)
    end)
  end)

  describe("casMd5", function()
    local function cas(data_id, content, sum)
      local fields = { dataId = data_id, group = "G", content = content }
      return call(server, { "POST", CONFIGS, form = fields, headers = { casMd5 = sum } })
    end

    it("writes only over what it names", function()
      publish(server, "cas", "one")
      assert_caused(cas("cas", "two", md5("other")), 500, "Cas publish fail, server md5 may have changed.")
      assert.equal("one", read(server, "cas").body)
      assert.equal("true", cas("cas", "two", md5("one")).body)
      assert.equal("two", read(server, "cas").body)
    end)

    it("inserts on an absent key whatever it says, and counts only as a header", function()
      assert.equal("true", cas("cas2", "new", md5("whatever")).body)
      assert.equal("new", read(server, "cas2").body)
      assert.equal("true", publish(server, "cas2", "newer", { casMd5 = md5("whatever") }).body)
      assert.equal("newer", read(server, "cas2").body)
    end)

    it("is no condition when empty", function()
      publish(server, "cas3", "one")
      local fields = { dataId = "cas3", group = "G", content = "two" }
      local got = call(server, { "POST", CONFIGS, form = fields, curl = { "-H", "casMd5;" } })
      assert.equal("true", got.body)
      assert.equal("two", read(server, "cas3").body)
    end)
  end)

  describe("the type", function()
    it("is kept in a publish that names a known one", function()
      for _, kind in ipairs { "properties", "xml", "json", "text", "html", "yaml", "toml", "unset" } do
        publish(server, "type", "x", { type = kind })
        assert.equal(kind, read(server, "type").headers["config-type"])
      end
    end)

    it("falls back to text when omitted or unknown", function()
      publish(server, "type", "x", { type = "json" })
      publish(server, "type", "x")
      assert.equal("text", read(server, "type").headers["config-type"])
      publish(server, "type", "x", { type = "JSON" })
      assert.equal("text", read(server, "type").headers["config-type"])
    end)
  end)

  describe("tenant=public", function()
    it("means no tenant to a publish only", function()
      assert.equal("true", publish(server, "pub", "x", { tenant = "public" }).body)
      assert.equal("x", read(server, "pub").body)
      assert.equal(404, read(server, "pub", { tenant = "public" }).status)
      assert.equal("true", remove(server, "pub", { tenant = "public" }).body)
      assert.equal("x", read(server, "pub").body)
    end)

    it("is a key of its own to the listener", function()
      publish(server, "pub2", "x")
      local sum = md5("x")
      assert.equal("pub2%02G%02public%01\n", poll(server, line("pub2", sum, "public"), 30000).body)
      local wait, held = parked_poll(server, line("pub3", "", "public"))
      publish(server, "pub3", "x")
      assert.truthy(held())
      publish(server, "pub3", "x", { tenant = "t6" })
      assert.truthy(held())
      server:stop() -- ends the poll
      assert.equal(0, wait().status)
      server = support.start_server()
    end)
  end)

  describe("show=all", function()
    it("tells what was published", function()
      local before = os.time() * 1000
      publish(server, "all", "c\u{e9}", { type = "yaml", appName = "app", desc = "d", config_tags = "a,b", use = "u", effect = "e",
        schema = "s", src_user = "me", tenant = "t2" })
      local got = read(server, "all", { show = "all", tenant = "t2" })
      assert.equal(200, got.status)
      local info = json.decode(got.body)
      assert.matches("^%d+$", info.id)
      assert.truthy(info.createTime >= before and info.modifyTime >= info.createTime)
      info.id, info.createTime, info.modifyTime = nil, nil, nil
      assert.same({ dataId = "all", group = "G", tenant = "t2", content = "c\u{e9}", md5 = md5("c\u{e9}"), encryptedDataKey = "",
        appName = "app", type = "yaml", createUser = "me", createIp = "127.0.0.1", desc = "d", use = "u", effect = "e",
        schema = "s", configTags = "a,b" }, info)
    end)

    it("keeps application and tags over a publish that names none", function()
      publish(server, "all2", "1", { appName = "app", config_tags = "a", desc = "d" })
      local first = json.decode(read(server, "all2", { show = "all" }).body)
      publish(server, "all2", "2")
      local second = json.decode(read(server, "all2", { show = "all" }).body)
      assert.same({ first.id, first.createTime, "app", "a", "2", json.null },
        { second.id, second.createTime, second.appName, second.configTags, second.content, second.desc })
    end)

    it("is empty for what is absent", function()
      local got = read(server, "absent", { show = "all" })
      assert.equal(200, got.status)
      assert.equal("", got.body)
      assert.equal("0", got.headers["content-length"])
    end)
  end)

  describe("search", function()
    local function search(how, fields)
      local query = { search = how, dataId = "", group = "", pageNo = "1", pageSize = "100", tenant = "find" }
      for name, value in pairs(fields or {}) do
        query[name] = value ~= "-" and value or nil
      end
      return call(server, { "GET", CONFIGS, query = query })
    end

    local function found(how, fields)
      local names = {}
      for _, item in ipairs(json.decode(search(how, fields).body).pageItems) do
        names[#names + 1] = item.dataId
      end
      return table.concat(names, " ")
    end

    setup(function()
      for i = 1, 5 do
        publish(server, "find" .. i, "content " .. i, { tenant = "find", type = i == 5 and "json" or nil,
          appName = i == 4 and "app" or nil, config_tags = i == 3 and "x,y" or nil })
      end
      publish(server, "other", "o", { tenant = "find", group = "H" })
    end)

    it("pages in the order of publication", function()
      local page = json.decode(search("blur", { pageNo = "2", pageSize = "4" }).body)
      assert.same({ 6, 2, 2, 2 }, { page.totalCount, page.pageNumber, page.pagesAvailable, #page.pageItems })
      local item = page.pageItems[1]
      assert.matches("^%d+$", item.id)
      item.id = nil
      assert.same({ dataId = "find5", group = "G", content = "content 5", md5 = json.null, encryptedDataKey = "", tenant = "find",
        appName = "", type = "json" }, item)
      page = json.decode(search("blur", { pageNo = "3", pageSize = "4" }).body)
      assert.same({ 6, 3, 2, 0 }, { page.totalCount, page.pageNumber, page.pagesAvailable, #page.pageItems })
      assert.equal(6, json.decode(search("blur", { pageSize = "1000" }).body).totalCount)
    end)

    it("blur takes * as a wildcard, accurate does not", function()
      assert.equal("find1 find2 find3 find4 find5", found("blur", { dataId = "find*" }))
      assert.equal("find3", found("blur", { dataId = "*3" }))
      assert.equal("other", found("blur", { dataId = "*th*" }))
      assert.equal("", found("blur", { dataId = "ind*" }))
      assert.equal("find2", found("blur", { dataId = "find2" }))
      assert.equal("other", found("blur", { group = "H*" }))
      assert.equal("find2", found("accurate", { dataId = "find2" }))
      assert.equal("other", found("accurate", { group = "H" }))
      assert.equal("find1 find2 find3 find4 find5 other", found("accurate"))
      assert.equal(400, search("accurate", { dataId = "find*" }).status)
      assert.equal("", found("blur", { tenant = "fin" }))
    end)

    it("filters by application, tag and type", function()
      assert.equal("find4", found("accurate", { appName = "app" }))
      assert.equal("find3", found("blur", { config_tags = "y,z" }))
      assert.equal("find5", found("blur", { types = "json,xml" }))
    end)

    it("needs its parameters", function()
      assert_caused(search("blur", { dataId = "-" }), 500, missing("dataId"))
      assert_caused(search("accurate", { pageNo = "-" }), 500, missing("pageNo", "int"))
      local got = search("accurate", { pageSize = "x" })
      assert.equal(500, got.status)
      assert.matches("^caused: Failed to convert value of type &#39;java.lang.String&#39; to required type &#39;int&#39;", got.body)
      assert.equal(500, search("blur", { pageNo = "0" }).status)
    end)

    it("forgets what was removed", function()
      remove(server, "find1", { tenant = "find" })
      assert.equal("find2 find3 find4 find5", found("blur", { dataId = "find*" }))
    end)
  end)

  describe("with a lag", function()
    it("shows changes to readers and pollers later, to the database at once", function()
      local own = support.start_server { "--lag", "0.4" }
      local waiting = parked_poll(own, line("lag", ""))
      publish(own, "lag", "one")
      assert.equal(404, read(own, "lag").status)
      assert.equal("one", json.decode(read(own, "lag", { show = "all" }).body).content)
      local woken = waiting()
      assert.equal("lag%02G%01\n", woken.body)
      assert.truthy(woken.seconds >= 0.4, woken.seconds)
      assert.equal("one", read(own, "lag").body)
      publish(own, "lag", "two")
      publish(own, "lag", "three")
      assert.equal("one", read(own, "lag").body)
      support.eventually(function() return read(own, "lag").body == "three" end, 2)
      remove(own, "lag")
      assert.equal("three", read(own, "lag").body)
      support.eventually(function() return read(own, "lag").status == 404 end, 2)
      publish(own, "lag", "pending at the end")
      assert.equal(0, own:stop())
    end)
  end)
end)
