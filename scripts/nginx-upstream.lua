-- Keep an nginx upstream in step with a service:  lunacos run scripts/nginx-upstream.lua SERVICE OUTPUT [RELOAD COMMAND…]
-- The file is replaced, and the command given to the shell, only when the text differs.

local service, output, command = arg[1], arg[2], table.concat(arg, " ", 3)
if not output then error("usage: nginx-upstream.lua SERVICE OUTPUT [RELOAD COMMAND…]", 0) end

local upstream = assert(template.compile [[
upstream {{ name }} {
{%- for _, i in ipairs(instances) do %}
    server {{ i.ip }}:{{ i.port }} weight={{ math.max(1, math.floor(i.weight + 0.5)) }};
{%- end %}
{%- if #instances == 0 then %}
    server 127.0.0.1:1 down;
{%- end %}
}
]])

local function update(change)
  local serving = {}
  for _, instance in ipairs(change.instances) do -- the healthy ones
    if instance.enabled and instance.weight > 0 then serving[#serving + 1] = instance end
  end
  local text = assert(upstream:render({ name = service, instances = serving }))
  local old <close> = io.open(output, "rb")
  if old and old:read("a") == text then return end
  assert(nacos.write_file(output, text))
  print(("%s: %d servers"):format(output, #serving))
  if command ~= "" and not os.execute(command) then io.stderr:write("nginx-upstream: command failed: ", command, "\n") end
end

nacos.client(connection):watch_service(service, { group_name = group }, update)
