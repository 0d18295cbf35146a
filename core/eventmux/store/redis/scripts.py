"""What is done in the server as one step, in Lua. What goes in and comes out is made in commands.py.

The keys of a log: its head, a hash, and its stream. An event is an entry `offset-0` of one pair: a header and the body;
the end of a log is an entry `last-1`. The head has: `e` lineage, `l` last offset, `x` reason of the end, `b` label,
`t` term, `o` owner, `u` owned until (ms; 0 is while it lives, -1 is not), `r` the server that it was last written on,
`k` bytes of all that was ever appended, `z` of these what was let go as far as known, `a` when the oldest event that is
kept came, as far as known, and `r:` with a replica for each reader, until when (ms; 0 is while it lives).

A script whose first write may need memory is refused as a whole where there is none. So the claim of a log that is
there begins with a write that needs none: who owns a log keeps it while the server is full. So does LIVE.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Script(NamedTuple):
    text: str
    sha: str


def _script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - that is how Redis names a script


_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function stay(keep)
  for i = 1, 2 do redis.call('PEXPIRE', KEYS[i], math.max(redis.call('PTTL', KEYS[i]), keep)) end
end
"""

_HEAD = """
local head = {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do head[flat[i]] = flat[i + 1] end
"""

_READERS = """
local function lives(replica) return redis.call('EXISTS', ARGV[2] .. replica) == 1 end
local function readers_of(reply)
  for field, ends in pairs(head) do
    if string.sub(field, 1, 2) == 'r:' then
      local replica = string.sub(field, 3)
      ends = tonumber(ends)
      if replica ~= ARGV[1] then
        if (ends == 0 and lives(replica)) or ends > now then
          reply[#reply + 1] = replica
        else
          redis.call('HDEL', KEYS[1], field)
        end
      end
    end
  end
  return reply
end
"""

# Words of a lineage: 64 epochs, each with the offset after which it began. One begins whenever Redis does.
_EPOCHS = "local EPOCHS = 128\n"

# ARGV: replica, live prefix, lease (ms), keep (ms), epoch, label, writes, reads, opens, run id
CLAIM = _script(
    _NOW
    + _EPOCHS
    + _HEAD
    + _READERS
    + """
local lease, keep = tonumber(ARGV[3]), tonumber(ARGV[4])
if not head.e or (head.x and ARGV[9] == 'over') then
  if ARGV[9] == 'never' then return false end
  local term = head.t or string.format('%.0f', time[1] * 1000000 + time[2])
  head = {e = ARGV[5] .. ' 0', l = '0', b = ARGV[6], t = term, o = '', u = '-1', r = ARGV[10]}
  redis.call('HSET', KEYS[1], 'e', head.e, 'l', '0', 'b', head.b, 't', head.t, 'o', '', 'u', '-1', 'r', head.r,
    'k', '0', 'z', '0', 'a', '0')
  redis.call('HDEL', KEYS[1], 'x')
  redis.call('DEL', KEYS[2])
end
stay(keep)
if head.r ~= ARGV[10] and not head.x and ARGV[5] ~= '' then
  local words = {}
  for word in string.gmatch(head.e, '[^ ]+') do words[#words + 1] = word end
  local is_known = false
  for i = 1, #words, 2 do is_known = is_known or words[i] == ARGV[5] end
  if not is_known then
    words[#words + 1] = ARGV[5]
    words[#words + 1] = head.l
    head.e = table.concat(words, ' ', math.max(1, #words - EPOCHS + 1))
  end
  redis.call('HSET', KEYS[1], 'e', head.e, 'r', ARGV[10])
end
local function is_owned()
  -- a lease that ends later than any can was given by a clock that is wrong, or by that of another server
  local ends = tonumber(head.u)
  return (ends == 0 and lives(head.o)) or (ends > now and (lease == 0 or ends <= now + 2 * lease))
end
if ARGV[7] == '1' and not head.x then
  if head.u == '-1' or (head.o ~= ARGV[1] and not is_owned()) then
    head.o = ARGV[1]
    head.t = string.format('%.0f', tonumber(head.t) + 1)
    redis.call('HSET', KEYS[1], 'o', head.o, 't', head.t)
  end
  if head.o == ARGV[1] then
    head.u = lease > 0 and string.format('%.0f', now + lease) or '0'
    redis.call('HSET', KEYS[1], 'u', head.u)
  end
end
if ARGV[8] == '1' then
  redis.call('HSET', KEYS[1], 'r:' .. ARGV[1], lease > 0 and string.format('%.0f', now + 2 * lease) or '0')
end
local owned = is_owned()
local mine = owned and head.o == ARGV[1]
return readers_of({head.e, head.l, head.x or false, head.b, mine and head.t or '0', head.o, owned and 1 or 0})
"""
)

# A log without an event, which anybody begins by asking for it, does not stay for long once nobody reads it.
# ARGV: replica, live prefix, for how long then (ms)
RELEASE = _script(
    _NOW
    + _HEAD
    + _READERS
    + """
if not head.e then return {} end
redis.call('HDEL', KEYS[1], 'r:' .. ARGV[1])
if head.o == ARGV[1] and head.u ~= '-1' then
  redis.call('HSET', KEYS[1], 'u', '-1', 't', string.format('%.0f', tonumber(head.t) + 1))
end
local readers = readers_of({})
if head.l == '0' and #readers == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return readers
"""
)

