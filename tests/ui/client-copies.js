/** What the client does with copies of frames, on a network that loses packets, in each browser. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { freePort, udpProxy } from './harness/network.js';
import { startServer } from './harness/server.js';
import { startWatch } from './harness/stopwatch.js';
import * as client from './harness/client.js';

const ONE_WAY_MS = 150;

/** A message's frame takes a packet of such a size; acknowledgements and probes of the path do not. */
const MESSAGE_BYTES = [200, 1100];

/** @param {string} name @param {() => Promise<object>} launch */
export function clientCopies(name, launch) {
  describe(`copies of frames in ${name}`, { timeout: 1_200_000 }, () => {
    let browser;
    before(async () => {
      browser = await launch();
    });
    after(() => browser?.close());

    const page = (title, steps) =>
      test(title, { timeout: 300_000 }, async (context) => {
        const server = await serve(context);
        const opened = await browser.open();
        context.after(opened.close);
        await opened.goto(server.host);
        await client.startClient(opened, server.ann);
        await opened.until(client.connected, 'webtransport');
        await steps(opened, server, context);
      });

    page('a message whose packet is lost is shown half a round trip later', async (page, { udp, ann, copies }, context) => {
      udp.lose(0.2);
      for (let count = 1; (await copies()) === 0; count += 1) {
        assert.ok(count < 100, `no copies, with ${udp.lost} packets lost`);
        await page.evaluate(client.send, 'count to 2');
        await page.until(client.replied, count);
      }
      udp.lose(0);
      await page.evaluate(() => {
        globalThis.chat.addEventListener('entry', ({ detail }) => (globalThis.shown = { ...detail, at: Date.now() }));
      });
      udp.slow(ONE_WAY_MS);
      const lost = udp.loseNext(...MESSAGE_BYTES);
      await elsewhere(page, ann, 'what is lost comes again');
      const elapsed = startWatch();
      await page.until(() => globalThis.shown !== undefined);
      const worked = elapsed();
      const { content, at } = await page.evaluate(() => globalThis.shown);
      const took = at - (await lost);
      assert.equal(content, 'what is lost comes again');
      context.diagnostic(`shown after ${took} ms, at ${ONE_WAY_MS} ms one way`);
      // Its stream has it again a round trip after the next packet came, at the earliest.
      assert.ok(took >= ONE_WAY_MS && Math.min(took, worked) < 3 * ONE_WAY_MS, `it took ${took} ms`);
    });

    page('text and log are exact, and nothing is shown twice', async (page, { udp, ann, copies }) => {
      udp.lose(0.1);
      for (let count = 1; count <= 8; count += 1) {
        await page.evaluate(client.send, 'count to 60');
        await page.until(client.replied, 2 * count - 1);
        await elsewhere(page, ann, 'count to 40');
        await page.until(client.replied, 2 * count);
      }
      assert.ok((await copies()) > 0 && udp.lost > 0, `${await copies()} copies, ${udp.lost} packets lost`);
      const { faults, errors, entries, replies, texts, statuses } = await page.evaluate(client.seen);
      assert.deepEqual([faults, errors], [[], []]);
      assert.deepEqual(entries, Array.from({ length: 8 }, (_, index) => ({ seq: 4 * index + 3, content: 'count to 40' })));
      const inOrder = Object.values(replies).sort((one, other) => one.seq - other.seq);
      const expected = Array.from({ length: 16 }, (_, index) => [2 * index + 2, counted(index % 2 === 0 ? 60 : 40), true]);
      assert.deepEqual(inOrder.map(({ seq, text, verified }) => [seq, text, verified]), expected);
      assert.deepEqual(Object.values(texts).sort(), expected.map(([, text]) => text).sort());
      assert.deepEqual([...new Set(statuses.map(({ state }) => state))], ['connecting', 'connected'], 'over one connection');
    });
  });
}

/** Says something from another client of the same user, over a WebSocket, which loses nothing. */
function elsewhere(page, options, content) {
  return page.evaluate(
    async ({ token, content, ...rest }) => {
      const { Chatbox } = await import(`${rest.base}sdk.js`);
      const storage = { getItem: () => JSON.stringify({ until: Date.now() + 60_000 }), setItem() {} };
      const other = new Chatbox({ ...rest, getToken: () => token, outbox: false, storage });
      await other.connect();
      await other.send(content).accepted;
      other.close();
    },
    { ...options, content },
  );
}

function counted(lines) {
  return Array.from({ length: lines }, (_, index) => `${index + 1}. line\n`).join('');
}

async function serve(context) {
  const [quic, ops] = [await freePort(), await freePort()];
  const udp = await udpProxy(quic);
  context.after(udp.close);
  const host = await client.startHost();
  context.after(host.close);
  const server = await startServer({
    CHATBOX_AUTH__ALLOWED_ORIGINS: host.origin,
    CHATBOX_LISTEN__QUIC: `localhost:${quic}`,
    CHATBOX_LISTEN__OPS: `localhost:${ops}`,
    CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${udp.port}`,
    CHATBOX_LLM__PROVIDERS__DEMO__TYPE: 'demo',
    CHATBOX_LLM__PROVIDERS__DEMO__PACE: '3ms',
    CHATBOX_SESSIONS__MODEL_NAMES: 'false',
    CHATBOX_LIMITS__MESSAGES_PER_MINUTE: '10000',
  });
  context.after(server.stop);
  const copies = async () => {
    const metrics = await (await fetch(`http://localhost:${ops}/metrics`)).text();
    return Number(/^chatbox_datagrams_sent_total (\d+)/m.exec(metrics)?.[1] ?? 0);
  };
  const ann = { base: server.base, token: await server.token('ann') };
  return { host: host.origin, udp, copies, ann };
}
