-- Fixed window: units used since the window began. c = 1: windows begin at multiples of the window since the epoch;
-- c = 2: there is one window, from a on, a period of the calendar; who asks for it up to a second late counts in it, too.
-- Key: string, start of the window in us (16 digits) then units used; expires when the window ends.
return {
  load = function(s, raw)
    s.start = s.c == 2 and s.a or s.c == 1 and now - now % s.window or now
    s.used = 0
    s.over = s.c == 2 and now >= s.a + s.window + 1000000         -- nothing counts any more
    if raw and s.c == 2 then
      if not s.over then s.used = sub(raw, 17) + 0 end
    elseif raw then
      local head, used = sub(raw, 1, 16), sub(raw, 17) + 0
      local start = head + 0
      if start > now then start, s.stale, head = s.start, true, nil end
      if used > 0 and now - start < s.window then s.start, s.used, s.head = start, used, head end
    end
  end,
  wait = function(s, cost)
    if s.used + cost <= s.capacity then return 0 end
    return max(1, s.start + s.window - now)
  end,
  charge = function(s, cost) s.used = s.over and 0 or s.used + cost end,
  debit = function(s, cost) s.used = s.over and 0 or s.used + cost end,
  give = function(s, cost, at)
    if s.used == 0 or at < s.start and s.c ~= 2 then return false end
    s.used = max(0, s.used - cost)
    return true
  end,
  show = function(s)
    return max(0, s.capacity - s.used), s.used > 0 and max(1, s.start + s.window - now) or 0
  end,
  save = function(s)
    if s.head then                                                -- the window goes on, and so does the key's time
      call('SET', s.key, s.head .. fmt('%d', s.used), 'KEEPTTL')
    else
      local over = s.start + s.window + (s.c == 2 and 1000000 or 0)
      put(s, fmt('%016d%d', s.start, s.used), min(over, now + 2 * s.window))      -- it may be far from having begun
    end
  end,
}
