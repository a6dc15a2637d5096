-- One program, several namespaces:  lunacos run scripts/namespaces.lua DATA_ID NAMESPACE…   ("" or public: the public one)
-- A client is one namespace; all clients of a program share one runtime thread and its connections.

local data_id = arg[1]
if not arg[2] then
  error("usage: namespaces.lua DATA_ID NAMESPACE…", 0)
end

local function follow(namespace)
  local options = { namespace = namespace }
  for name, value in pairs(connection) do
    options[name] = options[name] or value
  end
  local client = nacos.client(options)

  local content, source_or_err = client:get_config(data_id, group)
  print(("%s: %s"):format(namespace, content or tostring(source_or_err)))

  client:add_config_watcher(data_id, group, function(change)
    print(("%s: now %s"):format(namespace, change.content or "deleted"))
  end)
end

for i = 2, #arg do
  nacos.spawn(follow, arg[i]) -- they read at the same time
end
