/** The bookkeeping of the client, without a browser: texts by offset, positions in the log, the outbox, the memory. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { comesNext } from '../../src/ui/sdk-copies.js';
import { Memory } from '../../src/ui/sdk-dial.js';
import { Position, Turn } from '../../src/ui/sdk-log.js';
import { Message, Outbox } from '../../src/ui/sdk-outbox.js';
import { Replies } from '../../src/ui/sdk-replies.js';
import { Typing } from '../../src/ui/sdk-typing.js';
import { Watchdog } from '../../src/ui/sdk-watchdog.js';
import { closeOfWebSocket, expiryOf } from '../../src/ui/sdk-wire.js';

const SHA256_OF_ABC = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad';

test('pieces that overlap are cut by bytes, a hole is told', () => {
  const turn = new Turn('t');
  assert.equal(turn.add(0, 'größe'), 'größe');
  assert.equal(turn.length, 7);
  assert.equal(turn.add(0, 'größe'), '', 'known text is dropped');
  assert.equal(turn.add(4, 'ße 🦀!'), ' 🦀!', 'the known bytes are cut off');
  assert.equal(turn.text, 'größe 🦀!');
  assert.equal(turn.length, 13);
  assert.equal(turn.add(14, 'x'), null, 'byte 13 is missing');
  assert.equal(turn.text, 'größe 🦀!');
});

test('any way to cut and repeat a text gives the text', () => {
  const text = 'Zwölf Boxkämpfer jagen Viktor über den großen Sylter Deich 🥊 日本語のテキスト. '.repeat(5);
  const encoder = new TextEncoder();
  const characters = [...text];
  const offsets = [0];
  for (const character of characters) offsets.push(offsets.at(-1) + encoder.encode(character).length);
  let seed = 1;
  const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
  for (let round = 0; round < 200; round += 1) {
    const turn = new Turn('t');
    while (turn.text !== text) {
      const held = offsets.indexOf(turn.length);
      const from = Math.max(0, held - random(20));
      turn.add(offsets[from], characters.slice(from, held + 1 + random(10)).join(''));
    }
    assert.equal(turn.length, encoder.encode(text).length);
  }
});

test('a text that went past its end is taken back', () => {
  const turn = new Turn('t');
  turn.add(0, 'größer');
  turn.truncate(4);
  assert.equal(turn.text, 'grö');
  assert.equal(turn.length, 4);
});

test('length and hash prove a text', async () => {
  const turn = new Turn('t');
  turn.add(0, 'abc');
  assert.equal(await turn.matches({ length: 3, sha256: SHA256_OF_ABC }), true);
  assert.equal(await turn.matches({ length: 3, sha256: SHA256_OF_ABC.replace('b', 'c') }), false);
  assert.equal(await turn.matches({ length: 4, sha256: SHA256_OF_ABC }), false);
});

test('two readers get the same text, each at its own pace', async () => {
  const turn = new Turn('t');
  const read = async () => {
    const pieces = [];
    for await (const piece of turn.pieces()) pieces.push(piece);
    return pieces;
  };
  const early = read();
  turn.add(0, 'one ');
  await Promise.resolve();
  turn.add(4, 'two');
  turn.finish({});
  const [first, second] = await Promise.all([early, read()]);
  assert.equal(first.join(''), 'one two');
  assert.deepEqual(second, ['one two']);
});

test('a turn that is given up ends its readers with the reason', async () => {
  const turn = new Turn('t');
  turn.add(0, 'some');
  turn.abandon(new Error('closed'));
  await assert.rejects(async () => {
    for await (const piece of turn.pieces()) assert.equal(piece, 'some');
  }, /closed/);
});

test('the position is the last entry without a gap before it', () => {
  const position = new Position();
  assert.equal(position.hold(2), true);
  assert.equal(position.afterSeq, 0);
  assert.equal(position.hold(1), true);
  assert.equal(position.afterSeq, 2);
  assert.equal(position.hold(2), false);
  position.hold(4);
  assert.equal(position.afterSeq, 2);
  assert.equal(position.holds(4), true);
  assert.equal(position.holds(3), false);
});

test('after a snapshot the position begins at its first entry', () => {
  const position = new Position();
  position.hold(1);
  position.reset(true);
  position.note(5003);
  assert.equal(position.hold(5001), true);
  assert.equal(position.afterSeq, 5001);
  position.hold(5002);
  assert.equal(position.afterSeq, 5003);
});

test('the outbox sends one message at a time, and again under the same id', () => {
  const outbox = new Outbox();
  const [first, second] = [outbox.add(new Message('a')), outbox.add(new Message('b'))];
  assert.equal(outbox.next, first);
  first.state = 'sent';
  assert.equal(outbox.next, undefined, 'the second must not overtake the first');
  assert.deepEqual([...outbox.unsend()], [first]);
  assert.equal(outbox.next, first);
  assert.equal(outbox.take(first.id), first);
  assert.equal(outbox.next, second);
});

test('the outbox has a limit', () => {
  const outbox = new Outbox();
  for (let count = 0; count < 100; count += 1) outbox.add(new Message('x'));
  assert.throws(() => outbox.add(new Message('x')), { code: 'TOO_MANY_REQUESTS' });
});

test('after two failures in a row WebTransport is left alone, over a reload too', () => {
  const kept = new Map();
  const storage = { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  const memory = new Memory(storage);
  memory.failed();
  memory.worked();
  memory.failed();
  assert.equal(memory.avoids, false);
  memory.failed();
  assert.equal(memory.avoids, true);
  assert.equal(new Memory(storage).avoids, true);
  assert.equal(new Memory({ getItem: () => 'not JSON', setItem() {} }).avoids, false);
});

test('close codes of both kinds mean the same', () => {
  const codes = [1000, 4001, 4002, 1001, 4004, 1002, 4006, 1009, 4008, 1006];
  assert.deepEqual(codes.map(closeOfWebSocket), [0, 1, 2, 3, 4, 5, 6, 7, 8, null]);
});

test('the expiry is read from a token, and an opaque token has none', () => {
  const payload = Buffer.from(JSON.stringify({ user_id: 'ü?>', exp: 1_800_000_000 })).toString('base64url');
  assert.equal(expiryOf(`e30.${payload}.x`), 1_800_000_000_000);
  assert.equal(expiryOf('opaque'), null);
});

/** Replies whose events, re-readings and positions are written down. */
function watchedReplies() {
  const told = [];
  const position = new Position();
  const replies = new Replies(position, {
    emit: (name, detail) => told.push({ name, ...detail }),
    expect: () => {},
    ended: () => {},
    reread: () => told.push({ name: 'reread' }),
  });
  const names = () => told.map(({ name }) => name);
  return { replies, position, told, names };
}

