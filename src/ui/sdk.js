/**
 * The JavaScript client of chatbox.
 *
 *     import { Chatbox } from './sdk.js';
 *
 *     const chat = new Chatbox({ base: 'https://chat.example/chatbox', getToken: () => host.token() });
 *     await chat.connect();
 *     const message = chat.send('What is chatbox?');
 *     for await (const piece of message.pieces) show(piece);
 *     const { state, text, html } = await message.reply;
 *
 * It connects over WebTransport, or over WebSocket where that fails; it reconnects and resumes by itself. An answer
 * that streams over one transport goes on over the other where it was, byte for byte, and is checked at its end. A
 * message, or a rating, that the server has not stored yet outlasts the page: the next one sends it, or another tab.
 *
 * Events (`CustomEvent`, all in `detail`): `status`, `session`, `reset`, `entry`, `message`, `turn`, `piece`, `reply`,
 * `rating`, `update`, `typing`, `error`. Their shapes are in `sdk.d.ts`.
 */

import { ChatboxError, Deferred, baseOf, browserStorage, uuid } from './sdk-wire.js';
import { Connection } from './sdk-connection.js';
import { comesNext } from './sdk-copies.js';
import { Delivery } from './sdk-delivery.js';
import { Http } from './sdk-http.js';
import { Message, Rating, Regeneration } from './sdk-outbox.js';
import { OutboxStore } from './sdk-outbox-store.js';
import { Position, Turn } from './sdk-log.js';
import { Replies } from './sdk-replies.js';
import { SessionList } from './sdk-sessions.js';
import { Tokens } from './sdk-token.js';
import { Typing } from './sdk-typing.js';

export { ChatboxError, SessionList };

/** A conversation with chatbox. One instance holds one session at a time. */
export class Chatbox extends EventTarget {
  #options;
  #tokens;
  #http;
  #connection;
  #connected = new Deferred();
  #session = null;
  #request;
  #position = new Position();
  #replies;
  #delivery;
  #typing;
  #older = null;

