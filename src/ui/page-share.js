/** The dialog that makes a link to a conversation, and takes links back. */

import { openDialog } from './page-dialog.js';
import { copies, icon, make } from './page-dom.js';
import { written } from './page-time.js';

const DAY_S = 24 * 60 * 60;
const EXPIRIES = [
  ['', 'Until it is revoked'],
  [DAY_S, 'For one day'],
  [7 * DAY_S, 'For a week'],
  [30 * DAY_S, 'For 30 days'],
];

/**
 * @param {{share: (options: {expires_in?: number}) => Promise<{url: string, expires_at?: string}>,
 *   unshare: () => Promise<void>}} session
 */
export function openShare(session) {
  return openDialog('Share this conversation', () => {
    const state = make('p', { className: 'muted', role: 'status' }, 'Anyone with the link can read the conversation as it is now. What is said later is not shown.');
    const fault = make('p', { className: 'fault', role: 'alert', hidden: true });
    const expiry = make('select', { id: 'share-expiry', className: 'field' }, ...EXPIRIES.map(([value, words]) => make('option', { value }, words)));
    const create = make('button', { type: 'button', className: 'solid', autofocus: true }, 'Create a link');
    const choice = make('label', { className: 'choice', for: 'share-expiry' }, 'The link works', expiry);
    const link = make('div', { className: 'link', hidden: true });
    const revoke = make('button', { type: 'button', className: 'outline fault' }, 'Revoke all links');

    const attempt = (button, action) => async () => {
      fault.hidden = true;
      button.disabled = true;
      try {
        await action();
      } catch (err) {
        fault.textContent = `That did not work: ${err.message}.`;
        fault.hidden = false;
      }
      button.disabled = false;
    };
    create.onclick = attempt(create, async () => {
      const expires_in = expiry.value ? Number(expiry.value) : undefined;
      const { url, expires_at } = await session.share({ expires_in });
      link.replaceChildren(...shown(url));
      link.hidden = false;
      state.textContent = expires_at
        ? `The link works until ${written(expires_at)}. It shows the conversation as it is now.`
        : 'The link works until it is revoked. It shows the conversation as it is now.';
      link.querySelector('input').select();
    });
    revoke.onclick = attempt(revoke, async () => {
      await session.unshare();
      link.hidden = true;
      state.textContent = 'No link works any more.';
    });
    return [state, choice, link, fault, make('div', { className: 'buttons' }, revoke, create)];
  });
}

function shown(url) {
  const button = make('button', { type: 'button', className: 'outline copy' }, icon('copy'), make('span', {}, 'Copy'));
  const field = make('input', { className: 'field', readOnly: true, value: url, 'aria-label': 'Link' });
  const box = [field, button];
  copies(button, () => url);
  return box;
}
