--- lunacos repl: an interactive prompt.

local common = require("nacos.cli.common")
local formats = require("nacos.formats")

local repl = {
  summary = "Type Lua with a client ready.",
  usage = "repl [-n NAMESPACE] [-s SERVERS]",
  help = [[
Examples:
  lunacos repl -s 10.0.0.1:8848
  echo 'client:get_config("app.yaml")' | lunacos repl

The globals are nacos, client (made from the options), json, yaml, template, connection and
group. A line that is an expression prints its values; one that is not finished goes on in the
next. Calls wait for their result. Callbacks of watches run between two lines. An error ends
the line, not the session; ctrl-D ends the session.]],
}

function repl.setup()
  return {}
end

---Compile what was typed so far: as an expression, else as statements.
---@return function|nil chunk
---@return string|nil problem
---@return boolean|nil unfinished
local function compile(text)
  if load("return " .. text, "=stdin") then -- not run as it is: a tail call would hide the line from error messages
    return load("return (function(...) return ... end)(" .. text .. "\n)", "=stdin")
  end
  local chunk, problem = load(text, "=stdin")
  return chunk, problem, problem ~= nil and problem:find("<eof>$") ~= nil
end

---What a value looks like at the prompt.
local function show(value)
  if type(value) == "string" then
    return (("%q"):format(value):gsub("\\\n", "\\n"))
  elseif type(value) == "table" and not (getmetatable(value) or {}).__tostring then
    local ok, text = pcall(formats.json, value)
    return ok and text or tostring(value)
  end
  return tostring(value)
end

local function evaluate(chunk)
  local results = table.pack(xpcall(chunk, common.traceback))
  if not results[1] then
    return common.note(results[2])
  end
  for i = 2, results.n do
    results[i] = show(results[i])
  end
  if results.n > 1 then
    common.write(table.concat(results, "\t", 2, results.n), "\n")
  end
end

function repl.run(_, settings)
  local nacos = require("nacos")
  _G.nacos, _G.json, _G.yaml, _G.template = nacos, require("cjson.safe"), require("lyaml"), require("nacos.template")
  _G.connection, _G.group = common.connection(settings, settings.verbose and "info" or "warn"), settings.group
  _G.client = common.open(_G.connection, function(err)
    common.note(tostring(err))
  end)
  local prompts = os.execute("test -t 0")
  if prompts then
    common.write("lunacos ", nacos._VERSION, ", ", _VERSION, ". client, nacos, json, yaml, template are ready; ctrl-D ends.\n")
  end
  local text
  while true do
    if prompts then
      common.write(text and ">> " or "> ")
    end
    local line = io.read("L")
    if not line then
      break
    end
    text = (text or "") .. line
    local chunk, problem, unfinished = compile(text)
    if not unfinished then
      text = nil
      if chunk then
        evaluate(chunk)
      else
        common.note(problem)
      end
      nacos.step(0)
    end
  end
  if text then
    common.note(select(2, compile(text)))
  end
  if prompts then
    common.write("\n")
  end
  _G.client:close()
  return common.DONE
end

return repl
