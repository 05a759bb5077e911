-- sliding_log.rs. State: total, then (tick, count) pairs, oldest first. A log here is its tick, its total, and the pairs as
-- the packed string from byte `first` on: expired pairs go by moving `first`, and nothing is copied until it is stored.
local function sliding_log()
  local PAIR, HEADER = 16, 8

  local function log(limit, state, now)
    local tick = floor(now / limit.tick)
    if not state then return tick, 0, '', 1 end
    local size = #state
    if size % PAIR ~= HEADER then return nil end
    local total = unpack_struct('<d', state)
    if total % 1 ~= 0 or total < 0 or total >= EXACT then return nil end
    local first = HEADER + 1
    while first < size do
      local at, count = unpack_struct('<dd', state, first)
      if at % 1 ~= 0 or count % 1 ~= 0 then return nil end
      if at + limit.period > tick then break end
      total = total - count
      first = first + PAIR
    end
    if first > size then
      if total ~= 0 then return nil end
      return tick, 0, '', 1
    end
    local newest, held = unpack_struct('<dd', state, size - PAIR + 1)
    if total < 0 or newest % 1 ~= 0 or newest < 0 or newest >= EXACT or held % 1 ~= 0 then return nil end
    if newest > tick then
      local kept, before = first, 0
      while kept < size do
        local at, count = unpack_struct('<dd', state, kept)
        if at >= tick then break end
        before = before + count
        kept = kept + PAIR
      end
      state = sub(state, first, kept - 1) .. pack('<dd', tick, total - before)
      first = 1
    end
    return tick, total, state, first
  end

  -- The last pair's tick; nil where there is none.
  local function last(hits, first)
    local size = #hits
    if first > size then return nil end
    return unpack_struct('<d', hits, size - PAIR + 1)
  end

  local function reset_after(limit, hits, first, now)
    local at = last(hits, first)
    if not at then return 0 end
    return (at + limit.period) * limit.tick - now
  end

  local function until_gone(limit, hits, first, now, excess)
    local gone = 0
    for place = first, #hits, PAIR do
      local at, count = unpack_struct('<dd', hits, place)
      gone = gone + count
      if gone >= excess then return (at + limit.period) * limit.tick - now end
    end
    return reset_after(limit, hits, first, now)
  end

  -- The pairs with `added` more hits at `tick`, after their header.
  local function add(tick, total, hits, first, added)
    if last(hits, first) == tick then
      local _, count = unpack_struct('<dd', hits, #hits - PAIR + 1)
      return pack('<d', total + added) .. sub(hits, first, -PAIR - 1) .. pack('<dd', tick, count + added)
    end
    return pack('<d', total + added) .. sub(hits, first) .. pack('<dd', tick, added)
  end

  local function store(limit, state, now)
    return state, max(reset_after(limit, state, HEADER + 1, now), 1)
  end

  local function step(limit, state, now, cost)
    local tick, total, hits, first = log(limit, state, now)
    if not tick then return nil end
    local capacity = limit.capacity
    local remaining = max(capacity - total, 0)
    if cost > capacity or capacity == 0 then return false, remaining, NEVER, limit.window end
    if total + cost > capacity then
      local excess = total + cost - capacity
      return false, remaining, until_gone(limit, hits, first, now, excess), 0
    end
    if cost == 0 then return true, remaining, reset_after(limit, hits, first, now), 0 end
    local next, ttl = store(limit, add(tick, total, hits, first, cost), now)
    return true, remaining - cost, ttl, 0, next, ttl
  end

  local function charge(limit, state, now, cost)
    local tick, total, hits, first = log(limit, state, now)
    local most = max(2 * limit.requests, total)
    local count = min(cost, most - total)
    if count > 0 then return store(limit, add(tick, total, hits, first, count), now) end
    return store(limit, pack('<d', total) .. sub(hits, first), now)
  end

  local function refund(limit, state, now, cost)
    local _, total, hits, first = log(limit, state, now)
    if total == 0 then return nil end
    local left, size, newest = cost, #hits, ''
    while left > 0 and first < size do
      local at, held = unpack_struct('<dd', hits, size - PAIR + 1)
      local count = min(left, held)
      total = total - count
      left = left - count
      size = size - PAIR
      if held > count then newest = pack('<dd', at, held - count) end
    end
    return store(limit, pack('<d', total) .. sub(hits, first, size) .. newest, now)
  end

  return { step = step, charge = charge, refund = refund }
end

