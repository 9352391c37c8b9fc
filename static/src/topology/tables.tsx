// The tables of the topology page: targets side by side, modules inside this process, hops, changes.

import type { ComponentChildren } from 'preact';
import { m, oneDecimal, timeOfDay } from '../messages';
import { Icon } from '../parts/icon';
import { age } from './model';
import type { Change, Hop, ModuleLoad, Route, Target, Topology } from './wire';

const t = m.topology;

const ms = (value: number | null | undefined) => (value === null || value === undefined ? t.unknown : oneDecimal(value));

const bytes = (value: number | null) => (value === null ? t.unknown : t.mib(value));

/** A table that is too wide scrolls by itself, also by keys; on a phone its rows become blocks. */
function Scrolls({ label, children }: { label: string; children: ComponentChildren }) {
  return (
    <div class="scrolls" tabIndex={0} role="region" aria-label={label}>
      {children}
    </div>
  );
}

function Head({ words, numbers }: { words: string[]; numbers: string[] }) {
  return (
    <thead>
      <tr>
        {words.map((name) => (
          <th key={name} scope="col">
            {name}
          </th>
        ))}
        {numbers.map((name) => (
          <th key={name} scope="col" class="end">
            {name}
          </th>
        ))}
      </tr>
    </thead>
  );
}

