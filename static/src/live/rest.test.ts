import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';
import { Refusal, status } from './rest';

const real = globalThis.fetch;
afterEach(() => {
  globalThis.fetch = real;
});

const answering = (body: BodyInit | null, init?: ResponseInit) => {
  globalThis.fetch = () => Promise.resolve(new Response(body, init));
};

test('a question taken back while its answer comes in is never answered', async () => {
  const abort = new AbortController();
  answering(new ReadableStream({ pull: (body) => (abort.abort(), body.error(abort.signal.reason)) }));
  await assert.rejects(status(abort.signal), { name: 'AbortError' });
});

test('an answer that is cut short is no answer', async () => {
  answering('{"version": "1');
  await assert.rejects(status(), (error: unknown) => error instanceof Refusal && error.status === 200);
});

test('a refusal says what the server said', async () => {
  answering('{"detail": "limit is 0: expected 1 to 200"}', { status: 400 });
  await assert.rejects(status(), (error: unknown) => error instanceof Refusal && error.status === 400 && error.message.startsWith('limit'));
  answering('<html>', { status: 502, statusText: 'Bad Gateway' });
  await assert.rejects(status(), { message: 'Bad Gateway' });
});
