/** A model that says what a test tells it to, over OpenAI's interface. */

import { createServer } from 'node:http';

const event = (data) => `data: ${JSON.stringify(data)}\n\n`;
const choice = (delta, finish_reason = null) => event({ choices: [{ index: 0, delta, finish_reason }] });

/**
 * @param {object} context the test, at whose end it is closed
 * @param {{status?: number, pieces?: string[], ending?: 'stop' | 'content_filter' | 'cut', hold?: Promise<void>,
 *   before?: (nth: number) => Promise<void>}} script `hold`: what is waited for behind the first piece; `before`: before
 *   each
 * @returns {Promise<string>} its endpoint
 */
export async function startProvider(context, { status = 200, pieces = [], ending = 'stop', hold, before }) {
  const server = createServer(async (request, response) => {
    request.resume();
    response.writeHead(status, { 'content-type': status === 200 ? 'text/event-stream' : 'application/json' });
    if (status !== 200) return response.end('{}');
    for (const [nth, content] of pieces.entries()) {
      if (nth === 1) await hold;
      await before?.(nth);
      response.write(choice({ content }));
    }
    if (ending !== 'cut') return response.end(`${choice({}, ending)}data: [DONE]\n\n`);
    // What was written is to arrive before the end.
    return response.write(': cut\n\n', () => response.destroy());
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  context.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}/v1`;
}

/** Has the server ask these models, by name: the first one, and the others in its place. */
export function chain(endpoints) {
  const names = Object.keys(endpoints);
  const env = { CHATBOX_LLM__DEFAULT: names[0], CHATBOX_SESSIONS__MODEL_NAMES: 'false', CHATBOX_LLM__RETRIES: '0' };
  for (const name of names) {
    const key = `CHATBOX_LLM__PROVIDERS__${name.toUpperCase()}__`;
    Object.assign(env, { [`${key}TYPE`]: 'openai', [`${key}ENDPOINT`]: endpoints[name], [`${key}MODEL`]: 'scripted' });
  }
  if (names.length > 1) env[`CHATBOX_LLM__PROVIDERS__${names[0].toUpperCase()}__FALLBACK`] = names.slice(1).join();
  return env;
}
