/**
 * What the client does on networks that fail and in pages that come and go, in each browser, against the real server.
 * The client runs in a page of its own; the chat page is not involved.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { freePort, tcpProxy, udpProxy } from './harness/network.js';
import { chain, startProvider } from './harness/provider.js';
import { startServer } from './harness/server.js';
import { startWatch } from './harness/stopwatch.js';
import * as client from './harness/client.js';

/** The client's own default: from the last answer to the decision that a path is dead. */
const HEARTBEAT_MS = 5000;

/** What a dial may take on a busy machine, discovery included. */
const DIAL_MS = 2500;

const RELOADS = 20;

/** Characters of the answer that may come between a reload and what the next one waits for. */
const RELOADING = 300;

/** What a slow path takes in each direction. */
const ONE_WAY_MS = 300;

/** A model that answers at once, and nobody who counts. */
const QUICK = {
  CHATBOX_LLM__PROVIDERS__DEMO__TYPE: 'demo',
  CHATBOX_LLM__PROVIDERS__DEMO__PACE: '0s',
  CHATBOX_LIMITS__MESSAGES_PER_MINUTE: '100000',
};

/** @param {string} name @param {() => Promise<object>} launch */
export function clientBehaviours(name, launch) {
  describe(`client in ${name}`, { timeout: 2_400_000 }, () => {
    let browser;
    before(async () => {
      browser = await launch();
    });
    after(() => browser?.close());

    const page = (title, steps, serve = straight) =>
      test(title, { timeout: 300_000 }, async (context) => {
        const server = await serve(context);
        const opened = await browser.open();
        context.after(opened.close);
        await opened.goto(server.host);
        await steps(opened, server, context);
      });

    outbox(page);
    paths(page);
    restart(page);
    renewal(page);
    reloads(page);
  });
}

