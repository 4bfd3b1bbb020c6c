//! chatbox: a real-time chat server for people, language models and staff, QUIC and HTTP/3 first.
//!
//! This page is the map. It says what the parts are, what must always hold, and how one message travels. What
//! clients may rely on is the protocol: frames in [`protocol`], routes in [`http`].
//!
//! # Parts
//!
//! ```text
//! main -> cli -> server ───────────── wires everything, imports all below
//!                  │
//!        transport, http ──────────── QUIC, WebTransport, HTTP/3, TCP, WebSocket; pages and API
//!                  │
//!             connection ──────────── frames in, answers out; identity; knows no transport
//!                  │
//!               router ────────────── the use cases and the turns; knows no frame's shape
//!            ┌─────┼──────┐
//!          store  bus    llm ──────── the truth; the hint; the models
//!            └─────┴──────┘
//!                 chat ────────────── the vocabulary; no I/O, no clock
//! ```
//!
//! `client` stands beside `server`: the same frames from the other side, over a stack that is not the server's.
//!
//! `tests/suite/tidy.rs` holds the import rules, file lengths and names against the source.
//!
//! # What always holds
//!
//! - **An entry exists when [`store::Store::append`] has returned.** Only then is it acknowledged.
//! - **The bus may drop.** Every change of a session raises its `rev` by one and tells it. A subscriber that is told a
//!   `rev` which is not the next one reads the store; so does, within `sessions.compare_interval`, one that the store's
//!   `rev` is ahead of. Nothing is repaired from the bus, and a lost last event is found like any other.
//! - **A turn belongs to its session, not to a connection.** The router owns it; connections watch it.
//! - **A log has no gaps.** Entries are numbered 1, 2, 3, …; a running reply has its place from its start, and every
//!   turn has exactly one reply, an empty one if it ended before it began. So a watcher that holds n and sees n + 2
//!   knows what it misses.
//! - **A turn ends once**, by the compare-and-set [`store::Store::end_turn`], whoever asks.
//! - **A watcher is a cursor.** It keeps a byte offset into the one shared text of the running turn. A slow client
//!   gets larger pieces later; its queue holds at most [`bus::QUEUE_EVENTS`] shared events.
//! - **The cap is the transport's.** `limits.streams` is QUIC stream credit; on a WebSocket it is the same number of
//!   exchanges and watches. Nothing is dropped.
//! - **Everything has an end**: every wait for a peer a deadline, every queue, map and body a limit, every task an
//!   owner.
//!
//! # One message
//!
//! 1. `transport::quic` takes a permit and accepts; `transport::demux` peels WebTransport streams off the
//!    connection and leaves the rest to h3. An extended CONNECT is checked (method, protocol, path, origin, number
//!    of connections) before it is accepted. Until the first `attach` has succeeded the client may open one stream.
//! 2. The transport hands the first line to [`connection::Connection::handle`]: `attach`. [`auth::Verifier`] makes a
//!    principal of the token, [`router::Router::watch`] subscribes, then reads the store, then drops what came twice.
//!    The stream credit rises, then `connection_status` is written.
//! 3. `user_message` opens an exchange. [`router::Router::send`]: limit, then `append`, which checks the owner and
//!    stores the message, its turn and, if no other turn is queued or running, the turn's start, in one commit. Then
//!    `accepted` to the sender, and the event to the other watchers.
//! 4. `router::turn` runs the turn: what was said, [`llm::Models::answer`], each piece to the watchers at once, text to
//!    the turn's log in batches (250 ms or 4 KiB at risk). [`llm::chain`] fits the conversation to each model that it
//!    asks, asks again, and has another model answer, or go on, in place of one that fails.
//! 5. The end fixes text, length, hash, who wrote which part, and what each request took, and tells every watcher. Then
//!    the session's next queued turn starts.
//! 6. After a crash [`router::Router::recover`] ends abandoned turns as `interrupted` with what their log holds: at the
//!    next start, or on any other node once the lease has run out. One whose log is empty is asked again as a new turn,
//!    in the commit that ends it; queued turns start.
//!
//! # Decisions
//!
//! - **Our own WebTransport layer.** h3-webtransport 0.1 lets one half-sent header block a connection, answers an
//!   invalid CONNECT with a session, and has no close capsule. `transport::demux` implements h3's transport traits
//!   over quinn, with h3-quinn's send half; its receive half is ours because h3-quinn 0.0.10 panics when a stream
//!   is stopped while it is read.
//! - **The seam between transport and chat is data.** A transport calls `handle` with bytes and gets a pull stream of
//!   encoded frames ([`connection::Answers`]). No trait is needed, a frame is encoded once, and back-pressure is the
//!   stream not being polled.
//! - **A named session that is not the caller's is `NOT_FOUND`**, in `attach` and `user_message` alike, whether it
//!   exists or not. It never falls back to another session: a message must not land where its author does not look.
//! - **`detach` is answered with `accepted`**, so that a WebSocket client knows when the watch's place is free.
//! - **The replay after `attach` begins a running turn with `loading`**, which names its place in the log.
//! - **Pages, scripts and discovery do not count against `limits.public_per_minute`**: they are bytes in memory, and a
//!   page of a dozen modules would use up the budget of an office in a minute.
//! - **A turn that ends while it is queued gets an empty reply** at the end of the log, so that each turn has one end
//!   that every watcher sees.
//! - **`listen.ops` answers until the very end of a drain**, on a lifecycle of its own: a node that drains is alive
//!   and not ready, and a probe that finds no listener would have it killed in the middle.
//! - **`sqlite:` alone means `chatbox.db` in `data_dir`**, and is the default: whoever moves the data moves all of it.
//! - **Replies above 128 KiB come without `html`**, and those above 64 KiB as pieces even when they are replayed: a
//!   frame must stay far below `limits.frame_bytes` whatever JSON makes of the text.
//! - **A frame may come twice, the second time as a datagram.** Where a path loses packets, small frames that mean the
//!   same however often they come are copied some milliseconds later ([`protocol::Repeat`]). The client asks for it
//!   (`attach.datagrams`), takes from a copy what comes next, and drops the rest; streams depend on no copy.
//! - **SETTINGS leave with the server's first flight**, before the client has proved its keys: they are the same for
//!   everyone, and a CONNECT comes one round trip earlier. Nothing else is said, and nothing heard, before that.
//! - **Session tickets for QUIC are sealed with `cluster_secret` and the certificate**, those for TCP with keys of the
//!   process: with TLS 1.2 a ticket's key opens what was recorded.
//! - **The bus's queue, the hand-over of inline answers and empty stream queues take no memory while they are empty**,
//!   which is why they are not tokio's channels: an idle connection is what the server has most of.
//! - **What is stored is also started.** A message is appended, told and answered in a task of the router's: a client
//!   that leaves in the middle of its request does not leave a stored message without its turn.
//! - **A session that ends stops its turns**, also when it ends to make room for another one; deleting ends it first.
//! - **`attach` takes `last`**: without `after_seq`, the last so many entries are shown. A page opens a conversation of
//!   any length with one screen of it.
//! - **The first message's name is told as `session_update`** to watches of the session too, which show it.
//! - **The id of a `regenerate` is kept with its reply**, which is what makes a repeated one known.
//! - **A list is compared as far as its 100 latest sessions**: a change of an older one that the bus loses is seen when
//!   the list is read again.
//! - **A client of the predecessor has one watch, which moves** to the session that it writes in: its own of that name,
//!   made active again, else the one that it watches. A made-up or foreign id is neither stored nor looked into.
//! - **`help_request` flags the session** and tells its watchers; nobody is called yet.
//! - **Number casts are linted, `as` is not**: `&err as &dyn Error` is how logs get an error with its causes.
//! - **A link is a share's id and a seal from `cluster_secret`**, so that a copy of the database opens nothing and a
//!   forged token costs no look-up. It shows what had settled when it was made.
//! - **A deletion ends the session first**, waits for its running reply to store its end, and then deletes: whoever
//!   asked gets a last frame.
//! - **Routes are a table**, from which requests are routed and `openapi.json` is made, with schemas that schemars
//!   derives from the types. aide infers statuses from handlers' types, of which ours have one; utoipa has schemas of
//!   its own, which AsyncAPI cannot use.
//! - **Answers that hold a whole log are written as it is read.** Their length has no limit, and memory does.
//! - **A WebSocket's bytes pass through buffers of the thread.** The library would keep one for each direction in each
//!   socket, and clear it before each read. Short text frames are read there; all others are the library's.
//! - **TLS on TCP is rustls without its buffers.** With them, each connection would keep 4 KiB for the next record for as
//!   long as it lives. Records pass through the thread's too, and only one that came in part is kept (`transport::tcp::tls`).
//! - **An event carries the frame that its watchers share.** The first of them on a node encodes it; the author's own
//!   devices, which see the message's id, share another one. An exchange's frames name their request and are its own.
//! - **Waits that rarely end are polled when they were woken**, and not whenever their task runs: a wait for the drain
//!   takes a lock that all connections wait on.
//! - **What a delivery touches lies together**: the waits of a WebSocket's task ring on one board, a watch's frames are
//!   polled by hand, and one waiting event needs no memory of its own. With a thousand watchers each line of memory is
//!   a cache miss: of 46 in a delivery 24 are left.
//! - **Ids begin with their moment** (UUID version 7, RFC 9562), those of requests too, and rows lie by them: a commit costs
//!   the pages that it changes, and what comes together lies together. One index alone is sorted by sessions.
//! - **A stream's credit comes back with its answer**, and not when the client has acknowledged the end: that would be one
//!   more packet each way for every exchange. One stream may be ahead in this way, so that nobody gains by silence.
//! - **No QPACK streams are opened.** Without a dynamic table they carry nothing (RFC 9204, section 4.2), and an idle
//!   session would keep their state.
//! - **The mark between two models' texts is part of the text**, so that every client, export and hash has the same one.
//!   The code block before it is closed, and whoever goes on is asked to open it again: nobody can tell beforehand
//!   whether it would do so by itself.
//! - **A request that a provider accepted is charged**, with our own count where it reports none, also when it was stopped
//!   or broke off. What it refused, or was never sent, is not. A crash of the node loses what its running turns took.
//! - **A breaker counts what tells of the provider**: refused keys, faults, silence. A refused or withheld prompt proves that
//!   it works. While one request tries a provider again, the others go on to the next model.
//! - **`/readyz` stays 200 while models are down**, and says which: other nodes are no better off.
//! - **What a session has said stays in memory between its turns**, within `sessions.history_bytes`: settled entries do
//!   not change, and messages and replies pass by here. What is not kept is read, and nothing else.
//! - **A turn is announced on its node before it is stored.** As nothing is read between a message and the model's
//!   request, whoever stops the turn in that moment has to be seen by its runner.
//! - **A congestion window does not fall below ten packets by single losses.** On a lossy path CUBIC makes an answer wait
//!   for acknowledgements that the link does not need; quinn's BBR does not share a bottleneck (`transport::congestion`).
//! - **A budget is asked about before a message is stored, and charged when its turn ends**: no answer is cut, and what was
//!   admitted before the cap was reached goes beyond it. A request that was welcome once is answered as it was.
//! - **A reply that a hook refuses is taken back, not held back**: people read it while it is written, and a hook has to see
//!   it whole. Its turn ends `failed` with no text, in one write, so that nobody who comes later sees it.
//! - **What requests took outlives their session without its owner**: the rows say what was spent on which model, and the
//!   user's days what was theirs.
//! - **The Rust client has two layers.** [`client::Link`] carries frames and has no policy, which is what a load
//!   generator needs; [`client::Client`] is one task that owns everything that changes, so that resume, outbox and
//!   copies are decided in one place and in one order.
//! - **A WebSocket that won is tried first for ten minutes**, with WebTransport 1.5 s later beside it: where UDP is
//!   blocked nobody waits twice, and where it is not any longer, nobody is stuck.
//! - **Each QUIC connection sends by system calls of its own**, as quinn does. `sendmmsg` for the packets of many, 64 at a
//!   time, took 2 % off an event to 1,000 sessions: not worth a socket of our own.
//! - **The bench measures from outside**: a child process of the same binary, read through `/proc`, so that what is
//!   measured is what is shipped; the load has other cores. Requests at a fixed rate are charged from when they were due.
//!   Its server ends with its input, which ends with the bench, also when that is killed.
//! - **Aims of speed that are missed are told beside the numbers**, with what the same takes without us: the README has a
//!   peer that only stores, and one that only writes to another socket than it read from. The first takes more than the
//!   aim for a stored message, the second nearly all of that for a relayed one. So durability was not traded for the one,
//!   nor who may do it and who sees it for the other.
//! - **A provider's first deadline lasts until its first text.** Servers ping while they are stuck, so bytes prove nothing;
//!   a model that thinks longer gets a longer `first_byte_timeout`.
//! - **An error of a vendor is told by its code, never by its text**, which may quote the key or the prompt.
//! - **A request that broke off is not one that was never sent**: it may be billed, so only the latter, and what the vendor
//!   says it refused for now, are asked again.
//! - **An answer of Dify that is dropped is stopped by a request**: it works on when its client hangs up. A drain waits for
//!   those requests, 5 s at most.
//! - **MongoDB's session document is the log's head and the only commit point.** It holds all that a write needs to know,
//!   is compared and set by its version, and carries the rows that the commit implies until they are written: whoever
//!   finds them there writes them first. So no transaction is needed, a standalone server will do, and a crash in between
//!   leaves nothing half done ([`store::mongo`]). Those rows are written beside the next commits; the log of a turn that
//!   ends soon, never.
//! - **Writes that lost against another node are tried again all at once.** One after the other, they would lose again.
//! - **Nodes go by the database's clock**, which each compares with its own monotonic one. A wall clock that is wrong is
//!   not noticed.
//! - **A node speaks for a turn only while its lease holds**, counted from before the write was sent that renewed it. Then
//!   it cuts the provider's request and fixes no text.
//! - **A turn is stopped by the node that runs it**, which has all of its text. If it has not within 300 ms, the turn is
//!   ended without it.
//! - **A turn of another node is one shared text here**, fed by its log and by what is told, however many watch.
//! - **What nodes say to each other are words, not events**: nothing that shows events can be handed one.
//! - **A subscription does not wait for the bus**, which keeps nothing while it is disconnected; a new connection makes
//!   every subscriber compare with the store. A node without its bus stays ready.
//! - **Limits count over all nodes by what they tell each other**, as debts: over time all nodes admit what one does.
//! - **A store says what it is sealed with**: a row for each key id, with something that only that key opens. A start with
//!   other keys is refused without reading rows, and once all is sealed a plain value is an error.
//! - **Rotation is asked for, and begins again from the first row**: a value of the current key costs a look.
//! - **The log is written by a thread of its own.** Whoever reads standard error may stop: a terminal that is held, a
//!   collector that hangs. Lines that find no room are dropped and counted; nothing else waits.
//! - **The signal turns readiness off, the drain follows `drain.delay` later.**
//! - **The first frame of a connection that is no `attach` closes it**, after its one error: code 1 for another
//!   request, code 5 for what is no request.

pub mod auth;
pub mod bench;
pub mod bus;
pub mod chat;
pub mod cli;
pub mod client;
mod clock;
pub mod config;
pub mod connection;
pub mod http;
pub mod lifecycle;
pub mod limit;
pub mod llm;
pub mod markdown;
pub mod metrics;
pub mod protocol;
pub mod router;
pub mod server;
pub mod store;
pub mod transport;
mod woken;
