--- client: one namespace on one list of servers. The public object; see nacos.Options for what it takes. Configurations are here,
-- services in nacos.naming.

local callbacks = require "nacos.callbacks"
local core = require "nacos.core"
local naming = require "nacos.naming"
local options = require "nacos.options"
local scheduler = require "nacos.scheduler"

local json -- lua-cjson, loaded by the first listing: the only function that reads JSON

local await = scheduler.await
local monotonic = core.monotonic

local DEFAULT_GROUP = "DEFAULT_GROUP"
local TYPE_MEMORY = 10       -- seconds in which a server may still show the type before a publish
local CAS_SINCE = { 2, 3, 0 } -- servers before it ignore casMd5 over HTTP and overwrite

---@class nacos.Options
---@field server_addresses string|nil         # "10.0.0.1:8848,https://nacos.example:443,[::1]"; scheme http, port 8848 unless given
---@field endpoint string|nil                 # address server "host[:8080]" or URL, asked every 30 s for the list instead
---@field namespace string|nil                # namespace id; default and "public": the public one
---@field ak string|nil                       # access key (Alibaba MSE)
---@field sk string|nil                       # secret key
---@field username string|nil
---@field password string|nil
---@field password_file string|nil            # read at each login, so that it may be rotated
---@field password_env string|nil             # name of an environment variable, likewise
---@field log_level "DEBUG"|"INFO"|"WARN"|"WARNING"|"ERROR"|"OFF"|nil # any case; default WARN
---@field log_dir string|nil                  # default: standard error
---@field log_rotation_backup_count integer|nil # log files kept, one a day; default 7
---@field log_format "text"|"json"|nil        # of its lines; default "text"
---@field context_path string|nil             # default "/nacos"
---@field verify boolean|nil                  # check https certificates; default: only when ca_file is given
---@field ca_file string|nil
---@field cert_file string|nil                # client certificate (PEM)
---@field key_file string|nil
---@field server_name string|nil              # name to ask for and verify instead of the address
---@field on_error fun(err: any, about: table)|nil # an error of a callback (with traceback), or a watch that cannot be served
---@field default_timeout number|nil          # seconds for a request, 3
---@field pulling_timeout number|nil          # seconds a server may hold a long poll, 30
---@field pulling_config_size integer|nil     # most keys in one long poll, 3000
---@field callback_thread_num integer|nil     # callbacks running at once, 10
---@field failover_base string|nil            # "nacos-data/data"
---@field snapshot_base string|nil            # "nacos-data/snapshot"
---@field no_snapshot boolean|nil             # neither read nor write snapshots
---@field proxies table|nil                   # { http = "host:port", https = "host:port" }
---@field max_response_size integer|nil       # bytes, 16777216
---@field push boolean|nil                    # ask servers to push changes of services over UDP, true
---@field push_port integer|nil               # UDP port for that; default and 0: any free one
---@field push_ip string|nil                  # address that servers push to; default: that of the connection to the server
---@field protocol "auto"|"grpc"|"v3"|"v1"|nil # how to speak with servers; default "auto": gRPC where it can be reached
---@field grpc_port_offset integer|nil        # the gRPC port is the server's port plus this, 1000
---@field poll_interval number|nil            # seconds between two looks at a watched item where servers tell of no changes (v3), 5

---@class nacos.GetArgs
---@field data_id string
---@field group string|nil
---@field timeout number|nil
---@field no_snapshot boolean|nil

---@class nacos.PublishOptions
---@field type string|nil       # "text", "json", "xml", "yaml", "html", "properties", "toml"; default: kept
---@field app_name string|nil
---@field tags string|nil       # comma separated
---@field desc string|nil
---@field cas_md5 string|nil    # publish only over content with this md5
---@field wait boolean|nil      # return when a read shows the new content
---@field timeout number|nil    # seconds

---@class nacos.ListArgs
---@field data_id string|nil    # pattern, "*" is the wildcard; default all
---@field group string|nil      # likewise
---@field page integer|nil      # 1
---@field page_size integer|nil # 100, at most 500
---@field timeout number|nil    # seconds

