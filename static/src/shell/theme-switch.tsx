import { signal } from '@preact/signals';
import { m } from '../messages';
import { Icon } from '../parts/icon';

export type Theme = 'system' | 'light' | 'dark';
const THEMES: Theme[] = ['system', 'light', 'dark'];

const theme = signal<Theme>((document.documentElement.dataset.theme as Theme | undefined) ?? 'system');

function choose(next: Theme): void {
  theme.value = next;
  const root = document.documentElement;
  if (next === 'system') delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    if (next === 'system') localStorage.removeItem('theme');
    else localStorage.setItem('theme', next);
  } catch {
    // Storage is blocked: it holds for this visit.
  }
}

export function nextTheme(): void {
  choose(THEMES[(THEMES.indexOf(theme.peek()) + 1) % THEMES.length] ?? 'system');
}

export function ThemeSwitch() {
  const icon = ({ system: 'half', light: 'sun', dark: 'moon' } as const)[theme.value];
  const text = `${m.theme.label}: ${m.theme[theme.value]}`;
  return (
    <button type="button" class="quiet" onClick={nextTheme} title={text} aria-label={text}>
      <Icon name={icon} />
      <span class="wide">{m.theme[theme.value]}</span>
    </button>
  );
}
