--- state: what the agent remembers of its targets, in a folder of its own.
--
--   lock               locked while an agent runs; holds its pid
--   version            of this format; that of a newer lunacos is refused
--   agent.sock         the status socket (made by nacos.agent.control)
--   staged-…           files on their way to a place whose folder may not be written (nacos.agent.files)
--   targets/NAME/      NAME is percent-encoded; of a long one it is the beginning, `~` and a checksum, and record.json has it whole
--     record.json      what the agent notes of the target; replaced atomically, on the disk before save() returns
--     generations/N/   what was written: the contents as files 1, 2, … and, written last, meta.json
--     rejected/N/      the same for what the check refused last
--
-- The folder is 0700 and every file 0600, whatever the umask. What is damaged is told in the log and counts as absent.

local uv = require "luv"
local core = require "nacos.core"
local files = require "nacos.agent.files"
local log = require "nacos.agent.log"
local json = require "cjson.safe"

local state = {}

local VERSION, KEEP = 1, 10
local PRIVATE_FOLDER, PRIVATE_FILE = 448, 384 -- 0700, 0600

---@class nacos.agent.State
---@field folder string
---@field package locked integer|nil # descriptor of the lock file; nil: opened for looking
---@field package records table<string, nacos.agent.Record>
local State = {}
State.__index = State

---@class nacos.agent.Record
---@field name string # of the target
---@field data table  # free, of what JSON can say; save() writes it
---@field package folder string
---@field package state nacos.agent.State
local Record = {}
Record.__index = Record

---@class nacos.agent.GenerationFile
---@field path string
---@field content string|nil # in generation() and rejected(), not in generations()
---@field mode integer|nil
---@field uid integer|nil
---@field gid integer|nil
---@field md5 string|nil     # found out here
---@field size integer|nil   # found out here

---@class nacos.agent.Generation
---@field n integer|nil      # given by add_generation()
---@field time number|nil    # Unix time; default now
---@field reason string|nil
---@field sources table[]|nil
---@field output string|nil  # of the check, when rejected
---@field files nacos.agent.GenerationFile[]

local function failure(code, text, ...)
  return nil, core.error(code, text:format(...))
end

---Makes a folder that nobody else can look into, whatever the umask. One that is there stays as it is.
local function private_folder(path)
  local ok, message, code = uv.fs_mkdir(path, PRIVATE_FOLDER)
  if ok then
    ok, message, code = uv.fs_chmod(path, PRIVATE_FOLDER)
  end
  if ok or code == "EEXIST" then
    return true
  end
  return files.failure("cannot make the folder", path, message, code)
end

