//! The commit rule against everything a bus and a dying owner can do, many thousand times, on the real statements.

use super::super::{commit, conversations, database::Database, store, store::Conn, writer::Effects};
use super::*;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Samples of the channel; cuts fall on whole hundreds.
const LENGTH: u64 = 4_000;

/// Whoever holds, or held, the channel: cuts audio into segments and keeps each until it is confirmed.
struct Producer {
    epoch: Epoch,
    next_seq: u64,
    pos: u64,
    journal: Vec<Segment>,
}

impl Producer {
    fn cut(&mut self, id: ConversationId, random: &mut StdRng) -> Option<Segment> {
        let left = LENGTH - self.pos;
        if left == 0 {
            return None;
        }
        let end = self.pos + left.min(random.random_range(1..=8) * 100);
        let body = match random.random_range(0..10) {
            0..3 => SegmentBody::Silence,
            3 => SegmentBody::Gap { reason: "lost".into() },
            _ => speech("as heard", self.pos..end),
        };
        let segment = Segment {
            conversation: id,
            channel: AGENT,
            epoch: self.epoch,
            seq: self.next_seq,
            start: SamplePos(self.pos),
            end: SamplePos(end),
            body,
            trace: TraceCx { trace_id: 1, span_id: 1, sampled: false },
        };
        self.next_seq += 1;
        self.pos = end;
        self.journal.push(segment.clone());
        Some(segment)
    }
}

/// What is under test: attaching and committing.
trait Rule {
    fn attach(&mut self) -> (Epoch, SamplePos, u64);
    fn commit(&mut self, segment: &Segment) -> CommitOutcome;
}

/// Plays one random history and returns what the rule accepted, or what went wrong.
fn play(id: ConversationId, seed: u64, rule: &mut dyn Rule) -> Result<Vec<Segment>, String> {
    let random = &mut StdRng::seed_from_u64(seed);
    let attach = |rule: &mut dyn Rule| {
        let (epoch, safe, next_seq) = rule.attach();
        Producer { epoch, next_seq, pos: safe.0, journal: vec![] }
    };
    let mut producers = vec![attach(rule)];
    let mut bus: Vec<Segment> = vec![];
    let mut accepted: Vec<Segment> = vec![];
    let deliver = |segment: &Segment, rule: &mut dyn Rule, accepted: &mut Vec<Segment>, owner: Epoch| {
        let outcome = rule.commit(segment);
        match outcome {
            CommitOutcome::Committed if segment.epoch != owner => Err(format!("{segment:?} was taken from a fenced owner")),
            CommitOutcome::Committed => {
                accepted.push(segment.clone());
                Ok(())
            }
            CommitOutcome::Duplicate if !accepted.iter().any(|a| same(a, segment)) => Err(format!("{segment:?} is no duplicate")),
            CommitOutcome::Stale if segment.epoch == owner => Err(format!("the owner's {segment:?} was called stale")),
            CommitOutcome::Mismatch if segment.epoch == owner => Err(format!("the owner's {segment:?} was called a mismatch")),
            _ => Ok(()),
        }
    };
    for _ in 0..random.random_range(10..60) {
        let owner = producers.last().expect("one at least").epoch;
        match random.random_range(0..100) {
            // A producer, most often the owner and sometimes a fenced one that does not know it, hears something.
            0..40 => {
                let n = producers.len();
                let who = if random.random_bool(0.7) { n - 1 } else { random.random_range(0..n) };
                bus.extend(producers[who].cut(id, random));
            }
            40..70 if !bus.is_empty() => {
                let at = if random.random_bool(0.7) { 0 } else { random.random_range(0..bus.len()) };
                let segment = bus.remove(at);
                deliver(&segment, rule, &mut accepted, owner)?;
            }
            70..78 if !bus.is_empty() => bus.push(bus[random.random_range(0..bus.len())].clone()),
            78..84 if !bus.is_empty() => drop(bus.remove(random.random_range(0..bus.len()))),
            84..86 => bus.clear(),
            86..94 => bus.extend(producers[random.random_range(0..producers.len())].journal.iter().cloned()),
            94..100 => producers.push(attach(rule)),
            _ => {}
        }
    }
    // Calm: the last owner goes on to the end. What it must still send is what the record has not got.
    let owner = producers.last_mut().expect("one at least");
    while owner.cut(id, random).is_some() {}
    bus.extend(owner.journal.iter().cloned());
    for segment in &bus {
        deliver(segment, rule, &mut accepted, owner.epoch)?;
    }
    Ok(accepted)
}

