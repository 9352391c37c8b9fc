import { signal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { m } from '../messages';
import { Icon } from '../parts/icon';
import { keysOn, switchKeys } from './keys';

export const helpOpen = signal(false);

export function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  const open = helpOpen.value;
  useEffect(() => {
    if (open) dialog.current?.showModal();
    else dialog.current?.close();
  }, [open]);
  return (
    <dialog ref={dialog} class="help" aria-labelledby="help-title" onClose={() => (helpOpen.value = false)} onClick={(event) => event.target === dialog.current && (helpOpen.value = false)}>
      {open && (
        <div class="help-body">
          <header>
            <h2 id="help-title">{m.help.title}</h2>
            <button type="button" class="quiet" onClick={() => (helpOpen.value = false)} aria-label={m.close}>
              <Icon name="close" />
            </button>
          </header>
          <div class="help-columns">
            <Keys
              title={m.help.everywhere}
              keys={[
                ['g w', m.help.go(m.nav.wall)],
                ['g c', m.help.go(m.nav.conversations)],
                ['g s', m.help.go(m.nav.search)],
                ['g t', m.help.go(m.nav.try)],
                ['g o', m.help.go(m.nav.topology)],
                ['/', m.help.filter],
                ['t', m.help.theme],
                ['?', m.help.open],
                ['Esc', m.help.escape],
              ]}
            />
            <Keys
              title={m.help.onWall}
              keys={[
                ['↓ ↑', m.help.move],
                ['Enter', m.help.enter],
                ['v', m.help.view],
              ]}
            />
            <Keys
              title={m.help.inCall}
              keys={[
                ['k Space', m.help.playPause],
                ['j l', m.help.skip],
                ['< >', m.help.slower],
                ['End', m.help.now],
              ]}
            />
          </div>
          <label class="check">
            <input type="checkbox" checked={keysOn.value} onChange={(event) => switchKeys(event.currentTarget.checked)} />
            {m.help.single}
          </label>
        </div>
      )}
    </dialog>
  );
}

function Keys({ title, keys }: { title: string; keys: [string, string][] }) {
  return (
    <section>
      <h3>{title}</h3>
      <dl>
        {keys.map(([chord, what]) => (
          <div key={chord}>
            <dt>
              {chord.split(' ').map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
    </section>
  );
}
