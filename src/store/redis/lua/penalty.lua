-- penalty.rs. State: blocked until, in µs.
local function penalty()
  local function step(limit, state, now)
    if not state then return true, 18446744073709551616, 0, 0 end
    if #state ~= 8 then return nil end
    local blocked_until = unpack_struct('<d', state)
    if blocked_until % 1 ~= 0 or blocked_until < 0 or blocked_until >= EXACT then return nil end
    if blocked_until > now then return false, 0, min(blocked_until - now, limit.window), 0 end
    return true, 18446744073709551616, 0, 0
  end

  local function block(limit, now)
    return false, 0, limit.window, 0, pack('<d', now + limit.window), limit.window
  end

  local function shorten(limit, state, now)
    if not state then return nil end
    if unpack_struct('<d', state) > now + limit.window then return pack('<d', now + limit.window), limit.window end
  end

  local function refund()
    return nil
  end

  return { step = step, block = block, shorten = shorten, refund = refund }
end

