--- For specs: what a client of Nacos says over gRPC, in small steps. Made by hand, to be a second opinion on the engine and the server.
--
--   grpc.connect(server [, opts]) -> client, not set up yet    grpc.client(server [, labels [, opts]]) -> client, set up
--   client:call(type, body [, headers]) -> json, answer = { type, json, status, message, http, error }
--   client:open() client:send(type, body)                      the bi-stream
--   client:push([seconds]) -> type, json | nil                 the next message of it; nil when none came or it is over
--   client:next(type [, seconds]) -> json                      the next one of this type, others are skipped; acknowledged
--   client:exchange{ method=, path=, type=, bytes= } -> answer any request

local json = require "cjson.safe"
local core = require "grpc_client"
local uv = require "luv"

local grpc = {}

local function varint(n)
  local bytes = ""
  while n > 127 do
    bytes, n = bytes .. string.char(n & 127 | 128), n >> 7
  end
  return bytes .. string.char(n)
end

local function field(tag, text)
  return string.char(tag) .. varint(#text) .. text
end

---An envelope, without gRPC's prefix.
function grpc.envelope(kind, text, headers)
  local meta = field(0x1a, kind)
  for name, value in pairs(headers or {}) do
    meta = meta .. field(0x3a, field(0x0a, name) .. field(0x12, value))
  end
  return field(0x12, meta) .. field(0x1a, field(0x12, text))
end

---The fields of a message: { [number] = last text }; nil when it is none.
local function fields(bytes)
  local found, at = {}, 1
  local function number()
    local n, shift = 0, 0
    repeat
      local byte = bytes:byte(at)
      if not byte then
        error("cut off", 0)
      end
      n, shift, at = n | (byte & 127) << shift, shift + 7, at + 1
    until byte < 128
    return n
  end
  while at <= #bytes do
    local tag = number()
    assert(tag & 7 == 2, "a field of another kind")
    local len = number()
    found[tag >> 3], at = bytes:sub(at, at + len - 1), at + len
  end
  return found
end

---@return string type
---@return string json
function grpc.open_envelope(bytes)
  local outer = fields(bytes)
  return fields(outer[2] or "")[3] or "", fields(outer[3] or "")[2] or ""
end

function grpc.frame(message)
  return string.pack(">Bs4", 0, message)
end

---@class grpc.Client
local Client = {}
Client.__index = Client

local function encode(body)
  return type(body) == "string" and body or (next(body or {}) == nil and "{}" or json.encode(body))
end

---Pumps until done() says something true.
function Client:wait(done, seconds)
  local deadline = uv.hrtime() + (seconds or 30) * 1e9
  while true do
    local result = done()
    if result or self.core:state().closed then
      return result or done()
    end
    local left = (deadline - uv.hrtime()) // 1000000
    if left <= 0 then
      return nil
    end
    self.core:pump(math.floor(left))
  end
end

function Client:exchange(request)
  local id = self.core:start(request.method or "POST", request.path or "/Request/request", request.type or "application/grpc")
  self.core:write(id, request.bytes or "", true)
  local answer, data = nil, {}
  self:wait(function()
    answer = self.core:look(id)
    data[#data + 1] = answer.data
    return answer.closed
  end, request.seconds)
  answer.data = table.concat(data)
  return answer
end

function Client:call(kind, body, headers)
  local answer = self:exchange { bytes = grpc.frame(grpc.envelope(kind, encode(body), headers)) }
  if #answer.data >= 5 and answer.status == 0 then
    local ok, type_or_why, text = pcall(grpc.open_envelope, answer.data:sub(6))
    if ok then
      answer.type, answer.text, answer.json = type_or_why, text, json.decode(text)
    end
  end
  return answer.json, answer
end

function Client:open()
  self.stream = self.core:start("POST", "/BiRequestStream/requestBiStream", "application/grpc")
  self.inbox = ""
end

function Client:send(kind, body, headers)
  self.core:write(self.stream, grpc.frame(grpc.envelope(kind, encode(body), headers)), false)
  self.core:pump(0)
end

function Client:push(seconds)
  local size
  local function whole()
    self.last = self.core:look(self.stream)
    self.inbox = self.inbox .. self.last.data
    size = #self.inbox >= 5 and string.unpack(">I4", self.inbox, 2)
    return (size and #self.inbox >= 5 + size) or self.last.closed
  end
  self:wait(whole, seconds)
  if not size or #self.inbox < 5 + size then
    return nil
  end
  local message = self.inbox:sub(6, 5 + size)
  self.inbox = self.inbox:sub(6 + size)
  local kind, text = grpc.open_envelope(message)
  return kind, json.decode(text), text
end

function Client:ack(push, kind, code)
  self:send((kind:gsub("Request$", "Response")), { requestId = push.requestId, resultCode = code or 200 })
end

function Client:next(kind, seconds)
  local deadline = uv.hrtime() + (seconds or 5) * 1e9
  repeat
    local got, body = self:push((deadline - uv.hrtime()) / 1e9)
    if got and body.requestId and not self.no_acks then
      self:ack(body, got)
    end
    if got == kind then
      return body
    end
  until not got
end

function Client:state()
  self.core:pump(0)
  return self.core:state()
end

function Client:close()
  self.core:close()
end

---Closes what specs left open.
local open = {}

function grpc.close_all()
  for _, client in ipairs(open) do
    client:close()
  end
  open = {}
end

---@return grpc.Client|nil
function grpc.connect(server, opts)
  local core_conn = core.connect("127.0.0.1", tostring(server.port + 1000), opts or {})
  if not core_conn then
    return nil
  end
  local client = setmetatable({ core = core_conn }, Client)
  open[#open + 1] = client
  return client
end

---Set up as the clients do it.
function grpc.client(server, labels, opts)
  local client = assert(grpc.connect(server, opts), "no connection")
  client:open()
  client:send("ConnectionSetupRequest", {
    clientVersion = "Nacos-Spec:1", labels = labels or { source = "sdk", module = "naming" }, abilityTable = { lock = true },
  })
  local health
  repeat
    health = client:call("HealthCheckRequest", {})
  until not health or health.resultCode == 200
  assert(health, "no set-up")
  return client
end

return grpc
