//! Clients that do their worst. Each ends in a time that the server decides.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    book::Book,
    healthy::connect,
    site::{DEADLINE, FRESH, HOSTILE, HOSTILE_ACTOR, REUSED, THREE},
};

/// Whoever attacks.
pub(super) struct Foe {
    pub(super) server: SocketAddr,
    pub(super) from: IpAddr,
    pub(super) random: fastrand::Rng,
    pub(super) book: Arc<Mutex<Book>>,
}

/// The status that the server answered with, or 0 for none. `None` is for what it could not even begin.
type Told<'a> = Pin<Box<dyn Future<Output = Option<u16>> + Send + 'a>>;

/// A way to attack: its name, what it does, and whether it may be told that all is well.
struct Way {
    name: &'static str,
    attack: for<'a> fn(&'a mut Foe) -> Told<'a>,
    may_be_well: bool,
}

/// Longer than the server lets anybody hang on, with what it takes to notice under load.
const PATIENCE: Duration = DEADLINE.saturating_mul(3);

const WAYS: &[Way] = &[
    Way { name: "a slow head", attack: |foe| Box::pin(foe.slow_head()), may_be_well: false },
    Way { name: "a slow body", attack: |foe| Box::pin(foe.slow_body()), may_be_well: false },
    Way { name: "a body that stands still", attack: |foe| Box::pin(foe.still_body()), may_be_well: false },
    Way { name: "an endless head", attack: |foe| Box::pin(foe.endless_head()), may_be_well: false },
    Way { name: "many headers", attack: |foe| Box::pin(foe.many_headers()), may_be_well: false },
    Way { name: "an endless body", attack: |foe| Box::pin(foe.endless_body()), may_be_well: false },
    Way { name: "two meanings", attack: |foe| Box::pin(foe.two_meanings()), may_be_well: false },
    Way { name: "a smuggled request", attack: |foe| Box::pin(foe.smuggled()), may_be_well: true },
    Way { name: "an upgrade", attack: |foe| Box::pin(foe.upgrade()), may_be_well: true },
    Way { name: "nonsense", attack: |foe| Box::pin(foe.nonsense()), may_be_well: false },
    Way { name: "idle connections", attack: |foe| Box::pin(foe.idle()), may_be_well: true },
    Way { name: "connections by the dozen", attack: |foe| Box::pin(foe.connections()), may_be_well: true },
    Way { name: "hanging up", attack: |foe| Box::pin(foe.hang_up()), may_be_well: true },
    Way { name: "reading nothing", attack: |foe| Box::pin(foe.read_nothing()), may_be_well: true },
    Way { name: "guests that crash", attack: |foe| Box::pin(foe.crash()), may_be_well: true },
    Way { name: "actors that crash", attack: |foe| Box::pin(foe.crash_actor()), may_be_well: false },
    Way { name: "resets in a storm", attack: |foe| Box::pin(foe.resets()), may_be_well: false },
    Way { name: "settings in a storm", attack: |foe| Box::pin(foe.frames(4, &[0, 4, 0, 0, 0, 0])), may_be_well: false },
    Way { name: "pings in a storm", attack: |foe| Box::pin(foe.frames(6, &[0; 8])), may_be_well: false },
    Way { name: "a head without end", attack: |foe| Box::pin(foe.continuations()), may_be_well: false },
    Way { name: "no window", attack: |foe| Box::pin(foe.no_window()), may_be_well: false },
];

impl Foe {
    /// Attacks in one way after the other until it is over, and is gone then in the middle of what it does.
    pub(super) async fn run(mut self, over: CancellationToken) {
        let attacking = async {
            loop {
                let Way { name, attack, may_be_well } = &WAYS[self.random.usize(..WAYS.len())];
                let told = timeout(PATIENCE, attack(&mut self)).await;
                let mut book = self.book.lock();
                match told {
                    Ok(Some(200)) if !may_be_well => book.find(format!("a hostile client with {name} was served")),
                    Ok(told) => book.endured(name, told.unwrap_or(0)),
                    Err(_) => book.find(format!("a hostile client with {name} is still there after {PATIENCE:?}")),
                }
            }
        };
        over.run_until_cancelled(attacking).await;
    }