function outbox(page) {
  page(
    'what was typed without a connection outlasts a reload and is sent once, in order',
    async (page, server) => {
      const ann = await server.user('ann');
      await start(page, ann, 'websocket');
      server.tcp.cut();
      await page.until(client.state, 'reconnecting');
      const ids = [await page.evaluate(client.send, 'count to 2'), await page.evaluate(client.send, 'count to 3')];
      await page.reload();
      await client.startClient(page, ann);
      server.tcp.mend();
      await page.until(client.replied, 2);
      const { messages, faults } = await page.evaluate(client.seen);
      assert.deepEqual(Object.keys(messages), ids, 'the page is told of them');
      assert.deepEqual(Object.values(messages).map(({ state }) => state), ['accepted', 'accepted']);
      assert.deepEqual(faults, []);
      assert.deepEqual(said(await page.evaluate(client.readLog, ann)), ['count to 2', 'count to 3']);
      await page.reload();
      await start(page, ann);
      await page.until(client.replied, 2);
      assert.deepEqual((await page.evaluate(client.seen)).messages, {}, 'nothing is left');
    },
    proxied,
  );

  page(
    'a message whose answer was lost with its page is applied once',
    async (page, server) => {
      const ann = await server.user('ann');
      await start(page, ann, 'websocket');
      server.tcp.cutDown();
      const id = await page.evaluate(client.send, 'count to 2');
      await page.until(client.kept, { id, wanted: true });
      while (server.tcp.bytes.swallowed === 0) await pause(10);
      await page.reload();
      server.tcp.mend();
      await start(page, ann);
      await page.until(client.replied, 1);
      await page.until(client.kept, { id, wanted: false });
      assert.deepEqual(said(await page.evaluate(client.readLog, ann)), ['count to 2']);
    },
    proxied,
  );

  page(
    'what comes faster than the server takes it waits, and is sent by itself and in order',
    async (page, server) => {
      const ann = await server.user('ann');
      await start(page, ann);
      const texts = Array.from({ length: 33 }, (_, nth) => `message ${nth}`);
      for (const text of texts) await page.evaluate(client.send, text);
      await page.until(client.replied, texts.length);
      const { messages } = await page.evaluate(client.seen);
      const again = Object.values(messages).filter(({ states }) => states.filter((state) => state === 'sent').length > 1);
      assert.ok(again.length > 0, 'the server has refused one');
      assert.ok(Object.values(messages).every(({ state, states }) => state === 'accepted' && !states.includes('failed')));
      assert.deepEqual(said(await page.evaluate(client.readLog, ann)), texts);
    },
    (context) => straight(context, { ...QUICK, CHATBOX_LIMITS__MESSAGES_PER_MINUTE: '30' }),
  );

  page(
    'a message of a tab that is closed is sent by another one, and only then',
    async (page, server) => {
      const ann = await server.user('ann');
      const other = await page.tab();
      await other.goto(server.host);
      for (const tab of [page, other]) await start(tab, ann, 'websocket');
      server.tcp.cut();
      for (const tab of [page, other]) await tab.until(client.state, 'reconnecting');
      await other.evaluate(client.send, 'count to 2');
      await page.evaluate(client.send, 'count to 3');
      server.tcp.mend();
      for (const tab of [page, other]) await tab.until(client.replied, 2);
      const { messages } = await page.evaluate(client.seen);
      assert.deepEqual(Object.values(messages).map(({ content }) => content), ['count to 3'], 'each sends its own');

      server.tcp.cut();
      for (const tab of [page, other]) await tab.until(client.state, 'reconnecting');
      const orphan = await other.evaluate(client.send, 'count to 4');
      await other.until(client.kept, { id: orphan, wanted: true });
      await other.close();
      server.tcp.mend();
      await page.until(client.replied, 3);
      assert.equal((await page.evaluate(client.seen)).messages[orphan].state, 'accepted');
      const log = said(await page.evaluate(client.readLog, ann));
      assert.deepEqual(log.sort(), ['count to 2', 'count to 3', 'count to 4']);
    },
    proxied,
  );

  page(
    'a message goes to the session that it was typed for, whatever is open by then',
    async (page, server) => {
      const ann = await server.user('ann');
      await start(page, ann, 'websocket');
      const first = await page.evaluate(() => globalThis.chat.session.session_id);
      server.tcp.cut();
      await page.until(client.state, 'reconnecting');
      await page.evaluate(client.send, 'count to 2');
      await page.evaluate(() => void globalThis.chat.open({ new: true }).catch(() => {}));
      const own = await page.evaluate(client.send, 'count to 3');
      server.tcp.mend();
      const [reply] = await page.until(client.replied, 1);
      assert.equal(reply.text, counted(3));
      const { messages, entries } = await page.evaluate(client.seen);
      assert.deepEqual([Object.keys(messages), entries], [[own], []], 'the page is told of its own session only');
      assert.deepEqual(said(await page.evaluate(client.readLog, ann)), ['count to 3']);
      assert.deepEqual(said(await page.evaluate(client.readLog, { ...ann, session_id: first })), ['count to 2']);
    },
    (context) => proxied(context, undefined, { CHATBOX_SESSIONS__ACTIVE_PER_USER: '2' }),
  );

  page(
    "one user's message is never sent as another's",
    async (page, server) => {
      const [ann, bob] = [await server.user('ann'), await server.user('bob')];
      await start(page, ann, 'websocket');
      server.tcp.cut();
      await page.until(client.state, 'reconnecting');
      const id = await page.evaluate(client.send, 'count to 2');
      await page.until(client.kept, { id, wanted: true });
      await page.reload();
      server.tcp.mend();
      await start(page, bob);
      await page.evaluate(client.send, 'count to 3');
      await page.until(client.replied, 1);
      assert.deepEqual(said(await page.evaluate(client.readLog, bob)), ['count to 3']);
      await page.reload();
      await start(page, ann);
      await page.until(client.replied, 1);
      assert.deepEqual(said(await page.evaluate(client.readLog, ann)), ['count to 2']);
    },
    proxied,
  );

  page('a refused message is kept with its reason until it is discarded', async (page, server) => {
    const ann = await server.user('ann');
    await start(page, ann);
    const id = await page.evaluate(() => globalThis.chat.send('x'.repeat(10_001)).id);
    await page.until(client.messagesIn, 'failed');
    await page.reload();
    await start(page, ann);
    const [restored] = await page.until(client.messagesIn, 'failed');
    assert.deepEqual([restored.states, restored.error], [['failed'], { code: 'INVALID_FORMAT' }]);
    assert.equal(await page.evaluate((refused) => globalThis.chat.discard(globalThis.handles[refused]), id), true);
    await page.until(client.kept, { id, wanted: false });
    await page.reload();
    await start(page, ann);
    const next = await page.evaluate(client.send, 'count to 2');
    await page.until(client.replied, 1);
    assert.deepEqual(Object.keys((await page.evaluate(client.seen)).messages), [next]);
  });
}

