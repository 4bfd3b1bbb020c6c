/**
 * The one list of behaviours that every browser has to show, against the real server.
 *
 * A test opens the URL that the server printed, acts as a person does (keys, clicks), and asserts what the page shows.
 */

import assert from 'node:assert/strict';
import { copyFile, mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { after, before, describe, test } from 'node:test';
import { freePort, tcpProxy, udpProxy } from './harness/network.js';
import { startServer } from './harness/server.js';
import * as shown from './harness/shown.js';

const OUTPUT = fileURLToPath(new URL('output/', import.meta.url));
const README_SCREENSHOT = fileURLToPath(new URL('../../.github/screenshot.png', import.meta.url));
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** What browsers print about a transport that a test has cut. */
const CUT = /WebTransport|QUIC|WebSocket|ERR_|NetworkError|interrupted while the page was loading|can.t establish a connection/i;

/** @param {string} name @param {() => Promise<object>} launch */
export function behaviours(name, launch) {
  describe(name, { timeout: 300_000 }, () => {
    let browser;
    before(async () => {
      await mkdir(OUTPUT, { recursive: true });
      browser = await launch();
    });
    after(() => browser?.close());

    const page = (title, steps, { server: env, view } = {}) =>
      test(title, { timeout: 120_000 }, async (context) => {
        const server = await startServer(await env?.(context));
        context.after(server.stop);
        const opened = await browser.open(view);
        context.after(opened.close);
        await steps(opened, server, browser);
      });

    conversation(page);
    transports(page, browser);
    appearance(page);
    client(page);
  });
}

function conversation(page) {
  page('the printed URL opens a signed-in page over WebTransport', async (page, server) => {
    await page.goto(server.signIn);
    await page.until(shown.connectedOver, 'webtransport');
    assert.equal(await page.evaluate(() => location.hash), '', 'the code is gone from the address bar');
    assert.equal(await page.evaluate(shown.status), 'WebTransport · connected');
    assert.equal(await page.evaluate(() => document.querySelectorAll('.suggestions button').length), 4);
    assert.equal(await page.evaluate(shown.secretsKept), '', 'no token in storage');
    assert.deepEqual(await page.faults(), []);
  });

  page('an answer streams as text and ends as rendered Markdown', async (page, server) => {
    await open(page, server);
    await say(page, 'How does WebTransport help?');
    await page.until(shown.ownState, 'accepted');
    const first = await page.until(shown.streamed);
    const later = await page.until((length) => {
      const text = document.querySelector('.streaming')?.textContent;
      return text?.length > length && text;
    }, first.length);
    assert.ok(later.startsWith(first), 'text only grows');
    await page.until(shown.finished, 1);
    const rendered = await page.evaluate(shown.rendered);
    assert.ok(rendered.headings > 0 && rendered.tables > 0 && rendered.code > 0, JSON.stringify(rendered));
    assert.equal(rendered.streaming, 0, 'no raw text is left');
    assert.deepEqual(await page.faults(), []);
  });

  page('a reload stays signed in and shows the history', async (page, server) => {
    await open(page, server);
    await say(page, 'What is chatbox?');
    await page.until(shown.finished, 1);
    const before = await page.evaluate(shown.transcript);
    await page.reload();
    await page.until(shown.connectedOver, 'webtransport');
    await page.until(shown.finished, 1);
    assert.deepEqual(await page.evaluate(shown.transcript), before);
    assert.deepEqual(await page.faults(), []);
  });

  page('an answer that runs goes on over a reload', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 60');
    await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n8. line');
    await page.reload();
    await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n20. line');
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(shown.listLength), 60);
    assert.deepEqual(await page.faults(), []);
  });

  page('stop ends the answer and keeps its text', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 500');
    await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n5. line');
    await page.click('#stop');
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(() => document.querySelector('.reply').dataset.state), 'stopped');
    const kept = await page.evaluate(shown.listLength);
    assert.ok(kept >= 5 && kept < 500, `${kept} lines are kept`);
    assert.equal(await page.evaluate(() => document.getElementById('stop').hidden), true);
    assert.deepEqual(await page.faults(), []);
  });

  page('messages sent in a row are answered in order, each below its own', async (page, server) => {
    await open(page, server);
    for (const count of [11, 12, 13, 14]) await say(page, `count to ${count}`);
    await page.until(shown.finished, 4);
    const lengths = await page.evaluate(() =>
      [...document.querySelectorAll('#log > article')].map((article) =>
        article.className === 'own' ? article.querySelector('.bubble').textContent : article.querySelectorAll('li').length,
      ),
    );
    assert.deepEqual(lengths, ['count to 11', 11, 'count to 12', 12, 'count to 13', 13, 'count to 14', 14]);
    assert.deepEqual(await page.faults(), []);
  });

  page('a second window of the same person sees the conversation live', async (page, server, browser) => {
    await open(page, server);
    const other = await page.evaluate((url) => (window.other = window.open(url)) !== null, server.base);
    assert.equal(other, true);
    await page.until(() => window.other.document.getElementById('status')?.dataset.state === 'connected');
    await say(page, 'count to 30');
    await page.until(() => window.other.document.querySelector('.own .bubble')?.textContent === 'count to 30');
    await page.until(() => window.other.document.querySelectorAll('.reply[aria-busy=false] li').length === 30);
    assert.ok(browser.name);
  });

  page('a new chat begins empty', async (page, server) => {
    await open(page, server);
    await say(page, 'What is chatbox?');
    await page.until(shown.finished, 1);
    await page.click('#new');
    await page.until(() => !document.getElementById('empty').hidden);
    await say(page, 'count to 3');
    await page.until(shown.finished, 1);
    await page.reload();
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(shown.listLength), 3, 'the newer session is the active one');
    assert.deepEqual(await page.faults(), []);
  });

  page('without a sign-in the page says what to do', async (page, server) => {
    await page.goto(server.base);
    await page.until(() => !document.getElementById('signin').hidden);
    assert.equal(await page.evaluate(shown.status), 'Not signed in');
    assert.equal(await page.evaluate(() => document.activeElement.id), 'signin-title');
    assert.deepEqual(await page.faults(/401/), []);
  });

  page('a message that is too long cannot be sent, and the counter says why', async (page, server) => {
    await open(page, server);
    await page.click('#text');
    await page.evaluate(() => {
      const text = document.getElementById('text');
      text.value = '🦀'.repeat(10_001);
      text.dispatchEvent(new Event('input'));
    });
    assert.equal(await page.evaluate(() => document.getElementById('counter').textContent), '1 characters too many');
    await page.press('Enter');
    assert.equal(await page.evaluate(() => document.querySelectorAll('.own').length), 0);
    await page.press('Backspace');
    await page.until(() => !document.getElementById('send').disabled);
    assert.deepEqual(await page.faults(), []);
  });
}

