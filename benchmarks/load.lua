-- Sends the requests of one file in turn, over all connections; prints wrk's figures as one line of
-- JSON. The file: see `bodies.write_http`.
local requests = {}
local last = 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  while true do
    local size = file:read(4)
    if not size then
      break
    end
    local a, b, c, d = size:byte(1, 4)
    requests[#requests + 1] = file:read(a + 256 * (b + 256 * (c + 256 * d)))
  end
  file:close()
end

function request()
  last = last % #requests + 1
  return requests[last]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, '
      .. '"bad_status": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
