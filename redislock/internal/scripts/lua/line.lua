-- The waiting line of a key: queue has its members by arrival in us, alive the time in ms until which each is
-- taken to be alive. A member is the id of its process, a colon, its owner id, and, if it wants to be one of several
-- holders, a colon and the mode. All times are the server's.

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

-- Tells the first in line who is alive that it can have the lock, and with it those behind who get in together with
-- it; there is what the lock is set to. It is reserved for them: if nothing is heard for that long, it is the turn of
-- the next. Nobody is granted anything while dead. A message that cannot be sent costs time, not the turn.
local function call_first(there, queue, alive, holders)
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
  local mode = mode_of(head)
  local room = room_for(mode, there, holders, ms)
  if room < 1 then return end
  local called = {} -- by process
  for _, member in ipairs(leading(queue, mode, room)) do
    if tonumber(redis.call('ZSCORE', alive, member) or 0) > ms + $reservation then
      redis.call('ZADD', alive, ms + $reservation, member)
    end
    local process = string.sub(member, 1, 32)
    local others = called[process]
    called[process] = (others and others .. ' ' or '') .. string.sub(member, 34)
  end
  for process, owners in pairs(called) do redis.pcall('PUBLISH', $channel .. process, owners) end
end
