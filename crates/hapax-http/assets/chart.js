// Bars over a day, as plain SVG.

import { count, h, svg } from './dom.js';

const BARS = 48;
const WIDTH = 720;
const HEIGHT = 120;

export function chart(minutes, since, now) {
  const step = (24 * 60 * 60_000) / BARS;
  const end = Math.ceil(now / step) * step;
  const first = end - BARS * step;
  const bars = Array.from({ length: BARS }, (_, i) => ({ at: first + i * step, n: 0 }));
  for (const minute of minutes) {
    const bar = bars[Math.floor((Date.parse(minute.at) - first) / step)];
    if (bar) bar.n += minute.duplicatesPrevented;
  }
  const total = bars.reduce((sum, bar) => sum + bar.n, 0);
  const most = Math.max(1, ...bars.map((bar) => bar.n));
  const wide = WIDTH / BARS;
  const clock = (at) => new Date(at).toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit' });
  const label = `Duplicates prevented in the last 24 hours by half hour: ${count(total)} in all, at most ${count(most === 1 && total === 0 ? 0 : most)} in one.`;
  const drawing = svg(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label },
    svg('line', { x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5, class: 'axis' }),
    svg('line', { x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2, class: 'grid' }),
    bars.map((bar, i) => {
      const tall = bar.n === 0 ? 0 : Math.max(3, (bar.n / most) * (HEIGHT - 8));
      return svg(
        'g',
        {},
        svg('title', {}, `${clock(bar.at)}–${clock(bar.at + step)}: ${count(bar.n)}`),
        svg('rect', { x: i * wide, y: 0, width: wide, height: HEIGHT, class: 'hit' }),
        svg('rect', { x: i * wide + 2, y: HEIGHT - tall, width: wide - 4, height: tall, rx: 2, class: 'bar' }),
      );
    }),
  );
  const ticks = [0, 12, 24, 36].map((i) => h('span', {}, clock(first + i * step)));
  return { drawing, ticks: h('div', { class: 'ticks', 'aria-hidden': 'true' }, ticks, h('span', {}, 'now')), total };
}
