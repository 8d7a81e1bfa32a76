-- Makes the token that a quorum has agreed on the least of this server, for an owner who has the lock here.
--
-- KEYS  lock, fence, gone
-- ARGV  value, token; and to set the lock again if it is gone, as after a restart without data: its TTL in ms
-- Returns 1 if the lock is this owner's, else 0.
local lock, fence, gone = KEYS[1], KEYS[2], KEYS[3]
local value, token, ttl = ARGV[1], ARGV[2], ARGV[3]

local holder = redis.call('GET', lock)
if not holder and ttl and redis.call('EXISTS', gone) == 0 then
  redis.call('SET', lock, value, 'PX', ttl)
  holder = value
end
if holder ~= value then return 0 end
local previous = redis.call('GET', fence)
if not previous or tonumber(previous) < tonumber(token) then redis.call('SET', fence, token, 'PX', $fence) end
return 1
