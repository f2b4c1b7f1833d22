-- Requests that carry a token: the first answer is kept, and comes again instead of a second charge.
-- What was charged with a token may be settled: once, and as long as it is open.
--
-- Head     <keep_us> <f1> <f2> <f3> <f4> <counters>, before the charges: how long the answer is kept, four times 32 bits
--            that stand for the content of the request, 48 bits that stand for its counters;
--            to settle, also <settled> <open_us>: the true cost + 1, and how long after the charge that may be
-- Returns  before the standings of the request: outcome, and the instant of the first decision in us
--            outcome 0 decided, 1 known: the kept answer, 2 known with other content, or settled at another cost,
--            3 nothing to settle: never charged, or no longer open; with 2 and 3 zeros, and nothing was done
-- Record   string, integers: <until_us> <f1> <f2> <f3> <f4> <counters> <at_us> <settled> {<standing>}*;
--            <settled> 0 = it was not; expires at until_us
kept = {}
local records = {}

local function record(key, raw)
  local r = records[key]
  if r == nil then
    r = false
    if raw then
      r = {}
      for word in string.gmatch(raw, '%d+') do r[#r + 1] = word + 0 end
      if r[1] <= now then r = false end
    end
    records[key] = r
  end
  return r
end

local function keep(key, head, settled, standings)
  local r = {now + a[head]}
  for j = 1, 5 do r[1 + j] = a[head + j] end
  r[7], r[8] = now, settled
  for j = 1, standings do r[8 + j] = out[o - standings + j] end
  records[key] = r
  local words = {}
  for j = 1, #r do words[j] = fmt('%d', r[j]) end
  kept[#kept + 1] = {key = key, text = table.concat(words, ' '), until_us = r[1]}
end

local function same(r, head)
  for j = 1, 4 do
    if r[1 + j] ~= a[head + j] then return false end
  end
  return true
end

local function passed(r)
  for j = 11, #r, 4 do
    if r[j] > 0 then return false end
  end
  return true
end

-- answer with what was kept, or zeros
local function tell(r, count)
  for j = 1, 4 * count do out[o + j] = r and r[8 + j] or 0 end
  o, k = o + 4 * count, k + count
end

local function settle(kind, count, head)
  local key, settled, outcome = KEYS[k + count + 1], a[head + 6], 3
  local r = record(key, raws[k + count + 1])
  if r and same(r, head) and r[6] == a[head + 5] and passed(r) then
    if r[8] > 0 then
      outcome = r[8] == settled and 1 or 2
    elseif now < r[7] + a[head + 7] then
      outcome = 0
    end
  end
  out[o + 1], out[o + 2] = outcome, outcome == 1 and r[7] or now
  o = o + 2
  if outcome == 0 then
    request(kind, count, min(r[7], now), head + 8)
    keep(key, head, settled, 4 * count)
  else
    tell(outcome == 1 and r, count)
  end
  k = k + 1
end

return function(kind, count, at, head, settles)
  if settles then return settle(kind, count, head) end
  local key, charges = KEYS[k + count + 1], head + 6
  local r = record(key, raws[k + count + 1])
  local first = o
  out[o + 1], out[o + 2] = 0, now
  o = o + 2
  if not r then
    request(kind, count, at, charges)
    keep(key, head, 0, 4 * count)
  elseif not same(r, head) then
    out[first + 1] = 2
    tell(false, count)
  elseif r[6] == a[head + 5] then
    out[first + 1], out[first + 2] = 1, r[7]
    tell(r, count)
  else                                              -- other limits than then: the same verdict, on these as they stand
    out[first + 1] = 1
    request(kind == 0 and 1 or 7, count, at, charges)   -- 7 does nothing at all: a debit's cost is not to be waited for
    for j = first + 5, o, 4 do out[j] = passed(r) and 0 or max(1, out[j]) end
  end
  k = k + 1
end
