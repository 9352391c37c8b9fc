// Opens one conversation for the page that shows it: a live one from the feed, an ended one from the record.
//
// Invariants: what is shown was said by the server; when the feed starts over, its snapshot replaces everything; leaving the page ends
// every request and subscription made here.

import { type ReadonlySignal, signal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { feed } from '../live/feed';
import * as rest from '../live/rest';
import type { CallSnapshot } from '../live/wire';
import { perPaint } from '../shell/redraw';
import { Call, UTTERANCES_KEPT } from './model';

/** A conversation that was opened a moment ago may not be in the record yet. */
const YOUNG_TRIES = 40;
const YOUNG_WAIT_MS = 250;
const UNREACHED_WAIT_MS = 3_000;

export type Opening = { is: 'loading' } | { is: 'ready'; call: Call } | { is: 'missing' } | { is: 'failed'; why: string };

export interface OpenCall {
  opening: ReadonlySignal<Opening>;
  /** Rises when the call has to be drawn again. */
  drawn: ReadonlySignal<number>;
  again(): void;
}

/** `young`: it has only just been opened by this page. */
export function useCall(id: string, young = false): OpenCall {
  const held = useMemo(() => open(id, young), [id]);
  useEffect(() => {
    held.again();
    return held.leave;
  }, [held]);
  return held;
}

function open(id: string, young: boolean): OpenCall & { leave: () => void } {
  const opening = signal<Opening>({ is: 'loading' });
  let call: Call | null = null;
  let resets = 0;
  const { drawn, touch } = perPaint(() => resets * 1e9 + (call?.version ?? 0));
  let abort = new AbortController();
  let unfollow: (() => void) | null = null;
  let timer = 0;
  let tries = 0;

  function show(next: Call): void {
    call = next;
    resets += 1;
    opening.value = { is: 'ready', call: next };
    touch();
  }

  function follow(): void {
    unfollow?.();
    unfollow = feed().follow(`conversation:${id}`, true, {
      snapshot: (data) => show(Call.of(data as CallSnapshot)),
      delta: (frame) => {
        call?.apply(frame);
        touch();
        if (frame.type === 'conversation.ended') void settle();
      },
      refused: () => {
        unfollow?.();
        unfollow = null;
        later(YOUNG_WAIT_MS);
      },
    });
  }

  /** The figures of the whole call; what came live was a second old. */
  async function settle(): Promise<void> {
    const metrics = await rest.metrics(id, abort.signal).catch(() => null);
    if (!call || !metrics) return;
    call.metrics = metrics;
    call.version += 1;
    touch();
  }

  function later(ms: number): void {
    tries += 1;
    window.clearTimeout(timer);
    timer = window.setTimeout(() => void load(), ms);
  }

  async function load(): Promise<void> {
    const { signal: stop } = abort;
    try {
      const row = await rest.conversation(id, stop);
      if (row.state === 'live') {
        follow();
        return;
      }
      const [utterances, insights, metrics] = await Promise.all([
        rest.utterances(id, UTTERANCES_KEPT, stop),
        rest.insights(id, stop),
        rest.metrics(id, stop),
      ]);
      show(Call.of({ conversation: row, utterances, insights, partials: [], metrics, connected: true, lag_ms: null }));
    } catch (error) {
      if (stop.aborted) return;
      if (!(error instanceof rest.Refusal)) throw error;
      if (error.status === 404 && young && tries < YOUNG_TRIES) later(YOUNG_WAIT_MS);
      else if (error.status === 404) opening.value = { is: 'missing' };
      else {
        opening.value = { is: 'failed', why: error.message };
        if (error.status === 0) later(UNREACHED_WAIT_MS);
      }
    }
  }

  function leave(): void {
    abort.abort();
    window.clearTimeout(timer);
    unfollow?.();
    unfollow = null;
  }

  return {
    opening,
    drawn,
    leave,
    again() {
      leave();
      abort = new AbortController();
      tries = 0;
      void load();
    },
  };
}
