//! What connections may take.

use std::time::Duration;

/// What the connections of an [`HttpServer`](crate::HttpServer) may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at a time. The next waits to be accepted. Default: 10,000.
    pub connections: u32,
    /// Connections at a time from one address, or from one network of 64 bits in IPv6. One more is closed at once. Raise it
    /// behind a proxy. Default: 256.
    pub connections_per_address: u32,
    /// Requests in hand at a time from one address or network, until their answers are sent. One more is answered with 503.
    /// Below a route's `concurrency`, it keeps one client from holding all of it. Raise it behind a proxy. Default: 256.
    pub requests_per_address: u32,
    /// Time for the head of a request, from the first to the last byte, and time without a request on an open connection of
    /// HTTP/1. Then the connection is closed. Default: 15 seconds.
    pub head: Duration,
    /// Time in which a client takes none of what is sent to it. Then the connection is closed. A client of HTTP/2 that takes
    /// none of one answer, or less than 16 KiB of one that has more, loses it after once or twice that time, and its connection
    /// takes no more requests, as if it were too old. Default: 30 seconds.
    pub write_idle: Duration,
    /// Age at which a connection takes no more requests, and is closed after those in hand, or when `drain` has passed. No body
    /// is sent for longer than both together. Default: ten minutes.
    pub age: Duration,
    /// Time for the requests in hand when the server stops or a connection is too old. Then they are broken off. Default: 30
    /// seconds.
    pub drain: Duration,
    /// Requests at a time on a connection of HTTP/2. Default: 32, half of a route's `concurrency`.
    pub streams: u32,
    /// Requests of a connection that the client takes back before their answer. At one more the connection is closed. Default:
    /// 100.
    pub resets: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_address: 256,
            requests_per_address: 256,
            head: Duration::from_secs(15),
            write_idle: Duration::from_secs(30),
            age: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            streams: 32,
            resets: 100,
        }
    }
}
