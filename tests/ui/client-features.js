/** What pages build on beside plain messages: another reply, ratings, models, typing, older entries, the list. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startServer } from './harness/server.js';
import * as client from './harness/client.js';

/** @param {string} name @param {() => Promise<object>} launch */
export function clientFeatures(name, launch) {
  describe(`features of the client in ${name}`, { timeout: 2_400_000 }, () => {
    let browser;
    before(async () => {
      browser = await launch();
    });
    after(() => browser?.close());

    const page = (title, steps) =>
      test(title, { timeout: 300_000 }, async (context) => {
        const host = await client.startHost();
        context.after(host.close);
        const server = await startServer({ CHATBOX_AUTH__ALLOWED_ORIGINS: host.origin });
        context.after(server.stop);
        const opened = await browser.open();
        context.after(opened.close);
        await opened.goto(host.origin);
        const ann = { base: server.base, token: await server.token('ann') };
        await steps(opened, ann, host.origin);
      });

    replies(page);
    history(page);
    sessions(page);
  });
}

function replies(page) {
  page('another reply to the same message streams, is proved, and both are in the log', async (page, ann) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 30');
    const [first] = await page.until(client.replied, 1);
    const second = await page.evaluate(async (turn_id) => {
      const wish = globalThis.chat.regenerate(turn_id);
      const pieces = [];
      for await (const piece of wish.pieces) pieces.push(piece);
      const { seq } = await wish.accepted;
      return { ...(await wish.reply), accepted: seq, pieces, replaces: wish.replaces };
    }, first.turn_id);
    assert.equal(second.replaces, first.turn_id);
    assert.notEqual(second.turn_id, first.turn_id);
    assert.deepEqual([second.reply_to, second.verified, second.seq], [first.reply_to, true, second.accepted]);
    assert.equal(second.pieces.join(''), second.text);
    const { messages, faults, errors } = await page.evaluate(client.seen);
    assert.deepEqual([Object.keys(messages).length, faults, errors], [1, [], []]);
    const log = await page.evaluate(client.readLog, ann);
    assert.deepEqual(log.map(({ type }) => type), ['user_message', 'reply', 'reply']);
    const refused = await page.evaluate((turn_id) => globalThis.chat.regenerate(turn_id).reply.catch(({ code }) => code), first.turn_id);
    assert.equal(refused, 'TURN_NOT_FOUND');
    await page.evaluate(client.send, 'count to 2');
    await page.until(client.replied, 3);
  });

  page('another reply goes on over a lost connection', async (page, ann) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 60');
    const [first] = await page.until(client.replied, 1);
    await page.evaluate((turn_id) => (globalThis.wish = globalThis.chat.regenerate(turn_id)).id, first.turn_id);
    await page.until(() => globalThis.seen.texts[globalThis.wish.turn_id]?.length > 100);
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
    const text = await page.evaluate(async () => (await globalThis.wish.reply).text);
    assert.equal(text, first.text);
    const { texts, faults } = await page.evaluate(client.seen);
    assert.deepEqual([Object.values(texts), faults], [[text, text], []]);
  });

  page('a rating comes back with the reply', async (page, ann) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 2');
    const [reply] = await page.until(client.replied, 1);
    const answer = await page.evaluate((seq) => globalThis.chat.rate(seq, 'up', 'well counted'), reply.seq);
    assert.equal(answer.session_id, await page.evaluate(() => globalThis.chat.session.session_id));
    await page.reload();
    await start(page, ann);
    const [again] = await page.until(client.replied, 1);
    assert.equal(again.rating, 'up');
    const refused = await page.evaluate(() => globalThis.chat.rate(99, 'up').catch(({ code }) => code));
    assert.equal(refused, 'NOT_FOUND');
    await page.until(ratingsKept, 0);
  });

  page('ratings that wait outlast their page, and the last one counts', async (page, ann) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 2');
    const [{ seq }] = await page.until(client.replied, 1);
    await page.evaluate((rated) => {
      globalThis.told = [];
      globalThis.chat.addEventListener('rating', ({ detail }) => globalThis.told.push(`${detail.rating} ${detail.state}`));
      dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }));
      for (const rating of ['up', 'down']) globalThis.chat.rate(rated, rating).catch(() => {});
    }, seq);
    assert.deepEqual(await page.evaluate(() => globalThis.told), ['up queued', 'down queued']);
    await page.until(ratingsKept, 2);
    await page.reload();
    await page.evaluate(client.readLog, ann);
    await page.until(ratingsKept, 2);
    await start(page, ann);
    await page.until(ratingsKept, 0);
    assert.deepEqual((await page.evaluate(client.seen)).messages, {}, 'they are no messages');
    await page.reload();
    await start(page, ann);
    const [again] = await page.until(client.replied, 1);
    assert.equal(again.rating, 'down');
  });

  page('a rating of a conversation that is deleted meanwhile is forgotten', async (page, ann, host) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 2');
    const [{ seq }] = await page.until(client.replied, 1);
    const before = await page.evaluate(() => globalThis.chat.session.session_id);
    await page.evaluate((rated) => {
      dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }));
      globalThis.rated = globalThis.chat.rate(rated, 'up').catch(({ code }) => code);
    }, seq);
    await deletedMeanwhile(page, ann, host, before);
    assert.equal(await page.evaluate(() => globalThis.rated), 'NOT_FOUND');
    await page.until(ratingsKept, 0);
    await page.until(client.connected);
    await page.evaluate(client.send, 'count to 3');
    const [reply] = await page.until(client.replied, 1);
    assert.equal(reply.text, '1. line\n2. line\n3. line\n');
  });

  page('the chosen model is told, and an unknown one refused', async (page, ann) => {
    await start(page, ann);
    const id = await page.evaluate(() => globalThis.chat.session.models[0].id);
    const answer = await page.evaluate((model) => globalThis.chat.selectModel(model), id);
    assert.deepEqual([answer.type, answer.model_id], ['connection_status', id]);
    const refused = await page.evaluate(() => globalThis.chat.selectModel('gpt-0').catch(({ code }) => code));
    assert.equal(typeof refused, 'string');
    assert.equal(await page.evaluate(() => globalThis.chat.session.model_id), id);
  });

  page('typing is seen on the other devices', async (page, ann, host) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 2');
    await page.until(client.replied, 1);
    const other = await page.tab();
    await other.goto(host);
    await start(other, ann);
    await other.evaluate(() => {
      globalThis.typed = [];
      globalThis.chat.addEventListener('typing', ({ detail }) => globalThis.typed.push(detail));
    });
    await page.evaluate(() => globalThis.chat.typing(true));
    await other.until(() => globalThis.typed.length === 1);
    await page.evaluate(() => globalThis.chat.typing(false));
    const typed = await other.until(() => globalThis.typed.length === 2 && globalThis.typed);
    const session_id = await page.evaluate(() => globalThis.chat.session.session_id);
    assert.deepEqual(typed, [
      { state: 'start', sender: 'user', session_id },
      { state: 'stop', sender: 'user', session_id },
    ]);
  });
}

