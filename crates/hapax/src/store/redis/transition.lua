-- The transitions of records: a batch of operations of one bucket, one atomic step of the server.
--
-- KEYS: the bucket's index, its epoch, its log, its count of removals, then the record of each operation. All share one
-- hash tag. ARGV: for each operation its letter with what is alike in most, then its arguments.
-- Answer: a string, or one in two parts, for each operation: a letter and what belongs to it (see `op.rs`), or `!` and an
-- error, or `?`; after them the length of the log, when records were added to it.
--
-- `?`: it was sent before without an answer, and what it finds may be what came after its own first time: nobody knows.
--
-- A record is a string: a head of fixed width, then what never changes, the owner, and the body (the result,
-- the error, or the reason of a doubt). Positions below are those of `row.rs`:
--   1 version, 2 state (P D C F), 3-34 attempt, 35 whether somebody waits, 36 whether it is in the index, 37-52 duration,
--   53-67 lease or expiry, 68-82 executed, 83-98 place in the order of age, 99-113 started, 114-123 attempts,
--   124-139 presented, 140-147 length of what never changes, 148-153 length of the owner, 154-189 tags of action,
--   target, signal.
--
-- A new record's id goes to the end of the log; `fold.lua` takes it from there into the index when somebody asks. Invariants:
-- a record that is not in the index is in the log; one that is changes together with its entries; an entry whose record
-- the server has expired says so by itself (`e`).
--
-- What most calls do, a begin of a new key, its end and a begin of a completed one, comes first and makes few values: with
-- many callers, the time that this takes is what limits them.

local call, sub, fmt = redis.call, string.sub, string.format
local NEVER, NONE, MAX = '000000000000000', '----------------', 253402207199999
local time = call('TIME')
-- Microseconds in 16 digits, milliseconds in 15.
local us = time[1] .. sub(time[2] + 1000000, 2)
local now15 = '00' .. sub(us, 1, 13)
-- What an answer with a record begins with. The record comes beside it: every byte of a new string costs Lua about a
-- nanosecond and a half, whatever it is made of.
local exists = 'X' .. now15
local answers, fresh, a, slow, raise, length, seen = {}, {}, 1, nil, false, nil, nil
-- What was made of the last begin's and the last end's first argument: neighbours mostly have the same.
local begins, started, stamp, ends, expires15, expires, done

