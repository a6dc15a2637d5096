--- lunacos test: templates and scripts against fixtures and golden files, without a server.

local formats = require("nacos.formats")
local guard = require("nacos.agent.guard")
local common = require("nacos.cli.common")
local look = require("nacos.cli.look")

local test = {
  summary = "Test templates and scripts against fixtures and golden files, without a server.",
  usage = "test [--update] [--only TEXT] SPEC.lua…",
  own_options = true,
  help = [[
A spec is a Lua script; every case() in it starts with nothing but its own fixtures:

  case("two web servers", function(t)
    t.config("shop.yaml", "port: 8080")        -- t.config(id, content, { group =, namespace =, type = })
    t.service("web", { { ip = "10.0.0.1", port = 80 }, { ip = "10.0.0.2", port = 80, weight = 3 } })
    t.env("REGION", "eu")
    t.file("/etc/hostname", "web1")            -- what file() reads there
    t.renders("shop.conf.tmpl", "golden/shop.conf")
  end)

  t.renders(TEMPLATE, GOLDEN, vars)   the template makes exactly this file of the fixtures
  t.golden(TEXT, GOLDEN)              a text is exactly this file
  t.equal(GOT, WANTED)                two values are the same (also tables)
  t.fails(TEMPLATE or function, PATTERN)   it fails, with a message like this Lua pattern
  t.render(TEMPLATE, vars) -> text    t.content(function(ctx) … end) -> text
  t.agent(SCRIPT, ARGS…) -> s         a script with what it declares:
    s.file(PATH) -> text              what a declared file becomes; s.files(TARGET) -> { [path] = text }
    s.change(ID, CONTENT)             calls what agent.watch was given; t.change(…) -> the change alone

assert() and error() do, too. What no fixture says does not exist; services without one have no
instances. Paths start from the folder of the spec. --update writes the golden files that are
missing or differ. Exit code: 0 all passed, 1 something failed or there was no case, 2 usage.]],
}

function test.setup(parser)
  parser:argument("specs"):args("+"):argname("SPEC.lua"):description("Scripts with cases")
  return {
    parser:flag("--update"):description("Write the golden files instead of comparing them"),
    parser:option("--only"):argname("TEXT"):description("Only cases with this in their names"),
  }
end

---@class nacos.cli.Tests
---@field run integer
---@field failed integer
---@field updated integer
---@field case string|nil # name of the one that runs
---@field broken boolean  # it has failed

local function fail(tests, text)
  if not tests.broken then
    tests.broken = true
    tests.failed = tests.failed + 1
    common.write("FAIL  ", tests.case, "\n")
  end
  common.write((("      " .. text):gsub("\n(.)", "\n      %1")), "\n")
end

---A diff of two texts.
local function show_difference(old, new, old_label, new_label)
  local path = os.tmpname()
  local file <close> = assert(io.open(path, "wb"))
  file:write(old)
  file:flush()
  look.diff(path, new, old_label, new_label)
  os.remove(path)
end

local function write(path, text)
  local ok, err = require("nacos.agent.files").mkdirs(path:match("^(.+)/[^/]*$") or ".")
  local file, problem = nil, err
  if ok then
    file, problem = io.open(path, "wb")
  end
  if file then
    ok, problem = file:write(text)
    ok = file:close() and ok
  end
  if not (file and ok) then
    common.fail(common.REFUSED, "cannot write the golden file: " .. tostring(problem))
  end
end

---A value as text that is the same for the same value.
local function shown(value)
  if type(value) ~= "table" then
    return type(value) == "string" and value or tostring(value)
  end
  local ok, text = pcall(formats.json, value)
  return ok and text or tostring(value)
end

