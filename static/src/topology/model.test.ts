import assert from 'node:assert/strict';
import { test } from 'node:test';
import { age, consequences, percent, stages, told } from './model';
import type { Dial, Route } from './wire';

const dial = (mode: Dial['mode'], remote_percent = 0, shadow_percent = 0): Dial => ({ mode, remote_percent, shadow_percent });

test('stages lead from local to remote, and only questions are shadowed', () => {
  assert.deepEqual(
    stages('inference', dial('local')).map((stage) => stage.name),
    ['local', 'shadow', '1 %', '10 %', '50 %', '100 %', 'remote'],
  );
  assert.equal(stages('audio', dial('local')).length, 6);
});

test('the dial stands on one stage, or between two', () => {
  const here = (d: Dial) => stages('inference', d).filter((stage) => stage.here).map((stage) => stage.name);
  assert.deepEqual(here(dial('local')), ['local']);
  assert.deepEqual(here(dial('routed', 0, 5)), ['shadow']);
  assert.deepEqual(here(dial('routed', 50, 5)), ['50 %']);
  assert.deepEqual(here(dial('routed', 25)), []);
  assert.deepEqual(here(dial('remote')), ['remote']);
});

test('a dial is told as the server tells it', () => {
  assert.equal(told(dial('routed', 25, 5)), '25 % remote, 5 % shadowed');
  assert.equal(told(dial('remote', 25, 5)), 'remote');
});

test('a turn is told with what becomes of live calls', () => {
  const target = { name: 'local', source: null, lease_ms: null, down: null, breaker: 'closed' as const, calls: 0, slots: 1, streams: 3, recent: { calls: 0, failed: 0, p50_ms: 0, p99_ms: 0 } };
  const route: Route = { module: 'audio', version: 1, dial: dial('local'), targets: [target], lost: [] };
  const turned = { from: dial('local'), to: dial('routed', 10), version: 1, dry_run: true, asked_to_move: 0 };
  assert.match(consequences(route, turned, false).join(' '), /From local to 10 % remote.*3 live streams stay/);
  assert.match(consequences(route, turned, true).join(' '), /3 live streams, those whose place changes move/);
  assert.match(consequences(route, { ...turned, to: dial('local') }, false).join(' '), /local already/);
});

test('an age is told in the largest unit of which there are two', () => {
  assert.deepEqual([0, 12, 119, 120, 7_199, 7_200, 172_799, 172_800].map(age), ['0 s', '12 s', '119 s', '2 min', '119 min', '2 h', '47 h', '2 d']);
});

test('a percentage is whole and between 0 and 100', () => {
  assert.deepEqual(['0', '25', '100', '101', '-1', '2.5', '', 'x'].map(percent), [0, 25, 100, null, null, null, null, null]);
});
