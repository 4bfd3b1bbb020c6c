/**
 * The token of a page that is part of something else: a frame asks the page around it, a WebView the app around it.
 *
 *     page → host   {type: "request_token"}, {type: "refresh_token"}
 *     host → page   {type: "token", token}     at any time; `null` says that nobody is signed in
 *
 * To a frame only the origins that the server names as parents exist: nothing is sent to another one, and nothing is
 * taken from another one, nor from any window but the parent. A WebView has no other windows; its bridge carries
 * strings. A token is in memory only.
 */

import { Deferred, within } from './sdk-wire.js';

const ANSWER_MS = 10_000;

const framed = () => window.parent !== window;
const bridge = () => window.ReactNativeWebView;

export class Host {
  #parents;
  #asked = null;
  #given = null;
  #seen = new WeakSet();
  #changed;

  /** Whether there is a host to ask. */
  static get present() {
    return framed() || bridge() !== undefined;
  }

  /** @param {() => void} changed called when the host has given a token that nobody asked for */
  constructor(changed) {
    this.#changed = changed;
    window.addEventListener('message', (event) => this.#heard(event));
    // Android's WebView dispatches on the document.
    document.addEventListener('message', (event) => this.#heard(event));
  }

  /**
   * Asks the host.
   * @param {{refresh: boolean}} wish
   * @returns {Promise<string | null>} `null`: the host says that nobody is signed in, or says nothing. Rejects when a
   *   token that is to be renewed gets no answer: the old one may still be good.
   */
  async token({ refresh }) {
    const given = this.#given;
    this.#given = null;
    if (given && !refresh) return given;
    const parents = await this.#origins();
    this.#asked ??= new Deferred();
    const { promise } = this.#asked;
    this.#send({ type: refresh ? 'refresh_token' : 'request_token' }, parents);
    try {
      return await within(promise, ANSWER_MS, 'the page around this one');
    } catch (err) {
      this.#asked = null;
      if (refresh) throw err;
      return null;
    }
  }

  /** What the server says about who may be a parent. */
  async #origins() {
    if (!framed()) return [];
    this.#parents ??= fetch('.well-known/chatbox', { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_MS) })
      .then((response) => {
        if (!response.ok) throw new Error(`discovery was answered with ${response.status}`);
        return response.json();
      })
      .then(({ parents }) => parents ?? []);
    try {
      return await this.#parents;
    } catch (err) {
      this.#parents = null;
      throw err;
    }
  }

  #send(message, parents) {
    if (!framed()) {
      bridge().postMessage(JSON.stringify(message));
      return;
    }
    for (const origin of addressed(parents)) window.parent.postMessage(message, origin);
  }

  async #heard(event) {
    if (this.#seen.has(event) || !(framed() ? event.source === window.parent : fromApp(event))) return;
    this.#seen.add(event);
    const { type, token } = read(event.data);
    if (type !== 'token' || (token !== null && typeof token !== 'string')) return;
    if (framed() && !(await this.#origins()).includes(event.origin)) return;
    const asked = this.#asked;
    this.#asked = null;
    if (asked) {
      asked.resolve(token || null);
    } else if (token) {
      this.#given = token;
      this.#changed();
    }
  }
}

/** The parents that a question goes to: the one there is, where the browser tells; a browser delivers to no other. */
function addressed(parents) {
  const told = [location.ancestorOrigins?.[0], document.referrer && new URL(document.referrer).origin];
  const known = told.find((origin) => origin && origin !== 'null');
  return known ? parents.filter((origin) => origin === known) : parents;
}

/** What an app injects comes from no window, or from this one. */
function fromApp({ source, origin, data }) {
  const own = origin === '' || origin === 'null' || origin === location.origin;
  return bridge() !== undefined && (!source || source === window) && own && typeof data === 'string';
}

function read(data) {
  if (typeof data !== 'string') return data ?? {};
  try {
    return JSON.parse(data) ?? {};
  } catch {
    return {};
  }
}
