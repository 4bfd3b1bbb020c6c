//! Everything that is tested over real sockets and files, as one binary. A line for each module says what belongs
//! there.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cognitive_complexity,
    clippy::print_stdout,
    clippy::string_slice,
    reason = "the harness fails loudly"
)]

mod auth; // which tokens are accepted, and which are not
mod bad_input; // what is refused, how it is told, and that nothing else is harmed
mod bench; // the load generator: each scenario in small, what it refuses, how it ends
mod bus; // every bus's contract: who is told what, in which order, and what a loss looks like
mod chain; // failing models: retries, fallback, continuation; what a model is sent; which one answers
mod chat; // one message, end to end, over both transports
mod cli; // the binary: commands, output, exit codes
mod client; // the native client: resume, outbox, races, renewals, refusals
mod client_link; // the native client's links: frames over both transports, certificates, ends
mod cluster; // three nodes as processes on one database and one bus: what is lost when parts of it fail
mod config; // file, environment and flags together; what refuses the start
mod contract; // the published descriptions of routes and frames, held against the server
mod copies; // datagrams beside the streams of a path that loses packets
mod crash; // the end of a node in the middle of answers, and what only looks like one
mod deployments; // the Dockerfile, the compose file and the annotated configuration, held against the program
mod drain; // the end of a server, wanted or not
mod endurance; // memory over many reconnects and exchanges
mod hardening; // lines of the hardening checklist that no other module proves: ownership, floods, panics, churn, logs
mod harness; // servers, clients and providers that tests start
mod identity; // tokens on live connections
mod lab; // the link of the loss lab, and a short run on it
mod leases; // what a node says of a turn while its lease holds, and when it does not
mod llm; // providers against a scripted server that speaks the vendor's format
mod moderation; // texts that a hook of the operator's refuses, before they are stored or when they are whole
mod nodes; // several nodes over one store and one bus: viewers, stops, histories and limits across them
mod ops; // pages, discovery, sign-in, health and metrics over HTTP
mod predecessor; // the predecessor's clients over their WebSocket, with their exact frames
mod predecessor_http; // the predecessor's HTTP clients: their paths, and the fields that they read
mod quic; // the QUIC listener alone: WebTransport sessions, HTTP/3 requests, admission, drain
mod regenerate; // answering the last message once more, and rating replies
mod schedules; // random schedules of devices, cuts and restarts: nothing is lost, doubled or reordered
mod sealing; // encryption at rest: keys that are missing, changed, rotated; values that were changed
mod sessions; // conversations over HTTP: lists, search, pages, names, their end
mod sessions_export; // conversations as files
mod sessions_names; // names that a model gives
mod sessions_share; // links: what they show, for how long, and to whom
mod slow; // clients that read slowly or not at all
mod store; // every store's contract, and the file's own promises
mod terminal; // `chatbox chat` without a terminal: lines, JSON, exit codes
mod tickets; // session tickets on TCP
mod tidy; // the repository's own rules, checked on its text
mod tls; // TLS on TCP: pieces, changed keys, large bodies, ends, what is broken
mod usage; // what models took for a user: counted, shown, bounded by the day
mod watches; // what watchers of sessions and lists are told beside the log: models, help, typing, lists
mod websocket; // TCP listeners and the WebSocket upgrade: refusals, deadlines, limits, drain
mod webtransport; // what streams mean to a chat: their ends, their credit
