/** Types of the JavaScript client of chatbox. The shapes are those of the contract with clients. */

/** What names a transport in `status` and in frames. */
export type Transport = 'webtransport' | 'websocket';

export type ConnectionState = 'connecting' | 'connected' | 'reconnecting' | 'closed';

/**
 * How the last loss of the connection was got over. `connected`: there was none; `resuming`: it is under way; `resumed`:
 * everything went on where it was; `restarted`: it could not, a `reset` came and what the server has comes anew.
 */
export type ResumeState = 'connected' | 'resuming' | 'resumed' | 'restarted';

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
  /**
   * Whether messages that are not stored yet outlast the page, in IndexedDB, readable by every page of this origin.
   * Default: true. `false`: they live as long as the page.
   */
  outbox?: boolean;
  /** How many entries of the log come at first; `older` reads those before. Default: all, at most 1,000. */
  history?: number;
  /**
   * Milliseconds from the last answer of the server to the decision that the path is dead, while something is
   * unanswered. The client then moves to the other transport. Default: 5000.
   */
  heartbeat?: number;
  /**
   * When a connection is replaced by a new one, without an interruption: after so many streams or bytes received, each
   * at least 1. Default: 2000 streams, 64 MiB.
   */
  renewAfter?: { streams?: number; bytes?: number };
}

export interface Status {
  state: ConnectionState;
  /** What carries the frames; `null` unless connected. */
  transport: Transport | null;
  /**
   * Why it is `closed` (`unauthorized`, `refused`, `done`) or `reconnecting` (`lost`, `silent`, `resume`, `suspended`:
   * the browser has put the page to sleep).
   */
  reason: string | null;
  /** When it is tried again, in milliseconds since 1970. */
  retry_at: number | null;
  /** `null` before the first connection, and once it is closed. */
  resume: ResumeState | null;
}

