/** One conversation in the list: what is known of it, and its element. */

import { clone, make } from './page-dom.js';
import { ago } from './page-time.js';

const NAME_CHARS_MAX = 100;

export class Row {
  /** whether its name is being written */
  writing = false;

  /**
   * @param {object} meta as the list tells it
   * @param {string} words what was searched for
   * @param {(row: Row, button: HTMLElement) => void} open called for the button that opens the menu
   */
  constructor(meta, words, open) {
    this.meta = meta;
    this.words = words;
    this.element = clone('row-template');
    this.element.sessionRow = this;
    this.link = this.element.querySelector('.row-link');
    this.link.href = `chat.html#session=${encodeURIComponent(meta.id)}`;
    this.button = this.element.querySelector('.row-more');
    this.button.addEventListener('click', () => open(this, this.button));
    this.paint();
  }

  get title() {
    return this.meta.name || 'Untitled';
  }

  /** Takes what has changed. @returns {boolean} whether its place in the list may be another one */
  update(change) {
    const before = this.meta.last_activity;
    Object.assign(this.meta, change);
    this.paint();
    return this.meta.last_activity !== before;
  }

  paint() {
    const { name, match, message_count: count } = this.meta;
    // While the name is written, the link is out of the row.
    const { link } = this;
    const label = link.querySelector('.row-name');
    label.textContent = this.title;
    label.classList.toggle('muted', !name);
    this.button.setAttribute('aria-label', `Actions for ${this.title}`);
    const snippet = link.querySelector('.row-match');
    snippet.hidden = !match;
    snippet.replaceChildren(...marked(match ?? '', this.words));
    link.querySelector('.row-count').textContent = count === 1 ? '1 message' : `${count ?? 0} messages`;
    const facts = link.querySelector('.row-facts');
    facts.querySelectorAll('.badge').forEach((badge) => badge.remove());
    facts.append(...this.#badges());
    this.tick();
  }

  /** Takes the row out of the list. */
  remove() {
    this.writing = false;
    this.element.remove();
  }

  /** Says again how long ago it was. */
  tick() {
    ago(this.link.querySelector('time'), this.meta.last_activity);
  }

  #badges() {
    const { state, help_requested, admin_assisted, assisting_admin_name: staff } = this.meta;
    const badges = [];
    if (help_requested) badges.push(['help', 'Help requested']);
    if (staff) badges.push(['assisted', `With ${staff}`]);
    else if (admin_assisted) badges.push(['assisted', 'Assisted by a person']);
    if (state === 'ended') badges.push(['ended', 'Ended']);
    return badges.map(([kind, words]) => make('span', { className: `badge ${kind}` }, words));
  }

  /**
   * Lets the name be written in place: Enter and leaving keep it, Escape and `remove` do not.
   * @param {(name: string) => Promise<void>} save @param {() => void} written called when that is over
   */
  rename(save, written) {
    this.writing = true;
    const before = this.meta.name ?? '';
    const field = make('input', { className: 'field row-field', value: before, maxLength: NAME_CHARS_MAX, 'aria-label': 'Name' });
    const end = async (keeps, back) => {
      if (!this.writing) return;
      this.writing = false;
      const name = field.value.trim();
      field.replaceWith(this.link);
      written();
      if (back) this.link.focus();
      if (!keeps || !name || name === before) return;
      this.update({ name });
      try {
        await save(name);
      } catch {
        this.update({ name: before });
      }
    };
    field.addEventListener('keydown', (event) => {
      if (event.isComposing) return;
      event.stopPropagation();
      if (event.key !== 'Enter' && event.key !== 'Escape') return;
      // The same key press would follow the link that gets the focus.
      event.preventDefault();
      end(event.key === 'Enter', true);
    });
    field.addEventListener('blur', () => end(true, false));
    this.link.replaceWith(field);
    field.select();
    field.focus();
  }
}

/** A text with what was searched for marked. @returns {(Node | string)[]} */
function marked(text, words) {
  const at = words ? text.toLowerCase().indexOf(words.toLowerCase()) : -1;
  if (at < 0) return [text];
  const end = at + words.length;
  return [text.slice(0, at), make('mark', {}, text.slice(at, end)), text.slice(end)];
}
