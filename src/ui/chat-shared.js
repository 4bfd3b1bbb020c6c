/** A conversation behind a link: read once, over HTTP, without a token or a connection. */

import { $ } from './page-dom.js';
import { written } from './page-time.js';

const DEADLINE_MS = 15_000;

/**
 * Shows the conversation of a link in the page, and nothing that needs a sign-in.
 * @param {string} token
 * @param {import('./chat-log.js').Log} log
 */
export async function showShared(token, log) {
  for (const id of ['status', 'all', 'new', 'share', 'composer', 'below', 'empty']) $(id).hidden = true;
  try {
    const response = await fetch(`shared/${encodeURIComponent(token)}`, {
      cache: 'no-store',
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
    if (response.ok) show(await response.json(), log);
    else if (response.status === 404) gone('This link does not work', 'It has expired, or it was revoked.');
    else gone('This conversation could not be loaded', `The server answered with ${response.status}. Try again later.`);
  } catch {
    gone('This conversation could not be loaded', 'The server cannot be reached. Reload the page to try again.');
  }
}

function show({ name, shared_at, expires_at, entries }, log) {
  const title = name || 'Untitled';
  $('name').textContent = title;
  document.title = title;
  $('closed-text').textContent =
    `Shared conversation, as it was on ${written(shared_at)}` +
    (expires_at ? `. The link works until ${written(expires_at)}` : '');
  $('closed').hidden = false;
  log.frames(entries);
  log.toTop();
}

/** Says that there is nothing to show. */
export function gone(title, words) {
  $('gone-title').textContent = title;
  $('gone-text').textContent = words;
  $('gone-new').hidden = true;
  $('gone').hidden = false;
  $('gone-title').focus();
}
