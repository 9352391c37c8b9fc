// What the wall shows: every live call, and those that ended in the last ten minutes. Fed by the topic `wall`.
//
// Invariants: a changed tile is a new object, so drawing may compare by identity; memory is bounded by the calls shown.
// Deliberately absent: sockets, clocks, drawing.

import type { ConversationRow, Delta, Insight, Role, Sentiment, WallTile } from '../live/wire';

export interface Tile extends WallTile {
  /** Who said the latest utterances, so that a sentiment can be told to be the customer's. */
  spoken: { id: string; role: Role; start_ms: number }[];
}

const SENTIMENTS_KEPT = 20;
const SPOKEN_KEPT = 24;
const ENDED_KEPT = 60;
export const ENDED_SHOWN_MS = 10 * 60_000;

export class Wall {
  private tiles = new Map<string, Tile>();
  /** Rises with every change. */
  version = 0;
  /** A snapshot has come: an empty wall is empty, not unknown. */
  known = false;

  snapshot(data: { conversations: WallTile[] }): void {
    this.tiles = new Map(data.conversations.map((tile) => [tile.id, { ...tile, spoken: [] }]));
    this.known = true;
    this.version += 1;
  }

  apply(frame: Delta): void {
    if (frame.type === 'conversation.started' || frame.type === 'conversation.updated' || frame.type === 'conversation.ended') {
      this.put(frame.data.conversation);
      this.version += 1;
      return;
    }
    const tile = frame.conversation_id === null ? undefined : this.tiles.get(frame.conversation_id);
    if (!tile) return;
    const changed = next(tile, frame);
    if (changed === tile) return;
    this.tiles.set(tile.id, changed);
    this.version += 1;
  }

  live(): Tile[] {
    return [...this.tiles.values()].filter((tile) => tile.state === 'live');
  }

  /** Calls that ended lately, newest first. */
  ended(now: number): Tile[] {
    return [...this.tiles.values()]
      .filter((tile) => tile.state !== 'live' && tile.ended_at !== null && now - Date.parse(tile.ended_at) < ENDED_SHOWN_MS)
      .sort((a, b) => Date.parse(b.ended_at ?? '') - Date.parse(a.ended_at ?? ''));
  }

  private put(row: ConversationRow): void {
    const before = this.tiles.get(row.id);
    const idle = row.channels.map(() => false);
    this.tiles.set(row.id, {
      last_text: null,
      last_role: null,
      last_at: null,
      lag_ms: null,
      connected: true,
      sentiments: [],
      spoken: [],
      ...before,
      talking: row.state === 'live' ? (before?.talking ?? idle) : idle,
      ...row,
    });
    if (row.state !== 'live') this.forgetOldEnded();
  }

  private forgetOldEnded(): void {
    const ended = [...this.tiles.values()].filter((tile) => tile.state !== 'live');
    ended.sort((a, b) => Date.parse(b.ended_at ?? '') - Date.parse(a.ended_at ?? ''));
    for (const tile of ended.slice(ENDED_KEPT)) this.tiles.delete(tile.id);
  }
}

function next(tile: Tile, frame: Delta): Tile {
  switch (frame.type) {
    case 'utterance.final': {
      const { id, role, start_ms, end_ms, text, kind } = frame.data.utterance;
      if (kind !== 'speech') return tile;
      return {
        ...tile,
        last_text: text,
        last_role: role,
        last_at: frame.emitted_at,
        duration_ms: Math.max(tile.duration_ms, end_ms),
        utterance_count: tile.utterance_count + 1,
        spoken: [...tile.spoken, { id, role, start_ms }].slice(-SPOKEN_KEPT),
      };
    }
    case 'insight.created':
      return withInsight(tile, frame.data.insight);
    case 'speech.activity': {
      const { channel, talking } = frame.data;
      if (tile.talking[channel] === talking) return tile;
      const all = [...tile.talking];
      while (all.length < channel) all.push(false);
      all[channel] = talking;
      return { ...tile, talking: all };
    }
    case 'link':
      return { ...tile, connected: frame.data.connected };
    case 'lag':
      return { ...tile, lag_ms: frame.data.ms };
    default:
      return tile;
  }
}

/** An intent or sentiment of the customer. Of an utterance we have not seen we cannot say whose it is: the next row of the call will. */
function withInsight(tile: Tile, insight: Insight): Tile {
  const best = insight.labels[0];
  const said = tile.spoken.find((one) => one.id === insight.utterance_id);
  if (insight.abstained !== null || !best || !said || said.role === 'agent') return tile;
  const verdict = { name: best.name, score: best.score, tier: insight.provenance.tier };
  if (insight.task === 'intent') {
    if (best.name === 'none' || (tile.intent && tile.intent.score > best.score)) return tile;
    return { ...tile, intent: verdict };
  }
  const sentiments: Sentiment[] = [...tile.sentiments.filter((one) => one.at_ms !== said.start_ms), { at_ms: said.start_ms, ...best }];
  sentiments.sort((a, b) => a.at_ms - b.at_ms);
  const latest = sentiments.at(-1)?.at_ms === said.start_ms;
  return { ...tile, sentiments: sentiments.slice(-SENTIMENTS_KEPT), sentiment: latest ? verdict : tile.sentiment };
}