---@class nacos.Page
---@field total integer
---@field page integer
---@field pages integer
---@field items nacos.Listed[]

---@class nacos.Listed
---@field data_id string
---@field group string
---@field namespace string
---@field content string|nil    # a 3.x server lists without contents
---@field md5 string|nil        # 1.x and 2.x list without md5s
---@field type string|nil
---@field app_name string|nil

---@class nacos.Value
---@field content string|nil    # nil: the item does not exist
---@field md5 string|nil
---@field type string|nil
---@field source string|nil
---@field confirmed number|nil  # unix seconds: when a server last said that this is the newest
---@field server string|nil     # of a watch: that told the value, or that there is none
---@field via nacos.Via|nil     # of a watch

---@alias nacos.Via
---| "read"    # it was read for itself: the first value, or after a failure
---| "poll"    # a long poll told of the change
---| "compare" # it was asked for again, and was another one
---| "push"    # pushed over gRPC
---| "udp"     # pushed as a datagram

---@class nacos.Status
---@field server string|nil     # in use
---@field connected boolean     # the last exchange worked
---@field protocol "grpc"|"v3"|"v1"|nil # in use; nil: not known yet
---@field protocol_why string|nil # a sentence: why this one, or why it cannot be had at the moment
---@field server_version string|nil # of the server in use; nil: not known
---@field link boolean          # the gRPC stream is up
---@field reconnects integer    # times it had to be opened again
---@field watches integer
---@field polls integer         # long polls held now
---@field requests integer
---@field failures integer
---@field logins integer
---@field callback_errors integer
---@field callbacks_running integer
---@field instances integer         # registered here and kept alive
---@field subscriptions integer     # followed services
---@field beats integer             # answered
---@field reregistrations integer   # times a server had forgotten an instance
---@field pushes integer            # that brought news, over gRPC or UDP
---@field pushes_dropped integer    # forged, broken, old or not asked for
---@field entries_skipped integer   # of instance lists: no instances, or twice
---@field last_error nacos.Error|nil

---@class nacos.Change
---@field data_id string
---@field group string
---@field namespace string      # "" is the public one
---@field content string|nil    # nil: the item was deleted
---@field raw_content string|nil # the same bytes
---@field md5 string|nil
---@field type string|nil       # "json", "yaml", "properties", "xml", "html", "toml", "text"
---@field source "server"|"failover"|"snapshot"|nil
---@field via nacos.Via|nil     # how the client learned of it

---@class nacos.Client
local Client = {}
Client.__index = Client
for name, method in pairs(naming.methods) do
  Client[name] = method
end

-- ---- options ---------------------------------------------------------------------------------------------------------------

local LEVELS = { debug = "debug", info = "info", warn = "warn", warning = "warn", error = "error", critical = "error", off = "off" }

local function check_level(level)
  if not LEVELS[level:lower()] then
    return "DEBUG, INFO, WARN, ERROR or OFF expected"
  end
end

---What set_options() takes.
local SETTABLE = {
  default_timeout = { type = "number", above = 0, default = 3 },
  pulling_timeout = { type = "number", min = 1, max = 600, default = 30 },
  pulling_config_size = { type = "number", integer = true, min = 1, max = 10000, default = 3000 },
  poll_interval = { type = "number", min = 0.1, max = 3600, default = 5 },
  callback_thread_num = { type = "number", integer = true, min = 1, default = 10 },
  failover_base = { type = "string", default = "nacos-data/data" },
  snapshot_base = { type = "string", default = "nacos-data/snapshot" },
  no_snapshot = { type = "boolean", default = false },
  proxies = { type = "table", fields = { http = "string", https = "string" } },
  max_response_size = { type = "number", integer = true, min = 1024, max = 2 ^ 31, default = 16777216 },
  log_level = { type = "string", check = check_level, default = "warn" },
}

