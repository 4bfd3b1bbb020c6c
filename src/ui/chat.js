/** The chat page: puts the client, the conversation, the composer and the sign-in together. */

import { Chatbox } from './sdk.js';
import { Composer } from './chat-composer.js';
import { Log } from './chat-log.js';
import { takeCode, tokenSource } from './chat-signin.js';

const TRANSPORTS = { webtransport: 'WebTransport', websocket: 'WebSocket' };

/** How much of an answer is read out by a screen reader when it is done. */
const ANNOUNCED_CHARS_MAX = 1500;

const $ = (id) => document.getElementById(id);

const chat = new Chatbox({ base: new URL('.', location.href), getToken: tokenSource(takeCode()) });

const log = new Log(
  { log: $('log'), scroller: $('scroller'), newest: $('newest') },
  { retry: (message) => chat.retry(message), changed: () => showEmpty() },
);

const composer = new Composer(
  { form: $('composer'), text: $('text'), send: $('send'), counter: $('counter') },
  (content) => say(content),
);

/** Turns that have not ended, in the order they came; the first is the one that runs. */
const running = new Set();
let countdown;

function say(content) {
  alertLine(null);
  try {
    chat.send(content);
    log.toBottom();
  } catch (err) {
    alertLine(err.message);
  }
}

function announce(words) {
  $('announcer').textContent = words;
}

function alertLine(words) {
  $('alert').hidden = !words;
  $('alert-text').textContent = words ?? '';
}

function showEmpty() {
  // Until the server has said that there is nothing, a history may still come.
  $('empty').hidden = !(log.empty && chat.session?.last_seq === 0) || !$('signin').hidden;
  $('new').hidden = log.empty;
}

function showStop() {
  $('stop').hidden = running.size === 0 || chat.status.state !== 'connected';
}

function showStatus({ state, transport, reason, retry_at }) {
  clearTimeout(countdown);
  const chip = $('status');
  chip.dataset.state = state;
  chip.dataset.transport = transport ?? '';
  const seconds = retry_at ? Math.ceil((retry_at - Date.now()) / 1000) : 0;
  const words = {
    connecting: 'Connecting…',
    connected: TRANSPORTS[transport],
    reconnecting: seconds > 1 ? `Reconnecting in ${seconds} s…` : 'Reconnecting…',
    closed: reason === 'unauthorized' ? 'Not signed in' : 'Closed',
  }[state];
  if ($('status-text').textContent !== words) $('status-text').textContent = words;
  // On a narrow screen the dot alone shows this; it is read out all the same.
  $('status-more').textContent = state === 'connected' ? ' · connected' : '';
  if (seconds > 1) countdown = setTimeout(() => showStatus(chat.status), 1000);
  showSignIn(state === 'closed' && reason === 'unauthorized');
  $('hint').hidden = state === 'reconnecting';
  $('offline').hidden = state !== 'reconnecting';
  if (state === 'closed' && reason === 'refused') alertLine('The server has closed this connection. Reload the page to go on.');
  showStop();
}

function showSignIn(needed) {
  const shown = !$('signin').hidden;
  $('signin').hidden = !needed;
  $('composer').inert = needed;
  if (needed && !shown) $('signin-title').focus();
  showEmpty();
}

chat.addEventListener('status', ({ detail }) => showStatus(detail));
chat.addEventListener('session', ({ detail }) => {
  if (detail.limits) composer.limit = detail.limits.content_chars;
  showEmpty();
});
chat.addEventListener('reset', () => {
  running.clear();
  log.clear();
  showStop();
});
chat.addEventListener('entry', ({ detail }) => log.entry(detail));
chat.addEventListener('message', ({ detail }) => {
  log.message(detail);
  if (detail.state === 'accepted' && detail.turn_id) begin(detail.turn_id);
  if (detail.state === 'failed') alertLine(`Your message was not sent: ${detail.error.message}.`);
});
chat.addEventListener('turn', ({ detail }) => {
  log.turn(detail);
  begin(detail.id);
});
chat.addEventListener('piece', ({ detail }) => {
  log.piece(detail);
  begin(detail.turn_id);
});
chat.addEventListener('reply', ({ detail }) => {
  const live = log.reply(detail);
  running.delete(detail.turn_id);
  showStop();
  if (live) announce(`Answer: ${detail.text.slice(0, ANNOUNCED_CHARS_MAX)}`);
});
chat.addEventListener('error', ({ detail }) => {
  // A failed turn and a refused message carry their own words.
  const shown = detail.turn_id || detail.code === 'CONNECTION_LOST' || detail.code === 'GOING_AWAY';
  if (!shown) alertLine(detail.message);
});

function begin(turn) {
  if (running.has(turn)) return;
  running.add(turn);
  announce('An answer is on its way.');
  showStop();
}

async function stop() {
  const [turn] = running;
  if (!turn) return;
  try {
    await chat.stop(turn);
    composer.focus();
  } catch (err) {
    // It ended by itself just now.
    if (err.code !== 'TURN_NOT_FOUND') alertLine(`The answer could not be stopped: ${err.message}.`);
  }
}

$('stop').addEventListener('click', stop);
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !$('stop').hidden) stop();
});
$('alert-close').addEventListener('click', () => {
  alertLine(null);
  $('text').focus();
});
$('new').addEventListener('click', () => {
  alertLine(null);
  chat.open({ new: true }).catch(() => {});
  $('text').focus();
});
$('signin-retry').addEventListener('click', () => chat.connect().catch(() => {}));
$('signin-example').textContent = new URL('./#code=…', location.href).href.replace('%E2%80%A6', '…');
for (const button of document.querySelectorAll('.suggestions button')) {
  button.addEventListener('click', () => {
    say(button.textContent);
    $('text').focus();
  });
}
// A fresh link that is opened in this very tab changes the fragment only.
addEventListener('hashchange', () => location.hash.includes('code=') && location.reload());

chat.connect().catch(() => {});
composer.focus();
