/** The real binary on free loopback ports, with a data directory of its own. */

import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const START_MS = 60_000;
const STOP_MS = 60_000;

/** A model that answers at once, and no limit on what a test says. */
export const AT_ONCE = {
  CHATBOX_LLM__PROVIDERS__DEMO__TYPE: 'demo',
  CHATBOX_LLM__PROVIDERS__DEMO__PACE: '0s',
  CHATBOX_LIMITS__MESSAGES_PER_MINUTE: '10000',
  CHATBOX_LIMITS__REQUESTS_PER_MINUTE: '10000',
};

/** For a test that wants answers whole, and does not look while they are written. */
export const quick = { server: async () => AT_ONCE };

const BINARY = process.env.CHATBOX_BIN ?? fileURLToPath(new URL('../../../target/debug/chatbox', import.meta.url));

/**
 * @param {Record<string, string>} [env] more configuration
 * @returns {Promise<{signIn: string, base: string, token: (user: string, ttl?: string) => Promise<string>,
 *   stop: () => Promise<void>}>} `token` signs one for anybody
 */
export async function startServer(env = {}) {
  if (!existsSync(BINARY)) throw new Error(`no binary at ${BINARY}: build it, or set CHATBOX_BIN`);
  const directory = await mkdtemp(join(tmpdir(), 'chatbox-ui-'));
  const settings = {
    PATH: process.env.PATH,
    CHATBOX_LISTEN__HTTP: 'localhost:0',
    CHATBOX_LISTEN__QUIC: 'localhost:0',
    CHATBOX_LISTEN__OPS: 'localhost:0',
    CHATBOX_DATA_DIR: join(directory, 'data'),
    CHATBOX_LIMITS__PUBLIC_PER_MINUTE: '10000',
    ...env,
  };
  const child = spawn(BINARY, ['serve'], { cwd: directory, stdio: ['ignore', 'pipe', 'pipe'], env: settings });
  let log = '';
  child.stderr.on('data', (chunk) => (log = (log + chunk).slice(-20_000)));
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const signIn = await Promise.race([
    firstUrl(child.stdout),
    ended.then((code) => {
      throw new Error(`the server ended with ${code}:\n${log}`);
    }),
    after(START_MS, () => new Error(`the server printed no URL:\n${log}`)),
  ]);
  const stop = async () => {
    child.kill('SIGKILL');
    await Promise.race([ended, after(STOP_MS, () => new Error('the server did not end'))]);
    await rm(directory, { recursive: true, force: true });
  };
  const token = async (user, ttl = '1h') => {
    const args = ['token', '--user', user, '--ttl', ttl];
    const { stdout } = await promisify(execFile)(BINARY, args, { cwd: directory, env: settings });
    return stdout.trim();
  };
  return { signIn, base: signIn.split('#')[0], token, stop };
}

async function firstUrl(stdout) {
  for await (const line of createInterface({ input: stdout })) {
    const url = /https?:\/\/\S+/.exec(line)?.[0];
    if (!url) continue;
    // What comes later is not needed, but must not fill the pipe.
    stdout.resume();
    return url;
  }
  return new Promise(() => {});
}

function after(ms, error) {
  return new Promise((_, reject) => setTimeout(() => reject(error()), ms).unref());
}
