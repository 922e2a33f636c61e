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
