import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Kept } from './kept';

const piece = (length: number) => new Int16Array(length);

test('audio is kept until it is safe, then forgotten', () => {
  const kept = new Kept(1_000);
  assert.equal(kept.add(piece(100)), 0);
  assert.equal(kept.add(piece(100)), 100);
  assert.equal(kept.waiting, 200);
  kept.safe(150);
  assert.equal(kept.waiting, 100, 'a piece is forgotten when all of it is safe');
  kept.safe(200);
  assert.equal(kept.waiting, 0);
  assert.equal(kept.end, 200);
});

test('after a reconnect everything from safe on is sent again, in order', () => {
  const kept = new Kept(1_000);
  for (let i = 0; i < 4; i++) kept.add(piece(100));
  assert.deepEqual(
    kept.from(150).map((one) => one.position),
    [100, 200, 300],
  );
  assert.deepEqual(kept.from(400), []);
});

test('when too much piles up the oldest goes, and is counted', () => {
  const kept = new Kept(250);
  for (let i = 0; i < 4; i++) kept.add(piece(100));
  assert.equal(kept.dropped, 200);
  assert.equal(kept.waiting, 200);
  assert.equal(kept.end, 400, 'positions never go back');
});
