// Links between our pages are plain `<a href>`; this one listener turns a plain click on them into a change of page without a reload.
//
// Not a component per link: its handler would hold the tree it was first drawn in, and on the wall, whose tiles come and go all day, those
// trees would hold each other.

import { navigate } from 'wouter-preact/use-browser-location';

export function followLinks(): void {
  document.addEventListener('click', (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const link = (event.target as Element).closest<HTMLAnchorElement>('a[href^="/"]');
    if (!link || link.hasAttribute('download') || link.target !== '') return;
    event.preventDefault();
    navigate(link.getAttribute('href') ?? '/');
  });
}
