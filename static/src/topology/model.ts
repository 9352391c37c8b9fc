// What the dial's stages are, and what a turn means, in words. Pure.

import { m } from '../messages';
import type { Dial, Route, Turn, Turned } from './wire';

export interface Stage {
  name: string;
  turn: Turn;
  /** The dial stands here; between two stages it stands on none. */
  here: boolean;
}

const PERCENTS = [1, 10, 50, 100];
const SHADOW_PERCENT = 10;

/** Only calls that are one question and one answer can be shadowed. */
export const shadows = (module: string) => module === 'inference';

export function stages(module: string, dial: Dial): Stage[] {
  const t = m.topology;
  const routed = dial.mode === 'routed';
  const shadow: Stage = {
    name: t.stage.shadow,
    turn: { mode: 'routed', remote_percent: 0, shadow_percent: dial.shadow_percent || SHADOW_PERCENT },
    here: routed && dial.remote_percent === 0 && dial.shadow_percent > 0,
  };
  return [
    { name: t.stage.local, turn: { mode: 'local', remote_percent: 0, shadow_percent: 0 }, here: dial.mode === 'local' },
    ...(shadows(module) ? [shadow] : []),
    ...PERCENTS.map((percent) => ({ name: t.percent(percent), turn: { mode: 'routed' as const, remote_percent: percent }, here: routed && dial.remote_percent === percent })),
    { name: t.stage.remote, turn: { mode: 'remote' }, here: dial.mode === 'remote' },
  ];
}

/** As the server's log and its changes write it. */
export function told(dial: Dial): string {
  if (dial.mode !== 'routed') return dial.mode;
  const remote = `${dial.remote_percent} % remote`;
  return dial.shadow_percent > 0 ? `${remote}, ${dial.shadow_percent} % shadowed` : remote;
}

export const same = (a: Dial, b: Dial) => told(a) === told(b);

/** What a turn will do, a sentence each. */
export function consequences(route: Route, turned: Turned, moveLive: boolean): string[] {
  const t = m.topology;
  const { from, to } = turned;
  const live = route.targets.reduce((sum, target) => sum + target.streams, 0);
  const moves = live === 0 ? t.noStreams : moveLive ? t.streamsMove(live) : t.streamsStay(live);
  const says = [same(from, to) ? t.nothing(told(to)) : t.would(told(from), told(to))];
  if (!same(from, to)) {
    says.push(to.mode === 'local' ? t.allHere : to.mode === 'remote' ? t.allThere : t.shared(to.remote_percent));
    if (to.mode === 'routed' && to.shadow_percent > 0) says.push(t.shadowed(to.shadow_percent));
  }
  return route.module === 'audio' ? [...says, moves] : says;
}

/** Seconds in the largest unit of which there are two. */
export function age(seconds: number): string {
  const t = m.topology.age;
  if (seconds < 120) return t.s(seconds);
  if (seconds < 7_200) return t.min(Math.floor(seconds / 60));
  return seconds < 172_800 ? t.h(Math.floor(seconds / 3_600)) : t.d(Math.floor(seconds / 86_400));
}

/** Whole percent, or `null` for what is none. */
export function percent(text: string): number | null {
  const value = Number(text);
  return text.trim() !== '' && Number.isInteger(value) && value >= 0 && value <= 100 ? value : null;
}
