// Making elements. Text comes in as text alone: nothing here reads markup.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.flat(9).filter((c) => c !== undefined && c !== null && c !== false));
  return element;
}

export const h = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
export const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// What would not show, or would turn the text around, is named instead.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\u{e0000}-\u{e0fff}]/gu;

export function plain(text, most = 400) {
  let cut = String(text ?? '');
  if (cut.length > most) cut = cut.slice(0, most) + '…';
  return cut.replace(UNSEEN, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}⟩`);
}

// Foreign text, in a direction of its own.
export const foreign = (text, attributes, most) => h('bdi', attributes, plain(text, most));

const number = new Intl.NumberFormat('en');
export const count = (n) => number.format(n ?? 0);

export function span(ms) {
  if (ms === undefined || ms === null) return '–';
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s < 10 ? s.toFixed(1) : Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

// How far the server's clock is ahead of this one.
let ahead = 0;
export function setClock(now) {
  ahead = Date.parse(now) - Date.now();
}
export const now = () => Date.now() + ahead;

function relative(at) {
  const left = at - now();
  if (Math.abs(left) < 2000) return 'now';
  const whole = Math.floor(Math.abs(left) / 1000);
  const text = whole < 60 ? `${whole} s` : span(whole * 1000);
  return left < 0 ? `${text} ago` : `in ${text}`;
}

export function time(iso) {
  const at = Date.parse(iso);
  if (Number.isNaN(at)) return h('span', {}, '–');
  const absolute = new Date(at).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
  return h('time', { datetime: iso, title: `${absolute} (${iso})`, 'data-at': at }, relative(at));
}

setInterval(() => {
  if (document.hidden) return;
  for (const element of document.querySelectorAll('time[data-at]')) {
    const text = relative(Number(element.dataset.at));
    if (element.textContent !== text) element.textContent = text;
  }
}, 1000);

// Brings the children of `list` to `items`, and leaves alone those that are the same: focus and place stay.
export function reconcile(list, items, keyOf, make) {
  const old = new Map();
  for (const child of [...list.children]) {
    if (child.hapaxKey === undefined) child.remove();
    else old.set(child.hapaxKey, child);
  }
  // What is gone goes first: a child that is moved loses its focus, and so none is that need not be.
  const wanted = new Set(items.map(keyOf));
  for (const [key, child] of old) {
    if (wanted.has(key)) continue;
    child.remove();
    old.delete(key);
  }
  let place = list.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const mark = JSON.stringify(item);
    let child = old.get(key);
    old.delete(key);
    if (child && child.hapaxMark !== mark) {
      const held = child.contains(document.activeElement);
      const fresh = make(item);
      if (place === child) place = fresh;
      child.replaceWith(fresh);
      if (held) fresh.querySelector('.row')?.focus({ preventScroll: true });
      child = fresh;
    } else if (!child) {
      child = make(item);
    }
    child.hapaxKey = key;
    child.hapaxMark = mark;
    if (child === place) place = place.nextElementSibling;
    else list.insertBefore(child, place);
  }
}

export const NAMES = { in_progress: 'In progress', completed: 'Completed', failed: 'Failed', in_doubt: 'In doubt' };
export const badge = (state) => h('span', { class: 'badge', 'data-state': state }, NAMES[state] ?? state);

export function say(text) {
  document.getElementById('said').textContent = text;
}
