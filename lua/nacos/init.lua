--- nacos: a client of the Nacos service registry and configuration centre that never blocks its host.
--
--   local nacos = require "nacos"
--   local client = nacos.client { server_addresses = "10.0.0.1:8848,10.0.0.2:8848", namespace = "prod" }
--   local content, source = client:get_config("app.yaml", "DEFAULT_GROUP")
--   client:add_config_watcher("app.yaml", "DEFAULT_GROUP", function(change) print(change.content) end)
--   client:add_naming_instance("web", "10.0.0.9", 8080)
--   client:watch_service("web", function(change) print(#change.instances) end)
--   nacos.run()
--
-- Misuse raises at the caller's line; the world failing gives nil and an error whose tostring() is a sentence and whose `code` is
-- one of nacos.ErrorCode. Durations are seconds.

local client = require "nacos.client"
local core = require "nacos.core"
local scheduler = require "nacos.scheduler"

---@alias nacos.ErrorCode
---| "not_found"    # the server says that the item does not exist
---| "forbidden"    # login refused, or no right to this item
---| "unavailable"  # no server answered in time: nothing is known about the item
---| "conflict"     # compare-and-set: the content is no longer the expected one
---| "unsupported"  # this server does not offer the call
---| "refused"      # the server understood and said no
---| "protocol"     # what came back is not an answer of Nacos, or too large
---| "invalid"      # refused here, before anything was sent
---| "closed"       # the client was closed meanwhile
---| "forked"       # used in a fork of the process that made the client
---| "nomem"

---@class nacos.Error
---@field code nacos.ErrorCode
---@field message string       # a sentence with key and server; also tostring(err)
---@field status integer|nil   # HTTP status of the answer behind it
---@field server string|nil    # "http://10.0.0.1:8848"

local nacos = {
  _VERSION = core.version,
  client = client.new,
  run = scheduler.run,
  spawn = scheduler.spawn,
  sleep = scheduler.sleep,
  step = scheduler.step,
  fd = scheduler.fd,
  stop = scheduler.stop,
  on_signal = scheduler.on_signal,
}

---The form of the Nacos Python SDK: NacosClient("10.0.0.1:8848", { namespace = "prod" }).
---@param server_addresses string|nil # nil with opts.endpoint
---@param opts nacos.Options|nil
---@return nacos.Client
function nacos.NacosClient(server_addresses, opts)
  local all = {}
  if type(server_addresses) == "table" and opts == nil then
    all = server_addresses
  elseif opts ~= nil and type(opts) ~= "table" then
    error("bad argument #2 to 'nacos.NacosClient' (table expected, got " .. type(opts) .. ")", 2)
  else
    for name, value in pairs(opts or {}) do
      all[name] = value
    end
    all.server_addresses = server_addresses
  end
  local made = client.create(all, "nacos.NacosClient", 2)
  return made
end

---@param content string
---@return string # lower-case hex, as Nacos compares contents
function nacos.md5(content)
  if type(content) ~= "string" then
    error("bad argument #1 to 'nacos.md5' (string expected, got " .. type(content) .. ")", 2)
  end
  return (core.md5(content))
end

---Replace a file atomically: a reader, or a crash, finds the old or the new content, never a part.
---@param path string
---@param content string
---@param opts { mode: string|nil, sync: boolean|nil }|nil # mode: octal text, default the old file's, else "0644"; sync: true
---@return true|nil
---@return nacos.Error|nil
function nacos.write_file(path, content, opts)
  if type(path) ~= "string" or type(content) ~= "string" then
    error("bad argument to 'nacos.write_file' (path and content are strings)", 2)
  end
  opts = opts or {}
  local mode = opts.mode == nil and 0 or type(opts.mode) == "string" and tonumber(opts.mode, 8)
  if not mode or mode > 4095 then
    error("bad option 'mode' to 'nacos.write_file' (octal text such as \"0644\" expected)", 2)
  end
  return core.write_file(path, content, mode, opts.sync ~= false)
end

return nacos
