/**
 * Where the pages get their tokens from: the host around them, or else the local sign-in, which gives one for the
 * one-time code in the URL's fragment, and after it for an HttpOnly cookie. A token is kept in memory only.
 */

import { $, icon, make } from './page-dom.js';
import { Host } from './page-host.js';

const local = [
  () => [
    'Open the link that the server printed when it started. It looks like ',
    make('code', {}, new URL('./#code=…', location.href).href.replace('%E2%80%A6', '…')),
    ', works once, and for ten minutes.',
  ],
  () => ['No link at hand? Start the server again: it prints a new one, and your conversations stay.'],
];
const hosted = [() => ['The application around this page has not signed you in. Sign in there, then try again.']];
const absent = [() => ['This page gets its sign-in from the application that it is part of. Open it from there.']];

let advice = local;

/**
 * A source of tokens for the client.
 * @param {() => void} given called when the host gives a token by itself
 * @returns {(wish: {refresh: boolean}) => Promise<string | null>} `null`: nobody is signed in here. Rejects when
 *   nobody can be asked.
 */
export function tokenSource(given) {
  if (Host.present) {
    advice = hosted;
    const host = new Host(given);
    return (wish) => host.token(wish);
  }
  let code = takeCode();
  // A fresh link that is opened in this very tab changes the fragment only.
  addEventListener('hashchange', () => fragment().has('code') && location.reload());
  return async () => {
    const response = await fetch('dev/session', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(code ? { code } : {}),
      cache: 'no-store',
    });
    code = null;
    if (response.ok) return (await response.json()).token;
    if (response.status >= 500 || response.status === 429) throw new Error(`sign-in was answered with ${response.status}`);
    advice = response.status === 404 ? absent : local;
    return null;
  };
}

/** What the URL's fragment says: `session`, `share`, `code`. */
export function fragment() {
  return new URLSearchParams(location.hash.slice(1));
}

/** Takes the code out of the address bar, and out of the history with it. */
function takeCode() {
  const code = fragment().get('code');
  if (code) history.replaceState(history.state, '', location.pathname + location.search);
  return code;
}

/** Shows, or hides, what to do without a sign-in. @param {boolean} needed @param {() => void} retry */
export function showSignIn(needed, retry) {
  const panel = $('signin');
  const shown = !panel.hidden;
  panel.hidden = !needed;
  if (!needed || shown) return;
  const mark = icon('key');
  mark.classList.add('panel-mark');
  const title = make('h2', { id: 'signin-title', tabIndex: -1 }, 'You are not signed in');
  const button = make('button', { id: 'signin-retry', className: 'solid', type: 'button', onclick: retry }, 'Try again');
  const lines = advice.map((line, index) => make('p', { className: index ? 'muted' : '' }, ...line()));
  panel.replaceChildren(mark, title, ...lines, button);
  title.focus();
}
