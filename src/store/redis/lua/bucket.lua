-- bucket.rs: token bucket and leaky bucket. State: tick, debt in units of one token over the period.
local function bucket()
  local function most_debt(limit)
    return (limit.burst + limit.requests) * limit.period
  end

  local function drain_ticks(limit, debt)
    if debt == 0 then return 0 end
    return floor((debt + limit.requests - 1) / limit.requests)
  end

  -- tick, debt
  local function meter(limit, state, now)
    local tick = floor(now / limit.tick)
    if not state then return tick, 0 end
    if #state ~= 16 then return nil end
    local at, debt = unpack_struct('<dd', state)
    if at % 1 ~= 0 or at < 0 or at >= EXACT or debt % 1 ~= 0 or debt < 0 or debt >= EXACT then return nil end
    local most = most_debt(limit)
    if debt > most then debt = most end
    if at >= tick then return tick, debt end
    local elapsed = tick - at
    if elapsed >= drain_ticks(limit, debt) then return tick, 0 end
    return tick, debt - elapsed * limit.requests
  end

  local function until_paid(limit, tick, now, debt)
    if debt == 0 then return 0 end
    return (tick + drain_ticks(limit, debt)) * limit.tick - now
  end

  local function store(limit, tick, debt, now)
    return pack('<dd', tick, debt), max(until_paid(limit, tick, now, debt), 1)
  end

  local function step(limit, state, now, cost, max_delay)
    local tick, debt = meter(limit, state, now)
    if not tick then return nil end
    local period, capacity = limit.period, limit.burst * limit.period
    local remaining = debt < capacity and floor((capacity - debt) / period) or 0
    if cost > limit.burst then return false, remaining, NEVER, 0 end
    local fits_at = (limit.burst - cost) * period
    if max_delay and cost > 0 then
      fits_at = min(fits_at, min(floor(max_delay / limit.tick), period * limit.burst) * limit.requests)
    end
    if debt > fits_at then return false, remaining, until_paid(limit, tick, now, debt - fits_at), 0 end
    if cost == 0 then return true, remaining, until_paid(limit, tick, now, debt), 0 end
    local delay = limit.leaky and until_paid(limit, tick, now, debt) or 0
    local next, ttl = store(limit, tick, debt + cost * period, now)
    return true, remaining - cost, ttl, delay, next, ttl
  end

  local function charge(limit, state, now, cost)
    local tick, debt = meter(limit, state, now)
    local period = limit.period
    local most = most_debt(limit)
    local room = most - debt
    debt = cost >= floor((room + period - 1) / period) and most or debt + cost * period
    return store(limit, tick, debt, now)
  end

  local function refund(limit, state, now, cost)
    local tick, debt = meter(limit, state, now)
    if debt == 0 then return nil end
    local period = limit.period
    debt = cost >= floor((debt + period - 1) / period) and 0 or debt - cost * period
    return store(limit, tick, debt, now)
  end

  return { step = step, charge = charge, refund = refund }
end