fn same(a: &Segment, b: &Segment) -> bool {
    (a.epoch, a.seq, a.start, a.end) == (b.epoch, b.seq, b.start, b.end)
}

/// Everything was taken, once, without a hole.
fn check_partition(accepted: &[Segment]) -> Result<(), String> {
    let mut pos = 0;
    for (n, segment) in accepted.iter().enumerate() {
        if segment.start.0 != pos || segment.seq != n as u64 {
            return Err(format!("after sample {pos} and {n} segments came {segment:?}"));
        }
        pos = segment.end.0;
    }
    if pos == LENGTH { Ok(()) } else { Err(format!("the channel ends at {pos} of {LENGTH}")) }
}

struct Stored<'a> {
    conn: &'a mut Conn,
    id: ConversationId,
    tenant: TenantId,
    effects: Effects,
}

impl Rule for Stored<'_> {
    fn attach(&mut self) -> (Epoch, SamplePos, u64) {
        let request = Attach { conversation: self.id, channel: AGENT };
        let attached = conversations::attach(self.conn, &self.tenant, &request).expect("the conversation is live");
        (attached.epoch, attached.safe, attached.next_seq)
    }
    fn commit(&mut self, segment: &Segment) -> CommitOutcome {
        let outcomes = commit::commit(self.conn, &mut self.effects, &self.tenant, std::slice::from_ref(segment));
        outcomes.expect("the database answers")[0].clone()
    }
}

/// An empty record's writing connection; the folder must be kept as long as it.
fn conn(on: On) -> (Conn, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = Database::take(dir.path(), &on.settings().record).expect("it is free");
    (database.open().expect("opens"), dir)
}

fn check_seeds(on: On, seeds: u64) {
    let (mut conn, _dir) = conn(on);
    let tenant = TenantId::default();
    let mut taken = 0;
    for seed in 0..seeds {
        let id = ConversationId::from_u128(u128::from(seed) + 1);
        if seed % 100 == 0 {
            store::begin_write(&mut conn).expect("begins");
        }
        conversations::open(&mut conn, &mut Effects::default(), &tenant, &opening(id, None, &[])).expect("opens");
        let mut stored = Stored { conn: &mut conn, id, tenant: tenant.clone(), effects: Effects::default() };
        let accepted = play(id, seed, &mut stored).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        check_partition(&accepted).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        check_rows(&mut conn, &tenant, id, &accepted, seed);
        if seed % 100 == 99 {
            store::commit(&mut conn).expect("commits");
        }
        taken += accepted.len();
    }
    assert!(taken as u64 > 3 * seeds, "only {taken} segments were ever taken: the histories are too tame");
}

#[test]
fn whatever_the_bus_does_a_channel_is_stored_once_and_without_a_hole() {
    check_seeds(On::Sqlite, 3_000);
}

#[test]
fn whatever_the_bus_does_a_channel_is_stored_once_and_without_a_hole_on_postgres_too() {
    if On::Postgres.is_here() {
        check_seeds(On::Postgres, 400);
    }
}

/// The rows say what was accepted, and nothing else.
fn check_rows(conn: &mut Conn, tenant: &TenantId, id: ConversationId, accepted: &[Segment], seed: u64) {
    let rows = super::super::transcript::page(conn, tenant, id, None, MOST_UTTERANCES).expect("readable").data;
    let kept: Vec<&Segment> = accepted.iter().filter(|s| s.body != SegmentBody::Silence).collect();
    let told: Vec<(UtteranceId, u64)> = rows.iter().map(|r| (r.id, r.seq)).collect();
    let expected: Vec<(UtteranceId, u64)> = kept.iter().map(|s| (s.utterance_id(), s.seq)).collect();
    assert_eq!(told, expected, "seed {seed}");
    let row = conversations::row(conn, tenant, id).expect("readable");
    let spoken = kept.iter().filter(|s| matches!(s.body, SegmentBody::Speech(_))).count();
    assert_eq!((row.utterance_count, row.duration_ms), (spoken as u64, LENGTH / 8), "seed {seed}");
}

