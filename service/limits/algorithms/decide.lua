-- One call decides a batch of requests. Every limit of a request passes, or none of them is charged.
--
-- KEYS     one per charge, in request order; a key may come again in a later request, never within one;
--            behind the charges of a request with a token: its record
-- ARGV[1]  now, microseconds since the epoch, 16 digits; 0 = Redis' own clock (tests pass a clock of theirs)
-- ARGV[2]  integers, one text:
--            {<times> <kind> <n> [<at>] [<lease>] {<code> <capacity> <window_us> <a> <b> <c> <cost>}^n}*
--            <times> requests in a row are alike but for their keys
--            kind 0 charges, 1 looks, 2 gives back what was charged at <at> microseconds (0 = now), 3 charges whatever
--            is left and never refuses, 4 renews a lease; + 8 with a token, see once.lua;
--            + 16 with a lease: three integers of 48 bits, behind <at>, under which units of concurrency are held;
--            + 40 settles what was charged with a token, by giving back or charging whatever is left
-- Returns  now, then per charge: remaining units, reset_us, retry_us, next_us (all >= 0)
--            a request is allowed when every retry_us of it is 0; of what gives back or renews a lease, that is
--            told of units which the lease did not hold
--            reset_us until the quota is whole, next_us until one more unit is there
-- Writes   only after every read; each key it writes gets an expiry, a counter of at most 2 windows + 1 s
--
-- An algorithm's file returns a table of functions over a counter s (key, capacity, window, a, b, c):
--   load(s, raw)       from what GET answered (false: none, or not a string)
--   wait(s, cost)      microseconds until cost could pass, 0 = now
--   charge(s, cost)    after wait answered 0
--   debit(s, cost)     whatever wait would answer
--   give(s, cost, at)  undo a charge; true if anything changed
--   holds(s)           only where units are held: whether the lease holds one
--   show(s)            remaining, reset_us
--   save(s)            write, with expiry
local call, sub, fmt = redis.call, string.sub, string.format
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local now = ARGV[1] + 0
if now == 0 then
  local t = call('TIME')
  now = t[1] * 1000000 + t[2]
end

local function expiry_ms(until_us)
  return fmt('%d', max(0, ceil((until_us - now) / 1000)) + 999)
end

local function put(s, value, until_us)
  call('SET', s.key, value, 'PX', expiry_ms(until_us))
end

local lease                                         -- of the request at hand

local makers = {
--@algorithms
}
local made = {}

-- read: the numbers, then every key once
local a, n = {}, 0
for word in string.gmatch(ARGV[2], '%d+') do
  n = n + 1
  a[n] = word + 0
end
local raws = call('MGET', unpack(KEYS))

-- decide, on counters held in memory
local counters, order = {}, {}
local function counter(key, raw, i)
  local s = counters[key]
  if not s then
    local code = a[i]
    if not made[code] then made[code] = makers[code]() end
    s = {
      key = key, alg = made[code], capacity = a[i + 1], window = a[i + 2],
      a = a[i + 3], b = a[i + 4], c = a[i + 5], dirty = false, stale = false,
    }
    counters[key] = s
    order[#order + 1] = s
    s.alg.load(s, raw)
  end
  return s
end

local out, o, k = {now}, 1, 0

local function request(kind, count, at, i)
  local passes = true
  for j = 1, count do
    local from = i + 7 * (j - 1)
    local s = counter(KEYS[k + j], raws[k + j], from)
    local retry = kind > 1 and 0 or s.alg.wait(s, a[from + 6])
    if lease and s.alg.holds then
      if s.alg.holds(s) then retry = 0 elseif kind > 1 then retry = max(1, s.alg.wait(s, 1)) end
    end
    if retry > 0 then passes = false end
    out[o + 4 * (j - 1) + 3] = retry
  end
  for j = 1, count do
    local s, cost = counters[KEYS[k + j]], a[i + 7 * (j - 1) + 6]
    if kind == 0 or kind == 4 then
      if passes and cost > 0 then
        s.alg.charge(s, cost)
        s.dirty = true
      end
    elseif kind == 2 then
      if s.alg.give(s, cost, at) then s.dirty = true end
    elseif kind == 3 and cost > 0 then
      s.alg.debit(s, cost)
      s.dirty = true
    end
    local remaining, reset = s.alg.show(s)
    out[o + 1] = remaining
    out[o + 2] = reset
    out[o + 4] = remaining < s.capacity and s.alg.wait(s, remaining + 1) or 0
    o = o + 4
  end
  k = k + count
end

local i, once, kept = 1, nil, nil
while i <= n do
  local times, kind, count, at = a[i], a[i + 1], a[i + 2], 0
  if times > #KEYS or count > #KEYS then error('no such ask') end     -- before anything is written
  i = i + 3
  if kind > 1 then
    local base = kind % 8
    if base == 2 then
      at = a[i] > 0 and min(a[i], now) or now
      i = i + 1
    end
    if kind % 32 > 15 then
      lease = fmt('%d %d %d', a[i], a[i + 1], a[i + 2])
      i = i + 3
    end
    if kind % 16 > 7 then
      once = once or (function()
--@once
      end)()
      for _ = 1, times do once(base, count, at, i, kind > 31) end
      i, times = i + (kind > 31 and 8 or 6), 0
    end
    kind = base
  end
  for _ = 1, times do request(kind, count, at, i) end
  i, lease = i + 7 * count, nil
end

if i ~= n + 1 or k ~= #KEYS then error('no such asks') end

-- write
for j = 1, #order do
  local s = order[j]
  if s.dirty or s.stale then s.alg.save(s) end
end
for j = 1, kept and #kept or 0 do put(kept[j], kept[j].text, kept[j].until_us) end
return out