---What a case gets.
local function tools(tests, folder)
  local t = require("nacos.agent.fixtures").new(folder)

  function t.golden(text, path)
    if type(text) ~= "string" or type(path) ~= "string" then
      error(("bad arguments to 'golden' (a text and a path expected, got %s and %s)"):format(type(text), type(path)), 2)
    end
    local whole = path:sub(1, 1) == "/" and path or (folder .. "/" .. path):gsub("^%./", "")
    local file <close> = io.open(whole, "rb")
    local wanted = file and file:read("a")
    if wanted == text then
      return
    elseif tests.update then
      write(whole, text)
      tests.updated = tests.updated + 1
      common.write("wrote ", whole, "\n")
    elseif not wanted then
      fail(tests, ("%s does not exist; --update writes it"):format(whole))
    else
      fail(tests, ("%s differs; --update makes it so:"):format(whole))
      look.diff(whole, text, whole, tests.case)
    end
  end

  function t.renders(source, path, vars)
    t.golden(t.render(source, vars), path)
  end

  function t.equal(got, wanted)
    if formats.same(got, wanted) then
      return
    elseif type(got) == "string" and type(wanted) == "string" and (got .. wanted):find("\n", 1, true) then
      fail(tests, ("line %d: not equal:"):format(debug.getinfo(2, "l").currentline))
      show_difference(wanted, got, "wanted", "got")
    else
      fail(tests, ("line %d: got %s %s, wanted %s %s"):format(debug.getinfo(2, "l").currentline, type(got), shown(got),
        type(wanted), shown(wanted)))
    end
  end

  function t.fails(what, pattern)
    local ok, err = pcall(type(what) == "function" and what or function()
      t.render(what)
    end)
    if ok then
      fail(tests, ("line %d: it does not fail"):format(debug.getinfo(2, "l").currentline))
    elseif pattern and not tostring(err):find(pattern) then
      fail(tests, ("line %d: it fails with another message: %s"):format(debug.getinfo(2, "l").currentline, tostring(err)))
    end
  end

  return setmetatable(t, { __index = function(_, name)
    local names = require("nacos.formats").sorted_keys(t)
    local nearest = require("nacos.options").nearest(tostring(name), names)
    error(("no function t.%s (%s)"):format(name, nearest and "did you mean t." .. nearest .. "?" or "known: "
      .. table.concat(names, ", ")), 2)
  end })
end

local OURS = debug.getinfo(1, "S").short_src:gsub("cli/test%.lua$", "")

---The message and where in the user's own files that was.
local function traceback(err)
  if type(err) == "table" then
    return err
  end
  local lines = { tostring(err) }
  for line in debug.traceback("", 2):gmatch("\n\t([^\n]*)") do
    if not line:find("^%[C%]") and line:sub(1, #OURS) ~= OURS then
      lines[#lines + 1] = "  " .. line
    end
  end
  return table.concat(lines, "\n")
end

local function run_case(tests, folder, name, fn)
  if type(name) ~= "string" or type(fn) ~= "function" then
    error("bad arguments to 'case' (a name and a function expected)", 3)
  elseif tests.case then
    error(("case '%s' is inside case '%s'"):format(name, tests.case), 3)
  elseif tests.only and not name:find(tests.only, 1, true) then
    return
  end
  tests.case, tests.broken, tests.run = name, false, tests.run + 1
  local ok, err = guard.call("the case", function()
    local fine, problem = xpcall(fn, traceback, tools(tests, folder))
    if not fine then
      error(type(problem) == "table" and problem or setmetatable({}, { __tostring = function() return problem end }), 0)
    end
  end)
  if not ok and type(err) == "table" and err.exit then -- of common.fail
    error(err, 0)
  elseif not ok then
    fail(tests, tostring(err))
  end
  if not tests.broken then
    common.write("ok    ", name, "\n")
  end
  tests.case = nil
end

---@return boolean ok
local function run_spec(tests, path)
  local folder = path:match("^(.*)/[^/]*$") or (path:sub(1, 1) == "/" and "" or ".")
  local chunk, problem = loadfile(path)
  if not chunk then
    common.note(problem)
    return false
  end
  _G.case = function(name, fn)
    run_case(tests, folder, name, fn)
  end
  local before = package.path
  package.path = ("%s/?.lua;%s/?/init.lua;%s"):format(folder, folder, before)
  local ok, err = xpcall(chunk, traceback)
  package.path, tests.case = before, nil
  if not ok and type(err) == "table" and err.exit then
    error(err, 0)
  elseif not ok then
    common.note(tostring(err))
  end
  return ok
end

function test.run(args)
  local tests = { run = 0, failed = 0, updated = 0, update = args.update, only = args.only }
  _G.nacos, _G.json, _G.yaml, _G.template = require("nacos"), require("cjson.safe"), require("lyaml"), require("nacos.template")
  _G.connection, _G.group, _G.arg = {}, "DEFAULT_GROUP", { [0] = args.specs[1] }
  require("nacos.agent.log").level = "warn"
  return look.in_task(function()
    local whole = true
    for _, path in ipairs(args.specs) do
      whole = run_spec(tests, path) and whole
    end
    common.write(("%d %s, %d failed%s\n"):format(tests.run, tests.run == 1 and "case" or "cases", tests.failed,
      tests.updated > 0 and (", %d golden files written"):format(tests.updated) or ""))
    return whole and tests.failed == 0 and tests.run > 0 and common.DONE or common.NOT_FOUND
  end)
end

return test
