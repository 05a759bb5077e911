-- Runs a command that reads, and cuts its reply to what may be there: of a string that is longer than ARGV[1] bytes comes one byte
-- more than that, of a list within a list come 16 elements. KEYS: those of the command. ARGV[2]: its name; then what follows its
-- keys. Somebody else may have put anything there, and weir reads whole replies into memory.
local most, words = tonumber(ARGV[1]), { ARGV[2] }
for place = 1, #KEYS do words[#words + 1] = KEYS[place] end
for place = 3, #ARGV do words[#words + 1] = ARGV[place] end

local function cut(value, depth)
  if type(value) == 'string' then return string.sub(value, 1, most + 1) end
  if type(value) ~= 'table' or value.ok or value.err then return value end
  local parts = {}
  for place = 1, depth > 1 and math.min(#value, 16) or #value do parts[place] = cut(value[place], depth + 1) end
  return parts
end

return cut(redis.call(unpack(words)), 0)
