// The customer's mood over the last turns: a line around zero, its newest turn marked with the mood's own shape.

import type { Sentiment } from '../live/wire';
import { labelled, m } from '../messages';
import { mood, valence } from './sentiment';

const WIDTH = 96;
const HEIGHT = 24;
const PAD = 4;

export function Sparkline({ sentiments }: { sentiments: Sentiment[] }) {
  const first = sentiments[0];
  const last = sentiments.at(-1);
  if (!first || !last) return <span class="sparkline none" />;
  const step = (WIDTH - 2 * PAD) / Math.max(1, sentiments.length - 1);
  const points = sentiments.map((one, i) => ({
    x: sentiments.length === 1 ? WIDTH - PAD : PAD + i * step,
    y: HEIGHT / 2 - valence(one.name, one.score) * (HEIGHT / 2 - PAD),
  }));
  const end = points.at(-1) ?? { x: 0, y: 0 };
  return (
    <svg
      class={`sparkline ${mood(last.name)}`}
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      width={WIDTH}
      height={HEIGHT}
      role="img"
      aria-label={m.wall.sparkline(labelled(first.name), labelled(last.name), sentiments.length)}
    >
      <line class="zero" x1="0" x2={WIDTH} y1={HEIGHT / 2} y2={HEIGHT / 2} />
      <polyline points={points.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ')} />
      <circle cx={end.x} cy={end.y} r="2.5" />
    </svg>
  );
}
