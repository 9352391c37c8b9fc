// One trial from start to end: a source, the stream it goes into, and what the page shows of them.

import { signal } from '@preact/signals';
import { inSeconds, m } from '../messages';
import { Latency } from './latency';
import { CannotListen, type Microphone, microphone, openFile, playInto } from './sources';
import { type End, type Final, IngestStream, linear16 } from './stream';

export type Phase =
  | { is: 'idle' }
  | { is: 'asking' | 'opening' | 'dialing' }
  | { is: 'running'; linked: boolean }
  | { is: 'stopping' }
  | { is: 'finished' }
  | { is: 'failed'; why: string };

export interface Figures {
  sentMs: number;
  unsafeMs: number;
  droppedMs: number;
  last: number | null;
  median: number | null;
  worst: number | null;
}

export interface Wishes {
  /** Role of a single channel. */
  mono: string;
  /** Roles of two. */
  stereo: [string, string];
  /** Times real time; 0: as fast as it goes. */
  speed: number;
}

const FIGURES_EVERY_MS = 250;
/** Quieter than this for a while, and something is wrong. */
const AUDIBLE = 0.004;
const QUIET_MS = 4_000;
const LONGEST_TITLE = 200;

export class Trial {
  readonly phase = signal<Phase>({ is: 'idle' });
  readonly conversation = signal<string | null>(null);
  /** Loudness of the last pieces, per channel, 0 to 1. */
  readonly levels = signal<number[]>([]);
  readonly quiet = signal(false);
  readonly figures = signal<Figures | null>(null);
  readonly source = signal<{ name: string | null; sampleRate: number; channels: number; note: string | null; live: boolean } | null>(null);

  private stream: IngestStream | null = null;
  private stopSource: () => void = () => undefined;
  private timer = 0;
  private latency = new Latency();
  private peaks: number[] = [];
  private audibleAt = 0;
  private left = false;

  async speak(wishes: Wishes): Promise<void> {
    this.phase.value = { is: 'asking' };
    await this.orSayWhy(async () => {
      const mic: Microphone = await microphone();
      if (this.left) return mic.stop();
      this.source.value = { name: null, sampleRate: mic.sampleRate, channels: 1, note: null, live: true };
      const stream = this.dial(mic.sampleRate, [wishes.mono], m.try.titleMic);
      this.stopSource = () => mic.stop();
      mic.listen((samples) => {
        this.hear(0, samples);
        stream.send(0, linear16(samples));
        this.mark(stream, 0);
      });
    });
  }

  async play(file: File, wishes: Wishes): Promise<void> {
    this.phase.value = { is: 'opening' };
    await this.orSayWhy(async () => {
      const recording = await openFile(file);
      if (this.left) return;
      const channels = recording.channels.length;
      const note = recording.channelsInFile > 2 ? m.try.manyChannels(recording.channelsInFile) : null;
      this.source.value = { name: file.name, sampleRate: recording.sampleRate, channels, note, live: wishes.speed === 1 };
      const stream = this.dial(recording.sampleRate, channels === 1 ? [wishes.mono] : wishes.stereo, file.name);
      this.stopSource = playInto(
        stream,
        recording,
        wishes.speed,
        (channel, samples) => {
          this.hear(channel, samples);
          if (wishes.speed === 1) this.mark(stream, channel, samples.length);
        },
        () => this.stop(),
      );
    });
  }

  stop(): void {
    if (this.phase.peek().is !== 'running' && this.phase.peek().is !== 'dialing') return;
    this.stopSource();
    this.phase.value = { is: 'stopping' };
    this.levels.value = this.levels.peek().map(() => 0);
    this.stream?.close();
  }

  /** The page is left: the call is finished properly, nothing is shown any more. */
  leave(): void {
    this.left = true;
    this.stopSource();
    window.clearInterval(this.timer);
    this.stream?.close();
  }

  private dial(sampleRate: number, roles: string[], title: string): IngestStream {
    this.phase.value = { is: 'dialing' };
    this.levels.value = roles.map(() => 0);
    this.peaks = roles.map(() => 0);
    this.audibleAt = performance.now();
    const stream = new IngestStream(
      { sampleRate, roles, title: title.slice(0, LONGEST_TITLE) },
      {
        opened: (conversation) => (this.conversation.value = conversation),
        link: (linked) => {
          if (this.phase.peek().is !== 'stopping') this.phase.value = { is: 'running', linked };
        },
        final: (final) => this.arrived(final),
        ended: (end) => this.ended(end),
      },
    );
    this.stream = stream;
    this.timer = window.setInterval(() => this.count(stream), FIGURES_EVERY_MS);
    return stream;
  }

  private hear(channel: number, samples: Float32Array): void {
    let peak = 0;
    for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
    this.peaks[channel] = Math.max(peak, (this.peaks[channel] ?? 0) * 0.9);
    if (peak > AUDIBLE) this.audibleAt = performance.now();
    if (channel === 0) this.levels.value = this.peaks.map(loudness);
  }

  private mark(stream: IngestStream, channel: number, coming = 0): void {
    const samples = (stream.kept[channel]?.end ?? 0) + coming;
    this.latency.left(channel, (samples / stream.sampleRate) * 1_000, performance.now());
  }

  private arrived(final: Final): void {
    if (final.speech_final) this.latency.arrived(final.channel, final.end_ms, performance.now());
  }

  private count(stream: IngestStream): void {
    const ms = (samples: number) => (samples / stream.sampleRate) * 1_000;
    const { last, median, worst } = this.latency;
    this.figures.value = {
      sentMs: ms(Math.max(...stream.kept.map((one) => one.end))),
      unsafeMs: ms(Math.max(...stream.kept.map((one) => one.waiting))),
      droppedMs: ms(stream.kept.reduce((sum, one) => sum + one.dropped, 0)),
      last,
      median,
      worst,
    };
    this.quiet.value = this.phase.peek().is === 'running' && performance.now() - this.audibleAt > QUIET_MS;
  }

  private ended(end: End): void {
    this.stopSource();
    window.clearInterval(this.timer);
    if (this.stream) this.count(this.stream);
    this.quiet.value = false;
    switch (end.how) {
      case 'done':
        this.phase.value = { is: 'finished' };
        break;
      case 'gone':
        this.phase.value = { is: 'failed', why: m.try.gone };
        break;
      case 'superseded':
        this.phase.value = { is: 'failed', why: m.try.superseded };
        break;
      case 'refused':
      case 'failed':
        this.phase.value = { is: 'failed', why: end.full ? m.try.full : m.try.refused(end.why) };
        break;
    }
  }

  private async orSayWhy(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.phase.value = { is: 'failed', why: error instanceof CannotListen ? error.message : String(error) };
    }
  }
}

/** Peak amplitude as a length: decibels from -60 to 0, as ears count. */
function loudness(peak: number): number {
  return peak <= 0 ? 0 : Math.max(0, 1 + (20 * Math.log10(peak)) / 60);
}

export const keptSeconds = (figures: Figures | null) => inSeconds(figures?.unsafeMs ?? 0);
