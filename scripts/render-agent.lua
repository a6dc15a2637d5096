-- Keep a file rendered from a template:  lunacos run scripts/render-agent.lua TEMPLATE OUTPUT [COMMAND…]
-- The template names its configurations with config() and text(). The file is replaced, and COMMAND given to the shell, only
-- when the text differs. What cannot be rendered (something missing, a mistake) leaves the file alone; stderr says why.

local source, output, command = arg[1], arg[2], table.concat(arg, " ", 3)
if not output then error("usage: render-agent.lua TEMPLATE OUTPUT [COMMAND…]", 0) end

local client = nacos.client(connection)
local compiled = assert(template.compile_file(source))
local watched, dirty, busy = {}, false, false
local changed

local function update()
  local text, used, used_in_vain = compiled:render({}, { client = client, group = group })
  for _, key in ipairs(text and used or used_in_vain) do
    local id = key.data_id .. "@" .. key.group
    watched[id] = watched[id] or client:add_config_watcher(key.data_id, key.group, changed)
  end
  if not text then return nil, used end
  local old <close> = io.open(output, "rb")
  if old and old:read("a") == text then return true end
  local ok, err = nacos.write_file(output, text)
  if not ok then return nil, err end
  print("rendered " .. output)
  return command == "" or os.execute(command), "command failed: " .. command
end

function changed() -- one rendering at a time, and one more when something changed meanwhile
  dirty = true
  while dirty and not busy do
    dirty, busy = false, true
    local ok, err = update()
    if not ok then io.stderr:write("render-agent: ", tostring(err), "\n") end
    busy = false
  end
end

changed()
