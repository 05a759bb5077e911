-- window.rs. State: start in µs, count. A calendar quota has its edges where other limits have window, burst and tick: this
-- period's start and end, and the next one's end.
local function window(is_calendar)
  -- start, count, time until the window ends; KEEP where the stored state is of this very window
  local function current(limit, state, now)
    local start, reset_after
    if is_calendar then
      local finish
      start, finish = limit.window, limit.burst
      if now >= finish then start, finish = finish, limit.tick end
      reset_after = max(finish - now, 1)
    else
      local passed = now % limit.window
      start, reset_after = now - passed, limit.window - passed
    end
    if not state then return start, 0, reset_after end
    if #state ~= 16 then return nil end
    local stored, count = unpack_struct('<dd', state)
    if stored % 1 ~= 0 or stored < 0 or stored >= EXACT or count % 1 ~= 0 or count < 0 or count >= EXACT then return nil end
    if stored >= start then return start, count, reset_after, stored == start and KEEP end
    return start, 0, reset_after
  end

  local function step(limit, state, now, cost)
    local start, count, reset_after, kept = current(limit, state, now)
    if not start then return nil end
    local capacity = limit.capacity
    local room = capacity - count
    if room < 0 then room = 0 end
    if cost > capacity or capacity == 0 then return false, room, NEVER, reset_after end
    if count > capacity or cost > room then return false, room, reset_after, 0 end
    if cost == 0 then return true, room, reset_after, 0 end
    return true, room - cost, reset_after, 0, pack('<dd', start, count + cost), kept or reset_after
  end

  local function charge(limit, state, now, cost)
    local start, count, reset_after = current(limit, state, now)
    local most = max(2 * limit.requests, count)
    return pack('<dd', start, count + min(cost, most - count)), reset_after
  end

  local function refund(limit, state, now, cost)
    local start, count, reset_after = current(limit, state, now)
    if count == 0 then return nil end
    return pack('<dd', start, max(count - cost, 0)), reset_after
  end

  return { step = step, charge = charge, refund = refund }
end

local function fixed_window() return window(false) end
local function calendar() return window(true) end

