// Modules, where each runs and how it does there; what holds the others up; and the dials.
//
// Asked anew every two seconds while the page is seen. What a process did not measure is a dash, never a zero.

import { useEffect, useState } from 'preact/hooks';
import { Refusal, topology as ask } from '../live/rest';
import { dateAndTime, m, oneDecimal, timeOfDay } from '../messages';
import { Icon } from '../parts/icon';
import { useTitle } from '../parts/title';
import { DialCard } from './dial';
import { age } from './model';
import { Hops, Inside, Changes, Servers, Targets } from './tables';
import type { Topology } from './wire';

const EVERY_MS = 2_000;

interface Shown {
  topology: Topology | null;
  at: number;
  /** Why the last answer did not come. */
  away: string | null;
}

function useTopology(): [Shown, () => void] {
  const [shown, setShown] = useState<Shown>({ topology: null, at: 0, away: null });
  const [asked, askAgain] = useState(0);
  useEffect(() => {
    const abort = new AbortController();
    let timer = 0;
    const look = async () => {
      try {
        if (document.visibilityState === 'visible') {
          const topology = await ask(AbortSignal.any([abort.signal, AbortSignal.timeout(10_000)]));
          setShown({ topology, at: Date.now(), away: null });
        }
      } catch (error) {
        if (abort.signal.aborted) return;
        setShown((before) => ({ ...before, away: error instanceof Refusal || error instanceof Error ? error.message : String(error) }));
      }
      if (!abort.signal.aborted) timer = window.setTimeout(() => void look(), EVERY_MS);
    };
    void look();
    return () => {
      abort.abort();
      window.clearTimeout(timer);
    };
  }, [asked]);
  return [shown, () => askAgain((n) => n + 1)];
}

export function TopologyPage() {
  const t = m.topology;
  useTitle(m.nav.topology);
  const [{ topology, at, away }, refresh] = useTopology();
  const [said, say] = useState('');
  if (!topology) {
    return (
      <div class="empty" role="status">
        {away ? `${m.link.unreachable} (${away})` : t.loading}
      </div>
    );
  }
  const { process, bottleneck, routes } = topology;
  return (
    <div class={`page topology${away ? ' old' : ''}`}>
      <h1 class="sr">{m.nav.topology}</h1>
      {away && (
        <p class="notice warn" role="status">
          <Icon name="unlinked" /> {t.old(timeOfDay(at))} ({away})
        </p>
      )}
      <section class={`card bottleneck${bottleneck.module ? ' found' : ''}`} aria-label={t.bottleneck} data-testid="bottleneck">
        <Icon name={bottleneck.module ? 'warning' : 'check'} />
        <p>{bottleneck.sentence}</p>
      </section>
      <p class="said" role="status" data-testid="said">
        {said}
      </p>
      <dl class="facts">
        <Fact name={t.version} value={`${process.version} · ${t.up(age(process.uptime_s))}` + (process.draining ? ` · ${t.draining}` : '')} />
        <Fact name={t.cpu} value={process.cpu === null ? t.unknown : t.cores(oneDecimal(process.cpu), process.cores)} />
        <Fact name={t.machine} value={process.machine_cpu === null ? t.unknown : t.cores(oneDecimal(process.machine_cpu), process.cores)} />
        <Fact name={t.memory} value={process.memory_bytes === null ? t.unknown : t.mib(process.memory_bytes)} help={t.memoryHelp} />
        <Fact name={t.live} value={String(process.live_conversations)} />
      </dl>
      <p class="muted small">
        {t.window(process.window_s.toFixed(0))}
      </p>
      <Servers modules={topology.modules} />
      <div class="cards">
        {routes.map((route) => (
          <DialCard
            key={route.module}
            route={route}
            onTurned={(what) => {
              say(what);
              refresh();
            }}
          >
            <Targets route={route} process={process} />
          </DialCard>
        ))}
        {routes.length === 0 && <p class="muted">{t.noDials}</p>}
      </div>
      <div class="pair">
        <Inside topology={topology} />
        <Hops hops={topology.hops} />
      </div>
      <Changes changes={topology.changes} when={(time) => dateAndTime(time)} />
    </div>
  );
}

function Fact({ name, value, help }: { name: string; value: string; help?: string }) {
  return (
    <div title={help}>
      <dt>{name}</dt>
      <dd class="number">{value}</dd>
    </div>
  );
}
