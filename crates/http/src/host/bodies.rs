//! Bodies that guests write, which end as complete only if the guest has said so.
//!
//! wasmtime-wasi-http takes a body whose writer is gone for complete. So a crash in the middle would look like the end, and a
//! cache on the way would keep the half.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use wasmtime_wasi_http::{Error, WasiBody};

/// The bodies of one guest that it has not finished.
#[derive(Default)]
pub(super) struct Bodies {
    /// Whether a body is finished, by the number of the guest's resource. There is mostly one.
    finished: Vec<(u32, Arc<AtomicBool>)>,
    live: Arc<AtomicUsize>,
}

/// Bodies that a guest may have at a time that nobody has read to the end. Each holds up to two of its writes.
pub(super) const MOST_BODIES: usize = 64;

impl Bodies {
    pub(super) fn is_full(&self) -> bool {
        self.live() >= MOST_BODIES
    }

    /// How many there are whose reader still holds them.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Of this resource, whose head promises this length.
    pub(super) fn add(&mut self, resource: u32, length: Option<u64>, inner: WasiBody) -> WasiBody {
        let finished = Arc::<AtomicBool>::default();
        self.finished.retain(|(other, _)| *other != resource);
        self.finished.push((resource, Arc::clone(&finished)));
        self.live.fetch_add(1, Ordering::Relaxed);
        Written::new(inner, length, End::Said(finished), Some(Live(Arc::clone(&self.live)))).boxed_unsync()
    }

    /// The guest says that it is complete.
    pub(super) fn finish(&mut self, resource: u32) {
        if let Some(at) = self.finished.iter().position(|(other, _)| *other == resource) {
            let (_, finished) = self.finished.swap_remove(at);
            // Before the body hears of its end by a channel, which orders the two.
            finished.store(true, Ordering::Release);
        }
    }
}

