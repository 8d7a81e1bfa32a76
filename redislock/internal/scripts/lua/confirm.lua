-- Makes the token that a quorum has agreed on the last one of this server, for an owner who has the lock here.
--
-- KEYS  lock, fence, tombstone
-- ARGV  value, token; and to set the lock again if it is gone, as after a restart without data: its TTL in ms
-- Returns 1 if the lock is this owner's and the token, or for a repair a greater one, is the last one, else 0.
local lock, fence, tombstone = KEYS[1], KEYS[2], KEYS[3]
local value, token, ttl = ARGV[1], ARGV[2], ARGV[3]

local holder = redis.call('GET', lock)
-- Another mark is for a late request to acquire, of an owner who goes on.
local ours = holder == value or not holder and ttl and redis.call('GET', tombstone) ~= 'left'
if not ours then return 0 end
local previous = redis.call('GET', fence)
-- A greater one means that the lock has been granted again since: to somebody else, who may have come and gone, or to
-- a late repetition of the owner's own request after that.
if previous and tonumber(previous) > tonumber(token) then
  if not ttl then return 0 end
  -- A majority has just said that the lock is this owner's: that somebody else was granted it here has come to nothing.
  token = previous
end
if not holder then redis.call('SET', lock, value, 'PX', ttl) end
-- Kept for as long as the one before, at least: its owner may ask again.
redis.call('SET', fence, token, 'PX', math.max($retention, redis.call('PTTL', fence)))
return 1
