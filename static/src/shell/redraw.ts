// Many frames of the feed may change a model between two paints; the page is drawn once per paint.

import { signal, type Signal } from '@preact/signals';

/** A signal that takes over `read()` at the next paint after `touch()`. A hidden page paints nothing, so it is asked twice a second there. */
export function perPaint(read: () => number): { drawn: Signal<number>; touch: () => void } {
  const drawn = signal(read());
  let waiting = false;
  const take = () => {
    waiting = false;
    drawn.value = read();
  };
  const touch = () => {
    if (waiting) return;
    waiting = true;
    if (document.visibilityState === 'visible') requestAnimationFrame(take);
    else window.setTimeout(take, 500);
  };
  return { drawn, touch };
}
