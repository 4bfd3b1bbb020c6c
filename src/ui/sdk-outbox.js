/**
 * Messages on their way: in order, each with the id that makes a second try harmless. Knows no transport, and not
 * where they are kept.
 */

import { ChatboxError, Deferred, uuid } from './sdk-wire.js';

/** More unsent messages than a person types while offline. */
const WAITING_MAX = 100;

let made = 0;

/** One message of this client, from `send` to the end of its reply. */
export class Message {
  #accepted = new Deferred();
  #turn = new Deferred();

  /** @param {string} content @param {string} [id] */
  constructor(content, id = uuid()) {
    /** chosen here; the server applies it once */
    this.id = id;
    /** the text exactly as typed */
    this.content = content;
    /** the session that it is meant for, once it is known */
    this.session_id = null;
    /** whose message it is, once it is known */
    this.user_id = null;
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
    made += 1;
    /** tells apart what was typed within one millisecond */
    this.place = made;
  }

  /** Whether it must not get lost with its page. */
  get lasting() {
    return true;
  }

  /** Whether it is text of a person, which stays until somebody has dealt with it, also when it is refused. */
  get written() {
    return true;
  }

  /** What is sent. */
  get frame() {
    const { id, session_id, content } = this;
    return { type: 'user_message', id, session_id, content };
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

/** A wish for another reply to the last message. It waits its turn among the messages. */
export class Regeneration extends Message {
  /** @param {string} turn_id the turn whose reply is not wanted */
  constructor(turn_id) {
    super('');
    this.replaces = turn_id;
  }

  get lasting() {
    return false;
  }

  get written() {
    return false;
  }

  get frame() {
    const { id, session_id, replaces } = this;
    return { type: 'regenerate', id, session_id, turn_id: replaces };
  }
}

/** What a person says that a reply is worth. The last one counts, however often it is sent. */
export class Rating extends Message {
  /** @param {{seq: number, rating: 'up' | 'down'}} rates @param {string} [comment] @param {string} [id] */
  constructor(rates, comment = '', id = undefined) {
    super(comment, id);
    this.rates = rates;
  }

  get written() {
    return false;
  }

  get frame() {
    const { id, session_id, content } = this;
    const { seq, rating } = this.rates;
    return { type: 'feedback', id, session_id, seq, metadata: { rating }, ...(content && { content }) };
  }

  /** Whether another rating is of the same reply. @param {Message} other */
  meets({ rates, session_id }) {
    return rates?.seq === this.rates.seq && session_id === this.session_id;
  }
}

/** The messages that are not stored yet, in the order they were typed. Refused ones stay until they are dealt with. */
export class Outbox {
  /** @type {Map<string, Message>} */
  #messages = new Map();

  /** How many more it takes. */
  get space() {
    return WAITING_MAX - this.#messages.size;
  }

  [Symbol.iterator]() {
    return [...this.#messages.values()].values();
  }

  /** @param {Message} message @returns {Message} */
  add(message) {
    if (this.space <= 0 && !this.#messages.has(message.id)) {
      throw new ChatboxError('TOO_MANY_REQUESTS', `${WAITING_MAX} messages wait to be sent, or were refused, already`);
    }
    this.#messages.set(message.id, message);
    return message;
  }

  /** Puts messages of an earlier page before those of this one. @param {Message[]} messages */
  restore(messages) {
    const all = [...messages, ...this.#messages.values()];
    this.#messages = new Map(all.map((message) => [message.id, message]));
  }

  /** @param {string} id @returns {Message | undefined} */
  get(id) {
    return this.#messages.get(id);
  }

  /** Whether a message is on its way right now. */
  get sending() {
    return [...this.#messages.values()].some(({ state }) => state === 'sent');
  }

  /**
   * The next message to send. A message is sent when the one before it is stored: two streams may overtake each
   * other, messages must not.
   * @returns {Message | undefined}
   */
  get next() {
    return this.sending ? undefined : [...this.#messages.values()].find(({ state }) => state === 'queued');
  }

  /** Drops a message. @param {string} id @returns {Message | undefined} */
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
}
