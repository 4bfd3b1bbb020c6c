/** Types of the JavaScript client of chatbox. The shapes are those of the contract with clients. */

/** What names a transport in `status` and in frames. */
export type Transport = 'webtransport' | 'websocket';

export type ConnectionState = 'connecting' | 'connected' | 'reconnecting' | 'closed';

export interface Options {
  /** Where the server's routes begin, with its prefix: `https://chat.example/chatbox`. Default: where `sdk.js` is. */
  base?: string | URL;
  /** A token that lasts as long as the page. Prefer `getToken`. */
  token?: string;
  /**
   * Gives a token whenever one is needed: at first, before the old one expires, and when the server refuses it
   * (`refresh`: not one from a cache). `null` says that nobody is signed in: the client closes. A rejection is tried again.
   */
  getToken?: (wish: { refresh: boolean }) => Promise<string | null> | string | null;
  /** The session to open. Default: the active one, else a new one. */
  session_id?: string;
  /** Where it is remembered which transport works here (two numbers). Default: `localStorage`; `null`: nowhere. */
  storage?: Storage | null;
}

export interface Status {
  state: ConnectionState;
  /** What carries the frames; `null` unless connected. */
  transport: Transport | null;
  /** Why it is `closed` (`unauthorized`, `refused`, `done`) or `reconnecting` (`lost`, `silent`, `resume`). */
  reason: string | null;
  /** When it is tried again, in milliseconds since 1970. */
  retry_at: number | null;
}

export interface Session {
  session_id: string;
  user_id: string;
  connection_id: string;
  models: { id: string; name: string }[];
  model_id?: string;
  /** The last place of the log that is taken. */
  last_seq: number;
  recovered: boolean;
  assisted_by?: { admin_id: string; name: string };
  limits: { streams: number; frame_bytes: number; content_chars: number };
}

export interface Accepted {
  session_id: string;
  seq: number | null;
  /** The turn that answers; `null` where no model does. */
  turn_id: string | null;
  /** The server had it already, from a try whose answer was lost. */
  duplicate: boolean;
}

export type ReplyState = 'complete' | 'stopped' | 'interrupted' | 'failed';

export interface Reply {
  turn_id: string;
  seq: number;
  reply_to: number;
  state: ReplyState;
  text: string;
  /** The text as HTML that is safe to insert. */
  html?: string;
  /** UTF-8 bytes of `text`. */
  length: number;
  sha256: string;
  /** Whether `text` has the announced length and hash. `false` only after it was read again twice. */
  verified: boolean;
  usage?: { prompt_tokens: number; completion_tokens: number; estimated: boolean };
  model_id: string | null;
  timestamp: string;
  /** Why it failed, for the client that asked. */
  error: ErrorBody | null;
}

export interface ErrorBody {
  /** One of the contract's codes (1.4). */
  code: string;
  message: string;
  recoverable: boolean;
  /** Milliseconds. */
  retry_after?: number;
}

/** One message of this client. */
export interface Message {
  readonly id: string;
  readonly content: string;
  readonly state: 'queued' | 'sent' | 'accepted' | 'failed';
  readonly session_id: string | null;
  readonly seq: number | null;
  readonly turn_id: string | null;
  readonly error: ChatboxError | null;
  /** When it was typed, by the clock of this device. */
  readonly timestamp: string;
  /** Resolves when the message is stored; rejects when it is refused. */
  readonly accepted: Promise<Accepted>;
  /** The reply's text as it grows: `for await (const piece of message.pieces)`. Each use begins at the start. */
  readonly pieces: AsyncIterable<string>;
  /** The finished reply, or `null` where no model answers. Rejects when the message is refused or the client closes. */
  readonly reply: Promise<Reply | null>;
}

export interface Turn {
  readonly id: string;
  readonly seq: number | null;
  readonly model_id: string | null;
  readonly text: string;
  /** UTF-8 bytes of `text`. */
  readonly length: number;
  readonly reply: Promise<Reply>;
  pieces(): AsyncGenerator<string, void, void>;
}

/** A stored entry that is not a reply, as the frame of the contract. */
export interface Entry {
  type: 'user_message' | 'voice_message' | 'file_upload' | 'admin_join' | 'admin_leave' | 'tombstone';
  seq: number;
  id?: string;
  turn_id?: string;
  content?: string;
  sender?: 'user' | 'ai' | 'admin' | 'system';
  timestamp?: string;
  metadata?: Record<string, string | number | boolean>;
}

export interface Piece {
  turn_id: string;
  seq: number | null;
  /** UTF-8 byte offset of `content` in the turn's text. */
  offset: number;
  content: string;
}

export interface ChatboxEventMap {
  /** The connection's state has changed. */
  status: CustomEvent<Status>;
  /** What the server said about the session has changed. */
  session: CustomEvent<Session>;
  /** What was shown is to be forgotten: another session, or a snapshot follows. */
  reset: CustomEvent<object>;
  /** An entry of the log, once. */
  entry: CustomEvent<Entry>;
  /** A message of this client is new, or has got another state. */
  message: CustomEvent<Message>;
  /** A reply has started, or its model is still silent. */
  turn: CustomEvent<Turn>;
  /** New text of a reply; pieces of a turn neither overlap nor leave a hole. */
  piece: CustomEvent<Piece>;
  /** A reply has ended, or was read from the log. */
  reply: CustomEvent<Reply>;
  /** A request was refused, or something went wrong that the client deals with by itself. */
  error: CustomEvent<ErrorBody & { re?: string; turn_id?: string }>;
}

/** A failure with a code: one of the contract's, or `CLOSED`, `CONNECTION_LOST`, `TIMEOUT`. */
export class ChatboxError extends Error {
  readonly code: string;
  readonly retry_after?: number;
}

/** A conversation with chatbox. One instance holds one session at a time. */
export class Chatbox extends EventTarget {
  constructor(options?: Options);
  readonly status: Status;
  /** `null` before the first connection. */
  readonly session: Session | null;
  /** Connects, and stays connected until `close`. Rejects when there is no point in trying on. */
  connect(): Promise<Session>;
  /** Says something. Returns at once; without a connection the message waits. Throws when 100 wait already. */
  send(content: string, options?: { id?: string }): Message;
  /** Sends a refused message once more, under the same id. */
  retry(message: Message): Message;
  /** Ends a running turn. Rejects with `TURN_NOT_FOUND` when it has ended already. */
  stop(turn_id: string): Promise<object>;
  /** Moves to another session. Messages that are not stored yet fail with `CLOSED`. */
  open(request: { session_id?: string; new?: boolean; reopen?: boolean }): Promise<Session>;
  /** Closes for good. */
  close(): void;
  addEventListener<K extends keyof ChatboxEventMap>(
    type: K,
    listener: (event: ChatboxEventMap[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
}
