/**
 * An application around the pages: another origin, with a page that frames what it is told to, keeps what it is asked,
 * and answers with the tokens it was given.
 */

import http from 'node:http';
import { once } from 'node:events';

const PAGE = `<!doctype html><title>host</title><style>iframe { width: 60rem; height: 40rem; }</style><script>
  const wanted = new URLSearchParams(location.search);
  globalThis.asked = [];
  globalThis.tokens = [];
  globalThis.give = (token) => document.querySelector('#chat').contentWindow.postMessage({ type: 'token', token }, wanted.get('origin'));
  addEventListener('message', (event) => {
    globalThis.asked.push({ origin: event.origin, data: event.data });
    const token = globalThis.tokens.shift();
    if (token !== undefined && event.origin === wanted.get('origin')) give(token);
  });
  addEventListener('DOMContentLoaded', () => {
    for (const id of ['chat', 'beside']) {
      if (!wanted.has(id)) continue;
      const frame = document.createElement('iframe');
      frame.id = id;
      frame.src = wanted.get(id);
      document.body.append(frame);
    }
  });
</script><body></body>`;

/** @param {number} port @returns {Promise<{origin: string, close: () => void, url: (frames: object) => string}>} */
export async function startHost(port) {
  const server = http.createServer((_request, response) => {
    response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
    response.end(PAGE);
  });
  server.listen(port, 'localhost');
  await once(server, 'listening');
  const origin = `http://localhost:${port}`;
  const url = (frames) => `${origin}/?${new URLSearchParams(frames)}`;
  return {
    origin,
    /** The address of a page around `chat`, and `beside` it, which are URLs; `origin` is where answers go to. */
    url,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}
