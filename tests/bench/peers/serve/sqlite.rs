//! The least that a stored message and its answer take: fastwebsockets, and one thread that writes to SQLite. The message,
//! its turn and the place of its reply are one commit, the reply's text and the end of the turn another; whatever waits
//! shares a commit. Nobody is asked who they are, no frame is read, nothing is routed, counted or known again.

use std::{path::Path, sync::mpsc};

use fastwebsockets::{FragmentCollector, Frame, OpCode, Payload, upgrade};
use http_body_util::Empty;
use hyper::{Request, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rusqlite::{Connection, params};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Writes that share a commit at most, as in chatbox.
const COMMIT_WRITES_MAX: usize = 512;

/// Jobs that wait: each connection has one at most.
const JOBS_MAX: usize = 4096;

/// Pages as chatbox has them.
const TABLES: &str = "PRAGMA page_size = 2048; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
    CREATE TABLE entries (session_id BLOB, seq INTEGER, id BLOB, content BLOB, PRIMARY KEY (session_id, seq)) STRICT;
    CREATE TABLE turns (id BLOB PRIMARY KEY, session_id BLOB, message_seq INTEGER, state TEXT) STRICT, WITHOUT ROWID;";

/// One write, and who waits until it is durable.
struct Job {
    session: Uuid,
    seq: u64,
    turn: Uuid,
    /// of the message; without it, the turn ends
    message: Option<Vec<u8>>,
    durable: oneshot::Sender<()>,
}

pub(super) async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let connection = Connection::open(Path::new("peer.db"))?;
    connection.execute_batch(TABLES)?;
    let (queue, jobs) = mpsc::sync_channel(JOBS_MAX);
    let writer = std::thread::spawn(move || write(&connection, &jobs));
    let tasks = TaskTracker::new();
    while !writer.is_finished() {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (sockets, queue) = (tasks.clone(), queue.clone());
        tasks.spawn(async move {
            let answer = service_fn(|mut request: Request<Incoming>| {
                let upgraded = upgrade::upgrade(&mut request);
                std::future::ready(upgraded.map(|(response, upgraded)| {
                    sockets.spawn(converse(upgraded, queue.clone()));
                    response.map(|_| Empty::<Bytes>::new())
                }))
            });
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades().await
        });
    }
    anyhow::bail!("the writer has ended")
}

/// Stores what comes, says so, and answers it.
async fn converse(upgraded: upgrade::UpgradeFut, queue: mpsc::SyncSender<Job>) -> anyhow::Result<()> {
    let mut socket = FragmentCollector::new(upgraded.await?);
    let session = Uuid::now_v7();
    for seq in (1..).step_by(2) {
        let frame = socket.read_frame().await?;
        if frame.opcode != OpCode::Text {
            return Ok(());
        }
        let turn = Uuid::now_v7();
        for (message, kind) in [(Some(frame.payload.to_vec()), "accepted"), (None, "ai_response")] {
            let (durable, stored) = oneshot::channel();
            queue.send(Job { session, seq, turn, message, durable })?;
            stored.await?;
            let said = format!(
                "{{\"type\":\"{kind}\",\"session_id\":\"{session}\",\"turn_id\":\"{turn}\",\"seq\":{seq},\
                \"metadata\":{{\"done\":\"true\"}}}}"
            );
            socket.write_frame(Frame::text(Payload::Owned(said.into_bytes()))).await?;
        }
    }
    Ok(())
}

/// Makes jobs durable until nobody sends any.
fn write(connection: &Connection, jobs: &mpsc::Receiver<Job>) -> anyhow::Result<()> {
    let (mut begin, mut commit) = (connection.prepare("BEGIN IMMEDIATE")?, connection.prepare("COMMIT")?);
    let mut entry = connection.prepare("INSERT INTO entries VALUES (?1, ?2, ?3, ?4)")?;
    let mut turn = connection.prepare("INSERT INTO turns VALUES (?1, ?2, ?3, 'running')")?;
    let mut text = connection.prepare("UPDATE entries SET content = ?3 WHERE session_id = ?1 AND seq = ?2")?;
    let mut end = connection.prepare("UPDATE turns SET state = 'complete' WHERE id = ?1")?;
    let mut batch = Vec::new();
    while let Ok(first) = jobs.recv() {
        batch.push(first);
        batch.extend(jobs.try_iter().take(COMMIT_WRITES_MAX - 1));
        begin.execute([])?;
        for Job { session, seq, turn: id, message, .. } in &batch {
            match message {
                Some(message) => {
                    entry.execute(params![session.as_bytes(), seq, Uuid::now_v7().as_bytes(), message])?;
                    turn.execute(params![id.as_bytes(), session.as_bytes(), seq])?;
                    let none: Option<&[u8]> = None;
                    entry.execute(params![session.as_bytes(), seq + 1, Uuid::now_v7().as_bytes(), none])?;
                }
                None => {
                    text.execute(params![session.as_bytes(), seq + 1, crate::frames::ANSWER.as_bytes()])?;
                    end.execute([id.as_bytes()])?;
                }
            }
        }
        commit.execute([])?;
        for job in batch.drain(..) {
            // Who has gone meanwhile is not told.
            let _gone = job.durable.send(());
        }
    }
    Ok(())
}
