/**
 * One WebTransport session as a link: the first stream is the attach stream, every exchange has its own.
 *
 * A link has `kind`, `streams` (the cap), `running` (exchanges), `opened` and `received` (streams and bytes), the callbacks `onframe(frame)` and
 * `onclose({code, reason})` (once), and here `oncopy(frame)` (of a frame that came once more, as a datagram), and `open`, `start`, `inline`, `exchange`, `close`. It knows no frame's meaning.
 */

import { ChatboxError, Close, bytesOf } from './sdk-wire.js';

/** Chromium refuses a stream beyond the server's credit instead of waiting for it. */
const STREAM_RETRY_MS = { first: 50, last: 1000, total: 30_000 };

/** How long after the end of the attach stream the session's close code may still come. */
const CLOSE_GRACE_MS = 1000;

/** A longer line than any frame can be (the server's limit is 1 MiB unless configured). */
const LINE_CHARS_MAX = 16 * 1024 * 1024;

/** Copies of frames that wait to be read: browsers drop the rest, and Chromium waits with one unless told otherwise. */
const COPIES_MAX = 64;

const encoder = new TextEncoder();

export class WebTransportLink {
  kind = 'webtransport';
  streams = 1;
  running = 0;
  opened = 0;
  received = 0;
  onframe = () => {};
  oncopy = () => {};
  onclose = () => {};
  #session = null;
  #attach = null;
  #closed = false;
  #freed = new Set();

  /** @returns {boolean} */
  static available() {
    return typeof globalThis.WebTransport === 'function';
  }

  /** @param {{webtransport: string, certificate_sha256?: string}} info what discovery said */
  constructor(info) {
    this.info = info;
  }

  /** Connects. Rejects when no session comes about; the caller sets the deadline. */
  async open() {
    const options = {};
    if (this.info.certificate_sha256) {
      options.serverCertificateHashes = [{ algorithm: 'sha-256', value: bytesOf(this.info.certificate_sha256) }];
    }
    this.#session = new WebTransport(this.info.webtransport, options);
    this.#session.closed.then(
      // A session whose stream just ends reads as code 0 without a reason; a server that is done says so.
      ({ closeCode, reason } = {}) => this.#end(closeCode || reason ? closeCode : Close.lost, reason ?? ''),
      (err) => this.#end(Close.lost, String(err?.message ?? err)),
    );
    await this.#session.ready;
  }

  /** Opens the attach stream with its first frame. @param {object} frame */
  async start(frame) {
    const stream = await this.#session.createBidirectionalStream();
    this.#attach = stream.writable.getWriter();
    const { datagrams } = this.#session;
    await this.#attach.write(line(datagrams?.readable ? { ...frame, datagrams: true } : frame));
    // Where they break off, the streams bring everything all the same.
    if (datagrams?.readable) this.#copies(datagrams).catch(() => {});
    this.#drain(stream).then(
      () => this.#overdue('the attach stream ended'),
      (err) => this.#overdue(String(err?.message ?? err)),
    );
  }

  /** Writes a later frame on the attach stream, which waits for no cap. @param {object} frame */
  inline(frame) {
    this.#attach.write(line(frame)).catch(() => this.#overdue('the attach stream cannot be written'));
  }

  /**
   * One request on its own stream. Its answers go to `onframe`.
   * @param {object} frame
   * @returns {Promise<void>} when the server has finished the stream
   */
  async exchange(frame) {
    this.running += 1;
    try {
      const stream = await this.#stream();
      const writer = stream.writable.getWriter();
      await writer.write(line(frame));
      // The stream is whole for the server with this; a reset after it tells itself while reading.
      writer.close().catch(() => {});
      await this.#drain(stream);
    } finally {
      this.running -= 1;
      for (const wake of this.#freed) wake();
    }
  }

  /** @param {number} [code] @param {string} [reason] */
  close(code = Close.done, reason = '') {
    const session = this.#session;
    this.#end(code, reason);
    try {
      session?.close({ closeCode: code ?? Close.done, reason });
    } catch {
      // It was never ready: `close` then throws, and the browser gives the attempt up with the object.
    }
  }

  async #stream() {
    const deadline = performance.now() + STREAM_RETRY_MS.total;
    for (let wait = STREAM_RETRY_MS.first; ; wait = Math.min(wait * 2, STREAM_RETRY_MS.last)) {
      try {
        const stream = await this.#session.createBidirectionalStream();
        this.opened += 1;
        return stream;
      } catch (err) {
        if (this.#closed || performance.now() > deadline) {
          throw new ChatboxError('CONNECTION_LOST', `no stream: ${err?.message ?? err}`);
        }
        await this.#freedOrAfter(wait);
      }
    }
  }

  #freedOrAfter(ms) {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.#freed.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      this.#freed.add(wake);
    });
  }

  async #drain(stream) {
    const reader = stream.readable.getReader();
    const decoder = new TextDecoder();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.received += value.byteLength;
      const lines = (rest + decoder.decode(value, { stream: true })).split('\n');
      rest = lines.pop();
      if (rest.length > LINE_CHARS_MAX) throw new ChatboxError('FRAME_TOO_LARGE', 'a line of the server has no end');
      for (const text of lines) {
        if (text && !this.#closed) this.onframe(JSON.parse(text));
      }
    }
  }

  async #copies(datagrams) {
    datagrams.incomingHighWaterMark = COPIES_MAX;
    const reader = datagrams.readable.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.received += value.byteLength;
      if (!this.#closed) this.oncopy(JSON.parse(decoder.decode(value)));
    }
  }

  /** The session's own end, with its code, may be under way; only when it does not come is the link lost. */
  #overdue(reason) {
    setTimeout(() => this.close(Close.lost, reason), CLOSE_GRACE_MS);
  }

  #end(code, reason) {
    if (this.#closed) return;
    this.#closed = true;
    for (const wake of this.#freed) wake();
    this.onclose({ code, reason });
  }
}

function line(frame) {
  return encoder.encode(`${JSON.stringify(frame)}\n`);
}
