-- Returns the next fencing token of a lock, and, with a least one, a space and the clock; or false, if call returns an
-- error. The token is max(previous + 1, clock, least): greater than every one before, also when Redis has forgotten the
-- previous one. It remembers that for as long as this owner may ask again, at least.
local function next_token(call, fence, ttl, least, now)
  local token = now
  if least > now then token = least end
  local keep = tonumber(ttl) > $retention and ttl or '$retention'
  local previous = call('SET', fence, token, 'PX', keep, 'GET')
  if type(previous) == 'string' and (#previous ~= #token or previous >= token) then
    token = string.format('%.0f', math.max(tonumber(token), tonumber(previous) + 1))
    previous = call('SET', fence, token, 'PX', keep)
  end
  if type(previous) == 'table' and previous.err then return false end
  if least == '' then return token end
  return token .. ' ' .. now
end

-- The clock in us, as text: numbers of this size take longer to print than anything else here.
local function clock()
  local time = redis.call('TIME')
  return time[1] .. string.sub('00000' .. time[2], -6)
end
