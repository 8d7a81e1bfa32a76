-- One attempt to take a lock, for an owner who may have a place in its line.
--
-- KEYS  lock, fence, queue, alive, gone
-- ARGV  value (owner and holder's name), TTL in ms, TTL of the fence in ms,
--       member of the line ('' to be refused without joining it), arrival in it ('' the first time),
--       liveness of the member in ms
-- Returns the token if granted, {value of the holder, ms left, arrival} if refused, -1 if the owner has given up.
local lock, fence, queue, alive, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local value, member, arrival, liveness = ARGV[1], ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- All reads that the user may lack a permission for come before the first write, which then stands alone. There is a
-- write in any case: a read-only replica, a full or a loading server has to say so, and not "locked".
local known = redis.call('MGET', fence, gone)
local head = redis.call('ZRANGE', queue, 0, 0)[1]
local granted, previous = redis.call('SET', lock, value, 'NX', 'PX', ARGV[2]), known[1]
if granted then
  if known[2] then
    redis.call('DEL', lock) -- a late request of an owner who has given up, and whose clean-up came first
    return -1
  end
  if head and head ~= member then
    if member ~= '' then
      redis.call('ZADD', alive, 'XX', now / 1000 + liveness, member) -- not to be taken for dead just now
    end
    drop_dead(queue, alive, now)
    head = redis.call('ZRANGE', queue, 0, 0)[1]
  end
  if head == member then
    leave_line(queue, alive, member)
  elseif head then
    redis.call('DEL', lock) -- others were here first
    granted = false
  end
elseif redis.call('GET', lock) == value then
  -- The answer to an earlier attempt of this owner got lost.
  redis.call('PEXPIRE', lock, ARGV[2])
  if previous then return tonumber(previous) end
  granted = true
elseif known[2] then
  return -1
end

if granted then
  -- max(previous + 1, clock): greater than every token before, also when Redis has forgotten the previous one.
  local token = now
  if previous and tonumber(previous) >= token then token = tonumber(previous) + 1 end
  redis.call('SET', fence, string.format('%.0f', token), 'PX', ARGV[3])
  return token
end
if member ~= '' then
  if arrival == '' then arrival = string.format('%.0f', now) end
  redis.call('ZADD', queue, 'NX', arrival, member)
  redis.call('ZADD', alive, now / 1000 + liveness, member)
  redis.call('PEXPIRE', queue, liveness)
  redis.call('PEXPIRE', alive, liveness)
end
return {redis.call('GET', lock) or '', redis.call('PTTL', lock), arrival}
