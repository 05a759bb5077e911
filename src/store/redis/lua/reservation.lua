-- reservation.rs. State: the true number (-1 until it is said), estimate, made, expires and ttl in µs, how many outcomes; the outcomes
-- as in a reply; then what the caller keeps. A request behind a gate has the gate for its first check: the cost is the estimate or the
-- true number, the window is the ttl or when the reservation was made. The reply says of it whether the request behind it was refused;
-- that it opened, or what it found; until when the reservation is known; the true number. What is kept with a reservation that is
-- made stands in ARGV, from ARGV[3] on, in the order of the requests.
local function reservation()
  local RESERVE = 4
  local HEADER, SIZE, LONGEST, ANSWER = '<dddddH', 42, 4194304, 'Bddd'
  local ABSENT, OPEN, COMMITTED, OPENED = 0, 1, 2, 3
  local FIXED_WINDOW, SLIDING_COUNTER, CALENDAR = 1, 3, 7
  local memos = 0

  local function is_time(number)
    return number % 1 == 0 and number >= 0 and number < EXACT
  end

  -- What there is, actual, estimate, made, expires, ttl.
  local function read(state, now)
    if not state then return ABSENT, -1, 0, 0, 0, 0 end
    if #state < SIZE or #state > LONGEST then return nil end
    local actual, estimate, made, expires, ttl = unpack_struct(HEADER, state)
    if not (is_time(actual) or actual == -1) then return nil end
    if not (is_time(estimate) and is_time(made) and is_time(expires) and is_time(ttl)) then return nil end
    if expires <= now then return ABSENT, -1, 0, 0, 0, 0 end
    return actual < 0 and OPEN or COMMITTED, actual, estimate, made, expires, ttl
  end

  -- Whether what was charged at `made` is still in the counter.
  local function counts(limit, made)
    local algorithm = limit.algorithm
    if algorithm == FIXED_WINDOW then return made >= now - now % limit.window end
    if algorithm == CALENDAR then return made >= (now >= limit.burst and limit.burst or limit.window) end
    if algorithm == SLIDING_LOG or algorithm == SLIDING_COUNTER then return made + limit.window > now end
    return true
  end

  -- The checks behind the gate; of a commit, as they are now.
  local function behind(checks, count, made)
    local rest = {}
    for number = 2, count do
      local check = checks[number]
      if made and check.operation == REFUND and not counts(check.limit, made) then
        local known = check
        check = setmetatable({ cost = 0 }, { __index = known })
      end
      rest[number - 1] = check
    end
    return rest
  end

  local function outcomes(from)
    local parts = {}
    for first = from + 1, replied, 4 * 1000 do
      local last = min(first + 4 * 1000 - 1, replied)
      parts[#parts + 1] = pack('<' .. string.rep(ANSWER, (last - first + 1) / 4), unpack(reply, first, last))
    end
    return table.concat(parts)
  end

  local function reserve(decide, checks, count, first, refused, home)
    local gate, began = checks[1], replied
    local ttl = gate.limit.window
    memos = memos + 1
    answer(IS_ALLOWED, OPENED, now + ttl, 0)
    local is_refused = decide(behind(checks, count), count - 1, first + 1, refused)
    if is_refused then
      reply[began + 1] = DENIED
    elseif is_refused == false then
      local header = pack(HEADER, -1, gate.cost, now, now + ttl, ttl, count - 1)
      put(home, header .. outcomes(began + 4) .. ARGV[2 + memos], ttl)
    end
  end

  local function commit(decide, checks, count, first, home, estimate, made, expires, ttl)
    local state, gate = states[home], checks[1]
    expires = max(expires, now + ttl)
    answer(IS_ALLOWED, OPENED, expires, gate.cost)
    if decide(behind(checks, count, made), count - 1, first + 1, false) ~= nil then
      local _, _, _, _, _, held = unpack_struct(HEADER, state)
      local header = pack(HEADER, gate.cost, estimate, made, expires, ttl, held)
      put(home, header .. sub(state, SIZE + 1), expires - now)
    end
  end

  -- Decides what is behind the gate, if it opens.
  local function pass(decide, checks, count, first, refused)
    local gate, home = checks[1], homes[first + 1] or first + 1
    local there, actual, estimate, made, expires, ttl = read(states[home], now)
    local is_reserve = gate.operation == RESERVE
    if is_reserve and there == ABSENT then return reserve(decide, checks, count, first, refused, home) end
    if not is_reserve and there == OPEN and made == gate.limit.window then
      return commit(decide, checks, count, first, home, estimate, made, expires, ttl)
    end
    if is_reserve then memos = memos + 1 end
    answer(there and IS_ALLOWED or FOREIGN, there or 0, expires or 0, max(actual or 0, 0))
    for _ = 2, count do answer(UNDECIDED, 0, 0, 0) end
  end

  return { pass = pass }
end