export interface Session {
  session_id: string;
  user_id: string;
  connection_id: string;
  /** `images`: it looks at them. */
  models: { id: string; name: string; images?: boolean }[];
  model_id?: string;
  name?: string;
  state?: 'active' | 'ended';
  help_requested?: boolean;
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
  /** What this person has said of it. */
  rating?: 'up' | 'down';
  /** The model that wrote it, or its end. */
  model_id: string | null;
  /** Which model wrote which part; empty when one wrote all of it. */
  segments: Segment[];
  timestamp: string;
  /** Why models gave no more of it, for the client that asked. */
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
  /** The session that it goes to, whatever is open by now. */
  readonly session_id: string | null;
  /** Whose it is; it is never sent as another's. */
  readonly user_id: string | null;
  readonly seq: number | null;
  readonly turn_id: string | null;
  /** Why it `failed`. Such a message is kept until `retry` or `discard`. */
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

/** A wish for another reply. No `message` events tell of it. */
export interface Regeneration extends Message {
  /** The turn whose reply is not wanted. */
  readonly replaces: string;
}

export interface Turn {
  readonly id: string;
  /** The turn whose reply it gives anew, where this client asked for that. */
  readonly replaces: string | null;
  readonly seq: number | null;
  readonly model_id: string | null;
  /** As far as it was seen. */
  readonly segments: Segment[];
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

/** A reply as it is read from the log, with what `reply` tells of one. */
export type StoredReply = Reply & { type: 'ai_response'; session_id: string; content: string; offset: 0 };

/** Entries before those that were shown, in the log's order. */
export interface Older {
  entries: (Entry | StoredReply)[];
  /** Whether there are still older ones. */
  more: boolean;
}

/** What changed of a session. Whoever is told of a session for the first time is told of a new one. */
export interface SessionUpdate {
  session_id: string;
  name?: string;
  model_id?: string;
  state?: 'active' | 'ended';
  help_requested?: boolean;
  last_activity?: string;
  message_count?: number;
  deleted?: true;
}

export interface TypingUpdate {
  state: 'start' | 'stop';
  sender: 'user' | 'admin';
  session_id: string;
}

/** What has become of a rating. A `failed` one is forgotten: the one before it stands. */
export interface RatingUpdate {
  /** Of the reply. */
  seq: number;
  rating: 'up' | 'down';
  state: 'queued' | 'sent' | 'accepted' | 'failed';
  error: ChatboxError | null;
}

export interface Piece {
  turn_id: string;
  seq: number | null;
  /** UTF-8 byte offset of `content` in the turn's text. */
  offset: number;
  content: string;
  /** The model that writes; of the mark between two models' texts, the one before it. */
  model_id: string | null;
}

/** From which UTF-8 byte on which model wrote a reply. */
export interface Segment {
  offset: number;
  model_id: string;
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
  /** A message of this client is new, was restored from an earlier page, or has got another state. */
  message: CustomEvent<Message>;
  /** A reply has started, or its model is still silent. */
  turn: CustomEvent<Turn>;
  /** New text of a reply; pieces of a turn neither overlap nor leave a hole. */
  piece: CustomEvent<Piece>;
  /** A reply has ended, or was read from the log. */
  reply: CustomEvent<Reply>;
  /** A rating of this client is new, was restored from an earlier page, or has got another state. */
  rating: CustomEvent<RatingUpdate>;
  /** What changed of the session, on any device. `deleted` is followed by `reset`. */
  update: CustomEvent<SessionUpdate>;
  /** Another participant types, or has stopped. */
  typing: CustomEvent<TypingUpdate>;
  /** A request was refused, or something went wrong that the client deals with by itself. */
  error: CustomEvent<ErrorBody & { re?: string; turn_id?: string }>;
}

/** A failure with a code: one of the contract's, or `CLOSED`, `CONNECTION_LOST`, `TIMEOUT`. */
export class ChatboxError extends Error {
  constructor(code: string, message: string, more?: object);
  readonly code: string;
  readonly retry_after?: number;
  /** The HTTP status, where the failure is that of an HTTP request. */
  readonly status?: number;
  readonly request_id?: string;
}

/** A conversation with chatbox. One instance holds one session at a time. */
export class Chatbox extends EventTarget {
  constructor(options?: Options);
  readonly status: Status;
  /** `null` before the first connection. */
  readonly session: Session | null;
  /** Whether the log begins before what was shown. */
  readonly hasOlder: boolean;
  /** Connects, and stays connected until `close`. Rejects when there is no point in trying on. */
  connect(): Promise<Session>;
  /**
   * Says something. Returns at once; without a connection the message waits, over a reload too. Throws when 100 wait,
   * or were refused and are not dealt with, already.
   */
  send(content: string, options?: { id?: string }): Message;
  /** Sends a refused message once more, under the same id. */
  retry(message: Message): Message;
  /** Forgets a message that waits or was refused. `false`: it is on its way, or stored. */
  discard(message: Message): boolean;
  /** Asks for another reply to the last message; its `seq` is the new reply's. Rejects with `TURN_NOT_FOUND` else. */
  regenerate(turn_id: string): Regeneration;
  /** Ends a running turn. Rejects with `TURN_NOT_FOUND` when it has ended already. */
  stop(turn_id: string): Promise<object>;
  /**
   * Says what the reply at `seq` was worth; the last word counts. Without a connection it waits, over a reload too, as
   * a message does. Resolves when it is stored; rejects when it is refused, or when the client is closed: then the
   * next page sends it.
   */
  rate(seq: number, rating: 'up' | 'down', comment?: string): Promise<object>;
  /** Chooses the model that answers from now on. */
  selectModel(model_id: string): Promise<object>;
  /** To be called with `true` at each key, with `false` when the text is gone. Sends little of it. */
  typing(on: boolean): void;
  /** Reads entries before those that were shown: `limit` of 1 to 200, 50 unless given. */
  older(limit?: number): Promise<Older>;
  /** Moves to another session. Messages that wait for the present one are sent to the present one. */
  open(request: { session_id?: string; new?: boolean; reopen?: boolean }): Promise<Session>;
  /** The list of this person's sessions, with the same token. To be connected, and closed, on its own. */
  watchUser(): SessionList;
  /** Closes for good. Messages that are not stored fail with `CLOSED`; they are sent by another tab or the next page. */
  close(): void;
  addEventListener<K extends keyof ChatboxEventMap>(
    type: K,
    listener: (event: ChatboxEventMap[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

/** A session as lists show it. */
export interface SessionMeta {
  id: string;
  user_id: string;
  name: string;
  model_id: string;
  state: 'active' | 'ended';
  last_activity: string;
  message_count: number;
  admin_assisted: boolean;
  help_requested: boolean;
  start_time: string;
  end_time?: string;
  is_active: boolean;
  duration: number;
  total_tokens: number;
  max_response_time: number;
  avg_response_time: number;
  assisting_admin_name?: string;
  share_token?: string;
  /** Text around what was searched for. */
  match?: string;
}

export interface SessionPage {
  sessions: SessionMeta[];
  user_id: string;
  count: number;
  limit: number;
  /** Absent from a search. */
  total?: number;
  next_cursor?: string;
  truncated: boolean;
}

export interface Share {
  share_token: string;
  url: string;
  expires_at?: string;
  created_at: string;
}

export interface SessionListEventMap {
  /** The first page, after each connection. */
  list: CustomEvent<SessionPage>;
  /** What changed of a session, on any device. */
  update: CustomEvent<SessionUpdate>;
  status: CustomEvent<Status>;
  error: CustomEvent<ErrorBody>;
}

/** A person's sessions, live. Its methods reject with a `ChatboxError`. They need no connection, only a token. */
export class SessionList extends EventTarget {
  constructor(options?: Options);
  readonly status: Status;
  /** Watches until `close`. Resolves when the watch has begun. */
  connect(): Promise<void>;
  close(): void;
  /** One page, latest activity first: `limit` of 1 to 100, 50 unless given. */
  list(wish?: { limit?: number; cursor?: string; q?: string }): Promise<SessionPage>;
  search(q: string, wish?: { limit?: number; cursor?: string }): Promise<SessionPage>;
  create(wish?: { name?: string; model_id?: string }): Promise<SessionMeta>;
  rename(session_id: string, name: string): Promise<SessionMeta>;
  /** It can be read from then on, and not be written in. */
  end(session_id: string): Promise<object>;
  /** Deletes it with everything in it. */
  remove(session_id: string): Promise<null>;
  /** Makes a public link to the conversation as it is now; it ends after `expires_in` seconds, if given. */
  share(session_id: string, wish?: { expires_in?: number }): Promise<Share>;
  /** Revokes all links of the session. */
  unshare(session_id: string): Promise<null>;
  addEventListener<K extends keyof SessionListEventMap>(
    type: K,
    listener: (event: SessionListEventMap[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}
