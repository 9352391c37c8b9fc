// What the server says, as `/v1` and `/v1/live` write it: snake_case, times in ms within a conversation, RFC 3339 for dates.

export type Role = 'agent' | 'customer' | 'unknown';
export type State = 'live' | 'complete' | 'abandoned';
export type Finalization = 'closing' | 'scoring' | 'done' | 'degraded';
export type Tier = 'llm' | 'second_llm' | 'local' | 'rules' | 'pending';
export type Task = 'intent' | 'sentiment';

export interface Word {
  text: string;
  start_ms: number;
  end_ms: number;
  confidence: number;
}

export interface Verdict {
  name: string;
  score: number;
  tier: Tier;
}

export interface Channel {
  channel: number;
  role: Role;
  encoding: string;
  sample_rate: number;
}

export interface ConversationRow {
  id: string;
  external_id: string | null;
  title: string | null;
  source: string;
  language: string;
  tags: string[];
  state: State;
  started_at: string;
  ended_at: string | null;
  duration_ms: number;
  channels: Channel[];
  utterance_count: number;
  intent: Verdict | null;
  sentiment: Verdict | null;
  finalization: Finalization | null;
  recording: boolean;
}

export interface Sentiment {
  at_ms: number;
  name: string;
  score: number;
}

export interface WallTile extends ConversationRow {
  last_text: string | null;
  last_role: Role | null;
  last_at: string | null;
  talking: boolean[];
  lag_ms: number | null;
  connected: boolean;
  sentiments: Sentiment[];
}

export interface Utterance {
  id: string;
  conversation_id: string;
  channel: number;
  role: Role;
  seq: number;
  kind: 'speech' | 'gap';
  start_ms: number;
  end_ms: number;
  text: string;
  confidence: number | null;
  speech_final: boolean;
  word_times: 'estimated' | 'model';
  words: Word[];
  model: string | null;
  reason: string | null;
  trace_id: string | null;
}

export interface Partial {
  utterance_id: string;
  channel: number;
  role: Role;
  rev: number;
  start_ms: number;
  end_ms: number;
  text: string;
  stable_words: number;
  words: Word[];
}

export interface Evidence {
  utterance_id: string;
  word_from: number;
  word_to: number;
}

export interface Insight {
  id: string;
  run_id: string;
  conversation_id: string;
  utterance_id: string;
  task: Task;
  labels: { name: string; score: number }[];
  abstained: string | null;
  evidence: Evidence[];
  provenance: {
    tier: Tier;
    model: string;
    degraded_from: Tier | null;
    config_hash: string;
    latency_ms: number;
    prompt: string | null;
    late: boolean;
  };
  superseded_by: string | null;
  created_at: string;
}

export interface ChannelMetrics {
  channel: number;
  role: Role;
  talk_ms: number;
  talk_ratio: number;
  words: number;
  words_per_minute: number;
  interruptions: number;
  longest_monologue_ms: number;
  turns: number;
}

export interface TalkMetrics {
  conversation_id: string;
  duration_ms: number;
  silence_ms: number;
  silence_ratio: number;
  overlap_ms: number;
  channels: ChannelMetrics[];
}

export interface SummaryItem {
  kind: 'reason' | 'action' | 'outcome';
  text: string;
  evidence: Evidence[];
  tier: Tier;
}

export interface SearchHit {
  conversation: { id: string; title: string | null; state: State; started_at: string };
  utterance: { id: string; channel: number; role: Role; start_ms: number; end_ms: number; text: string };
  snippet: { text: string; hit: boolean }[];
}

export interface TierStatus {
  task: Task;
  tier: Tier;
  degraded: string | null;
  stale: string | null;
}

export interface ServerStatus {
  version: string;
  started_at: string;
  uptime_s: number;
  recordings: boolean;
  modules: { name: string; mode: 'local' | 'remote' | 'routed'; endpoint: string | null; state: 'ready' | 'degraded' | 'failing'; detail: string | null }[];
  tiers: TierStatus[];
  conversations: { live: number };
}

export interface Page<T> {
  data: T[];
  next_cursor: string | null;
}

export interface CallSnapshot {
  conversation: ConversationRow;
  utterances: Utterance[];
  insights: Insight[];
  partials: Partial[];
  metrics: TalkMetrics;
  connected: boolean;
  lag_ms: number | null;
}

/** What a topic carries, by type; `data` of the envelope. */
export interface Deltas {
  'conversation.started': { conversation: ConversationRow };
  'conversation.updated': { conversation: ConversationRow };
  'conversation.ended': { conversation: ConversationRow };
  'utterance.partial': Partial;
  'utterance.final': { utterance: Utterance };
  'utterance.retracted': { utterance_id: string };
  'speech.activity': { channel: number; talking: boolean };
  link: { connected: boolean };
  lag: { ms: number };
  'insight.created': { insight: Insight };
  'insight.superseded': { insight_id: string; by: string };
  'metrics.tick': TalkMetrics;
  'tier.changed': TierStatus;
}

/** What the feed says about itself. */
export interface Notices {
  welcome: { session: string; epoch: string; protocol: number; server_time: string; resume_events: number };
  subscribed: { resumed: boolean };
  pong: Record<string, never>;
  error: { code: string; message: string };
  goodbye: { reason: string; retry_after_ms: number };
  gap: { from_seq: number; to_seq: number };
  snapshot: unknown;
}

interface Head {
  v: number;
  topic: string | null;
  seq: number | null;
  conversation_id: string | null;
  emitted_at: string;
}

type Of<T> = { [K in keyof T]: Head & { type: K; data: T[K] } }[keyof T];

export type Delta = Of<Deltas>;
export type Envelope = Of<Deltas & Notices>;
