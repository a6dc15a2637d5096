--- lunacos server: the embedded server.

local common = require("nacos.cli.common")

local server = {
  summary = "Serve configurations from memory, for development and tests.",
  usage = "server [--host HOST] [--port PORT] [--username U --password-file F] …",
  own_options = true,
  help = [[
Examples:
  lunacos server &
  lunacos server --port 0 --lag 0.1 --username dev --password-file ./password

One line on stdout says where it listens. It speaks the v1 configuration API of a Nacos 2.3
server and forgets everything when it ends (TERM or INT, exit code 0). It is not a production
server: no cluster, no disk, no permissions beyond one user.]],
}

local function number(text)
  return tonumber(text), tonumber(text) == nil and "a number is needed, not '" .. text .. "'" or nil
end

function server.setup(parser)
  return {
    parser:option("--host"):argname("HOST"):description("Address to listen at (default 127.0.0.1)"),
    parser:option("--port"):argname("PORT"):convert(number):description("Port; 0: a free one (default 8848)"),
    parser:option("--context-path"):argname("PATH"):description("Path of the API (default /nacos)"),
    parser:option("-u --username"):argname("NAME"):description("Ask for a login of this user"),
    parser:option("--password-file"):argname("FILE"):description("File with the user's password"),
    parser:option("--token-ttl"):argname("SECONDS"):convert(number):description("How long a login lasts (default 18000)"),
    parser:option("--lag"):argname("SECONDS"):convert(number):description(
      "Time from a publish's answer until readers see it, as real servers have it (default 0)"),
    parser:option("--tls-cert"):argname("FILE"):description("Serve https with this certificate"),
    parser:option("--tls-key"):argname("FILE"):description("Key of the certificate"),
    parser:option("--tls-ca"):argname("FILE"):description("Ask clients for a certificate signed by this one"),
    parser:flag("--faults"):description("Also serve /__lunacos/…: faults to order and requests seen, for tests"),
  }
end

function server.run(args)
  local nacos = require("nacos")
  local embedded = require("nacos.embedded")
  if args.username and not args.password_file then
    common.fail(common.USAGE, "--username needs --password-file")
  end
  local running = common.check(embedded.start({
    host = args.host, port = args.port, context_path = args.context_path, username = args.username,
    password_file = args.password_file, token_ttl = args.token_ttl, lag = args.lag, tls_cert = args.tls_cert,
    tls_key = args.tls_key, tls_ca = args.tls_ca, faults = args.faults,
  }))
  nacos.on_signal("TERM", nacos.stop)
  nacos.on_signal("INT", nacos.stop)
  common.write("lunacos server listening on ", running.url, " (in memory, for development and tests)\n")
  nacos.run(function()
    while true do
      nacos.sleep(3600)
    end
  end)
  running:stop()
  return common.DONE
end

return server
