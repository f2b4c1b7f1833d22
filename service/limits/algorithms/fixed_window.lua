-- Fixed window: units used since the window began. c = 1: windows begin at multiples of the window since the epoch.
-- Key: string, start of the window in us (16 digits) then units used; expires when the window ends.
return {
  load = function(s, raw)
    s.start = s.c == 1 and now - now % s.window or now
    s.used = 0
    if raw then
      local start, used = sub(raw, 1, 16) + 0, sub(raw, 17) + 0
      if start > now then start, s.stale = s.start, true end
      if used > 0 and now - start < s.window then s.start, s.used = start, used end
    end
  end,
  wait = function(s, cost)
    if s.used + cost <= s.capacity then return 0 end
    return s.start + s.window - now
  end,
  charge = function(s, cost) s.used = s.used + cost end,
  debit = function(s, cost) s.used = s.used + cost end,
  give = function(s, cost, at)
    if s.used == 0 or at < s.start then return false end
    s.used = max(0, s.used - cost)
    return true
  end,
  show = function(s)
    return max(0, s.capacity - s.used), s.used > 0 and s.start + s.window - now or 0
  end,
  save = function(s) put(s, fmt('%016d%d', s.start, s.used), s.start + s.window) end,
}
