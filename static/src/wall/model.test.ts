import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ConversationRow, Delta, WallTile } from '../live/wire';
import { Wall } from './model';
import { matches, risk, sorted, steady } from './risk';

const row = (id: string, more: Partial<ConversationRow> = {}): ConversationRow => ({
  id,
  external_id: null,
  title: `Call ${id}`,
  source: 'native',
  language: 'en',
  tags: [],
  state: 'live',
  started_at: '2026-01-01T10:00:00Z',
  ended_at: null,
  duration_ms: 0,
  channels: [0, 1].map((channel) => ({ channel, role: channel === 0 ? 'agent' : 'customer', encoding: 'mulaw', sample_rate: 8000 })),
  utterance_count: 0,
  intent: null,
  sentiment: null,
  finalization: null,
  recording: true,
  ...more,
});
const tile = (id: string, more: Partial<WallTile> = {}): WallTile => ({
  ...row(id),
  last_text: null,
  last_role: null,
  last_at: null,
  talking: [false, false],
  lag_ms: null,
  connected: true,
  sentiments: [],
  ...more,
});
const delta = (type: string, conversation: string, data: unknown) =>
  ({ v: 1, type, topic: 'wall', seq: 1, conversation_id: conversation, emitted_at: '2026-01-01T10:00:05Z', data }) as Delta;
const said = (conversation: string, id: string, role: string, start_ms = 1_000) =>
  delta('utterance.final', conversation, { utterance: { id, role, kind: 'speech', start_ms, end_ms: start_ms + 900, text: `words of ${id}` } });
const felt = (conversation: string, utterance_id: string, name: string, score = 0.9) =>
  delta('insight.created', conversation, {
    insight: { id: `ins_${utterance_id}`, utterance_id, task: 'sentiment', labels: [{ name, score }], abstained: null, provenance: { tier: 'local' } },
  });

test('a snapshot replaces everything', () => {
  const wall = new Wall();
  assert.equal(wall.known, false);
  wall.snapshot({ conversations: [tile('a'), tile('b')] });
  wall.snapshot({ conversations: [tile('c')] });
  assert.deepEqual(
    wall.live().map((one) => one.id),
    ['c'],
  );
});

test('a final becomes the last line, and only its tile is a new object', () => {
  const wall = new Wall();
  wall.snapshot({ conversations: [tile('a'), tile('b')] });
  const [a, b] = wall.live();
  wall.apply(said('a', 'u1', 'customer'));
  const [a2, b2] = wall.live();
  assert.notEqual(a2, a);
  assert.equal(b2, b);
  assert.equal(a2?.last_text, 'words of u1');
  assert.equal(a2?.last_role, 'customer');
});

test("only the customer's sentiment moves the line", () => {
  const wall = new Wall();
  wall.snapshot({ conversations: [tile('a')] });
  wall.apply(said('a', 'u1', 'agent', 0));
  wall.apply(said('a', 'u2', 'customer', 2_000));
  wall.apply(felt('a', 'u1', 'positive'));
  wall.apply(felt('a', 'u2', 'negative'));
  wall.apply(felt('a', 'unheard of', 'negative'));
  const [a] = wall.live();
  assert.deepEqual(a?.sentiments, [{ at_ms: 2_000, name: 'negative', score: 0.9 }]);
  assert.equal(a?.sentiment?.name, 'negative');
});

test('an older turn judged late does not become the latest mood', () => {
  const wall = new Wall();
  wall.snapshot({ conversations: [tile('a')] });
  wall.apply(said('a', 'u1', 'customer', 1_000));
  wall.apply(said('a', 'u2', 'customer', 5_000));
  wall.apply(felt('a', 'u2', 'positive'));
  wall.apply(felt('a', 'u1', 'negative'));
  const [a] = wall.live();
  assert.deepEqual(
    a?.sentiments.map((one) => one.name),
    ['negative', 'positive'],
  );
  assert.equal(a?.sentiment?.name, 'positive');
});

test('an ended call leaves the live ones, keeps its last line and is silent', () => {
  const wall = new Wall();
  wall.snapshot({ conversations: [tile('a', { talking: [true, false] })] });
  wall.apply(said('a', 'u1', 'agent'));
  wall.apply(delta('conversation.ended', 'a', { conversation: row('a', { state: 'complete', ended_at: '2026-01-01T10:01:00Z' }) }));
  assert.equal(wall.live().length, 0);
  const [ended] = wall.ended(Date.parse('2026-01-01T10:02:00Z'));
  assert.equal(ended?.last_text, 'words of u1');
  assert.deepEqual(ended?.talking, [false, false]);
  assert.equal(wall.ended(Date.parse('2026-01-01T10:20:00Z')).length, 0, 'ten minutes later it is gone');
});

test('memory stays flat over a long day of calls', () => {
  const wall = new Wall();
  wall.snapshot({ conversations: [] });
  for (let i = 0; i < 1_000; i++) {
    const id = String(i);
    wall.apply(delta('conversation.started', id, { conversation: row(id) }));
    for (let u = 0; u < 60; u++) wall.apply(said(id, `${id}-${u}`, 'customer', u * 1_000));
    wall.apply(delta('conversation.ended', id, { conversation: row(id, { state: 'complete', ended_at: new Date(Date.UTC(2026, 0, 1, 10, 0, i)).toISOString() }) }));
  }
  const kept = wall.ended(0);
  assert.ok(kept.length <= 60, `${kept.length} kept`);
  assert.ok(kept.every((one) => one.spoken.length <= 24));
});

test('the most worrying call comes first', () => {
  const mood = (...names: string[]) => names.map((name, i) => ({ at_ms: i * 1_000, name, score: 0.9 }));
  const tiles = [
    { ...tile('calm', { sentiments: mood('positive', 'neutral') }), spoken: [] },
    { ...tile('soured', { sentiments: mood('positive', 'negative', 'negative') }), spoken: [] },
    { ...tile('mended', { sentiments: mood('negative', 'negative', 'positive') }), spoken: [] },
  ];
  assert.deepEqual(
    sorted(tiles, 'risk').map((one) => one.id),
    ['soured', 'mended', 'calm'],
  );
  assert.equal(risk({ ...tile('new'), spoken: [] }), 0);
});

test('a wall under a hand keeps its order, and new calls come last', () => {
  const tiles = ['new', 'b', 'a'].map((id) => ({ ...tile(id), spoken: [] }));
  assert.deepEqual(
    steady(tiles, ['a', 'gone', 'b']).map((one) => one.id),
    ['a', 'b', 'new'],
  );
});

test('a filter looks at title, words, intent and tags', () => {
  const one = { ...tile('a', { title: 'Router', last_text: 'I want a refund', intent: { name: 'cancel_service', score: 1, tier: 'local' }, tags: ['vip'] }), spoken: [] };
  for (const query of ['', 'ROUTER', 'refund vip', 'cancel service']) assert.ok(matches(one, query), query);
  assert.ok(!matches(one, 'refund zebra'));
});
