-- The batch: everything is read and decided first, over the states in memory so that each request sees the earlier ones; then
-- everything is written, so that what fails (no memory) leaves nothing behind.

-- What unpack and pack can take at once; Lua's stack holds 8,000.
local CHUNK = 1000
-- Every so many times that a counter is listed, those that are over go from the index.
local PRUNED_EVERY = 8
-- With the clock of a test, the server's own must not take a key away; in ms.
local INJECTED_TTL = 60000
local CHECK, CHECK_SIZE = '<BBBBHddddddd', 62
-- A state that no algorithm takes for its own.
local NOT_OURS = '?'
-- The last byte that is read of a state: of a log of 10,000 pairs and as many of debt (MAX_LOG_REQUESTS), of a reservation with
-- its memo, of any other. What is longer has one byte more than any state of ours; see `read`.
local LONGEST_LOG, LONGEST_RESERVATION, LONGEST = '320008', '4194304', '32'

local makers, made = { fixed_window, sliding_log, sliding_counter, bucket, bucket, penalty, calendar, reservation }, {}

-- A check from its packed form.
local function check_of(packed)
  local number, operation, mode, charge, owner, cost, max_delay, requests, window, burst, tick, capacity = unpack_struct(CHECK, packed)
  local algorithm = made[number]
  if not algorithm then
    algorithm = makers[number]()
    made[number] = algorithm
  end
  local leaky, period = number == LEAKY_BUCKET, window / tick
  local longest = number == SLIDING_LOG and LONGEST_LOG or number == RESERVATION and LONGEST_RESERVATION or LONGEST
  return {
    longest = longest,
    limit = {
      algorithm = number, requests = requests, window = window, burst = burst, tick = tick, period = period,
      leaky = leaky,
      -- What it admits; the rest of it is kept free for others.
      capacity = capacity,
      -- Of a bucket: its debt when there is no room, and the most that is owed.
      full = capacity * period, most = (burst + requests) * period,
    },
    algorithm = algorithm,
    step = algorithm.step,
    operation = operation, mode = mode, charge = charge, owner = owner, cost = cost,
    max_delay = leaky and max_delay >= 0 and max_delay or nil,
    -- Nothing else than: counted if all are allowed.
    is_plain = operation == TAKE and charge ~= ALWAYS and mode == ENFORCE and number ~= PENALTY,
  }
end

-- The distinct requests. Checks are known by their packed form: most are alike.
local kinds, known = {}, {}
for number = 1, distinct do
  local count, refused = unpack_struct('<HB', args, at)
  local kind = { count = count, refused = refused == 1, checks = {}, is_plain = refused == 0 }
  at = at + 3
  for place = 1, count do
    local packed = sub(args, at, at + CHECK_SIZE - 1)
    local check = known[packed]
    if not check then
      check = check_of(packed)
      known[packed] = check
    end
    kind.checks[place] = check
    kind.is_plain = kind.is_plain and check.is_plain
    at = at + CHECK_SIZE
  end
  kinds[number] = kind
end
local kind_of = { string.byte(args, at, at + requests - 1) }

-- Reads, a string of no more than its check may find: a value that somebody else put there may have any length, and copying it
-- would hold up the others. Of a longer one comes a byte too many, which no algorithm takes for its own. GETRANGE says '' for an
-- absent key and for an empty string alike, so these are looked at again if any exists.
local pcall = redis.pcall
-- Instead of what is empty: an error, or no bytes.
local function read_again(key, state)
  if type(state) ~= 'table' then return '' end
  if string.find(state.err, 'WRONGTYPE', 1, true) then return NOT_OURS end
  -- A user who may not call GETRANGE reads without this bound. Any other obstacle is raised here.
  return call('GET', key) or ''