const lastFrame = (turn_id, seq, more) => ({
  turn_id,
  seq,
  reply_to: 1,
  state: 'complete',
  offset: 0,
  content: '',
  length: 3,
  sha256: SHA256_OF_ABC,
  metadata: { done: 'true', streaming: 'true' },
  ...more,
});

const settled = () => new Promise((resolve) => setImmediate(resolve));

test('a text that is not the one of its hash is read again, and told when that does not help', async () => {
  const { replies, position, told, names } = watchedReplies();
  const whole = { metadata: { done: 'true', streaming: 'false' }, content: 'abX' };
  for (let round = 0; round < 3; round += 1) {
    assert.equal(position.holds(2), false);
    replies.response(lastFrame('t', 2, whole));
    while (!names().at(-1) || names().length <= round) await settled();
  }
  assert.deepEqual(names(), ['reread', 'reread', 'reply']);
  assert.deepEqual([told.at(-1).verified, told.at(-1).text], [false, 'abX']);
});

test('the second reading of a text proves it', async () => {
  const { replies, told, names } = watchedReplies();
  replies.response({ turn_id: 't', offset: 0, content: 'aXc', metadata: {} });
  replies.response(lastFrame('t', 2));
  while (!names().includes('reread')) await settled();
  replies.response(lastFrame('t', 2, { metadata: { done: 'true', streaming: 'false' }, content: 'abc' }));
  while (!names().includes('reply')) await settled();
  assert.deepEqual([told.at(-1).verified, told.at(-1).text, told.at(-1).length], [true, 'abc', 3]);
});

test('two replies to one message are two turns, each with a text and a proof of its own', async () => {
  const { replies, position, told, names } = watchedReplies();
  position.hold(1);
  replies.response({ turn_id: 'first', offset: 0, content: 'abc', metadata: {} });
  replies.response(lastFrame('first', 2));
  while (!names().includes('reply')) await settled();
  replies.loading({ turn_id: 'second', seq: 3 });
  replies.response({ turn_id: 'second', offset: 0, content: 'ab', metadata: {} });
  assert.deepEqual(replies.place, { turn_id: 'second', offset: 2 });
  replies.response({ turn_id: 'second', offset: 2, content: 'c', metadata: {} });
  replies.response(lastFrame('second', 3));
  while (names().filter((name) => name === 'reply').length < 2) await settled();
  const ends = told.filter(({ name }) => name === 'reply');
  assert.deepEqual(ends.map(({ turn_id, reply_to, text, verified }) => [turn_id, reply_to, text, verified]), [
    ['first', 1, 'abc', true],
    ['second', 1, 'abc', true],
  ]);
  assert.equal(position.afterSeq, 3);
});

