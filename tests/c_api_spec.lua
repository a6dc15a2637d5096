--- The C API, by the program tests/c/api.c.

local support = require "support"

describe("the C API", function()
  it("works without Lua", function()
    local server = support.start_server {}
    local code, out, err = support.run { support.build .. "/api", server.address }
    server:stop()
    assert.equal(0, code, err)
    assert.equal(table.concat({
      "absent: not_found", "same watch: 1", "known to be absent: 1", "publish: true", "from the watch: 1", "watched: one",
      "nothing else: 1, descriptor 0", "peek: one", "unchanged: 1", "remove: true", "deleted: ", "timer: 1", "",
    }, "\n"), out)
  end)
end)
