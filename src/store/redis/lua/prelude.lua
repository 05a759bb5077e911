-- What all algorithms share. Mirrors src/limit one for one: same names, same order. Numbers are whole and below 2^53, where a
-- double is exact. A step returns allowed, remaining, after (reset or retry, in µs), delay, next state, ttl in µs; a state is a
-- packed string, false where there is none. A step returns nil for a state that is not ours.
local call, pcall = redis.call, redis.pcall
local pack, unpack_struct = struct.pack, struct.unpack
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local sub, byte, rep = string.sub, string.byte, string.rep

-- Not a number that we would store from here on.
local EXACT = 9007199254740992
-- Retry time of a cost that can never fit.
local NEVER = -1
-- Time to live of a state that ends when the stored one does: SET with KEEPTTL costs Redis half of SET with PX.
local KEEP = 0
-- Remaining where nothing limits; read as the largest u64.
local UNLIMITED = 18446744073709551616

local FIXED_WINDOW, SLIDING_LOG, SLIDING_COUNTER, TOKEN_BUCKET, LEAKY_BUCKET, PENALTY = 1, 2, 3, 4, 5, 6
local TAKE, LOOK, REFUND, REPORT = 0, 1, 2, 3
local ENFORCE, SHADOW, QUOTA = 0, 1, 2
local ADMITTED, ALWAYS = 0, 1

