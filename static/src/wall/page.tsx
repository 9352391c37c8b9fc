// The wall: every live call at a glance, as tiles or as a table, the calls that need a look first.

import { signal } from '@preact/signals';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { m } from '../messages';
import { Icon } from '../parts/icon';
import { useTitle } from '../parts/title';
import { VirtualRows } from '../parts/virtual';
import { now } from '../shell/clock';
import { useKeys } from '../shell/keys';
import { transcriptLagMs } from '../shell/link-state';
import type { Tile } from './model';
import { MARKED, matches, type Order, risk, sorted, steady } from './risk';
import { followWall, wall, wallDrawn } from './store';
import { TableHead, TableRow } from './table';
import { TileCard } from './tile';

const TILE_WIDTH = 290;
const TILE_HEIGHT = 164;
const ROW_HEIGHT = 52;
/** A wall that was just touched keeps its order for this long. */
const STEADY_MS = 3_000;
/** Below this the table is a stack of two-line rows. */
const NARROW = 720;

const ORDERS: Order[] = ['risk', 'newest', 'longest', 'name'];
type View = 'tiles' | 'table';

const filter = signal('');
const order = signal<Order>('risk');
const view = signal<View>('tiles');

export function WallPage() {
  useTitle(m.wall.title);
  useEffect(followWall, []);
  void wallDrawn.value;
  const scroller = useRef<HTMLDivElement>(null);
  const width = useWidth(scroller);

  const live = wall.live();
  const touchedAt = useRef(Number.NEGATIVE_INFINITY);
  const places = useRef<{ order: Order; ids: string[] }>({ order: order.value, ids: [] });
  const wanted = live.filter((tile) => matches(tile, filter.value));
  const held = places.current.order === order.value && performance.now() - touchedAt.current < STEADY_MS;
  const inOrder = sorted(wanted, order.value);
  const shown = held ? steady(inOrder, places.current.ids) : inOrder;
  places.current = { order: order.value, ids: shown.map((tile) => tile.id) };
  const touched = () => (touchedAt.current = performance.now());
  const marked = live.filter((tile) => risk(tile) >= MARKED).length;
  useLag(live);

  const switchView = () => (view.value = view.value === 'tiles' ? 'table' : 'tiles');
  const columns = Math.max(1, Math.floor((width + 12) / (TILE_WIDTH + 12)));
  const move = (by: number) => () => moveFocus(by);
  useKeys({
    v: switchView,
    ArrowDown: move(view.value === 'tiles' ? columns : 1),
    ArrowUp: move(view.value === 'tiles' ? -columns : -1),
    ArrowRight: move(1),
    ArrowLeft: move(-1),
    Escape: () => (filter.value = ''),
  });

  return (
    <div class="page wall" ref={scroller} onPointerMove={touched} onKeyDown={touched}>
      <header class="page-head">
        <h1>{m.wall.title}</h1>
        {wall.known && (
          <p class="muted">
            {filter.value ? m.wall.shown(shown.length, live.length) : m.wall.liveCalls(live.length)}
            {marked > 0 && (
              <span class="marked-count">
                <Icon name="mark" /> {m.wall.marked(marked)}
              </span>
            )}
          </p>
        )}
        <div class="tools">
          <input
            type="search"
            data-find
            value={filter.value}
            onInput={(event) => (filter.value = event.currentTarget.value)}
            placeholder={m.wall.filterHint}
            aria-label={m.wall.filter}
          />
          <label class="choice">
            <span>{m.wall.order}</span>
            <select value={order.value} onChange={(event) => (order.value = event.currentTarget.value as Order)}>
              {ORDERS.map((one) => (
                <option key={one} value={one}>
                  {m.wall.orders[one]}
                </option>
              ))}
            </select>
          </label>
          <div class="toggle" role="group" aria-label={m.wall.view}>
            {(['tiles', 'table'] as const).map((one) => (
              <button key={one} type="button" aria-pressed={view.value === one} onClick={() => (view.value = one)}>
                <Icon name={one === 'tiles' ? 'wall' : 'table'} />
                <span class="wide">{m.wall[one]}</span>
              </button>
            ))}
          </div>
        </div>
      </header>

      {!wall.known ? (
        <p class="empty muted">{m.loading}</p>
      ) : live.length === 0 ? (
        <Empty />
      ) : shown.length === 0 ? (
        <div class="empty">
          <p>{m.wall.noMatch(filter.value)}</p>
          <button type="button" onClick={() => (filter.value = '')}>
            {m.wall.clear}
          </button>
        </div>
      ) : view.value === 'tiles' ? (
        <Tiles tiles={shown} columns={columns} scroller={scroller} />
      ) : (
        <div class="table" role="table" aria-rowcount={shown.length + 1} aria-label={m.wall.title}>
          <TableHead />
          <VirtualRows
            role="rowgroup"
            count={shown.length}
            rowHeight={width < NARROW ? ROW_HEIGHT + 34 : ROW_HEIGHT}
            scroller={scroller}
            keyOf={(i) => shown[i]?.id ?? String(i)}
            row={(i) => {
              const tile = shown[i];
              return tile && <TableRow tile={tile} index={i} />;
            }}
          />
        </div>
      )}

      <Ended tiles={wall.ended(now.value)} />
    </div>
  );
}

