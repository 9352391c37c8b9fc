// The topology as the server tells it: `GET /v1/admin/topology`, and a turn of a dial.

export type Mode = 'local' | 'remote' | 'routed';

export interface Dial {
  mode: Mode;
  remote_percent: number;
  shadow_percent: number;
}

export interface Target {
  /** `local`, or the endpoint. */
  name: string;
  /** From where it is known; null for this process. */
  source: 'configuration' | 'registry' | null;
  /** What is left of its lease in the registry; 0 where the registry does not tell. */
  lease_ms: number | null;
  down: string | null;
  /** As the peer said it when it was met; absent until it has. */
  version?: string | null;
  /** The run that was met last. */
  run?: { id: string; up_s: number; restarts: number } | null;
  breaker: 'closed' | 'half_open' | 'open';
  calls: number;
  slots: number;
  streams: number;
  recent: { calls: number; failed: number; p50_ms: number; p99_ms: number };
}

export interface Route {
  module: string;
  version: number;
  dial: Dial;
  targets: Target[];
  /** Peers of the registry that are asked no more, the latest first. */
  lost: { name: string; at: string; why: string }[];
}

export interface Change {
  at: string;
  module: string;
  version: number;
  by: 'file' | 'operator' | 'step_back';
  /** As they said. */
  who?: string | null;
  from: string;
  to: string;
  reason: string | null;
  asked_to_move: number;
}

export interface ModuleLoad {
  name: string;
  mode: Mode;
  endpoint: string | null;
  state: 'ready' | 'degraded' | 'failing';
  detail: string;
  cpu: number | null;
  queue_wait: { count: number; p50_ms: number; p99_ms: number; limit_ms: number } | null;
  refused: number;
  /** Measured while it loaded, and counted by the module now. */
  memory: { loaded_bytes: number | null; held_bytes: number | null; held: string | null };
}

export interface Hop {
  name: string;
  module: string;
  limit_ms: number;
  count: number;
  p50_ms: number | null;
  p99_ms: number | null;
  violations: number;
  counted_from_ms: number;
}

export interface Topology {
  process: {
    version: string;
    uptime_s: number;
    draining: boolean;
    window_s: number;
    cores: number;
    cpu: number | null;
    machine_cpu: number | null;
    memory_bytes: number | null;
    /** What of it is no module's. */
    shared_bytes: number | null;
    live_conversations: number;
  };
  bottleneck: { module: string | null; moving_helps: boolean | null; sentence: string };
  modules: ModuleLoad[];
  parts: { name: string; cpu: number }[];
  hops: Hop[];
  routes: Route[];
  changes: Change[];
}

export interface Turn {
  mode?: Mode;
  remote_percent?: number;
  shadow_percent?: number;
  step?: 'forward' | 'back';
  undo?: boolean;
  move_live?: boolean;
  dry_run?: boolean;
  version?: number;
  by?: string;
  reason?: string;
}

export interface Turned {
  from: Dial;
  to: Dial;
  version: number;
  dry_run: boolean;
  asked_to_move: number;
}
