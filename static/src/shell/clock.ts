// One tick a second for everything that counts time, on the server's clock. It stands still while the page is hidden, and while the feed
// is away: what is shown then is how it was, and must not look as if it went on.

import { effect, signal } from '@preact/signals';
import { clockOffsetMs, link } from '../live/feed';

const read = () => Date.now() + clockOffsetMs.peek();

/** The server's time, in ms since 1970, a second apart. */
export const now = signal(read());

function tick(): void {
  if (document.visibilityState === 'visible' && link.peek().state === 'live') now.value = read();
}

window.setInterval(tick, 1_000);
document.addEventListener('visibilitychange', tick);
effect(() => {
  if (link.value.state === 'live') tick();
});
