/**
 * Finds the best transport that works: WebTransport first, a WebSocket beside it when that takes long. A
 * WebTransport that comes up later is adopted make-before-break. Knows links and deadlines, no session.
 */

import { ChatboxError, Close, uuid, within } from './sdk-wire.js';
import { WebTransportLink } from './sdk-webtransport.js';
import { WebSocketLink } from './sdk-websocket.js';

/** A WebSocket starts this long after WebTransport. */
const HEAD_START_MS = 1500;

/** A transport has this long from the first packet to the answer of `attach`. */
const ATTEMPT_MS = 10_000;

/** After so many failures in a row WebTransport is left alone for a while: this network has no UDP. */
const STRIKES_MAX = 2;
const AVOID_MS = 10 * 60_000;

const STORAGE_KEY = 'chatbox.transport';

/** How WebTransport fared on this network, kept over reloads. Holds two numbers, nothing secret. */
export class Memory {
  /** @param {Storage | null} storage */
  constructor(storage) {
    this.storage = storage;
    this.strikes = 0;
    this.until = 0;
    try {
      const { strikes, until } = JSON.parse(storage?.getItem(STORAGE_KEY) ?? '{}');
      this.strikes = Number(strikes) || 0;
      this.until = Math.min(Number(until) || 0, Date.now() + AVOID_MS);
    } catch {
      // Storage is blocked or holds something else: begin without memory.
    }
  }

  /** Whether WebTransport is to be left alone for now. */
  get avoids() {
    return Date.now() < this.until;
  }

  /** WebTransport failed or went silent where a WebSocket came up. */
  failed() {
    this.strikes += 1;
    if (this.strikes >= STRIKES_MAX) {
      this.strikes = 0;
      this.until = Date.now() + AVOID_MS;
    }
    this.#save();
  }

  /** WebTransport has proved to work. */
  worked() {
    if (this.strikes === 0 && this.until === 0) return;
    this.strikes = 0;
    this.until = 0;
    this.#save();
  }

  #save() {
    try {
      this.storage?.setItem(STORAGE_KEY, JSON.stringify({ strikes: this.strikes, until: this.until }));
    } catch {
      // A full or blocked storage costs the memory, not the chat.
    }
  }
}

/**
 * One try to get connected. `adopt` is called once for each better link, `over` once when nothing is under way any
 * more, with the last failure if no link was adopted.
 */
export class Dial {
  #tried = new Set();
  #pending = new Set();
  #best = null;
  #info = null;
  #token = null;
  #timer = null;
  #over = false;
  #failure = null;
  #webtransportFailed = false;

  /**
   * @param {object} plan
   * @param {Memory} plan.memory
   * @param {string | null} plan.avoid a transport that just went silent
   * @param {(id: string, token: string) => object} plan.attach makes the `attach` frame, at the moment it is sent
   * @param {(link: object, status: object) => void} plan.adopt
   * @param {(link: object, frame: object) => void} plan.receive takes every frame of an adopted link
   * @param {(link: object, frame: object) => void} plan.copy takes every copy of a frame that an adopted link brings
   * @param {(failure: ChatboxError | null) => void} plan.over
   */
  constructor(plan) {
    this.plan = plan;
  }

  /**
   * @param {{webtransport?: string, websocket: string, certificate_sha256?: string}} info what discovery said
   * @param {string} token
   */
  start(info, token) {
    const { memory, avoid } = this.plan;
    this.#info = info;
    this.#token = token;
    // Where the WebSocket went silent, WebTransport is tried whatever became of it before.
    const avoided = avoid === 'webtransport' || (memory.avoids && avoid !== 'websocket');
    if (!info.webtransport || !WebTransportLink.available() || avoided) {
      this.#try('websocket');
      return;
    }
    this.#try('webtransport');
    this.#timer = setTimeout(() => this.#try('websocket'), HEAD_START_MS);
  }

  /** Gives up what is under way. An adopted link stays. */
  cancel() {
    this.#over = true;
    clearTimeout(this.#timer);
    for (const link of this.#pending) link.close();
    this.#pending.clear();
  }

  async #try(kind) {
    clearTimeout(this.#timer);
    if (this.#over || this.#tried.has(kind)) return;
    this.#tried.add(kind);
    const link = kind === 'webtransport' ? new WebTransportLink(this.#info) : new WebSocketLink(this.#info);
    this.#pending.add(link);
    try {
      await within(this.#attach(link), ATTEMPT_MS, kind);
    } catch (err) {
      link.close();
      this.#failed(link, err);
    }
    this.#pending.delete(link);
    this.#settle();
  }

  /** Opens a link and attaches. Adopts it in the very moment of the answer, so that no frame falls in between. */
  async #attach(link) {
    let attached = false;
    const id = uuid();
    const answered = new Promise((resolve, reject) => {
      let refusal = null;
      link.onframe = (frame) => {
        if (attached) {
          this.plan.receive(link, frame);
        } else if (frame.type === 'connection_status') {
          attached = true;
          this.#adopt(link, frame);
          resolve();
        } else if (frame.type === 'error') {
          refusal = new ChatboxError(frame.error.code, frame.error.message, { retry_after: frame.error.retry_after });
          if (frame.error.recoverable) reject(Object.assign(refusal, { answered: true }));
        }
      };
      link.oncopy = (frame) => attached && this.plan.copy(link, frame);
      link.onclose = ({ code, reason }) => {
        const err = refusal ?? new ChatboxError('CONNECTION_LOST', reason || `${link.kind} is closed`);
        // Firefox may lose the refusal that came just before the end; the other transport then says what is wrong.
        const unsaid = code === Close.lost || code === Close.protocolError;
        reject(Object.assign(err, { close: code, answered: refusal !== null || !unsaid }));
      };
    });
    answered.catch(() => {});
    await Promise.race([link.open(), answered]);
    await link.start(this.plan.attach(id, this.#token));
    await answered;
  }

  #adopt(link, status) {
    const late = this.#over || (this.#best && link.kind === 'websocket');
    if (late) {
      link.close();
      return;
    }
    this.#best = link;
    this.#pending.delete(link);
    if (link.kind === 'webtransport') {
      this.plan.memory.worked();
      clearTimeout(this.#timer);
      this.#tried.add('websocket');
      for (const other of this.#pending) other.close();
    } else if (this.#webtransportFailed || this.plan.avoid === 'webtransport') {
      this.plan.memory.failed();
    }
    this.plan.adopt(link, status);
  }

  #failed(link, err) {
    if (this.#over) return;
    this.#failure = err;
    // A server that answers with a refusal would refuse the other transport too.
    if (err.answered) this.#tried.add('websocket').add('webtransport');
    if (link.kind !== 'webtransport' || err.answered) return;
    this.#webtransportFailed = true;
    if (this.#best) this.plan.memory.failed();
    this.#try('websocket');
  }

  #settle() {
    const waiting = this.#pending.size > 0 || !this.#tried.has('websocket');
    if (this.#over || waiting) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.plan.over(this.#best ? null : this.#failure);
  }
}
