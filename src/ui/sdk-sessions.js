/**
 * A person's list of sessions, live: read over HTTP, told of changes by a `user` watch, read again after each
 * reconnect, as the watch replays nothing.
 *
 * Events (`CustomEvent`, in `detail`): `list` (the first page was read: `{sessions, total, next_cursor}`), `update` (a
 * `session_update` frame), `status`, `error`.
 */

import { ChatboxError, Deferred, baseOf, browserStorage } from './sdk-wire.js';
import { Connection } from './sdk-connection.js';
import { Http } from './sdk-http.js';
import { Tokens } from './sdk-token.js';

/** How many sessions a page of the list has, unless asked for. */
const PAGE = 50;

export class SessionList extends EventTarget {
  #connection;
  #connected = new Deferred();
  #http;
  #reading = null;
  #again = false;

  /** @param {import('./sdk.js').Options & {tokens?: Tokens}} [options] */
  constructor(options = {}) {
    super();
    const base = baseOf(options.base);
    const tokens = options.tokens ?? new Tokens(options);
    this.#http = new Http(base, tokens);
    this.#connection = new Connection({ ...options, base, storage: browserStorage(options.storage) }, tokens, {
      attach: (id) => ({ type: 'attach', id, scope: 'user' }),
      adopted: () => this.#adopted(),
      receive: (frame) => this.#receive(frame),
      lost: () => {},
      freed: () => {},
      busy: () => false,
      changed: (status) => this.#emit('status', status),
      finished: (err) => this.#connected.reject(err),
      gone: () => false,
      failed: (err) => this.#emit('error', { code: err.code ?? 'SERVICE_ERROR', message: err.message, recoverable: true }),
    });
  }

  /** What is to be shown of the connection. */
  get status() {
    return this.#connection.status;
  }

  /** Watches until `close`. @returns {Promise<void>} when the watch has begun */
  connect() {
    if (this.#connected.settled && this.status.state === 'closed') this.#connected = new Deferred();
    this.#connection.connect();
    return this.#connected.promise;
  }

  close() {
    this.#connection.close(null, new ChatboxError('CLOSED', 'the list was closed'));
  }

  /** One page, latest activity first. @param {{limit?: number, cursor?: string, q?: string}} [wish] */
  list({ limit = PAGE, cursor, q } = {}) {
    return this.#http.get('/sessions', { limit, cursor, q });
  }

  /** @param {string} q words of the person's own text or of a name */
  search(q, wish = {}) {
    return this.list({ ...wish, q });
  }

  /** @param {{name?: string, model_id?: string}} [wish] */
  create(wish = {}) {
    return this.#http.post('/sessions', wish);
  }

  rename(session_id, name) {
    return this.#http.patch(one(session_id), { name });
  }

  /** Ends a session: it can be read, and not be written in. */
  end(session_id) {
    return this.#http.post(`${one(session_id)}/end`);
  }

  /** Deletes a session with everything in it. */
  remove(session_id) {
    return this.#http.delete(one(session_id));
  }

  /** Makes a public link to the conversation as it is now. @param {{expires_in?: number}} [wish] in seconds */
  share(session_id, wish = {}) {
    return this.#http.post(`${one(session_id)}/share`, wish);
  }

  /** Revokes all links of a session. */
  unshare(session_id) {
    return this.#http.delete(`${one(session_id)}/share`);
  }

  #adopted() {
    this.#connected.resolve();
    this.#read();
    return true;
  }

  /** Reads the first page. What changes while it is read is read once more. */
  async #read() {
    if (this.#reading) {
      this.#again = true;
      return;
    }
    this.#again = false;
    this.#reading = this.list();
    try {
      this.#emit('list', await this.#reading);
    } catch (err) {
      this.#emit('error', { code: err.code ?? 'SERVICE_ERROR', message: err.message, recoverable: true });
    }
    this.#reading = null;
    if (this.#again) this.#read();
  }

  #receive(frame) {
    switch (frame.type) {
      case 'session_update':
        // It may have overtaken the page that is being read.
        if (this.#reading) this.#again = true;
        return this.#emit('update', frame);
      case 'going_away':
        return this.#connection.drain(frame.retry_after);
      case 'error':
        return this.#connection.answer(frame.re, new ChatboxError(frame.error.code, frame.error.message));
      default:
        return this.#connection.answer(frame.re, frame);
    }
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function one(session_id) {
  return `/sessions/${encodeURIComponent(session_id)}`;
}
