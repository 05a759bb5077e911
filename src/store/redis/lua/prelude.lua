-- What all parts share. The script decides a batch of requests as src/limit does, one for one: same names, same order.
-- Numbers are whole and below 2^53, where a double is exact. A step returns allowed, remaining, after (reset or retry, in µs),
-- delay, next state, ttl in µs; a state is a packed string, false where there is none. A step returns nil for a state that is
-- not ours. Redis runs all of this for every call, so an algorithm is a function that makes its functions: only what a batch
-- needs is made.
--
-- KEYS: one for each check of each request, in order. ARGV[1], packed: now in µs (0: the server's clock); how many requests,
-- distinct requests, and keys that occur again; for each of these its place and the place of the first; the distinct requests,
-- each its number of checks, whether it is refused, and its checks; for each request, which distinct one it is. The reply,
-- packed: for each check what became of it, remaining, after, delay. With ARGV[2] there are KEYS besides, indexes of subjects;
-- it says for each the place of the counter to put there, and for how many ms, and the reply ends with a byte for each, whether
-- it was.
local call = redis.call
local pack, unpack_struct = struct.pack, struct.unpack
local floor, max, min = math.floor, math.max, math.min
local sub, format = string.sub, string.format

-- Not a number that we would store, from here on.
local EXACT = 9007199254740992
-- Retry time of a cost that can never fit; in place of a delay comes the time to the window's end.
local NEVER = -1
-- Time to live of a state that is as long as the stored one and ends when it does: SETRANGE costs Redis two fifths of SET with PX.
local KEEP = -1

local TAKE, LOOK, REFUND, REPORT = 0, 1, 2, 3
local ENFORCE, QUOTA = 0, 2
local ALWAYS = 1
local SLIDING_LOG, LEAKY_BUCKET, PENALTY, RESERVATION = 2, 5, 6, 8

-- What a check's first number in the reply says.
local DENIED, IS_ALLOWED, FOREIGN, UNDECIDED = 0, 1, 2, 3

local LISTING_SIZE = 12
local args, listed = ARGV[1], ARGV[2]
local listings = listed and #listed / LISTING_SIZE or 0
local size = #KEYS - listings
local now, requests, distinct, repeated = unpack_struct('<dHHH', args)
local at = 15
local is_injected = now ~= 0
if not is_injected then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- So many zeros: a table that need not grow.
local function zeros(length)
  if length <= 4000 then return { string.byte(string.rep('\0', length), 1, length) } end
  local table = {}
  for place = 1, length do table[place] = 0 end
  return table
end

-- By place in KEYS: states, and for how long to write them (0: not at all). A key that occurs again has its state at its first
-- place, its home.
local states, ttls, homes = nil, zeros(size), {}
for _ = 1, repeated do
  local place, home = unpack_struct('<HH', args, at)
  homes[place] = home
  at = at + 4
end

-- A state that keeps its time to live says nothing about one that was set before in this batch.
local function put(home, next, ttl)
  states[home] = next
  if ttl ~= KEEP or ttls[home] == 0 then ttls[home] = ttl end
end

local reply, replied = zeros(4 * size), 0

local function answer(kind, remaining, after, delay)
  reply[replied + 1], reply[replied + 2], reply[replied + 3], reply[replied + 4] = kind, remaining, after, delay
  replied = replied + 4
end

