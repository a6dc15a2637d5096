--- lunacos server: the embedded server.

local common = require("nacos.cli.common")

local server = {
  summary = "Serve configurations and services from memory, for development and tests.",
  usage = "server [--host HOST] [--port PORT] [--username U --password-file F] …",
  own_options = true,
  help = [[
Examples:
  lunacos server &
  lunacos server --port 0 --lag 0.1 --username dev --password-file ./password

  lunacos server --api v1 --claim 2.0.4

One line on stdout says where it listens. It speaks gRPC and the HTTP APIs v1 and v3 of Nacos for
configurations and services, pushes included, and forgets everything when it ends (TERM or INT,
exit code 0). It is not a production server: no cluster, no disk, no permissions beyond
one user.]],
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
    parser:option("--push-delay"):argname("SECONDS"):convert(number):description(
      "Time from a change of instances until lists and pushes show it (default 0.5, as real servers have it)"),
    parser:option("--tls-cert"):argname("FILE"):description("Serve https with this certificate"),
    parser:option("--tls-key"):argname("FILE"):description("Key of the certificate"),
    parser:option("--tls-ca"):argname("FILE"):description("Ask clients for a certificate signed by this one"),
    parser:option("--claim"):argname("VERSION"):description("Version of Nacos to claim (default 3.1.0, or 2.5.1 without v3)"),
    parser:option("--api"):argname("NAMES"):description("What to speak: some of v1,v3,grpc (default: all)"),
    parser:option("--grpc-port"):argname("PORT"):convert(number):description(
      "Port of gRPC (default: the port and 1000, as clients expect it)"),
    parser:flag("--faults"):description(
      "Also serve /__lunacos/… for tests: faults to order, requests seen, POST …/naming/forget to lose every instance"),
  }
end

---The password is the file's first line.
local function read_password(args)
  if not args.username then
    return nil
  elseif not args.password_file then
    common.fail(common.USAGE, "--username needs --password-file")
  end
  return (common.read_input(args.password_file):match("^[^\r\n]*"))
end

function server.run(args)
  local serve = require("nacos.embedded").serve
  local results = table.pack(pcall(serve, {
    host = args.host, port = args.port, context_path = args.context_path, username = args.username,
    password = read_password(args), token_ttl = args.token_ttl, lag = args.lag, push_delay = args.push_delay,
    tls_cert = args.tls_cert, tls_key = args.tls_key, tls_ca = args.tls_ca, faults = args.faults, version = args.claim,
    api = args.api, grpc_port = args.grpc_port,
  }))
  local raised, ok, problem = not results[1], results[2], results[3]
  if raised then
    local wrong = tostring(ok):match("nacos%.embedded%.serve: (.*)")
    if wrong then
      common.fail(common.USAGE, wrong)
    end
    error(ok, 0)
  elseif not ok then
    common.fail(common.REFUSED, problem)
  end
  return common.DONE
end

return server
