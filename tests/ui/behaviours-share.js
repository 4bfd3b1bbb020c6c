/** Links to a conversation: made, read by anybody, revoked, expired. */

import assert from 'node:assert/strict';
import { accessible, api, converse, open, openList, say } from './harness/acts.js';
import { quick } from './harness/server.js';
import * as shown from './harness/shown.js';

const made = () => document.querySelector('.link:not([hidden]) input')?.value;

/** What browsers print about a link that does not work. */
const NOT_FOUND = /404/;

export function sharing(page) {
  page('a link shows the conversation as it was, to anybody, until it is revoked', async (page, server, browser) => {
    await open(page, server);
    await say(page, 'count to 3');
    await page.until(shown.finished, 1);
    await page.click('#share');
    await page.until(() => document.querySelector('dialog') !== null);
    await accessible(page, 'share dialog');
    await page.press('Enter');
    const url = await page.until(made);
    assert.match(url, /chat\.html#share=[\w-]{20,}$/);
    assert.match(await page.evaluate(() => document.querySelector('dialog [role=status]').textContent), /as it is now/);
    await page.press('Escape');
    await page.until(() => !document.querySelector('dialog'));
    await say(page, 'count to 4');
    await page.until(shown.finished, 2);

    const guest = await browser.open();
    try {
      await guest.goto(url);
      await guest.until(shown.finished, 1);
      assert.deepEqual(await guest.evaluate(() => [...document.querySelectorAll('.bubble')].map((own) => own.textContent)), ['count to 3'], 'nothing later');
      assert.equal(await guest.evaluate(shown.listLength), 3);
      const state = await guest.evaluate(() => ({
        name: document.getElementById('name').textContent,
        words: document.getElementById('closed-text').textContent,
        hidden: ['composer', 'status', 'new', 'share', 'all'].filter((id) => document.getElementById(id).checkVisibility()),
        acts: [...document.querySelectorAll('.reply .meta button')].filter((button) => button.checkVisibility()).map((button) => button.textContent.trim()),
      }));
      assert.equal(state.name, 'count to 3');
      assert.match(state.words, /^Shared conversation, as it was on ./);
      assert.deepEqual(state.hidden, []);
      assert.deepEqual(state.acts, ['Copy']);
      assert.deepEqual(await guest.evaluate(() => performance.getEntriesByType('resource').map(({ name }) => name).filter((name) => /ws$|dev\/session|well-known/.test(name))), []);
      await accessible(guest, 'shared');
      assert.deepEqual(await guest.faults(), []);

      await page.click('#share');
      await page.until(() => document.querySelector('dialog') !== null);
      await page.evaluate(() => [...document.querySelectorAll('dialog button')].find(({ textContent }) => textContent === 'Revoke all links').click());
      await page.until(() => document.querySelector('dialog [role=status]').textContent === 'No link works any more.');
      await guest.reload();
      await guest.until(() => document.getElementById('gone-title').textContent === 'This link does not work');
      assert.equal(await guest.evaluate(() => document.querySelectorAll('.own, .reply').length), 0);
      await accessible(guest, 'revoked');
      assert.deepEqual(await guest.faults(NOT_FOUND), []);
    } finally {
      await guest.close();
    }
    assert.deepEqual(await page.faults(), []);
  }, quick);

  page('a dialog whose conversation is deleted meanwhile gives the focus to what is left', async (page, server) => {
    await openList(page, server);
    await converse(page, server, ['count to 3', 'count to 4', 'count to 5']);
    await page.until(() => document.querySelectorAll('.row').length === 3);
    const { sessions } = await api(server, 'GET', 'sessions');
    const remove = async (name) => api(server, 'DELETE', `sessions/${sessions.find((meta) => meta.name === name).id}`);
    const left = (names) => [...document.querySelectorAll('.row-name')].map(({ textContent }) => textContent).join() === names;
    const focused = () => document.activeElement.querySelector('.row-name')?.textContent ?? document.activeElement.id;
    await page.evaluate(() => document.querySelectorAll('.row-more')[1].focus());
    for (const key of ['Enter', 'ArrowDown', 'Enter']) await page.press(key);
    await page.until(() => document.querySelector('dialog') !== null);
    await remove('count to 4');
    await page.until(left, 'count to 5,count to 3');
    await page.press('Escape');
    await page.until(() => !document.querySelector('dialog'));
    await page.until((name) => document.activeElement.querySelector('.row-name')?.textContent === name, 'count to 3');

    await remove('count to 3');
    await page.until(left, 'count to 5');
    assert.equal(await page.evaluate(focused), 'count to 5', 'a row that goes leaves the focus to its neighbour');
    await page.press('Tab');
    await page.press('Enter');
    await page.until(() => document.activeElement.dataset.action === 'rename');
    await remove('count to 5');
    await page.until(left, '');
    assert.equal(await page.evaluate(focused), 'new', 'and so does its menu');
    assert.deepEqual(await page.faults(), []);

    await page.goto(server.base);
    await page.until(shown.connectedOver, 'webtransport');
    await say(page, 'count to 6');
    await page.until(shown.finished, 1);
    await page.click('#share');
    await page.until(() => document.querySelector('dialog') !== null);
    await api(server, 'DELETE', `sessions/${(await api(server, 'GET', 'sessions')).sessions[0].id}`);
    await page.until(() => !document.getElementById('gone').hidden);
    await page.press('Escape');
    await page.until(() => document.activeElement.id === 'gone-title');
    assert.deepEqual(await page.faults(), []);
  }, quick);

  page('a link that ends says when', async (page, server) => {
    await open(page, server);
    await say(page, 'count to 3');
    await page.until(shown.finished, 1);
    await page.click('#share');
    await page.until(() => document.querySelector('dialog') !== null);
    await page.evaluate(() => (document.getElementById('share-expiry').selectedIndex = 1));
    await page.press('Enter');
    const url = await page.until(made);
    assert.match(await page.evaluate(() => document.querySelector('dialog [role=status]').textContent), /^The link works until ./);
    await page.goto('about:blank');
    await page.goto(url);
    await page.until(() => document.getElementById('closed-text').textContent.includes('The link works until'));
    assert.deepEqual(await page.faults(), []);
  }, quick);
}