function paths(page) {
  for (const [direction, cut] of [['up', 'cutUp'], ['down', 'cutDown']]) {
    page(
      `UDP that is dead ${direction} only is left within a heartbeat, in the middle of an answer`,
      async (page, server, context) => {
        const ann = await server.user('ann');
        await start(page, ann, 'webtransport');
        await page.evaluate(client.send, 'count to 200');
        await page.until(client.streamed, 200);
        server.udp[cut]();
        const elapsed = startWatch();
        await page.until(client.connected, 'websocket');
        isWithinHeartbeat(elapsed(), context);
        assert.deepEqual((await page.evaluate(client.seen)).statuses.at(-1).resume, 'resumed');
        const [reply] = await page.until(client.replied, 1);
        assert.equal(reply.text, counted(200));
        const { faults, texts } = await page.evaluate(client.seen);
        assert.deepEqual([faults, Object.values(texts)], [[], [counted(200)]]);
      },
      datagrams,
    );
  }

  page(
    'a WebTransport session is there after two round trips',
    async (page, server, context) => {
      const { base } = await server.user('ann');
      server.udp.slow(ONE_WAY_MS);
      const elapsed = startWatch();
      const took = await page.evaluate(async (base) => {
        const { webtransport, certificate_sha256 } = await (await fetch(`${base}.well-known/chatbox`)).json();
        const value = Uint8Array.from(certificate_sha256.match(/../g), (pair) => Number.parseInt(pair, 16));
        const began = performance.now();
        const session = new WebTransport(webtransport, { serverCertificateHashes: [{ algorithm: 'sha-256', value }] });
        await session.ready;
        const took = performance.now() - began;
        session.close();
        return took;
      }, base);
      const worked = elapsed();
      context.diagnostic(`a session after ${Math.round(took)} ms, at ${ONE_WAY_MS} ms one way`);
      assert.ok(took >= 4 * ONE_WAY_MS && Math.min(took, worked) < 6 * ONE_WAY_MS, `it took ${took} ms`);
    },
    datagrams,
  );

  page(
    'a message into a path that is dead upwards arrives over the other transport',
    async (page, server, context) => {
      const ann = await server.user('ann');
      await start(page, ann, 'webtransport');
      server.udp.cutUp();
      const elapsed = startWatch();
      await page.evaluate(client.send, 'count to 2');
      await page.until(client.replied, 1);
      isWithinHeartbeat(elapsed(), context);
      assert.equal(await page.evaluate(client.connected, 'websocket'), true);
      assert.deepEqual(said(await page.evaluate(client.readLog, ann)), ['count to 2']);
    },
    datagrams,
  );

  page(
    'a WebSocket that is dead downwards is left for WebTransport',
    async (page, server, context) => {
      const ann = await server.user('ann');
      // Until now this network was known for losing UDP.
      await page.evaluate(() => localStorage.setItem('chatbox.transport', `{"until":${Date.now() + 300_000}}`));
      await start(page, ann, 'websocket');
      await page.evaluate(client.send, 'count to 150');
      await page.until(client.streamed, 100);
      server.tcp.cutDown();
      const elapsed = startWatch();
      await page.until(client.connected, 'webtransport');
      isWithinHeartbeat(elapsed(), context);
      const [reply] = await page.until(client.replied, 1);
      assert.equal(reply.text, counted(150));
      assert.deepEqual((await page.evaluate(client.seen)).faults, []);
    },
    (context) => proxied(context, {}),
  );

  page('an idle page sends nothing', async (page, server) => {
    await start(page, { ...(await server.user('ann')), heartbeat: 500 }, 'websocket');
    const { sent } = server.tcp.bytes;
    // That nothing happens can only be seen by waiting: here for three heartbeats.
    await page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 1500)));
    assert.equal(server.tcp.bytes.sent, sent);
  }, proxied);

  page('a page that is put to sleep lets its connection go, and resumes when it wakes', async (page, server) => {
    const ann = await server.user('ann');
    await start(page, ann);
    await page.evaluate(client.send, 'count to 40');
    await page.until(client.streamed, 50);
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    const { state, reason } = await page.evaluate(() => globalThis.chat.status);
    assert.deepEqual([state, reason], ['reconnecting', 'suspended']);
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
    const [reply] = await page.until(client.replied, 1);
    assert.equal(reply.text, counted(40));
    const { faults, statuses } = await page.evaluate(client.seen);
    assert.deepEqual([faults, statuses.at(-1).resume], [[], 'resumed']);
  });
}

