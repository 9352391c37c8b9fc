// Beside the transcript: the summary with the words it rests on, intents and mood over the call, and the arithmetic of talk.

import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';
import { Refusal, summary as askSummary } from '../live/rest';
import type { ChannelMetrics, Evidence, SummaryItem } from '../live/wire';
import { clock, labelled, m } from '../messages';
import { MoodBadge, TierBadge } from '../parts/badges';
import { Sparkline } from '../parts/sparkline';
import { MoodSign } from '../parts/icon';
import type { Call, Turn } from './model';
import type { Reading } from './reading';

interface Props {
  call: Call;
  drawn: number;
  reading: Reading;
}

const KINDS: SummaryItem['kind'][] = ['reason', 'action', 'outcome'];

export function SummaryPanel({ call, reading }: Props) {
  const { id, state, finalization } = call.conversation;
  const answer = useSignal<{ is: 'none' | 'asking' } | { is: 'here'; items: SummaryItem[] } | { is: 'failed'; why: string }>({ is: 'none' });
  const ask = async () => {
    answer.value = { is: 'asking' };
    try {
      answer.value = { is: 'here', items: await askSummary(id) };
    } catch (error) {
      answer.value = { is: 'failed', why: error instanceof Refusal ? error.message : String(error) };
    }
  };
  useEffect(() => {
    if (state === 'live') return;
    // It is being worked out for everybody, and asked for when it is there.
    if (finalization === 'closing' || finalization === 'scoring') answer.value = { is: 'asking' };
    else void ask();
  }, [state, id, finalization]);

  const now = answer.value;
  return (
    <section class="panel" aria-labelledby="summary-title">
      <header class="panel-head">
        <h2 id="summary-title">{m.call.summary}</h2>
      </header>
      {now.is === 'none' && (
        <p class="muted">
          {m.call.summaryLater}{' '}
          <button type="button" class="text" onClick={() => void ask()}>
            {m.call.summaryAsk}
          </button>
        </p>
      )}
      {now.is === 'asking' && <p class="muted">{m.call.summaryAsking}</p>}
      {now.is === 'failed' && (
        <p class="muted">
          {m.failed(now.why)}{' '}
          <button type="button" class="text" onClick={() => void ask()}>
            {m.again}
          </button>
        </p>
      )}
      {now.is === 'here' && now.items.length === 0 && <p class="muted">{m.call.summaryEmpty}</p>}
      {now.is === 'here' &&
        KINDS.map((kind) => {
          const items = now.items.filter((item) => item.kind === kind);
          if (items.length === 0) return null;
          return (
            <div key={kind} class="summary-kind">
              <h3>{m.call.summaryKind[kind]}</h3>
              <ul>
                {items.map((item, i) => (
                  <li key={i}>
                    <span>{item.text}</span> <EvidenceLinks call={call} evidence={item.evidence} reading={reading} /> <TierBadge tier={item.tier} />
                  </li>
                ))}
              </ul>
            </div>
          );
        })}
    </section>
  );
}

function EvidenceLinks({ call, evidence, reading }: { call: Call; evidence: Evidence[]; reading: Reading }) {
  return (
    <>
      {evidence.map((one, i) => {
        const turn = call.turn(one.utterance_id);
        if (!turn) return null;
        const time = clock(turn.utterance.start_ms);
        return (
          <button key={i} type="button" class="evidence-link number" aria-label={m.call.evidence(time)} {...reading.point([one])} onClick={() => (reading.goTo.value = { utteranceId: one.utterance_id })}>
            {time}
          </button>
        );
      })}
    </>
  );
}

