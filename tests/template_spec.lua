--- Templates and the formats they read: what comes out, what is an error, and where it points.

local formats = require("nacos.formats")
local support = require("support")
local template = require("nacos.template")

local function render(text, vars, opts)
  local t = assert(template.compile(text, "t.conf"))
  return assert(t:render(vars, opts))
end

---@return string message, table err
local function failure(text, vars, opts)
  local t, err = template.compile(text, "t.conf")
  local out
  if t then
    out, err = t:render(vars, opts)
  end
  assert(out == nil, "it rendered: " .. tostring(out))
  assert(type(err) == "table" and err.code and err.template == "t.conf", "not a located error: " .. tostring(err))
  assert.equal(err.message, tostring(err))
  return tostring(err), err
end

---A client that knows these configurations: data_id -> {content, type} or an error code.
local function fake_client(items)
  return {
    reads = 0,
    get_config = function(self, data_id, group)
      self.reads = self.reads + 1
      self.group = group
      local item = items[data_id]
      if type(item) == "table" then
        return item[1], "server", { type = item[2] }
      end
      local code = item or "not_found"
      return nil, setmetatable({ code = code, message = "because " .. code }, { __tostring = function(e) return e.message end })
    end,
  }
end

describe("template syntax", function()
  it("passes text through byte for byte", function()
    for _, text in ipairs({ "", "a", "\n\n a\r\n\0\255", "{ } }} %} #} { { {", "$x [[ ]] \\n \\" }) do
      assert.equal(text, render(text))
    end
  end)

  it("writes expressions", function()
    assert.equal("a=1 b=x c=true d=0.1 e=2", render("a={{ a }} b={{b}} c={{ c }} d={{ d }} e={{ a + 1 }}",
      { a = 1, b = "x", c = true, d = 0.1 }))
    assert.equal("3.141592653589793", render("{{ math.pi }}"))
  end)

  it("runs Lua between the texts", function()
    local text = "{% for i, v in ipairs(list) do %}{% if i > 1 then %}, {% end %}{{ v }}{% end %}."
    assert.equal("a, b, c.", render(text, { list = { "a", "b", "c" } }))
    assert.equal(".", render(text, { list = {} }))
  end)

  it("lets templates define functions that write", function()
    assert.equal("<1><2>", render("{% local function b(x) %}<{{ x }}>{% end %}{% b(1) b(2) %}"))
  end)

  it("drops comments, of either kind", function()
    assert.equal("ab", render("a{# {{ nothing }} {% here %} #}b"))
    assert.equal("a1b2", render("a{{ 1 -- one }}b{{ 2 --[[ }} ]] }}"))
    assert.equal("x2", render("{% local x = 1 -- one %}x{% -- two %}{% x = x + 1 --three\n %}{{ x }}"))
  end)

  it("knows strings and braces inside tags", function()
    assert.equal("}} %} ' \"", render([==[{{ "}}" }} {{ '%}' }} {{ "'" }} {{ '"' }}]==]))
    assert.equal("2", render("{{ #{{1},{2}} }}"))
    assert.equal("2", render("{{#{{1},{2}}}}"))
    assert.equal("a}}b", render("{{ [[a}}b]] }}"))
    assert.equal("]] }}", render("{{ [=[]] }}]=] }}"))
    assert.equal("\"}}\"", render([[{{ "\"}}\"" }}]]))
    assert.equal("{{ x }}", render("{{ '{{ x }}' }}"))
  end)

  it("swallows blanks where a dash says so", function()
    assert.equal("a1b", render("a \n {{- 1 -}} \n\t b"))
    assert.equal("a \n1\n b", render("a \n{{ 1 }}\n b"))
    assert.equal("a1\n", render("a\n{%- if true then -%}\n 1 \n{%- end %}\n"))
    assert.equal("ab", render("a {#- c -#} b"))
    assert.equal("-1", render("{{ -1 }}"))
    assert.equal("1", render("  {{- 1 -}}  "))
  end)

  local mistakes = {
    { "a\nb {{ x", "t.conf:2: the tag is not closed by }}" },
    { "\n{% if x", "t.conf:2: the tag is not closed by %}" },
    { "{# x", "t.conf:1: the comment is not closed by #}" },
    { "{{ 'x }}\n", "t.conf:1: unfinished string" },
    { "a\n{{ }}", "t.conf:2: empty expression" },
    { "a\n\n{{ 1 + }}", "t.conf:3: unexpected symbol in {{ 1 + }}" },
    { "{{ a b }}", "t.conf:1: unexpected 'b' in {{ a b }}" },
    { "{{ a) .. (b }}", nil },
    { "{{ a, b }}", "t.conf:1: unexpected ',' in {{ a, b }}" },
    { "\n{% for x in y %}{% end %}", "t.conf:2: 'do' expected near 'end'" },
    { "\n{% if x %} a {% end %}", "t.conf:2: 'then' expected at the end of the tag" },
    { "a\n{% if x then %}\nb\n", "t.conf:4: 'end' expected (to close 'if' at line 2) near <eof>" },
    { "a\n\n{% end %}", "t.conf:3: <eof> expected near 'end'" },
    { "{%\nx = = 1\n%}", "t.conf:2: unexpected symbol near '='" },
  }
  for _, case in ipairs(mistakes) do
    it("refuses " .. case[1]:gsub("\n", "\\n"), function()
      local message, err = failure(case[1], { a = "1", b = "2", x = 1 })
      assert.equal(case[2] or message, message)
      assert.equal("syntax", err.code)
    end)
  end

  it("takes any text without raising or hanging", function()
    local pieces = {
      "{{", "}}", "{%", "%}", "{#", "#}", "-", " ", "\n", "x", "'", '"', "[[", "]]", "[=[", "--", "--[[", "\\", "{", "}",
      "default(", ")", ",", "if x then", "end", "for i = 1, 2 do", "1", "=", "local", "return", "..", "\0", "é",
    }
    local seed = 1
    local function random(n)
      seed = (seed * 1103515245 + 12345) % 2 ^ 31
      return math.floor(seed / 65536) % n + 1
    end
    local compiled = 0
    for _ = 1, 5000 do
      local text = {}
      for i = 1, random(12) do
        text[i] = pieces[random(#pieces)]
      end
      text = table.concat(text)
      local t, err = template.compile(text, "t.conf")
      if t then
        compiled = compiled + 1
        local out
        out, err = t:render({ x = 1 })
        err = out == nil and err or nil
      end
      assert(err == nil or tostring(err):find("^t.conf:%d+: "), ("%q: %s"):format(text, tostring(err)))
    end
    assert(compiled > 100)
  end)

  it("raises for misuse at the caller's line", function()
    local line = debug.getinfo(1, "l").currentline + 1
    local _, message = pcall(function() template.compile(5) end)
    assert.equal("tests/template_spec.lua:" .. line .. ": bad argument 'text' to 'template.compile' (string expected, got number)",
      message)
    local t = template.compile("x")
    line = debug.getinfo(1, "l").currentline + 1
    _, message = pcall(function() t:render({}, { clint = 1 }) end)
    assert.equal("tests/template_spec.lua:" .. line .. ": bad option 'clint' to 'render' (did you mean 'client'?)", message)
    line = debug.getinfo(1, "l").currentline + 1
    _, message = pcall(function() t:render("x") end)
    assert.equal("tests/template_spec.lua:" .. line .. ": bad argument 'vars' to 'render' (table expected, got string)", message)
  end)
end)

describe("template errors while rendering", function()
  local vars = { db = { host = "h" }, list = {}, null = formats.null }
  local cases = {
    { "\n\n{{ prot }}", "t.conf:3: unknown name 'prot' in {{ prot }}" },
    { "{{ lst }}", "t.conf:1: unknown name 'lst' (did you mean 'list'?) in {{ lst }}" },
    { "{% if nosuchname then %}{% end %}", "t.conf:1: unknown name 'nosuchname'" },
    { "a\n{{ db.prot }}", "t.conf:2: the value is nil in {{ db.prot }}" },
    { "{{ null }}", "t.conf:1: the value is null in {{ null }}" },
    { "{{ list[1] }}", "t.conf:1: the value is nil in {{ list[1] }}" },
    { "{{ list }}", "t.conf:1: cannot write a table in {{ list }} (json(v) and yaml(v) write tables)" },
    { "{{ tostring }}", "t.conf:1: cannot write a function in {{ tostring }}" },
    { "{{ db.x.y }}", "t.conf:1: attempt to index a nil value (field 'x') in {{ db.x.y }}" },
    { "\n{% local x = 1 + {} %}", "t.conf:2: attempt to perform arithmetic on a table value" },
    { "\n{% error('no') %}", "t.conf:2: no" },
    { "{{ ('x'):rep('y') }}", "t.conf:1: bad argument #1 to 'rep' (number expected, got string) in {{ ('x'):rep('y') }}" },
    { "{{ env('LUNACOS_UNSET_NAME') }}", "t.conf:1: environment variable 'LUNACOS_UNSET_NAME' is not set" ..
      " in {{ env('LUNACOS_UNSET_NAME') }}" },
    { "{{ file('/nonexistent/x') }}", "t.conf:1: cannot read file: /nonexistent/x: No such file or directory" ..
      " in {{ file('/nonexistent/x') }}" },
    { "{{\n1 +\nnil }}", "t.conf:2: attempt to perform arithmetic on a nil value in {{\n1 +\nnil }}" },
    { "{% local function f()\n error({}) end %}\n{% f() %}", nil },
  }
  for _, case in ipairs(cases) do
    it("for " .. case[1]:gsub("\n", "\\n"), function()
      local message, err = failure(case[1], vars)
      assert.equal(case[2] or message, message)
      assert.equal("template", err.code)
      assert.equal(tonumber(message:match("^t.conf:(%d+)")), err.line)
    end)
  end

  it("point to the template for an error inside a module it calls", function()
    local deep = load("return function() local x = nil; return x.y end", "@deep.lua")()
    assert.matches("^t.conf:2: deep.lua:1: attempt to index a nil value", (failure("\n{{ deep() }}", { deep = deep })))
  end)

  it("say why a function gave nil", function()
    local function ask()
      return nil, "no server answers"
    end
    assert.equal("t.conf:1: the value is nil: no server answers in {{ ask() }}", (failure("{{ ask() }}", { ask = ask })))
  end)
end)

describe("template environment", function()
  it("is new for every render and leaves vars alone", function()
    local t = assert(template.compile("{% n = default(n, 0) + 1 x = 5 %}{{ n }}"))
    local vars = { n = 1 }
    assert.equal("2", t:render(vars))
    assert.equal("2", t:render(vars))
    assert.equal("1", t:render())
    assert.same({ n = 1 }, vars)
    assert.is_nil(rawget(_G, "x"))
  end)

  it("has no access to the program's globals", function()
    rawset(_G, "planted", 1)
    local message = failure("{{ planted }}")
    rawset(_G, "planted", nil)
    assert.matches("unknown name 'planted'", message)
  end)

  it("lets a default stand in for a missing name", function()
    assert.equal("d", render("{{ default(x, 'd') }}"))
    assert.equal("d", render("{{ default ( x , default(y, 'd')) }}"))
    assert.equal("1", render("{{ default(x, 'd') }}", { x = 1 }))
    assert.equal("false", render("{{ default(x, 'd') }}", { x = false }))
    assert.equal("d", render("{{ default(db.port, 'd') }}", { db = {} }))
    assert.equal("d", render("{% for _, v in ipairs({{}}) do %}{{ default(v.x, 'd') }}{% end %}"))
    assert.equal("default(x, 1)", render("{{ 'default(x, 1)' }}"))
    assert.equal("t.conf:1: unknown name 'y' in {{ default(x, 1) .. y }}", (failure("{{ default(x, 1) .. y }}")))
    assert.equal("no", render("{% if vars.x then %}yes{% else %}no{% end %}"))
  end)

  it("iterates in one order", function()
    local t = { b = 1, a = 2, [10] = 3, [9] = 4, c = 5 }
    assert.equal("9=4 10=3 a=2 b=1 c=5 ", render("{% for k, v in pairs(t) do %}{{ k }}={{ v }} {% end %}", { t = t }))
    assert.equal("9 10 a b c ", render("{% for k in spairs(t) do %}{{ k }} {% end %}", { t = t }))
  end)

  it("has helpers for text", function()
    assert.equal("a|b||c", render("{{ join(split('a,b,,c', ','), '|') }}"))
    assert.equal("[x y]", render("[{{ trim('  x y \\n') }}]"))
    assert.equal("d", render("{{ env('LUNACOS_UNSET_NAME', 'd') }}"))
    assert.equal(os.getenv("PATH"), render("{{ env('PATH') }}"))
    assert.equal('{"a":[1,2],"b":{}}', render("{{ json(v) }}", { v = formats.decode("json", '{"b":{},"a":[1,2]}') }))
    assert.equal("a:\n- 1\nb: x\n", render("{{ yaml({ b = 'x', a = { 1 } }) }}"))
    assert.equal("8080", render("{{ from_json('{\"p\": 8080}').p }}"))
    assert.equal("2", render("{{ from_yaml('[1, 2]')[2] }}"))
    assert.equal("v", render("{{ from_properties('a.b = v')['a.b'] }}"))
    assert.matches("^t.conf:1: not valid json: ", (failure("{{ from_json('{') }}")))
  end)

  it("takes further functions", function()
    assert.equal("HI", render("{{ up('hi') }}", nil, { functions = { up = string.upper } }))
  end)
end)

describe("nested rendering", function()
  local inner = assert(template.compile("<{{ x }}{% x = 'changed' %}>", "inner.conf"))

  it("keeps the two apart", function()
    assert.equal("1<2>1", render("{{ x }}{{ inner:render({ x = 2 }) }}{{ x }}", { x = 1, inner = inner }))
  end)

  it("works inside itself", function()
    local t
    t = assert(template.compile("{{ n }}{% if n > 0 then %}({{ self:render({ n = n - 1, self = self }) }}){% end %}"))
    assert.equal("2(1(0))", t:render({ n = 2, self = t }))
  end)

  it("reports the inner error with both places", function()
    assert.equal("t.conf:2: the value is nil: inner.conf:1: unknown name 'x' in {{ x }} in {{ inner:render() }}",
      (failure("\n{{ inner:render() }}", { inner = inner })))
  end)

  it("renders concurrently in coroutines", function()
    local t = assert(template.compile("{{ a }}{% wait() %}{% b = a * 2 %}{{ b }}{% wait() %}{{ a }}{{ b }}"))
    local results, threads = {}, {}
    for i = 1, 3 do
      threads[i] = coroutine.create(function()
        results[i] = t:render({ a = i, wait = coroutine.yield })
      end)
    end
    for _ = 1, 3 do
      for i = 1, 3 do
        assert(coroutine.resume(threads[i]))
      end
    end
    assert.same({ "1212", "2424", "3636" }, results)
  end)

  it("includes files beside the template", function()
    local folder = support.tmpdir()
    support.write(folder .. "/main.conf", "a\n{{ include('part.conf') }}{{ include('part.conf', { x = 2 }) }}{{ file('raw') }}")
    support.write(folder .. "/part.conf", "[{{ x }}]")
    support.write(folder .. "/raw", "{{ raw }}")
    local t = assert(template.compile_file(folder .. "/main.conf"))
    assert.equal("a\n[1][2]{{ raw }}", t:render({ x = 1 }))
    assert.equal("a\n[1][2]{{ raw }}", template.render_file(folder .. "/main.conf", { x = 1 }))
    local _, err = t:render({})
    assert.equal(("%s/main.conf:2: %s/part.conf:1: unknown name 'x' in {{ x }} in {{ include('part.conf') }}"):format(
      folder, folder), tostring(err))
  end)

  it("ends an include that never ends", function()
    local folder = support.tmpdir()
    support.write(folder .. "/loop.conf", "{{ include('loop.conf') }}")
    local out, err = template.render_file(folder .. "/loop.conf")
    assert.is_nil(out)
    assert.matches("include: more than 50 deep", tostring(err), 1, true)
  end)

  it("returns an error for a file that is not there", function()
    local t, err = template.compile_file("/nonexistent/t.conf")
    assert.is_nil(t)
    assert.equal("cannot read file: /nonexistent/t.conf: No such file or directory", tostring(err))
  end)
end)

describe("configurations in templates", function()
  it("are parsed by their type, then by their name", function()
    local client = fake_client({
      a = { '{"port": 8080}', "json" }, ["b.json"] = { '{"port": 1}', "text" }, c = { "port: 2", "yaml" },
      ["d.yml"] = { "port: 3" }, e = { "port = 4", "properties" }, f = { "port = 5", "text" },
      ["g.properties"] = { "port : 6" }, ["h.json"] = { "port: 7", "yaml" },
    })
    assert.equal("8080 1 2 3 4 6 7", render("{{ config('a').port }} {{ config('b.json').port }} {{ config('c').port }} " ..
      "{{ config('d.yml').port }} {{ config('e').port }} {{ config('g.properties').port }} {{ config('h.json').port }}",
      nil, { client = client }))
    assert.equal("port = 5", render("{{ config('f') }}", nil, { client = client }))
    assert.equal('{"port": 8080}', render("{{ text('a') }}", nil, { client = client }))
  end)

  it("are fetched and parsed once per render", function()
    local client = fake_client({ a = { '{"x": 1}', "json" } })
    local t = assert(template.compile("{% assert(config('a') == config('a')) %}{{ config('a').x }}{{ text('a') }}"))
    assert(t:render(nil, { client = client }))
    assert.equal(1, client.reads)
    assert(t:render(nil, { client = client }))
    assert.equal(2, client.reads)
  end)

  it("are listed for the caller, also when rendering fails", function()
    local client = fake_client({ a = { "1" } })
    local t = assert(template.compile("{{ text('a', 'g') }}{{ text('a', 'g') }}{{ text('b') }}"))
    local out, err, used = t:render(nil, { client = client })
    assert.is_nil(out)
    assert.equal("not_found", err.code)
    assert.same({ { data_id = "a", group = "g" }, { data_id = "b" } }, used)
    out, used = assert(template.compile("{{ text('a') }}")):render(nil, { client = client })
    assert.equal("1", out)
    assert.same({ { data_id = "a" } }, used)
  end)

  it("come from memory when the client watches them", function()
    local client = fake_client({})
    client.peek = function(_, data_id)
      return data_id == "a" and { content = "from memory", type = "text" } or {} -- empty: known to be absent
    end
    assert.equal("from memory", render("{{ text('a') }}", nil, { client = client }))
    assert.equal("d", render("{{ text('gone', { default = 'd' }) }}", nil, { client = client }))
    assert.equal("not_found", select(2, failure("{{ text('gone') }}", nil, { client = client })).code)
    assert.equal(0, client.reads)
  end)

  it("that do not exist are one error, unknown ones another", function()
    local client = fake_client({ down = "unavailable", secret = "forbidden" })
    local message, err = failure("\n{{ config('gone', 'g').x }}", nil, { client = client })
    assert.equal("t.conf:2: configuration 'gone' (group 'g') does not exist in {{ config('gone', 'g').x }}", message)
    assert.equal("not_found", err.code)
    assert.equal("gone", err.data_id)
    message, err = failure("{{ config('down') }}", nil, { client = client })
    assert.equal("t.conf:1: configuration 'down' is not known: because unavailable in {{ config('down') }}", message)
    assert.equal("unavailable", err.code)
    assert.equal("forbidden", select(2, failure("{{ text('secret') }}", nil, { client = client })).code)
  end)

  it("have a default only for what does not exist", function()
    local client = fake_client({ down = "unavailable" })
    assert.equal("5", render("{{ config('gone', 'g', { default = { x = 5 } }).x }}", nil, { client = client }))
    assert.equal("d", render("{{ text('gone', { default = 'd' }) }}", nil, { client = client }))
    assert.equal("false", render("{{ text('gone', nil, { default = false }) }}", nil, { client = client }))
    local _, err = failure("{{ text('down', { default = 'd' }) }}", nil, { client = client })
    assert.equal("unavailable", err.code)
  end)

  it("that do not parse are an error that does not show the content", function()
    local message = failure("{{ config('a.json').x }}", nil, { client = fake_client({ ["a.json"] = { '{"secret": ' } }) })
    assert.matches("^t.conf:1: configuration 'a.json' is not valid json: ", message)
    assert.not_matches("secret", message)
  end)

  it("cannot be asked for without a client", function()
    assert.equal("t.conf:1: unknown name 'config' in {{ config('a') }}", (failure("{{ config('a') }}")))
  end)

  it("explain a wrong call", function()
    assert.matches("^t.conf:1: bad argument 'data_id' to 'config' %(string expected, got number%)",
      (failure("{{ config(5) }}", nil, { client = fake_client({}) })))
  end)

  it("are there as plain functions, too", function()
    local names = template.functions(fake_client({ a = { "1" } }))
    assert.equal("1", render("{{ text('a') }}", names))
  end)
end)

describe("formats", function()
  it("read properties as Java does", function()
    assert.same({
      a = "1", b = "2", c = "3", ["d.e f:="] = "x y z\n", empty = "", u = "中😀\t|", back = "c:\\dir\\", [""] = "nokey", sp = "a b ",
    }, formats.properties([[
# comment
  ! another, \
a=1
b : 2
c 3
  d.e\ f\:\= = x y \
      z\n
empty
u=\u4e2d\ud83d\ude00\t|
back=c:\\dir\\
sp = a b ]] .. "\n=nokey"))
    assert.same({ a = "1", b = "2", c = "3=4" }, formats.properties("a=1\r\nb=2\rc=3=4\r\n\r\n"))
    assert.same({ a = "1#x" }, formats.properties("a=1\\\n#x"))
    assert.same({ a = "1" }, formats.properties("a=1\\"))
    assert.same({ nil, "line 2: \\u needs four hexadecimal digits" }, { formats.properties("a=1\nb=\\u12g4") })
  end)

  it("keep JSON's numbers, empty lists and nulls apart", function()
    local text = '{"a":[],"b":{},"c":8080,"d":9007199254740993,"e":1.5,"g":[1,null,2],"pi":3.141592653589793,"s":"a/b\\u0001é"}'
    local value = assert(formats.decode("json", text))
    assert.equal("integer", math.type(value.c))
    assert.equal(formats.null, value.g[2])
    assert.equal(text, formats.json(value))
    assert.is_nil(formats.decode("json", '{"x": null}').x)
  end)

  it("refuse what is not JSON", function()
    for _, text in ipairs({ "", "{", "[1,]", "{a:1}", "[1] x", "[01]", "// c\n1", "NaN" }) do
      local value, message = formats.decode("json", text)
      assert.is_nil(value, text)
      assert.is_string(message, text)
    end
  end)

  it("read and write YAML", function()
    local value = assert(formats.decode("yaml", "b: [1, ~]\na: {x: yes, n: ~}\nc: '1'"))
    assert.same({ b = { 1, formats.null }, a = { x = true }, c = "1" }, value)
    assert.equal("a:\n  x: true\nb:\n- 1\n- ~\nc: '1'\n", formats.yaml(value))
    assert.equal("plain\n", formats.yaml("plain"))
    assert.equal("0.30000000000000004\n", formats.yaml(0.1 + 0.2))
    local _, message = formats.decode("yaml", "a: [1")
    assert.equal("line 1, column 5: did not find expected ',' or ']'", message)
  end)

  it("refuse what cannot be written", function()
    local loop = {}
    loop.loop = loop
    for _, bad in ipairs({ loop, { print }, { [{}] = 1 } }) do
      assert.is_false(pcall(formats.json, bad))
      assert.is_false(pcall(formats.yaml, bad))
    end
    assert.is_false(pcall(formats.json, 0 / 0))
  end)
end)
