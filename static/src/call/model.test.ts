import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CallSnapshot, ConversationRow, Delta, Insight, Partial, Utterance, Word } from '../live/wire';
import { find, heardAt, lineAt } from './find';
import { Call } from './model';
import { overlaps, silences } from './spans';

const words = (text: string, start = 0): Word[] => text.split(' ').map((word, i) => ({ text: word, start_ms: start + i * 200, end_ms: start + i * 200 + 180, confidence: 0.9 }));
const utterance = (id: string, start_ms: number, text: string, channel = 0): Utterance => ({
  id,
  conversation_id: 'conv_1',
  channel,
  role: channel === 0 ? 'agent' : 'customer',
  seq: 0,
  kind: 'speech',
  start_ms,
  end_ms: start_ms + 1_000,
  text,
  confidence: 0.9,
  speech_final: true,
  word_times: 'estimated',
  words: words(text, start_ms),
  model: 'm',
  reason: null,
  trace_id: 't',
});
const partial = (id: string, rev: number, text: string): Partial => ({ utterance_id: id, channel: 0, role: 'agent', rev, start_ms: 0, end_ms: 500, text, stable_words: 1, words: words(text) });
const insight = (id: string, utterance_id: string, name: string): Insight =>
  ({ id, utterance_id, task: 'intent', labels: [{ name, score: 0.8 }], abstained: null, evidence: [], superseded_by: null }) as unknown as Insight;
const snapshot = (more: globalThis.Partial<CallSnapshot> = {}): CallSnapshot => ({
  conversation: { id: 'conv_1', state: 'live' } as ConversationRow,
  utterances: [],
  insights: [],
  partials: [],
  metrics: { conversation_id: 'conv_1', duration_ms: 0, silence_ms: 0, silence_ratio: 0, overlap_ms: 0, channels: [] },
  connected: true,
  lag_ms: null,
  ...more,
});
const delta = (type: string, data: unknown) => ({ v: 1, type, topic: 'conversation:conv_1', seq: 1, conversation_id: 'conv_1', emitted_at: '', data }) as Delta;
const texts = (call: Call) => call.said().map((turn) => turn.utterance.text);

test('a partial grows, never shrinks back to an older revision, and gives way to its final', () => {
  const call = Call.of(snapshot());
  call.apply(delta('utterance.partial', partial('u1', 2, 'hello there')));
  call.apply(delta('utterance.partial', partial('u1', 1, 'hello')));
  assert.deepEqual(
    call.partials().map((one) => one.text),
    ['hello there'],
  );
  call.apply(delta('utterance.final', { utterance: utterance('u1', 0, 'hello there Anna') }));
  call.apply(delta('utterance.partial', partial('u1', 3, 'late')));
  assert.deepEqual(call.partials(), []);
  assert.deepEqual(texts(call), ['hello there Anna']);
});

test('a retracted utterance disappears, unfinished or finished', () => {
  const call = Call.of(snapshot({ utterances: [utterance('u1', 0, 'phantom')], partials: [partial('u2', 1, 'noise')] }));
  call.apply(delta('utterance.retracted', { utterance_id: 'u1' }));
  call.apply(delta('utterance.retracted', { utterance_id: 'u2' }));
  assert.deepEqual(texts(call), []);
  assert.deepEqual(call.partials(), []);
});

test('lines stand in the order they were spoken, whenever they were finished', () => {
  const call = Call.of(snapshot({ utterances: [utterance('u2', 4_000, 'second')] }));
  call.apply(delta('utterance.final', { utterance: utterance('u3', 9_000, 'third') }));
  call.apply(delta('utterance.final', { utterance: utterance('u1', 1_000, 'first', 1) }));
  call.apply(delta('utterance.final', { utterance: utterance('u2', 4_000, 'second, told again') }));
  assert.deepEqual(texts(call), ['first', 'second, told again', 'third']);
});

test('an insight finds its line even when it comes first, and a better one replaces it', () => {
  const call = Call.of(snapshot());
  call.apply(delta('insight.created', { insight: insight('i1', 'u1', 'rules_guess') }));
  call.apply(delta('utterance.final', { utterance: utterance('u1', 0, 'cancel it') }));
  assert.equal(call.turn('u1')?.intent?.id, 'i1');
  call.apply(delta('insight.superseded', { insight_id: 'i1', by: 'i2' }));
  assert.equal(call.turn('u1')?.intent, null);
  call.apply(delta('insight.created', { insight: insight('i2', 'u1', 'cancel_service') }));
  call.apply(delta('insight.created', { insight: insight('i1', 'u1', 'rules_guess') }));
  assert.equal(call.turn('u1')?.intent?.id, 'i2', 'a superseded insight that arrives late stays away');
});

test('the end of the call ends what was unfinished', () => {
  const call = Call.of(snapshot({ partials: [partial('u9', 1, 'and then')] }));
  call.apply(delta('speech.activity', { channel: 1, talking: true }));
  call.apply(delta('conversation.ended', { conversation: { id: 'conv_1', state: 'abandoned' } }));
  assert.deepEqual(call.partials(), []);
  assert.deepEqual(call.talking, []);
  assert.equal(call.conversation.state, 'abandoned');
});

test('a phrase is found whatever its case and commas, and an unfinished last word counts', () => {
  const call = Call.of(snapshot({ utterances: [utterance('u1', 0, 'No, my Bill is wrong.'), utterance('u2', 2_000, 'Which bill?')] }));
  assert.deepEqual(find(call.said(), 'my bi'), [{ utteranceId: 'u1', from: 1, to: 3 }]);
  assert.equal(find(call.said(), 'bill').length, 2);
  assert.equal(find(call.said(), '  ').length, 0);
});

test('the word being heard follows the position, on both channels at once', () => {
  const call = Call.of(snapshot({ utterances: [utterance('u1', 0, 'one two three four five'), utterance('u2', 500, 'yes yes', 1)] }));
  assert.deepEqual(heardAt(call.said(), 650), { u2: 0, u1: 3 });
  assert.deepEqual(heardAt(call.said(), 60_000), {});
  assert.equal(lineAt(call.said(), 800)?.utterance.id, 'u2');
});

test('both at once and nobody at all', () => {
  const spoken = [
    { channel: 0, start_ms: 0, end_ms: 4_000 },
    { channel: 1, start_ms: 3_000, end_ms: 6_000 },
    { channel: 0, start_ms: 12_000, end_ms: 13_000 },
  ];
  assert.deepEqual(overlaps(spoken), [{ from: 3_000, to: 4_000 }]);
  assert.deepEqual(silences(spoken, 13_000, 3_000), [{ from: 6_000, to: 12_000 }]);
});
