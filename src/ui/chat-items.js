/**
 * What stands in a conversation: an own message, the replies to one message, a notice. Each keeps what it is, and has
 * an element only while the log shows it. Knows no connection and no order.
 */

import { clone, copies, hidden, icon, make } from './page-dom.js';
import { time } from './page-time.js';
import { rich } from './chat-rich.js';
import { StreamText } from './chat-stream.js';

const ENDINGS = {
  stopped: 'Stopped',
  interrupted: 'Interrupted',
  failed: 'Failed',
};

/** How a reply ended, where it did not by itself. */
export function ending({ state, error }) {
  const words = ENDINGS[state];
  return words && error?.message ? `${words}: ${error.message}` : words;
}

class Item {
  element = null;

  /** The element, made when it is needed. */
  get shown() {
    if (!this.element) {
      this.element = this.draw();
      this.paint();
    }
    return this.element;
  }

  /** Forgets the element; what the item is stays. */
  leave() {
    this.element = null;
  }

  paint() {}
}

/** A message of this person. */
export class Own extends Item {
  /** @param {string} content @param {object} actions `retry(message)`, `discard(message)` */
  constructor(content, actions) {
    super();
    this.content = content;
    this.actions = actions;
    this.state = 'accepted';
    this.message = null;
    this.error = null;
    this.timestamp = null;
  }

  /** Takes what has become of it. */
  mark({ state, error = null, timestamp = null, message = this.message }) {
    Object.assign(this, { state, error, timestamp, message });
    this.paint();
  }

  draw() {
    const element = clone('own-template');
    element.querySelector('.bubble').textContent = this.content;
    element.querySelector('.retry').onclick = () => this.actions.retry(this.message);
    element.querySelector('.discard').onclick = () => this.actions.discard(this.message);
    return element;
  }

  paint() {
    const { element, state } = this;
    if (!element) return;
    const mark = element.querySelector('.mark');
    element.dataset.state = state;
    const [symbol, words] = {
      queued: ['clock', 'Waiting to be sent'],
      sent: ['clock', 'Sending'],
      accepted: ['check', ''],
      failed: ['alert', `Not sent: ${this.error?.message ?? 'it was refused'}`],
    }[state];
    mark.replaceChildren(icon(symbol), words || hidden('Saved'));
    mark.title = words || 'Saved';
    element.querySelector('.retry').hidden = state !== 'failed';
    element.querySelector('.discard').hidden = state !== 'failed';
    time(element.querySelector('time'), state === 'accepted' ? this.timestamp : null);
  }
}

/** The replies to one message, the newest of them in view: there are several after `regenerate`. */
export class Reply extends Item {
  /** in the order of the log: `{id, seq, state: waiting | running | done, text, models, reply, rating}` */
  turns = [];
  #picked = null;
  #stream = null;
  #fresh = '';

  /** @param {object} actions `regenerate(turn_id)`, `rate(reply, rating)` */
  constructor(actions) {
    super();
    this.actions = actions;
  }

  /** The one in view. */
  get turn() {
    return this.#picked ?? this.turns.at(-1);
  }

  /** Takes a turn in, at its place. */
  add(turn) {
    this.turns.push(turn);
    this.turns.sort((one, other) => (one.seq ?? Infinity) - (other.seq ?? Infinity));
    // Whoever asks for another answer wants to see it.
    if (turn.state !== 'done') this.#picked = null;
    this.paint();
  }

  remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    if (this.#picked === turn) this.#picked = null;
    this.paint();
  }

  /** Adds text to a turn that streams. @returns {boolean} whether `flush` has something to do */
  append(turn, content) {
    const first = turn.text === '';
    turn.text += content;
    if (!this.element || turn !== this.turn) return false;
    if (first) this.paint();
    else this.#fresh += content;
    return this.#fresh !== '';
  }

  /** Notes which model writes on. */
  writes(turn, model_id) {
    if (turn.models.at(-1) === model_id) return;
    turn.models.push(model_id);
    if (this.element && turn === this.turn && turn.models.length > 1) this.#paintMeta();
  }

  flush() {
    this.#stream?.append(this.#fresh);
    this.#fresh = '';
  }

  leave() {
    super.leave();
    this.#stream = null;
    this.#fresh = '';
  }