# ARGV: term, after, skips, run id, keep (ms), events, bytes, age (ms, -1 none), cost of an event, ended (0 or 1),
# reason, epoch ('' any), then for each record: when (hex), kind and name, body
APPEND = _script(
    _NOW
    + """
local head = redis.call('HMGET', KEYS[1], 't', 'l', 'x', 'r', 'u', 'e', 'k', 'z', 'a')
local after, last = tonumber(ARGV[2]), tonumber(head[2])
if not head[1] then return {0, 'epoch'} end
if head[1] ~= ARGV[1] or head[5] == '-1' or head[3] then return {last, 'fenced'} end
local epoch = string.match(head[6], '([^ ]+) [^ ]+$')
if head[4] ~= ARGV[4] or (ARGV[12] ~= '' and ARGV[12] ~= epoch) then return {last, 'epoch'} end
if after ~= last and not (ARGV[3] == '1' and after > last) then return {last, 'offset'} end
local total, gone, oldest, cost = tonumber(head[7]), tonumber(head[8]), tonumber(head[9]), tonumber(ARGV[9])
local function add(id, header, body)
  local done = redis.pcall('XADD', KEYS[2], id, header, body)
  if type(done) == 'table' and done.err then
    if not string.find(done.err, 'equal or smaller') then return done end
    -- a stream that is ahead of its head is not this log's
    redis.call('DEL', KEYS[2])
    gone = total
    redis.call('XADD', KEYS[2], id, header, body)
  end
end
last = after
for i = 13, #ARGV, 3 do
  last = last + 1
  local sum = total + #ARGV[i + 2] + cost
  local failed = add(string.format('%.0f-0', last),
    ARGV[i] .. ' ' .. string.format('%x', sum) .. ' ' .. epoch .. ' ' .. ARGV[i + 1], ARGV[i + 2])
  if failed then return failed end
  total = sum
end
if ARGV[10] == '1' then
  local failed = add(string.format('%.0f-1', last),
    string.format('%x %x ', now * 1000000, total) .. epoch .. ' e', ARGV[11])
  if failed then return failed end
  redis.call('HSET', KEYS[1], 'x', ARGV[11])
end
local events, bytes, age = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
redis.call('XTRIM', KEYS[2], 'MAXLEN', math.max(events, 1) + tonumber(ARGV[10]))
local since = age >= 0 and now - age or 0
local function is_over() return total - gone > bytes or oldest < since end
local from, cut, step = '-', nil, 1
while is_over() do
  local found = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', step)
  for _, entry in ipairs(found) do
    local offset = tonumber(string.match(entry[1], '^(%d+)-0$'))
    local at, sum = string.match(entry[2][1], '^(%x+) (%x+) ')
    gone = math.max(gone, tonumber(sum, 16) - #entry[2][2] - cost)
    oldest = math.floor(tonumber(at, 16) / 1000000)
    if not offset or offset >= last then found = {} break end
    if not is_over() then break end
    gone = tonumber(sum, 16)
    cut = offset + 1
  end
  if #found < step then break end
  from = '(' .. found[#found][1]
  step = 32
end
if cut then redis.call('XTRIM', KEYS[2], 'MINID', string.format('%.0f-0', cut)) end
redis.call('HSET', KEYS[1], 'l', string.format('%.0f', last), 'k', string.format('%.0f', total),
  'z', string.format('%.0f', gone), 'a', string.format('%.0f', oldest))
stay(tonumber(ARGV[5]))
return {last}
"""
)

# A box is a stream alone. Its offsets are times, so that they go on where it has been gone: who follows it has a
# position that an offset of 1 would never come up to. KEYS: the stream; ARGV: body, room, keep (ms)
POST = _script(
    _NOW
    + """
local last = 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
  end
end
local id = string.format('%.0f-0', math.max(last + 1, now))
redis.call('XADD', KEYS[1], id, string.format('%x 0  j', now * 1000000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
)

# ARGV: for how long (ms)
LIVE = _script("""
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('SET', KEYS[1], '', 'PX', ARGV[1])
return 1
""")

# Whether the user may do all that is done here and beside; what it may not, and why, else ''. KEYS: two that nobody has
PROBE = _script("""
local steps = {
  {'PEXPIRE', KEYS[1], 1000}, {'HSET', KEYS[1], 'f', ''}, {'XADD', KEYS[2], '1-0', 'f', ''},
  {'PEXPIRE', KEYS[1], 1000}, {'PEXPIRE', KEYS[2], 1000}, {'PTTL', KEYS[1]}, {'TIME'}, {'EXISTS', KEYS[1]},
  {'HGETALL', KEYS[1]}, {'HMGET', KEYS[1], 'f'}, {'HDEL', KEYS[1], 'f'},
  {'XLEN', KEYS[2]}, {'XINFO', 'STREAM', KEYS[2]}, {'XRANGE', KEYS[2], '-', '+'}, {'XREAD', 'STREAMS', KEYS[2], '0'},
  {'XTRIM', KEYS[2], 'MAXLEN', 1}, {'SET', KEYS[1], ''}, {'GET', KEYS[1]}, {'UNLINK', KEYS[1]}, {'DEL', KEYS[2]}
}
for _, step in ipairs(steps) do
  local done = redis.pcall(unpack(step))
  if type(done) == 'table' and done.err then
    redis.pcall('DEL', KEYS[1], KEYS[2])
    return step[1] .. ': ' .. done.err
  end
end
return ''
""")

# ARGV: whether there is a value before, it, whether one comes after, it, for how long (ms)
SWAP = _script("""
local found = redis.call('GET', KEYS[1])
if ARGV[1] == '1' then
  if found ~= ARGV[2] then return 0 end
elseif found then
  return 0
end
if ARGV[3] == '1' then redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5]) else redis.call('DEL', KEYS[1]) end
return 1
""")

ALL = (CLAIM, RELEASE, APPEND, POST, LIVE, PROBE, SWAP)
