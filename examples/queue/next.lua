-- Returns the job to be done, and leaves it in the list. Whoever comes with a smaller token later is refused.
-- KEYS: list, fence, results. ARGV: token.
local fence = redis.call('GET', KEYS[2])
-- Tokens have up to 64 bits, and Lua's numbers 53: compare them as text.
if fence and (#fence > #ARGV[1] or #fence == #ARGV[1] and fence > ARGV[1]) then
	return redis.error_reply('DEPOSED by ' .. fence)
end
redis.call('SET', KEYS[2], ARGV[1])
return redis.call('LINDEX', KEYS[1], -1)
