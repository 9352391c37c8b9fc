import { m } from '../messages';
import { IntentBadge, MoodBadge } from '../parts/badges';
import { Icon } from '../parts/icon';
import { Sparkline } from '../parts/sparkline';
import type { Tile } from './model';
import { MARKED, risk } from './risk';
import { Elapsed, Lag, LastLine, Rung, Talking, titleOf } from './tile';

export function TableHead({ ended }: { ended?: boolean }) {
  const names = m.wall.column;
  return (
    <div role="rowgroup" class="table-head">
      <div role="row" class="table-row">
        <span role="columnheader">{names.call}</span>
        <span role="columnheader">{names.elapsed}</span>
        <span role="columnheader">{names.now}</span>
        <span role="columnheader">{names.line}</span>
        <span role="columnheader">{names.intent}</span>
        <span role="columnheader">{names.mood}</span>
        <span role="columnheader">
          <span class={ended ? 'sr' : undefined}>{names.lag}</span>
        </span>
        <span role="columnheader">{names.tier}</span>
      </div>
    </div>
  );
}

/** One call; the link in its first cell covers the row. */
export function TableRow({ tile, index }: { tile: Tile; index?: number }) {
  const marked = tile.state === 'live' && risk(tile) >= MARKED;
  return (
    <div
      role="row"
      aria-rowindex={index === undefined ? undefined : index + 2}
      class={`table-row${marked ? ' marked' : ''}`}
      data-testid={index === undefined ? 'ended-row' : 'tile'}
      data-conversation={tile.id}
      data-index={index}
    >
      <span role="cell" class="cell-title">
        {marked && (
          <span class="mark" title={m.wall.riskyHelp}>
            <Icon name="mark" />
            <span class="sr">{m.wall.risky}</span>
          </span>
        )}
        <a href={`/conversations/${tile.id}`} class="row-link ellipsis">
          {titleOf(tile)}
        </a>
      </span>
      <span role="cell">
        <Elapsed tile={tile} />
      </span>
      <span role="cell" class="cell-now">
        <Talking tile={tile} />
      </span>
      <span role="cell" class="cell-line">
        <LastLine tile={tile} />
      </span>
      <span role="cell" class="cell-intent">
        {tile.intent && <IntentBadge verdict={tile.intent} />}
      </span>
      <span role="cell" class="cell-mood">
        <Sparkline sentiments={tile.sentiments} />
        {tile.sentiment && <MoodBadge verdict={tile.sentiment} />}
      </span>
      <span role="cell" class="cell-lag">
        <Lag tile={tile} />
      </span>
      <span role="cell" class="cell-tier">
        <Rung tile={tile} />
      </span>
    </div>
  );
}
