/**
 * Keeps one link to the server alive: discovery, token, dialling, back-off, renewal, drain, watchdog, and the page's
 * coming and going. What the frames mean is its owner's business.
 *
 * The owner gives: `attach(id)` (the frame without its token), `adopted(status)` (whether its position was honoured),
 * `receive(frame)`, `copy(frame)` (whether a copy of a frame was taken), `lost()`, `freed()` (there is room), `busy()`, `changed(status)`, `finished(err)`, `gone()` (its
 * session no longer exists), `failed(err)`.
 */

import { ChatboxError, Close, Deferred, uuid, within } from './sdk-wire.js';
import { Dial, Memory } from './sdk-dial.js';
import { HEARTBEAT_MS, Watchdog } from './sdk-watchdog.js';

const DISCOVERY_MS = 10_000;
const BACKOFF_MS = { first: 500, last: 30_000, crowded: 5000 };

/** A connection that lasted this long was a good one: the next failure counts as the first. */
const STABLE_MS = 10_000;

/** A token is renewed this long before it expires, or at four fifths of a shorter life. */
const RENEW_MS = 60_000;
const TIMER_MS_MAX = 2 ** 31 - 1;

/** How long a request beside the exchanges may go unanswered. */
const ANSWER_MS = 15_000;

/** After so much a link is replaced, make-before-break: WebKit is reported to stall on very long sessions. */
const RENEW_AFTER = { streams: 2000, bytes: 64 * 1024 * 1024 };

/** How long a worn link may wait for a moment with nothing in flight. */
const WORN_MS = 10_000;

/** An `attach` that is refused with one of these is refused again, however often it is sent. */
const HOPELESS = new Set(['INVALID_FORMAT', 'MISSING_FIELD', 'INSUFFICIENT_PERMISSIONS', 'NOT_FOUND', 'SESSION_ENDED']);

/** What makes a retry, or a sign of life, worth while at once. */
const WAKERS = [
  [globalThis, 'online'],
  [globalThis, 'offline'],
  [globalThis.navigator?.connection, 'change'],
  [globalThis, 'pageshow'],
  [globalThis.document, 'resume'],
  [globalThis.document, 'visibilitychange'],
];

/** The page goes away, maybe to come back: an open connection would keep it out of the browser's page cache. */
const SLEEPERS = [
  [globalThis, 'pagehide'],
  [globalThis.document, 'freeze'],
];

export class Connection {
  #options;
  #owner;
  #memory;
  #tokens;
  #info = null;
  #tokenRefused = false;
  #state = 'closed';
  #reason = null;
  #resume = null;
  #link = null;
  #since = 0;
  #draining = false;
  #dial = null;
  #attempts = 0;
  #retryAt = null;
  #timer = null;
  #renewal = null;
  #worn = null;
  #renewAfter;
  /** id → `{frame, answer, stream, link}` */
  #asked = new Map();
  #watchdog;
  #network = globalThis.navigator?.connection?.type;
  #wake = (event) => this.#woken(event);
  #sleep = () => this.#suspend();