function Tiles({ tiles, columns, scroller }: { tiles: Tile[]; columns: number; scroller: { current: HTMLDivElement | null } }) {
  const rows = Math.ceil(tiles.length / columns);
  return (
    <VirtualRows
      role="list"
      class="tiles"
      count={rows}
      rowHeight={TILE_HEIGHT + 12}
      scroller={scroller}
      keyOf={(row) => String(row)}
      row={(row) => (
        <div class="tile-row" role="presentation" style={{ gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))` }}>
          {tiles.slice(row * columns, (row + 1) * columns).map((tile, i) => (
            <TileCard key={tile.id} tile={tile} index={row * columns + i} />
          ))}
        </div>
      )}
    />
  );
}

function Ended({ tiles }: { tiles: Tile[] }) {
  if (tiles.length === 0) return null;
  return (
    <section class="recent" aria-labelledby="ended-title">
      <h2 id="ended-title">
        {m.wall.ended} <span class="muted">{tiles.length}</span>
      </h2>
      <div class="table" role="table" aria-labelledby="ended-title">
        <TableHead ended />
        <div role="rowgroup">
          {tiles.map((tile) => (
            <div key={tile.id} class="virtual-row flow" role="presentation">
              <TableRow tile={tile} />
            </div>
          ))}
        </div>
      </div>
    </section>
  );
}

function Empty() {
  return (
    <div class="empty">
      <svg viewBox="0 0 120 40" width="120" height="40" aria-hidden="true" class="flatline">
        <path d="M4 20h30l4-8 6 16 5-12 3 4h64" />
      </svg>
      <h2>{m.wall.empty}</h2>
      <p class="muted">{m.wall.emptyHelp}</p>
      <p>
        <code>make demo</code> {m.wall.emptyDemo}
      </p>
      <a href="/try" class="button primary">
        <Icon name="mic" /> {m.wall.emptyTry}
      </a>
    </div>
  );
}

/** Nine calls in ten are no further behind than this; one slow call shows its own figure. */
function useLag(live: Tile[]): void {
  const lags = live.flatMap((tile) => (tile.lag_ms === null ? [] : [tile.lag_ms])).sort((a, b) => a - b);
  const lag = lags.length === 0 ? null : (lags[Math.floor((lags.length - 1) * 0.9)] ?? null);
  useEffect(() => {
    transcriptLagMs.value = lag;
  }, [lag]);
}

function useWidth(element: { current: HTMLElement | null }): number {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const target = element.current;
    if (!target) return;
    const measure = () => {
      const style = getComputedStyle(target);
      setWidth(target.clientWidth - Number.parseFloat(style.paddingLeft) - Number.parseFloat(style.paddingRight));
    };
    const observer = new ResizeObserver(measure);
    observer.observe(target);
    measure();
    return () => observer.disconnect();
  }, []);
  return width;
}

/** Moves the focus between calls; with none focused, to the first. */
function moveFocus(by: number): void {
  const focused = document.activeElement?.closest<HTMLElement>('[data-index]');
  const index = focused ? Number(focused.dataset.index) + by : 0;
  const target = document.querySelector<HTMLElement>(`[data-index="${index}"]`);
  (target?.matches('a') ? target : target?.querySelector<HTMLElement>('a'))?.focus();
}
