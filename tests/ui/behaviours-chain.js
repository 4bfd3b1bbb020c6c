/** What the page shows when a model fails: the one that answers in its place, the seam, and honest ends. */

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { accessible, open, say } from './harness/acts.js';
import { chain, startProvider } from './harness/provider.js';
import * as shown from './harness/shown.js';

const OUTPUT = fileURLToPath(new URL('output/', import.meta.url));

const facts = () => [...document.querySelectorAll('.reply .facts')].at(-1)?.textContent;
const mark = () => [...document.querySelectorAll('.reply .mark')].at(-1)?.textContent;
const seam = () => /Sunlight is\s+---\s+scattered/.test(document.querySelector('.streaming')?.textContent);
const rules = () => document.querySelectorAll('.reply .body hr').length;

export function failover(page) {
  let release;
  page(
    'an answer whose model breaks off goes on below a rule, and says who wrote it',
    async (page, server, browser) => {
      await open(page, server);
      await say(page, 'Why is the sky blue?');
      await page.until(() => document.querySelector('.reply[aria-busy=true] .facts')?.checkVisibility());
      assert.equal(await page.evaluate(facts), 'quick, then steady');
      // The text is painted with the next frame.
      await page.until(seam);
      const other = await page.tab();
      await other.goto(server.base);
      await other.until(() => document.querySelector('.reply[aria-busy=true] .facts')?.textContent === 'quick, then steady');
      release();
      for (const device of [page, other]) {
        await device.until(shown.finished, 1);
        assert.match(await device.evaluate(facts), /^quick, then steady · ≈ \d+ tokens$/);
        assert.equal(await device.evaluate(rules), 1);
      }
      await page.reload();
      await page.until(shown.finished, 1);
      assert.match(await page.evaluate(facts), /^quick, then steady · ≈ \d+ tokens$/);
      assert.equal(await page.evaluate(rules), 1);
      await accessible(page, 'an answer by two models');
      await mkdir(OUTPUT, { recursive: true });
      await page.screenshot(`${OUTPUT}chain-${browser.name}.png`);
      assert.deepEqual(await page.faults(), []);
    },
    {
      server: async (context) => {
        const hold = new Promise((resolve) => (release = resolve));
        return chain({
          quick: await startProvider(context, { pieces: ['Sunlight is'], ending: 'cut' }),
          steady: await startProvider(context, { pieces: ['scattered by the air, ', 'blue most of all.'], hold }),
        });
      },
    },
  );

  page(
    'a model that is down is replaced before its first word',
    async (page, server) => {
      await open(page, server);
      await say(page, 'Why is the sky blue?');
      await page.until(shown.finished, 1);
      assert.match(await page.evaluate(facts), /^steady · /);
      assert.equal(await page.evaluate(rules), 0);
      const options = await page.evaluate(() => [...document.getElementById('model').options].map(({ text }) => text));
      assert.deepEqual(options, ['quick', 'steady · images']);
      assert.deepEqual(await page.faults(), []);
    },
    {
      server: async (context) => ({
        ...chain({
          quick: await startProvider(context, { status: 503 }),
          steady: await startProvider(context, { pieces: ['Scattering.'] }),
        }),
        CHATBOX_LLM__PROVIDERS__STEADY__IMAGES: 'true',
      }),
    },
  );

  for (const [title, script, live, later] of [
    [
      'an answer that nobody goes on with says why it ends',
      { pieces: ['Sunlight is'], ending: 'cut' },
      'Interrupted: the model is not available at the moment',
      'Interrupted',
    ],
    [
      'an answer that is withheld says so',
      { pieces: ['Sunlight is'], ending: 'content_filter' },
      'Failed: this content is not allowed here',
      'Failed',
    ],
  ]) {
    page(
      title,
      async (page, server) => {
        await open(page, server);
        await say(page, 'Why is the sky blue?');
        await page.until(shown.finished, 1);
        assert.equal(await page.evaluate(mark), live);
        assert.match(await page.evaluate(shown.announced), new RegExp(`^Answer: Sunlight is.*\n${live}$`), 'a screen reader says so too');
        assert.match(await page.evaluate(() => document.querySelector('.reply .body').textContent), /^Sunlight is/);
        await page.reload();
        await page.until(shown.finished, 1);
        assert.equal(await page.evaluate(mark), later);
        assert.deepEqual(await page.faults(), []);
      },
      { server: async (context) => chain({ only: await startProvider(context, script) }) },
    );
  }
}
