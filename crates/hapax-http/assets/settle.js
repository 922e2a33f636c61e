// Deciding on a key in doubt: a dialog that says what follows, and asks twice.

import { post, recordPath } from './api.js';
import { foreign, h, plain, say, time } from './dom.js';

export function settle(record, done) {
  const error = h('p', { class: 'problem', role: 'alert', hidden: true });
  const result = h('textarea', { id: 'settle-result', rows: 4, spellcheck: 'false', placeholder: '{"id": "…"}   or leave it empty' });
  const sure = h('input', { type: 'checkbox', id: 'settle-sure' });
  const go = h('button', { type: 'submit', class: 'primary', disabled: true }, 'Choose what happened');
  const resultPart = h(
    'div',
    { class: 'field', hidden: true },
    h('label', { for: 'settle-result' }, 'Its result, as JSON ', h('span', { class: 'muted' }, '– every later call gets it')),
    result,
  );
  const sureText = h('span', {});
  const surePart = h('label', { class: 'check', hidden: true }, sure, sureText);
  const choice = (value, title, text) =>
    h(
      'label',
      { class: 'choice' },
      h('input', { type: 'radio', name: 'verdict', value, onchange: change }),
      h('span', {}, h('strong', {}, title), h('span', { class: 'muted' }, text)),
    );
  const form = h(
    'form',
    { onsubmit: submit, novalidate: true },
    h('h2', { id: 'settle-title' }, 'Did it happen?'),
    h('p', { class: 'muted' }, 'The attempt ended without a word. Look at the target first: hapax cannot know.'),
    h(
      'dl',
      { class: 'facts' },
      h('dt', {}, 'Key'), h('dd', { class: 'mono' }, foreign(record.key, {}, 512)),
      h('dt', {}, 'Attempt'), h('dd', { class: 'mono' }, record.attemptId),
      h('dt', {}, 'Owner'), h('dd', {}, foreign(ownerOf(record))),
      h('dt', {}, 'Began'), h('dd', {}, time(record.startedAt)),
    ),
    h(
      'fieldset',
      {},
      h('legend', { class: 'unseen' }, 'What happened'),
      choice('happened', 'It happened', 'The result is recorded. The action does not run again.'),
      choice('not_happened', 'It did not happen', 'The key is free. The next call runs the action.'),
    ),
    resultPart,
    surePart,
    error,
    h('div', { class: 'actions' }, h('button', { type: 'button', class: 'ghost', onclick: () => dialog.close() }, 'Cancel'), go),
  );
  const dialog = h('dialog', { class: 'modal', 'aria-labelledby': 'settle-title', onclose: () => dialog.remove() }, form);
  sure.addEventListener('change', ready);
  result.addEventListener('input', () => (error.hidden = true));
  document.body.append(dialog);
  dialog.showModal();
  form.querySelector('input[type=radio]').focus();

  function verdict() {
    return form.querySelector('input[name=verdict]:checked')?.value;
  }

  function change() {
    const happened = verdict() === 'happened';
    resultPart.hidden = !happened;
    surePart.hidden = false;
    sure.checked = false;
    error.hidden = true;
    sureText.textContent = happened
      ? 'I looked: the effect is there.'
      : 'I looked: there is no effect, and running it again is right.';
    go.textContent = happened ? 'Record that it happened' : 'Free the key';
    go.classList.toggle('danger', !happened);
    ready();
  }

  function ready() {
    go.disabled = !(verdict() && sure.checked);
  }

  function fail(text) {
    error.textContent = plain(text, 600);
    error.hidden = false;
  }

  async function submit(event) {
    event.preventDefault();
    if (go.disabled) return;
    const said = verdict();
    // The text goes as it was written: reading it into numbers could round them.
    let body = `{"verdict":${JSON.stringify(said)},"attemptId":${JSON.stringify(record.attemptId)}`;
    const text = result.value.trim();
    if (said === 'happened' && text) {
      try {
        JSON.parse(text);
      } catch (bad) {
        fail(`The result is no JSON: ${bad.message}`);
        result.focus();
        return;
      }
      body += `,"result":${text}`;
    }
    go.disabled = true;
    go.setAttribute('aria-busy', 'true');
    try {
      await post(`${recordPath(record.key)}/settle`, body + '}');
      dialog.close();
      say(said === 'happened' ? 'Settled: it happened.' : 'Settled: it did not happen. The key is free.');
      done();
    } catch (problem) {
      const stale = problem.kind === 'lost-claim' || problem.kind === 'wrong-state' || problem.status === 404;
      fail(stale ? `Nothing was changed: the record has moved on meanwhile. ${problem.message}` : problem.message);
      if (stale) done(true);
    } finally {
      go.removeAttribute('aria-busy');
      ready();
    }
  }
}

export function ownerOf(record) {
  const owner = record.owner ?? {};
  return `${owner.label ? `${owner.label} · ` : ''}${owner.host ?? '?'} · pid ${owner.pid ?? '?'}`;
}
