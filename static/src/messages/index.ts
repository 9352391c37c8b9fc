// The messages in the reader's language, and how that language writes numbers, dates and durations.

import { en, type Messages } from './en';

export const m: Messages = en;

const dateTime = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
const timeOnly = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const tenths = new Intl.NumberFormat(undefined, { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** In the reader's own zone. */
export const dateAndTime = (when: string | number) => dateTime.format(new Date(when));
export const timeOfDay = (when: string | number) => timeOnly.format(new Date(when));
export const inSeconds = (ms: number) => tenths.format(ms / 1_000);
export const oneDecimal = (value: number) => tenths.format(value);

/** 3:07, or 1:02:03 past an hour. */
export function clock(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1_000));
  const pad = (n: number) => String(n).padStart(2, '0');
  const hours = Math.floor(s / 3_600);
  const minutes = Math.floor(s / 60) % 60;
  return hours > 0 ? `${hours}:${pad(minutes)}:${pad(s % 60)}` : `${minutes}:${pad(s % 60)}`;
}

/** A label of the operator's as people write it: `billing_dispute` is "Billing dispute". */
export function labelled(name: string): string {
  const words = name.replaceAll(/[_-]+/g, ' ').trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}
