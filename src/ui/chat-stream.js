/** Text that grows. Long text stands in several blocks, so that a new word does not lay all of it out again. */

import { make } from './page-dom.js';

/** From this length on a block ends with its line, and at four times the length anywhere. */
const BLOCK_CHARS = 2000;

export class StreamText {
  #node = null;

  constructor() {
    this.element = make('div', { className: 'streaming' });
  }

  /** @param {string} text */
  append(text) {
    let rest = text;
    while (rest) {
      this.#node ??= this.#block();
      const room = BLOCK_CHARS - this.#node.length;
      const line = rest.indexOf('\n', Math.max(0, room));
      const forced = room + 3 * BLOCK_CHARS;
      const end = Math.min(line < 0 ? rest.length : line + 1, forced, rest.length);
      const piece = rest.slice(0, end);
      this.#node.appendData(piece);
      rest = rest.slice(end);
      if (end === forced || (end > room && piece.endsWith('\n'))) this.#node = null;
    }
  }

  #block() {
    const node = document.createTextNode('');
    this.element.append(make('div', {}, node));
    return node;
  }
}
