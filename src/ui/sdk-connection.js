/**
 * Keeps one link to the server alive: discovery, token, dialling, back-off, renewal, drain, watchdog. What the frames
 * mean is its owner's business.
 *
 * The owner gives: `attach(id)` (the frame without its token), `adopted(status)`, `receive(frame)`, `lost()`,
 * `busy()`, `changed(status)`, `finished(err)`, `gone()` (its session no longer exists), `failed(err)`.
 */

import { ChatboxError, Close, Deferred, expiryOf, uuid, within } from './sdk-wire.js';
import { Dial, Memory } from './sdk-dial.js';
import { Watchdog } from './sdk-watchdog.js';

const DISCOVERY_MS = 10_000;
const BACKOFF_MS = { first: 500, last: 30_000, crowded: 5000 };

/** A connection that lasted this long was a good one: the next failure counts as the first. */
const STABLE_MS = 10_000;

/** A token is renewed this long before it expires, or at four fifths of a shorter life. */
const RENEW_MS = 60_000;
const TIMER_MS_MAX = 2 ** 31 - 1;

/** How long a request beside the exchanges may go unanswered. */
const ANSWER_MS = 15_000;

/** After so many streams a session is replaced, make-before-break: browsers tire of very long ones. */
const STREAMS_PER_LINK = 2000;

/** An `attach` that is refused with one of these is refused again, however often it is sent. */
const HOPELESS = new Set(['INVALID_FORMAT', 'MISSING_FIELD', 'INSUFFICIENT_PERMISSIONS', 'NOT_FOUND', 'SESSION_ENDED']);

/** What makes a retry, or a sign of life, worth while at once. */
const WAKERS = [
  [globalThis, 'online'],
  [globalThis, 'pageshow'],
  [globalThis.document, 'visibilitychange'],
];

export class Connection {
  #options;
  #owner;
  #memory;
  #info = null;
  #token = null;
  #tokenRefused = false;
  #state = 'closed';
  #reason = null;
  #link = null;
  #since = 0;
  #draining = false;
  #dial = null;
  #attempts = 0;
  #retryAt = null;
  #timer = null;
  #renewal = null;
  #asked = new Map();
  #watchdog;
  #wake = () => this.#woken();

