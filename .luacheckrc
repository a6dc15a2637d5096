std = "lua54"
max_line_length = 132
max_comment_line_length = false -- an annotation cannot be broken
include_files = { "lua", "scripts/*.lua", "tests/*.lua", ".luacheckrc", ".busted" }

-- What `lunacos run` gives a script.
files["scripts/*.lua"] = { read_globals = { "nacos", "json", "yaml", "template", "connection", "group" } }
files["tests/*_spec.lua"] = { std = "lua54+busted" }
