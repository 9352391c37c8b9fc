import { feedDelayMs, linked } from '../live/feed';
import type { TierStatus } from '../live/wire';
import { inSeconds, m } from '../messages';
import { TierBadge } from '../parts/badges';
import { Icon } from '../parts/icon';
import { helpOpen } from './help';
import { LinkState, transcriptLagMs } from './link-state';
import { status } from './status';

export function StatusBar() {
  const known = status.value;
  const failing = known?.modules.filter((one) => one.state !== 'ready') ?? [];
  return (
    <footer class="status-bar" aria-label={m.footer.label}>
      <LinkState />
      {linked.value && transcriptLagMs.value !== null && (
        <span class="item">
          <span class="muted">{m.footer.lag}</span> <span class="number">{m.seconds(inSeconds(transcriptLagMs.value))}</span>
        </span>
      )}
      {linked.value && feedDelayMs.value >= 500 && (
        <span class="item">
          <span class="muted">{m.footer.feed}</span> <span class="number">{m.seconds(inSeconds(feedDelayMs.value))}</span>
        </span>
      )}
      {alike(known?.tiers ?? []).map((tiers) => (
        <Tier key={tiers[0]?.task} tiers={tiers} />
      ))}
      {failing.map((one) => (
        <span key={one.name} class="item warn" title={one.detail ?? ''}>
          <Icon name="warning" /> {m.footer.failing(one.name, m.topology.state[one.state])}
        </span>
      ))}
      <span class="space" />
      <button type="button" class="quiet wide" onClick={() => (helpOpen.value = true)}>
        <Icon name="keyboard" /> {m.footer.keyboard} <kbd>?</kbd>
      </button>
      <span class="muted wide">{known ? m.footer.version(known.version) : m.footer.unknown}</span>
    </footer>
  );
}

/** Tasks that the same tier answers for the same reason, together. */
function alike(tiers: TierStatus[]): TierStatus[][] {
  const groups = new Map<string, TierStatus[]>();
  for (const tier of tiers) {
    const key = `${tier.tier} ${tier.degraded ?? ''} ${tier.stale ?? ''}`;
    groups.set(key, [...(groups.get(key) ?? []), tier]);
  }
  return [...groups.values()];
}

function Tier({ tiers }: { tiers: TierStatus[] }) {
  const [tier] = tiers;
  if (!tier) return null;
  return (
    <span class="item">
      <span class="muted">{tiers.map((one) => m.task[one.task] ?? one.task).join(', ')}</span> <TierBadge tier={tier.tier} title={tier.degraded ?? m.tierHelp[tier.tier]} />
      {tier.degraded && (
        <span class="warn why" title={tier.degraded}>
          <Icon name="warning" /> {tier.degraded}
        </span>
      )}
      {tier.stale && (
        <span class="warn why" title={tier.stale}>
          <Icon name="warning" /> {tier.stale}
        </span>
      )}
    </span>
  );
}
