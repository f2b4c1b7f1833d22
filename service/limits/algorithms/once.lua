-- Requests that carry a token: the first answer is kept, and comes again instead of a second charge.
--
-- Head     <keep_us> <f1> <f2> <f3> <f4> <counters>, before the charges: how long the answer is kept, four times 32 bits
--            that stand for the content of the request, 48 bits that stand for its counters
-- Returns  before the standings of the request: outcome, and the instant of the first decision in us
--            outcome 0 decided, 1 known: the kept answer, 2 known with other content: zeros, nothing was done
-- Record   string, integers: <until_us> <f1> <f2> <f3> <f4> <counters> <at_us> {<standing>}*; expires at until_us
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

local function keep(key, head, at, standings)
  local r = {now + a[head]}
  for j = 1, 5 do r[1 + j] = a[head + j] end
  r[7] = at
  for j = 1, standings do r[7 + j] = out[o - standings + j] end
  records[key] = r
  local words = {}
  for j = 1, #r do words[j] = fmt('%d', r[j]) end
  kept[#kept + 1] = {key = key, text = table.concat(words, ' '), until_us = r[1]}
end

return function(kind, count, at, head)
  local key, charges = KEYS[k + count + 1], head + 6
  local r = record(key, raws[k + count + 1])
  local first, same = o, true
  out[o + 1], out[o + 2] = 0, now
  o = o + 2
  if not r then
    request(kind, count, at, charges)
    keep(key, head, now, 4 * count)
  else
    for j = 1, 4 do same = same and r[1 + j] == a[head + j] end
    out[first + 1] = same and 1 or 2
    if same and r[6] ~= a[head + 5] then            -- other limits than then: the same verdict, on these as they stand
      local passed = true
      for j = 10, #r, 4 do passed = passed and r[j] == 0 end
      request(kind == 0 and 1 or 7, count, at, charges)   -- 7 does nothing at all: a debit's cost is not to be waited for
      for j = first + 5, o, 4 do out[j] = passed and 0 or max(1, out[j]) end
    else
      if same then out[first + 2] = r[7] end
      for j = 1, 4 * count do out[o + j] = same and r[7 + j] or 0 end
      o, k = o + 4 * count, k + count
    end
  end
  k = k + 1
end
