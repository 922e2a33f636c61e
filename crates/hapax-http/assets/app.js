// The dashboard: signs in, follows the server, and puts the parts together.

import { Problem, events, get, token } from './api.js';
import { h, plain, say, setClock } from './dom.js';
import { overview } from './overview.js';
import { closeRecord, openKey, openRecord } from './record.js';
import { FIELDS, records } from './records.js';

const at = (id) => document.getElementById(id);
const main = at('main');
// Between two looks, however much happens.
const CALM = 1500;
const MAX_WAIT = 15_000;

let role = 'read';
let page = null;
let stream = null;
let due = 0;
let last = 0;
let looking = false;

const may = () => ({ write: role !== 'read', admin: role === 'admin' });

// What a link carries.
const state = () => new URLSearchParams(location.hash.slice(1));
function setState(change, push) {
  const params = state();
  for (const [name, value] of Object.entries(change)) {
    if (value) params.set(name, value);
    else params.delete(name);
  }
  const text = params.toString();
  const url = text ? `#${text}` : location.pathname;
  if (push) history.pushState(null, '', url);
  else history.replaceState(null, '', url);
}

const filters = () => Object.fromEntries(FIELDS.map((name) => [name, state().get(name)]));

function open(key) {
  setState({ record: key }, true);
  openRecord(key, may(), () => setState({ record: null }), () => look(true));
}

function followLink() {
  const key = state().get('record');
  if (key && key !== openKey()) openRecord(key, may(), () => setState({ record: null }), () => look(true));
  else if (!key) closeRecord();
}

function build() {
  const top = overview({ open, may, changed: () => look(true) });
  const below = records({ open, filters, filtered: (by) => setState(Object.fromEntries(FIELDS.map((n) => [n, by[n]]))) });
  main.replaceChildren(h('h1', { class: 'unseen' }, 'hapax'), top.element, below.element);
  page = { top, below };
}

function bones() {
  main.dataset.view = 'loading';
  main.replaceChildren(h('div', { class: 'bones', 'aria-hidden': 'true' }, h('div', { class: 'bone' }), h('div', { class: 'bone tall' }), h('div', { class: 'bone tall' })));
}

function signIn(why) {
  stream?.abort();
  stream = null;
  page = null;
  closeRecord();
  banner(null);
  live('off', 'Signed out');
  at('leave').hidden = true;
  at('where').textContent = '';
  main.dataset.view = 'sign-in';
  const field = h('input', { id: 'token', type: 'password', autocomplete: 'off', spellcheck: 'false', required: true, 'aria-describedby': 'token-help' });
  const form = h(
    'form',
    { class: 'card sign-in', onsubmit: (e) => {
      e.preventDefault();
      const text = field.value.trim();
      if (!/^[\x21-\x7e]+$/.test(text)) return signIn('A token is visible ASCII without spaces.');
      token.set(text);
      start();
    } },
    h('h1', {}, 'Sign in'),
    why && h('p', { class: 'problem', role: 'alert' }, plain(why, 400)),
    h('div', { class: 'field' }, h('label', { for: 'token' }, 'Bearer token'), field),
    h('p', { class: 'muted', id: 'token-help' }, 'One of the tokens of the server’s configuration. It stays in this tab and is forgotten with it.'),
    h('button', { class: 'primary', type: 'submit' }, 'Sign in'),
  );
  main.replaceChildren(form);
  field.focus();
}

function live(what, text) {
  at('live').dataset.state = what;
  at('live').textContent = text;
}

function banner(text, again) {
  const place = at('banner');
  place.hidden = !text;
  if (text) place.replaceChildren(h('span', {}, plain(text, 300)), again ? h('button', { class: 'ghost', type: 'button', onclick: again }, 'Try now') : '');
}

// Looks anew: at once when asked to, else not more often than is calm.
function look(now) {
  if (looking) {
    due ||= setTimeout(() => { due = 0; look(); }, CALM);
    return;
  }
  const left = now ? 0 : last + CALM - Date.now();
  if (left > 0 || document.hidden) {
    due ||= setTimeout(() => { due = 0; look(); }, Math.max(left, CALM));
    return;
  }
  refresh().catch(failed);
}

