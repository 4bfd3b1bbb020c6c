/**
 * The conversation on the page: own messages, replies while they stream and when they are done, notices. Each reply
 * stands below the message that it answers. Knows no connection.
 */

import { copies, rich } from './chat-rich.js';

const ENDINGS = {
  stopped: 'Stopped',
  interrupted: 'Interrupted: the server lost this answer',
  failed: 'Failed',
};

/** How far from the bottom a reader still counts as reading the newest. */
const NEAR_PX = 64;

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: 'short' });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });

export class Log {
  /** message id, `turn:` id or `seq:` number → item */
  #items = new Map();
  /** turn id → the place of the message that it answers */
  #anchors = new Map();
  #following = true;
  #dirty = new Set();
  #frame = 0;

  /**
   * @param {{log: Element, scroller: Element, newest: HTMLElement}} elements
   * @param {{retry: (message: object) => void, changed: () => void}} owner
   */
  constructor({ log, scroller, newest }, owner) {
    this.log = log;
    this.scroller = scroller;
    this.newest = newest;
    this.owner = owner;
    scroller.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    newest.addEventListener('click', () => this.toBottom());
    new ResizeObserver(() => this.#follow()).observe(scroller);
  }

  get empty() {
    return this.log.childElementCount === 0;
  }

  clear() {
    this.#items.clear();
    this.#anchors.clear();
    this.#dirty.clear();
    this.log.replaceChildren();
    this.#following = true;
    this.newest.hidden = true;
    this.owner.changed();
  }

  /** Shows a message of this client, or what has become of it. @param {import('./sdk.js').Message} message */
  message(message) {
    const item = this.#item(message.id, 'own', () => this.#own(message.content));
    item.message = message;
    if (message.seq) {
      this.#items.set(`seq:${message.seq}`, item);
      if (message.turn_id) this.#anchors.set(message.turn_id, message.seq);
    }
    this.#place(item, message.seq ?? Infinity, 0, message.seq ?? Infinity);
    this.#mark(item, message);
    // A reply is on its way: say so where it will stand.
    if (message.state === 'accepted' && message.turn_id) this.turn({ id: message.turn_id, seq: null });
  }

  /** Shows a stored entry that is not a reply. */
  entry(entry) {
    const mine = entry.type === 'user_message' && (entry.sender ?? 'user') === 'user';
    const item = this.#item(`seq:${entry.seq}`, mine ? 'own' : 'notice', () =>
      mine ? this.#own(entry.content) : notice(entry),
    );
    this.#place(item, entry.seq, 0, entry.seq);
    if (!mine) return;
    if (entry.turn_id) this.#anchors.set(entry.turn_id, entry.seq);
    const reply = this.#items.get(`turn:${entry.turn_id}`);
    if (reply) this.#place(reply, entry.seq, 1, reply.seq);
    this.#mark(item, { state: 'accepted', timestamp: entry.timestamp });
  }

  /** Shows that a reply is on its way. */
  turn({ id, seq }) {
    const item = this.#reply(id);
    this.#place(item, this.#anchors.get(id) ?? seq ?? Infinity, 1, seq ?? item.seq ?? Infinity);
    item.live = true;
    item.element.setAttribute('aria-busy', 'true');
    return item;
  }

  /** Adds text to a reply that streams. */
  piece({ turn_id, seq, content }) {
    const item = this.turn({ id: turn_id, seq });
    if (!item.text) {
      item.text = document.createTextNode('');
      const stream = document.createElement('div');
      stream.className = 'streaming';
      stream.append(item.text);
      item.body.replaceChildren(stream);
    }
    item.pending += content;
    this.#dirty.add(item);
    this.#frame ||= requestAnimationFrame(() => this.#paint());
  }

  /** Shows a finished reply. @returns {boolean} whether it was seen to come, rather than read from the log */
  reply(reply) {
    const item = this.#reply(reply.turn_id);
    this.#dirty.delete(item);
    this.#place(item, reply.reply_to ?? this.#anchors.get(reply.turn_id) ?? reply.seq, 1, reply.seq);
    if (reply.html) item.body.replaceChildren(rich(reply.html));
    else item.body.replaceChildren(plain(reply.text));
    item.element.setAttribute('aria-busy', 'false');
    item.element.dataset.state = reply.state;
    this.#finish(item, reply);
    this.#follow();
    return item.live;
  }

  /** Goes to the newest, and stays there. At once: a smooth scroll never arrives while text streams. */
  toBottom() {
    this.#following = true;
    this.newest.hidden = true;
    this.#follow();
  }