function history(page) {
  page('the newest entries come first, and older ones are read until there are none', async (page, ann) => {
    await start(page, ann);
    for (let count = 1; count <= 4; count += 1) {
      await page.evaluate(client.send, `count to ${count}`);
      await page.until(client.replied, count);
    }
    await page.reload();
    await start(page, { ...ann, history: 3 });
    await page.until(client.replied, 2);
    assert.deepEqual(seqs(await page.evaluate(client.seen)), [6, 7, 8]);
    assert.equal(await page.evaluate(() => globalThis.chat.hasOlder), true);
    const older = await page.evaluate(() => globalThis.chat.older(4));
    assert.deepEqual([older.entries.map(({ seq }) => seq), older.more], [[2, 3, 4, 5], true]);
    assert.deepEqual(older.entries.map(({ type }) => type), ['ai_response', 'user_message', 'ai_response', 'user_message']);
    assert.deepEqual([older.entries[0].text, older.entries[0].verified], ['1. line\n', true]);
    const oldest = await page.evaluate(() => globalThis.chat.older(4));
    assert.deepEqual([oldest.entries.map(({ seq }) => seq), oldest.more], [[1], false]);
    assert.deepEqual(await page.evaluate(() => globalThis.chat.older(4)), { entries: [], more: false });
    // The position is right although the log was not read from its beginning.
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
    await page.until(client.connected);
    await page.evaluate(client.send, 'count to 2');
    await page.until(client.replied, 3);
    assert.deepEqual((await page.evaluate(client.seen)).faults, []);
    assert.equal(await page.evaluate(() => globalThis.chat.status.resume), 'resumed');
  });
}

