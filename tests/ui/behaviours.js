/**
 * The one list of behaviours that every browser has to show, against the real server.
 *
 * A test opens the URL that the server printed, acts as a person does (keys, clicks), and asserts what the page shows.
 */

import { mkdir } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { appearance, OUTPUT } from './behaviours-appearance.js';
import { failover } from './behaviours-chain.js';
import { client, conversation, transports } from './behaviours-chat.js';
import { history } from './behaviours-history.js';
import { hosts } from './behaviours-host.js';
import { replies } from './behaviours-replies.js';
import { sessions } from './behaviours-sessions.js';
import { sharing } from './behaviours-share.js';
import { startServer } from './harness/server.js';

/** @param {string} name @param {() => Promise<object>} launch */
export function behaviours(name, launch) {
  describe(name, { timeout: 2_400_000 }, () => {
    let browser;
    before(async () => {
      await mkdir(OUTPUT, { recursive: true });
      browser = await launch();
    });
    after(() => browser?.close());

    const page = (title, steps, { server: env, view } = {}) =>
      test(title, { timeout: 300_000 }, async (context) => {
        const server = await startServer(await env?.(context));
        context.after(server.stop);
        const opened = await browser.open(view);
        context.after(opened.close);
        await steps(opened, server, browser, context);
      });

    conversation(page);
    replies(page);
    failover(page);
    history(page);
    sessions(page);
    sharing(page);
    hosts(page);
    transports(page);
    appearance(page);
    client(page);
  });
}
