// One record: facts, timeline, and what may be secret when it is asked for.

import { getRecord, laidOut, recordPath, remove } from './api.js';
import { badge, foreign, h, plain, say, span, time } from './dom.js';
import { ownerOf, settle } from './settle.js';

let sheet = null;

export function closeRecord() {
  sheet?.close();
}

export const openKey = () => sheet?.hapaxOpen;

// `may` says what the token allows; `closed` is called when the sheet is gone, `changed` after a change.
export async function openRecord(key, may, closed, changed) {
  const back = document.activeElement;
  if (sheet) {
    sheet.hapaxQuiet = true;
    sheet.close();
  }
  const body = h('div', { class: 'sheet-body', 'aria-busy': 'true' }, h('div', { class: 'bone tall' }), h('div', { class: 'bone tall' }));
  const dialog = h(
    'dialog',
    { class: 'sheet', 'aria-label': 'Record', onclose: gone, onclick: (e) => e.target === dialog && dialog.close() },
    h('div', { class: 'sheet-top' }, h('strong', {}, 'Record'), h('button', { class: 'ghost', type: 'button', onclick: () => dialog.close() }, 'Close', h('kbd', {}, 'Esc'))),
    body,
  );
  dialog.hapaxOpen = key;
  sheet = dialog;
  document.body.append(dialog);
  dialog.showModal();
  await load();
  return dialog;

  function gone() {
    dialog.remove();
    if (sheet === dialog) sheet = null;
    if (dialog.hapaxQuiet) return;
    closed();
    // The row may have been made anew meanwhile.
    const rows = () => [...document.querySelectorAll('#records .row'), ...document.querySelectorAll('main .row')];
    const to = back?.isConnected ? back : rows().find((row) => row.dataset.key === key);
    to?.focus({ preventScroll: true });
  }

  async function load() {
    let got = null;
    try {
      got = await getRecord(key);
    } catch (problem) {
      const text = problem.status === 404 ? 'There is no record of this key: it was settled, removed, or it expired. The next call runs the action.' : problem.message;
      body.replaceChildren(h('p', { class: 'empty' }, h('strong', { class: 'mono' }, foreign(key, {}, 512)), text));
      body.removeAttribute('aria-busy');
      return;
    }
    body.removeAttribute('aria-busy');
    body.replaceChildren(...parts(got.record, got.written).filter(Boolean));
  }

  function parts(record, written) {
    const tags = Object.entries(record.tags ?? {});
    return [
      h('h2', { class: 'title' }, foreign(record.actionType || 'no action type'), h('span', { class: 'muted' }, ' → '), foreign(record.target || 'no target')),
      h('p', { class: 'line' }, badge(record.state), copy(record.key)),
      h('p', { class: 'mono key' }, foreign(record.key, {}, 512)),
      record.state === 'in_doubt' && doubt(record),
      record.error && h('section', {}, h('h3', {}, record.state === 'failed' ? 'Error' : 'Why nobody knows'), h('pre', { class: 'error', tabindex: '0' }, foreign(record.error, {}, 20_000))),
      h('section', {}, h('h3', {}, 'Timeline'), timeline(record)),
      h('section', {}, h('h3', {}, 'Facts'), h(
        'dl',
        { class: 'facts' },
        fact('Signal', record.signalId && foreign(record.signalId)),
        fact('Owner', foreign(ownerOf(record))),
        fact('Executions', String(record.attempts)),
        fact('Calls', String(record.attemptCount)),
        fact('Attempt', h('span', { class: 'mono' }, record.attemptId)),
        fact('Fingerprint', h('span', { class: 'mono' }, record.fingerprint)),
        tags.map(([name, value]) => fact(plain(name, 256), foreign(value))),
      )),
      secret('params', written.get('params'), 'The params were not kept: keep_params is fingerprint.'),
      secret('result', written.get('result'), record.state === 'completed' ? 'The result is null.' : 'There is no result.'),
      (record.state === 'completed' || record.state === 'failed') && removal(record),
    ];
  }

  function doubt(record) {
    const why = may.write ? null : 'Your token may read. Settling needs the role write.';
    return h(
      'div',
      { class: 'callout' },
      h('p', {}, h('strong', {}, 'Its effect may have happened. '), 'Calls are refused until someone says whether it did.'),
      h('button', { class: 'primary', type: 'button', id: 'settle', disabled: !may.write, 'aria-describedby': why && 'settle-why', onclick: () => settle(record, again) }, 'Settle…'),
      why && h('p', { class: 'muted', id: 'settle-why' }, why),
    );
  }

  function again() {
    changed();
    load();
  }

  function removal(record) {
    const why = may.admin ? null : 'Removing needs the role admin.';
    const button = h('button', { class: 'ghost', type: 'button', disabled: !may.admin, onclick: ask }, 'Remove record…');
    const part = h('section', { class: 'removal' }, button, why && h('span', { class: 'muted' }, why));
    return part;

    function ask() {
      const yes = h('button', { class: 'primary danger', type: 'button', onclick: go }, 'Remove');
      part.replaceChildren(h('p', {}, 'The next call runs the action again.'), h('div', { class: 'actions' }, h('button', { class: 'ghost', type: 'button', onclick: () => part.replaceChildren(button) }, 'Keep'), yes));
      yes.focus();
    }

    async function go() {
      try {
        await remove(recordPath(record.key));
        say('The record is gone.');
        changed();
        dialog.close();
      } catch (problem) {
        part.replaceChildren(button, h('p', { class: 'problem', role: 'alert' }, plain(problem.message, 600)));
      }
    }
  }
}

