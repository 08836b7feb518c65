//! A client's connection: what was read ahead of it, and how long it may take nothing.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use airssys_wasm_limits::later;
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// What can be ended so that the other side takes it for broken off.
pub(super) trait Abort {
    /// Makes its end, which comes next, such an end.
    fn abort(&self);
}

impl Abort for TcpStream {
    fn abort(&self) {
        _ = self.set_zero_linger();
    }
}

/// Whether a connection is to be broken off rather than closed. A client of HTTP/1.0 takes all that comes before the end of
/// the connection for the body.
#[derive(Debug, Clone, Default)]
pub(super) struct Cut(Arc<AtomicBool>);

impl Cut {
    pub(super) fn set(&self, cut: bool) {
        self.0.store(cut, Ordering::Relaxed);
    }
}

/// A connection whose client must take what is sent to it.
pub(super) struct ClientIo<S: Abort> {
    inner: S,
    cut: Cut,
    /// Read before anybody knew the protocol.
    ahead: BytesMut,
    write_idle: Duration,
    /// Since the client takes nothing. Made when it first does so.
    stalled: Option<Pin<Box<Sleep>>>,
    is_stalled: bool,
    /// Since our side is closed.
    lingering: Option<Lingering>,
}

/// What a client still sends after our last word is read and thrown away for a while. To close at once would make the system
/// tell the client that the connection is broken, and the client would not read what it was told.
struct Lingering {
    until: Pin<Box<Sleep>>,
    left: usize,
}

/// How long, and how many bytes.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 1 << 20);

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What a client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

impl<S: Abort> Drop for ClientIo<S> {
    fn drop(&mut self) {
        // Once our side is closed, the client has been told of an end that is one.
        if self.lingering.is_none() && self.cut.0.load(Ordering::Relaxed) {
            self.inner.abort();
        }
    }
}

impl<S: Abort + AsyncRead + Unpin> ClientIo<S> {
    pub(super) fn new(inner: S, write_idle: Duration) -> Self {
        let (ahead, cut) = (BytesMut::new(), Cut::default());
        Self { inner, cut, ahead, write_idle, stalled: None, is_stalled: false, lingering: None }
    }

    /// Says how it is to end.
    pub(super) fn cut(&self) -> Cut {
        self.cut.clone()
    }

    /// Reads until it is clear what the client speaks. Nothing at all is HTTP/1.
    pub(super) async fn protocol(&mut self) -> io::Result<Protocol> {
        while self.ahead.len() < PREFACE.len() {
            if !PREFACE.starts_with(&self.ahead) {
                return Ok(Protocol::Http1);
            }
            if self.inner.read_buf(&mut self.ahead).await? == 0 {
                return Ok(Protocol::Http1);
            }
        }
        Ok(if self.ahead.starts_with(PREFACE) { Protocol::Http2 } else { Protocol::Http1 })
    }
}

impl<S: Abort> ClientIo<S> {
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_stalled = false;
            return polled;
        }
        let write_idle = self.write_idle;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_idle)));
        if !self.is_stalled {
            self.is_stalled = true;
            timer.as_mut().reset(later(Instant::now(), write_idle));
        }
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Abort + AsyncRead + Unpin> AsyncRead for ClientIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buffer);
        }
        let len = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..len]);
        this.ahead.advance(len);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Abort + AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            let polled = Pin::new(&mut this.inner).poll_shutdown(cx);
            ready!(this.watch(cx, polled))?;
        }
        let (time, bytes) = LINGER;
        let lingering = this.lingering.get_or_insert_with(|| Lingering { until: Box::pin(sleep(time)), left: bytes });
        let mut thrown_away = [0; 8 << 10];
        loop {
            if lingering.until.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut thrown_away);
            let read = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer));
            let bytes = buffer.filled().len();
            lingering.left = lingering.left.saturating_sub(bytes);
            if read.is_err() || bytes == 0 || lingering.left == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    impl Abort for DuplexStream {
        fn abort(&self) {}
    }

    async fn spoken(bytes: &[&[u8]]) -> (Protocol, Vec<u8>) {
        let (mut client, server) = duplex(100);
        let mut io = ClientIo::new(server, Duration::from_secs(1));
        let write = async {
            for bytes in bytes {
                client.write_all(bytes).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        let (protocol, ()) = tokio::join!(io.protocol(), write);
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.unwrap();
        (protocol.unwrap(), all)
    }

    #[tokio::test]
    async fn what_was_read_ahead_is_read_again() {
        let http1: &[u8] = b"GET / HTTP/1.1\r\n";
        assert_eq!(spoken(&[http1]).await, (Protocol::Http1, http1.to_vec()));
        assert_eq!(spoken(&[b"PRI ", b"/ HTTP"]).await, (Protocol::Http1, b"PRI / HTTP".to_vec()));
        assert_eq!(spoken(&[b"PRI *"]).await, (Protocol::Http1, b"PRI *".to_vec()));
        assert_eq!(spoken(&[]).await, (Protocol::Http1, Vec::new()));
        let http2 = [PREFACE, b"more"].concat();
        assert_eq!(spoken(&[&http2[..10], &http2[10..]]).await, (Protocol::Http2, http2.clone()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (mut client, server) = duplex(10);
        let mut io = ClientIo::new(server, Duration::from_secs(30));
        let began = Instant::now();
        let writing = async {
            let error = io.write_all(&[0; 100]).await.unwrap_err();
            (error.kind(), began.elapsed().as_secs())
        };
        let reading = async {
            // As long as it takes something now and then, it is not.
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                client.read_exact(&mut [0; 10]).await.unwrap();
            }
        };
        let (given_up, ()) = tokio::join!(writing, reading);
        assert_eq!(given_up, (io::ErrorKind::TimedOut, 100 + 30));
    }

    #[tokio::test]
    async fn a_client_may_take_nothing_for_ever() {
        let (mut client, server) = duplex(10);
        let mut io = ClientIo::new(server, Duration::MAX);
        let mut writing = Box::pin(io.write_all(&[0; 20]));
        assert!(futures_util::poll!(&mut writing).is_pending());
        client.read_exact(&mut [0; 10]).await.unwrap();
        writing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_still_sends_is_read_for_a_while_so_that_it_reads_the_answer() {
        let shut_down = async |mut client: DuplexStream, server, bytes: usize, goes: bool| {
            let mut io = ClientIo::new(server, Duration::from_secs(30));
            io.write_all(b"no").await.unwrap();
            let began = Instant::now();
            let sending = async {
                for _ in 0..bytes >> 10 {
                    if client.write_all(&[0; 1 << 10]).await.is_err() {
                        break;
                    }
                }
                if goes {
                    drop(client);
                    return;
                }
                std::future::pending().await
            };
            tokio::select! {
                ended = io.shutdown() => ended.unwrap(),
                () = async { sending.await; std::future::pending().await } => {}
            }
            began.elapsed()
        };
        let pair = || duplex(16 << 10);
        // One that goes by itself is not waited for; one that says nothing is, for so long; one that sends and sends, for so much.
        let (client, server) = pair();
        assert_eq!(shut_down(client, server, 1 << 19, true).await, Duration::ZERO);
        let (client, server) = pair();
        assert_eq!(shut_down(client, server, 1 << 10, false).await, LINGER.0);
        let (client, server) = pair();
        assert_eq!(shut_down(client, server, 1 << 22, false).await, Duration::ZERO);
    }
}
