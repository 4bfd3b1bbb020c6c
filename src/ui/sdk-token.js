/**
 * The token of a page: kept while it is good, asked of the host when it is not. In memory only. Several parts of a
 * page share one, so that the host is asked once.
 */

import { claimsOf, expiryOf, within } from './sdk-wire.js';

/** How long the host may take. */
const DEADLINE_MS = 30_000;

export class Tokens {
  #given;
  #getToken;
  #value = null;
  #asking = null;

  /** @param {{token?: string, getToken?: (wish: {refresh: boolean}) => Promise<string | null> | string | null}} source */
  constructor({ token, getToken }) {
    this.#given = token ?? null;
    this.#getToken = getToken;
  }

  /** Whether the host can give another one. */
  get renewable() {
    return Boolean(this.#getToken);
  }

  /** When it ends, in milliseconds since 1970; `null` when that is unknown. */
  get expiry() {
    return this.#value && expiryOf(this.#value);
  }

  /** Whom it names; `null` when that is unknown. The server alone decides. */
  get user() {
    const { user_id, sub } = (this.#value && claimsOf(this.#value)) || {};
    return user_id || sub || null;
  }

  /** @returns {Promise<string | null>} one that has not expired, or `null` when nobody is signed in */
  async get() {
    const fresh = this.#value && (this.expiry === null || this.expiry > Date.now());
    return fresh ? this.#value : this.#ask(false);
  }

  /** Asks for another one: the server refused this one, or it ends soon. @returns {Promise<string | null>} */
  renew() {
    return this.#ask(true);
  }

  #ask(refresh) {
    this.#asking ??= this.#fetch(refresh).finally(() => (this.#asking = null));
    return this.#asking;
  }

  async #fetch(refresh) {
    const given = this.#getToken ? this.#getToken({ refresh }) : this.#given;
    this.#value = (await within(Promise.resolve(given), DEADLINE_MS, 'the token')) ?? null;
    return this.#value;
  }
}