local OPTIONS = {
  server_addresses = "string",
  endpoint = "string",
  namespace = { type = "string", default = "", check = core.check_namespace },
  ak = "string",
  sk = "string",
  username = "string",
  password = "string",
  password_file = "string",
  password_env = "string",
  log_dir = "string",
  log_format = { type = "string", one_of = { "text", "json" }, default = "text" },
  log_rotation_backup_count = { type = "number", integer = true, min = 0, default = 7 },
  context_path = { type = "string", default = "/nacos" },
  verify = "boolean",
  ca_file = "string",
  cert_file = "string",
  key_file = "string",
  server_name = "string",
  on_error = "function",
  push = { type = "boolean", default = true },
  push_port = { type = "number", integer = true, min = 0, max = 65535, default = 0 },
  push_ip = { type = "string", check = function(ip)
    local field, why = core.check_instance { ip = ip, port = 1 }
    return field == "ip" and why or nil
  end },
  protocol = { type = "string", one_of = { "auto", "grpc", "v3", "v1" }, default = "auto" },
  grpc_port_offset = { type = "number", integer = true, min = -65534, max = 65534, default = 1000, check = function(offset)
    return offset == 0 and "must not be 0: gRPC has a port of its own" or nil
  end },
}
for name, rule in pairs(SETTABLE) do
  OPTIONS[name] = rule
end

local SET_ONLY = {} -- SETTABLE without defaults: what is not given stays
for name, rule in pairs(SETTABLE) do
  local copy = {}
  for k, v in pairs(rule) do
    copy[k] = v
  end
  copy.default = nil
  SET_ONLY[name] = copy
end

---The options as the core takes them.
local function core_options(o)
  local t = {}
  for name, value in pairs(o) do
    t[name] = value
  end
  t.log_level = LEVELS[o.log_level:lower()]
  t.log_json = o.log_format == "json"
  t.proxies, t.on_error = nil, nil
  t.proxy_http = o.proxies and o.proxies.http
  t.proxy_https = o.proxies and o.proxies.https
  return t
end

local function make(given, what, level)
  local o = options.check(OPTIONS, given, what, level + 1)
  if not o.server_addresses and not o.endpoint then
    error(("missing option 'server_addresses' to '%s'"):format(what), level + 1)
  end
  local raw, err = scheduler.engine():client(core_options(o))
  if not raw then
    error(("%s (in '%s')"):format(err.message, what), level + 1)
  end
  local client = setmetatable({
    options = o,
    core = raw,
    namespace = o.namespace == "public" and "" or o.namespace,
    callbacks = callbacks.new(raw, o),
    items = {},         -- key -> item: what is watched
    types = {},         -- key -> {type, until}: of late publishes
  }, Client)
  naming.init(client)
  return client
end

---A checked copy of some of the options, for those who make a client of them later.
---@param given nacos.Options
---@param what string   # for messages
---@param level integer # whom to blame, as for options.check
---@return nacos.Options # without defaults
local function check_options(given, what, level)
  local all, copy = options.check(OPTIONS, given, what, level + 1), {}
  for name in pairs(given) do
    copy[name] = all[name]
  end
  for name, check in pairs { server_addresses = core.check_servers, endpoint = core.check_endpoint } do
    local problem = copy[name] and copy[name] ~= "" and check(copy[name])
    if problem then
      error(("%s (in '%s')"):format(problem, what), level + 1)
    end
  end
  return copy
end

---Make a client. No I/O happens yet.
---@param opts nacos.Options
---@return nacos.Client
local function new(opts)
  local client = make(opts, "nacos.client", 2) -- no tail call: an error blames our caller's line
  return client
end

---Change options of a running client; those not given stay as they are.
---It takes default_timeout, pulling_timeout, pulling_config_size, poll_interval, callback_thread_num, failover_base, snapshot_base,
---no_snapshot, proxies, max_response_size and log_level.
---@param opts nacos.Options
---@return true|nil
---@return nacos.Error|nil
function Client:set_options(opts)
  local changes = options.check(SET_ONLY, opts, "set_options", 2)
  for name, value in pairs(changes) do
    self.options[name] = value
  end
  self.callbacks:start()
  return self.core:configure(core_options(self.options))
