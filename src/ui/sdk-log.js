/**
 * What a client holds of a session: the text of unfinished turns by byte offset, and how far its log goes.
 * Pure bookkeeping: no transport, no page.
 */

import { Deferred, hexOf } from './sdk-wire.js';

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** How many `seq` numbers beyond the contiguous part are remembered. More means a fault of the server's. */
const AHEAD_MAX = 4096;

/** How many finished turns are remembered, to drop what a second connection tells of them once more. */
const FINISHED_MAX = 256;

/** Which entries the client holds in their final state. */
export class Position {
  /** the largest n for which every entry up to n is held; `null` until a snapshot's first entry says where it begins */
  #contiguous = 0;
  #oldest = Infinity;
  #ahead = new Set();

  /** What an `attach` names as `after_seq`. */
  get afterSeq() {
    return this.#contiguous ?? 0;
  }

  /** Nothing has told yet where what will come begins. */
  get unknown() {
    return this.#contiguous === null;
  }

  /** The first entry that was shown; `Infinity` before there is one. */
  get oldest() {
    return this.#oldest;
  }

  /**
   * The first place that is neither held nor taken by what is still written; `null` while nothing has told where to
   * begin. @param {(seq: number) => boolean} taken
   */
  next(taken) {
    if (this.unknown) return null;
    let seq = this.afterSeq + 1;
    while (this.holds(seq) || taken(seq)) seq += 1;
    return seq;
  }

  /** Notes that entries from here on were read beside the watch. @param {number} seq */
  reach(seq) {
    this.#oldest = Math.min(this.#oldest, seq);
  }

  /** @param {number} seq @returns {boolean} */
  holds(seq) {
    return (this.#contiguous !== null && seq <= this.#contiguous) || this.#ahead.has(seq);
  }

  /** Notes that an entry is held. @param {number} seq @returns {boolean} false: it had been before */
  hold(seq) {
    this.reach(seq);
    if (this.#contiguous === null) this.#contiguous = seq - 1;
    if (this.holds(seq)) return false;
    this.#ahead.add(seq);
    while (this.#ahead.delete(this.#contiguous + 1)) this.#contiguous += 1;
    if (this.#ahead.size > AHEAD_MAX) this.#ahead.delete(this.#ahead.values().next().value);
    return true;
  }

  /** Notes that an entry is held that came beside the log, so it does not tell where a snapshot begins. */
  note(seq) {
    if (this.#contiguous === null) this.#ahead.add(seq);
    else this.hold(seq);
  }

  /** Forgets everything. @param {boolean} snapshot the first entry that comes is the first that there will be */
  reset(snapshot) {
    this.#contiguous = snapshot ? null : 0;
    this.#oldest = Infinity;
    this.#ahead.clear();
  }
}

/** A set that forgets its oldest members. */
export class Recent {
  #members = new Set();

  add(member) {
    this.#members.add(member);
    if (this.#members.size > FINISHED_MAX) this.#members.delete(this.#members.values().next().value);
  }

  has(member) {
    return this.#members.has(member);
  }
}

/** One reply, from its first piece to its last frame. */
export class Turn {
  #changed = new Deferred();
  #reply = new Deferred();

  /** @param {string} id */
  constructor(id) {
    /** the turn's id */
    this.id = id;
    /** the reply's place in the log, once it has one */
    this.seq = null;
    /** the turn whose reply it gives anew, where this client asked for that */
    this.replaces = null;
    /** the model that writes, once it is known */
    this.model_id = null;
    /** from which byte on which model writes, as far as that was seen: `{offset, model_id}` */
    this.segments = [];
    /** the text so far */
    this.text = '';
    /** UTF-8 bytes of `text` */
    this.length = 0;
    /** the last frame has come; its text may still be under verification */
    this.ended = false;
    /** its pieces come on the watch, not on an exchange of this client's */
    this.elsewhere = false;
    /** why it failed, where it did */
    this.error = null;
  }

  /** Settles with the finished reply. */
  get reply() {
    return this.#reply.promise;
  }

  /**
   * Adds a piece. What is held already is dropped, by bytes.
   * @param {number} offset
   * @param {string} content
   * @returns {string | null} the text that was new (maybe empty), or `null` when text before it is missing
   */
  add(offset, content) {
    if (offset > this.length) return null;
    const bytes = encoder.encode(content);
    const known = this.length - offset;
    if (known >= bytes.length) return '';
    const fresh = known === 0 ? content : decoder.decode(bytes.subarray(known));
    this.text += fresh;
    this.length += bytes.length - known;
    this.#notify();
    return fresh;
  }

  /** Notes who writes from a byte on. @param {number} offset @param {string | null | undefined} model_id */
  writes(offset, model_id) {
    if (!model_id || model_id === this.model_id) return;
    this.model_id = model_id;
    this.segments.push({ offset, model_id });
  }

  /** The text by its writers. @returns {{offset: number, content: string, model_id: string | null}[]} */
  parts() {
    const bytes = encoder.encode(this.text);
    const ends = [...this.segments.slice(1).map(({ offset }) => offset), bytes.length];
    return ends.map((end, nth) => {
      const offset = nth === 0 ? 0 : ends[nth - 1];
      return { offset, content: decoder.decode(bytes.subarray(offset, end)), model_id: this.segments[nth]?.model_id ?? null };
    });
  }

  /** Takes back what lies beyond `length` bytes: text that came after the turn had ended elsewhere. */
  truncate(length) {
    if (length >= this.length) return;
    this.text = decoder.decode(encoder.encode(this.text).subarray(0, length));
    this.length = length;
  }

  /** Takes the text as a whole, whatever was held. @param {string} text */
  replace(text) {
    this.text = text;
    this.length = encoder.encode(text).length;
    if (!text) Object.assign(this, { model_id: null, segments: [] });
    this.#notify();
  }

  /**
   * Compares the text with what the last frame says about it.
   * @param {{length: number, sha256: string}} expected
   * @returns {Promise<boolean>} true also where the browser gives no SHA-256 (plain HTTP) and the length agrees
   */
  async matches({ length, sha256 }) {
    if (this.length !== length) return false;
    if (!sha256 || !globalThis.crypto?.subtle) return true;
    const digest = await crypto.subtle.digest('SHA-256', encoder.encode(this.text));
    return hexOf(new Uint8Array(digest)) === sha256.toLowerCase();
  }

  /** Ends the turn. @param {object} reply */
  finish(reply) {
    this.ended = true;
    this.#reply.resolve(reply);
    this.#notify();
  }

  /** Gives the turn up: nothing more will be heard of it. @param {Error} err */
  abandon(err) {
    if (this.#reply.settled) return;
    this.ended = true;
    this.error = err;
    this.#reply.reject(err);
    this.#notify();
  }

  /**
   * The text as it grows. Each reader has its own place in the one text, so a slow one gets larger pieces.
   * @returns {AsyncGenerator<string, void, void>}
   */
  async *pieces() {
    let at = 0;
    for (;;) {
      if (this.text.length > at) {
        const piece = this.text.slice(at);
        at = this.text.length;
        yield piece;
      } else if (this.#reply.settled) {
        await this.reply;
        return;
      } else {
        await this.#changed.promise;
      }
    }
  }

  #notify() {
    this.#changed.resolve();
    this.#changed = new Deferred();
  }
}
