--- The agent's file operations. Runs as root: mounts happen in a mount namespace of their own (unshare -m).

local support = require "support"
local lab = require "lab"
local posix = require "test_posix"
local uv = require "luv"
local options = require "nacos.options"
local files = require "nacos.agent.files"

local BINARY = "\0\255\r\n\128" .. ("0123456789abcdef"):rep(16) .. "\0"

local function octal(path)
  return ("%04o"):format(uv.fs_stat(path).mode & 4095)
end

local function names_in(folder)
  local names, found = {}, assert(uv.fs_scandir(folder))
  for name in uv.fs_scandir_next, found do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

---The text with this folder called F (or as said).
local function short(text, folder, name)
  return (text:gsub(folder:gsub("%p", "%%%0"), name or "F"))
end

---Prepare, stage, swap. @return true|nil, error, in_place
local function put(spec, content, state_folder)
  local resolved, err = files.prepare(spec)
  if not resolved then
    return nil, err
  end
  local staged
  staged, err = files.stage(resolved, content, state_folder)
  if not staged then
    return nil, err
  end
  return files.swap(staged, resolved)
end

local PROGRAM = [[
  local uv, files = require "luv", require "nacos.agent.files"
  local function put(spec, content, state_folder)
    local resolved = assert(files.prepare(spec))
    local staged, err = files.stage(resolved, content, state_folder)
    if not staged then
      return print("stage", err.code, err.message)
    end
    local ok, why, in_place = files.swap(staged, resolved)
    print("swap", ok, why, in_place, uv.fs_stat(staged) and "staged stays" or "staged gone")
    return staged, resolved
  end
]]

---Runs a program that knows put() after `setup` (shell), both in a mount namespace. `with`: words before lua5.4.
local function program(setup, text, with)
  local path = support.tmpdir() .. "/program.lua"
  support.write(path, lab.prelude .. PROGRAM .. text)
  local code, out, err = support.run { "unshare", "-m", "sh", "-ec", ("%s\n exec %s lua5.4 %s"):format(setup, with or "", path) }
  assert.are.equal("", err)
  assert.are.equal(0, code)
  return out
end

