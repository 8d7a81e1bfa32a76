-- Gives a lock back, or gives up the attempt to get one.
--
-- KEYS  lock, queue, alive, tombstone; and tombstone of the owner's first try, if this may be another
-- ARGV  value; and for an owner who may be in line, or have a request on its way:
--       member of the line, '1' if a request of this owner may still be on its way: it is then refused
-- Returns 1 if the lock was this owner's and is free now, else 0.
local lock, queue, alive, tombstone = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local value, member, doubt = ARGV[1], ARGV[2], ARGV[3] == '1'

-- The type of the key may be another by now, if somebody has overwritten it: then it is not ours.
local holder = redis.pcall('GET', lock)
local ours = holder == value
if ours then redis.call('DEL', lock) end
if not member and (not ours or redis.call('EXISTS', queue) == 0) then return ours and 1 or 0 end

$line
if member then
  leave_line(queue, alive, member)
  if doubt then
    if member == '' then -- one try was given up, and the owner may go on with the next
      if redis.call('GET', tombstone) ~= 'left' then redis.call('SET', tombstone, 'over', 'PX', $refuse) end
    else
      redis.call('SET', tombstone, 'left', 'PX', $refuse)
    end
    if KEYS[5] and KEYS[5] ~= tombstone then redis.call('SET', KEYS[5], 'left', 'PX', $refuse) end
  end
end
-- Also when it was not ours but free: it may have been reserved for who has just left the line.
if ours or not holder then call_first(queue, alive) end
return ours and 1 or 0
