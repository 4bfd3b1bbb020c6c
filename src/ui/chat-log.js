/**
 * The conversation on the page, in its order: each reply stands below the message that it answers. Of a long one only
 * the part around what is in view has elements; what was read stays where it is, whatever comes above or below.
 * Knows no connection.
 */

import { Notice, Own, Reply } from './chat-items.js';
import { LogWindow } from './chat-window.js';

/** How many earlier entries are asked for at a time. */
const PAGE_ENTRIES = 50;

export class Log {
  /** message id, or `seq:` number → item */
  #items = new Map();
  /** turn id → {turn, item} */
  #turns = new Map();
  /** turn id → the place of the message that it answers */
  #anchors = new Map();
  /** turns that have not ended */
  #running = new Set();
  /** place of a reply → what this person has said of it since it was read */
  #ratings = new Map();
  /** replies with text that is not painted yet */
  #streaming = new Set();
  #frame = 0;
  #made = 0;
  /** the lowest place in the log that is held; 1 is the beginning */
  #oldest = Infinity;
  #older = null;
  #generation = 0;

  /**
   * @param {{log: HTMLElement, scroller: HTMLElement, newest: HTMLElement, beginning: HTMLElement}} elements
   * @param {{retry?: Function, discard?: Function, regenerate?: Function, rate?: Function, older?: Function,
   *   changed: () => void}} owner
   */
  constructor(elements, owner) {
    this.owner = owner;
    this.beginning = elements.beginning;
    this.window = new LogWindow(elements, () => this.#reached());
    this.actions = { ...owner, change: (action) => this.window.change(action) };
    this.beginning.querySelector('button').addEventListener('click', () => this.#load());
  }

  get empty() {
    return this.window.items.length === 0;
  }

  clear() {
    this.#generation += 1;
    for (const map of [this.#items, this.#turns, this.#anchors, this.#ratings, this.#running, this.#streaming]) map.clear();
    this.#oldest = Infinity;
    this.#older = null;
    this.window.clear();
    this.#tell('');
    this.owner.changed();
  }

  /** Goes to the newest, and stays there. */
  toBottom() {
    this.window.toBottom();
  }

  /** Goes to the first entry that is held. */
  toTop() {
    this.window.toTop();
  }

  /** Shows a message of this client, or what has become of it. @param {import('./sdk.js').Message} message */
  message(message) {
    this.window.change(() => {
      const { id, seq, turn_id, state, error, timestamp } = message;
      const item = this.#items.get(id) ?? new Own(message.content, this.actions);
      this.#items.set(id, item);
      item.mark({ state, error, timestamp, message });
      this.#place(item, seq ?? Infinity, 0);
      if (!seq) return;
      this.#hold(seq);
      this.#items.set(`seq:${seq}`, item);
      if (state !== 'accepted' || !turn_id) return;
      // A reply is on its way: say so where it will stand.
      this.#anchor(turn_id, seq);
      this.turn({ id: turn_id, seq: null });
    });
  }

  /** Takes a message out that was never stored. */
  forget({ id }) {
    const item = this.#items.get(id);
    if (!item) return;
    this.#items.delete(id);
    this.window.change(() => this.window.remove(item));
    this.owner.changed();
  }

  /** Shows a stored entry that is not a reply. */
  entry(entry) {
    this.window.change(() => {
      const { seq, turn_id, type, sender, timestamp } = entry;
      this.#hold(seq);
      if (this.#items.has(`seq:${seq}`)) return;
      const own = type === 'user_message' && (sender ?? 'user') === 'user';
      const item = own ? new Own(entry.content, this.actions) : new Notice(entry);
      this.#items.set(`seq:${seq}`, item);
      if (own) item.mark({ state: 'accepted', timestamp });
      this.#place(item, seq, 0);
      if (turn_id && own) this.#anchor(turn_id, seq);
    });
  }

  /** Shows that a reply is on its way; without `seq` it has not begun. `replaces`: it answers what that turn did. */
  turn({ id, seq, replaces }) {
    this.window.change(() => {
      if (replaces && this.#anchors.has(replaces)) this.#anchor(id, this.#anchors.get(replaces));
      const known = this.#turns.get(id);
      if (known?.turn.state === 'done') return;
      const record = this.#turn(id, seq);
      this.#running.add(id);
      const begun = seq || record.text || record.state === 'running' || this.#running.size === 1;
      const state = begun ? 'running' : 'waiting';
      if (record.state === state) return;
      record.state = state;
      this.#turns.get(id).item.paint();
      this.#mark();
    });
  }

  /** Adds text to a reply that streams. */
  piece({ turn_id, seq, content, model_id }) {
    this.turn({ id: turn_id, seq });
    const { turn, item } = this.#turns.get(turn_id);
    this.window.change(() => {
      if (turn.state !== 'done' && model_id) item.writes(turn, model_id);
      if (turn.state !== 'done' && item.append(turn, content)) this.#streaming.add(item);
    });
    if (this.#streaming.size) this.#frame ||= requestAnimationFrame(() => this.#paint());
  }

  /** Shows a finished reply. @returns {boolean} whether it was seen to come, rather than read from the log */
  reply(reply) {
    const { turn_id, seq, reply_to, rating } = reply;
    const live = this.#turns.has(turn_id);
    this.window.change(() => {
      this.#hold(seq);
      if (reply_to) this.#anchor(turn_id, reply_to);
      const turn = this.#turn(turn_id, seq);
      Object.assign(turn, { state: 'done', reply, text: '', rating: this.#ratings.get(seq) ?? rating ?? null });
      const { item } = this.#turns.get(turn_id);
      this.#streaming.delete(item);
      this.#running.delete(turn_id);
      item.paint();
      this.#mark();
    });
    return live;
  }

  /** Shows what this person says of a reply, or no longer where it was refused. */
  rating({ seq, rating, state }) {
    const { turn, item } = [...this.#turns.values()].find((entry) => entry.turn.seq === seq) ?? {};
    if (state === 'failed') this.#ratings.delete(seq);
    else this.#ratings.set(seq, rating);
    if (state === 'accepted' && turn?.reply) turn.reply.rating = rating;
    if (turn?.reply) item.rated(turn, this.#ratings.get(seq) ?? turn.reply.rating ?? null);
  }

  /** Shows entries as frames of the contract, in any order. @param {object[]} frames */
  frames(frames) {
    this.window.change(() => {
      for (const frame of frames) {
        if (frame.type !== 'ai_response') this.entry(frame);
        else if (frame.metadata?.done === 'true') this.reply({ ...frame, text: frame.content });
      }
    });
  }

  /** A turn's record, made when it is new, at the place that is known by now. */
  #turn(id, seq) {
    const known = this.#turns.get(id);
    if (known) {
      if (seq && !known.turn.seq) {
        known.turn.seq = seq;
        this.#settle(id);
      }
      return known.turn;
    }
    const turn = { id, seq: seq ?? null, state: null, text: '', models: [], reply: null, rating: null };
    this.#turns.set(id, { turn, item: null });
    this.#settle(id);
    return turn;
  }

  #anchor(turn_id, seq) {
    if (this.#anchors.get(turn_id) === seq) return;
    this.#anchors.set(turn_id, seq);
    if (this.#turns.has(turn_id)) this.#settle(turn_id);
  }

  /** Puts a turn where it belongs: with the other replies to its message, or else at its own place. */
  #settle(id) {
    const entry = this.#turns.get(id);
    const { turn } = entry;
    const anchor = this.#anchors.get(id);
    const key = anchor ? `replies:${anchor}` : `turn:${id}`;
    const item = this.#items.get(key) ?? new Reply(this.actions);
    this.#items.set(key, item);
    if (entry.item !== item) {
      this.#leave(entry);
      entry.item = item;
      item.add(turn);
    }
    this.#place(item, anchor ?? turn.seq ?? Infinity, 1);
  }

  #leave({ turn, item }) {
    if (!item) return;
    item.remove(turn);
    this.#streaming.delete(item);
    if (item.turns.length > 0) return;
    this.#items.delete(`turn:${turn.id}`);
    this.window.remove(item);
  }

  #place(item, anchor, rank) {
    if (item.order && item.order.anchor === anchor && item.order.rank === rank) return;
    const made = item.order?.made ?? (this.#made += 1);
    this.window.place(item, { anchor, rank, made });
    this.owner.changed();
  }

  #mark() {
    this.window.log.toggleAttribute('data-running', this.#running.size > 0);
  }

  #paint() {
    this.#frame = 0;
    this.window.change(() => {
      for (const item of this.#streaming) item.flush();
      this.#streaming.clear();
    });
  }

  #hold(seq) {
    if (seq < this.#oldest) this.#oldest = seq;
  }

  /** The reader comes near to the first entry that is held. */
  #reached() {
    if (this.#oldest > 1 && this.owner.older) {
      if (!this.#older) this.#load();
    } else if (!this.empty) {
      this.#tell('start');
    }
  }

  async #load() {
    const generation = this.#generation;
    this.#tell('loading');
    this.#older = this.owner.older(PAGE_ENTRIES);
    try {
      const { entries, more } = await this.#older;
      if (generation !== this.#generation) return;
      this.#older = null;
      if (!more || entries.length === 0) this.#oldest = 1;
      this.#tell('');
      this.frames(entries);
      if (entries.length === 0) this.#reached();
    } catch {
      // The button tries again; until then nothing else does.
      if (generation === this.#generation) this.#tell('failed');
    }
  }

  /** Says what is above the first entry that is shown. */
  #tell(state) {
    if (this.beginning.dataset.state === state) return;
    this.window.change(() => {
      this.beginning.dataset.state = state;
      this.beginning.hidden = !state;
      const words = {
        loading: 'Loading earlier messages…',
        failed: 'Earlier messages could not be loaded.',
        start: 'The conversation begins here',
      };
      this.beginning.querySelector('span').textContent = words[state] ?? '';
      this.beginning.querySelector('button').hidden = state !== 'failed';
    });
  }
}