function sessions(page) {
  page('the list follows what happens in any tab', async (page, ann, host) => {
    await start(page, ann);
    await watchList(page);
    await page.until(() => globalThis.lists.length === 1);
    const other = await page.tab();
    await other.goto(host);
    await start(other, ann);
    await other.evaluate(client.send, 'count to 2');
    const update = await page.until(() => globalThis.updates.find(({ message_count }) => message_count > 0));
    const id = await page.evaluate(() => globalThis.chat.session.session_id);
    assert.equal(update.session_id, id);
    await page.until(client.replied, 1);
    const listed = await page.evaluate(() => globalThis.list.list());
    assert.deepEqual(listed.sessions.map((meta) => meta.id), [id]);
    await page.evaluate((session) => globalThis.list.rename(session, 'Counting'), id);
    await page.until(() => globalThis.updates.some(({ name }) => name === 'Counting'));
    await other.until(() => globalThis.chat.session.name === 'Counting');
    const found = await page.evaluate(() => globalThis.list.search('count'));
    assert.deepEqual(found.sessions.map((meta) => meta.name), ['Counting']);
    const made = await page.evaluate(() => globalThis.list.create({ name: 'Another' }));
    assert.equal(made.name, 'Another');
  });

  page('a shared link can be revoked, and an ended session be told of', async (page, ann) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 2');
    await page.until(client.replied, 1);
    await watchList(page);
    const { url, share_token } = await page.evaluate(() =>
      globalThis.list.share(globalThis.chat.session.session_id, { expires_in: 60 }),
    );
    assert.ok(url.includes(share_token), url);
    assert.equal(await page.evaluate(() => globalThis.list.unshare(globalThis.chat.session.session_id)), null);
    await page.evaluate(() => globalThis.list.end(globalThis.chat.session.session_id));
    await page.until(() => globalThis.updates.some(({ state }) => state === 'ended'));
    await page.until(() => globalThis.chat.session.state === 'ended');
    const id = await page.evaluate(client.send, 'too late');
    await page.until((late) => globalThis.seen.messages[late].state === 'failed', id);
    assert.equal((await page.evaluate(client.seen)).messages[id].error.code, 'SESSION_ENDED');
  });

  page('a session that is deleted elsewhere is left by every tab', async (page, ann, host) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 2');
    await page.until(client.replied, 1);
    const before = await page.evaluate(() => globalThis.chat.session.session_id);
    const other = await page.tab();
    await other.goto(host);
    await start(other, ann);
    await watchList(other);
    await other.evaluate((id) => globalThis.list.remove(id), before);
    for (const tab of [page, other]) {
      await tab.until((id) => globalThis.chat.session && globalThis.chat.session.session_id !== id, before);
    }
    await page.evaluate(client.send, 'count to 3');
    const [reply] = await page.until(client.replied, 1);
    assert.equal(reply.text, '1. line\n2. line\n3. line\n');
    assert.equal(await page.evaluate(() => globalThis.chat.status.state), 'connected');
  });

  page('what waited for a session that was deleted is kept until somebody says where it shall go', async (page, ann, host) => {
    await start(page, ann);
    await page.evaluate(client.send, 'count to 2');
    await page.until(client.replied, 1);
    const before = await page.evaluate(() => globalThis.chat.session.session_id);
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    const id = await page.evaluate(client.send, 'count to 3');
    await deletedMeanwhile(page, ann, host, before);
    const [waiting] = await page.until(client.messagesIn, 'failed');
    assert.deepEqual([waiting.content, waiting.error], ['count to 3', { code: 'NOT_FOUND' }]);
    await page.until(client.connected);
    await page.evaluate((refused) => globalThis.chat.retry(globalThis.handles[refused]).id, id);
    await page.until(client.replied, 1);
    const log = await page.evaluate(client.readLog, ann);
    assert.deepEqual(log.map(({ content }) => content), ['count to 3', '1. line\n2. line\n3. line\n']);
  });

  page('the list is read again after a reconnect', async (page, ann) => {
    await start(page, ann);
    await watchList(page);
    await page.until(() => globalThis.lists.length === 1);
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
    await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
    await page.until(() => globalThis.lists.length === 2);
  });
}

/** Whether the outbox on disk has so many ratings. */
const ratingsKept = (count) =>
  new Promise((resolve, reject) => {
    const opening = indexedDB.open('chatbox', 1);
    opening.onerror = reject;
    opening.onsuccess = () => {
      const all = opening.result.transaction('outbox').objectStore('outbox').getAll();
      all.onsuccess = () => {
        opening.result.close();
        resolve(all.result.filter(({ rates }) => rates).length === count);
      };
    };
  });

async function start(page, options) {
  await client.startClient(page, options);
  await page.until(client.connected);
}

/** Watches the list of the client's user, as `globalThis.list`. */
function watchList(page) {
  return page.evaluate(async () => {
    const list = globalThis.chat.watchUser();
    Object.assign(globalThis, { list, lists: [], updates: [] });
    list.addEventListener('list', ({ detail }) => globalThis.lists.push(detail));
    list.addEventListener('update', ({ detail }) => globalThis.updates.push(detail));
    await list.connect();
  });
}

/** Another device deletes a session of the client while its page is away, which then comes back. */
async function deletedMeanwhile(page, ann, host, session_id) {
  const other = await page.tab();
  await other.goto(host);
  await start(other, { ...ann, outbox: false });
  await watchList(other);
  await other.evaluate((session) => globalThis.list.remove(session), session_id);
  await page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
}

function seqs({ entries, replies }) {
  return [...entries, ...Object.values(replies)].map(({ seq }) => seq).sort((a, b) => a - b);
}
