// The dashboard: routes, and what stands around every page.

import { render } from 'preact';
import { useEffect, useRef } from 'preact/hooks';
import { Route, Switch, useLocation } from 'wouter-preact';
import { CallPage } from './call/page';
import { ConversationsPage } from './conversations/page';
import { feed, link } from './live/feed';
import { m } from './messages';
import { Icon, type IconName } from './parts/icon';
import { SearchPage } from './search/page';
import { Help, helpOpen } from './shell/help';
import { useKeys } from './shell/keys';
import { followLinks } from './shell/links';
import { LinkBanner, shownHasEnded, transcriptLagMs } from './shell/link-state';
import { watchStatus } from './shell/status';
import { StatusBar } from './shell/status-bar';
import { nextTheme, ThemeSwitch } from './shell/theme-switch';
import { TopologyPage } from './topology/page';
import { TryPage } from './try/page';
import { WallPage } from './wall/page';

const PAGES: { path: string; icon: IconName; name: string }[] = [
  { path: '/', icon: 'wall', name: m.nav.wall },
  { path: '/conversations', icon: 'list', name: m.nav.conversations },
  { path: '/search', icon: 'search', name: m.nav.search },
  { path: '/try', icon: 'mic', name: m.nav.try },
  { path: '/topology', icon: 'modules', name: m.nav.topology },
];

function Shell() {
  const [path, go] = useLocation();
  const before = useRef<string | null>(null);
  useKeys({
    'g w': () => go('/'),
    'g c': () => go('/conversations'),
    'g s': () => go('/search'),
    'g t': () => go('/try'),
    'g o': () => go('/topology'),
    '?': () => (helpOpen.value = true),
    '/': () => document.querySelector<HTMLElement>('[data-find]')?.focus(),
    t: nextTheme,
  });
  useEffect(() => {
    const first = before.current === null;
    before.current = path;
    transcriptLagMs.value = null;
    shownHasEnded.value = false;
    // A followed link is gone with its page; keys and readers go on from the new one.
    if (!first && document.activeElement === document.body) document.getElementById('main')?.focus({ preventScroll: true });
  }, [path]);
  const current = PAGES.find((page) => page.path === path);
  return (
    <>
      <a class="skip" href="#main">
        {m.skipToContent}
      </a>
      <header class="top">
        <a href="/" class="brand">
          <Logo />
          <span>{m.product}</span>
        </a>
        <nav aria-label={m.nav.label}>
          {PAGES.map((page) => (
            <a key={page.path} href={page.path} aria-current={page === current ? 'page' : undefined}>
              <Icon name={page.icon} />
              <span>{page.name}</span>
            </a>
          ))}
        </nav>
        <ThemeSwitch />
      </header>
      <LinkBanner />
      <main id="main" tabIndex={-1} data-link={link.value.state}>
        <Switch>
          <Route path="/" component={WallPage} />
          <Route path="/conversations/:id">{({ id }) => <CallPage key={id} id={id} />}</Route>
          <Route path="/conversations" component={ConversationsPage} />
          <Route path="/search" component={SearchPage} />
          <Route path="/try" component={TryPage} />
          <Route path="/topology" component={TopologyPage} />
          <Route>
            <div class="empty">
              <h1>{m.notFound}</h1>
              <a href="/">{m.toWall}</a>
            </div>
          </Route>
        </Switch>
      </main>
      <StatusBar />
      <Help />
    </>
  );
}

function Logo() {
  return (
    <svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true" focusable="false" class="logo">
      <rect width="32" height="32" rx="8" />
      <path d="M8 16h2m3-5v10m3-14v18m4-13v8m3-6v4" />
    </svg>
  );
}

document.documentElement.lang = m.language;
followLinks();
feed();
watchStatus();
const root = document.getElementById('app');
if (root) render(<Shell />, root);
