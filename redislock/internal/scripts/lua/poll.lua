-- Tells the line of a key that members of one process are alive, and finds out whether it is the turn of one of them.
--
-- KEYS  lock, queue, alive, holders
-- ARGV  members ..., not all of a process if they are many: nobody else is served meanwhile
-- Returns {ms after which to ask again, at the latest (-1: no reason known), members who have to try again ...}.
local lock, queue, alive, holders = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local ms = time[1] * 1000 + time[2] / 1000
local reply = {-1}

$holders
$line
-- Each member is alive or dead by itself, and not with its process: one that left while the server could not be told is
-- dropped in time, however many there are of them. And who has lost his place finds out here, whatever the reason.
local till, alive_till = string.format('%.3f', ms + $liveness), {}
for i, place in ipairs(redis.call('ZMSCORE', queue, unpack(ARGV))) do
  if place then
    alive_till[#alive_till + 1] = till
    alive_till[#alive_till + 1] = ARGV[i]
  else
    reply[#reply + 1] = ARGV[i] -- not in line any more: it has to join it again
  end
end
if #alive_till > 0 then redis.call('ZADD', alive, unpack(alive_till)) end
redis.call('PEXPIRE', queue, $liveness)
redis.call('PEXPIRE', alive, $liveness)
local more = drop_dead(queue, alive, ms)

local head = redis.call('ZRANGE', queue, 0, 0)[1]
local mode = head and mode_of(head) or ''
local left = redis.call('PTTL', lock)
local there = left ~= -2
-- If it has no end, it is no lock of ours: if it is none at all, this says so.
if there and (mode ~= '' or left == -1) then there = redis.call('GET', lock) end
local room = room_for(mode, there, holders, ms)
if room < 1 then
  if there == $slots and tonumber(mode) then -- the next slot
    local _, ends = next_end(holders, ms)
    left = math.min(left, ends or left)
  end
  reply[1] = more and 0 or left
  return reply
end
-- There is room: a holder's lease ran out, or a message got lost.
if not head then return reply end
local mine = {}
for _, member in ipairs(ARGV) do mine[member] = true end
for _, member in ipairs(leading(queue, mode, room)) do
  if mine[member] then reply[#reply + 1] = member end -- its turn
end
if mine[head] then return reply end
if more then
  reply[1] = 0 -- the head may be one of the dead
  return reply
end
local heard = tonumber(redis.call('ZSCORE', alive, head) or 0)
if heard == 0 or heard > ms + $reservation then -- dead without a trace, or not called yet
  call_first(there, queue, alive, holders)
  heard = ms + $reservation
end
reply[1] = math.max(heard - ms, 0) -- it is the turn of the next then
return reply