    async fn connect(&self) -> Option<TcpStream> {
        connect(self.server, self.from).await.ok()
    }

    fn host(&mut self) -> &'static str {
        [FRESH, REUSED, THREE][self.random.usize(..3)]
    }

    /// Sends this, and reads to the end.
    async fn sent(&mut self, bytes: &[u8]) -> Option<u16> {
        let mut stream = self.connect().await?;
        _ = stream.write_all(bytes).await;
        Some(rest(&mut stream).await)
    }

    /// Sends a byte at a time until the server has enough.
    async fn slowly(&mut self, begin: &[u8], bytes: impl Iterator<Item = u8>) -> Option<u16> {
        let mut stream = self.connect().await?;
        _ = stream.write_all(begin).await;
        let (mut reader, mut writer) = stream.split();
        let writing = async {
            for byte in bytes {
                sleep(Duration::from_millis(200)).await;
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
            }
        };
        let mut told = Vec::new();
        // The server closes in the end, whether or not it has read all.
        let (_, ()) = tokio::join!(reader.read_to_end(&mut told), writing);
        Some(status(&told))
    }

    async fn slow_head(&mut self) -> Option<u16> {
        let head = format!("GET /hello HTTP/1.1\r\nhost: {FRESH}\r\nx: ");
        let bytes = head.into_bytes().into_iter().chain(std::iter::repeat_n(b'x', 1_000));
        self.slowly(b"", bytes).await
    }

    async fn slow_body(&mut self) -> Option<u16> {
        let host = self.host();
        let head = format!("POST /read HTTP/1.1\r\nhost: {host}\r\ncontent-length: 100000\r\n\r\n");
        self.slowly(head.as_bytes(), std::iter::repeat_n(b'x', 1_000)).await
    }

    async fn still_body(&mut self) -> Option<u16> {
        let host = self.host();
        self.sent(format!("POST /read HTTP/1.1\r\nhost: {host}\r\ncontent-length: 10\r\n\r\nxxx").as_bytes()).await
    }

    /// Sends a beginning, and then this without end, until the server has enough.
    async fn without_end(&mut self, begin: &[u8], more: &[u8]) -> Option<u16> {
        let stream = self.connect().await?;
        let (mut reader, mut writer) = stream.into_split();
        let mut told = Vec::new();
        let flooding = async {
            if writer.write_all(begin).await.is_ok() {
                while writer.write_all(more).await.is_ok() {}
            }
        };
        let reading = reader.read_to_end(&mut told);
        _ = tokio::join!(reading, flooding);
        Some(status(&told))
    }

    async fn endless_head(&mut self) -> Option<u16> {
        self.without_end(b"GET /hello HTTP/1.1\r\nhost: fresh.test\r\nx: ", &[b'x'; 4096]).await
    }

    async fn many_headers(&mut self) -> Option<u16> {
        let head = format!("GET /hello HTTP/1.1\r\nhost: {FRESH}\r\n{}\r\n", "x: y\r\n".repeat(1_000));
        self.sent(head.as_bytes()).await
    }

    async fn endless_body(&mut self) -> Option<u16> {
        let host = self.host();
        let head = format!("POST /read HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
        self.without_end(head.as_bytes(), chunk.as_bytes()).await
    }

    async fn two_meanings(&mut self) -> Option<u16> {
        const HEADS: &[&str] = &[
            "GET /hello HTTP/1.1\r\n\r\n",
            "GET /hello HTTP/1.1\r\nhost: fresh.test\r\nhost: reused.test\r\n\r\n",
            "GET http://reused.test/hello HTTP/1.1\r\nhost: fresh.test\r\n\r\n",
            "GET /hello HTTP/1.1\r\nhost: user@fresh.test\r\n\r\n",
            "POST /read HTTP/1.1\r\nhost: fresh.test\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nxxxxx",
            "POST /read HTTP/1.1\r\nhost: fresh.test\r\ncontent-length: +4\r\n\r\nxxxx",
            "CONNECT fresh.test:443 HTTP/1.1\r\nhost: fresh.test:443\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nhost: fresh.test\r\n\r\n",
        ];
        let head = HEADS[self.random.usize(..HEADS.len())];
        self.sent(head.as_bytes()).await
    }

    async fn smuggled(&mut self) -> Option<u16> {
        let host = self.host();
        let both = "transfer-encoding: chunked\r\ncontent-length: 100";
        let behind = "GET /hello HTTP/1.1\r\nhost: fresh.test\r\n\r\n";
        self.sent(format!("POST /read HTTP/1.1\r\nhost: {host}\r\n{both}\r\n\r\n0\r\n\r\n{behind}").as_bytes()).await
    }

    async fn upgrade(&mut self) -> Option<u16> {
        let host = self.host();
        let upgrade = "connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-version: 13";
        self.sent(format!("GET /hello HTTP/1.1\r\nhost: {host}\r\n{upgrade}\r\n\r\n").as_bytes()).await
    }

    async fn nonsense(&mut self) -> Option<u16> {
        let mut bytes = vec![0; self.random.usize(1..4096)];
        self.random.fill(&mut bytes);
        self.sent(&bytes).await
    }

    /// Some connections that have had a request, and do nothing.
    async fn idle(&mut self) -> Option<u16> {
        let mut open = Vec::new();
        for _ in 0..20 {
            let mut stream = self.connect().await?;
            let asked = format!("GET /hello HTTP/1.1\r\nhost: {FRESH}\r\n\r\n");
            _ = stream.write_all(asked.as_bytes()).await;
            open.push(stream);
        }
        let mut told = 0;
        for stream in &mut open {
            // The server closes it after a while.
            told = rest(stream).await;
        }
        Some(told)
    }

    async fn connections(&mut self) -> Option<u16> {
        let mut open = Vec::new();
        for _ in 0..100 {
            open.push(self.connect().await?);
        }
        drop(open);
        Some(0)
    }

    /// Is gone in the middle of a request, of a body, or of an answer.
    async fn hang_up(&mut self) -> Option<u16> {
        let host = self.host();
        let mut stream = self.connect().await?;
        let begun = match self.random.u32(..4) {
            0 => format!("GET /drip/2/10000 HTTP/1.1\r\nhost: {host}\r\n\r\n"),
            1 => format!("POST /echo HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1000\r\n\r\npart"),
            2 => format!("GET /wait/10000 HTTP/1.1\r\nhost: {host}\r\n\r\n"),
            _ => format!("GET /hello HTTP/1.1\r\nhost: {host}\r\nx: "),
        };
        _ = stream.write_all(begun.as_bytes()).await;
        sleep(Duration::from_millis(self.random.u64(..50))).await;
        if self.random.bool() {
            _ = stream.set_zero_linger();
        }
        Some(0)
    }

    async fn read_nothing(&mut self) -> Option<u16> {
        let mut stream = self.connect().await?;
        let host = HOSTILE[self.random.usize(..HOSTILE.len())];
        _ = stream.write_all(format!("GET /flood HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await;
        // Longer than the server lets it.
        sleep(Duration::from_secs(4)).await;
        Some(rest(&mut stream).await)
    }

    /// One request after the other for guests that crash, on one connection as long as it lasts.
    async fn crash(&mut self) -> Option<u16> {
        const PATHS: &[&str] = &[
            "trap",
            "trap-after",
            "trap-at-the-end",
            "trap-beyond",
            "spin",
            "grow/64",
            "exit",
            "exit-failed",
            "too-short",
            "decline",
            "silent",
            "heads/1000",
            "bodies/100",
            "keep",
            "leave/200",
            "finish-early",
            "keep-answer",
            "promise",
        ];
        let host = HOSTILE[self.random.usize(..HOSTILE.len())];
        let path = PATHS[self.random.usize(..PATHS.len())];
        self.sent(format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes()).await
    }

    /// A message that an actor crashes over, or does not take.
    async fn crash_actor(&mut self) -> Option<u16> {
        let body = ["crash", "add x", &"x".repeat(200_000)][self.random.usize(..3)].to_owned();
        let (method, length) = (["POST", "POST", "PUT"][self.random.usize(..3)], body.len());
        let head =
            format!("{method} / HTTP/1.1\r\nhost: {HOSTILE_ACTOR}\r\nconnection: close\r\ncontent-length: {length}");
        self.sent(format!("{head}\r\n\r\n{body}").as_bytes()).await
    }

    /// Requests that are taken back.
    async fn resets(&mut self) -> Option<u16> {
        let mut stream = self.connect().await?;
        if stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.is_err() {
            return Some(0);
        }
        let host = self.host();
        let (mut reader, mut writer) = stream.split();
        let storm = async {
            for number in 0..10_000 {
                let stream = number * 2 + 1;
                let asked = [frame(1, 5, stream, &head_of(host, "/wait/1000")), frame(3, 0, stream, &[0, 0, 0, 8])];
                if writer.write_all(&asked.concat()).await.is_err() {
                    return;
                }
            }
        };
        let mut told = Vec::new();
        _ = tokio::join!(reader.read_to_end(&mut told), storm);
        Some(0)
    }

    /// Such a frame over and over, without reading what comes of it.
    async fn frames(&mut self, kind: u8, payload: &[u8]) -> Option<u16> {
        self.storm(&[], &frame(kind, 0, 0, payload)).await
    }

    async fn continuations(&mut self) -> Option<u16> {
        let head = frame(1, 0, 1, &[0x82, 0x86, 0x84]);
        let field = [&[0x40, 1, b'x', 100][..], &[b'y'; 100]].concat();
        let more = if self.random.bool() { frame(9, 0, 1, &field) } else { frame(9, 0, 1, &[]) };
        self.storm(&head, &more).await
    }

    async fn storm(&mut self, begin: &[u8], more: &[u8]) -> Option<u16> {
        let mut stream = self.connect().await?;
        let begin = [PREFACE, &frame(4, 0, 0, &[]), begin].concat();
        if stream.write_all(&begin).await.is_ok() {
            let many = more.repeat(100);
            while stream.write_all(&many).await.is_ok() {}
        }
        Some(0)
    }

    /// An answer of which nothing is taken.
    async fn no_window(&mut self) -> Option<u16> {
        let mut stream = self.connect().await?;
        let host = HOSTILE[self.random.usize(..HOSTILE.len())];
        let no_window = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
        let asked = frame(1, 5, 1, &head_of(host, "/flood"));
        _ = stream.write_all(&[PREFACE, &no_window, &asked].concat()).await;
        // Until the server has enough, which takes it some time, for each of its frames may be read.
        _ = stream.read_to_end(&mut Vec::new()).await;
        Some(0)
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a `GET`, as HPACK has it without its table and without Huffman's code.
fn head_of(host: &str, path: &str) -> Vec<u8> {
    let text = |name: u8, value: &str| [&[name, value.len() as u8], value.as_bytes()].concat();
    [&[0x82, 0x86][..], &text(0x04, path), &text(0x01, host)].concat()
}

/// The status of an answer of HTTP/1, 0 for none.
fn status(answer: &[u8]) -> u16 {
    let digits = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}

/// Reads until the server closes.
async fn rest(stream: &mut TcpStream) -> u16 {
    let mut told = Vec::new();
    _ = stream.read_to_end(&mut told).await;
    status(&told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_answers_are_as_the_protocol_has_them() {
        assert_eq!(frame(6, 0, 1, &[7, 8]), [0, 0, 2, 6, 0, 0, 0, 0, 1, 7, 8]);
        assert_eq!(head_of("a", "/b"), [0x82, 0x86, 4, 2, b'/', b'b', 1, 1, b'a']);
        assert_eq!((status(b"HTTP/1.1 431 Too large\r\n"), status(b"HTTP/1.0 200 OK"), status(b"")), (431, 200, 0));
    }
}
