-- What every script of a queue begins with: refuse a deposed leader, and take note of any other.
--
-- KEYS  the hash of the queue, see redisQueue
-- ARGV  token and name of the leader who calls, and what the script itself needs
-- Returns {'deposed', token, name} of the newer leader; else sets done, and before: what is known of the leader before.
local queue, token, leader = KEYS[1], ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Tokens are whole numbers of up to 64 bits. Lua's numbers are exact up to 53 bits only.
local function less(a, b) return #a < #b or #a == #b and a < b end

local was = redis.call('HMGET', queue, 'token', 'leader', 'seen', 'left', 'done')
if was[1] and less(token, was[1]) then return {'deposed', was[1], was[2]} end

local before = {leader = '', left = '', ago = '0'}
if was[1] and was[1] ~= token then
  before = {leader = was[2], left = was[4] or '', ago = string.format('%.0f', now - was[3])}
end
local done = tonumber(was[5] or 0)
if was[1] ~= token or not was[4] then
  redis.call('HSET', queue, 'token', token, 'leader', leader, 'seen', string.format('%.0f', now))
  redis.call('HDEL', queue, 'left')
end

