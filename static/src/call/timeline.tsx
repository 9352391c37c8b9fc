// Two lanes of talk over the whole call: who spoke when, where both did, where nobody did, what was not heard, how the customer felt.

import { useComputed } from '@preact/signals';
import { useLayoutEffect, useRef, useState } from 'preact/hooks';
import { clock, labelled, m } from '../messages';
import { mood } from '../parts/sentiment';
import { now } from '../shell/clock';
import { lineAt } from './find';
import type { Call } from './model';
import type { Reading } from './reading';
import { overlaps, silences } from './spans';

const LANE = 16;
const LANE_GAP = 4;
const TOP = 2;
/** Silences shorter than this are breath. */
const SILENCE_MS = 3_000;
const KEY_STEP_MS = 5_000;
const TICKS_MS = [5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000];

export function Timeline({ call, reading, playable }: { call: Call; drawn: number; reading: Reading; playable: boolean }) {
  const field = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const target = field.current;
    if (!target) return;
    const observer = new ResizeObserver(() => setWidth(target.clientWidth));
    observer.observe(target);
    setWidth(target.clientWidth);
    return () => observer.disconnect();
  }, []);

  const { conversation } = call;
  const turns = call.said();
  const partials = call.partials();
  const lanes = conversation.channels;
  const lastEnd = Math.max(0, ...partials.map((one) => one.end_ms), turns.reduce((end, turn) => Math.max(end, turn.utterance.end_ms), 0));
  const liveMs = conversation.state === 'live' ? now.value - Date.parse(conversation.started_at) : conversation.duration_ms;
  const length = Math.max(1_000, lastEnd, liveMs);
  const x = (ms: number) => (Math.min(ms, length) / length) * width;
  const laneY = (channel: number) => TOP + Math.max(0, lanes.findIndex((lane) => lane.channel === channel)) * (LANE + LANE_GAP);
  const lanesHeight = lanes.length * (LANE + LANE_GAP) - LANE_GAP;
  const moodY = TOP + lanesHeight + 11;
  const height = moodY + 24;

  const spoken = turns.filter((turn) => turn.utterance.kind === 'speech').map((turn) => turn.utterance);
  const tick = TICKS_MS.find((step) => (step / length) * width >= 56) ?? 7_200_000;
  const ticks = Array.from({ length: Math.floor(length / tick) + 1 }, (_, i) => i * tick).filter((ms) => x(ms) < width - 24);

  const go = (ms: number) => {
    reading.seek?.(ms, false);
    const line = lineAt(turns, ms);
    if (line) reading.goTo.value = { utteranceId: line.utterance.id };
  };
  const onClick = (event: MouseEvent) => {
    const box = field.current?.getBoundingClientRect();
    if (box) go(((event.clientX - box.left) / box.width) * length);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const position = reading.positionMs.peek() ?? 0;
    const steps: Record<string, number> = { ArrowRight: position + KEY_STEP_MS, ArrowLeft: position - KEY_STEP_MS, Home: 0, End: length };
    const target = steps[event.key];
    if (target === undefined) return;
    event.preventDefault();
    go(Math.max(0, Math.min(length, target)));
  };
  const positionMs = Math.round((reading.positionMs.value ?? 0) / 1_000) * 1_000;

  return (
    <section class="timeline" aria-label={m.call.timeline}>
      <div class="lane-names" aria-hidden="true">
        {lanes.map((lane) => (
          <span key={lane.channel} class={`who ${lane.role}${call.talking[lane.channel] ? ' now' : ''}`}>
            {lane.role === 'unknown' ? m.speaker(m.role.unknown, lane.channel) : m.role[lane.role]}
          </span>
        ))}
      </div>
      <div
        ref={field}
        class="timeline-field"
        title={m.call.timelineHelp}
        onClick={onClick}
        onKeyDown={onKeyDown}
        {...(playable
          ? { role: 'slider', tabIndex: 0, 'aria-label': m.call.position, 'aria-valuemin': 0, 'aria-valuemax': Math.round(length / 1_000), 'aria-valuenow': positionMs / 1_000, 'aria-valuetext': clock(positionMs) }
          : { role: 'img', 'aria-label': m.call.timelineHelp })}
      >
        <svg width={width} height={height} aria-hidden="true" focusable="false">
          <defs>
            <pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
              <line class="hatch" x1="0" y1="0" x2="0" y2="5" />
            </pattern>
          </defs>
          {lanes.map((lane) => (
            <rect key={lane.channel} class="lane" x="0" y={laneY(lane.channel)} width={width} height={LANE} rx="3" />
          ))}
          {silences([...spoken, ...partials], lastEnd, SILENCE_MS).map(({ from, to }) => (
            <g key={from}>
              <rect class="silence" x={x(from)} y={TOP} width={x(to) - x(from)} height={lanesHeight} />
              {x(to) - x(from) > 52 && (
                <text class="tick" x={(x(from) + x(to)) / 2} y={TOP + lanesHeight / 2 + 4} text-anchor="middle">
                  {m.call.silence}
                </text>
              )}
            </g>
          ))}
          {turns.map(({ utterance }) => (
            <rect
              key={utterance.id}
              class={utterance.kind === 'gap' ? 'unheard' : `talk ${utterance.role}`}
              x={x(utterance.start_ms)}
              y={laneY(utterance.channel)}
              width={Math.max(1.5, x(utterance.end_ms) - x(utterance.start_ms))}
              height={LANE}
              rx="2"
            />
          ))}
          {partials.map((partial) => (
            <rect
              key={partial.utterance_id}
              class={`talk growing ${partial.role}`}
              x={x(partial.start_ms)}
              y={laneY(partial.channel)}
              width={Math.max(1.5, x(partial.end_ms) - x(partial.start_ms))}
              height={LANE}
              rx="2"
            />
          ))}
          {overlaps(spoken).map(({ from, to }) => (
            <rect key={from} class="overlap" x={x(from)} y={TOP} width={Math.max(2, x(to) - x(from))} height={lanesHeight} />
          ))}
          {turns.map(({ utterance, sentiment }) => {
            const label = sentiment?.abstained === null ? sentiment.labels[0] : undefined;
            if (!label || utterance.role === 'agent') return null;
            const which = mood(label.name);
            const middle = x((utterance.start_ms + utterance.end_ms) / 2);
            return (
              <path key={utterance.id} class={`mood-mark ${which}`} d={moodPath(which, middle, moodY)}>
                <title>{labelled(label.name)}</title>
              </path>
            );
          })}
          {ticks.map((ms) => (
            <text key={ms} class="tick" x={x(ms) + (ms === 0 ? 0 : 3)} y={height - 3}>
              {clock(ms)}
            </text>
          ))}
          {ticks.slice(1).map((ms) => (
            <line key={ms} class="tick-line" x1={x(ms)} x2={x(ms)} y1={height - 13} y2={height} />
          ))}
          <Playhead reading={reading} x={x} height={height - 14} />
        </svg>
      </div>
    </section>
  );
}

function Playhead({ reading, x, height }: { reading: Reading; x: (ms: number) => number; height: number }) {
  const at = useComputed(() => reading.positionMs.value).value;
  if (at === null) return null;
  return <line class="playhead" x1={x(at)} x2={x(at)} y1="0" y2={height} />;
}

function moodPath(which: 'negative' | 'neutral' | 'positive', x: number, y: number): string {
  switch (which) {
    case 'negative':
      return `M${x - 4.5} ${y - 3.5}h9L${x} ${y + 4}z`;
    case 'positive':
      return `M${x - 4.5} ${y + 3.5}h9L${x} ${y - 4}z`;
    case 'neutral':
      return `M${x - 2.5} ${y}a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0z`;
  }
}
