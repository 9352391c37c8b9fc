// What was said, line by line. Unfinished lines stand in muted ink, their settled words darker.
//
// The list follows the end of a live call, or the recording as it plays, until the reader scrolls; then it waits and offers to jump back.

import { type Signal, useComputed, useSignal, useSignalEffect } from '@preact/signals';
import { Fragment } from 'preact';
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import type { Insight, Partial, Utterance } from '../live/wire';
import { clock, inSeconds, labelled, m } from '../messages';
import { TierBadge } from '../parts/badges';
import { Icon, MoodSign } from '../parts/icon';
import { mood } from '../parts/sentiment';
import { useKeys } from '../shell/keys';
import { find, NO_HITS } from './find';
import type { Call, Turn } from './model';
import type { Reading } from './reading';

/** Closer to the end than this the reader follows the call. */
const NEAR_END_PX = 90;
/** A reader who scrolled while the recording plays is left alone for this long. */
const LEFT_ALONE_MS = 4_000;
/** Words the recognizer was less sure of are marked. */
const UNSURE = 0.4;

interface Props {
  call: Call;
  drawn: number;
  reading: Reading;
  /** Can a word be played? */
  playable: boolean;
}

export function Transcript({ call, drawn, reading, playable }: Props) {
  const list = useRef<HTMLDivElement>(null);
  const following = useSignal(true);
  const unseen = useSignal(0);
  const announce = useSignal(false);
  const turns = call.said();
  const live = call.conversation.state === 'live';
  const lines = turns.length + call.forgotten;
  const lastLines = useRef(lines);
  const scrolledAt = useRef(0);

  useLayoutEffect(() => {
    const element = list.current;
    const added = Math.max(0, lines - lastLines.current);
    lastLines.current = lines;
    if (!element || !live) return;
    if (following.peek()) element.scrollTop = element.scrollHeight;
    else unseen.value += added;
  }, [drawn, lines, live]);

  const onScroll = () => {
    const element = list.current;
    if (!element) return;
    const near = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END_PX;
    if (following.peek() !== near) following.value = near;
    if (near) unseen.value = 0;
  };
  const jump = () => {
    following.value = true;
    unseen.value = 0;
    list.current?.scrollTo({ top: list.current.scrollHeight });
  };
  useKeys({ End: jump });

  // A line asked for by evidence, search, the timeline or the address.
  useSignalEffect(() => {
    const target = reading.goTo.value;
    if (!target) return;
    requestAnimationFrame(() => bringIntoView(list.current, target.utteranceId, 'center'));
    following.value = false;
  });
  // The line being heard.
  useSignalEffect(() => {
    const ids = Object.keys(reading.heard.value);
    const latest = ids[0];
    if (latest === undefined || performance.now() - scrolledAt.current < LEFT_ALONE_MS) return;
    bringIntoView(list.current, latest, 'nearest');
  });

  const play = (event: MouseEvent) => {
    const word = (event.target as HTMLElement).closest<HTMLElement>('[data-ms]');
    if (!word || !reading.seek || window.getSelection()?.type === 'Range') return;
    reading.seek(Number(word.dataset.ms), true);
  };
  const byHand = () => (scrolledAt.current = performance.now());

  const partials = call.partials();
  const last = turns.at(-1)?.utterance;
  return (
    <section class="transcript" aria-labelledby="transcript-title">
      <header class="panel-head">
        <h2 id="transcript-title">{m.call.transcript}</h2>
        {last?.word_times === 'estimated' && <span class="muted small">{m.call.estimated}</span>}
        <FindBox call={call} drawn={drawn} reading={reading} />
      </header>
      <div
        ref={list}
        class={`lines${playable ? ' playable' : ''}`}
        role="log"
        aria-live="off"
        aria-labelledby="transcript-title"
        tabIndex={0}
        onScroll={onScroll}
        onWheel={byHand}
        onTouchMove={byHand}
        onClick={play}
      >
        {call.forgotten > 0 && <p class="muted small">{m.call.forgotten(call.forgotten)}</p>}
        {turns.length === 0 && partials.length === 0 && <p class="empty muted">{live ? m.call.noWords : m.call.noWordsEnded}</p>}
        {turns.map((turn) => (
          <Line key={turn.utterance.id} turn={turn} reading={reading} playable={playable} />
        ))}
        {partials.map((partial) => (
          <Growing key={partial.utterance_id} partial={partial} />
        ))}
        {live && !call.connected && (
          <p class="line-note warn">
            <Icon name="unlinked" /> {m.call.linkLost}
          </p>
        )}
      </div>
      {live && !following.value && (
        <button type="button" class="jump" onClick={jump}>
          <Icon name="down" /> {unseen.value > 0 ? m.call.jumpNew(unseen.value) : m.call.jump}
        </button>
      )}
      {live && (
        <label class="check announce small" title={m.call.announceHelp}>
          <input type="checkbox" checked={announce.value} onChange={(event) => (announce.value = event.currentTarget.checked)} />
          {m.call.announce}
        </label>
      )}
      <p class="sr" aria-live={announce.value ? 'polite' : 'off'}>
        {announce.value && last ? `${m.role[last.role]}: ${last.text}` : ''}
      </p>
    </section>
  );
}