-- All but the two common cases.
local sizes
local function make_slow()
  sizes = { G = 1, H = 3, W = 2, S = 7, M = 7, R = 1, V = 3, P = 2, L = 2 }
  local index, removals = KEYS[1], KEYS[4]
  local function at(millis)
    return fmt('%015.0f', math.min(now15 + millis, MAX))
  end

  -- What the record is now, and its value: nil when it is absent; a third value when it has expired but is still here.
  local function read(key)
    local value = call('GET', key)
    if not value then return nil end
    -- What is no record is not taken for an absent one.
    if sub(value, 1, 1) ~= '2' or #value < 189 then error('NEWER', 0) end
    local state = sub(value, 2, 2)
    if state == 'P' then
      if sub(value, 53, 67) <= now15 then
        -- Written down, so that no step back of the clock revives it.
        call('SETRANGE', key, 1, 'D')
        return 'D', '2D' .. sub(value, 3)
      end
    elseif state ~= 'D' then
      if state ~= 'C' and state ~= 'F' then error('NEWER', 0) end
      local till = sub(value, 53, 67)
      if till ~= NEVER and till <= now15 then return nil, nil, value end
    end
    return state, value
  end

  -- Takes what leads to a record away, the record being removed or, when it has expired, written over.
  local function forget(key, value, has_expired)
    if sub(value, 36, 36) == '0' then
      -- What the log leads to is not there: not because it expired.
      if not has_expired then call('INCR', removals) end
      return
    end
    local id, tags, state = sub(value, 83, 98) .. sub(key, -32), sub(value, 154, 189), sub(value, 2, 2)
    local t, u, s = 't' .. sub(tags, 1, 12) .. id, 'u' .. sub(tags, 13, 24) .. id, 's' .. sub(tags, 25, 36) .. id
    if state == 'P' or state == 'D' then
      call('ZREM', index, 'l' .. id, 'a' .. id, t, u, s)
    else
      local till = sub(value, 53, 67)
      call('ZREM', index, 'e' .. till .. id .. tags .. state, 'g' .. till .. id, 'f' .. id, 'a' .. id, t, u, s)
    end
  end

  local function wake(key, value)
    if sub(value, 35, 35) == '1' then
      -- Without the permission to publish, waiters find out by looking.
      redis.pcall('PUBLISH', sub(index, 1, string.find(index, '{', 1, true) - 1) .. 'wake', key)
    end
  end

  -- Where the body begins.
  local function kept(value)
    return 189 + tonumber(sub(value, 140, 147)) + tonumber(sub(value, 148, 153))
  end

  -- Records a result or an error over a live record.
  local function record(key, value, state, attempt, ttl, duration, body)
    local till = NEVER
    if ttl ~= '0' then till = at(ttl) end
    local new = '2' .. state .. attempt .. '0' .. sub(value, 36, 36) .. duration .. till .. now15
      .. sub(value, 83, kept(value)) .. body
    if till == NEVER then
      call('SET', key, new)
    else
      call('SET', key, new, 'PXAT', fmt('%.0f', till))
    end
    if sub(value, 36, 36) == '1' then
      local id, tags = sub(value, 83, 98) .. sub(key, -32), sub(value, 154, 189)
      call('ZREM', index, 'l' .. id)
      if till ~= NEVER then call('ZADD', index, 0, 'e' .. till .. id .. tags .. state) end
      if state == 'F' then
        call('ZADD', index, 0, 'f' .. id)
        if till ~= NEVER then call('ZADD', index, 0, 'g' .. till .. id) end
      end
    end
    wake(key, value)
    return new, till
  end

  return function(key, a)
    local code = sub(ARGV[a], 1, 1)
    if code == 'B' then
      -- B, may insert, whether it was sent before, lease in 15 digits, take over; head of a new record; rest of it
      local option, head, rest = ARGV[a], ARGV[a + 1], ARGV[a + 2]
      local attempt, insert = sub(head, 3, 34), sub(option, 2, 2) == '1'
      local lease = at(sub(option, 4, 18))
      local state, value, expired = read(key)
      if state then
        local holder = sub(value, 3, 34)
        if state == 'P' and holder == attempt then
          -- The same begin again: its first answer was lost on the way.
          return 'S' .. sub(value, 99, 113) .. sub(value, 114, 123)
        end
        -- Begun by the first time, and others may have seen the doubt: it cannot be brought back.
        if state == 'D' and holder == attempt and sub(option, 3, 3) == '1' then return '?' end
        if state ~= 'D' or holder ~= sub(option, 19) then return { exists, value } end
        local attempts = fmt('%010.0f', sub(value, 114, 123) + 1)
        local fixed = tonumber(sub(rest, 1, 8))
        call('SET', key, sub(head, 1, 35) .. sub(value, 36, 52) .. lease .. sub(value, 68, 98) .. now15 .. attempts
          .. fmt('%016.0f', sub(value, 124, 139) + 1) .. sub(value, 140, 147) .. sub(rest, 9, 14)
          .. sub(value, 154, 189 + sub(value, 140, 147)) .. sub(rest, 51 + fixed))
        wake(key, value)
        return 'S' .. now15 .. attempts
      end
      if not insert then return 'N' end
      if expired then forget(key, expired, true) end
      call('SET', key, head .. lease .. NEVER .. us .. now15 .. '00000000010000000000000001' .. rest)
      fresh[#fresh + 1] = sub(key, -32)
      return 'S' .. now15 .. '0000000001'
    end

    if code == 'E' then
      -- E, state, whether it was sent before, time to live; head of the record as it was begun; new head; body
      local option = ARGV[a]
      local kind, sent, attempt = sub(option, 2, 2), sub(option, 3, 3) == '1', sub(ARGV[a + 1], 3, 34)
      local state, value = read(key)
      if not state or sub(value, 3, 34) ~= attempt then
        if not sent then return 'L' .. (state or '-') end
        -- The key is free, as it was to be, whoever freed it.
        if kind == 'R' and not state then return 'D' .. now15 .. NEVER end
        return '?'
      end
      if state == 'C' or state == 'F' then
        if kind == state then return 'D' .. sub(value, 68, 82) .. sub(value, 53, 67) end
        -- A doubt may have been left first, and ended by this attempt's late answer.
        if kind == 'D' and sent then return '?' end
        return 'L' .. state
      end
      if kind == 'R' then
        call('DEL', key)
        forget(key, value)
        wake(key, value)
        return 'D' .. now15 .. NEVER
      end
      if kind == 'D' then
        call('SET', key, '2D' .. attempt .. '0' .. sub(value, 36, 52) .. NEVER .. sub(value, 68, kept(value)) .. ARGV[a + 3])
        wake(key, value)
        return 'D' .. now15 .. NEVER
      end
      local _, till = record(key, value, kind, attempt, sub(option, 4), sub(ARGV[a + 2], 37, 52), ARGV[a + 3])
      return 'D' .. now15 .. till
    end

    if code == 'G' then
      local state, value = read(key)
      return state and { exists, value } or 'N'
    end

    if code == 'H' then
      -- attempt, lease
      local head = call('GETRANGE', key, 0, 66)
      if sub(head, 3, 34) ~= ARGV[a + 1] then return 'L' end
      if sub(head, 2, 2) == 'D' then return 'D' end
      if sub(head, 2, 2) ~= 'P' then return 'L' end
      if sub(head, 53, 67) <= now15 then
        call('SETRANGE', key, 1, 'D')
        return 'D'
      end
      call('SETRANGE', key, 52, at(ARGV[a + 2]))
      return 'R'
    end

    if code == 'W' then
      -- attempt
      local head = call('GETRANGE', key, 0, 66)
      if sub(head, 2, 2) ~= 'P' or sub(head, 3, 34) ~= ARGV[a + 1] then return 'N' end
      local until15 = sub(head, 53, 67)
      if until15 <= now15 then
        call('SETRANGE', key, 1, 'D')
        return 'N'
      end
      if sub(head, 35, 35) ~= '1' then call('SETRANGE', key, 34, '1') end
      return 'P' .. fmt('%015.0f', until15 - now15)
    end

    if code == 'S' then
      -- kind, by that attempt, new attempt, time to live, whether it was sent before, body
      local kind, of, token, sent = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 5] == '1'
      local state, value = read(key)
      if not state then
        -- As it was to be, whoever settled it.
        if kind == 'N' and sent then return 'D' end
        return sent and '?' or 'N'
      end
      local holder = sub(value, 3, 34)
      if kind == 'H' and state == 'C' and holder == token then return 'R' .. now15 .. value end
      -- While that attempt holds the key, the first time has changed nothing.
      if sent and holder ~= of then return '?' end
      if state ~= 'D' or (of ~= '' and of ~= holder) then return { exists, value } end
      if kind == 'N' then
        call('DEL', key)
        forget(key, value)
        wake(key, value)
        return 'D'
      end
      return 'R' .. now15 .. record(key, value, 'C', token, ARGV[a + 4], NONE, ARGV[a + 6])
    end

    if code == 'M' then
      -- attempt, time to live, may insert, whether it was sent before, rest of a new record, body
      local attempt = ARGV[a + 1]
      local state, value, expired = read(key)
      if state == 'D' then
        return 'R' .. now15 .. record(key, value, 'C', attempt, ARGV[a + 2], NONE, ARGV[a + 6])
      elseif state then
        if state == 'C' and sub(value, 3, 34) == attempt then return 'R' .. now15 .. value end
        if ARGV[a + 4] == '1' then return '?' end
        return { exists, value }
      end
      if ARGV[a + 3] ~= '1' then return 'N' end
      if expired then forget(key, expired, true) end
      local new = '2C' .. attempt .. '00' .. NONE .. NEVER .. now15 .. us .. now15 .. '00000000000000000000000001' .. ARGV[a + 5]
      new = record(key, new, 'C', attempt, ARGV[a + 2], NONE, ARGV[a + 6])
      fresh[#fresh + 1] = sub(key, -32)
      return 'R' .. now15 .. new
    end

    if code == 'R' then
      local state, value = read(key)
      if not state then return 'N' end
      if state == 'P' or state == 'D' then return { exists, value } end
      call('DEL', key)
      forget(key, value)
      raise = true
      return 'R'
    end

    if code == 'V' then
      -- place in the order of age: only that very record goes; whether it was sent before
      local state, value, expired = read(key)
      value = value or expired
      if not value or sub(value, 83, 98) ~= ARGV[a + 1] then return ARGV[a + 2] == '1' and 'U' or 'N' end
      if state == 'P' or state == 'D' then return 'K' end
      call('DEL', key)
      forget(key, value, expired)
      raise = true
      return expired and 'N' or 'R'
    end

    if code == 'L' then
      -- place: whether that very record is in progress or in doubt
      local head = call('GETRANGE', key, 0, 97)
      local state = sub(head, 2, 2)
      if sub(head, 83, 98) ~= ARGV[a + 1] or (state ~= 'P' and state ~= 'D') then return 'N' end
      return (state == 'P' and sub(head, 53, 67) > now15) and 'P' or 'D'
    end

    if code == 'P' then
      -- presentations to add
      local head = call('GETRANGE', key, 123, 138)
      if head ~= '' then
        call('SETRANGE', key, 123, fmt('%016.0f', math.min(head + ARGV[a + 1], 9007199254740991)))
      end
      return 'R'
    end

    return '!no operation ' .. code
  end
end

for i = 5, #KEYS do
  local key, option = KEYS[i], ARGV[a]
  local code, answer, size = sub(option, 1, 1), nil, nil
  if code == 'B' then
    size = 3
    if option ~= begins then
      begins = option
      stamp = fmt('%015.0f', math.min(now15 + sub(option, 4, 18), MAX)) .. NEVER .. us .. now15 .. '00000000010000000000000001'
      started = sub(option, 2, 2) == '1' and 'S' .. now15 .. '0000000001'
    end
    if started then
      -- Where the last one was recorded, this one may be, too: a look is cheaper than a record made for nothing.
      local value = seen and redis.pcall('GET', key)
      if not value then
        if call('SET', key, ARGV[a + 1] .. stamp .. ARGV[a + 2], 'NX') then
          fresh[#fresh + 1] = sub(key, -32)
          answer = started
        else
          value = redis.pcall('GET', key)
        end
      end
      seen = type(value) == 'string' and sub(value, 1, 2) == '2C' and #value >= 189
      if seen then
        local till = sub(value, 53, 67)
        if till > now15 or till == NEVER then answer = { exists, value } end
      end
    end
  elseif code == 'E' then
    size = 4
    if option ~= ends then
      ends, expires = option, nil
      local kind, ttl = sub(option, 2, 2), sub(option, 4)
      if (kind == 'C' or kind == 'F') and ttl ~= '0' then
        expires = math.min(now15 + ttl, MAX)
        expires15 = fmt('%015.0f', expires) .. now15
        expires = fmt('%.0f', expires)
        done = 'D' .. now15 .. sub(expires15, 1, 15)
      end
    end
    if expires then
      -- Live by this very attempt, waited for by nobody, and not in the index.
      local value = redis.pcall('GET', key)
      if type(value) == 'string' and sub(value, 1, 36) == ARGV[a + 1] then
        call('SET', key, ARGV[a + 2] .. expires15 .. sub(value, 83) .. ARGV[a + 3], 'PXAT', expires)
        answer = done
      end
    end
  end
  if not answer then
    slow = slow or make_slow()
    local ok
    ok, answer = pcall(slow, key, a)
    if not ok then answer = '!' .. (type(answer) == 'table' and answer.err or tostring(answer)) end
    size = size or sizes[code]
  end
  answers[i - 4] = answer
  a = a + size
end
if raise then call('INCR', KEYS[2]) end
if fresh[1] then
  length = redis.pcall('RPUSH', KEYS[3], unpack(fresh))
  if type(length) ~= 'number' then
    -- Records that nothing would lead to must not stay.
    for i = 1, #fresh do call('DEL', sub(KEYS[3], 1, -2) .. 'r:' .. fresh[i]) end
    return length
  end
  answers[#answers + 1] = length
end
return answers
