// One box over everything that was said; each hit leads to its moment.

import { useSignal } from '@preact/signals';
import { useEffect, useState } from 'preact/hooks';
import { link } from '../live/feed';
import { Refusal, search } from '../live/rest';
import type { SearchHit } from '../live/wire';
import { clock, dateAndTime, m } from '../messages';
import { StateBadge } from '../parts/badges';
import { dayEnd, dayStart, useQuery } from '../parts/query';
import { useTitle } from '../parts/title';

const TYPING_MS = 250;
const MOST_HITS = 500;
const NAMES = ['q', 'role', 'state', 'from', 'to'] as const;

type Answer = { is: 'none' | 'asking' } | { is: 'here'; hits: SearchHit[]; next: string | null } | { is: 'failed'; why: string };

export function SearchPage() {
  useTitle(m.search.title);
  const [query, change] = useQuery(NAMES);
  const [typed, setTyped] = useState(query.q);
  const answer = useSignal<Answer>({ is: 'none' });
  const reachable = link.value.state === 'live';

  useEffect(() => setTyped(query.q), [query.q]);
  useEffect(() => {
    if (typed === query.q) return;
    const timer = window.setTimeout(() => change({ q: typed }, query.q !== ''), TYPING_MS);
    return () => window.clearTimeout(timer);
  }, [typed, query.q]);

  const asked = { q: query.q.trim(), role: query.role, state: query.state, from: dayStart(query.from), to: dayEnd(query.to) };
  const key = JSON.stringify(asked);
  useEffect(() => {
    if (asked.q === '') {
      answer.value = { is: 'none' };
      return;
    }
    const abort = new AbortController();
    if (answer.peek().is !== 'here') answer.value = { is: 'asking' };
    search(asked as Parameters<typeof search>[0], undefined, abort.signal)
      .then((page) => (answer.value = { is: 'here', hits: page.data, next: page.next_cursor }))
      .catch((error: unknown) => {
        if (!abort.signal.aborted) answer.value = { is: 'failed', why: error instanceof Refusal ? error.message : String(error) };
      });
    return () => abort.abort();
  }, [key, reachable]);

  const more = async () => {
    const known = answer.peek();
    if (known.is !== 'here' || known.next === null) return;
    try {
      const page = await search(asked as Parameters<typeof search>[0], known.next);
      answer.value = { is: 'here', hits: [...known.hits, ...page.data], next: page.next_cursor };
    } catch (error) {
      answer.value = { is: 'failed', why: error instanceof Refusal ? error.message : String(error) };
    }
  };

  const now = answer.value;
  const hits = now.is === 'here' ? now.hits : [];
  return (
    <div class="page search">
      <h1 class="sr">{m.search.title}</h1>
      <search>
        <form
          class="search-form"
          onSubmit={(event) => {
            event.preventDefault();
            change({ q: typed });
          }}
        >
          <input
            type="search"
            class="big"
            data-find
            value={typed}
            onInput={(event) => setTyped(event.currentTarget.value)}
            placeholder={m.search.hint}
            aria-label={m.search.label}
            autoFocus
          />
          <div class="facets">
            <label class="choice">
              <span>{m.search.role}</span>
              <select value={query.role} onChange={(event) => change({ role: event.currentTarget.value })}>
                <option value="">{m.search.anyone}</option>
                <option value="customer">{m.role.customer}</option>
                <option value="agent">{m.role.agent}</option>
                <option value="unknown">{m.role.unknown}</option>
              </select>
            </label>
            <label class="choice">
              <span>{m.search.state}</span>
              <select value={query.state} onChange={(event) => change({ state: event.currentTarget.value })}>
                <option value="">{m.search.anyState}</option>
                <option value="live">{m.state.live}</option>
                <option value="complete">{m.state.complete}</option>
                <option value="abandoned">{m.state.abandoned}</option>
              </select>
            </label>
            <label class="choice">
              <span>{m.search.from}</span>
              <input type="date" value={query.from} onChange={(event) => change({ from: event.currentTarget.value })} />
            </label>
            <label class="choice">
              <span>{m.search.to}</span>
              <input type="date" value={query.to} onChange={(event) => change({ to: event.currentTarget.value })} />
            </label>
          </div>
        </form>
      </search>

      {now.is === 'none' && <p class="empty muted">{m.search.start}</p>}
      {now.is === 'asking' && <p class="empty muted">{m.loading}</p>}
      {now.is === 'failed' && <p class="empty">{m.failed(now.why)}</p>}
      {now.is === 'here' && hits.length === 0 && (
        <div class="empty">
          <p>{m.search.none(query.q)}</p>
          <p class="muted">{m.search.noneHelp}</p>
        </div>
      )}
      {now.is === 'here' && hits.length > 0 && (
        <>
          <p class="muted small" role="status">
            {m.search.hits(hits.length, now.next !== null)}
          </p>
          <ol class="hits">
            {hits.map((hit) => (
              <li key={hit.utterance.id}>
                <HitRow hit={hit} />
              </li>
            ))}
          </ol>
          {now.next !== null && now.hits.length < MOST_HITS && (
            <button type="button" onClick={() => void more()}>
              {m.search.more}
            </button>
          )}
        </>
      )}
    </div>
  );
}

function HitRow({ hit }: { hit: SearchHit }) {
  const { conversation, utterance, snippet } = hit;
  return (
    <a href={`/conversations/${conversation.id}?t=${utterance.start_ms}`} class="hit-row" data-testid="hit">
      <span class="hit-head">
        <strong class="ellipsis">{conversation.title ?? m.untitled}</strong>
        <StateBadge state={conversation.state} />
        <span class="muted small">{dateAndTime(conversation.started_at)}</span>
      </span>
      <span class="hit-words">
        <span class={`who ${utterance.role}`}>{m.role[utterance.role]}</span> <span class="number muted">{clock(utterance.start_ms)}</span>{' '}
        {snippet.map((piece, i) => (piece.hit ? <mark key={i}>{piece.text}</mark> : <span key={i}>{piece.text}</span>))}
      </span>
    </a>
  );
}
