--- target: one file, or a group of files that change together, from what its sources say to what its users have loaded.
--
--   wanted    what the templates make of the values that are known now; nothing is written while one is unknown
--   staged    beside the files, under names that nobody reads
--   checked   by the script's check; what fails is kept for inspection and not tried again until the input changes
--   written   by rename: a generation is recorded first, so that a crash between two files of a group is made good
--   applied   the reload has worked; until then it is owed, also after a restart
--
-- It is level-triggered: a turn compares what is wanted with what is on the disk and what was applied, and does what is missing. Each
-- target has a task of its own: whatever one waits for delays no other.

local core = require "nacos.core"
local bell = require "nacos.agent.bell"
local command = require "nacos.agent.command"
local files = require "nacos.agent.files"
local functions = require "nacos.template_functions"
local guard = require "nacos.agent.guard"
local log = require "nacos.agent.log"
local scheduler = require "nacos.scheduler"
local uv = require "luv"

local now = core.monotonic

local PATIENCE = 3       -- seconds that a target waits for values before it says so
local GRACE = 5          -- seconds for a reload to end at the end of the agent
local RENDER_TIMEOUT = 30 -- seconds, for functions that make contents
local FIRST_PAUSE, LONGEST_PAUSE = 1, 60 -- seconds between two tries of what failed

---@class nacos.agent.Target
---@field name string
---@field def table               # see nacos.agent: file and group
---@field record table            # of the state folder
---@field state "waiting"|"failed"|"rejected"|"checking"|"due"|"reloading"|"owed"|"pinned"|"ok"
---@field error string|nil        # why it is not "ok"
---@field used nacos.agent.Used[] # what the last whole rendering read
local Target = {}
Target.__index = Target

---For tests: the process ends, as by a power cut, when a target reaches this step.
local STOP_AT = os.getenv("LUNACOS_STOP_AT")

local function step(name)
  if STOP_AT == name then
    uv.kill(uv.os_getpid(), "sigkill")
  end
end

---@param def table
---@param agent { sources: nacos.agent.Sources, state: nacos.agent.State, take_turn: function } # nacos.agent.runner's
---@return nacos.agent.Target
local function new(def, agent)
  return setmetatable({
    name = def.name, def = def, agent = agent, record = agent.state:target(def.name), state = "waiting", used = {},
    bell = bell.new(), pause = FIRST_PAUSE, reloads = 0, redefined = true,
  }, Target)
end

---@param state string
---@param problem string|nil # told in the log when it is news
---@param level string|nil   # default "error"
function Target:become(state, problem, level)
  if self.state ~= state or self.error ~= problem then
    self.since = os.time()
    if problem then
      log.write(level or "error", self.name, problem)
    end
  end
  self.state, self.error = state, problem
end

---Something that the target reads has changed.
function Target:changed()
  self.dirty = true
  self.bell:ring()
end

---The script was read again: what the old one rejected is looked at once more.
---@param def table
function Target:redefine(def)
  self.def, self.redefined = def, true
  self:changed()
end

---The next turn comes at once and tries also what was rejected.
---@return integer # the number of the turn that does it
function Target:retry()
  self.insist = true
  self.bell:ring()
  self.asked = (self.turns or 0) + (self.busy and 2 or 1)
  return self.asked
end

-- ---- wanted ----------------------------------------------------------------------------------------------------------------

local function file_list(self, context)
  local list = self.def.files
  if type(list) ~= "function" then
    return list
  end
  local ok, result = command.call("files of " .. self.name, RENDER_TIMEOUT, list, context)
  if not ok then
    error(result, 0)
  end
  return self.def.check_files(result)
end

