import { clock, inSeconds, m } from '../messages';
import { IntentBadge, MoodBadge, TierBadge } from '../parts/badges';
import { Icon } from '../parts/icon';
import { Sparkline } from '../parts/sparkline';
import { linked } from '../live/feed';
import type { Tier } from '../live/wire';
import { now } from '../shell/clock';
import type { Tile } from './model';
import { MARKED, risk } from './risk';

/** Text this far behind its audio is worth a warning. */
const LATE_MS = 2_000;
const LADDER: Tier[] = ['llm', 'second_llm', 'local', 'rules', 'pending'];

export function TileCard({ tile, index }: { tile: Tile; index: number }) {
  const title = titleOf(tile);
  const marked = risk(tile) >= MARKED;
  return (
    <div role="listitem" class="tile-cell">
      <a
        href={`/conversations/${tile.id}`}
        class={`tile${marked ? ' marked' : ''}${tile.connected ? '' : ' unlinked'}`}
        data-testid="tile"
        data-conversation={tile.id}
        data-index={index}
      >
        <div class="tile-head">
          {marked && (
            <span class="mark" title={m.wall.riskyHelp}>
              <Icon name="mark" />
              <span class="sr">{m.wall.risky}</span>
            </span>
          )}
          <strong class="ellipsis">{title}</strong>
          <Elapsed tile={tile} />
        </div>
        <div class="tile-now">
          <Talking tile={tile} />
          <Lag tile={tile} />
        </div>
        <p class="tile-line">
          <LastLine tile={tile} />
        </p>
        <div class="tile-foot">
          {tile.intent ? <IntentBadge verdict={tile.intent} /> : <span class="muted">{m.wall.noIntent}</span>}
          <Rung tile={tile} />
        </div>
        <div class="tile-foot">
          {tile.sentiment ? <MoodBadge verdict={tile.sentiment} /> : <span class="muted">{m.wall.noSentiment}</span>}
          <Sparkline sentiments={tile.sentiments} />
        </div>
      </a>
    </div>
  );
}

export function titleOf(tile: { title: string | null; external_id: string | null }): string {
  return tile.title ?? tile.external_id ?? m.untitled;
}

export function Elapsed({ tile }: { tile: Tile }) {
  const ms = tile.state === 'live' ? now.value - Date.parse(tile.started_at) : tile.duration_ms;
  return <span class="number elapsed">{clock(ms)}</span>;
}

export function Talking({ tile }: { tile: Pick<Tile, 'state' | 'connected' | 'channels' | 'talking'> }) {
  if (tile.state !== 'live') return <span class="muted">{m.state[tile.state]}</span>;
  if (!linked.value) return <span class="talking muted">{m.wall.notKnown}</span>;
  if (!tile.connected) {
    return (
      <span class="talking lost">
        <Icon name="unlinked" /> {m.wall.linkLost}
      </span>
    );
  }
  const speaking = tile.channels.filter((one) => tile.talking[one.channel]);
  const only = speaking[0];
  if (!only) return <span class="talking muted">{m.wall.silent}</span>;
  return (
    <span class={`talking ${speaking.length > 1 ? 'both' : only.role}`}>
      <Bars />
      {speaking.length > 1 ? m.wall.talkingBoth : m.wall.talking(m.role[only.role])}
    </span>
  );
}

export function Bars() {
  return (
    <svg class="bars" viewBox="0 0 14 12" width="14" height="12" aria-hidden="true" focusable="false">
      <path d="M2 3v6" />
      <path d="M7 1v10" />
      <path d="M12 3v6" />
    </svg>
  );
}

export function Lag({ tile }: { tile: Pick<Tile, 'state' | 'lag_ms'> }) {
  if (tile.lag_ms === null || tile.state !== 'live' || !linked.value) return null;
  const late = tile.lag_ms >= LATE_MS;
  return (
    <span class={`number lag${late ? ' warn' : ' muted'}`}>
      {late && <Icon name="clock" />}
      <span class="lag-word">{m.wall.lag} </span>
      {m.seconds(inSeconds(tile.lag_ms))}
    </span>
  );
}

export function LastLine({ tile }: { tile: Tile }) {
  if (tile.last_text === null) return <span class="muted">{m.wall.noWords}</span>;
  return (
    <>
      {tile.last_role && <span class={`who ${tile.last_role}`}>{m.role[tile.last_role]}</span>} {tile.last_text}
    </>
  );
}

/** The lowest rung that answered for this call. */
export function Rung({ tile }: { tile: Tile }) {
  const tiers = [tile.intent?.tier, tile.sentiment?.tier].filter((tier) => tier !== undefined);
  const lowest = tiers.sort((a, b) => LADDER.indexOf(b) - LADDER.indexOf(a))[0];
  return lowest ? <TierBadge tier={lowest} /> : null;
}
