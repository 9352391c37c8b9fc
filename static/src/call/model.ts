// One conversation as its page shows it: live from the topic `conversation:…`, or as the record has it.
//
// Invariants: utterances stand in the order they were spoken; a final replaces its partial; a retracted id disappears; a superseded
// insight is not shown. A changed utterance is a new object. Memory is bounded: past `UTTERANCES_KEPT` the oldest leave the page.
// Deliberately absent: sockets, clocks, drawing.

import type { CallSnapshot, ConversationRow, Delta, Insight, Partial, TalkMetrics, Utterance } from '../live/wire';

export const UTTERANCES_KEPT = 5_000;
const EARLY_KEPT = 200;

export interface Turn {
  utterance: Utterance;
  intent: Insight | null;
  sentiment: Insight | null;
}

export class Call {
  conversation: ConversationRow;
  metrics: TalkMetrics | null = null;
  connected = true;
  lagMs: number | null = null;
  talking: boolean[] = [];
  /** Utterances that left the page because there were too many. */
  forgotten = 0;
  version = 0;

  private turns: Turn[] = [];
  private byId = new Map<string, Turn>();
  private growing = new Map<string, Partial>();
  /** Insights that came before their utterance. */
  private early = new Map<string, Insight[]>();
  private superseded = new Set<string>();

  constructor(conversation: ConversationRow) {
    this.conversation = conversation;
  }

  static of(snapshot: CallSnapshot): Call {
    const call = new Call(snapshot.conversation);
    call.metrics = snapshot.metrics;
    call.connected = snapshot.connected;
    call.lagMs = snapshot.lag_ms;
    for (const utterance of snapshot.utterances) call.say(utterance);
    for (const insight of snapshot.insights) call.learn(insight);
    for (const partial of snapshot.partials) call.grow(partial);
    return call;
  }

  /** In the order spoken. */
  said(): readonly Turn[] {
    return this.turns;
  }

  /** What is being said now, by start. */
  partials(): Partial[] {
    return [...this.growing.values()].sort((a, b) => a.start_ms - b.start_ms);
  }

  turn(utteranceId: string): Turn | undefined {
    return this.byId.get(utteranceId);
  }

  apply(frame: Delta): void {
    this.version += 1;
    switch (frame.type) {
      case 'conversation.started':
      case 'conversation.updated':
        this.conversation = frame.data.conversation;
        break;
      case 'conversation.ended':
        this.conversation = frame.data.conversation;
        this.growing.clear();
        this.talking = [];
        break;
      case 'utterance.partial':
        this.grow(frame.data);
        break;
      case 'utterance.final':
        this.say(frame.data.utterance);
        break;
      case 'utterance.retracted':
        this.retract(frame.data.utterance_id);
        break;
      case 'speech.activity':
        this.talking = Object.assign([], this.talking, { [frame.data.channel]: frame.data.talking });
        break;
      case 'link':
        this.connected = frame.data.connected;
        break;
      case 'lag':
        this.lagMs = frame.data.ms;
        break;
      case 'insight.created':
        this.learn(frame.data.insight);
        break;
      case 'insight.superseded':
        this.supersede(frame.data.insight_id);
        break;
      case 'metrics.tick':
        this.metrics = frame.data;
        break;
      case 'tier.changed':
        break;
    }
  }

  private say(utterance: Utterance): void {
    this.growing.delete(utterance.id);
    const known = this.byId.get(utterance.id);
    const waiting = this.early.get(utterance.id) ?? [];
    this.early.delete(utterance.id);
    const turn: Turn = { utterance, intent: known?.intent ?? null, sentiment: known?.sentiment ?? null };
    this.byId.set(utterance.id, turn);
    if (known) {
      this.turns[this.turns.lastIndexOf(known)] = turn;
    } else {
      this.turns.splice(insertionPoint(this.turns, utterance), 0, turn);
      this.forgetOldest();
    }
    for (const insight of waiting) this.learn(insight);
  }

  private grow(partial: Partial): void {
    if (this.byId.has(partial.utterance_id)) return; // late: the final is here
    const before = this.growing.get(partial.utterance_id);
    if (before && before.rev >= partial.rev) return;
    this.growing.set(partial.utterance_id, partial);
  }

  private retract(id: string): void {
    this.growing.delete(id);
    this.early.delete(id);
    if (!this.byId.delete(id)) return;
    this.turns = this.turns.filter((turn) => turn.utterance.id !== id);
  }

  private learn(insight: Insight): void {
    if (insight.superseded_by !== null || this.superseded.has(insight.id)) return;
    const turn = this.byId.get(insight.utterance_id);
    if (!turn) {
      const waiting = this.early.get(insight.utterance_id) ?? [];
      if (this.early.size < EARLY_KEPT) this.early.set(insight.utterance_id, [...waiting, insight]);
      return;
    }
    this.replace(turn, { ...turn, [insight.task]: insight });
  }

  private supersede(id: string): void {
    this.superseded.add(id);
    for (const turn of this.turns) {
      if (turn.intent?.id === id) return this.replace(turn, { ...turn, intent: null });
      if (turn.sentiment?.id === id) return this.replace(turn, { ...turn, sentiment: null });
    }
  }

  private replace(before: Turn, after: Turn): void {
    this.byId.set(after.utterance.id, after);
    this.turns[this.turns.lastIndexOf(before)] = after;
  }

  private forgetOldest(): void {
    while (this.turns.length > UTTERANCES_KEPT) {
      const oldest = this.turns.shift();
      if (!oldest) return;
      this.byId.delete(oldest.utterance.id);
      this.forgotten += 1;
    }
  }
}

/** After everything that started no later. Most utterances belong at the end, so the search starts there. */
function insertionPoint(turns: readonly Turn[], utterance: Utterance): number {
  let at = turns.length;
  for (; at > 0; at--) {
    const before = turns[at - 1]?.utterance;
    if (!before || before.start_ms < utterance.start_ms || (before.start_ms === utterance.start_ms && before.channel <= utterance.channel)) break;
  }
  return at;
}
