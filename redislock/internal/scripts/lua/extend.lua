-- Pushes the expiry of leases on locks that may have several holders, each of which lasts for as long as its own TTL.
--
-- KEYS  lock, holders, slots of each
-- ARGV  mode, value and TTL in ms of each
-- Returns for each 1, 0 if it is not the owner's any more, -1 if he was revoked, or the error that Redis gave.
$holders
local time = redis.call('TIME')
local ms = time[1] * 1000 + time[2] / 1000

local function extend(lock, holders, slots, mode, value, ttl)
  if redis.call('GET', lock) ~= said_of(mode) then return 0 end
  if tonumber(redis.call('ZSCORE', holders, value) or 0) <= ms then
    return tonumber(redis.call('ZSCORE', holders, $revoked .. value) or 0) > ms and -1 or 0
  end
  if mode ~= 's' and not redis.call('ZSCORE', slots, value) then return 0 end -- somebody else may have its number
  redis.call('PEXPIRE', lock, ttl) -- needs no memory: after this write, a server that is full lets others follow
  redis.call('ZADD', holders, math.ceil(ms) + ttl, value)
  settle(lock, holders, slots)
  return 1
end

local results = {}
for i = 1, #KEYS, 3 do
  local well, result = pcall(extend, KEYS[i], KEYS[i + 1], KEYS[i + 2], ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if not well then
    if type(result) == 'table' then result = result.err end -- since Redis 7
    -- Nothing has been written yet. Clients drop the connection if this is the answer, as they should.
    if string.find(result, 'READONLY', 1, true) then return {err = result} end
    if string.find(result, 'WRONGTYPE', 1, true) then result = 0 end
  end
  results[#results + 1] = result
end
return results
