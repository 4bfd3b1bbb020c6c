/** A conversation of 5,000 entries: few elements, short frames, nothing that jumps, in both browsers. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { talk } from './behaviours-history.js';
import { chromium, firefox } from './harness/browsers.js';
import { open, say } from './harness/acts.js';
import { startServer } from './harness/server.js';
import * as shown from './harness/shown.js';

const MESSAGES = 2500;

/** Elements of the conversation that there may be at a time; all of it would have over 60,000. */
const ELEMENTS_MAX = 4000;

/**
 * Milliseconds of a frame while an answer streams into the long conversation and somebody scrolls, on a busy machine
 * with two cores. With all of it in the page one frame takes seconds.
 */
const FRAME_MS = { p95: 300, longest: 1500 };

describe('5,000 entries', { timeout: 900_000 }, () => {
  let server;
  const browsers = [];

  before(async () => {
    server = await startServer({
      CHATBOX_LLM__DEFAULT: 'quick',
      CHATBOX_LLM__PROVIDERS__QUICK__TYPE: 'demo',
      CHATBOX_LLM__PROVIDERS__QUICK__PACE: '0s',
      CHATBOX_LLM__PROVIDERS__STEADY__TYPE: 'demo',
      CHATBOX_LIMITS__MESSAGES_PER_MINUTE: '100000',
      CHATBOX_LIMITS__REQUESTS_PER_MINUTE: '100000',
    });
    for (const launch of [chromium, firefox]) browsers.push(await launch());
    const page = await browsers[0].open();
    await open(page, server);
    // Not on the page of the conversation, which would show all of it as it comes.
    await page.goto(`${server.base}sessions.html`);
    await talk(page, server, MESSAGES);
    await page.close();
  });

  after(async () => {
    for (const browser of browsers) await browser.close();
    await server?.stop();
  });

  for (const [at, name] of ['Chromium', 'Firefox'].entries()) {
    test(`${name} shows them smoothly`, { timeout: 300_000 }, async (context) => {
      const page = await browsers[at].open({ before: asHost });
      context.after(page.close);
      await page.goto(server.base);
      await page.until(() => globalThis.told.length > 0);
      await page.evaluate((token) => window.dispatchEvent(new MessageEvent('message', { data: JSON.stringify({ type: 'token', token }) })), await server.token('local'));
      await page.until(shown.connectedOver, 'webtransport');
      await page.until(() => document.querySelectorAll('.reply').length > 3);
      const up = await page.evaluate(scrollUp, 'start');
      assert.equal(up.first, 'count to 2 after 0', 'the first message is reached');
      assert.ok(up.elements < ELEMENTS_MAX, `${up.elements} elements`);
      assert.deepEqual(up.jumps, [], 'nothing jumps');
      await page.evaluate(() => {
        document.getElementById('model').value = 'steady';
        document.getElementById('model').dispatchEvent(new Event('change'));
      });
      await say(page, 'count to 200');
      await page.until(() => document.querySelector('.streaming')?.textContent.includes('5. line'));
      const { frames, elements } = await page.evaluate(scrollAround, 4000);
      const sorted = frames.toSorted((one, other) => one - other);
      const p95 = sorted[Math.floor(sorted.length * 0.95)];
      context.diagnostic(`${frames.length} frames, p95 ${p95} ms, longest ${sorted.at(-1)} ms, ${elements} elements, ${up.elements} scrolling up`);
      assert.ok(elements < ELEMENTS_MAX, `${elements} elements`);
      assert.ok(p95 < FRAME_MS.p95 && sorted.at(-1) < FRAME_MS.longest, `p95 ${p95} ms, longest ${sorted.at(-1)} ms`);
      await page.click('#stop');
      await page.until(() => document.getElementById('stop').hidden);
      assert.deepEqual(await page.faults(), []);
    });
  }
});

/** The printed URL works once; so the second browser signs in as an app would. */
function asHost() {
  globalThis.told = [];
  globalThis.ReactNativeWebView = { postMessage: (text) => globalThis.told.push(text) };
}

/** Scrolls up to where the conversation begins, a screen at a time, and looks whether what is read stays in place. */
async function scrollUp(end) {
  const scroller = document.getElementById('scroller');
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  const jumps = [];
  let elements = 0;
  while (document.getElementById('beginning').dataset.state !== end || scroller.scrollTop > 0) {
    const step = Math.min(900, scroller.scrollTop);
    const read = [...document.querySelectorAll('#log > *')].find((element) => element.getBoundingClientRect().bottom > innerHeight / 2);
    const top = read.getBoundingClientRect().top;
    scroller.scrollTop -= step;
    await frame();
    await frame();
    const moved = read.getBoundingClientRect().top - top;
    if (read.isConnected && Math.abs(moved - step) > 8) jumps.push(`${moved} for ${step}`);
    elements = Math.max(elements, document.querySelectorAll('#log *').length);
  }
  return { jumps, elements, first: document.querySelector('.bubble').textContent };
}

/** Scrolls up and down for so many milliseconds, and takes the time from frame to frame. */
async function scrollAround(ms) {
  const scroller = document.getElementById('scroller');
  const frames = [];
  let elements = 0;
  const start = performance.now();
  let last = start;
  while (last - start < ms) {
    scroller.scrollBy(0, Math.floor((last - start) / 500) % 2 ? 400 : -400);
    const now = await new Promise((resolve) => requestAnimationFrame(resolve));
    frames.push(Math.round(now - last));
    last = now;
    elements = Math.max(elements, document.querySelectorAll('#log *').length);
  }
  return { frames, elements };
}
