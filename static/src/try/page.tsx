// Speak, or drop a recording, and watch it become text and meaning.

import { useSignal } from '@preact/signals';
import { useEffect, useMemo, useRef } from 'preact/hooks';
import { clock, inSeconds, m, oneDecimal } from '../messages';
import { Icon } from '../parts/icon';
import { useTitle } from '../parts/title';
import { InsightsPanel } from '../call/panels';
import { Reading } from '../call/reading';
import { useCall } from '../call/store';
import { Timeline } from '../call/timeline';
import { Transcript } from '../call/transcript';
import { shownHasEnded, transcriptLagMs } from '../shell/link-state';
import { keptSeconds, Trial, type Wishes } from './run';

export function TryPage() {
  useTitle(m.try.title);
  const trial = useSignal(new Trial());
  const wishes = useSignal<Wishes>({ mono: 'customer', stereo: ['agent', 'customer'], speed: 1 });
  const over = useSignal(false);
  const current = trial.value;
  useEffect(() => () => current.leave(), [current]);

  const start = (begin: (fresh: Trial) => Promise<void>) => {
    const fresh = new Trial();
    trial.value = fresh;
    void begin(fresh);
  };
  const play = (file: File | undefined) => {
    if (file) start((fresh) => fresh.play(file, wishes.value));
  };
  const phase = current.phase.value;
  const idle = phase.is === 'idle' || phase.is === 'finished' || phase.is === 'failed';
  const drop = {
    onDragOver: (event: DragEvent) => {
      event.preventDefault();
      if (idle) over.value = true;
    },
    onDragLeave: (event: DragEvent) => {
      if (event.currentTarget === event.target) over.value = false;
    },
    onDrop: (event: DragEvent) => {
      event.preventDefault();
      over.value = false;
      if (idle) play(event.dataTransfer?.files[0]);
    },
  };

  return (
    <div class={`page try${over.value ? ' over' : ''}`} {...drop}>
      <header class="page-head">
        <h1>{m.try.title}</h1>
        <p class="muted">
          {m.try.intro} {m.try.privacy}
        </p>
      </header>
      {phase.is === 'failed' && (
        <div class="problem" role="alert">
          <Icon name="warning" />
          <div>
            <strong>{m.try.problem}</strong>
            <p>{phase.why}</p>
          </div>
        </div>
      )}
      {idle ? <Start wishes={wishes} again={phase.is !== 'idle'} over={over.value} onSpeak={() => start((fresh) => fresh.speak(wishes.value))} onFile={play} /> : null}
      {current.source.value && (!idle || current.conversation.value) && <Console trial={current} />}
      {!idle && !current.source.value && <p class="empty muted">{phase.is === 'asking' ? m.try.asking : m.try.opening}</p>}
      {current.conversation.value && <Watch key={current.conversation.value} id={current.conversation.value} />}
    </div>
  );
}

interface StartProps {
  wishes: { value: Wishes };
  again: boolean;
  over: boolean;
  onSpeak: () => void;
  onFile: (file: File | undefined) => void;
}

function Start({ wishes, again, over, onSpeak, onFile }: StartProps) {
  const input = useRef<HTMLInputElement>(null);
  const swapped = wishes.value.stereo[0] === 'customer';
  return (
    <section class={`start${over ? ' over' : ''}${again ? ' again' : ''}`}>
      <button type="button" class="primary large" data-testid="try-mic" onClick={onSpeak}>
        <Icon name="mic" /> {m.try.mic}
      </button>
      <div class="file-choice">
        <button type="button" class="large" onClick={() => input.current?.click()}>
          <Icon name="file" /> {m.try.file}
        </button>
        <input
          ref={input}
          type="file"
          class="sr"
          tabIndex={-1}
          data-testid="try-file"
          aria-label={m.try.file}
          accept="audio/*,.wav,.mp3,.flac,.ogg,.opus,.m4a"
          onChange={(event) => {
            const file = event.currentTarget.files?.[0];
            event.currentTarget.value = '';
            onFile(file);
          }}
        />
        <span class="muted">{over ? m.try.dropNow : m.try.drop}</span>
      </div>
      <div class="wishes">
        <label class="choice">
          <span>{m.try.rolesMono}</span>
          <select value={wishes.value.mono} onChange={(event) => (wishes.value = { ...wishes.value, mono: event.currentTarget.value })}>
            <option value="customer">{m.role.customer}</option>
            <option value="agent">{m.role.agent}</option>
            <option value="unknown">{m.role.unknown}</option>
          </select>
        </label>
        <label class="choice">
          <span>{m.try.rolesStereo}</span>
          <select
            value={swapped ? 'swapped' : 'usual'}
            onChange={(event) => (wishes.value = { ...wishes.value, stereo: event.currentTarget.value === 'swapped' ? ['customer', 'agent'] : ['agent', 'customer'] })}
          >
            <option value="usual">{m.try.leftAgent}</option>
            <option value="swapped">{m.try.leftCustomer}</option>
          </select>
        </label>
        <label class="choice">
          <span>{m.try.speed}</span>
          <select data-testid="try-speed" value={String(wishes.value.speed)} onChange={(event) => (wishes.value = { ...wishes.value, speed: Number(event.currentTarget.value) })}>
            {['1', '2', '4', '0'].map((speed) => (
              <option key={speed} value={speed}>
                {m.try.speeds[speed]}
              </option>
            ))}
          </select>
        </label>
      </div>
    </section>
  );
}

