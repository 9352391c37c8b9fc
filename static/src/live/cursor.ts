// Decides what a frame of one topic means for what is already shown. Pure.
//
// Invariants: a delta is applied at most once and never out of order; what was lost is either announced by the server as a gap
// (partials only) or answered by asking for the whole picture again.

import type { Envelope } from './wire';

export interface Cursor {
  /** The feed this position belongs to; another one means the numbers start over. */
  epoch: string | null;
  /** The last `seq` applied; null until a snapshot came. */
  seq: number | null;
  /** Frames the server had to drop for us since the last snapshot. */
  dropped: number;
}

/** `replace`: the frame is a snapshot. `apply`: the next delta. `skip`: seen already or not ours. `again`: ask for a snapshot. */
export type Step = 'replace' | 'apply' | 'skip' | 'again';

export function fresh(): Cursor {
  return { epoch: null, seq: null, dropped: 0 };
}

/** Moves the cursor over one frame. `epoch` is the feed's, from its welcome. */
export function step(cursor: Cursor, frame: Envelope, epoch: string): Step {
  if (frame.type === 'snapshot') {
    cursor.epoch = epoch;
    cursor.seq = frame.seq ?? 0;
    cursor.dropped = 0;
    return 'replace';
  }
  if (cursor.seq === null || cursor.epoch !== epoch) return 'skip';
  if (frame.type === 'gap') {
    const { from_seq, to_seq } = frame.data;
    if (from_seq > cursor.seq + 1) return 'again';
    cursor.dropped += Math.max(0, to_seq - Math.max(from_seq, cursor.seq + 1) + 1);
    cursor.seq = Math.max(cursor.seq, to_seq, frame.seq ?? 0);
    return 'skip';
  }
  if (frame.seq === null) return 'apply';
  if (frame.seq <= cursor.seq) return 'skip';
  if (frame.seq > cursor.seq + 1) return 'again';
  cursor.seq = frame.seq;
  return 'apply';
}

/** How to subscribe from here: onwards when there is a position in this feed, else from a snapshot. */
export function resumeFrom(cursor: Cursor): { since_seq: number; epoch: string } | Record<string, never> {
  return cursor.seq !== null && cursor.epoch !== null ? { since_seq: cursor.seq, epoch: cursor.epoch } : {};
}
