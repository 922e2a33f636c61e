-- Counts a bucket by its index. Expired records do not count, whether or not their entries are still here.
-- KEYS: the bucket's index. ARGV: where to go on among the live ones.
-- Answer: all, failed, then up to 1000 entries of live records; the counts are of completed and failed ones.
local call, index = redis.call, KEYS[1]
local time = call('TIME')
local next15 = string.format('%015.0f', math.floor((time[1] * 1000000 + time[2]) / 1000) + 1)
local function count(mark, below) return call('ZLEXCOUNT', index, '[' .. mark, '(' .. below) end
local all, live, failed = count('a', 'b'), count('l', 'm'), count('f', 'g')
local expired, expired_failed = count('e', 'e' .. next15), count('g', 'g' .. next15)
local members = call('ZRANGEBYLEX', index, '(' .. ARGV[1], '(m', 'LIMIT', 0, 1000)
return { all - live - failed - (expired - expired_failed), failed - expired_failed, members }
