// The few signs we draw, as strokes on a 16 by 16 field in the color of the text beside them. Always next to a word or a label.

const PATHS = {
  wall: 'M2 3h5v4H2zM9 3h5v4H9zM2 9h5v4H2zM9 9h5v4H9z',
  table: 'M2 3h12M2 6.5h12M2 10h12M2 13.5h12',
  list: 'M5.5 4h8M5.5 8h8M5.5 12h8M2.5 4h.01M2.5 8h.01M2.5 12h.01',
  search: 'M7 2.5a4.5 4.5 0 1 1 0 9 4.5 4.5 0 0 1 0-9zM10.5 10.5 14 14',
  mic: 'M8 2a2 2 0 0 1 2 2v3.5a2 2 0 0 1-4 0V4a2 2 0 0 1 2-2zM4 7.5a4 4 0 0 0 8 0M8 11.5V14',
  file: 'M4 2h5l3 3v9H4zM9 2v3h3',
  sun: 'M8 5a3 3 0 1 1 0 6 3 3 0 0 1 0-6zM8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1',
  moon: 'M13.5 9.5A6 6 0 0 1 6.5 2.5a6 6 0 1 0 7 7z',
  half: 'M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2zM8 2v12M8 5h4.5M8 8h6M8 11h4.5',
  keyboard: 'M1.5 4h13v8h-13zM4 6.5h.01M6.5 6.5h.01M9 6.5h.01M11.5 6.5h.01M5 9.5h6',
  play: 'M5 3l8 5-8 5z',
  pause: 'M5 3v10M11 3v10',
  back: 'M7 4 3 8l4 4M3 8h10',
  skipBack: 'M8 4 4 8l4 4M12.5 4l-4 4 4 4',
  skipForward: 'M8 4l4 4-4 4M3.5 4l4 4-4 4',
  down: 'M8 3v10M4 9l4 4 4-4',
  up: 'M4 10l4-4 4 4',
  dropdown: 'M4 6l4 4 4-4',
  link: 'M6.5 9.5l3-3M7 4.5 9 2.7a3 3 0 0 1 4.3 4.2L11.5 9M9 11.5 7 13.3A3 3 0 0 1 2.700 9.100L4.500 7',
  unlinked: 'M2 2l12 12M7 4.500 9 2.700a3 3 0 0 1 4.300 4.200L11.500 9M9 11.500 7 13.300A3 3 0 0 1 2.700 9.100L4.500 7',
  export: 'M8 2v8M5 7l3 3 3-3M2.500 12.500h11',
  warning: 'M8 2l6.500 11.500h-13zM8 6.500v3M8 11.500h.01',
  clock: 'M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2zM8 4.500V8l2.500 1.500',
  close: 'M4 4l8 8M12 4l-8 8',
  check: 'M3 8.500l3.500 3.500L13 4.500',
  stop: 'M4 4h8v8H4z',
  step: 'M8 3v10M5 10l3 3 3-3M3 3h10',
  modules: 'M2 2.5h5v4H2zM9 9.5h5v4H9zM7 4.5h4.5v5M4.5 6.5v5H9',
  mark: 'M4 14V2.500h8l-2 3 2 3H4',
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} fill={name === 'play' || name === 'stop' ? 'currentColor' : 'none'} />
    </svg>
  );
}

/** The three moods have three shapes, so that color is not needed to tell them apart. */
export function MoodSign({ mood }: { mood: 'negative' | 'neutral' | 'positive' }) {
  const path = { negative: 'M2 3.500h8L6 10z', neutral: 'M6 2.500a3.500 3.500 0 1 1 0 7 3.500 3.500 0 0 1 0-7z', positive: 'M2 8.500h8L6 2z' }[mood];
  return (
    <svg class={`mood-sign ${mood}`} viewBox="0 0 12 12" width="12" height="12" aria-hidden="true" focusable="false">
      <path d={path} />
    </svg>
  );
}