  /** @param {import('./sdk.js').Options} [options] */
  constructor(options = {}) {
    super();
    const base = baseOf(options.base);
    const storage = browserStorage(options.storage);
    this.#options = { ...options, base, storage };
    this.#tokens = new Tokens(options);
    this.#http = new Http(base, this.#tokens);
    this.#request = options.session_id ? { session_id: options.session_id } : {};
    this.#position.reset(Boolean(options.history));
    this.#connection = this.#connect();
    this.#replies = new Replies(this.#position, {
      emit: (name, detail) => this.#emit(name, detail),
      expect: () => this.#connection.expect(),
      reread: () => this.#connection.resume(),
      ended: () => this.#connection.rest(),
    });
    this.#delivery = new Delivery({
      connection: this.#connection,
      replies: this.#replies,
      position: this.#position,
      store: options.outbox === false ? null : new OutboxStore(base, () => this.#delivery.restore()),
      user: () => this.#tokens.user,
      tell: (message) => this.#emit('message', message),
      rated: ({ rates, state, error }) => this.#emit('rating', { ...rates, state, error }),
      gone: (err) => this.#vanished(err),
    });
    this.#typing = new Typing((state) => {
      const { session_id } = this.#session ?? {};
      if (session_id) this.#connection.tell({ type: 'typing_indicator', session_id, metadata: { state } });
    });
  }

  /** What is to be shown of the connection: `{state, transport, reason, retry_at, resume}`. */
  get status() {
    return this.#connection.status;
  }

  /** What the server said last about the session: its id, models, limits. `null` before the first connection. */
  get session() {
    return this.#session;
  }

  /** Whether the log begins before what was shown. */
  get hasOlder() {
    const { oldest } = this.#position;
    return oldest > 1 && oldest !== Infinity;
  }

  /**
   * Connects, and stays connected until `close`.
   * @returns {Promise<object>} the session, once it is there; rejects when there is no point in trying on
   */
  connect() {
    if (this.#connected.settled && this.status.state === 'closed') this.#connected = new Deferred();
    if (this.status.state === 'closed') this.#delivery.reopen();
    this.#connection.connect();
    return this.#connected.promise;
  }

  /**
   * Says something. Returns at once; the message waits for the connection if there is none.
   * @param {string} content exactly as it is to be stored
   * @param {{id?: string}} [options] `id`: a UUID, when the caller keeps an outbox of its own
   * @returns {import('./sdk.js').Message}
   */
  send(content, { id } = {}) {
    const message = new Message(content, id);
    this.#delivery.add(message);
    this.#typing.set(false);
    return message;
  }

  /** Sends a refused message once more, under the same id: the server applies it once. */
  retry(message) {
    this.#delivery.retry(message);
    return message;
  }

  /** Forgets a message that is not on its way: it waits, or was refused. @returns {boolean} whether it could be done */
  discard(message) {
    return this.#delivery.discard(message);
  }

  /**
   * Asks for another reply to the last message. The old one is kept in the log; both have the same `reply_to`.
   * @param {string} turn_id the last turn, which has ended
   * @returns {import('./sdk.js').Message} whose `reply` is the new one
   */
  regenerate(turn_id) {
    const wish = new Regeneration(turn_id);
    this.#delivery.add(wish);
    return wish;
  }

  /**
   * Ends a running turn; the text so far is kept. Its reply then settles with the state `stopped`.
   * @param {string} turn_id
   * @returns {Promise<object>} the answer; rejects with `TURN_NOT_FOUND` when it has ended already
   */
  stop(turn_id) {
    return this.#connection.ask({ type: 'stop', turn_id });
  }

  /**
   * Says what a reply was worth. It waits for the connection if there is none, and outlasts the page as a message does.
   * @param {number} seq @param {'up' | 'down'} rating @param {string} [comment]
   * @returns {Promise<object>} when it is stored; rejects when it is refused, or no reply is shown yet
   */
  async rate(seq, rating, comment) {
    if (!this.#session) throw new ChatboxError('NOT_FOUND', 'no session is open');
    const wish = new Rating({ seq, rating }, comment);
    this.#delivery.add(wish);
    return wish.accepted;
  }

  /** Chooses the model that answers from now on. @param {string} model_id */
  selectModel(model_id) {
    return this.#connection.request({ type: 'model_select', ...this.#here(), model_id });
  }

  /** To be called while somebody types; what is sent of it is little. @param {boolean} on */
  typing(on) {
    this.#typing.set(on);
  }

  /**
   * Reads entries before those that were shown.
   * @param {number} [limit] 1 to 200
   * @returns {Promise<{entries: object[], more: boolean}>} frames, in the log's order
   */
  older(limit = 50) {
    this.#older ??= this.#readOlder(limit).finally(() => (this.#older = null));
    return this.#older;
  }

  /**
   * Moves to another session. Messages that wait for this one are sent to this one.
   * @param {{session_id?: string, new?: boolean, reopen?: boolean}} request
   * @returns {Promise<object>} the session, once it is there
   */
  open(request) {
    this.#leave(new ChatboxError('CLOSED', 'another session was opened'));
    this.#emit('reset', {});
    // The id makes `new` and `reopen` harmless to repeat, over the other transport or after a lost answer.
    this.#request = { ...request, id: uuid() };
    if (this.status.state === 'closed') return this.connect();
    this.#connected = new Deferred();
    this.#connection.begin();
    return this.#connected.promise;
  }

  /** The list of this person's sessions, live, with the same token. To be connected, and closed, on its own. */
  watchUser() {
    return new SessionList({ ...this.#options, tokens: this.#tokens });
  }

  /** Closes for good. What is unanswered is given up here; the server finishes it. */
  close() {
    this.#connection.close(null, new ChatboxError('CLOSED', 'the client was closed'));
  }

  #connect() {
    return new Connection(this.#options, this.#tokens, {
      attach: (id) => this.#attach(id),
      adopted: (status) => this.#adopted(status),
      receive: (frame) => this.#receive(frame),
      copy: (frame) => this.#copy(frame),
      lost: () => this.#delivery.lost(),
      freed: () => this.#delivery.flush(),
      busy: () => this.#delivery.sending || this.#replies.running,
      changed: (status) => this.#emit('status', status),
      finished: (err) => this.#ended(err),
      gone: (err) => this.#gone(err),
      failed: (err) => this.#emit('error', { code: err.code ?? 'SERVICE_ERROR', message: err.message, recoverable: true }),
    });
  }

  #here() {
    return this.#session ? { session_id: this.#session.session_id } : {};
  }

  #attach(id) {
    const { history } = this.#options;
    const from = history && this.#position.unknown ? { last: history } : { after_seq: this.#position.afterSeq };
    return { type: 'attach', id, ...from, ...this.#request, ...this.#here(), ...this.#replies.place };
  }

  /** @returns {boolean} whether everything goes on where it was */
  #adopted(status) {
    const another = this.#session !== null && this.#session.session_id !== status.session_id;
    const honoured = !another && status.recovered !== false;
    if (another) {
      this.#leave(new ChatboxError('NOT_FOUND', 'the session is another one now'));
      this.#emit('reset', {});
    } else if (!honoured) {
      this.#snapshot();
    }
    // An empty log begins at its beginning.
    if (status.last_seq === 0) this.#position.reset(false);
    this.#request = {};
    this.#replies.moved();
    this.#onStatus(status);
    this.#connected.resolve(this.#session);
    this.#delivery.attached(status);
    return honoured;
  }

  /** The server shows what it still has, not what is missing here. */
  #snapshot() {
    this.#position.reset(true);
    this.#emit('reset', {});
    this.#replies.retell();
    this.#delivery.show();
  }

  /** @returns {boolean} whether it helps to attach without a session */
  #gone(err) {
    if (!this.#session) return false;
    this.#replies.abandon(err);
    this.#position.reset(Boolean(this.#options.history));
    this.#session = null;
    this.#emit('reset', {});
    this.#delivery.bury(err);
    return true;
  }

  /** The open session was deleted. */
  #vanished(err) {
    if (this.#gone(err)) this.#connection.begin();
  }

  #ended(err) {
    this.#replies.abandon(err);
    this.#delivery.close(err);
    this.#connected.reject(err);
  }

  #leave(err) {
    this.#replies.abandon(err);
    this.#delivery.leave(err);
    this.#position.reset(Boolean(this.#options.history));
    this.#session = null;
  }

  #receive(frame) {
    const elsewhere = frame.session_id && frame.session_id !== this.#session?.session_id;
    switch (frame.type) {
      case 'connection_status':
        this.#connection.answer(frame.re, frame);
        return elsewhere ? undefined : this.#onStatus(frame);
      case 'accepted':
        this.#connection.answer(frame.re, frame);
        return this.#delivery.settle(frame.re, frame);
      case 'pong':
        return this.#connection.answer(frame.re, frame);
      case 'going_away':
        return this.#connection.drain(frame.retry_after);
      case 'error':
        return this.#onError(frame);
      default:
        // A message that waited for another session has its answer there.
        return elsewhere ? undefined : this.#onEvent(frame);
    }
  }

  /** @returns {boolean} whether the copy of a frame was taken */
  #copy(frame) {
    const here = frame.type === 'accepted' || frame.session_id === this.#session?.session_id;
    const [position, replies, awaits] = [this.#position, this.#replies, (id) => this.#delivery.awaits(id)];
    if (!here || !comesNext(frame, { position, replies, awaits })) return false;
    this.#receive(frame);
    return true;
  }

  #onEvent(frame) {
    switch (frame.type) {
      case 'loading':
        return this.#replies.loading(frame);
      case 'ai_response':
        return this.#replies.response(frame);
      case 'user_message':
      case 'voice_message':
      case 'file_upload':
      case 'admin_join':
      case 'admin_leave':
      case 'tombstone':
        return this.#onEntry(frame);
      case 'session_update':
        return this.#onUpdate(frame);
      case 'typing_indicator':
        return this.#emit('typing', { state: frame.metadata?.state, sender: frame.sender, session_id: frame.session_id });
      default:
        return undefined;
    }
  }

  #onStatus(frame) {
    this.#session = { ...this.#session, ...frame };
    if (frame.limits) this.#connection.limit(frame.limits);
    this.#emit('session', this.#session);
  }

  #onUpdate(frame) {
    if (frame.deleted) {
      this.#emit('update', frame);
      this.#vanished(new ChatboxError('NOT_FOUND', 'the session was deleted'));
      return;
    }
    this.#onStatus(frame);
    this.#emit('update', frame);
  }

  #onEntry(frame) {
    const own = frame.id && this.#delivery.settle(frame.id, frame);
    if (!this.#position.hold(frame.seq) || own) return;
    this.#emit('entry', frame);
  }

  #onError({ re, turn_id, error }) {
    const turn = this.#replies.find(turn_id);
    if (turn) turn.error = error;
    const err = new ChatboxError(error.code, error.message, { retry_after: error.retry_after });
    if (this.#connection.answer(re, err)) return;
    if (!turn_id && this.#delivery.refuse(re, err)) return;
    this.#emit('error', { ...error, re, turn_id });
  }

  async #readOlder(limit) {
    if (!this.#session || !this.hasOlder) return { entries: [], more: false };
    const { session_id } = this.#session;
    const before_seq = this.#position.oldest;
    const page = await this.#http.get(`/sessions/${encodeURIComponent(session_id)}`, { before_seq, limit });
    if (this.#session?.session_id !== session_id) return { entries: [], more: false };
    if (page.entries.length > 0) this.#position.reach(page.entries[0].seq);
    return { entries: await Promise.all(page.entries.map(proved)), more: page.more };
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** An entry of the log; a reply in the shape of `reply`'s detail, too. */
async function proved(frame) {
  if (frame.type !== 'ai_response') return frame;
  const turn = new Turn(frame.turn_id);
  turn.replace(frame.content);
  return { ...frame, text: frame.content, error: null, verified: await turn.matches(frame) };
}
