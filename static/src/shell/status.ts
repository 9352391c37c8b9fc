// What the server says about itself, asked twice a minute and whenever the feed comes back.

import { effect, signal } from '@preact/signals';
import { link } from '../live/feed';
import { status as ask } from '../live/rest';
import type { ServerStatus, TierStatus } from '../live/wire';

const EVERY_MS = 30_000;

export const status = signal<ServerStatus | null>(null);

async function refresh(): Promise<void> {
  try {
    status.value = await ask();
  } catch {
    // The link says that the server is away; the last known status stays, marked by it.
  }
}

/** A rung went up or down; the next answer of the server will agree. */
export function tierChanged(changed: TierStatus): void {
  const known = status.peek();
  if (!known) return;
  status.value = { ...known, tiers: [...known.tiers.filter((one) => one.task !== changed.task), changed] };
}

export function watchStatus(): void {
  window.setInterval(() => {
    if (document.visibilityState === 'visible') void refresh();
  }, EVERY_MS);
  let before = '';
  effect(() => {
    const state = link.value.state;
    if (state === 'live' || before === '') void refresh();
    before = state;
  });
}