function copy(text) {
  const button = h('button', { class: 'ghost small', type: 'button' }, 'Copy key');
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = 'Copied';
    } catch {
      button.textContent = 'Not allowed here';
    }
  });
  return button;
}

const fact = (name, value) => value && [h('dt', {}, name), h('dd', {}, value)];

function timeline(record) {
  const steps = [];
  if (record.attempts > 1) steps.push(['past', 'Began before', `${record.attempts - 1} earlier ${record.attempts === 2 ? 'execution' : 'executions'}`, null]);
  steps.push(['past', 'Attempt began', ownerOf(record), record.startedAt]);
  if (record.state === 'in_progress') steps.push(['now', 'Runs now', 'Silent for longer than its lease, it is in doubt', record.leaseUntil]);
  if (record.state === 'in_doubt') steps.push(['doubt', 'In doubt', 'It ended without a word', record.leaseUntil ?? record.executedAt ?? null]);
  if (record.executedAt) steps.push([record.state === 'failed' ? 'failed' : 'done', record.state === 'failed' ? 'Failed' : 'Recorded', record.durationMs === undefined ? '' : `took ${span(record.durationMs)}`, record.executedAt]);
  if (record.attemptCount > record.attempts) steps.push(['past', 'Presented again', `${record.attemptCount - record.attempts} calls got this answer or waited for it`, null]);
  if (record.state === 'completed' || record.state === 'failed') steps.push(['later', record.expiresAt ? 'Expires' : 'Never expires', 'After that, the next call runs the action', record.expiresAt ?? null]);
  return h('ol', { class: 'timeline' }, steps.map(([kind, title, text, at]) => h('li', { 'data-kind': kind }, h('span', {}, h('strong', {}, title), ' ', at && time(at)), text && h('span', { class: 'muted' }, foreign(text)))));
}

// `text` is JSON as the server wrote it: its numbers may be none that a page can hold.
function secret(name, text, none) {
  const label = name === 'params' ? 'Params' : 'Result';
  const absent = text === undefined || text === 'null';
  const place = h('div', {});
  const button = h('button', { class: 'ghost small', type: 'button', 'aria-expanded': 'false', 'data-secret': name, onclick: toggle }, `Show ${name}`);
  return h('section', { class: 'secret' }, h('h3', {}, label), absent ? h('p', { class: 'muted' }, none) : [button, place]);

  function toggle() {
    const shown = place.firstChild !== null;
    button.setAttribute('aria-expanded', String(!shown));
    button.textContent = shown ? `Show ${name}` : `Hide ${name}`;
    if (shown) place.replaceChildren();
    else place.append(h('pre', { tabindex: '0' }, foreign(laidOut(text, 200_000), {}, 200_000)));
  }
}
