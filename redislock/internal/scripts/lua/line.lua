-- The waiting line of a key: queue has its members by arrival in us, alive the time in ms until which each is
-- taken to be alive. A member is the id of its process, a colon, and its owner id. All times are the server's.

local function leave_line(queue, alive, member)
  redis.call('ZREM', queue, member)
  redis.call('ZREM', alive, member)
end

-- Removes those who have not been heard of in time, and reports whether there may be more: nobody else is served
-- meanwhile, so that one script removes no more than some.
local function drop_dead(queue, alive, ms)
  local before = '(' .. string.format('%.3f', ms)
  local dead = redis.call('ZRANGEBYSCORE', alive, '-inf', before, 'LIMIT', 0, $drop)
  if #dead == 0 then return false end
  redis.call('ZREM', queue, unpack(dead))
  redis.call('ZREM', alive, unpack(dead))
  return #dead == $drop
end

-- Nobody is taken to be alive for longer than the liveness. If it looks so, the clock has been set back since.
local function heed_clock(alive, ms)
  local most = string.format('%.3f', ms + $liveness)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', alive, '(' .. most, '+inf', 'LIMIT', 0, $drop)) do
    redis.call('ZADD', alive, most, member)
  end
end

-- Tells the first in line who is alive that the key is free, and reserves it: if nothing is heard for that long, it is
-- the turn of the next. Nobody is granted anything while dead. A message that cannot be sent costs time, not the turn.
local function call_first(queue, alive)
  local head = redis.call('ZRANGE', queue, 0, 0)[1]
  if not head then return end
  local time = redis.call('TIME')
  local ms = time[1] * 1000 + time[2] / 1000
  local heard = tonumber(redis.call('ZSCORE', alive, head) or 0)
  if heard < ms then
    redis.call('ZADD', alive, 0, head)
    drop_dead(queue, alive, ms)
    head = redis.call('ZRANGE', queue, 0, 0)[1]
    if not head then return end
    heard = tonumber(redis.call('ZSCORE', alive, head) or 0)
  end
  if heard > ms + $liveness then heed_clock(alive, ms) end
  if heard > ms + $reservation then redis.call('ZADD', alive, ms + $reservation, head) end
  redis.pcall('PUBLISH', $channel .. string.sub(head, 1, 32), string.sub(head, 34))
end
