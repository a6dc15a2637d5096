--- What the specs of the embedded server share: requests by the curl program, seen whole, and polls that wait beside the test.

local assert = require "luassert"
local support = require "support"
local json = require "cjson.safe"

local embedded = { CONFIGS = "/nacos/v1/cs/configs", LISTENER = "/nacos/v1/cs/configs/listener" }
local CONFIGS, LISTENER = embedded.CONFIGS, embedded.LISTENER

local function encode(text)
  return (text:gsub("[^%w._-]", function(c) return ("%%%02X"):format(c:byte()) end))
end

local function form(fields)
  local parts = {}
  for name, value in pairs(fields) do
    parts[#parts + 1] = encode(name) .. "=" .. encode(value)
  end
  return table.concat(parts, "&")
end

---Words of a curl command.
---@param request table # { method, path, query = fields, form = fields or text, headers = {name = value}, curl = more words }
local function curl_words(server, request, folder)
  local url = (request.base or server.base) .. request[2]
  if request.query then
    url = url .. "?" .. form(request.query)
  end
  local words = { "curl", "-sSk", "--max-time", "40", "-X", request[1], url,
    "-D", folder .. "/head", "-o", folder .. "/body", "-w", "%{time_total}" }
  if request.form then
    support.write(folder .. "/form", type(request.form) == "table" and form(request.form) or request.form)
    words[#words + 1], words[#words + 2] = "--data-binary", "@" .. folder .. "/form"
  end
  for name, value in pairs(request.headers or {}) do
    words[#words + 1], words[#words + 2] = "-H", name .. ": " .. value
  end
  for _, word in ipairs(request.curl or {}) do
    words[#words + 1] = word
  end
  return words
end

---What curl got: { status, body, headers = {lower-case name = value}, seconds }; status 0 when it got no answer.
local function answer(folder, seconds)
  local result = { status = 0, headers = {}, body = support.read(folder .. "/body") or "", seconds = tonumber(seconds) }
  for text in (support.read(folder .. "/head") or ""):gmatch("([^\r\n]*)\r\n") do
    local status = text:match("^HTTP/1%.1 (%d+)")
    local name, value = text:match("^([^:]+):%s*(.-)%s*$")
    if status then
      result.status, result.headers = tonumber(status), {}
    elseif name then
      result.headers[name:lower()] = value
    end
  end
  return result
end

function embedded.call(server, request)
  local folder = support.tmpdir()
  local code, seconds, err = support.run(curl_words(server, request, folder))
  local result = answer(folder, seconds)
  result.code, result.err = code, err
  return result
end

---The same beside the test. Returns a function that waits for the answer.
function embedded.call_later(server, request)
  local folder = support.tmpdir()
  local process = support.start(curl_words(server, request, folder))
  return function(patience)
    local code = process:wait(patience or 10)
    local result = answer(folder, process:stdout())
    result.code = code
    return result
  end
end

local function with(fields, more)
  for name, value in pairs(more or {}) do
    fields[name] = value
  end
  return fields
end

---@param more table|nil # further fields, or others for dataId, group G, content
function embedded.publish(server, data_id, content, more)
  return embedded.call(server, { "POST", CONFIGS, form = with({ dataId = data_id, group = "G", content = content }, more) })
end

function embedded.read(server, data_id, more)
  return embedded.call(server, { "GET", CONFIGS, query = with({ dataId = data_id, group = "G" }, more) })
end

function embedded.remove(server, data_id, more)
  return embedded.call(server, { "DELETE", CONFIGS, query = with({ dataId = data_id, group = "G" }, more) })
end

function embedded.md5(text)
  local _, sum = support.run("md5sum", { stdin = text })
  return sum:match("^%x+")
end

---One line of a poll.
function embedded.line(data_id, sum, tenant)
  return data_id .. "\2G\2" .. sum .. (tenant and "\2" .. tenant or "") .. "\1"
end

function embedded.poll_request(lines, timeout, more)
  local headers = with({ ["Long-Pulling-Timeout"] = timeout and tostring(timeout) }, more)
  return { "POST", LISTENER, form = { ["Listening-Configs"] = lines }, headers = headers }
end

function embedded.poll(server, lines, timeout, more)
  return embedded.call(server, embedded.poll_request(lines, timeout, more))
end

local polls = 0

---A poll that waits on the server (which has a request log) when this returns.
---@return fun(patience): table wait # waits for its answer
---@return fun(): boolean held # does the server still hold it?
function embedded.parked_poll(server, lines, timeout)
  polls = polls + 1
  local mark = tostring(polls)
  local wait = embedded.call_later(server, embedded.poll_request(lines, timeout or 30000, { ["X-Poll"] = mark }))
  local function held()
    for _, request in ipairs(server:requests().requests) do
      if request.headers["X-Poll"] == mark then
        return request.status == nil
      end
    end
  end
  support.eventually(held)
  return wait, held
end

function embedded.assert_error_page(result, status, error_text, message, path)
  assert.equal(status, result.status)
  local page = assert(json.decode(result.body), result.body)
  assert.equal(status, page.status)
  assert.equal(error_text, page.error)
  assert.equal(message, page.message)
  assert.equal(path, page.path)
  assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%d%+00:00$", page.timestamp)
  local charset = path:find("/v1/cs/", 1, true) and ";charset=UTF-8" or ""
  assert.equal("application/json" .. charset, result.headers["content-type"])
end

function embedded.assert_caused(result, status, message)
  assert.equal("caused: " .. message .. ";", result.body)
  assert.equal(status, result.status)
  assert.equal("close", result.headers.connection)
end

function embedded.missing(name, kind)
  return ("Required request parameter &#39;%s&#39; for method parameter type %s is not present"):format(name, kind or "String")
end

return embedded
