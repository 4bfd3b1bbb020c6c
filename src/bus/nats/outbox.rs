//! What waits to be handed to the connection: in order, bounded, and nobody waits to add to it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use crate::bus::Topic;

/// Payloads that wait. More are not taken.
const PAYLOADS_MAX: usize = 4096;

/// Bytes of payload that wait. More are not taken.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// Orders that wait, of all kinds. Topics beyond them are found by a look at all.
const ORDERS_MAX: usize = 65_536;

/// One thing to do with the connection.
#[derive(Debug)]
pub(super) enum Order {
    Publish {
        subject: String,
        payload: Bytes,
        /// of the session, with what the payload tells
        rev: u64,
    },
    Listen(Topic),
    /// listen to whatever nobody listens to yet
    ListenToAll,
    /// a connection is new: have every subscriber compare once the server has heard of all subscriptions
    Compare,
    /// everything before it has left
    Leave(oneshot::Sender<()>),
}

/// A queue for one task. A topic is listened to before what is published after its subscription leaves, so an answer
/// to what one publishes finds its listener.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    orders: VecDeque<Order>,
    /// what of them is to be published, and its bytes
    payloads: usize,
    bytes: usize,
    /// an order to listen found the queue full
    listen_to_all: bool,
}

impl Outbox {
    /// Adds an order; `false` when the queue is full and the order was to publish.
    pub(super) fn add(&self, order: Order) -> bool {
        let mut queue = self.lock();
        match &order {
            Order::Publish { payload, .. } => {
                if queue.payloads >= PAYLOADS_MAX || queue.bytes + payload.len() > BYTES_MAX {
                    return false;
                }
                queue.payloads += 1;
                queue.bytes += payload.len();
                queue.orders.push_back(order);
            }
            Order::Listen(_) if queue.orders.len() >= ORDERS_MAX => queue.listen_to_all = true,
            // The others are few: at most one of each for a connection.
            Order::Listen(_) | Order::ListenToAll | Order::Compare | Order::Leave(_) => queue.orders.push_back(order),
        }
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Waits for the next order. Cancel safe.
    pub(super) async fn next(&self) -> Order {
        loop {
            if let Some(order) = self.take() {
                return order;
            }
            self.filled.notified().await;
        }
    }

    /// Drops what was to be published to a connection that is gone; how many.
    pub(super) fn forget(&self) -> usize {
        let mut queue = self.lock();
        queue.orders.retain(|order| !matches!(order, Order::Publish { .. }));
        queue.bytes = 0;
        std::mem::take(&mut queue.payloads)
    }

    fn take(&self) -> Option<Order> {
        let mut queue = self.lock();
        let order = queue.orders.pop_front();
        match &order {
            Some(Order::Publish { payload, .. }) => {
                queue.payloads -= 1;
                queue.bytes -= payload.len();
            }
            None if std::mem::take(&mut queue.listen_to_all) => return Some(Order::ListenToAll),
            _ => {}
        }
        order
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::NodeId;

    fn publish(bytes: usize) -> Order {
        Order::Publish { subject: String::new(), payload: vec![0; bytes].into(), rev: 0 }
    }

    fn listen() -> Order {
        Order::Listen(Topic::Node(NodeId::new()))
    }

    #[test]
    fn a_full_queue_takes_no_more_and_forgets_no_subscription() {
        let outbox = Outbox::default();
        assert!((0..PAYLOADS_MAX).all(|_| outbox.add(publish(1))));
        assert!(!outbox.add(publish(1)));
        assert!((PAYLOADS_MAX..ORDERS_MAX + 2).all(|_| outbox.add(listen())));
        let mut taken = Vec::new();
        while let Some(order) = outbox.take() {
            taken.push(order);
        }
        assert_eq!(taken.len(), ORDERS_MAX + 1);
        assert!(matches!(taken.pop(), Some(Order::ListenToAll)));
        assert!(outbox.add(publish(1)));
    }

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let outbox = Outbox::default();
        assert!(outbox.add(publish(BYTES_MAX)));
        assert!(!outbox.add(publish(1)));
        assert!(outbox.add(listen()));
        assert_eq!(outbox.forget(), 1);
        assert!(outbox.add(publish(BYTES_MAX)));
        assert!(matches!(outbox.take(), Some(Order::Listen(_))));
        assert!(matches!(outbox.take(), Some(Order::Publish { .. })));
        assert!(outbox.add(publish(1)));
    }
}
