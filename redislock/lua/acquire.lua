-- One attempt to take a lock, for an owner who may have a place in its line.
--
-- KEYS  lock, fence, gone, queue, alive
-- ARGV  value (owner and holder's name), TTL in ms, '1' if an earlier request of this owner may still be on its way,
--       the least token ('' if this server is the only one);
--       and to join the line if refused: member of the line, arrival in it ('' the first time)
-- Returns the token if granted (with a least token: also the clock, and 'again' if the owner had the lock already),
--         {value of the holder, ms left, arrival} if refused, -1 if the owner has given up.
local lock, fence, gone, queue, alive = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local value, doubt, least, member, arrival = ARGV[1], ARGV[3] == '1', ARGV[4], ARGV[5], ARGV[6]

-- The clock in us, as text: numbers of this size take longer to print than anything else here.
local time = redis.call('TIME')
local now = time[1] .. string.sub('00000' .. time[2], -6)

-- The token is max(previous + 1, clock, least): greater than every one before, also when Redis has forgotten the previous
-- one. In doubt, a mark is left for the earlier request, which does no harm while the owner has the lock, or is in line.
local function grant()
  if doubt then redis.call('SET', gone, '1', 'PX', $refuse) end
  local token = now
  if least > now then token = least end
  local previous = redis.call('SET', fence, token, 'PX', $fence, 'GET')
  if previous and (#previous ~= #token or previous >= token) then
    token = string.format('%.0f', math.max(tonumber(token), tonumber(previous) + 1))
    redis.call('SET', fence, token, 'PX', $fence)
  end
  if least == '' then return token end
  return token .. ' ' .. now
end

-- There is a write in any case: a read-only replica, a full or a loading server has to say so, and not "locked". All
-- reads come before it that the user may lack a permission for.
local special = redis.call('EXISTS', gone, queue) > 0
local free = redis.call('SET', lock, value, 'NX', 'PX', ARGV[2])
if free and not special then return grant() end

if not free and redis.call('GET', lock) == value then
  -- The answer to an earlier attempt of this owner got lost.
  redis.call('PEXPIRE', lock, ARGV[2])
  if doubt then redis.call('SET', gone, '1', 'PX', $refuse) end
  local token = redis.call('GET', fence)
  if not token then return grant() end
  if least == '' then return token end
  return token .. ' ' .. now .. ' again'
end
if special and (free or member) and redis.call('EXISTS', gone) == 1 then
  if free then redis.call('DEL', lock) end
  return -1 -- a late request of an owner who has given up, and whose clean-up came first
end

$line
local ms = tonumber(now) / 1000
if free then
  local head = redis.call('ZRANGE', queue, 0, 0)[1]
  if head and head ~= member then
    if member then redis.call('ZADD', alive, 'XX', ms + $liveness, member) end -- not to be taken for dead just now
    drop_dead(queue, alive, ms)
    head = redis.call('ZRANGE', queue, 0, 0)[1]
  end
  if not head then return grant() end
  if head == member then
    leave_line(queue, alive, member)
    return grant()
  end
  redis.call('DEL', lock) -- others were here first
end
if member then
  if arrival == '' then
    arrival = now
    if least ~= '' then
      -- One of several servers: like the token, this is to be the same on all of them, and behind all who are there.
      local last = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')[2]
      arrival = string.format('%.0f', math.max(tonumber(now), tonumber(least), last and tonumber(last) + 1 or 0))
    end
  end
  redis.call('ZADD', queue, 'NX', arrival, member)
  redis.call('ZADD', alive, ms + $liveness, member)
  redis.call('PEXPIRE', queue, $liveness)
  redis.call('PEXPIRE', alive, $liveness)
elseif doubt then
  redis.call('SET', gone, '1', 'NX', 'PX', $refuse) -- refused, and that was all
end
return {redis.call('GET', lock) or '', redis.call('PTTL', lock), arrival or ''}
