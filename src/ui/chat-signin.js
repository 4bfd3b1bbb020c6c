/**
 * The local sign-in: the one-time code in the URL's fragment, and after it an HttpOnly cookie, for a token.
 * The token is kept in memory only.
 */

/** Takes the code out of the address bar, and out of the history with it. @returns {string | null} */
export function takeCode() {
  const code = new URLSearchParams(location.hash.slice(1)).get('code');
  if (code) history.replaceState(history.state, '', location.pathname + location.search);
  return code;
}

/**
 * A source of tokens for `Chatbox`.
 * @param {string | null} code what `takeCode` gave
 * @returns {() => Promise<string | null>} `null`: nobody is signed in here. Rejects when the server cannot be asked.
 */
export function tokenSource(code) {
  let unused = code;
  return async () => {
    const body = unused ? { code: unused } : {};
    const response = await fetch('dev/session', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      cache: 'no-store',
    });
    unused = null;
    if (response.ok) return (await response.json()).token;
    if (response.status >= 500 || response.status === 429) throw new Error(`sign-in was answered with ${response.status}`);
    return null;
  };
}
