/** The chat page: puts the client, the conversation, the composer and the sign-in together. */

import { Chatbox } from './sdk.js';
import { $, make } from './page-dom.js';
import { openShare } from './page-share.js';
import { fragment, showSignIn, tokenSource } from './page-signin.js';
import { alertLine, showStatus } from './page-status.js';
import { Composer } from './chat-composer.js';
import { ending } from './chat-items.js';
import { Log } from './chat-log.js';
import { gone, showShared } from './chat-shared.js';
import { Typing } from './chat-typing.js';

/** How much of a conversation is read at first. */
const HISTORY_ENTRIES = 50;

/** How much of an answer is read out by a screen reader when it is done. */
const ANNOUNCED_CHARS_MAX = 1500;

const link = fragment().get('share');
const elements = { log: $('log'), scroller: $('scroller'), newest: $('newest'), beginning: $('beginning') };
if (link) showShared(link, new Log(elements, { changed() {} }));
else converse();

addEventListener('hashchange', () => {
  if (link || fragment().has('share')) location.reload();
});

function converse() {
  const getToken = tokenSource(() => chat.status.state === 'closed' && connect());
  const base = new URL('.', location.href);
  const options = { base, getToken, history: HISTORY_ENTRIES };
  const named = fragment().get('session');
  if (named) options.session_id = named;
  const chat = new Chatbox(options);
  const sessions = chat.watchUser();

  const log = new Log(elements, {
    retry: (message) => chat.retry(message),
    discard: (message) => {
      if (chat.discard(message)) log.forget(message);
    },
    regenerate: (turn) => attempt('There is no other answer', () => regenerate(turn)),
    rate: ({ seq }, rating) => attempt('The rating was not saved', () => chat.rate(seq, rating)),
    older: (count) => chat.older(count),
    changed: () => showEmpty(),
  });
  const typing = new Typing($('typing'));
  const composer = new Composer(
    { form: $('composer'), text: $('text'), send: $('send'), counter: $('counter') },
    { submit: (content) => say(content), typed: (empty) => chat.typing(!empty) },
  );

  /** Turns that have not ended, in the order they came; the first is the one that runs. */
  const running = new Set();

  /** the conversation that this page has open; `null` while it moves to another one */
  let opened = null;

  function connect() {
    chat.connect().catch(missing);
  }

  /** The conversation that the URL names is not there. */
  function missing(err) {
    if (err.code !== 'NOT_FOUND') return;
    alertLine(null);
    gone('There is no such conversation', 'It was deleted, or it belongs to somebody else.');
    $('gone-new').hidden = false;
    $('composer').inert = true;
    showEmpty();
  }

  /** The conversation that was open is deleted; the client may have moved on to another one. */
  function vanished() {
    gone('This conversation is not there any more', 'It was deleted, or somebody else is signed in now.');
    $('gone-new').hidden = false;
    $('composer').inert = true;
    log.clear();
  }

  /** Does what a button asks for; one line says what went wrong. */
  async function attempt(words, action) {
    alertLine(null);
    try {
      return await action();
    } catch (err) {
      alertLine(`${words}: ${err.message}.`);
      return undefined;
    }
  }

  /** @returns {boolean} whether it is on its way */
  function say(content) {
    alertLine(null);
    try {
      chat.send(content);
    } catch (err) {
      alertLine(`Your message was not sent: ${err.message}.`);
      return false;
    }
    log.toBottom();
    return true;
  }

  async function regenerate(turn) {
    log.toBottom();
    const { turn_id } = await chat.regenerate(turn).accepted;
    log.turn({ id: turn_id, seq: null, replaces: turn });
    begin(turn_id);
  }

  function announce(words) {
    $('announcer').textContent = words;
  }

  function showEmpty() {
    // Until the server has said that there is nothing, a history may still come.
    const nothing = log.empty && chat.session?.last_seq === 0;
    $('empty').hidden = !nothing || !$('signin').hidden || !$('gone').hidden || ended();
    $('new').hidden = log.empty && !ended();
    $('share').hidden = log.empty;
  }

  function ended() {
    return chat.session?.state === 'ended';
  }

  function showSession() {
    const { session } = chat;
    if (opened && session && opened !== session.session_id) vanished();
    opened = session?.session_id ?? opened;
    if (session) composer.user = session.user_id;
    if (session?.limits) composer.limit = session.limits.content_chars;
    $('name').textContent = session?.name || 'chatbox';
    document.title = session?.name || 'chatbox';
    $('closed').hidden = !ended();
    $('closed-text').textContent = 'This conversation has ended.';
    $('reopen').hidden = !ended();
    $('composer').hidden = ended();
    $('below').hidden = ended();
    $('log').toggleAttribute('data-closed', ended());
    showModels(session);
    showEmpty();
  }

  function showModels(session) {
    const models = session?.models ?? [];
    $('models').hidden = models.length < 2;
    if (models.length < 2) return;
    const select = $('model');
    const known = [...select.options].map(({ value, text }) => `${value} ${text}`).join();
    const offered = models.map(({ id, name, images }) => ({ id, name: images ? `${name} · images` : name }));
    if (known !== offered.map(({ id, name }) => `${id} ${name}`).join()) {
      select.replaceChildren(...offered.map(({ id, name }) => make('option', { value: id }, name)));
    }
    select.value = session.model_id ?? models[0].id;
  }

  function showStop() {
    $('stop').hidden = running.size === 0 || chat.status.state !== 'connected';
  }

  function showConnection(status) {
    const { state, reason } = status;
    showStatus(status);
    const signedOut = state === 'closed' && reason === 'unauthorized';
    showSignIn(signedOut, connect);
    $('composer').inert = signedOut || !$('gone').hidden;
    $('hint').hidden = state === 'reconnecting';
    $('offline').hidden = state !== 'reconnecting';
    if (state === 'closed' && reason === 'refused' && $('gone').hidden) {
      alertLine('The server has closed this connection. Reload the page to go on.');
    }
    if (state !== 'connected') typing.clear();
    showEmpty();
    showStop();
  }

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

  /** Moves to another conversation; the URL names it, so that a reload comes back to it. */
  function open(request, hash) {
    alertLine(null);
    $('gone').hidden = true;
    opened = null;
    if (location.hash !== hash) history.replaceState(history.state, '', location.pathname + location.search + hash);
    chat.open(request).catch(missing);
  }

  chat.addEventListener('status', ({ detail }) => showConnection(detail));
  chat.addEventListener('session', () => showSession());
  chat.addEventListener('reset', () => {
    running.clear();
    log.clear();
    typing.clear();
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
    const said = detail.text && `Answer: ${detail.text.slice(0, ANNOUNCED_CHARS_MAX)}`;
    if (live) announce([said, ending(detail)].filter(Boolean).join('\n'));
  });
  chat.addEventListener('rating', ({ detail }) => {
    log.rating(detail);
    if (detail.state === 'failed') alertLine(`The rating was not saved: ${detail.error.message}.`);
  });
  chat.addEventListener('typing', ({ detail }) => typing.show(detail));
  chat.addEventListener('update', ({ detail }) => {
    if (detail.deleted && detail.session_id === opened) vanished();
  });
  chat.addEventListener('error', ({ detail }) => {
    // A failed turn and a refused message carry their own words.
    const shown = detail.turn_id || detail.code === 'CONNECTION_LOST' || detail.code === 'GOING_AWAY';
    if (!shown) alertLine(detail.message);
  });

  $('stop').addEventListener('click', stop);
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape' && !$('stop').hidden && !document.querySelector('dialog')) stop();
  });
  $('alert-close').addEventListener('click', () => {
    alertLine(null);
    $('text').focus();
  });
  const fresh = () => {
    open({ new: true }, '');
    $('composer').inert = false;
    $('text').focus();
  };
  $('new').addEventListener('click', fresh);
  $('gone-new').addEventListener('click', fresh);
  $('reopen').addEventListener('click', () => {
    const { session_id } = chat.session;
    chat.open({ session_id, reopen: true }).then(() => composer.focus(), missing);
  });
  $('share').addEventListener('click', () => {
    const { session_id } = chat.session;
    openShare({
      share: (options) => sessions.share(session_id, options),
      unshare: () => sessions.unshare(session_id),
    }).then(() => {
      // The conversation may be gone by now, and the button with it.
      if (document.activeElement === document.body) ($('gone').hidden ? $('text') : $('gone-title')).focus();
    });
  });
  $('model').addEventListener('change', async () => {
    await attempt('The model was not changed', () => chat.selectModel($('model').value));
    showModels(chat.session);
  });
  for (const button of document.querySelectorAll('.suggestions button')) {
    button.addEventListener('click', () => {
      say(button.textContent);
      $('text').focus();
    });
  }
  addEventListener('hashchange', () => {
    const session_id = fragment().get('session');
    const shown = session_id === chat.session?.session_id && $('gone').hidden;
    // A fragment may as well be a place within the page.
    if (shown || (session_id === null && location.hash)) return;
    open(session_id ? { session_id } : {}, location.hash);
  });

  connect();
  composer.focus();
}
