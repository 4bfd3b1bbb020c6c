/**
 * The replies of one session, from their first piece to the proof of their text. Knows frames, no connection.
 */

import { Recent, Turn } from './sdk-log.js';

/** How often a text that does not match its hash is read again before it is given out with `verified: false`. */
const REREADS_MAX = 2;

export class Replies {
  /** @type {Map<string, Turn>} */
  #turns = new Map();
  #finished = new Recent();
  #rereads = new Map();
  #position;
  #owner;

  /**
   * @param {import('./sdk-log.js').Position} position
   * @param {{emit: (name: string, detail: object) => void, expect: () => void, reread: () => void, ended: () => void}} owner
   */
  constructor(position, owner) {
    this.#position = position;
    this.#owner = owner;
  }

  /** Whether a reply has not ended. */
  get running() {
    return this.#turns.size > 0;
  }

  /** Where the running text ends here, as `attach` names it. */
  get place() {
    const running = [...this.#turns.values()].find((turn) => !turn.ended && turn.length > 0);
    return running && { turn_id: running.id, offset: running.length };
  }

  /** A turn that has not ended, if it is known. @param {string} id @returns {Turn | undefined} */
  find(id) {
    return this.#turns.get(id);
  }

  /** Whether a reply that has not ended has this place in the log. @param {number} seq */
  placed(seq) {
    return [...this.#turns.values()].some((turn) => turn.seq === seq);
  }

  /** Whether a turn has ended, a short while ago at most. @param {string} id */
  over(id) {
    return this.#finished.has(id);
  }

  /** A turn that will be heard of. @param {string} id @returns {Turn | null} `null` when it is over already */
  expect(id) {
    return this.#finished.has(id) ? null : this.#turn(id);
  }

  /** From now on all pieces come on the watch. */
  moved() {
    for (const turn of this.#turns.values()) turn.elsewhere = true;
  }

  /** Tells what is held of unfinished replies once more, after a `reset`; finished ones come again by themselves. */
  retell() {
    this.#finished = new Recent();
    for (const turn of this.#turns.values()) {
      if (turn.ended) continue;
      this.#owner.emit('turn', turn);
      for (const part of turn.parts()) this.#owner.emit('piece', { turn_id: turn.id, seq: turn.seq, ...part });
    }
  }

  /** Nothing more will be heard of them. @param {Error} err */
  abandon(err) {
    for (const turn of this.#turns.values()) turn.abandon(err);
    this.#turns.clear();
    this.#finished = new Recent();
    this.#rereads.clear();
  }

  /** Takes a `loading` frame. */
  loading({ turn_id, seq }) {
    const turn = this.expect(turn_id);
    if (!turn) return;
    turn.seq = seq;
    this.#owner.emit('turn', turn);
  }

  /** Takes an `ai_response` frame. */
  response(frame) {
    if (frame.metadata?.done === 'true') this.#last(frame);
    else this.#piece(frame);
  }

  #turn(id) {
    let turn = this.#turns.get(id);
    if (!turn) {
      turn = new Turn(id);
      this.#turns.set(id, turn);
      this.#owner.expect();
    }
    return turn;
  }

  #piece({ turn_id, offset, content, model_id }) {
    const turn = this.expect(turn_id);
    if (!turn || turn.ended) return;
    const at = turn.length;
    const fresh = turn.add(offset, content);
    if (fresh === null) this.#owner.reread();
    if (!fresh) return;
    turn.writes(at, model_id);
    this.#owner.emit('piece', { turn_id, seq: turn.seq, offset: at, content: fresh, model_id: turn.model_id });
  }

  async #last(frame) {
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
      this.#owner.reread();
      return;
    }
    this.#rereads.delete(turn.id);
    this.#turns.delete(turn.id);
    this.#finished.add(turn.id);
    this.#position.hold(frame.seq);
    const { seq, reply_to, state, html, usage, rating, timestamp, sha256 } = frame;
    const reply = { turn_id: turn.id, seq, reply_to, state, text: turn.text, html, usage, rating, timestamp, sha256, verified };
    Object.assign(reply, { length: turn.length, model_id: frame.model_id ?? turn.model_id, error: turn.error });
    reply.segments = frame.segments ?? [];
    turn.finish(reply);
    this.#owner.emit('reply', reply);
    this.#owner.ended();
  }
}
