// Where audio comes from: the microphone at the browser's own rate, or a file decoded by the browser and sent at a chosen pace.

import { m } from '../messages';
import { type IngestStream, linear16 } from './stream';

declare const CAPTURE_WORKLET: string;

const PIECE_S = 0.02;
/** How often a fast sender looks whether it may go on. */
const TICK_MS = 20;
/** What a file's rate is taken for when its head does not say. */
const USUAL_RATE = 48_000;
const HIGHEST_RATE = 48_000;
const LOWEST_RATE = 8_000;

/** A reason that is shown to the reader as it stands. */
export class CannotListen extends Error {}

export interface Microphone {
  sampleRate: number;
  /** Calls back with each 20 ms. */
  listen(piece: (samples: Float32Array) => void): void;
  stop(): void;
}

export async function microphone(): Promise<Microphone> {
  if (!window.isSecureContext || !navigator.mediaDevices) throw new CannotListen(m.try.insecure);
  if (typeof AudioWorkletNode === 'undefined') throw new CannotListen(m.try.unsupported);
  let media: MediaStream;
  try {
    media = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true } });
  } catch (error) {
    const name = error instanceof DOMException ? error.name : '';
    if (name === 'NotAllowedError' || name === 'SecurityError') throw new CannotListen(m.try.denied);
    if (name === 'NotFoundError' || name === 'OverconstrainedError') throw new CannotListen(m.try.noMic);
    throw new CannotListen(m.try.micBusy);
  }
  const context = await contextFor();
  await context.audioWorklet.addModule(CAPTURE_WORKLET);
  const node = new AudioWorkletNode(context, 'capture', { numberOfInputs: 1, numberOfOutputs: 0, channelCount: 1, channelCountMode: 'explicit' });
  const source = context.createMediaStreamSource(media);
  return {
    sampleRate: context.sampleRate,
    listen(piece) {
      node.port.onmessage = (message: MessageEvent<Float32Array>) => piece(message.data);
      source.connect(node);
      void context.resume();
    },
    stop() {
      source.disconnect();
      node.port.onmessage = null;
      for (const track of media.getTracks()) track.stop();
      if (context.state !== 'closed') void context.close();
    },
  };
}

/** The browser's own rate, unless it is beyond what the server takes. */
async function contextFor(): Promise<AudioContext> {
  const context = new AudioContext();
  if (context.sampleRate <= HIGHEST_RATE && context.sampleRate >= LOWEST_RATE) return context;
  await context.close();
  return new AudioContext({ sampleRate: HIGHEST_RATE });
}

export interface Recording {
  name: string;
  sampleRate: number;
  /** At most two. */
  channels: Float32Array[];
  channelsInFile: number;
}

export async function openFile(file: File): Promise<Recording> {
  const bytes = await file.arrayBuffer();
  const rate = Math.max(LOWEST_RATE, Math.min(HIGHEST_RATE, rateOf(new DataView(bytes)) ?? USUAL_RATE));
  let decoded: AudioBuffer;
  try {
    decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes);
  } catch {
    throw new CannotListen(m.try.badFile(file.name));
  }
  if (decoded.length === 0) throw new CannotListen(m.try.emptyFile(file.name));
  const channels = Array.from({ length: Math.min(2, decoded.numberOfChannels) }, (_, i) => decoded.getChannelData(i));
  return { name: file.name, sampleRate: rate, channels, channelsInFile: decoded.numberOfChannels };
}

/** The rate a wav or flac file was made with, so that the browser need not resample it. */
function rateOf(view: DataView): number | null {
  if (view.byteLength < 44) return null;
  const tag = (at: number) => String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(at + i)));
  if (tag(0) === 'RIFF' && tag(8) === 'WAVE') {
    for (let at = 12; at + 16 < view.byteLength; at += 8 + view.getUint32(at + 4, true)) {
      if (tag(at) === 'fmt ') return view.getUint32(at + 12, true);
    }
  }
  if (tag(0) === 'fLaC') return (view.getUint16(18) << 4) | (view.getUint8(20) >> 4);
  return null;
}

/**
 * Sends a recording at `speed` times real time; 0: as fast as the server stores it.
 * Calls `heard` with each piece it sends, and `done` when it has sent the last. Returns how to stop.
 */
export function playInto(
  stream: IngestStream,
  recording: Recording,
  speed: number,
  heard: (channel: number, samples: Float32Array) => void,
  done: () => void,
): () => void {
  const length = recording.channels[0]?.length ?? 0;
  const piece = Math.round(recording.sampleRate * PIECE_S);
  const began = performance.now();
  let at = 0;
  const timer = window.setInterval(() => {
    const due = speed === 0 ? length : Math.min(length, ((performance.now() - began) / 1_000) * speed * recording.sampleRate);
    // In real time the sender is a microphone and cannot wait; at any other pace it can.
    while (at < length && Math.min(at + piece, length) <= due && (speed === 1 || !stream.full)) {
      recording.channels.forEach((samples, channel) => {
        const part = samples.subarray(at, at + piece);
        heard(channel, part);
        stream.send(channel, linear16(part));
      });
      at = Math.min(length, at + piece);
    }
    if (at < length) return;
    window.clearInterval(timer);
    done();
  }, TICK_MS);
  return () => window.clearInterval(timer);
}