function restart(page) {
  page(
    'a page that has missed more than is told again begins anew, and says so',
    async (page, server) => {
      const ann = await server.user('ann');
      await start(page, ann);
      await page.evaluate(client.send, 'count to 2');
      await page.until(client.replied, 1);
      await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
      const other = await page.tab();
      await other.goto(server.host);
      await start(other, ann);
      const missed = 501;
      await other.evaluate(async (count) => {
        for (let sent = 0; sent < count; sent += 1) await globalThis.chat.send('count to 1').reply;
      }, missed);
      await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
      await page.until(client.replied, 500);
      const { entries, replies, faults, statuses } = await page.evaluate(client.seen);
      assert.deepEqual([entries.length, Object.keys(replies).length, faults], [500, 500, []]);
      const told = statuses.map(({ resume }) => resume).filter((one, at, all) => one !== all[at - 1]);
      // In between a slow browser may wake it for a moment: by the other tab, which takes its place.
      assert.deepEqual([told.slice(0, 2), told.slice(-2)], [[null, 'connected'], ['resuming', 'restarted']], told.join());
      assert.equal(await page.evaluate(() => globalThis.chat.hasOlder), true);
    },
    (context) => straight(context, QUICK),
  );
}

function renewal(page) {
  page('a worn connection is replaced in the middle of an answer, and nobody sees it', async (page, server) => {
    await start(page, { ...(await server.user('ann')), renewAfter: { streams: 5 } }, 'webtransport');
    for (let count = 1; count < 5; count += 1) {
      await page.evaluate(client.send, `count to ${count}`);
      await page.until(client.replied, count);
    }
    assert.equal((await page.evaluate(client.seen)).connections.length, 1);
    await page.evaluate(client.send, 'count to 250');
    await page.until(() => globalThis.seen.connections.length === 2);
    assert.equal(Object.keys((await page.evaluate(client.seen)).replies).length, 4, 'the answer still runs');
    const replies = await page.until(client.replied, 5);
    assert.equal(replies.at(-1).text, counted(250));
    const { faults, statuses, texts } = await page.evaluate(client.seen);
    assert.deepEqual(faults, []);
    assert.equal(Object.values(texts).at(-1), counted(250));
    assert.deepEqual([...new Set(statuses.map(({ state }) => state))], ['connecting', 'connected']);
  });

  page('a connection is replaced after so many bytes, between two answers', async (page, server) => {
    const ann = await server.user('ann');
    await start(page, { ...ann, renewAfter: { bytes: 500 } });
    for (let count = 1; count <= 3; count += 1) {
      await page.evaluate(client.send, 'count to 3');
      await page.until(client.replied, count);
      await page.until((least) => globalThis.seen.connections.length > least, count);
    }
    const { faults, statuses } = await page.evaluate(client.seen);
    assert.deepEqual([faults, statuses.some(({ state }) => state === 'reconnecting')], [[], false]);
    assert.equal((await page.evaluate(client.readLog, ann)).length, 6);
  });
}

