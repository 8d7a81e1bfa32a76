-- Gives a lock back, but keeps it from others for a while: it is marked as that of an owner who was revoked.
--
-- KEYS  lock, holders, slots, queue
-- ARGV  value, mode, for how many ms
-- Returns 1 if the lock was this owner's, else 0.
local lock, holders, slots, queue = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local value, mode, ms = ARGV[1], ARGV[2], ARGV[3]
local kept = $revoked .. value

$holders
local there = redis.call('GET', lock)
if mode == '' then
  if there ~= value and there ~= kept then return 0 end
  redis.call('SET', lock, kept, 'PX', ms)
else
  if there ~= said_of(mode) then return 0 end
  local time = redis.call('TIME')
  local now = time[1] * 1000 + time[2] / 1000
  if tonumber(redis.call('ZSCORE', holders, value) or redis.call('ZSCORE', holders, kept) or 0) <= now then return 0 end
  replace(holders, slots, value, kept, math.ceil(now) + ms)
  settle(lock, holders, slots)
end
-- The first in line asks again, and learns when the lock is going to be free.
local head = redis.call('ZRANGE', queue, 0, 0)[1]
if head then redis.pcall('PUBLISH', $channel .. string.sub(head, 1, 32), string.sub(head, 34)) end
return 1
