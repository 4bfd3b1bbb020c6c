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
 * that streams over one transport goes on over the other where it was, byte for byte, and is checked at its end.
 *
 * Events (`CustomEvent`, all in `detail`): `status`, `session`, `reset`, `entry`, `message`, `turn`, `piece`, `reply`,
 * `error`. Their shapes are in `sdk.d.ts`.
 */

import { ChatboxError, Deferred, uuid } from './sdk-wire.js';
import { Connection } from './sdk-connection.js';
import { Outbox } from './sdk-outbox.js';
import { Position, Recent, Turn } from './sdk-log.js';

export { ChatboxError };

/** How often a text that does not match its hash is read again before it is given out with `verified: false`. */
const REREADS_MAX = 2;

/** A conversation with chatbox. One instance holds one session at a time. */
export class Chatbox extends EventTarget {
  #connection;
  #connected = new Deferred();
  #session = null;
  #request;
  #position = new Position();
  #outbox = new Outbox();
  /** @type {Map<string, Turn>} */
  #turns = new Map();
  #finished = new Recent();
  #rereads = new Map();

  /** @param {import('./sdk.js').Options} [options] */
  constructor(options = {}) {
    super();
    const base = String(options.base ?? new URL('.', import.meta.url)).replace(/\/+$/, '');
    const kept = options.storage === undefined ? browserStorage() : options.storage;
    this.#request = options.session_id ? { session_id: options.session_id } : {};
    this.#connection = new Connection(
      { ...options, base, storage: kept },
      {
        attach: (id) => this.#attach(id),
        adopted: (status) => this.#adopted(status),
        receive: (frame) => this.#receive(frame),
        lost: () => this.#lost(),
        busy: () => this.#outbox.sending || this.#turns.size > 0,
        changed: (status) => this.#emit('status', status),
        finished: (err) => this.#ended(err),
        gone: (err) => this.#gone(err),
        failed: (err) => this.#emit('error', { code: err.code ?? 'SERVICE_ERROR', message: err.message, recoverable: true }),
      },
    );
  }

  /** What is to be shown of the connection: `{state, transport, reason, retry_at}`. */
  get status() {
    return this.#connection.status;
  }

  /** What the server said last about the session: its id, models, limits. `null` before the first connection. */
  get session() {
    return this.#session;
  }

  /**
   * Connects, and stays connected until `close`.
   * @returns {Promise<object>} the session, once it is there; rejects when there is no point in trying on
   */
  connect() {
    if (this.#connected.settled && this.status.state === 'closed') this.#connected = new Deferred();
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
    const message = this.#outbox.add(content, id);
    this.#emit('message', message);
    this.#flush();
    return message;
  }

  /** Sends a refused message once more, under the same id: the server applies it once. */
  retry(message) {
    this.#outbox.retry(message);
    this.#emit('message', message);
    this.#flush();
    return message;
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
   * Moves to another session. Messages that are not stored yet fail with `CLOSED`.
   * @param {{session_id?: string, new?: boolean, reopen?: boolean}} request
   * @returns {Promise<object>} the session, once it is there
   */
  open(request) {
    this.#forget(new ChatboxError('CLOSED', 'another session was opened'));
    // The id makes `new` and `reopen` harmless to repeat, over the other transport or after a lost answer.
    this.#request = { ...request, id: uuid() };
    this.#session = null;
    this.#emit('reset', {});
    this.#connected = new Deferred();
    if (this.status.state === 'closed') this.#connection.connect();
    else this.#connection.resume();
    return this.#connected.promise;
  }

  /** Closes for good. What is unanswered is given up here; the server finishes it. */
  close() {
    this.#connection.close(null, new ChatboxError('CLOSED', 'the client was closed'));
  }

  #attach(id) {
    const frame = { type: 'attach', id, after_seq: this.#position.afterSeq, ...this.#request };
    if (this.#session) frame.session_id = this.#session.session_id;
    const running = [...this.#turns.values()].find((turn) => !turn.ended && turn.length > 0);
    if (running) Object.assign(frame, { turn_id: running.id, offset: running.length });
    return frame;
  }

  #adopted(status) {
    if (this.#session && this.#session.session_id !== status.session_id) {
      this.#forget(new ChatboxError('NOT_FOUND', 'the session is another one now'));
      this.#session = null;
      this.#emit('reset', {});
    } else if (status.recovered === false) {
      this.#snapshot();
    }
    this.#request = {};
    for (const turn of this.#turns.values()) turn.elsewhere = true;
    this.#onStatus(status);
    this.#connected.resolve(this.#session);
    this.#flush();
  }

  /** The server shows what it still has, not what is missing here. */
  #snapshot() {
    this.#position.reset(true);
    this.#emit('reset', {});
    for (const turn of this.#turns.values()) {
      if (turn.ended) continue;
      this.#emit('turn', turn);
      this.#emit('piece', { turn_id: turn.id, seq: turn.seq, offset: 0, content: turn.text });
    }
  }

  /** What was sent and not answered is sent again, under the same id. */
  #lost() {
    for (const message of this.#outbox.unsend()) this.#emit('message', message);
  }

  /** @returns {boolean} whether it helps to attach without a session */
  #gone(err) {
    if (!this.#session) return false;
    this.#forget(err);
    this.#session = null;
    this.#emit('reset', {});
    return true;
  }

  #ended(err) {
    this.#forget(err);
    this.#connected.reject(err);
  }

  #forget(err) {
    for (const turn of this.#turns.values()) turn.abandon(err);
    this.#turns.clear();
    for (const message of this.#outbox.clear()) {
      message.fail(err);
      this.#emit('message', message);
    }
    this.#position.reset(false);
    this.#rereads.clear();
  }

  async #flush() {
    const message = this.#outbox.next;
    if (!message || !this.#session || !this.#connection.room) return;
    const { id, content } = message;
    const { session_id } = this.#session;
    Object.assign(message, { state: 'sent', session_id });
    this.#emit('message', message);
    const over = await this.#connection.exchange({ type: 'user_message', id, session_id, content });
    if (!over) return;
    // An exchange that told less than it should is made good by attaching again.
    const unanswered = this.#outbox.get(id)?.state === 'sent';
    const turn = this.#turns.get(message.turn_id);
    if (unanswered || (turn && !turn.ended && !turn.elsewhere)) this.#connection.resume();
    else this.#flush();
  }

  #receive(frame) {
    switch (frame.type) {
      case 'connection_status':
        this.#connection.answer(frame.re, frame);
        return this.#onStatus(frame);
      case 'accepted':
        this.#connection.answer(frame.re, frame);
        return this.#settle(frame.re, frame);
      case 'loading':
        return this.#onLoading(frame);
      case 'ai_response':
        return frame.metadata?.done === 'true' ? this.#onLast(frame) : this.#onPiece(frame);
      case 'user_message':
      case 'voice_message':
      case 'file_upload':
      case 'admin_join':
      case 'admin_leave':
      case 'tombstone':
        return this.#onEntry(frame);
      case 'session_update':
        return this.#onStatus(frame);
      case 'pong':
        return this.#connection.answer(frame.re, frame);
      case 'going_away':
        return this.#connection.drain(frame.retry_after);
      case 'error':
        return this.#onError(frame);
      default:
        return undefined;
    }
  }

  #onStatus(frame) {
    this.#session = { ...this.#session, ...frame };
    if (frame.limits) this.#connection.limit(frame.limits);
    this.#emit('session', this.#session);
  }

  /** A message is stored: by its answer, or by coming back in the log. */
  #settle(id, stored) {
    const message = this.#outbox.take(id);
    if (!message) return false;
    if (stored.seq) this.#position.note(stored.seq);
    const turn = stored.turn_id && !this.#finished.has(stored.turn_id) ? this.#turn(stored.turn_id) : null;
    // Only the exchange that made the turn brings its pieces; else the watch does.
    if (turn && (stored.duplicate || stored.type !== 'accepted')) turn.elsewhere = true;
    message.accept(stored, turn);
    this.#emit('message', message);
    this.#flush();
    return true;
  }

  #onEntry(frame) {
    const own = frame.id && this.#settle(frame.id, frame);
    if (!this.#position.hold(frame.seq) || own) return;
    this.#emit('entry', frame);
  }

  #turn(id) {
    let turn = this.#turns.get(id);
    if (!turn) {
      turn = new Turn(id);
      this.#turns.set(id, turn);
      this.#connection.expect();
    }
    return turn;
  }

  #onLoading({ turn_id, seq }) {
    if (this.#finished.has(turn_id)) return;
    const turn = this.#turn(turn_id);
    turn.seq = seq;
    this.#emit('turn', turn);
  }

  #onPiece({ turn_id, offset, content, model_id }) {
    if (this.#finished.has(turn_id)) return;
    const turn = this.#turn(turn_id);
    if (turn.ended) return;
    turn.model_id ??= model_id ?? null;
    const at = turn.length;
    const fresh = turn.add(offset, content);
    if (fresh === null) this.#connection.resume();
    else if (fresh) this.#emit('piece', { turn_id, seq: turn.seq, offset: at, content: fresh });
  }

  async #onLast(frame) {
    if (this.#finished.has(frame.turn_id) || this.#position.holds(frame.seq)) return;
    const turn = this.#turn(frame.turn_id);
    if (turn.ended) return;
    turn.ended = true;
    turn.seq = frame.seq;
    if (frame.metadata.streaming === 'false' && frame.offset === 0) turn.replace(frame.content);
    else if (frame.content) turn.add(frame.offset, frame.content);
    turn.truncate(frame.length);
    const verified = await turn.matches(frame);
    if (this.#turns.get(turn.id) === turn) this.#conclude(turn, frame, verified);
  }

  /** Takes a finished reply, or reads it again when its text is not what the server has. */
  #conclude(turn, frame, verified) {
    const rereads = this.#rereads.get(turn.id) ?? 0;
    if (!verified && rereads < REREADS_MAX) {
      this.#rereads.set(turn.id, rereads + 1);
      turn.ended = false;
      turn.replace('');
      this.#connection.resume();
      return;
    }
    this.#rereads.delete(turn.id);
    this.#turns.delete(turn.id);
    this.#finished.add(turn.id);
    this.#position.hold(frame.seq);
    const { seq, reply_to, state, html, usage, timestamp, sha256 } = frame;
    const reply = { turn_id: turn.id, seq, reply_to, state, text: turn.text, html, usage, timestamp, sha256, verified };
    Object.assign(reply, { length: turn.length, model_id: frame.model_id ?? turn.model_id, error: turn.error });
    turn.finish(reply);
    this.#emit('reply', reply);
  }

  #onError({ re, turn_id, error }) {
    const turn = this.#turns.get(turn_id);
    if (turn) turn.error = error;
    const err = new ChatboxError(error.code, error.message, { retry_after: error.retry_after });
    if (this.#connection.answer(re, err)) return;
    if (!turn_id && this.#outbox.get(re)) this.#refuse(this.#outbox.get(re), err);
    this.#emit('error', { ...error, re, turn_id });
    this.#flush();
  }

  #refuse(message, err) {
    if (err.code === 'GOING_AWAY') {
      message.state = 'queued';
      this.#connection.drain(err.retry_after);
    } else {
      this.#outbox.take(message.id);
      message.fail(err);
    }
    this.#emit('message', message);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function browserStorage() {
  try {
    return globalThis.localStorage ?? null;
  } catch {
    // The browser blocks storage for this page.
    return null;
  }
}
