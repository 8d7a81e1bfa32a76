-- Tells the line of a key that members of one process are alive, and finds out whether it is the turn of one of them.
--
-- KEYS  lock, queue, alive
-- ARGV  liveness in ms, reservation in ms, members ...
-- Returns {ms after which to ask again, at the latest ('-1': no reason known), members whose turn it is to try ...}.
local lock, queue, alive = KEYS[1], KEYS[2], KEYS[3]
local liveness, reservation = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local reply = {-1}

for i = 3, #ARGV do
  local member = ARGV[i]
  if redis.call('ZSCORE', queue, member) then
    redis.call('ZADD', alive, now / 1000 + liveness, member)
  else
    reply[#reply + 1] = member -- not in line any more: it has to join it again
  end
end
redis.call('PEXPIRE', queue, liveness)
redis.call('PEXPIRE', alive, liveness)

drop_dead(queue, alive, now)
local left = redis.call('PTTL', lock)
if left ~= -2 then
  reply[1] = left
  return reply
end
-- Free: the holder's lease ran out, or a message got lost.
local head = redis.call('ZRANGE', queue, 0, 0)[1]
if not head then return reply end
for i = 3, #ARGV do
  if ARGV[i] == head then
    reply[#reply + 1] = head
    return reply
  end
end
if tonumber(redis.call('ZSCORE', alive, head) or 0) > now / 1000 + reservation then
  call_first(queue, alive, reservation) -- not called yet
end
reply[1] = reservation
return reply
