// Asks `/v1` and turns a refusal into one error that says what the server said.

import type { Topology, Turn, Turned } from '../topology/wire';
import type { ConversationRow, Insight, Page, SearchHit, ServerStatus, SummaryItem, TalkMetrics, Utterance } from './wire';

export class Refusal extends Error {
  constructor(
    /** 0: the server was not reached. */
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function ask<T>(path: string, params: Record<string, string | undefined> = {}, signal?: AbortSignal): Promise<T> {
  return send<T>(path, params, { headers: { accept: 'application/json' }, ...(signal ? { signal } : {}) });
}

async function send<T>(path: string, params: Record<string, string | undefined>, request: RequestInit): Promise<T> {
  const signal = request.signal;
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) if (value !== undefined && value !== '') query.set(name, value);
  const address = query.size > 0 ? `${path}?${query}` : path;
  let response: Response;
  try {
    response = await fetch(address, request);
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new Refusal(0, 'the server cannot be reached');
  }
  const body: unknown = await response.json().catch(() => null);
  signal?.throwIfAborted(); // a body cut off by us is no answer
  if (!response.ok) {
    const problem = (body ?? {}) as { title?: string; detail?: string };
    throw new Refusal(response.status, problem.detail ?? problem.title ?? response.statusText);
  }
  if (body === null) throw new Refusal(response.status, 'the answer was cut short');
  return body as T;
}

export interface ConversationFilter {
  state?: string;
  from?: string;
  to?: string;
  tag?: string;
  intent?: string;
  sentiment?: string;
}

const at = (id: string) => `/v1/conversations/${encodeURIComponent(id)}`;

export const conversations = (filter: ConversationFilter, cursor: string | undefined, signal?: AbortSignal) =>
  ask<Page<ConversationRow>>('/v1/conversations', { ...filter, cursor, limit: '50' }, signal);
export const conversation = (id: string, signal?: AbortSignal) => ask<ConversationRow>(at(id), {}, signal);
export const insights = (id: string, signal?: AbortSignal) =>
  ask<{ data: Insight[] }>(`${at(id)}/insights`, { superseded: 'false' }, signal).then((page) => page.data);
export const metrics = (id: string, signal?: AbortSignal) => ask<TalkMetrics>(`${at(id)}/metrics`, {}, signal);
export const summary = (id: string, signal?: AbortSignal) =>
  ask<{ items: SummaryItem[] }>(`${at(id)}/summary`, {}, signal).then((answer) => answer.items);
export const status = (signal?: AbortSignal) => ask<ServerStatus>('/v1/admin/status', {}, signal);
export const topology = (signal?: AbortSignal) => ask<Topology>('/v1/admin/topology', {}, signal);
export const turn = (module: string, wish: Turn) =>
  send<Turned>(`/v1/admin/routes/${encodeURIComponent(module)}`, {}, { method: 'PUT', headers: { 'content-type': 'application/json' }, body: JSON.stringify(wish) });
export const search = (query: { q: string; role?: string; state?: string; from?: string; to?: string }, cursor?: string, signal?: AbortSignal) =>
  ask<Page<SearchHit>>('/v1/search', { ...query, cursor, limit: '50' }, signal);

/** All utterances of a conversation, page by page, up to `most`. */
export async function utterances(id: string, most: number, signal?: AbortSignal): Promise<Utterance[]> {
  const all: Utterance[] = [];
  let cursor: string | undefined;
  do {
    const page = await ask<Page<Utterance>>(`${at(id)}/utterances`, { cursor, limit: '200' }, signal);
    all.push(...page.data);
    cursor = page.next_cursor ?? undefined;
  } while (cursor !== undefined && all.length < most);
  return all;
}

export const recordingAddress = (id: string) => `${at(id)}/recording`;
export const exportAddress = (id: string, format: string) => `${at(id)}/export?format=${format}`;