  draw() {
    const element = clone('reply-template');
    const button = (name) => element.querySelector(`.meta .${name}`);
    copies(button('copy'), () => this.turn.reply.text);
    button('earlier').onclick = () => this.#pick(-1);
    button('later').onclick = () => this.#pick(1);
    if (this.actions.rate) {
      button('rate-up').onclick = () => this.#rate('up');
      button('rate-down').onclick = () => this.#rate('down');
    } else {
      button('rate-up').remove();
      button('rate-down').remove();
    }
    if (this.actions.regenerate) button('regenerate').onclick = () => this.actions.regenerate(this.turns.at(-1).id);
    else button('regenerate').remove();
    return element;
  }

  paint() {
    const { element, turn } = this;
    if (!element || !turn) return;
    element.setAttribute('aria-busy', String(turn.state !== 'done'));
    if (turn.reply) element.dataset.state = turn.reply.state;
    else delete element.dataset.state;
    element.querySelector('.body').replaceChildren(this.#body(turn));
    this.#paintMeta();
  }

  #paintMeta() {
    const { element, turn } = this;
    const meta = element.querySelector('.meta');
    meta.hidden = !turn.reply && this.turns.length < 2 && turn.models.length < 2;
    this.#paintVariants();
    for (const name of ['copy', 'rate-up', 'rate-down']) {
      // The text may have copy buttons of its own.
      const button = meta.querySelector(`.${name}`);
      if (button) button.hidden = !turn.reply?.text;
    }
    this.#paintRating();
    this.#paintFacts(turn.reply ?? { segments: turn.models.map((model_id) => ({ model_id })) });
  }

  #body(turn) {
    this.#stream = null;
    this.#fresh = '';
    if (turn.reply?.html) return rich(turn.reply.html);
    const text = turn.reply?.text ?? turn.text;
    if (text || turn.reply) {
      const stream = new StreamText();
      stream.append(text);
      if (!turn.reply) this.#stream = stream;
      return stream.element;
    }
    if (turn.state !== 'waiting') return make('p', { className: 'dots' }, ...[1, 2, 3].map(() => make('span')), hidden('An answer is on its way'));
    return make('p', { className: 'waiting' }, icon('clock'), 'Waits for the answer before it');
  }

  #paintVariants() {
    const { element, turns, turn } = this;
    const at = turns.indexOf(turn);
    element.querySelector('.variants').hidden = turns.length < 2;
    element.querySelector('.place').textContent = `${at + 1} of ${turns.length}`;
    element.querySelector('.earlier').disabled = at === 0;
    element.querySelector('.later').disabled = at === turns.length - 1;
  }

  #paintRating() {
    for (const rating of ['up', 'down']) {
      this.element?.querySelector(`.rate-${rating}`)?.setAttribute('aria-pressed', String(this.turn.rating === rating));
    }
  }

  #paintFacts({ state, timestamp, usage, model_id, segments, verified, error }) {
    const { element } = this;
    const fault = verified === false ? 'The text differs from what the server has' : ending({ state, error });
    element.querySelector('.mark').replaceChildren(...(fault ? [icon(state === 'stopped' ? 'stop' : 'alert'), fault] : []));
    time(element.querySelector('time'), timestamp);
    const tokens = usage && `${usage.estimated ? '≈ ' : ''}${usage.completion_tokens} tokens`;
    const models = segments?.length > 1 ? segments.map((segment) => segment.model_id).join(', then ') : model_id;
    element.querySelector('.facts').textContent = [models, tokens].filter(Boolean).join(' · ');
  }

  #pick(step) {
    const { turns } = this;
    const next = turns[turns.indexOf(this.turn) + step];
    if (!next) return;
    this.#picked = next === turns.at(-1) ? null : next;
    this.actions.change(() => this.paint());
  }

  #rate(rating) {
    if (this.turn.rating !== rating) this.actions.rate(this.turn.reply, rating);
  }

  /** Shows what is said of a reply. */
  rated(turn, rating) {
    turn.rating = rating;
    this.#paintRating();
  }
}

/** Something that happened, in one line. */
export class Notice extends Item {
  constructor(entry) {
    super();
    this.entry = entry;
  }

  draw() {
    const { type, metadata, content } = this.entry;
    const name = metadata?.admin_name ?? 'A person';
    const words = {
      admin_join: `${name} has joined and answers from here on.`,
      admin_leave: `${name} has left. The model answers again.`,
      tombstone: 'A message was removed.',
      voice_message: 'Voice message',
      file_upload: 'File',
    };
    return make('p', { className: 'notice' }, words[type] ?? content ?? '');
  }
}
