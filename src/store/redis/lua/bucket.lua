-- bucket.rs: token bucket and leaky bucket. State: tick, debt in units of one token over the period.
local function bucket()
  -- tick, debt
  local function meter(limit, state, now)
    local tick = floor(now / limit.tick)
    if not state then return tick, 0 end
    if #state ~= 16 then return nil end
    local at, debt = unpack_struct('<dd', state)
    if at % 1 ~= 0 or at < 0 or at >= EXACT or debt % 1 ~= 0 or debt < 0 or debt >= EXACT then return nil end
    if debt > limit.most then debt = limit.most end
    if at >= tick then return tick, debt end
    -- What is paid back is exact below 2^53, and more than any debt above.
    local paid = (tick - at) * limit.requests
    if paid >= debt then return tick, 0 end
    return tick, debt - paid
  end

  local function until_paid(limit, tick, now, debt)
    if debt <= 0 then return 0 end
    local requests = limit.requests
    return (tick + floor((debt + requests - 1) / requests)) * limit.tick - now
  end

  local function store(limit, tick, debt, now)
    return pack('<dd', tick, debt), max(until_paid(limit, tick, now, debt), 1)
  end

  local function step(limit, state, now, cost, max_delay)
    local tick, debt = meter(limit, state, now)
    if not tick then return nil end
    local period, full = limit.period, limit.full
    local remaining = debt < full and floor((full - debt) / period) or 0
    if cost > limit.capacity or full == 0 then return false, remaining, NEVER, limit.window end
    local fits_at = full - cost * period
    if max_delay and cost > 0 then
      fits_at = min(fits_at, min(floor(max_delay / limit.tick), full) * limit.requests)
    end
    if debt > fits_at then return false, remaining, until_paid(limit, tick, now, debt - fits_at), 0 end
    if cost == 0 then return true, remaining, until_paid(limit, tick, now, debt), 0 end
    local delay = limit.leaky and until_paid(limit, tick, now, debt) or 0
    debt = debt + cost * period
    local ttl = until_paid(limit, tick, now, debt)
    if ttl < 1 then ttl = 1 end
    return true, remaining - cost, ttl, delay, pack('<dd', tick, debt), ttl
  end

  local function charge(limit, state, now, cost)
    local tick, debt = meter(limit, state, now)
    local period = limit.period
    local most = limit.most
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

