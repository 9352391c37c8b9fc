// How long a reader waits for the finished text after the last word has left this page. Pure but for the times it is given.

const MARKS_KEPT = 6_000;
const FIGURES_KEPT = 200;

export class Latency {
  private marks: { atMs: number; sent: number }[][] = [];
  private figures: number[] = [];

  /** Audio of a channel up to `atMs` of the call left at `sent`. */
  left(channel: number, atMs: number, sent: number): void {
    const marks = (this.marks[channel] ??= []);
    marks.push({ atMs, sent });
    if (marks.length > MARKS_KEPT) marks.splice(0, MARKS_KEPT / 2);
  }

  /** A finished text whose speech ended at `endMs` has arrived. */
  arrived(channel: number, endMs: number, now: number): void {
    const mark = this.marks[channel]?.find((one) => one.atMs >= endMs);
    if (!mark) return;
    this.figures.push(Math.max(0, now - mark.sent));
    if (this.figures.length > FIGURES_KEPT) this.figures.shift();
  }

  get last(): number | null {
    return this.figures.at(-1) ?? null;
  }

  get median(): number | null {
    const sorted = [...this.figures].sort((a, b) => a - b);
    return sorted[Math.floor(sorted.length / 2)] ?? null;
  }

  get worst(): number | null {
    return this.figures.length > 0 ? Math.max(...this.figures) : null;
  }
}