  #item(key, kind, make) {
    let item = this.#items.get(key);
    if (!item) {
      item = { kind, element: make(), order: null, seq: null, live: false, text: null, pending: '' };
      item.body = item.element.querySelector('.body');
      this.#items.set(key, item);
    }
    return item;
  }

  #reply(id) {
    return this.#item(`turn:${id}`, 'reply', () => clone('reply-template'));
  }

  #own(content) {
    const element = clone('own-template');
    element.querySelector('.bubble').textContent = content;
    return element;
  }

  /** Puts an item where it belongs: by the message it is or answers, then by its own place in the log. */
  #place(item, anchor, rank, seq) {
    item.seq = seq;
    const known = item.order?.join() === [anchor, rank, seq].join();
    if (known) return;
    item.order = [anchor, rank, seq];
    item.element.chatItem = item;
    item.element.remove();
    let before = this.log.lastElementChild;
    while (before && later(before.chatItem.order, item.order)) before = before.previousElementSibling;
    if (before) before.after(item.element);
    else this.log.prepend(item.element);
    this.owner.changed();
    this.#follow();
  }

  #mark(item, { state, error, timestamp }) {
    const { element } = item;
    const mark = element.querySelector('.mark');
    const retry = element.querySelector('.retry');
    element.dataset.state = state;
    const [symbol, words] = {
      queued: ['clock', 'Waiting to be sent'],
      sent: ['clock', 'Sending'],
      accepted: ['check', ''],
      failed: ['alert', `Not sent: ${error?.message ?? 'it was refused'}`],
    }[state];
    mark.replaceChildren(icon(symbol), words || hidden('Saved'));
    mark.title = words || 'Saved';
    retry.hidden = state !== 'failed';
    retry.onclick = () => this.owner.retry(item.message);
    time(element.querySelector('time'), state === 'accepted' ? timestamp : null);
  }

  #finish(item, { state, text, timestamp, usage, model_id, verified, error }) {
    const { element } = item;
    const meta = element.querySelector('.meta');
    if (!text) element.querySelector('.copy')?.remove();
    else if (!item.copied) copies(element.querySelector('.copy'), () => text);
    item.copied = true;
    const ending = ENDINGS[state] && (error?.message ? `${ENDINGS[state]}: ${error.message}` : ENDINGS[state]);
    const fault = verified === false ? 'The text differs from what the server has' : ending;
    const mark = element.querySelector('.mark');
    mark.replaceChildren(...(fault ? [icon(state === 'stopped' ? 'stop' : 'alert'), fault] : []));
    time(element.querySelector('time'), timestamp);
    const tokens = usage && `${usage.estimated ? '≈ ' : ''}${usage.completion_tokens} tokens`;
    element.querySelector('.facts').textContent = [model_id, tokens].filter(Boolean).join(' · ');
    meta.hidden = false;
  }

  #paint() {
    this.#frame = 0;
    for (const item of this.#dirty) {
      item.text.appendData(item.pending);
      item.pending = '';
    }
    this.#dirty.clear();
    this.#follow();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.newest.hidden = this.#following;
  }

  /** Keeps the newest in view, unless the reader has gone elsewhere. */
  #follow() {
    if (this.#following) this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

function later([anchor, rank, seq], [otherAnchor, otherRank, otherSeq]) {
  if (anchor !== otherAnchor) return anchor > otherAnchor;
  if (rank !== otherRank && anchor !== Infinity) return rank > otherRank;
  return seq > otherSeq;
}

function clone(template) {
  return document.getElementById(template).content.firstElementChild.cloneNode(true);
}

function notice(entry) {
  const element = clone('notice-template');
  const name = entry.metadata?.admin_name ?? 'A person';
  const words = {
    admin_join: `${name} has joined and answers from here on.`,
    admin_leave: `${name} has left. The model answers again.`,
    tombstone: 'A message was removed.',
    voice_message: 'Voice message',
    file_upload: 'File',
  };
  element.textContent = words[entry.type] ?? entry.content;
  return element;
}

function plain(text) {
  const element = document.createElement('div');
  element.className = 'streaming';
  element.textContent = text;
  return element;
}

function hidden(words) {
  const element = document.createElement('span');
  element.className = 'hidden';
  element.textContent = words;
  return element;
}

function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

function time(element, timestamp) {
  const date = timestamp && new Date(timestamp);
  element.hidden = !date;
  if (!date) return;
  const today = date.toDateString() === new Date().toDateString();
  element.dateTime = date.toISOString();
  element.textContent = today ? clock.format(date) : calendar.format(date);
}
