// A label of sentiment as a number and as one of three moods. Labels come from a file of the operator's, so unknown ones are neutral.

export type Mood = 'negative' | 'neutral' | 'positive';

export function mood(name: string): Mood {
  const lower = name.toLowerCase();
  if (lower.includes('neg') || lower.includes('angry') || lower.includes('frustrat')) return 'negative';
  if (lower.includes('pos') || lower.includes('happy') || lower.includes('satisf')) return 'positive';
  return 'neutral';
}

/** -1 to 1: which way, by how sure. */
export function valence(name: string, score: number): number {
  const sign = { negative: -1, neutral: 0, positive: 1 }[mood(name)];
  return sign * Math.max(0, Math.min(1, score));
}
