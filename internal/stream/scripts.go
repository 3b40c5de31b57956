package stream

import "github.com/redis/go-redis/v9"

// The scripts take keys and arguments as their comments list them. They are
// run by EVALSHA. All that a script may have to refuse, it refuses before it
// writes; after its first write Redis lets it write the rest, also at
// maxmemory.

// Common functions of the scripts.
const (
	// luaPlace compares places, "segment:offset".
	luaPlace = `
local function before(a, b)
  local as, ao = string.match(a, '^(%d+):(%d+)$')
  local bs, bo = string.match(b, '^(%d+):(%d+)$')
  as, ao, bs, bo = tonumber(as), tonumber(ao), tonumber(bs), tonumber(bo)
  return as < bs or (as == bs and ao < bo)
end
`
	// luaLow finds what a group needs.
	luaLow = `
local function groups(stream)
  local all = {}
  if redis.call('EXISTS', stream) == 0 then return all end
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local g = {}
    for i = 1, #info, 2 do g[info[i]] = info[i+1] end
    all[g['name']] = g
  end
  return all
end

-- low returns the id of the oldest entry that group g has not acknowledged,
-- or '' if there is none.
local function low(stream, g)
  local from = '-'
  if g then
    if g['pending'] > 0 then return redis.call('XPENDING', stream, g['name'])[2] end
    from = '(' .. g['last-delivered-id']
  end
  local next = redis.call('XRANGE', stream, from, '+', 'COUNT', 1)
  if next[1] then return next[1][1] end
  return ''
end
`
)

// openScript begins or takes up a session. With a new one it makes the groups
// that are missing: at maxmemory it would be too late.
//
//	KEYS  sent, stream, acked of each group
//	ARGV  writer, known session or '', session to begin otherwise, place that the spool
//	      has acknowledged, place up to which the known session may have been sent;
//	      then each group in the order of the keys
//
// It returns the session that holds now, the place behind its last entry, and
// the id of the last entry of the stream.
var openScript = redis.NewScript(luaPlace + `
local writer, known, fresh, acked, upto = unpack(ARGV)
local session, place = string.match(redis.call('HGET', KEYS[1], writer) or '', '^(%S+) (%d+:%d+)$')
local good = known ~= '' and session == known and not before(place, acked) and not before(upto, place)
for i = 3, #KEYS do
  local s = string.match(redis.call('HGET', KEYS[i], writer) or '', '^(%S+) ')
  good = good and s == known
end
if not good then
  session, place = fresh, acked
  redis.call('HSET', KEYS[1], writer, session .. ' ' .. place)
  for i = 3, #KEYS do
    redis.call('HSET', KEYS[i], writer, session .. ' ' .. place)
    redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[i+3], '0', 'MKSTREAM') -- an error: it is there
  end
end
local last = '0-0'
if redis.call('EXISTS', KEYS[2]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i+1] end
  end
end
return {session, place, last}
`)

// sendScript adds entries behind the last one of the session.
//
//	KEYS  sent, stream
//	ARGV  writer, value that sent must have and the one that it gets, most entries in the
//	      stream; then payload and origin of each
//
// It returns 'ok', 'moved' or 'full', the number of entries, and the last id.
var sendScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return {'moved', 0, ''} end
local length = redis.call('XLEN', KEYS[2])
local more = (#ARGV - 4) / 2
if length + more > tonumber(ARGV[4]) then return {'full', length, ''} end
local last
for i = 5, #ARGV, 2 do
  last = redis.call('XADD', KEYS[2], '*', 'p', ARGV[i], 'o', ARGV[i+1])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {'ok', length + more, last}
`)

// lookScript shows how far a writer's records got. It changes nothing.
//
//	KEYS  sent, stream, acked of each group
//	ARGV  writer, then each group in the order of the keys
//
// It returns what sent holds, the number of entries, and for each group what
// acked holds and the oldest id that the group has not acknowledged or ”.
var lookScript = redis.NewScript(luaLow + `
local all = groups(KEYS[2])
local out = {redis.call('HGET', KEYS[1], ARGV[1]) or '', redis.call('XLEN', KEYS[2])}
for i = 3, #KEYS do
  out[#out+1] = redis.call('HGET', KEYS[i], ARGV[1]) or ''
  out[#out+1] = low(KEYS[2], all[ARGV[i-1]])
end
return out
`)

// ackScript acknowledges entries, moves the places of their writers, and trims
// the stream to what some group still needs.
//
//	KEYS  stream, acked of the group
//	ARGV  group, number of ids, the ids; then writer, session, from and to of each run
//
// It returns how many ids were pending.
var ackScript = redis.NewScript(luaPlace + luaLow + `
local n = tonumber(ARGV[2])
local acked = 0
for i = 3, n + 2, 1000 do
  acked = acked + redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, i, math.min(i + 999, n + 2)))
end
for i = n + 3, #ARGV, 4 do
  local writer, session = ARGV[i], ARGV[i+1]
  local now, place, islands = string.match(redis.call('HGET', KEYS[2], writer) or '', '^(%S+) (%d+:%d+)(.*)$')
  if now == session then
    local runs = {{ARGV[i+2], ARGV[i+3]}}
    for from, to in string.gmatch(islands, '(%d+:%d+)-(%d+:%d+)') do runs[#runs+1] = {from, to} end
    table.sort(runs, function(a, b) return before(a[1], b[1]) end)
    local left = {}
    for _, r in ipairs(runs) do
      local last = left[#left]
      if not before(place, r[1]) then
        if before(place, r[2]) then place = r[2] end
      elseif last and not before(last[2], r[1]) then
        if before(last[2], r[2]) then last[2] = r[2] end
      else
        left[#left+1] = r
      end
    end
    local value = session .. ' ' .. place
    for _, r in ipairs(left) do value = value .. ' ' .. r[1] .. '-' .. r[2] end
    redis.call('HSET', KEYS[2], writer, value)
  end
end
local oldest, done
for _, g in pairs(groups(KEYS[1])) do
  local id = low(KEYS[1], g)
  if id == '' then
    done = true
  else
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    ms, seq = tonumber(ms), tonumber(seq)
    if not oldest or ms < oldest[1] or (ms == oldest[1] and seq < oldest[2]) then oldest = {ms, seq, id} end
  end
end
if oldest then
  redis.call('XTRIM', KEYS[1], 'MINID', oldest[3])
elseif done then
  redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)
end
return acked
`)
