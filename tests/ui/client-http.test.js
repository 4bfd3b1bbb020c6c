/** The client's HTTP requests, against a server that answers as a test says. */

import assert from 'node:assert/strict';
import http from 'node:http';
import { once } from 'node:events';
import { test } from 'node:test';
import { Http } from '../../src/ui/sdk-http.js';
import { SessionList } from '../../src/ui/sdk.js';
import { Tokens } from '../../src/ui/sdk-token.js';

/** @param {(request: {method: string, url: string, headers: object, body: string}) => [number, any]} answer */
async function server(context, answer) {
  const requests = [];
  const listening = http.createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    const seen = { method: request.method, url: request.url, headers: request.headers, body };
    requests.push(seen);
    const [status, given] = answer(seen);
    response.writeHead(status);
    response.end(typeof given === 'string' ? given : JSON.stringify(given));
  });
  listening.listen(0, 'localhost');
  await once(listening, 'listening');
  context.after(() => {
    listening.close();
    listening.closeAllConnections();
  });
  return { base: `http://localhost:${listening.address().port}/chatbox`, requests };
}

test('a refused token is renewed once, and the request sent again', async (context) => {
  const wishes = [];
  const getToken = ({ refresh }) => {
    wishes.push(refresh);
    return refresh ? 'new' : 'old';
  };
  const { base, requests } = await server(context, ({ headers }) =>
    headers.authorization === 'Bearer new' ? [200, { fine: true }] : [401, {}],
  );
  assert.deepEqual(await new Http(base, new Tokens({ getToken })).get('/x', { a: 1, none: undefined }), { fine: true });
  assert.deepEqual(wishes, [false, true]);
  assert.deepEqual(requests.map(({ url }) => url), ['/chatbox/x?a=1', '/chatbox/x?a=1']);
});

test('a token that stays refused is an error, and is not asked for again and again', async (context) => {
  const { base, requests } = await server(context, () => [401, { code: 'INVALID_TOKEN', detail: 'not this one' }]);
  await assert.rejects(new Http(base, new Tokens({ getToken: () => 'x' })).get('/x'), { code: 'INVALID_TOKEN', status: 401 });
  assert.equal(requests.length, 2);
});

test('a problem becomes an error with its code', async (context) => {
  const problem = { code: 'TOO_MANY_REQUESTS', detail: 'slow down', retry_after_ms: 700, request_id: 'r' };
  const { base } = await server(context, () => [429, problem]);
  await assert.rejects(new Http(base, new Tokens({ token: 'x' })).get('/x'), {
    code: 'TOO_MANY_REQUESTS',
    message: 'slow down',
    retry_after: 700,
    request_id: 'r',
    status: 429,
  });
});

test('what is no JSON, and what is no server, are errors with a code too', async (context) => {
  const { base } = await server(context, ({ url }) => (url.endsWith('/bad') ? [502, '<html>'] : [200, '<html>']));
  const requests = new Http(base, new Tokens({ token: 'x' }));
  await assert.rejects(requests.get('/bad'), { code: 'SERVICE_ERROR', status: 502 });
  await assert.rejects(requests.get('/odd'), { code: 'SERVICE_ERROR' });
  await assert.rejects(new Http('http://localhost:1', new Tokens({ token: 'x' })).get(''), {
    code: 'CONNECTION_LOST',
    message: 'the server cannot be reached',
  });
  await assert.rejects(new Http(base, new Tokens({ getToken: () => null })).get('/x'), { code: 'UNAUTHORIZED' });
});

test('the list says what it wants as the contract has it', async (context) => {
  const { base, requests } = await server(context, ({ method }) => (method === 'DELETE' ? [204, ''] : [200, {}]));
  const list = new SessionList({ base, token: 'x', storage: null });
  await list.search('größe', { limit: 5 });
  await list.create({ name: 'n' });
  await list.rename('a/b', 'n');
  await list.end('s');
  await list.share('s', { expires_in: 60 });
  await list.unshare('s');
  assert.equal(await list.remove('s'), null);
  assert.deepEqual(
    requests.map(({ method, url, body }) => `${method} ${url} ${body}`),
    [
      'GET /chatbox/sessions?limit=5&q=gr%C3%B6%C3%9Fe ',
      'POST /chatbox/sessions {"name":"n"}',
      'PATCH /chatbox/sessions/a%2Fb {"name":"n"}',
      'POST /chatbox/sessions/s/end {}',
      'POST /chatbox/sessions/s/share {"expires_in":60}',
      'DELETE /chatbox/sessions/s/share ',
      'DELETE /chatbox/sessions/s ',
    ],
  );
  const keys = requests.filter(({ method }) => method === 'POST').map(({ headers }) => headers['idempotency-key']);
  assert.equal(new Set(keys).size, 3, 'each creation has a key of its own');
});
