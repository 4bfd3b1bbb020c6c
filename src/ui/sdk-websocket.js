/**
 * One WebSocket as a link (see `sdk-webtransport.js` for what a link is): all frames on one socket, `re` tells the
 * exchanges apart. The token travels in the `attach` frame, never in the URL.
 */

import { ChatboxError, Close, Deferred, closeOfWebSocket } from './sdk-wire.js';

const SUBPROTOCOL = 'chatbox.v1';

export class WebSocketLink {
  kind = 'websocket';
  streams = 1;
  opened = 0;
  received = 0;
  onframe = () => {};
  onclose = () => {};
  #socket = null;
  #closed = false;
  /** @type {Map<string, Deferred>} */
  #exchanges = new Map();

  /** @param {{websocket: string}} info what discovery said */
  constructor(info) {
    this.info = info;
  }

  get running() {
    return this.#exchanges.size;
  }

  /** Connects. Rejects when no socket comes about; the caller sets the deadline. */
  open() {
    const opening = new Deferred();
    const socket = new WebSocket(this.info.websocket, [SUBPROTOCOL]);
    this.#socket = socket;
    socket.onopen = () => opening.resolve();
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => {
      opening.reject(new ChatboxError('CONNECTION_LOST', `the WebSocket was not opened (${code})`));
      this.#end(closeOfWebSocket(code), reason);
    };
    return opening.promise;
  }

  /** Sends the first frame. @param {object} frame */
  async start(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  /** Sends a frame whose answer nobody awaits as an exchange. @param {object} frame */
  inline(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  /**
   * One request. Its answers go to `onframe`.
   * @param {object} frame
   * @returns {Promise<void>} when its last answer has come
   */
  exchange(frame) {
    const over = new Deferred();
    this.opened += 1;
    this.#exchanges.set(frame.id, over);
    this.#socket.send(JSON.stringify(frame));
    return over.promise;
  }

  /** @param {number} [code] @param {string} [reason] */
  close(code = Close.done, reason = '') {
    this.#end(code, reason);
    // A page may send 1000 or 3000 to 4999 only.
    if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) {
      this.#socket.close(code ? 4000 + code : 1000, reason.slice(0, 100));
    }
  }

  #receive(data) {
    if (this.#closed || typeof data !== 'string') return;
    this.received += data.length;
    const frame = JSON.parse(data);
    this.onframe(frame);
    const over = this.#exchanges.get(frame.re);
    if (!over || !lastAnswer(frame)) return;
    this.#exchanges.delete(frame.re);
    over.resolve();
  }

  #end(code, reason) {
    if (this.#closed) return;
    this.#closed = true;
    for (const over of this.#exchanges.values()) {
      over.reject(new ChatboxError('CONNECTION_LOST', reason || 'the WebSocket is closed'));
    }
    this.#exchanges.clear();
    this.onclose({ code, reason });
  }
}

/** Whether nothing follows a frame in its exchange. An `error` with a turn comes just before the last frame. */
function lastAnswer(frame) {
  switch (frame.type) {
    case 'connection_status':
      return true;
    case 'accepted':
      return frame.duplicate === true || !frame.turn_id;
    case 'ai_response':
      return frame.metadata?.done === 'true';
    case 'error':
      return !frame.turn_id;
    default:
      return false;
  }
}
