-- The batch: everything is read and decided first, over the states in memory so that each request sees the earlier ones; then
-- everything is written, so that what fails (no memory) leaves nothing behind.

-- What unpack and pack can take at once; Lua's stack holds 8,000.
local CHUNK = 1000
-- With the clock of a test, the server's own must not take a key away; in ms.
local INJECTED_TTL = 60000
local CHECK, CHECK_SIZE, HEADER_SIZE = '<BBBBHdddddd', 54, 3
-- A state that no algorithm takes for its own.
local NOT_OURS = ''

local makers, made = { fixed_window, sliding_log, sliding_counter, bucket, bucket, penalty }, {}

-- A check from its packed form.
local function check_of(packed)
  local number, operation, mode, charge, owner, cost, max_delay, requests, window, burst, tick = unpack_struct(CHECK, packed)
  local algorithm = made[number]
  if not algorithm then
    algorithm = makers[number]()
    made[number] = algorithm
  end
  local leaky = number == LEAKY_BUCKET
  return {
    limit = {
      algorithm = number, requests = requests, window = window, burst = burst, tick = tick, period = window / tick,
      leaky = leaky, capacity = makers[number] == bucket and burst or requests,
    },
    algorithm = algorithm,
    step = algorithm.step,
    operation = operation, mode = mode, charge = charge, owner = owner, cost = cost,
    max_delay = leaky and max_delay >= 0 and max_delay or nil,
    -- Nothing else than: counted if all are allowed.
    is_plain = operation == TAKE and charge ~= ALWAYS and mode == ENFORCE and number ~= PENALTY,
  }
end

-- Reads. MGET says nil for an absent key and for one of another type alike, so the absent ones are looked at again if any exists.
local size = #KEYS
local absent
for first = 1, size, CHUNK do
  local last = min(first + CHUNK - 1, size)
  local values = call('MGET', unpack(KEYS, first, last))
  for place = first, last do
    local key, value = KEYS[place], values[place - first + 1]
    states[place], places[key] = value, place
    if not value then
      absent = absent or {}
      absent[#absent + 1] = key
    end
  end
end
for first = 1, absent and #absent or 0, CHUNK do
  local last = min(first + CHUNK - 1, #absent)
  if call('EXISTS', unpack(absent, first, last)) > 0 then
    for other = first, last do
      local key = absent[other]
      if type(redis.pcall('GET', key)) == 'table' then states[places[key]] = NOT_OURS end
    end
  end
end

-- Decides. Most requests of a batch are alike: checks, and requests of one plain check, are known by their packed form.
local known, single, checks, decide = {}, {}, {}, nil
local nexts, next_ttls = {}, {}
local at, first = 13, 0
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
    local kind = allowed and IS_ALLOWED or DENIED
    if allowed == nil then kind, remaining, after, delay = FOREIGN, 0, 0, 0 end
    reply[replied + 1], reply[replied + 2], reply[replied + 3], reply[replied + 4] = kind, remaining, after, delay
    replied = replied + 4
  else
    local count, refused = unpack_struct('<HB', packed)
    local is_plain, is_over, began = refused == 0, false, replied
    at = at + HEADER_SIZE
    for number = 1, count do
      local packed_check = sub(args, at, at + CHECK_SIZE - 1)
      check = known[packed_check]
      if not check then
        check = check_of(packed_check)
        known[packed_check] = check
      end
      checks[number] = check
      is_plain = is_plain and check.is_plain
      at = at + CHECK_SIZE
      if is_plain then
        local state = states[places[KEYS[first + number]]]
        local allowed, remaining, after, delay, next, ttl = check.step(check.limit, state, now, check.cost, check.max_delay)
        nexts[number], next_ttls[number] = next, ttl
        is_plain, is_over = allowed ~= nil, is_over or not allowed
        answer(allowed and IS_ALLOWED or DENIED, remaining, after, delay)
      end
    end
    if not is_plain then
      replied = began
      decide = decide or general()
      decide(checks, count, first, refused == 1)
    elseif not is_over then
      for number = 1, count do
        if nexts[number] then put(places[KEYS[first + number]], nexts[number], next_ttls[number]) end
      end
      if count == 1 then single[packed] = check end
    else
      for number = 1, count do
        local slot = began + 4 * number - 3
        if reply[slot] == IS_ALLOWED then
          local check, state = checks[number], states[places[KEYS[first + number]]]
          local _, remaining, after, delay = check.step(check.limit, state, now, 0)
          reply[slot + 1], reply[slot + 2], reply[slot + 3] = remaining, after, delay
        end
      end
    end
    first = first + count
  end
end

-- Writes.
for place = 1, size do
  local ttl = ttls[place]
  if ttl then
    if is_injected then
      call('SET', KEYS[place], states[place], 'PX', max(math.ceil(ttl / 1000), INJECTED_TTL))
    elseif ttl == KEEP then
      call('SET', KEYS[place], states[place], 'KEEPTTL')
    else
      call('SET', KEYS[place], states[place], 'PX', max(math.ceil(ttl / 1000), 1))
    end
  end
end

if replied <= 4 * CHUNK then return pack('<' .. string.rep('Bddd', replied / 4), unpack(reply, 1, replied)) end
local parts = {}
for from = 1, replied, 4 * CHUNK do
  local to = min(from + 4 * CHUNK - 1, replied)
  parts[#parts + 1] = pack('<' .. string.rep('Bddd', (to - from + 1) / 4), unpack(reply, from, to))
end
return table.concat(parts)
