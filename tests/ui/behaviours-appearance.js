/** How the pages look and are operated: keyboard, narrow screens, accessibility, pictures. */

import assert from 'node:assert/strict';
import { copyFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { accessible, api, converse, open, say } from './harness/acts.js';
import { AT_ONCE, quick, startServer } from './harness/server.js';
import * as shown from './harness/shown.js';

export const OUTPUT = fileURLToPath(new URL('output/', import.meta.url));
const README_SCREENSHOT = fileURLToPath(new URL('../../.github/screenshot.png', import.meta.url));

/** An answer has to take some time for a picture of it while it is written. */
const BRISK = { ...AT_ONCE, CHATBOX_LLM__PROVIDERS__DEMO__PACE: '10ms' };

const VIEWS = [{ width: 390, height: 844, touch: true }, { width: 1280, height: 800 }];

export function appearance(page) {
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
    while (!reached.has('all') && reached.size < 20) {
      await page.shiftPress('Tab');
      reached.add(await page.evaluate(shown.focused));
    }
    for (const stop of ['all', 'new', 'share', 'scroller', 'text copy', 'text rate-up', 'text regenerate']) assert.ok(reached.has(stop), `${stop} of ${[...reached]}`);
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
    // A window of 1280 by 1024, four times as large (WCAG 2.2, 1.4.10).
    await page.resize({ width: 320, height: 256 });
    await page.evaluate(() => {
      document.getElementById('text').value = 'line\n'.repeat(30);
      document.getElementById('text').dispatchEvent(new Event('input'));
    });
    assert.equal(await page.evaluate(() => document.getElementById('send').getBoundingClientRect().bottom <= innerHeight), true, 'it can be sent');
    await page.resize({ width: 320, height: 640 });
    await page.click('#all');
    await page.until(() => document.querySelectorAll('.row').length === 1);
    assert.deepEqual(await page.evaluate(shown.tooWide), []);
    await page.click('.row-more');
    assert.deepEqual(await page.evaluate(shown.tooWide), []);
    await page.evaluate(() => document.querySelector('[data-action=share]').click());
    await page.click('dialog .solid');
    await page.until(() => document.querySelector('.link:not([hidden])') !== null);
    assert.deepEqual(await page.evaluate(shown.tooWide), []);
    assert.deepEqual(await page.faults(), []);
  }, quick);

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
    await page.goto(server.base);
    await page.until(() => !document.getElementById('signin').hidden);
    await accessible(page, 'signed out');
    await page.goto('about:blank');
    await open(page, server);
    await page.until(() => !document.getElementById('empty').hidden);
    await accessible(page, 'empty');
    await say(page, 'count to 400');
    await page.until(shown.streamed);
    await accessible(page, 'streaming');
    await page.click('#stop');
    await page.until(shown.finished, 1);
    await say(page, 'How does WebTransport help?');
    await page.until(shown.finished, 2);
    await accessible(page, 'finished');
  });

  page('screenshots', async (page, server, browser) => {
    await page.close();
    for (const dark of browser.darkness ? [false, true] : [false]) {
      for (const view of VIEWS) await shots(browser, { ...view, dark });
    }
    if (process.env.README_SCREENSHOT) await copyFile(`${OUTPUT}chromium-read-1280x800-light.png`, README_SCREENSHOT);
  });
}

/** Pictures of a conversation, and of what else there is. */
async function shots(browser, view) {
  const label = `${view.width}x${view.height}${view.dark ? '-dark' : '-light'}`;
  const at = (name) => `${OUTPUT}${browser.name.toLowerCase()}-${name}-${label}.png`;
  const server = await startServer(BRISK);
  try {
    const page = await browser.open(view);
    await open(page, server);
    await page.until(() => !document.getElementById('empty').hidden);
    await page.screenshot(at('empty'));
    await say(page, 'What is chatbox?');
    await page.until(shown.finished, 1);
    await say(page, 'How does WebTransport help?');
    await page.until(shown.streamed);
    await page.until(() => document.querySelector('.streaming')?.textContent.length > 400);
    await page.screenshot(at('streaming'));
    await page.until(shown.finished, 2);
    await page.screenshot(at('finished'));
    await page.evaluate(() => document.querySelector('.own').scrollIntoView());
    await page.screenshot(at('read'));
    await sessionShots(page, server, at);
    await page.close();
  } finally {
    await server.stop();
  }
}

/** Pictures of the list and of what opens in it, and of a conversation that has ended. */
async function sessionShots(page, server, at) {
  await converse(page, server, ['count to 3', 'A rather long first message that becomes the name of this conversation']);
  await page.goto(`${server.base}sessions.html`);
  await page.until(() => document.querySelectorAll('.row').length === 3);
  await page.screenshot(at('list'));
  await page.click('.row-more');
  await page.screenshot(at('menu'));
  await page.evaluate(() => document.querySelector('[data-action=share]').click());
  await page.click('dialog .solid');
  await page.until(() => document.querySelector('.link:not([hidden])') !== null);
  await page.screenshot(at('share'));
  await page.press('Escape');
  await page.click('#words');
  await page.type('webtransport');
  await page.until(() => document.getElementById('found').textContent.includes('found for'));
  await page.screenshot(at('search'));
  const { sessions } = await api(server, 'GET', 'sessions');
  await page.goto(`${server.base}chat.html#session=${sessions.find(({ name }) => name === 'count to 3').id}`);
  await page.until(() => !document.getElementById('closed').hidden && document.querySelector('.reply') !== null);
  await page.screenshot(at('ended'));
}
