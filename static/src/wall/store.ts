// The wall's model, fed for as long as the page is on screen. It outlives the page, so coming back shows the last picture at once.

import { feed } from '../live/feed';
import type { WallTile } from '../live/wire';
import { perPaint } from '../shell/redraw';
import { tierChanged } from '../shell/status';
import { Wall } from './model';

/** Hundreds of calls change something many times a second; eyes follow a few times a second. */
const DRAW_EVERY_MS = 200;

export const wall = new Wall();
const { drawn, touch } = perPaint(() => wall.version, DRAW_EVERY_MS);

/** Rises when the wall has to be drawn again. */
export const wallDrawn = drawn;

/** Follows the wall until the returned function is called. */
export function followWall(): () => void {
  return feed().follow('wall', false, {
    snapshot: (data) => {
      wall.snapshot(data as { conversations: WallTile[] });
      touch();
    },
    delta: (frame) => {
      if (frame.type === 'tier.changed') tierChanged(frame.data);
      else wall.apply(frame);
      touch();
    },
  });
}
