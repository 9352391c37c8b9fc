import { useEffect } from 'preact/hooks';
import { m } from '../messages';

/** Names the page in the browser's tab. */
export function useTitle(page: string): void {
  useEffect(() => {
    document.title = m.title(page);
  }, [page]);
}
