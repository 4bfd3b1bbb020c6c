/** What a person sees of a conversation, and what the client does, over both transports. */

import assert from 'node:assert/strict';
import { freePort, tcpProxy, udpProxy } from './harness/network.js';
import { open, say } from './harness/acts.js';
import { quick } from './harness/server.js';
import { startWatch } from './harness/stopwatch.js';
import * as shown from './harness/shown.js';

/** What browsers print about a transport that a test has cut. */
const CUT = /WebTransport|QUIC|WebSocket|ERR_|NetworkError|interrupted while the page was loading|can.t establish a connection/i;

export function conversation(page) {
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
    const copying = await page.evaluate(() => document.querySelector('.reply > .meta .copy').checkVisibility());
    assert.equal(copying, true, 'all of it can be copied, though it has code with a button of its own');
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
  }, quick);

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
    assert.match(await page.evaluate(shown.announced), /^Answer: 1\. line\n[^]*\nStopped$/);
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
  }, quick);

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

export function transports(page) {
  let proxies;

  page(
    'with UDP refused the page is on WebSocket soon, and works',
    async (page, server, _browser, context) => {
      const elapsed = startWatch();
      await page.goto(server.signIn);
      await page.until(shown.connectedOver, 'websocket');
      const took = elapsed();
      context.diagnostic(`on WebSocket after ${Math.round(took)} ms`);
      // Two to three seconds where nothing else runs; as long as an attempt may take if nothing ran beside it.
      assert.ok(took < 9000, `it took ${took} ms`);
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
      await say(page, 'count to 200');
      await page.until((needle) => document.querySelector('.streaming')?.textContent.includes(needle), '\n20. line');
      proxies.udp.cut();
      await page.until(shown.connectedOver, 'websocket');
      await page.until(shown.finished, 1);
      assert.equal(await page.evaluate(shown.listLength), 200);
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
      await page.until(shown.finished, 2);
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

export function client(page) {
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
