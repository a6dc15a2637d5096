--- files: the agent's own hands on a disk: target files staged, compared and swapped in.
--
-- A new content is complete on the disk, with its mode and owner, before its name appears; a process killed at any moment leaves the
-- old or the new file. Two things cannot be had by renaming: a file that is itself a mount point (a container's bind-mounted
-- configuration), and one in a folder that may not be written. Those are written in place; a kill in the middle of that leaves a mixed
-- file, which the next pass finds different and writes again.
--
-- Errors have `code` ("absent", "invalid", or the name of the system's error such as "ENOSPC") and a `message` that names the file.

local uv = require "luv"
local core = require "nacos.core"

local files = {}

---@class nacos.agent.FileSpec
---@field path string
---@field mode string|nil           # octal, "0644"; nil: the old file's, else 0644
---@field owner string|integer|nil  # name or number; nil: the old file's when we may, else ours
---@field group string|integer|nil  # likewise
---@field symlink "replace"|"follow"|nil # what happens to a symbolic link at `path`; default "replace"
---@field mkdir boolean|nil         # make missing folders (0755)

---@class nacos.agent.ResolvedFile
---@field path string     # absolute; the real one when a link is followed
---@field mode integer
---@field uid integer|nil # nil: nobody asked for an owner
---@field gid integer|nil

local NAME_MAX, PATH_MAX = 255, 4095 -- of Linux

---What is wrong with the path of a file, nil when it can be one.
---@param path string
---@return string|nil
function files.bad_path(path)
  local absolute = path:sub(1, 1) == "/" and path or uv.cwd() .. "/" .. path
  local name = path:match("[^/]*$")
  if path:find("\0", 1, true) then
    return "holds a NUL byte"
  elseif name == "" or name == "." or name == ".." then
    return "the path of a file is needed"
  elseif #absolute > PATH_MAX then
    return ("is longer than %d bytes"):format(PATH_MAX)
  end
  for part in path:gmatch("[^/]+") do
    if #part > NAME_MAX then
      return ("the name %.40s… in it is longer than %d bytes"):format(part, NAME_MAX)
    end
  end
end

---Where a path leads, without `.`, `..` and links on the way, as far as it exists: two that are equal are one file.
---@param path string
---@return string
function files.place(path)
  path = path:sub(1, 1) == "/" and path or uv.cwd() .. "/" .. path
  local folder, name = path:match("^(.*)/([^/]*)$")
  local real = uv.fs_realpath(folder == "" and "/" or folder)
  if not real then
    local parts = {}
    for part in folder:gmatch("[^/]+") do
      if part == ".." then
        table.remove(parts)
      elseif part ~= "." then
        parts[#parts + 1] = part
      end
    end
    real = "/" .. table.concat(parts, "/")
  end
  return (real == "/" and "" or real) .. "/" .. name
end

local OWNER = {
  type = { "string", "number" }, integer = true, min = 0, check = function(name) return name == "" and "is empty" or nil end,
}

---The rules of a FileSpec for options.check: copy them into a larger spec.
files.OPTIONS = {
  path = { type = "string", required = true, check = files.bad_path },
  mode = {
    type = "string",
    check = function(mode)
      return not mode:find("^[0-7]?[0-7][0-7][0-7]$") and "octal text such as \"0644\" expected" or nil
    end,
  },
  owner = OWNER, -- name or number
  group = OWNER,
  symlink = { type = "string", one_of = { "replace", "follow" } },
  mkdir = "boolean",
}

local PERMISSIONS = 4095 -- 07777
local PRIVATE = 384 -- 0600

---The text of a system error without its name and path: "no space left on device".
local function reason(message)
  return message:match("^%u%w*: ([^:]+)") or message
end

---nil and an error made of what luv returned.
---@param what string # "cannot write"
---@param path string
---@param message string
---@param code string
---@return nil
---@return nacos.Error
function files.failure(what, path, message, code)
  return nil, core.error(code == "ENOENT" and "absent" or code or "invalid", ("%s %s: %s"):format(what, path, reason(message)))
end

local fail = files.failure

local function folder_of(path)
  local folder = path:match("^(.*)/[^/]*$")
  return folder == "" and "/" or folder or "."
end

local function join(folder, name)
  return (folder == "/" and "" or folder) .. "/" .. name
end

---Makes the change of a name durable. Some file systems cannot sync a folder and say EINVAL: nothing more can be done there.
local function sync_folder(folder)
  local fd, message, code = uv.fs_open(folder, "r", 0)
  if not fd then
    return fail("cannot sync the folder", folder, message, code)
  end
  local ok
  ok, message, code = uv.fs_fsync(fd)
  uv.fs_close(fd)
  if not ok and code ~= "EINVAL" then
    return fail("cannot sync the folder", folder, message, code)
  end
  return true
end

---Writes all of it from the start of the file on.
local function write_all(fd, content)
  local done = 0
  while done < #content do
    local n, message, code = uv.fs_write(fd, done == 0 and content or content:sub(done + 1), done)
    if n then
      done = done + n
    elseif code ~= "EINTR" then
      return nil, message, code
    end
  end
  return true
end

---Reads an open file.
local function read_all(fd)
  local pieces, at = {}, 0
  while true do
    local piece, message, code = uv.fs_read(fd, 1 << 20, at)
    if piece == "" then
      return table.concat(pieces)
    elseif piece then
      pieces[#pieces + 1], at = piece, at + #piece
    elseif code ~= "EINTR" then
      return nil, message, code
    end
  end
end

---mkdir -p
---@param folder string
---@return true|nil
---@return nacos.Error|nil
function files.mkdirs(folder)
  local made, message, code = uv.fs_mkdir(folder, 493) -- 0755
  if not made and code == "ENOENT" and folder_of(folder) ~= folder then
    local ok, err = files.mkdirs(folder_of(folder))
    if not ok then
      return nil, err
    end
    made, message, code = uv.fs_mkdir(folder, 493)
  end
  -- whatever mkdir says of a folder that is there (EEXIST, EROFS, EACCES) does not matter
  local stat = not made and uv.fs_stat(folder)
  if made or (stat and stat.type == "directory") then
    return true
  end
  return fail("cannot make the folder", folder, message, code)
end

---Where a chain of links ends, which need not exist.
local function follow(path)
  for _ = 1, 40 do
    local link, message, code = uv.fs_readlink(path)
    if not link then
      if code == "EINVAL" or code == "ENOENT" then
        local folder = uv.fs_realpath(folder_of(path))
        return folder and join(folder, path:match("[^/]*$")) or path
      end
      return fail("cannot follow the link", path, message, code)
    end
    path = link:sub(1, 1) == "/" and link or join(folder_of(path), link)
  end
  return fail("cannot follow the link", path, "too many links", "ELOOP")
end

---@param given string|integer|nil
---@param find fun(name: string): integer|nil
---@return integer|nil id
---@return string|nil problem
local function id_of(kind, given, find)
  if given == nil then
    return nil
  end
  local id = math.tointeger(tonumber(given)) or find(given)
  if not id or id < 0 or id >= 0xffffffff then
    return nil, ("the %s '%s' does not exist on this machine"):format(kind, given)
  end
  return id
end

---Finds out what a spec means now. Changes nothing. Fields of `spec` other than a FileSpec's are ignored.
---@param spec nacos.agent.FileSpec
---@return nacos.agent.ResolvedFile|nil
---@return nacos.Error|nil # unknown owner, missing folder, not a regular file …
function files.prepare(spec)
  local path = spec.path
  if path:sub(1, 1) ~= "/" then
    path = join(uv.cwd(), path)
  end
  if spec.symlink == "follow" then
    local real, err = follow(path)
    if not real then
      return nil, err
    end
    path = real
  end
  local function refuse(problem, code)
    return nil, core.error(code or "invalid", ("cannot write %s: %s"):format(path, problem))
  end

  local old, message, code = uv.fs_lstat(path)
  if old and old.type ~= "file" and old.type ~= "link" then
    return refuse("it is a " .. old.type .. ", not a file")
  elseif not old and code ~= "ENOENT" then
    return fail("cannot write", path, message, code)
  elseif not old and not spec.mkdir and not uv.fs_stat(folder_of(path)) then
    return refuse(("the folder %s does not exist: make it, or set mkdir = true"):format(folder_of(path)), "absent")
  end
  local uid, problem = id_of("user", spec.owner, core.user)
  local gid, other_problem = id_of("group", spec.group, core.group)
  if problem or other_problem then
    return refuse(problem or other_problem)
  end
  local mode = spec.mode and tonumber(spec.mode, 8)
  if not mode then
    local stat = old and uv.fs_stat(path) -- of a link: what it leads to
    mode = stat and stat.type == "file" and stat.mode & PERMISSIONS or 420 -- 0644
  end
  return { path = path, mode = mode, uid = uid, gid = gid }
end

---@param path string
---@param max integer|nil # longer ones are refused (code "EFBIG")
---@return string|nil content
---@return nacos.Error|nil # code "absent": there is no such file
function files.read(path, max)
  -- NONBLOCK: a fifo must not hold us
  local fd, message, code = uv.fs_open(path, uv.constants.O_RDONLY | uv.constants.O_NONBLOCK | uv.constants.O_NOCTTY, 0)
  if not fd then
    return fail("cannot read", path, message, code == "ENOTDIR" and "ENOENT" or code)
  end
  local stat, content = uv.fs_fstat(fd), nil
  if stat and stat.type ~= "file" then
    message, code = "it is not a regular file", "invalid"
  elseif stat and stat.size > (max or math.huge) then
    message, code = ("it is longer than %d bytes"):format(max), "EFBIG"
  else
    content, message, code = read_all(fd)
  end
  uv.fs_close(fd)
  if not content then
    return fail("cannot read", path, message, code)
  end
  return content
end

---Bytes, mode and (asked for) owner are as wanted.
---@param resolved nacos.agent.ResolvedFile
---@param content string
---@return boolean
function files.same(resolved, content)
  local stat = uv.fs_lstat(resolved.path)
  return stat ~= nil and stat.type == "file" and stat.size == #content and stat.mode & PERMISSIONS == resolved.mode
    and (not resolved.uid or stat.uid == resolved.uid) and (not resolved.gid or stat.gid == resolved.gid)
    and files.read(resolved.path) == content
end

---Gives an open file its mode and owner. An owner that nobody asked for (the old file's, `keep`) is kept only where we may.
local function set_attributes(fd, resolved, keep)
  local stat, message, code = uv.fs_fstat(fd)
  if not stat then
    return nil, message, code
  end
  local ok = true
  -- the owner before the mode: a change of owner drops set-id bits; and each alone, as one may be allowed without the other
  for _, id in ipairs { "gid", "uid" } do
    local wanted = resolved[id] or (keep and keep[id]) or stat[id]
    if ok and wanted ~= stat[id] then
      ok, message, code = uv.fs_fchown(fd, id == "uid" and wanted or -1, id == "gid" and wanted or -1)
      if not ok and not resolved[id] then
        ok = true
      elseif not ok then
        message = ("%s to make it %s %d's: run the agent as root, or do not set the %s"):format(reason(message),
          id == "uid" and "user" or "group", wanted, id == "uid" and "owner" or "group")
      end
    end
  end
  stat = ok and uv.fs_fstat(fd) -- for the set-id bits
  if ok and stat.mode & PERMISSIONS ~= resolved.mode then
    ok, message, code = uv.fs_fchmod(fd, resolved.mode)
  end
  return ok, message, code
end

---The name of the staged copy beside the target: a dot file, which no `*.conf` of an include takes up.
local function staged_beside(path)
  local name = path:match("[^/]*$")
  if #name > 200 then -- names end at 255 bytes
    name = core.md5(name)
  end
  return join(folder_of(path), "." .. name .. ".lunacos-staged")
end

local function staged_in(state_folder, path)
  return join(state_folder, "staged-" .. core.md5(path))
end

---A new file with this content; a fourth result when it could not even be made. A leftover of a killed agent is replaced; nothing is written through a link that somebody put there.
local function create(path, resolved, content, sync, keep)
  uv.fs_unlink(path)
  local fd, message, code = uv.fs_open(path, "wx", PRIVATE)
  if not fd then
    return nil, message, code, true
  end
  local ok
  ok, message, code = set_attributes(fd, resolved, keep)
  if ok then
    ok, message, code = write_all(fd, content)
  end
  if ok and sync then
    ok, message, code = uv.fs_fsync(fd)
  end
  local closed, close_message, close_code = uv.fs_close(fd) -- reports what a network file system found out late
  if ok and closed then
    return true
  end
  uv.fs_unlink(path)
  return nil, message or close_message, code or close_code
end

local UNWRITABLE = { EACCES = true, EPERM = true, EROFS = true } -- a folder

---Puts the content, with mode and owner, beside the target; where that folder may not be written but the file is there, into
---`state_folder`. Makes folders that spec.mkdir allowed (prepare() refused them otherwise).
---@param resolved nacos.agent.ResolvedFile
---@param content string
---@param state_folder string|nil
---@return string|nil staged # its path
---@return nacos.Error|nil
function files.stage(resolved, content, state_folder)
  local path = resolved.path
  local staged, old = staged_beside(path), uv.fs_stat(path)
  if not old and not uv.fs_stat(folder_of(path)) then
    local ok, err = files.mkdirs(folder_of(path))
    if not ok then
      return nil, err
    end
  end
  local ok, message, code, not_made = create(staged, resolved, content, true, old)
  local unwritable = not_made and UNWRITABLE[code]
  if unwritable and state_folder and old and uv.fs_access(path, "W") then
    staged, unwritable = staged_in(state_folder, path), false
    ok, message, code = create(staged, resolved, content, true, old)
  end
  if not ok then
    return fail("cannot write", path .. (unwritable and " (in its folder)" or ""), message, code)
  end
  return staged
end

---Writes an existing file. The old bytes' room is given up last, so that a full disk can be answered by putting them back.
local function write_in_place(staged, resolved)
  local content, err = files.read(staged)
  if not content then
    return nil, err
  end
  local fd, message, code = uv.fs_open(resolved.path, uv.constants.O_RDWR | uv.constants.O_NONBLOCK, 0)
  if not fd then
    return fail("cannot write", resolved.path, message, code)
  end
  local old, ok
  old, message, code = read_all(fd)
  if old then
    ok, message, code = set_attributes(fd, resolved)
  end
  if ok then
    ok, message, code = write_all(fd, content)
    if ok then
      ok, message, code = uv.fs_ftruncate(fd, #content)
    end
    if not ok and not (write_all(fd, old) and uv.fs_ftruncate(fd, #old)) then
      message = reason(message) .. "; the old content could not be put back"
    end
  end
  if ok then
    ok, message, code = uv.fs_fsync(fd)
  end
  local closed, close_message, close_code = uv.fs_close(fd)
  if not ok or not closed then
    return fail("cannot write", resolved.path, message or close_message, code or close_code)
  end
  return true
end

-- What rename() says when the name cannot be replaced but the file perhaps written: a mount point; a copy staged on another disk; a
-- folder that may not be written.
local IN_PLACE = { EBUSY = true, EXDEV = true, EACCES = true, EPERM = true, EROFS = true }

---Replaces the target by its staged copy. After an error the staged copy is still there: try again, or discard() it.
---@param staged string
---@param resolved nacos.agent.ResolvedFile
---@return true|nil
---@return nacos.Error|nil
---@return boolean in_place # it had to be written in place
function files.swap(staged, resolved)
  local path, in_place, err = resolved.path, false
  local ok, message, code = uv.fs_rename(staged, path)
  if ok then
    ok, err = sync_folder(folder_of(path))
  elseif IN_PLACE[code] and uv.fs_access(path, "W") then
    in_place = true
    ok, err = write_in_place(staged, resolved)
    if ok then
      uv.fs_unlink(staged)
    end
  else
    ok, err = fail("cannot replace", path, message, code)
  end
  return ok, err, in_place
end

---Removes a staged copy. None: fine.
---@param staged string|nil
function files.discard(staged)
  if staged then
    uv.fs_unlink(staged)
  end
end

---Removes what a killed agent may have staged for this target.
---@param resolved nacos.agent.ResolvedFile
---@param state_folder string|nil
function files.sweep(resolved, state_folder)
  files.discard(staged_beside(resolved.path))
  files.discard(state_folder and staged_in(state_folder, resolved.path))
end

---Removes a file or link, durably. Absent: fine.
---@param path string
---@return true|nil
---@return nacos.Error|nil
function files.remove(path)
  local ok, message, code = uv.fs_unlink(path)
  if ok then
    return sync_folder(folder_of(path))
  elseif code == "ENOENT" or code == "ENOTDIR" then
    return true
  end
  return fail("cannot remove", path, message, code)
end

---Replaces a file of our own atomically, whatever the umask.
---@param path string
---@param content string
---@param opts { mode: integer|nil, sync: boolean|nil }|nil # default 0600; sync = false: a power cut may lose it
---@return true|nil
---@return nacos.Error|nil
function files.write(path, content, opts)
  local sync, temp = not opts or opts.sync ~= false, staged_beside(path)
  local ok, message, code = create(temp, { mode = opts and opts.mode or PRIVATE }, content, sync)
  if ok then
    ok, message, code = uv.fs_rename(temp, path)
  end
  if not ok then
    uv.fs_unlink(temp)
    return fail("cannot write", path, message, code)
  end
  return not sync or sync_folder(folder_of(path))
end

return files
