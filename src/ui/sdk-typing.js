/** Tells the other participants that somebody types: seldom, and for no longer than it is true. */

const START_EVERY_MS = 3000;
const IDLE_MS = 5000;

export class Typing {
  #send;
  #quiet = null;
  #typing = false;
  #idle = null;

  /** @param {(state: 'start' | 'stop') => void} send */
  constructor(send) {
    this.#send = send;
  }

  /** To be called at each key: `true`, and `false` when the text is gone. @param {boolean} on */
  set(on) {
    clearTimeout(this.#idle);
    if (on) {
      this.#idle = setTimeout(() => this.set(false), IDLE_MS);
      this.#typing = true;
      if (this.#quiet === null) this.#start();
    } else if (this.#typing) {
      this.#typing = false;
      this.#send('stop');
    }
  }

  #start() {
    this.#quiet = setTimeout(() => (this.#quiet = null), START_EVERY_MS);
    this.#send('start');
  }
}
