-- Pushes the expiry of locks that are still their owner's.
--
-- KEYS  locks
-- ARGV  value and TTL in ms of each
-- Returns for each 1, 0 if it is not the owner's any more, -1 if he was revoked, or the error that Redis gave.
local results = {}
for i, lock in ipairs(KEYS) do
  local holder = redis.pcall('GET', lock)
  if holder == ARGV[2 * i - 1] then
    results[i] = redis.call('PEXPIRE', lock, ARGV[2 * i])
  elseif type(holder) == 'table' and not string.find(holder.err, 'WRONGTYPE', 1, true) then
    results[i] = holder.err
  elseif holder == $revoked .. ARGV[2 * i - 1] then
    results[i] = -1
  else
    results[i] = 0
  end
end
return results
