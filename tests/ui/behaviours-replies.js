/** What can be done about a reply, and what the page says of messages that wait, fail, or are being typed. */

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { tcpProxy, freePort } from './harness/network.js';
import { open, say } from './harness/acts.js';
import { chain, startProvider } from './harness/provider.js';
import { AT_ONCE, quick } from './harness/server.js';
import * as shown from './harness/shown.js';

const CUT = /WebTransport|QUIC|WebSocket|ERR_|NetworkError|interrupted while the page was loading|can.t establish a connection/i;

const variants = () => document.querySelector('[data-last] .place')?.textContent;

/** A hook that refuses messages with one word and answers with another; gives the settings of a server that asks it. */
async function refusing(context) {
  const hook = createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    const { kind, content } = JSON.parse(body);
    response.end(JSON.stringify({ allowed: !content.includes(kind === 'message' ? 'forbidden' : '29') }));
  });
  await once(hook.listen(0, '127.0.0.1'), 'listening');
  context.after(() => hook.close());
  const url = `http://127.0.0.1:${hook.address().port}/`;
  return { CHATBOX_LLM__MODERATION__BEFORE: url, CHATBOX_LLM__MODERATION__AFTER: url };
}

/** A server whose model says this. */
const scripted = (text) => ({
  server: async (context) => ({ ...AT_ONCE, ...chain({ scripted: await startProvider(context, { pieces: [text] }) }) }),
});

