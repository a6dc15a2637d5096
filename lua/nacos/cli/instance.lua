--- What the commands about services share: the options that name an instance, and how one is printed.

local instance = {}

---Decimal only: a port that is written 0x50 is a mistake.
local function decimal(text)
  return not text:find("[^%d.+eE-]") and tonumber(text) or nil
end

local function integer(text)
  local number = math.tointeger(decimal(text))
  return number, not number and "a whole number is needed, not '" .. text .. "'" or nil
end

function instance.number(text)
  local number = decimal(text)
  return number, not number and "a number is needed, not '" .. text .. "'" or nil
end

---The options that say which instance.
function instance.options(parser)
  parser:argument("service"):description("The service's name")
  return {
    parser:option("--ip"):argname("IP"):count(1):description("Its address"),
    parser:option("--port"):argname("PORT"):count(1):convert(integer):description("Its port"),
    parser:option("--cluster"):argname("NAME"):description("Its cluster (default DEFAULT)"),
    parser:flag("--persistent"):description("A persistent one: no beats, it stays until it is deregistered"),
  }
end

function instance.address(ip, port)
  return (ip:find(":", 1, true) and "[%s]:%d" or "%s:%d"):format(ip, port)
end

---The fields of a line.
function instance.fields(item)
  return item.service_name, instance.address(item.ip, item.port), item.cluster_name, ("%.14g"):format(item.weight),
    item.healthy and "healthy" or "unhealthy"
end

---What JSON says of it.
---@param more table<string, any>|nil # fields beside its own
function instance.object(item, namespace, more)
  local metadata = setmetatable({}, { __jsontype = "object" }) -- also when it is empty
  for name, value in pairs(item.metadata) do
    metadata[name] = value
  end
  local object = {
    service_name = item.service_name, group_name = item.group_name, namespace = namespace or "", ip = item.ip, port = item.port,
    cluster_name = item.cluster_name, weight = item.weight, healthy = item.healthy, enabled = item.enabled,
    ephemeral = item.ephemeral, metadata = metadata, instance_id = item.instance_id,
  }
  for name, value in pairs(more or {}) do
    object[name] = value
  end
  return object
end

return instance