---The names in a folder; none when there is no such folder.
local function names_in(folder)
  local names, dir = {}, uv.fs_opendir(folder, nil, 64) -- each fs_scandir of luv 1.44 leaves its request behind
  local some = dir and uv.fs_readdir(dir)
  while some do
    for _, entry in ipairs(some) do
      names[#names + 1] = entry.name
    end
    some = uv.fs_readdir(dir)
  end
  if dir then
    uv.fs_closedir(dir)
  end
  return names
end

---Removes a file, or a folder with what is in it. Of a generation its meta.json first: without it the rest counts as not there.
local function remove(path)
  local stat = uv.fs_lstat(path)
  local folder = stat and stat.type == "directory"
  if folder then
    uv.fs_unlink(path .. "/meta.json")
    for _, name in ipairs(names_in(path)) do
      remove(path .. "/" .. name)
    end
  end
  local ok, message, code = (folder and uv.fs_rmdir or uv.fs_unlink)(path)
  if ok or code == "ENOENT" then
    return true
  end
  return files.failure("cannot remove", path, message, code)
end

---cjson reads every number as a float, and null as a value.
local function plain(value)
  if type(value) == "table" then
    for key, element in pairs(value) do
      value[key] = plain(element)
    end
  elseif type(value) == "number" then
    return math.tointeger(value) or value
  end
  if value == json.null then
    return nil
  end
  return value
end

---@return table|nil
---@return nacos.Error|nil # code "damaged": not a table in JSON
local function read_table(path)
  local text, err = files.read(path)
  if not text then
    return nil, err
  end
  local value = json.decode(text)
  if type(value) ~= "table" then
    return failure("damaged", "%s is damaged (%d bytes that are not JSON)", path, #text)
  end
  return plain(value)
end

---Raises for what JSON cannot say.
local function encode(value, what)
  local text, problem = json.encode(value)
  if not text then
    error(what .. ": " .. problem, 3)
  end
  return text
end

local NAME_MAX = 200 -- bytes: a folder's name ends at 255

---Target names as names of folders: no name of ours begins with a dot, and only what was shortened holds `~`.
local function encoded(name)
  local function hex(c)
    return ("%%%02X"):format(c:byte())
  end
  local text = name:gsub("[^%w._-]", hex):gsub("^%.", hex)
  return #text > NAME_MAX and text:sub(1, NAME_MAX - 33) .. "~" .. core.md5(name) or text
end

local function decoded(name)
  return (name:gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

-- ---- the folder ------------------------------------------------------------------------------------------------------------

---True, or why this folder cannot be ours. An empty one, as systemd makes it, and one we have used before are closed to others.
local function take_folder(folder)
  local stat, message, code = uv.fs_stat(folder)
  if not stat and code == "ENOENT" then
    local ok, err = files.mkdirs(folder:match("^(.+)/[^/]*$") or "/")
    if not ok then
      return nil, err
    end
    return private_folder(folder)
  elseif not stat then
    return files.failure("cannot use the state folder", folder, message, code)
  elseif stat.type ~= "directory" then
    return failure("invalid", "cannot use the state folder %s: it is a %s", folder, stat.type)
  elseif stat.uid ~= uv.getuid() then -- who could lead us elsewhere by links in it
    return failure("invalid", "cannot use the state folder %s: it belongs to user %d and the agent runs as %d; chown it, "
      .. "or give another", folder, stat.uid, uv.getuid())
  elseif stat.mode & 63 == 0 then -- 077
    return true
  elseif not uv.fs_stat(folder .. "/version") and #names_in(folder) > 0 then
    return failure("invalid", "cannot use the state folder %s: others may enter it (mode %03o) and other things are in it; "
      .. "give an empty folder, or chmod 700 it", folder, stat.mode & 511)
  end
  local ok
  ok, message, code = uv.fs_chmod(folder, PRIVATE_FOLDER)
  if not ok then
    return files.failure("cannot close to others the state folder", folder, message, code)
  end
  return true
end

---@return boolean|nil # true: of this version; false: none that can be read
---@return nacos.Error|nil
local function check_version(folder)
  local path = folder .. "/version"
  local text, err = files.read(path, 100)
  if not text and err.code ~= "absent" then
    return failure(err.code, "%s; run this as the user of the agent, or as root", err.message)
  end
  local version = text and math.tointeger(tonumber(text))
  if version and version > VERSION then
    return failure("version", "the state folder %s was written by a newer lunacos (version %d, this one knows %d): use that one, "
      .. "or another folder", folder, version, VERSION)
  elseif text and not version then
    log.warn("state", path .. " is damaged: the folder is taken for one of version " .. VERSION)
  end
  return version == VERSION
end

---The pid noted in the lock file; 0: none yet.
local function noted_pid(fd)
  return math.tointeger(tonumber(uv.fs_read(fd, 32, 0) or "")) or 0
end

---Locks the folder and notes our pid.
---@return integer|nil fd
---@return nacos.Error|nil
local function lock(folder)
  local path = folder .. "/lock"
  local fd, message, code = uv.fs_open(path, uv.constants.O_RDWR | uv.constants.O_CREAT, PRIVATE_FILE)
  if not fd then
    return files.failure("cannot lock the state folder", folder, message, code)
  end
  local ours, err = core.lock(fd)
  if ours then
    uv.fs_fchmod(fd, PRIVATE_FILE)
    uv.fs_ftruncate(fd, 0)
    uv.fs_write(fd, ("%d\n"):format(uv.os_getpid()), 0) -- a full disk: then it is locked all the same
    return fd
  end
  local pid = noted_pid(fd)
  uv.fs_close(fd)
  if err then
    return failure("invalid", "cannot lock the state folder %s: %s", folder, err.message)
  end
  return failure("locked", "the state folder %s is used by another agent (pid %s): stop that, or give this one a folder of its own",
    folder, pid > 0 and pid or "not known yet")
end

local function new_state(folder, locked)
  return setmetatable({ folder = folder, locked = locked, records = {} }, State)
end

local function absolute(folder)
  folder = folder:sub(1, 1) == "/" and folder or uv.cwd() .. "/" .. folder
  return folder:match("^(/.-)/*$")
end

---Opens the folder for the agent, making it when needed, and locks it.
---@param folder string
---@return nacos.agent.State|nil
---@return nacos.Error|nil # code "locked": another agent uses it (its pid in the message); "version": a newer lunacos wrote it
function state.open(folder)
  folder = absolute(folder)
  local ok, err = take_folder(folder)
  if not ok then
    return nil, err
  end
  local fd
  fd, err = lock(folder)
  if not fd then
    return nil, err
  end
  ok, err = check_version(folder)
  if ok == false then
    ok, err = files.write(folder .. "/version", VERSION .. "\n")
  end
  if ok then
    ok, err = private_folder(folder .. "/targets")
  end
  if not ok then
    uv.fs_close(fd)
    return nil, err
  end
  return new_state(folder, fd)
end

---Opens the folder for looking only: no lock, nothing is written, save() and its like raise.
---@param folder string
---@return nacos.agent.State|nil
---@return nacos.Error|nil # code "absent": there is no such folder
function state.read(folder)
  folder = absolute(folder)
  local stat, message, code = uv.fs_stat(folder)
  if not stat or stat.type ~= "directory" then
    return files.failure("cannot read the state folder", folder, stat and "it is a " .. stat.type or message, code)
  end
  local ok, err = check_version(folder)
  if ok == nil then
    return nil, err
  end
  return new_state(folder)
end

---Gives up the lock. Records must not be used any more.
function State:close()
  if self.locked then
    uv.fs_close(self.locked)
    self.locked = nil
  end
end

---@return integer|nil pid # of the agent that uses the folder (0 in its first moment); nil: none
function State:running()
  if self.locked then
    return math.tointeger(uv.os_getpid())
  end
  local fd = uv.fs_open(self.folder .. "/lock", "r", 0)
  if not fd then
    return nil
  end
  local pid = core.lock(fd, true) == false and noted_pid(fd) or nil
  uv.fs_close(fd)
  return pid
end

---@return string # where the status socket is
function State:socket()
  return self.folder .. "/agent.sock"
end

---Raises unless the folder is open for the agent.
local function check_writable(self, what)
  if not self.locked then
    error(what .. ": the state folder " .. self.folder .. " is open for looking only, or closed", 3)
  end
end

---The record of a target, empty when there was none. The same one each time while the folder is open for the agent.
---@param name string
---@return nacos.agent.Record|nil
---@return nacos.Error|nil
function State:target(name)
  local record = self.records[name]
  if record then
    return record
  elseif name == "" then
    return failure("invalid", "the name of a target is empty: give it a `name`")
  end
  local folder = ("%s/targets/%s"):format(self.folder, encoded(name))
  local path = folder .. "/record.json"
  local read, err = read_table(path)
  if read and type(read.data) ~= "table" then
    read, err = failure("damaged", "%s is damaged (it has no data)", path)
  end
  if err and err.code == "damaged" then
    log.warn(name, err.message .. ": the target counts as new" .. (self.locked and "; kept as record.json.damaged" or ""))
    if self.locked then
      uv.fs_rename(path, path .. ".damaged")
    end
  elseif err and err.code ~= "absent" then
    return nil, err
  end
  record = setmetatable({ name = name, data = read and read.data or {}, folder = folder, state = self }, Record)
  self.records[name] = self.locked and record or nil
  return record
end

---@return string[] # the targets that have a record, sorted
function State:names()
  local names = {}
  for _, name in ipairs(names_in(self.folder .. "/targets")) do
    local path = ("%s/targets/%s/record.json"):format(self.folder, name)
    if name:find("~", 1, true) then
      local record, err = read_table(path)
      if not record and err.code ~= "absent" then
        log.warn("state", err.message)
      end
      names[#names + 1] = record and type(record.name) == "string" and record.name or nil
    elseif uv.fs_stat(path) then
      names[#names + 1] = decoded(name)
    end
  end
  table.sort(names)
  return names
end

-- ---- a target --------------------------------------------------------------------------------------------------------------

---Writes record.data; on the disk when it returns.
---@return true|nil
---@return nacos.Error|nil
function Record:save()
  check_writable(self.state, "save")
  local text = encode({ name = self.name, data = self.data }, "record.data of " .. self.name)
  local ok, err = private_folder(self.folder)
  if not ok then
    return nil, err
  end
  return files.write(self.folder .. "/record.json", text)
end

---Forgets the target: record, generations, rejected copy.
---@return true|nil
---@return nacos.Error|nil
function Record:remove()
  check_writable(self.state, "remove")
  self.state.records[self.name] = nil
  self.data = {}
  return remove(self.folder)
end

---The numbers of the generations in a folder, newest first.
---@param sweep boolean|nil # remove what a killed agent has left half written or half removed
local function numbers_in(folder, sweep)
  local numbers = {}
  for _, name in ipairs(names_in(folder)) do
    local path = folder .. "/" .. name
    if name:find("^%d+$") and uv.fs_stat(path .. "/meta.json") then
      numbers[#numbers + 1] = math.tointeger(tonumber(name))
    elseif sweep then
      remove(path)
    end
  end
  table.sort(numbers, function(a, b)
    return a > b
  end)
  return numbers
end

---Writes a generation into a folder and removes those too many. Not synced, as it is not owed to anybody: what a power cut leaves of it
---does not fit its checksums.
---@param into string
---@param given nacos.agent.Generation
---@param keep integer
---@return integer|nil n
---@return nacos.Error|nil
local function add(into, given, keep, held)
  local ok, err = private_folder(into)
  if not ok then
    return nil, err
  end
  local numbers = numbers_in(into, true)
  local n = (numbers[1] or 0) + 1
  local folder, sync = ("%s/%d"):format(into, n), #given.files > 1 -- of a group, which is finished from it after a crash
  local meta = { n = n, time = given.time or os.time(), reason = given.reason, sources = given.sources, output = given.output,
    hash = given.hash,
    files = {} }
  for i, file in ipairs(given.files) do
    meta.files[i] = { path = file.path, mode = file.mode, uid = file.uid, gid = file.gid, md5 = core.md5(file.content),
      size = #file.content }
  end
  local text = encode(meta, "a generation")
  ok, err = private_folder(folder)
  for i, file in ipairs(given.files) do
    if ok then
      ok, err = files.write(("%s/%d"):format(folder, i), file.content, { sync = sync })
    end
  end
  if ok then
    ok, err = files.write(folder .. "/meta.json", text, { sync = sync })
  end
  if not ok then
    remove(folder)
    return nil, err
  end
  for i = math.max(keep, 1), #numbers do
    if not (held and held[numbers[i]]) then
      remove(("%s/%d"):format(into, numbers[i]))
    end
  end
  return n
end

---@param folder string
---@param contents boolean
---@return nacos.agent.Generation|nil
---@return nacos.Error|nil
local function read(folder, contents)
  local meta, err = read_table(folder .. "/meta.json")
  if not meta then
    return nil, err
  elseif type(meta.files) ~= "table" then
    return failure("damaged", "%s/meta.json is damaged (it lists no files)", folder)
  end
  for i, file in ipairs(contents and meta.files or {}) do
    local path = ("%s/%d"):format(folder, i)
    file.content, err = files.read(path)
    if not file.content and err.code ~= "absent" then
      return nil, err
    elseif not file.content or core.md5(file.content) ~= file.md5 then
      return failure("damaged", "%s is damaged (%s)", path, file.content and "it has another checksum" or "it is missing")
    end
  end
  return meta
end

---Keeps what was written.
---@param generation nacos.agent.Generation
---@param keep integer|nil # so many stay; default 10
---@param held table<integer, any>|nil # these stay, too
---@return integer|nil n   # its number
---@return nacos.Error|nil
function Record:add_generation(generation, keep, held)
  check_writable(self.state, "add_generation")
  local ok, err = private_folder(self.folder)
  if not ok then
    return nil, err
  end
  return add(self.folder .. "/generations", generation, keep or KEEP, held)
end

---@return nacos.agent.Generation[] # newest first, without contents
function Record:generations()
  local list = {}
  for _, n in ipairs(numbers_in(self.folder .. "/generations")) do
    local generation, err = read(("%s/generations/%d"):format(self.folder, n), false)
    if generation then
      list[#list + 1] = generation
    elseif err.code ~= "absent" then -- pruned meanwhile
      log.warn(self.name, err.message)
    end
  end
  return list
end

---@param n integer
---@return nacos.agent.Generation|nil # with contents
---@return nacos.Error|nil            # code "absent", or "damaged"
function Record:generation(n)
  local generation, err = read(("%s/generations/%d"):format(self.folder, n), true)
  if not generation and err.code == "absent" then
    return failure("absent", "%s has no generation %d", self.name, n)
  end
  return generation, err
end

---Keeps what the check refused, in place of the one before.
---@param rejected nacos.agent.Generation # reason: why; output: of the check
---@return true|nil
---@return nacos.Error|nil
function Record:reject(rejected)
  check_writable(self.state, "reject")
  local ok, err = private_folder(self.folder)
  if ok then
    ok, err = add(self.folder .. "/rejected", rejected, 1)
  end
  return ok and true or nil, err
end

---@return nacos.agent.Generation|nil # what was refused last, with contents
function Record:rejected()
  local n = numbers_in(self.folder .. "/rejected")[1]
  local rejected, err
  if n then
    rejected, err = read(("%s/rejected/%d"):format(self.folder, n), true)
  end
  if err then
    log.warn(self.name, err.message)
  end
  return rejected
end

---@return true|nil
---@return nacos.Error|nil
function Record:clear_rejected()
  check_writable(self.state, "clear_rejected")
  return remove(self.folder .. "/rejected")
end

return state
