/** Requests beside the connection: JSON over HTTP with the page's token, a deadline, and errors with a code. */

import { ChatboxError, uuid } from './sdk-wire.js';

const DEADLINE_MS = 15_000;

export class Http {
  #base;
  #tokens;

  /** @param {string} base where the server's routes begin @param {import('./sdk-token.js').Tokens} tokens */
  constructor(base, tokens) {
    this.#base = base;
    this.#tokens = tokens;
  }

  /**
   * @param {string} path below the base, each part encoded
   * @param {Record<string, string | number | undefined>} [query]
   * @returns {Promise<any>} what the server answered
   */
  get(path, query = {}) {
    const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== '');
    const parameters = given.length > 0 ? `?${new URLSearchParams(given)}` : '';
    return this.#call(path + parameters, { method: 'GET' });
  }

  /** Makes something, once: the key makes a second try of the same request harmless. */
  post(path, body = {}) {
    return this.#call(path, { method: 'POST', body, headers: { 'idempotency-key': uuid() } });
  }

  patch(path, body) {
    return this.#call(path, { method: 'PATCH', body });
  }

  delete(path) {
    return this.#call(path, { method: 'DELETE' });
  }

  /** A refused token is renewed once. */
  async #call(path, request) {
    let response = await this.#send(path, request, this.#tokens.get());
    if (response.status === 401 && this.#tokens.renewable) {
      response = await this.#send(path, request, this.#tokens.renew());
    }
    const answer = await read(response);
    if (response.ok) return answer;
    const code = answer?.code ?? 'SERVICE_ERROR';
    const message = answer?.detail ?? `the server answered with ${response.status}`;
    throw new ChatboxError(code, message, {
      status: response.status,
      retry_after: answer?.retry_after_ms,
      request_id: answer?.request_id,
      errors: answer?.errors,
    });
  }

  async #send(path, { method, body, headers = {} }, asked) {
    try {
      const token = await asked;
      if (!token) throw new ChatboxError('UNAUTHORIZED', 'there is no token');
      const all = { ...headers, authorization: `Bearer ${token}` };
      if (body !== undefined) all['content-type'] = 'application/json';
      return await fetch(this.#base + path, {
        method,
        headers: all,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: 'no-store',
        signal: AbortSignal.timeout(DEADLINE_MS),
      });
    } catch (err) {
      throw broken(err);
    }
  }
}

/** @returns {Promise<any>} the JSON, or `null` where there is none */
async function read(response) {
  let text;
  try {
    text = await response.text();
  } catch (err) {
    throw broken(err);
  }
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    // A proxy in between answers in HTML.
    if (!response.ok) return null;
    throw new ChatboxError('SERVICE_ERROR', 'the answer is not JSON');
  }
}

function broken(err) {
  if (err instanceof ChatboxError) return err;
  if (err.name === 'TimeoutError') return new ChatboxError('TIMEOUT', `no answer within ${DEADLINE_MS} ms`);
  // What browsers say of it is different in each, and means nothing to people.
  if (err instanceof TypeError) return new ChatboxError('CONNECTION_LOST', 'the server cannot be reached');
  return new ChatboxError('CONNECTION_LOST', String(err?.message ?? err));
}
