//! Every metric, declared once, with its help text. Labels come from closed sets, never from input.

use std::sync::Arc;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:tt $([$($label:literal),+])?;)+) => {
        /// The metrics of one server. Fields are named as Prometheus sees them, without `chatbox_`.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $name: metrics!(@type $kind),)+
        }

        impl Metrics {
            /// Registers every metric with a registry of its own.
            #[must_use]
            pub fn new() -> Arc<Self> {
                let registry = Registry::new();
                $(let $name = metrics!(@make $kind, concat!("chatbox_", stringify!($name)),
                    concat!($($help),+).trim(), [$($($label),+)?]);
                registry.register(Box::new($name.clone())).expect("every name is declared once");)+
                Arc::new(Self { registry, $($name),+ })
            }
        }
    };
    (@type counter) => { IntCounter };
    (@type counters) => { IntCounterVec };
    (@type gauge) => { IntGauge };
    (@type gauges) => { IntGaugeVec };
    (@type histogram) => { Histogram };
    (@type histograms) => { HistogramVec };
    (@make counter, $name:expr, $help:expr, []) => { IntCounter::new($name, $help).expect(VALID) };
    (@make gauge, $name:expr, $help:expr, []) => { IntGauge::new($name, $help).expect(VALID) };
    (@make histogram, $name:expr, $help:expr, []) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets(BUCKETS.to_vec())).expect(VALID)
    };
    (@make counters, $name:expr, $help:expr, $labels:expr) => {
        IntCounterVec::new(Opts::new($name, $help), &$labels).expect(VALID)
    };
    (@make gauges, $name:expr, $help:expr, $labels:expr) => {
        IntGaugeVec::new(Opts::new($name, $help), &$labels).expect(VALID)
    };
    (@make histograms, $name:expr, $help:expr, $labels:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets(BUCKETS.to_vec()), &$labels).expect(VALID)
    };
}

const VALID: &str = "the declaration below is valid";

/// From half a millisecond, a commit, to two minutes, a turn's deadline.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0, 120.0];

metrics! {
    /// WebTransport sessions and WebSockets that are open.
    connections_open: gauges["transport"];
    /// Connections that ended, by close code.
    connections_closed_total: counters["transport", "code"];
    /// Connections and requests that were refused before they became one, by reason.
    refusals_total: counters["reason"];
    /// QUIC connections that are open, WebTransport or not.
    quic_connections_open: gauge;
    /// Streams that ended before their header or frame was complete.
    streams_broken_total: counters["reason"];
    /// Frames from clients, by type.
    frames_received_total: counters["type"];
    /// Frames that were made of events; those that many receivers share were made once.
    frames_encoded_total: counter;
    /// Frames to clients.
    frames_sent_total: counters["transport"];
    /// Copies of frames that left as datagrams, while their path loses packets.
    datagrams_sent_total: counter;
    /// Copies of frames that did not leave, by reason.
    datagrams_dropped_total: counters["reason"];
    /// Error frames, by code.
    errors_total: counters["code"];
    /// Panics that were contained in their task.
    panics_total: counter;
    /// HTTP requests, by route template, method and status.
    http_requests_total: counters["route", "method", "status"];
    /// Time to answer an HTTP request.
    http_request_duration_seconds: histograms["route"];
    /// Entries that were stored.
    entries_stored_total: counter;
    /// Requests whose id had been applied before.
    duplicates_total: counter;
    /// Time of a store call, by method, the wait for its commit included.
    store_duration_seconds: histograms["operation"];
    /// Store calls that failed, by method.
    store_errors_total: counters["operation"];
    /// Writes that shared one commit.
    store_commit_writes: histogram;
    /// Values that were sealed with the current key in place of another one, or should have been, by outcome.
    store_resealed_total: counters["outcome"];
    /// Whether values are stored as plain text, because no encryption key is configured.
    store_plain_text: gauge;
    /// Events that a subscriber was too slow for.
    bus_lagged_total: counter;
    /// Whether other nodes are reached over the network: 1 they are, 0 they are not.
    bus_connected: gauge;
    /// Topics that are listened to over the network.
    bus_topics: gauge;
    /// Events and words that were given to the network.
    bus_published_total: counter;
    /// Events and words that came from other nodes.
    bus_received_total: counter;
    /// Bytes of events and words on the network, by direction.
    bus_bytes_total: counters["direction"];
    /// Events and words that did not cross the network, or not as they were, by reason.
    bus_dropped_total: counters["reason"];
    /// Turns that are running on this node.
    turns_running: gauge;
    /// Turns that ended, by state.
    turns_ended_total: counters["model", "state"];
    /// Turns that this node gave up, as the store had not answered for as long as their lease holds.
    turn_leases_lapsed_total: counter;
    /// Turns that were ended in the store, as the node that runs them did not do it when it was asked to.
    turn_stops_unanswered_total: counter;
    /// Reads of the log of a turn that runs on another node, for whoever watches it here.
    turn_log_reads_total: counter;
    /// Other nodes that were heard within the last seconds.
    cluster_nodes: gauge;
    /// Time from the start of a turn to its first text.
    turn_first_chunk_seconds: histograms["model"];
    /// Time from the start of a turn to its end.
    turn_duration_seconds: histograms["model"];
    /// Texts that a moderation hook was asked about: messages and replies, by what came of it.
    moderations_total: counters["type", "outcome"];
    /// Sessions that their model was asked to name, by outcome.
    session_names_total: counters["outcome"];
    /// Tokens, by direction.
    tokens_total: counters["model", "direction"];
    /// Requests to models, by outcome; `left_alone` are those that were not made.
    model_requests_total: counters["model", "outcome"];
    /// Time from a request to the model's first text.
    model_first_text_seconds: histograms["model"];
    /// Time from a request to its end.
    model_request_duration_seconds: histograms["model"];
    /// Requests that were repeated with the same model.
    model_retries_total: counters["model"];
    /// Answers that another model gave, or went on with, in place of this one.
    model_fallbacks_total: counters["model"];
    /// What the requests took, in millionths of the configured currency.
    model_cost_millionths_total: counters["model"];
    /// Whether a model is asked: 0 it is, 1 it is left alone, 2 one request tries it.
    model_breaker_state: gauges["model"];
    /// Certificate reloads, by outcome.
    certificate_reloads_total: counters["outcome"];
}

impl Metrics {
    /// Has the text show one more, which is counted elsewhere.
    ///
    /// # Errors
    /// When there is one of its name.
    pub fn add(&self, collector: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(collector)
    }

    /// Everything in the Prometheus text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(error = &error as &dyn std::error::Error, "metrics do not encode");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}
