-- What all workers must hear: a log of messages, read by each from where it stopped.
--
-- KEYS[1]  the board
-- ARGV[1]  where to begin: "-" for the beginning, "(" and an id for what comes after it
-- ARGV[2]  a message to add; empty = none
-- ARGV[3]  how long the board is kept from then on, milliseconds
-- ARGV[4]  how many messages it keeps, about; and how many are answered at most
-- Returns  now, microseconds since the epoch; then id, message, id, message, ... in order, ours included
-- Writes   the board, a stream, with an expiry; only if there is a message
local now = redis.call('TIME')
if ARGV[2] ~= '' then
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'm', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
local out = {now[1] * 1000000 + now[2]}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[4])) do
  out[#out + 1] = entry[1]
  out[#out + 1] = entry[2][2]
end
return out
