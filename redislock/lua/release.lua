-- Gives a lock back, or gives up the attempt to get one.
--
-- KEYS  lock, queue, alive, gone
-- ARGV  value, member of the line ('' if it cannot be in it), reservation in ms,
--       ms for which a request of this owner that arrives later is refused ('0' if none can)
-- Returns 1 if the lock was this owner's and is free now, else 0.
local lock, queue, alive, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local value, member, reservation, refuse = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if refuse ~= '0' then redis.call('SET', gone, '1', 'PX', refuse) end
if member ~= '' then leave_line(queue, alive, member) end

-- The type of the key may be another by now, if somebody has overwritten it: then it is not ours.
local holder = redis.pcall('GET', lock)
local ours = holder == value
if ours then redis.call('DEL', lock) end

-- Also when it was not ours but free: it may have been reserved for who has just left the line.
if ours or member ~= '' and not holder then call_first(queue, alive, reservation) end
return ours and 1 or 0