export function Targets({ route, process }: { route: Route; process: Topology['process'] }) {
  return (
    <Scrolls label={`${route.module}: ${t.target}`}>
      <table>
        <Head words={[t.target, t.health, t.version, t.breakerName]} numbers={[t.slots, t.streams, t.calls, t.failed, t.p50, t.p99]} />
        <tbody>
          {route.targets.map((target) => {
            const here = target.name === 'local';
            const { recent, run } = target;
            const up = here ? process.uptime_s : run?.up_s;
            return (
              <tr key={target.name}>
                <th scope="row" class="where">
                  {here ? t.here : target.name}
                  {target.source && <span class="small muted up">{known(target)}</span>}
                </th>
                <td data-label={t.health} class={target.down ? 'warn' : 'good'}>
                  <span title={target.down ?? undefined}>
                    <Icon name={target.down ? 'warning' : 'check'} /> {target.down ? t.noAnswer : t.answers}
                  </span>
                  {target.down && <span class="small why">{target.down}</span>}
                </td>
                <td data-label={t.version} class={here || target.version ? '' : 'muted'}>
                  {here ? process.version : (target.version ?? t.noVersion)}
                  {up !== undefined && <span class="small muted up">{t.up(age(up))}</span>}
                  {!!run && run.restarts > 0 && <span class="small warn up">{t.restarted(run.restarts)}</span>}
                </td>
                <td data-label={t.breakerName} class={target.breaker === 'closed' ? '' : 'warn'}>{t.breaker[target.breaker]}</td>
                <td data-label={t.slots} class="end number">
                  {target.calls} / {target.slots}
                </td>
                <td data-label={t.streams} class="end number">{target.streams}</td>
                <td data-label={t.calls} class="end number">{recent.calls}</td>
                <td data-label={t.failed} class={`end number${recent.failed > 0 ? ' warn' : ''}`}>{recent.failed}</td>
                <td data-label={t.p50} class="end number">{recent.calls > 0 ? ms(recent.p50_ms) : t.unknown}</td>
                <td data-label={t.p99} class="end number">{recent.calls > 0 ? ms(recent.p99_ms) : t.unknown}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {route.lost.map((lost) => (
        <p key={lost.name} class="small muted" data-testid="lost">
          {t.lost(lost.name, lost.why, timeOfDay(Date.parse(lost.at)))}
        </p>
      ))}
    </Scrolls>
  );
}

function known(target: Target): string {
  if (target.source === 'configuration') return t.configured;
  if (target.lease_ms === null) return t.found;
  return target.lease_ms > 0 ? t.lease(oneDecimal(target.lease_ms / 1000)) : t.unrenewed;
}

/** What this process stands on, and what it says while one of them is away or full. */
const SERVERS = ['bus', 'cache', 'record', 'recordings', 'registry'];

export function Servers({ modules }: { modules: ModuleLoad[] }) {
  const shared = modules.filter((module) => SERVERS.includes(module.name));
  if (shared.length === 0) return null;
  return (
    <section class="card" data-testid="servers">
      <h2>{t.servers}</h2>
      <Scrolls label={t.servers}>
        <table>
          <Head words={[t.server, t.target, t.health]} numbers={[]} />
          <tbody>
            {shared.map((server) => (
              <tr key={server.name}>
                <th scope="row">{server.name}</th>
                <td data-label={t.target} class="where">
                  {server.endpoint ?? t.unknown}
                </td>
                <td data-label={t.health} class={server.state === 'ready' ? 'good' : 'warn'}>
                  <Icon name={server.state === 'ready' ? 'check' : 'warning'} /> {server.state === 'ready' ? t.answers : t.state[server.state]}
                  {server.detail !== 'serving' && <span class="small why">{server.detail}</span>}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scrolls>
    </section>
  );
}

export function Inside({ topology }: { topology: Topology }) {
  const { parts, process, routes } = topology;
  const modules = topology.modules.filter((module) => !SERVERS.includes(module.name));
  // The dial is newer than what the status says of it once a second.
  const runs = (module: ModuleLoad) => t.mode[routes.find((route) => route.module === module.name)?.dial.mode ?? module.mode];
  const rows = modules.map((module) => module.name);
  const rest = parts.filter((part) => !rows.includes(part.name));
  const share = (cpu: number | null) => Math.min(100, ((cpu ?? 0) / process.cores) * 100);
  const Cpu = ({ cpu }: { cpu: number | null }) => (
    <td data-label={t.cpu} class="end number cpu" title={cpu === null ? t.unknownHelp : t.cores(cpu.toFixed(2), process.cores)}>
      <meter min={0} max={100} value={share(cpu)} aria-hidden="true" /> {cpu === null ? t.unknown : cpu.toFixed(2)}
    </td>
  );
  return (
    <section class="card">
      <h2>{t.moduleLoad}</h2>
      <Scrolls label={t.moduleLoad}>
        <table>
          <Head words={[t.module, t.runs]} numbers={[t.cpu, t.loaded, t.holds, t.wait, t.refused]} />
          <tbody>
            {modules.map((module) => (
              <tr key={module.name}>
                <th scope="row">{module.name}</th>
                <td data-label={t.runs} class={module.state === 'ready' ? '' : 'warn'} title={module.detail}>
                  {runs(module)}
                  {module.state !== 'ready' && ` · ${t.state[module.state]}`}
                </td>
                <Cpu cpu={module.cpu} />
                <td data-label={t.loaded} class="end number nowrap" title={module.memory.loaded_bytes === null ? t.unknownHelp : t.loadedHelp}>
                  {bytes(module.memory.loaded_bytes)}
                </td>
                <td data-label={t.holds} class="end number nowrap" title={module.memory.held === null ? t.unknownHelp : t.holdsHelp(module.memory.held)}>
                  {bytes(module.memory.held_bytes)}
                </td>
                <td data-label={t.wait} class={`end number${module.queue_wait && module.queue_wait.p99_ms > module.queue_wait.limit_ms ? ' warn' : ''}`} title={module.queue_wait ? undefined : t.unknownHelp}>
                  {module.queue_wait ? `${ms(module.queue_wait.p99_ms)} ms` : t.unknown}
                </td>
                <td data-label={t.refused} class={`end number${module.refused > 0 ? ' warn' : ''}`}>{module.refused}</td>
              </tr>
            ))}
            {rest.map((part) => (
              <tr key={part.name} class="muted">
                <th scope="row">{part.name}</th>
                <td />
                <Cpu cpu={part.cpu} />
                <td />
                <td />
                <td />
                <td />
              </tr>
            ))}
            <tr class="muted" title={t.sharedHelp}>
              <th scope="row">{t.sharedMemory}</th>
              <td />
              <td />
              <td data-label={t.memory} class="end number nowrap">
                {bytes(process.shared_bytes)}
              </td>
              <td />
              <td />
              <td />
            </tr>
          </tbody>
        </table>
      </Scrolls>
      <p class="muted small">{t.memoryFoot}</p>
    </section>
  );
}

export function Hops({ hops }: { hops: Hop[] }) {
  return (
    <section class="card" data-testid="hops">
      <h2>{t.hops}</h2>
      <Scrolls label={t.hops}>
        <table>
          <Head words={[t.hop, t.module]} numbers={[t.limit, t.p50, t.p99, t.passages, t.violations]} />
          <tbody>
            {hops.map((hop) => (
              <tr key={hop.name}>
                <th scope="row">{hop.name}</th>
                <td data-label={t.module}>{hop.module}</td>
                <td data-label={t.limit} class="end number">{hop.limit_ms}</td>
                <td data-label={t.p50} class="end number">{ms(hop.p50_ms)}</td>
                <td data-label={t.p99} class={`end number${(hop.p99_ms ?? 0) > hop.limit_ms ? ' warn' : ''}`}>{ms(hop.p99_ms)}</td>
                <td data-label={t.passages} class="end number">{hop.count}</td>
                <td data-label={t.violations} class={`end number${hop.violations > 0 ? ' warn' : ''}`} title={hop.counted_from_ms > hop.limit_ms + 0.01 ? t.overFrom(hop.counted_from_ms.toFixed(0)) : undefined}>
                  {hop.violations}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Scrolls>
      <p class="muted small">{t.hopHelp}</p>
    </section>
  );
}

export function Changes({ changes, when }: { changes: Change[]; when: (at: string) => string }) {
  return (
    <section class="card" data-testid="changes">
      <h2>{t.changes}</h2>
      {changes.length === 0 ? (
        <p class="muted">{t.noChanges}</p>
      ) : (
        <Scrolls label={t.changes}>
          <table>
            <Head words={[t.when, t.module, t.change, t.by, t.why]} numbers={[]} />
            <tbody>
              {changes.map((change) => (
                <tr key={`${change.module}-${change.version}-${change.at}`}>
                  <td data-label={t.when} class="nowrap">{when(change.at)}</td>
                  <th scope="row">{change.module}</th>
                  <td data-label={t.change}>
                    {change.from} → {change.to}
                    {change.asked_to_move > 0 && <span class="small muted"> {t.moved(change.asked_to_move)}</span>}
                  </td>
                  <td data-label={t.by}>
                    {change.who ?? t.who[change.by]}
                    {change.who && <span class="small muted"> {t.who[change.by]}</span>}
                  </td>
                  <td data-label={t.why}>{change.reason ?? t.unknown}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Scrolls>
      )}
    </section>
  );
}
