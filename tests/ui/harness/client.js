/** The client in a page of a host, an empty one of another origin. What is exported in lower half runs in that page. */

import http from 'node:http';
import { once } from 'node:events';

/** @returns {Promise<{origin: string, close: () => void}>} a host that serves one empty page */
export async function startHost() {
  const server = http.createServer((_, response) => {
    response.setHeader('content-type', 'text/html; charset=utf-8');
    response.end('<!doctype html><html lang="en"><title>Host</title><link rel="icon" href="data:,"><body></body></html>');
  });
  server.listen(0, 'localhost');
  await once(server, 'listening');
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { origin: `http://localhost:${server.address().port}`, close };
}

/**
 * Starts a client on the page, as `globalThis.chat`; `globalThis.seen` is what it told. Does not wait for it.
 * @param {object} page @param {object} options of the client, without functions
 */
export function startClient(page, options) {
  return page.evaluate(async (wish) => {
    const { Chatbox } = await import(`${wish.base}sdk.js`);
    const { token, ...rest } = wish;
    const chat = new Chatbox({ getToken: () => token, ...rest });
    globalThis.handles = {};
    const seen = { entries: [], replies: {}, messages: {}, texts: {}, statuses: [], connections: [], errors: [], faults: [] };
    const encoder = new TextEncoder();
    chat.addEventListener('status', ({ detail }) => seen.statuses.push({ ...detail, at: Date.now() }));
    chat.addEventListener('session', ({ detail }) => {
      if (seen.connections.at(-1) !== detail.connection_id) seen.connections.push(detail.connection_id);
    });
    chat.addEventListener('reset', () => {
      Object.assign(seen, { entries: [], replies: {}, messages: {}, texts: {} });
    });
    chat.addEventListener('entry', ({ detail }) => seen.entries.push({ seq: detail.seq, content: detail.content }));
    chat.addEventListener('error', ({ detail }) => seen.errors.push(detail));
    chat.addEventListener('message', ({ detail }) => {
      const { id, content, state, seq, turn_id, error } = detail;
      globalThis.handles[id] = detail;
      const states = [...(seen.messages[id]?.states ?? []), state];
      seen.messages[id] = { content, state, states, seq, turn_id, error: error && { code: error.code } };
    });
    chat.addEventListener('piece', ({ detail }) => {
      const { turn_id, offset, content } = detail;
      const held = seen.texts[turn_id] ?? '';
      if (encoder.encode(held).length !== offset) seen.faults.push(`a piece at ${offset} after ${held.length} characters`);
      seen.texts[turn_id] = held + content;
    });
    chat.addEventListener('reply', ({ detail }) => {
      if (seen.replies[detail.turn_id]) seen.faults.push(`a second end of turn ${detail.turn_id}`);
      seen.replies[detail.turn_id] = detail;
    });
    Object.assign(globalThis, { chat, seen });
    chat.connect().catch(() => {});
  }, options);
}

export const seen = () => globalThis.seen;

export const connected = (transport) => {
  const { state, transport: used } = globalThis.chat.status;
  return state === 'connected' && (!transport || used === transport);
};

export const state = (wanted) => globalThis.chat.status.state === wanted;

/** @returns {string} its id */
export const send = (content) => globalThis.chat.send(content).id;

export const streamed = (length) => Object.values(globalThis.seen.texts).some((text) => text.length >= length);

export const replied = (count) => {
  const replies = Object.values(globalThis.seen.replies);
  return replies.length >= count && replies;
};

export const messagesIn = (state) => {
  const messages = Object.values(globalThis.seen.messages);
  return messages.length > 0 && messages.every((message) => message.state === state) && messages;
};

/** Whether the outbox on disk has a message, or has not. */
export const kept = ({ id, wanted }) =>
  new Promise((resolve, reject) => {
    const opening = indexedDB.open('chatbox', 1);
    opening.onerror = reject;
    opening.onsuccess = () => {
      const database = opening.result;
      const found = database.transaction('outbox').objectStore('outbox').getKey(id);
      found.onsuccess = () => {
        database.close();
        resolve((found.result === id) === wanted);
      };
    };
  });

/** What a client that knows nothing reads: the stored log. */
export async function readLog({ token, ...rest }) {
  const { Chatbox } = await import(`${rest.base}sdk.js`);
  const chat = new Chatbox({ ...rest, getToken: () => token, outbox: false });
  const log = [];
  const whole = new Promise((resolve) => {
    const add = (entry) => {
      log.push(entry);
      if (log.length === chat.session.last_seq) resolve();
    };
    chat.addEventListener('entry', ({ detail }) => add({ seq: detail.seq, type: detail.type, content: detail.content }));
    chat.addEventListener('reply', ({ detail }) =>
      add({ seq: detail.seq, type: 'reply', content: detail.text, sha256: detail.sha256, verified: detail.verified }),
    );
  });
  const { last_seq } = await chat.connect();
  if (last_seq > 0) await whole;
  chat.close();
  return log.sort((one, other) => one.seq - other.seq);
}
