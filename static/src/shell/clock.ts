// One tick a second for everything that counts time, on the server's clock; still while the page is hidden.

import { signal } from '@preact/signals';
import { clockOffsetMs } from '../live/feed';

const read = () => Date.now() + clockOffsetMs.peek();

/** The server's time, in ms since 1970, a second apart. */
export const now = signal(read());

window.setInterval(() => {
  if (document.visibilityState === 'visible') now.value = read();
}, 1_000);
document.addEventListener('visibilitychange', () => {
  now.value = read();
});