function bringIntoView(list: HTMLElement | null, utteranceId: string, block: 'center' | 'nearest'): void {
  const line = list?.querySelector<HTMLElement>(`[data-utterance="${CSS.escape(utteranceId)}"]`);
  if (!list || !line) return;
  const top = line.offsetTop - list.offsetTop;
  const visible = top >= list.scrollTop + 8 && top + line.offsetHeight <= list.scrollTop + list.clientHeight - 40;
  if (visible && block === 'nearest') return;
  list.scrollTop = top - Math.max(0, (list.clientHeight - line.offsetHeight) / (block === 'center' ? 2 : 3));
  if (block === 'center') {
    line.classList.remove('flash');
    void line.offsetWidth; // restarts the animation
    line.classList.add('flash');
  }
}

/** Which words of one line a signal speaks of, as text, so that only lines that change are drawn again. */
function useRanges(read: () => { from: number; to: number }[]): Set<number> {
  const text = useComputed(() => {
    const words: number[] = [];
    for (const { from, to } of read()) for (let i = from; i < to; i++) words.push(i);
    return words.join(' ');
  }).value;
  return new Set(text === '' ? [] : text.split(' ').map(Number));
}

function Line({ turn, reading, playable }: { turn: Turn; reading: Reading; playable: boolean }) {
  const { utterance } = turn;
  const id = utterance.id;
  const evidence = useRanges(() =>
    reading.evidence.value.filter((one) => one.utterance_id === id).map((one) => ({ from: one.word_from, to: one.word_to })),
  );
  const hits = useRanges(() => reading.hits.value.all.filter((hit) => hit.utteranceId === id));
  const currentHit = useRanges(() => {
    const { all, at } = reading.hits.value;
    const hit = all[at];
    return hit?.utteranceId === id ? [hit] : [];
  });
  const heard = useComputed(() => reading.heard.value[id]).value;

  if (utterance.kind === 'gap') return <GapLine utterance={utterance} reading={reading} playable={playable} />;
  return (
    <div class={`line ${utterance.role}${heard === undefined ? '' : ' heard'}`} data-testid="final" data-utterance={id}>
      <Speaker utterance={utterance} reading={playable ? reading : undefined} />
      <p class="said">
        {utterance.words.length === 0
          ? utterance.text
          : utterance.words.map((word, i) => (
              <Fragment key={i}>
                {i > 0 && ' '}
                <span
                  data-ms={word.start_ms}
                  class={wordClass(evidence.has(i), hits.has(i), currentHit.has(i), heard === i, word.confidence < UNSURE)}
                  title={word.confidence < UNSURE ? m.call.sure(m.percent(word.confidence)) : undefined}
                >
                  {word.text}
                </span>
              </Fragment>
            ))}
      </p>
      <div class="verdicts">
        {/* What agents want is not asked, so its missing answer is no news. */}
        {turn.intent && !(utterance.role === 'agent' && turn.intent.abstained !== null) && <Chip insight={turn.intent} reading={reading} />}
        {turn.sentiment && <Chip insight={turn.sentiment} reading={reading} />}
      </div>
    </div>
  );
}

function wordClass(evidence: boolean, hit: boolean, current: boolean, heard: boolean, unsure: boolean): string | undefined {
  const names = [evidence && 'evidence', hit && 'hit', current && 'current', heard && 'playing', unsure && 'unsure'].filter(Boolean);
  return names.length > 0 ? names.join(' ') : undefined;
}

function Speaker({ utterance, reading }: { utterance: Utterance | Partial; reading?: Reading | undefined }) {
  const time = clock(utterance.start_ms);
  return (
    <div class="speaker">
      <span class={`who ${utterance.role}`}>{utterance.role === 'unknown' ? m.speaker(m.role.unknown, utterance.channel) : m.role[utterance.role]}</span>
      {reading ? (
        <button type="button" class="time number" title={m.call.seek(time)} onClick={() => reading.seek?.(utterance.start_ms, true)}>
          {time}
        </button>
      ) : (
        <span class="time number">{time}</span>
      )}
    </div>
  );
}

