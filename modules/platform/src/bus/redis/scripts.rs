//! What Redis does in one step. Nobody else sees a state in between.
//!
//! A lease is a key whose value names its owner and the lease's epoch; whatever reads, acknowledges or gives back shows that value first, so
//! a reader that has lost its shard without knowing does nothing. Its end is counted by Redis's own clock.
//!
//! `allow-oom`: what only reads or frees must work when memory is used up, or it would stay so.

use redis::Script;
use std::sync::LazyLock;

/// Everything below the oldest entry that some group has not confirmed.
const CONFIRMED: &str = r#"
local function trim(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err or #groups == 0 then return end
  local low_ms, low_seq
  for _, group in ipairs(groups) do
    local info = {}
    for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
    local id, step = info['last-delivered-id'], 1
    if info['pending'] > 0 then id, step = redis.call('XPENDING', stream, info['name'])[2], 0 end
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    ms, seq = tonumber(ms), tonumber(seq) + step
    if not low_ms or ms < low_ms or (ms == low_ms and seq < low_seq) then low_ms, low_seq = ms, seq end
  end
  redis.call('XTRIM', stream, 'MINID', string.format('%.0f-%.0f', low_ms, low_seq))
end
"#;

fn with_trim(flags: &str, code: &str) -> Script {
    Script::new(&format!("#!lua{flags}\n{CONFIRMED}{code}"))
}

/// KEYS: shards. ARGV: capacity of a shard, then of each entry: which shard, key, payload, trace. All or none.
/// Answers -1, or how many unread entries the full shard holds.
pub(super) static PUBLISH: LazyLock<Script> = LazyLock::new(|| {
    with_trim(
        "",
        r#"
local capacity, counts = tonumber(ARGV[1]), {}
for i = 2, #ARGV, 4 do
  local shard = tonumber(ARGV[i])
  counts[shard] = (counts[shard] or 0) + 1
end
for shard, count in pairs(counts) do
  local stream = KEYS[shard]
  if redis.call('XLEN', stream) + count > capacity then
    trim(stream)
    local held = redis.call('XLEN', stream)
    if held + count > capacity then return held end
  end
end
local now = redis.call('TIME')
local at = string.format('%s%06d', now[1], now[2])
for i = 2, #ARGV, 4 do
  redis.call('XADD', KEYS[tonumber(ARGV[i])], '*', 'key', ARGV[i + 1], 'payload', ARGV[i + 2], 'trace', ARGV[i + 3], 'at', at)
end
return -1
"#,
    )
});

/// KEYS: counter of the topic. ARGV: topic, how many this one stands for (itself and those that could not be sent), payload; without a
/// payload it only says how many could not be sent.
pub(super) static SIGNAL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
local n = redis.call('INCRBY', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[1], string.format('%.0f', n) .. (ARGV[3] and ':' .. ARGV[3] or '!'))
return n
"#,
    )
});

/// KEYS: identity of what this Redis holds. ARGV: a new one, should there be none. Answers the one in force.
pub(super) static PULSE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
redis.call('SET', KEYS[1], ARGV[1], 'NX')
return redis.call('GET', KEYS[1])
"#,
    )
});

/// Does nothing, and is refused as [`PUBLISH`] is when memory is used up.
pub(super) static ROOM: LazyLock<Script> = LazyLock::new(|| Script::new("#!lua\nreturn 1"));

/// KEYS: members, then leases held. ARGV: owner, lease in ms, then the leases' values.
/// Answers how many readers are alive, then for each lease whether it is still held.
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now - ARGV[2]))
local answer = { redis.call('ZCARD', KEYS[1]) }
for i = 2, #KEYS do
  local held = redis.call('GET', KEYS[i]) == ARGV[i + 1]
  if held then redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
  answer[i] = held and 1 or 0
end
return answer
"#,
    )
});

/// KEYS: of each shard wanted its lease, its epoch, its stream. ARGV: owner, lease in ms, group, how many at most.
/// Answers of each shard won: which of those asked for, the lease's value, the last id delivered, 1 when the group had to be made.
pub(super) static ACQUIRE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
local won = {}
for i = 1, #KEYS, 3 do
  if #won == tonumber(ARGV[4]) then break end
  if redis.call('EXISTS', KEYS[i]) == 0 then
    local value = ARGV[1] .. ':' .. redis.call('INCR', KEYS[i + 1])
    redis.call('SET', KEYS[i], value, 'PX', ARGV[2])
    local made = redis.pcall('XGROUP', 'CREATE', KEYS[i + 2], ARGV[3], '0', 'MKSTREAM')
    local last = '0-0'
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i + 2])) do
      local info = {}
      for j = 1, #group, 2 do info[group[j]] = group[j + 1] end
      if info['name'] == ARGV[3] then last = info['last-delivered-id'] end
    end
    won[#won + 1] = { (i + 2) / 3, value, last, made.err and 0 or 1 }
  end
end
return won
"#,
    )
});

