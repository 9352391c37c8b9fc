// One connection to `/v1/live` for the whole page: many topics, kept alive, resumed where it broke off.
//
// Invariants: a topic's handler sees a snapshot before any delta, and every delta once. When the socket is down the link says so and
// since when; nothing pretends to be live. A new attempt waits longer each time, with chance, and is made at once when the network
// comes back. Deliberately absent: what the frames mean.

import { computed, signal } from '@preact/signals';
import { type Cursor, fresh, resumeFrom, step } from './cursor';
import type { Delta, Envelope } from './wire';

const PING_EVERY_MS = 15_000;
const DEAD_AFTER_MS = 25_000;
/** From dialing to the server's welcome. */
const WELCOME_WITHIN_MS = 10_000;
const STALE_AFTER_MS = 10_000;
const FIRST_RETRY_MS = 400;
const LONGEST_RETRY_MS = 15_000;
/** A hole that a snapshot did not heal is not asked for again at once. */
const AGAIN_EVERY_MS = 2_000;
/** Closed by the server because we read too slowly. */
const TOO_SLOW = 4408;

export type Link =
  | { state: 'connecting' }
  | { state: 'live' }
  /** Trying again; `since` is when the last frame came, null when none ever did. */
  | { state: 'reconnecting' | 'stale'; since: number | null; retryAt: number };

export interface TopicHandler {
  snapshot(data: unknown): void;
  delta(frame: Delta): void;
  /** The server refuses the topic, for example because there is no such conversation. */
  refused?(code: string, message: string): void;
}

interface Topic {
  name: string;
  partials: boolean;
  cursor: Cursor;
  handler: TopicHandler;
  askedAgainAt: number;
}

export const link = signal<Link>({ state: 'connecting' });
/** What is on screen is of this moment. */
export const linked = computed(() => link.value.state === 'live');
/** How much later than the best case frames arrive, in ms: the feed's own part of the lag. */
export const feedDelayMs = signal(0);
/** The server's clock minus ours, in ms. */
export const clockOffsetMs = signal(0);

export class Feed {
  private topics = new Map<string, Topic>();
  private socket: WebSocket | null = null;
  private epoch: string | null = null;
  private attempts = 0;
  private retryTimer = 0;
  private lastFrameAt: number | null = null;
  private lastPingAt = 0;
  private smallestOffset = Number.POSITIVE_INFINITY;
  private dialedAt = 0;
  private retryAt = 0;

