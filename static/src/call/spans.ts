// Where both spoke and where nobody did, from the lines of a call. Pure.

export interface Span {
  from: number;
  to: number;
}

interface Spoken {
  channel: number;
  start_ms: number;
  end_ms: number;
}

/** Stretches in which two channels spoke at once, merged and in order. `spoken` is sorted by start. */
export function overlaps(spoken: readonly Spoken[]): Span[] {
  const found: Span[] = [];
  const endOf = new Map<number, number>();
  for (const one of spoken) {
    for (const [channel, end] of endOf) {
      if (channel !== one.channel && end > one.start_ms) found.push({ from: one.start_ms, to: Math.min(end, one.end_ms) });
    }
    endOf.set(one.channel, Math.max(one.end_ms, endOf.get(one.channel) ?? 0));
  }
  const merged: Span[] = [];
  for (const span of found.sort((a, b) => a.from - b.from)) {
    const last = merged.at(-1);
    if (last && span.from <= last.to) last.to = Math.max(last.to, span.to);
    else merged.push({ ...span });
  }
  return merged;
}

/** Stretches of at least `shortest` ms between lines in which nobody spoke. */
export function silences(spoken: readonly Spoken[], until: number, shortest: number): Span[] {
  const found: Span[] = [];
  let quietFrom = 0;
  for (const one of spoken) {
    if (one.start_ms - quietFrom >= shortest) found.push({ from: quietFrom, to: one.start_ms });
    quietFrom = Math.max(quietFrom, one.end_ms);
  }
  if (spoken.length > 0 && until - quietFrom >= shortest) found.push({ from: quietFrom, to: until });
  return found;
}