/// Rules that look sufficient. Each lets something through; the histories above must show it.
struct Weak {
    epoch: u32,
    next_seq: u64,
    safe: u64,
    seen: Vec<(u64, Epoch, SamplePos, SamplePos)>,
    checks_epoch: bool,
    checks_range: bool,
}

impl Rule for Weak {
    fn attach(&mut self) -> (Epoch, SamplePos, u64) {
        self.epoch += 1;
        (Epoch(self.epoch), SamplePos(self.safe), self.next_seq)
    }
    fn commit(&mut self, s: &Segment) -> CommitOutcome {
        if s.seq < self.next_seq {
            let known = self.seen.contains(&(s.seq, s.epoch, s.start, s.end)) || !self.checks_range;
            return if known { CommitOutcome::Duplicate } else { CommitOutcome::Stale };
        }
        if self.checks_epoch && s.epoch.0 != self.epoch {
            return CommitOutcome::Stale;
        }
        if s.seq > self.next_seq {
            return CommitOutcome::Ahead { next_seq: self.next_seq, safe: SamplePos(self.safe) };
        }
        if self.checks_range && s.start.0 != self.safe {
            return CommitOutcome::Mismatch;
        }
        self.seen.push((s.seq, s.epoch, s.start, s.end));
        (self.next_seq, self.safe) = (s.seq + 1, s.end.0);
        CommitOutcome::Committed
    }
}

#[test]
fn the_same_histories_find_what_weaker_rules_let_through() {
    let broken = |checks_epoch, checks_range| {
        let played = (0..500).filter(|seed| {
            let mut weak = Weak { epoch: 0, next_seq: 0, safe: 0, seen: vec![], checks_epoch, checks_range };
            let accepted = play(ConversationId::from_u128(1), *seed, &mut weak);
            accepted.and_then(|a| check_partition(&a)).is_err()
        });
        played.count()
    };
    assert_eq!(broken(true, true), 0, "the whole rule, as a model");
    assert!(broken(false, true) > 100, "without the epoch");
    assert!(broken(false, false) > 100, "by key alone");
}

#[test]
fn numbers_no_sender_can_mean_are_mismatches_and_change_nothing() {
    for on in [On::Sqlite, On::Postgres].into_iter().filter(|on| on.is_here()) {
        check_odd_numbers(on);
    }
}

fn check_odd_numbers(on: On) {
    let (mut conn, _dir) = conn(on);
    let (tenant, id) = (TenantId::default(), ConversationId::from_u128(1));
    conversations::open(&mut conn, &mut Effects::default(), &tenant, &opening(id, None, &[])).expect("opens");
    let mut stored = Stored { conn: &mut conn, id, tenant, effects: Effects::default() };
    let epoch = stored.attach().0;
    let of = |seq, start, end| Segment {
        conversation: id,
        channel: AGENT,
        epoch,
        seq,
        start: SamplePos(start),
        end: SamplePos(end),
        body: SegmentBody::Silence,
        trace: TraceCx::root(),
    };
    for wrong in [of(0, 0, u64::MAX), of(0, u64::MAX, 0), of(u64::MAX, 0, 1), of(0, 9, 3), of(0, 0, 0)] {
        assert_eq!(stored.commit(&wrong), CommitOutcome::Mismatch, "{wrong:?}");
    }
    assert_eq!(stored.commit(&of(0, 0, i64::MAX as u64)), CommitOutcome::Committed);
    // A channel or conversation that was never opened here: stop sending, ask anew.
    assert_eq!(stored.commit(&Segment { channel: ChannelIndex(9), ..of(0, 0, 5) }), CommitOutcome::Stale);
    assert_eq!(stored.commit(&Segment { conversation: ConversationId::from_u128(2), ..of(0, 0, 5) }), CommitOutcome::Stale);
}