end

-- ---- arguments -------------------------------------------------------------------------------------------------------------

local DATA_ID = { type = "string", required = true, check = core.check_id }
local GROUP = { type = "string", default = DEFAULT_GROUP, check = core.check_id }
local TIMEOUT = { type = "number", above = 0 }
local CALLBACK = { type = "function", required = true }

local GET = {
  "data_id", "group", "timeout", "no_snapshot";
  data_id = DATA_ID, group = GROUP, timeout = TIMEOUT, no_snapshot = "boolean",
}
local PUBLISH = {
  "data_id", "group", "content", "timeout";
  data_id = DATA_ID, group = GROUP, timeout = TIMEOUT,
  content = {
    type = "string", required = true,
    check = function(content)
      if content == "" then
        return "a server takes no empty content; remove_config deletes the item"
      end
    end,
  },
  type = { type = "string", one_of = { "text", "json", "xml", "yaml", "html", "properties", "toml" } },
  app_name = "string", tags = "string", desc = "string", wait = "boolean",
  cas_md5 = {
    type = "string",
    check = function(md5)
      if not md5:match("^%x+$") or #md5 ~= 32 then
        return "an md5 in hex expected: that of the content you read"
      end
    end,
  },
}
local REMOVE = { "data_id", "group", "timeout"; data_id = DATA_ID, group = GROUP, timeout = TIMEOUT }
local LIST = {
  "group", "data_id", "page", "page_size", "timeout";
  group = { type = "string", default = "" }, data_id = { type = "string", default = "" }, timeout = TIMEOUT,
  page = { type = "number", integer = true, min = 1, default = 1 },
  page_size = { type = "number", integer = true, min = 1, max = 500, default = 100 },
}
local WATCH = { "data_id", "group", "cb"; data_id = DATA_ID, group = GROUP, cb = CALLBACK }
local WATCH_ALL = {
  "data_id", "group", "cb_list";
  data_id = DATA_ID, group = GROUP, cb_list = { type = "table", required = true, of = { type = "function" } },
}
local UNWATCH = {
  "data_id", "group", "cb", "remove_all";
  data_id = DATA_ID, group = GROUP, cb = CALLBACK, remove_all = { type = "boolean", default = false },
}
local PEEK = { "data_id", "group"; data_id = DATA_ID, group = GROUP }

local function key_of(data_id, group)
  return data_id .. "\2" .. group
end

-- ---- reads and writes ------------------------------------------------------------------------------------------------------

---Read one configuration: failover file, then the servers in turn, then the snapshot.
---@param data_id string
---@param group string|nil         # default "DEFAULT_GROUP"
---@param timeout number|nil       # seconds; default the option default_timeout
---@param no_snapshot boolean|nil  # true: an error rather than an old value when no server answers
---@return string|nil content      # nil: see the second result
---@return "server"|"failover"|"snapshot"|nacos.Error # where it came from, or why there is none
---@return table|nil info          # { md5, type, source, confirmed }
---@overload fun(self, args: nacos.GetArgs): string|nil, any, table|nil
function Client:get_config(...)
  local data_id, group, timeout, no_snapshot = ...
  if select("#", ...) ~= 2 or type(data_id) ~= "string" or type(group) ~= "string"
    or core.check_id(data_id) or core.check_id(group) then
    local a = options.named(GET, "get_config", 2, ...) -- all other forms, and misuse
    data_id, group, timeout, no_snapshot = a.data_id, a.group, a.timeout, a.no_snapshot
  end
  local flag = no_snapshot == nil and "" or no_snapshot and "no_snapshot" or "use_snapshot"
  local event = await(self.core:get(data_id, group, timeout or self.options.default_timeout, flag))
  if event.error then
    return nil, event.error
  end
  return event.content, event.source, event
end

---@return integer|nil, integer|nil, integer|nil
local function parse_version(text)
  local a, b, c = text:match("^(%d+)%.(%d+)%.?(%d*)")
  return tonumber(a), tonumber(b), tonumber(c) or 0
