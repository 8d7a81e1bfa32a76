-- Gives a lock to another owner, if one still has it.
--
-- KEYS  lock, holders, slots
-- ARGV  value of the one, value of the other, mode, TTL in ms
-- Returns 1 if the lock is the other's now, else 0.
local lock, holders, slots = KEYS[1], KEYS[2], KEYS[3]
local from, to, mode, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

$holders
local there = redis.call('GET', lock)
if mode == '' then
  if there ~= from and there ~= to then return 0 end
  redis.call('SET', lock, to, 'PX', ttl)
  return 1
end
if there ~= said_of(mode) then return 0 end
local time = redis.call('TIME')
local ms = time[1] * 1000 + time[2] / 1000
local value = redis.call('ZSCORE', holders, to) and to or from
if tonumber(redis.call('ZSCORE', holders, value) or 0) <= ms then return 0 end
replace(holders, slots, value, to, math.ceil(ms) + ttl)
settle(lock, holders, slots)
return 1
