-- Takes the index entries of expired records out, at most ARGV[1] records; the server removes the records itself.
-- KEYS: the bucket's index. Answer: how many records.
local call, sub, index, limit = redis.call, string.sub, KEYS[1], tonumber(ARGV[1])
local time = call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local gone = call('ZRANGEBYLEX', index, '[e', '(e' .. string.format('%015.0f', now + 1), 'LIMIT', 0, limit)
for i = 1, #gone do
  local member = gone[i]
  local id, tags = sub(member, 17, 64), sub(member, 65, 100)
  call('ZREM', index, member, 'a' .. id, 'f' .. id, 'g' .. sub(member, 2, 64), 't' .. sub(tags, 1, 12) .. id,
    'u' .. sub(tags, 13, 24) .. id, 's' .. sub(tags, 25, 36) .. id)
end
return #gone
