/**
 * Brings messages to the server, once and in order: over lost connections, reloads and closed tabs. Each goes to the
 * session and comes from the user that it was typed for, whatever is open by now.
 */

import { ChatboxError, within } from './sdk-wire.js';
import { Message, Outbox, Rating } from './sdk-outbox.js';
import { Recent, Turn } from './sdk-log.js';

/** A database that takes longer must not hold up what is typed now. */
const RESTORE_MS = 1500;

/** A message that may be sent again within so long goes by itself, and those behind it wait for that. */
const PATIENCE_MS = 30_000;

export class Delivery {
  #outbox = new Outbox();
  #seen = new Recent();
  #session_id = null;
  #user_id = null;
  #ready = false;
  #paused = false;
  #closure = null;
  #parts;

  /**
   * @param {object} parts
   * @param {import('./sdk-connection.js').Connection} parts.connection
   * @param {import('./sdk-replies.js').Replies} parts.replies
   * @param {import('./sdk-log.js').Position} parts.position
   * @param {import('./sdk-outbox-store.js').OutboxStore | null} parts.store
   * @param {() => string | null} parts.user who is signed in, before the server has said so
   * @param {(message: Message) => void} parts.tell
   * @param {(rating: Rating) => void} parts.rated
   * @param {(err: ChatboxError) => void} parts.gone the open session does not exist any more
   */
  constructor(parts) {
    this.#parts = parts;
  }

  /** Whether a message is on its way right now. */
  get sending() {
    return this.#outbox.sending;
  }

  /** Whether a message is on its way and not answered. @param {string} id */
  awaits(id) {
    return this.#outbox.get(id)?.state === 'sent';
  }

  /** @param {Message} message */
  add(message) {
    message.session_id ??= this.#session_id;
    message.user_id ??= this.#user_id ?? this.#parts.user();
    this.#outbox.add(message);
    this.#keep(message);
    this.#tell(message);
    this.flush();
  }

  /** Sends a refused message once more, under the same id. @param {Message} message */
  retry(message) {
    message.renew();
    this.add(message);
  }

