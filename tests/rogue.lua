--- A program that misbehaves on the network, for specs. It prints `listening PORT`, then one line per thing that happened.
--
--   rogue.lua relay HOST PORT IDLE_MS      passes bytes on to a server; closes a connection that was idle so long ("idle")
--   rogue.lua proxy HOST PORT              an HTTP proxy that reaches that server only: prints each first line ("GET http://…", "CONNECT …")
--   rogue.lua once FILE                    sends the file as the answer to each request head, closes
--   rogue.lua for_ever FILE                sends the file again and again
--   rogue.lua drip FILE MS                 sends the file byte by byte, one every MS
--   rogue.lua deaf                         accepts, reads a little, resets

local uv = require "luv"

io.stdout:setvbuf("line")

local mode, a, b, c = ...

local function say(...)
  print(string.format(...))
end

local function close(handle)
  if handle and not handle:is_closing() then
    handle:close()
  end
end

---Join two sockets until one ends.
local function pipe(from, to, on_bytes)
  from:read_start(function(err, bytes)
    if err or not bytes then
      close(from)
      close(to)
      return
    end
    if on_bytes then
      on_bytes()
    end
    if not to:is_closing() then
      to:write(bytes)
    end
  end)
end

local function connect(host, port, done)
  local socket = uv.new_tcp()
  socket:connect(host, tonumber(port), function(err)
    done(err, socket)
  end)
end

---Read up to the blank line; call done(head, rest).
local function read_head(socket, done)
  local got = ""
  socket:read_start(function(err, bytes)
    if err or not bytes then
      close(socket)
      return
    end
    got = got .. bytes
    local stop = select(2, got:find("\r\n\r\n", 1, true))
    if stop then
      socket:read_stop()
      done(got:sub(1, stop), got:sub(stop + 1))
    end
  end)
end

local function read_file(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("a")
  file:close()
  return text
end

local modes = {}

function modes.relay(socket)
  local idle = uv.new_timer()
  connect(a, b, function(err, server)
    if err then
      close(socket)
      return
    end
    local function restart()
      idle:start(tonumber(c), 0, function()
        say("idle")
        close(socket)
        close(server)
        close(idle)
      end)
    end
    restart()
    pipe(socket, server, restart)
    pipe(server, socket, restart)
  end)
end

function modes.proxy(socket)
  read_head(socket, function(head, rest)
    local line = head:match("^[^\r\n]*")
    say("%s", line)
    connect(a, b, function(err, server)
      if err then
        close(socket)
        return
      end
      if line:match("^CONNECT ") then
        socket:write("HTTP/1.1 200 Connection established\r\n\r\n")
      else
        -- one request per connection is enough here
        head = head:gsub("^(%u+ )http://[^/]+", "%1"):gsub("\r\n\r\n$", "\r\nConnection: close\r\n\r\n")
        server:write(head .. rest)
      end
      pipe(socket, server)
      pipe(server, socket)
    end)
  end)
end

function modes.once(socket)
  read_head(socket, function(head)
    say("%s", head:match("^[^\r\n]*"))
    socket:write(read_file(a), function()
      socket:shutdown(function()
        close(socket)
      end)
    end)
  end)
end

function modes.for_ever(socket)
  local text = read_file(a)
  read_head(socket, function(head)
    say("%s", head:match("^[^\r\n]*"))
    local function more(err)
      if err or socket:is_closing() then
        say("gone")
        close(socket)
      else
        socket:write(text, more)
      end
    end
    more()
  end)
end

function modes.drip(socket)
  local text, timer = read_file(a), uv.new_timer()
  read_head(socket, function(head)
    say("%s", head:match("^[^\r\n]*"))
    local at = 0
    timer:start(0, tonumber(b), function()
      at = at + 1
      if at > #text or socket:is_closing() then
        close(timer)
        return
      end
      socket:write(text:sub(at, at), function(err)
        if err then
          say("gone")
          close(socket)
        end
      end)
    end)
  end)
end

function modes.deaf(socket)
  socket:read_start(function()
    if not socket:is_closing() then
      say("reset")
      socket:close_reset()
    end
  end)
end

local server = uv.new_tcp()
assert(server:bind("127.0.0.1", 0))
assert(server:listen(128, function()
  local socket = uv.new_tcp()
  server:accept(socket)
  socket:nodelay(true)
  modes[mode](socket)
end))
assert(modes[mode], "unknown mode")
say("listening %d", server:getsockname().port)
uv.run()
