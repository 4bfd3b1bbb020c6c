//! Copies of small frames as datagrams: when they come, what they carry, and that nothing is shown twice or out of
//! order with them.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    Client, Server, Via,
    client::{Lines, PATIENCE, sha256},
    id,
    lossy::Lossy,
};

const MOMENT: Duration = Duration::from_millis(150);

/// A message's frame, and a copy of it, take packets of such a size; acknowledgements and probes of the path do not.
const MESSAGE: std::ops::RangeInclusive<usize> = 200..=1100;

async fn server() -> Server {
    Server::with(|config| {
        config.sessions.model_names = false;
        let demo = config.llm.providers.get_mut("demo").expect("the demo");
        demo.pace = Some(Duration::from_millis(2));
    })
    .await
}

fn sent(server: &Server) -> u64 {
    server.metrics.datagrams_sent_total.get()
}

/// Has the path lose packets until the server copies what it writes.
async fn lose_until_copied(server: &Server, path: &Lossy, client: &mut Client) {
    path.lose_one_in(4);
    for _ in 0..200 {
        client.say("count to 2").await.reply().await;
        if sent(server) > 0 {
            path.lose_one_in(0);
            return;
        }
    }
    panic!("no copies after {:?} datagrams", path.counts());
}

/// A client as the contract wants it: it takes from a copy what comes next, and drops what it holds.
#[derive(Default)]
struct Shown {
    /// every place of the log, in the order in which it was shown: a message's text, or the end of a reply
    log: Vec<(u64, String)>,
    /// places of this client's own messages
    own: Vec<u64>,
    texts: BTreeMap<String, String>,
    running: BTreeMap<String, u64>,
    ended: Vec<String>,
    used: usize,
    dropped: usize,
}

impl Shown {
    fn next_seq(&self) -> u64 {
        let mut next = 1;
        while self.log.iter().map(|(seq, _)| seq).chain(&self.own).chain(self.running.values()).any(|seq| *seq == next)
        {
            next += 1;
        }
        next
    }

    /// Takes a frame of a stream, or a copy. Whether it showed something.
    fn take(&mut self, frame: &Value, copy: bool) -> bool {
        let turn = frame["turn_id"].as_str().unwrap_or_default().to_owned();
        let seq = frame["seq"].as_u64().unwrap_or_default();
        let fresh = match frame["type"].as_str().unwrap() {
            "accepted" if self.own.contains(&seq) => false,
            "accepted" => {
                self.own.push(seq);
                true
            }
            "user_message" if self.log.iter().any(|(shown, _)| *shown == seq) || copy && seq != self.next_seq() => {
                false
            }
            "user_message" => {
                self.log.push((seq, frame["content"].as_str().unwrap().to_owned()));
                true
            }
            "loading" if self.texts.contains_key(&turn) || copy && seq != self.next_seq() => false,
            "loading" => {
                self.running.insert(turn.clone(), seq);
                self.texts.insert(turn, String::new());
                true
            }
            "ai_response" if self.ended.contains(&turn) || !self.texts.contains_key(&turn) => {
                assert!(copy || self.ended.contains(&turn), "a stream begins in the middle: {frame}");
                false
            }
            "ai_response" => self.text(frame, &turn, copy),
            _ => false,
        };
        if copy {
            *(if fresh { &mut self.used } else { &mut self.dropped }) += 1;
        }
        fresh
    }

    fn text(&mut self, frame: &Value, turn: &str, copy: bool) -> bool {
        let text = self.texts.get_mut(turn).unwrap();
        let offset = usize::try_from(frame["offset"].as_u64().unwrap()).unwrap();
        if frame["metadata"]["done"] == "true" {
            if text.len() as u64 != frame["length"].as_u64().unwrap() {
                assert!(copy, "text is missing on a stream: {frame}");
                return false;
            }
            assert_eq!(frame["sha256"], sha256(text));
            let seq = self.running.remove(turn).unwrap();
            assert_eq!(frame["seq"], seq);
            self.log.push((seq, text.clone()));
            self.ended.push(turn.to_owned());
            return true;
        }
        assert!(copy || offset <= text.len(), "a hole on a stream: {frame}");
        let content = frame["content"].as_str().unwrap();
        let Some(new) = text.len().checked_sub(offset).and_then(|known| content.get(known..)) else { return false };
        text.push_str(new);
        !new.is_empty()
    }

    /// Takes from the stream and from the datagrams until so many replies have ended.
    async fn until(&mut self, ended: usize, client: &Client, lines: &mut Lines) {
        while self.ended.len() < ended {
            tokio::select! {
                frame = lines.next() => drop(self.take(&frame.expect("the stream goes on"), false)),
                Some(copy) = client.copy(PATIENCE) => drop(self.take(&copy, true)),
            }
        }
    }
}

fn counted(to: usize) -> String {
    (1..=to).map(|line| format!("{line}. line\n")).collect()
}

/// The stream is stuck for a round trip and more; the copy is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_shows_a_message_whose_packet_is_lost() {
    let server = server().await;
    let (path, through) = Lossy::before(&server).await;
    let (mut far, mut watch, _status) =
        Client::attached(&through, Via::WebTransport, "ann", json!({"datagrams": true})).await;
    lose_until_copied(&server, &path, &mut far).await;
    let (mut near, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    path.delay(Duration::from_millis(60));
    // While the machine stands still, what is late and what is early become due together.
    let (messages, mut first) = (8, 0);
    for number in 0..messages {
        while far.copy(MOMENT).await.is_some() {}
        path.lose_next(MESSAGE);
        let content = format!("what is lost comes again, {number}");
        let mut exchange = near.say(&content).await;
        exchange.until("accepted").await;
        let copy = loop {
            let copy = far.copy(PATIENCE).await.expect("a copy");
            if copy["type"] == "user_message" && copy["content"] == content {
                break copy;
            }
        };
        assert!(!path.waits(), "its packet was lost");
        let mut early = false;
        while let Some(frame) = watch.soon(Duration::from_millis(20)).await {
            early |= frame == copy;
        }
        if !early {
            first += 1;
            let shown = loop {
                let frame = watch.until("user_message").await;
                if frame["content"] == content {
                    break frame;
                }
            };
            assert_eq!(shown, copy, "it is the same frame");
        }
        exchange.reply().await;
    }
    println!("of {messages} messages whose packet was lost, {first} were shown by their copy first");
    assert!(first > 0, "the stream was first {messages} times");
}

