// Sends audio to `/v1/stream`, the native ingest socket, and survives the loss of the connection.
//
// Invariants: audio is kept until the server says it is safe and sent again from there after a reconnect; positions count samples of one
// channel and never go back; an end is reported once. Deliberately absent: where the audio comes from, what is shown.

import { Kept } from './kept';

const HEADER_BYTES = 12;
/** More unsent bytes than this and a fast sender waits. */
const BUFFERED_BYTES = 256 * 1024;
/** Audio sent ahead of what is stored, when a file is sent faster than it plays. */
const AHEAD_S = 30;
const FIRST_RETRY_MS = 300;
const LONGEST_RETRY_MS = 5_000;
const KEPT_S = 180;

export interface StreamSpec {
  sampleRate: number;
  roles: string[];
  title: string;
}

export interface Final {
  channel: number;
  utterance: string;
  /** The voiced part, in ms of the call. */
  start_ms: number;
  end_ms: number;
  text: string;
  /** The speaker paused here; otherwise the text was cut for its length and goes on. */
  speech_final: boolean;
}

export type End = { how: 'done' | 'gone' | 'superseded' } | { how: 'refused' | 'failed'; why: string; full?: boolean };

export interface Listener {
  opened(conversation: string): void;
  link(connected: boolean): void;
  final(final: Final): void;
  ended(end: End): void;
}

type Message =
  | { type: 'welcome'; conversation: string; resumed: boolean; resume_window_ms: number; channels: { channel: number; safe: number }[] }
  | ({ type: 'final' } & Final)
  | { type: 'safe'; channel: number; pos: number }
  | { type: 'ended' }
  | { type: 'error'; code: string; message: string }
  | { type: 'goaway'; reason: string }
  | { type: 'started' | 'partial' | 'retracted' | 'gap' | 'flushed' | 'pong' };

export class IngestStream {
  readonly kept: Kept[];
  private socket: WebSocket | null = null;
  private ready = false;
  private conversation: string | null = null;
  private resumeWindowMs = 120_000;
  private attempts = 0;
  private lostAt: number | null = null;
  private closing = false;
  private over = false;
  private lastError: { code: string; message: string } | null = null;
  private timer = 0;

  constructor(
    private readonly spec: StreamSpec,
    private readonly listener: Listener,
  ) {
    this.kept = spec.roles.map(() => new Kept(KEPT_S * spec.sampleRate));
    this.connect();
  }

  get sampleRate(): number {
    return this.spec.sampleRate;
  }

  send(channel: number, samples: Int16Array): void {
    const position = this.kept[channel]?.add(samples);
    if (position !== undefined && this.ready) this.write(channel, position, samples);
  }

  /** Whether a sender that could go faster should wait. */
  get full(): boolean {
    const ahead = Math.max(...this.kept.map((one) => one.waiting)) / this.spec.sampleRate;
    return !this.ready || (this.socket?.bufferedAmount ?? 0) > BUFFERED_BYTES || ahead > AHEAD_S;
  }

  /** No more audio: the server finishes what it has and ends the conversation. */
  close(): void {
    this.closing = true;
    if (this.ready) this.socket?.send(JSON.stringify({ type: 'close' }));
    else if (this.conversation === null) this.end({ how: 'failed', why: 'closed before it was opened' });
  }

  /** Leaves at once; the server ends the conversation as abandoned when nobody comes back. */
  abandon(): void {
    this.over = true;
    window.clearTimeout(this.timer);
    this.socket?.close();
  }

  private address(): string {
    const query = new URLSearchParams({
      encoding: 'linear16',
      sample_rate: String(this.spec.sampleRate),
      channels: String(this.spec.roles.length),
      roles: this.spec.roles.join(','),
      title: this.spec.title,
    });
    if (this.conversation) query.set('conversation', this.conversation);
    return `/v1/stream?${query}`;
  }