function reloads(page) {
  page(`an answer over ${RELOADS} reloads is the stored one, to the byte`, async (page, server, context) => {
    const seed = Number(process.env.CHATBOX_TEST_SEED ?? Date.now() % 1_000_000);
    context.diagnostic(`seed ${seed} (CHATBOX_TEST_SEED)`);
    const text = counted(500);
    const random = randomFrom(seed);
    const points = Array.from({ length: RELOADS }, () => Math.floor(random() * text.length * 0.9)).sort((a, b) => a - b);
    const ann = await server.user('ann');
    await start(page, ann);
    await page.evaluate(client.send, 'count to 500');
    for (const [nth, point] of points.entries()) {
      server.allow(point + RELOADING);
      await page.until(client.streamed, point);
      // The next part comes while the page is away.
      server.allow((points[nth + 1] ?? point) + RELOADING);
      await page.reload();
      await client.startClient(page, ann);
    }
    server.allow(Infinity);
    const [reply] = await page.until(client.replied, 1);
    const { faults, texts } = await page.evaluate(client.seen);
    const stored = createHash('sha256').update(text).digest('hex');
    const shown = createHash('sha256').update(Object.values(texts)[0]).digest('hex');
    assert.deepEqual([shown, reply.sha256, reply.verified, faults], [stored, stored, true, []]);
    const log = await page.evaluate(client.readLog, ann);
    assert.deepEqual(log.map(({ type }) => type), ['user_message', 'reply']);
  }, metered);
}

/** A dead path is left after a heartbeat, and another one found; the machine may be slow. */
function isWithinHeartbeat(took, context) {
  context.diagnostic(`left after ${Math.round(took)} ms`);
  assert.ok(took < 2 * (HEARTBEAT_MS + DIAL_MS), `it took ${took} ms`);
}

async function start(page, options, transport) {
  await client.startClient(page, options);
  await page.until(client.connected, transport);
}

function said(log) {
  return log.filter(({ type }) => type === 'user_message').map(({ content }) => content);
}

/** What the demo model answers to `count to N`. */
function counted(lines) {
  return Array.from({ length: lines }, (_, index) => `${index + 1}. line\n`).join('');
}

function randomFrom(seed) {
  let state = (seed % 2_147_483_646) + 1;
  return () => (state = (state * 48_271) % 2_147_483_647) / 2_147_483_647;
}

async function straight(context, env) {
  const host = await client.startHost();
  context.after(host.close);
  const server = await startServer({ CHATBOX_AUTH__ALLOWED_ORIGINS: host.origin, ...env });
  context.after(server.stop);
  const user = async (name) => ({ base: server.base, token: await server.token(name) });
  return { host: host.origin, user };
}

/** A model that counts to 500, as far as it may, so that no page that is slow to come back misses the end. */
async function metered(context) {
  const pieces = Array.from({ length: 500 }, (_, index) => `${index + 1}. line\n`);
  let [sent, allowed, wake] = [0, 0, () => {}];
  const before = async (nth) => {
    while (sent >= allowed) await new Promise((resolve) => (wake = resolve));
    sent += pieces[nth].length;
    await pause(5);
  };
  const env = chain({ model: await startProvider(context, { pieces, before }) });
  const allow = (length) => {
    allowed = length;
    wake();
  };
  return { ...(await straight(context, { ...env, CHATBOX_LLM__TIMEOUT: '10m', CHATBOX_LLM__IDLE_TIMEOUT: '10m' })), allow };
}

/** WebTransport through a proxy. */
async function datagrams(context) {
  const quic = await freePort();
  const udp = await udpProxy(quic);
  context.after(udp.close);
  const env = { CHATBOX_LISTEN__QUIC: `localhost:${quic}`, CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${udp.port}` };
  return { ...(await straight(context, env)), udp };
}

/** WebSockets through a proxy, and scripts beside it; no WebTransport, unless said otherwise. */
async function proxied(context, quic, env) {
  const [http, front, nobody] = [await freePort(), await freePort(), await freePort()];
  const tcp = await tcpProxy(http, front);
  context.after(tcp.close);
  const { host, user } = await straight(context, {
    CHATBOX_LISTEN__HTTP: `localhost:${http}`,
    CHATBOX_PUBLIC_URL: `http://localhost:${front}`,
    ...(quic ?? { CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${nobody}` }),
    ...env,
  });
  const base = `http://localhost:${http}/chatbox/`;
  return { host, tcp, user: async (name) => ({ ...(await user(name)), base }) };
}