describe("files", function()
  local folder, path, descriptors

  before_each(function()
    folder = support.tmpdir()
    path = folder .. "/shop.conf"
    descriptors = lab.fd_count()
  end)

  after_each(function()
    assert.are.equal(descriptors, lab.fd_count())
  end)

  describe("a plain file", function()
    it("is made with mode 0644, or the mode asked for, whatever the umask", function()
      local code, out = lab.lua(PROGRAM .. ([[
        put({ path = %q }, "a") put({ path = %q, mode = "0640" }, "b") put({ path = %q, mkdir = true }, "c")
        assert(files.write(%q, "d"))
      ]]):format(path, folder .. "/b", folder .. "/new/folder/c", folder .. "/d"), { before = "umask 0227;" })
      assert.are.equal(0, code, out)
      assert.are.same({ "0644", "0640", "0600" }, { octal(path), octal(folder .. "/b"), octal(folder .. "/d") })
      assert.are.equal("c", support.read(folder .. "/new/folder/c"))
    end)

    it("is replaced as a whole, keeping its mode and owner when none is asked for", function()
      support.write(path, "old")
      uv.fs_chown(path, 1234, 4321)
      uv.fs_chmod(path, tonumber("4751", 8))
      local inode = uv.fs_stat(path).ino
      local ok, err, in_place = put({ path = path }, "new")
      assert.are.same({ true, "nil", false }, { ok, tostring(err), in_place })
      local stat = uv.fs_stat(path)
      assert.are.same({ "new", "4751", 1234, 4321 }, { support.read(path), octal(path), stat.uid, stat.gid })
      assert.are_not.equal(inode, stat.ino)
      assert.are.same({ "shop.conf" }, names_in(folder))
    end)

    it("gets the owner and group asked for, by name or number", function()
      assert(put({ path = path, owner = "nobody", group = "daemon" }, "x"))
      local stat = uv.fs_stat(path)
      assert.are.equal(support.run("id -u nobody | grep -qx " .. stat.uid), 0)
      assert.are.equal(support.run("getent group daemon | grep -q ':" .. stat.gid .. ":'"), 0)
      assert(put({ path = path, owner = 77, group = "78" }, "x"))
      stat = uv.fs_stat(path)
      assert.are.same({ 77, 78 }, { stat.uid, stat.gid })
    end)

    it("can hold 10 MB and any byte", function()
      local big = BINARY:rep((10 << 20) // #BINARY + 1)
      for _, content in ipairs { BINARY, big, "" } do
        assert(put({ path = path }, content))
        assert.is_true(support.read(path) == content)
        assert.is_true(files.read(path) == content)
        assert.is_true(files.same(files.prepare { path = path }, content))
      end
    end)

    it("may have a name as long as names can be", function()
      for _, name in ipairs { ("n"):rep(255), ("n"):rep(240), ("n"):rep(200) } do
        assert(put({ path = folder .. "/" .. name }, "x"))
      end
      assert.are.equal(3, #names_in(folder))
    end)

    it("is found relative to where we are", function()
      local code, out = lab.lua(PROGRAM .. [[put({ path = "shop.conf" }, "a")]], { cwd = folder })
      assert.are.equal(0, code, out)
      assert.are.equal("a", support.read(path))
    end)
  end)

  describe("prepare", function()
    it("changes nothing", function()
      assert(files.prepare { path = folder .. "/new/shop.conf", mkdir = true, other = 1 })
      assert.are.same({}, names_in(folder))
    end)

    it("says what cannot be, and what to do", function()
      uv.fs_mkdir(folder .. "/folder", 448)
      support.run("mkfifo " .. folder .. "/fifo; touch " .. folder .. "/file")
      local function refused(spec)
        local resolved, err = files.prepare(spec)
        assert.is_nil(resolved)
        return err.code .. ": " .. short(err.message, folder)
      end
      assert.are.equal("absent: cannot write F/no/x: the folder F/no does not exist: make it, or set mkdir = true",
        refused { path = folder .. "/no/x" })
      assert.are.equal("invalid: cannot write F/folder: it is a directory, not a file", refused { path = folder .. "/folder" })
      assert.are.equal("invalid: cannot write F/fifo: it is a fifo, not a file",
        refused { path = folder .. "/fifo", symlink = "follow" })
      assert.are.equal("ENOTDIR: cannot write F/file/x: not a directory", refused { path = folder .. "/file/x" })
      assert.are.equal("invalid: cannot write F/x: the user 'no-such' does not exist on this machine",
        refused { path = folder .. "/x", owner = "no-such" })
      assert.are.equal("invalid: cannot write F/x: the group 'no-such' does not exist on this machine",
        refused { path = folder .. "/x", group = "no-such" })
    end)

    it("has rules for options.check", function()
      local function check(given)
        return select(2, pcall(options.check, files.OPTIONS, given, "agent.file"))
      end
      local good = { path = "/a", mode = "0640", owner = "root", group = 0, symlink = "follow", mkdir = true }
      assert.are.same(good, check(good))
      for _, bad in ipairs { { path = "" }, { path = "/a/" }, { path = "/a\0b" }, {}, { path = "/a", mode = "0999" },
        { path = "/a", mode = 644 }, { path = "/a", symlink = "keep" }, { path = "/a", user = "x" } } do
        assert.is_string(check(bad))
      end
    end)
  end)

  it("same() compares bytes, mode, owner and kind", function()
    support.write(path, "abc")
    uv.fs_chmod(path, 420)
    local function same(spec, content)
      spec.path = path
      return files.same(assert(files.prepare(spec)), content)
    end
    assert.is_true(same({}, "abc"))
    assert.is_true(same({ mode = "0644", owner = 0, group = 0 }, "abc"))
    assert.is_false(same({}, "abd"))
    assert.is_false(same({}, "abcd"))
    assert.is_false(same({ mode = "0600" }, "abc"))
    assert.is_false(same({ owner = 1 }, "abc"))
    assert.is_false(same({ group = 1 }, "abc"))
    uv.fs_rename(path, folder .. "/other")
    assert.is_false(same({}, "abc"))
    uv.fs_symlink(folder .. "/other", path)
    assert.is_false(same({}, "abc"))
    assert.is_true(same({ symlink = "follow" }, "abc"))
  end)

  describe("a staged copy", function()
    it("is a dot file with mode and owner, beside the untouched target", function()
      support.write(path, "old")
      local staged = assert(files.stage(assert(files.prepare { path = path, mode = "0640", owner = 7, group = 8 }), "new"))
      assert.are.equal(folder .. "/.shop.conf.lunacos-staged", staged)
      local stat = uv.fs_stat(staged)
      assert.are.same({ "new", "0640", 7, 8 }, { support.read(staged), octal(staged), stat.uid, stat.gid })
      assert.are.equal("old", support.read(path))
      files.discard(staged)
      files.discard(staged)
      files.discard(nil)
      assert.are.same({ "shop.conf" }, names_in(folder))
    end)

    it("takes the place of a leftover, and never writes through a link put there", function()
      support.write(folder .. "/victim", "precious")
      uv.fs_symlink(folder .. "/victim", folder .. "/.shop.conf.lunacos-staged")
      assert(put({ path = path }, "new"))
      assert.are.same({ "precious", "new" }, { support.read(folder .. "/victim"), support.read(path) })
      assert.are.equal("file", uv.fs_lstat(path).type)
    end)

    it("of a killed agent is swept", function()
      local resolved, state_folder = assert(files.prepare { path = path }), support.tmpdir()
      assert(files.stage(resolved, "new"))
      files.sweep(resolved, state_folder)
      assert.are.same({}, names_in(folder))
    end)

    it("stays when the swap fails", function()
      local resolved = assert(files.prepare { path = path })
      local staged = assert(files.stage(resolved, "new"))
      uv.fs_mkdir(path, 448)
      local ok, err = files.swap(staged, resolved)
      assert.is_nil(ok)
      assert.are.same({ "EISDIR", "cannot replace " .. path .. ": illegal operation on a directory" }, { err.code, err.message })
      assert.are.equal("new", support.read(staged))
      uv.fs_rmdir(path)
      assert(files.swap(staged, resolved))
      assert.are.same({ "shop.conf" }, names_in(folder))
    end)
  end)

  describe("a symbolic link", function()
    before_each(function()
      uv.fs_mkdir(folder .. "/real", 493)
      support.write(folder .. "/real/a", "old")
      uv.fs_chmod(folder .. "/real/a", tonumber("640", 8))
      uv.fs_symlink("real/b", path)
      uv.fs_symlink("a", folder .. "/real/b")
    end)

    it("is replaced, taking the mode of what it led to", function()
      assert(put({ path = path }, "new"))
      assert.are.same({ "file", "old", "new", "0640" },
        { uv.fs_lstat(path).type, support.read(folder .. "/real/a"), support.read(path), octal(path) })
    end)

    it("is followed to its end when asked", function()
      local resolved = assert(files.prepare { path = path, symlink = "follow" })
      assert.are.equal(folder .. "/real/a", resolved.path)
      assert(put({ path = path, symlink = "follow" }, "new"))
      assert.are.same({ "link", "link", "new" },
        { uv.fs_lstat(path).type, uv.fs_lstat(folder .. "/real/b").type, support.read(folder .. "/real/a") })
      assert.are.same({ "a", "b" }, names_in(folder .. "/real"))
    end)

    it("is followed to where nothing is yet", function()
      uv.fs_unlink(folder .. "/real/a")
      assert(put({ path = path, symlink = "follow" }, "new"))
      assert.are.equal("new", support.read(folder .. "/real/a"))
    end)

    it("in a circle is an error", function()
      uv.fs_symlink("y", folder .. "/x")
      uv.fs_symlink("x", folder .. "/y")
      local resolved, err = files.prepare { path = folder .. "/x", symlink = "follow" }
      assert.is_nil(resolved)
      assert.are.equal("ELOOP", err.code)
      assert(put({ path = folder .. "/x" }, "new"))
    end)
  end)

  describe("a bind-mounted file", function()
    local function bind(size)
      support.write(path, "the host's")
      return ([[
        mkdir %s/disk && mount -t tmpfs -o size=%s none %s/disk
        printf 'old and longer' >%s/disk/file && chmod 600 %s/disk/file
        mount --bind %s/disk/file %s
      ]]):gsub("%%s/disk", folder .. "/disk"):format(size or "64k", path)
        :gsub("mount %-%-bind %S+", "mount --bind " .. folder .. "/disk/file")
    end

    it("is written in place, with its mode", function()
      local out = program(bind(), ([[
        local before = uv.fs_stat(%q).ino
        put({ path = %q, mode = "0640", group = 5 }, "new\0")
        local stat = uv.fs_stat(%q)
        print(("%%q %%o %%d %%s"):format(files.read(%q), stat.mode & 511, stat.gid, stat.ino == before))
      ]]):format(path, path, path, path))
      assert.are.equal("swap\ttrue\tnil\ttrue\tstaged gone\n\"new\\0\" 640 5 true\n", out)
      assert.are.equal("the host's", support.read(path)) -- outside the namespace
    end)

    it("keeps the old content when its disk is full, and says so", function()
      local out = program(bind(), ([[
        put({ path = %q }, ("secret"):rep(100000))
        print(files.read(%q))
      ]]):format(path, path))
      assert.are.equal("swap\tnil\tcannot write F/shop.conf: no space left on device\ttrue\tstaged stays\nold and longer\n",
        short(out, folder))
    end)

    it("that may not be written is an error", function()
      local out = program(bind() .. "mount -o remount,bind,ro " .. path, ([[put({ path = %q }, "new")]]):format(path))
      assert.are.equal(("swap\tnil\tcannot replace %s: resource busy or locked\tfalse\tstaged stays\n"):format(path), out)
    end)

    it("in a folder that may not be written is staged in the state folder", function()
      local state_folder = support.tmpdir()
      local read_only = ("mount --bind %s %s; mount -o remount,bind,ro %s; mount --bind %s %s\n"):format(folder, folder, folder,
        support.tmpdir() .. "/rw", path)
      support.write(path, "the host's")
      local setup = read_only:gsub("(mount %-%-bind (%S+)/rw )", "printf old >%2/rw; %1")
      local out = program(setup, ([[
        local staged, resolved = put({ path = %q }, "new", %q)
        print(staged:match("^(.*)/"), files.read(%q))
        files.stage(resolved, "newer", %q)
        files.sweep(resolved, %q)
        put({ path = %q }, "lost")
      ]]):format(path, state_folder, path, state_folder, state_folder, path))
      assert.are.equal([[
swap	true	nil	true	staged gone
S	new
stage	EROFS	cannot write F/shop.conf (in its folder): read-only file system
]], short(short(out, folder), state_folder, "S"))
      assert.are.same({}, names_in(state_folder))
      assert.are.equal("the host's", support.read(path))
    end)
  end)

  it("a read-only folder is an error that names the file, and nothing changes", function()
    support.write(path, "old")
    local out = program(("mount --bind %s %s; mount -o remount,bind,ro %s"):format(folder, folder, folder), ([[
      put({ path = %q }, "new", %q)
      put({ path = %q, mkdir = true }, "new", %q)
      print(files.read(%q), files.remove(%q))
    ]]):format(path, support.tmpdir(), folder .. "/sub/x", support.tmpdir(), path, path))
    assert.are.equal([[
stage	EROFS	cannot write F/shop.conf (in its folder): read-only file system
stage	EROFS	cannot make the folder F/sub: read-only file system
old	nil	cannot remove F/shop.conf: read-only file system
]], short(out, folder))
  end)

  it("a full disk is an error; the old file stands and nothing is left behind", function()
    local out = program(("mount -t tmpfs -o size=64k none %s; printf old >%s"):format(folder, path), ([[
      put({ path = %q }, ("x"):rep(100000), %q)
      print(files.write(%q, ("x"):rep(100000)))
      local found = uv.fs_scandir(%q)
      print(files.read(%q), (uv.fs_scandir_next(found)), uv.fs_scandir_next(found))
    ]]):format(path, support.tmpdir(), path, folder, path))
    assert.are.equal([[
stage	ENOSPC	cannot write F/shop.conf: no space left on device
nil	cannot write F/shop.conf: no space left on device
old	shop.conf
]], short(out, folder))
  end)

  describe("without privileges", function() -- a root without capabilities is a user like any other, but one that can read the tests
    local POWERLESS = "setpriv --inh-caps=-all --bounding-set=-all"

    it("an owner that was asked for is an error, one to be kept is kept where we may", function()
      support.write(path, "old")
      uv.fs_chown(path, 1234, 0)
      local out = program("true", ([[
        put({ path = %q, owner = 1234 }, "new")
        put({ path = %q }, "new")
        print(uv.fs_stat(%q).uid)
      ]]):format(path, path, path), POWERLESS)
      assert.are.equal([[
stage	EPERM	cannot write F/shop.conf: operation not permitted to make it user 1234's: run the agent as root, or do not set the owner
swap	true	nil	false	staged gone
0
]], short(out, folder))
    end)

    it("somebody else's file in somebody else's folder is written in place", function()
      support.write(path, "old")
      support.run(("chown 1234 %s %s; chmod 755 %s; chmod 666 %s"):format(folder, path, folder, path))
      local state_folder = support.tmpdir()
      local out = program("true", ([[
        put({ path = %q }, "new", %q)
        put({ path = %q, mode = "0600" }, "newer", %q)
        put({ path = %q }, "new", %q)
        print(files.read(%q), uv.fs_stat(%q).uid)
      ]]):format(path, state_folder, path, state_folder, folder .. "/other", state_folder, path, path), POWERLESS)
      assert.are.equal([[
swap	true	nil	true	staged gone
swap	nil	cannot write F/shop.conf: operation not permitted	true	staged stays
stage	EACCES	cannot write F/other (in its folder): permission denied
new	1234
]], short(out, folder))
    end)
  end)

  describe("read", function()
    it("tells absent from everything else, and is not held by a fifo", function()
      support.run("mkfifo " .. folder .. "/fifo")
      support.write(path, "12345")
      local function code(name, max)
        local content, err = files.read(folder .. name, max)
        return content or err.code
      end
      assert.are.same({ "absent", "absent", "invalid", "invalid", "EFBIG", "12345" },
        { code "/no", code "/shop.conf/x", code "/fifo", code "", code("/shop.conf", 4), code("/shop.conf", 5) })
    end)
  end)

  it("remove() takes a file or a link away; absent is fine, a folder is not", function()
    support.write(path, "x")
    uv.fs_symlink(path, folder .. "/link")
    assert.is_true(files.remove(folder .. "/link"))
    assert.are.equal("x", support.read(path))
    assert.is_true(files.remove(path))
    assert.is_true(files.remove(path))
    uv.fs_mkdir(path, 448)
    local ok, err = files.remove(path)
    assert.is_nil(ok)
    assert.matches("^cannot remove .*shop.conf: ", err.message)
  end)

  it("a kill at any step leaves the old or the new file, and nothing that the next pass does not clear", function()
    local seen, steps, killed = {}, 0
    repeat
      steps = steps + 1
      uv.fs_unlink(path)
      support.write(path, "old")
      uv.fs_chmod(path, 384)
      local text, code = posix.in_child(function()
        local step = 0
        for name, fn in pairs(uv) do
          if name:find("^fs_") then
            uv[name] = function(...)
              step = step + 1
              if step == steps then
                uv.kill(uv.os_getpid(), "sigkill")
              end
              return fn(...)
            end
          end
        end
        return tostring(put({ path = path, mode = "0640", owner = 7 }, "new"))
      end)
      killed = code == 137
      assert.is_true(killed or text == "true", text)
      local stat = uv.fs_stat(path)
      local now = ("%s %o %d"):format(support.read(path), stat.mode & 511, stat.uid)
      seen[now] = true
      assert(put({ path = path, mode = "0640", owner = 7 }, "newer"))
      assert.are.same({ "shop.conf" }, names_in(folder))
    until not killed
    assert.is_true(steps > 10)
    assert.are.same({ ["old 600 0"] = true, ["new 640 7"] = true }, seen)
  end)
end)
