// Small marks that say where a verdict comes from and what it is: sign, word and number, never color alone.

import type { Finalization, State, Tier, Verdict } from '../live/wire';
import { labelled, m } from '../messages';
import { Icon, MoodSign } from './icon';
import { mood } from './sentiment';

export function TierBadge({ tier, degradedFrom, late, title }: { tier: Tier; degradedFrom?: Tier | null; late?: boolean; title?: string }) {
  const lowered = degradedFrom ? m.degradedFrom(m.tier[degradedFrom]) : null;
  return (
    <span class={`tier ${tier}${lowered ? ' lowered' : ''}`} title={[title ?? m.tierHelp[tier], lowered, late && m.lateHelp].filter(Boolean).join(' · ')}>
      {lowered && <Icon name="step" />}
      {m.tier[tier] ?? tier}
      {lowered && <span class="sr"> {lowered}</span>}
      {late && ` · ${m.late}`}
    </span>
  );
}

export function MoodBadge({ verdict }: { verdict: Pick<Verdict, 'name' | 'score'> }) {
  const which = mood(verdict.name);
  return (
    <span class={`mood ${which}`}>
      <MoodSign mood={which} />
      {labelled(verdict.name)} <span class="number">{m.percent(verdict.score)}</span>
    </span>
  );
}

export function IntentBadge({ verdict }: { verdict: Pick<Verdict, 'name' | 'score'> }) {
  return (
    <span class="intent">
      {labelled(verdict.name)} <span class="number">{m.percent(verdict.score)}</span>
    </span>
  );
}

/** How a conversation stands; once it has ended, how far its result is, unless that is as it should be. */
export function StateBadge({ state, finalization }: { state: State; finalization?: Finalization | null }) {
  const unfinished = finalization && finalization !== 'done' ? finalization : null;
  return (
    <span class={`state ${state}`} title={m.stateHelp[state]}>
      <span class="dot" aria-hidden="true" />
      {m.state[state] ?? state}
      {unfinished && (
        <span class={`finalization ${unfinished}`} title={m.finalizationHelp[unfinished]}>
          · {m.finalization[unfinished] ?? unfinished}
        </span>
      )}
    </span>
  );
}