end
-- Made at its full size; the keys in it go.
states = size <= CHUNK and { unpack(KEYS, 1, size) } or {}
local place, absent = 0, nil
for request = 1, requests do
  local kind = kinds[kind_of[request]]
  local checks = kind.checks
  for number = 1, kind.count do
    place = place + 1
    if not homes[place] then
      local state = pcall('GETRANGE', KEYS[place], '0', checks[number].longest)
      if #state == 0 then
        state = read_again(KEYS[place], state)
        if state == '' then
          state = false
          absent = absent or {}
          absent[#absent + 1] = place
        end
      end
      states[place] = state
    end
  end
end
local function is_any_there(places)
  for first = 1, #places, CHUNK do
    local keys = {}
    for number = first, min(first + CHUNK - 1, #places) do keys[#keys + 1] = KEYS[places[number]] end
    if call('EXISTS', unpack(keys)) > 0 then return true end
  end
end
if absent and is_any_there(absent) then
  for number = 1, #absent do
    if call('EXISTS', KEYS[absent[number]]) > 0 then states[absent[number]] = NOT_OURS end
  end
end

-- Decides.
local decide
local nexts, next_ttls = {}, {}
local first = 0
for request = 1, requests do
  local kind = kinds[kind_of[request]]
  local checks, count, began, is_over = kind.checks, kind.count, replied, false
  local is_plain = kind.is_plain
  if is_plain then
    for number = 1, count do
      local check = checks[number]
      local state = states[homes[first + number] or first + number]
      local allowed, remaining, after, delay, next, ttl = check.step(check.limit, state, now, check.cost, check.max_delay)
      if allowed == nil then
        is_plain = false
        break
      end
      if not allowed then is_over = true end
      nexts[number], next_ttls[number] = next, ttl
      reply[replied + 1], reply[replied + 2], reply[replied + 3], reply[replied + 4] =
        allowed and IS_ALLOWED or DENIED, remaining, after, delay
      replied = replied + 4
    end
  end
  if not is_plain then
    replied = began
    decide = decide or general()
    local gate = checks[1].algorithm.pass
    if gate then
      gate(decide, checks, count, first, kind.refused)
    else
      decide(checks, count, first, kind.refused)
    end
  elseif not is_over then
    for number = 1, count do
      local next, ttl = nexts[number], next_ttls[number]
      if next then
        local home = homes[first + number] or first + number
        states[home] = next
        if ttl ~= KEEP or ttls[home] == 0 then ttls[home] = ttl end
      end
    end
  elseif count > 1 then
    -- Refused as a whole: what had room says how much it has.
    for number = 1, count do
      local slot = began + 4 * number - 3
      if reply[slot] == IS_ALLOWED then
        local check, state = checks[number], states[homes[first + number] or first + number]
        local _, remaining, after, delay = check.step(check.limit, state, now, 0)
        reply[slot + 1], reply[slot + 2], reply[slot + 3] = remaining, after, delay
      end
    end
  end
  first = first + count
end

-- Writes. A string costs Redis less than a number, which it would write as a double.
local function milliseconds(ttl)
  local rest = ttl % 1000
  if rest > 0 then ttl = ttl + 1000 - rest end
  if is_injected and ttl < 1000 * INJECTED_TTL then ttl = 1000 * INJECTED_TTL end
  return format('%d', ttl / 1000)
end
for place = 1, size do
  local ttl = ttls[place]
  if ttl == 0 then
    -- Nothing to write.
  elseif ttl == KEEP and not is_injected then
    -- In the place of a state as long as it: this costs Redis two thirds of a SET.
    local state = states[place]
    if pcall('SETRANGE', KEYS[place], '0', state) ~= #state then call('SET', KEYS[place], state, 'KEEPTTL') end
  else
    call('SET', KEYS[place], states[place], 'PX', milliseconds(ttl))
  end
end

local function answers()
  if replied <= 4 * CHUNK then return pack('<' .. string.rep('Bddd', replied / 4), unpack(reply, 1, replied)) end
  local parts = {}
  for from = 1, replied, 4 * CHUNK do
    local to = min(from + 4 * CHUNK - 1, replied)
    parts[#parts + 1] = pack('<' .. string.rep('Bddd', (to - from + 1) / 4), unpack(reply, from, to))
  end
  return table.concat(parts)
end

if not listed then return answers() end

-- Lists: puts a counter that is there into the index of its subject, for `life` ms. An index that is none of ours is no reason to
-- fail.
local moment, were_listed = floor(now / 1000), {}
local function list(place, life, index)
  local state = states[homes[place] or place]
  if not state or state == NOT_OURS then return 0 end
  local added = redis.pcall('ZADD', index, string.format('%.0f', moment + life), KEYS[place])
  if type(added) ~= 'number' then return 0 end
  -- Now and then is enough: it removes all that are over.
  if (moment + place) % PRUNED_EVERY == 0 then redis.pcall('ZREMRANGEBYSCORE', index, '-inf', moment) end
  local left = redis.pcall('PTTL', index)
  if type(left) ~= 'number' or left < life then redis.pcall('PEXPIRE', index, string.format('%.0f', life)) end
  return 1
end
for number = 1, listings do
  local place, life = unpack_struct('<Id', listed, LISTING_SIZE * (number - 1) + 1)
  were_listed[number] = string.char(list(place, life, KEYS[size + number]))
end
return answers() .. table.concat(were_listed)
