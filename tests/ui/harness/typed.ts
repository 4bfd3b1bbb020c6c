/** A host application in TypeScript: is compiled by a test, and never run. */

import { Chatbox, ChatboxError, SessionList } from '../../../src/ui/sdk.js';
import type { Message, Reply, ResumeState, SessionMeta } from '../../../src/ui/sdk.js';

export async function host(token: () => Promise<string>): Promise<string> {
  const chat = new Chatbox({
    base: new URL('https://chat.example/chatbox'),
    getToken: ({ refresh }) => (refresh ? token() : null),
    history: 50,
    heartbeat: 4000,
    outbox: false,
    renewAfter: { streams: 500 },
  });
  chat.addEventListener('status', ({ detail }) => {
    const resume: ResumeState | null = detail.resume;
    console.log(detail.state, detail.transport, resume);
  });
  chat.addEventListener('update', ({ detail }) => detail.deleted && console.log(detail.session_id));
  chat.addEventListener('rating', ({ detail }) => console.log(detail.seq, detail.rating === 'up', detail.state === 'failed'));
  chat.addEventListener('typing', ({ detail }) => console.log(detail.state === 'start', detail.sender));
  // @ts-expect-error: there is no such event, and an untyped listener has no detail
  chat.addEventListener('nothing', ({ detail }) => console.log(detail));
  const { session_id } = await chat.connect();
  const message: Message = chat.send('hello');
  for await (const piece of message.pieces) console.log(piece.length);
  const reply: Reply | null = await message.reply;
  if (!reply) return session_id;
  await chat.rate(reply.seq, 'up', 'good');
  // @ts-expect-error: no such rating
  await chat.rate(reply.seq, 'sideways');
  await chat.selectModel('large');
  chat.typing(true);
  const again = chat.regenerate(reply.turn_id);
  console.log(again.replaces, (await again.reply)?.reply_to === reply.reply_to);
  const { entries, more } = await chat.older(20);
  for (const entry of entries) console.log(entry.type === 'ai_response' ? entry.verified : entry.content, more);
  if (message.state === 'failed' && !chat.discard(message)) chat.retry(message);
  await chat.open({ new: true });
  return names(chat.watchUser());
}

async function names(list: SessionList): Promise<string> {
  list.addEventListener('list', ({ detail }) => console.log(detail.total));
  await list.connect();
  const made: SessionMeta = await list.create({ name: 'one' });
  await list.rename(made.id, 'two');
  const { url } = await list.share(made.id, { expires_in: 3600 });
  await list.unshare(made.id);
  await list.end(made.id);
  try {
    await list.remove(made.id);
  } catch (err) {
    if (err instanceof ChatboxError) console.log(err.code, err.status);
  }
  const { sessions } = await list.search(url);
  list.close();
  return sessions.map(({ name, match }) => match ?? name).join();
}
