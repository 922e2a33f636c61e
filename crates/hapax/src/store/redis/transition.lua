-- The transitions of records: a batch of operations of one bucket, one atomic step of the server.
--
-- KEYS: the bucket's index, its epoch, then the record of each operation. All share one hash tag.
-- ARGV: for each operation its letter and its arguments, one operation after the other.
-- Answer: a string for each operation: a letter and what belongs to it (see `op.rs`), or `!` and an error.
--
-- A record is a string: a head of fixed width, then what never changes, the owner, and the body (the result,
-- the error, or the reason of a doubt). Positions below are those of `row.rs`:
--   1 version, 2 state (P D C F), 3 whether somebody waits, 4-35 attempt, 36-50 lease or expiry, 51-65 executed,
--   66-81 place in the order of age, 82-96 started, 97-106 attempts, 107-122 presented, 123-138 duration,
--   139-146 length of what never changes, 147-152 length of the owner, 153-188 tags of action, target, signal.
--
-- Invariant: a record and its index entries change in the same step; an entry whose record the server has expired
-- says so by itself (`e`), and goes with the next new record of its bucket or the next sweep.

local call, sub, fmt = redis.call, string.sub, string.format
local index = KEYS[1]
local time = call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)
local now15 = fmt('%015.0f', now)
local NEVER, NONE, MAX = '000000000000000', '----------------', 253402207199999
local raise = false

-- What the record is now, and its value: nil when it is absent; a third value when it has expired but is still here.
local function read(key)
  local value = call('GET', key)
  if not value then return nil end
  -- What is no record is not taken for an absent one.
  if sub(value, 1, 1) ~= '1' or #value < 188 then error('NEWER', 0) end
  local state = sub(value, 2, 2)
  if state == 'P' then
    if sub(value, 36, 50) <= now15 then
      -- Written down, so that no step back of the clock revives it.
      call('SETRANGE', key, 1, 'D')
      return 'D', '1D' .. sub(value, 3)
    end
  elseif state ~= 'D' then
    if state ~= 'C' and state ~= 'F' then error('NEWER', 0) end
    local expires = sub(value, 36, 50)
    if expires ~= NEVER and expires <= now15 then return nil, nil, value end
  end
  return state, value
end

-- The entries that every record has, whatever its state.
local function entries(id, tags)
  local signal = sub(tags, 25, 36)
  if signal == '000000000000' then
    return 'a' .. id, 't' .. sub(tags, 1, 12) .. id, 'u' .. sub(tags, 13, 24) .. id
  end
  return 'a' .. id, 't' .. sub(tags, 1, 12) .. id, 'u' .. sub(tags, 13, 24) .. id, 's' .. signal .. id
end

-- Takes a record out of the index.
local function forget(key, value)
  local id, tags, state = sub(value, 66, 81) .. sub(key, -32), sub(value, 153, 188), sub(value, 2, 2)
  if state == 'P' or state == 'D' then
    call('ZREM', index, 'l' .. id, entries(id, tags))
  else
    local expires = sub(value, 36, 50)
    call('ZREM', index, 'e' .. expires .. id .. tags .. state, 'g' .. expires .. id, 'f' .. id, entries(id, tags))
  end
end

-- Takes entries of a few expired records out, more than one new record puts in; how many records.
local function collect()
  local gone = call('ZRANGEBYLEX', index, '[e', '(e' .. fmt('%015.0f', now + 1), 'LIMIT', 0, 2)
  for i = 1, #gone do
    local member = gone[i]
    local id = sub(member, 17, 64)
    call('ZREM', index, member, 'g' .. sub(member, 2, 64), 'f' .. id, entries(id, sub(member, 65, 100)))
  end
  return #gone
end

local function wake(key, value)
  if sub(value, 3, 3) == '1' then
    -- Without the permission to publish, waiters find out by looking.
    redis.pcall('PUBLISH', sub(index, 1, string.find(index, '{', 1, true) - 1) .. 'wake', key)
  end
end

-- Records a result or an error over a live record.
local function record(key, value, state, attempt, ttl, duration, body)
  local expires, expires15 = tonumber(ttl), NEVER
  local id, tags = sub(value, 66, 81) .. sub(key, -32), sub(value, 153, 188)
  if expires > 0 then expires15 = fmt('%015.0f', math.min(now + expires, MAX)) end
  local kept = 188 + tonumber(sub(value, 139, 146)) + tonumber(sub(value, 147, 152))
  local new = '1' .. state .. '0' .. attempt .. expires15 .. now15 .. sub(value, 66, 122) .. duration
    .. sub(value, 139, kept) .. body
  call('ZREM', index, 'l' .. id)
  if expires > 0 then
    call('SET', key, new, 'PXAT', fmt('%.0f', expires15))
    if state == 'F' then
      call('ZADD', index, 0, 'e' .. expires15 .. id .. tags .. 'F', 0, 'g' .. expires15 .. id, 0, 'f' .. id)
    else
      call('ZADD', index, 0, 'e' .. expires15 .. id .. tags .. 'C')
    end
  else
    call('SET', key, new)
    if state == 'F' then call('ZADD', index, 0, 'f' .. id) end
  end
  wake(key, value)
  return new, expires15
