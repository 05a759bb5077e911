-- fixed_window.rs. State: start in µs, count.
local function fixed_window()
  -- start, count; KEEP where the stored state is of this very window
  local function current(limit, state, now)
    local start = now - now % limit.window
    if not state then return start, 0 end
    if #state ~= 16 then return nil end
    local stored, count = unpack_struct('<dd', state)
    if stored % 1 ~= 0 or stored < 0 or stored >= EXACT or count % 1 ~= 0 or count < 0 or count >= EXACT then return nil end
    if stored >= start then return start, count, stored == start and KEEP end
    return start, 0
  end

  local function step(limit, state, now, cost)
    local start, count, kept = current(limit, state, now)
    if not start then return nil end
    local reset_after = start + limit.window - now
    local room = limit.requests - count
    if room < 0 then room = 0 end
    if cost > limit.requests then return false, room, NEVER, 0 end
    if count > limit.requests or cost > room then return false, room, reset_after, 0 end
    if cost == 0 then return true, room, reset_after, 0 end
    return true, room - cost, reset_after, 0, pack('<dd', start, count + cost), kept or reset_after
  end

  local function charge(limit, state, now, cost)
    local start, count = current(limit, state, now)
    local most = max(2 * limit.requests, count)
    count = count + min(cost, most - count)
    return pack('<dd', start, count), start + limit.window - now
  end

  local function refund(limit, state, now, cost)
    local start, count = current(limit, state, now)
    if count == 0 then return nil end
    return pack('<dd', start, max(count - cost, 0)), start + limit.window - now
  end

  return { step = step, charge = charge, refund = refund }
end

