/**
 * Where messages that are not stored by the server outlast their page: IndexedDB, shared by all tabs of the origin.
 *
 * Each client owns the messages that were typed in it, and holds a lock for as long as it lives (Web Locks). A
 * message whose owner has no lock any more belongs to whoever takes it. Where the browser has no locks, every page
 * takes them when it starts; the server recognises the id, so the worst is a second answer to the same request.
 * Nothing here may break the chat: without a database messages live as long as their page.
 */

import { uuid } from './sdk-wire.js';

const DATABASE = 'chatbox';
const TABLE = 'outbox';

/** More than all users of a shared device leave behind; beyond it the oldest are dropped. */
const KEPT_MAX = 1000;

export class OutboxStore {
  #base;
  #orphaned;
  #me = uuid();
  #opening = null;
  #closed = null;
  #release = null;
  #watched = new Set();
  #hide = () => this.#unlock();
  #show = () => this.#lock();

  /** @param {string} base the server whose messages these are @param {() => void} orphaned a tab died and left some */
  constructor(base, orphaned) {
    this.#base = base;
    this.#orphaned = orphaned;
  }

  /** Begins to live. */
  open() {
    if (this.#opening) return;
    this.#closed = new AbortController();
    globalThis.addEventListener?.('pagehide', this.#hide);
    globalThis.addEventListener?.('pageshow', this.#show);
    this.#opening = Promise.all([openDatabase(), this.#lock()]).then(([database]) => database);
    this.#opening.catch(() => {});
  }

  /** Leaves what is kept to whoever comes next. */
  close() {
    globalThis.removeEventListener?.('pagehide', this.#hide);
    globalThis.removeEventListener?.('pageshow', this.#show);
    this.#opening?.then((database) => database?.close());
    this.#opening = null;
    this.#closed?.abort();
    this.#unlock();
  }

  /** Keeps a message as it is now. @param {import('./sdk-outbox.js').Message} message of a known user */
  put({ id, user_id, session_id, content, rates, timestamp, place, error }) {
    const reason = error && { code: error.code, message: error.message };
    const message = { id, user_id, session_id, content, rates, timestamp, place, error: reason };
    const row = { ...message, base: this.#base, owner: this.#me };
    return this.#write((table, commit) => {
      table.put(row);
      commit();
    });
  }

  /** Forgets a message: it is stored, or not wanted any more. @param {string} id */
  remove(id) {
    return this.#write((table, commit) => {
      table.delete(id);
      commit();
    });
  }

  /**
   * Takes the messages of a user that no living client owns, and goes on to watch over those of others.
   * @param {string} user_id @param {number} most
   * @returns {Promise<object[]>} in the order they were typed
   */
  async take(user_id, most) {
    const living = await this.#living();
    const taken = [];
    await this.#write((table) => {
      const all = table.getAll();
      all.onsuccess = () => {
        for (const row of all.result.sort(inOrder).slice(0, -KEPT_MAX)) table.delete(row.id);
        const others = all.result.filter((row) => row.base === this.#base && row.user_id === user_id && row.owner !== this.#me);
        for (const row of others) {
          if (living.has(lockOf(row.owner))) {
            this.#watch(row.owner);
          } else if (taken.length < most) {
            taken.push(row);
            table.put({ ...row, owner: this.#me });
          }
        }
      };
    });
    return taken;
  }

  /** Runs in one transaction, which all tabs see as a whole. `commit`: at once, the page may be gone soon. */
  async #write(action) {
    const database = await this.#opening;
    try {
      const transaction = database?.transaction(TABLE, 'readwrite');
      if (!transaction) return;
      action(transaction.objectStore(TABLE), () => transaction.commit?.());
      await new Promise((resolve) => {
        transaction.oncomplete = resolve;
        transaction.onabort = resolve;
      });
    } catch {
      // The database was closed under this page, or the disk is full: messages live as long as their page.
    }
  }

  async #living() {
    const locks = await globalThis.navigator?.locks?.query();
    return new Set(locks?.held.map(({ name }) => name));
  }

  /** @returns {Promise<void>} when the lock is held */
  #lock() {
    const { locks } = globalThis.navigator ?? {};
    if (!locks || this.#release) return undefined;
    return new Promise((resolve) => {
      const held = () => {
        resolve();
        return new Promise((release) => (this.#release = release));
      };
      locks.request(lockOf(this.#me), { signal: this.#closed.signal }, held).catch(resolve);
    });
  }

  #unlock() {
    this.#release?.();
    this.#release = null;
  }

  /** Gets the lock of another client at the moment when that one dies. */
  #watch(owner) {
    if (this.#watched.has(owner)) return;
    this.#watched.add(owner);
    navigator.locks.request(lockOf(owner), { mode: 'shared', signal: this.#closed.signal }, () => {}).then(
      () => {
        this.#watched.delete(owner);
        this.#orphaned();
      },
      () => this.#watched.delete(owner),
    );
  }
}

function lockOf(owner) {
  return `chatbox.outbox.${owner}`;
}

function inOrder(one, other) {
  return one.timestamp.localeCompare(other.timestamp) || one.place - other.place;
}

/** @returns {Promise<IDBDatabase | null>} `null` where there is no database */
function openDatabase() {
  return new Promise((resolve) => {
    let request;
    try {
      request = globalThis.indexedDB?.open(DATABASE, 1);
    } catch {
      // The browser blocks storage for this page.
    }
    if (!request) {
      resolve(null);
      return;
    }
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: 'id' });
    request.onerror = () => resolve(null);
    request.onsuccess = () => {
      const database = request.result;
      // Another version wants it: it is left alone until this page is loaded again.
      database.onversionchange = () => database.close();
      resolve(database);
    };
  });
}
