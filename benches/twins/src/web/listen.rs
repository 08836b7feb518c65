//! A server of hyper's on loopback.

use std::{convert::Infallible, error::Error, net::SocketAddr};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{Either, Full, StreamBody};
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::HEAD;

/// Bytes that a connection reads ahead, as our server has it.
const READ_AHEAD: usize = 64 << 10;

/// Answers requests on a port of its own until the runtime ends.
pub(super) async fn listen<A, F, B>(answer: A) -> SocketAddr
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(READ_AHEAD).half_close(false);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

pub(super) async fn native() -> SocketAddr {
    const BLOCK: &[u8] = &[b'x'; 32 << 10];
    listen(async |request| {
        let flood = || stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(BLOCK))));
        Response::new(match request.uri().path() {
            "/flood" => Either::Left(StreamBody::new(flood())),
            _ => Either::Right(Full::new(Bytes::from_static(b"hello"))),
        })
    })
    .await
}
