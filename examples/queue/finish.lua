-- Notes the result of a job, and takes it from the list: both, or nothing for a token that is too small.
-- KEYS: list, fence, results. ARGV: token, job, result.
local fence = redis.call('GET', KEYS[2])
if fence and (#fence > #ARGV[1] or #fence == #ARGV[1] and fence > ARGV[1]) then
	return redis.error_reply('DEPOSED by ' .. fence)
end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('LREM', KEYS[1], -1, ARGV[2])
return 'ok'
