/** The pages within another page, and within a WebView: who may hand a token over, and who may not. */

import assert from 'node:assert/strict';
import { freePort } from './harness/network.js';
import { startHost } from './harness/host.js';
import * as shown from './harness/shown.js';

/** What browsers print about a frame that must not be. */
const FRAMING = /frame|target origin|X-Frame-Options|chrome-error/i;

const signedOut = () => !document.getElementById('signin').hidden;

export function hosts(page) {
  let good;
  let bad;

  const framed = {
    server: async (context) => {
      [good, bad] = [await startHost(await freePort()), await startHost(await freePort())];
      context.after(good.close);
      context.after(bad.close);
      return { CHATBOX_AUTH__ALLOWED_ORIGINS: good.origin };
    },
  };

  const around = (host, server, name, more = {}) =>
    host.url({ chat: `${server.base}${name}`, origin: new URL(server.base).origin, ...more });

  const give = (page, ...tokens) => page.evaluate((all) => globalThis.tokens.push(...all), tokens);

  for (const name of ['chat.html', 'sessions.html']) {
    // checklist 8, 32
    page(
      `${name} asks the page around it for a token, and keeps it to itself`,
      async (page, server) => {
        const token = await server.token('ann');
        await page.goto(around(good, server, name));
        await page.until(() => globalThis.asked.length > 0);
        await page.evaluate((given) => globalThis.give(given), token);
        const inner = await page.frame(`${server.base}${name}`);
        await inner.until(shown.connectedOver, 'webtransport');
        assert.deepEqual(await page.evaluate(() => globalThis.asked), [
          { origin: new URL(server.base).origin, data: { type: 'request_token' } },
        ]);
        assert.equal(await inner.evaluate(shown.secretsKept), '', 'no token in storage');
        assert.ok(!page.said.some((line) => line.includes(token)), 'no token in the console');
        assert.ok(!page.raw.frames().some((frame) => frame.url().includes(token)), 'no token in a URL');
        assert.deepEqual(await page.faults(), []);
      },
      framed,
    );

    // checklist 32
    page(
      `${name} does not speak to a page of another origin around it`,
      async (page, server) => {
        const token = await server.token('ann');
        await page.goto(around(bad, server, name));
        await page.until(() => document.getElementById('chat') !== null);
        await page.until(() => document.readyState === 'complete');
        await page.evaluate((given) => globalThis.give(given), token).catch(() => {});
        await page.goto(around(good, server, name));
        await page.until(() => globalThis.asked.length > 0);
        await page.goto(around(bad, server, name));
        await page.until(() => document.readyState === 'complete');
        assert.deepEqual(await page.evaluate(() => globalThis.asked), []);
        const shownInside = page.raw.frames().filter((frame) => frame.url().startsWith(server.base));
        for (const frame of shownInside) assert.equal(await frame.evaluate(() => document.getElementById('status')), null);
        assert.ok((await page.faults()).every((problem) => FRAMING.test(problem)), `${await page.faults()}`);
      },
      framed,
    );
  }

  // checklist 32
  page(
    'a frame beside the chat can set no token, whatever it claims',
    async (page, server) => {
      const [ann, mallory] = [await server.token('ann'), await server.token('mallory')];
      await page.goto(around(good, server, 'chat.html', { beside: bad.url({}) }));
      await page.until(() => globalThis.asked.length > 0);
      const beside = await page.frame(bad.origin);
      await beside.evaluate((token) => {
        const chat = parent.frames[0];
        chat.postMessage({ type: 'token', token }, '*');
        chat.postMessage(JSON.stringify({ type: 'token', token }), '*');
      }, mallory);
      const inner = await page.frame(`${server.base}chat.html`);
      // Messages to one window are delivered in order, so those are through when this one is.
      await inner.evaluate(() => addEventListener('message', ({ data }) => (globalThis.last = data)));
      await beside.evaluate(() => parent.frames[0].postMessage('the last', '*'));
      await inner.until(() => globalThis.last === 'the last');
      assert.equal(await inner.evaluate(() => document.getElementById('status').dataset.state), 'connecting');
      await page.evaluate((token) => globalThis.give(token), ann);
      await inner.until(shown.connectedOver, 'webtransport');
      await inner.click('#text');
      await page.type('count to 2');
      await page.press('Enter');
      await inner.until(shown.finished, 1);
      assert.equal(await listed(server, ann), 1);
      assert.equal(await listed(server, mallory), 0);
      assert.deepEqual(await beside.evaluate(() => globalThis.asked), [], 'it is told nothing');
      assert.deepEqual(await page.faults(), []);
    },
    framed,
  );

  page(
    'a page that nobody signs in says so, and goes on when its host has a token',
    async (page, server) => {
      await page.goto(around(good, server, 'chat.html'));
      await page.until(() => globalThis.asked.length > 0);
      await page.evaluate(() => globalThis.give(null));
      const inner = await page.frame(`${server.base}chat.html`);
      await inner.until(signedOut);
      assert.match(await inner.evaluate(() => document.getElementById('signin').innerText), /The application around this page/);
      await page.evaluate((token) => globalThis.give(token), await server.token('ann'));
      await inner.until(shown.connectedOver, 'webtransport');
      assert.equal(await inner.evaluate(signedOut), false);
      assert.deepEqual(await page.faults(), []);
    },
    framed,
  );

  // checklist 7, 8
  page(
    'a token is renewed while an answer runs, and nothing of it is lost',
    async (page, server) => {
      await page.goto(around(good, server, 'chat.html'));
      await give(page, await server.token('ann', '8s'), await server.token('ann', '1h'));
      await page.until(() => globalThis.asked.length > 0);
      if (await page.evaluate(() => globalThis.tokens.length === 2)) {
        await page.evaluate(() => globalThis.give(globalThis.tokens.shift()));
      }
      const inner = await page.frame(`${server.base}chat.html`);
      await inner.until(shown.connectedOver, 'webtransport');
      await inner.evaluate(() => {
        globalThis.states = new Set();
        const chip = document.getElementById('status');
        new MutationObserver(() => globalThis.states.add(chip.dataset.state)).observe(chip, { attributes: true });
      });
      await inner.click('#text');
      await page.type('count to 200');
      await page.press('Enter');
      await page.until(() => globalThis.asked.some(({ data }) => data.type === 'refresh_token'));
      assert.equal(await inner.evaluate(() => document.querySelectorAll('.reply[aria-busy=true]').length), 1, 'in the middle');
      await inner.until(shown.finished, 1);
      assert.equal(await inner.evaluate(shown.listLength), 200);
      assert.deepEqual([...(await inner.evaluate(() => [...globalThis.states]))].filter((state) => state !== 'connected'), []);
      assert.equal(await inner.evaluate(shown.secretsKept), '');
      assert.deepEqual(await page.faults(), []);
    },
    framed,
  );

  // checklist 8
  page(
    'within a WebView the app is asked over its bridge',
    async (page, server) => {
      const token = await server.token('ann');
      await page.goto(`${server.base}chat.html`);
      await page.until(() => globalThis.told.length > 0);
      assert.deepEqual(await page.evaluate(() => globalThis.told), ['{"type":"request_token"}']);
      await page.evaluate((given) => {
        const data = JSON.stringify({ type: 'token', token: given });
        // Android's WebView dispatches on the document.
        document.dispatchEvent(new MessageEvent('message', { data }));
      }, token);
      await page.until(shown.connectedOver, 'webtransport');
      assert.equal(await page.evaluate(shown.secretsKept), '');
      await page.reload();
      await page.until(() => globalThis.told.length > 0);
      await page.evaluate((given) => {
        window.dispatchEvent(new MessageEvent('message', { data: JSON.stringify({ type: 'token', token: given }) }));
      }, token);
      await page.until(shown.connectedOver, 'webtransport');
      assert.deepEqual(await page.faults(), []);
    },
    {
      view: {
        before: () => {
          globalThis.told = [];
          globalThis.ReactNativeWebView = { postMessage: (text) => globalThis.told.push(text) };
        },
      },
    },
  );
}

/** How many conversations whoever has this token has. */
async function listed(server, token) {
  const response = await fetch(`${server.base}sessions`, { headers: { authorization: `Bearer ${token}` } });
  return (await response.json()).sessions.length;
}
