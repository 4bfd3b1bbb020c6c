/** Conversations that are opened by name: ended ones, long ones, ones that are not there. */

import assert from 'node:assert/strict';
import { api, converse, open, say } from './harness/acts.js';
import { quick } from './harness/server.js';
import * as shown from './harness/shown.js';

export function history(page) {
  page('an ended conversation can be read, and continued', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 3');
    await page.until(shown.finished, 1);
    const [{ id }] = (await api(server, 'GET', 'sessions')).sessions;
    await api(server, 'POST', `sessions/${id}/end`);
    await page.until(() => !document.getElementById('closed').hidden);
    assert.equal(await page.evaluate(() => document.getElementById('composer').hidden), true, 'it ends on open pages too');
    await page.goto('about:blank');
    await page.goto(`${server.base}chat.html#session=${id}`);
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(() => document.getElementById('closed-text').textContent), 'This conversation has ended.');
    assert.equal(await page.evaluate(() => document.querySelector('.regenerate').checkVisibility()), false);
    await page.click('#reopen');
    await page.until(() => !document.getElementById('composer').hidden);
    await say(page, 'count to 5');
    await page.until(shown.finished, 2);
    assert.equal(await page.evaluate(shown.listLength), 5);
    assert.deepEqual(await page.faults(), []);
  });

  page('a conversation that is not there is told, and a new one is offered', async (page, server) => {
    await open(page, server);
    await page.goto('about:blank');
    await page.goto(`${server.base}chat.html#session=00000000-0000-4000-8000-000000000000`);
    await page.until(() => !document.getElementById('gone').hidden);
    // checklist 45
    assert.equal(await page.evaluate(() => document.getElementById('alert').hidden), true, 'one failure is told once');
    await page.click('#gone-new');
    await page.until(() => !document.getElementById('empty').hidden);
    await say(page, 'count to 2');
    await page.until(shown.finished, 1);
    assert.equal(await page.evaluate(() => location.hash), '');
    assert.deepEqual(await page.faults(), []);
  });

  page('the conversation on the page is the one that the URL names, wherever it goes', async (page, server) => {
    await open(page, server);
    await converse(page, server, ['count to 3', 'count to 4', 'count to 5']);
    const { sessions } = await api(server, 'GET', 'sessions');
    const [latest, , first] = sessions.map(({ id }) => id);
    const unknown = '00000000-0000-4000-8000-000000000000';
    const go = (fragment) => page.evaluate((hash) => (location.hash = hash), fragment);
    const step = (by) => page.evaluate((steps) => history.go(steps), by);
    const said = (words) => document.querySelector('.bubble')?.textContent === words && document.getElementById('gone').hidden;
    const missing = () => document.getElementById('gone-title').checkVisibility() && document.getElementById('gone-title').textContent;
    await go(`session=${first}`);
    await page.until(said, 'count to 3');
    await go(`session=${latest}`);
    await page.until(said, 'count to 5');
    await go(`session=${unknown}`);
    assert.equal(await page.until(missing), 'There is no such conversation');
    await step(-2);
    await page.until(said, 'count to 3');
    await go('a-place-in-the-page');
    await step(-2);
    // As a fresh page without a name: the conversation that is going on.
    await page.until(said, 'count to 5');
    assert.equal(await page.evaluate(() => location.hash), '');
    await step(1);
    await page.until(said, 'count to 3');
    await api(server, 'DELETE', `sessions/${first}`);
    assert.equal(await page.until(missing), 'This conversation is not there any more');
    await go(`session=${latest}`);
    await page.until(said, 'count to 5');
    await page.until(() => !document.getElementById('composer').inert);
    assert.deepEqual(await page.faults(), []);
  }, quick);

  page('a conversation that is deleted elsewhere is gone from the page', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 3');
    await page.until(shown.finished, 1);
    const [{ id }] = (await api(server, 'GET', 'sessions')).sessions;
    await api(server, 'DELETE', `sessions/${id}`);
    await page.until(() => !document.getElementById('gone').hidden);
    assert.equal(await page.evaluate(() => document.querySelectorAll('.own, .reply').length), 0);
    assert.deepEqual(await page.faults(), []);
  });

  page(
    'what was typed for a conversation that is deleted meanwhile is at hand in the next one',
    async (page, server) => {
      await open(page, server);
      await say(page, 'count to 3');
      await page.until(shown.finished, 1);
      await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
      await say(page, 'count to 4');
      await page.until(shown.ownState, 'queued');
      const [{ id }] = (await api(server, 'GET', 'sessions')).sessions;
      await api(server, 'DELETE', `sessions/${id}`);
      await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
      await page.until(() => !document.getElementById('gone').hidden);
      const refused = () => document.querySelector('.own .mark')?.textContent === 'Not sent: its conversation is not there any more';
      await page.click('#gone-new');
      await page.until(refused);
      await page.reload();
      await page.until(refused);
      await page.click('.own .retry');
      await page.until(shown.finished, 1);
      assert.equal(await page.evaluate(shown.listLength), 4);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page('a text that is not sent yet is still there after a reload', async (page, server) => {
    await open(page, server);
    await page.click('#text');
    await page.type('half a thought');
    await page.reload();
    await page.until(shown.connectedOver, 'webtransport');
    const state = () => [document.getElementById('text').value, document.getElementById('send').disabled];
    assert.deepEqual(await page.evaluate(state), ['half a thought', false]);
    await page.evaluate(() => {
      const draft = JSON.parse(sessionStorage.getItem('chatbox.draft'));
      sessionStorage.setItem('chatbox.draft', JSON.stringify({ ...draft, user_id: 'somebody-else' }));
    });
    await page.reload();
    await page.until(shown.connectedOver, 'webtransport');
    assert.deepEqual(await page.evaluate(state), ['', true], 'nobody sees what another one typed');
    await page.click('#text');
    await page.type('a whole one');
    await page.press('Enter');
    await page.until(shown.ownState, 'accepted');
    await page.reload();
    await page.until(shown.connectedOver, 'webtransport');
    assert.deepEqual(await page.evaluate(state), ['', true], 'and gone once it is sent');
    assert.deepEqual(await page.faults(), []);
  }, quick);

  page('a text that the page cannot take stays where it was typed', async (page, server) => {
    await open(page, server);
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    await page.evaluate(() => {
      const text = document.getElementById('text');
      for (let count = 0; count <= 100; count += 1) {
        text.value = `thought ${count}`;
        text.dispatchEvent(new Event('input'));
        document.getElementById('send').click();
      }
    });
    assert.equal(await page.evaluate(() => document.getElementById('text').value), 'thought 100');
    assert.match(await page.evaluate(() => document.querySelector('[role=alert]').textContent), /^\s*Your message was not sent: 100 messages wait/);
    assert.deepEqual(await page.faults(), []);
  });

  page(
    'a name that is given elsewhere shows in the bar',
    async (page, server) => {
      await open(page, server);
      await say(page, 'count to 3');
      await page.until(shown.finished, 1);
      await page.until(() => document.getElementById('name').textContent === 'count to 3');
      const [{ id }] = (await api(server, 'GET', 'sessions')).sessions;
      await api(server, 'PATCH', `sessions/${id}`, { name: 'Sums' });
      await page.until(() => document.getElementById('name').textContent === 'Sums' && document.title === 'Sums');
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'earlier messages come as the reader scrolls up, and nothing jumps',
    async (page, server) => {
      await open(page, server);
      await talk(page, server, 90);
      await page.reload();
      await page.until(() => document.querySelectorAll('.reply').length > 0);
      assert.equal(await page.evaluate(() => [...document.querySelectorAll('.bubble')].at(-1).textContent), 'count to 2 after 89');
      const jumps = await page.evaluate(async () => {
        const scroller = document.getElementById('scroller');
        const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
        const found = [];
        while (document.getElementById('beginning').dataset.state !== 'start') {
          const room = scroller.scrollTop;
          const step = Math.min(300, room);
          const seen = [...document.querySelectorAll('#log > *')].find((element) => element.getBoundingClientRect().bottom > innerHeight / 2);
          const top = seen.getBoundingClientRect().top;
          scroller.scrollTop -= step;
          await frame();
          await frame();
          const moved = seen.getBoundingClientRect().top - top;
          if (seen.isConnected && Math.abs(moved - step) > 8) found.push(`${moved} for ${step}`);
        }
        return found;
      });
      assert.deepEqual(jumps, []);
      assert.equal(await page.evaluate(() => document.querySelector('.bubble').textContent), 'count to 2 after 0');
      await page.until(() => document.getElementById('beginning').innerText === 'The conversation begins here');
      await page.click('#newest');
      await page.until(() => document.getElementById('newest').hidden);
      assert.equal(await page.evaluate(() => [...document.querySelectorAll('.bubble')].at(-1).textContent), 'count to 2 after 89');
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );

  page(
    'the URL of another conversation opens it in the same page',
    async (page, server) => {
      await open(page, server);
      await converse(page, server, ['count to 6', 'count to 7']);
      const { sessions } = await api(server, 'GET', 'sessions');
      for (const { id, name } of sessions) {
        await page.evaluate((hash) => (location.hash = hash), `#session=${id}`);
        await page.until((text) => document.querySelector('.bubble')?.textContent === text, name);
      }
      assert.equal(sessions.length, 2);
      assert.deepEqual(await page.faults(), []);
    },
    quick,
  );
}

/** Says so many things in the open conversation. */
export async function talk(page, server, count) {
  await page.evaluate(async ({ base, count: all }) => {
    const { Chatbox } = await import(`${base}sdk.js`);
    const getToken = async () => (await (await fetch(`${base}dev/session`, { method: 'POST', body: '{}' })).json()).token;
    const chat = new Chatbox({ base, getToken, outbox: false });
    await chat.connect();
    let message;
    for (let said = 0; said < all; said += 1) {
      message = chat.send(`count to 2 after ${said}`);
      if (said % 10 === 9) await message.reply;
    }
    await message.reply;
    chat.close();
  }, { base: server.base, count });
}
