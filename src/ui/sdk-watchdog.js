/**
 * Notices a connection that looks alive and is not. Acts only while something is unanswered: an idle page sends
 * nothing, so a phone's radio sleeps.
 */

/**
 * Silence after which the server is asked for a sign of life. Short: on QUIC the question itself is what a restarted
 * server answers with a reset, within one round trip; a client that only listens learns nothing.
 */
const SILENCE_MS = 2500;

/** How long that sign may take: two lost packets of a slow link are no dead path. */
const PONG_MS = 4000;

export class Watchdog {
  #timer = null;
  #heard = 0;
  #asked = 0;

  /** @param {{busy: () => boolean, ping: () => void, dead: () => void}} owner */
  constructor(owner) {
    this.owner = owner;
  }

  /** Something came from the server. */
  heard() {
    this.#heard = performance.now();
    this.#asked = 0;
  }

  /** Something was asked: begins to watch, unless it does already. */
  arm() {
    if (this.#timer !== null) return;
    this.#heard = performance.now();
    this.#wait(SILENCE_MS);
  }

  /** Asks at once: the page has come back to the front, or the network has changed. */
  probe() {
    this.stop();
    this.#heard = performance.now();
    this.#ask();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#asked = 0;
  }

  #wait(ms) {
    this.#timer = setTimeout(() => this.#check(), ms);
  }

  #ask() {
    this.#asked = performance.now();
    this.owner.ping();
    this.#wait(PONG_MS);
  }

  #check() {
    this.#timer = null;
    const now = performance.now();
    if (this.#asked > 0) {
      this.stop();
      this.owner.dead();
    } else if (this.owner.busy()) {
      const silent = now - this.#heard;
      if (silent < SILENCE_MS) this.#wait(SILENCE_MS - silent);
      else this.#ask();
    }
  }
}
