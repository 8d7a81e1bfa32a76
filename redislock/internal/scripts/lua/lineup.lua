-- Steps back into the line, at a place that is the same on all servers, with what was granted here given up: for an
-- owner who was not granted the lock by a quorum.
--
-- KEYS  lock, queue, alive, tombstone, and tombstone of the owner's first try, which is for the line
-- ARGV  value, member of the line, arrival in it, '1' if a request with this value may still be on its way: it is then
--       refused
-- Returns 1 if the key is free and it is this member's turn, else 0; -1 if the owner has given up.
local lock, queue, alive, tombstone = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local value, member, arrival, doubt = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

if redis.call('GET', KEYS[5]) == 'left' then return -1 end

$holders
$line
local time = redis.call('TIME')
local ms = time[1] * 1000 + time[2] / 1000
if doubt then redis.call('SET', tombstone, 'over', 'PX', $refuse) end
local holder = redis.call('GET', lock)
local ours = holder == value
if ours then redis.call('DEL', lock) end
redis.call('ZADD', queue, arrival, member)
redis.call('ZADD', alive, ms + $liveness, member)
redis.call('PEXPIRE', queue, $liveness)
redis.call('PEXPIRE', alive, $liveness)
if holder and not ours then return 0 end
if redis.call('ZRANGE', queue, 0, 0)[1] == member then return 1 end
call_first(false, queue, alive)
return 0
