import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fresh, resumeFrom, step } from './cursor';
import type { Envelope } from './wire';

const frame = (type: string, seq: number | null, data: unknown = {}) => ({ v: 1, type, topic: 'wall', seq, conversation_id: null, emitted_at: '', data }) as Envelope;

test('a delta before any snapshot is not applied', () => {
  assert.equal(step(fresh(), frame('lag', 4, { ms: 1 }), 'a'), 'skip');
});

test('deltas follow the snapshot once and in order', () => {
  const cursor = fresh();
  assert.equal(step(cursor, frame('snapshot', 10), 'a'), 'replace');
  assert.equal(step(cursor, frame('utterance.final', 10), 'a'), 'skip', 'the snapshot has it');
  assert.equal(step(cursor, frame('utterance.final', 11), 'a'), 'apply');
  assert.equal(step(cursor, frame('utterance.final', 11), 'a'), 'skip', 'twice');
  assert.equal(step(cursor, frame('utterance.final', 12), 'a'), 'apply');
});

test('what passes by unnumbered is applied and moves nothing', () => {
  const cursor = fresh();
  step(cursor, frame('snapshot', 3), 'a');
  assert.equal(step(cursor, frame('speech.activity', null), 'a'), 'apply');
  assert.equal(cursor.seq, 3);
});

test('a hole nobody announced asks for a snapshot', () => {
  const cursor = fresh();
  step(cursor, frame('snapshot', 3), 'a');
  assert.equal(step(cursor, frame('utterance.final', 5), 'a'), 'again');
});

test('an announced gap is counted and passed over', () => {
  const cursor = fresh();
  step(cursor, frame('snapshot', 3), 'a');
  assert.equal(step(cursor, frame('gap', null, { from_seq: 4, to_seq: 9 }), 'a'), 'skip');
  assert.equal(cursor.dropped, 6);
  assert.equal(step(cursor, frame('utterance.final', 10), 'a'), 'apply');
});

test('a gap that leaves a hole before it asks for a snapshot', () => {
  const cursor = fresh();
  step(cursor, frame('snapshot', 3), 'a');
  assert.equal(step(cursor, frame('gap', null, { from_seq: 6, to_seq: 9 }), 'a'), 'again');
});

test('a feed that started over is not resumed: its numbers mean something else', () => {
  const cursor = fresh();
  step(cursor, frame('snapshot', 40), 'a');
  assert.deepEqual(resumeFrom(cursor), { since_seq: 40, epoch: 'a' });
  assert.equal(step(cursor, frame('utterance.final', 41), 'b'), 'skip');
  assert.equal(step(cursor, frame('snapshot', 2), 'b'), 'replace');
  assert.equal(step(cursor, frame('utterance.final', 3), 'b'), 'apply');
});

test('without a position the subscription begins with a snapshot', () => {
  assert.deepEqual(resumeFrom(fresh()), {});
});
