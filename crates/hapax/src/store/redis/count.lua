-- Adds to the counters, once: a repeated request is known by its mark.
-- KEYS: the counters, the mark. ARGV: pairs of a name and a number.
if redis.call('SET', KEYS[2], '1', 'NX', 'PX', 60000) then
  for i = 1, #ARGV, 2 do
    local sum = redis.pcall('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
    -- A counter that is full stays full.
    if type(sum) == 'table' then redis.call('HSET', KEYS[1], ARGV[i], '9223372036854775807') end
  end
end
return 1
