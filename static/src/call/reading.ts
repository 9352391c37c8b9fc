// Where the reader's eye and ear are in one call: evidence pointed at, words being played, hits of a search, the line to go to.

import { signal } from '@preact/signals';
import type { Evidence } from '../live/wire';
import { type Hit, NO_HITS } from './find';

export class Reading {
  /** Words that carry the verdict under the pointer or the focus. */
  readonly evidence = signal<readonly Evidence[]>([]);
  /** By utterance: the word being heard. */
  readonly heard = signal<Readonly<Record<string, number>>>({});
  readonly hits = signal<{ query: string; all: readonly Hit[]; at: number }>({ query: '', all: NO_HITS, at: 0 });
  /** The line to bring into view; a new object each time. */
  readonly goTo = signal<{ utteranceId: string } | null>(null);
  /** Where the recording stands; null without a player. */
  readonly positionMs = signal<number | null>(null);
  /** Set by the player while it is there. */
  seek: ((ms: number, play: boolean) => void) | null = null;

  point(evidence: readonly Evidence[]): { onPointerEnter: () => void; onPointerLeave: () => void; onFocus: () => void; onBlur: () => void } {
    const on = () => (this.evidence.value = evidence);
    const off = () => (this.evidence.value = []);
    return { onPointerEnter: on, onPointerLeave: off, onFocus: on, onBlur: off };
  }
}
