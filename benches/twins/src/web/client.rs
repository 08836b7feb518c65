//! A client of HTTP/1.1, by hyper.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A request, and what is expected of its answer.
#[derive(Clone)]
pub struct Question {
    host: &'static str,
    path: &'static str,
    body: Bytes,
    answer: Answer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// 200 with so many bytes.
    Whole(usize),
    /// Whatever comes.
    Any,
}

impl Question {
    /// `/hello`.
    pub fn hello() -> Self {
        Self { host: "web.test", path: "/hello", body: Bytes::new(), answer: Answer::Whole("hello".len()) }
    }

    /// `/echo` of so many bytes.
    pub fn echo(bytes: usize) -> Self {
        Self { host: "web.test", path: "/echo", body: vec![b'x'; bytes].into(), answer: Answer::Whole(bytes) }
    }

    /// One whose answer may be anything, even broken off.
    pub fn any(path: &'static str) -> Self {
        Self { host: "web.test", path, body: Bytes::new(), answer: Answer::Any }
    }

    /// To this host.
    #[must_use]
    pub fn to(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
}

/// A connection that is kept open.
pub struct Connection(http1::SendRequest<Full<Bytes>>);

impl Connection {
    /// A connection of its own.
    pub async fn open(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request and reads the answer to its end.
    ///
    /// # Errors
    ///
    /// When the connection ends before the answer does.
    ///
    /// # Panics
    ///
    /// When the answer is not as expected.
    pub async fn ask(&mut self, question: &Question) -> hyper::Result<()> {
        let Question { host, path, body, answer } = question;
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        let request = Request::builder().method(method).uri(*path).header("host", *host);
        self.0.ready().await?;
        let response = self.0.send_request(request.body(Full::new(body.clone())).unwrap()).await?;
        let status = response.status();
        let (mut body, mut bytes) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        if let Answer::Whole(expected) = *answer {
            assert_eq!((status.as_u16(), bytes), (200, expected));
        }
        Ok(())
    }

    /// Whether the server has closed it.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}
