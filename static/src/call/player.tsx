// Plays the recording: position, speed, keys. While it plays it says which words are being heard.

import { useSignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { recordingAddress } from '../live/rest';
import { clock, m } from '../messages';
import { Icon } from '../parts/icon';
import { useKeys } from '../shell/keys';
import { heardAt } from './find';
import type { Call } from './model';
import type { Reading } from './reading';

const SPEEDS = [0.5, 0.75, 1, 1.25, 1.5, 2];
const SKIP_S = 10;

export function Player({ call, reading, startMs }: { call: Call; reading: Reading; startMs: number | null }) {
  const audio = useRef<HTMLAudioElement>(null);
  const playing = useSignal(false);
  const speed = useSignal(1);
  const failed = useSignal(false);
  const lengthMs = useSignal(call.conversation.duration_ms);

  useEffect(() => {
    const element = audio.current;
    if (!element) return;
    reading.seek = (ms, play) => {
      element.currentTime = ms / 1_000;
      read();
      if (play) void element.play().catch(() => (failed.value = true));
    };
    let frame = 0;
    const read = () => {
      const ms = element.currentTime * 1_000;
      reading.positionMs.value = ms;
      const heard = heardAt(call.said(), ms);
      if (JSON.stringify(heard) !== JSON.stringify(reading.heard.peek())) reading.heard.value = heard;
    };
    const loop = () => {
      read();
      frame = requestAnimationFrame(loop);
    };
    const onPlay = () => {
      playing.value = true;
      cancelAnimationFrame(frame);
      loop();
    };
    const onPause = () => {
      playing.value = false;
      cancelAnimationFrame(frame);
      read();
    };
    const onMeta = () => {
      if (Number.isFinite(element.duration)) lengthMs.value = element.duration * 1_000;
      if (startMs !== null) element.currentTime = startMs / 1_000;
      reading.positionMs.value = element.currentTime * 1_000;
    };
    element.addEventListener('play', onPlay);
    element.addEventListener('pause', onPause);
    element.addEventListener('seeked', read);
    element.addEventListener('loadedmetadata', onMeta);
    element.addEventListener('error', () => (failed.value = true));
    return () => {
      cancelAnimationFrame(frame);
      element.pause();
      reading.seek = null;
      reading.heard.value = {};
      reading.positionMs.value = null;
    };
  }, [call]);

  const toggle = () => {
    const element = audio.current;
    if (!element) return;
    if (element.paused) void element.play().catch(() => (failed.value = true));
    else element.pause();
  };
  const skip = (seconds: number) => {
    if (audio.current) audio.current.currentTime = Math.max(0, audio.current.currentTime + seconds);
  };
  const setSpeed = (next: number) => {
    speed.value = next;
    if (audio.current) audio.current.playbackRate = next;
  };
  const stepSpeed = (by: number) => setSpeed(SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, SPEEDS.indexOf(speed.peek()) + by))] ?? 1);
  useKeys({
    k: toggle,
    ' ': toggle,
    j: () => skip(-SKIP_S),
    l: () => skip(SKIP_S),
    '<': () => stepSpeed(-1),
    '>': () => stepSpeed(1),
  });

  return (
    <div class="player" data-testid="player">
      <audio ref={audio} preload="metadata" src={recordingAddress(call.conversation.id)} />
      <button type="button" class="quiet" onClick={() => skip(-SKIP_S)} aria-label={m.call.back10} title={m.call.back10}>
        <Icon name="skipBack" />
      </button>
      <button type="button" class="primary round" onClick={toggle} aria-label={playing.value ? m.call.pause : m.call.play}>
        <Icon name={playing.value ? 'pause' : 'play'} />
      </button>
      <button type="button" class="quiet" onClick={() => skip(SKIP_S)} aria-label={m.call.forward10} title={m.call.forward10}>
        <Icon name="skipForward" />
      </button>
      <span class="number position">
        {clock(reading.positionMs.value ?? 0)} <span class="muted">/ {clock(lengthMs.value)}</span>
      </span>
      <label class="choice">
        <span class="wide">{m.call.speed}</span>
        <select value={String(speed.value)} aria-label={m.call.speed} onChange={(event) => setSpeed(Number(event.currentTarget.value))}>
          {SPEEDS.map((one) => (
            <option key={one} value={String(one)}>
              {one}×
            </option>
          ))}
        </select>
      </label>
      {failed.value && (
        <span class="warn small" role="status">
          <Icon name="warning" /> {m.call.playerFailed}
        </span>
      )}
    </div>
  );
}