  private connect(): void {
    const socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}${this.address()}`);
    socket.binaryType = 'arraybuffer';
    this.socket = socket;
    let opened = false;
    socket.onopen = () => (opened = true);
    socket.onmessage = (message) => {
      if (socket === this.socket && typeof message.data === 'string') this.receive(JSON.parse(message.data) as Message);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) void this.closed(event.code, event.reason, opened);
    };
  }

  private receive(message: Message): void {
    switch (message.type) {
      case 'welcome': {
        const first = this.conversation === null;
        this.conversation = message.conversation;
        this.resumeWindowMs = message.resume_window_ms;
        this.attempts = 0;
        this.lostAt = null;
        this.ready = true;
        for (const { channel, safe } of message.channels) {
          this.kept[channel]?.safe(safe);
          for (const piece of this.kept[channel]?.from(safe) ?? []) this.write(channel, piece.position, piece.samples);
        }
        if (first) this.listener.opened(message.conversation);
        this.listener.link(true);
        if (this.closing) this.socket?.send(JSON.stringify({ type: 'close' }));
        return;
      }
      case 'final':
        this.listener.final(message);
        return;
      case 'safe':
        this.kept[message.channel]?.safe(message.pos);
        return;
      case 'ended':
        for (const kept of this.kept) kept.safe(kept.end);
        this.end({ how: 'done' });
        return;
      case 'error':
        this.lastError = message;
        return;
      default:
        return;
    }
  }

  private write(channel: number, position: number, samples: Int16Array): void {
    const frame = new ArrayBuffer(HEADER_BYTES + samples.byteLength);
    const view = new DataView(frame);
    view.setUint8(0, 1);
    view.setUint8(1, channel);
    view.setBigUint64(4, BigInt(position), true);
    // The wire is little-endian, and so is every machine browsers run on.
    new Int16Array(frame, HEADER_BYTES).set(samples);
    this.socket?.send(frame);
  }

  private async closed(code: number, reason: string, opened: boolean): Promise<void> {
    this.ready = false;
    this.socket = null;
    if (this.over) return;
    if (code === 4009) return this.end({ how: 'superseded' });
    if (code === 1000) return this.end({ how: 'done' });
    const fault = this.lastError?.message ?? reason;
    if (code === 1003 || code === 1008 || code === 1009) return this.end({ how: 'failed', why: fault || `close code ${code}` });
    if (this.conversation === null) {
      // A refusal before the upgrade is HTTP, which a WebSocket does not show; plain HTTP does.
      const refusal = opened ? { why: fault || `close code ${code}`, full: code === 1013 } : await this.askWhy();
      return this.end({ how: 'refused', ...refusal });
    }
    this.lostAt ??= Date.now();
    this.listener.link(false);
    if (Date.now() - this.lostAt > this.resumeWindowMs) return this.end({ how: 'gone' });
    if (!opened) {
      const state = await this.askState();
      if (this.over) return;
      if (state === 'complete' && this.closing) return this.end({ how: 'done' });
      if (state !== null && state !== 'live') return this.end({ how: 'gone' });
    }
    const wait = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.attempts) * (0.5 + Math.random() / 2);
    this.attempts += 1;
    this.timer = window.setTimeout(() => this.connect(), wait);
  }

  /** What the record says of the conversation; `null`: nothing, now. Why a connection is refused a page is not told. */
  private async askState(): Promise<string | null> {
    try {
      const response = await fetch(`/v1/conversations/${this.conversation}`, { headers: { accept: 'application/json' } });
      return response.ok ? ((await response.json()) as { state: string }).state : null;
    } catch {
      return null;
    }
  }

  private async askWhy(): Promise<{ why: string; status: number; full: boolean }> {
    try {
      const response = await fetch(this.address(), { headers: { accept: 'application/json' } });
      const problem = (await response.json().catch(() => ({}))) as { code?: string; detail?: string; title?: string };
      // Then the parameters were fine, and what stood in the way is gone or cannot be told: almost always a full server.
      if (problem.code === 'websocket_expected') return { why: 'it was busy', status: 503, full: true };
      return { why: problem.detail ?? problem.title ?? response.statusText, status: response.status, full: response.status === 503 };
    } catch {
      return { why: 'it cannot be reached', status: 0, full: false };
    }
  }

  private end(end: End): void {
    if (this.over) return;
    this.over = true;
    window.clearTimeout(this.timer);
    this.socket?.close();
    this.listener.ended(end);
  }
}

/** Browser samples (-1 to 1) as the wire's 16-bit integers. */
export function linear16(samples: Float32Array): Int16Array {
  const out = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) out[i] = Math.round(Math.max(-1, Math.min(1, samples[i] ?? 0)) * 32_767);
  return out;
}