  /** Takes a message back that is not on its way. @param {Message} message @returns {boolean} */
  discard(message) {
    if (message.state !== 'queued' && message.state !== 'failed') return false;
    if (!this.#outbox.take(message.id)) return false;
    this.#parts.store?.remove(message.id);
    message.fail(new ChatboxError('CLOSED', 'the message was discarded'));
    return true;
  }

  /** The server has said which session this is, and whose. */
  attached({ session_id, user_id }) {
    const another = this.#session_id !== session_id;
    if (this.#user_id !== user_id) this.#ready = false;
    this.#session_id = session_id;
    this.#user_id = user_id;
    for (const message of this.#outbox) this.#claim(message);
    if (another) this.show();
    this.restore();
  }

  /** Tells of everything that waits for the open session. */
  show() {
    for (const message of this.#outbox) this.#tell(message);
  }

  /** Another session is about to be opened. What waits for this one is sent to this one all the same. */
  leave(err) {
    this.#session_id = null;
    this.#dropWishes(err);
  }

  /** The open session exists no more. What waited for it waits for somebody who says where it shall go. */
  bury(err) {
    const dead = this.#session_id;
    const reason = new ChatboxError(err.code, 'its conversation is not there any more');
    this.leave(err);
    for (const message of this.#outbox) {
      if (message.session_id !== dead) continue;
      if (!message.written) {
        this.#refuse(message, reason);
        continue;
      }
      // It may go to another session, once somebody says so.
      message.session_id = null;
      this.#reject(message, message.error ?? reason);
    }
  }

  /** The connection is gone. */
  lost() {
    for (const message of this.#outbox.unsend()) this.#tell(message);
  }

  /** Nothing is sent any more until `reopen`. */
  close(err) {
    this.#closure = err;
    this.#dropWishes(err);
    for (const message of this.#outbox) {
      if (message.state === 'failed') continue;
      message.fail(err);
      this.#tell(message);
    }
    this.#parts.store?.close();
  }

  reopen() {
    this.#ready = false;
    this.#parts.store?.open();
    for (const message of this.#outbox) {
      if (!this.#closure || message.error !== this.#closure) continue;
      message.renew();
      this.#tell(message);
    }
  }

  /** Takes up what an earlier page or a closed tab has left, then sends. */
  async restore() {
    const { store } = this.#parts;
    const user_id = this.#user_id;
    if (store && user_id) {
      // What comes late is taken all the same, when it comes.
      const taken = store.take(user_id, this.#outbox.space).then((rows) => this.#revive(rows, user_id));
      await within(taken, RESTORE_MS, 'the outbox').catch(() => {});
      if (this.#user_id !== user_id) return;
    }
    this.#ready = true;
    this.flush();
  }

  async flush() {
    const { connection, replies } = this.#parts;
    const message = this.#ready && !this.#paused && this.#session_id && connection.room && this.#outbox.next;
    if (!message) return;
    message.state = 'sent';
    this.#tell(message);
    const over = await connection.exchange(message.frame);
    if (!over) return;
    // An exchange that told less than it should is made good by attaching again.
    const unanswered = this.#outbox.get(message.id)?.state === 'sent';
    const turn = replies.find(message.turn_id);
    if (unanswered || (turn && !turn.ended && !turn.elsewhere)) connection.resume();
    else this.flush();
  }

  /** A message is stored: by its answer, or by coming back in the log. @returns {boolean} whether it was one of ours */
  settle(id, stored) {
    this.#seen.add(id);
    const message = this.#outbox.take(id);
    if (!message) return false;
    this.#parts.store?.remove(id);
    message.accept(stored, this.#turnOf(message, stored));
    this.#tell(message);
    this.flush();
    return true;
  }

  /** A request was refused. @returns {boolean} whether only whoever made it is to hear of it */
  refuse(id, err) {
    const message = this.#outbox.get(id);
    if (!message) return false;
    const here = message.session_id === this.#session_id;
    if (err.code === 'GOING_AWAY') {
      message.state = 'queued';
      this.#tell(message);
      this.#parts.connection.drain(err.retry_after);
    } else if (err.code === 'TOO_MANY_REQUESTS' && message.lasting && err.retry_after <= PATIENCE_MS) {
      message.state = 'queued';
      this.#tell(message);
      this.#pause(err.retry_after);
    } else if (err.code === 'NOT_FOUND' && here && message.written) {
      this.#parts.gone(err);
    } else if (message.written) {
      if (err.code === 'NOT_FOUND') message.session_id = this.#session_id;
      this.#reject(message, err);
    } else {
      this.#refuse(message, err);
    }
    this.flush();
    return !message.written;
  }

  #pause(ms) {
    this.#paused = true;
    setTimeout(() => {
      this.#paused = false;
      this.flush();
    }, ms);
  }

  #dropWishes(err) {
    for (const message of this.#outbox) {
      if (!message.lasting) this.#drop(message, err);
    }
  }

  /** Never sends one user's message as another's. */
  #claim(message) {
    if (message.user_id && message.user_id !== this.#user_id) {
      this.#drop(message, new ChatboxError('CLOSED', 'somebody else has signed in'));
      return;
    }
    const known = message.user_id && message.session_id;
    message.user_id = this.#user_id;
    // Where a refused one shall go now, somebody has to say.
    if (message.state !== 'failed') message.session_id ??= this.#session_id;
    if (!known) this.#keep(message);
  }

  /** Takes a message out of this client. What is kept of it waits for its user. */
  #drop(message, err) {
    this.#outbox.take(message.id);
    message.fail(err);
    this.#tell(message);
  }

  /** Forgets a wish that is refused. */
  #refuse(message, err) {
    if (message.lasting) this.#parts.store?.remove(message.id);
    this.#drop(message, err);
  }

  /** Keeps a refused message until somebody has dealt with it. */
  #reject(message, err) {
    message.fail(err);
    this.#keep(message);
    this.#tell(message);
  }

  #revive(rows, user_id) {
    if (this.#user_id !== user_id) return;
    const messages = [];
    for (const row of rows) {
      if (this.#outbox.get(row.id)) continue;
      if (this.#seen.has(row.id)) {
        this.#parts.store.remove(row.id);
        continue;
      }
      const message = row.rates ? new Rating(row.rates, row.content, row.id) : new Message(row.content, row.id);
      const session_id = row.session_id ?? (row.error ? null : this.#session_id);
      Object.assign(message, { user_id, timestamp: row.timestamp, session_id });
      if (row.error) message.fail(new ChatboxError(row.error.code, row.error.message));
      messages.push(message);
    }
    this.#outbox.restore(messages);
    for (const message of messages) this.#tell(message);
    this.flush();
  }

  #turnOf(message, stored) {
    const { replies, position } = this.#parts;
    if (message.session_id !== this.#session_id) {
      if (!stored.turn_id) return null;
      const turn = new Turn(stored.turn_id);
      turn.abandon(new ChatboxError('CLOSED', 'another session was opened'));
      return turn;
    }
    // The place of a regenerated reply is no entry that is held.
    if (stored.seq && message.written) position.note(stored.seq);
    const turn = stored.turn_id ? replies.expect(stored.turn_id) : null;
    if (!turn) return null;
    turn.replaces = message.replaces ?? null;
    // Only the exchange that made the turn brings its pieces; else the watch does.
    if (stored.duplicate || stored.type !== 'accepted') turn.elsewhere = true;
    return turn;
  }

  #keep(message) {
    if (message.lasting && message.user_id) this.#parts.store?.put(message);
  }

  #tell(message) {
    const here = message.session_id === null || message.session_id === this.#session_id;
    if (!here || !message.lasting) return;
    if (message.written) this.#parts.tell(message);
    else this.#tellRating(message);
  }

  /** Says nothing of one that is on its way while a later one follows it. */
  #tellRating(rating) {
    const last = [...this.#outbox].findLast((other) => rating.meets(other)) ?? rating;
    if (last === rating || rating.state === 'accepted') this.#parts.rated(rating);
  }
}
