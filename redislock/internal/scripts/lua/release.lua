-- Gives a lock back, or gives up the attempt to get one.
--
-- KEYS  lock, queue, alive, tombstone; for an owner with a mode, or who may be in line: holders, slots; and tombstone
--       of the owner's first try, if this may be another
-- ARGV  value, mode; and for an owner who may be in line, or have a request on its way:
--       member of the line, '1' if a request of this owner may still be on its way: it is then refused
-- Returns 1 if the lock was this owner's and is given back now, else 0.
local lock, queue, alive, tombstone, holders, slots = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local value, mode, member, doubt = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

-- The type of the key may be another by now, if somebody has overwritten it: then it is not ours.
local there = redis.pcall('GET', lock)
local ours = there == value or there == $revoked .. value -- who is revoked gives it back as others do
if mode == '' then
  if ours then
    redis.call('DEL', lock)
    there = false
  end
  if not member and (not ours or redis.call('EXISTS', queue) == 0) then return ours and 1 or 0 end
end

$holders
$line
if mode ~= '' then
  ours = false
  if there == said_of(mode) then
    local time = redis.call('TIME')
    local ends = redis.call('ZSCORE', holders, value)
    if not ends then
      value = $revoked .. value
      ends = redis.call('ZSCORE', holders, value)
    end
    ours = ends and tonumber(ends) > time[1] * 1000 + time[2] / 1000
    if ends then
      redis.call('ZREM', holders, value)
      redis.call('ZREM', slots, value)
      settle(lock, holders, slots)
      there = redis.call('GET', lock)
    end
  end
  if not member and redis.call('EXISTS', queue) == 0 then return ours and 1 or 0 end
end
if member then
  leave_line(queue, alive, member)
  if doubt then
    if member == '' then -- one try was given up, and the owner may go on with the next
      if redis.call('GET', tombstone) ~= 'left' then redis.call('SET', tombstone, 'over', 'PX', $refuse) end
    else
      redis.call('SET', tombstone, 'left', 'PX', $refuse)
    end
    if KEYS[7] and KEYS[7] ~= tombstone then redis.call('SET', KEYS[7], 'left', 'PX', $refuse) end
  end
end
-- Also when nothing was given back: who has just left the line may have been the one that others waited for.
if not there or there == $shared or there == $slots then call_first(there, queue, alive, holders) end
return ours and 1 or 0
