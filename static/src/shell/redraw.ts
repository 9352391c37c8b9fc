// Many frames of the feed may change a model between two paints; the page is drawn once for all of them.

import { signal, type Signal } from '@preact/signals';

const HIDDEN_MS = 500;

/**
 * A signal that takes over `read()` soon after `touch()`: at the next paint, or at most every `everyMs` where many changes would make
 * a restless page. A hidden page paints nothing, so its signal follows twice a second.
 */
export function perPaint(read: () => number, everyMs = 0): { drawn: Signal<number>; touch: () => void } {
  const drawn = signal(read());
  let waiting = false;
  const take = () => {
    waiting = false;
    drawn.value = read();
  };
  const touch = () => {
    if (waiting) return;
    waiting = true;
    if (document.visibilityState !== 'visible') window.setTimeout(take, HIDDEN_MS);
    else if (everyMs > 0) window.setTimeout(take, everyMs);
    else requestAnimationFrame(take);
  };
  return { drawn, touch };
}
