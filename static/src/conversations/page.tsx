// Every conversation of the record, newest first, a page at a time.

import { useSignal } from '@preact/signals';
import { useEffect, useState } from 'preact/hooks';
import { link } from '../live/feed';
import { conversations, Refusal } from '../live/rest';
import type { ConversationRow, Page } from '../live/wire';
import { clock, dateAndTime, m } from '../messages';
import { IntentBadge, MoodBadge, StateBadge } from '../parts/badges';
import { dayEnd, dayStart, useQuery } from '../parts/query';
import { useTitle } from '../parts/title';
import { now } from '../shell/clock';
import { titleOf } from '../wall/tile';

const TYPING_MS = 350;
const NAMES = ['state', 'from', 'to', 'tag', 'intent', 'sentiment'] as const;

type Answer = { is: 'asking' } | { is: 'here'; page: Page<ConversationRow> } | { is: 'failed'; why: string };

export function ConversationsPage() {
  useTitle(m.conversations.title);
  const [query, change] = useQuery(NAMES);
  const answer = useSignal<Answer>({ is: 'asking' });
  /** Cursors of the pages before and up to this one. */
  const [trail, setTrail] = useState<(string | undefined)[]>([undefined]);
  const cursor = trail.at(-1);
  const reachable = link.value.state === 'live';

  const filter = { ...query, from: dayStart(query.from) ?? '', to: dayEnd(query.to) ?? '', intent: query.intent.trim().toLowerCase().replaceAll(' ', '_') };
  const key = JSON.stringify(filter);
  const [trailKey, setTrailKey] = useState(key);
  if (trailKey !== key) {
    setTrailKey(key);
    setTrail([undefined]);
  }

  useEffect(() => {
    const abort = new AbortController();
    conversations(filter, cursor, abort.signal)
      .then((page) => (answer.value = { is: 'here', page }))
      .catch((error: unknown) => {
        if (!abort.signal.aborted) answer.value = { is: 'failed', why: error instanceof Refusal ? error.message : String(error) };
      });
    return () => abort.abort();
  }, [key, cursor, reachable]);

  const filtered = Object.values(query).some((value) => value !== '');
  const shown = answer.value;
  const select = (name: 'state' | 'sentiment', options: Record<string, string>) => (
    <select value={query[name]} onChange={(event) => change({ [name]: event.currentTarget.value })}>
      <option value="">{m.conversations.any}</option>
      {Object.entries(options).map(([value, text]) => (
        <option key={value} value={value}>
          {text}
        </option>
      ))}
    </select>
  );
  return (
    <div class="page conversations">
      <header class="page-head">
        <h1>{m.conversations.title}</h1>
      </header>
      <form class="facets" onSubmit={(event) => event.preventDefault()}>
        <label class="choice">
          <span>{m.conversations.state}</span>
          {select('state', m.state)}
        </label>
        <label class="choice">
          <span>{m.conversations.mood}</span>
          {select('sentiment', m.mood)}
        </label>
        <TypedFacet name={m.conversations.intent} value={query.intent} onChange={(intent) => change({ intent }, true)} find />
        <TypedFacet name={m.conversations.tag} value={query.tag} onChange={(tag) => change({ tag }, true)} />
        <label class="choice">
          <span>{m.conversations.from}</span>
          <input type="date" value={query.from} onChange={(event) => change({ from: event.currentTarget.value })} />
        </label>
        <label class="choice">
          <span>{m.conversations.to}</span>
          <input type="date" value={query.to} onChange={(event) => change({ to: event.currentTarget.value })} />
        </label>
        {filtered && (
          <button type="button" class="quiet" onClick={() => change({ state: '', from: '', to: '', tag: '', intent: '', sentiment: '' })}>
            {m.conversations.clear}
          </button>
        )}
      </form>

      {shown.is === 'asking' && <p class="empty muted">{m.loading}</p>}
      {shown.is === 'failed' && <p class="empty">{m.failed(shown.why)}</p>}
      {shown.is === 'here' && shown.page.data.length === 0 && (
        <div class="empty">
          <h2>{filtered ? m.conversations.noneFiltered : m.conversations.none}</h2>
          {!filtered && (
            <p>
              <code>make demo</code> {m.wall.emptyDemo}
            </p>
          )}
        </div>
      )}
      {shown.is === 'here' && shown.page.data.length > 0 && (
        <>
          <List rows={shown.page.data} />
          {(trail.length > 1 || shown.page.next_cursor !== null) && (
            <nav class="pager" aria-label={m.conversations.page(trail.length)}>
              <button type="button" disabled={trail.length === 1} onClick={() => setTrail(trail.slice(0, -1))}>
                {m.conversations.newer}
              </button>
              <span class="number muted">{m.conversations.page(trail.length)}</span>
              <button type="button" disabled={shown.page.next_cursor === null} onClick={() => setTrail([...trail, shown.page.next_cursor ?? undefined])}>
                {m.conversations.older}
              </button>
            </nav>
          )}
        </>
      )}
    </div>
  );
}

function TypedFacet({ name, value, onChange, find }: { name: string; value: string; onChange: (value: string) => void; find?: boolean }) {
  const [typed, setTyped] = useState(value);
  useEffect(() => setTyped(value), [value]);
  useEffect(() => {
    if (typed === value) return;
    const timer = window.setTimeout(() => onChange(typed), TYPING_MS);
    return () => window.clearTimeout(timer);
  }, [typed]);
  return (
    <label class="choice">
      <span>{name}</span>
      <input type="search" size={12} value={typed} onInput={(event) => setTyped(event.currentTarget.value)} {...(find ? { 'data-find': true } : {})} />
    </label>
  );
}

function List({ rows }: { rows: ConversationRow[] }) {
  const names = m.conversations.column;
  return (
    <table class="list">
      <thead>
        <tr>
          <th scope="col">{names.call}</th>
          <th scope="col">{names.state}</th>
          <th scope="col">{names.started}</th>
          <th scope="col" class="end">
            {names.length}
          </th>
          <th scope="col">{names.intent}</th>
          <th scope="col">{names.mood}</th>
          <th scope="col" class="end">
            {names.lines}
          </th>
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <tr key={row.id} data-testid="conversation-row" data-conversation={row.id}>
            <td class="cell-title">
              <a href={`/conversations/${row.id}`} class="row-link ellipsis">
                {titleOf(row)}
              </a>
              {row.tags.map((tag) => (
                <span key={tag} class="tag">
                  {tag}
                </span>
              ))}
            </td>
            <td>
              <StateBadge state={row.state} finalization={row.finalization} />
            </td>
            <td class="muted nowrap">{dateAndTime(row.started_at)}</td>
            <td class="number end">{clock(row.state === 'live' ? now.value - Date.parse(row.started_at) : row.duration_ms)}</td>
            <td>{row.intent && <IntentBadge verdict={row.intent} />}</td>
            <td>{row.sentiment && <MoodBadge verdict={row.sentiment} />}</td>
            <td class="number end lines-count">{row.utterance_count}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
