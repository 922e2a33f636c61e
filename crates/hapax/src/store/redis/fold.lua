-- Takes records from a bucket's log into its index, and what expired records left in the index out of it.
--
-- KEYS: the bucket's index, its log, its count of removals, then the records that the log begins with. ARGV: how many expired
-- entries to take out; `all`, or `gone`: what is still there goes to the end of the log and not into the index.
-- Answer: how many records had expired, how many entries of the log were dealt with.
--
-- Invariant: a record and its mark (36: whether it is in the index) change with its entries, see `transition.lua`.
local call, sub, index, log = redis.call, string.sub, KEYS[1], KEYS[2]
local time = call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local ids = call('LRANGE', log, 0, #KEYS - 4)
local dealt, missing, add, added, back = 0, 0, {}, {}, {}
local function flush()
  if not added[1] then return end
  call('ZADD', index, unpack(add))
  for i = 1, #added do call('SETRANGE', added[i], 35, '1') end
  add, added = {}, {}
end
for i = 1, #ids do
  local key = KEYS[i + 3]
  -- Another process may have been here since the log was read.
  if sub(key, -32) ~= ids[i] then break end
  local head = call('GETRANGE', key, 0, 188)
  dealt = i
  if head == '' or sub(head, 36, 36) == '1' then
    missing = missing + 1
  elseif ARGV[2] == 'gone' then
    back[#back + 1] = ids[i]
  else
    local id, tags, state = sub(head, 83, 98) .. ids[i], sub(head, 154, 189), sub(head, 2, 2)
    local members = { 'a' .. id, 't' .. sub(tags, 1, 12) .. id, 'u' .. sub(tags, 13, 24) .. id }
    if sub(tags, 25, 36) ~= '000000000000' then members[4] = 's' .. sub(tags, 25, 36) .. id end
    if state == 'P' or state == 'D' then
      members[#members + 1] = 'l' .. id
    else
      local expires = sub(head, 53, 67)
      if expires ~= '000000000000000' then
        members[#members + 1] = 'e' .. expires .. id .. tags .. state
        if state == 'F' then members[#members + 1] = 'g' .. expires .. id end
      end
      if state == 'F' then members[#members + 1] = 'f' .. id end
    end
    for m = 1, #members do
      add[#add + 1] = 0
      add[#add + 1] = members[m]
    end
    added[#added + 1] = key
    if #added == 64 then flush() end
  end
end
flush()
if dealt > 0 then call('LTRIM', log, dealt, -1) end
if back[1] then call('RPUSH', log, unpack(back)) end
local gone = 0
if missing > 0 then
  -- Some are missing because they were removed.
  local removed = math.min(missing, tonumber(call('GET', KEYS[3]) or '0'))
  if removed > 0 then call('DECRBY', KEYS[3], removed) end
  gone = missing - removed
end
local expired = call('ZRANGEBYLEX', index, '[e', '(e' .. string.format('%015.0f', now + 1), 'LIMIT', 0, tonumber(ARGV[1]))
for i = 1, #expired do
  local member = expired[i]
  local id, tags = sub(member, 17, 64), sub(member, 65, 100)
  call('ZREM', index, member, 'a' .. id, 'f' .. id, 'g' .. sub(member, 2, 64), 't' .. sub(tags, 1, 12) .. id,
    'u' .. sub(tags, 13, 24) .. id, 's' .. sub(tags, 25, 36) .. id)
end
return { gone + #expired, dealt }
