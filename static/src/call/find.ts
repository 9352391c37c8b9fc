// Finds a phrase in the words of a call. Case and punctuation do not count, and the last word may be unfinished. Pure.

import type { Turn } from './model';

export interface Hit {
  utteranceId: string;
  /** Words `from..to` of the utterance. */
  from: number;
  to: number;
}

export const NO_HITS: readonly Hit[] = [];
const MOST_HITS = 500;

const bare = (word: string) => word.toLowerCase().replaceAll(/[^\p{L}\p{N}]/gu, '');

export function find(turns: readonly Turn[], query: string): readonly Hit[] {
  const wanted = query.split(/\s+/).map(bare).filter(Boolean);
  if (wanted.length === 0) return NO_HITS;
  const hits: Hit[] = [];
  for (const { utterance } of turns) {
    const words = utterance.words.map((word) => bare(word.text));
    for (let from = 0; from + wanted.length <= words.length; from++) {
      const all = wanted.every((word, i) => (i === wanted.length - 1 ? words[from + i]?.startsWith(word) : words[from + i] === word));
      if (all) hits.push({ utteranceId: utterance.id, from, to: from + wanted.length });
      if (hits.length === MOST_HITS) return hits;
    }
  }
  return hits;
}

/** Which word of each utterance is being spoken at `ms`. */
export function heardAt(turns: readonly Turn[], ms: number): Record<string, number> {
  const heard: Record<string, number> = {};
  // Nobody speaks for longer than this without a cut, so no earlier line can reach `ms`.
  const LONGEST_MS = 60_000;
  for (let i = firstAfter(turns, ms) - 1; i >= 0; i--) {
    const utterance = turns[i]?.utterance;
    if (!utterance || ms - utterance.start_ms > LONGEST_MS) break;
    if (utterance.kind !== 'speech' || ms >= utterance.end_ms + 150) continue;
    let word = -1;
    for (let w = 0; w < utterance.words.length && (utterance.words[w]?.start_ms ?? Infinity) <= ms; w++) word = w;
    heard[utterance.id] = word;
  }
  return heard;
}

/** The first line that starts after `ms`. */
export function firstAfter(turns: readonly Turn[], ms: number): number {
  let low = 0;
  let high = turns.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((turns[middle]?.utterance.start_ms ?? Infinity) <= ms) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The line spoken at `ms`, or the last one before it, or the first. */
export function lineAt(turns: readonly Turn[], ms: number): Turn | undefined {
  return turns[Math.max(0, firstAfter(turns, ms) - 1)];
}
