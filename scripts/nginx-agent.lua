-- Keep nginx in step with a service:  lunacos run scripts/nginx-agent.lua SERVICE FOLDER
-- FOLDER/nginx.conf is for an nginx that is started by `nginx -p FOLDER -c nginx.conf`. The configuration SERVICE.json says where it
-- listens: { "listen": "127.0.0.1:8000", "timeout": "5s" }. What `nginx -t` refuses never gets there, whatever somebody publishes.

local agent = require "nacos.agent"

local name, folder = arg[1], arg[2] and require("luv").fs_realpath(arg[2]) -- nginx takes -c from -p, not from here
if not folder then error("usage: nginx-agent.lua SERVICE FOLDER (which exists)", 0) end

agent.file {
  path = folder .. "/nginx.conf",
  template = [[
{%- local settings = config(name .. ".json", group) -%}
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
    upstream backends {
    {%- for _, i in ipairs(service(name, { group = group })) do %}
        server {{ i.ip }}:{{ i.port }} weight={{ math.max(1, math.floor(i.weight + 0.5)) }};
    {%- end %}
    }
    server {
        listen {{ settings.listen }};
        location / { proxy_pass http://backends; proxy_read_timeout {{ settings.timeout }}; }
    }
}
]],
  vars = { name = name, group = group },
  check = { "nginx", "-t", "-q", "-p", folder, "-e", "stderr", "-c", "{staged}" },
  reload = { "nginx", "-p", folder, "-e", "stderr", "-c", "nginx.conf", "-s", "reload" },
  wait = { min = 0.2, max = 2 }, -- instances seldom come alone
  min_instances = 1,
}