  /** @param {{base: string, token?: string, getToken?: Function, storage: Storage | null}} options */
  constructor(options, owner) {
    this.#options = options;
    this.#owner = owner;
    this.#memory = new Memory(options.storage);
    this.#watchdog = new Watchdog({
      busy: () => this.#asked.size > 0 || (this.#link?.running ?? 0) > 0 || owner.busy(),
      ping: () => this.ask({ type: 'ping' }).catch(() => {}),
      dead: () => this.#dead(),
    });
  }

  /** What is to be shown of the connection. */
  get status() {
    const transport = this.#link?.kind ?? null;
    return { state: this.#state, transport, reason: this.#reason, retry_at: this.#retryAt };
  }

  /** Whether an exchange may begin now. The attach stream takes one of the streams. */
  get room() {
    return this.#link !== null && !this.#draining && this.#link.running < this.#link.streams - 1;
  }

  connect() {
    if (this.#state !== 'closed') return;
    this.#attempts = 0;
    this.#tokenRefused = false;
    for (const [target, event] of WAKERS) target?.addEventListener?.(event, this.#wake);
    this.#set('connecting');
    this.#connectNow();
  }

  /** Ends for good. @param {string | null} reason @param {ChatboxError} err */
  close(reason, err) {
    clearTimeout(this.#timer);
    this.#cancelDial();
    this.#retryAt = null;
    this.#drop();
    for (const [target, event] of WAKERS) target?.removeEventListener?.(event, this.#wake);
    this.#owner.finished(err);
    this.#set('closed', reason);
  }

  /** Attaches anew, from where the owner stands. @param {string | null} [avoid] a transport that went silent */
  resume(avoid = null) {
    this.#drop();
    this.#set('reconnecting', avoid ? 'silent' : 'resume');
    this.#connectNow(avoid);
  }

  /** Something is unanswered from now on. */
  expect() {
    if (this.#link) this.#watchdog.arm();
  }

  /** Takes the limits that the server announced. */
  limit({ streams }) {
    if (this.#link && streams) this.#link.streams = streams;
  }

  /** Sends a frame that goes beside the exchanges. @returns {Promise<object>} its one answer */
  ask(frame) {
    if (!this.#link) return Promise.reject(new ChatboxError('CONNECTION_LOST', 'there is no connection'));
    const id = uuid();
    const answer = new Deferred();
    this.#asked.set(id, answer);
    this.#link.inline({ ...frame, id });
    this.#watchdog.arm();
    return within(answer.promise, ANSWER_MS, frame.type).finally(() => this.#asked.delete(id));
  }

  /** Hands an answer to whoever asked beside the exchanges. @returns {boolean} whether somebody had */
  answer(re, answer) {
    const asked = this.#asked.get(re);
    if (answer instanceof Error) asked?.reject(answer);
    else asked?.resolve(answer);
    return asked !== undefined;
  }

  /** One request with its own stream. @returns {Promise<boolean>} true: it is over, and the link is still the same */
  async exchange(frame) {
    const link = this.#link;
    if (link.opened > STREAMS_PER_LINK && !this.#dial) this.#connectNow();
    this.#watchdog.arm();
    try {
      await link.exchange(frame);
    } catch (err) {
      if (link === this.#link) {
        this.#owner.failed(new ChatboxError('CONNECTION_LOST', err.message));
        this.resume();
      }
    }
    return link === this.#link;
  }

  /** The server drains: what runs goes on here until a new connection, on another node maybe, has it. */
  drain(retry_after) {
    this.#draining = true;
    this.#info = null;
    this.#retry(retry_after ?? this.#backoff());
  }

  async #connectNow(avoid = null) {
    clearTimeout(this.#timer);
    this.#cancelDial();
    this.#retryAt = null;
    const dial = new Dial({
      memory: this.#memory,
      avoid,
      attach: (id) => ({ token: this.#token, ...this.#owner.attach(id) }),
      adopt: (link, status) => this.#adopt(link, status),
      receive: (link, frame) => link === this.#link && this.#receive(frame),
      over: (failure) => this.#over(dial, failure),
    });
    this.#dial = dial;
    try {
      const [info, token] = await Promise.all([this.#discover(), this.#fetchToken()]);
      if (this.#dial !== dial) return;
      if (token) dial.start(info);
      else this.close('unauthorized', new ChatboxError('UNAUTHORIZED', 'there is no token'));
    } catch (err) {
      this.#over(dial, err);
    }
  }

  #cancelDial() {
    const dial = this.#dial;
    this.#dial = null;
    dial?.cancel();
  }

  async #discover() {
    if (this.#info) return this.#info;
    const response = await fetch(`${this.#options.base}/.well-known/chatbox`, {
      signal: AbortSignal.timeout(DISCOVERY_MS),
      cache: 'no-store',
    });
    if (!response.ok) throw new ChatboxError('SERVICE_ERROR', `discovery was answered with ${response.status}`);
    this.#info = await response.json();
    return this.#info;
  }

  async #fetchToken() {
    const expiry = this.#token && expiryOf(this.#token);
    const fresh = this.#token && !this.#tokenRefused && (expiry === null || expiry > Date.now());
    if (fresh) return this.#token;
    const { token, getToken } = this.#options;
    this.#token = (getToken ? await getToken({ refresh: this.#tokenRefused }) : token) ?? null;
    return this.#token;
  }

  #adopt(link, status) {
    const old = this.#link;
    this.#link = link;
    this.#since = performance.now();
    this.#draining = false;
    this.#tokenRefused = false;
    this.#retryAt = null;
    link.onclose = (end) => this.#lost(link, end);
    if (old) {
      this.#unanswered();
      old.close();
    }
    this.limit(status.limits ?? {});
    this.#watchdog.stop();
    this.#watchdog.heard();
    this.#owner.adopted(status);
    this.#watchdog.arm();
    this.#set('connected');
    this.#scheduleRenewal();
  }

  #receive(frame) {
    this.#watchdog.heard();
    this.#owner.receive(frame);
  }

  /** Nothing is under way any more; there may be a link, an older one or the one just dialled. */
  #over(dial, failure) {
    if (this.#dial !== dial) return;
    this.#dial = null;
    if (!failure) return;
    // The address or the pinned certificate may be another one by now.
    this.#info = null;
    if (this.#link) this.#retry(this.#backoff(BACKOFF_MS.crowded));
    else if (failure.answered && HOPELESS.has(failure.code)) this.#refused(failure);
    else this.#proceed(failure.close ?? Close.lost, failure);
  }

  #refused(failure) {
    if (failure.code === 'NOT_FOUND' && this.#owner.gone(failure)) this.#retry(0);
    else this.close('refused', failure);
  }

  #lost(link, { code, reason }) {
    if (link !== this.#link) return;
    const announced = this.#draining && this.#retryAt !== null ? this.#retryAt - Date.now() : 0;
    this.#cancelDial();
    this.#drop();
    if (performance.now() - this.#since > STABLE_MS) this.#attempts = 0;
    if (announced > 0) this.#retry(announced);
    else this.#proceed(code, new ChatboxError('CONNECTION_LOST', reason || 'the connection is lost', { close: code }));
  }

  /** What to do after an end, by its code (the contract, 1.3). */
  #proceed(code, err) {
    const renewable = !this.#tokenRefused && this.#options.getToken;
    switch (code) {
      case Close.done:
        return this.close('done', err);
      case Close.protocolError:
      case Close.frameTooLarge:
        return this.close('refused', err);
      case Close.unauthorized:
      case Close.tokenExpired:
        if (!renewable && (code === Close.unauthorized || !this.#options.getToken)) return this.close('unauthorized', err);
        this.#tokenRefused = true;
        return this.#retry(renewable ? 0 : this.#backoff());
      case Close.tooManyConnections:
        return this.#retry(this.#backoff(BACKOFF_MS.crowded));
      default:
        return this.#retry(Math.max(err.retry_after ?? 0, this.#backoff()));
    }
  }

  /** A doubling delay with jitter; the first try after a good connection comes nearly at once. */
  #backoff(least = 0) {
    const ceiling = Math.min(BACKOFF_MS.last, BACKOFF_MS.first * 2 ** this.#attempts);
    const share = this.#attempts === 0 ? 0.4 : 1;
    this.#attempts += 1;
    return least + ceiling * share * (0.5 + Math.random() / 2);
  }

  #retry(delay) {
    clearTimeout(this.#timer);
    this.#retryAt = Date.now() + delay;
    this.#timer = setTimeout(() => this.#connectNow(), delay);
    if (!this.#link) this.#set('reconnecting', 'lost');
  }

  #drop() {
    const link = this.#link;
    this.#link = null;
    this.#watchdog.stop();
    clearTimeout(this.#renewal);
    this.#unanswered();
    link?.close();
  }

  #unanswered() {
    for (const asked of this.#asked.values()) asked.reject(new ChatboxError('CONNECTION_LOST', 'no answer came'));
    this.#asked.clear();
    this.#owner.lost();
  }

  #dead() {
    const silent = this.#link?.kind ?? null;
    if (silent === 'webtransport') this.#memory.failed();
    this.resume(silent);
  }

  #woken() {
    if (globalThis.document?.visibilityState === 'hidden') return;
    if (this.#link) this.#watchdog.probe();
    else if (this.#retryAt !== null && !this.#dial) this.#connectNow();
  }

  #scheduleRenewal() {
    clearTimeout(this.#renewal);
    const expiry = this.#token && expiryOf(this.#token);
    if (!expiry || !this.#options.getToken) return;
    const life = expiry - Date.now();
    this.#renewal = setTimeout(() => this.#renewToken(), Math.min(TIMER_MS_MAX, Math.max(life - RENEW_MS, life * 0.8)));
  }

  async #renewToken() {
    const link = this.#link;
    try {
      const token = await this.#options.getToken({ refresh: true });
      if (!token || link !== this.#link) return;
      await this.ask({ type: 'auth', token });
      this.#token = token;
      this.#scheduleRenewal();
    } catch (err) {
      // The old identity holds until it expires; the server closes with code 2 then, and that path asks once more.
      this.#owner.failed(err);
    }
  }

  #set(state, reason = null) {
    this.#state = state;
    this.#reason = reason;
    this.#owner.changed(this.status);
  }
}
