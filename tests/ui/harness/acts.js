/** What a person does on the pages, and what many tests ask of them. */

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import * as shown from './shown.js';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** The one person whom the local sign-in knows. */
export const LOCAL_USER = 'local';

/** Opens the URL that the server printed, and waits for the connection. */
export async function open(page, server, transport = 'webtransport') {
  await page.goto(server.signIn);
  await page.until(shown.connectedOver, transport);
}

/** Opens the list of conversations, signed in. */
export async function openList(page, server, transport = 'webtransport') {
  await open(page, server, transport);
  await page.goto(`${server.base}sessions.html`);
  await page.until(shown.connectedOver, transport);
}

export async function say(page, text) {
  await page.click('#text');
  await page.type(text);
  await page.press('Enter');
}

/** Says something in each of so many conversations, with the client and without a page. */
export async function converse(page, server, messages) {
  await page.evaluate(async ({ base, messages: all }) => {
    const { Chatbox } = await import(`${base}sdk.js`);
    const getToken = async () => (await (await fetch(`${base}dev/session`, { method: 'POST', body: '{}' })).json()).token;
    const chat = new Chatbox({ base, getToken, outbox: false });
    await chat.connect();
    for (const message of all) {
      await chat.open({ new: true });
      await chat.send(message).reply;
    }
    chat.close();
  }, { base: server.base, messages });
}

/** The HTTP API, as the person of the local sign-in. */
export async function api(server, method, path, body) {
  const response = await fetch(`${server.base}${path}`, {
    method,
    headers: { authorization: `Bearer ${await server.token(LOCAL_USER)}`, 'content-type': 'application/json' },
    body: body && JSON.stringify(body),
  });
  assert.ok(response.ok, `${method} ${path} was answered with ${response.status}`);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/** Fails on what axe calls serious. */
export async function accessible(page, state) {
  await page.evaluate(`${AXE};0`);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  const found = violations.filter(({ impact }) => ['serious', 'critical'].includes(impact));
  assert.deepEqual(found.map(({ id, nodes }) => `${state}: ${id}: ${nodes.map((node) => node.html)}`), []);
}
