-- Tells the line of a key that members of one process are alive, and finds out whether it is the turn of one of them.
--
-- KEYS  lock, queue, alive
-- ARGV  members ...
-- Returns {ms after which to ask again, at the latest (-1: no reason known), members who have to try again ...}.
local lock, queue, alive = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local ms = time[1] * 1000 + time[2] / 1000
local reply = {-1}

$line
for _, member in ipairs(ARGV) do
  if redis.call('ZSCORE', queue, member) then
    redis.call('ZADD', alive, ms + $liveness, member)
  else
    reply[#reply + 1] = member -- not in line any more: it has to join it again
  end
end
redis.call('PEXPIRE', queue, $liveness)
redis.call('PEXPIRE', alive, $liveness)
drop_dead(queue, alive, ms)

local left = redis.call('PTTL', lock)
if left == -1 then redis.call('GET', lock) end -- no lock of ours: if it is none at all, this says so
if left ~= -2 then
  reply[1] = left
  return reply
end
-- Free: the holder's lease ran out, or a message got lost.
local head = redis.call('ZRANGE', queue, 0, 0)[1]
if not head then return reply end
for _, member in ipairs(ARGV) do
  if member == head then
    reply[#reply + 1] = head -- its turn
    return reply
  end
end
local heard = tonumber(redis.call('ZSCORE', alive, head) or 0)
if heard == 0 or heard > ms + $reservation then call_first(queue, alive) end -- dead without a trace, or not called yet
reply[1] = $reservation
return reply
