-- Writes records, all or none. KEYS: the index (a sorted set of names), the feed (a stream of what changed), then the records.
-- ARGV: the most records there may be, about how many changes the feed holds, then for each record its name, what it is expected
-- to be ('*': anything) and what it is to be: '=' and the text, or '-' for none. The reply: the feed's last id, 'conflict' or 'full'.
-- An id is the feed's beginning (ms) and the number of the change, without gaps, so that a reader sees what it missed.
local index, feed = KEYS[1], KEYS[2]
local most, length = tonumber(ARGV[1]), ARGV[2]

local added = 0
for place = 3, #KEYS do
  local argument = 3 * (place - 2)
  local expected, next = ARGV[argument + 1], ARGV[argument + 2]
  local text = redis.call('GET', KEYS[place])
  if expected ~= '*' and expected ~= (text and '=' .. text or '-') then return 'conflict' end
  if not text and next ~= '-' then added = added + 1 end
end
if added > 0 and redis.call('ZCARD', index) + added > most then return 'full' end

local last = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
local beginning, number
if last then
  beginning, number = string.match(last[1], '^(%d+)-(%d+)$')
else
  local time = redis.call('TIME')
  beginning, number = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), 0
end

local id
for place = 3, #KEYS do
  local argument = 3 * (place - 2)
  local name, next = ARGV[argument], ARGV[argument + 2]
  if next == '-' then
    redis.call('DEL', KEYS[place])
    redis.call('ZREM', index, name)
  else
    redis.call('SET', KEYS[place], string.sub(next, 2))
    redis.call('ZADD', index, 0, name)
  end
  number = number + 1
  id = beginning .. '-' .. string.format('%.0f', number)
  redis.call('XADD', feed, 'MAXLEN', '~', length, id, 'name', name, 'next', next)
end
return id
