// What a page is asked to show stands in its address, so that a list can be shared, reloaded and left with the back button.

import { useSearchParams } from 'wouter-preact';

export function useQuery<K extends string>(names: readonly K[]): [Record<K, string>, (change: Partial<Record<K, string>>, replace?: boolean) => void] {
  const [params, set] = useSearchParams();
  const values = Object.fromEntries(names.map((name) => [name, params.get(name) ?? ''])) as Record<K, string>;
  const change = (changes: Partial<Record<K, string>>, replace = false) => {
    set(
      (before: URLSearchParams) => {
        const next = new URLSearchParams(before);
        for (const [name, value] of Object.entries(changes) as [K, string][]) {
          if (value === '') next.delete(name);
          else next.set(name, value);
        }
        return next;
      },
      { replace },
    );
  };
  return [values, change];
}

/** The first moment of a day in the reader's zone, as the server wants it; nothing for no day. */
export function dayStart(day: string): string | undefined {
  const date = new Date(`${day}T00:00:00`);
  return day === '' || Number.isNaN(date.getTime()) ? undefined : date.toISOString();
}

/** The last moment of a day in the reader's zone. */
export function dayEnd(day: string): string | undefined {
  const date = new Date(`${day}T23:59:59.999`);
  return day === '' || Number.isNaN(date.getTime()) ? undefined : date.toISOString();
}