end

---True when the server is known to honour casMd5: by gRPC each does, over HTTP those of 2.3.0 and later. One that silently ignores it
---would overwrite what somebody else wrote.
local function cas_works(self, timeout)
  local function by_grpc()
    return (self.core:status() or {}).protocol == "grpc"
  end
  if by_grpc() then
    return true
  end
  local event = await(self.core:version(timeout))
  if by_grpc() then -- it was not known before
    return true
  end
  if event.error and event.error.code ~= "unsupported" then
    return nil, event.error
  end
  local have = { parse_version(event.content or "") }
  for i = 1, 3 do
    if not have[i] or have[i] < CAS_SINCE[i] then
      return nil, core.error("unsupported", "cannot publish with cas_md5: the server (version " .. (event.content or "unknown")
        .. ") does not honour it over HTTP; Nacos 2.3.0 and later do")
    elseif have[i] > CAS_SINCE[i] then
      break
    end
  end
  return true
end

---The type to keep when the caller gives none: a server takes a missing one for "text". And for compare-and-set whether the item
---is there at all: a server takes any md5 for one that is not.
local function present_type(self, a, timeout)
  local late = self.types[key_of(a.data_id, a.group)]
  if late and late.till > monotonic() then
    return late.type
  end
  local event = await(self.core:get(a.data_id, a.group, timeout, "server_only"))
  local err = event.error
  if err and err.code == "not_found" and a.cas_md5 then
    return nil, core.error("conflict",
      ("cannot publish %s (group %s) at %s: it does not exist, so it does not have the expected md5")
        :format(a.data_id, a.group, err.server or "?"), err.status, err.server)
  end
  if err and err.code ~= "not_found" and err.code ~= "forbidden" then
    return nil, err
  end
  return event.type
end

local function remember_type(self, key, config_type)
  local now = monotonic()
  for k, late in pairs(self.types) do
    if late.till <= now then
      self.types[k] = nil
    end
  end
  self.types[key] = { type = config_type, till = now + TYPE_MEMORY }
end

---Wait until a read shows the content: a server answers a publish before its readers see it.
local function wait_until_readable(self, a, deadline)
  local md5, pause = core.md5(a.content), 0.01
  while true do
    local left = deadline - monotonic()
    local event = left > 0 and await(self.core:get(a.data_id, a.group, left, "server_only"))
    if event and event.md5 == md5 then
      return true
    end
    if left <= pause or (event and event.error and event.error.code == "closed") then
      return nil, core.error("unavailable",
        ("published %s (group %s), but no read shows the new content yet"):format(a.data_id, a.group))
    end
    scheduler.sleep(pause)
    pause = math.min(pause * 2, 0.2)
  end
end

---Publish one configuration, creating or replacing it.
---@param data_id string
---@param group string|nil     # default "DEFAULT_GROUP"
---@param content string       # UTF-8; an empty one is refused
---@param timeout number|nil   # seconds for everything; default the option default_timeout
---@return true|nil
---@return nacos.Error|nil     # "conflict": cas_md5 is not the md5 of the present content
---@overload fun(self, data_id: string, group: string|nil, content: string, opts: nacos.PublishOptions): true|nil, nacos.Error|nil
function Client:publish_config(...)
  local a = options.named(PUBLISH, "publish_config", 2, ...)
  local deadline = monotonic() + (a.timeout or self.options.default_timeout)
  local function left()
    return math.max(deadline - monotonic(), 0.001)
  end
  if a.cas_md5 then
    local ok, err = cas_works(self, left())
    if not ok then
      return nil, err
    end
  end
  if not a.type or a.cas_md5 then
    local kept, err = present_type(self, a, left())
    if err then
      return nil, err
    end
    a.type = a.type or kept
  end
  local event = await(self.core:publish(a.data_id, a.group, a.content, left(), {
    type = a.type, app_name = a.app_name, tags = a.tags, desc = a.desc, cas_md5 = a.cas_md5 and a.cas_md5:lower(),
  }))
  if event.error then
    return nil, event.error
  end
  remember_type(self, key_of(a.data_id, a.group), a.type)
  if a.wait then
    return wait_until_readable(self, a, deadline)
  end
  return true