end

local function add(id, tags, first)
  local a, t, u, s = entries(id, tags)
  if s then
    call('ZADD', index, 0, first, 0, a, 0, t, 0, u, 0, s)
  else
    call('ZADD', index, 0, first, 0, a, 0, t, 0, u)
  end
end

local function step(code, key, a, place)
  if code == 'B' then
    -- attempt, lease, take over, may insert, lengths, tags, what never changes, owner
    local attempt, owner = ARGV[a + 1], ARGV[a + 8]
    local seq = us + place
    local started = fmt('%015.0f', math.floor(seq / 1000))
    local lease = fmt('%015.0f', math.min(now + ARGV[a + 2], MAX))
    local id = fmt('%016.0f', seq) .. sub(key, -32)
    local fresh = '1P0' .. attempt .. lease .. NEVER .. sub(id, 1, 16) .. started .. '00000000010000000000000001' .. NONE
      .. ARGV[a + 5] .. ARGV[a + 6] .. ARGV[a + 7] .. owner
    local insert = ARGV[a + 4] == '1'
    if not insert or not call('SET', key, fresh, 'NX') then
      local state, value, expired = read(key)
      if state then
        local holder = sub(value, 4, 35)
        if state == 'P' and holder == attempt then
          -- The same begin again: its first answer was lost on the way.
          return 'S' .. sub(value, 97, 106) .. sub(value, 82, 96) .. '0'
        end
        if state ~= 'D' or holder ~= ARGV[a + 3] then return 'X' .. now15 .. value end
        local attempts = fmt('%010.0f', sub(value, 97, 106) + 1)
        call('SET', key, '1P0' .. attempt .. lease .. sub(value, 51, 81) .. started .. attempts
          .. fmt('%016.0f', sub(value, 107, 122) + 1) .. sub(value, 123, 146) .. sub(ARGV[a + 5], 9, 14)
          .. sub(value, 153, 188 + sub(value, 139, 146)) .. owner)
        wake(key, value)
        return 'S' .. attempts .. started .. '0'
      end
      if not insert then return 'N' end
      if expired then forget(key, expired) end
      call('SET', key, fresh)
    end
    local gone = collect()
    add(id, ARGV[a + 6], 'l' .. id)
    return 'S0000000001' .. started .. gone
  end

  if code == 'G' then
    local state, value = read(key)
    return state and 'X' .. now15 .. value or 'N'
  end

  if code == 'E' then
    -- state, attempt, time to live, duration, whether it was sent before, body
    local kind, attempt = ARGV[a + 1], ARGV[a + 2]
    local state, value = read(key)
    if not state then
      -- The first time may have freed the key.
      if kind == 'R' and ARGV[a + 5] == '1' then return 'D' .. now15 .. NEVER end
      return 'L-'
    end
    if sub(value, 4, 35) ~= attempt then return 'L' .. state end
    if state == 'C' or state == 'F' then
      if kind == state then return 'D' .. sub(value, 51, 65) .. sub(value, 36, 50) end
      return 'L' .. state
    end
    if kind == 'R' then
      call('DEL', key)
      forget(key, value)
      wake(key, value)
      return 'D' .. now15 .. NEVER
    end
    if kind == 'D' then
      local kept = 188 + tonumber(sub(value, 139, 146)) + tonumber(sub(value, 147, 152))
      call('SET', key, '1D0' .. attempt .. NEVER .. sub(value, 51, kept) .. ARGV[a + 6])
      wake(key, value)
      return 'D' .. now15 .. NEVER
    end
    local _, expires = record(key, value, kind, attempt, ARGV[a + 3], ARGV[a + 4], ARGV[a + 6])
    return 'D' .. now15 .. expires
  end

  if code == 'H' then
    -- attempt, lease
    local head = call('GETRANGE', key, 0, 49)
    if sub(head, 4, 35) ~= ARGV[a + 1] then return 'L' end
    if sub(head, 2, 2) == 'D' then return 'D' end
    if sub(head, 2, 2) ~= 'P' then return 'L' end
    if sub(head, 36, 50) <= now15 then
      call('SETRANGE', key, 1, 'D')
      return 'D'
    end
    call('SETRANGE', key, 35, fmt('%015.0f', math.min(now + ARGV[a + 2], MAX)))
    return 'R'
  end

  if code == 'W' then
    -- attempt
    local head = call('GETRANGE', key, 0, 49)
    if sub(head, 2, 2) ~= 'P' or sub(head, 4, 35) ~= ARGV[a + 1] then return 'N' end
    local until15 = sub(head, 36, 50)
    if until15 <= now15 then
      call('SETRANGE', key, 1, 'D')
      return 'N'
    end
    if sub(head, 3, 3) ~= '1' then call('SETRANGE', key, 2, '1') end
    return 'P' .. fmt('%015.0f', until15 - now)
  end

  if code == 'S' then
    -- kind, by that attempt, new attempt, time to live, whether it was sent before, body
    local kind, of, token = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3]
    local state, value = read(key)
    if not state then
      if kind == 'N' and ARGV[a + 5] == '1' then return 'D' end
      return 'N'
    end
    local holder = sub(value, 4, 35)
    if kind == 'H' and state == 'C' and holder == token then return 'R' .. now15 .. value end
    if state ~= 'D' or (of ~= '' and of ~= holder) then return 'X' .. now15 .. value end
    if kind == 'N' then
      call('DEL', key)
      forget(key, value)
      wake(key, value)
      return 'D'
    end
    return 'R' .. now15 .. record(key, value, 'C', token, ARGV[a + 4], NONE, ARGV[a + 6])
  end

  if code == 'M' then
    -- attempt, time to live, may insert, lengths, tags, what never changes, owner, body
    local attempt = ARGV[a + 1]
    local state, value, expired = read(key)
    if state == 'D' then
      return 'R' .. now15 .. record(key, value, 'C', attempt, ARGV[a + 2], NONE, ARGV[a + 8])
    elseif state then
      if state == 'C' and sub(value, 4, 35) == attempt then return 'R' .. now15 .. value end
      return 'X' .. now15 .. value
    end
    if ARGV[a + 3] ~= '1' then return 'N' end
    if expired then forget(key, expired) end
    local seq = us + place
    local id, tags = fmt('%016.0f', seq) .. sub(key, -32), ARGV[a + 5]
    local fresh = '1C0' .. attempt .. NEVER .. now15 .. sub(id, 1, 16) .. fmt('%015.0f', math.floor(seq / 1000))
      .. '00000000000000000000000001' .. NONE .. ARGV[a + 4] .. tags .. ARGV[a + 6] .. ARGV[a + 7]
    add(id, tags, 'l' .. id)
    collect()
    return 'R' .. now15 .. record(key, fresh, 'C', attempt, ARGV[a + 2], NONE, ARGV[a + 8])
  end

  if code == 'R' then
    local state, value = read(key)
    if not state then return 'N' end
    if state == 'P' or state == 'D' then return 'X' .. now15 .. value end
    call('DEL', key)
    forget(key, value)
    raise = true
    return 'R'
  end

  if code == 'V' then
    -- place in the order of age: only that very record goes
    local state, value, expired = read(key)
    value = value or expired
    if not value or sub(value, 66, 81) ~= ARGV[a + 1] then return 'N' end
    if state == 'P' or state == 'D' then return 'K' end
    call('DEL', key)
    forget(key, value)
    raise = true
    return expired and 'N' or 'R'
  end

  if code == 'L' then
    -- place: whether that very record is in progress or in doubt
    local head = call('GETRANGE', key, 0, 80)
    local state = sub(head, 2, 2)
    if sub(head, 66, 81) ~= ARGV[a + 1] or (state ~= 'P' and state ~= 'D') then return 'N' end
    return (state == 'P' and sub(head, 36, 50) > now15) and 'P' or 'D'
  end

  if code == 'P' then
    -- presentations to add
    local head = call('GETRANGE', key, 106, 121)
    if head ~= '' then
      call('SETRANGE', key, 106, fmt('%016.0f', math.min(head + ARGV[a + 1], 9007199254740991)))
    end
    return 'R'
  end

  return '!no operation ' .. code
end

local size = { B = 9, G = 1, E = 7, H = 3, W = 2, S = 7, M = 9, R = 1, V = 2, P = 2, L = 2 }
local answers, a = {}, 1
for i = 3, #KEYS do
  local code = ARGV[a]
  local ok, answer = pcall(step, code, KEYS[i], a, i - 3)
  if not ok then answer = '!' .. (type(answer) == 'table' and answer.err or tostring(answer)) end
  answers[i - 2] = answer
  a = a + size[code]
end
if raise then call('INCR', KEYS[2]) end
return answers