/// KEYS: of each shard its lease and its stream. ARGV: owner, group, how many entries at most, then the leases' values.
/// Answers the time in µs, then of each shard a state (0 read, 1 lease lost, 2 no group, 3 not looked at, 4 failed) and entries, or why.
pub(super) static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
local now = redis.call('TIME')
local left, answer = tonumber(ARGV[3]), { string.format('%s%06d', now[1], now[2]) }
for i = 1, #KEYS, 2 do
  local reply
  if redis.call('GET', KEYS[i]) ~= ARGV[3 + (i + 1) / 2] then
    reply = { 1, {} }
  elseif left == 0 then
    reply = { 3, {} }
  else
    local read = redis.pcall('XREADGROUP', 'GROUP', ARGV[2], ARGV[1], 'COUNT', left, 'STREAMS', KEYS[i + 1], '>')
    if not read then
      reply = { 0, {} }
    elseif read.err then
      reply = string.find(read.err, 'NOGROUP', 1, true) and { 2, {} } or { 4, read.err }
    else
      local entries = read[1][2]
      left = left - #entries
      reply = { 0, entries }
    end
  end
  answer[#answer + 1] = reply
end
return answer
"#,
    )
});

/// KEYS: lease, stream. ARGV: the lease's value, group, owner, least idle time in ms, cursor, how many at most.
/// Answers the time in µs, the next cursor, the entries now this owner's, how often each was delivered, and ids whose entries are gone; or
/// nothing when the lease is lost.
pub(super) static SWEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local claimed = redis.call('XAUTOCLAIM', KEYS[2], ARGV[2], ARGV[3], ARGV[4], ARGV[5], 'COUNT', ARGV[6])
local counts = {}
for i, entry in ipairs(claimed[2]) do
  counts[i] = redis.call('XPENDING', KEYS[2], ARGV[2], entry[1], entry[1], 1)[1][4]
end
if claimed[1] == '0-0' then
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[2], ARGV[2])) do
    local info = {}
    for i = 1, #consumer, 2 do info[consumer[i]] = consumer[i + 1] end
    if info['name'] ~= ARGV[3] and info['pending'] == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], info['name']) end
  end
end
local now = redis.call('TIME')
return { string.format('%s%06d', now[1], now[2]), claimed[1], claimed[2], counts, claimed[3] or {} }
"#,
    )
});

/// KEYS: of each shard its lease and its stream. ARGV: group, then of each shard its lease's value, how many ids, the ids.
/// Answers how many acknowledgements came too late.
pub(super) static ACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
local at, fenced = 2, 0
for i = 1, #KEYS, 2 do
  local value, count = ARGV[at], tonumber(ARGV[at + 1])
  if redis.call('GET', KEYS[i]) == value then
    redis.call('XACK', KEYS[i + 1], ARGV[1], unpack(ARGV, at + 2, at + 1 + count))
  else
    fenced = fenced + count
  end
  at = at + 2 + count
end
return fenced
"#,
    )
});

/// The heartbeat of entries in work: claimed by who has them, so that they are not idle, without counting as a delivery.
/// KEYS: of each shard its lease and its stream. ARGV: group, owner, how many confirmed entries may stay, then of each shard its lease's
/// value, how many ids, the ids. Answers ids whose entries are gone. Trims, too.
pub(super) static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    with_trim(
        " flags=allow-oom",
        r#"
local at, gone = 4, {}
for i = 1, #KEYS, 2 do
  local value, count = ARGV[at], tonumber(ARGV[at + 1])
  if redis.call('GET', KEYS[i]) == value then
    local stream = KEYS[i + 1]
    for j = at + 2, at + 1 + count do
      local pending = redis.pcall('XPENDING', stream, ARGV[1], ARGV[j], ARGV[j], 1)
      if not pending.err and #pending > 0 then
        local kept = redis.call('XCLAIM', stream, ARGV[1], ARGV[2], 0, ARGV[j], 'JUSTID')
        if #kept == 0 then gone[#gone + 1] = ARGV[j] end
      end
    end
    if redis.call('XLEN', stream) > tonumber(ARGV[3]) then trim(stream) end
  end
  at = at + 2 + count
end
return gone
"#,
    )
});

/// Given back: how often an entry has been delivered is what its reader says. KEYS: lease, stream.
/// ARGV: the lease's value, group, owner, whether to let the shard go, then pairs of id and deliveries.
pub(super) static GIVE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 5, #ARGV, 2 do
  redis.pcall('XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, ARGV[i], 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
end
if ARGV[4] == '1' then
  redis.call('DEL', KEYS[1])
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[2], ARGV[2])
  if not consumers.err then
    for _, consumer in ipairs(consumers) do
      local info = {}
      for i = 1, #consumer, 2 do info[consumer[i]] = consumer[i + 1] end
      if info['name'] == ARGV[3] and info['pending'] == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], ARGV[3]) end
    end
  end
end
return 1
"#,
    )
});
