// A module's dial: its stages, finer settings, and a question before anything is turned.
//
// Every turn is first asked of the server as a dry run, and then carries the version that was seen: what somebody else turned meanwhile is
// refused, not overwritten.

import { useEffect, useRef, useState } from 'preact/hooks';
import { turn as send } from '../live/rest';
import { m } from '../messages';
import { Icon } from '../parts/icon';
import { consequences, percent, shadows, stages, told } from './model';
import type { Route, Turn, Turned } from './wire';

export function DialCard({ route, children, onTurned }: { route: Route; children: preact.ComponentChildren; onTurned: (said: string) => void }) {
  const [wish, setWish] = useState<Turn | null>(null);
  const [moveLive, setMoveLive] = useState(false);
  const t = m.topology;
  const { module, dial, version } = route;
  const fixed = route.targets.every((target) => target.name === 'local');
  return (
    <section class="card dial" aria-label={t.dial(module)} data-testid={`dial-${module}`}>
      <header>
        <h2>{module}</h2>
        <span class="number" data-testid="dial-stands">
          {t.at(told(dial), version)}
        </span>
      </header>
      {children}
      {fixed ? (
        <p class="muted small">{t.fixed}</p>
      ) : (
        <div class="turning">
          <div class="stages" role="group" aria-label={t.stages}>
            {stages(module, dial).map((stage) => (
              <button key={stage.name} type="button" aria-current={stage.here ? 'step' : undefined} onClick={() => setWish(stage.turn)}>
                {stage.name}
              </button>
            ))}
          </div>
          <div class="finer">
            <button type="button" onClick={() => setWish({ step: 'back' })}>
              {t.stageBack}
            </button>
            <button type="button" onClick={() => setWish({ step: 'forward' })}>
              {t.stageForward}
            </button>
            <button type="button" onClick={() => setWish({ undo: true })}>
              {t.undo}
            </button>
            <Percentages key={version} route={route} onSet={setWish} />
            {module === 'audio' && (
              <label class="check">
                <input type="checkbox" checked={moveLive} onChange={(event) => setMoveLive(event.currentTarget.checked)} />
                {t.moveLive}
              </label>
            )}
          </div>
        </div>
      )}
      {wish && (
        <Confirm
          route={route}
          wish={{ ...wish, version, ...(moveLive && module === 'audio' ? { move_live: true } : {}) }}
          onClose={(turned) => {
            setWish(null);
            if (turned) onTurned([t.done(module, told(turned.to), turned.version), turned.asked_to_move > 0 ? t.moved(turned.asked_to_move) : ''].join(' ').trim());
          }}
        />
      )}
    </section>
  );
}

function Percentages({ route, onSet }: { route: Route; onSet: (wish: Turn) => void }) {
  const [remote, setRemote] = useState(String(route.dial.remote_percent));
  const [shadow, setShadow] = useState(String(route.dial.shadow_percent));
  const t = m.topology;
  const [remotePercent, shadowPercent] = [percent(remote), percent(shadow)];
  const bad = remotePercent === null || shadowPercent === null;
  return (
    <form
      class="percentages"
      onSubmit={(event) => {
        event.preventDefault();
        if (!bad) onSet({ mode: 'routed', remote_percent: remotePercent, ...(shadows(route.module) ? { shadow_percent: shadowPercent } : {}) });
      }}
    >
      <label class="choice">
        <span>{t.remotePercent}</span>
        <input type="number" name="remote" min="0" max="100" value={remote} aria-invalid={remotePercent === null} onInput={(event) => setRemote(event.currentTarget.value)} />
      </label>
      {shadows(route.module) && (
        <label class="choice">
          <span>{t.shadowPercent}</span>
          <input type="number" name="shadow" min="0" max="100" value={shadow} aria-invalid={shadowPercent === null} onInput={(event) => setShadow(event.currentTarget.value)} />
        </label>
      )}
      <button type="submit" disabled={bad}>
        {t.set}
      </button>
    </form>
  );
}

/** Who turned the dial, as long as nobody logs in here. */
const BY = 'dashboard';
const REASON_CHARS = 300;

const refusal = (error: unknown) => (error instanceof Error ? error.message : String(error));

function Confirm({ route, wish, onClose }: { route: Route; wish: Turn; onClose: (turned: Turned | null) => void }) {
  // As they were when the question was put: the page behind goes on.
  const [asked] = useState({ route, wish });
  const [would, setWould] = useState<Turned | null>(null);
  const [refused, setRefused] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const [reason, setReason] = useState('');
  const dialog = useRef<HTMLDialogElement>(null);
  const go = useRef<HTMLButtonElement>(null);
  const turned = useRef<Turned | null>(null);
  const t = m.topology;
  const { module } = asked.route;
  useEffect(() => {
    dialog.current?.showModal();
    send(module, { ...asked.wish, dry_run: true }).then(setWould, (error: unknown) => setRefused(refusal(error)));
  }, []);
  useEffect(() => {
    if (would) go.current?.focus();
  }, [would]);
  const confirm = async () => {
    setBusy(true);
    try {
      const why = reason.trim();
      turned.current = await send(module, { ...asked.wish, by: BY, ...(why === '' ? {} : { reason: why }) });
      dialog.current?.close();
    } catch (error) {
      setRefused(refusal(error));
    }
    setBusy(false);
  };
  return (
    <dialog ref={dialog} class="help confirm" aria-labelledby="confirm-title" onClose={() => onClose(turned.current)} data-testid="confirm">
      <div class="help-body">
        <h2 id="confirm-title">{t.confirm(module)}</h2>
        <div role="status">
          {!would && !refused && <p class="muted">{t.checking}</p>}
          {would && !refused && consequences(asked.route, would, asked.wish.move_live === true).map((sentence) => <p key={sentence}>{sentence}</p>)}
          {refused && (
            <p class="warn" data-testid="refused">
              <Icon name="warning" /> {t.refusedBy}: {refused}
            </p>
          )}
        </div>
        {would && !refused && (
          <label class="choice">
            <span>{t.reason}</span>
            <input type="text" name="reason" maxLength={REASON_CHARS} value={reason} onInput={(event) => setReason(event.currentTarget.value)} />
          </label>
        )}
        <footer>
          <button type="button" onClick={() => dialog.current?.close()}>
            {t.cancel}
          </button>
          <button ref={go} type="button" class="primary" disabled={!would || refused !== null || busy} onClick={() => void confirm()}>
            {t.turn}
          </button>
        </footer>
      </div>
    </dialog>
  );
}
