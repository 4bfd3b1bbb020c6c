//! The tasks of a bus: one watches the connection, one hands orders to it, and one listens to each topic.

use std::{
    convert::Infallible,
    error::Error as _,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectErrorKind, PublishErrorKind, Subscriber, connection::State};
use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::oneshot,
    task::unconstrained,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{error, warn};

use super::{
    Shared,
    link::{self, Error, TOPIC_MESSAGES},
    outbox::Order,
    wire::Carried,
};
use crate::bus::{Config, Topic};

/// How often the connection is looked at when the library tells nothing: what it tells may be lost.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often the log says why there is no connection.
const DIAGNOSIS_INTERVAL: Duration = Duration::from_secs(60);

/// How long finding that out may take.
const DIAGNOSIS_DEADLINE: Duration = Duration::from_secs(5);

/// How long what was written may take to leave.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// Messages after which a listener lets others have their turn.
const TURN_MESSAGES: usize = 64;

/// Notes what becomes of the connection, until the bus is closed.
pub(super) async fn watch(shared: Arc<Shared>, client: Client, config: Config) {
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut connections, mut said) = (0, None::<Instant>);
    loop {
        tokio::select! {
            biased;
            () = shared.closed.cancelled() => return,
            () = shared.changed.notified() => {}
            _ = look.tick() => {}
        }
        let made = client.statistics().connects.load(Ordering::Relaxed);
        // The state follows the count a little later.
        if made != connections {
            (connections, said) = (made, None);
            shared.arrived();
        } else if client.connection_state() != State::Connected && shared.connected() {
            shared.left();
        }
        let due = said.is_none_or(|said| said.elapsed() >= DIAGNOSIS_INTERVAL);
        if due && !shared.connected() && shared.failed.swap(false, Ordering::SeqCst) {
            said = Some(Instant::now());
            tokio::select! {
                biased;
                () = shared.closed.cancelled() => return,
                () = diagnose(&config) => {}
            }
        }
    }
}

/// Says why there is no connection: what the library tells of its attempts leaves out the cause.
async fn diagnose(config: &Config) {
    let Ok(Err(err)) = timeout(DIAGNOSIS_DEADLINE, link::probe(config)).await else { return };
    let cause = &err as &dyn std::error::Error;
    let login = [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication];
    match &err {
        Error::Refused(refused) if login.contains(&refused.kind()) => {
            error!(error = cause, "bus refuses the login of this node, which tries again");
        }
        _ => warn!(error = cause, "bus is not reached yet, this node tries again"),
    }
}

/// Hands orders to the connection, until the bus is closed. It may wait for as long as the connection does.
pub(super) async fn pump(shared: Arc<Shared>, client: Client) {
    loop {
        let carried_out = async {
            let order = shared.outbox.next().await;
            shared.carry_out(&client, order).await;
        };
        tokio::select! {
            biased;
            () = shared.closed.cancelled() => break,
            () = carried_out => {}
        }
    }
    shared.interests.end();
}

impl Shared {
    async fn carry_out(self: &Arc<Self>, client: &Client, order: Order) {
        match order {
            Order::Publish { .. } if !self.connected() => self.dropped("disconnected", 1),
            Order::Publish { subject, payload, rev } => {
                let bytes = payload.len();
                let sent = match client.publish(subject.clone(), payload).await {
                    // A server may accept less than others do.
                    Err(err) if err.kind() == PublishErrorKind::MaxPayloadExceeded => {
                        self.dropped("large", 1);
                        let hint = Carried::<(), ()>::Compare { rev }.encode(self.origin).unwrap_or_default();
                        client.publish(subject, hint).await
                    }
                    sent => sent,
                };
                if let Err(err) = sent {
                    warn!(error = &err as &dyn std::error::Error, "event does not leave");
                    return self.dropped("disconnected", 1);
                }
                self.metrics.bus_published_total.inc();
                self.metrics.bus_bytes_total.with_label_values(&["out"]).inc_by(bytes.try_into().unwrap_or_default());
            }
            Order::Listen(topic) => self.listen(client, topic).await,
            Order::ListenToAll => {
                for topic in self.interests.lacking() {
                    self.listen(client, topic).await;
                }
            }
            Order::Compare => {
                // Subscriptions are written before what is flushed here.
                if timeout(FLUSH_DEADLINE, client.flush()).await.is_ok() {
                    self.local.lag_all();
                }
            }
            Order::Leave(left) => {
                if let Err(err) = client.flush().await {
                    warn!(reason = err.source(), "bus does not take the last events");
                }
                if left.send(()).is_err() {
                    warn!("bus took the last events too late");
                }
            }
        }
    }

    /// Starts to listen, unless the last subscriber has gone or there is no connection: a new one makes up for that.
    async fn listen(self: &Arc<Self>, client: &Client, topic: Topic) {
        if !self.connected() || !self.interests.lacks(&topic) {
            return;
        }
        match client.subscribe(self.subjects.of(&topic)).await {
            Ok(subscriber) => {
                let (listening, ended) = oneshot::channel();
                if self.interests.listen(&topic, listening) {
                    self.tasks.spawn(listener(Arc::clone(self), topic, subscriber, ended));
                }
            }
            Err(err) => warn!(error = &err as &dyn std::error::Error, "topic is not listened to"),
        }
    }
}

/// Takes what other nodes publish, until the last subscriber has gone. The connection drops what a listener is too
/// slow for, which happens only while [`TOPIC_MESSAGES`] wait: whoever has taken so many without a pause compares.
async fn listener(
    shared: Arc<Shared>,
    topic: Topic,
    mut subscriber: Subscriber,
    mut ended: oneshot::Receiver<Infallible>,
) {
    shared.metrics.bus_topics.inc();
    let mut taken = 0;
    loop {
        // Not `now_or_never` alone: what the runtime's budget holds back would look like a pause.
        let message = match unconstrained(subscriber.next()).now_or_never() {
            Some(message) => message,
            None => {
                taken = 0;
                tokio::select! {
                    biased;
                    _ = &mut ended => break,
                    message = subscriber.next() => message,
                }
            }
        };
        // What comes after the end is the next listener's.
        let over = ended.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        let Some(message) = message.filter(|_| !over) else { break };
        shared.receive(&topic, &message.payload);
        taken += 1;
        if taken % TOPIC_MESSAGES == 0 {
            shared.local.lag(&topic);
        }
        if taken % TURN_MESSAGES == 0 {
            tokio::task::yield_now().await;
        }
    }
    shared.metrics.bus_topics.dec();
}