export function replies(page) {
  page('what a hook refuses is told, and an answer is taken back', async (page, server) => {
    await open(page, server);
    await say(page, 'a forbidden word');
    await page.until(shown.ownState, 'failed');
    const note = () => [...document.querySelectorAll('.own')].at(-1).innerText;
    assert.match(await page.evaluate(note), /Not sent: this content is not allowed here/);
    await page.click('.own .discard');
    await say(page, 'count to 30');
    await page.until(() => /\b2\b/.test(document.querySelector('.streaming')?.textContent ?? ''));
    await page.until(shown.finished, 1);
    assert.match(await page.evaluate(() => document.querySelector('.reply').innerText), /Failed: this content is not allowed here/);
    const counted = () => document.querySelector('.reply .body').textContent;
    assert.equal(await page.evaluate(counted), '', 'what was shown is gone');
    await page.reload();
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(counted), '', 'and stays so');
    assert.deepEqual(await page.faults(), []);
  }, { server: refusing });

  page('a message beyond the budget says when it may be sent', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 4');
    await page.until(shown.finished, 1);
    await say(page, 'count to 2');
    await page.until(shown.ownState, 'failed');
    const note = await page.evaluate(() => [...document.querySelectorAll('.own')].at(-1).innerText);
    assert.match(note, /Not sent: the budget of 1 tokens a day is used up \(\d+ so far\); it resets at \d{4}-\d\d-\d\dT00:00:00\.000Z/);
    assert.deepEqual(await page.faults(), []);
  }, { server: async () => ({ CHATBOX_LLM__TOKENS_PER_USER_DAY: '1' }) });

  page('a reply can be asked for again, and the one before it stays at hand', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 4');
    await page.until(shown.finished, 1);
    await page.click('[data-last] .regenerate');
    await page.until((place) => document.querySelector('[data-last] .place').textContent === place, '2 of 2');
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(shown.listLength), 4);
    assert.equal(await page.evaluate(() => document.querySelectorAll('.own').length), 1, 'the message is not said again');
    await page.click('[data-last] .earlier');
    assert.equal(await page.evaluate(variants), '1 of 2');
    assert.equal(await page.evaluate(() => document.querySelector('.earlier').disabled), true);
    await page.reload();
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(variants), '2 of 2', 'the newest is in view');
    await say(page, 'count to 2');
    await page.until(shown.finished, 2);
    const offered = await page.evaluate(() =>
      [...document.querySelectorAll('.regenerate')].map((button) => button.checkVisibility()),
    );
    assert.deepEqual(offered, [false, true], 'only the last one can be asked for again');
    assert.deepEqual(await page.faults(), []);
  }, quick);

  page('another device sees an answer that is asked for again', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 4');
    await page.until(shown.finished, 1);
    const other = await page.tab();
    await other.goto(server.base);
    await other.until(shown.finished, 1);
    await page.click('[data-last] .regenerate');
    await other.until((place) => document.querySelector('.place').textContent === place, '2 of 2');
    await other.until(shown.finished, 1);
    assert.deepEqual(await other.faults(), []);
  }, quick);

  page('a rating is kept over a reload, and can be changed', async (page, server) => {
    const rated = () =>
      ['up', 'down'].filter((rating) => document.querySelector(`.rate-${rating}[aria-pressed=true]`)).join();
    const isRated = (rating) => document.querySelector(`.rate-${rating}[aria-pressed=true]`) !== null;
    await open(page, server);
    await say(page, 'count to 3');
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(rated), '');
    await page.click('.rate-up');
    assert.equal(await page.evaluate(rated), 'up');
    await page.reload();
    await page.until(isRated, 'up');
    // Without a connection nothing of it leaves this page.
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    await page.click('.rate-down');
    assert.equal(await page.evaluate(rated), 'down');
    await page.reload();
    await page.until(isRated, 'down');
    assert.equal(await page.evaluate(() => document.getElementById('alert').hidden), true);
    assert.deepEqual(await page.faults(), []);
  }, quick);

  page('an address in an answer can be followed', async (page, server) => {
    await open(page, server);
    await say(page, 'Where?');
    await page.until(shown.finished, 1);
    const links = await page.evaluate(() => [...document.querySelectorAll('.reply .body a')].map(({ href, textContent, target }) => [href, textContent, target]));
    const address = (url) => [url, url, '_blank'];
    assert.deepEqual(links, [
      ['https://a.example/', 'one', '_blank'],
      address('https://b.example/x_(y)?z=1'),
      address('http://c.example/q'),
    ]);
    assert.equal(await page.evaluate(() => document.querySelector('.reply code').innerHTML), 'https://d.example/');
    assert.equal(await page.evaluate(() => document.querySelector('.reply p:last-child').innerHTML), 'A place, https:// alone');
    assert.deepEqual(await page.faults(), []);
  }, scripted('See [one](https://a.example/), https://b.example/x_(y)?z=1. (Or http://c.example/q), `https://d.example/`.\n\n[A place](#there), https:// alone'));

  page('what is written from right to left stands so', async (page, server) => {
    await open(page, server);
    await say(page, 'שלום, מה שלומך?');
    await page.until(shown.finished, 1);
    // Which side a text begins at, told by the place of its first letter and of its last mark.
    const sides = await page.evaluate(() => {
      const left = (text, at) => {
        const range = document.createRange();
        range.setStart(text, at);
        range.setEnd(text, at + 1);
        return range.getBoundingClientRect().left;
      };
      const side = ({ firstChild }) => (left(firstChild, 0) > left(firstChild, firstChild.length - 1) ? 'right' : 'left');
      return [...document.querySelectorAll('.bubble, .reply .body :is(p, li)')].map(side);
    });
    assert.deepEqual(sides, ['right', 'left', 'right', 'right']);
    const list = await page.evaluate(() => getComputedStyle(document.querySelector('.reply ul')).direction);
    assert.equal(list, 'rtl', 'its bullets stand where it begins');
    assert.deepEqual(await page.faults(), []);
  }, scripted('Left.\n\nשלום עולם, זהו טקסט.\n\n- פריט ראשון.'));

  page('a message behind a running answer says what it waits for', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 300');
    await page.until(shown.streamed);
    await say(page, 'count to 3');
    await page.until(() => [...document.querySelectorAll('.reply')].at(-1).innerText === 'Waits for the answer before it');
    await page.click('#stop');
    await page.until(shown.finished, 2);
    assert.equal(await page.evaluate(shown.listLength), 3);
    assert.deepEqual(await page.faults(), []);
  });

  page(
    'a message that was refused says why, and can be sent again or dropped',
    async (page, server) => {
      await open(page, server);
      await say(page, 'count to 2');
      await page.until(shown.finished, 1);
      await say(page, 'one too many');
      await page.until(shown.ownState, 'failed');
      const words = await page.evaluate(() => [...document.querySelectorAll('.own .mark')].at(-1).textContent);
      assert.match(words, /^Not sent: ./);
      // checklist 45
      assert.equal(await page.evaluate(() => document.querySelectorAll('[role=alert]:not([hidden])').length), 1);
      await page.evaluate(() => [...document.querySelectorAll('.retry')].at(-1).click());
      await page.until(shown.ownState, 'failed');
      await page.evaluate(() => [...document.querySelectorAll('.discard')].at(-1).click());
      await page.until(() => document.querySelectorAll('.own').length === 1);
      assert.equal(await page.evaluate(() => document.querySelector('.bubble').textContent), 'count to 2');
      assert.deepEqual(await page.faults(), []);
    },
    { server: async () => ({ CHATBOX_LIMITS__MESSAGES_PER_MINUTE: '1' }) },
  );

  let proxy;
  page(
    'a message that waits for the connection says so, and the page says how the connection came back',
    async (page, server) => {
      await open(page, server, 'websocket');
      await say(page, 'count to 2');
      await page.until(shown.finished, 1);
      proxy.cut();
      await page.until(() => document.getElementById('status').dataset.state === 'reconnecting');
      assert.equal(await page.evaluate(() => document.getElementById('offline').hidden), false);
      await say(page, 'count to 3');
      await page.until(() => [...document.querySelectorAll('.own .mark')].at(-1).textContent === 'Waiting to be sent');
      const clock = () => [...document.querySelectorAll('.own .mark use')].at(-1).getBBox().width > 0;
      assert.equal(await page.evaluate(clock), true, 'its picture needs no server');
      proxy.mend();
      await page.until(() => document.getElementById('status').textContent.trim() === 'WebSocket · resumed');
      await page.until(shown.finished, 2);
      assert.deepEqual(await page.faults(CUT), []);
    },
    {
      server: async (context) => {
        const [http, front, nobody] = [await freePort(), await freePort(), await freePort()];
        proxy = await tcpProxy(http, front);
        context.after(proxy.close);
        return {
          CHATBOX_LISTEN__HTTP: `localhost:${http}`,
          CHATBOX_PUBLIC_URL: `http://localhost:${front}`,
          CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${nobody}`,
        };
      },
    },
  );

  page('the others see that somebody types', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 2');
    await page.until(shown.finished, 1);
    const other = await page.tab();
    await other.goto(server.base);
    await other.until(shown.finished, 1);
    await other.click('#text');
    await other.type('hm');
    await page.until(() => document.getElementById('typing').textContent === 'Typing on another device…');
    assert.equal(await other.evaluate(() => document.getElementById('typing').textContent), '', 'not to oneself');
    await other.press('Backspace');
    await other.press('Backspace');
    await page.until(() => document.getElementById('typing').textContent === '');
    assert.deepEqual(await other.faults(), []);
  });

  page(
    'of several models one is chosen, and kept',
    async (page, server) => {
      await open(page, server);
      assert.deepEqual(await page.evaluate(() => [...document.getElementById('model').options].map(({ text }) => text)), ['Quick', 'Steady']);
      await page.evaluate(() => {
        document.getElementById('model').value = 'steady';
        document.getElementById('model').dispatchEvent(new Event('change'));
      });
      await say(page, 'count to 2');
      await page.until(shown.finished, 1);
      assert.match(await page.evaluate(() => document.querySelector('.facts').textContent), /^steady/);
      await page.reload();
      await page.until(shown.finished, 1);
      assert.equal(await page.evaluate(() => document.getElementById('model').value), 'steady');
      assert.deepEqual(await page.faults(), []);
    },
    {
      server: async () => ({
        CHATBOX_LLM__DEFAULT: 'quick',
        CHATBOX_LLM__PROVIDERS__QUICK__TYPE: 'demo',
        CHATBOX_LLM__PROVIDERS__QUICK__LABEL: 'Quick',
        CHATBOX_LLM__PROVIDERS__STEADY__TYPE: 'demo',
        CHATBOX_LLM__PROVIDERS__STEADY__LABEL: 'Steady',
      }),
    },
  );

  // checklist 27
  page('what is typed is shown as typed, markup included', async (page, server) => {
    const typed = '<b>bold</b> &amp; <img src=x onerror="globalThis.pwned=1"> "quoted"';
    await open(page, server);
    await say(page, typed);
    await page.until(shown.finished, 1);
    await page.reload();
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(() => document.querySelector('.bubble').textContent), typed);
    assert.equal(await page.evaluate(() => document.querySelectorAll('.bubble *').length), 0);
    assert.equal(await page.evaluate(() => globalThis.pwned), undefined);
    // The conversation is called what was typed: in the bar, in the title and in the list too.
    assert.match(await page.evaluate(() => document.getElementById('name').textContent), /^<b>bold<\/b> &amp; <img/);
    await page.goto(`${server.base}sessions.html`);
    await page.until(() => document.querySelector('.row-name')?.textContent.startsWith('<b>bold</b> &amp; <img'));
    assert.equal(await page.evaluate(() => document.querySelectorAll('.row-name *').length), 0);
    assert.deepEqual(await page.faults(), []);
  }, quick);
}
