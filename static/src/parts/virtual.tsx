// Draws only the rows that can be seen, out of hundreds, all of one height. The arithmetic is virtual-core's.

import { elementScroll, observeElementOffset, observeElementRect, Virtualizer } from '@tanstack/virtual-core';
import type { ComponentChildren, RefObject } from 'preact';
import { useLayoutEffect, useReducer, useRef } from 'preact/hooks';

interface Props {
  count: number;
  rowHeight: number;
  /** What scrolls. */
  scroller: RefObject<HTMLElement>;
  row: (index: number) => ComponentChildren;
  keyOf: (index: number) => string;
  role?: 'rowgroup' | 'list';
  class?: string;
}

export function VirtualRows({ count, rowHeight, scroller, row, keyOf, role, class: className }: Props) {
  const [, redraw] = useReducer((n: number) => n + 1, 0);
  const list = useRef<HTMLDivElement>(null);
  const held = useRef<Virtualizer<HTMLElement, Element> | null>(null);
  const options = {
    count,
    getScrollElement: () => scroller.current,
    estimateSize: () => rowHeight,
    getItemKey: keyOf,
    overscan: 6,
    scrollMargin: list.current?.offsetTop ?? 0,
    observeElementRect,
    observeElementOffset,
    scrollToFn: elementScroll,
    onChange: () => redraw(undefined),
  };
  held.current ??= new Virtualizer<HTMLElement, Element>(options);
  const virtual = held.current;
  virtual.setOptions(options);
  useLayoutEffect(() => virtual._didMount(), []);
  useLayoutEffect(() => virtual._willUpdate());
  useLayoutEffect(() => virtual.measure(), [rowHeight]);

  return (
    <div ref={list} class={`virtual ${className ?? ''}`} role={role} style={{ height: `${virtual.getTotalSize()}px` }}>
      {virtual.getVirtualItems().map((item) => (
        <div key={item.key} class="virtual-row" role="presentation" style={{ height: `${item.size}px`, transform: `translateY(${item.start - (list.current?.offsetTop ?? 0)}px)` }}>
          {row(item.index)}
        </div>
      ))}
    </div>
  );
}