local function content_of(self, file, reader, context)
  local ok, text, err
  if file.template then
    ok, text, err = guard.call("template of " .. file.path, file.template.render, file.template, file.vars or self.def.vars,
      { functions = reader.functions })
  else
    ok, text, err = command.call("content of " .. file.path, RENDER_TIMEOUT, file.content, context)
    if ok and type(text) ~= "string" then
      text, err = nil, err or ("content: a string is needed, not " .. type(text))
    end
  end
  if not ok or text == nil then
    error(not ok and text or err, 0)
  end
  return text
end

---Contents, and what the script says of modes and owners. What it does not say is the old file's, whoever changes it.
local function hash_of(list)
  local parts = {}
  for _, file in ipairs(list) do
    local said = file.file or {}
    parts[#parts + 1] = ("%s\0%s\0%s\0%s\0%s"):format(file.to.path, said.mode or "", said.owner or "", said.group or "",
      core.md5(file.content))
  end
  return core.md5(table.concat(parts, "\0"))
end

---What the files would be. Raises.
---@param reader nacos.agent.Reader # or anything with such `functions`
---@return { path: string, file: table, content: string }[]
function Target:contents(reader)
  local context = setmetatable({ name = self.name }, { __index = function(_, name)
    return reader.functions[name] or functions.base[name]
  end })
  local list = {}
  for i, file in ipairs(file_list(self, context)) do
    list[i] = { path = file.path, file = file, content = content_of(self, file, reader, context) }
  end
  table.sort(list, function(a, b) return a.path < b.path end) -- the order of a computed list means nothing
  return list
end

---Do functions of the script make these files?
local function computes(def)
  if type(def.files) == "function" then
    return true
  end
  for _, file in ipairs(def.files) do
    if file.content then
      return true
    end
  end
  return false
end

---@class nacos.agent.Wanted
---@field hash string
---@field files { path: string, content: string, to: table }[] # to: see nacos.agent.files.prepare
---@field generation integer|nil # that it comes from

---@return nacos.agent.Wanted|nil
---@return string|nil problem
---@return string|nil state
---@return boolean|nil again # nothing will tell when it can be had
local function render(self)
  local reader = self.agent.sources:read(self)
  local ok, list = pcall(self.contents, self, reader)
  local used = reader:done(not ok)
  self.tried = used
  if reader.unknown then
    return nil, "waits: " .. tostring(reader.unknown), "waiting"
  elseif not ok then
    return nil, tostring(list), "failed", computes(self.def) -- a function may fail for reasons that nobody tells the end of
  end
  self.used = used
  for _, file in ipairs(list) do
    local to, err = files.prepare(file.file)
    if not to then
      return nil, tostring(err), "failed", true
    end
    file.to = to
    if not self.swept then
      files.sweep(to, self.agent.state.folder) -- what a killed agent had staged
    end
  end
  self.swept = true
  return { hash = hash_of(list), files = list }
end

---A generation as something wanted.
local function from_generation(self, n)
  local generation, err = self.record:generation(n)
  if not generation then
    return nil, ("generation %d: %s"):format(n, tostring(err)), "failed"
  end
  local list = {}
  for i, file in ipairs(generation.files) do
    list[i] = { path = file.path, content = file.content, to = file }
  end
  return { hash = generation.hash or hash_of(list), files = list, generation = n }
end