function transports(page) {
  let proxies;

  page(
    'with UDP refused the page is on WebSocket within 3 s, and works',
    async (page, server) => {
      const started = Date.now();
      await page.goto(server.signIn);
      await page.until(shown.connectedOver, 'websocket', 3000);
      assert.ok(Date.now() - started < 3000, `it took ${Date.now() - started} ms`);
      await say(page, 'count to 20');
      await page.until(shown.finished, 1);
      assert.equal(await page.evaluate(shown.listLength), 20);
      assert.deepEqual(await page.faults(CUT), []);
    },
    { server: async () => ({ CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${await freePort()}` }) },
  );

  page(
    'an answer over WebTransport goes on over WebSocket when UDP dies',
    async (page, server) => {
      await open(page, server);
      await say(page, 'count to 300');
      await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n20. line');
      proxies.udp.cut();
      await page.until(shown.connectedOver, 'websocket', 30_000);
      await page.until(shown.finished, 1, 60_000);
      assert.equal(await page.evaluate(shown.listLength), 300);
      assert.equal(await page.evaluate(() => document.querySelector('.reply').dataset.state), 'complete');
      assert.deepEqual(await page.faults(CUT), []);
    },
    {
      server: async (context) => {
        const quic = await freePort();
        proxies = { udp: await udpProxy(quic) };
        context.after(proxies.udp.close);
        return { CHATBOX_LISTEN__QUIC: `localhost:${quic}`, CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${proxies.udp.port}` };
      },
    },
  );

  page(
    'a WebSocket that is cut comes back, nothing is lost, and what was typed meanwhile is sent',
    async (page, server) => {
      await open(page, server, 'websocket');
      await say(page, 'count to 80');
      await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n10. line');
      proxies.tcp.cut();
      await page.until(() => document.getElementById('status').dataset.state === 'reconnecting');
      await say(page, 'count to 7');
      await page.until(shown.ownState, 'queued');
      proxies.tcp.mend();
      await page.until(shown.finished, 2, 40_000);
      const lengths = await page.evaluate(() =>
        [...document.querySelectorAll('.reply')].map((reply) => reply.querySelectorAll('li').length),
      );
      assert.deepEqual(lengths, [80, 7]);
      assert.deepEqual(await page.faults(CUT), []);
    },
    {
      server: async (context) => {
        const [http, front, nobody] = [await freePort(), await freePort(), await freePort()];
        proxies = { tcp: await tcpProxy(http, front) };
        context.after(proxies.tcp.close);
        return {
          CHATBOX_LISTEN__HTTP: `localhost:${http}`,
          CHATBOX_PUBLIC_URL: `http://localhost:${front}`,
          CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${nobody}`,
        };
      },
    },
  );
}

function appearance(page) {
  page('everything can be done with the keyboard', async (page, server) => {
    await open(page, server);
    await page.until(() => document.activeElement.id === 'text');
    await page.type('first line');
    await page.shiftPress('Enter');
    await page.type('second line');
    await page.press('Enter');
    await page.until(() => document.querySelector('.bubble')?.textContent === 'first line\nsecond line');
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(() => document.activeElement.id), 'text', 'one can go on typing');
    const reached = new Set();
    // Backwards, from the text to the bar; beyond it the browser's own controls would have the focus.
    while (!reached.has('new') && reached.size < 20) {
      await page.shiftPress('Tab');
      reached.add(await page.evaluate(shown.focused));
    }
    for (const stop of ['new', 'scroller', 'text copy']) assert.ok(reached.has(stop), `${stop} of ${[...reached]}`);
    assert.deepEqual([...reached].filter((name) => name.includes('without')), []);
    await say(page, 'count to 500');
    await page.until(shown.streamed);
    await page.press('Escape');
    await page.until(shown.finished, 2);
    assert.deepEqual(await page.faults(), []);
  });

  page('nothing is wider than a phone', async (page, server) => {
    await open(page, server);
    await page.resize({ width: 390, height: 844 });
    await say(page, `${'wide'.repeat(200)} https://example.org/${'a'.repeat(300)}`);
    await page.until(shown.finished, 1);
    await say(page, 'How does WebTransport help?');
    await page.until(shown.finished, 2);
    assert.deepEqual(await page.evaluate(shown.tooWide), []);
    await page.resize({ width: 320, height: 640 });
    assert.deepEqual(await page.evaluate(shown.tooWide), []);
    assert.deepEqual(await page.faults(), []);
  });

  page('the reader who scrolls up is left alone', async (page, server) => {
    await open(page, server);
    await page.resize({ width: 600, height: 400 });
    await say(page, 'count to 200');
    await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n30. line');
    assert.ok(await page.evaluate(shown.fromBottom) < 40, 'the newest is in view');
    await page.evaluate(() => document.getElementById('scroller').scrollTo(0, 100));
    await page.until(() => !document.getElementById('newest').hidden);
    await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n60. line');
    assert.equal(await page.evaluate(() => document.getElementById('scroller').scrollTop), 100);
    await page.click('#newest');
    await page.until(() => document.getElementById('newest').hidden);
    await page.click('#stop');
    await page.until(shown.finished, 1);
    assert.deepEqual(await page.faults(), []);
  });

  page('axe finds no serious fault in any state', async (page, server) => {
    const serious = async (state) => {
      await page.evaluate(`${AXE};0`);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
      const found = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
      assert.deepEqual(found.map(({ id, nodes }) => `${state}: ${id}: ${nodes.map((node) => node.html)}`), []);
    };
    await page.goto(server.base);
    await page.until(() => !document.getElementById('signin').hidden);
    await serious('signed out');
    await page.goto('about:blank');
    await open(page, server);
    await page.until(() => !document.getElementById('empty').hidden);
    await serious('empty');
    await say(page, 'count to 400');
    await page.until(shown.streamed);
    await serious('streaming');
    await page.click('#stop');
    await page.until(shown.finished, 1);
    await say(page, 'How does WebTransport help?');
    await page.until(shown.finished, 2);
    await serious('finished');
  });

  page('screenshots', async (page, server, browser) => {
    await page.close();
    const at = (name) => `${OUTPUT}${browser.name.toLowerCase()}-${name}.png`;
    for (const dark of browser.darkness ? [false, true] : [false]) {
      for (const view of [{ width: 390, height: 844, touch: true }, { width: 1280, height: 800 }]) {
        const label = `${view.width}x${view.height}${dark ? '-dark' : '-light'}`;
        const fresh = await startServer();
        try {
          const shot = await browser.open({ ...view, dark });
          await open(shot, fresh);
          await shot.until(() => !document.getElementById('empty').hidden);
          await shot.screenshot(at(`empty-${label}`));
          await say(shot, 'What is chatbox?');
          await shot.until(shown.finished, 1);
          await say(shot, 'How does WebTransport help?');
          await shot.until(shown.streamed);
          await shot.until(() => document.querySelector('.streaming')?.textContent.length > 400);
          await shot.screenshot(at(`streaming-${label}`));
          await shot.until(shown.finished, 2);
          await shot.screenshot(at(`finished-${label}`));
          await shot.evaluate(() => [...document.querySelectorAll('.own')].at(-1).scrollIntoView());
          await shot.screenshot(at(`read-${label}`));
          await shot.close();
        } finally {
          await fresh.stop();
        }
      }
    }
    if (process.env.README_SCREENSHOT) await copyFile(at('read-1280x800-light'), README_SCREENSHOT);
  });
}

function client(page) {
  page('the client hands out pieces, the reply and its proof', async (page, server) => {
    await open(page, server);
    const result = await page.evaluate(async (base) => {
      const { Chatbox } = await import(`${base}sdk.js`);
      const getToken = async () => (await (await fetch('dev/session', { method: 'POST', body: '{}' })).json()).token;
      const chat = new Chatbox({ base, getToken });
      const session = await chat.connect();
      const message = chat.send('count to 5');
      const accepted = await message.accepted;
      const pieces = [];
      for await (const piece of message.pieces) pieces.push(piece);
      const { state, text, length, verified, html } = await message.reply;
      const stopped = await chat.stop(message.turn_id).catch((err) => err.code);
      const { transport } = chat.status;
      chat.close();
      const late = await chat.send('too late') && chat.status.state;
      return { session: session.session_id === accepted.session_id, accepted, pieces, state, text, length, verified, html, stopped, transport, late };
    }, server.base);
    const text = '1. line\n2. line\n3. line\n4. line\n5. line\n';
    assert.equal(result.pieces.join(''), text);
    assert.ok(result.pieces.length > 1, `${result.pieces.length} pieces`);
    assert.equal(result.text, text);
    assert.equal(result.length, text.length);
    assert.equal(result.state, 'complete');
    assert.equal(result.verified, true);
    assert.match(result.html, /<ol>/);
    assert.equal(result.accepted.duplicate, false);
    assert.equal(result.session, true);
    assert.equal(result.stopped, 'TURN_NOT_FOUND');
    assert.equal(result.transport, 'webtransport');
    assert.equal(result.late, 'closed');
    assert.deepEqual(await page.faults(), []);
  });

  page('a message that is sent twice is applied once', async (page, server) => {
    await open(page, server);
    const [first, second] = await page.evaluate(async (base) => {
      const { Chatbox } = await import(`${base}sdk.js`);
      const getToken = async () => (await (await fetch('dev/session', { method: 'POST', body: '{}' })).json()).token;
      const chat = new Chatbox({ base, getToken });
      await chat.connect();
      const id = crypto.randomUUID();
      const accepted = [await chat.send('count to 3', { id }).accepted, await chat.send('count to 3', { id }).accepted];
      chat.close();
      return accepted;
    }, server.base);
    assert.equal(second.duplicate, true);
    assert.equal(second.seq, first.seq);
    assert.equal(second.turn_id, first.turn_id);
    assert.deepEqual(await page.faults(), []);
  });
}

async function open(page, server, transport = 'webtransport') {
  await page.goto(server.signIn);
  await page.until(shown.connectedOver, transport);
}

async function say(page, text) {
  await page.click('#text');
  await page.type(text);
  await page.press('Enter');
}
