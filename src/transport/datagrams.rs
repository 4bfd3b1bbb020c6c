//! HTTP datagrams of one WebTransport session (RFC 9297, section 2.1), to the client only, and what its path loses.

use std::time::Duration;

use bytes::BytesMut;

use super::wire;

/// Sends datagrams of one session.
pub struct Datagrams {
    quic_conn: quinn::Connection,
    /// the id of the CONNECT stream divided by four
    quarter: u64,
    /// room in quinn's queue while it is empty
    room: usize,
}

/// Packets of a connection since its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packets {
    /// that were sent
    pub sent: u64,
    /// of these, that were found lost
    pub lost: u64,
}

impl Datagrams {
    /// For the session whose CONNECT stream has this id, before anything was sent on it.
    pub(super) fn new(quic_conn: quinn::Connection, session: u64) -> Self {
        let room = quic_conn.datagram_send_buffer_space();
        Self { quic_conn, quarter: session / 4, room }
    }

    /// Largest payload at the moment, in bytes; `None` when the client takes no datagrams.
    #[must_use]
    pub fn payload_bytes_max(&self) -> Option<usize> {
        self.quic_conn.max_datagram_size()?.checked_sub(self.header().len())
    }

    /// Whether some wait because the path takes no more: they would go before what waits on streams.
    #[must_use]
    pub fn waiting(&self) -> bool {
        self.quic_conn.datagram_send_buffer_space() < self.room
    }

    /// Queues one. Whether it was queued: `false` when it is larger than [`Self::payload_bytes_max`], or the connection
    /// is lost. It may be lost on its way all the same.
    pub fn send(&self, payload: &[u8]) -> bool {
        let mut datagram = self.header();
        datagram.extend_from_slice(payload);
        self.quic_conn.send_datagram(datagram.freeze()).is_ok()
    }

    /// What the path takes in one round trip, in bytes, and how long that is.
    #[must_use]
    pub fn window(&self) -> (u64, Duration) {
        let path = self.quic_conn.stats().path;
        (path.cwnd, path.rtt)
    }

    /// What was sent on the connection, and lost, up to now.
    #[must_use]
    pub fn packets(&self) -> Packets {
        let path = self.quic_conn.stats().path;
        Packets { sent: path.sent_packets, lost: path.lost_packets }
    }

    fn header(&self) -> BytesMut {
        let mut header = BytesMut::with_capacity(8);
        wire::put_varint(&mut header, self.quarter);
        header
    }
}
