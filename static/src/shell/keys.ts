// Keys without a modifier, as chords of one or two: `g w`, `/`, `Escape`.
//
// A reader who types into a box is typing; only Escape reaches us there. Single keys can be switched off, as speech input and
// shaky hands set them off by accident (WCAG 2.1.4).

import { signal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';

export type Keys = Record<string, (event: KeyboardEvent) => void>;

const CHORD_WITHIN_MS = 1_200;

const layers: { keys: Keys }[] = [];
let first: { key: string; at: number } | null = null;

function stored(): boolean {
  try {
    return localStorage.getItem('keys') !== 'off';
  } catch {
    return true;
  }
}

export const keysOn = signal(stored());

export function switchKeys(on: boolean): void {
  keysOn.value = on;
  try {
    if (on) localStorage.removeItem('keys');
    else localStorage.setItem('keys', 'off');
  } catch {
    // Storage is blocked: it holds for this visit.
  }
}

function typing(target: EventTarget | null): boolean {
  if (!(target instanceof HTMLElement)) return false;
  return target.isContentEditable || (target instanceof HTMLInputElement && target.type !== 'range') || target instanceof HTMLSelectElement || target instanceof HTMLTextAreaElement;
}

function find(chord: string): ((event: KeyboardEvent) => void) | undefined {
  for (let i = layers.length - 1; i >= 0; i--) {
    const action = layers[i]?.keys[chord];
    if (action) return action;
  }
  return undefined;
}

window.addEventListener('keydown', (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (document.querySelector('dialog[open]')) return; // a dialog has its own
  if (event.key === 'Escape') {
    if (typing(event.target)) (event.target as HTMLElement).blur();
    find('Escape')?.(event);
    return;
  }
  if (!keysOn.peek() || typing(event.target)) return;
  // Space and Enter belong to a focused control.
  if ((event.key === ' ' || event.key === 'Enter') && event.target instanceof HTMLElement && event.target.closest('a, button, summary, [role=slider], input')) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = (first && performance.now() - first.at < CHORD_WITHIN_MS && find(`${first.key} ${key}`)) || find(key);
  first = { key, at: performance.now() };
  if (!action) return;
  event.preventDefault();
  action(event);
});

/** Listens while the component is on the page; the component mounted last is asked first. */
export function useKeys(keys: Keys): void {
  const layer = useRef({ keys });
  layer.current.keys = keys;
  useEffect(() => {
    const mine = layer.current;
    layers.push(mine);
    return () => {
      layers.splice(layers.indexOf(mine), 1);
    };
  }, []);
}
