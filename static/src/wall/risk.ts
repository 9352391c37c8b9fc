// How much a call deserves a look, from 0 (calm) to 1. Arithmetic on what is shown, so that a reader can check it: the mood of the
// customer's last turns, the newest counting most. Sentiment is a hint about words, never a verdict on a person.

import { valence } from '../parts/sentiment';
import type { Tile } from './model';

const TURNS = 5;
const FADE = 0.7;
/** From here on a tile is marked. */
export const MARKED = 0.4;

export function risk(tile: Tile): number {
  let weight = 1;
  let total = 0;
  let negative = 0;
  for (const sentiment of tile.sentiments.slice(-TURNS).reverse()) {
    total += weight;
    negative += weight * Math.max(0, -valence(sentiment.name, sentiment.score));
    weight *= FADE;
  }
  if (total === 0) return 0;
  // One negative turn alone is not yet a mood.
  const certainty = Math.min(1, tile.sentiments.length / 2);
  return (negative / total) * certainty;
}

export type Order = 'risk' | 'newest' | 'longest' | 'name';

export function sorted(tiles: Tile[], order: Order): Tile[] {
  const byStart = (a: Tile, b: Tile) => Date.parse(a.started_at) - Date.parse(b.started_at) || (a.id < b.id ? -1 : 1);
  const by: Record<Order, (a: Tile, b: Tile) => number> = {
    // Steps of a tenth keep tiles from changing places with every turn.
    risk: (a, b) => Math.round(risk(b) * 10) - Math.round(risk(a) * 10) || byStart(a, b),
    newest: (a, b) => byStart(b, a),
    longest: byStart,
    name: (a, b) => (a.title ?? a.id).localeCompare(b.title ?? b.id) || byStart(a, b),
  };
  return [...tiles].sort(by[order]);
}

/** The same calls in the order they had, new ones after them: nothing moves away under a hand that is about to click. */
export function steady(tiles: Tile[], before: readonly string[]): Tile[] {
  const place = new Map(before.map((id, i) => [id, i]));
  const at = (tile: Tile) => place.get(tile.id) ?? before.length;
  return [...tiles].sort((a, b) => at(a) - at(b));
}

/** Whether every word of the query stands in something the tile shows. */
export function matches(tile: Tile, query: string): boolean {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return true;
  const shown = [tile.title, tile.external_id, tile.id, tile.last_text, tile.intent?.name.replaceAll('_', ' '), tile.sentiment?.name, ...tile.tags];
  const text = shown.filter(Boolean).join(' ').toLowerCase();
  return words.every((word) => text.includes(word));
}
