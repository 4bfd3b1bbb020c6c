/** The list of conversations. */

import assert from 'node:assert/strict';
import { LOCAL_USER, accessible, api, converse, openList } from './harness/acts.js';
import { freePort, tcpProxy } from './harness/network.js';
import { AT_ONCE, quick } from './harness/server.js';
import * as shown from './harness/shown.js';

const CUT = /WebTransport|QUIC|WebSocket|ERR_|NetworkError|Failed to load resource|interrupted while the page was loading|can.t establish a connection/i;

const names = () => [...document.querySelectorAll('.row-name')].map((name) => name.textContent);
const rows = (count) => document.querySelectorAll('.row').length === count;

/** Says something in a conversation that has ended, as another device does. */
async function goOn({ base, token, session_id }) {
  const { Chatbox } = await import(`${base}sdk.js`);
  const chat = new Chatbox({ base, getToken: () => token, outbox: false });
  await chat.open({ session_id, reopen: true });
  await chat.send('count to 5').reply;
  chat.close();
}

export function sessions(page) {
  page('before the first conversation the list says so, and begins one', async (page, server) => {
    await openList(page, server);
    await page.until(() => !document.getElementById('empty').hidden);
    await accessible(page, 'empty list');
    await page.click('#empty-new');
    await page.until(() => /chat\.html#session=/.test(location.href));
    await page.until(shown.connectedOver, 'webtransport');
    assert.equal(await page.evaluate(() => document.getElementById('empty').hidden), false);
    assert.deepEqual(await page.faults(), []);
  });

  page(
    'the list tells name, time, messages and state, and opens what is chosen',
    async (page, server) => {
      await openList(page, server);
      await converse(page, server, ['count to 3', 'What is chatbox?']);
      await page.until(rows, 2);
      assert.deepEqual(await page.evaluate(names), ['What is chatbox?', 'count to 3']);
      const facts = await page.evaluate(() => [...document.querySelectorAll('.row-facts')].map((row) => row.innerText.replace(/\s+/g, ' ')));
      assert.deepEqual(facts, ['just now 2 messages', 'just now 2 messages Ended']);
      await accessible(page, 'list');
      await page.evaluate(() => document.querySelectorAll('.row-link')[1].focus());
      await page.press('Enter');
      await page.until(() => document.querySelector('.bubble')?.textContent === 'count to 3');
      await page.click('#all');
      await page.until(rows, 2);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'what another device does shows at once',
    async (page, server) => {
      await openList(page, server);
      const other = await page.tab();
      await other.goto(server.base);
      await other.until(shown.connectedOver, 'webtransport');
      await converse(other, server, ['count to 3']);
      await page.until(rows, 1);
      await converse(other, server, ['count to 4']);
      await page.until((first) => document.querySelector('.row-name')?.textContent === first, 'count to 4');
      const { sessions } = await api(server, 'GET', 'sessions');
      const { id } = sessions.find(({ name }) => name === 'count to 3');
      await api(server, 'PATCH', `sessions/${id}`, { name: 'Renamed' });
      await page.until((name) => [...document.querySelectorAll('.row-name')].some(({ textContent }) => textContent === name), 'Renamed');
      await api(server, 'DELETE', `sessions/${id}`);
      await page.until(rows, 1);
      assert.deepEqual(await page.evaluate(names), ['count to 4']);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'a wish for a person shows as a badge, as long as it stands',
    async (page, server) => {
      await openList(page, server);
      await converse(page, server, ['count to 3']);
      await page.until(rows, 1);
      const [{ id }] = (await api(server, 'GET', 'sessions')).sessions;
      await page.evaluate(wish, { token: await server.token(LOCAL_USER), session_id: id });
      await page.until(() => document.querySelector('.badge.help')?.textContent === 'Help requested');
      await page.reload();
      await page.until(() => document.querySelector('.badge.help') !== null);
      await accessible(page, 'badge');
      await page.evaluate(wish, { token: await server.token(LOCAL_USER), session_id: id, type: 'help_cancel' });
      await page.until(() => document.querySelector('.badge.help') === null);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'a conversation is renamed in place, ended and deleted by keyboard alone',
    async (page, server) => {
      await openList(page, server);
      await converse(page, server, ['count to 3', 'count to 4']);
      await page.until(rows, 2);
      await page.evaluate(() => document.querySelector('.row-link').focus());
      await page.press('F2');
      await page.until(() => document.activeElement.className.includes('row-field'));
      await page.type('Never');
      await page.press('Escape');
      assert.deepEqual(await page.evaluate(names), ['count to 4', 'count to 3']);
      await page.press('F2');
      await page.type('Sums <i>');
      await page.press('Enter');
      await page.until((name) => document.querySelector('.row-name')?.textContent === name, 'Sums <i>');
      await page.press('Tab');
      await page.press('Enter');
      await page.until(() => document.activeElement.dataset.action === 'rename');
      await accessible(page, 'menu');
      await page.press('ArrowUp');
      assert.equal(await page.evaluate(() => document.activeElement.dataset.action), 'remove');
      await page.press('ArrowUp');
      await page.press('Enter');
      await page.until(() => document.querySelector('.row .ended') !== null);
      await page.press('Delete');
      await page.until(() => document.querySelector('dialog')?.innerText.includes('Delete “Sums <i>”?'));
      await accessible(page, 'dialog');
      await page.press('Escape');
      await page.until(() => !document.querySelector('dialog'));
      assert.equal(await page.evaluate(() => document.activeElement.className), 'row-link');
      await page.press('Delete');
      await page.until(() => document.querySelector('dialog') !== null);
      await page.press('Tab');
      await page.press('Enter');
      await page.until(rows, 1);
      assert.equal(await page.evaluate(() => document.activeElement.textContent.includes('count to 3')), true);
      const { sessions: left } = await api(server, 'GET', 'sessions');
      assert.deepEqual(left.map(({ name }) => name), ['count to 3']);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'a name is written to its end, whatever happens to the conversation meanwhile',
    async (page, server) => {
      await openList(page, server);
      await converse(page, server, ['count to 3', 'count to 4']);
      await page.until(rows, 2);
      const { sessions } = await api(server, 'GET', 'sessions');
      const { id } = sessions.find(({ name }) => name === 'count to 3');
      await page.evaluate(() => document.querySelectorAll('.row-link')[1].focus());
      await page.press('F2');
      await page.type('Sums');
      await page.evaluate(goOn, { base: server.base, token: await server.token(LOCAL_USER), session_id: id });
      await page.type(' of numbers');
      await page.press('Enter');
      await page.until((first) => document.querySelector('.row-name')?.textContent === first, 'Sums of numbers');
      assert.match(await page.evaluate(() => document.querySelector('.row-facts').innerText), /4 messages/);
      assert.equal(await page.evaluate(() => document.activeElement.className), 'row-link');
      await page.press('F2');
      await page.type('Never');
      await api(server, 'DELETE', `sessions/${id}`);
      await page.until(rows, 1);
      assert.equal(await page.evaluate(() => document.getElementById('alert').hidden), true);
      assert.deepEqual(await page.evaluate(names), ['count to 4']);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'a search finds words within conversations, and shows where',
    async (page, server) => {
      await openList(page, server);
      await converse(page, server, ['count to 3', 'The parcel is late, and <b>wet</b>', 'count to 4']);
      await page.until(rows, 3);
      await page.press('/');
      await page.type('PARCEL');
      await page.until(() => document.getElementById('found').textContent.startsWith('1 found for'));
      const found = await page.evaluate(() => ({
        match: document.querySelector('.row-match').textContent,
        marked: document.querySelector('.row-match mark').textContent,
      }));
      assert.match(found.match, /The parcel is late, and <b>wet<\/b>/);
      assert.equal(found.marked, 'parcel');
      await page.press('ArrowDown');
      assert.equal(await page.evaluate(() => document.activeElement.className), 'row-link');
      await page.press('ArrowUp');
      await page.type(' zzz');
      await page.until(() => document.getElementById('found').textContent === 'Nothing found for “PARCEL zzz”');
      await accessible(page, 'nothing found');
      await page.evaluate(() => {
        document.getElementById('words').value = '';
        document.getElementById('words').dispatchEvent(new Event('input'));
      });
      await page.until(rows, 3);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'more of a long list comes as one scrolls',
    async (page, server) => {
      await openList(page, server);
      await converse(page, server, Array.from({ length: 60 }, (_, at) => `count to 2 after ${at}`));
      await page.reload();
      await page.until(rows, 50);
      assert.equal(await page.evaluate(() => document.getElementById('found').textContent), '50 of 60');
      await page.evaluate(() => document.getElementById('more').scrollIntoView());
      await page.until(rows, 60);
      assert.equal(await page.evaluate(() => document.getElementById('more').hidden), true);
      const listed = await page.evaluate(names);
      assert.deepEqual(listed, Array.from({ length: 60 }, (_, at) => `count to 2 after ${59 - at}`));
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  let proxy;
  page(
    'without a connection the list says so, and is right again after it',
    async (page, server) => {
      await openList(page, server, 'websocket');
      await converse(page, server, ['count to 3', 'count to 4']);
      await page.until(rows, 2);
      proxy.cut();
      await page.until(() => document.getElementById('status').dataset.state === 'reconnecting');
      await page.evaluate(() => document.querySelector('.row-link').focus());
      await page.press('F2');
      await page.type('Offline');
      await page.press('Enter');
      await page.until(() => document.getElementById('alert-text').textContent.startsWith('The name was not changed: '));
      assert.deepEqual(await page.evaluate(names), ['count to 4', 'count to 3'], 'the old name is back');
      // checklist 45
      assert.equal(await page.evaluate(() => document.querySelectorAll('[role=alert]:not([hidden])').length), 1);
      const direct = { ...server, base: proxy.direct };
      const [{ id }] = (await api(direct, 'GET', 'sessions')).sessions;
      await api(direct, 'DELETE', `sessions/${id}`);
      proxy.mend();
      await page.until(() => document.getElementById('status').dataset.state === 'connected');
      await page.until(rows, 1);
      assert.deepEqual(await page.faults(CUT), []);
    },
    {
      server: async (context) => {
        const [http, front, nobody] = [await freePort(), await freePort(), await freePort()];
        proxy = { ...(await tcpProxy(http, front)), direct: `http://localhost:${http}/chatbox/` };
        context.after(proxy.close);
        return {
          ...AT_ONCE,
          CHATBOX_LISTEN__HTTP: `localhost:${http}`,
          CHATBOX_PUBLIC_URL: `http://localhost:${front}`,
          CHATBOX_PUBLIC_QUIC_URL: `https://localhost:${nobody}`,
        };
      },
    },
  );

  page('without a sign-in the list says what to do', async (page, server) => {
    await page.goto(`${server.base}sessions.html`);
    await page.until(() => !document.getElementById('signin').hidden);
    assert.equal(await page.evaluate(() => document.getElementById('content').hidden), true);
    assert.deepEqual(await page.faults(/401/), []);
  });
}

/** Asks for a person, or takes it back, in frames: the client has no word for it. Settles with the answer. */
async function wish({ token, session_id, type = 'help_request' }) {
  const { websocket } = await (await fetch('.well-known/chatbox')).json();
  const socket = new WebSocket(websocket, ['chatbox.v1', `bearer.${token}`]);
  const heard = (wanted) =>
    new Promise((resolve) => {
      socket.addEventListener('message', ({ data }) => JSON.parse(data).type === wanted && resolve());
    });
  await new Promise((resolve) => socket.addEventListener('open', resolve));
  const send = (frame) => socket.send(JSON.stringify({ id: crypto.randomUUID(), session_id, ...frame }));
  send({ type: 'attach' });
  await heard('connection_status');
  send({ type });
  await heard('accepted');
  socket.close();
}
