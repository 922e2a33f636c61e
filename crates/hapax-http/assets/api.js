// Speaking with the server. The token lies in this tab alone and goes nowhere but into the Authorization header.

const TOKEN = 'hapax.token';

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (text) => sessionStorage.setItem(TOKEN, text),
  clear: () => sessionStorage.removeItem(TOKEN),
};

// An answer that is a problem document, or no answer at all (status 0).
export class Problem extends Error {
  constructor(status, document) {
    super(document?.detail || document?.title || `The server answered ${status}.`);
    this.status = status;
    this.kind = String(document?.type ?? '').replace('urn:hapax:problem:', '');
  }
}

function headers(more) {
  const held = token.get();
  return held ? { authorization: `Bearer ${held}`, ...more } : { ...more };
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: 'no-store', credentials: 'omit', redirect: 'error', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem(0, { detail: 'The server does not answer.' });
  }
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => null));
  return response;
}

async function json(path, options) {
  const response = await ask(path, options);
  return response.status === 204 ? null : response.json();
}

const SPACE = /[ \t\r\n]/;

function afterSpace(text, at) {
  while (SPACE.test(text[at] ?? '')) at += 1;
  return at;
}

function afterString(text, at) {
  for (at += 1; at < text.length && text[at] !== '"'; at += 1) if (text[at] === '\\') at += 1;
  return at + 1;
}

// The members of an object, each as it is written: read into numbers and written again, they could be others. The text
// is known to be JSON.
function members(text) {
  const found = new Map();
  let at = afterSpace(text, afterSpace(text, 0) + 1);
  while (at < text.length && text[at] === '"') {
    const name = at;
    at = afterString(text, at);
    const key = JSON.parse(text.slice(name, at));
    const value = afterSpace(text, afterSpace(text, at) + 1);
    let depth = 0;
    for (at = value; at < text.length; ) {
      const c = text[at];
      if (c === '"') {
        at = afterString(text, at);
        continue;
      }
      if (c === '{' || c === '[') depth += 1;
      else if (depth === 0 && (c === ',' || c === '}')) break;
      else if (c === '}' || c === ']') depth -= 1;
      at += 1;
    }
    found.set(key, text.slice(value, at).trim());
    at = afterSpace(text, at + 1);
  }
  return found;
}

// JSON laid out for reading, up to about `most` characters, each literal as it is written.
export function laidOut(text, most) {
  let out = '';
  let depth = 0;
  const line = () => '\n' + '  '.repeat(Math.min(depth, 40));
  for (let at = 0; at < text.length && out.length <= most; ) {
    const c = text[at];
    if (c === '"') {
      const end = afterString(text, at);
      out += text.slice(at, end);
      at = end;
      continue;
    }
    if (c === '{' || c === '[') {
      const next = afterSpace(text, at + 1);
      if (text[next] === '}' || text[next] === ']') {
        out += c + text[next];
        at = next + 1;
        continue;
      }
      depth += 1;
      out += c + line();
    } else if (c === '}' || c === ']') {
      depth -= 1;
      out += line() + c;
    } else if (c === ',') out += c + line();
    else if (c === ':') out += ': ';
    else if (!SPACE.test(c)) out += c;
    at += 1;
  }
  return out;
}

const limited = () => AbortSignal.timeout(20_000);
export const get = (path, signal) => json(path, { headers: headers(), signal: signal ?? limited() });
export const remove = (path) => json(path, { method: 'DELETE', headers: headers(), signal: limited() });
export const post = (path, body) =>
  json(path, {
    method: 'POST',
    headers: headers({ 'content-type': 'application/json' }),
    body: typeof body === 'string' ? body : JSON.stringify(body),
    signal: limited(),
  });

// The record, and its members as the server wrote them.
export async function getRecord(key) {
  const text = await (await ask(recordPath(key), { headers: headers(), signal: limited() })).text();
  return { record: JSON.parse(text), written: members(text) };
}

export const recordPath = (key) => `/v1/records/${encodeURIComponent(key)}`;

// Server-sent events by fetch, since EventSource sends no Authorization. Returns when the stream ends.
export async function events(on, signal) {
  const response = await ask('/v1/events', { headers: headers({ accept: 'text/event-stream' }), signal });
  on('open', null);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      let kind = 'message';
      const data = [];
      for (const line of part.split('\n')) {
        if (line.startsWith('event:')) kind = line.slice(6).trim();
        else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
      }
      if (data.length) on(kind, data.join('\n'));
    }
  }
}