---Files of the generation before that are not wanted any more.
local function dropped(self, list)
  local still, gone = {}, {}
  for _, file in ipairs(list) do
    still[file.to.path] = true
  end
  for _, path in ipairs(self.record.data.paths or {}) do
    gone[#gone + 1] = not still[path] and path or nil
  end
  return gone
end

-- ---- guards and check --------------------------------------------------------------------------------------------------------

---@return string|nil # why these contents must not replace the old ones
local function guarded(self, wanted)
  local def = self.def
  if #wanted.files == 0 and def.reject_empty ~= false and #dropped(self, {}) > 0 then
    return "the list of files would become empty (reject_empty = false allows it)"
  end
  local before, gone = #(self.record.data.paths or {}), #dropped(self, wanted.files)
  if def.prune and def.max_shrink and gone > before * def.max_shrink then
    return ("%d of %d files would be removed, max_shrink is %g"):format(gone, before, def.max_shrink)
  end
  for _, source in ipairs(self.used) do
    if def.min_instances and source.kind == "service" and (source.healthy or 0) < def.min_instances then
      return ("service %s has %d healthy instances, min_instances is %d"):format(source.name, source.healthy or 0,
        def.min_instances)
    end
  end
  for _, file in ipairs(wanted.files) do
    local old = files.read(file.to.path)
    file.old = old
    if old and old:find("%S") and def.reject_empty ~= false and not file.content:find("%S") then
      return file.path .. " would become empty (reject_empty = false allows it)"
    elseif old and def.max_shrink and #file.content < #old * (1 - def.max_shrink) then
      return ("%s would shrink from %d to %d bytes, max_shrink is %g"):format(file.path, #old, #file.content, def.max_shrink)
    end
  end
  if def.guard then
    local ok, problem = command.run(def.guard, {
      target = self.name, what = "guard", strict = true,
      context = { name = self.name, files = wanted.files, sources = self.used },
    })
    return not ok and problem or nil
  end
end

local function base_name(path)
  return path:match("[^/]*$")
end

---What {staged}, {path}, {staged:NAME} and {path:NAME} stand for; NAME is a path or its last part.
---@param list { path: string, staged: string|nil, to: { path: string } }[]
local function places_of(list)
  local places = {}
  for _, file in ipairs(list) do
    for kind, place in pairs { path = file.path, staged = file.staged } do
      places[kind] = places[kind] or place
      for _, name in ipairs { file.path, file.to.path, base_name(file.path), base_name(file.to.path) } do
        places[kind .. ":" .. name] = place
      end
    end
  end
  return places
end

---Keep hold of a program that runs for the target: stop() ends it.
local function holder(self)
  return function(child)
    self.child = child
  end
end

---@return true|nil
---@return string|nil problem
---@return string|nil output
local function check(self, list)
  if not self.def.check then
    return true
  end
  local places = places_of(list)
  local staged = {}
  for _, file in ipairs(list) do
    staged[file.path] = file.staged
  end
  return command.run(self.def.check, {
    target = self.name, what = "check", strict = true, timeout = self.def.check_timeout, started = holder(self),
    places = places,
    context = { name = self.name, staged = staged, path = places.path, places = places },
  })
end

---Are the staged files still what was rendered?
local function untouched(list)
  for _, file in ipairs(list) do
    if files.read(file.staged) ~= file.content then
      return false
    end
  end
  return true
end

---Keep the old files, and the refused ones for inspection; no other try until the input changes.
local function reject(self, wanted, problem, output)
  local list = {}
  for i, file in ipairs(wanted.files) do
    list[i] = { path = file.path, content = file.content, mode = file.to.mode, uid = file.to.uid, gid = file.to.gid }
  end
  local kept, err = self.record:reject { files = list, output = output or "", reason = problem }
  if not kept then
    log.error(self.name, "cannot keep the rejected files: " .. tostring(err))
  end
  local data = self.record.data
  data.rejected = { hash = wanted.hash, reason = problem, time = os.time() }
  self.record:save()
end

-- ---- writing -----------------------------------------------------------------------------------------------------------------

local function discard(list)
  for _, file in ipairs(list) do
    if file.staged then
      files.discard(file.staged)
      file.staged = nil
    end
  end
end

local function stage(self, list)
  for _, file in ipairs(list) do
    local staged, err = files.stage(file.to, file.content, self.agent.state.folder)
    if not staged then
      discard(list)
      return nil, err
    end
    file.staged = staged
  end
  return true
end

---Is the disk as wanted, and nothing to be removed?
local function is_same(self, list)
  if self.def.prune and #dropped(self, list) > 0 then
    return false
  end
  for _, file in ipairs(list) do
    if not files.same(file.to, file.content) then
      return false
    end
  end
  return true
end

local function plain(list)
  local copy = {}
  for i, file in ipairs(list) do
    local to = file.to
    copy[i] = { path = to.path, content = file.content, mode = to.mode, uid = to.uid, gid = to.gid }
  end
  return copy
end

---Record a generation. What is loaded, or pinned, can still be gone back to, however many come after it.
---@param hash string|nil # of what was wanted
local function add_generation(self, list, reason, used, hash)
  local data = self.record.data
  local generation = { files = list, reason = reason, time = os.time(), sources = used, hash = hash }
  return self.record:add_generation(generation, self.def.keep,
    { [data.applied_generation or 0] = true, [data.pinned or 0] = true, [data.generation or 0] = true })
end

---What lies there before the first write is what its users have loaded: worth going back to.
local function keep_found(self, list)
  local data, found = self.record.data, {}
  for _, file in ipairs(list) do
    local content, stat = files.read(file.to.path), uv.fs_stat(file.to.path)
    if content and stat then
      found[#found + 1] = { path = file.to.path, content = content, mode = stat.mode & 4095, uid = stat.uid, gid = stat.gid }
    end
  end
  if #found > 0 then
    data.applied_generation = add_generation(self, found, "found on disk", {}) or data.applied_generation
  end
end

---The generation that the disk shows, made when there is none.
local function generation_of(self, list)
  for _, generation in ipairs(self.record:generations()) do
    local same = #generation.files == #list
    for i, file in ipairs(generation.files) do
      same = same and file.path == list[i].to.path and file.md5 == core.md5(list[i].content)
    end
    if same then
      return generation.n
    end
  end
  return add_generation(self, plain(list), "found on disk", self.used)
end

---Remove the files that the generation before had and this one has not.
local function prune(self, list)
  for _, path in ipairs(dropped(self, list)) do
    if self.def.prune then
      local ok, err = files.remove(path)
      if ok then
        log.info(self.name, "removed " .. path .. ", which is no longer wanted")
      else
        log.error(self.name, tostring(err))
      end
    end
  end
end

---What was written, for a time when nothing is known any more: the paths, and what the script calls them.
local function note_files(self, list)
  local data = self.record.data
  data.paths, data.declared, data.prune = {}, {}, self.def.prune or nil
  for i, file in ipairs(list) do
    data.paths[i], data.declared[i] = file.to.path, file.path
  end
end

---Put staged files in their places. A crash or error in between leaves `swapping`, and the next turn does the rest.
local function swap(self, wanted)
  local data = self.record.data
  for i, file in ipairs(wanted.files) do
    local ok, err, in_place = files.swap(file.staged, file.to)
    if not ok then
      return nil, err
    end
    file.staged = nil
    if in_place then
      log.info(self.name, file.path .. " was written in place: it cannot be replaced by a rename")
    end
    step("swapped:" .. i)
  end
  prune(self, wanted.files)
  data.swapping, data.rejected = nil, nil
  data.written, data.generation, data.time = wanted.hash, wanted.generation, os.time()
  if not self.def.reload then
    data.applied, data.applied_generation, data.owed, data.attempted = data.written, data.generation, nil, nil
  else
    data.attempted = data.attempted or "" -- what lay there may have been loaded, whoever put it there
  end
  note_files(self, wanted.files)
  return self.record:save()
end

---Which keys are new in the file, at which md5, from which server.
local function tell_sources(self)
  local before = self.told_sources or {}
  self.told_sources = {}
  for _, source in ipairs(self.used) do
    local id = ("%s %s"):format(source.kind, source.data_id or source.name or source.path or source.group or "")
    local stamp = ("%s %s"):format(source.md5 or "", source.time or "")
    self.told_sources[id] = stamp
    if before[id] ~= stamp and source.kind ~= "env" then
      log.info(self.name, "made of " .. id, { md5 = source.md5, server = source.server })
    end
  end
end

---@return true|nil
---@return string|nil problem
local function write(self, wanted, reason)
  local data = self.record.data
  local ok, err
  if not wanted.generation then
    if not data.generation then
      keep_found(self, wanted.files)
    end
    wanted.generation, err = add_generation(self, plain(wanted.files), reason, self.used, wanted.hash)
    if not wanted.generation then
      return nil, err
    end
  end
  if #wanted.files > 1 or self.def.reload then -- else a crash finds the old file or the new one, and nothing is owed
    data.swapping = wanted.generation
    ok, err = self.record:save()
    if not ok then
      return nil, err
    end
  end
  step("recorded")
  ok, err = swap(self, wanted)
  if ok then
    log.info(self.name, "written", { generation = wanted.generation })
    tell_sources(self)
    step("written")
  end
  return ok, err
end

---A crash came between the first and the last rename: the recorded generation, which had passed its check, is put in place whole.
local function finish_swap(self)
  local n = self.record.data.swapping
  local wanted, problem = from_generation(self, n)
  if not wanted then
    log.error(self.name, "cannot finish what a crash interrupted: " .. problem)
    self.record.data.swapping = nil
    return
  end
  local ok, err = stage(self, wanted.files)
  if ok then
    ok, err = swap(self, wanted)
  end
  if not ok then
    discard(wanted.files)
    return tostring(err)
  end
  log.info(self.name, "finished what was interrupted", { generation = n })
end

---What was written last is what its users have loaded. Once a reload of anything was begun, only one that has worked says so.
local function loaded(data)
  return data.applied == data.written and data.attempted == nil
end

-- ---- reload ------------------------------------------------------------------------------------------------------------------

local function back_off(self)
  self.next_try = now() + self.pause
  self.pause = math.min(self.pause * 2, LONGEST_PAUSE)
end

---A reload has failed: it is owed, and tried again after a pause.
local function owe(self, problem)
  local data = self.record.data
  data.owed = data.owed or { since = os.time(), tries = 0 }
  data.owed.reason, data.owed.tries = problem, data.owed.tries + 1
  local ok, err = self.record:save()
  if not ok then
    log.error(self.name, tostring(err))
  end
  self.reload_pause = self.failing == data.written and math.min(self.reload_pause * 2, LONGEST_PAUSE) or FIRST_PAUSE
  self.failing, self.reload_due = data.written, now() + self.reload_pause
  self.next_try = self.reload_due
  self:become("owed", problem)
end

local function applied(self)
  local data = self.record.data
  data.applied, data.applied_generation, data.owed, data.attempted = data.written, data.generation, nil, nil
  self.failing = nil
  local ok, err = self.record:save()
  if not ok then
    log.error(self.name, tostring(err))
  end
end

local function run_reload(self, list)
  local data = self.record.data
  if data.attempted ~= data.written then
    data.attempted = data.written
    local saved, err = self.record:save()
    if not saved then
      return nil, "the reload cannot be noted: " .. tostring(err)
    end
  end
  self:become("reloading")
  self.last_reload = now()
  self.reloads = self.reloads + 1
  local paths, places = {}, places_of(list)
  for i, file in ipairs(list) do
    paths[i] = file.path
  end
  return command.run(self.def.reload, {
    target = self.name, what = "reload", started = holder(self), timeout = self.def.reload_timeout, places = places,
    context = { name = self.name, paths = paths, path = paths[1], generation = data.generation },
  })
end

---The generation that was loaded last comes back; what failed is rejected until the input changes.
local function restore(self, wanted, problem)
  local data = self.record.data
  local n = data.applied_generation
  local old, why = nil, "there is no earlier one"
  if n and n ~= wanted.generation then
    old, why = from_generation(self, n)
  end
  if not old then
    log.error(self.name, "cannot restore: " .. why)
    return false
  end
  local ok, err = stage(self, old.files)
  if ok then
    ok, err = write(self, old)
  end
  if not ok then
    discard(old.files)
    log.error(self.name, "cannot restore generation " .. n .. ": " .. tostring(err))
    return false
  end
  log.warn(self.name, "restored", { generation = n })
  reject(self, wanted, problem .. "; generation " .. n .. " is restored")
  data.rejected.restored = true -- not tried again because the script is read again: what its users have would be at risk
  self.record:save()
  ok, err = run_reload(self, old.files)
  if ok then
    applied(self)
    self:become("rejected", "rejected, generation " .. n .. " is back: " .. problem)
  else
    owe(self, err)
  end
  return true
end

---@return boolean # done
local function apply(self, wanted)
  local data, def = self.record.data, self.def
  if not def.reload then
    applied(self)
    return true
  end
  if self.failing == data.written and now() < self.reload_due and not self.insist then
    self.next_try = self.reload_due
    self:become("owed", data.owed and data.owed.reason)
    return false
  end
  local limit = self.last_reload and def.reload_interval and self.last_reload + def.reload_interval - now() or 0
  if limit > 0 and not self.insist then
    self.next_try = now() + limit
    self:become("due", ("the reload waits: at most one in %g s"):format(def.reload_interval), "debug")
    return false
  end
  if def.splay and self.splayed ~= wanted.hash then -- once for each content, also when the reload has to be tried again
    self.splayed, self.splay_end = wanted.hash, now() + math.random() * def.splay
  end
  if def.splay and now() < self.splay_end and not self.insist and not self.agent.once then
    self.next_try = self.splay_end
    self:become("due", "the reload waits for its splay", "debug")
    return false
  end
  step("reloading")
  local ok, problem = run_reload(self, wanted.files)
  if ok then
    step("reloaded")
    applied(self)
    return true
  end
  if def.on_failure == "restore" and not data.pinned and restore(self, wanted, problem) then
    return false
  end
  owe(self, problem)
  return false
end

---The reload of what is on the disk is owed whatever becomes of newer contents. @return boolean # nothing is owed
local function pay(self)
  local data = self.record.data
  if not data.written or loaded(data) then
    return true
  end
  local present, problem = from_generation(self, data.generation or 0)
  if not present then
    owe(self, "the reload cannot be tried: " .. problem)
    return false
  end
  for i, file in ipairs(present.files) do
    file.path = data.declared and data.declared[i] or file.path
  end
  present.hash = data.written
  return apply(self, present)
end

---What is rejected stays so; the reload of the file that stays may still be owed.
local function stay_rejected(self)
  if pay(self) then
    self:become("rejected", "rejected, the old file stays: " .. self.record.data.rejected.reason)
  else
    log.error(self.name, "rejected, the old file stays: " .. self.record.data.rejected.reason)
  end
end

-- ---- a turn ------------------------------------------------------------------------------------------------------------------

local function failed(self, problem)
  self:become("failed", tostring(problem))
  back_off(self)
end

---At a start everything waits for some milliseconds; only what goes on waiting is worth a line.
local function tell_waiting(self, problem)
  self.waits_since = self.waits_since or now()
  local left = self.waits_since + PATIENCE - now()
  if left > 0 then
    self.next_try = math.min(self.next_try or math.huge, now() + left)
  elseif self.told_waiting ~= problem then
    self.told_waiting = problem
    log.info(self.name, problem)
  end
end

---Compare, and do what is missing.
---@param reason string
local function turn(self, reason)
  local data = self.record.data
  self.next_try = nil
  if data.swapping and not self.agent.dry then
    local problem = finish_swap(self)
    if problem then
      log.error(self.name, "cannot finish what was interrupted: " .. problem)
      back_off(self)
    end
  end
  self.agent:take_turn()
  if self.stopped then
    return
  end
  local wanted, problem, state, again
  if data.pinned then
    wanted, problem, state = from_generation(self, data.pinned)
  else
    wanted, problem, state, again = render(self)
  end
  if not wanted then
    if pay(self) then
      self:become(state, problem, state == "waiting" and "debug" or nil)
    end
    if state == "waiting" then
      tell_waiting(self, problem)
    end
    if again then
      local due = self.next_try
      back_off(self)
      self.next_try = math.min(self.next_try, due or math.huge)
    end
    return
  end
  self.wanted, self.waits_since, self.told_waiting = wanted.hash, nil, nil
  local known_bad = data.rejected and data.rejected.hash == wanted.hash and not data.pinned
  if known_bad and not self.insist and not (self.redefined and not data.rejected.restored) then
    return stay_rejected(self)
  end
  self.redefined = false
  if not is_same(self, wanted.files) then
    problem = not data.pinned and guarded(self, wanted)
    if problem then
      reject(self, wanted, problem)
      return stay_rejected(self)
    end
    local ok, err = stage(self, wanted.files)
    if not ok then
      return failed(self, err)
    end
    step("staged")
    if self.def.check then
      self:become("checking")
    end
    local output
    ok, problem, output = check(self, wanted.files)
    if self.def.check then
      self.agent:take_turn()
    end
    if ok and self.def.check and not untouched(wanted.files) then
      ok, problem = nil, "the check has changed the file that it was to look at"
    end
    if self.stopped then -- no longer declared: what it wanted is not wanted any more
      return discard(wanted.files)
    elseif not ok then
      discard(wanted.files)
      reject(self, wanted, problem, output)
      return stay_rejected(self)
    end
    step("checked")
    ok, err = write(self, wanted, reason)
    if not ok then
      discard(wanted.files)
      return failed(self, err)
    end
  elseif data.written ~= wanted.hash then
    data.written, data.generation = wanted.hash, wanted.generation or generation_of(self, wanted.files) or data.generation
    if data.applied == nil then -- found as it should be: whoever reads it has read it
      data.applied, data.applied_generation = data.written, data.generation
    end
    data.time = data.time or os.time()
    note_files(self, wanted.files)
    self.record:save()
  end
  if data.rejected or data.swapping then
    data.rejected, data.swapping = nil, nil
    self.record:save()
  end
  if not loaded(data) and not apply(self, wanted) then
    return
  end
  self.complete = true
  self.pause = FIRST_PAUSE
  self:become(data.pinned and "pinned" or "ok", data.pinned and "pinned to generation " .. data.pinned or nil, "info")
end

---Wait until changes have been quiet for wait.min, at most wait.max.
local function settle(self)
  local wait = self.def.wait
  if not wait or not self.complete then
    return
  end
  local last = now() + wait.max
  while self.bell:wait(math.min(wait.min, last - now())) and not self.stopped and not self.insist do
    if now() >= last then
      break
    end
  end
end

---The target's task: turns until stop().
function Target:run()
  local reason = "start"
  self.dirty = true
  guard.name("target " .. self.name)
  while not self.stopped do
    if self.dirty and reason ~= "start" then
      settle(self)
    end
    if self.stopped then
      break
    end
    self.dirty = false
    self.busy = true
    local ok, problem = xpcall(turn, debug.traceback, self, self.insist and "request" or reason)
    self.insist, self.busy = nil, false
    if not ok then -- a bug of ours: this target tries again, no other notices
      failed(self, problem)
    end
    self.turns = (self.turns or 0) + 1
    if self.settled then
      self.settled()
    end
    reason = "change"
    if not self.dirty then
      local rang = self.bell:wait(self.next_try and math.max(self.next_try - now(), 0.001))
      reason = rang and "change" or "retry"
    end
  end
  self.ended = true
end

---No more turns. A check that runs is ended, a reload some seconds later: it is owed then, and tried again at the next start.
function Target:stop()
  self.stopped = true
  local child = self.child
  if child then
    scheduler.spawn(function()
      scheduler.sleep(self.state == "reloading" and GRACE or 0)
      child:kill("TERM", true)
    end)
  end
  self.agent.sources:forget(self)
  self.bell:ring()
end

---Are its files there, whole, of this or an earlier time? Not while nothing is known: the newest may come at any moment.
function Target:usable()
  if self.complete then
    return true
  elseif self.state == "waiting" or not self.record.data.written then
    return false
  end
  for _, path in ipairs(self.record.data.paths or {}) do
    if not files.read(path) then
      return false
    end
  end
  return true
end

---Follow generation n only, until unpin().
---@param n integer|nil # nil: the present one
---@return integer|nil n
---@return string|nil problem
function Target:pin(n)
  local data = self.record.data
  n = n or data.generation
  if not n then
    return nil, self.name .. " has no generation yet"
  elseif not self.record:generation(n) then
    return nil, ("%s has no generation %d (see `lunacos history`)"):format(self.name, n)
  end
  local before = data.pinned
  data.pinned = n
  local ok, err = self.record:save()
  if not ok then
    data.pinned = before
    return nil, tostring(err)
  end
  self:retry()
  return n
end

---Go back and stay there.
---@param n integer|nil # nil: the generation before the present one
function Target:rollback(n)
  if not n then
    for _, generation in ipairs(self.record:generations()) do
      if not self.record.data.generation or generation.n < self.record.data.generation then
        n = generation.n
        break
      end
    end
    if not n then
      return nil, self.name .. " has no earlier generation"
    end
  end
  return self:pin(n)
end

---@return true|nil
---@return string|nil problem
function Target:unpin()
  local before = self.record.data.pinned
  self.record.data.pinned = nil
  local ok, err = self.record:save()
  if not ok then
    self.record.data.pinned = before
    return nil, tostring(err)
  end
  self:retry()
  return true
end

---@return table # names, states and checksums only
function Target:status()
  local data = self.record.data
  local paths = {}
  for i, path in ipairs(data.paths or {}) do
    paths[i] = path
  end
  return {
    name = self.name, kind = self.def.kind, state = self.state, error = self.error, since = self.since,
    wanted = self.wanted, written = data.written, applied = data.applied, generation = data.generation, changed = data.time,
    owed = data.owed, rejected = data.rejected, pinned = data.pinned, sources = self.used, tried = self.tried, files = paths,
    reloads = self.reloads, turns = self.turns or 0,
    next_try = self.next_try and math.max(0, self.next_try - now()) or nil,
  }
end

---What would be written now, without writing: for diff, check and --dry-run.
---@return { path: string, old: string|nil, new: string, same: boolean }[]|nil
---@return string|nil problem
---@return string|nil state # "waiting": not everything is known yet
function Target:plan()
  local wanted, problem, state
  if self.record.data.pinned then
    wanted, problem, state = from_generation(self, self.record.data.pinned)
  else
    wanted, problem, state = render(self)
  end
  if not wanted then
    return nil, problem, state
  end
  local list = {}
  for i, file in ipairs(wanted.files) do
    list[i] = {
      path = file.path, old = files.read(file.to.path), new = file.content, same = files.same(file.to, file.content), to = file.to,
    }
  end
  return list, nil, nil
end

---Check what would be written, on copies in a folder.
---@param folder string
---@return true|nil
---@return string|nil problem
---@return string|nil output
function Target:check_in(folder)
  local wanted, problem = render(self)
  if not wanted then
    return nil, problem
  end
  problem = guarded(self, wanted)
  if problem then
    return nil, problem
  end
  for i, file in ipairs(wanted.files) do
    file.staged = ("%s/%d-%s"):format(folder, i, base_name(file.path):sub(-200))
    local ok, err = core.write_file(file.staged, file.content, 384, false) -- 0600
    if not ok then
      return nil, err.message
    end
  end
  return check(self, wanted.files)
end

return { new = new }
