/** The list of conversations: read in pages, searched, and kept as it is on every device. */

import { SessionList } from './sdk.js';
import { $ } from './page-dom.js';
import { confirmed } from './page-dialog.js';
import { openShare } from './page-share.js';
import { showSignIn, tokenSource } from './page-signin.js';
import { alertLine, showStatus } from './page-status.js';
import { Menu } from './sessions-menu.js';
import { Row } from './sessions-row.js';

const PAGE = 50;
const TICK_MS = 20_000;
const DEBOUNCE_MS = 250;

const getToken = tokenSource(() => sessions.status.state === 'closed' && connect());
const sessions = new SessionList({ base: new URL('.', location.href), getToken });
const menu = new Menu($('menu'), (action, row) => actions[action](row));

/** @type {Map<string, Row>} */
const rows = new Map();
/** where the next page begins; `null` at the end */
let cursor = null;
/** what is searched for; empty: nothing, all are listed */
let words = '';
/** raised by every new reading, so that an answer that comes late is dropped */
let reading = 0;
let total = null;
let loaded = false;
let debounce;

function connect() {
  sessions.connect().catch(() => {});
}

/** Does what a button asks for; one line says what went wrong. */
async function attempt(fault, action) {
  alertLine(null);
  $('alert-retry').hidden = true;
  try {
    return await action();
  } catch (err) {
    alertLine(`${fault}: ${err.message}.`);
    throw err;
  }
}

const actions = {
  rename: (row) =>
    row.rename(
      (name) => attempt('The name was not changed', () => sessions.rename(row.meta.id, name)),
      () => place(row),
    ),
  share: (row) =>
    openShare({
      share: (options) => sessions.share(row.meta.id, options),
      unshare: () => sessions.unshare(row.meta.id),
    }).then(() => focus(row)),
  end: async (row) => {
    await attempt('The conversation was not ended', () => sessions.end(row.meta.id));
    row.update({ state: 'ended' });
    focus(row);
    announce(`${row.title} has ended.`);
  },
  remove: async (row) => {
    const title = `Delete “${row.title}”?`;
    const sure = await confirmed(title, 'All of its messages and links are deleted, for good.', 'Delete');
    if (!sure) {
      focus(row);
      return;
    }
    await attempt('The conversation was not deleted', () => sessions.remove(row.meta.id));
    drop(row.meta.id);
    focus(row);
    announce(`${row.title} was deleted.`);
  },
};
for (const [name, action] of Object.entries(actions)) {
  // The line above the list has said what went wrong.
  actions[name] = (row) => Promise.resolve(action(row)).catch(() => {});
}

function announce(text) {
  $('announcer').textContent = text;
}

/** Shows a conversation, at its place. */
function put(meta) {
  const row = rows.get(meta.id);
  if (row) {
    if (row.update(meta)) place(row);
    return;
  }
  const fresh = new Row(meta, words, (...opened) => menu.open(...opened));
  rows.set(meta.id, fresh);
  place(fresh);
}

/**
 * The latest activity comes first; what was found stays in the order in which it was found, and what is written in a row
 * would be lost if it moved.
 */
function place(row) {
  const list = $('list');
  const { element } = row;
  if ((words && element.isConnected) || row.writing) return;
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  element.remove();
  const before = words ? null : [...list.children].find((other) => older(other.sessionRow.meta, row.meta));
  list.insertBefore(element, before ?? null);
  focused?.focus();
}

function older(one, other) {
  const times = [Date.parse(one.last_activity), Date.parse(other.last_activity)];
  return times[0] === times[1] ? one.id < other.id : times[0] < times[1];
}

/** Gives a conversation the focus, or the one that stands where it was. */
function focus(row) {
  const listed = [...$('list').children];
  const next = row.element.isConnected ? row.element : listed.find((other) => older(other.sessionRow.meta, row.meta));
  const { link } = (next ?? listed.at(-1))?.sessionRow ?? { link: $('new') };
  link.focus();
}

function drop(id) {
  const row = rows.get(id);
  if (!row) return;
  const focused = row.element.contains(document.activeElement) || menu.leave(row);
  rows.delete(id);
  row.remove();
  if (focused) focus(row);
  if (total) total -= 1;
  show();
}

function show() {
  const nothing = loaded && rows.size === 0;
  $('empty').hidden = !nothing || words !== '' || !$('signin').hidden;
  $('search').hidden = nothing && words === '';
  $('more').hidden = !cursor;
  $('list').hidden = rows.size === 0;
  if (!words) $('found').textContent = loaded && total > rows.size ? `${rows.size} of ${total}` : '';
}

