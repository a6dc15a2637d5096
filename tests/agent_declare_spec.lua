--- What a script of the agent may declare. What is spelled wrong is refused at its own line, before anything happens.

local agent = require "nacos.agent"
local process = require "nacos.process"
local nacos = require "nacos"
local support = require "support"
local uv = require "luv"

local folder = support.tmpdir()

---Run a script as `lunacos run` does. @return nacos.agent.Definitions|nil, string|nil
local function declare(text)
  return agent.collect(function(enter)
    enter(folder)
    assert(load('local agent = require "nacos.agent"\n' .. text, "=agent.lua"))()
  end)
end

local function declared(text)
  return assert(declare(text))
end

---@param line integer
---@param ... string # parts of the message
local function refused(line, text, ...)
  local definitions, problem = declare(text)
  assert.is_nil(definitions, text)
  assert.equal(("agent.lua:%d: "):format(line), tostring(problem):match("^[^ ]* "), text .. "\n" .. tostring(problem))
  for _, part in ipairs { ... } do
    assert.truthy(tostring(problem):find(part, 1, true), text .. "\n" .. tostring(problem))
  end
  assert.is_nil(tostring(problem):find("nacos/agent/", 1, true)) -- nor a line of ours
end

local function file(rest)
  return ('\nagent.file { path = "a", template = "x", %s }'):format(rest)
end