  constructor(private readonly url: string) {
    window.setInterval(() => this.tick(), 1_000);
    window.addEventListener('online', () => this.retryNow());
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') this.ping();
    });
    this.connect();
  }

  /** Follows a topic until the returned function is called. */
  follow(name: string, partials: boolean, handler: TopicHandler): () => void {
    const topic: Topic = { name, partials, cursor: fresh(), handler, askedAgainAt: 0 };
    this.topics.set(name, topic);
    this.subscribe(topic);
    return () => {
      if (this.topics.get(name) !== topic) return;
      this.topics.delete(name);
      this.send({ type: 'unsubscribe', topic: name });
    };
  }

  retryNow(): void {
    if (this.socket) return;
    window.clearTimeout(this.retryTimer);
    this.connect();
  }

  private connect(): void {
    const socket = new WebSocket(this.url);
    this.socket = socket;
    this.dialedAt = Date.now();
    socket.onopen = () => socket.send(JSON.stringify({ type: 'hello', protocol: 1 }));
    socket.onmessage = (message) => {
      if (socket !== this.socket || typeof message.data !== 'string') return;
      this.lastFrameAt = Date.now();
      this.receive(JSON.parse(message.data) as Envelope);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.lost(event.code === TOO_SLOW ? 1_000 : 0);
    };
  }

  private receive(frame: Envelope): void {
    switch (frame.type) {
      case 'welcome':
        this.attempts = 0;
        this.epoch = frame.data.epoch;
        this.smallestOffset = Number.POSITIVE_INFINITY;
        this.measure(frame.data.server_time);
        link.value = { state: 'live' };
        for (const topic of this.topics.values()) this.subscribe(topic);
        return;
      case 'pong':
      case 'subscribed':
        this.measure(frame.emitted_at);
        return;
      case 'goodbye':
        this.lost(frame.data.retry_after_ms);
        return;
      case 'error': {
        const topic = frame.topic === null ? undefined : this.topics.get(frame.topic);
        topic?.handler.refused?.(frame.data.code, frame.data.message);
        return;
      }
    }
    const topic = frame.topic === null ? undefined : this.topics.get(frame.topic);
    if (!topic || this.epoch === null) return;
    this.measure(frame.emitted_at);
    switch (step(topic.cursor, frame, this.epoch)) {
      case 'replace':
        topic.handler.snapshot(frame.data);
        break;
      case 'apply':
        topic.handler.delta(frame as Delta);
        break;
      case 'again':
        this.askAgain(topic);
        break;
      case 'skip':
        break;
    }
  }

  private subscribe(topic: Topic): void {
    if (this.epoch === null) return; // the welcome subscribes everything
    this.send({ type: 'subscribe', topic: topic.name, partials: topic.partials, ...resumeFrom(topic.cursor) });
  }

  private askAgain(topic: Topic): void {
    const now = Date.now();
    if (now - topic.askedAgainAt < AGAIN_EVERY_MS) return;
    topic.askedAgainAt = now;
    topic.cursor = fresh();
    this.send({ type: 'unsubscribe', topic: topic.name });
    this.subscribe(topic);
  }

  /** Frames arrive at best with the offset of the two clocks; what they take longer is delay. */
  private measure(emittedAt: string): void {
    const emitted = Date.parse(emittedAt);
    if (Number.isNaN(emitted)) return;
    const apart = Date.now() - emitted;
    this.smallestOffset = Math.min(this.smallestOffset, apart);
    clockOffsetMs.value = -this.smallestOffset;
    const delay = apart - this.smallestOffset;
    if (Math.abs(delay - feedDelayMs.peek()) > 50) feedDelayMs.value = delay;
  }

  private send(message: object): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  private ping(): void {
    this.lastPingAt = Date.now();
    this.send({ type: 'ping' });
  }

  private tick(): void {
    const now = Date.now();
    const current = link.peek();
    if (current.state === 'live') {
      if (this.lastFrameAt !== null && now - this.lastFrameAt > DEAD_AFTER_MS) this.lost(0);
      else if (now - this.lastPingAt > PING_EVERY_MS) this.ping();
      return;
    }
    if (this.socket && now - this.dialedAt > WELCOME_WITHIN_MS) this.lost(0);
    if (current.state === 'reconnecting' && current.since !== null && now - current.since > STALE_AFTER_MS) {
      link.value = { ...current, retryAt: this.retryAt, state: 'stale' };
    }
  }

  private lost(waitMs: number): void {
    const socket = this.socket;
    this.socket = null;
    this.epoch = null;
    socket?.close();
    const backoff = Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.attempts);
    this.attempts += 1;
    const wait = Math.max(waitMs, backoff * (0.5 + Math.random() / 2));
    const since = this.lastFrameAt;
    const stale = since !== null && Date.now() - since > STALE_AFTER_MS;
    this.retryAt = Date.now() + wait;
    link.value = { state: stale ? 'stale' : 'reconnecting', since, retryAt: this.retryAt };
    feedDelayMs.value = 0;
    window.clearTimeout(this.retryTimer);
    this.retryTimer = window.setTimeout(() => this.connect(), wait);
  }
}

let shared: Feed | null = null;

/** The page's feed, connected on first use. */
export function feed(): Feed {
  shared ??= new Feed(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/v1/live`);
  return shared;
}