function Growing({ partial }: { partial: Partial }) {
  const words = partial.words.length > 0 ? partial.words.map((word) => word.text) : partial.text.split(' ');
  const stable = words.slice(0, partial.stable_words).join(' ');
  const open = words.slice(partial.stable_words).join(' ');
  return (
    <div class={`line partial ${partial.role}`} data-testid="partial" data-utterance={partial.utterance_id}>
      <Speaker utterance={partial} />
      <p class="said">
        <span class="stable">{stable}</span> <span class="open">{open}</span>
        <span class="caret" aria-hidden="true" />
      </p>
    </div>
  );
}

function GapLine({ utterance, reading, playable }: { utterance: Utterance; reading: Reading; playable: boolean }) {
  const why = utterance.reason ?? 'unknown';
  return (
    <div class="line gap" data-testid="gap" data-utterance={utterance.id}>
      <Speaker utterance={utterance} reading={playable ? reading : undefined} />
      <p class="said">
        <Icon name="warning" /> {m.call.lost(inSeconds(utterance.end_ms - utterance.start_ms))}
        <span class="muted"> · {m.call.lostWhy[why] ?? labelled(why).toLowerCase()}</span>
      </p>
    </div>
  );
}

/** One verdict on one line. Pointing at it shows the words it rests on. */
function Chip({ insight, reading }: { insight: Insight; reading: Reading }) {
  const { provenance, abstained } = insight;
  const best = insight.labels[0];
  const task = m.task[insight.task];
  const source = m.tierTitle(m.tierHelp[provenance.tier], provenance.model, provenance.latency_ms, provenance.prompt);
  const tier = <TierBadge tier={provenance.tier} degradedFrom={provenance.degraded_from} late={provenance.late} title={source} />;
  if (abstained !== null || !best) {
    return (
      <span class="chip abstained" title={m.call.abstainedWhy(abstained ?? m.notKnown)}>
        {task}: {m.call.abstention}
        <span class="why"> · {abstained ?? m.notKnown}</span> {tier}
      </span>
    );
  }
  const isMood = insight.task === 'sentiment';
  const which = mood(best.name);
  return (
    <button type="button" class={`chip ${insight.task}${isMood ? ` ${which}` : ''}`} {...reading.point(insight.evidence)}>
      <span class="sr">{task}: </span>
      {isMood && <MoodSign mood={which} />}
      {best.name === 'none' ? m.call.noneIntent : labelled(best.name)} <span class="number">{m.percent(best.score)}</span> {tier}
    </button>
  );
}

function FindBox({ call, drawn, reading }: { call: Call; drawn: number; reading: Reading }) {
  const query: Signal<string> = useSignal('');
  useEffect(() => {
    const all = find(call.said(), query.value);
    const at = Math.min(reading.hits.peek().at, Math.max(0, all.length - 1));
    if (all !== NO_HITS || reading.hits.peek().all !== NO_HITS) reading.hits.value = { query: query.value, all, at };
  }, [drawn, query.value, call]);

  const { all, at } = reading.hits.value;
  const move = (by: number) => {
    if (all.length === 0) return;
    const next = (at + by + all.length) % all.length;
    reading.hits.value = { query: query.value, all, at: next };
    const hit = all[next];
    if (hit) reading.goTo.value = { utteranceId: hit.utteranceId };
  };
  const type = (text: string) => {
    query.value = text;
    const found = find(call.said(), text);
    reading.hits.value = { query: text, all: found, at: 0 };
    const hit = found[0];
    if (hit && text.length > 2) reading.goTo.value = { utteranceId: hit.utteranceId };
  };
  return (
    <search class="find">
      <input
        type="search"
        data-find
        value={query.value}
        placeholder={m.call.find}
        aria-label={m.call.find}
        onInput={(event) => type(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === 'Enter') move(event.shiftKey ? -1 : 1);
          if (event.key === 'Escape') type('');
        }}
      />
      {query.value !== '' && (
        <>
          <span class="number small" role="status">
            {m.call.findHits(at + 1, all.length)}
          </span>
          <button type="button" class="quiet" onClick={() => move(-1)} aria-label={m.call.findPrevious} disabled={all.length === 0}>
            <Icon name="up" />
          </button>
          <button type="button" class="quiet" onClick={() => move(1)} aria-label={m.call.findNext} disabled={all.length === 0}>
            <Icon name="dropdown" />
          </button>
        </>
      )}
    </search>
  );
}
