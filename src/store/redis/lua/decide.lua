-- decide.rs and the refunds of the memory store, for a batch of requests in order. KEYS: one for each check. ARGV[1], packed:
-- now in µs (0: the server's clock), the number of groups; for each group its number of checks and whether it is refused, then
-- its checks. Everything is read and decided first, over the states in memory so that each request sees the earlier ones; then
-- everything is written: what fails (no memory) leaves nothing behind. The reply, packed: for each check whether it is
-- allowed, remaining, after, delay.

-- What unpack and pack can take at once; Lua's stack holds 8,000.
local CHUNK = 1000
-- With the clock of a test, the server's own clock must not take a key away, in ms.
local INJECTED_TTL = 60000
local CHECK, CHECK_SIZE, HEADER_SIZE = '<BBBBHdddddd', 54, 3
-- What a check's first number in the reply says.
local DENIED, IS_ALLOWED, FOREIGN, UNDECIDED = 0, 1, 2, 3
-- A state that no algorithm takes for its own.
local NOT_OURS = ''

local args, size = ARGV[1], #KEYS
local now, groups = unpack_struct('<dI', args)
local shortest = 1
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
else
  shortest = INJECTED_TTL
end

-- By place in KEYS. A key that occurs again has its state at its last place, which `places` knows. A state that has a time to
-- live in `ttls` is to be written.
local states, ttls, places = {}, {}, {}

-- MGET says nil for an absent key and for one of another type alike, so the absent ones are looked at again if any exists.
local function recheck(absent)
  for first = 1, #absent, CHUNK do
    if call('EXISTS', unpack(absent, first, min(first + CHUNK - 1, #absent))) > 0 then
      for other = first, min(first + CHUNK - 1, #absent) do
        local key = absent[other]
        if type(pcall('GET', key)) == 'table' then states[places[key]] = NOT_OURS end
      end
    end
  end
end

local function read()
  if size <= CHUNK then
    states = call('MGET', unpack(KEYS))
  else
    for first = 1, size, CHUNK do
      local last = min(first + CHUNK - 1, size)
      local values = call('MGET', unpack(KEYS, first, last))
      for place = first, last do states[place] = values[place - first + 1] end
    end
  end
  local absent
  for place = 1, size do
    local key = KEYS[place]
    places[key] = place
    if not states[place] then
      absent = absent or {}
      absent[#absent + 1] = key
    end
  end
  if absent then recheck(absent) end
end

-- A state that keeps its time to live says nothing about one that was set before in this batch.
local function put(home, next, ttl)
  states[home] = next
  if ttl ~= KEEP or not ttls[home] then ttls[home] = ttl end
end

local algorithms = {
  [FIXED_WINDOW] = fixed_window, [SLIDING_LOG] = sliding_log, [SLIDING_COUNTER] = sliding_counter,
  [TOKEN_BUCKET] = bucket, [LEAKY_BUCKET] = bucket, [PENALTY] = penalty,
}

-- Checks by their packed form: most checks of a batch are alike, and are unpacked once.
local known = {}

local function check_of(packed)
  local algorithm, operation, mode, charge, owner, cost, max_delay, requests, window, burst, tick = unpack_struct(CHECK, packed)
  local leaky = algorithm == LEAKY_BUCKET
  local capacity = (leaky or algorithm == TOKEN_BUCKET) and burst or requests
  local check = {
    limit = {
      algorithm = algorithm, requests = requests, window = window, burst = burst, tick = tick, period = window / tick,
      leaky = leaky, capacity = capacity,
    },
    step = algorithms[algorithm].step,
    operation = operation, mode = mode, charge = charge, owner = owner, cost = cost,
    max_delay = leaky and max_delay >= 0 and max_delay or nil,
    -- Nothing else than: counted if all are allowed.
    is_plain = operation == TAKE and charge == ADMITTED and mode == ENFORCE and algorithm ~= PENALTY,
  }
  known[packed] = check
  return check
end

local reply, replied = {}, 0

local function answer(kind, remaining, after, delay)
  reply[replied + 1], reply[replied + 2], reply[replied + 3], reply[replied + 4] = kind, remaining, after, delay
  replied = replied + 4
end

local function charge(check, state)
  local limit, cost, max_delay = check.limit, check.cost, check.max_delay
  if limit.capacity == 0 then return check.step(limit, state, now, cost, max_delay) end
  local next, ttl = algorithms[limit.algorithm].charge(limit, state, now, cost)
  local allowed, _, retry_after = check.step(limit, next, now, 1, max_delay)
  return false, 0, allowed and 0 or retry_after, 0, next, ttl
end

local function refund(check, state)
  local limit = check.limit
  local allowed, remaining, after, delay = check.step(limit, state, now, 0)
  if allowed == nil then return nil end
  local next, ttl = algorithms[limit.algorithm].refund(limit, state, now, check.cost)
  if next then allowed, remaining, after, delay = check.step(limit, next, now, 0) end
  if not allowed then remaining, after, delay = 0, 0, 0 end
  return true, remaining, after, delay, next, ttl
end

-- A request whose checks are all plain, by one pass; false, with nothing changed, where a state is not ours. The steps of its
-- checks are kept in `nexts` and `next_ttls` until all are known to be allowed.
local nexts, next_ttls = {}, {}

local function decide_plain(checks, count, first)
  local began, refused = replied, false
  for number = 1, count do
    local check = checks[number]
    local state = states[places[KEYS[first + number]]]
    local allowed, remaining, after, delay, next, ttl = check.step(check.limit, state, now, check.cost, check.max_delay)
    if allowed == nil then
      replied = began
      return false
    end
    if not allowed then refused = true end
    nexts[number], next_ttls[number] = next, ttl
    answer(allowed and IS_ALLOWED or DENIED, remaining, after, delay)
  end
  for number = 1, count do
    local check, home = checks[number], places[KEYS[first + number]]
    if not refused then
      if nexts[number] then put(home, nexts[number], next_ttls[number]) end
    elseif reply[began + 4 * number - 3] == IS_ALLOWED then
      local at = began + 4 * number - 3
      local _, remaining, after, delay = check.step(check.limit, states[home], now, 0)
      reply[at + 1], reply[at + 2], reply[at + 3] = remaining, after, delay
    end
  end
  return true
end

-- Any request, as decide.rs does it. Steps are kept in columns, by number of the check.
local is_allowed, remains, afters, delays = {}, {}, {}, {}

local function first_step(check, state)
  if check.operation == LOOK then return check.step(check.limit, state, now, 0) end
  return check.step(check.limit, state, now, check.cost, check.max_delay)
end

-- Puts back what refunds of a request changed.
local function undo(changed)
  for number = #changed, 1, -1 do
    local home, state, ttl = unpack(changed[number], 1, 3)
    states[home], ttls[home] = state, ttl
  end
end

local function foreign(count, number)
  for other = 1, count do answer(other == number and FOREIGN or UNDECIDED, 0, 0, 0) end
end

local function apply_refunds(checks, count, first, changed)
  local refunds = 0
  while refunds < count and checks[refunds + 1].operation == REFUND do
    refunds = refunds + 1
    local home = places[KEYS[first + refunds]]
    local allowed, remaining, after, delay, next, ttl = refund(checks[refunds], states[home])
    if allowed == nil then return nil, refunds end
    if next then
      changed[#changed + 1] = { home, states[home], ttls[home] }
      put(home, next, ttl)
    end
    answer(IS_ALLOWED, remaining, after, delay)
  end
  return refunds
end

local function quotas_refuse(checks, count, refunds, owner_is_over)
  local any = false
  for number = refunds + 1, count do
    if checks[number].mode == QUOTA then
      if not owner_is_over[checks[number].owner] then return false end
      any = true
    end
  end
  return any
end

local function resolve(check, state, number, counted)
  if check.operation ~= LOOK then
    local always = check.charge == ALWAYS or check.operation == REPORT
    if is_allowed[number] and not counted and not always then
      return check.step(check.limit, state, now, 0)
    elseif not is_allowed[number] and always then
      return charge(check, state)
    end
  end
  return is_allowed[number], remains[number], afters[number], delays[number], nexts[number], next_ttls[number]
end

local function resolve_penalty(check, state, number, had_no_room)
  if is_allowed[number] and had_no_room then return penalty.block(check.limit, now) end
  local next, ttl
  if check.operation == TAKE then next, ttl = penalty.shorten(check.limit, state, now) end
  return is_allowed[number], remains[number], afters[number], delays[number], next, ttl
end

local function decide(checks, count, first, refused)
  local began, changed = replied, {}
  local refunds, not_ours = apply_refunds(checks, count, first, changed)
  -- By owner: whether a check of it is denied, whether a take of it had no room.
  local owner_is_over, had_no_room = {}, {}
  for number = (refunds or count) + 1, count do
    local check = checks[number]
    local allowed, remaining, after, delay, next, ttl = first_step(check, states[places[KEYS[first + number]]])
    if allowed == nil then
      not_ours = number
      break
    end
    is_allowed[number], remains[number], afters[number], delays[number] = allowed, remaining, after, delay
    nexts[number], next_ttls[number] = next, ttl
    if not allowed then
      owner_is_over[check.owner] = true
      if check.mode == ENFORCE then
        refused = true
        local is_block = check.limit.algorithm == PENALTY
        if check.operation == TAKE and not is_block and after ~= NEVER then had_no_room[check.owner] = true end
      end
    end
  end
  if not_ours then
    undo(changed)
    replied = began
    return foreign(count, not_ours)
  end
  refused = refused or quotas_refuse(checks, count, refunds, owner_is_over)
  for number = refunds + 1, count do
    local check, home = checks[number], places[KEYS[first + number]]
    local allowed, remaining, after, delay, next, ttl
    if check.limit.algorithm == PENALTY then
      allowed, remaining, after, delay, next, ttl = resolve_penalty(check, states[home], number, had_no_room[check.owner])
    else
      local counted = not refused and (check.mode == ENFORCE or not owner_is_over[check.owner])
      allowed, remaining, after, delay, next, ttl = resolve(check, states[home], number, counted)
    end
    if next then put(home, next, ttl) end
    answer(allowed and IS_ALLOWED or DENIED, remaining, after, delay)
  end
end

-- Requests of one plain check by their packed form.
local single = {}

local function decide_all()
  local at, first, checks = 13, 0, {}
  for _ = 1, groups do
    local packed = sub(args, at, at + HEADER_SIZE + CHECK_SIZE - 1)
    local check = single[packed]
    if check then
      first = first + 1
      at = at + HEADER_SIZE + CHECK_SIZE
      local home = places[KEYS[first]]
      local allowed, remaining, after, delay, next, ttl = check.step(check.limit, states[home], now, check.cost, check.max_delay)
      if next then
        states[home] = next
        if ttl ~= KEEP or not ttls[home] then ttls[home] = ttl end
      end
      if allowed == nil then
        answer(FOREIGN, 0, 0, 0)
      else
        reply[replied + 1], reply[replied + 2], reply[replied + 3], reply[replied + 4] =
          allowed and IS_ALLOWED or DENIED, remaining, after, delay
        replied = replied + 4
      end
    else
      local low, high, refused = byte(packed, 1, HEADER_SIZE)
      local count, is_plain = low + 256 * high, refused == 0
      at = at + HEADER_SIZE
      for number = 1, count do
        local packed_check = sub(args, at, at + CHECK_SIZE - 1)
        local check = known[packed_check] or check_of(packed_check)
        checks[number] = check
        is_plain = is_plain and check.is_plain
        at = at + CHECK_SIZE
      end
      if not (is_plain and decide_plain(checks, count, first)) then decide(checks, count, first, refused == 1) end
      if is_plain and count == 1 then single[packed] = checks[1] end
      first = first + count
    end
  end
end

local function write()
  for place = 1, size do
    local ttl = ttls[place]
    if ttl then
      if ttl == KEEP and shortest == 1 then
        call('SET', KEYS[place], states[place], 'KEEPTTL')
      else
        call('SET', KEYS[place], states[place], 'PX', max(ceil(ttl / 1000), shortest))
      end
    end
  end
end

local function packed_reply()
  local parts = {}
  for first = 1, replied, 4 * CHUNK do
    local last = min(first + 4 * CHUNK - 1, replied)
    parts[#parts + 1] = pack('<' .. rep('Bddd', (last - first + 1) / 4), unpack(reply, first, last))
  end
  return table.concat(parts)
end

read()
decide_all()
write()
return packed_reply()
