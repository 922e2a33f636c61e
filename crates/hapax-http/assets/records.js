// The records, newest first: live when nothing is asked, else what fits; older ones page by page.

import { get, recordPath } from './api.js';
import { h, plain, reconcile } from './dom.js';
import { row, welcome } from './overview.js';

const PAGE = 50;
// What the overview brings of the newest.
const LIVE = 100;
// Rows in the page at most: beyond that a filter serves better than scrolling.
const MOST = 500;
export const FIELDS = ['key', 'signal', 'action', 'target', 'state'];
const NAMES = { signal: 'signalId', action: 'actionType', target: 'target', state: 'state' };

export function records({ open, filters, filtered }) {
  const inputs = {};
  const text = (name, label, hint) => {
    inputs[name] = h('input', { id: `by-${name}`, type: 'search', autocomplete: 'off', spellcheck: 'false', maxlength: 512, placeholder: hint, oninput: typed });
    return h('div', { class: 'field' }, h('label', { for: `by-${name}` }, label), inputs[name]);
  };
  inputs.state = h('select', { id: 'by-state', onchange: typed }, [['', 'Any'], ['in_progress', 'In progress'], ['in_doubt', 'In doubt'], ['completed', 'Completed'], ['failed', 'Failed']].map(([value, name]) => h('option', { value }, name)));
  const reset = h('button', { class: 'ghost', type: 'button', hidden: true, onclick: clear }, 'Clear');
  const form = h(
    'form',
    { class: 'search', role: 'search', 'aria-label': 'Records', onsubmit: (e) => { e.preventDefault(); apply(); } },
    text('key', 'Key', 'exact  ( / )'), text('signal', 'Signal', 'exact'), text('action', 'Action', 'exact'), text('target', 'Target', 'exact'),
    h('div', { class: 'field' }, h('label', { for: 'by-state' }, 'State'), inputs.state),
    reset,
  );
  const list = h('ul', { class: 'list', id: 'records' });
  const more = h('button', { class: 'ghost', type: 'button', hidden: true, onclick: next }, 'Load more');
  const note = h('span', { class: 'muted note' }, 'newest first');
  const problem = h('p', { class: 'problem', role: 'alert', hidden: true });
  const element = h('section', { class: 'card', 'aria-label': 'Records' }, h('div', { class: 'head' }, h('h2', {}, 'Records'), note), form, problem, list, h('div', { class: 'more' }, more));
  let shown = [];
  let cursor = null;
  let newest = [];
  let timer = 0;
  let turn = null;
  // Someone has loaded more: the list stays as it is then.
  let paged = false;

  function restore() {
    const asked = filters();
    for (const name of FIELDS) inputs[name].value = asked[name] ?? '';
    reset.hidden = !isAsked() && !paged;
  }

  const isAsked = () => FIELDS.some((name) => inputs[name].value.trim());
  const asked = () => Object.fromEntries(FIELDS.map((name) => [name, inputs[name].value.trim()]).filter(([, v]) => v));

  function typed() {
    clearTimeout(timer);
    timer = setTimeout(apply, 250);
  }

  function clear() {
    for (const name of FIELDS) inputs[name].value = '';
    apply();
    inputs.key.focus();
  }

  function apply() {
    clearTimeout(timer);
    filtered(asked());
    load();
  }

  function fits(record) {
    const by = asked();
    return FIELDS.every((name) => !by[name] || (name === 'key' ? record.key === by.key : record[NAMES[name]] === by[name]));
  }

  async function fetchPage(from, limit = PAGE) {
    turn?.abort();
    turn = new AbortController();
    const by = asked();
    if (by.key) {
      const record = await get(recordPath(by.key), turn.signal).catch((e) => {
        if (e.status === 404) return null;
        throw e;
      });
      return { records: record && fits(record) ? [{ ...record, params: null, result: null }] : [], next: null };
    }
    const query = new URLSearchParams({ limit, order: 'desc' });
    for (const [name, value] of Object.entries(by)) query.set(NAMES[name], value);
    if (from) query.set('cursor', from);
    const page = await get(`/v1/records?${query}`, turn.signal);
    // Params and results are not kept here: who asks opens the record.
    return { ...page, records: page.records.map((r) => ({ ...r, params: null, result: null })) };
  }

  async function load(quiet) {
    paged = false;
    reset.hidden = !isAsked();
    problem.hidden = true;
    if (!isAsked()) {
      turn?.abort();
      cursor = null;
      shown = newest;
      draw();
      return;
    }
    if (!quiet) element.setAttribute('aria-busy', 'true');
    try {
      const page = await fetchPage(null);
      shown = page.records;
      cursor = page.next;
      draw();
    } catch (error) {
      if (error.name !== 'AbortError') fail(error);
    } finally {
      element.removeAttribute('aria-busy');
    }
  }

  async function next() {
    const before = shown.length;
    more.disabled = true;
    // From now on: what comes live meanwhile must not take this page's place.
    const was = paged;
    paged = true;
    try {
      // The newest came with the overview, which has no cursor.
      const page = cursor ? await fetchPage(cursor) : await fetchPage(null, LIVE + PAGE);
      shown = (cursor ? [...shown, ...page.records] : page.records).slice(0, MOST);
      cursor = shown.length < MOST ? page.next : null;
      reset.hidden = false;
      draw();
      list.querySelectorAll('.row')[before]?.focus();
    } catch (error) {
      paged = was;
      if (error.name !== 'AbortError') fail(error);
    } finally {
      more.disabled = false;
    }
  }

  function fail(error) {
    problem.textContent = plain(error.message, 600);
    problem.hidden = false;
  }

  function draw() {
    more.hidden = !cursor && (isAsked() || paged || shown.length < LIVE);
    note.textContent = shown.length >= MOST ? `the newest ${MOST}; narrow it further` : paged ? 'newest first, as they were; Clear shows what is new' : 'newest first';
    if (shown.length === 0) {
      list.replaceChildren(h('li', { class: 'none' }, isAsked() ? h('p', { class: 'muted' }, 'No record fits. Every field is matched exactly, and whoever expired is gone.') : welcome()));
      return;
    }
    reconcile(list, shown, (r) => r.key, (r) => h('li', {}, row(r, open)));
  }

  restore();
  return {
    element,
    focus: () => { inputs.key.focus(); inputs.key.select(); },
    restore: () => { restore(); load(); },
    show(fresh) {
      newest = fresh;
      if (!paged) load(true);
    },
  };
}