/** What goes out: level, how much, how much of it is stored, and how long a reader waits. */
function Console({ trial }: { trial: Trial }) {
  const phase = trial.phase.value;
  const source = trial.source.value;
  const figures = trial.figures.value;
  if (!source) return null;
  const state =
    phase.is === 'dialing'
      ? m.try.dialing
      : phase.is === 'stopping'
        ? m.try.stopping
        : phase.is === 'running'
          ? phase.linked
            ? source.name === null
              ? m.try.streaming
              : m.try.sending(source.name)
            : m.try.resuming(keptSeconds(figures))
          : phase.is === 'finished'
            ? m.try.finished
            : '';
  const running = phase.is === 'running' || phase.is === 'dialing';
  return (
    <section class="console" data-testid="try-console" data-phase={phase.is}>
      <div class="console-main">
        {running && (
          <button type="button" class="primary" data-testid="try-stop" onClick={() => trial.stop()}>
            <Icon name="stop" /> {m.try.stop}
          </button>
        )}
        {phase.is === 'finished' && trial.conversation.value && (
          <a class="button primary" href={`/conversations/${trial.conversation.value}`} data-testid="try-open">
            {m.try.open}
          </a>
        )}
        {state && (
          <span class={phase.is === 'running' && !phase.linked ? 'warn' : ''} role="status">
            {phase.is === 'running' && !phase.linked && <Icon name="unlinked" />} {state}
          </span>
        )}
        {running && (
          <span class="meters">
            {trial.levels.value.map((level, i) => (
              <Meter key={i} level={level} />
            ))}
          </span>
        )}
        <span class="muted small number">
          {m.try.rate(oneDecimal(source.sampleRate / 1_000))} · {m.try.channels(source.channels)}
        </span>
      </div>
      {trial.quiet.value && source.name === null && (
        <p class="warn small">
          <Icon name="warning" /> {m.try.tooQuiet}
        </p>
      )}
      {source.note && <p class="muted small">{source.note}</p>}
      {figures && (
        <dl class="figures-row">
          <div title={m.try.latencyHelp} class="main-figure">
            <dt>{m.try.latency}</dt>
            <dd class="number">
              {!source.live ? (
                <span class="muted small">{m.try.latencyFile}</span>
              ) : figures.last === null ? (
                '–'
              ) : (
                <>
                  {m.ms(Math.round(figures.last))}{' '}
                  <span class="muted small">
                    {m.try.latencyMedian} {Math.round(figures.median ?? 0)} · {m.try.latencyWorst} {Math.round(figures.worst ?? 0)}
                  </span>
                </>
              )}
            </dd>
          </div>
          <div>
            <dt>{m.try.sent}</dt>
            <dd class="number">{clock(figures.sentMs)}</dd>
          </div>
          <div>
            <dt>{m.try.unsafe}</dt>
            <dd class="number">{m.seconds(inSeconds(figures.unsafeMs))}</dd>
          </div>
        </dl>
      )}
      {figures && figures.droppedMs > 0 && <p class="warn small">{m.try.lostHere(inSeconds(figures.droppedMs))}</p>}
    </section>
  );
}

function Meter({ level }: { level: number }) {
  return (
    <svg class="meter" viewBox="0 0 100 8" width="120" height="8" preserveAspectRatio="none" role="meter" aria-label={m.try.level} aria-valuemin={0} aria-valuemax={100} aria-valuenow={Math.round(level * 100)}>
      <rect class="meter-back" width="100" height="8" rx="2" />
      <rect class={`meter-front${level > 0.97 ? ' clipping' : ''}`} width={100 * level} height="8" rx="2" />
    </svg>
  );
}

function Watch({ id }: { id: string }) {
  const { opening, drawn } = useCall(id, true);
  const reading = useMemo(() => new Reading(), [id]);
  const now = opening.value;
  const call = now.is === 'ready' ? now.call : null;
  const ended = call !== null && call.conversation.state !== 'live';
  const lag = call && !ended ? call.lagMs : null;
  void drawn.value;
  useEffect(() => {
    transcriptLagMs.value = lag;
    shownHasEnded.value = ended;
  }, [lag, ended]);
  if (now.is === 'failed') return <p class="empty muted">{m.failed(now.why)}</p>;
  if (!call) return <p class="empty muted">{m.loading}</p>;
  return (
    <>
      <div class="strip">
        <Timeline call={call} drawn={drawn.value} reading={reading} playable={false} />
      </div>
      <div class="columns">
        <Transcript call={call} drawn={drawn.value} reading={reading} playable={false} />
        <aside class="side">
          <InsightsPanel call={call} drawn={drawn.value} reading={reading} />
        </aside>
      </div>
    </>
  );
}