describe("a declaration", function()
  it("knows the options of the client", function()
    refused(3, '\nagent.connect { server_adresses = "x" }', "'server_adresses' to 'agent.connect'",
      "did you mean 'server_addresses'?")
    refused(3, '\nagent.connect { namespace = 5 }', "'namespace' to 'agent.connect'", "string expected")
    refused(3, '\nagent.connect { namespace = "a b" }', "'namespace'", "only letters")
    refused(3, '\nagent.connect { server_addresses = "a b" }', "bad server address 'a b'", "agent.connect")
    refused(3, '\nagent.connect { server_addresses = "10.0.0.1:port" }', "bad server address")
    refused(3, '\nagent.connect { endpoint = "ftp://x" }', "bad server address 'ftp://x'")
    refused(3, '\nagent.connect { log_level = "loud" }', "DEBUG, INFO")
    local given = declared 'agent.connect { server_addresses = "a:1,[::1]", timeout = nil, push = false }'
    assert.same({ server_addresses = "a:1,[::1]", push = false }, given.connection) -- no defaults: the command line's stand
    assert.equal("agent.lua:2: ", given.connected_at)
  end)

  it("of limits is checked, and changes nothing yet", function()
    refused(3, "\nagent.limits { budgt = 1 }", "did you mean 'budget'")
    refused(3, "\nagent.limits { max_drop = 2 }", "at most 1")
    refused(3, "\nagent.limits { hold = -1 }", "at least 0")
    assert.same({ warn = 2, hold = 5 }, declared("agent.limits { warn = 1, hold = 5 } agent.limits { warn = 2 }").limits)
    assert.same({}, declared("").limits)
  end)

  it("of a watch or a push names what a server takes", function()
    for _, id in ipairs { "", "a b", "a/b", ("x"):rep(257), "a\\0b" } do
      refused(3, ('\nagent.watch("%s", print)'):format(id), "'data_id' to 'agent.watch'")
      refused(3, ('\nagent.watch("a", print, { group = "%s" })'):format(id), "'group' to 'agent.watch'")
      refused(3, ('\nagent.push { data_id = "%s", file = "f" }'):format(id), "'data_id' to 'agent.push'")
      refused(3, ('\nagent.push { data_id = "a", group = "%s", file = "f" }'):format(id), "'group' to 'agent.push'")
    end
    refused(3, '\nagent.push { data_id = "a", file = "f", type = "jason" }', "'type'", "'json'")
    refused(3, '\nagent.push { data_id = "a", file = "/etc/" }', "the path of a file")
    refused(3, '\nagent.push { data_id = "a", file = "f", check = { "jq", "{pth}" } }', "did you mean {path}?")
    refused(3, 'agent.push { data_id = "a", file = "f" }\nagent.push { data_id = "a", file = "g", group = "DEFAULT_GROUP" }',
      "a push named a in group DEFAULT_GROUP")
    declared 'agent.push { data_id = "a", file = "f" } agent.push { data_id = "a", group = "g", file = "f", type = "json" }'
  end)

  it("of a path that cannot be one", function()
    for path, why in pairs {
      [""] = "path of a file", ["a/"] = "path of a file", ["a/."] = "path of a file", ["/a/.."] = "path of a file",
      ["a\0b"] = "NUL", [("n"):rep(256)] = "longer than 255", [("n"):rep(256) .. "/a"] = "longer than 255",
      ["/" .. ("deep/"):rep(900)] = "path of a file", [("deep/"):rep(819) .. "x"] = "longer than 4095",
    } do
      local given = ("%q"):format(path):gsub("\0", "\\0")
      refused(2, ("agent.file { path = %s, template = 'x' }"):format(given), why)
      refused(2, ("agent.group { name = 'g', files = { { path = %s, template = 'x' } } }"):format(given), why, "files[1]")
    end
    declared(("agent.file { path = '%s', template = 'x' }"):format(("n"):rep(255)))
  end)

  it("gives a file to one target", function()
    assert(uv.fs_mkdir(folder .. "/real", 493))
    assert(uv.fs_symlink(folder .. "/real", folder .. "/link"))
    for _, pair in ipairs {
      { "x", "./x" }, { "x", uv.cwd() .. "/x" }, { "/none/x", "/none/../none//./x" }, { folder .. "/real/x", folder .. "/link/x" },
      { folder .. "/x", folder .. "/real/../x" }, { "/x", "/../x" },
    } do
      local one = ("agent.file { name = 'one', path = %q, template = '' }\n"):format(pair[1])
      refused(3, one .. ("agent.file { path = %q, template = '' }"):format(pair[2]), "belongs to the target one already")
      refused(3, one .. ("agent.group { name = 'g', files = { { path = %q, template = '' } } }"):format(pair[2]), "target one")
      refused(2, ("agent.group { name = 'g', files = { { path = %q, template = '' }, { path = %q, template = '' } } }"):format(
        pair[1], pair[2]), "is there twice")
    end
    declared("agent.file { path = 'x', template = '' } agent.file { path = 'y', template = '' }")
    local x = "agent.file { path = '%s/x', template = '' } "
    declared(x:format(folder) .. x:format(folder .. "/real"))
  end)

  it("of a computed group is checked when its list comes", function()
    local given = declared [[
      agent.file { path = "/none/a", template = "" }
      agent.group { name = "one", files = function() end }
      agent.group { name = "two", files = function() end }
    ]]
    local one, two = given.targets[2].check_files, given.targets[3].check_files
    local function list(...)
      local files = {}
      for i, path in ipairs { ... } do
        files[i] = { path = path, template = "" }
      end
      return files
    end
    for _, case in ipairs {
      { list "/none/../none/a", "may not hold .." }, { list ".././x", "may not hold .." }, { list "x\ny", "control characters" },
      { list "/none/a", "belongs to the target /none/a" }, { list("x", "./x"), "./x is there twice" },
      { { { path = "x", tmplate = "" } }, "'tmplate'" }, { { { path = "x" } }, "exactly one of" }, { "x", "a list is needed" },
      { { [1] = list "x"[1], [3] = list "y"[1] }, "element 2 is nil" },
      { { { path = "x", template = "{{ y" } }, "x:1:" },
    } do
      local ok, problem = pcall(one, case[1])
      assert.is_false(ok)
      assert.truthy(tostring(problem):find(case[2], 1, true), tostring(problem))
      assert.is_nil(tostring(problem):find("nacos/agent/", 1, true))
    end
    assert.equal(2, #one(list("/none/x..y", "z")))
    assert.is_false(pcall(two, list "z"))
    one(list "/none/x..y") -- z is free again
    assert.equal("z", two(list "z")[1].path)
    assert.is_false(pcall(one, list "./z"))
    assert.equal(1, #two(list "z")) -- its own, again
  end)

  it("of a list has no holes", function()
    refused(3, '\nagent.process { name = "p", command = "c", after = { "a", nil, "b" } }', "'after'", "element 2 is nil")
    refused(3, '\nagent.process { name = "p", command = "c", after = { a = true } }', "'after'", "key 'a'")
    refused(3, file 'reload = { "a", nil, "b" }', "'reload'", "2")
    refused(3, '\nagent.process { name = "p", command = { "a", nil, "b" } }', "'command'", "2")
    refused(3, '\nagent.group { name = "g", files = { [2] = { path = "a", template = "x" } } }', "element 1 is nil")
    refused(3, '\nagent.group { name = "g", files = { a = 1 } }', "key 'a'")
  end)

  it("of a process follows something that is declared, before or after it", function()
    declared [[
      agent.process { name = "p", command = "c", after = { "g", "a.conf", "/b/x", "named" } }
      agent.group { name = "g", files = function() end }
      agent.file { path = "/a/a.conf", template = "" }
      agent.file { path = "/b/x", template = "" }
      agent.file { path = "/c/x", name = "named", template = "" }
    ]]
    local files = '\nagent.file { path = "/b/site.conf", template = "" } agent.file { path = "/c/site.conf", template = "" }'
    refused(2, 'agent.process { name = "p", command = "c", after = { "/b/site.cnf" } }' .. files,
      "the process p is to start after /b/site.cnf", "did you mean '/b/site.conf'?")
    refused(2, 'agent.process { name = "p", command = "c", after = { "site.conf" } }' .. files, "which no file or group is named")
    refused(4, '\n\nagent.process { name = "p", command = "c", after = { "q" } }')
  end)

  it("waits between a least and a longest time", function()
    for wait, why in pairs {
      ["{ mni = 1 }"] = "did you mean 'min'", ["{ max = 1 }"] = "missing option 'min'", ["{ 1, 2 }"] = "by name",
      ["{ min = 2, max = 1 }"] = "max is less than min", ["{ min = -1 }"] = "at least 0", ["-1"] = "at least 0", ["0/0"] = "finite",
      ["'1s'"] = "table or number expected", ["{}"] = "missing option 'min'",
    } do
      refused(3, file("wait = " .. wait), why)
    end
    assert.same({ min = 2, max = 8 }, declared(file "wait = 2").targets[1].wait)
    assert.same({ min = 2, max = 2 }, declared(file "wait = { min = 2, max = 2 }").targets[1].wait)
  end)

  it("names in its commands what it has", function()
    refused(3, file 'check = { "cat", "{stagd}" }', "'check'", "{stagd} is not known, did you mean {staged}?")
    refused(3, file 'check = "cat {staged:nosuch}"', "{staged:nosuch} names none of its files")
    refused(3, file 'reload = { "echo", "{staged}" }', "'reload'", "{path} is the file")
    refused(3, file 'reload = "echo {pth}"', "did you mean {path}?")
    declared(file [[check = "awk '{print}' {staged} ${staged} {path:a} ${PATH} {a,b}; f() {echo}"]])
    declared(file 'reload = { "x", "{path}", "{}" }')
    declared '\nagent.group { name = "g", files = function() end, check = { "cat", "{staged:any}" } }'
    declared '\nagent.file { path = "a", template = "x", symlink = "follow", check = { "cat", "{staged:where-it-leads}" } }'
  end)

  it("of a file has the rules of files", function()
    for rest, why in pairs {
      ['mode = "rw"'] = "octal", ["mode = 0644"] = "string expected", ['mode = "00644"'] = "octal", ['owner = ""'] = "is empty",
      ["owner = 1.5"] = "whole number", ["group = -1"] = "at least 0", ['symlink = "keep"'] = "'follow'", ["mkdir = 1"] = "boolean",
      ['name = ""'] = "is empty", ['source = ""'] = "exactly one of", ["check = {}"] = "a program is needed",
    } do
      refused(3, file(rest), rest ~= 'source = ""' and why or "")
    end
    refused(3, '\nagent.file { path = "a", source = "none.tmpl" }', folder .. "/none.tmpl", "agent.file")
    refused(3, '\nagent.file { path = "a", template = "{{ x" }', "a:1:", "agent.file")
    refused(3, '\nagent.file "a"', "table expected")
  end)

  it("is for scripts only", function()
    local ok, problem = pcall(agent.file, { path = "a", template = "" })
    assert.is_false(ok)
    assert.matches("only a script", problem)
  end)
end)

it("lunacos check --offline tells it, with the line, and asks nobody", function()
  local function check(text)
    support.write(folder .. "/agent.lua", 'local agent = require "nacos.agent"\n' .. text)
    local done
    nacos.run(function()
      local words = { support.lunacos, "check", "--offline", "-s", "127.0.0.1:1", "agent.lua" }
      done = process.run(words, { cwd = folder, timeout = 20 })
      nacos.stop()
    end)
    return done.code, done.output
  end
  for text, part in pairs {
    ['agent.connect { server_adresses = "x" }'] = "agent.lua:2: bad option 'server_adresses'",
    ['agent.watch("", print)'] = "agent.lua:2: bad argument 'data_id'",
    ['agent.process { name = "p", command = "c", after = { "nosuch" } }'] = "agent.lua:2: the process p is to start after nosuch",
  } do
    local code, output = check(text)
    assert.equal(1, code)
    assert.truthy(output:find(part, 1, true), output)
  end
  local code, output = check 'agent.file { path = "x", template = "" }'
  assert.equal(0, code, output)
end)
