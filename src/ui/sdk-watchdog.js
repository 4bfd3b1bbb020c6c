/**
 * Notices a path that is dead in one direction or both, within one heartbeat. Acts only while something is
 * unanswered: an idle page sends nothing, so a phone's radio sleeps.
 *
 * Text that still comes down proves nothing about the way up, so only answers count: while a reply runs, the server
 * is asked for a sign of life again and again, and everything that was sent has a deadline of its own.
 */

/** From the last answer to the decision that the path is dead, in milliseconds, unless configured. */
export const HEARTBEAT_MS = 5000;

/**
 * This share of a heartbeat passes before the server is asked; the rest is left for its answer: two lost packets of a
 * slow link are no dead path. On QUIC the question itself is what a restarted server answers with a reset.
 */
const ASK_AFTER = 0.3;

/**
 * A message that was given up makes the next try of it more patient, up to so many heartbeats: on a very slow uplink it
 * would never arrive else.
 */
const PATIENCE_MAX = 8;

/** A timer that is so late says that this page, not the path, stood still: a sleeping device, a frozen tab. */
const LATE_MS = 1500;

export class Watchdog {
  #heartbeat;
  #owner;
  #timer = null;
  #due = 0;
  #proved = 0;
  #ping = null;
  #patience = 1;
  /** id of what was sent → when its answer is overdue */
  #deadlines = new Map();

  /**
   * @param {number} heartbeat in milliseconds
   * @param {{busy: () => boolean, ping: () => string, dead: () => void}} owner `ping` gives the id that was sent
   */
  constructor(heartbeat, owner) {
    this.#heartbeat = heartbeat;
    this.#owner = owner;
  }

  /** Something was sent that has an answer. @param {string} id */
  sent(id) {
    this.#deadlines.set(id, performance.now() + this.#limit);
    this.arm();
  }

  /** A frame has come that answers what was sent, or goes on answering it. @param {string} id */
  answered(id) {
    if (!this.#deadlines.delete(id)) return;
    this.#proved = performance.now();
    if (id === this.#ping) this.#ping = null;
    else this.#patience = 1;
  }

  /** Something is unanswered from now on: begins to watch, unless it does already. */
  arm() {
    if (this.#timer !== null) return;
    this.#proved = performance.now();
    this.#wait();
  }

  /** Asks at once: the page has come back to the front, or the network has changed. */
  probe() {
    clearTimeout(this.#timer);
    const now = performance.now();
    // What went unanswered while the page stood still is given its time once more.
    for (const id of this.#deadlines.keys()) this.#deadlines.set(id, now + this.#limit);
    this.#proved = now;
    this.#ask();
    this.#wait();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#ping = null;
    this.#deadlines.clear();
  }

  get #limit() {
    return this.#heartbeat * this.#patience;
  }

  #ask() {
    this.#ping = this.#owner.ping();
    this.#deadlines.set(this.#ping, performance.now() + this.#limit - this.#heartbeat * ASK_AFTER);
  }

  #wait() {
    const asked = this.#ping === null ? this.#proved + this.#heartbeat * ASK_AFTER : Infinity;
    this.#due = Math.min(asked, ...this.#deadlines.values());
    this.#timer = setTimeout(() => this.#check(), this.#due - performance.now());
  }

  #check() {
    this.#timer = null;
    const now = performance.now();
    if (now - this.#due > LATE_MS) {
      this.probe();
    } else if ([...this.#deadlines.values()].some((deadline) => deadline <= now)) {
      const gaveUp = [...this.#deadlines.keys()].some((id) => id !== this.#ping);
      if (gaveUp) this.#patience = Math.min(PATIENCE_MAX, this.#patience * 2);
      this.stop();
      this.#owner.dead();
    } else if (this.#deadlines.size > 0 || this.#owner.busy()) {
      if (this.#ping === null && now - this.#proved >= this.#heartbeat * ASK_AFTER) this.#ask();
      this.#wait();
    }
  }
}
