-- sliding_counter.rs. State: the current window's first tick, its count, the previous window's count.
local function sliding_counter()
  -- start, elapsed, current, previous; KEEP where the stored state ends when its successor does
  local function counts(limit, state, now)
    local tick = floor(now / limit.tick)
    local period = limit.period
    local elapsed = tick % period
    local aligned = tick - elapsed
    if not state then return aligned, elapsed, 0, 0 end
    if #state ~= 24 then return nil end
    local start, current, previous = unpack_struct('<ddd', state)
    if start % 1 ~= 0 or start < 0 or start >= EXACT or current % 1 ~= 0 or current < 0 or current >= EXACT
      or previous % 1 ~= 0 or previous < 0 or previous >= EXACT then return nil end
    local since = tick - start
    if since >= 2 * period then return aligned, elapsed, 0, 0 end
    if since >= period then
      if current == 0 then return aligned, elapsed, 0, 0 end
      return start + period, since - period, 0, current
    end
    if current == 0 and previous == 0 then return aligned, elapsed, 0, 0 end
    if since < 0 then return tick, 0, current, previous end
    return start, since, current, previous, current > 0 and KEEP
  end

  local function used(limit, elapsed, current, previous)
    return previous * (limit.period - elapsed) + current * limit.period
  end

  local function reset_after(limit, start, current, previous, now)
    if current == 0 and previous == 0 then return 0 end
    if current == 0 then return (start + limit.period) * limit.tick - now end
    return (start + 2 * limit.period) * limit.tick - now
  end

  local function fits_at(limit, current, previous, cost)
    local room = limit.capacity - cost
    if current <= room then return limit.period - floor((room - current) * limit.period / previous) end
    return 2 * limit.period - floor(room * limit.period / current)
  end

  local function store(limit, start, current, previous, now)
    return pack('<ddd', start, current, previous), max(reset_after(limit, start, current, previous, now), 1)
  end

  local function step(limit, state, now, cost)
    local start, elapsed, current, previous, kept = counts(limit, state, now)
    if not start then return nil end
    local period = limit.period
    local whole = limit.capacity * period
    local used = used(limit, elapsed, current, previous)
    local remaining = used < whole and floor((whole - used) / period) or 0
    if cost > limit.capacity or whole == 0 then
      return false, remaining, NEVER, (start + period) * limit.tick - now
    end
    if used + cost * period > whole then
      return false, remaining, (start + fits_at(limit, current, previous, cost)) * limit.tick - now, 0
    end
    if cost == 0 then return true, remaining, reset_after(limit, start, current, previous, now), 0 end
    local next, ttl = store(limit, start, current + cost, previous, now)
    return true, remaining - cost, ttl, 0, next, kept or ttl
  end

  local function charge(limit, state, now, cost)
    local start, elapsed, current, previous = counts(limit, state, now)
    local period = limit.period
    local room = floor(max(2 * limit.requests * period - used(limit, elapsed, current, previous), 0) / period)
    return store(limit, start, current + min(cost, room), previous, now)
  end

  local function refund(limit, state, now, cost)
    local start, _, current, previous = counts(limit, state, now)
    if current == 0 and previous == 0 then return nil end
    local from_current = min(cost, current)
    return store(limit, start, current - from_current, max(previous - (cost - from_current), 0), now)
  end

  return { step = step, charge = charge, refund = refund }
end

