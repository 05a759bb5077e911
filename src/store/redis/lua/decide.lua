-- decide.rs, and the refunds of the memory store: any request, of `count` checks from the key after `first` on. Returns whether it
-- is refused; nothing for one with a state that is not ours.
local function general()
  -- Steps in columns, by number of the check.
  local is_allowed, remains, afters, delays, nexts, next_ttls = {}, {}, {}, {}, {}, {}

  local function charge(check, state)
    local limit, cost, max_delay = check.limit, check.cost, check.max_delay
    if limit.capacity == 0 then return check.step(limit, state, now, cost, max_delay) end
    local next, ttl = check.algorithm.charge(limit, state, now, cost)
    local allowed, _, retry_after = check.step(limit, next, now, 1, max_delay)
    return false, 0, allowed and 0 or retry_after, 0, next, ttl
  end

  local function refund(check, state)
    local limit = check.limit
    local allowed, remaining, after, delay = check.step(limit, state, now, 0)
    if allowed == nil then return nil end
    local next, ttl = check.algorithm.refund(limit, state, now, check.cost)
    if next then allowed, remaining, after, delay = check.step(limit, next, now, 0) end
    if not allowed then remaining, after, delay = 0, after == NEVER and delay or after, 0 end
    return true, remaining, after, delay, next, ttl
  end

  -- How many there are; or nil, and which one's state is not ours. What they change is kept in `changed`.
  local function apply_refunds(checks, count, first, changed)
    local refunds = 0
    while refunds < count and checks[refunds + 1].operation == REFUND do
      refunds = refunds + 1
      local home = homes[first + refunds] or first + refunds
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

  -- A request with a state that is not ours: nothing is counted.
  local function foreign(count, number, changed, began)
    for other = #changed, 1, -1 do
      local home, state, ttl = unpack(changed[other], 1, 3)
      states[home], ttls[home] = state, ttl
    end
    replied = began
    for other = 1, count do answer(other == number and FOREIGN or UNDECIDED, 0, 0, 0) end
  end

  local function first_step(check, state)
    if check.operation == LOOK then return check.step(check.limit, state, now, 0) end
    return check.step(check.limit, state, now, check.cost, check.max_delay)
  end

  -- A take that there was no room for, in enforce mode: what sets a block.
  local function is_without_room(check, retry_after)
    return check.operation == TAKE and check.mode == ENFORCE and check.limit.algorithm ~= PENALTY and retry_after ~= NEVER
  end

  local function quotas_refuse(checks, count, refunds, over)
    local any = false
    for number = refunds + 1, count do
      if checks[number].mode == QUOTA then
        if not over[checks[number].owner] then return false end
        any = true
      end
    end
    return any
  end

  local function resolve(check, state, number, counted)
    if check.operation ~= LOOK then
      local always = check.charge == ALWAYS or check.operation == REPORT
      if is_allowed[number] and not counted and not always then return check.step(check.limit, state, now, 0) end
      if not is_allowed[number] and always then return charge(check, state) end
    end
    return is_allowed[number], remains[number], afters[number], delays[number], nexts[number], next_ttls[number]
  end

  local function resolve_penalty(check, state, number, without_room)
    if is_allowed[number] and without_room then return check.algorithm.block(check.limit, now) end
    local next, ttl
    if check.operation == TAKE then next, ttl = check.algorithm.shorten(check.limit, state, now) end
    return is_allowed[number], remains[number], afters[number], delays[number], next, ttl
  end

  return function(checks, count, first, refused)
    local began, changed = replied, {}
    local refunds, not_ours = apply_refunds(checks, count, first, changed)
    if not_ours then return foreign(count, not_ours, changed, began) end
    -- By owner.
    local over, without_room = {}, {}
    for number = refunds + 1, count do
      local check = checks[number]
      local allowed, remaining, after, delay, next, ttl = first_step(check, states[homes[first + number] or first + number])
      if allowed == nil then return foreign(count, number, changed, began) end
      is_allowed[number], remains[number], afters[number], delays[number] = allowed, remaining, after, delay
      nexts[number], next_ttls[number] = next, ttl
      if not allowed then
        over[check.owner] = true
        if check.mode == ENFORCE then refused = true end
        if is_without_room(check, after) then without_room[check.owner] = true end
      end
    end
    refused = refused or quotas_refuse(checks, count, refunds, over)
    for number = refunds + 1, count do
      local check, home = checks[number], homes[first + number] or first + number
      local allowed, remaining, after, delay, next, ttl
      if check.limit.algorithm == PENALTY then
        allowed, remaining, after, delay, next, ttl = resolve_penalty(check, states[home], number, without_room[check.owner])
      else
        local counted = not refused and (check.mode == ENFORCE or not over[check.owner])
        allowed, remaining, after, delay, next, ttl = resolve(check, states[home], number, counted)
      end
      if next then put(home, next, ttl) end
      answer(allowed and IS_ALLOWED or DENIED, remaining, after, delay)
    end
    return refused
  end
end

