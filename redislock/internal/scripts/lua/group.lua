-- Several requests in one call: each as a script of its own would do it, with its own result or error.
--
-- KEYS  those of each request, one after the other
-- ARGV  for each request: three characters, which are its script ('a': acquire.lua, else release.lua), how many keys
--       it has, and how many arguments, from '0' on; and then its arguments
-- Returns for each request what its script returns, or {the text of the error}: errors within a reply are not what
-- clients expect.
local time
local function clock()
  time = time or redis.call('TIME')
  return time
end

local function acquire(KEYS, ARGV)
$acquire
end

local function release(KEYS, ARGV)
$release
end

local replies, key, word = {}, 1, 1
while word <= #ARGV do
  local script, keys, words = string.byte(ARGV[word], 1, 3)
  keys, words = keys - 48, words - 48
  local run = script == 97 and acquire or release
  local well, reply = pcall(run, {unpack(KEYS, key, key + keys - 1)}, {unpack(ARGV, word + 1, word + words)})
  if not well then
    if type(reply) == 'table' then reply = reply.err end -- since Redis 7
    -- Nothing has been written yet. Clients drop the connection if this is the answer, as they should.
    if string.find(reply, 'READONLY', 1, true) then return {err = reply} end
    reply = {reply}
  end
  replies[#replies + 1] = reply
  key, word = key + keys, word + words + 1
end
return replies