end

---Remove one configuration; one that does not exist is fine.
---@param data_id string
---@param group string|nil   # default "DEFAULT_GROUP"
---@param timeout number|nil # seconds
---@return true|nil
---@return nacos.Error|nil
function Client:remove_config(...)
  local a = options.named(REMOVE, "remove_config", 2, ...)
  local event = await(self.core:remove(a.data_id, a.group, a.timeout or self.options.default_timeout))
  if event.error then
    return nil, event.error
  end
  self.types[key_of(a.data_id, a.group)] = nil
  return true
end

-- ---- lists -----------------------------------------------------------------------------------------------------------------

local function text(value)
  return type(value) == "string" and value or nil -- JSON's null is a userdata
end

local function read_page(self, body, a)
  json = json or require "cjson.safe"
  local page = json.decode(body)
  if type(page) ~= "table" or type(page.pageItems) ~= "table" then
    return nil, core.error("protocol", "cannot list configurations: the server's answer is not a page of them")
  end
  local items = {}
  for i, item in ipairs(page.pageItems) do
    items[i] = {
      data_id = text(item.dataId),
      group = text(item.group),
      namespace = self.namespace,
      content = text(item.content),
      md5 = text(item.md5),
      type = text(item.type),
      app_name = text(item.appName),
    }
  end
  local function whole(n)
    return type(n) == "number" and math.floor(n) or nil -- 25, not 25.0
  end
  return {
    items = items, total = whole(page.totalCount) or #items,
    page = whole(page.pageNumber) or a.page, pages = whole(page.pagesAvailable) or 1,
  }
end

local function get_page(self, a)
  local event = await(self.core:list(a.data_id, a.group, a.page, a.page_size, a.timeout or self.options.default_timeout))
  if event.error then
    return nil, event.error
  end
  return read_page(self, event.content, a)
end

---One page of the configurations of the namespace.
---@param args nacos.ListArgs
---@return nacos.Page|nil
---@return nacos.Error|nil
function Client:get_configs(...)
  return get_page(self, options.named(LIST, "get_configs", 2, ...))
end

