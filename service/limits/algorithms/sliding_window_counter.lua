-- Sliding window counter: units of this window, plus those of the one before as far as it is still in view.
-- Key: string, start of this window in us (16 digits), units in it (16 digits), units in the one before.
-- a = microseconds a tick, b = ticks a window: the view moves on tick by tick, so products stay below 2^53.
-- c = 1: windows begin at multiples of the window since the epoch.
local function zero(s)
  s.start = s.c == 1 and now - now % s.window or now
  s.cur, s.prev = 0, 0
end

return {
  load = function(s, raw)
    zero(s)
    if raw then
      local start, cur, prev = sub(raw, 1, 16) + 0, sub(raw, 17, 32) + 0, sub(raw, 33) + 0
      if start > now then start, s.stale = s.start, true end
      local gone = floor((now - start) / s.window)
      if gone == 1 then start, cur, prev = start + s.window, 0, cur end
      if gone < 2 and cur + prev > 0 then s.start, s.cur, s.prev = start, cur, prev end
    end
    s.view = s.b - floor((now - s.start) / s.a)     -- ticks of the window before that are still in view
  end,
  wait = function(s, cost)
    local room, b = s.capacity - s.cur - cost, s.b
    if room >= 0 then
      if s.prev * s.view <= room * b then return 0 end
      local view = floor(room * b / s.prev)
      if view > 0 then return s.start + (b - view) * s.a - now end
      return s.start + s.window - now
    end
    local view = floor((s.capacity - cost) * b / s.cur)
    if view > 0 then return s.start + s.window + (b - view) * s.a - now end
    return s.start + 2 * s.window - now
  end,
  charge = function(s, cost) s.cur = s.cur + cost end,
  debit = function(s, cost) s.cur = min(s.cur + cost, floor((2 ^ 53 - 1) / s.b)) end,
  give = function(s, cost, at)
    if at >= s.start and s.cur > 0 then
      s.cur = max(0, s.cur - cost)
    elseif at < s.start and at >= s.start - s.window and s.prev > 0 then
      s.prev = max(0, s.prev - cost)
    else
      return false
    end
    return true
  end,
  show = function(s)
    local reset = 0
    if s.cur > 0 then
      reset = s.start + 2 * s.window - now
    elseif s.prev > 0 then
      reset = s.start + s.window - now
    end
    return max(0, s.capacity - s.cur - ceil(s.prev * s.view / s.b)), reset
  end,
  save = function(s)
    put(s, fmt('%016d%016d%d', s.start, s.cur, s.prev), s.start + (s.cur > 0 and 2 or 1) * s.window)
  end,
}