/// One datagram makes good the loss of the pieces before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_of_a_piece_carries_the_text_before_it() {
    let server = server().await;
    let (path, through) = Lossy::before(&server).await;
    let (mut client, _watch, _status) =
        Client::attached(&through, Via::WebTransport, "ann", json!({"datagrams": true})).await;
    lose_until_copied(&server, &path, &mut client).await;
    let text = counted(300);
    // Text that is old when its copy is due is not copied: while the machine stands still, the last piece becomes so.
    let mut whole = false;
    for _ in 0..3 {
        let mut exchange = client.say("count to 300").await;
        let turn_id = exchange.until("loading").await["turn_id"].clone();
        let (mut ends, mut longest) = (Vec::new(), 0);
        while ends.last() != Some(&text.len())
            && let Some(copy) = client.copy(Duration::from_secs(2)).await
        {
            if copy["turn_id"] != turn_id || copy["metadata"]["done"] != "false" {
                continue;
            }
            let offset = usize::try_from(copy["offset"].as_u64().unwrap()).unwrap();
            let content = copy["content"].as_str().unwrap();
            assert_eq!(text.get(offset..offset + content.len()), Some(content));
            assert!(copy.to_string().len() <= 1024, "{copy}");
            ends.push(offset + content.len());
            longest = longest.max(content.len());
        }
        assert!(ends.is_sorted(), "{ends:?}");
        assert!(longest > 100, "{longest}");
        assert!(ends.len() < 600, "fewer copies than pieces: {}", ends.len());
        assert_eq!(exchange.reply().await.0, text);
        whole |= ends.last() == Some(&text.len());
        if whole {
            break;
        }
    }
    assert!(whole, "the last piece is copied too");
}

/// On the exchange that asked and on the watch of another device: each loses packets of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_shown_twice_or_out_of_order() {
    let server = server().await;
    let (path, through) = Lossy::before(&server).await;
    let (mut near, _watch, _status) = Client::attached(&server, Via::WebSocket, "ann", json!({})).await;
    let (far, mut watch, _status) =
        Client::attached(&through, Via::WebTransport, "ann", json!({"datagrams": true, "after_seq": 0})).await;
    path.delay(Duration::from_millis(10));
    path.lose_one_in(8);
    let mut shown = Shown::default();
    let mut said = Vec::new();
    while shown.used < 10 || said.len() < 12 {
        let lines = 20 + said.len();
        let mut exchange = near.say(&format!("count to {lines}")).await;
        said.push(lines);
        shown.until(said.len(), &far, &mut watch).await;
        exchange.reply().await;
        assert!(said.len() < 100, "{} copies used, {} dropped", shown.used, shown.dropped);
    }
    let expected: Vec<_> = said
        .iter()
        .flat_map(|lines| [format!("count to {lines}"), counted(*lines)])
        .zip(1..)
        .map(|(text, seq)| (seq, text))
        .collect();
    assert_eq!(shown.log, expected);
    assert!(shown.dropped > 0, "copies of what the stream had brought");
    assert!(path.counts().1 > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchange_goes_on_with_copies() {
    let server = server().await;
    let (path, through) = Lossy::before(&server).await;
    let (mut client, _watch, _status) =
        Client::attached(&through, Via::WebTransport, "ann", json!({"datagrams": true})).await;
    lose_until_copied(&server, &path, &mut client).await;
    path.delay(Duration::from_millis(10));
    path.lose_one_in(8);
    let mut shown = Shown::default();
    while shown.used < 10 {
        let mut exchange = client.say("count to 100").await;
        shown.until(shown.ended.len() + 1, &client, &mut exchange).await;
        assert!(shown.ended.len() < 50, "{} copies used, {} dropped", shown.used, shown.dropped);
    }
    let texts: Vec<_> = shown.log.iter().map(|(_, text)| text.clone()).collect();
    assert_eq!(texts, vec![counted(100); shown.ended.len()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_not_ask_gets_none() {
    let server = server().await;
    let (path, through) = Lossy::before(&server).await;
    let (mut client, _watch, _status) = Client::attached(&through, Via::WebTransport, "ann", json!({})).await;
    path.lose_one_in(4);
    for _ in 0..10 {
        assert_eq!(client.say("count to 30").await.reply().await.0, counted(30));
    }
    assert!(path.counts().1 > 10, "{:?}", path.counts());
    assert!(client.copy(MOMENT).await.is_none());
    assert_eq!(sent(&server), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_that_loses_nothing_gets_none() {
    let server = server().await;
    let (mut client, mut watch, _status) =
        Client::attached(&server, Via::WebTransport, "ann", json!({"datagrams": true})).await;
    for _ in 0..3 {
        assert_eq!(client.say("count to 30").await.reply().await.0, counted(30));
    }
    watch.send(json!({"type": "ping", "id": id()})).await;
    watch.until("pong").await;
    assert!(client.copy(MOMENT).await.is_none());
    assert_eq!(sent(&server), 0);
}
