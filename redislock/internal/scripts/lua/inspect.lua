-- Tells who has a lock, and who waits for it. It writes nothing.
--
-- KEYS  lock, fence, queue, alive, holders, slots
-- ARGV  how many holders, and waiters, to tell of at most
-- Returns {value of the lock ('' if it is free), ms left, the last token or '', clock in us,
--          {value of a holder, ms left, slot ('' if it has none) ...}, how many wait,
--          {member of the line, arrival ...}}.
local lock, fence, queue, alive, holders, slots = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local most = tonumber(ARGV[1])
local time = redis.call('TIME')
local ms = time[1] * 1000 + time[2] / 1000

local there = redis.call('GETRANGE', lock, 0, $longest)
local found = {}
if there == $shared or there == $slots then
  local after = '(' .. string.format('%.3f', ms)
  local living = redis.call('ZRANGEBYSCORE', holders, after, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #living, 2 do
    found[#found + 1] = living[i]
    found[#found + 1] = math.floor(living[i + 1] - ms)
    found[#found + 1] = there == $slots and redis.call('ZSCORE', slots, living[i]) or ''
  end
end

-- Of those in line, some may be dead.
local waiters, heard = {}, {}
local line = redis.call('ZRANGE', queue, 0, most - 1, 'WITHSCORES')
for i = 1, #line, 2 do heard[#heard + 1] = line[i] end
if #heard > 0 then heard = redis.call('ZMSCORE', alive, unpack(heard)) end
for i, till in ipairs(heard) do
  if till and tonumber(till) >= ms then
    waiters[#waiters + 1] = line[2 * i - 1]
    waiters[#waiters + 1] = line[2 * i]
  end
end
return {
  there, redis.call('PTTL', lock), redis.call('GET', fence) or '', time[1] .. string.sub('00000' .. time[2], -6), found,
  redis.call('ZCOUNT', alive, string.format('%.3f', ms), '+inf'), waiters
}