  /**
   * @param {{base: string, storage: Storage | null, heartbeat?: number, renewAfter?: object}} options
   * @param {import('./sdk-token.js').Tokens} tokens
   */
  constructor(options, tokens, owner) {
    this.#options = options;
    this.#tokens = tokens;
    this.#owner = owner;
    this.#memory = new Memory(options.storage);
    this.#renewAfter = { ...RENEW_AFTER, ...options.renewAfter };
    this.#watchdog = new Watchdog(options.heartbeat ?? HEARTBEAT_MS, {
      busy: () => this.#busy,
      ping: () => this.#ping(),
      dead: () => this.#dead(),
    });
  }

  /** What is to be shown of the connection. */
  get status() {
    const transport = this.#link?.kind ?? null;
    return { state: this.#state, transport, reason: this.#reason, retry_at: this.#retryAt, resume: this.#resume };
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
    for (const [target, event] of SLEEPERS) target?.addEventListener?.(event, this.#sleep);
    this.#resume = null;
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
    for (const [target, event] of SLEEPERS) target?.removeEventListener?.(event, this.#sleep);
    for (const { answer } of this.#asked.values()) answer.reject(err);
    this.#asked.clear();
    this.#owner.finished(err);
    this.#set('closed', reason);
  }

  /** Attaches anew, from where the owner stands. @param {string | null} [avoid] a transport that went silent */
  resume(avoid = null) {
    this.#drop();
    this.#set('reconnecting', avoid ? 'silent' : 'resume');
    this.#connectNow(avoid);
  }

  /** Attaches anew, to something else: what comes is no resumption. */
  begin() {
    this.#drop();
    this.#resume = null;
    this.#set('reconnecting', 'resume');
    this.#connectNow();
  }

  /** Something is unanswered from now on. */
  expect() {
    if (this.#link) this.#watchdog.arm();
  }

  /** Something has ended, and maybe nothing is in flight now. */
  rest() {
    this.#renewWorn();
  }

  /** Takes the limits that the server announced. */
  limit({ streams }) {
    if (this.#link && streams) this.#link.streams = streams;
  }

  /** Sends a frame that nobody answers, if there is a connection. */
  tell(frame) {
    this.#link?.inline(frame);
  }

  /** Sends a frame that goes beside the exchanges. @returns {Promise<object>} its one answer */
  ask(frame) {
    return this.#request(frame, false);
  }

  /** Sends a frame that has one answer, on a stream of its own when there is room. @returns {Promise<object>} */
  request(frame) {
    return this.#request(frame, true);
  }

  /** Hands an answer to whoever asked beside the exchanges. @returns {boolean} whether somebody had */
  answer(re, answer) {
    const asked = this.#asked.get(re);
    if (answer instanceof Error) asked?.answer.reject(answer);
    else asked?.answer.resolve(answer);
    return asked !== undefined;
  }

  /** One request with its own stream. @returns {Promise<boolean>} true: it is over, and the link is still the same */
  async exchange(frame) {
    const link = this.#link;
    this.#watchdog.sent(frame.id);
    try {
      await link.exchange(frame);
    } catch (err) {
      if (link === this.#link) {
        this.#owner.failed(new ChatboxError('CONNECTION_LOST', err.message));
        this.resume();
      }
    }
    if (link !== this.#link) return false;
    this.#renewWorn();
    this.#pump();
    return true;
  }

  /** The server drains: what runs goes on here until a new connection, on another node maybe, has it. */
  drain(retry_after) {
    this.#draining = true;
    this.#info = null;
    this.#retry(retry_after ?? this.#backoff());
  }

  get #busy() {
    return this.#asked.size > 0 || (this.#link?.running ?? 0) > 0 || this.#owner.busy();
  }

  /** A request that outlasts a link is sent again over the next one, under the same id. */
  #request(frame, stream) {
    if (this.#state === 'closed') return Promise.reject(new ChatboxError('CONNECTION_LOST', 'there is no connection'));
    const id = uuid();
    const answer = new Deferred();
    this.#asked.set(id, { frame: { ...frame, id }, answer, stream, link: null });
    this.#pump();
    return within(answer.promise, ANSWER_MS, frame.type).finally(() => this.#asked.delete(id));
  }

  #pump() {
    for (const asked of this.#asked.values()) {
      const waits = !this.#link || asked.link === this.#link || (asked.stream && !this.room);
      if (waits) continue;
      asked.link = this.#link;
      if (asked.stream) {
        this.exchange(asked.frame).then((same) => same && this.#owner.freed());
      } else {
        this.#link.inline(asked.frame);
        this.#watchdog.sent(asked.frame.id);
      }
    }
  }

  #ping() {
    const id = uuid();
    this.#link.inline({ type: 'ping', id });
    return id;
  }

  async #connectNow(avoid = null) {
    clearTimeout(this.#timer);
    this.#cancelDial();
    this.#retryAt = null;
    const dial = new Dial({
      memory: this.#memory,
      avoid,
      attach: (id, token) => ({ token, ...this.#owner.attach(id) }),
      adopt: (link, status) => this.#adopt(link, status),
      receive: (link, frame) => link === this.#link && this.#receive(frame),
      copy: (link, frame) => link === this.#link && this.#copy(frame),
      over: (failure) => this.#over(dial, failure),
    });
    this.#dial = dial;
    try {
      const token = this.#tokenRefused ? this.#tokens.renew() : this.#tokens.get();
      const [info, held] = await Promise.all([this.#discover(), token]);
      if (this.#dial !== dial) return;
      if (held) dial.start(info, held);
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

  #adopt(link, status) {
    const old = this.#link;
    this.#link = link;
    this.#since = performance.now();
    this.#draining = false;
    this.#tokenRefused = false;
    this.#retryAt = null;
    this.#fresh();
    link.onclose = (end) => this.#lost(link, end);
    if (old) {
      this.#owner.lost();
      old.close();
    }
    this.limit(status.limits ?? {});
    const honoured = this.#owner.adopted(status);
    if (!old && this.#resume === null) this.#resume = 'connected';
    else if (!honoured) this.#resume = 'restarted';
    else if (!old) this.#resume = 'resumed';
    this.#watchdog.arm();
    this.#set('connected');
    this.#pump();
    this.#scheduleRenewal();
  }

  /** Forgets what was true of the link before. */
  #fresh() {
    this.#watchdog.stop();
    clearTimeout(this.#worn);
    this.#worn = null;
  }

  #receive(frame) {
    if (frame.re) this.#watchdog.answered(frame.re);
    this.#owner.receive(frame);
    this.#renewWorn();
  }

  #copy(frame) {
    if (this.#owner.copy?.(frame) && frame.re) this.#watchdog.answered(frame.re);
  }

  /** Replaces a link that has carried much: when nothing is in flight, or after a while whatever is. */
  #renewWorn() {
    const link = this.#link;
    const { streams, bytes } = this.#renewAfter;
    const worn = link && (link.opened >= Math.max(1, streams) || link.received >= Math.max(1, bytes));
    if (!worn || this.#dial || this.#retryAt !== null) return;
    if (!this.#busy) this.#connectNow();
    else this.#worn ??= setTimeout(() => !this.#dial && this.#retryAt === null && this.#connectNow(), WORN_MS);
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
    if (failure.code !== 'NOT_FOUND' || !this.#owner.gone(failure)) {
      this.close('refused', failure);
      return;
    }
    // What comes is something else, and no resumption.
    this.#resume = null;
    this.#retry(0);
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
    const renewable = !this.#tokenRefused && this.#tokens.renewable;
    switch (code) {
      case Close.done:
        return this.close('done', err);
      case Close.protocolError:
      case Close.frameTooLarge:
        return this.close('refused', err);
      case Close.unauthorized:
      case Close.tokenExpired:
        if (!renewable && (code === Close.unauthorized || !this.#tokens.renewable)) return this.close('unauthorized', err);
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
    this.#fresh();
    clearTimeout(this.#renewal);
    if (link) this.#owner.lost();
    link?.close();
  }

  #dead() {
    this.resume(this.#link?.kind ?? null);
  }

  #woken({ type }) {
    if (type === 'visibilitychange' && document.visibilityState === 'hidden') return;
    if (type === 'change' && !this.#moved()) return;
    if (this.#link) this.#watchdog.probe();
    else if (type !== 'offline' && !this.#dial) this.#connectNow();
  }

  /** Whether the device is on another kind of network. Its estimates change all the time, and mean nothing here. */
  #moved() {
    const before = this.#network;
    this.#network = navigator.connection.type;
    return this.#network !== before;
  }

  #suspend() {
    clearTimeout(this.#timer);
    this.#cancelDial();
    this.#retryAt = null;
    this.#drop();
    this.#set('reconnecting', 'suspended');
  }

  #scheduleRenewal() {
    clearTimeout(this.#renewal);
    const { expiry, renewable } = this.#tokens;
    if (!expiry || !renewable) return;
    const life = expiry - Date.now();
    this.#renewal = setTimeout(() => this.#renewToken(), Math.min(TIMER_MS_MAX, Math.max(life - RENEW_MS, life * 0.8)));
  }

  async #renewToken() {
    try {
      const token = await this.#tokens.renew();
      // A link that comes up from now on brings it along.
      if (!token || !this.#link) return;
      await this.ask({ type: 'auth', token });
      this.#scheduleRenewal();
    } catch (err) {
      // The old identity holds until it expires; the server closes with code 2 then, and that path asks once more.
      this.#owner.failed(err);
    }
  }

  #set(state, reason = null) {
    if (state === 'reconnecting' && this.#resume !== null) this.#resume = 'resuming';
    if (state === 'closed') this.#resume = null;
    this.#state = state;
    this.#reason = reason;
    this.#owner.changed(this.status);
  }
}
