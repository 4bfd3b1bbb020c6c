/** The bookkeeping of the client, without a browser: texts by offset, positions in the log, the outbox, the memory. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Memory } from '../../src/ui/sdk-dial.js';
import { Position, Turn } from '../../src/ui/sdk-log.js';
import { Message, Outbox } from '../../src/ui/sdk-outbox.js';
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
