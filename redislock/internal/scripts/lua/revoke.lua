-- Takes a lock away from those who have it: they are told, and no renewal of theirs succeeds any more.
--
-- Who is revoked keeps the lock until it is given back, or the lease has ended: its value is marked, here as in
-- release.lua and the renewals. Who is broken loses it at once.
--
-- KEYS  lock, fence, queue, alive, holders, slots, note, tombstone of this request
-- ARGV  who did it and why, in a form without spaces or commas but the one between them; 'b' to break the lock; from
--       which end of a lease on to look at several holders ('' the first time): nobody else is served meanwhile, so one
--       run looks at some
-- Returns from how many it was taken away, -1 if a client of another kind has it; and, behind a space, from which end
--         on to look at more of them. A request that comes again has no effect, and returns what it did the first time.
local lock, fence, queue, alive, holders, slots = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local note, tombstone = KEYS[7], KEYS[8]
local why, breaks, from = ARGV[1], ARGV[2] == 'b', ARGV[3]

local before = redis.call('GET', tombstone)
if before then return before end
local more = ''
local function answer(taken)
  local reply = taken .. ' ' .. more
  redis.call('SET', tombstone, reply, 'PX', $refuse)
  return reply
end

$holders
$line
local there = redis.call('GET', lock)
if not there then return answer(0) end
local time = redis.call('TIME')
local ms = time[1] * 1000 + time[2] / 1000
local left = redis.call('PTTL', lock)
local revoked = #$revoked

local function is_revoked(value) return string.sub(value, 1, revoked) == $revoked end
local function owner_of(value)
  if is_revoked(value) then value = string.sub(value, revoked + 1) end
  local owner = string.sub(value, 1, 32)
  local rest = string.sub(value, 33, 33)
  return #owner == 32 and not string.find(owner, '[^0-9a-f]') and (rest == '' or rest == ':') and owner
end

local several = there == $shared or there == $slots
local some = several and {} or {there}
if several then
  if from == '' then from = '(' .. string.format('%.3f', ms) end
  some = redis.call('ZRANGEBYSCORE', holders, from, '+inf', 'LIMIT', 0, $drop)
end
local found = {} -- whom to take it away from
for _, value in ipairs(some) do
  if breaks or not is_revoked(value) then found[#found + 1] = value end
end
if several and #some == $drop and not breaks then
  -- Who renews meanwhile comes to be further behind. Of those whose leases end together, the revoked are the last.
  more = redis.call('ZSCORE', holders, some[$drop])
  if #found == 0 and redis.call('ZSCORE', holders, some[1]) == more then more = '(' .. more end
end
if not breaks then
  if #found == 0 then return answer(0) end
  -- One without an end is not ours, whatever it looks like: nobody would give it back.
  if not several and not (owner_of(there) and left >= 0) then return answer(-1) end
end

local owners = {}
for _, value in ipairs(found) do owners[#owners + 1] = owner_of(value) or nil end
if breaks then
  redis.call('DEL', lock, holders, slots)
  local token = tonumber(time[1]) * 1000000 + time[2]
  local previous = redis.call('GET', fence)
  if previous then token = math.max(token, previous + 1) end
  redis.call('SET', fence, string.format('%.0f', token), 'PX', math.max($retention, redis.call('PTTL', fence)))
  call_first(false, queue, alive, holders)
else
  for _, value in ipairs(found) do
    if several then
      replace(holders, slots, value, $revoked .. value, redis.call('ZSCORE', holders, value))
    else
      redis.call('SET', lock, $revoked .. value, 'KEEPTTL')
    end
  end
  if several then settle(lock, holders, slots) end
  redis.call('SET', note, why, 'PX', math.max(left, 1))
end
if #owners > 0 then
  redis.pcall('PUBLISH', $channel .. 'revoked', (breaks and 'b ' or 'r ') .. why .. ' ' .. table.concat(owners, ','))
end
return answer(math.max(#found, breaks and 1 or 0))
