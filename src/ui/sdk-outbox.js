/**
 * Messages on their way: in order, each with the id that makes a second try harmless. Knows no transport.
 */

import { ChatboxError, Deferred, uuid } from './sdk-wire.js';

/** More unsent messages than a person types while offline. */
const WAITING_MAX = 100;

/** One message of this client, from `send` to the end of its reply. */
export class Message {
  #accepted = new Deferred();
  #turn = new Deferred();

  constructor(content, id) {
    /** chosen here; the server applies it once */
    this.id = id;
    /** the text exactly as typed */
    this.content = content;
    /** the session that it is meant for, once it is known */
    this.session_id = null;
    /** `queued`, `sent`, `accepted` or `failed` */
    this.state = 'queued';
    /** its place in the log, once it is stored */
    this.seq = null;
    /** the turn that answers it, once it is stored */
    this.turn_id = null;
    /** why it failed, where it did */
    this.error = null;
    /** when it was typed */
    this.timestamp = new Date().toISOString();
  }

  /** Resolves when the message is stored: `{seq, turn_id, session_id, duplicate}`. Rejects when it is refused. */
  get accepted() {
    return this.#accepted.promise;
  }

  /** Resolves with the finished reply, or `null` where no model answers (a person does). */
  get reply() {
    return this.#turn.promise.then((turn) => turn?.reply ?? null);
  }

  /** The reply's text as it grows. Nothing where no model answers. */
  get pieces() {
    const turn = this.#turn.promise;
    return (async function* pieces() {
      const running = await turn;
      if (running) yield* running.pieces();
    })();
  }

  /** @param {object} answer the `accepted` frame, or the stored entry @param {import('./sdk-log.js').Turn | null} turn */
  accept(answer, turn) {
    this.state = 'accepted';
    this.error = null;
    this.seq = answer.seq ?? null;
    this.turn_id = answer.turn_id ?? null;
    this.#accepted.resolve({
      seq: this.seq,
      turn_id: this.turn_id,
      session_id: answer.session_id,
      duplicate: answer.duplicate === true,
    });
    this.#turn.resolve(turn);
  }

  /** @param {ChatboxError} err */
  fail(err) {
    this.state = 'failed';
    this.error = err;
    this.#accepted.reject(err);
    this.#turn.reject(err);
  }

  /** Makes a refused message ready to be sent once more, with promises of its own. */
  renew() {
    this.#accepted = new Deferred();
    this.#turn = new Deferred();
    this.state = 'queued';
    this.error = null;
  }
}

/** The messages that are not stored yet, in the order they were typed. */
export class Outbox {
  /** @type {Map<string, Message>} */
  #messages = new Map();

  get size() {
    return this.#messages.size;
  }

  /** @param {string} content @param {string} [id] @returns {Message} */
  add(content, id = uuid()) {
    const message = new Message(content, id);
    this.#insert(message);
    return message;
  }

  /** Takes a refused message back in. @param {Message} message */
  retry(message) {
    message.renew();
    this.#insert(message);
  }

  /** @param {string} id @returns {Message | undefined} */
  get(id) {
    return this.#messages.get(id);
  }

  /** Whether a message is on its way right now. */
  get sending() {
    return this.first?.state === 'sent';
  }

  /**
   * The next message to send. A message is sent when the one before it is stored: two streams may overtake each
   * other, messages must not.
   * @returns {Message | undefined}
   */
  get next() {
    return this.first?.state === 'queued' ? this.first : undefined;
  }

  get first() {
    return this.#messages.values().next().value;
  }

  /** Drops a message that is stored or refused. @param {string} id @returns {Message | undefined} */
  take(id) {
    const message = this.#messages.get(id);
    this.#messages.delete(id);
    return message;
  }

  /** The connection is gone: what was sent and not answered is sent again, under the same id. */
  *unsend() {
    for (const message of this.#messages.values()) {
      if (message.state !== 'sent') continue;
      message.state = 'queued';
      yield message;
    }
  }

  /** Takes everything out. @returns {Message[]} */
  clear() {
    const messages = [...this.#messages.values()];
    this.#messages.clear();
    return messages;
  }

  #insert(message) {
    if (this.#messages.size >= WAITING_MAX) {
      throw new ChatboxError('TOO_MANY_REQUESTS', `${WAITING_MAX} messages wait to be sent already`);
    }
    this.#messages.set(message.id, message);
  }
}
