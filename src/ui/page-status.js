/** The chip that says how the connection is, and the line that says what went wrong. */

import { $ } from './page-dom.js';

const TRANSPORTS = { webtransport: 'WebTransport', websocket: 'WebSocket' };

/** What a connection that is there has to say of how it came back, and for how long. */
const RESUMES = { resumed: ' · resumed', restarted: ' · restarted' };
const RESUME_MS = 6000;

let countdown;

/**
 * Shows the state of the connection.
 * @param {import('./sdk.js').Status} status
 */
export function showStatus({ state, transport, reason, retry_at, resume }) {
  clearTimeout(countdown);
  const chip = $('status');
  chip.dataset.state = state;
  chip.dataset.transport = transport ?? '';
  chip.dataset.resume = resume ?? '';
  const seconds = retry_at ? Math.ceil((retry_at - Date.now()) / 1000) : 0;
  const words = {
    connecting: 'Connecting…',
    connected: TRANSPORTS[transport],
    reconnecting: seconds > 1 ? `Reconnecting in ${seconds} s…` : 'Reconnecting…',
    closed: reason === 'unauthorized' ? 'Not signed in' : 'Closed',
  }[state];
  if ($('status-text').textContent !== words) $('status-text').textContent = words;
  const again = () => showStatus({ state, transport, reason, retry_at });
  // On a narrow screen the dot alone shows this; it is read out all the same.
  $('status-more').textContent = state === 'connected' ? (RESUMES[resume] ?? ' · connected') : '';
  if (seconds > 1) countdown = setTimeout(again, 1000);
  else if (state === 'connected' && RESUMES[resume]) countdown = setTimeout(again, RESUME_MS);
}

/** Shows one failure, or none. @param {string | null} words */
export function alertLine(words) {
  $('alert').hidden = !words;
  $('alert-text').textContent = words ?? '';
}
