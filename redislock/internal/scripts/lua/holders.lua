-- Locks with several holders: `holders` has the value of each by the time in ms when its lease ends, and `slots`, if
-- they have numbers, by its number. The lock itself is then set to what says its mode, and expires with the last of
-- them: whoever knows nothing of modes finds it taken. A mode is '' (exclusive), 's' (shared), or how many slots there
-- are; that of a waiter is at the end of the member.

local function mode_of(member) return string.sub(member, 67) end

-- What a lock is set to that has holders in a mode.
local function said_of(mode)
  if mode == 's' then return $shared end
  return $slots
end

-- How many can get the lock in a mode beside those who have it; there is what it is set to.
local function room_for(mode, there, holders, ms)
  if mode == '' then return there and 0 or 1 end
  local living = 0
  if there then
    if there ~= said_of(mode) then return 0 end
    living = redis.call('ZCOUNT', holders, '(' .. string.format('%.3f', ms), '+inf')
    if living == 0 then return 0 end -- not one of ours
  end
  return (tonumber(mode) or math.huge) - living
end

-- Returns who has the lease that ends next, and in how many ms. Those that are over may still be there.
local function next_end(holders, ms)
  local after = '(' .. string.format('%.3f', ms)
  local first = redis.call('ZRANGEBYSCORE', holders, after, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return first[1], first[2] and math.ceil(first[2] - ms)
end

-- Those who lead the line and get in together: as many as there is room for, who all want the same.
local function leading(queue, mode, room)
  local run = redis.call('ZRANGE', queue, 0, math.min(room, $together) - 1)
  for i, member in ipairs(run) do
    if mode_of(member) ~= mode then return {unpack(run, 1, i - 1)} end
  end
  return run
end

-- Has the lock end with the last lease of its holders, or at once if there are none.
local function settle(lock, holders, slots)
  local last = redis.call('ZRANGE', holders, -1, -1, 'WITHSCORES')[2]
  if not last then
    redis.call('DEL', lock, holders, slots)
    return
  end
  redis.call('PEXPIREAT', lock, last)
  redis.call('PEXPIREAT', holders, last)
  redis.call('PEXPIREAT', slots, last)
end

-- Puts a value in the place of another, with the same slot, whose lease ends at a time in ms. What was there alone has
-- to be settled then: a set that is empty for a moment loses its end.
local function replace(holders, slots, from, to, ends)
  local slot = redis.call('ZSCORE', slots, from)
  redis.call('ZREM', holders, from)
  redis.call('ZADD', holders, ends, to)
  if not slot then return end
  redis.call('ZREM', slots, from)
  redis.call('ZADD', slots, slot, to)
end

-- Removes those whose leases are over: some, as nobody else is served meanwhile, but all if their slots are needed.
local function drop_over(holders, slots, ms)
  local numbered = redis.call('EXISTS', slots) == 1
  repeat
    local over = redis.call('ZRANGEBYSCORE', holders, '-inf', string.format('%.3f', ms), 'LIMIT', 0, $drop)
    if #over == 0 then return end
    redis.call('ZREM', holders, unpack(over))
    if numbered then redis.call('ZREM', slots, unpack(over)) end
  until not numbered or #over < $drop
end

-- Returns the lowest number that no holder has: up to there, each one's number is his rank.
local function free_slot(slots)
  local from, to = 0, redis.call('ZCARD', slots)
  while from < to do
    local middle = math.floor((from + to) / 2)
    if tonumber(redis.call('ZRANGE', slots, middle, middle, 'WITHSCORES')[2]) == middle then
      from = middle + 1
    else
      to = middle
    end
  end
  return from
end