pub(crate) struct Live(Arc<AtomicUsize>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who knows whether a body is complete that has come to its end.
pub(crate) enum End {
    /// The guest has said so, or not.
    Said(Arc<AtomicBool>),
    /// Whoever runs the guest, because by then it may have crashed.
    Asked(Option<oneshot::Sender<Whether>>),
    /// It will be said, or nobody is left to say so.
    Awaited(oneshot::Receiver<bool>),
}

/// The messages of 0.3 that a guest has made and not sent, by the numbers of its resources.
#[derive(Default)]
pub(super) struct Unsent(Vec<(u32, Made)>);

/// How the body ends of a message that a guest has made.
pub(super) enum Made {
    Request(oneshot::Receiver<bool>),
    /// Whoever runs the guest knows.
    Response,
}

impl Unsent {
    pub(super) fn add(&mut self, resource: u32, made: Made) {
        _ = self.take(resource);
        self.0.push((resource, made));
    }

    /// One that is sent or consumed, or that another one has taken the number of.
    pub(super) fn take(&mut self, resource: u32) -> Option<Made> {
        let at = self.0.iter().position(|(other, _)| *other == resource)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// Takes whether a body is complete.
pub(crate) type Whether = oneshot::Sender<bool>;

impl End {
    /// To be asked of the receiver's owner.
    pub(crate) fn asked() -> (Self, oneshot::Receiver<Whether>) {
        let (ask, asked) = oneshot::channel();
        (Self::Asked(Some(ask)), asked)
    }

    fn poll_is_complete(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if let Self::Asked(ask) = self {
            let (whether, answer) = oneshot::channel();
            if ask.take().is_none_or(|ask| ask.send(whether).is_err()) {
                return Poll::Ready(false);
            }
            *self = Self::Awaited(answer);
        }
        match self {
            Self::Said(finished) => Poll::Ready(finished.load(Ordering::Acquire)),
            Self::Awaited(answer) => Pin::new(answer).poll(cx).map(|answer| answer.unwrap_or(false)),
            Self::Asked(_) => Poll::Ready(false),
        }
    }
}

/// What the head of a message promises of its body. A guest's has at most one length, which is of digits alone.
pub(crate) fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A body that a guest writes.
pub(crate) struct Written {
    inner: WasiBody,
    end: End,
    /// What the head promises.
    length: Option<u64>,
    written: u64,
    /// The frame by which the promise is kept. It waits for the guest to finish: with it, the body is complete to the client.
    last: Option<Bytes>,
    /// What comes after it.
    trailers: Option<Frame<Bytes>>,
    state: State,
    _live: Option<Live>,
}

impl Written {
    /// Whose head promises this length.
    pub(crate) fn new(inner: WasiBody, length: Option<u64>, end: End, live: Option<Live>) -> Self {
        Self { inner, end, length, written: 0, last: None, trailers: None, state: State::Open, _live: live }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// There is no more of it, and nobody has said yet whether it is complete.
    Ended,
    Over,
}

impl Body for Written {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            if this.state == State::Over {
                return Poll::Ready(None);
            }
            if let Some(trailers) = this.trailers.take() {
                this.state = State::Over;
                return Poll::Ready(Some(Ok(trailers)));
            }
            if this.state == State::Ended {
                let is_complete = ready!(this.end.poll_is_complete(cx));
                this.state = State::Over;
                if !is_complete {
                    return Poll::Ready(Some(Err(Error::HttpResponseIncomplete)));
                }
                return Poll::Ready(this.last.take().map(|last| Ok(Frame::data(last))));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    // Not sent: in HTTP/2 it needs no room of the client's, and would wait beside any number of others.
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        this.written = this.written.saturating_add(data.len() as u64);
                        match this.length {
                            // The guest hears of it by the error of its write, when the bytes are here already.
                            Some(length) if this.written > length => {
                                (this.state, this.last) = (State::Over, None);
                                return Poll::Ready(Some(Err(Error::HttpResponseBodySize(Some(this.written)))));
                            }
                            Some(length) if this.written == length => this.last = Some(data),
                            _ => return Poll::Ready(Some(Ok(Frame::data(data)))),
                        }
                    }
                    // Sent by `finish`, and so the end.
                    Err(frame) => {
                        let Some(last) = this.last.take() else {
                            this.state = State::Over;
                            return Poll::Ready(Some(Ok(frame)));
                        };
                        this.trailers = Some(frame);
                        return Poll::Ready(Some(Ok(Frame::data(last))));
                    }
                },
                Some(Err(error)) => {
                    this.state = State::Over;
                    return Poll::Ready(Some(Err(error)));
                }
                None => this.state = State::Ended,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Over
    }

    fn size_hint(&self) -> SizeHint {
        // The head says it.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    /// What comes out of a body into which the guest writes these, and whether it breaks off.
    async fn out(length: Option<u64>, frames: Vec<Frame<Bytes>>, finishes: bool) -> (Vec<Frame<Bytes>>, bool) {
        let (sender, mut receiver) = mpsc::channel(8);
        let stream = StreamBody::new(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        let mut bodies = Bodies::default();
        let mut body = bodies.add(1, length, stream.boxed_unsync());
        assert_eq!(bodies.live(), 1);
        for frame in frames {
            sender.send(Ok(frame)).await.unwrap();
        }
        if finishes {
            bodies.finish(1);
        }
        drop(sender);
        let mut out = Vec::new();
        let broken = loop {
            match body.frame().await {
                None => break false,
                Some(Ok(frame)) => out.push(frame),
                Some(Err(_)) => break true,
            }
        };
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!(bodies.live(), 0);
        (out, broken)
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from(text))
    }

    fn text(frames: &[Frame<Bytes>]) -> String {
        frames.iter().filter_map(Frame::data_ref).map(|data| String::from_utf8_lossy(data)).collect()
    }

    #[tokio::test]
    async fn chunks_without_a_byte_are_not_sent() {
        let frames = ["", "a", "", "", "b", ""].map(|chunk| Frame::data(Bytes::from_static(chunk.as_bytes())));
        let (sent, broken) = out(None, frames.into(), true).await;
        let sent: Vec<_> = sent.into_iter().map(|frame| frame.into_data().unwrap()).collect();
        assert_eq!(sent, ["a", "b"]);
        assert!(!broken);
    }

    #[tokio::test]
    async fn a_body_is_complete_only_if_it_was_finished() {
        for length in [None, Some(8)] {
            let (frames, broken) = out(length, vec![data("part"), data("part")], true).await;
            assert_eq!((&*text(&frames), broken), ("partpart", false));
            let (frames, broken) = out(length, vec![data("part"), data("part")], false).await;
            // The promised length is not reached.
            let expected = if length.is_some() { "part" } else { "partpart" };
            assert_eq!((&*text(&frames), broken), (expected, true));
        }
    }

    #[tokio::test]
    async fn a_body_that_is_longer_than_was_promised_is_broken_off() {
        for frames in [vec![data("part"), data("more")], vec![data("partmore")]] {
            let (frames, broken) = out(Some(4), frames, true).await;
            assert_eq!((&*text(&frames), broken), ("", true));
        }
    }

    #[tokio::test]
    async fn trailers_come_behind_the_last_byte() {
        for length in [None, Some(4)] {
            let trailers = HeaderMap::from_iter([("x".parse().unwrap(), "y".parse().unwrap())]);
            let (frames, broken) = out(length, vec![data("part"), Frame::trailers(trailers)], true).await;
            assert!(!broken && frames.len() == 2 && frames[1].is_trailers());
        }
    }
}
