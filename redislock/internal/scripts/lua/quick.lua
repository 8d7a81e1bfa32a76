-- What most requests ask for, several in one call: to take a lock alone, of owners who have asked for nothing else yet,
-- and to give it back.
--
-- KEYS  for each lock to be given back: lock, queue; then for each to be taken: lock, fence, tombstone, queue
-- ARGV  how many are to be given back; for each of them: value; then for the others: value, TTL in ms, and the least
--       token ('' if this server is the only one)
-- Returns for each request what release.lua or acquire.lua would; or nil if those have to do it, as others are in line,
--         as there is an error, or for another reason: then nothing has changed.
local call, replies, key, word = redis.pcall, {}, 1, 2
local releases = tonumber(ARGV[1])
for i = 1, releases do
  local lock, value = KEYS[key], ARGV[word]
  local there, reply = call('GET', lock), 0
  if there == value then
    reply = call('EXISTS', KEYS[key + 1]) == 0 and call('DEL', lock) == 1 and 1
  elseif there == $revoked .. value then
    reply = false
  end
  replies[i] = reply
  key, word = key + 2, word + 1
end

if word > #ARGV then return replies end

$token
local now = clock()
for i = releases + 1, releases + (#ARGV - word + 1) / 3 do
  local lock, value, ttl = KEYS[key], ARGV[word], ARGV[word + 1]
  local others, reply = call('EXISTS', KEYS[key + 2], KEYS[key + 3]), false
  if type(others) == 'number' then
    -- There is a write in any case: a read-only replica, a full or a loading server has to say so, and not "locked".
    local set = call('SET', lock, value, 'NX', 'PX', ttl)
    if not set then
      local there = call('GET', lock)
      if type(there) == 'string' and there ~= value and there ~= $revoked .. value and there ~= $shared and
        there ~= $slots then
        reply = {there, call('PTTL', lock), ''}
      end
    elseif set.err then
      -- Nothing has been written yet. Clients drop the connection if this is the answer, as they should.
      if string.find(set.err, 'READONLY', 1, true) then return set end
    else
      reply = others == 0 and next_token(call, KEYS[key + 1], ttl, ARGV[word + 2], now)
      if not reply then call('DEL', lock) end
    end
  end
  replies[i] = reply
  key, word = key + 4, word + 3
end
return replies
