-- Concurrency: units that are held under a lease until it is released, or ends a window after it was taken or renewed.
-- Key: sorted set, lease -> the instant it ends in us; expires with the last of them.
-- An ask without a lease takes nothing: it is told whether a unit is free. Every cost is 0 or 1.
-- What is taken or renewed in this call ends at s.top, after all that is stored. s.mine: lease -> is it held, and is that
--   of this call; s.moved: stored leases that are no longer where they were.
local function holds(s)
  local known = s.mine[lease]
  if known == nil then
    local ends = call('ZSCORE', s.key, lease)
    known = ends and ends + 0 > now and 'stored' or false
    s.mine[lease] = known
  end
  return known
end

-- when the first of the stored leases ends that are where they were, in the order of `command`
local function ends(s, command, from, to)
  local offset = 0
  while true do
    local part = call(command, s.key, from, to, 'WITHSCORES', 'LIMIT', offset, 8)
    for j = 1, #part, 2 do
      if not s.moved[part[j]] then return min(part[j + 1] + 0, s.top) end
    end
    if #part < 16 then return s.top end
    offset = offset + 8
  end
end

local function last(s)
  return s.fresh > 0 and s.top or ends(s, 'ZREVRANGEBYSCORE', '+inf', s.from)
end

return {
  load = function(s)
    s.from, s.top = fmt('(%d', now), now + s.window
    s.mine, s.moved, s.fresh = {}, {}, 0
    s.held = call('ZCOUNT', s.key, s.from, '+inf')
    s.stale = call('ZCOUNT', s.key, fmt('(%d', s.top), '+inf') > 0     -- the clock stepped back
  end,
  holds = holds,
  wait = function(s, cost)
    if s.held + cost <= s.capacity then return 0 end
    return ends(s, 'ZRANGEBYSCORE', s.from, '+inf') - now
  end,
  charge = function(s)
    if not lease then return end
    local held = holds(s)
    if held == 'fresh' then return end
    if held then s.moved[lease] = true else s.held = s.held + 1 end
    s.mine[lease], s.fresh = 'fresh', s.fresh + 1
  end,
  debit = function() end,
  give = function(s)
    local held = lease and holds(s)
    if not held then return false end
    if held == 'fresh' then s.fresh = s.fresh - 1 else s.moved[lease] = true end
    s.mine[lease], s.held = false, s.held - 1
    return true
  end,
  show = function(s)
    return max(0, s.capacity - s.held), s.held > 0 and last(s) - now or 0
  end,
  save = function(s)
    local key, until_us = s.key, last(s)
    call('ZREMRANGEBYSCORE', key, '-inf', fmt('%d', now))
    for one in pairs(s.moved) do call('ZREM', key, one) end
    local top = fmt('%d', s.top)
    if s.stale then
      for _, one in ipairs(call('ZRANGEBYSCORE', key, '(' .. top, '+inf')) do call('ZADD', key, top, one) end
    end
    for one, held in pairs(s.mine) do
      if held == 'fresh' then call('ZADD', key, top, one) end
    end
    call('PEXPIRE', key, expiry_ms(until_us))
  end,
}
