-- One attempt to take a lock, for an owner who may have a place in its line.
--
-- KEYS  lock, fence, tombstone, queue, alive, holders; and slots if the mode is not ''
-- ARGV  value (owner and holder's name), TTL in ms, how many earlier requests of this owner may still be on their way,
--       the least token ('' if this server is the only one), mode;
--       and to join the line if refused: member of the line, arrival in it ('' the first time)
-- Returns the token if granted (with a least token: also the clock, and 'again' if the owner had the lock already; in
--         a slot: {token, slot}), {value of a holder, ms left, arrival} if refused, -1 if the owner has given up, -2 if
--         he had the lock already, and was revoked.
local lock, fence, tombstone, queue, alive, holders = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local value, before, least, mode, member, arrival = ARGV[1], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

$token
local now = clock()

-- The mark says how many requests of this owner are refused, or, if it is no number, that all are. It is left for the
-- earlier ones, which do no harm while the owner has the lock, or is in line.
local function refuse_earlier()
  if before == '0' then return end
  local mark = redis.call('GET', tombstone)
  if not mark or (tonumber(mark) or math.huge) < tonumber(before) then
    redis.call('SET', tombstone, before, 'PX', $refuse)
  end
end

local function grant()
  refuse_earlier()
  return next_token(redis.call, fence, ARGV[2], least, now)
end

-- There is a write in any case: a read-only replica, a full or a loading server has to say so, and not "locked". All
-- reads come before it that the user may lack a permission for.
local special = redis.call('EXISTS', tombstone, queue) > 0
local says = value
if mode ~= '' then says = mode == 's' and $shared or $slots end
local free = redis.call('SET', lock, says, 'NX', 'PX', ARGV[2])
if mode == '' then
  local there = not free and redis.call('GET', lock)
  if there == value then
    -- The answer to an earlier attempt of this owner got lost.
    redis.call('PEXPIRE', lock, ARGV[2])
    refuse_earlier()
    local token = redis.call('GET', fence)
    if not token then return grant() end
    if least == '' then return token end
    return token .. ' ' .. now .. ' again'
  end
  if there == $revoked .. value then return -2 end
end

$holders
$line
local ms = tonumber(now) / 1000
local there = not free and redis.call('GET', lock)

-- Takes the lock, or a place beside its holders, and has those follow who lead the line and find room, too. Who was
-- called is on his way already, or dead by now.
local function enter()
  if mode == '' then return grant() end
  local slots = KEYS[7]
  if free then redis.call('DEL', holders, slots) end -- of those whose lock was deleted
  drop_over(holders, slots, ms)
  redis.call('ZADD', holders, math.ceil(ms) + ARGV[2], value)
  local slot = mode ~= 's' and (tonumber(redis.call('ZSCORE', slots, value)) or free_slot(slots))
  if slot then redis.call('ZADD', slots, slot, value) end
  settle(lock, holders, slots)
  local head = special and redis.call('ZRANGE', queue, 0, 0)[1]
  local heard = head and tonumber(redis.call('ZSCORE', alive, head) or 0)
  if head and (heard < ms or heard > ms + $reservation) then call_first(says, queue, alive, holders) end
  return slot and {grant(), slot} or grant()
end

-- Here, too, the answer may have got lost. Others may have been granted the lock since: there is a new token.
local lasts = there == says and redis.call('ZMSCORE', holders, value, $revoked .. value) or {}
if tonumber(lasts[1] or 0) > ms then return enter() end
if tonumber(lasts[2] or 0) > ms then return -2 end

local mark = special and (free or member or mode ~= '') and redis.call('GET', tombstone)
if mark and (tonumber(mark) or math.huge) > tonumber(before) then
  if free then redis.call('DEL', lock) end
  return -1 -- a late request of an owner who has given up, or has asked again
end

local room = room_for(mode, there, holders, ms)
-- Reports whether nobody is ahead in line, or only such as get in together with this one.
local function at_head()
  local ahead = member and redis.call('ZRANK', queue, member) or redis.call('ZCARD', queue)
  return ahead == 0 or ahead < room and #leading(queue, mode, room) >= ahead
end
if room > 0 then
  local turn = at_head()
  if not turn then
    if member then redis.call('ZADD', alive, 'XX', ms + $liveness, member) end -- not to be taken for dead just now
    heed_clock(alive, ms)
    drop_dead(queue, alive, ms)
    turn = at_head()
  end
  if turn then
    if member then leave_line(queue, alive, member) end
    return enter()
  end
  if free then redis.call('DEL', lock) end -- others were here first
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
there = redis.call('GET', lock) or ''
local left = redis.call('PTTL', lock)
if there == $shared or there == $slots then
  local first, ends = next_end(holders, ms)
  if ends and there == says then left = ends end -- the next slot
  there = first or ''
end
return {there, left, arrival or ''}