async function refresh() {
  looking = true;
  try {
    const data = await get('/v1/overview');
    last = Date.now();
    setClock(data.now);
    const changed = role !== data.role;
    role = data.role;
    at('where').textContent = plain(`${data.namespace} · ${data.store} · ${data.role}`, 200);
    at('where').title = `hapax ${data.version}`;
    at('leave').hidden = !token.get();
    if (!page || changed) {
      build();
      followLink();
    }
    requestAnimationFrame(() => {
      if (!page) return;
      page.top.show(data);
      page.below.show(data.newest);
      main.dataset.view = 'ready';
      // Who has none yet is told first how to make one.
      main.toggleAttribute('data-empty', data.stats.totalCached === 0);
    });
  } finally {
    looking = false;
  }
}

function failed(problem) {
  if (problem.status === 401) signIn(token.get() ? 'This token is not known to the server.' : null);
  else if (problem.status === 403) banner(`The server refuses: ${problem.message}`);
}

// Follows the server until signed out; a lost connection is tried again, less and less often.
async function follow() {
  const mine = new AbortController();
  stream = mine;
  let wait = 500;
  let doubts = -1;
  while (stream === mine) {
    let why = 'The server does not answer.';
    try {
      await refresh();
      await events((kind, data) => {
        if (kind === 'open') {
          wait = 500;
          banner(null);
          live('on', 'Live');
        } else if (kind === 'stats') {
          const stats = JSON.parse(data);
          requestAnimationFrame(() => page?.top.showStats(stats));
          if (stats.inDoubt > doubts && doubts >= 0) say(`${stats.inDoubt} in doubt`);
          doubts = stats.inDoubt;
          look();
        } else {
          look();
        }
      }, mine.signal);
    } catch (problem) {
      if (stream !== mine) return;
      if (problem.status === 401) return failed(problem);
      if (!(problem instanceof Problem)) console.warn(problem);
      if (problem.status) why = `The server refuses: ${problem.message}`;
    }
    if (stream !== mine) return;
    live('off', 'Disconnected');
    await pause(wait, why);
    wait = Math.min(wait * 2, MAX_WAIT);
  }
}


function pause(ms, why) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    banner(`${why} What you see may be old; trying again ${ms < 1000 ? 'now' : `in ${Math.round(ms / 1000)} s`}.`, () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

function start() {
  stream?.abort();
  page = null;
  bones();
  live('off', 'Connecting');
  follow();
}

function shortcuts() {
  const list = [['/', 'Search by key'], ['j  k', 'Next, previous record'], ['Enter', 'Open the record'], ['Esc', 'Close'], ['t', 'Light or dark'], ['?', 'This list']];
  const dialog = h('dialog', { class: 'modal small', 'aria-label': 'Keyboard shortcuts', onclose: () => dialog.remove() },
    h('h2', {}, 'Keyboard'), h('dl', { class: 'facts' }, list.map(([key, what]) => [h('dt', {}, h('kbd', {}, key)), h('dd', {}, what)])),
    h('div', { class: 'actions' }, h('button', { class: 'ghost', type: 'button', onclick: () => dialog.close() }, 'Close')));
  document.body.append(dialog);
  dialog.showModal();
}

function move(by) {
  const rows = [...main.querySelectorAll('.row')].filter((r) => r.offsetParent);
  const here = rows.indexOf(document.activeElement);
  const to = rows[here < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, here + by))];
  to?.focus();
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  try {
    localStorage.setItem('hapax.theme', root.dataset.theme);
  } catch {
    // It holds for this page then.
  }
  themeName();
}

function themeName() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  at('theme').textContent = dark ? 'Light' : 'Dark';
  at('theme').title = dark ? 'Change to the light theme (t)' : 'Change to the dark theme (t)';
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.target.closest('input, select, textarea')) {
    if (event.key === 'Escape') {
      // It leaves the field; by itself it would empty it, too, and the list would change a moment later.
      event.preventDefault();
      event.target.blur();
    }
    return;
  }
  if (document.querySelector('dialog[open]')) return;
  const inList = document.activeElement?.classList.contains('row');
  const act = {
    '/': () => page?.below.focus(),
    j: () => move(1),
    k: () => move(-1),
    ArrowDown: inList && (() => move(1)),
    ArrowUp: inList && (() => move(-1)),
    t: toggleTheme,
    '?': shortcuts,
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

at('theme').addEventListener('click', toggleTheme);
at('keys').addEventListener('click', shortcuts);
at('leave').addEventListener('click', () => {
  token.clear();
  signIn(null);
});
addEventListener('popstate', () => {
  if (!page) return;
  page.below.restore();
  followLink();
});
document.addEventListener('visibilitychange', () => !document.hidden && page && look(true));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', themeName);
themeName();
start();
