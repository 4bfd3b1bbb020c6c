/**
 * Small facts of the contract that every module of the client needs: close codes, ids, deadlines, tokens.
 * Knows no transport and no state.
 */

/** What a connection's end means (the contract, 1.3). `lost` is ours: it broke without a word. */
export const Close = Object.freeze({
  done: 0,
  unauthorized: 1,
  tokenExpired: 2,
  goingAway: 3,
  slowConsumer: 4,
  protocolError: 5,
  tooManyConnections: 6,
  frameTooLarge: 7,
  internalError: 8,
  lost: null,
});

const STANDARD_CODES = new Map([
  [1000, Close.done],
  [1001, Close.goingAway],
  [1002, Close.protocolError],
  [1007, Close.protocolError],
  [1009, Close.frameTooLarge],
]);

/**
 * The close code behind a WebSocket close code: a standard one, or 4000 + code.
 * @param {number} code
 * @returns {number | null} `null` when the socket broke without a close frame
 */
export function closeOfWebSocket(code) {
  if (code >= 4000 && code <= 4008) return code - 4000;
  return STANDARD_CODES.get(code) ?? Close.lost;
}

/** A failure that callers tell apart by `code`: one of the contract's, or `CLOSED`, `CONNECTION_LOST`, `TIMEOUT`. */
export class ChatboxError extends Error {
  /**
   * @param {string} code
   * @param {string} message for people
   * @param {object} [more] `retry_after` in milliseconds, `turn_id`, `close` (a close code)
   */
  constructor(code, message, more = {}) {
    super(message);
    this.name = 'ChatboxError';
    this.code = code;
    Object.assign(this, more);
  }
}

/**
 * A UUID of this moment and 74 random bits (RFC 9562, section 5.7): a store that sorts requests by it keeps those
 * together that come together.
 * @returns {string}
 */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  for (let at = 5, ms = Date.now(); at >= 0; at -= 1, ms = Math.floor(ms / 256)) bytes[at] = ms % 256;
  bytes[6] = (bytes[6] & 0x0f) | 0x70;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = hexOf(bytes);
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

/** @param {Uint8Array} bytes @returns {string} */
export function hexOf(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** @param {string} hex @returns {Uint8Array} */
export function bytesOf(hex) {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

/**
 * Settles like `promise`, or rejects with `TIMEOUT` after `ms`.
 * @template T
 * @param {Promise<T>} promise
 * @param {number} ms
 * @param {string} what for the error's text
 * @returns {Promise<T>}
 */
export function within(promise, ms, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new ChatboxError('TIMEOUT', `${what} took longer than ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/**
 * What a token says of itself. Only to renew it in time and to keep users apart; the server alone decides.
 * @param {string} token
 * @returns {Record<string, any> | null} `null` when the token is opaque
 */
export function claimsOf(token) {
  try {
    const bytes = atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/'));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0))));
  } catch {
    return null;
  }
}

/**
 * When a token ends, in milliseconds since 1970.
 * @param {string} token
 * @returns {number | null} `null` when the token is opaque
 */
export function expiryOf(token) {
  const exp = claimsOf(token)?.exp;
  return typeof exp === 'number' ? exp * 1000 : null;
}

/** A promise with its two ends outside. A rejection that nobody waits for is not reported. */
export class Deferred {
  constructor() {
    this.settled = false;
    this.promise = new Promise((resolve, reject) => {
      this.resolve = (value) => {
        this.settled = true;
        resolve(value);
      };
      this.reject = (err) => {
        this.settled = true;
        reject(err);
      };
    });
    this.promise.catch(() => {});
  }
}

/** @param {string | URL} [given] where the server's routes begin; where this script is, if absent @returns {string} */
export function baseOf(given) {
  return String(given ?? new URL('.', import.meta.url)).replace(/\/+$/, '');
}

/** @param {Storage | null} [given] @returns {Storage | null} what is given, else the browser's */
export function browserStorage(given) {
  if (given !== undefined) return given;
  try {
    return globalThis.localStorage ?? null;
  } catch {
    // The browser blocks storage for this page.
    return null;
  }
}
