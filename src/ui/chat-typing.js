/** Shows that somebody else types. */

/** What the others told holds so long: the word that they stopped may be lost. */
const SHOWN_MS = 8000;

export class Typing {
  #timer;

  /** @param {HTMLElement} line */
  constructor(line) {
    this.line = line;
  }

  /** Somebody started, or stopped. @param {{state: string, sender: string}} told */
  show({ state, sender }) {
    this.clear();
    if (state !== 'start') return;
    this.line.textContent = sender === 'admin' ? 'A person is typing…' : 'Typing on another device…';
    this.#timer = setTimeout(() => this.clear(), SHOWN_MS);
  }

  clear() {
    clearTimeout(this.#timer);
    this.line.textContent = '';
  }
}
