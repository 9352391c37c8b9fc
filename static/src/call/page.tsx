// One call, as it happens or afterwards: the same page, with a player once it has ended and was recorded.

import { useSignal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { useSearchParams } from 'wouter-preact';
import { exportAddress, recordingAddress } from '../live/rest';
import { clock, dateAndTime, m } from '../messages';
import { StateBadge } from '../parts/badges';
import { Icon } from '../parts/icon';
import { useTitle } from '../parts/title';
import { now } from '../shell/clock';
import { shownHasEnded, transcriptLagMs } from '../shell/link-state';
import { Lag, Talking, titleOf } from '../wall/tile';
import { lineAt } from './find';
import type { Call } from './model';
import { InsightsPanel, MetricsPanel, MoodLegend, SummaryPanel } from './panels';
import { Player } from './player';
import { Reading } from './reading';
import { useCall } from './store';
import { Timeline } from './timeline';
import { Transcript } from './transcript';

export function CallPage({ id }: { id: string }) {
  const { opening, drawn, again } = useCall(id);
  const now = opening.value;
  useTitle(now.is === 'ready' ? titleOf(now.call.conversation) : m.call.title);
  switch (now.is) {
    case 'loading':
      return <p class="empty muted">{m.loading}</p>;
    case 'missing':
      return (
        <div class="empty">
          <h1>{m.call.notFound}</h1>
          <p class="muted">{m.call.notFoundHelp}</p>
          <a href="/conversations">{m.conversations.title}</a>
        </div>
      );
    case 'failed':
      return (
        <div class="empty">
          <p>{m.failed(now.why)}</p>
          <button type="button" onClick={again}>
            {m.again}
          </button>
        </div>
      );
    case 'ready':
      return <Ready call={now.call} drawn={drawn.value} />;
  }
}

function Ready({ call, drawn }: { call: Call; drawn: number }) {
  const reading = useMemo(() => new Reading(), [call.conversation.id]);
  const [params] = useSearchParams();
  const asked = params.get('t');
  const startMs = asked !== null && Number.isFinite(Number(asked)) ? Number(asked) : null;
  const ended = call.conversation.state !== 'live';
  const playable = useRecording(call, ended);

  useEffect(() => {
    shownHasEnded.value = ended;
    transcriptLagMs.value = ended ? null : call.lagMs;
  }, [ended, call.lagMs]);
  useEffect(() => {
    const line = startMs === null ? undefined : lineAt(call.said(), startMs);
    if (line) reading.goTo.value = { utteranceId: line.utterance.id };
  }, [reading, startMs]);

  return (
    <div class="page call" data-state={call.conversation.state}>
      <Head call={call} reading={reading} />
      <div class="strip">
        <Timeline call={call} drawn={drawn} reading={reading} playable={playable} />
        <div class="strip-foot">
          {playable && <Player call={call} reading={reading} startMs={startMs} />}
          <MoodLegend />
        </div>
      </div>
      <div class="columns">
        <Transcript call={call} drawn={drawn} reading={reading} playable={playable} />
        <aside class="side">
          <SummaryPanel call={call} drawn={drawn} reading={reading} />
          <InsightsPanel call={call} drawn={drawn} reading={reading} />
          <MetricsPanel call={call} drawn={drawn} reading={reading} />
        </aside>
      </div>
    </div>
  );
}

function Head({ call, reading }: { call: Call; reading: Reading }) {
  const { conversation } = call;
  const copied = useSignal(false);
  const live = conversation.state === 'live';
  const copy = () => {
    const at = Math.round(reading.positionMs.peek() ?? call.said().at(-1)?.utterance.start_ms ?? 0);
    const address = `${location.origin}/conversations/${conversation.id}?t=${at}`;
    // Without the clipboard (plain http on another host) the address bar carries the link.
    if (navigator.clipboard) void navigator.clipboard.writeText(address);
    else history.replaceState(null, '', address);
    copied.value = true;
    window.setTimeout(() => (copied.value = false), 1_500);
  };
  const shown = { ...conversation, talking: call.talking, connected: call.connected, lag_ms: call.lagMs };
  return (
    <header class="call-head">
      <a href="/" class="quiet button" aria-label={m.call.back} title={m.call.back}>
        <Icon name="back" />
      </a>
      <div class="call-name">
        <h1 class="ellipsis">{titleOf(conversation)}</h1>
        <p class="muted small">
          <StateBadge state={conversation.state} finalization={conversation.finalization} />
          <span class="number">
            {live ? clock(now.value - Date.parse(conversation.started_at)) : clock(conversation.duration_ms)}
          </span>
          <span class="when">{m.call.started(dateAndTime(conversation.started_at))}</span>
          {live && <Talking tile={shown} />}
          {live && <Lag tile={shown} />}
          {conversation.tags.map((tag) => (
            <span key={tag} class="tag">
              {tag}
            </span>
          ))}
        </p>
      </div>
      <div class="tools">
        <button type="button" class="quiet" onClick={copy}>
          <Icon name={copied.value ? 'check' : 'link'} />
          <span class="wide" role="status">
            {copied.value ? m.call.copied : m.call.copyLink}
          </span>
        </button>
        <details class="menu">
          <summary class="button">
            <Icon name="export" /> <span>{m.call.export}</span>
          </summary>
          <ul>
            {(Object.keys(m.call.exports) as (keyof typeof m.call.exports)[]).map((format) => (
              <li key={format}>
                <a href={exportAddress(conversation.id, format)} download={`${conversation.id}.${format}`}>
                  {m.call.exports[format]}
                </a>
              </li>
            ))}
          </ul>
        </details>
      </div>
    </header>
  );
}

/** Whether there is something to play: asked once the call has ended; recordings may be switched off. */
function useRecording(call: Call, ended: boolean): boolean {
  const there = useSignal(false);
  const { id, recording: promised } = call.conversation;
  useEffect(() => {
    if (!ended) return;
    const abort = new AbortController();
    let timer = 0;
    const ask = async (tries: number): Promise<void> => {
      const response = await fetch(recordingAddress(id), { headers: { range: 'bytes=0-0' }, signal: abort.signal }).catch(() => null);
      if (abort.signal.aborted) return;
      there.value = response?.ok ?? false;
      void response?.body?.cancel();
      // Right after the end the file may not be closed yet.
      if (!there.value && promised && tries > 1) timer = window.setTimeout(() => void ask(tries - 1), 1_000);
    };
    void ask(5);
    return () => {
      abort.abort();
      window.clearTimeout(timer);
    };
  }, [id, ended, promised]);
  return ended && there.value;
}
