-- One attempt to take a lock, for an owner who may have a place in its line.
--
-- KEYS  lock, fence, tombstone, queue, alive
-- ARGV  value (owner and holder's name), TTL in ms, how many earlier requests of this owner may still be on their way,
--       the least token ('' if this server is the only one);
--       and to join the line if refused: member of the line, arrival in it ('' the first time)
-- Returns the token if granted (with a least token: also the clock, and 'again' if the owner had the lock already),
--         {value of the holder, ms left, arrival} if refused, -1 if the owner has given up.
local lock, fence, tombstone, queue, alive = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local value, before, least, member, arrival = ARGV[1], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

-- The clock in us, as text: numbers of this size take longer to print than anything else here.
local time = redis.call('TIME')
local now = time[1] .. string.sub('00000' .. time[2], -6)

-- The mark says how many requests of this owner are refused, or, if it is no number, that all are. It is left for the
-- earlier ones, which do no harm while the owner has the lock, or is in line.
local function refuse_earlier()
  if before == '0' then return end
  local mark = redis.call('GET', tombstone)
  if not mark or (tonumber(mark) or math.huge) < tonumber(before) then
    redis.call('SET', tombstone, before, 'PX', $refuse)
  end
end

-- The token is max(previous + 1, clock, least): greater than every one before, also when Redis has forgotten the
-- previous one. It remembers that for as long as this owner may ask again, at least.
local function grant()
  refuse_earlier()
  local token = now
  if least > now then token = least end
  local keep = tonumber(ARGV[2]) > $retention and ARGV[2] or '$retention'
  local previous = redis.call('SET', fence, token, 'PX', keep, 'GET')
  if previous and (#previous ~= #token or previous >= token) then
    token = string.format('%.0f', math.max(tonumber(token), tonumber(previous) + 1))
    redis.call('SET', fence, token, 'PX', keep)
  end
  if least == '' then return token end
  return token .. ' ' .. now
end

-- There is a write in any case: a read-only replica, a full or a loading server has to say so, and not "locked". All
-- reads come before it that the user may lack a permission for.
local special = redis.call('EXISTS', tombstone, queue) > 0
local free = redis.call('SET', lock, value, 'NX', 'PX', ARGV[2])
if free and not special then return grant() end

if not free and redis.call('GET', lock) == value then
  -- The answer to an earlier attempt of this owner got lost.
  redis.call('PEXPIRE', lock, ARGV[2])
  refuse_earlier()
  local token = redis.call('GET', fence)
  if not token then return grant() end
  if least == '' then return token end
  return token .. ' ' .. now .. ' again'
end
local mark = special and (free or member) and redis.call('GET', tombstone)
if mark and (tonumber(mark) or math.huge) > tonumber(before) then
  if free then redis.call('DEL', lock) end
  return -1 -- a late request of an owner who has given up, or has asked again
end

$line
local ms = tonumber(now) / 1000
if free then
  local head = redis.call('ZRANGE', queue, 0, 0)[1]
  if head and head ~= member then
    if member then redis.call('ZADD', alive, 'XX', ms + $liveness, member) end -- not to be taken for dead just now
    heed_clock(alive, ms)
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
    -- Behind all who are there, also if the clock has been set back since they came. As one of several servers, it
    -- gives the same arrival as the others if it can, like the token.
    local last = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')[2]
    arrival = math.max(tonumber(now), tonumber(least) or 0, last and tonumber(last) + 1 or 0)
    arrival = string.format('%.0f', arrival)
  end
  redis.call('ZADD', queue, 'NX', arrival, member)
  redis.call('ZADD', alive, ms + $liveness, member)
  redis.call('PEXPIRE', queue, $liveness)
  redis.call('PEXPIRE', alive, $liveness)
else
  refuse_earlier() -- refused, and that was all
end
return {redis.call('GET', lock) or '', redis.call('PTTL', lock), arrival or ''}
