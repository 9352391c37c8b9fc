// Says honestly how fresh the page is: connecting, live, lagging by how much, reconnecting, stale since when, ended.

import { computed, signal } from '@preact/signals';
import { useEffect, useReducer } from 'preact/hooks';
import { feed, feedDelayMs, link } from '../live/feed';
import { inSeconds, m, timeOfDay } from '../messages';
import { Icon } from '../parts/icon';

/** Behind by more than this, the page does not call itself live. */
const LAGGING_MS = 2_000;

/** How far the text of what is shown is behind its audio; the page on screen writes it. */
export const transcriptLagMs = signal<number | null>(null);
/** The conversation on screen has ended: there is nothing to be live about. */
export const shownHasEnded = signal(false);

export const behindMs = computed(() => Math.max(feedDelayMs.value, transcriptLagMs.value ?? 0));

export function LinkState() {
  const current = link.value;
  let kind: string = current.state;
  let text: string;
  switch (current.state) {
    case 'connecting':
      text = m.link.connecting;
      break;
    case 'live':
      if (shownHasEnded.value) {
        kind = 'ended';
        text = m.link.ended;
      } else if (behindMs.value >= LAGGING_MS) {
        kind = 'lagging';
        text = m.link.lagging(inSeconds(behindMs.value));
      } else text = m.link.live;
      break;
    case 'reconnecting':
      text = m.link.reconnecting;
      break;
    case 'stale':
      text = m.link.staleSince(timeOfDay(current.since ?? Date.now()));
      break;
  }
  return (
    <span class={`link-state ${kind}`} data-testid="link-state" data-state={kind} role="status" aria-label={`${m.link.label}: ${text}`}>
      {kind === 'stale' || kind === 'reconnecting' ? <Icon name="unlinked" /> : kind === 'lagging' ? <Icon name="clock" /> : <span class="dot" aria-hidden="true" />}
      {text}
    </span>
  );
}

/** Across the page while it is not connected: what it shows is old, and when it tries again. */
export function LinkBanner() {
  const [, tick] = useReducer((n: number) => n + 1, 0);
  const current = link.value;
  const away = current.state !== 'live' && current.state !== 'connecting';
  useEffect(() => {
    if (!away) return;
    const timer = window.setInterval(tick, 500, undefined);
    return () => window.clearInterval(timer);
  }, [away]);
  if (current.state === 'live' || current.state === 'connecting') return null;
  const wait = Math.ceil((current.retryAt - Date.now()) / 1_000);
  return (
    <div class="banner" role="status">
      <Icon name="unlinked" />
      <p>
        {current.since === null ? m.link.unreachable : m.link.stale(timeOfDay(current.since))}{' '}
        <span class="muted">{wait > 0 ? m.link.retryIn(wait) : m.link.retrying}</span>
      </p>
      <button type="button" onClick={() => feed().retryNow()}>
        {m.link.retryNow}
      </button>
    </div>
  );
}