export function InsightsPanel({ call, reading }: Props) {
  const turns = call.said();
  const intents = surestOfEach(turns);
  const moods = turns.flatMap(({ utterance, sentiment }) => {
    const label = sentiment?.abstained === null ? sentiment.labels[0] : undefined;
    return label && utterance.role !== 'agent' ? [{ at_ms: utterance.start_ms, ...label }] : [];
  });
  const last = moods.at(-1);
  const abstained = turns.filter((turn) => turn.utterance.role !== 'agent' && (turn.intent?.abstained ?? turn.sentiment?.abstained ?? null) !== null).length;
  return (
    <section class="panel" aria-labelledby="insights-title">
      <header class="panel-head">
        <h2 id="insights-title">{m.call.insights}</h2>
      </header>
      {intents.length === 0 && !last && <p class="muted">{m.call.insightsNone}</p>}
      {last && (
        <p class="mood-now">
          <MoodBadge verdict={last} /> <Sparkline sentiments={moods.slice(-40)} />
        </p>
      )}
      <ul class="intents">
        {intents.map(({ turn, name, score }) => (
          <li key={name}>
            <button
              type="button"
              class="intent-row"
              {...reading.point(turn.intent?.evidence ?? [])}
              onClick={() => (reading.goTo.value = { utteranceId: turn.utterance.id })}
            >
              <span class="intent-name">{labelled(name)}</span>
              <svg class="bar" viewBox="0 0 60 6" width="60" height="6" aria-hidden="true">
                <rect class="bar-back" width="60" height="6" rx="3" />
                <rect class="bar-front" width={60 * score} height="6" rx="3" />
              </svg>
              <span class="number">{m.percent(score)}</span>
              <span class="number muted">{clock(turn.utterance.start_ms)}</span>
              {turn.intent && <TierBadge tier={turn.intent.provenance.tier} degradedFrom={turn.intent.provenance.degraded_from} />}
            </button>
          </li>
        ))}
      </ul>
      {abstained > 0 && <p class="muted small">{m.call.abstained(abstained)}</p>}
    </section>
  );
}

/** Each intent once, where it was surest, the surest first. */
function surestOfEach(turns: readonly Turn[]): { turn: Turn; name: string; score: number }[] {
  const best = new Map<string, { turn: Turn; name: string; score: number }>();
  for (const turn of turns) {
    const label = turn.intent?.abstained === null ? turn.intent.labels[0] : undefined;
    if (!label || label.name === 'none') continue;
    const known = best.get(label.name);
    if (!known || known.score < label.score) best.set(label.name, { turn, ...label });
  }
  return [...best.values()].sort((a, b) => b.score - a.score);
}

export function MetricsPanel({ call }: Props) {
  const metrics = call.metrics;
  const names = m.call.metric;
  const channels = metrics?.channels ?? [];
  const rows: [string, (one: ChannelMetrics) => string][] = [
    [names.share, (one) => m.percent(one.talk_ratio)],
    [names.talk, (one) => clock(one.talk_ms)],
    [names.turns, (one) => String(one.turns)],
    [names.wpm, (one) => String(Math.round(one.words_per_minute))],
    [names.interruptions, (one) => String(one.interruptions)],
    [names.monologue, (one) => clock(one.longest_monologue_ms)],
  ];
  return (
    <section class="panel" aria-labelledby="metrics-title">
      <header class="panel-head">
        <h2 id="metrics-title">{m.call.metrics}</h2>
      </header>
      {!metrics || channels.length === 0 ? (
        <p class="muted">{m.call.noMetrics}</p>
      ) : (
        <>
          <ShareBar channels={channels} />
          <table class="figures">
            <thead>
              <tr>
                <td />
                {channels.map((one) => (
                  <th key={one.channel} scope="col" class={`who ${one.role}`}>
                    {one.role === 'unknown' ? m.speaker(m.role.unknown, one.channel) : m.role[one.role]}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rows.map(([name, read]) => (
                <tr key={name}>
                  <th scope="row">{name}</th>
                  {channels.map((one) => (
                    <td key={one.channel} class="number">
                      {read(one)}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
          <dl class="totals">
            <div>
              <dt>{names.silence}</dt>
              <dd class="number">
                {clock(metrics.silence_ms)} · {m.percent(metrics.silence_ratio)}
              </dd>
            </div>
            <div>
              <dt>{names.overlap}</dt>
              <dd class="number">{clock(metrics.overlap_ms)}</dd>
            </div>
          </dl>
        </>
      )}
    </section>
  );
}

function ShareBar({ channels }: { channels: ChannelMetrics[] }) {
  const total = channels.reduce((sum, one) => sum + one.talk_ms, 0);
  if (total === 0) return null;
  let at = 0;
  return (
    <svg class="share" viewBox="0 0 100 8" width="100%" height="8" preserveAspectRatio="none" aria-hidden="true">
      {channels.map((one) => {
        const from = at;
        at += (100 * one.talk_ms) / total;
        return <rect key={one.channel} class={`talk ${one.role}`} x={from} width={Math.max(0, at - from - 0.6)} height="8" />;
      })}
    </svg>
  );
}

export function MoodLegend() {
  return (
    <span class="legend small muted" aria-hidden="true">
      {(['positive', 'neutral', 'negative'] as const).map((one) => (
        <span key={one}>
          <MoodSign mood={one} /> {m.mood[one]}
        </span>
      ))}
    </span>
  );
}
