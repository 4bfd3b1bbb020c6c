//! What chatbox is held to: its rows divided by those of a peer of the same run.

use chatbox::bench::report::{Comparison, Row};

/// A row, by scenario and transport.
type Place = (&'static str, &'static str);

/// What is divided.
#[derive(Clone, Copy)]
enum Measure {
    Cpu,
    Bytes,
}

/// One ratio with its two bars.
struct Bar {
    name: &'static str,
    measure: Measure,
    /// of chatbox
    of: Place,
    /// of the peer
    over: Place,
    peer: &'static str,
    must: Option<f64>,
    moonshot: Option<f64>,
}

const fn bar(name: &'static str, measure: Measure, of: Place, over: Place, peer: &'static str) -> Bar {
    Bar { name, measure, of, over, peer, must: None, moonshot: None }
}

impl Bar {
    const fn must(self, must: f64) -> Self {
        Self { must: Some(must), ..self }
    }

    const fn moonshot(self, moonshot: f64) -> Self {
        Self { moonshot: Some(moonshot), ..self }
    }
}

const RELAY: Place = ("relay", "websocket");
const BETWEEN: Place = ("between", "websocket");
const STORED: Place = ("stored", "websocket");
const RELAY_QUIC: Place = ("relay", "webtransport");
const STREAMS: Place = ("streams", "webtransport");
const STORED_QUIC: Place = ("stored", "webtransport");
const FANOUT: Place = ("fanout", "websocket");
const FANOUT_QUIC: Place = ("fanout", "webtransport");
const PLAIN: Place = ("connections", "websocket");
const TLS: Place = ("connections", "websocket tls");
const QUIC: Place = ("connections", "webtransport");
const WTQ: &str = "web-transport-quinn";

/// The bars of issue 4, and ratios without one that explain them.
const BARS: [Bar; 24] = [
    bar("relayed frame, WebSocket", Measure::Cpu, RELAY, RELAY, "fastwebsockets").must(1.5).moonshot(1.2),
    bar("relayed frame, WebSocket", Measure::Cpu, RELAY, RELAY, "NATS").must(0.6).moonshot(0.4),
    bar("relayed frame, WebSocket", Measure::Cpu, RELAY, RELAY, "Socket.IO").must(0.4),
    bar("relayed frame, WebSocket", Measure::Cpu, RELAY, RELAY, "uWebSockets.js"),
    bar("relayed frame, WebSocket; peer between two sockets", Measure::Cpu, RELAY, BETWEEN, "fastwebsockets"),
    bar("relayed frame, WebSocket; peer between two sockets", Measure::Cpu, RELAY, BETWEEN, "NATS"),
    bar("stored message, WebSocket", Measure::Cpu, STORED, RELAY, "fastwebsockets").must(5.0).moonshot(3.0),
    bar("stored message, WebSocket", Measure::Cpu, STORED, STORED, "SQLite"),
    bar("relayed frame, WebTransport", Measure::Cpu, RELAY_QUIC, STREAMS, WTQ).must(1.5).moonshot(1.0),
    bar("relayed frame, WebTransport; peer on one stream", Measure::Cpu, RELAY_QUIC, RELAY_QUIC, WTQ),
    bar("ping on a stream of its own", Measure::Cpu, STREAMS, STREAMS, WTQ).must(1.5).moonshot(1.0),
    bar("stored message on a stream of its own", Measure::Cpu, STORED_QUIC, STREAMS, WTQ),
    bar("fan-out, WebSocket", Measure::Cpu, FANOUT, FANOUT, "uWebSockets.js").must(1.2).moonshot(1.0),
    bar("fan-out, WebSocket", Measure::Cpu, FANOUT, FANOUT, "axum"),
    bar("fan-out, WebSocket", Measure::Cpu, FANOUT, FANOUT, "NATS").must(0.7),
    bar("fan-out, WebSocket", Measure::Cpu, FANOUT, FANOUT, "Socket.IO").must(0.5),
    bar("fan-out, WebTransport", Measure::Cpu, FANOUT_QUIC, FANOUT_QUIC, WTQ).must(0.8).moonshot(0.45),
    bar("idle connection, WebSocket", Measure::Bytes, PLAIN, PLAIN, "axum").must(0.08),
    bar("idle connection, WebSocket", Measure::Bytes, PLAIN, PLAIN, "Node ws").must(1.2).moonshot(0.5),
    bar("idle connection, WebSocket and TLS", Measure::Bytes, TLS, TLS, "tungstenite-tls").must(0.6).moonshot(0.35),
    bar("idle connection, WebTransport", Measure::Bytes, QUIC, QUIC, WTQ).must(45_000.0 / 43_454.0).moonshot(0.58),
    bar("set-up, WebSocket and TLS", Measure::Cpu, TLS, TLS, "tungstenite-tls"),
    bar("set-up, WebTransport", Measure::Cpu, QUIC, QUIC, WTQ).must(1.0).moonshot(0.6),
    bar("set-up, WebTransport; peer over TLS", Measure::Cpu, QUIC, TLS, "tungstenite-tls").must(2.6),
];

/// The ratios that the rows allow; one whose peer did not take part is left out.
pub(crate) fn compare(rows: &[Row]) -> Vec<Comparison> {
    let row = |place: Place, server: &str| {
        rows.iter().find(|row| (row.scenario.as_str(), row.transport.as_str()) == place && row.server == server)
    };
    let ratio = |bar: &Bar| {
        let value = |row: &Row| match bar.measure {
            Measure::Cpu => row.cpu_us,
            Measure::Bytes => row.bytes,
        };
        Some(value(row(bar.of, "chatbox")?)? / value(row(bar.over, bar.peer)?).filter(|value| *value > 0.0)?)
    };
    let comparisons = BARS.iter().filter_map(|bar| {
        Some(Comparison {
            name: bar.name.to_owned(),
            peer: bar.peer.to_owned(),
            ratio: ratio(bar)?,
            must: bar.must,
            moonshot: bar.moonshot,
        })
    });
    comparisons.collect()
}
