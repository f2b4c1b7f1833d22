-- GCRA (ITU-T I.371, virtual scheduling): a token bucket of `capacity` tokens, one token back every a + b/window us.
-- Key: string, theoretical arrival time in us (16 digits), then its fraction in 1/window us if there is one;
--   expires at that time, when the bucket is full again. Here s.window is only the denominator of the fraction.
-- c = the longest debt in us: so far a debit may take the bucket below empty.
local function length(s, tokens)                    -- tokens x interval, as whole us and fraction
  local part = tokens * s.b
  return tokens * s.a + floor(part / s.window), part % s.window
end

return {
  load = function(s, raw)
    s.most, s.most_part = length(s, s.capacity)
    s.tat, s.part = now, 0
    if raw then
      local tat, part = sub(raw, 1, 16) + 0, #raw > 16 and sub(raw, 17) + 0 or 0
      if tat >= now then s.tat, s.part = tat, part end
      local debt = s.tat - now
      if debt > s.most + s.c or debt == s.most + s.c and s.part > s.most_part then
        s.tat, s.part, s.stale = now + s.most, s.most_part, true      -- the clock stepped back
      end
    end
  end,
  wait = function(s, cost)
    local us, part = length(s, cost)
    us, part = s.tat - now + us - s.most, s.part + part - s.most_part
    if part >= s.window then us, part = us + 1, part - s.window end
    if part > 0 then us = us + 1 end
    return max(0, us)
  end,
  charge = function(s, cost)
    local us, part = length(s, cost)
    s.tat, s.part = s.tat + us, s.part + part
    if s.part >= s.window then s.tat, s.part = s.tat + 1, s.part - s.window end
  end,
  debit = function(s, cost)
    local us, part = length(s, min(cost, floor((2 ^ 53 - 1) / s.window)))
    local last = now + s.most + s.c
    us, part = s.tat + us, s.part + part
    if part >= s.window then us, part = us + 1, part - s.window end
    if us > last or us == last and part > s.most_part then us, part = last, s.most_part end
    s.tat, s.part = us, part
  end,
  give = function(s, cost, at)
    local us = length(s, cost) - (now - at)         -- what has flowed back since needs no giving
    if us <= 0 or s.tat == now and s.part == 0 then return false end
    s.tat = s.tat - us
    if s.tat < now then s.tat, s.part = now, 0 end
    return true
  end,
  show = function(s)
    local us, part = s.most - (s.tat - now), s.most_part - s.part
    if part < 0 then us, part = us - 1, part + s.window end
    local tokens = us < 0 and 0 or floor((us + part / s.window) / (s.a + s.b / s.window))
    local function fits(count)
      local need, need_part = length(s, count)
      return need < us or need == us and need_part <= part
    end
    while tokens > 0 and not fits(tokens) do tokens = tokens - 1 end   -- the division above is only a guess
    while tokens < s.capacity and fits(tokens + 1) do tokens = tokens + 1 end
    return tokens, s.tat - now + (s.part > 0 and 1 or 0)
  end,
  save = function(s)
    local part = s.part == 0 and '' or fmt('%d', s.part)
    put(s, fmt('%016d', s.tat) .. part, s.tat + 1)
  end,
}