---Iterate over all pages: `for item in client:each_config{ group = "G" } do … end`. Raises the error when a page cannot be had.
---@param args table|nil # as get_configs
---@return fun(): table|nil
function Client:each_config(...)
  local a = options.named(LIST, "each_config", 2, ...)
  local page, i
  return function()
    while true do
      if page and page.items[i + 1] then
        i = i + 1
        return page.items[i]
      end
      if page and (a.page >= page.pages or #page.items == 0) then
        return nil
      end
      a.page = page and a.page + 1 or a.page
      local err
      page, err = get_page(self, a)
      if not page then
        error(err, 2)
      end
      i = 0
    end
  end
end

-- ---- watches ---------------------------------------------------------------------------------------------------------------
--
-- An *item* is one watched configuration; it holds the newest change while callbacks want it, and its *entries*, one per added
-- callback; see nacos.callbacks.

local Entry = {}
Entry.__index = Entry

function Entry:deliver(to)
  local item = self.item
  self.version = item.version
  to:call(self.callback, { data_id = item.data_id, group = item.group }, item.change)
end

---One less who wants item.change; the engine keeps the content, one more copy here would double it.
local function release(item)
  item.busy = item.busy - 1
  if item.busy == 0 then
    item.change = nil
  end
end

function Entry:rest()
  release(self.item)
end

local function notify(self, entry)
  if not entry.busy then
    entry.item.busy = entry.item.busy + 1
  end
  self.callbacks:notify(entry)
end

local function set_change(self, item, value)
  item.version = value.version
  item.change = {
    data_id = item.data_id, group = item.group, namespace = self.namespace,
    content = value.content, raw_content = value.content, md5 = value.md5, type = value.type, source = value.source,
    via = value.via,
  }
end

local function on_event(self, item, event)
  local about = { kind = "watch", data_id = item.data_id, group = item.group }
  if event.kind == "trouble" then
    for _, entry in ipairs(item.entries) do
      if entry.observe then
        entry.observe(nil, event.error)
      end
    end
    self.callbacks:report(event.error, about)
    return
  end
  local untold = not item.version and not event.content -- callbacks are not told that an item does not exist until it did
  set_change(self, item, event)
  local entries = {} -- a callback may add and remove while we go
  for _, entry in ipairs(item.entries) do
    local news = entry.version ~= event.version -- else it came late and has seen this
    if news and entry.observe then
      entry.version = event.version
      entry.observe(event)
    elseif news and not untold then
      entries[#entries + 1] = entry
    end
  end
  item.busy = item.busy + 1 -- until all have been told
  for _, entry in ipairs(entries) do
    notify(self, entry)
  end
  release(item)
end

---The watched item, watched from now on if it was not.
local function open_item(self, data_id, group)
  local key = key_of(data_id, group)
  local item = self.items[key]
  if not item then
    local watch, id = self.core:watch(data_id, group)
    if not watch then
      return nil, id
    end
    item = { data_id = data_id, group = group, watch = watch, id = id, entries = {}, busy = 0 }
    self.items[key] = item
    scheduler.handle(id, function(event)
      on_event(self, item, event)
    end)
  end
  return item
end

local function drop_item(self, item)
  item.watch:close()
  scheduler.handle(item.id, nil)
  self.items[key_of(item.data_id, item.group)] = nil
end

local function add_watcher(self, data_id, group, callback)
  local item, err = open_item(self, data_id, group)
  if not item then
    return nil, err
  end
  local entry = setmetatable({ callback = callback, item = item }, Entry)
  item.entries[#item.entries + 1] = entry
  if item.version then -- a value is known already
    scheduler.spawn(function() -- not from inside this call
      scheduler.sleep(0)
      local value = entry.version ~= item.version and item.watch:peek({}) -- unless an event was faster
      if value and value.content then
        set_change(self, item, value)
        notify(self, entry)
      end
    end)
  end
  return true
end

---Call `cb` once with the present value if the item exists, then at every change and at deletion (content nil), in a task of its
---own (it may wait). Changes that come while it runs are merged, the newest is delivered. Its error is logged and passed to
---on_error; the next change is delivered all the same.
---@param data_id string
---@param group string|nil               # default "DEFAULT_GROUP"
---@param cb fun(change: nacos.Change)
---@return true|nil
---@return nacos.Error|nil               # only "closed" and "forked": a server that is down is no error here
function Client:add_config_watcher(...)
  local a = options.named(WATCH, "add_config_watcher", 2, ...)
  return add_watcher(self, a.data_id, a.group, a.cb)
end

---Several callbacks on one item; they run concurrently.
---@param data_id string
---@param group string|nil                       # default "DEFAULT_GROUP"
---@param cb_list (fun(change: nacos.Change))[]
---@return true|nil
---@return nacos.Error|nil
function Client:add_config_watchers(...)
  local a = options.named(WATCH_ALL, "add_config_watchers", 2, ...)
  for _, callback in ipairs(a.cb_list) do
    local ok, err = add_watcher(self, a.data_id, a.group, callback)
    if not ok then
      return nil, err
    end
  end
  return true
end

---What observe_config() returns.
---@class nacos.Observation
local Observation = {}
Observation.__index = Observation

---No more calls.
function Observation:stop()
  for i, entry in ipairs(self.item.entries) do
    if entry == self then
      table.remove(self.item.entries, i)
      if #self.item.entries == 0 then
        drop_item(self.client, self.item)
      end
      return
    end
  end
end

---What is known of the source now, if the newest value still is that of this version: { source, server, confirmed }.
---@param version integer
---@return table|nil
function Observation:origin(version)
  local known = self.item.watch:peek({ version = version })
  return known and known.version == version and known or nil
end

---Call `fn` in the very turn in which news come, and at once if a value is known: not as a task, so nothing can be in its way, and it
---must neither wait nor raise nor add or remove watchers. It is also told that the item does not exist (no content), and of troubles
---(nil and the error). For parts of this program such as the agent; see add_config_watcher.
---@param data_id string
---@param group string|nil
---@param fn fun(value: nacos.Value|nil, err: nacos.Error|nil) # the value has its `version`, too
---@return nacos.Observation|nil
---@return nacos.Error|nil
function Client:observe_config(data_id, group, fn)
  local a = options.named(WATCH, "observe_config", 2, data_id, group, fn)
  local item, err = open_item(self, a.data_id, a.group)
  if not item then
    return nil, err
  end
  local entry = setmetatable({ observe = a.cb, item = item, client = self }, Observation)
  item.entries[#item.entries + 1] = entry
  local value = item.watch:peek({})
  if value then
    entry.version = value.version
    entry.observe(value)
  end
  return entry
end

---Remove a callback from an item: one occurrence of it, or every one. A run under way ends by itself. An unknown callback is
---ignored.
---@param data_id string
---@param group string|nil        # default "DEFAULT_GROUP"
---@param cb function
---@param remove_all boolean|nil  # default false
function Client:remove_config_watcher(...)
  local a = options.named(UNWATCH, "remove_config_watcher", 2, ...)
  local item = self.items[key_of(a.data_id, a.group)]
  if not item then
    return
  end
  for i = #item.entries, 1, -1 do
    local entry = item.entries[i]
    if entry.callback == a.cb then
      entry.removed = true
      table.remove(item.entries, i)
      if not a.remove_all then
        break
      end
    end
  end
  if #item.entries == 0 then
    drop_item(self, item)
  end
end

---The newest known value of a watched item, from memory: no I/O, no waiting, and nothing allocated while it does not change.
---@param data_id string
---@param group string|nil # default "DEFAULT_GROUP"
---@return nacos.Value|nil # nil: not watched, or nothing known yet. Belongs to the client: copy what you keep
---@overload fun(self, args: { data_id: string, group: string|nil }): nacos.Value|nil
function Client:peek(data_id, group)
  local item = type(data_id) == "string" and self.items[data_id .. "\2" .. (group or DEFAULT_GROUP)]
  if not item then -- by name, not watched, or misuse
    local a = options.named(PEEK, "peek", 2, data_id, group)
    item = self.items[key_of(a.data_id, a.group)]
  end
  if not item then
    return nil
  end
  item.peeked = item.peeked or {}
  return item.watch:peek(item.peeked)
end

-- ---- the rest --------------------------------------------------------------------------------------------------------------

---@return nacos.Status|nil
---@return nacos.Error|nil
function Client:status()
  local status, err = self.core:status()
  if not status then
    return nil, err
  end
  status.callback_errors = self.callbacks.errors
  status.callbacks_running = self.callbacks.running
  return status
end

local CLOSE = { deregister = { type = "boolean", default = true } }

---End everything of the client: its requests answer "closed", its callbacks are not called any more, its registered instances are
---taken out of the server, unless `deregister = false`: then they stay until the server misses their beats (over gRPC it misses the
---connection at once). Returns within 100 ms, also with a long poll in flight and from inside a callback; deregistering goes on for
---up to 3 s, which the end of the Lua state waits for. Closing twice is fine.
---@param opts { deregister: boolean|nil }|nil
function Client:close(opts)
  local o = options.check(CLOSE, opts, "close", 2)
  for _, item in pairs(self.items) do
    scheduler.handle(item.id, nil)
    for _, entry in ipairs(item.entries) do
      entry.removed = true
    end
  end
  self.items = {}
  naming.close(self)
  self.core:close(o.deregister)
end

Client.__close = function(self)
  self:close()
end

return {
  new = new, create = make, check_options = check_options,
  RULES = { data_id = DATA_ID, group = GROUP, type = PUBLISH.type }, -- of arguments, for those who take the same
}