test('typing is told at most every three seconds, and its end after five without a key', (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] });
  const sent = [];
  const typing = new Typing((state) => sent.push(state));
  for (let tenths = 0; tenths < 40; tenths += 1) {
    typing.set(true);
    context.mock.timers.tick(100);
  }
  assert.deepEqual(sent, ['start', 'start']);
  context.mock.timers.tick(4800);
  assert.deepEqual(sent, ['start', 'start']);
  context.mock.timers.tick(100);
  assert.deepEqual(sent, ['start', 'start', 'stop']);
  typing.set(false);
  assert.deepEqual(sent, ['start', 'start', 'stop']);
});

/** How long it takes until a path is taken for dead, when `act` sends something and nothing is answered. */
function timeToDeath(watchdog, owner, act) {
  return new Promise((resolve) => {
    const since = performance.now();
    owner.dead = () => resolve(performance.now() - since);
    act(watchdog);
  });
}

test('whatever is unanswered for a heartbeat tells of a dead path, and each further try has more time', async () => {
  const pings = [];
  const owner = { busy: () => true, ping: () => pings.push('p') && `p${pings.length}`, dead: () => {} };
  const watchdog = new Watchdog(100, { ...owner, dead: () => owner.dead() });
  const took = [];
  for (let round = 0; round < 3; round += 1) took.push(await timeToDeath(watchdog, owner, () => watchdog.sent('m')));
  assert.deepEqual(took.map((ms, round) => ms >= 99 * 2 ** round), [true, true, true], took.join());
  watchdog.sent('m');
  watchdog.answered('m');
  const after = await timeToDeath(watchdog, owner, () => watchdog.sent('n'));
  assert.ok(after < 199, `an answer makes it as quick as before: ${after} ms`);
  watchdog.stop();
});

test('text that comes down is no sign of life of the way up, an answer is', async () => {
  const owner = { busy: () => true, dead: () => {} };
  let answered = 0;
  const watchdog = new Watchdog(100, {
    busy: () => true,
    ping: () => {
      // The server answers five times, and then the way up is dead.
      if (answered < 5) setImmediate(() => watchdog.answered('p'));
      answered += 1;
      return 'p';
    },
    dead: () => owner.dead(),
  });
  const took = await timeToDeath(watchdog, owner, () => watchdog.arm());
  assert.equal(answered, 6);
  assert.ok(took >= 5 * 29 + 99, `${took} ms`);
});

test('of copies only what comes next is taken', async () => {
  const { replies, position } = watchedReplies();
  const takes = (frame) => comesNext(frame, { position, replies, awaits: (id) => id === 'mine' });
  const message = (seq) => ({ type: 'user_message', seq });
  const piece = (turn_id, offset, content) => ({ type: 'ai_response', turn_id, offset, content, metadata: { done: 'false' } });
  const last = (turn_id, length) => ({ ...lastFrame(turn_id, 2, { length }), type: 'ai_response' });
  const loading = (turn_id, seq) => ({ type: 'loading', turn_id, seq });

  assert.deepEqual([takes({ type: 'accepted', re: 'mine' }), takes({ type: 'accepted', re: 'other' })], [true, false]);
  assert.deepEqual([1, 2].map((seq) => takes(message(seq))), [true, false]);
  position.hold(1);
  assert.deepEqual([1, 2, 3].map((seq) => takes(message(seq))), [false, true, false]);
  assert.equal(takes(piece('t', 0, 'abc')), false, 'nobody has said yet where this turn belongs');
  assert.deepEqual([takes(loading('t', 2)), takes(loading('t', 3))], [true, false]);
  replies.loading(loading('t', 2));
  assert.equal(takes(loading('t', 2)), false);
  assert.deepEqual([2, 3, 4].map((seq) => takes(message(seq))), [false, true, false], 'the reply has its place');
  const whole = { type: 'ai_response', turn_id: 'u', seq: 3, offset: 0, content: '', metadata: { done: 'true', streaming: 'false' } };
  assert.deepEqual([takes(whole), takes({ ...whole, seq: 4 })], [true, false]);

  assert.deepEqual([takes(piece('t', 0, 'ab')), takes(piece('t', 1, 'b')), takes(last('t', 3))], [true, false, false]);
  replies.response(piece('t', 0, 'ab'));
  assert.deepEqual([takes(piece('t', 0, 'ab')), takes(piece('t', 0, 'abc')), takes(piece('t', 3, 'd'))], [false, true, false]);
  replies.response(piece('t', 0, 'abc'));
  assert.deepEqual([takes(last('t', 3)), takes(last('t', 4))], [true, false]);
  replies.response(last('t', 3));
  await settled();
  assert.deepEqual([takes(last('t', 3)), takes(loading('t', 2)), takes(piece('t', 3, 'd'))], [false, false, false]);
});
