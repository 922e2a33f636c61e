// The page above the records: doubt first, then what runs, then how it went.

import { chart } from './chart.js';
import { badge, count, foreign, h, reconcile, span, time } from './dom.js';
import { settle } from './settle.js';

// A record as a line of a list. It opens the record.
export function row(record, open, when) {
  const [label, at] = when ?? ['', record.executedAt ?? record.startedAt];
  return h(
    'button',
    { class: 'row', type: 'button', 'data-key': record.key, onclick: () => open(record.key) },
    badge(record.state),
    h('span', { class: 'what cut' }, foreign(record.actionType || '–'), h('span', { class: 'muted' }, ' → '), foreign(record.target || '–')),
    h('span', { class: 'mono muted cut' }, foreign(record.key, {}, 160)),
    h('span', { class: 'when muted' }, label, at ? time(at) : ''),
  );
}

function card(title, note, ...children) {
  const small = h('span', { class: 'muted note' }, note);
  const head = h('div', { class: 'head' }, h('h2', {}, title), small);
  return { element: h('section', { class: 'card', 'aria-label': title }, head, children), small };
}

function tile(name, help) {
  const value = h('dd', {}, '–');
  return { element: h('div', { class: 'tile', title: help }, h('dt', {}, name), value), value };
}

export function overview({ open, may, changed }) {
  const tiles = {
    duplicatesPrevented: tile('Duplicates prevented', 'Calls whose action did not run again'),
    hitRate: tile('Hit rate', 'Calls answered from the record, of those that looked'),
    executions: tile('Executions', 'Actions begun'),
    timeSavedMs: tile('Time saved', 'Action time that replays saved'),
    failures: tile('Failures', 'Actions that ended in an error'),
    totalCached: tile('Records', 'Records kept now'),
  };
  const doubts = h('ul', { class: 'list' });
  const doubtTitle = h('h2', {}, '');
  const doubtWhy = h('p', { class: 'muted' }, '');
  const doubt = h('section', { class: 'card doubt', 'aria-label': 'In doubt', hidden: true }, h('div', { class: 'head' }, doubtTitle), doubtWhy, doubts);
  const running = h('ul', { class: 'list' });
  const expiring = h('ul', { class: 'list' });
  const slow = h('ul', { class: 'list' });
  const kinds = h('tbody', {});
  const plot = h('div', { class: 'plot' });
  const runs = card('Running now', '', running);
  const ends = card('Expiring soon', 'within the hour', expiring);
  const slowest = card('Slowest', '', slow);
  const byKind = card(
    'By action and target',
    '',
    h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': 'By action and target' }, h('table', {}, h('thead', {}, h('tr', {}, ['Action', 'Target', 'Records', 'Calls', 'Failed', 'Doubt', 'Slowest'].map((name, i) => h('th', { scope: 'col', class: i > 1 && 'n' }, name)))), kinds)),
  );
  const over = card('Duplicates prevented', 'by half hour, the last 24 hours', plot);
  const element = h(
    'div',
    { class: 'overview' },
    doubt,
    h('dl', { class: 'tiles' }, Object.values(tiles).map((t) => t.element)),
    h('div', { class: 'two' }, over.element, h('div', { class: 'stack' }, runs.element, ends.element)),
    h('div', { class: 'two' }, byKind.element, slowest.element),
  );
  let plotted = '';

  function put(list, records, none, when) {
    if (records.length === 0) {
      if (list.children.length !== 1 || !list.firstElementChild.matches('.none')) list.replaceChildren(h('li', { class: 'none muted' }, none));
      return;
    }
    reconcile(list, records, (r) => r.key, (r) => h('li', {}, row(r, open, when(r))));
  }

  function showStats(stats) {
    const text = {
      duplicatesPrevented: count(stats.duplicatesPrevented),
      hitRate: stats.hits + stats.misses === 0 ? '–' : `${(stats.hitRate * 100).toFixed(1)} %`,
      executions: count(stats.executions),
      timeSavedMs: span(stats.timeSavedMs),
      failures: count(stats.failures),
      totalCached: count(stats.totalCached),
    };
    for (const [name, value] of Object.entries(text)) {
      if (tiles[name].value.textContent !== value) tiles[name].value.textContent = value;
    }
  }

  function show(data) {
    showStats(data.stats);
    const inDoubt = data.stats.inDoubt;
    doubt.hidden = data.inDoubt.length === 0;
    doubtTitle.textContent = `${count(Math.max(inDoubt, data.inDoubt.length))} in doubt: ${inDoubt === 1 ? 'it needs' : 'they need'} a decision`;
    doubtWhy.textContent = may().write
      ? 'The effect may have happened. Calls are refused until you say whether it did.'
      : 'The effect may have happened. Your token may read; settling needs the role write.';
    doubtWhy.id = 'doubt-why';
    reconcile(doubts, data.inDoubt, (r) => r.key, (r) =>
      h('li', {}, row(r, open, ['began ', r.startedAt]), h('button', { class: 'ghost settle', type: 'button', disabled: !may().write, title: may().write ? null : 'Needs the role write', 'aria-describedby': 'doubt-why', onclick: () => settle(r, changed) }, 'Settle…')));
    put(running, data.inProgress, 'Nothing runs.', (r) => ['began ', r.startedAt]);
    runs.small.textContent = data.stats.inProgress > data.inProgress.length ? `the first ${data.inProgress.length} of ${count(data.stats.inProgress)}` : '';
    put(expiring, data.expiring.slice(0, 20), 'Nothing expires within the hour.', (r) => ['', r.expiresAt]);
    put(slow, data.slowest.slice(0, 6), 'Nothing was timed yet.', (r) => [`${span(r.durationMs)} · `, r.executedAt]);
    const bound = data.lookedAt === 0 ? '' : data.lookedAt === 1 ? 'of one record' : `of the newest ${count(data.lookedAt)} records`;
    slowest.small.textContent = bound;
    byKind.small.textContent = bound;
    kinds.replaceChildren(
      ...(data.kinds.length ? data.kinds.slice(0, 12) : []).map((k) =>
        h('tr', {}, h('td', {}, foreign(k.actionType || '–', {}, 120)), h('td', {}, foreign(k.target || '–', {}, 120)), [count(k.records), count(k.calls), count(k.failed), count(k.inDoubt), span(k.slowestMs)].map((n) => h('td', { class: 'n' }, n)))),
    );
    if (!data.kinds.length) kinds.append(h('tr', {}, h('td', { colspan: 7, class: 'muted' }, 'No records yet.')));
    const mark = JSON.stringify(data.minutes) + Math.floor(Date.parse(data.now) / 60_000);
    if (mark !== plotted) {
      plotted = mark;
      const { drawing, ticks, total } = chart(data.minutes, data.since, Date.parse(data.now));
      plot.replaceChildren(
        h('p', { class: 'sum' }, h('strong', {}, count(total)), h('span', { class: 'muted' }, ' counted since ', data.since ? time(data.since) : 'now', ', in this server’s memory')),
        drawing,
        ticks,
      );
    }
  }

  return { element, show, showStats };
}

export function welcome() {
  const origin = location.origin;
  const line = `curl -s ${origin}/v1/claims -H 'Content-Type: application/json'${sessionStorage.getItem('hapax.token') ? " -H \"Authorization: Bearer $TOKEN\"" : ''} \\\n  -d '{"signalId":"signal-123","actionType":"create_task","target":"trello","params":{"name":"Task"}}'`;
  return h(
    'div',
    { class: 'empty' },
    h('h3', {}, 'No records yet'),
    h('p', { class: 'muted' }, 'The first claim makes one. It shows here within a second:'),
    h('pre', { tabindex: '0' }, line),
    h('p', { class: 'muted' }, 'Run it twice: the second call is told that the first still runs. ', h('a', { href: '/docs' }, 'What else there is')),
  );
}