/** Takes the first page anew: what it does not name any more, but would, is gone. */
function first({ sessions: metas, next_cursor, total: all }) {
  const named = new Set(metas.map(({ id }) => id));
  const last = metas.at(-1);
  for (const { meta } of [...rows.values()]) {
    if (!named.has(meta.id) && (!next_cursor || older(last, meta))) drop(meta.id);
  }
  const known = rows.size;
  for (const meta of metas) put(meta);
  if (known === 0 || !next_cursor) cursor = next_cursor ?? null;
  total = all ?? null;
  loaded = true;
  show();
}

async function search() {
  const wanted = $('words').value.trim();
  if (wanted === words) return;
  words = wanted;
  cursor = null;
  rows.clear();
  $('list').replaceChildren();
  $('found').textContent = words ? 'Searching…' : '';
  await load();
}

/** Reads the next page of what is listed, or searched for. */
async function load() {
  reading += 1;
  const mine = reading;
  const sought = words;
  $('more').disabled = true;
  $('list').setAttribute('aria-busy', 'true');
  try {
    const begins = cursor === null;
    const page = await attempt('The conversations could not be read', () =>
      sessions.list({ limit: PAGE, ...(cursor && { cursor }), ...(sought && { q: sought }) }),
    );
    if (mine !== reading) return;
    if (begins && !sought) first(page);
    else page.sessions.forEach(put);
    cursor = page.next_cursor ?? null;
    loaded = true;
    if (sought) tellFound(page.truncated);
  } catch {
    if (mine === reading) $('alert-retry').hidden = false;
    if (mine === reading && sought) $('found').textContent = '';
  }
  if (mine !== reading) return;
  $('more').disabled = false;
  $('list').setAttribute('aria-busy', 'false');
  show();
}

function tellFound(truncated) {
  const count = rows.size === 0 ? `Nothing found for “${words}”` : `${rows.size}${cursor ? ' or more' : ''} found for “${words}”`;
  const rest = truncated ? '. There is more than could be searched at once: more words find less' : '';
  $('found').textContent = count + rest;
}

async function begin() {
  const { id } = await attempt('No conversation could be started', () => sessions.create());
  location.assign(`chat.html#session=${encodeURIComponent(id)}`);
}

sessions.addEventListener('status', ({ detail }) => {
  showStatus(detail);
  const signedOut = detail.state === 'closed' && detail.reason === 'unauthorized';
  showSignIn(signedOut, connect);
  $('content').hidden = signedOut;
  $('new').hidden = signedOut;
});
sessions.addEventListener('list', ({ detail }) => {
  if (!words) first(detail);
});
sessions.addEventListener('update', ({ detail }) => {
  const { session_id: id, type: _type, deleted, ...change } = detail;
  if (deleted) drop(id);
  else if (rows.has(id)) put({ id, ...change });
  // Without an entry it is not listed; and what was searched for stays as it was found.
  else if (!words && loaded && change.message_count > 0) {
    put({ id, state: 'active', last_activity: new Date().toISOString(), ...change });
    if (total !== null) total += 1;
  }
  show();
});
sessions.addEventListener('error', ({ detail }) => {
  if (['CONNECTION_LOST', 'GOING_AWAY'].includes(detail.code)) return;
  alertLine(`The conversations could not be read: ${detail.message}.`);
  $('alert-retry').hidden = false;
});

for (const id of ['new', 'empty-new']) $(id).addEventListener('click', () => begin().catch(() => {}));
$('more').addEventListener('click', () => load());
$('alert-close').addEventListener('click', () => alertLine(null));
$('alert-retry').addEventListener('click', () => load());
$('search').addEventListener('submit', (event) => {
  event.preventDefault();
  clearTimeout(debounce);
  search();
});
$('words').addEventListener('input', () => {
  clearTimeout(debounce);
  debounce = setTimeout(search, DEBOUNCE_MS);
});
$('words').addEventListener('keydown', (event) => {
  if (event.key !== 'ArrowDown') return;
  event.preventDefault();
  $('list').querySelector('.row-link')?.focus();
});
$('list').addEventListener('keydown', (event) => {
  const row = event.target.closest('.row')?.sessionRow;
  if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
  const { element } = row;
  const next = {
    ArrowDown: element.nextElementSibling,
    ArrowUp: element.previousElementSibling,
    Home: $('list').firstElementChild,
    End: $('list').lastElementChild,
  };
  const action = { F2: 'rename', Delete: 'remove' }[event.key];
  if (event.key in next) (next[event.key]?.sessionRow.link ?? $('words')).focus();
  else if (action) actions[action](row);
  else return;
  event.preventDefault();
});
document.addEventListener('keydown', (event) => {
  if (event.key !== '/' || event.target.closest('input, dialog')) return;
  event.preventDefault();
  $('words').focus();
});
new IntersectionObserver(([{ isIntersecting }]) => {
  if (isIntersecting && !$('more').disabled) load();
}, { root: $('scroller'), rootMargin: '400px' }).observe($('more'));
setInterval(() => rows.forEach((row) => row.tick()), TICK_MS);

connect();
