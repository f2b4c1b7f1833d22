-- Moving window: a log of what was admitted; a unit leaves one window after it came.
-- Key: list, <base> {<stamp_us> <total>}*: total = units admitted up to and including that stamp, base = those of
--   them that have left or were given back. Stamps are now rounded up to the grid of a us (1 = exact), which bounds
--   the list to 1,025 entries; debits beyond the limit are on a grid of window/1,024, so at most 1,025 more.
--   Expires when the newest entry leaves.
local rebase = 2 ^ 50       -- totals grow as long as the key lives: start again from 0 before doubles run out

local function grid(s, at)
  local late = at % s.a
  return late == 0 and at or at - late + s.a
end

-- the first stored entry, from list index `from` on, for which fits(stamp, total) holds: index, stamp, total
local function scan(s, from, fits)
  local size = 2
  while true do
    local part = call('LRANGE', s.key, from, from + size - 1)
    for i = 1, #part, 2 do
      local stamp, total = part[i] + 0, part[i + 1] + 0
      if fits(stamp, total) then return from + i - 1, stamp, total end
    end
    if #part < size then return end
    from, size = from + size, size * 4
  end
end

-- stamp of the entry that brought the total to `upto`, base < upto <= total
local function reached(s, upto)
  if upto > s.stored then                         -- charged in this call: at one stamp, or two if a debit came
    return s.mid and upto <= s.mid and s.mid_stamp or s.last
  end
  if upto <= s.first_total then return s.first end
  local _, stamp = scan(s, s.head, function(_, total) return total >= upto end)
  return stamp
end

return {
  load = function(s)
    s.stamp, s.base, s.total, s.last, s.stored = grid(s, now), 0, 0, 0, 0
    local tail = call('LRANGE', s.key, -2, -1)
    local edge = now - s.window
    if not tail[2] or tail[1] + 0 <= edge then return end
    s.last, s.total, s.base = tail[1] + 0, tail[2] + 0, call('LINDEX', s.key, 0) + 0
    if s.last > s.stamp + s.window then             -- the clock stepped back by more than a window
      s.last, s.stale = s.stamp, true
      return
    end
    s.stored, s.stored_last = s.total, s.last
    s.head, s.first, s.first_total = scan(s, 1, function(stamp, total)
      if stamp > edge and total > s.base then return true end
      s.base = max(s.base, total)
    end)
    if not s.head then s.base, s.total, s.last, s.stored, s.stored_last = 0, 0, 0, 0, nil end
  end,
  wait = function(s, cost)
    local need = s.total - s.base + cost - s.capacity
    if need <= 0 then return 0 end
    return reached(s, s.base + need) + s.window - now
  end,
  charge = function(s, cost)
    s.total, s.last = s.total + cost, max(s.last, s.stamp)
  end,
  debit = function(s, cost)
    local stamp = s.stamp
    if s.total - s.base + cost > s.capacity then
      local step = ceil(s.window / 1024)
      stamp = ceil(now / step) * step
    end
    if stamp > s.last and s.total > s.stored then s.mid, s.mid_stamp = s.total, s.last end
    s.total, s.last = s.total + cost, max(s.last, stamp)
  end,
  give = function(s, cost, at)
    if s.total == s.base or grid(s, at) <= now - s.window then return false end
    s.base = min(s.total, s.base + cost)            -- the oldest go first: never more room than was taken
    return true
  end,
  show = function(s)
    local used = s.total - s.base
    return max(0, s.capacity - used), used > 0 and s.last + s.window - now or 0
  end,
  save = function(s)
    local key = s.key
    if s.stored == 0 or s.base > rebase then
      local kept = {}
      if s.stored > 0 then kept = call('LRANGE', key, s.head, -1) end
      call('DEL', key)
      call('RPUSH', key, 0)
      for i = 1, #kept, 2 do call('RPUSH', key, kept[i], fmt('%d', max(0, kept[i + 1] - s.base))) end
      s.mid = s.mid and max(0, s.mid - s.base)
      s.total, s.base = s.total - s.base, 0
    elseif s.head > 1 then
      call('LTRIM', key, s.head - 1, -1)
    end
    if s.mid and s.mid_stamp == s.stored_last then
      call('LSET', key, -1, fmt('%d', s.mid))
    elseif s.mid then
      call('RPUSH', key, fmt('%d', s.mid_stamp), fmt('%d', s.mid))
    end
    if s.last == s.stored_last then
      call('LSET', key, -1, fmt('%d', s.total))
    else
      call('RPUSH', key, fmt('%d', s.last), fmt('%d', s.total))
    end
    call('LSET', key, 0, fmt('%d', s.base))
    call('PEXPIRE', key, expiry_ms(s.last + s.window))
  end,
}
